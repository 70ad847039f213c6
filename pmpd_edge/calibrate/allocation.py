"""Phase-aware precision allocation and the static search: from measured quality and speed to a schedule.

The reference is everything at the highest level. First each (prefill, decode) pair of precisions answers the data set;
of those that lose no more than the tolerance, the quickest to decode is where answers begin. From there the search
steps down, a level at a time, as early as the tolerance allows. It knows nothing about files and screens.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pmpd_edge.bench.speed import Speed
from pmpd_edge.bundle import StaticSchedule, Switch
from pmpd_edge.calibrate.search import smallest
from pmpd_edge.errors import PmpdError
from pmpd_edge.evaluate.answers import Answers, Kept
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
        steps: decode steps of an answer, on average.
        seconds: of a decode step, on average, by the levels' measured speeds.
        cut: answers that ended at the length or context limit.
    """

    prefill: int
    schedule: StaticSchedule
    score: Score
    loss: Loss
    average_bitwidth: float
    average_bpw: float
    steps: float
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
    """Everything that calibration found; `chosen` is what it recommends.

    Attributes:
        within: whether `chosen` is within the tolerance; with a prefill of the user's it may be that nothing is.
    """

    reference: Result
    pairs: tuple[Result, ...]
    curves: tuple[Curve, ...]
    chosen: Result
    within: bool


def costs(speeds: Mapping[int, Speed], bpw: Mapping[int, float], objective: str) -> list[LevelCost]:
    """Which levels are of use: each has to cost less than the next higher one that is.

    Args:
        speeds: by precision, from the highest to the lowest, measured by turns.
        bpw: real bits per weight.
        objective: `time` or `bpw`.
    """
    found: list[LevelCost] = []
    above: int | None = None
    for precision, speed in speeds.items():
        gain = speed.decode_gain(speeds[above]) if above else 1.0
        saves = above is None or (gain >= FASTER if objective == "time" else bpw[precision] < bpw[above])
        found.append(LevelCost(precision, 1 / speed.decode_tokens_per_second, bpw[precision], gain, saves))
        above = precision if saves else above
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

    def find(self, prefill: int | None = None) -> Found:
        """Measure and choose.

        Args:
            prefill: where the user has chosen it; by default any level may be.
        """
        top = self._useful[0]
        reference = self.measure(top, self._schedule((1, top)))
        if reference.score.value <= 0:
            raise PmpdError(
                f"answers at {top} bits score 0, so that nothing can be lost against them",
                "take another metric (ROUGE-L knows the letters a to z only), or look at the references",
            )
        prefills = self._useful if prefill is None else [prefill]
        pairs = [
            self.measure(first, self._schedule((1, then))) for first, then in itertools.product(prefills, self._useful)
        ]
        allowed = [pair for pair in pairs if self._is_enough(pair)] or [pairs[0]]  # decoded at the highest level
        # Among the quickest to decode the highest prefill: what it costs is paid once.
        start = min(allowed, key=lambda pair: (self._cost(pair), -pair.prefill))
        curves, chosen = self._step_down(start)
        return Found(reference, tuple(pairs), tuple(curves), chosen, self._is_enough(chosen))

    def answers(self, prefill: int, schedule: StaticSchedule) -> list[Kept]:
        """The answers under a schedule."""
        name = format_switches(schedule)
        label = f"prefill {prefill}, {name}"
        return self._answers.make(
            f"static:{name}",
            prefill,
            lambda _: StaticScheduler(schedule),
            lambda fraction: self._progress(label, fraction),
        )

    def measure(self, prefill: int, schedule: StaticSchedule) -> Result:
        """What answers under a schedule are worth and cost."""
        return self.judge(self.answers(prefill, schedule), prefill, schedule)

    def judge(self, kept: Sequence[Kept], prefill: int, schedule: StaticSchedule) -> Result:
        """The result of answers that are there."""
        rows = self._rows(kept)
        steps = np.array([p for answer in kept for p in answer.decode_precisions] or [prefill])
        counts = {int(p): float(n) / len(steps) for p, n in zip(*np.unique(steps, return_counts=True), strict=True)}
        return Result(
            prefill=prefill,
            schedule=schedule,
            score=self._bootstrap.score(rows),
            loss=self._bootstrap.loss(rows, self._reference, self._tolerance),
            average_bitwidth=sum(p * share for p, share in counts.items()),
            average_bpw=sum(self._levels[p].bpw * share for p, share in counts.items()),
            steps=len(steps) / len(kept),
            seconds=sum(self._levels[p].seconds * share for p, share in counts.items()),
            cut=sum(answer.finish != "stop" for answer in kept),
        )

    @cached_property
    def _reference(self) -> Floats:
        """Statistics of the answers at the highest level, which everything is compared with."""
        top = self._useful[0]
        return self._rows(self.answers(top, self._schedule((1, top))))

    def _rows(self, kept: Sequence[Kept]) -> Floats:
        return self._metric.rows([answer.text for answer in kept], self._references)

    def _step_down(self, start: Result) -> tuple[list[Curve], Result]:
        """Curves for one level after the other below `start`'s, and the cheapest result that is within the tolerance.

        Each level is tried after the best that was found above it, and straight after `start`.
        """
        curves: list[Curve] = []
        best = start
        for low in self._useful[self._useful.index(_begins(start)) + 1 :]:
            for before in dict.fromkeys((best.schedule, start.schedule)):
                curve = self._curve(start.prefill, before, low)
                curves.append(curve)
                end = curve.points.get(curve.steps)  # none where not even the last step may be lower
                if end and self._cost(end) < self._cost(best):
                    best = end
        return curves, best

    def _curve(self, prefill: int, before: StaticSchedule, low: int) -> Curve:
        switches = before.switches
        last = switches[-1]
        longest = max(len(answer.decode_precisions) for answer in self.answers(prefill, before))
        points: dict[int, Result] = {}

        def enough(steps: int) -> bool:
            kept = switches[:-1] if steps == 0 else switches
            schedule = StaticSchedule((*kept, Switch(last.step + steps, low)), self._max_new_tokens)
            points[steps] = points.get(steps) or self.measure(prefill, schedule)
            return self._is_enough(points[steps])

        steps = smallest(enough, max(0, longest - last.step + 1))
        return Curve(last.precision, low, steps, last.step, dict(sorted(points.items())))

    def _is_enough(self, result: Result) -> bool:
        """The reference is within its own tolerance, whatever the resamples."""
        return result.loss.value <= self._tolerance and result.loss.within >= self._sure

    def _cost(self, result: Result) -> float:
        """Of a whole answer: a schedule under which answers ramble on is no cheaper for its cheap steps."""
        return result.steps * (result.seconds if self._objective == "time" else result.average_bpw)

    def _schedule(self, *switches: tuple[int, int]) -> StaticSchedule:
        return StaticSchedule(tuple(Switch(*switch) for switch in switches), self._max_new_tokens)


def _begins(result: Result) -> int:
    return result.schedule.switches[0].precision
