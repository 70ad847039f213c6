/**
 * The server's API: what the page asks it, and its errors in words. Knows nothing of conversations or elements.
 */

import { eventData } from "./sse.js";
import { readKey } from "./storage.js";

/** What the server refused, or that it is not there; status is 0 then. */
export class ApiError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/** What the server runs: GET /props. */
export async function getProps() {
  return (await ask("props")).json();
}

/**
 * The chunks of an answer: POST /v1/chat/completions, streamed.
 * @param {object} request OpenAI's fields and `pmpd`
 * @param {AbortSignal} signal ends it
 * @throws {ApiError} the server refused, or the connection ended before the answer did.
 */
export async function* streamChat(request, signal) {
  const response = await ask("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...request, stream: true }),
    signal,
  });
  let finished = false;
  for await (const data of connected(eventData(response.body), signal)) {
    if (data === "[DONE]") break;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(chunk.error.message);
    finished ||= Boolean(chunk.choices?.[0]?.finish_reason);
    yield chunk;
  }
  if (!finished) throw new ApiError("The connection ended before the answer did.");
}

async function* connected(events, signal) {
  try {
    yield* events;
  } catch (error) {
    signal.throwIfAborted();
    throw new ApiError(`The connection was lost (${error.message}).`);
  }
}

/** Addresses are relative, so that the page works behind a proxy's prefix too. */
async function ask(path, options = {}) {
  const key = readKey();
  const headers = key ? { ...options.headers, Authorization: `Bearer ${key}` } : options.headers;
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    options.signal?.throwIfAborted();
    throw new ApiError("The server does not answer. Is it still running?");
  }
  if (!response.ok) throw new ApiError(await refusal(response), response.status);
  return response;
}

async function refusal(response) {
  const retry = response.headers.get("Retry-After");
  if (response.status === 429) return `The server is busy. Try again${retry ? ` in ${retry} s` : " soon"}.`;
  if (response.status === 401) return "The server asks for an API key: see the settings.";
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered with status ${response.status}.`;
  }
}
