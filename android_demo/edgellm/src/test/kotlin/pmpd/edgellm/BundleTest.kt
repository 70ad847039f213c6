package pmpd.edgellm

import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.CoroutineStart
import kotlinx.coroutines.Deferred
import kotlinx.coroutines.async
import kotlinx.coroutines.coroutineScope
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder
import java.io.File

class BundleTest {
    @get:Rule
    val folder = TemporaryFolder()

    @Test
    fun `a bundle is described as its manifest does`() {
        val bundle = Bundle.open(BUNDLE)
        assertEquals("translator-7m", bundle.name)
        assertEquals("llama", bundle.architecture)
        assertEquals(7_344_384L, bundle.parameters)
        assertEquals(512, bundle.contextLength)
        assertEquals(listOf(8, 4, 2), bundle.levels.map { it.precision })
        assertEquals(listOf(8.5139, 5.0874, 3.4812), bundle.levels.map { it.bpw })
        assertEquals(weights(BUNDLE).sumOf { it.length() }, bundle.bytes)
        assertEquals(8, bundle.prefill)
        assertEquals("8@1,4@6,2@11", bundle.schedule)
        assertEquals(64, bundle.maxNewTokens)
        assertFalse(bundle.hasPredictor)
    }

    @Test
    fun `a whole bundle passes the check of its hashes and progress ends with all bytes`() = test {
        val seen = mutableListOf<Long>()
        Bundle.open(BUNDLE).verify { seen += it }
        assertEquals(seen.sorted(), seen)
        assertTrue(seen.last() >= Bundle.open(BUNDLE).bytes)
    }

    @Test
    fun `a flipped bit is found by the check and named`() = test {
        val copy = copyOfBundle(folder.newFolder("copy"))
        flipByte(File(copy, "translator-7m-q4.gguf"), 3_000_000)
        val failure = thrown<BundleException> { Bundle.open(copy).verify() }
        assertTrue(failure.message!!, "translator-7m-q4.gguf" in failure.message!!)
    }

    @Test
    fun `a truncated file is found when the bundle is opened`() {
        val copy = copyOfBundle(folder.newFolder("copy"))
        truncate(File(copy, "translator-7m-q2.gguf"), 1_000_000)
        val failure = thrown<BundleException> { Bundle.open(copy) }
        assertTrue(failure.message!!, "translator-7m-q2.gguf" in failure.message!!)
    }

    @Test
    fun `what is no bundle says so in one line`() {
        val newer = """{"format": "pmpd-bundle", "version": 9}"""
        val manifests = listOf(null, "", "{", "[]", """{"format": "other"}""", newer)
        for ((i, manifest) in manifests.withIndex()) {
            val directory = folder.newFolder("bundle$i")
            manifest?.let { File(directory, "pmpd.json").writeText(it) }
            val failure = thrown<BundleException> { Bundle.open(directory) }
            assertTrue(failure.message!!, failure.message!!.isNotBlank() && '\n' !in failure.message!!)
        }
        thrown<BundleException> { Bundle.open(File(folder.root, "nowhere")) }
    }

    @Test
    fun `a path that is no ASCII is found`() {
        assertEquals("translator-7m", Bundle.open(copyOfBundle(File(folder.root, "Bündel 😀"))).name)
    }

    @Test
    fun `the check stops when it is cancelled`() = test {
        coroutineScope {
            var calls = 0
            lateinit var check: Deferred<Unit>
            check = async(start = CoroutineStart.LAZY) {
                Bundle.open(BUNDLE).verify {
                    calls++
                    check.cancel()
                }
            }
            thrown<CancellationException> { check.await() }
            assertEquals(1, calls)
        }
    }

    @Test
    fun `an exception of the progress reaches the caller`() = test {
        val failure = thrown<IllegalStateException> { Bundle.open(BUNDLE).verify { error("of progress") } }
        assertEquals("of progress", failure.message)
    }

    @Test
    fun `more context and more levels need more memory`() {
        val bundle = Bundle.open(BUNDLE)
        val low = bundle.estimateMemory(SessionOptions(Method.LOW, contextTokens = 128))
        val short = bundle.estimateMemory(SessionOptions(contextTokens = 128))
        val long = bundle.estimateMemory(SessionOptions(contextTokens = 512))
        assertTrue("$low < $short < $long", low < short && short < long)
        assertTrue("$short", short > bundle.bytes)
    }

    private fun weights(directory: File) = directory.listFiles()!!.filter { Regex(".*-q\\d.gguf").matches(it.name) }
}
