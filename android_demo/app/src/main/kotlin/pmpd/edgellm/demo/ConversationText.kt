package pmpd.edgellm.demo

import android.graphics.Typeface
import android.text.SpannableStringBuilder
import android.text.Spanned
import android.text.style.ForegroundColorSpan
import android.text.style.StyleSpan
import android.text.style.UnderlineSpan
import pmpd.edgellm.Bundle

/**
 * The conversation as it is drawn: tokens of the lowest precision in one colour and underlined (colour alone is not for
 * everybody), those between the highest and the lowest in another.
 */
class ConversationText(private val between: Int, private val lowest: Int) {
    fun of(turns: List<Turn>, bundle: Bundle?): CharSequence {
        val text = SpannableStringBuilder()
        val precisions = bundle?.levels.orEmpty().map { it.precision }
        for (turn in turns) {
            text.add(turn.question + "\n", StyleSpan(Typeface.BOLD))
            for (token in turn.tokens) {
                when (token.precision) {
                    precisions.firstOrNull() -> text.append(token.text)
                    precisions.last() -> text.add(token.text, ForegroundColorSpan(lowest), UnderlineSpan())
                    else -> text.add(token.text, ForegroundColorSpan(between))
                }
            }
            text.append("\n\n")
        }
        return text
    }

    private fun SpannableStringBuilder.add(what: String, vararg spans: Any) {
        val start = length
        append(what)
        for (span in spans) setSpan(span, start, length, Spanned.SPAN_EXCLUSIVE_EXCLUSIVE)
    }
}
