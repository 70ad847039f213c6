package pmpd.edgellm

import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.async
import kotlinx.coroutines.cancelAndJoin
import kotlinx.coroutines.coroutineScope
import kotlinx.coroutines.launch
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder
import java.io.File
import java.io.IOException
import java.io.InputStream
import java.util.concurrent.CountDownLatch
import java.util.concurrent.TimeUnit

class BundleStoreTest {
    @get:Rule
    val folder = TemporaryFolder()

    private val directory by lazy { File(folder.root, "bundles") }
    private val store by lazy { BundleStore(directory) }

    @Test
    fun `an imported bundle answers and is listed`() = test {
        val bundle = store.import(DirectorySource(BUNDLE))
        assertEquals(listOf(bundle), store.bundles())
        assertEquals(directory, bundle.directory.parentFile)
        val expected = withSession { ids(it.answer(SENTENCE)) }
        assertEquals(expected, withSession(bundle = bundle) { ids(it.answer(SENTENCE)) })
    }

    @Test
    fun `progress rises through both phases to the whole`() = test {
        val seen = mutableListOf<ImportProgress>()
        store.import(DirectorySource(BUNDLE)) { seen += it }
        for (phase in ImportProgress.Phase.values()) {
            val of = seen.filter { it.phase == phase }
            assertEquals(of.map { it.done }.sorted(), of.map { it.done })
            assertEquals(of.last().total, of.last().done)
        }
        assertEquals(seen.map { it.phase }.sorted(), seen.map { it.phase })
    }

    @Test
    fun `the same bundle twice is kept once`() = test {
        assertEquals(store.import(DirectorySource(BUNDLE)), store.import(DirectorySource(BUNDLE)))
        assertEquals(1, directory.listFiles()!!.size)
    }

    @Test
    fun `importing again repairs what was damaged in the store`() = test {
        val bundle = store.import(DirectorySource(BUNDLE))
        flipByte(File(bundle.directory, "translator-7m-q4.gguf"), 3_000_000)
        thrown<BundleException> { bundle.verify() }
        assertEquals(bundle, store.import(DirectorySource(BUNDLE)))
        bundle.verify()
        assertEquals(listOf(bundle.directory), directory.listFiles()!!.toList())
    }

    @Test
    fun `weights that the manifest does not name are not copied`() = test {
        val other = copyOfBundle(folder.newFolder("other"))
        File(other, "another.gguf").writeText("GGUF")
        val copied = store.import(DirectorySource(other)).directory.list()!!.toSet()
        assertEquals(BUNDLE.list()!!.filter { it == "pmpd.json" || it.endsWith(".gguf") }.toSet(), copied)
    }

    @Test
    fun `a name that the manifest writes with escapes is found`() = test {
        val other = copyOfBundle(folder.newFolder("other"))
        File(other, "translator-7m-q4.gguf").renameTo(File(other, "Grün.gguf"))
        val manifest = File(other, "pmpd.json")
        manifest.writeText(manifest.readText().replace("translator-7m-q4.gguf", "Gr\\u00fcn.gguf"))
        assertTrue(File(store.import(DirectorySource(other)).directory, "Grün.gguf").isFile)
    }

    @Test
    fun `another bundle of the same name is kept beside it`() = test {
        val other = copyOfBundle(folder.newFolder("other"))
        val manifest = File(other, "pmpd.json")
        manifest.writeText(manifest.readText().replace("\"max_new_tokens\": 64", "\"max_new_tokens\": 32"))
        store.import(DirectorySource(BUNDLE))
        store.import(DirectorySource(other))
        assertEquals(setOf(32, 64), store.bundles().map { it.maxNewTokens }.toSet())
    }

    @Test
    fun `a deleted bundle is gone`() = test {
        store.delete(store.import(DirectorySource(BUNDLE)))
        assertNothingLeft()
    }

    @Test
    fun `what is not in the store is not deleted`() {
        thrown<IllegalArgumentException> { store.delete(Bundle.open(BUNDLE)) }
    }

    @Test
    fun `a damaged source is refused and leaves nothing`() = test {
        val copy = copyOfBundle(folder.newFolder("copy"))
        flipByte(File(copy, "translator-7m-q4.gguf"), 4_000_000)
        thrown<BundleException> { store.import(DirectorySource(copy)) }
        assertNothingLeft()
    }

    @Test
    fun `a truncated source is refused and leaves nothing`() = test {
        thrown<BundleException> { store.import(altered("translator-7m-q2.gguf") { CutOff(it, 1_000_000) }) }
        assertNothingLeft()
    }

    @Test
    fun `a source without a manifest is refused before anything is copied`() = test {
        val other = folder.newFolder("other").also { File(it, "model.gguf").writeText("GGUF") }
        thrown<BundleException> { store.import(DirectorySource(other)) }
        thrown<BundleException> { store.import(DirectorySource(folder.newFolder("empty"))) }
        assertNothingLeft()
    }

    @Test
    fun `a name that leads out of the bundle is refused`() = test {
        val files = DirectorySource(BUNDLE).files() + SourceFile("../evil.gguf", 4) { "GGUF".byteInputStream() }
        thrown<BundleException> { store.import(Files(files)) }
        assertNothingLeft()
        assertFalse(File(folder.root, "evil.gguf").exists())
    }

    @Test
    fun `too little storage is found before anything is copied`() = test {
        val full = BundleStore(directory) { 1L shl 20 }
        val failure = thrown<NotEnoughStorageException> { full.import(DirectorySource(BUNDLE)) }
        assertTrue(failure.message!!, "MiB" in failure.message!!)
        assertNothingLeft()
    }

