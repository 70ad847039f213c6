package pmpd.edgellm

import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.CompletableDeferred
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.NonCancellable
import kotlinx.coroutines.async
import kotlinx.coroutines.awaitCancellation
import kotlinx.coroutines.cancelAndJoin
import kotlinx.coroutines.coroutineScope
import kotlinx.coroutines.delay
import kotlinx.coroutines.flow.collect
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.flow.onEach
import kotlinx.coroutines.flow.take
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.launch
import kotlinx.coroutines.supervisorScope
import kotlinx.coroutines.withContext
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder
import java.io.File

/** Sessions that are used wrongly, disturbed, or closed while they answer: a typed error, and the session goes on. */
class FaultsTest {
    @get:Rule
    val folder = TemporaryFolder()

    @Test
    fun `a collector that stops early leaves the session free`() = test {
        withSession { session ->
            val whole = ids(session.answer(SENTENCE))
            repeat(10) { n ->
                assertEquals(whole.take(n + 1), ids(session.answer(SENTENCE).take(n + 1)))
                assertEquals(whole, ids(session.answer(SENTENCE)))
            }
        }
    }

    @Test
    fun `cancelling while the prompt is evaluated ends it`() = test {
        withSession(OPTIONS.copy(batchTokens = 32)) { session ->
            val whole = ids(session.answer(SENTENCE))
            var beforeItsFirstToken = 0
            repeat(20) { n ->
                session.clear()
                coroutineScope {
                    val answer = launch(Dispatchers.Default) { session.complete(LONG_TEXT).collect() }
                    delay(n.toLong())
                    answer.cancelAndJoin()
                }
                if (session.stats.promptTokens == 0) beforeItsFirstToken++
            }
            assertTrue(beforeItsFirstToken > 0)
            assertEquals(whole, ids(session.answer(SENTENCE)))
        }
    }

    @Test
    fun `a slow collector loses no token`() = test {
        withSession { session ->
            val whole = ids(session.answer(SENTENCE))
            assertEquals(whole, ids(session.answer(SENTENCE).onEach { delay(5) }))
        }
    }

    @Test
    fun `a second answer meanwhile is refused and the first one goes on`() = test {
        withSession { session ->
            val whole = ids(session.answer(SENTENCE))
            val tokens = session.answer(SENTENCE).onEach { token ->
                if (token.id == whole[2]) {
                    thrown<SessionBusyException> { session.answer(SENTENCE).first() }
                    thrown<SessionBusyException> { session.clear() }
                    thrown<SessionBusyException> { session.configure(SessionOptions()) }
                }
            }
            assertEquals(whole, ids(tokens))
        }
    }

    @Test
    fun `an exception of the collector ends the answer`() = test {
        withSession { session ->
            thrown<IllegalStateException> { session.answer(SENTENCE).collect { error("of the collector") } }
            assertTrue(ids(session.answer(SENTENCE)).isNotEmpty())
        }
    }

    @Test
    fun `closing while an answer is generated ends it with a typed error`() = test {
        repeat(5) { n ->
            val session = Session.open(Bundle.open(BUNDLE), OPTIONS)
            thrown<SessionClosedException> {
                var seen = 0
                session.answer(SENTENCE).collect { if (seen++ == n) session.close() }
            }
            session.awaitClosed()
        }
    }

    @Test
    fun `closing while the prompt is evaluated ends it`() = test {
        var closed = 0
        repeat(5) { n ->
            val session = Session.open(Bundle.open(BUNDLE), OPTIONS.copy(batchTokens = 32))
            coroutineScope {
                val answer = async(Dispatchers.Default) { runCatching { session.complete(LONG_TEXT).collect() } }
                delay(3L * n)
                session.close()
                session.awaitClosed()
                val failure = answer.await().exceptionOrNull()
                // On a busy machine, an answer may have ended before
                assertTrue("$failure", failure == null || failure is SessionClosedException)
                if (failure != null) closed++
            }
        }
        assertTrue(closed > 0)
    }

