"""A schedule from prompt to last token, against the sum of its parts and against one level for everything.

The parts are taken from runs that do not switch: prefill, and each step at its precision and its position. What the
whole takes more than they do is what stepping down costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter
from typing import TYPE_CHECKING

from pmpd_edge.bench.timing import Series, random_tokens
from pmpd_edge.lossless.drafter import obstacle

if TYPE_CHECKING:
    from pmpd_edge.runner import Pmpd

WARM_UP = 4  # decode steps

LOSSLESS = "lossless"

Way = tuple[str, int]  # a scheduler's name or LOSSLESS, the prompt's precision

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Run:
    """One answer: seconds as its reader sees them, sampling included.

    Attributes:
        prefill: to the first token.
        steps: to each token after it.
        precisions: of each step.
    """

    prefill: float
    steps: tuple[float, ...]
    precisions: tuple[int, ...]


@dataclass(frozen=True)
class Answers:
    """One way to decode: all its runs, which take the same steps at the same precisions.

    Attributes:
        scheduler: as `make_scheduler` takes it, or LOSSLESS.
        prefill: precision of the prompt.
    """

    scheduler: str
    prefill: int
    runs: tuple[Run, ...]

    @property
    def seconds(self) -> Series:
        """Of the whole answer."""
        return Series(tuple(run.prefill + sum(run.steps) for run in self.runs))

    @property
    def decode_rate(self) -> Series:
        """Tokens/s of the decode steps."""
        return Series(tuple(len(run.steps) / sum(run.steps) for run in self.runs))

    @property
    def first_token(self) -> Series:
        return Series(tuple(run.prefill for run in self.runs))

    @property
    def precisions(self) -> tuple[int, ...]:
        """Of each step; those of the first run."""
        return self.runs[0].precisions

    def steps(self) -> list[float]:
        """Seconds of each step, the median over the runs."""
        return [Series(step).median for step in zip(*(run.steps for run in self.runs), strict=True)]


@dataclass(frozen=True)
class Comparison:
    """A schedule and what it is held against.

    Attributes:
        prompt: tokens.
        scheduled, high, low: with the schedule; everything at the highest and the lowest level.
        ideal_seconds: the sum of the schedule's parts.
        lossless: everything at the highest level, with drafts of the lowest; None where drafts cannot be taken back.
    """

    prompt: int
    scheduled: Answers
    high: Answers
    low: Answers
    ideal_seconds: float
    lossless: Answers | None = None

    @property
    def over_ideal(self) -> float:
        """How much of the sum of its parts the schedule takes: 1 is all that can be had."""
        return self.scheduled.seconds.median / self.ideal_seconds

    def speedup(self, over: Answers) -> float:
        """How many times as fast whole answers are: the median over the repetitions."""
        pairs = zip(over.seconds.values, self.scheduled.seconds.values, strict=True)
        return Series(tuple(theirs / ours for theirs, ours in pairs)).median


def measure(
    llm: Pmpd,
    scheduler: str,
    prompt: int,
    steps: int,
    repetitions: int,
    progress: Progress = lambda label, done: None,
    draft_tokens: int | str = "auto",
) -> Comparison:
    """Answer a prompt with a schedule, high, low, lossless where it can be, and at each other precision, by turns.

    Args:
        llm: it is configured anew, and left with other tokens; its context must hold the prompt and the steps.
        scheduler: as `make_scheduler` takes it.
        prompt, steps: tokens of the prompt, and decode steps after it.
        draft_tokens: of `lossless`.
    """
    ways = _ways(llm, scheduler)
    tokens = random_tokens(llm, prompt)
    runs: dict[Way, list[Run]] = {way: [] for way in (ways.scheduled, *ways.fixed.values())}
    if not obstacle(llm):
        runs[ways.lossless] = []
    for repetition in range(repetitions + 1):
        for i, way in enumerate(runs):
            progress(f"answers: {way[0]}", (repetition + i / len(runs)) / (repetitions + 1))
            if way == ways.lossless:
                llm.configure(method=LOSSLESS, draft_tokens=draft_tokens)
            else:
                llm.configure(scheduler=way[0], prefill=way[1])
            run = _answer(llm, tokens, steps if repetition else min(steps, WARM_UP))
            if repetition:
                runs[way].append(run)
    llm.reset()
    return _compare(ways, {way: Answers(*way, tuple(done)) for way, done in runs.items()}, prompt)


@dataclass(frozen=True)
class _Ways:
    """The schedule, and by precision what decodes at one only: the highest and the lowest level also prefill there."""

    scheduled: Way
    fixed: dict[int, Way]
    lossless: Way


def _ways(llm: Pmpd, scheduler: str) -> _Ways:
    precisions, prefill = llm.bundle.precisions, llm.bundle.prefill
    llm.configure(scheduler=scheduler)
    extremes = (precisions[0], precisions[-1])
    return _Ways(
        (scheduler, prefill),
        {
            p: (f"fixed:{p}", p if p in extremes else prefill)
            for p in sorted({*llm.precisions, *extremes}, reverse=True)
        },
        (LOSSLESS, precisions[0]),
    )


def _compare(ways: _Ways, answers: Mapping[Way, Answers], prompt: int) -> Comparison:
    scheduled = answers[ways.scheduled]
    fixed = {precision: answers[way] for precision, way in ways.fixed.items()}
    alone = [found for way, found in answers.items() if way != ways.lossless and found.prefill == scheduled.prefill]
    prefills = [run.prefill for found in alone for run in found.runs]
    steps = {precision: found.steps() for precision, found in fixed.items()}
    parts = Series(tuple(prefills)).median + sum(steps[p][i] for i, p in enumerate(scheduled.precisions))
    return Comparison(prompt, scheduled, fixed[max(fixed)], fixed[min(fixed)], parts, answers.get(ways.lossless))


def _answer(llm: Pmpd, tokens: list[int], steps: int) -> Run:
    llm.reset()
    stamps = [perf_counter()]
    with closing(llm.generate(tokens, temp=0.0)) as generator:
        for _ in generator:
            stamps.append(perf_counter())
            if len(stamps) == steps + 2:
                break
    prefill, *times = (after - before for before, after in pairwise(stamps))
    return Run(prefill, tuple(times), tuple(llm.stats.decode_precisions))