    @Test
    fun `files of unknown size do not fill the storage`() = test {
        var most = 0L
        val small = BundleStore(directory) {
            val written = directory.walk().filter { it.isFile }.sumOf { it.length() }
            most = maxOf(most, written)
            (70L shl 20) - written // 64 MiB of it stay free
        }
        val files = DirectorySource(BUNDLE).files().map { SourceFile(it.name, -1, it.open) }
        thrown<NotEnoughStorageException> { small.import(Files(files)) }
        assertTrue("$most", most in (1L shl 20)..(8L shl 20))
        assertNothingLeft()
    }

    @Test
    fun `storage that others fill meanwhile is told from a source that cannot be read`() = test {
        var free = 1L shl 30
        val filling = BundleStore(directory) { free }
        val source = altered("translator-7m-q4.gguf") { Failing(it, 2_000_000) { free = 0 } }
        thrown<NotEnoughStorageException> { filling.import(source) }
        assertNothingLeft()
    }

    @Test
    fun `a bundle that was cut in the store is not listed, and the others are`() = test {
        val other = copyOfBundle(folder.newFolder("other"))
        val manifest = File(other, "pmpd.json")
        manifest.writeText(manifest.readText().replace("\"max_new_tokens\": 64", "\"max_new_tokens\": 32"))
        val whole = store.import(DirectorySource(BUNDLE))
        truncate(File(store.import(DirectorySource(other)).directory, "translator-7m-q8.gguf"), 1_000_000)
        assertEquals(listOf(whole), store.bundles())
    }

    @Test
    fun `a source that fails half-way leaves nothing`() = test {
        val source = altered("translator-7m-q4.gguf") { Failing(it, 2_000_000) }
        val failure = thrown<ImportException> { store.import(source) }
        assertTrue(failure.message!!, "of the source" in failure.message!!)
        assertNothingLeft()
        store.import(DirectorySource(BUNDLE)) // and the store goes on
    }

    @Test
    fun `an import that is cancelled half-way leaves nothing`() = test {
        for (phase in ImportProgress.Phase.values()) {
            coroutineScope {
                val reached = CountDownLatch(1)
                val import = launch(Dispatchers.Default) {
                    store.import(DirectorySource(BUNDLE)) {
                        if (it.phase == phase) {
                            reached.countDown()
                            Thread.sleep(5)
                        }
                    }
                }
                reached.await()
                import.cancelAndJoin()
                assertTrue("$phase", import.isCancelled)
            }
            assertNothingLeft()
        }
    }

    @Test
    fun `a second import meanwhile is refused`() = test {
        coroutineScope {
            val reached = CountDownLatch(1)
            val refused = CountDownLatch(1)
            val first = async(Dispatchers.Default) {
                store.import(DirectorySource(BUNDLE)) {
                    reached.countDown()
                    refused.await(1, TimeUnit.MINUTES)
                }
            }
            reached.await()
            thrown<ImportException> { store.import(DirectorySource(BUNDLE)) }
            store.removeLeftovers() // does not take the running one's files
            refused.countDown()
            assertEquals(listOf(first.await()), store.bundles())
        }
    }

    @Test
    fun `what a killed import left does not count and goes`() {
        val child = child("import", directory.path)
        child.inputStream.bufferedReader().readLine() // it is in the middle
        assertTrue(directory.listFiles()!!.isNotEmpty())
        child.destroyForcibly().waitFor()

        assertTrue(directory.listFiles()!!.isNotEmpty())
        assertEquals(emptyList<Bundle>(), store.bundles())
        store.removeLeftovers()
        assertNothingLeft()
    }

    @Test
    fun `an app that is killed while it answers leaves the bundle whole`() = test {
        val bundle = store.import(DirectorySource(BUNDLE))
        val child = child("answer", bundle.directory.path)
        assertEquals("a token", child.inputStream.bufferedReader().readLine())
        child.destroyForcibly().waitFor()

        bundle.verify()
        assertEquals(listOf(bundle.directory), directory.listFiles()!!.toList())
    }

    private fun child(vararg arguments: String): Process {
        val java = File(System.getProperty("java.home"), "bin/java").path
        val runner = System.getProperty("pmpd.runner").orEmpty().split(' ').filter { it.isNotEmpty() } // an emulator
        val properties = listOf("java.library.path", "pmpd.bundle").map { "-D$it=${System.getProperty(it)}" }
        val command = runner + java + properties + listOf("-cp", System.getProperty("java.class.path"))
        return ProcessBuilder(command + "pmpd.edgellm.ChildKt" + arguments)
            .redirectError(ProcessBuilder.Redirect.INHERIT).start()
    }

    private fun altered(name: String, alter: (InputStream) -> InputStream): BundleSource {
        val files = DirectorySource(BUNDLE).files().map { file ->
            if (file.name == name) SourceFile(name, file.bytes) { alter(file.open()) } else file
        }
        return Files(files)
    }

    private fun assertNothingLeft() = assertEquals(emptyList<String>(), directory.list().orEmpty().toList())
}

private class Files(private val files: List<SourceFile>) : BundleSource {
    override fun files() = files
}

/** Ends after some bytes. */
private open class CutOff(private val input: InputStream, private var left: Int) : InputStream() {
    override fun read(): Int = if (left-- > 0) input.read() else end()

    override fun read(into: ByteArray, offset: Int, length: Int): Int {
        if (left <= 0) return end()
        return input.read(into, offset, minOf(length, left)).also { left -= it }
    }

    override fun close() = input.close()

    open fun end(): Int = -1
}

/** Fails after some bytes, as a card that is pulled out. */
private class Failing(input: InputStream, bytes: Int, private val before: () -> Unit = {}) : CutOff(input, bytes) {
    override fun end(): Int {
        before()
        throw IOException("of the source")
    }
}
