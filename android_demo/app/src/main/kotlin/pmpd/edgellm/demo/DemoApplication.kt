package pmpd.edgellm.demo

import android.app.Application
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.SupervisorJob
import pmpd.edgellm.BundleStore
import java.io.File

/** Holds what outlives an activity: the model, with whatever it is doing while the phone is turned. */
class DemoApplication : Application() {
    val model: ChatModel by lazy {
        val device = Device(this)
        val store = BundleStore(File(noBackupFilesDir, "bundles")) // bundles are large, and can be had again
        val scope = CoroutineScope(SupervisorJob() + Dispatchers.Main.immediate)
        ChatModel(store, scope, device::availableBytes, device::thermalStatus).apply { start() }
    }
}
