/**
 * Making elements. Text becomes text nodes and never markup: what a model or a user writes stays what it is.
 */

/**
 * An element with attributes (true: without a value; false, null: none) and children, elements or strings.
 * @param {string} tag
 * @param {Object<string, string | number | boolean | null>} attributes
 * @param {...(Node | string)} children
 */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false && value !== null) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

/** A button that does something; the form that it may be in is not sent. */
export function button(label, action, attributes = {}) {
  const made = element("button", { type: "button", ...attributes }, label);
  made.addEventListener("click", action);
  return made;
}

/** The element with an id of index.html. */
export const byId = (id) => document.getElementById(id);

/** Put text on the clipboard; browsers without a clipboard on plain HTTP get it through a selection. */
export async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const focused = document.activeElement;
  const holder = element("textarea", { class: "unseen", "aria-hidden": "true" }, text);
  document.body.append(holder);
  holder.select();
  document.execCommand("copy");
  holder.remove();
  focused?.focus();
}

/** Say something to screen readers, once they have finished what they are saying. */
export function announce(text) {
  byId("announcer").textContent = text;
}

/** Show a line above the message, with at most one thing that can be done about it; empty: hide it. */
export function notify(text, label = "", action = () => {}) {
  const notice = byId("notice");
  notice.querySelector("p").textContent = text;
  const made = button(label, () => (notify(""), action()), { hidden: !label });
  notice.querySelector("button").replaceWith(made);
  notice.hidden = !text;
  announce(text);
}
