/**
 * The precisions of a bundle, from the highest to the lowest, and how a token's precision is named and marked.
 */

export class Levels {
  /** @param {{precision: number, types: string[]}[]} levels as GET /props gives them; none: not known yet. */
  constructor(levels = []) {
    this.all = [...levels].sort((a, b) => b.precision - a.precision);
    this.highest = this.all[0]?.precision ?? Infinity;
    this.lowest = this.all.length > 1 ? this.all.at(-1).precision : -Infinity;
  }

  /** The style of a precision: `high`, `middle` or `low`; also of one that another bundle's answer has. */
  rank(precision) {
    if (precision <= this.lowest) return "low";
    return precision < this.highest ? "middle" : "high";
  }

  /** A precision in words: "4 bits (Q4_K)". */
  describe(precision) {
    const types = this.all.find((level) => level.precision === precision)?.types ?? [];
    return `${precision} bits${types.length ? ` (${types.join(" + ")})` : ""}`;
  }
}

/**
 * Stretches of equal precision.
 * @param {number[]} precisions of tokens
 * @returns {{precision: number, start: number, count: number}[]}
 */
export function runs(precisions) {
  const found = [];
  precisions.forEach((precision, i) => {
    if (found.at(-1)?.precision === precision) found.at(-1).count += 1;
    else found.push({ precision, start: i, count: 1 });
  });
  return found;
}
