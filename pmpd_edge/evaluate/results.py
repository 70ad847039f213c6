"""What an evaluation found, as data; tables and plots are made from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pmpd_edge.batch import Finish
from pmpd_edge.evaluate.answers import Kept
from pmpd_edge.evaluate.metrics import Score
from pmpd_edge.evaluate.timing import Timing


@dataclass(frozen=True)
class Answered:
    """A method's answer to an example, of all its turns.

    Attributes:
        text: the turns' answers, with an empty line between them.
        turns: each of them as it was kept.
    """

    text: str
    turns: tuple[Kept, ...]

    @property
    def decode_precisions(self) -> list[int]:
        """Precision of each decode step."""
        return [precision for turn in self.turns for precision in turn.decode_precisions]

    @property
    def finish(self) -> Finish:
        """Why it ended; where a turn was cut, that."""
        return max((turn.finish for turn in self.turns), key=("stop", "length", "context").index)


@dataclass(frozen=True)
class Fidelity:
    """Agreement with the reference level's distributions, along its answers.

    Attributes:
        kl, top1: divergence in nats and share of tokens on which both agree, means over decode steps.
        kl_after, top1_after: over those from the first switch on; None where no answer was long enough for one.
        steps, steps_after: how many there are.
    """

    kl: Score
    top1: Score
    kl_after: Score | None
    top1_after: Score | None
    steps: int
    steps_after: int


@dataclass(frozen=True)
class MethodResult:
    """What a method's answers are worth.

    Attributes:
        prefill: precision of the prompt.
        bits, bpw: means of nominal precision and real bits per weight over all decode steps.
        scores: by metric.
        differences: by metric, paired, from the baseline's.
        finishes: how many answers ended how.
        steps: mean number of decode steps.
        shares: of all answers, with each precision at each decode step: `shares[step - 1][precision]`.
        timing: how fast it is; None where that was not measured, or means nothing.
        note: what else is to be known.
    """

    name: str
    prefill: int
    bits: float
    bpw: float
    scores: Mapping[str, Score]
    differences: Mapping[str, Score]
    finishes: Mapping[Finish, int]
    steps: float
    shares: tuple[Mapping[int, float], ...]
    fidelity: Fidelity | None = None
    timing: Timing | None = None
    note: str = ""


@dataclass(frozen=True)
class Results:
    """An evaluation.

    Attributes:
        methods: in the order that was asked for.
        baseline: the method that differences are from.
        facts: what was evaluated, with what: versions, hashes, device, seeds, options.
        bad_rows: rows that could not be used, and why.
        left_out: metrics that were not to be had, and why.
    """

    methods: tuple[MethodResult, ...]
    baseline: str
    facts: Mapping[str, Any]
    bad_rows: Sequence[tuple[str, str]] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)


def bits_of(answers: Sequence[Answered], prefill: int, bpw: Mapping[int, float]) -> tuple[float, float]:
    """Mean nominal precision and mean real bits per weight over all decode steps; prefill's where there are none."""
    steps = [precision for answer in answers for precision in answer.decode_precisions] or [prefill]
    return float(np.mean(steps)), float(np.mean([bpw[precision] for precision in steps]))


def shares_of(answers: Sequence[Answered]) -> tuple[dict[int, float], ...]:
    """The share of all answers that have each precision at each decode step; of the first turns.

    They sum to less than 1 where answers have ended.
    """
    runs = [answer.turns[0].decode_precisions for answer in answers]
    counts = [Counter(run[step] for run in runs if len(run) > step) for step in range(max(map(len, runs), default=0))]
    return tuple({p: n / len(answers) for p, n in sorted(count.items())} for count in counts)
