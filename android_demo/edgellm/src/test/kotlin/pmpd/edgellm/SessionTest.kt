package pmpd.edgellm

import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.toList
import org.junit.Assert.assertEquals
import org.junit.Assert.assertNull
import org.junit.Assert.assertTrue
import org.junit.Test
import kotlin.math.ln

private val BYTE_TOKENS = 6..261 // of the default bundle: <0x00> to <0xFF>
private val LEADING_BYTES = 0xC2..0xF4 // of characters that take several

/** What a session answers. */
class SessionTest {
    @Test
    fun `precisions follow the schedule and the statistics agree`() = test {
        withSession { session ->
            val tokens = session.answer(SENTENCE).toList()
            val expected = tokens.indices.map { step -> if (step <= 5) 8 else if (step <= 10) 4 else 2 }
            assertEquals(expected, tokens.map { it.precision })
            assertEquals(tokens.size - 1, session.stats.decodeSteps)
            assertEquals(expected.drop(1).average(), session.stats.averageBitwidth, 1e-9)
            assertEquals(2, session.stats.switches)
            assertTrue(session.stats.decodeTokensPerSecond > 0 && session.stats.prefillTokensPerSecond > 0)
        }
    }

    @Test
    fun `the last token alone says why it is the last`() = test {
        withSession { session ->
            val whole = session.answer(SENTENCE).toList()
            assertEquals(Finish.STOP, whole.last().finish)
            assertEquals("", whole.last().text)
            assertTrue(whole.dropLast(1).all { it.finish == null })
            val cut = session.answer(SENTENCE, Request(maxNewTokens = 4)).toList()
            assertEquals(Finish.LENGTH, cut.last().finish)
            assertEquals(whole.take(4).map { it.id }, cut.map { it.id })
        }
    }

    @Test
    fun `the answer ends before a stop text`() = test {
        withSession { session ->
            val text = text(session.answer(SENTENCE))
            val word = text.split(" ")[3]
            assertEquals(text.substringBefore(word), text(session.answer(SENTENCE, Request(stop = listOf(word)))))
        }
    }

    @Test
    fun `a fixed precision, high and low compute with one set of weights`() = test {
        withSession { session ->
            for ((options, precision) in listOf(
                SessionOptions(method = Method.HIGH) to 8,
                SessionOptions(method = Method.LOW) to 2,
                SessionOptions(schedule = Schedule.Fixed(4)) to 4,
            )) {
                session.configure(options)
                session.answer(SENTENCE).toList()
                assertEquals(precision.toDouble(), session.stats.averageBitwidth, 0.0)
            }
        }
    }

    @Test
    fun `lossless answers as the highest precision does, and says what was drafted`() = test {
        withSession { session ->
            session.configure(SessionOptions(Method.HIGH))
            val high = session.answer(SENTENCE).toList()
            session.configure(SessionOptions(Method.LOSSLESS, draftTokens = 3))
            val lossless = session.answer(SENTENCE).toList()
            assertSame(high, lossless)
            assertEquals(List(lossless.size) { 8 }, lossless.map { it.precision })
            val stats = session.stats
            assertEquals(lossless.count { it.drafted }, stats.keptTokens)
            assertTrue("$stats", stats.keptTokens in 1..stats.draftedTokens && stats.tokensPerVerification > 1)
            assertTrue("$stats", stats.verifications > 0 && stats.draftingSeconds > 0 && stats.verifyingSeconds > 0)
            assertTrue("$stats", stats.draftingSeconds + stats.verifyingSeconds <= stats.decodeSeconds)
        }
    }

    @Test
    fun `high steps move the first switch`() = test {
        withSession(OPTIONS.copy(schedule = Schedule.Static(steps = 2))) { session ->
            val precisions = session.answer(SENTENCE).toList().map { it.precision }
            assertEquals(listOf(8, 8, 8), precisions.take(3))
            assertTrue("$precisions", precisions[3] < 8)
        }
    }

