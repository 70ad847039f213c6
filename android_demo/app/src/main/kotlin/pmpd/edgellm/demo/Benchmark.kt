package pmpd.edgellm.demo

import kotlinx.coroutines.flow.collect
import pmpd.edgellm.Method
import pmpd.edgellm.Request
import pmpd.edgellm.Schedule
import pmpd.edgellm.Session
import pmpd.edgellm.SessionOptions
import java.util.Locale

/** How fast one precision is here. */
data class LevelSpeed(val precision: Int, val bpw: Double, val prefill: Double, val decode: Double) {
    fun line() =
        "%d bits (%.2f): prefill %.1f, decode %.1f tokens/s".format(Locale.ROOT, precision, bpw, prefill, decode)
}

/**
 * Measures a session where it runs. Fewer bits are not faster by themselves: that is for each device to show.
 *
 * Figures are of decode steps alone, by the library's own clock; what the screen takes is not in them.
 *
 * @param availableBytes the memory that the device can give.
 * @param steps that each figure is the mean of, at least.
 */
class Benchmark(
    private val session: Session,
    private val availableBytes: () -> Long,
    private val base: SessionOptions = SessionOptions(),
    private val steps: Int = 64,
) {
    private class Measured(val prefill: Double, val decode: Double)

    /** The speed of each level, from the highest precision to the lowest. */
    suspend fun levels(): List<LevelSpeed> = session.bundle.levels.map { level ->
        val measured = measure(fixed(level.precision))
        LevelSpeed(level.precision, level.bpw, measured.prefill, measured.decode)
    }

    /**
     * What a switch between the highest and the lowest precision adds to a step, in seconds: an answer that switches at
     * every step against one of each precision. Null where there is only one.
     */
    suspend fun switchSeconds(): Double? {
        val high = session.bundle.levels.first().precision
        val low = session.bundle.levels.last().precision
        if (high == low) return null
        val switches = (1..session.contextTokens).joinToString(",") { "${if (it % 2 == 1) high else low}@$it" }
        val alternating = measure(base.copy(method = Method.PMPD, schedule = Schedule.Static(switches = switches)))
        val still = (1 / measure(fixed(high)).decode + 1 / measure(fixed(low)).decode) / 2
        return 1 / alternating.decode - still
    }

    /**
     * Answer with the bundle's schedule until the time is over, to see what heat does.
     *
     * @param report called about every ten seconds, with the seconds so far and the speed since the last report.
     */
    suspend fun sustained(seconds: Int, report: (Int, Double) -> Unit) {
        session.configure(base, availableBytes())
        val start = System.nanoTime()
        var reported = 0.0
        var decodeSteps = 0
        var decodeSeconds = 0.0
        do {
            answer()
            decodeSteps += session.stats.decodeSteps
            decodeSeconds += session.stats.decodeSeconds
            val now = (System.nanoTime() - start) / 1e9
            if (now - reported >= minOf(REPORT_SECONDS, seconds.toDouble())) {
                report(now.toInt(), decodeSteps / decodeSeconds)
                reported = now
                decodeSteps = 0
                decodeSeconds = 0.0
            }
        } while (now < seconds)
    }

    private fun fixed(precision: Int) =
        base.copy(method = Method.PMPD, schedule = Schedule.Fixed(precision), prefill = precision)

    private suspend fun measure(options: SessionOptions): Measured {
        session.configure(options, availableBytes())
        answer() // loads what was not needed before, and is not measured
        var prefillTokens = 0
        var prefillSeconds = 0.0
        var decodeSteps = 0
        var decodeSeconds = 0.0
        while (decodeSteps < steps) {
            answer()
            val stats = session.stats
            prefillTokens += stats.promptTokens
            prefillSeconds += stats.prefillSeconds
            decodeSteps += maxOf(stats.decodeSteps, 1) // one that ends at once must not go on for ever
            decodeSeconds += stats.decodeSeconds
        }
        return Measured(prefillTokens / prefillSeconds, decodeSteps / decodeSeconds)
    }

    private suspend fun answer() {
        session.clear()
        session.answer(PROMPT, Request(maxNewTokens = steps)).collect()
    }

    private companion object {
        const val REPORT_SECONDS = 10.0
        const val PROMPT = "Ein älterer Mann sitzt mit seinem Hund auf einer Bank im Park und liest die Zeitung."
    }
}
