"""Phase-aware precision allocation and the static search: from measured quality and speed to a schedule.

The reference is everything at the highest level. First each (prefill, decode) pair of precisions answers the data set;
of those that lose no more than the tolerance, the quickest to decode is where answers begin. From there the search
steps down, a level at a time, as early as the tolerance allows. It knows nothing about files and screens.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pmpd_edge.bundle import StaticSchedule, Switch
from pmpd_edge.calibrate.answers import Answers, Kept
from pmpd_edge.calibrate.search import smallest
from pmpd_edge.evaluate.metrics import Bootstrap, Floats, Loss, Metric, Score
from pmpd_edge.schedule.spec import format_switches
from pmpd_edge.schedule.static import StaticScheduler

Progress = Callable[[str, float], None]
FASTER = 1.02  # times a level's speed: less is within what measurements scatter


@dataclass(frozen=True)
class LevelCost:
    """What a decode step of a level costs here.

    Attributes:
        seconds: of a step.
        bpw: real bits per weight.
        gain: how many times as fast as the next higher level that is of use.
        useful: whether it costs less than that one; the highest level always is.
    """

    precision: int
    seconds: float
    bpw: float
    gain: float
    useful: bool


@dataclass(frozen=True)
class Result:
    """What answers under a schedule are worth and cost.

    Attributes:
        prefill: precision of the prompt.
        schedule: of the decode steps.
        score: in the task's metric.
        loss: against the reference.
        average_bitwidth: mean nominal precision over all decode steps.
        average_bpw: likewise, real bits per weight.
        seconds: of a decode step, on average, by the levels' measured speeds.
        cut: answers that ended at the length or context limit.
    """

    prefill: int
    schedule: StaticSchedule
    score: Score
    loss: Loss
    average_bitwidth: float
    average_bpw: float
    seconds: float
    cut: int


@dataclass(frozen=True)
class Curve:
    """Quality against the steps before a switch, as far as the search has looked.

    Attributes:
        high, low: the precisions before and after the switch.
        steps: the smallest number of steps at `high`, counted from the step where it begins, that is enough.
        begins: decode step at which `high` begins.
        points: number of steps -> result.
    """

    high: int
    low: int
    steps: int
    begins: int
    points: Mapping[int, Result]


@dataclass(frozen=True)
class Found:
    """Everything that calibration found; `chosen` is what it recommends."""

    reference: Result
    pairs: tuple[Result, ...]
    curves: tuple[Curve, ...]
    chosen: Result


def costs(
    precisions: Sequence[int], seconds: Mapping[int, float], bpw: Mapping[int, float], objective: str
) -> list[LevelCost]:
    """Which levels are of use: each has to cost less than the next higher one that is.

    Args:
        precisions: from the highest to the lowest.
        seconds: of a decode step.
        bpw: real bits per weight.
        objective: `time` or `bpw`.
    """
    found: list[LevelCost] = []
    above: LevelCost | None = None
    for precision in precisions:
        gain = above.seconds / seconds[precision] if above else 1.0
        saves = above is None or (gain >= FASTER if objective == "time" else bpw[precision] < above.bpw)
        level = LevelCost(precision, seconds[precision], bpw[precision], gain, saves)
        found.append(level)
        above = level if saves else above
    return found


class Allocation:
    """Measures schedules and chooses one.

    Args:
        answers: answers the data set's prompts.
        references: right answers.
        metric: scores them.
        levels: from `costs`, from the highest to the lowest.
        tolerance: what an answer may lose against the reference, in per cent of the score.
        sure: how sure that has to be: the share of resamples within the tolerance.
        objective: `time` or `bpw`: what is made small.
        max_new_tokens: of schedules.
        progress: called with a label and the fraction of that label's work.
    """

    def __init__(
        self,
        answers: Answers,
        references: Sequence[str],
        metric: Metric,
        levels: Sequence[LevelCost],
        *,
        tolerance: float,
        sure: float,
        objective: str,
        max_new_tokens: int,
        progress: Progress,
    ) -> None:
        self._answers, self._references, self._metric = answers, references, metric
        self._levels = {level.precision: level for level in levels}
        self._useful = [level.precision for level in levels if level.useful]
        self._tolerance, self._sure, self._objective = tolerance, sure, objective
        self._max_new_tokens, self._progress = max_new_tokens, progress
        self._bootstrap = Bootstrap(metric, len(references))
        self._reference_rows: Floats | None = None

    def find(self, prefill: int | None = None) -> Found:
        """Measure and choose.

        Args:
            prefill: where the user has chosen it; by default any level may be.
        """
        top = self._useful[0]
        reference = self.measure(top, self._schedule((1, top)))
        pairs = [
            self.measure(first, self._schedule((1, then))) for first, then in itertools.product(self._useful, repeat=2)
        ]
        allowed = [pair for pair in pairs if prefill in (None, pair.prefill) and self._is_enough(pair)]
        if prefill is not None and not allowed:
            allowed = [pair for pair in pairs if pair.prefill == prefill and _begins(pair) == top]
        # Among the quickest to decode the highest prefill: what it costs is paid once.
        start = min(allowed, key=lambda pair: (self._cost(pair), -pair.prefill))
        curves, chosen = self._step_down(start)
        return Found(reference, tuple(pairs), tuple(curves), chosen)

    def measure(self, prefill: int, schedule: StaticSchedule) -> Result:
        """What answers under a schedule are worth and cost."""
        name = f"static:{format_switches(schedule)}"
        label = f"prefill {prefill}, {format_switches(schedule)}"
        kept = self._answers.make(
            name, prefill, lambda _: StaticScheduler(schedule), lambda fraction: self._progress(label, fraction)
        )
        return self.judge(kept, prefill, schedule)

    def judge(self, kept: Sequence[Kept], prefill: int, schedule: StaticSchedule) -> Result:
        """The result of answers that are there."""
        rows = self._metric.rows([answer.text for answer in kept], self._references)
        if self._reference_rows is None:  # the first that is measured
            self._reference_rows = rows
        steps = np.array([p for answer in kept for p in answer.decode_precisions] or [prefill])
        counts = {int(p): float(n) / len(steps) for p, n in zip(*np.unique(steps, return_counts=True), strict=True)}
        return Result(
            prefill=prefill,
            schedule=schedule,
            score=self._bootstrap.score(rows),
            loss=self._bootstrap.loss(rows, self._reference_rows, self._tolerance),
            average_bitwidth=sum(p * share for p, share in counts.items()),
            average_bpw=sum(self._levels[p].bpw * share for p, share in counts.items()),
            seconds=sum(self._levels[p].seconds * share for p, share in counts.items()),
            cut=sum(answer.finish != "stop" for answer in kept),
        )

    def _step_down(self, start: Result) -> tuple[list[Curve], Result]:
        """Curves for one level after the other below `start`'s, and the cheapest result that is within the tolerance.

        Each level is tried after the best that was found above it, and straight after `start`.
        """
        curves: list[Curve] = []
        best, longest = start, self._longest(start)
        for low in self._useful[self._useful.index(_begins(start)) + 1 :]:
            for before in dict.fromkeys((best.schedule, start.schedule)):
                curve = self._curve(start.prefill, before, low, longest)
                curves.append(curve)
                end = curve.points.get(curve.steps)  # none where not even the last step may be lower
                if end and self._cost(end) < self._cost(best):
                    best = end
        return curves, best

    def _curve(self, prefill: int, before: StaticSchedule, low: int, longest: int) -> Curve:
        switches = before.switches
        last = switches[-1]
        points: dict[int, Result] = {}

        def enough(steps: int) -> bool:
            kept = switches[:-1] if steps == 0 else switches
            schedule = StaticSchedule((*kept, Switch(last.step + steps, low)), self._max_new_tokens)
            points[steps] = points.get(steps) or self.measure(prefill, schedule)
            return self._is_enough(points[steps])

        steps = smallest(enough, longest - last.step + 1)
        return Curve(last.precision, low, steps, last.step, dict(sorted(points.items())))

    def _longest(self, result: Result) -> int:
        name = f"static:{format_switches(result.schedule)}"
        kept = self._answers.make(name, result.prefill, lambda _: StaticScheduler(result.schedule))
        return max(len(answer.decode_precisions) for answer in kept)

    def _is_enough(self, result: Result) -> bool:
        """The reference is within its own tolerance, whatever the resamples."""
        return result.loss.value <= self._tolerance and result.loss.within >= self._sure

    def _cost(self, result: Result) -> float:
        return result.seconds if self._objective == "time" else result.average_bpw

    def _schedule(self, *switches: tuple[int, int]) -> StaticSchedule:
        return StaticSchedule(tuple(Switch(*switch) for switch in switches), self._max_new_tokens)


def _begins(result: Result) -> int:
    return result.schedule.switches[0].precision
