/**
 * Draws one answer while it grows: its text (token by token, or as Markdown), the timeline and the figures.
 */

import { announce, button, copyText, element } from "./dom.js";
import { ending, figures, precisionsOf } from "./conversation.js";
import { MarkdownView } from "./markdown.js";
import { drawTimeline, inWords, newTimeline } from "./timeline.js";

export class AnswerView {
  /**
   * @param {import("./conversation.js").Answer} answer
   * @param {{levels: import("./levels.js").Levels, formatted: boolean}} look
   */
  constructor(answer, look) {
    this.answer = answer;
    this.state = element("span", { class: "state muted" });
    this.body = element("div", { class: "body", dir: "auto" });
    this.timeline = newTimeline();
    this.switches = element("figcaption", { class: "muted" });
    this.figures = element("p", { class: "figures muted" });
    this.root = element(
      "article",
      { class: "answer", "aria-label": `Answer: ${answer.method}`, "data-method": answer.method },
      heading(answer),
      this.body,
      element("figure", {}, this.timeline, this.switches),
      this.figures,
      element("footer", {}, button("Copy", () => this.copy(), { class: "quiet" }), this.state),
    );
    this.show(look);
  }

  /** Draw it anew, another way. */
  show(look) {
    this.look = look;
    this.drawn = 0; // tokens
    this.markdown = null;
    this.body.replaceChildren();
    this.draw();
  }

  /** Draw what has changed; many changes between two frames are drawn once. */
  update() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.draw();
    });
  }

  draw() {
    const { answer } = this;
    if (this.look.formatted) this.drawMarkdown();
    else this.drawTokens();
    const precisions = precisionsOf(answer);
    drawTimeline(this.timeline, precisions, this.look.levels);
    this.switches.textContent = precisions.length ? inWords(precisions) : "";
    this.figures.textContent = figures(answer).join(" · ");
    this.root.setAttribute("aria-busy", String(!answer.finish));
    this.state.textContent = answer.finish ? ending(answer) : answer.text ? "answering" : "waiting";
    this.state.classList.toggle("error", answer.finish === "error");
  }

  drawMarkdown() {
    this.markdown ??= new MarkdownView(this.body);
    this.markdown.show(this.answer.text);
  }

  drawTokens() {
    const { answer } = this;
    if (!this.drawn) this.body.replaceChildren(this.tokens = newTokens());
    if (answer.text && !answer.tokens.length) this.tokens.textContent = answer.text; // kept without its tokens
    const grown = answer.tokens.slice(this.drawn).map((token) => this.token(token));
    if (!this.drawn && grown.length) grown[0].textContent = grown[0].textContent.trimStart(); // often a space
    this.tokens.append(...grown);
    this.drawn = answer.tokens.length;
  }

  token({ text, precision, probability, drafted }) {
    const data = { "data-precision": precision, "data-probability": probability ?? null };
    const kind = `token ${this.look.levels.rank(precision)}${drafted ? " drafted" : ""}`;
    return element("span", { class: kind, ...data }, text);
  }

  async copy() {
    await copyText(this.answer.text);
    announce("Copied");
  }
}

const heading = ({ method, scheduler }) =>
  element("header", {}, element("h2", {}, method), element("span", { class: "muted" }, scheduler ?? ""));

const newTokens = () =>
  element("div", {
    class: "tokens",
    tabindex: 0,
    role: "group",
    "aria-label": "Text; the arrow keys go from token to token",
  });