    @Test
    fun `closing does not wait in the caller's thread, even where the collector is stuck`() = test {
        val session = Session.open(Bundle.open(BUNDLE), OPTIONS)
        val steps = session.answer(SENTENCE).toList().size - 1
        supervisorScope {
            val stuck = CompletableDeferred<Unit>()
            val answer = async(Dispatchers.Default) {
                session.answer(SENTENCE).collect {
                    stuck.complete(Unit)
                    awaitCancellation()
                }
            }
            stuck.await()
            assertTrue(session.stepsWhenWaiting() < steps)
            session.close()
            thrown<SessionClosedException> { answer.await() }
        }
        session.awaitClosed()
    }

    @Test
    fun `cancelling a collector that is stuck in its own work leaves the session free`() = test {
        withSession { session ->
            val whole = ids(session.answer(SENTENCE))
            coroutineScope {
                val stuck = CompletableDeferred<Unit>()
                val work = CompletableDeferred<Unit>()
                val answer = launch(Dispatchers.Default) {
                    session.answer(SENTENCE).collect {
                        stuck.complete(Unit)
                        withContext(NonCancellable) { work.await() }
                    }
                }
                try {
                    stuck.await()
                    assertTrue(session.stepsWhenWaiting() < whole.size - 1)
                    answer.cancel()
                    while (runCatching { session.clear() }.exceptionOrNull() is SessionBusyException) delay(10)
                    assertEquals(whole, ids(session.answer(SENTENCE)))
                } finally {
                    work.complete(Unit)
                }
            }
        }
    }

    @Test
    fun `closing twice is closing once and a closed session says so`() = test {
        val session = Session.open(Bundle.open(BUNDLE), OPTIONS)
        repeat(3) { session.close() }
        session.awaitClosed()
        session.close()
        thrown<SessionClosedException> { session.answer(SENTENCE).first() }
        thrown<SessionClosedException> { session.clear() }
        thrown<SessionClosedException> { session.tokenize("a") }
    }

    @Test
    fun `two sessions answer at the same time as each does alone`() = test {
        val alone = withSession { ids(it.answer(SENTENCE)) }
        withSession { first ->
            withSession { second ->
                coroutineScope {
                    val answers = List(6) { n ->
                        val session = if (n % 2 == 0) first else second
                        session to n
                    }.groupBy({ it.first }, { it.second }).map { (session, turns) ->
                        async(Dispatchers.Default) { turns.map { ids(session.answer(SENTENCE)) } }
                    }
                    answers.flatMap { it.await() }.forEach { assertEquals(alone, it) }
                }
            }
        }
    }

    @Test
    fun `a prompt that fills the context is refused with both numbers`() = test {
        withSession(OPTIONS.copy(contextTokens = 256)) { session ->
            val prompt = LONG_TEXT.repeat(2)
            val failure = thrown<ContextFullException> { session.complete(prompt).collect() }
            assertTrue(failure.message!!, "256" in failure.message!!)
            assertTrue(failure.message!!, "${session.tokenize(prompt, parseSpecial = true).size}" in failure.message!!)
            assertTrue(ids(session.answer("Ein Hund.")).isNotEmpty())
        }
    }

    @Test
    fun `an answer that fills the context ends there`() = test {
        withSession(OPTIONS.copy(contextTokens = 256)) { session ->
            val prompt = session.tokenize(LONG_TEXT.take(600)).size
            val answers = List(4) { seed ->
                val anything = Sampling(temperature = 50f, topK = 0, topP = 1f, minP = 0f, seed = seed)
                session.complete(LONG_TEXT.take(600), Request(maxNewTokens = 512, sampling = anything)).toList()
            }
            val full = answers.filter { it.last().finish == Finish.CONTEXT }
            assertTrue(full.isNotEmpty()) // unless the model's end is sampled, four times
            assertTrue(full.all { prompt + it.size in 256..257 })
        }
    }

    @Test
    fun `options that do not fit are refused and change nothing`() = test {
        val bundle = Bundle.open(BUNDLE)
        val wrong = listOf(
            SessionOptions(schedule = Schedule.Fixed(5)),
            SessionOptions(schedule = Schedule.Static(switches = "8@2")),
            SessionOptions(schedule = Schedule.Static(switches = "nonsense")),
            SessionOptions(schedule = Schedule.Learned),
            SessionOptions(prefill = 3),
            SessionOptions(Method.LOSSLESS, draft = 5),
            SessionOptions(Method.LOSSLESS, draftTokens = 17),
        )
        for (options in wrong) thrown<EdgeLlmException> { Session.open(bundle, options).close() }
        withSession { session ->
            val whole = ids(session.answer(SENTENCE))
            for (options in wrong) thrown<EdgeLlmException> { session.configure(options) }
            assertEquals(whole, ids(session.answer(SENTENCE)))
        }
    }

