package pmpd.edgellm

import kotlinx.coroutines.flow.collect
import kotlinx.coroutines.runBlocking
import java.io.File

/** A process to be killed while it imports, or while it answers; prints a line when it is in the middle of that. */
fun main(arguments: Array<String>) = runBlocking {
    val (what, directory) = arguments
    when (what) {
        "import" -> BundleStore(File(directory)).import(DirectorySource(BUNDLE)) {
            if (it.done > 3_000_000) {
                println("half a bundle")
                Thread.sleep(600_000)
            }
        }
        "answer" -> Session.open(Bundle.open(File(directory)), OPTIONS).answer(SENTENCE).collect {
            println("a token")
            Thread.sleep(600_000)
        }
    }
    Unit
}
