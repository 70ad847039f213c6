package pmpd.edgellm.demo

import android.app.ActivityManager
import android.content.Context
import android.os.Build
import android.os.PowerManager

/** What the phone says about itself. */
class Device(private val context: Context) {
    /** Memory that can be used before the system begins to end apps. */
    fun availableBytes(): Long {
        val manager = context.getSystemService(Context.ACTIVITY_SERVICE) as ActivityManager
        val info = ActivityManager.MemoryInfo().also(manager::getMemoryInfo)
        return maxOf(info.availMem - info.threshold, 0)
    }

    /** How hot the phone is, in Android's words; null before Android 10. */
    fun thermalStatus(): String? {
        if (Build.VERSION.SDK_INT < ANDROID_10) return null
        val manager = context.getSystemService(Context.POWER_SERVICE) as PowerManager
        // By its name, so that the sources compile against older platforms too
        val status = PowerManager::class.java.getMethod("getCurrentThermalStatus").invoke(manager) as Int
        return STATUSES.getOrElse(status) { "$status" }
    }

    private companion object {
        const val ANDROID_10 = 29
        val STATUSES = listOf("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")
    }
}
