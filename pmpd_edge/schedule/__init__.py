"""Schedulers: they decide at which precision each decode step is evaluated.

A scheduler is asked once after the prompt has been evaluated (`start`) and then before every decode step (`next`). It
may step down by several levels, and up again. It sees the context only through `Evaluation`, and reads from it only
what it needs: reading costs time, and on a GPU a synchronisation. One scheduler serves one answer at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

METHODS = ("pmpd", "high", "low", "lossless")


class Evaluation(Protocol):
    """What the last evaluation left in the context."""

    @property
    def n_tokens(self) -> int:
        """Number of tokens in the KV cache."""

    @property
    def tokens(self) -> npt.NDArray[np.intc]:
        """Their ids, `[n_tokens]`: a view that the next evaluation may change."""

    def logits(self) -> npt.NDArray[np.float32]:
        """The last token's logits, `[n_vocab]`: a view that the next evaluation overwrites."""

    def keys_values(self, layer: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """K (after RoPE) and V of a layer, each `[n_tokens, n_head_kv, head_dim]`; -1 is the last layer."""


class Scheduler(Protocol):
    """Decides the precision of each decode step of one answer."""

    @property
    def precisions(self) -> tuple[int, ...]:
        """All precisions that `next` may return; their weights are loaded before the answer starts."""

    def start(self, prefill: Evaluation) -> None:
        """The prompt has been evaluated; an answer begins."""

    def next(self, step: int, last: Evaluation) -> int:
        """The precision of decode step `step` (1 is the first); `last` is what the step before it left."""
