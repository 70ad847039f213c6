package pmpd.edgellm

import kotlinx.coroutines.CompletableDeferred
import kotlinx.coroutines.Deferred
import java.util.concurrent.LinkedBlockingQueue

/**
 * One thread that does what it is given, one thing after the other, until it is finished. It knows nothing about what
 * it does; that others may wait for it without blocking is all that it is for.
 *
 * Its stack is larger than a thread's usual one: chat templates are interpreted recursively.
 */
internal class OwnerThread {
    private val work = LinkedBlockingQueue<() -> Boolean>() // false: that was the last
    private val finished = CompletableDeferred<Unit>()

    init {
        Thread(null, ::loop, "edgellm", STACK_BYTES).apply { isDaemon = true }.start()
    }

    private fun loop() {
        while (work.take()()) Unit
        finished.complete(Unit)
    }

    /** Do [what] after all that was given before; its result, or what it throws, is the deferred's. */
    fun <T> start(what: () -> T): Deferred<T> {
        val result = CompletableDeferred<T>()
        work.put {
            try {
                result.complete(what())
            } catch (failure: Throwable) {
                result.completeExceptionally(failure)
            }
            true
        }
        return result
    }

    /** Do [what] as the last thing. Nothing may be started afterwards. */
    fun finish(what: () -> Unit) = work.put {
        what()
        false
    }

    suspend fun awaitFinished() = finished.await()

    private companion object {
        const val STACK_BYTES = 8L shl 20
    }
}
