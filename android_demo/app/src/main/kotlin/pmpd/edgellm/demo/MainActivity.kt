package pmpd.edgellm.demo

import android.app.Activity
import android.content.Intent
import android.os.Bundle
import android.text.Editable
import android.text.TextWatcher
import android.view.View
import android.view.WindowManager
import android.widget.AdapterView
import android.widget.ArrayAdapter
import android.widget.EditText
import android.widget.ProgressBar
import android.widget.ScrollView
import android.widget.Spinner
import android.widget.TextView
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.SupervisorJob
import kotlinx.coroutines.cancel
import kotlinx.coroutines.launch
import pmpd.edgellm.Stats
import java.util.Locale

/** The screen. It draws the model's state and passes on what the user does; all else outlives it. */
class MainActivity : Activity() {
    private val model by lazy { (application as DemoApplication).model }
    private val scope = CoroutineScope(SupervisorJob() + Dispatchers.Main.immediate)
    private val conversation by lazy { ConversationText(getColor(R.color.between), getColor(R.color.lowest)) }
    private var drawn = ChatState()

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContentView(R.layout.main)
        connectButtons()
        connectSettings()
        scope.launch { model.state.collect(::draw) }
    }

    override fun onDestroy() {
        scope.cancel()
        super.onDestroy()
    }

    @Deprecated("the replacement is not part of the platform")
    override fun onActivityResult(requestCode: Int, resultCode: Int, data: Intent?) {
        val tree = data?.data
        if (requestCode == PICK && resultCode == RESULT_OK && tree != null) {
            model.import(DocumentTree(contentResolver, tree))
        }
    }

    private fun connectButtons() {
        onClick(R.id.pick) { startActivityForResult(Intent(Intent.ACTION_OPEN_DOCUMENT_TREE), PICK) }
        onClick(R.id.delete) { model.delete() }
        onClick(R.id.clear) { model.clear() }
        onClick(R.id.stop) { model.stop() }
        onClick(R.id.measure) { model.measure() }
        onClick(R.id.page) { showPage(measuring = find<View>(R.id.chat_page).visibility == View.VISIBLE) }
        onClick(R.id.send) {
            val input = find<EditText>(R.id.input)
            model.send(input.text.toString())
            input.text.clear()
        }
    }

    private fun connectSettings() {
        val settings = model.state.value.settings
        val choices = find<Spinner>(R.id.choice)
        choices.adapter = spinnerItems(resources.getStringArray(R.array.choices).toList())
        choices.setSelection(settings.choice.ordinal)
        choices.onItemSelectedListener = onSelected { position ->
            change { it.copy(choice = Settings.Choice.values()[position]) }
        }
        connectNumber(R.id.high_steps, settings.highSteps) { it, steps -> it.copy(highSteps = steps) }
        connectNumber(R.id.max_new_tokens, settings.maxNewTokens) { it, tokens -> it.copy(maxNewTokens = tokens) }
        find<Spinner>(R.id.bundles).onItemSelectedListener = onSelected { position ->
            val chosen = drawn.bundles.getOrNull(position - 1) // before them, the one that stands for none
            if (chosen != null && chosen != drawn.bundle && drawn.busy == Busy.IDLE) model.open(chosen)
        }
    }

    private fun connectNumber(id: Int, value: Int?, set: (Settings, Int?) -> Settings) {
        val field = find<EditText>(id)
        field.setText(value?.toString().orEmpty())
        field.addTextChangedListener(object : TextWatcher {
            override fun afterTextChanged(text: Editable) = change { set(it, text.toString().toIntOrNull()) }

            override fun beforeTextChanged(text: CharSequence, start: Int, count: Int, after: Int) = Unit

            override fun onTextChanged(text: CharSequence, start: Int, before: Int, count: Int) = Unit
        })
    }

    private fun change(change: (Settings) -> Settings) = model.set(change(model.state.value.settings))

    private fun draw(state: ChatState) {
        val idle = state.busy == Busy.IDLE
        for (id in intArrayOf(R.id.send, R.id.clear, R.id.measure, R.id.delete)) {
            find<View>(id).isEnabled = idle && state.bundle != null
        }
        for (id in intArrayOf(R.id.pick, R.id.bundles)) find<View>(id).isEnabled = idle
        find<View>(R.id.stop).isEnabled = !idle
        drawProgress(state)
        if (state.bundles != drawn.bundles || state.bundle != drawn.bundle) drawBundles(state)
        if (state.turns != drawn.turns) drawTurns(state)
        find<TextView>(R.id.report).text = state.report.joinToString("\n")
        keepScreenOn(!idle)
        drawn = state
    }

    private fun drawProgress(state: ChatState) {
        find<ProgressBar>(R.id.progress).apply {
            visibility = if (state.busy in listOf(Busy.IMPORTING, Busy.LOADING)) View.VISIBLE else View.INVISIBLE
            progress = (state.progress * max).toInt()
        }
        val stats = state.turns.lastOrNull()?.stats
        find<TextView>(R.id.status).text = when {
            state.failure != null -> state.failure
            state.bundle == null && state.busy == Busy.IDLE -> getString(R.string.no_bundle)
            stats == null || stats.decodeSteps == 0 -> ""
            else -> figures(stats)
        }
    }

    private fun figures(stats: Stats): String {
        val speed = "%.1f".format(Locale.getDefault(), stats.decodeTokensPerSecond)
        val bitwidth = "%.2f".format(Locale.getDefault(), stats.averageBitwidth)
        val figures = getString(R.string.figures, speed, bitwidth, stats.decodeSteps)
        if (stats.draftedTokens == 0) return figures
        return getString(R.string.drafts, figures, stats.keptTokens, stats.draftedTokens)
    }

    private fun drawBundles(state: ChatState) {
        find<Spinner>(R.id.bundles).apply {
            adapter = spinnerItems(listOf(getString(R.string.choose_bundle)) + state.bundles.map { it.name })
            setSelection(state.bundles.indexOf(state.bundle) + 1)
        }
        val bundle = state.bundle
        find<EditText>(R.id.max_new_tokens).hint = bundle?.maxNewTokens?.toString().orEmpty()
        find<EditText>(R.id.high_steps).hint = bundle?.schedule.orEmpty()
    }

    private fun drawTurns(state: ChatState) {
        find<TextView>(R.id.conversation).text = conversation.of(state.turns, state.bundle)
        val scroll = find<ScrollView>(R.id.chat_page)
        scroll.post { scroll.fullScroll(View.FOCUS_DOWN) }
    }

    private fun showPage(measuring: Boolean) {
        find<View>(R.id.chat_page).visibility = if (measuring) View.GONE else View.VISIBLE
        find<View>(R.id.measure_page).visibility = if (measuring) View.VISIBLE else View.GONE
        find<TextView>(R.id.page).setText(if (measuring) R.string.chat else R.string.benchmark)
    }

    private fun keepScreenOn(on: Boolean) {
        val flag = WindowManager.LayoutParams.FLAG_KEEP_SCREEN_ON
        if (on) window.addFlags(flag) else window.clearFlags(flag)
    }

    private fun spinnerItems(items: List<String>) =
        ArrayAdapter(this, android.R.layout.simple_spinner_item, items).apply {
            setDropDownViewResource(android.R.layout.simple_spinner_dropdown_item)
        }

    private fun onSelected(select: (Int) -> Unit) = object : AdapterView.OnItemSelectedListener {
        override fun onItemSelected(parent: AdapterView<*>, view: View?, position: Int, id: Long) = select(position)

        override fun onNothingSelected(parent: AdapterView<*>) = Unit
    }

    private fun onClick(id: Int, action: () -> Unit) = find<View>(id).setOnClickListener { action() }

    @Suppress("UNCHECKED_CAST") // findViewById is generic from Android 8 on only
    private fun <T : View> find(id: Int): T = findViewById(id) as T

    private companion object {
        const val PICK = 1
    }
}
