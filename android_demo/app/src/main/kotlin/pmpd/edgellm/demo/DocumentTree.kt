package pmpd.edgellm.demo

import android.content.ContentResolver
import android.database.Cursor
import android.net.Uri
import android.provider.DocumentsContract
import android.provider.DocumentsContract.Document
import pmpd.edgellm.BundleSource
import pmpd.edgellm.SourceFile
import java.io.IOException

/**
 * A folder that the user chose in the system's picker. Needs no permission: the choice is one.
 *
 * @param tree what the picker returned.
 */
class DocumentTree(private val resolver: ContentResolver, private val tree: Uri) : BundleSource {
    override fun files(): List<SourceFile> = explained {
        val folder = DocumentsContract.getTreeDocumentId(tree)
        val children = DocumentsContract.buildChildDocumentsUriUsingTree(tree, folder)
        val cursor = resolver.query(children, COLUMNS, null, null, null) ?: throw IOException("the folder is gone")
        cursor.use { generateSequence { if (it.moveToNext()) file(it) else null }.toList() }
    }

    private fun file(cursor: Cursor): SourceFile {
        val document = DocumentsContract.buildDocumentUriUsingTree(tree, cursor.getString(0))
        val bytes = if (cursor.isNull(2)) -1 else cursor.getLong(2)
        return SourceFile(cursor.getString(1).orEmpty(), bytes) {
            explained { resolver.openInputStream(document) ?: throw IOException("a file is gone") }
        }
    }

    /** A provider may throw anything: an import knows what to do about an IOException. */
    private fun <T> explained(read: () -> T): T = try {
        read()
    } catch (failure: RuntimeException) {
        throw IOException("the folder cannot be read: ${failure.message}", failure)
    }

    private companion object {
        val COLUMNS = arrayOf(Document.COLUMN_DOCUMENT_ID, Document.COLUMN_DISPLAY_NAME, Document.COLUMN_SIZE)
    }
}
