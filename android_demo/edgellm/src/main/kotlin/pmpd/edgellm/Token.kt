package pmpd.edgellm

/** Why an answer ended. */
enum class Finish {
    /** The model or a stop text ended it. */
    STOP,

    /** The maximum of new tokens. */
    LENGTH,

    /** No room left in the context. */
    CONTEXT,
    ;

    internal companion object {
        /** From an `enum pmpd_finish`; null where the token is not the last. */
        fun of(code: Int): Finish? = entries.getOrNull(code - 1)
    }
}

/**
 * One sampled token.
 *
 * @property text what it adds to the answer; empty until a character is complete, and for an end-of-answer token.
 * @property precision of the weights that computed the logits it was sampled from.
 * @property probability that the model gave it, whatever was sampled how.
 * @property finish on the last token, why it is the last.
 */
data class Token(val id: Int, val text: String, val precision: Int, val probability: Float, val finish: Finish?)

/**
 * What an answer took; it grows while the answer does.
 *
 * @property reusedTokens of the prompt: what was kept of the answers before.
 * @property prefillSeconds to the first sampled token.
 * @property decodeSeconds in decode steps and sampling, not in what the collector does.
 * @property averageBitwidth mean nominal precision over decode steps; 0 before the first one.
 * @property averageBpw mean real bits per weight over decode steps.
 */
data class Stats(
    val promptTokens: Int = 0,
    val reusedTokens: Int = 0,
    val prefillPrecision: Int = 0,
    val decodeSteps: Int = 0,
    val switches: Int = 0,
    val prefillSeconds: Double = 0.0,
    val decodeSeconds: Double = 0.0,
    val averageBitwidth: Double = 0.0,
    val averageBpw: Double = 0.0,
) {
    /** Evaluated prompt tokens per second, kept ones not counted; 0 before the first token. */
    val prefillTokensPerSecond: Double get() = rate(promptTokens - reusedTokens, prefillSeconds)

    /** Decode steps per second; 0 before the first step. */
    val decodeTokensPerSecond: Double get() = rate(decodeSteps, decodeSeconds)

    private fun rate(count: Int, seconds: Double) = if (seconds > 0) count / seconds else 0.0

    internal companion object {
        /** From the numbers of [Native.sessionStats]. */
        fun of(numbers: DoubleArray) = Stats(
            numbers[0].toInt(), numbers[1].toInt(), numbers[2].toInt(), numbers[3].toInt(), numbers[4].toInt(),
            numbers[5], numbers[6], numbers[7], numbers[8],
        )
    }
}
