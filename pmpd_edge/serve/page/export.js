/**
 * The conversation as a file: JSON with every token's precision, or Markdown for people.
 */

import { ending, figures, precisionsOf } from "./conversation.js";
import { element } from "./dom.js";
import { inWords } from "./timeline.js";

/** @param {import("./conversation.js").Turn[]} turns */
export function asJson(turns, model, system) {
  const about = { format: "pmpd-edge-conversation", version: 1, model, system, exported: new Date().toISOString() };
  return `${JSON.stringify({ ...about, turns }, null, 1)}\n`;
}

/** @param {import("./conversation.js").Turn[]} turns */
export function asMarkdown(turns, model, system) {
  const parts = [`# ${model}`, ...(system ? ["## System", system] : [])];
  for (const turn of turns) parts.push("## You", turn.message, ...turn.answers.flatMap(answerParts));
  return `${parts.join("\n\n")}\n`;
}

function answerParts(answer) {
  const about = [inWords(precisionsOf(answer)), ...figures(answer), ending(answer)].filter(Boolean).join("; ");
  const name = answer.scheduler ? `${answer.method}, ${answer.scheduler}` : answer.method;
  return [`## ${name}`, answer.text.trim(), `*${about}*`];
}

/** Have the browser save a text. */
export function save(name, type, text) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  element("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000); // some browsers read it later
}
