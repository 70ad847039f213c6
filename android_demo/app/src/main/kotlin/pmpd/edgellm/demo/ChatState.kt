package pmpd.edgellm.demo

import pmpd.edgellm.Bundle
import pmpd.edgellm.Method
import pmpd.edgellm.Schedule
import pmpd.edgellm.SessionOptions
import pmpd.edgellm.Stats
import pmpd.edgellm.Token

/** How the user wants answers: what the choices and fields on the screen hold. */
data class Settings(
    val choice: Choice = Choice.STATIC,
    /** Decode steps before the first switch; null: the bundle's. */
    val highSteps: Int? = null,
    /** Null: the bundle's. */
    val maxNewTokens: Int? = null,
) {
    /** One list to choose from: the method, and for stepping down how. */
    enum class Choice { STATIC, LEARNED, HIGH, LOW, LOSSLESS }

    /** As options of a session. */
    fun options(base: SessionOptions = SessionOptions()) = when (choice) {
        Choice.STATIC -> base.copy(method = Method.PMPD, schedule = Schedule.Static(highSteps))
        Choice.LEARNED -> base.copy(method = Method.PMPD, schedule = Schedule.Learned)
        Choice.HIGH -> base.copy(method = Method.HIGH, schedule = null)
        Choice.LOW -> base.copy(method = Method.LOW, schedule = null)
        Choice.LOSSLESS -> base.copy(method = Method.LOSSLESS, schedule = null)
    }
}

/** A message and its answer. */
data class Turn(val question: String, val tokens: List<Token> = emptyList(), val stats: Stats = Stats()) {
    val answer: String get() = tokens.joinToString("") { it.text }
}

/** What the app is busy with; one thing at a time. */
enum class Busy { IDLE, IMPORTING, LOADING, ANSWERING, MEASURING }

/**
 * All that the screen shows.
 *
 * @property bundle the one that is loaded, or is being loaded.
 * @property progress of importing and loading, from 0 to 1.
 * @property failure what went wrong last, until something goes right.
 * @property report what the benchmark has found, line by line.
 */
data class ChatState(
    val bundles: List<Bundle> = emptyList(),
    val bundle: Bundle? = null,
    val settings: Settings = Settings(),
    val busy: Busy = Busy.IDLE,
    val progress: Float = 0f,
    val turns: List<Turn> = emptyList(),
    val failure: String? = null,
    val report: List<String> = emptyList(),
)
