/**
 * Keeps the end of a growing element in sight, unless someone has scrolled away from it.
 */

const NEAR = 48; // pixels from the end that count as being there

/** @param {HTMLElement} frame that scrolls @param {HTMLElement} content that grows in it */
export function followEnd(frame, content) {
  let following = true;
  const atEnd = () => frame.scrollHeight - frame.scrollTop - frame.clientHeight < NEAR;
  frame.addEventListener("scroll", () => (following = atEnd()));
  const follow = () => following && frame.scrollTo({ top: frame.scrollHeight, behavior: "instant" });
  const observer = new ResizeObserver(follow);
  observer.observe(content);
  observer.observe(frame);
  return () => ((following = true), follow());
}
