"""Answers that must be the same, up to the noise of evaluating several tokens at once.

That changes the last bits of logits. Where the two likeliest tokens lie closer than that, either may come, and which
one depends on the CPU; two answers that part there have nothing more to say about each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sampled import GENERATE

from pmpd_edge import Pmpd
from pmpd_edge.lossless.sampling import Sampler


def agreed(
    llm: Pmpd,
    prompt: Sequence[int],
    got: Sequence[int],
    expected: Sequence[int],
    precisions: Sequence[int] = (),
    **options: Any,
) -> int:
    """The number of tokens after which two answers of likeliest tokens part, which may be that of all.

    Args:
        llm: what it has evaluated is lost where they part.
        precisions: of the expected answer's tokens; by default everything is at 8.
        options: of sampling, as `generate` takes them.

    Raises:
        AssertionError: they part where the two tokens are not as likely up to the noise.
    """
    n = next((i for i, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b), None)
    if n is None:
        assert len(got) == len(expected)
        return len(got)
    logits = _logits(llm, prompt, expected[:n], precisions or [8] * (n + 1), options)
    gap = abs(float(logits[got[n]] - logits[expected[n]]))
    assert gap <= 4 * noise(llm, [*prompt, *expected[:n]]), f"token {n} differs, at a gap of {gap}"
    return n


def noise(llm: Pmpd, tokens: Sequence[int]) -> float:
    """How much logits differ that were evaluated together and one by one."""
    n = len(tokens) - 8
    found = []
    for size in (1, 2, 4, 8):
        llm.reset()
        llm.set_precision(8)
        llm.eval(list(tokens[:n]))
        for at in range(n, len(tokens), size):
            llm.eval(list(tokens[at : at + size]))
        found.append(llm.logits().copy())
    return float(max(np.abs(other - found[0]).max() for other in found[1:]))


def _logits(
    llm: Pmpd, prompt: Sequence[int], answer: Sequence[int], precisions: Sequence[int], options: dict[str, Any]
) -> npt.NDArray[np.float32]:
    """Logits after an answer's beginning, evaluated token by token, as a sampler chain changes them."""
    llm.reset()
    sampler = Sampler(llm, {**GENERATE, "temp": 0.0, **options})
    for tokens, precision in zip([list(prompt), *([token] for token in answer)], precisions, strict=False):
        llm.set_precision(precision)
        llm.eval(tokens)
    for token in answer:
        sampler.accept(token)
    sampler.choose()
    found = np.empty(llm.n_vocab(), dtype=np.float32)
    found[sampler._candidates["id"]] = sampler._candidates["logit"]
    sampler.close()
    return found
