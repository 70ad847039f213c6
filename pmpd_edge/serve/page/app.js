/**
 * The page: ties the conversation, its drawing, the settings and the server together.
 */

import { getProps, streamChat } from "./api.js";
import { addChunk, messagesFor, newAnswer, precisionsOf } from "./conversation.js";
import { announce, byId, notify } from "./dom.js";
import { asJson, asMarkdown, save } from "./export.js";
import { Levels } from "./levels.js";
import { showModel } from "./model_panel.js";
import { followEnd } from "./scroll.js";
import { Settings } from "./settings.js";
import { read, readTurns, write, writeKey, writeTurns } from "./storage.js";
import { hide as hideTokenInfo, tellAboutTokens } from "./token_info.js";
import { TurnView } from "./turn_view.js";

const SAVE_EVERY = 1000; // milliseconds, while an answer grows
const WIDE = matchMedia("(min-width: 64rem)"); // as in style.css

class App {
  constructor() {
    this.turns = readTurns();
    this.views = [];
    this.settings = new Settings();
    this.levels = new Levels();
    this.running = null; // an AbortController while answers are made
    this.editing = false;
    this.toEnd = followEnd(byId("conversation"), byId("turns"));
  }

  async start() {
    this.listen();
    this.showSettings(WIDE.matches);
    byId("view").querySelector(`[value="${read("view")}"]`)?.click();
    this.drawAll();
    this.toEnd();
    byId("message").focus();
    await this.connect();
  }

  get look() {
    return { levels: this.levels, formatted: byId("view").querySelector(":checked").value === "formatted" };
  }

