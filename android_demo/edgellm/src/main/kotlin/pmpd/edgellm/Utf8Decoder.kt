package pmpd.edgellm

import java.nio.ByteBuffer
import java.nio.CharBuffer
import java.nio.charset.CodingErrorAction

/**
 * Decodes UTF-8 that arrives in pieces: a character may be spread over several tokens.
 *
 * What is no UTF-8 becomes U+FFFD, and so does a character that is incomplete at the end.
 */
internal class Utf8Decoder {
    private val decoder = Charsets.UTF_8.newDecoder()
        .onMalformedInput(CodingErrorAction.REPLACE)
        .onUnmappableCharacter(CodingErrorAction.REPLACE)
    private var rest = ByteArray(0)

    /** The characters that [bytes] complete; with [last], all that is left. */
    fun decode(bytes: ByteArray, last: Boolean = false): String {
        val input = ByteBuffer.wrap(rest + bytes)
        val output = CharBuffer.allocate(input.remaining() + 1) // never more characters than bytes
        decoder.decode(input, output, last)
        if (last) decoder.flush(output)
        rest = ByteArray(input.remaining()).also { input.get(it) }
        if (last) decoder.reset()
        return String(output.array(), 0, output.position())
    }
}
