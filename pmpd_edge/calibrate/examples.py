"""What the learned scheduler's predictor is trained on. Neither torch nor llama.cpp is needed to hold it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Pair = tuple[int, int]  # a high and a low precision


@dataclass(frozen=True)
class Example:
    """A prompt as the predictor sees it, and the right answers.

    Attributes:
        prompt: token ids.
        keys, values: of the predictor's layer after prefill, each `[n_tokens, n_head_kv, head_dim]`.
        labels: for each pair the smallest class that is enough.
    """

    prompt: tuple[int, ...]
    keys: npt.NDArray[np.floating]
    values: npt.NDArray[np.floating]
    labels: Mapping[Pair, int]
