"""What all measurements share: series of values and what is said of them, and an evaluation's time."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pmpd_edge.runner import Pmpd


@dataclass(frozen=True)
class Series:
    """Values of one quantity, one for each repetition."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float:
        """Standard deviation as llama-bench has it: of a sample; 0 of one value."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0

    def each(self, factor: float) -> Series:
        """The values times a factor."""
        return Series(tuple(factor * value for value in self.values))

    def rate(self, count: float) -> Series:
        """Of seconds: how many a second, where there are `count` in each."""
        return Series(tuple(count / value for value in self.values))

    def to_dict(self) -> dict[str, float | list[float]]:
        """The values for programs, with what is said of them."""
        return {
            "median": self.median,
            "low": min(self.values),
            "high": max(self.values),
            "mean": self.mean,
            "deviation": self.deviation,
            "values": list(self.values),
        }


def timed(llm: Pmpd, tokens: Sequence[int]) -> float:
    """Seconds to evaluate tokens in one call, until the device has finished: a GPU computes on after the call."""
    from pmpd_edge.runner import llama_cpp

    start = perf_counter()
    llm.eval(tokens)
    llama_cpp.llama_synchronize(llm.ctx)
    return perf_counter() - start


def random_tokens(llm: Pmpd, count: int) -> list[int]:
    """Token ids to evaluate, the same each time."""
    return np.random.default_rng(0).integers(0, llm.n_vocab(), count).tolist()
