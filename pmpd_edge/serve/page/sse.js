/**
 * Server-sent events out of a response's bytes. Knows nothing of what they mean.
 */

/**
 * The data of each event, in order; what an ended connection leaves incomplete is dropped, as the standard says.
 * @param {ReadableStream<Uint8Array>} body
 */
export async function* eventData(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let text = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      // A line ends with \r\n, \n or \r; a \r at the end may be half of \r\n.
      text = (text + decoder.decode(value, { stream: true })).replace(/\r\n|\r(?!$)/g, "\n");
      const events = text.split("\n\n");
      text = events.pop();
      for (const event of events) {
        const data = dataOf(event);
        if (data !== null) yield data;
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // a caller that has enough leaves the connection
  }
}

function dataOf(event) {
  const lines = event.split("\n").filter((line) => line.startsWith("data:"));
  return lines.length ? lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n") : null;
}
