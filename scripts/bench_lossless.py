#!/usr/bin/env python3
"""Lossless decoding: whether it is lossless, how many drafts stand, and what it gains; docs/benchmarks/lossless.md.

    python scripts/bench_lossless.py --text multi30k.test_2016.jsonl.gz --work DIR --large BUNDLE > lossless.md

Answers are those of the translator, as the package has it and converted anew with nested levels, at temperature 0, each
against the highest level alone. BUNDLE is a large one, whose speed is bound by memory as a user's is; it may have
random weights: what its rounds cost is measured, and how many drafts stand is taken from the translator. --speed leaves
the first part out; run that alone, or pass --shared to have the page say that it was not.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from measure import MODEL, say

from pmpd_edge import Pmpd, bundle, convert, cpu, device
from pmpd_edge.lossless import costs
from pmpd_edge.lossless.planner import Costs
from pmpd_edge.stats import Round
from pmpd_edge.stream import Sampling, stream

LONGEST = 80  # tokens of an answer
DRAFTS = range(1, 9)
COUNTS: tuple[int | str, ...] = (*DRAFTS, "auto")
TIMED: tuple[int | str, ...] = (1, 2, 4, 8, "auto")
N_TIMED = 40  # prompts
HIGH = 8

# Of drafts that were judged, the share that was kept, and tokens of a verification: by level and number of drafts.
Acceptances = dict[tuple[int, int], tuple[float, float]]


# Whether it is lossless


@dataclass
class Found:
    """What one way of drafting did with all prompts.

    Attributes:
        answers, identical: how many there are, and how many of them are the highest level's.
        gaps: of each answer that differs, how far the two tokens lie apart in the highest level's logits where it first
            does, and how far those logits move with the number of tokens that are evaluated together.
    """

    rounds: list[Round] = field(default_factory=list)
    answers: int = 0
    identical: int = 0
    gaps: list[tuple[float, float]] = field(default_factory=list)

    @property
    def drafted(self) -> list[Round]:
        return [done for done in self.rounds if done.drafted]

    @property
    def acceptance(self) -> float:
        """The share of drafts that were kept of those that were judged: the end of an answer cuts its last round."""
        judged = sum(done.kept + done.rejected for done in self.drafted)
        return sum(done.kept for done in self.drafted) / judged if judged else 0.0

    @property
    def tokens(self) -> float:
        """Tokens of a verification, mean."""
        return statistics.fmean(done.tokens for done in self.drafted) if self.drafted else 0.0

    def cells(self) -> str:
        """Acceptance, tokens and identical answers, for a table."""
        drafts = f"{self.acceptance:.3f} | {self.tokens:.2f}" if self.drafted else "no drafts | "
        return f"{drafts} | {self.identical} of {self.answers}"


def answer(llm: Pmpd, tokens: Sequence[int], longest: int = LONGEST) -> list[int]:
    return [token.id for token in stream(llm, tokens, Sampling(), longest)]


def check(llm: Pmpd, prompts: Sequence[list[int]], expected: Sequence[list[int]]) -> Found:
    """Answer all prompts, as the model is configured."""
    found = Found()
    for prompt, right in zip(prompts, expected, strict=True):
        given = answer(llm, prompt)
        assert llm.stats.drafting
        found.rounds += llm.stats.drafting.rounds
        found.answers += 1
        found.identical += given == right
        if given != right:
            found.gaps.append(gap(llm, prompt, given, right))
    return found


def gap(llm: Pmpd, prompt: list[int], given: Sequence[int], right: Sequence[int]) -> tuple[float, float]:
    """How far two answers lie apart where they part, and the noise of evaluating tokens together."""
    n = next(i for i, (a, b) in enumerate(zip(given, right, strict=False)) if a != b)
    alone, *others = (logits_at(llm, prompt, right, n, size) for size in range(1, 2 + max(DRAFTS)))
    noise = max(float(np.abs(other - alone).max()) for other in others)
    return abs(float(alone[given[n]] - alone[right[n]])), noise


def logits_at(llm: Pmpd, prompt: list[int], right: Sequence[int], n: int, size: int) -> npt.NDArray[np.float32]:
    """Logits of token `n` of an answer, whose tokens are evaluated so many at a time, as a verification does."""
    llm.reset()
    llm.set_precision(HIGH)
    llm.eval(prompt)
    for at in range(0, n, size):
        batch = [*right[at : at + size], *[right[-1]] * size][:size]
        llm._eval(batch, all_logits=True)
    llm._show(len(prompt) + n, (n - 1) % size)
    return llm.logits().copy()


def print_checks(bundles: dict[str, Path], text: Path, count: int, threads: int) -> Acceptances:
    """Print the table of all ways; returns how many drafts of the separate levels stood."""
    kept: Acceptances = {}
    for layout, path in bundles.items():
        with closing(Pmpd(path, method="high", n_threads=threads)) as llm:
            prompts = read_prompts(llm, text, count)
            expected = [answer(llm, prompt) for prompt in prompts]
            for draft in llm.bundle.precisions[:0:-1]:
                for drafts in COUNTS:
                    llm.configure(method="lossless", draft_tokens=drafts, draft=draft)
                    found = check(llm, prompts, expected)
                    say(f"{layout}, {draft} bits, {drafts}: {found.identical} identical, {found.acceptance:.3f}")
                    print(f"| {layout} | {draft} | {drafts} | {found.cells()} | {told(found.gaps)} |", flush=True)
                    if layout == "separate" and drafts in DRAFTS:
                        kept[draft, int(drafts)] = found.acceptance, found.tokens
    return kept


def told(gaps: Sequence[tuple[float, float]]) -> str:
    within = sum(apart <= 2 * noise for apart, noise in gaps)
    if not gaps:
        return ""
    return f"{within} of {len(gaps)}; gap {max(g for g, _ in gaps):.4f}, noise {max(n for _, n in gaps):.4f}"


def read_prompts(llm: Pmpd, path: Path, count: int) -> list[list[int]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(count), strict=False)]
    languages = [("German", "de") if i % 2 else ("French", "fr") for i in range(len(rows))]
    return [
        llm.tokenize(f"<s><|user|>Translate from {name} to English: {row[key]}<|assistant|>".encode(), False, True)
        for row, (name, key) in zip(rows, languages, strict=True)
    ]


# What it gains


def print_speeds(path: Path | None, text: Path, repeats: int, threads: int) -> None:
    """Time answers by turns: the highest level alone, and all ways of drafting."""
    ways = [("high", 0, 0), *(("lossless", draft, drafts) for draft in (4, 2) for drafts in TIMED)]
    with closing(Pmpd(path, method="high", n_threads=threads)) as llm:
        prompts = read_prompts(llm, text, N_TIMED)
        rates: list[list[float]] = [[] for _ in ways]
        for turn in range(repeats + 1):
            for way, (method, draft, drafts) in enumerate(ways):
                llm.configure(method=method, draft_tokens=drafts or "auto", draft=draft or None)
                steps, seconds = 0, 0.0
                for prompt in prompts:
                    answer(llm, prompt)
                    steps += len(llm.stats.decode_precisions)
                    seconds += llm.stats.decode_seconds
                if turn:
                    rates[way].append(steps / seconds)
            say(f"turn {turn}")
        llm.configure(method="lossless", draft=4)
        print(SPEED.format(repeats=repeats, prompts=N_TIMED, forecast=llm.forecast()))
    for (method, draft, drafts), rate in zip(ways, rates, strict=True):
        ratios = [a / b for a, b in zip(rate, rates[0], strict=True)]
        print(
            f"| {method} | {draft or ''} | {drafts or ''} | {statistics.median(rate):.0f} "
            f"| {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) |"
        )


def print_large(path: Path, kept: Acceptances, repeats: int, threads: int) -> None:
    """What rounds cost a large model, what they would gain it, and what `auto` loses where hardly a draft stands."""
    with closing(Pmpd(path, method="high", n_threads=threads, n_ctx=512)) as llm:
        print(LARGE.format(name=llm.bundle.name, parameters=llm.bundle.parameters / 1e9, high=HIGH))
        llm.levels.load(*llm.bundle.precisions)
        llm.eval(list(range(300, 364)))
        for low in llm.bundle.precisions[1:]:
            if (low, 1) in kept:
                measured = [found for _ in range(repeats) if (found := costs.measure(llm, low, HIGH))]
                print_rounds(low, typical(measured), kept)
        print(f"\n{auto_line(llm, repeats)}")


def typical(measured: Sequence[Costs]) -> Costs:
    """The medians."""
    step, begin, draft = (statistics.median(getattr(m, name) for m in measured) for name in ("step", "begin", "draft"))
    verify = [statistics.median(times) for times in zip(*(m.verify for m in measured), strict=True)]
    return Costs(step, begin, draft, verify)


def print_rounds(low: int, costs: Costs, kept: Acceptances) -> None:
    """Print what rounds with drafts at one level would gain, by the number of drafts."""
    print(ROUNDS.format(low=low, step=1000 * costs.step, draft=1000 * costs.draft, begin=1000 * costs.begin))
    for drafts in range(1, costs.most + 1):
        acceptance, tokens = kept[low, drafts]
        gain = tokens * costs.step / (costs.begin + drafts * costs.draft + costs.verify[drafts])
        print(
            f"| {drafts} | {1000 * costs.verify[drafts]:.1f} | {acceptance:.3f} | {tokens:.2f} | {gain:.2f} "
            f"| {costs.gain(drafts, 1.0):.2f} |"
        )


def auto_line(llm: Pmpd, repeats: int) -> str:
    """Answers of random weights, by turns: the drafts of another level hardly stand."""
    ratios, drafted = [], 0
    for turn in range(repeats + 1):
        rates = []
        for method in ("high", "lossless"):
            llm.configure(method=method)
            answer(llm, list(range(300, 332)), 96)
            rates.append(llm.stats.decode_tokens_per_second)
        drafted = llm.stats.to_dict()["drafting"]["drafted"]
        if turn:
            ratios.append(rates[1] / rates[0])
        say(f"auto: {rates}")
    spread = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
    return f"`auto` with these weights, and {drafted} drafts in the last answer: {spread} of high's speed."


# The page


def bundles(work: Path, threads: int) -> dict[str, Path]:
    """The translator with each level by itself, and nested; what is there is used."""
    nested = work / "nested"
    if not nested.is_dir():
        say("converting")
        convert.convert(str(MODEL), nested, precisions=(8, 4, 2), layout="nested", threads=threads)
    return {"separate": bundle.default_bundle(), "nested": nested}


def acceptances(work: Path, kept: Acceptances) -> Acceptances:
    """Those of this run, or of the last one that had them."""
    path = work / "acceptance.json"
    if kept:
        path.write_text(json.dumps([(*way, *found) for way, found in kept.items()]))
    return {(draft, drafts): (accepted, tokens) for draft, drafts, accepted, tokens in json.loads(path.read_text())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="gzipped JSON lines with `de`, `fr` and `en`")
    parser.add_argument("--work", type=Path, required=True, help="directory for the nested bundle, kept")
    parser.add_argument("--large", type=Path, help="a bundle of levels 8 and 4 whose steps are bound by memory")
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--threads", type=int, default=cpu.default_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--speed", action="store_true", help="only the speeds, with what the last run found of drafts")
    parser.add_argument("--checks", action="store_true", help="only whether it is lossless")
    parser.add_argument("--shared", action="store_true", help="say that the machine did other work too")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    shared = "\nOther programs ran beside it: the times are rough, their ratios less so." if args.shared else ""
    kept: Acceptances = {}
    if not args.speed:
        print(HEAD.format(machine=device.describe(), threads=args.threads, shared=shared, prompts=args.prompts))
        kept = print_checks(bundles(args.work, args.threads), args.text, args.prompts, args.threads)
    known = acceptances(args.work, kept)
    if not args.checks:
        print_speeds(None, args.text, args.repeats, args.threads)
        if args.large:
            print_large(args.large, known, args.repeats, args.threads)


HEAD = """# Lossless decoding

