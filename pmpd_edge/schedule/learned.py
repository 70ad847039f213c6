"""Asks a trained predictor once, after the prompt, how many high-precision steps the answer needs; and its control."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pmpd_edge.errors import PmpdError
from pmpd_edge.schedule import Evaluation

if TYPE_CHECKING:
    from pmpd_edge.predictor import Predictor

CONFIDENCE = 0.8


class _OneSwitch:
    """Decodes `high_steps` steps at the first precision, then at the second."""

    def __init__(self, pair: tuple[int, int]) -> None:
        self.precisions: tuple[int, ...] = pair
        self.high_steps: float = 0

    def next(self, step: int, last: Evaluation) -> int:
        high, low = self.precisions
        return high if step <= self.high_steps else low


class LearnedScheduler(_OneSwitch):
    """The paper's learned scheduler: one switch, placed by what the prompt left in the KV cache.

    Args:
        predictor: trained for this bundle.
        pair: the high and the low precision; one of the predictor's pairs.
        confidence: the switch is placed as early as gives enough high steps with this probability, by the predictor.
    """

    def __init__(self, predictor: Predictor, pair: tuple[int, int], confidence: float = CONFIDENCE) -> None:
        if pair not in predictor.pairs:
            have = ", ".join(f"{high}-{low}" for high, low in predictor.pairs)
            raise PmpdError(f"the predictor knows nothing of {pair[0]}-{pair[1]}", f"choose one of {have}")
        if not 0 < confidence <= 1:
            raise PmpdError(f"a confidence of {confidence:g}", "give one above 0 and at most 1")
        super().__init__(pair)
        self._predictor, self._confidence = predictor, confidence

    def fresh(self) -> LearnedScheduler:
        """Another one that has seen no prompt yet."""
        high, low = self.precisions
        return LearnedScheduler(self._predictor, (high, low), self._confidence)

    def start(self, prefill: Evaluation) -> None:
        predictor = self._predictor
        probabilities = predictor.probabilities(self.precisions, *prefill.keys_values(predictor.layer))
        self.high_steps = predictor.steps[choose(probabilities, self._confidence)]


def choose(probabilities: Sequence[float], confidence: float) -> int:
    """The smallest class that is enough with a probability of `confidence`; classes rise."""
    total = 0.0
    for index, probability in enumerate(probabilities):
        total += float(probability)
        if total >= confidence:
            return index
    return len(probabilities) - 1  # rounding may keep the sum below 1


class RandomScheduler(_OneSwitch):
    """Draws the number of high steps for each prompt from a distribution: what the learned scheduler has to beat.

    The draw depends on the seed and the prompt alone, so that it does not matter in which order prompts come.

    Args:
        pair: the high and the low precision.
        steps: numbers of high steps to draw from.
        prior: their frequencies; equal ones where there are none.
        seed: another one draws others.
    """

    def __init__(
        self, pair: tuple[int, int], steps: Sequence[float], prior: Sequence[float] | None = None, seed: int = 0
    ) -> None:
        super().__init__(pair)
        self._steps, self._prior, self._seed = steps, prior, seed

    def start(self, prefill: Evaluation) -> None:
        prompt = zlib.crc32(prefill.tokens.tobytes())
        drawn = random.Random(f"{self._seed} {prompt}").choices(self._steps, self._prior)
        self.high_steps = drawn[0]
