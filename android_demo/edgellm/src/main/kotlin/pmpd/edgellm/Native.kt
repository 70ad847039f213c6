package pmpd.edgellm

import kotlin.coroutines.cancellation.CancellationException

/** What the native library calls for every token, in the thread that generates; false ends the answer. */
internal fun interface TokenSink {
    fun token(id: Int, precision: Int, probability: Float, finish: Int, drafted: Boolean, bytes: ByteArray): Boolean
}

/** What the native library calls while it loads, with a share from 0 to 1; false stops loading. */
internal fun interface LoadProgress {
    fun loaded(share: Float): Boolean
}

/** What the native library calls while it checks hashes, with the bytes read so far; false stops the check. */
internal fun interface VerifyProgress {
    fun read(bytes: Long): Boolean
}

/**
 * The functions of edgellm.cpp: pmpd.h, one to one, with handles for pointers and UTF-8 bytes for texts.
 *
 * Whatever fails throws, by [fail]. Nothing here knows about threads: [Session] keeps its calls to one.
 */
internal object Native {
    init {
        System.loadLibrary("edgellm")
        loadBackends()
    }

    @JvmStatic external fun loadBackends()

    @JvmStatic external fun fastCores(): Int

    @JvmStatic external fun bundleOpen(path: ByteArray): Long

    @JvmStatic external fun bundleFree(bundle: Long)

    /** Name, architecture, schedule. */
    @JvmStatic external fun bundleTexts(bundle: Long): Array<ByteArray>

    /** Parameters, context length, bytes, prefill, maximum of new tokens, whether there is a predictor (1 or 0). */
    @JvmStatic external fun bundleNumbers(bundle: Long): LongArray

    /** Of each level, from the highest precision to the lowest. */
    @JvmStatic external fun bundlePrecisions(bundle: Long): IntArray

    /** Real bits per weight of each level. */
    @JvmStatic external fun bundleBpw(bundle: Long): DoubleArray

    @JvmStatic external fun bundleVerify(bundle: Long, progress: VerifyProgress)

    @JvmStatic external fun estimateMemory(
        bundle: Long,
        method: ByteArray,
        scheduler: ByteArray?,
        numbers: IntArray,
    ): Long

    @JvmStatic external fun sessionOpen(
        bundle: Long,
        method: ByteArray,
        scheduler: ByteArray?,
        numbers: IntArray,
        progress: LoadProgress,
    ): Long

    @JvmStatic external fun sessionFree(session: Long)

    @JvmStatic external fun sessionConfigure(
        session: Long,
        method: ByteArray,
        scheduler: ByteArray?,
        numbers: IntArray,
    )

    @JvmStatic external fun sessionContextTokens(session: Long): Int

    @JvmStatic external fun sessionClear(session: Long)

    @JvmStatic external fun sessionCancel(session: Long)

    @JvmStatic external fun applyChatTemplate(
        session: Long,
        roles: Array<ByteArray>,
        contents: Array<ByteArray>,
    ): IntArray

    /** The text that ends an answer to a chat beside the model's own end; empty: none. */
    @JvmStatic external fun chatStop(session: Long): ByteArray

    @JvmStatic external fun tokenize(
        session: Long,
        text: ByteArray,
        addSpecial: Boolean,
        parseSpecial: Boolean,
    ): IntArray

    /** Returns when the answer has ended; where it was cancelled, throws CancellationException. */
    @JvmStatic external fun generate(
        session: Long,
        tokens: IntArray,
        maxNewTokens: Int,
        temperature: Float,
        topK: Int,
        topP: Float,
        minP: Float,
        repeatPenalty: Float,
        seed: Int,
        stop: Array<ByteArray>,
        sink: TokenSink,
    )

    /**
     * Prompt tokens, reused tokens, prefill precision, decode steps, switches, prefill seconds, decode seconds,
     * average bitwidth, average bpw, drafted tokens, kept ones, verifications, tokens per verification, drafting
     * seconds, verifying seconds.
     */
    @JvmStatic external fun sessionStats(session: Long): DoubleArray

    /**
     * Called by edgellm.cpp where a call failed: throws what an `enum pmpd_status` means.
     *
     * @param message UTF-8, in one line.
     */
    @JvmStatic
    fun fail(status: Int, message: ByteArray) {
        val text = String(message, Charsets.UTF_8)
        throw when (status) {
            -1 -> InvalidArgumentException(text)
            -2 -> BundleException(text)
            -3 -> NotEnoughMemoryException(text)
            -4 -> ContextFullException(text)
            -5 -> CancellationException(text)
            -6 -> SessionBusyException(text)
            else -> NativeFailureException(text)
        }
    }
}

/** UTF-8 as C takes it: a text with a NUL would end there. */
internal fun String.toNative(): ByteArray {
    if ('\u0000' in this) throw InvalidArgumentException("a text with the character NUL in it: leave it out")
    return toByteArray(Charsets.UTF_8)
}

internal fun Collection<String>.toNative(): Array<ByteArray> = map { it.toNative() }.toTypedArray()
