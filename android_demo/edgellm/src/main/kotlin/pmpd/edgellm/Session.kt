package pmpd.edgellm

import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.CompletableJob
import kotlinx.coroutines.Deferred
import kotlinx.coroutines.Job
import kotlinx.coroutines.NonCancellable
import kotlinx.coroutines.channels.SendChannel
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.buffer
import kotlinx.coroutines.flow.channelFlow
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.selects.select
import kotlinx.coroutines.withContext
import kotlinx.coroutines.withTimeoutOrNull
import java.util.concurrent.atomic.AtomicBoolean

/**
 * A loaded bundle and one conversation with it.
 *
 * One thread owns the native context; all functions may be called from any thread, and none blocks it. One answer is
 * generated at a time: a second one meanwhile is refused. What an answer shares with the one before (the conversation
 * so far) is not evaluated again.
 *
 * Cancelling the collector of an answer stops it, while the prompt is evaluated too; when the collector has ended, the
 * session is free for the next.
 */
class Session private constructor(val bundle: Bundle, private val owner: OwnerThread) : AutoCloseable {
    private val lock = Any() // guards handle: cancelling comes from other threads than the owner's
    private var handle = 0L
    private val busy = AtomicBoolean(false)
    private val closing = Job()

    // Of the owner's thread
    private var opened = SessionOptions()
    private var loaded = emptySet<Int>() // precisions: what was loaded once stays

    /** Of the last answer, or of the running one so far. From any thread. */
    @Volatile
    var stats: Stats = Stats()
        private set

    /** The context's size in tokens. */
    var contextTokens: Int = 0
        private set

    /**
     * The answer to a conversation, token by token, through the model's chat template. Starts when it is collected;
     * a slow collector makes the model wait, and no token is lost.
     *
     * The flow fails with [ContextFullException], [SessionBusyException], [SessionClosedException] and others.
     */
    fun answer(messages: List<Message>, request: Request = Request()): Flow<Token> = generate(request) { handle ->
        Prompt(template(handle, messages), Native.chatStop(handle))
    }

    /** The answer to one message of a user. */
    fun answer(message: String, request: Request = Request()): Flow<Token> =
        answer(listOf(Message("user", message)), request)

    /** The continuation of a text as it is, without a chat template; control tokens may be written in it. */
    fun complete(text: String, request: Request = Request()): Flow<Token> = generate(request) { handle ->
        Prompt(Native.tokenize(handle, text.toNative(), addSpecial = true, parseSpecial = true))
    }

    /**
     * Change method, schedule, prefill and drafts for the following answers; other options stay as they are. Levels that
     * are needed and not loaded yet are loaded; where it fails, nothing is changed.
     *
     * @param availableBytes the memory that the device can give beyond what the session has.
     * @throws NotEnoughMemoryException before loading or in it.
     * @throws InvalidArgumentException the options make no sense, or do not fit the bundle.
     */
    suspend fun configure(options: SessionOptions, availableBytes: Long = Long.MAX_VALUE): Unit = alone {
        val needed = loaded + options.precisions(bundle)
        if (needed != loaded) requireMemoryFor(needed, availableBytes)
        Native.sessionConfigure(it, options.methodText, options.schedulerText, options.numbers)
        loaded = needed
    }

    /** Forget the conversation: the next answer evaluates its whole prompt. */
    suspend fun clear(): Unit = alone { Native.sessionClear(it) }

    /** Token ids of a text. */
    suspend fun tokenize(text: String, addSpecial: Boolean = true, parseSpecial: Boolean = false): IntArray = alone {
        Native.tokenize(it, text.toNative(), addSpecial, parseSpecial)
    }

    /** Token ids of a conversation through the model's chat template, with the beginning of an answer. */
    suspend fun applyChatTemplate(messages: List<Message>): IntArray = alone { template(it, messages) }

    /**
     * End a running answer with [SessionClosedException] and free everything. Returns at once, and may be called twice:
     * the memory is free when [awaitClosed] returns.
     */
    override fun close() {
        synchronized(lock) {
            if (closing.complete()) owner.finish(::free)
        }
    }

    private fun free() {
        val last = synchronized(lock) { handle.also { handle = 0 } }
        if (last != 0L) Native.sessionFree(last)
    }

    /** Wait until what [close] began has ended. */
    suspend fun awaitClosed() = owner.awaitFinished()

    /** Token ids, and the text that ends the answer to them; empty: none. */
    private class Prompt(val tokens: IntArray, val stop: ByteArray = ByteArray(0))

    private fun template(handle: Long, messages: List<Message>): IntArray {
        val roles = messages.map { it.role }.toNative()
        return Native.applyChatTemplate(handle, roles, messages.map { it.content }.toNative())
    }

    private fun generate(request: Request, prompt: (Long) -> Prompt): Flow<Token> = channelFlow {
        val stopping = Job()
        val run = begin { runAnswer(request, prompt) { token -> send(channel, token, stopping) } }
        val watch = launch {
            closing.join()
            stop(run, stopping)
        }
        try {
            run.await()
        } catch (end: CancellationException) {
            if (closing.isCompleted) throw closed()
            throw end
        } finally {
            stop(run, stopping)
            busy.set(false)
            watch.cancel()
        }
    }.buffer(BUFFER)

