/**
 * Markdown in blocks: paragraphs, headings, lists, quotes, tables, rules and fenced code. HTML is text like any other.
 *
 * `parse` makes blocks, data only; `draw` makes elements of them; `MarkdownView` keeps those that stay as they are
 * while the text grows.
 */

import { button, copyText, element } from "./dom.js";
import { inline } from "./markdown_inline.js";

const FENCE = /^ {0,3}(`{3,}(?!`)(?!.*`)|~{3,})\s*(\S*)/;
const HEADING = /^ {0,3}(#{1,6})(?:\s+(.*))?$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(?:( +)(.*)|\s*)$/;
const DELIMITER = /^:?-+:?$/;
const DEEPEST = 12; // lists and quotes within each other; more is text

const FIRST_HEADING = 3; // the page has the first two
const isBlank = (line) => !line.trim();
const indentOf = (line) => line.length - line.trimStart().length;

/**
 * The blocks of lines. Each has a `kind`, and `lines`, its number of lines.
 * @param {string[]} lines
 */
function parse(lines, depth = 0) {
  const blocks = [];
  for (let at = 0; at < lines.length; at += blocks.at(-1).lines) blocks.push(blockAt(lines.slice(at), depth));
  return blocks;
}

function blockAt(lines, depth) {
  const [first] = lines;
  if (isBlank(first)) return { kind: "blank", lines: count(lines, 1, isBlank) };
  if (FENCE.test(first)) return fence(lines);
  if (HEADING.test(first)) return { kind: "heading", lines: 1, ...heading(first) };
  if (RULE.test(first)) return { kind: "rule", lines: 1 };
  if (depth < DEEPEST && QUOTE.test(first)) return quote(lines, depth);
  if (depth < DEEPEST && ITEM.test(first)) return list(lines, depth);
  if (isTable(lines)) return table(lines);
  return paragraph(lines);
}

/** Whether a line ends the paragraph above it. */
const interrupts = (line) => isBlank(line) || [FENCE, HEADING, RULE, QUOTE, ITEM].some((pattern) => pattern.test(line));

function count(lines, from, belongs) {
  let end = from;
  while (end < lines.length && belongs(lines[end], end)) end += 1;
  return end;
}

function fence(lines) {
  const [, mark, language] = FENCE.exec(lines[0]);
  const closes = (line) => line.trim().startsWith(mark) && !line.trim().replaceAll(mark[0], "");
  const end = count(lines, 1, (line) => !closes(line));
  const margin = new RegExp(`^ {0,${indentOf(lines[0])}}`);
  const code = lines.slice(1, end).map((line) => line.replace(margin, ""));
  return { kind: "code", lines: Math.min(end + 1, lines.length), language, text: code.join("\n") };
}

function heading(line) {
  const [, marks, text] = HEADING.exec(line);
  return { level: marks.length, text: (text ?? "").trim().replace(/(^|\s)#+$/, "") };
}

function quote(lines, depth) {
  const end = count(lines, 1, (line) => QUOTE.test(line) || !interrupts(line));
  const inner = lines.slice(0, end).map((line) => line.replace(QUOTE, ""));
  return { kind: "quote", lines: end, blocks: parse(inner, depth + 1) };
}

function list(lines, depth) {
  const [, , marker] = ITEM.exec(lines[0]);
  const items = [];
  let [end, loose] = [0, false];
  for (;;) {
    const match = end < lines.length && !RULE.test(lines[end]) && ITEM.exec(lines[end]);
    if (!match || match[2].at(-1) !== marker.at(-1)) break;
    const item = itemAt(lines.slice(end), match);
    items.push(parse(item.inner, depth + 1));
    end += item.lines;
    const next = count(lines, end, isBlank);
    const goesOn = next < lines.length && ITEM.exec(lines[next])?.[2].at(-1) === marker.at(-1);
    loose ||= item.inner.some(isBlank) || (goesOn && next > end);
    if (goesOn) end = next;
  }
  return { kind: "list", lines: end, start: /\d/.test(marker) ? parseInt(marker, 10) : null, loose, items };
}

function itemAt(lines, [, before, marker, space = " ", text = ""]) {
  const width = before.length + marker.length + (space.length > 4 ? 1 : space.length);
  const least = before.length + 2; // models often indent by two, whatever the marker's width
  const belongs = (line, at) => {
    if (isBlank(line)) return lines.slice(at + 1).find((later) => !isBlank(later))?.match(/^ */)[0].length >= least;
    return indentOf(line) >= least || (!isBlank(lines[at - 1]) && !interrupts(line));
  };
  const end = count(lines, 1, belongs);
  const margin = new RegExp(`^ {0,${width}}`);
  return { lines: end, inner: [text, ...lines.slice(1, end).map((line) => line.replace(margin, ""))] };
}

function isTable([head, delimiters = ""]) {
  if (!head.includes("|") || !delimiters.includes("-")) return false;
  const marks = cells(delimiters);
  return marks.every((mark) => DELIMITER.test(mark)) && marks.length === cells(head).length;
}

function table(lines) {
  const end = count(lines, 2, (line) => line.includes("|") && !isBlank(line));
  const align = (mark) => (!mark.endsWith(":") ? "left" : mark.startsWith(":") ? "center" : "right");
  const aligns = cells(lines[1]).map(align);
  const rows = [lines[0], ...lines.slice(2, end)].map((line) => aligns.map((_, i) => cells(line)[i] ?? ""));
  return { kind: "table", lines: end, aligns, rows };
}

function cells(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function paragraph(lines) {
  const end = count(lines, 1, (line, at) => !interrupts(line) && !isTable(lines.slice(at, at + 2)));
  const text = lines.slice(0, end).map((line) => line.trimStart());
  return { kind: "paragraph", lines: end, text: text.join("\n").trimEnd() };
}

const DRAW = {
  heading: ({ level, text }) => element(`h${Math.min(level + FIRST_HEADING - 1, 6)}`, {}, ...inline(text)),
  rule: () => element("hr"),
  quote: ({ blocks }) => element("blockquote", {}, ...drawAll(blocks)),
  paragraph: ({ text }) => element("p", {}, ...inline(text)),
  code: ({ language, text }) => {
    const copy = button("Copy", () => copyText(text), { class: "quiet", "aria-label": "Copy the code" });
    const label = language ? `Code: ${language}` : "Code";
    const code = element("pre", { tabindex: 0, role: "group", "aria-label": label }, element("code", {}, text));
    return element("div", { class: "code" }, element("div", { class: "code-head" }, language, copy), code);
  },
  list: ({ start, loose, items }) => {
    const drawn = items.map((blocks) => element("li", {}, ...(loose ? drawAll(blocks) : blocks.flatMap(drawTight))));
    return element(start === null ? "ul" : "ol", { start: start === 1 ? null : start }, ...drawn);
  },
  table: ({ aligns, rows: [head, ...body] }) => {
    const row = (texts, tag) =>
      element("tr", {}, ...texts.map((text, i) => element(tag, { class: aligns[i] }, ...inline(text))));
    const rows = body.map((texts) => row(texts, "td"));
    const drawn = element("table", {}, element("thead", {}, row(head, "th")), element("tbody", {}, ...rows));
    return element("div", { class: "table", tabindex: 0, role: "group", "aria-label": "Table" }, drawn);
  },
};

/** The element of a block that is not blank. */
const draw = (block) => DRAW[block.kind](block);

const drawAll = (blocks) => blocks.filter((block) => block.kind !== "blank").map(draw);

const drawTight = (block) => (block.kind === "paragraph" ? inline(block.text) : drawAll([block]));

/** Draws a text that grows into an element, block by block. */
export class MarkdownView {
  constructor(into) {
    this.into = into;
    this.sources = []; // of the blocks that are drawn
  }

  /** Draw a text; blocks that are as they were are left alone, so that a selection in them stays. */
  show(text) {
    const lines = text.replaceAll("\t", "    ").split(/\r\n|\n|\r/);
    const blocks = [];
    let at = 0;
    for (const block of parse(lines)) {
      if (block.kind !== "blank") blocks.push([lines.slice(at, at + block.lines).join("\n"), block]);
      at += block.lines;
    }
    const same = blocks.findIndex(([source], i) => source !== this.sources[i]);
    const kept = same < 0 ? blocks.length : same;
    while (this.into.childNodes.length > kept) this.into.lastChild.remove();
    this.into.append(...blocks.slice(kept).map(([, block]) => draw(block)));
    this.sources = blocks.map(([source]) => source);
  }
}
