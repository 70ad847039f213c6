package pmpd.edgellm

import java.io.File
import kotlin.coroutines.coroutineContext
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.isActive
import kotlinx.coroutines.withContext

/**
 * One precision of a bundle.
 *
 * @property precision nominal bits per weight.
 * @property bpw real bits per weight of what a decode step reads.
 */
data class Level(val precision: Int, val bpw: Double)

/**
 * A model in several precisions, as its manifest describes it: data, with nothing to close.
 *
 * @property parameters all weights of the model, embeddings included.
 * @property contextLength the number of tokens that the model was trained on.
 * @property bytes of all weights files.
 * @property levels from the highest precision to the lowest.
 * @property prefill the precision at which prompts are evaluated.
 * @property schedule such as `8@1,4@86`: precision 8 from decode step 1, 4 from step 86.
 * @property maxNewTokens the longest answer that the schedule is meant for.
 * @property hasPredictor whether [Schedule.Learned] can be used.
 */
data class Bundle(
    val directory: File,
    val name: String,
    val architecture: String,
    val parameters: Long,
    val contextLength: Int,
    val bytes: Long,
    val levels: List<Level>,
    val prefill: Int,
    val schedule: String,
    val maxNewTokens: Int,
    val hasPredictor: Boolean,
) {
    /** Bytes that a session with these options takes, estimated: weights, KV cache and buffers. */
    fun estimateMemory(options: SessionOptions = SessionOptions()): Long = withHandle(directory) {
        Native.estimateMemory(it, options.methodText, options.schedulerText, options.numbers)
    }

    /**
     * Check the SHA-256 of every file; cancelling stops it.
     *
     * @param progress called with the bytes read so far, in a thread of its own.
     * @throws BundleException a file is not the one that was written.
     */
    suspend fun verify(progress: (Long) -> Unit = {}) = withContext(Dispatchers.IO) {
        val context = coroutineContext
        withHandle(directory) { handle ->
            Native.bundleVerify(handle) { bytes ->
                progress(bytes)
                context.isActive
            }
        }
    }

    companion object {
        /** The name of a bundle's manifest. */
        const val MANIFEST = "pmpd.json"

        /**
         * Read and check a manifest, and the presence, size and magic of the files. Reads little, but does read: not
         * for a user interface's thread.
         *
         * @throws BundleException there is no bundle, or it is damaged.
         */
        fun open(directory: File): Bundle = withHandle(directory) { handle ->
            val (name, architecture, schedule) = Native.bundleTexts(handle).map { String(it, Charsets.UTF_8) }
            val numbers = Native.bundleNumbers(handle)
            Bundle(
                directory = directory,
                name = name,
                architecture = architecture,
                parameters = numbers[0],
                contextLength = numbers[1].toInt(),
                bytes = numbers[2],
                levels = Native.bundlePrecisions(handle).zip(Native.bundleBpw(handle).asIterable(), ::Level),
                prefill = numbers[3].toInt(),
                schedule = schedule,
                maxNewTokens = numbers[4].toInt(),
                hasPredictor = numbers[5] != 0L,
            )
        }

        internal inline fun <T> withHandle(directory: File, use: (Long) -> T): T {
            val handle = Native.bundleOpen(directory.path.toNative())
            try {
                return use(handle)
            } finally {
                Native.bundleFree(handle)
            }
        }
    }
}
