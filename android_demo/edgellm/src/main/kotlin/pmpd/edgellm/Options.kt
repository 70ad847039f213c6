package pmpd.edgellm

/**
 * What answers are computed with: stepping down, everything at the highest precision, everything at the lowest; or what
 * the highest precision gives, with drafts of the lowest where that is quicker.
 */
enum class Method { PMPD, HIGH, LOW, LOSSLESS }

/** How [Method.PMPD] steps down, and [Method.LOSSLESS] verifies. */
sealed class Schedule {
    internal abstract val text: String
    internal open val highSteps: Int get() = -1

    /** Of a bundle's precisions, those that it may choose. */
    internal abstract fun precisions(bundle: Bundle): List<Int>

    /**
     * Switches at fixed steps.
     *
     * @param highSteps decode steps before the first switch; null: as in the schedule.
     * @param switches such as `8@1,4@86`: precision 8 from step 1, 4 from step 86; null: the bundle's.
     */
    data class Static(val steps: Int? = null, val switches: String? = null) : Schedule() {
        override val text get() = if (switches == null) "static" else "static:$switches"
        override val highSteps get() = steps ?: -1

        override fun precisions(bundle: Bundle) =
            (switches ?: bundle.schedule).split(',').mapNotNull { it.substringBefore('@').trim().toIntOrNull() }
    }

    /** One precision for all decode steps. */
    data class Fixed(val precision: Int) : Schedule() {
        override val text get() = "fixed:$precision"

        override fun precisions(bundle: Bundle) = listOf(precision)
    }

    /** The bundle's predictor looks at each prompt. Only where [Bundle.hasPredictor]. */
    object Learned : Schedule() {
        override val text get() = "learned"

        override fun precisions(bundle: Bundle) = bundle.levels.map { it.precision }

        override fun toString() = "Learned"
    }
}

/**
 * How a bundle is loaded and run.
 *
 * @property schedule null: the bundle's own for [Method.PMPD], the highest precision alone for [Method.LOSSLESS].
 * @property prefill the precision of prompts, for methods with a schedule; 0: the bundle's, or the highest where the
 *   schedule is that alone.
 * @property draftTokens for [Method.LOSSLESS], tokens that are drafted at a time; 0: as many as pay on this device.
 * @property draft for [Method.LOSSLESS], the precision of drafts; 0: the lowest.
 * @property contextTokens 0: what the model was trained on, at most 4096.
 * @property batchTokens tokens that are evaluated together at most.
 * @property threads 0: the fast cores, at most 4. More than the fast cores is slower, often by far.
 * @property gpuLayers -1: all, where there is a GPU backend.
 * @property useMmap map the files instead of reading them. Weight types that the CPU repacks are then held twice.
 * @property pinThreads bind the threads to the fast cores.
 */
data class SessionOptions(
    val method: Method = Method.PMPD,
    val schedule: Schedule? = null,
    val prefill: Int = 0,
    val draftTokens: Int = 0,
    val draft: Int = 0,
    val contextTokens: Int = 0,
    val batchTokens: Int = 512,
    val threads: Int = 0,
    val gpuLayers: Int = -1,
    val useMmap: Boolean = false,
    val pinThreads: Boolean = false,
) {
    /** What these options compute with, of what the bundle has; more than that where a predictor chooses. */
    internal fun precisions(bundle: Bundle): Set<Int> {
        val all = bundle.levels.map { it.precision }
        val used = when (method) {
            Method.HIGH -> listOf(all.first())
            Method.LOW -> listOf(all.last())
            Method.PMPD -> (schedule ?: Schedule.Static()).precisions(bundle) + prefill.orElse(bundle.prefill)
            Method.LOSSLESS -> verifying(bundle) + draft.orElse(all.last())
        }
        return used.filter { it in all }.toSet()
    }

    private fun verifying(bundle: Bundle): List<Int> {
        val highest = bundle.levels.first().precision
        if (schedule == null) return listOf(highest, prefill.orElse(highest))
        return schedule.precisions(bundle) + prefill.orElse(bundle.prefill)
    }

    private fun Int.orElse(other: Int) = if (this == 0) other else this

    /** These with a schedule that computes with [precisions], for an estimate. */
    internal fun with(precisions: Set<Int>): SessionOptions {
        val switches = precisions.withIndex().joinToString(",") { (i, precision) -> "$precision@${i + 1}" }
        return copy(method = Method.PMPD, schedule = Schedule.Static(switches = switches), prefill = precisions.first())
    }

    internal val methodText get() = method.name.lowercase().toNative()
    internal val schedulerText get() = schedule?.text?.toNative()

    /** In the order in which edgellm.cpp reads them. */
    internal val numbers
        get() = intArrayOf(
            schedule?.highSteps ?: -1,
            prefill,
            draftTokens,
            draft,
            contextTokens,
            batchTokens,
            threads,
            gpuLayers,
            if (useMmap) 1 else 0,
            if (pinThreads) 1 else 0,
        )
}

/** How a token is chosen from the logits; temperature 0 takes the likeliest. */
data class Sampling(
    val temperature: Float = 0f,
    val topK: Int = 40,
    val topP: Float = 0.95f,
    val minP: Float = 0.05f,
    val repeatPenalty: Float = 1f,
    val seed: Int = 0,
)

/**
 * What is wanted of one answer.
 *
 * @property maxNewTokens 0: the bundle's.
 * @property stop texts that end the answer and are no part of it.
 */
data class Request(
    val maxNewTokens: Int = 0,
    val sampling: Sampling = Sampling(),
    val stop: List<String> = emptyList(),
)

/** One message of a conversation; [role] is `system`, `user` or `assistant`. */
data class Message(val role: String, val content: String)
