"""What it costs to switch from a level to another: the call, the steps after it, and switching at every token.

On a GPU the first steps after a switch are the ones that may differ: its graphs are captured again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from time import perf_counter
from typing import TYPE_CHECKING

from pmpd_edge.bench.timing import Series, random_tokens, timed

if TYPE_CHECKING:
    from pmpd_edge.runner import Pmpd

PROMPT = 16  # tokens before
FIRST = 4  # steps after a switch that are told one by one
NORMAL = 4  # steps after those
ALTERNATING = 16  # steps that each switch
TOKENS = PROMPT + 2 * (FIRST + NORMAL) + (FIRST + NORMAL) + ALTERNATING

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Switching:
    """From one level to another: seconds, one for each repetition.

    Attributes:
        call: of the call that changes the weights.
        first: of the first, second, ... step after it, without the call.
        normal: of the steps after those, their mean.
    """

    before: int
    after: int
    call: Series
    first: tuple[Series, ...]
    normal: Series

    @property
    def first_over_normal(self) -> tuple[float, ...]:
        """Each of the first steps against a normal one of the same repetition: the median."""
        return tuple(_ratio(step, self.normal) for step in self.first)


@dataclass(frozen=True)
class Alternating:
    """Two levels by turns: seconds of a step with its switch, and the mean of the levels' normal steps."""

    high: int
    low: int
    step: Series
    mean: Series

    @property
    def over_mean(self) -> float:
        """The median over the repetitions."""
        return _ratio(self.step, self.mean)


def _ratio(series: Series, to: Series) -> float:
    return Series(tuple(a / b for a, b in zip(series.values, to.values, strict=True))).median


def measure(
    llm: Pmpd, precisions: Sequence[int], repetitions: int, progress: Progress = lambda label, done: None
) -> tuple[list[Switching], list[Alternating]]:
    """Switch between each two levels, to and fro, after a repetition that warms up.

    Args:
        llm: it is left with other tokens and at some precision; its context must hold `TOKENS`.
    """
    pairs = list(combinations(sorted(precisions, reverse=True), 2))
    rounds: dict[tuple[int, int], list[_Round]] = {pair: [] for pair in pairs}
    for repetition in range(repetitions + 1):
        for i, pair in enumerate(pairs):
            progress("switching", (repetition + i / len(pairs)) / (repetitions + 1))
            measured = _measure(llm, *pair)
            if repetition:
                rounds[pair].append(measured)
    llm.reset()
    switchings, alternating = [], []
    for (high, low), done in rounds.items():
        switchings.append(_switching(high, low, [found.down for found in done]))
        switchings.append(_switching(low, high, [found.up for found in done]))
        steps, means = zip(
            *((found.alternating, (found.down.normal + found.up.normal) / 2) for found in done), strict=True
        )
        alternating.append(Alternating(high, low, Series(steps), Series(means)))
    return switchings, alternating


@dataclass(frozen=True)
class _After:
    """One switch: seconds of the call, of the first steps, of a normal one."""

    call: float
    first: tuple[float, ...]
    normal: float


@dataclass(frozen=True)
class _Round:
    down: _After
    up: _After
    alternating: float


def _measure(llm: Pmpd, high: int, low: int) -> _Round:
    tokens = iter(random_tokens(llm, TOKENS))
    llm.reset()
    llm.set_precision(high)
    timed(llm, [next(tokens) for _ in range(PROMPT)])
    _after_switch(llm, high, tokens)
    down, up = _after_switch(llm, low, tokens), _after_switch(llm, high, tokens)
    start = perf_counter()
    for step in range(ALTERNATING):
        llm.set_precision(high if step % 2 else low)
        timed(llm, [next(tokens)])
    return _Round(down, up, (perf_counter() - start) / ALTERNATING)


def _after_switch(llm: Pmpd, precision: int, tokens: Iterator[int]) -> _After:
    start = perf_counter()
    llm.set_precision(precision)
    call = perf_counter() - start
    first = tuple(timed(llm, [next(tokens)]) for _ in range(FIRST))
    return _After(call, first, sum(timed(llm, [next(tokens)]) for _ in range(NORMAL)) / NORMAL)


def _switching(before: int, after: int, found: Sequence[_After]) -> Switching:
    return Switching(
        before,
        after,
        call=Series(tuple(one.call for one in found)),
        first=tuple(Series(steps) for steps in zip(*(one.first for one in found), strict=True)),
        normal=Series(tuple(one.normal for one in found)),
    )
