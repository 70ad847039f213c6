"""The paper's patterns: the same number of steps at the high precision, spent at other places of the answer.

They are the controls of stepping down: the first part at the high precision should win.
"""

from __future__ import annotations

from dataclasses import dataclass

from pmpd_edge.errors import PmpdError
from pmpd_edge.schedule import Evaluation

PATTERNS = ("first", "middle", "last", "alternate")


@dataclass(frozen=True)
class PatternScheduler:
    """Decodes some of an answer's steps at `high`, the others at `low`.

    Attributes:
        pattern: where the high steps lie: `first`, `middle` or `last` part, or `alternate`, spread evenly.
        high_steps: how many there are.
        length: decode steps that the answer is expected to have; those after them are low.
    """

    pattern: str
    high: int
    low: int
    high_steps: int
    length: int

    def __post_init__(self) -> None:
        if self.pattern not in PATTERNS:
            raise PmpdError(f"no pattern {self.pattern!r}", f"choose one of {', '.join(PATTERNS)}")
        if not 0 <= self.high_steps <= self.length:
            raise PmpdError(f"{self.high_steps} high steps of {self.length}", "give at most as many as there are")

    @property
    def precisions(self) -> tuple[int, ...]:
        return (self.high, self.low)

    def start(self, prefill: Evaluation) -> None:
        pass

    def next(self, step: int, last: Evaluation) -> int:
        return self.high if self._is_high(step) else self.low

    def _is_high(self, step: int) -> bool:
        if step > self.length:
            return False
        if self.pattern == "alternate":  # where the count of high steps that are due rises
            return step * self.high_steps // self.length > (step - 1) * self.high_steps // self.length
        spare = self.length - self.high_steps
        first = {"first": 0, "middle": spare // 2, "last": spare}[self.pattern]
        return first < step <= first + self.high_steps
