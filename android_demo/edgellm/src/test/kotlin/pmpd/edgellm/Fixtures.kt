package pmpd.edgellm

import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.withTimeout
import org.junit.Assert.fail
import java.io.File
import java.io.RandomAccessFile

/** The bundle that ships in the package; whoever runs the tests says where it lies. */
val BUNDLE = File(requireNotNull(System.getProperty("pmpd.bundle")) { "run with -Dpmpd.bundle=DIRECTORY" })

const val SENTENCE = "Ein Hund läuft mit einem Ball im Maul über die grüne Wiese."

/** One thread: a busy machine makes two wait for each other. */
val OPTIONS = SessionOptions(threads = 1)

/** Hangs are failures. Generous: the tests run under an emulator too. */
fun test(what: suspend () -> Unit): Unit = runBlocking { withTimeout(240_000) { what() } }

suspend fun <T> withSession(
    options: SessionOptions = OPTIONS,
    bundle: Bundle = Bundle.open(BUNDLE),
    use: suspend (Session) -> T,
): T {
    val session = Session.open(bundle, options)
    try {
        return use(session)
    } finally {
        session.close()
        session.awaitClosed()
    }
}

suspend fun ids(answer: Flow<Token>): List<Int> = answer.toList().map { it.id }

/** What [what] throws, which has to be an [E]. */
inline fun <reified E : Throwable> thrown(what: () -> Unit): E {
    try {
        what()
    } catch (failure: Throwable) {
        if (failure is E) return failure
        throw AssertionError("expected ${E::class.java.simpleName}, not $failure", failure)
    }
    fail("expected ${E::class.java.simpleName}, nothing was thrown")
    throw IllegalStateException()
}

fun copyOfBundle(to: File): File = to.also { BUNDLE.copyRecursively(it) }

fun flipByte(file: File, at: Long) = RandomAccessFile(file, "rw").use {
    it.seek(at)
    val byte = it.read()
    it.seek(at)
    it.write(byte xor 1)
}

fun truncate(file: File, bytes: Long) = RandomAccessFile(file, "rw").use { it.setLength(bytes) }

/** A long prompt, whose evaluation takes a while: within the context of the default bundle, 512 tokens. */
val LONG_TEXT = "Translate from German to English: " + "Ein Mann und ein Hund. ".repeat(40)
