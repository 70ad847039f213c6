package pmpd.edgellm.demo

import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.SupervisorJob
import kotlinx.coroutines.asCoroutineDispatcher
import kotlinx.coroutines.cancel
import kotlinx.coroutines.flow.first
import org.junit.After
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertNull
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder
import pmpd.edgellm.BUNDLE
import pmpd.edgellm.BundleSource
import pmpd.edgellm.BundleStore
import pmpd.edgellm.DirectorySource
import pmpd.edgellm.LONG_TEXT
import pmpd.edgellm.OPTIONS
import pmpd.edgellm.SENTENCE
import pmpd.edgellm.SourceFile
import pmpd.edgellm.copyOfBundle
import pmpd.edgellm.flipByte
import pmpd.edgellm.test
import java.io.File
import java.util.concurrent.Executors

/** What the screen does, without a screen. */
class ChatModelTest {
    @get:Rule
    val folder = TemporaryFolder()

    private val main = Executors.newSingleThreadExecutor().asCoroutineDispatcher()
    private val scope = CoroutineScope(SupervisorJob() + main)
    private var available = Long.MAX_VALUE
    private val store by lazy { BundleStore(File(folder.root, "bundles")) }
    private val model by lazy { ChatModel(store, scope, { available }, { "none" }, OPTIONS) }

    @After
    fun end() {
        model.close()
        scope.cancel()
        main.close()
    }

    @Test
    fun `an imported bundle is loaded and answers`() = test {
        imported()
        model.send(SENTENCE)
        val turn = done().turns.single()
        assertEquals(SENTENCE, turn.question)
        assertTrue(turn.answer, turn.answer.isNotBlank())
        assertEquals(turn.tokens.size - 1, turn.stats.decodeSteps)
        assertEquals(turn.tokens.drop(1).map { it.precision }.average(), turn.stats.averageBitwidth, 1e-9)
    }

    @Test
    fun `a bundle that was imported before is loaded at the start`() = test {
        store.import(DirectorySource(BUNDLE))
        model.start()
        assertEquals("translator-7m", done { it.bundle != null }.bundle!!.name)
    }

    @Test
    fun `the answer goes on while no screen looks, and another screen sees all of it`() = test {
        imported()
        model.send(SENTENCE)
        model.state.first { it.turns.isNotEmpty() && it.turns.last().tokens.isNotEmpty() } // then the phone is turned
        val seen = done().turns.single().tokens
        assertTrue(seen.last().finish != null)
    }

    @Test
    fun `the settings of the screen decide the answer`() = test {
        imported()
        model.set(Settings(Settings.Choice.LOW, maxNewTokens = 5))
        model.send(SENTENCE)
        assertEquals(List(5) { 2 }, done().turns.last().tokens.map { it.precision })
        model.set(Settings(Settings.Choice.STATIC, highSteps = 1, maxNewTokens = 4))
        model.send(SENTENCE)
        assertEquals(listOf(8, 8), done { it.turns.size == 2 }.turns.last().tokens.map { it.precision }.take(2))
        assertTrue(model.state.value.turns.last().tokens[2].precision < 8)
    }

    @Test
    fun `lossless is a choice of the screen, and answers at the highest precision`() = test {
        imported()
        model.set(Settings(Settings.Choice.LOSSLESS))
        model.send(SENTENCE)
        val tokens = done().turns.single().tokens
        assertTrue(tokens.size > 5)
        assertEquals(List(tokens.size) { 8 }, tokens.map { it.precision })
    }

    @Test
    fun `stop ends an answer and the next one is answered`() = test {
        imported()
        model.send(SENTENCE)
        model.state.first { it.turns.isNotEmpty() && it.turns.last().tokens.isNotEmpty() }
        model.stop()
        assertNull(done().failure)
        model.send(SENTENCE)
        assertTrue(done { it.turns.size == 2 }.turns.last().tokens.last().finish != null)
    }

    @Test
    fun `a message that is sent meanwhile is refused and the answer goes on`() = test {
        imported()
        model.send(SENTENCE)
        model.send("Ein Mann.")
        model.clear()
        assertEquals(SENTENCE, done().turns.single().question)
    }

    @Test
    fun `stop ends an import and leaves nothing`() = test {
        model.import(Slow)
        model.state.first { it.busy == Busy.IMPORTING && it.progress > 0 }
        model.stop()
        assertNull(done { true }.bundle)
        assertEquals(emptyList<String>(), File(folder.root, "bundles").list().orEmpty().toList())
        imported()
    }

