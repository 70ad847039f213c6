/**
 * What this browser keeps between visits, and for a tab the API key. Nothing is sent anywhere.
 *
 * Browsers may refuse (private windows, a full store): then values live as long as the page.
 */

const PREFIX = "pmpd-edge.";
const MOST_CHARACTERS = 2_000_000; // of a conversation; browsers give a site about five million

const memory = new Map(); // what the browser did not take

/** A kept value, or null. */
export function read(name, area = "localStorage") {
  if (memory.has(name)) return memory.get(name);
  try {
    return JSON.parse(window[area].getItem(PREFIX + name));
  } catch {
    return null;
  }
}

/** Keep a value; false where the browser does not take it, and it is gone with the page. */
export function write(name, value, area = "localStorage") {
  try {
    window[area].setItem(PREFIX + name, JSON.stringify(value));
    memory.delete(name);
    return true;
  } catch {
    memory.set(name, value);
    return false;
  }
}

export const readKey = () => read("key", "sessionStorage") ?? "";
export const writeKey = (key) => write("key", key, "sessionStorage");

/** The turns that were kept; answers that were under way are taken for stopped ones. */
export function readTurns() {
  const turns = read("turns");
  if (!Array.isArray(turns)) return [];
  for (const answer of turns.flatMap((turn) => turn.answers)) answer.finish ||= "stopped";
  return turns;
}

/**
 * Keep the turns; where they are too long, first without the tokens of old answers, then without old turns.
 * @returns {boolean} whether the browser took them.
 */
export function writeTurns(turns, most = MOST_CHARACTERS) {
  const kept = shorten(turns, most);
  return write("turns", kept) || (kept.length > 1 && most > 1000 && writeTurns(turns, most / 2));
}

/** As much of the turns as fits into `most` characters of JSON, the newest turn in any case. */
export function shorten(turns, most) {
  const kept = turns.map((turn) => ({ ...turn, answers: turn.answers.map((answer) => ({ ...answer })) }));
  const size = (value) => JSON.stringify(value).length;
  let total = size(kept);
  for (const answer of kept.slice(0, -1).flatMap((turn) => turn.answers)) {
    if (total <= most) break;
    total -= size(answer.tokens) - size([]);
    answer.tokens = [];
  }
  while (total > most && kept.length > 1) total -= size(kept.shift()) + 1;
  return kept;
}
