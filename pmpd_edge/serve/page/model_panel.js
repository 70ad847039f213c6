/**
 * What the server says about its model: name, levels and their memory, schedule, and the legend of precisions.
 */

import { byId, element } from "./dom.js";

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

/** A number of bytes for people. */
function size(bytes) {
  const power = Math.min(Math.floor(Math.log2(Math.max(bytes, 1)) / 10), UNITS.length - 1);
  const scaled = bytes / 1024 ** power;
  return `${scaled.toFixed(scaled < 10 && power ? 1 : 0)} ${UNITS[power]}`;
}

/**
 * @param {object} props what GET /props gave
 * @param {import("./levels.js").Levels} levels made of it
 */
export function showModel(props, levels) {
  byId("model-name").textContent = props.model;
  document.title = `${props.model} – pmpd-edge`;
  byId("legend").replaceChildren(...levels.all.map((level) => legend(level, levels)));
  byId("levels").tBodies[0].replaceChildren(...levels.all.map((level) => row(level, levels)));
  byId("memory").textContent = memory(props.memory);
  byId("schedule").textContent = schedule(props);
}

function legend({ precision }, levels) {
  return element("li", {}, element("span", { class: `token ${levels.rank(precision)}` }, `${precision} bits`));
}

function row(level, levels) {
  const bits = element("span", { class: `token ${levels.rank(level.precision)}` }, String(level.precision));
  const { types, bpw, bytes, loaded } = level;
  const cells = [types.join(" + "), `${bpw.toFixed(2)} bpw`, size(bytes), loaded ? "yes" : "no"];
  return element("tr", {}, element("th", { scope: "row" }, bits), ...cells.map((cell) => element("td", {}, cell)));
}

function memory(use) {
  if (!use?.resident) return "";
  const own = use.anonymous ? `, ${size(use.anonymous)} of it its own` : "";
  return `The server uses ${size(use.resident)} of memory${own}.`;
}

function schedule({ prefill, schedule: switches = [], n_ctx: context }) {
  const steps = switches.map(({ step, precision }) => `${precision} from step ${step}`).join(", ");
  return `Schedule: prompt at ${prefill} bits${steps ? `, then ${steps}` : ""}. Context: ${context} tokens.`;
}