    /** In the owner's thread: one answer, from its prompt to its end. */
    private fun runAnswer(request: Request, prompt: (Long) -> Prompt, send: (Token) -> Boolean) {
        if (closing.isCompleted) throw closed()
        stats = Stats()
        val decoder = Utf8Decoder()
        val sampling = request.sampling
        val asked = prompt(handle)
        val stop = (request.stop.toNative() + asked.stop).filter { it.isNotEmpty() }.toTypedArray()
        Native.generate(
            handle, asked.tokens, request.maxNewTokens, sampling.temperature, sampling.topK, sampling.topP,
            sampling.minP, sampling.repeatPenalty, sampling.seed, stop,
        ) { id, precision, probability, finish, drafted, bytes ->
            stats = Stats.of(Native.sessionStats(handle))
            val reason = Finish.of(finish)
            val text = decoder.decode(bytes, last = reason != null)
            send(Token(id, text, precision, probability, reason, drafted))
        }
        stats = Stats.of(Native.sessionStats(handle))
    }

    /**
     * In the owner's thread: wait until the collector takes a token. A collector may be stuck for ever, so that closing
     * and stopping end it too; false then.
     */
    private fun send(tokens: SendChannel<Token>, token: Token, stopping: Job): Boolean {
        if (closing.isCompleted || stopping.isCompleted) return false
        if (tokens.trySend(token).isSuccess) return true
        return try {
            runBlocking {
                select {
                    closing.onJoin { false }
                    stopping.onJoin { false }
                    tokens.onSend(token) { true }
                }
            }
        } catch (_: CancellationException) { // the collector has ended
            false
        }
    }

    /**
     * End a run, and wait for its end. Cancelling reaches what is running only, and the run may be about to begin:
     * so it is repeated.
     */
    private suspend fun stop(run: Deferred<Unit>, stopping: CompletableJob) = withContext(NonCancellable) {
        stopping.complete()
        while (run.isActive) {
            synchronized(lock) { if (handle != 0L) Native.sessionCancel(handle) }
            withTimeoutOrNull(CANCEL_AGAIN_MS) { run.join() }
        }
    }

    /** Run something in the owner's thread while no answer is generated. */
    private suspend fun <T> alone(use: (Long) -> T): T {
        val run = begin { use(handle) }
        try {
            return withContext(NonCancellable) { run.await() }
        } finally {
            busy.set(false)
        }
    }

    private fun <T> begin(what: () -> T): Deferred<T> = synchronized(lock) {
        if (closing.isCompleted) throw closed()
        if (!busy.compareAndSet(false, true)) {
            throw SessionBusyException("the session is generating: stop that answer, or wait for its end")
        }
        owner.start(what)
    }

    private fun closed() = SessionClosedException("the session of ${bundle.name} is closed: open another one")

    private fun load(options: SessionOptions, progress: LoadProgress) = Bundle.withHandle(bundle.directory) {
        handle = Native.sessionOpen(it, options.methodText, options.schedulerText, options.numbers, progress)
        contextTokens = Native.sessionContextTokens(handle)
        opened = options
        loaded = options.precisions(bundle)
    }

    private fun requireMemoryFor(precisions: Set<Int>, available: Long) {
        if (available == Long.MAX_VALUE) return
        val more = bundle.estimateMemory(opened.with(precisions)) - bundle.estimateMemory(opened.with(loaded))
        if (more > available) {
            throw NotEnoughMemoryException(
                "these options need about ${mebibytes(more)} more of memory, ${mebibytes(available)} are free: " +
                    "close other apps, or choose fewer or lower precisions",
            )
        }
    }

    companion object {
        private const val BUFFER = 8 // tokens that the model may be ahead of the collector
        private const val CANCEL_AGAIN_MS = 20L

        /**
         * Load what the options need. Cancelling stops loading.
         *
         * @param availableBytes the memory that the device can give; where the estimate is above it, nothing is loaded.
         * @param progress called with a share from 0 to 1, in the thread that loads.
         * @throws NotEnoughMemoryException before loading or in it.
         * @throws BundleException the bundle is gone or damaged.
         * @throws InvalidArgumentException the options make no sense, or do not fit the bundle.
         */
        suspend fun open(
            bundle: Bundle,
            options: SessionOptions = SessionOptions(),
            availableBytes: Long = Long.MAX_VALUE,
            progress: (Float) -> Unit = {},
        ): Session {
            val owner = OwnerThread()
            val session = Session(bundle, owner)
            val cancelled = AtomicBoolean(false)
            val run = owner.start {
                requireMemory(bundle, options, availableBytes)
                session.load(options) { share ->
                    progress(share)
                    !cancelled.get()
                }
            }
            try {
                run.await()
                return session
            } catch (failure: Throwable) {
                cancelled.set(true)
                withContext(NonCancellable) { run.join() }
                session.close()
                withContext(NonCancellable) { session.awaitClosed() }
                throw failure
            }
        }

        private fun requireMemory(bundle: Bundle, options: SessionOptions, available: Long) {
            val needed = bundle.estimateMemory(options)
            if (needed > available) {
                throw NotEnoughMemoryException(
                    "${bundle.name} needs about ${mebibytes(needed)} of memory, ${mebibytes(available)} are free: " +
                        "close other apps, or choose a smaller context or bundle",
                )
            }
        }
    }
}

internal fun mebibytes(bytes: Long) = "${(bytes + (1 shl 20) - 1) shr 20} MiB"
