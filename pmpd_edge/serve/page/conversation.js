/**
 * A conversation as data: turns of a user's message and the answers to it, one for each method that was asked.
 *
 * Knows nothing of elements, of storage or of the network.
 *
 * @typedef {{text: string, precision: number, probability: number, drafted?: boolean}} Token drafted: by a lower level
 * @typedef {{
 *   method: string, scheduler: string | null, text: string, tokens: Token[], speed: number | null,
 *   bitwidth: number | null, bpw: number | null, precisions: number[] | null, drafting: object | null, timings: object | null,
 *   finish: string, error: string,
 * }} Answer `finish` is empty while it grows, then the server's reason (`stop`, `length`, ...), `stopped` or `error`;
 *   `precisions` are those of all sampled tokens, known at the end; speed is in decode tokens/s.
 * @typedef {{message: string, answers: Answer[]}} Turn
 */

/** An answer that has not begun. */
export function newAnswer(method, scheduler) {
  return {
    method,
    scheduler: method === "pmpd" ? scheduler : null,
    text: "",
    tokens: [],
    speed: null,
    bitwidth: null,
    bpw: null,
    precisions: null,
    drafting: null,
    timings: null,
    finish: "",
    error: "",
  };
}

/** Add a chunk of the server's to an answer. */
export function addChunk(answer, chunk) {
  const [choice] = chunk.choices ?? [];
  const pmpd = chunk.pmpd ?? {};
  answer.text += choice?.delta?.content ?? "";
  if (!pmpd.precisions) answer.tokens.push(...(pmpd.tokens ?? []).filter((token) => token.text));
  answer.speed = chunk.timings?.predicted_per_second ?? pmpd.decode_tokens_per_second ?? answer.speed;
  answer.bitwidth = pmpd.average_bitwidth ?? answer.bitwidth;
  answer.bpw = pmpd.average_bpw ?? answer.bpw;
  answer.precisions = pmpd.precisions ?? answer.precisions;
  answer.drafting = pmpd.drafting ?? answer.drafting;
  answer.timings = chunk.timings ?? answer.timings;
  answer.finish = choice?.finish_reason ?? answer.finish;
}

/** Precision of every token so far. */
export const precisionsOf = (answer) => answer.precisions ?? answer.tokens.map((token) => token.precision);

/**
 * What a method is sent: each method goes on with its own answers where it gave some.
 * @param {Turn[]} turns up to and with the one to answer
 */
export function messagesFor(turns, method, system) {
  const messages = system ? [{ role: "system", content: system }] : [];
  for (const turn of turns.slice(0, -1)) {
    const answer = turn.answers.find((given) => given.method === method) ?? turn.answers[0];
    if (!answer?.text) continue; // templates want answers between messages
    messages.push({ role: "user", content: turn.message }, { role: "assistant", content: answer.text });
  }
  return [...messages, { role: "user", content: turns.at(-1).message }];
}

/** Why an answer ended, where that is not plain. */
export function ending(answer) {
  const reasons = { length: "cut at the most new tokens", stopped: "stopped", error: answer.error };
  return reasons[answer.finish] ?? "";
}

/** An answer's figures in words, each short. */
export function figures(answer) {
  const { timings } = answer;
  const read = (n) => {
    const kept = timings.prompt_reused_n;
    return `prompt ${n + kept} tokens (${kept} kept) in ${timings.prompt_ms.toFixed(0)} ms`;
  };
  const known = [
    [timings?.predicted_n ?? (answer.tokens.length || null), (n) => (n === 1 ? "1 token" : `${n} tokens`)],
    [answer.speed, (speed) => `${speed.toFixed(1)} tokens/s`],
    [answer.bitwidth, (bits) => `${bits.toFixed(2)} bits on average`],
    [answer.bpw, (bpw) => `${bpw.toFixed(2)} bpw`],
    [answer.drafting?.acceptance, (kept) => `${(100 * kept).toFixed(0)} % of the drafts kept`],
    [timings?.prompt_n, read],
  ];
  return known.filter(([value]) => value !== null && value !== undefined).map(([value, say]) => say(value));
}
