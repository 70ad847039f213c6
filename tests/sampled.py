"""For tests of sampling: llama_cpp's options, and Pearson's chi-square test for counts whose seeds are fixed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

GENERATE = {
    "top_k": 40, "top_p": 0.95, "min_p": 0.05, "typical_p": 1.0, "temp": 0.8, "repeat_penalty": 1.0,
    "frequency_penalty": 0.0, "presence_penalty": 0.0, "tfs_z": 1.0, "mirostat_mode": 0, "mirostat_tau": 5.0,
    "mirostat_eta": 0.1, "penalize_nl": True, "logits_processor": None, "grammar": None,
}  # fmt: skip


def chi_square(found: npt.ArrayLike, expected: npt.ArrayLike) -> float:
    """The statistic of counts against the counts that are expected, all of them above 0."""
    counts, means = np.asarray(found, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    return float(((counts - means) ** 2 / means).sum())


def critical(degrees: int, sigmas: float = 3.3) -> float:
    """What the statistic exceeds in one of 2000 cases (3.3 sigmas): Wilson and Hilferty's approximation."""
    part = 2 / (9 * degrees)
    return float(degrees * (1 - part + sigmas * part**0.5) ** 3)
