/**
 * The precision of an answer's tokens over time, as a drawing: a bar for each stretch, as high as its bits and as wide
 * as its tokens are many.
 */

import { runs } from "./levels.js";

const SVG = "http://www.w3.org/2000/svg";
const TOKEN_WIDTH = 4; // pixels, while there is room
const HEIGHT = 24;
const MOST_WORDS = 5; // switches that are told one by one

/** An empty drawing. */
export function newTimeline() {
  const drawing = document.createElementNS(SVG, "svg");
  set(drawing, { class: "timeline", role: "img", height: HEIGHT, width: 0, preserveAspectRatio: "none" });
  return drawing;
}

/**
 * Draw the precisions of the tokens so far.
 * @param {SVGElement} drawing made by newTimeline
 * @param {number[]} precisions
 * @param {import("./levels.js").Levels} levels
 */
export function drawTimeline(drawing, precisions, levels) {
  const highest = Math.max(...levels.all.map((level) => level.precision), ...precisions.slice(0, 1), 1);
  const width = Math.max(precisions.length, 1);
  set(drawing, { viewBox: `0 0 ${width} ${highest}`, width: precisions.length * TOKEN_WIDTH });
  set(drawing, { "aria-label": inWords(precisions) });
  drawing.replaceChildren(
    ...runs(precisions).map(({ precision, start, count }) => {
      const bar = document.createElementNS(SVG, "rect");
      const height = Math.min(precision, highest);
      return set(bar, { class: levels.rank(precision), x: start, y: highest - height, width: count, height });
    }),
  );
}

/** The same for those who do not see it, and for a line of text: "8 bits, 4 from token 7, 2 from token 12". */
export function inWords(precisions) {
  const [first, ...later] = runs(precisions);
  if (!first) return "No tokens yet";
  if (later.length > MOST_WORDS) return `${first.precision} bits, then ${later.length} switches`;
  return [`${first.precision} bits`, ...later.map((run) => `${run.precision} from token ${run.start + 1}`)].join(", ");
}

function set(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}
