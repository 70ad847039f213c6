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
private const val NEAR_TIE = 0.2 // between the logarithms of probabilities of which any may be the largest
private const val NOISE = 0.5 // in the logarithm of a token's probability

/** What the Python package answered; -Dpmpd.oracle is a directory that check/oracle.py has filled. */
private val ORACLE = File(requireNotNull(System.getProperty("pmpd.oracle")) { "run with -Dpmpd.oracle=DIRECTORY" })

/** A line of a file there. */
private class Answer(line: String) {
    private val fields = line.split('\t')
    val options = OPTIONS.copy(
        method = Method.valueOf(fields[0].uppercase()),
        schedule = schedule(fields[1], fields[2].toInt()),
        draftTokens = fields[3].toInt(),
    )
    val sampling = sampling(fields[4].toFloat(), fields[5].toInt())
    val messages = fields[6].split('|').mapIndexed { i, text -> Message(if (i % 2 == 0) "user" else "assistant", text) }
    val ids = fields[7].split(' ').map { it.toInt() }
    val precisions = fields[8].split(' ').map { it.toInt() }
    val drafted = fields[9].split(' ').map { it == "1" }
    val logarithms = fields[10].split(' ').map { it.toDouble() }
    val gaps = fields[11].split(' ').map { it.toDouble() }
    val text = String(fields[12].chunked(2) { it.toString().toInt(16).toByte() }.toByteArray())
    val name = fields.take(7).joinToString(" ")

    private fun schedule(name: String, highSteps: Int) = when {
        name.isEmpty() -> null
        name == "learned" -> Schedule.Learned
        name.startsWith("fixed:") -> Schedule.Fixed(name.substringAfter(':').toInt())
        else -> Schedule.Static(highSteps.takeIf { it >= 0 })
    }

    private fun sampling(temperature: Float, seed: Int) =
        if (temperature > 1) Sampling(temperature, topK = 0, topP = 1f, minP = 0f, seed = seed) // any token
        else Sampling(temperature, seed = seed)
}

/** Tokens, precisions and texts are those of the Python package. */
class ParityTest {
    @Test
    fun `answers are those of the Python package`() = test {
        compare(Bundle.open(BUNDLE), answers("default.tsv"), leastShare = 0.75)
    }

    /** Weights of other types than the default bundle has: all its shapes are divisible by 256. */
    @Test
    fun `answers by a predictor are those of the Python package`() = test {
        val bundle = Bundle.open(File(ORACLE, "learned"))
        assertTrue(bundle.hasPredictor)
        val answers = answers("learned.tsv")
        val learned = answers.filter { it.options.schedule == Schedule.Learned }
        assertTrue(learned.map { it.precisions.count { it == 8 } }.distinct().size > 1) // it depends on the prompt
        compare(bundle, answers, leastShare = 0.4) // random weights: many tokens are as likely as others
    }

    private fun answers(file: String) = File(ORACLE, file).readLines().map(::Answer)

    /** @param leastShare of all tokens, those that have to be equal before a near tie parts an answer. */
    private suspend fun compare(bundle: Bundle, answers: List<Answer>, leastShare: Double) {
        var equal = 0
        var equalTokens = 0
        val asked = if (EXACT) answers else answers.filter { it.sampling.temperature == 0f }
        withSession(bundle = bundle) { session ->
            for (expected in asked) {
                session.configure(expected.options)
                val tokens = session.answer(expected.messages, Request(sampling = expected.sampling)).toList()
                val different = tokens.indices.firstOrNull { tokens[it].id != expected.ids.getOrNull(it) }
                compareUntil(different ?: tokens.size, tokens, expected)
                equalTokens += different ?: tokens.size
                if (different == null) {
                    equal++
                    assertEquals(expected.name, expected.text, tokens.joinToString("") { it.text })
                } else {
                    assertNearTie(different, tokens[different], expected)
                }
            }
        }
        val tokens = asked.sumOf { it.ids.size }
        println("$equal of ${asked.size} answers equal, $equalTokens of $tokens tokens before a near tie")
        assertTrue("$equalTokens of $tokens", asked.size > 10 && equalTokens > leastShare * tokens)
    }

    private fun compareUntil(end: Int, tokens: List<Token>, expected: Answer) {
        assertEquals(expected.name, expected.precisions.take(end), tokens.take(end).map { it.precision })
        if (EXACT) assertEquals(expected.name, expected.drafted.take(end), tokens.take(end).map { it.drafted })
        for (i in 0 until end) {
            val difference = abs(ln(tokens[i].probability.toDouble()) - expected.logarithms[i])
            assertTrue("${expected.name}: $difference at $i", difference < if (EXACT) 1e-3 else NOISE)
        }
    }

    /** A first difference is none where any of the tokens may be the likeliest, unless both are computed alike. */
    private fun assertNearTie(at: Int, token: Token, expected: Answer) {
        val about = "${expected.name}: $token at $at instead of ${expected.ids[at]}, ${expected.gaps[at]} ahead"
        val asLikely = abs(ln(token.probability.toDouble()) - expected.logarithms[at]) < NEAR_TIE
        assertTrue(about, !EXACT && asLikely && expected.gaps[at] < NEAR_TIE)
        println(about)
    }
}
