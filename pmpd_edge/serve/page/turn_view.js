/**
 * Draws one turn: the user's message and the answers to it, side by side where there are several.
 */

import { AnswerView } from "./answer_view.js";
import { button, element } from "./dom.js";

export class TurnView {
  /**
   * @param {import("./conversation.js").Turn} turn
   * @param {object} look how answers are drawn
   * @param {{edit: () => void, regenerate: () => void}} actions that the last turn offers
   */
  constructor(turn, look, actions) {
    this.turn = turn;
    this.answers = element("div", { class: "answers" });
    this.edit = button("Edit", actions.edit, { class: "quiet" });
    this.regenerate = button("Regenerate", actions.regenerate, { class: "quiet" });
    this.root = element(
      "li",
      { class: "turn" },
      element("div", { class: "message" }, element("p", { dir: "auto" }, turn.message), this.edit),
      this.answers,
      this.regenerate,
    );
    this.begin(look);
  }

  /** Draw the turn's answers from the beginning. */
  begin(look) {
    this.views = this.turn.answers.map((answer) => new AnswerView(answer, look));
    this.answers.replaceChildren(...this.views.map((view) => view.root));
    this.answers.classList.toggle("several", this.views.length > 1);
  }

  show(look) {
    for (const view of this.views) view.show(look);
  }

  /** Only the last turn can be changed, and only while no answer is made. */
  offer(isLast, isBusy) {
    for (const action of [this.edit, this.regenerate]) {
      action.hidden = !isLast;
      action.disabled = isBusy;
    }
  }
}
