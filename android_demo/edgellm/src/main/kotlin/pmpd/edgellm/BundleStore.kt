package pmpd.edgellm

import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.ensureActive
import kotlinx.coroutines.withContext
import java.io.File
import java.io.FileOutputStream
import java.io.IOException
import java.security.MessageDigest
import java.util.concurrent.atomic.AtomicBoolean
import kotlin.coroutines.coroutineContext

/** How far an import is: [COPYING] the files, then [CHECKING] their hashes; [done] of [total] bytes. */
data class ImportProgress(val phase: Phase, val done: Long, val total: Long) {
    enum class Phase { COPYING, CHECKING }
}

/**
 * The bundles that an app keeps, each in a directory of its own.
 *
 * An import is whole or not at all: files are copied into a temporary directory, checked by their hashes, and get their
 * place by a rename. What an app that was killed left of it does not count as a bundle, and goes with
 * [removeLeftovers] or the next import.
 *
 * @param directory of the app alone; it is made where there is none. One store for each.
 * @param freeBytes how much may be written to it.
 */
class BundleStore(
    private val directory: File,
    private val freeBytes: () -> Long = { directory.apply { mkdirs() }.usableSpace },
) {
    private val importing = AtomicBoolean(false)

    /** The bundles that are there and whole, by name. Reads: not for a user interface's thread. */
    fun bundles(): List<Bundle> = directory.listFiles().orEmpty()
        .filter { it.isDirectory && !it.name.startsWith(TEMPORARY) }
        .mapNotNull { openOrNull(it) }
        .sortedBy { it.name }

    /** Delete a bundle of this store. A session that was opened from it goes on. */
    fun delete(bundle: Bundle) {
        require(bundle.directory.parentFile == directory) { "${bundle.directory}: not a bundle of this store" }
        remove(bundle.directory)
    }

    /** Delete what an import that was killed left behind; nothing while one is running. */
    fun removeLeftovers() {
        if (!importing.compareAndSet(false, true)) return
        try {
            removeTemporary()
        } finally {
            importing.set(false)
        }
    }

    /**
     * Copy a bundle into the store, check it, and return it. Of a folder, only what the bundle's manifest names is
     * copied. The same bundle twice is kept once: the new copy takes the place of the old one, which may have been
     * damaged since. Cancelling leaves nothing behind.
     *
     * @param progress called after each block, in a thread of its own.
     * @throws BundleException the source is not a bundle, or is damaged.
     * @throws NotEnoughStorageException before anything is written, or when the storage is full.
     * @throws ImportException the source cannot be read, or another import is running.
     */
    suspend fun import(source: BundleSource, progress: (ImportProgress) -> Unit = {}): Bundle =
        withContext(Dispatchers.IO) {
            if (!importing.compareAndSet(false, true)) {
                throw ImportException("another import is running: wait for its end, or cancel it")
            }
            val temporary = temporary()
            try {
                removeTemporary()
                val files = wanted(source)
                copy(files, temporary, progress)
                check(temporary, progress)
                place(temporary)
            } catch (failure: IOException) {
                throw explained(failure)
            } finally {
                remove(temporary)
                importing.set(false)
            }
        }

    private fun wanted(source: BundleSource): List<SourceFile> {
        val files = source.files().filter { it.name == Bundle.MANIFEST || it.name.endsWith(".gguf") }
        val manifest = files.firstOrNull { it.name == Bundle.MANIFEST }
            ?: throw BundleException("not a bundle: no ${Bundle.MANIFEST} in it; choose the folder that holds it")
        files.firstOrNull { '/' in it.name || '\\' in it.name }?.let {
            throw BundleException("a file named '${it.name}', which would lead out of the bundle")
        }
        val named = strings(manifest.open().use { String(it.readBytes(), Charsets.UTF_8) })
        val wanted = listOf(manifest) + files.filter { it.name in named && it.name != Bundle.MANIFEST }
        requireSpace(bytes(wanted))
        return wanted
    }

    /** All strings of a JSON text: file names are among them, and the native library says which those are. */
    private fun strings(json: String): Set<String> = JSON_STRING.findAll(json).map { string ->
        JSON_ESCAPE.replace(string.groupValues[1]) { escape ->
            val code = escape.groupValues[1]
            if (code.length == 5) code.drop(1).toInt(16).toChar().toString() else code
        }
    }.toSet()

    /** Of files, as far as it is known. */
    private fun bytes(files: List<SourceFile>) = files.sumOf { maxOf(it.bytes, 0) }

    private fun requireSpace(needed: Long) {
        val free = freeBytes()
        if (needed + MARGIN_BYTES > free) throw NotEnoughStorageException(storageMessage(needed + MARGIN_BYTES, free))
    }

    private fun storageMessage(needed: Long, free: Long) =
        "the import needs ${mebibytes(needed)} of storage, ${mebibytes(free)} are free: make room, then import again"

    private suspend fun copy(files: List<SourceFile>, to: File, progress: (ImportProgress) -> Unit) {
        if (!to.mkdirs()) throw IOException("$to: cannot be made")
        val total = bytes(files)
        val block = ByteArray(BLOCK_BYTES)
        var done = 0L
        for (file in files) {
            file.open().use { input ->
                FileOutputStream(File(to, file.name)).use { output ->
                    while (true) {
                        coroutineContext.ensureActive()
                        requireSpace(maxOf(total - done, 0)) // again: sizes may be unknown, and others write too
                        val n = input.read(block)
                        if (n < 0) break
                        output.write(block, 0, n)
                        done += n
                        progress(ImportProgress(ImportProgress.Phase.COPYING, done, maxOf(total, done)))
                    }
                    output.fd.sync() // a rename may reach the disk before what is renamed
                }
            }
        }
    }

    private suspend fun check(copied: File, progress: (ImportProgress) -> Unit) {
        val total = copied.listFiles().orEmpty().filter { it.name != Bundle.MANIFEST }.sumOf { it.length() }
        Bundle.open(copied).verify { bytes ->
            progress(ImportProgress(ImportProgress.Phase.CHECKING, minOf(bytes, total), total))
        }
    }

    private suspend fun place(checked: File): Bundle {
        val target = File(directory, directoryName(checked))
        val old = temporary()
        coroutineContext.ensureActive()
        val replaces = target.renameTo(old)
        if (!checked.renameTo(target)) {
            if (replaces) old.renameTo(target)
            throw IOException("$target: cannot be made")
        }
        old.deleteRecursively()
        return Bundle.open(target)
    }

    /** Of a bundle: its name as a file system takes it, and what tells it from others of that name. */
    private fun directoryName(bundle: File): String {
        val name = Bundle.open(bundle).name.map { if (it.isLetterOrDigit() || it in "-_") it else '_' }
        val digest = MessageDigest.getInstance("SHA-256").digest(File(bundle, Bundle.MANIFEST).readBytes())
        return name.take(64).joinToString("") + "-" + digest.take(4).joinToString("") { "%02x".format(it) }
    }

    private fun explained(failure: IOException): EdgeLlmException {
        val free = freeBytes()
        if (free < MARGIN_BYTES) return NotEnoughStorageException(storageMessage(MARGIN_BYTES, free))
        return ImportException("the import failed (${failure.message}): try again, or copy the folder anew", failure)
    }

    private fun openOrNull(directory: File): Bundle? = try {
        Bundle.open(directory)
    } catch (_: EdgeLlmException) {
        null
    }

    private fun temporary() = File(directory, "$TEMPORARY${System.nanoTime()}")

    private fun removeTemporary() =
        directory.listFiles().orEmpty().filter { it.name.startsWith(TEMPORARY) }.forEach(::remove)

    /** Hidden first, so that a bundle that is half deleted does not count. */
    private fun remove(bundle: File) {
        if (!bundle.exists()) return
        val hidden = temporary()
        (if (bundle.renameTo(hidden)) hidden else bundle).deleteRecursively()
    }

    private companion object {
        const val TEMPORARY = ".importing-"
        val JSON_STRING = Regex(""""((?:[^"\\]++|\\.)*+)"""")
        val JSON_ESCAPE = Regex("""\\(u[0-9a-fA-F]{4}|.)""")
        const val BLOCK_BYTES = 1 shl 20
        const val MARGIN_BYTES = 64L shl 20 // a full storage is bad for the whole phone
    }
}
