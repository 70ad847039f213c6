"""Steps down while the model is sure of its tokens, and back up where it is not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pmpd_edge.errors import PmpdError
from pmpd_edge.schedule import Evaluation

CALM, UNSURE = 0.85, 0.55
MEMORY = 0.75  # of the running mean: it looks back over about four tokens


class ConfidenceScheduler:
    """Follows a running mean of the likeliest token's probability, with hysteresis.

    Args:
        ladder: precisions from the highest to the lowest; it begins at the first and moves by one at a time.
        calm: one down where the mean is at least this.
        unsure: one up where the mean is below this; between the two it stays where it is.
        memory: share of the mean that a new token leaves of the old one, 0 to 1.
    """

    def __init__(
        self, ladder: Sequence[int], calm: float = CALM, unsure: float = UNSURE, memory: float = MEMORY
    ) -> None:
        if not 0 <= unsure <= calm <= 1:
            raise PmpdError(f"confidence thresholds {calm:g} and {unsure:g}", "give 1 >= CALM >= UNSURE >= 0")
        self.precisions = tuple(ladder)
        self._calm, self._unsure, self._memory = calm, unsure, memory
        self._at, self._mean = 0, 0.0

    def start(self, prefill: Evaluation) -> None:
        self._at, self._mean = 0, 0.0

    def next(self, step: int, last: Evaluation) -> int:
        top = top_probability(last.logits())
        self._mean = self._memory * self._mean + (1 - self._memory) * top
        mean = self._mean / (1 - self._memory**step)  # as if it had begun with the first token
        if mean >= self._calm:
            self._at = min(self._at + 1, len(self.precisions) - 1)
        elif mean < self._unsure:
            self._at = max(self._at - 1, 0)
        return self.precisions[self._at]


def top_probability(logits: np.typing.NDArray[np.float32]) -> float:
    """The likeliest token's probability, from logits `[n_vocab]`."""
    return 1 / float(np.exp(logits - logits.max()).sum(dtype=np.float64))
