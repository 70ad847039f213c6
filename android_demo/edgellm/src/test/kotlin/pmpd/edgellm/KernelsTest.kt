package pmpd.edgellm

import org.junit.Assert.assertTrue
import org.junit.Test
import java.io.File

/** The libraries run on this processor: matrices are multiplied, which a wrong choice of kernels does not survive. */
class KernelsTest {
    @Test
    fun `an answer is generated and the kernels in use are named`() = test {
        withSession { session -> assertTrue(ids(session.answer(SENTENCE)).size > 5) }
        val mapped = File("/proc/self/maps").readLines().map { it.substringAfterLast('/') }
        mapped.filter { it.startsWith("libggml-cpu") }.distinct().forEach(::println)
    }
}