    @Test
    fun `what needs more memory than there is is not loaded`() = test {
        val failure = thrown<NotEnoughMemoryException> {
            Session.open(Bundle.open(BUNDLE), OPTIONS, availableBytes = 1_000_000)
        }
        assertTrue(failure.message!!, "MiB" in failure.message!!)
    }

    @Test
    fun `a level that is loaded later needs memory too, and what is loaded needs none`() = test {
        val low = OPTIONS.copy(method = Method.LOW)
        val high = OPTIONS.copy(method = Method.HIGH)
        withSession(low) { session ->
            val answer = ids(session.answer(SENTENCE))
            for (options in listOf(OPTIONS, high, OPTIONS.copy(method = Method.LOSSLESS))) {
                val failure = thrown<NotEnoughMemoryException> { session.configure(options, 1_000_000) }
                assertTrue(failure.message!!, "MiB" in failure.message!!)
            }
            assertEquals(answer, ids(session.answer(SENTENCE)))
            session.configure(low, availableBytes = 0)
            session.configure(high, availableBytes = 9_000_000) // its file has 7.9 million
            thrown<NotEnoughMemoryException> { session.configure(OPTIONS, availableBytes = 1_000_000) }
            session.configure(OPTIONS, availableBytes = 6_000_000) // it lacks one of 4.8 million
            session.configure(low, availableBytes = 0)
            assertEquals(answer, ids(session.answer(SENTENCE)))
        }
    }

    @Test
    fun `a context that no device has memory for is a typed error`() = test {
        val bundle = Bundle.open(BUNDLE)
        for (tokens in listOf(1 shl 26, Int.MAX_VALUE)) {
            thrown<EdgeLlmException> { Session.open(bundle, OPTIONS.copy(contextTokens = tokens), 1L shl 33) }
        }
    }

    @Test
    fun `loading stops when it is cancelled`() = test {
        coroutineScope {
            val opening = async(Dispatchers.Default) {
                Session.open(Bundle.open(BUNDLE), OPTIONS) { Thread.sleep(20) }
            }
            delay(30)
            opening.cancel()
            thrown<CancellationException> { opening.await() }
        }
    }

    @Test
    fun `a bundle that was damaged after it was opened is a typed error`() = test {
        val copy = copyOfBundle(folder.newFolder("copy"))
        val bundle = Bundle.open(copy)
        truncate(File(copy, "translator-7m-q8.gguf"), 100_000)
        thrown<BundleException> { Session.open(bundle, OPTIONS) }
        File(copy, "pmpd.json").delete()
        thrown<BundleException> { Session.open(bundle, OPTIONS) }
    }

    @Test
    fun `weights that are no weights are a typed error`() = test {
        val copy = copyOfBundle(folder.newFolder("copy"))
        val weights = File(copy, "translator-7m-q8.gguf")
        val size = weights.length().toInt()
        weights.writeBytes("GGUF".toByteArray() + ByteArray(size - 4) { 7 })
        thrown<EdgeLlmException> { Session.open(Bundle.open(copy), OPTIONS) }
    }

    @Test
    fun `a text with NUL is refused, and one of nothing but spaces is not`() = test {
        withSession { session ->
            thrown<InvalidArgumentException> { session.answer("a\u0000b").first() }
            assertTrue(ids(session.answer("   ")).isNotEmpty())
        }
    }

    @Test
    fun `an unknown role or an empty conversation is answered or refused, with a typed error`() = test {
        withSession { session ->
            for (messages in listOf(emptyList(), listOf(Message("nobody", "Hallo")))) {
                try {
                    ids(session.answer(messages))
                } catch (_: EdgeLlmException) {
                    // the template decides
                }
            }
            assertTrue(ids(session.answer(SENTENCE)).isNotEmpty())
        }
    }

    /** The decode steps of a running answer, when the model waits for its collector. */
    private suspend fun Session.stepsWhenWaiting(): Int {
        do {
            val before = stats.decodeSteps
            delay(500)
        } while (stats.decodeSteps > before)
        return stats.decodeSteps
    }
}
