"""How far a method's next-token distributions are from the reference level's, on the same answers.

Every method is led along the reference level's own answer: each evaluates it at its own precisions, and at each token
its distribution is compared with the reference's. So a difference is one of the weights and of what the KV cache holds,
not one of what was said before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from pmpd_edge.batch import Batch, Job
from pmpd_edge.evaluate.methods import Method
from pmpd_edge.schedule.fixed import FixedScheduler

Floats = npt.NDArray[np.float64]

COLUMNS = ("steps", "kl", "agreed", "steps after", "kl after", "agreed after")


@dataclass(frozen=True)
class Led:
    """How a method followed the reference along one answer.

    Attributes:
        kl: divergence of the reference's distribution from the method's at each token, in nats, `[n_tokens]`.
        agreed: whether both find the same token likeliest, `[n_tokens]`.
        precisions: of the method, `[n_tokens]`.
    """

    kl: Floats
    agreed: npt.NDArray[np.bool_]
    precisions: tuple[int, ...]

    def sums(self) -> list[float]:
        """`COLUMNS`: over the decode steps, and over those from the first switch on.

        Of a method that does not switch, all count in both: there is nothing before.
        """
        first = next((i for i, p in enumerate(self.precisions) if p != self.precisions[0]), 1)
        sums = ((len(self.kl[at:]), self.kl[at:].sum(), self.agreed[at:].sum()) for at in (1, first))
        return [float(value) for part in sums for value in part]


def lead(batch: Batch, prompt: Sequence[int], tokens: Sequence[int], methods: Sequence[Method], top: int) -> list[Led]:
    """Lead methods along an answer.

    Args:
        batch: the bundle, with room for the reference and one method at least.
        prompt: token ids.
        tokens: of the reference level's answer.
        methods: what is compared.
        top: precision of the reference level, which no method exceeds.
    """
    led: list[Led] = []
    size = batch.parallel - 1
    for at in range(0, len(methods), size):
        led += _lead(batch, prompt, tokens, methods[at : at + size], top)
    return led


def _lead(batch: Batch, prompt: Sequence[int], tokens: Sequence[int], methods: Sequence[Method], top: int) -> list[Led]:
    """All at once: they take the same tokens, so all are at the same step, the reference before the others."""
    kl = np.zeros((len(methods), len(tokens)))
    agreed = np.zeros(kl.shape, dtype=bool)
    expected: dict[int, Floats] = {}

    def watch_reference(index: int, logits: npt.NDArray[np.float32]) -> None:
        expected.clear()
        expected[index] = log_softmax(logits)

    def watch(method: int, index: int, logits: npt.NDArray[np.float32]) -> None:
        p, q = expected[index], log_softmax(logits)
        kl[method, index] = np.exp(p) @ (p - q)
        agreed[method, index] = p.argmax() == q.argmax()

    reference = Job(prompt, FixedScheduler(top), top, len(tokens), given=tokens, watch=watch_reference)
    others = [
        Job(prompt, method.scheduler(), method.prefill, len(tokens), given=tokens, watch=partial(watch, i))
        for i, method in enumerate(methods)
    ]
    _, *answers = batch.run([reference, *others])
    return [Led(kl[i], agreed[i], tuple(answer.precisions)) for i, answer in enumerate(answers)]


def log_softmax(logits: npt.NDArray[np.float32]) -> Floats:
    """ln of the probabilities, `[n_vocab]`."""
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())
