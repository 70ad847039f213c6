package pmpd.edgellm.demo

import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.CoroutineDispatcher
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.CoroutineStart
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.Job
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.asStateFlow
import kotlinx.coroutines.flow.update
import kotlinx.coroutines.launch
import kotlinx.coroutines.withContext
import pmpd.edgellm.Bundle
import pmpd.edgellm.BundleSource
import pmpd.edgellm.BundleStore
import pmpd.edgellm.EdgeLlmException
import pmpd.edgellm.Message
import pmpd.edgellm.Request
import pmpd.edgellm.Session
import pmpd.edgellm.SessionOptions
import java.util.Locale
import java.util.concurrent.atomic.AtomicReference

/**
 * What the app does, without Android: it outlives the activity, so that turning the phone ends nothing.
 *
 * Its functions return at once; what they do shows in [state]. What they begin while the app is busy with something
 * else is refused, except [stop].
 *
 * @param scope in which everything runs; of one thread at a time.
 * @param availableBytes the memory that the device can give.
 * @param thermal the device's thermal status in a word; null where it has none.
 * @param base options that the user does not choose.
 * @param files the dispatcher for what reads and writes files.
 */
class ChatModel(
    private val store: BundleStore,
    private val scope: CoroutineScope,
    private val availableBytes: () -> Long,
    private val thermal: () -> String?,
    private val base: SessionOptions = SessionOptions(),
    private val files: CoroutineDispatcher = Dispatchers.IO,
) {
    private val mutableState = MutableStateFlow(ChatState())
    val state: StateFlow<ChatState> = mutableState.asStateFlow()

    private val running = AtomicReference<Job?>(null)
    private var session: Session? = null

    /** Find the bundles, and load the first one. What an import that was killed left is deleted. */
    fun start() = begin(Busy.LOADING) {
        val bundles = withContext(files) {
            store.removeLeftovers()
            store.bundles()
        }
        mutableState.update { it.copy(bundles = bundles) }
        bundles.firstOrNull()?.let { load(it) }
    }

    /** Take a bundle into the app, and load it. */
    fun import(source: BundleSource) = begin(Busy.IMPORTING) {
        val bundle = store.import(source) { p -> show { it.copy(progress = p.done.toFloat() / maxOf(p.total, 1)) } }
        val bundles = withContext(files) { store.bundles() }
        show { it.copy(bundles = bundles, busy = Busy.LOADING, progress = 0f) }
        load(bundle)
    }

    /** Load a bundle in place of the loaded one. */
    fun open(bundle: Bundle) = begin(Busy.LOADING) { load(bundle) }

    /** Delete the loaded bundle from the app. */
    fun delete() = begin(Busy.LOADING) {
        val bundle = state.value.bundle ?: return@begin
        unload()
        val left = withContext(files) {
            store.delete(bundle)
            store.bundles()
        }
        show { it.copy(bundles = left) }
    }

    /** How the following answers are decoded. */
    fun set(settings: Settings) = show { it.copy(settings = settings) }

    /** Answer a message of the user. */
    fun send(text: String) {
        if (text.isBlank()) return
        begin(Busy.ANSWERING) {
            val session = requireSession()
            val settings = state.value.settings
            session.configure(settings.options(base), availableBytes())
            val messages = state.value.turns.flatMap(::messages) + Message("user", text)
            show { it.copy(turns = it.turns + Turn(text)) }
            try {
                session.answer(messages, Request(settings.maxNewTokens ?: 0)).collect { token ->
                    changeLastTurn { it.copy(tokens = it.tokens + token, stats = session.stats) }
                }
                changeLastTurn { it.copy(stats = session.stats) }
            } finally {
                dropUnanswered()
            }
        }
    }

    /** End what is going on: an answer, an import, a measurement. */
    fun stop() {
        running.get()?.cancel()
    }

    /** Forget the conversation. */
    fun clear() = begin(Busy.ANSWERING) {
        session?.clear()
        show { it.copy(turns = emptyList()) }
    }

    /** Measure the loaded bundle here: its levels, a switch, and how the speed holds out. */
    fun measure(sustainedSeconds: Int = SUSTAINED_SECONDS) = begin(Busy.MEASURING) {
        show { it.copy(report = emptyList()) }
        val benchmark = Benchmark(requireSession(), availableBytes, base)
        benchmark.levels().forEach { report(it.line()) }
        benchmark.switchSeconds()?.let { report("a switch: %.2f ms".format(Locale.ROOT, it * 1e3)) }
        benchmark.sustained(sustainedSeconds) { seconds, speed ->
            val status = thermal()?.let { ", thermal status $it" }.orEmpty()
            report("after %d s: %.1f tokens/s%s".format(Locale.ROOT, seconds, speed, status))
        }
    }

    /** Free everything. */
    fun close() {
        stop()
        session?.close()
    }

    private suspend fun load(bundle: Bundle) {
        unload()
        show { it.copy(bundle = bundle) }
        try {
            session = Session.open(bundle, state.value.settings.options(base), availableBytes()) { share ->
                show { it.copy(progress = share) }
            }
        } finally {
            if (session == null) show { it.copy(bundle = null) }
        }
    }

    private suspend fun unload() {
        session?.close()
        session?.awaitClosed()
        session = null
        show { it.copy(bundle = null, turns = emptyList(), report = emptyList()) }
    }

    private fun requireSession(): Session =
        checkNotNull(session) { "no bundle is loaded" } // the screen offers nothing that needs one

    private fun messages(turn: Turn) = listOf(Message("user", turn.question), Message("assistant", turn.answer))

    private fun changeLastTurn(change: (Turn) -> Turn) =
        show { it.copy(turns = it.turns.dropLast(1) + change(it.turns.last())) }

    /** A message without an answer is no part of the conversation: it would be asked again with every later one. */
    private fun dropUnanswered() = show { it.copy(turns = it.turns.filter { turn -> turn.tokens.isNotEmpty() }) }

    private fun report(line: String) = show { it.copy(report = it.report + line) }

    private fun show(change: (ChatState) -> ChatState) = mutableState.update(change)

    /** Do [what] unless something else is being done; its failure is shown. */
    private fun begin(busy: Busy, what: suspend () -> Unit) {
        val job = scope.launch(start = CoroutineStart.LAZY) {
            show { it.copy(busy = busy, progress = 0f, failure = null) }
            try {
                what()
            } catch (stopped: CancellationException) {
                throw stopped
            } catch (failure: EdgeLlmException) {
                show { it.copy(failure = failure.message) }
            }
        }
        if (!running.compareAndSet(null, job)) return job.cancel()
        job.invokeOnCompletion {
            running.set(null)
            show { it.copy(busy = Busy.IDLE) }
        }
        job.start()
    }

    private companion object {
        const val SUSTAINED_SECONDS = 300
    }
}
