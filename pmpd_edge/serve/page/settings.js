/**
 * The settings panel: how answers are made, with what the server offers and what it takes where a field is left empty.
 */

import { byId, element } from "./dom.js";
import { read, write } from "./storage.js";

export const SIDE_BY_SIDE = "side by side";
const COMPARED = ["pmpd", "high", "low"];

const NOTES = {
  pmpd: "Begins high and steps down as the scheduler says.",
  high: "Everything at the highest precision.",
  low: "Everything at the lowest precision.",
  lossless: "The highest precision's answer; the lowest drafts it where that is quicker.",
  [SIDE_BY_SIDE]: "The same message to pmpd, high and low, one after the other.",
};

// Fields with numbers: id, and the request's name.
const SAMPLING = { temperature: "temperature", "top-p": "top_p", "top-k": "top_k", "min-p": "min_p", seed: "seed" };
const KEPT = [...Object.keys(SAMPLING), "scheduler", "high-steps", "max-new-tokens", "system"];

export class Settings {
  constructor() {
    this.form = byId("options");
    this.props = {};
    const kept = read("settings") ?? {};
    this.kept = typeof kept === "object" ? kept : {};
    this.offerMethods(COMPARED);
    for (const id of KEPT) byId(id).value = this.kept[id] ?? "";
    this.form.addEventListener("submit", (event) => event.preventDefault());
    this.form.addEventListener("input", () => this.changed());
    this.changed();
  }

  /** Offer what the server has. */
  offer(props) {
    this.props = props;
    this.offerMethods(props.methods ?? COMPARED);
    this.offerSchedulers(props.schedulers ?? ["static"]);
    const { defaults = {}, schedule = [] } = props;
    for (const [id, name] of Object.entries(SAMPLING)) {
      if (defaults[name] !== undefined && defaults[name] !== null) byId(id).placeholder = defaults[name];
    }
    byId("max-new-tokens").placeholder = props.max_new_tokens;
    if (schedule.length > 1) byId("high-steps").placeholder = `as scheduled (${schedule[1].step - 1})`;
    this.changed();
  }

  offerMethods(methods) {
    const all = COMPARED.every((method) => methods.includes(method)) ? [...methods, SIDE_BY_SIDE] : methods;
    const chosen = all.includes(this.kept.method) ? this.kept.method : all[0];
    const choice = (method) => {
      const radio = element("input", { type: "radio", name: "method", value: method, checked: method === chosen });
      return element("label", {}, radio, element("span", {}, method));
    };
    byId("methods").replaceChildren(...all.map(choice));
  }

  offerSchedulers(names) {
    const chosen = names.includes(this.kept.scheduler) ? this.kept.scheduler : names[0];
    const option = (name) => element("option", { value: name, selected: name === chosen }, name);
    byId("scheduler").replaceChildren(...names.map(option));
  }

  get method() {
    return this.form.elements.method.value;
  }

  /** The methods that answer a message. */
  get methods() {
    return this.method === SIDE_BY_SIDE ? COMPARED : [this.method];
  }

  get scheduler() {
    return byId("scheduler").value || "static";
  }

  get system() {
    return byId("system").value.trim();
  }

  /** Whether all fields can be sent; where not, the browser says what is wrong with which. */
  check() {
    return this.form.reportValidity();
  }

  /** The request's fields for a method, without its messages. */
  request(method) {
    const how = { scheduler: this.scheduler, high_steps: number("high-steps") };
    const pmpd = { method, ...(method === "pmpd" ? how : {}) };
    const { model, max_new_tokens: most } = this.props;
    const request = { model, max_tokens: number("max-new-tokens") ?? most, pmpd };
    for (const [id, name] of Object.entries(SAMPLING)) request[name] = number(id);
    return Object.fromEntries(Object.entries(request).filter(([, value]) => value !== null && value !== undefined));
  }

  changed() {
    const scheduled = this.methods.includes("pmpd");
    byId("scheduler").disabled = !scheduled;
    byId("high-steps").disabled = !scheduled;
    byId("method-note").textContent = NOTES[this.method] ?? "";
    const values = Object.fromEntries(KEPT.map((id) => [id, byId(id).value]));
    // A field that has no choice yet does not lose the one that was kept.
    this.kept = { ...values, scheduler: values.scheduler || this.kept.scheduler, method: this.method };
    write("settings", this.kept);
  }
}

function number(id) {
  const { value } = byId(id);
  return value === "" ? null : Number(value);
}
