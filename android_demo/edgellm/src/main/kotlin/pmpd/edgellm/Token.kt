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
 * @property drafted whether a lower precision had drafted it, with [Method.LOSSLESS].
 */
data class Token(
    val id: Int,
    val text: String,
    val precision: Int,
    val probability: Float,
    val finish: Finish?,
    val drafted: Boolean = false,
)

/**
 * What an answer took; it grows while the answer does.
 *
 * @property reusedTokens of the prompt: what was kept of the answers before.
 * @property prefillSeconds to the first sampled token.
 * @property decodeSeconds in decode steps and sampling, not in what the collector does.
 * @property averageBitwidth mean nominal precision over decode steps; 0 before the first one.
 * @property averageBpw mean real bits per weight over decode steps.
 * @property draftedTokens with [Method.LOSSLESS], as all that follows.
 * @property keptTokens of the drafted ones, those that became part of the answer.
 * @property verifications of drafts: steps without are none.
 * @property tokensPerVerification mean, the verifier's own token included; 0 before the first one.
 * @property draftingSeconds a part of [decodeSeconds], as is [verifyingSeconds].
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
    val draftedTokens: Int = 0,
    val keptTokens: Int = 0,
    val verifications: Int = 0,
    val tokensPerVerification: Double = 0.0,
    val draftingSeconds: Double = 0.0,
    val verifyingSeconds: Double = 0.0,
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
            numbers[5], numbers[6], numbers[7], numbers[8], numbers[9].toInt(), numbers[10].toInt(),
            numbers[11].toInt(), numbers[12], numbers[13], numbers[14],
        )
    }
}
