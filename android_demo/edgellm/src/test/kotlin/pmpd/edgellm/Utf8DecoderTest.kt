package pmpd.edgellm

import org.junit.Assert.assertEquals
import org.junit.Test

class Utf8DecoderTest {
    private val text = "a ä € 😀 👨‍👩‍👧 z"

    @Test
    fun `a text in pieces of any size is the text`() {
        for (size in 1..7) assertEquals(text, decoded(text.toByteArray().toList().chunked(size)))
    }

    @Test
    fun `an emoji appears with its last byte and not before`() {
        val decoder = Utf8Decoder()
        val bytes = "😀".toByteArray()
        assertEquals(listOf("", "", "", "😀"), bytes.map { decoder.decode(byteArrayOf(it)) })
    }

    @Test
    fun `what is incomplete at the end becomes one replacement character`() {
        val bytes = "😀".toByteArray()
        assertEquals("a\uFFFD", decoded(listOf(listOf('a'.code.toByte()), bytes.take(3))))
    }

    @Test
    fun `what is no UTF-8 is replaced and the rest is kept`() {
        assertEquals("\uFFFDa\uFFFD€", decoded(listOf(listOf(-1, 'a'.code.toByte(), -30), "€".toByteArray().toList())))
    }

    @Test
    fun `empty pieces change nothing`() {
        val bytes = "é".toByteArray()
        assertEquals("é", decoded(listOf(emptyList(), bytes.take(1), emptyList(), bytes.drop(1), emptyList())))
    }

    private fun decoded(pieces: List<List<Byte>>): String {
        val decoder = Utf8Decoder()
        val text = pieces.joinToString("") { decoder.decode(it.toByteArray()) }
        return text + decoder.decode(ByteArray(0), last = true)
    }
}
