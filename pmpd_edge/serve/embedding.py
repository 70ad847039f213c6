"""Texts as vectors: a decoder's last hidden states, pooled as its file says.

llama.cpp pools within one batch, in a context that was made for it. Here the states come out of the context that
answers, batch by batch: a text may be as long as the context, and no second KV cache is needed. What a conversation had
in the cache is gone then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pmpd_edge import native
from pmpd_edge.chat_template import Prompt
from pmpd_edge.stats import GenerationStats

if TYPE_CHECKING:
    from pmpd_edge.runner import Pmpd

POOLINGS = {0: "mean", 1: "mean", 2: "first", 3: "last"}  # by enum llama_pooling_type: none, mean, CLS, last
UNPOOLED = {"pooling_type": 0}  # the option of Pmpd with which hidden states come out as they are
BATCH = 64  # tokens; llama.cpp makes room for the logits of each of them

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True)
class EmbeddingTask:
    """One text to embed."""

    prompt: Prompt


@dataclass(frozen=True)
class Embedded:
    """Text `index` of a request is embedded.

    Attributes:
        vector: of length 1, `[n_embd]`.
    """

    index: int
    vector: Vector
    stats: GenerationStats


def pooling(llm: Pmpd) -> str | None:
    """How hidden states become one vector: as the model's file says, else their mean; None where it ranks texts."""
    return POOLINGS.get(int(llm.metadata.get(f"{llm.bundle.architecture}.pooling_type", 0)))


def embed(llm: Pmpd, task: EmbeddingTask, index: int, check: Callable[[], None]) -> Embedded:
    """Embed a text at prefill's precision.

    Args:
        llm: made with `UNPOOLED`; its context is another one afterwards.
        check: is called before each batch, and may raise.
    """
    tokens, start = task.prompt.tokens, perf_counter()
    llm.configure()
    llm.reset()
    llm.set_precision(llm.bundle.prefill)
    with _giving_states(llm):
        pooled = _pool(_hidden_states(llm, tokens, check), pooling(llm))
    seconds = perf_counter() - start
    stats = GenerationStats(
        llm.method, prompt_tokens=len(tokens), prefill_precision=llm.precision, prefill_seconds=seconds
    )
    return Embedded(index, pooled / np.linalg.norm(pooled).clip(min=np.finfo(np.float32).tiny), stats)


def _pool(states: Iterator[Vector], how: str | None) -> Vector:
    first = next(states)
    total, last, n = first.sum(0), first[-1], len(first)
    for batch in states:
        total, last, n = total + batch.sum(0), batch[-1], n + len(batch)
    return {"mean": total / n, "first": first[0], "last": last}[how or "mean"]


def _hidden_states(llm: Pmpd, tokens: Sequence[int], check: Callable[[], None]) -> Iterator[Vector]:
    """The hidden states after the last norm, batch by batch, `[n_tokens, n_embd]`."""
    library = native.load()
    n_embd = library.llama_model_n_embd_out(llm._model.model)
    for at in range(0, len(tokens), BATCH):
        check()
        batch = tokens[at : at + BATCH]
        llm.eval(batch)
        yield np.ctypeslib.as_array(library.llama_get_embeddings(llm.ctx), (len(batch), n_embd)).copy()


@contextmanager
def _giving_states(llm: Pmpd) -> Iterator[None]:
    library = native.load()
    library.llama_set_embeddings(llm.ctx, True)
    try:
        yield
    finally:
        library.llama_set_embeddings(llm.ctx, False)