  listen() {
    const on = (id, event, action) => byId(id).addEventListener(event, action);
    const onSubmit = (id, action) => on(id, "submit", (event) => (event.preventDefault(), action()));
    onSubmit("composer", () => this.send());
    onSubmit("key-form", () => this.useKey());
    on("message", "keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) event.preventDefault(), this.send();
    });
    on("stop", "click", () => this.stop());
    on("clear", "click", () => this.clear());
    on("view", "change", () => this.changeView());
    on("settings-toggle", "click", () => this.showSettings(byId("settings").hidden));
    on("export-json", "click", () => this.export("json"));
    on("export-markdown", "click", () => this.export("md"));
    document.addEventListener("keydown", (event) => event.key === "Escape" && !event.isComposing && this.escape());
    WIDE.addEventListener("change", () => this.showSettings(WIDE.matches));
    window.addEventListener("beforeunload", () => this.stop()); // else its end would look like a lost connection
    window.addEventListener("pagehide", () => this.keep());
    tellAboutTokens(byId("turns"), () => this.levels);
  }

  /** Ask the server what it runs, and offer that. */
  async connect() {
    try {
      this.settings.offer(await this.refresh());
      this.showAll();
    } catch (error) {
      notify(error.message, "Try again", () => this.connect());
      if (error.status === 401) this.askForKey();
    }
  }

  /** Show what the server says of its model now: which levels are in memory changes. */
  async refresh() {
    const props = await getProps();
    this.levels = new Levels(props.levels);
    this.model = props.model;
    showModel(props, this.levels);
    return props;
  }

  askForKey() {
    byId("key-form").hidden = false;
    this.showSettings(true);
    byId("key").focus();
  }

  async useKey() {
    writeKey(byId("key").value);
    byId("key-form").hidden = true;
    notify("");
    byId("message").focus();
    await this.connect();
  }

  // The conversation

  send() {
    const message = byId("message").value.trim();
    if (!message || this.running || !this.checkSettings()) return;
    if (this.editing) this.turns.pop(), this.views.pop().root.remove();
    this.edit(false);
    byId("message").value = "";
    const turn = { message, answers: [] };
    this.turns.push(turn);
    this.drawTurn(turn);
    this.answer();
  }

  regenerate() {
    if (this.running || !this.checkSettings()) return;
    if (this.editing) this.edit(false);
    this.answer();
  }

  checkSettings() {
    if (byId("options").checkValidity()) return true;
    this.showSettings(true);
    return this.settings.check();
  }

  /** Have the last turn answered, by one method after the other: the server has one context. */
  async answer() {
    const turn = this.turns.at(-1);
    const view = this.views.at(-1);
    notify("");
    turn.answers = this.settings.methods.map((method) => newAnswer(method, this.settings.scheduler));
    view.begin(this.look);
    this.run(new AbortController());
    const requests = turn.answers.map(({ method }) => this.request(method)); // the settings may change meanwhile
    for (const [i, answer] of turn.answers.entries()) await this.answerOne(requests[i], answer, view.views[i]);
    this.run(null);
    this.keep();
    announce(turn.answers.map(({ method, text, error }) => `${method}: ${text.trim() || error}`).join("\n"));
    await this.refresh().catch(() => {}); // where the server is gone, the answer says so
  }

  request(method) {
    return { ...this.settings.request(method), messages: messagesFor(this.turns, method, this.settings.system) };
  }

  async answerOne(request, answer, view) {
    try {
      for await (const chunk of streamChat(request, this.running.signal)) {
        addChunk(answer, chunk);
        this.grown(answer, view);
      }
    } catch (error) {
      this.fail(answer, error);
    }
    this.grown(answer, view);
  }

  fail(answer, error) {
    answer.finish = this.running.signal.aborted ? "stopped" : "error";
    if (answer.finish === "stopped") return;
    answer.error = error.message;
    if (error.status === 401) this.askForKey();
  }

  grown(answer, view) {
    view.update();
    byId("speed").textContent = answer.speed?.toFixed(1) ?? "–";
    byId("bits").textContent = answer.bitwidth?.toFixed(2) ?? "–";
    byId("count").textContent = precisionsOf(answer).length;
    if (Date.now() - this.keptAt > SAVE_EVERY) this.keep();
  }

  stop() {
    this.running?.abort();
  }

  /** Note that answers are made, or that they are done. */
  run(controller) {
    this.running = controller;
    const busy = Boolean(controller);
    const lost = [byId("send"), byId("stop"), document.body].includes(document.activeElement);
    byId("send").disabled = busy;
    byId("stop").disabled = !busy;
    byId("clear").disabled = busy;
    this.offerActions();
    this.keptAt = Date.now();
    if (busy) this.toEnd();
    if (lost) byId(busy ? "stop" : "message").focus();
  }

  edit(begin) {
    this.editing = begin;
    this.views.at(-1)?.root.classList.toggle("edited", begin);
    byId("message").value = begin ? this.turns.at(-1).message : "";
    if (begin) notify("Sending replaces the last message and its answers.", "Leave it", () => this.edit(false));
    else notify("");
    byId("message").focus();
  }

  clear() {
    const turns = this.turns;
    if (this.running || !turns.length) return;
    if (this.editing) this.edit(false);
    this.replaceTurns([]);
    notify("The conversation is cleared.", "Undo", () => this.replaceTurns([...turns, ...this.turns]));
  }

  replaceTurns(turns) {
    if (this.running) return;
    this.turns = turns;
    this.keep();
    this.drawAll();
    byId("message").focus();
  }

  escape() {
    if (hideTokenInfo()) return;
    if (this.running) this.stop();
    else if (this.editing) this.edit(false);
    else if (!WIDE.matches && !byId("settings").hidden) this.showSettings(false), byId("settings-toggle").focus();
  }

  keep() {
    this.keptAt = Date.now();
    const kept = writeTurns(this.turns);
    byId("kept").textContent = kept
      ? "The conversation is kept in this browser only."
      : "This browser keeps nothing: the conversation is gone when the page is closed.";
  }

  export(kind) {
    const [type, write] = kind === "json" ? ["application/json", asJson] : ["text/markdown", asMarkdown];
    save(`conversation.${kind}`, type, write(this.turns, this.model ?? "pmpd-edge", this.settings.system));
  }

  // Drawing

  drawAll() {
    this.views = [];
    byId("turns").replaceChildren();
    for (const turn of this.turns) this.drawTurn(turn);
    this.offerActions();
  }

  drawTurn(turn) {
    const view = new TurnView(turn, this.look, { edit: () => this.edit(true), regenerate: () => this.regenerate() });
    this.views.push(view);
    byId("turns").append(view.root);
  }

  offerActions() {
    byId("welcome").hidden = this.turns.length > 0;
    for (const view of this.views) view.offer(view === this.views.at(-1), Boolean(this.running));
  }

  changeView() {
    write("view", byId("view").querySelector(":checked").value);
    this.showAll();
  }

  showAll() {
    for (const view of this.views) view.show(this.look);
  }

  showSettings(shown) {
    byId("settings").hidden = !shown;
    byId("settings-toggle").setAttribute("aria-expanded", String(shown));
  }
}

new App().start();