    @Test
    fun `what an import that was killed left is gone after the start`() = test {
        store.import(DirectorySource(BUNDLE))
        val left = File(folder.root, "bundles/.importing-1").apply { mkdirs() }
        File(left, "model.gguf").writeText("GGUF")
        model.start()
        assertEquals(1, done { it.bundle != null }.bundles.size)
        assertFalse(left.exists())
    }

    @Test
    fun `clear forgets the conversation`() = test {
        imported()
        model.send(SENTENCE)
        done()
        model.clear()
        assertEquals(emptyList<Turn>(), done { it.turns.isEmpty() }.turns)
    }

    @Test
    fun `what fails is shown in the library's words`() = test {
        imported()
        model.set(Settings(Settings.Choice.LEARNED))
        model.send(SENTENCE)
        assertTrue(done { it.failure != null }.failure!!.isNotBlank())
        model.set(Settings())
        model.send(SENTENCE)
        assertNull(done { it.turns.isNotEmpty() && it.turns.last().tokens.isNotEmpty() }.failure)
    }

    @Test
    fun `a message that is refused is no part of the conversation`() = test {
        imported()
        model.send(LONG_TEXT.repeat(4))
        assertEquals(emptyList<Turn>(), done { it.failure != null }.turns)
        model.send(SENTENCE)
        assertNull(done { it.turns.isNotEmpty() && it.turns.last().tokens.isNotEmpty() }.failure)
    }

    @Test
    fun `a message that is stopped before its first token is no part of the conversation`() = test {
        imported()
        model.send(LONG_TEXT)
        model.state.first { it.turns.isNotEmpty() }
        model.stop()
        assertTrue(done { true }.turns.all { it.tokens.isNotEmpty() })
    }

    @Test
    fun `a level for which there is no memory is not loaded`() = test {
        model.set(Settings(Settings.Choice.LOW))
        imported()
        available = 1_000_000
        model.set(Settings(Settings.Choice.HIGH))
        model.send(SENTENCE)
        assertEquals(emptyList<Turn>(), done { it.failure != null }.turns)
        model.set(Settings(Settings.Choice.LOW))
        model.send(SENTENCE)
        assertNull(done { it.turns.isNotEmpty() && it.turns.last().tokens.isNotEmpty() }.failure)
    }

    @Test
    fun `a bundle for which there is no memory is kept and not loaded`() = test {
        available = 1_000_000
        model.import(DirectorySource(BUNDLE))
        val state = done { it.failure != null }
        assertNull(state.bundle)
        assertEquals(1, state.bundles.size)
        available = Long.MAX_VALUE
        model.open(state.bundles.single())
        done { it.bundle != null }
    }

    @Test
    fun `a damaged bundle is refused and the loaded one stays`() = test {
        imported()
        val damaged = copyOfBundle(folder.newFolder("damaged"))
        flipByte(File(damaged, "translator-7m-q8.gguf"), 5_000_000)
        model.import(DirectorySource(damaged))
        val state = done { it.failure != null }
        assertEquals("translator-7m", state.bundle!!.name)
        assertEquals(1, state.bundles.size)
    }

    @Test
    fun `deleting takes the bundle away`() = test {
        imported()
        model.delete()
        val state = done { it.bundles.isEmpty() }
        assertNull(state.bundle)
        assertEquals(emptyList<String>(), File(folder.root, "bundles").list()!!.toList())
    }

    @Test
    fun `the benchmark reports every level, the switch and the speed over time`() = test {
        imported()
        model.measure(sustainedSeconds = 1)
        val report = done { it.report.any { line -> line.startsWith("after") } }.report
        assertEquals(listOf("8 bits", "4 bits", "2 bits"), report.take(3).map { it.substringBefore(" (") })
        assertTrue("$report", report[3].startsWith("a switch: "))
        assertTrue("$report", report.last().endsWith("thermal status none"))
    }

    private object Slow : BundleSource {
        override fun files() = DirectorySource(BUNDLE).files().map { file ->
            SourceFile(file.name, file.bytes) {
                Thread.sleep(200)
                file.open()
            }
        }
    }

    private suspend fun imported() {
        model.import(DirectorySource(BUNDLE))
        done { it.bundle != null }
    }

    /** The state when the app is idle again. */
    private suspend fun done(and: (ChatState) -> Boolean = { it.turns.isNotEmpty() }) =
        model.state.first { it.busy == Busy.IDLE && and(it) }
}
