/**
 * Markdown within a paragraph: code, emphasis, links. Makes nodes, never markup from text; whatever is not known here
 * stays the text that it is.
 *
 * Time is linear in the text: a search for a closing mark that found none is not repeated further on.
 */

import { element } from "./dom.js";

const MARKS = { "***": ["strong", "em"], "**": ["strong"], __: ["strong"], "~~": ["del"], "*": ["em"], _: ["em"] };
const SAFE = new Set(["http:", "https:", "mailto:"]);
const DEEPEST = 8; // elements within elements; more is text
const LONGEST_LABEL = 1000;

const ESCAPE = /\\([!-/:-@[-`{-~])/y;
const BREAK = /(?: {2,}|\\)?\n/y;
const TARGET = /\]\(\s*<?([^\s<>()]*(?:\([^\s<>()]*\)[^\s<>()]*)*)>?(?:\s+"[^"\n]*")?\s*\)/y;
const ADDRESS = /<((?:https?:\/\/|mailto:)[^\s<>]+)>/y;
const BARE = /https?:\/\/[^\s<>"'`*]*[^\s<>"'`*.,:;!?)\]}_~]/y;

/** The nodes of a text; `inLink` is the text of a link, which has no others in it. */
export function inline(text, depth = 0, inLink = false) {
  return depth > DEEPEST ? [text] : new Reader(text, depth, inLink).nodes();
}

/** A link, or text where the address is none that a click may follow. */
function link(address, ...label) {
  const url = URL.canParse(address) ? new URL(address) : null;
  if (!url || !SAFE.has(url.protocol)) return element("span", {}, ...label);
  return element("a", { href: url.href, rel: "noopener noreferrer nofollow", target: "_blank" }, ...label);
}

class Reader {
  constructor(text, depth, inLink) {
    this.text = text;
    this.depth = depth;
    this.inLink = inLink;
    this.at = 0;
    this.unclosed = new Set(); // marks that are not closed after here
  }

  nodes() {
    const nodes = [];
    let plain = "";
    while (this.at < this.text.length) {
      const node = this.special();
      if (node instanceof Node) {
        nodes.push(plain, node);
        plain = "";
      } else {
        plain += node ?? this.text[this.at++];
      }
    }
    return [...nodes, plain].filter((node) => node !== "");
  }

  /** What begins here: a node, characters that stand for themselves, or null. The place is behind it then. */
  special() {
    switch (this.text[this.at]) {
      case "\\":
        return this.match(ESCAPE)?.[1] ?? this.lineBreak();
      case " ":
      case "\n":
        return this.lineBreak() ?? this.skip(this.run(" "));
      case "`":
        return this.code();
      case "*":
      case "_":
      case "~":
        return this.emphasis();
      case "!":
        return this.text[this.at + 1] === "[" ? this.labelled(2) : null; // an image: its address is not loaded
      case "[":
        return this.labelled(1);
      case "<":
        return this.address(ADDRESS);
      case "h":
        return /\w/.test(this.text[this.at - 1] ?? "") ? null : this.address(BARE);
      default:
        return null;
    }
  }

  match(pattern, at = this.at) {
    pattern.lastIndex = at;
    const match = pattern.exec(this.text);
    if (match) this.at = pattern.lastIndex;
    return match;
  }

  lineBreak() {
    return this.match(BREAK) && element("br");
  }

  address(pattern) {
    const match = this.inLink ? null : this.match(pattern);
    return match && link(match[1] ?? match[0], match[1] ?? match[0]);
  }

  code() {
    const fence = this.run("`");
    const end = this.closing(fence, this.at + fence.length, () => true);
    if (end < 0) return this.skip(fence);
    const inner = this.text.slice(this.at + fence.length, end).replaceAll("\n", " ");
    this.at = end + fence.length;
    return element("code", {}, /^ .*\S.* $/.test(inner) ? inner.slice(1, -1) : inner);
  }

  emphasis() {
    const run = this.run(this.text[this.at]);
    const start = this.at + run.length;
    const inWord = run[0] === "_" && /\w/.test(this.text[this.at - 1] ?? "");
    if (!(run in MARKS) || inWord || !/\S/.test(this.text[start] ?? "")) return this.skip(run);
    const end = this.closing(run, start + 1, (at) => this.closes(run, at));
    if (end < 0) return this.skip(run);
    this.at = end + run.length;
    const inner = inline(this.text.slice(start, end), this.depth + 1, this.inLink);
    return MARKS[run].reduceRight((nodes, tag) => [element(tag, {}, ...nodes)], inner)[0];
  }

  closes(run, at) {
    const afterWord = run[0] !== "_" || !/\w/.test(this.text[at + run.length] ?? "");
    return afterWord && /[^\s\\]/.test(this.text[at - 1]);
  }

  labelled(width) {
    const start = this.at + width;
    const end = this.inLink ? -1 : this.text.slice(start, start + LONGEST_LABEL).indexOf("](");
    const match = end < 0 ? null : this.match(TARGET, start + end);
    return match && link(match[1], ...inline(this.text.slice(start, start + end), this.depth + 1, true));
  }

  /** Where a mark of just this length is closed, from a place on which is not within one; -1 where it is not. */
  closing(mark, from, closes) {
    if (this.unclosed.has(mark)) return -1;
    for (let at = this.text.indexOf(mark, from); at >= 0; at = this.text.indexOf(mark, at)) {
      const length = this.runAt(mark[0], at);
      if (length === mark.length && closes(at)) return at;
      at += length;
    }
    this.unclosed.add(mark);
    return -1;
  }

  run(character) {
    return character.repeat(this.runAt(character, this.at));
  }

  runAt(character, at) {
    let end = at;
    while (this.text[end] === character) end += 1;
    return end - at;
  }

  skip(text) {
    this.at += text.length;
    return text;
  }
}