    @Test
    fun `the prompt of a second turn keeps what the first one evaluated`() = test {
        withSession { session ->
            val first = listOf(Message("user", SENTENCE))
            session.answer(first).toList()
            val again = ids(session.answer(first))
            assertTrue("${session.stats}", session.stats.reusedTokens > 0)
            session.clear()
            assertEquals(again, ids(session.answer(first)))
            assertEquals(0, session.stats.reusedTokens)
        }
    }

    @Test
    fun `a seed decides what is sampled`() = test {
        withSession { session ->
            suspend fun sampled(seed: Int): List<Int> {
                session.clear()
                val sampling = Sampling(temperature = 2f, topK = 0, seed = seed)
                return ids(session.answer(SENTENCE, Request(sampling = sampling)))
            }
            assertEquals(sampled(7), sampled(7))
            assertTrue(List(5) { sampled(it) }.distinct().size > 1)
        }
    }

    @Test
    fun `probabilities are the model's`() = test {
        withSession { session ->
            val tokens = session.answer(SENTENCE).toList()
            assertTrue(tokens.all { it.probability > 0f && it.probability <= 1f })
            assertTrue(tokens.map { it.probability }.distinct().size > 1)
        }
    }

    @Test
    fun `bytes that complete no character add nothing until it is complete`() = test {
        withSession { session ->
            // Far from what the model would say: any token, single bytes of characters among them
            val answers = List(8) { seed ->
                val sampling = Sampling(temperature = 50f, topK = 0, topP = 1f, minP = 0f, seed = seed)
                session.complete("a", Request(maxNewTokens = 200, sampling = sampling)).toList()
            }
            val leading = answers.flatten().filter { it.id - BYTE_TOKENS.first in LEADING_BYTES && it.finish == null }
            assertTrue("$leading", leading.size > 3)
            // Nothing of its own, and U+FFFD for what was incomplete before it
            assertTrue("$leading", leading.all { it.text.trimStart('\uFFFD').isEmpty() })
        }
    }

    @Test
    fun `emoji reach the model as they are`() = test {
        withSession { session ->
            val text = "Ein 😀 lacht"
            val bytes = text.toByteArray().size
            assertTrue(session.tokenize(text).size > 4) // byte by byte: the vocabulary has none
            assertTrue(session.tokenize(text, addSpecial = false).size <= bytes + 1)
            assertTrue(ids(session.answer(text)).isNotEmpty())
        }
    }

    @Test
    fun `a bundle's default context is what the model was trained on`() = test {
        withSession { assertEquals(512, it.contextTokens) }
        withSession(OPTIONS.copy(contextTokens = 256)) { assertEquals(256, it.contextTokens) }
    }

    @Test
    fun `text without a chat template is continued`() = test {
        withSession { session ->
            val prompt = "<|user|>Translate from German to English: $SENTENCE<|assistant|>"
            assertEquals(ids(session.answer(SENTENCE)), ids(session.complete(prompt)))
        }
    }

    @Test
    fun `nothing is evaluated before the answer is collected`() = test {
        withSession { session ->
            val answer = session.answer(SENTENCE)
            assertEquals(0, session.stats.promptTokens)
            assertEquals(ids(answer), ids(answer)) // and it can be collected again
            assertNull(session.answer(SENTENCE, Request(maxNewTokens = 2)).toList().first().finish)
        }
    }

    /** The same tokens; several evaluated at once may change the last bits, so that of two as likely, either may come. */
    private fun assertSame(expected: List<Token>, given: List<Token>) {
        val at = expected.zip(given).indexOfFirst { (one, other) -> one.id != other.id }
        if (at < 0) return assertEquals(expected.size, given.size)
        assertEquals(ln(expected[at].probability), ln(given[at].probability), 0.05f)
    }

    private suspend fun text(answer: Flow<Token>) = answer.toList().joinToString("") { it.text }
}
