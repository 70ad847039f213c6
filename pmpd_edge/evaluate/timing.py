"""How fast methods answer, one prompt at a time, as a chat would see it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pmpd_edge.evaluate.methods import Method
from pmpd_edge.runner import Pmpd
from pmpd_edge.stream import Sampling, stream


@dataclass
class Timing:
    """Of one method, a figure for each prompt.

    Attributes:
        decode: tokens/s of its decode steps.
        first: seconds to the first token.
    """

    decode: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)

    @property
    def decode_tokens_per_second(self) -> float:
        """The median."""
        return statistics.median(self.decode)

    @property
    def first_token_seconds(self) -> float:
        """The median."""
        return statistics.median(self.first)


def measure(
    llm: Pmpd,
    methods: Sequence[Method],
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    progress: Callable[[float], None] = lambda fraction: None,
    draft_tokens: int | str = "auto",
) -> dict[str, Timing]:
    """Answer prompts with each method by turns, so that what else the machine does hits all of them.

    Args:
        llm: it is configured anew, and left at some method.
        methods: what is compared.
        prompts: token ids; the first one is answered once more before, to warm up.
        max_new_tokens: length of an answer at most.
        progress: called with the fraction that is done.
        draft_tokens: of the methods that draft.

    Returns:
        By the methods' names; a method that decodes nothing has no speed.
    """
    found = {method.name: Timing() for method in methods}
    rounds = [prompts[0], *prompts] if prompts else []
    for i, prompt in enumerate(rounds):
        for j, method in enumerate(methods):
            progress((i + j / len(methods)) / len(rounds))
            kind = "lossless" if method.drafts else "pmpd"
            scheduler = method.scheduler()
            llm.configure(method=kind, scheduler=scheduler, prefill=method.prefill, draft_tokens=draft_tokens)
            llm.reset()  # no prefix is kept from the method before
            for _ in stream(llm, prompt, Sampling(), max_new_tokens):
                pass
            if i and llm.stats.decode_precisions:
                found[method.name].decode.append(llm.stats.decode_tokens_per_second)
                found[method.name].first.append(llm.stats.prefill_seconds)
    return {name: timing for name, timing in found.items() if timing.decode}
