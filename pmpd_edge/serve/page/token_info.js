/**
 * What is told about the token under the pointer, or about the one that the arrow keys have reached: its precision and
 * probability. Tokens are elements of the class `token`, with both in their data.
 */

import { announce, byId } from "./dom.js";

const GAP = 6; // pixels between a token and what is told about it

const percent = (probability) => `${(100 * probability).toFixed(probability < 0.1 ? 1 : 0)} %`;

/**
 * Tell about the tokens in an element.
 * @param {HTMLElement} container
 * @param {() => import("./levels.js").Levels} levels of now
 */
export function tellAboutTokens(container, levels) {
  const at = (event) => event.target.closest?.(".tokens .token");
  // Of the whole page: a finger that is lifted leaves the token, but what it has shown is to stay until the next touch.
  document.addEventListener("pointerover", (event) => (at(event) ? show(at(event), levels()) : hide()));
  container.addEventListener("focusout", (event) => leave(event.target));
  container.addEventListener("keydown", (event) => move(event, levels()));
}

/** Hide it; false where nothing was shown. */
export function hide() {
  const shown = !byId("token-info").hidden;
  byId("token-info").hidden = true;
  return shown;
}

function move(event, levels) {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!step || !event.target.matches(".tokens") || event.altKey || event.ctrlKey || event.metaKey) return;
  const tokens = [...event.target.querySelectorAll(".token")];
  const now = tokens.findIndex((token) => token.matches(".reached"));
  const next = tokens[Math.min(Math.max(now + step, 0), tokens.length - 1)];
  event.preventDefault();
  if (!next) return;
  leave(event.target);
  next.classList.add("reached");
  next.scrollIntoView({ block: "nearest" });
  announce(show(next, levels));
}

function leave(tokens) {
  tokens.querySelector?.(".token.reached")?.classList.remove("reached");
  hide();
}

function show(token, levels) {
  const { precision, probability } = token.dataset;
  const info = byId("token-info");
  const known = probability ? `, probability ${percent(probability)}` : "";
  const drafted = token.matches(".drafted") ? ", drafted by a lower level" : "";
  info.textContent = `${JSON.stringify(token.textContent)}: ${levels.describe(Number(precision))}${known}${drafted}`;
  info.hidden = false;
  place(info, token.getClientRects()[0] ?? token.getBoundingClientRect());
  return info.textContent;
}

/** Above the token, or below it where there is no room, within the window. */
function place(info, token) {
  const { width, height } = info.getBoundingClientRect();
  const left = Math.max(GAP, Math.min(token.left, document.documentElement.clientWidth - width - GAP));
  const above = token.top - height - GAP;
  info.style.left = `${left}px`;
  info.style.top = `${above >= 0 ? above : token.bottom + GAP}px`;
}
