package pmpd.edgellm.demo

import android.graphics.Typeface
import android.text.SpannableStringBuilder
import android.text.Spanned
import android.text.style.ForegroundColorSpan
import android.text.style.StyleSpan
import android.text.style.UnderlineSpan
import pmpd.edgellm.Bundle
import pmpd.edgellm.Token

/**
 * The conversation as it is drawn: tokens of the lowest precision in one colour and underlined (colour alone is not for
 * everybody), those between the highest and the lowest in another. Underlined too are tokens that a lower precision had
 * drafted.
 */
class ConversationText(private val between: Int, private val lowest: Int) {
    fun of(turns: List<Turn>, bundle: Bundle?): CharSequence {
        val text = SpannableStringBuilder()
        val precisions = bundle?.levels.orEmpty().map { it.precision }
        for (turn in turns) {
            text.add(turn.question + "\n", StyleSpan(Typeface.BOLD))
            for (token in turn.tokens) text.add(token.text, *spans(token, precisions))
            text.append("\n\n")
        }
        return text
    }

    private fun spans(token: Token, precisions: List<Int>): Array<Any> {
        val color = when (token.precision) {
            precisions.firstOrNull() -> null
            precisions.lastOrNull() -> lowest
            else -> between
        }
        val underline = if (color == lowest || token.drafted) UnderlineSpan() else null
        return listOfNotNull(color?.let(::ForegroundColorSpan), underline).toTypedArray()
    }

    private fun SpannableStringBuilder.add(what: String, vararg spans: Any) {
        if (what.isEmpty()) return // no span is of no length
        val start = length
        append(what)
        for (span in spans) setSpan(span, start, length, Spanned.SPAN_EXCLUSIVE_EXCLUSIVE)
    }
}