Made by `python scripts/bench_lossless.py --text multi30k.test_2016.jsonl.gz --work DIR --large BUNDLE`.

Machine: {machine}. {threads} thread(s).{shared}

## Is it lossless, and how many drafts stand?

{prompts} sentences, translated by the small model in the package at temperature 0; the verifier has 8 bits. Acceptance:
the share of drafts that were kept, of those that were judged. Tokens: of the answer for each verification. Where an
answer differs from the highest level's alone, the last column compares the gap of the two tokens' logits, where they
first differ, with how far the logits there move when 2 to 9 tokens of the answer are evaluated together instead of one:
how many differences are within twice that, and the largest of both.

| layout | drafts at | drafts | acceptance | tokens | identical | differences within the noise |
|---|---|---|---|---|---|---|"""

SPEED = """
## What does it gain here?

The small model, whose steps are so short that what a switch and the book-keeping take counts. Decode tokens/s of
{prompts} answers, medians of {repeats} runs by turns, and against high in the same turn: median (least to most). The
planner beforehand, for 4 bits: {forecast}.

| method | drafts at | drafts | t/s | of high's |
|---|---|---|---|---|"""

LARGE = """
## What would it gain a larger model?

{name}: {parameters:.2f} G parameters. What its rounds take is measured, verified at {high} bits; how many drafts stand
is the translator's. `all stand` is what the device could gain at most.
"""

ROUNDS = """
Drafts at {low} bits: a step {step:.1f} ms, a draft {draft:.1f} ms and the first {begin:.1f} ms more.

| drafts | verification, ms | acceptance | tokens | times as fast as high | all stand |
|---|---|---|---|---|---|"""


if __name__ == "__main__":
    main()
