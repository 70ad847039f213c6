package pmpd.edgellm

import kotlinx.coroutines.flow.toList
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test
import java.io.File
import kotlin.math.abs
import kotlin.math.ln

/** -Dpmpd.exact: on the processor where the Python package answered, everything is equal. */
private val EXACT = System.getProperty("pmpd.exact").toBoolean()

// Of another processor, whose kernels add up in another order
private const val NEAR_TIE = 0.2 // between the logarithms of two probabilities of which either may be the larger
private const val NOISE = 0.5 // in the logarithm of a token's probability

/** What the Python package answered: a line of the file -Dpmpd.oracle, whose form check/oracle.py describes. */
private class Answer(line: String) {
    private val fields = line.split('\t')
    val options = OPTIONS.copy(
        method = Method.valueOf(fields[0].uppercase()),
        schedule = schedule(fields[1], fields[2].toInt()),
    )
    val sampling = sampling(fields[3].toFloat(), fields[4].toInt())
    val messages = fields[5].split('|').mapIndexed { i, text -> Message(if (i % 2 == 0) "user" else "assistant", text) }
    val ids = fields[6].split(' ').map { it.toInt() }
    val precisions = fields[7].split(' ').map { it.toInt() }
    val logarithms = fields[8].split(' ').map { it.toDouble() }
    val seconds = fields[9].split(' ').map { it.toInt() }
    val gaps = fields[10].split(' ').map { it.toDouble() }
    val text = String(fields[11].chunked(2) { it.toString().toInt(16).toByte() }.toByteArray())
    val name = fields.take(6).joinToString(" ")

    private fun schedule(name: String, highSteps: Int) =
        if (name.startsWith("fixed:")) Schedule.Fixed(name.substringAfter(':').toInt())
        else Schedule.Static(highSteps.takeIf { it >= 0 })

    private fun sampling(temperature: Float, seed: Int) =
        if (temperature > 1) Sampling(temperature, topK = 0, topP = 1f, minP = 0f, seed = seed) // any token
        else Sampling(temperature, seed = seed)
}

/** Tokens, precisions and texts are those of the Python package. */
class ParityTest {
    private val answers = File(requireNotNull(System.getProperty("pmpd.oracle")) { "run with -Dpmpd.oracle=FILE" })
        .readLines().map(::Answer)

    @Test
    fun `answers are those of the Python package`() = test {
        var equal = 0
        val asked = if (EXACT) answers else answers.filter { it.sampling.temperature == 0f }
        withSession { session ->
            for (expected in asked) {
                session.configure(expected.options)
                val tokens = session.answer(expected.messages, Request(sampling = expected.sampling)).toList()
                val different = tokens.indices.firstOrNull { tokens[it].id != expected.ids.getOrNull(it) }
                compareUntil(different ?: tokens.size, tokens, expected)
                if (different == null) {
                    equal++
                    assertEquals(expected.name, expected.text, tokens.joinToString("") { it.text })
                } else {
                    assertNearTie(different, tokens[different], expected)
                }
            }
        }
        println("$equal of ${asked.size} answers equal")
        assertTrue("$equal of ${asked.size}", asked.size > 30 && equal > asked.size * 3 / 4)
    }

    private fun compareUntil(end: Int, tokens: List<Token>, expected: Answer) {
        assertEquals(expected.name, expected.precisions.take(end), tokens.take(end).map { it.precision })
        for (i in 0 until end) {
            val difference = abs(ln(tokens[i].probability.toDouble()) - expected.logarithms[i])
            assertTrue("${expected.name}: $difference at $i", difference < if (EXACT) 1e-3 else NOISE)
        }
    }

    /** A first difference is none where either token may be the likeliest, unless both are computed alike. */
    private fun assertNearTie(at: Int, token: Token, expected: Answer) {
        val about = "${expected.name}: $token at $at instead of ${expected.ids[at]}, ${expected.gaps[at]} ahead"
        assertTrue(about, !EXACT && token.id == expected.seconds[at] && expected.gaps[at] < NEAR_TIE)
        println(about)
    }
}
