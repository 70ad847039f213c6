package pmpd.edgellm

import java.io.File
import java.io.InputStream

/** Where a bundle is imported from: files by name, that are read as streams. */
interface BundleSource {
    /** All files that are there. May read, and may throw IOException. */
    fun files(): List<SourceFile>
}

/**
 * One file of a source.
 *
 * @property bytes its size, or -1 where it is not known.
 * @property open begins to read it; may throw IOException.
 */
class SourceFile(val name: String, val bytes: Long, val open: () -> InputStream)

/** A directory of the file system. */
class DirectorySource(private val directory: File) : BundleSource {
    override fun files(): List<SourceFile> = directory.listFiles().orEmpty()
        .filter { it.isFile }
        .map { file -> SourceFile(file.name, file.length()) { file.inputStream() } }
}
