"""How fast a bundle's levels are on this device, as a chat would see them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pmpd_edge.bench.timing import timed

if TYPE_CHECKING:
    from pmpd_edge.runner import Pmpd

PROMPT, STEPS, REPETITIONS = 128, 32, 3


@dataclass(frozen=True)
class Speed:
    """Seconds a token of one level, of every round.

    All levels are measured in each round, so that what else the machine does hits all of them: compare rounds.
    """

    prefill: tuple[float, ...]
    decode: tuple[float, ...]

    @property
    def prefill_tokens_per_second(self) -> float:
        """Of the median round."""
        return 1 / statistics.median(self.prefill)

    @property
    def decode_tokens_per_second(self) -> float:
        """Of the median round."""
        return 1 / statistics.median(self.decode)

    def decode_gain(self, over: Speed) -> float:
        """How many times as fast as another level it decodes: the median over the rounds."""
        return statistics.median(b / a for a, b in zip(self.decode, over.decode, strict=True))


def measure(
    llm: Pmpd,
    precisions: Sequence[int],
    *,
    prompt: int = PROMPT,
    steps: int = STEPS,
    repetitions: int = REPETITIONS,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> dict[int, Speed]:
    """Measure levels by turns, after a round that loads and warms up.

    Args:
        llm: it is reset, and left at some precision.
        precisions: the levels.
        prompt, steps: tokens of prefill and decode steps in each round; less where the context is shorter.
        repetitions: rounds.
        progress: called with the rounds that are done, and all.
    """
    steps = min(steps, llm.n_ctx() // 2)
    prompt = min(prompt, llm.n_ctx() - steps)
    tokens = np.random.default_rng(0).integers(0, min(llm.n_vocab(), 256), prompt + steps).tolist()
    rounds: dict[int, list[tuple[float, float]]] = {precision: [] for precision in precisions}
    for i in range(repetitions + 1):
        progress(i, repetitions + 1)
        for precision, found in rounds.items():
            llm.reset()
            llm.set_precision(precision)
            prefill = timed(llm, tokens[:prompt]) / prompt
            decode = sum(timed(llm, [token]) for token in tokens[prompt:]) / steps
            if i:
                found.append((prefill, decode))
    llm.reset()
    return {
        precision: Speed(tuple(p for p, _ in found), tuple(d for _, d in found)) for precision, found in rounds.items()
    }
