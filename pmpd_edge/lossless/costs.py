"""Measures what drafting and verifying cost, in the context that will do it; its tokens and rows stay as they are."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from pmpd_edge.errors import Cancelled
from pmpd_edge.lossless.planner import MEASURED, Costs

if TYPE_CHECKING:
    from pmpd_edge.runner import Pmpd

_REPETITIONS = 2  # the quicker one counts
_STEPS = 3


def measure(llm: Pmpd, draft: int, verifier: int) -> Costs | None:
    """Time rounds as they will be: drafts at one level, their verification at the other, and steps without drafts.

    Args:
        llm: it is left without logits; what it has evaluated stays, and so does its precision.
        draft, verifier: precisions; their weights are loaded.

    Returns:
        None where the context has no room to try.

    Raises:
        Cancelled: `llm.cancel` was called meanwhile.
    """
    before = llm.precision
    room = min(llm.n_ctx() - llm.n_tokens, llm.n_batch)
    sizes = [drafts for drafts in MEASURED if drafts + 1 <= room]
    if not sizes or room < _STEPS + 1:
        return None
    steps, firsts, drafts = [], [], []
    verifications: list[list[float]] = [[] for _ in sizes]
    for _ in range(_REPETITIONS):
        for found, size in zip(verifications, sizes, strict=True):
            first, *others = _time(llm, draft, 1, _STEPS)
            firsts.append(first)
            drafts += others
            found += _time(llm, verifier, size + 1, 1)
        steps += _time(llm, verifier, 1, _STEPS)[1:]  # the first one builds the graph
    llm.set_precision(before)
    begin = max(min(firsts) - min(drafts), 0.0)
    return Costs.of(min(steps), begin, min(drafts), [min(found) for found in verifications])


def _time(llm: Pmpd, precision: int, rows: int, times: int) -> list[float]:
    """Seconds of evaluations after each other, the switch in the first; their rows are given up."""
    # Different tokens: those of a kind would go to the same few experts of a mixture.
    tokens = np.random.default_rng(0).integers(0, llm.n_vocab(), rows).tolist()
    n_tokens, seconds = llm.n_tokens, []
    try:
        for i in range(times):
            if llm.is_cancelled:
                raise Cancelled("the evaluation was cancelled")
            start = perf_counter()
            if i == 0:
                llm.set_precision(precision)
            llm._eval(tokens, all_logits=True)
            llm.logits().max()  # waits for a GPU
            seconds.append(perf_counter() - start)
    finally:
        llm._give_up(n_tokens)
    return seconds
