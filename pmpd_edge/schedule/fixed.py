"""Every decode step at one precision: the baselines, and a way to look at one level."""

from __future__ import annotations

from dataclasses import dataclass

from pmpd_edge.schedule import Evaluation


@dataclass(frozen=True)
class FixedScheduler:
    """Decodes everything at `precision`."""

    precision: int

    @property
    def precisions(self) -> tuple[int, ...]:
        return (self.precision,)

    def start(self, prefill: Evaluation) -> None:
        pass

    def next(self, step: int, last: Evaluation) -> int:
        return self.precision
