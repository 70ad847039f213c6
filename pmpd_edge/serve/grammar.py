"""Keeps what is sampled within a grammar.

llama.cpp has a sampler for that, which ends the process where the vocabulary cannot write what the grammar asks for,
or where the grammar is none. Here the sampler only judges: such an answer ends, and such a grammar is an error.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pmpd_edge import native
from pmpd_edge.errors import PmpdError

if TYPE_CHECKING:
    from pmpd_edge.runner import Pmpd

_CANDIDATE = np.dtype([("id", np.intc), ("logit", np.single), ("p", np.single)], align=True)  # llama_token_data


class Grammar:
    """Says for one answer, token by token, what may come next; `close` it then.

    Args:
        llm: the model whose vocabulary is judged.
        text: the grammar in llama.cpp's notation, from `root` on.

    Raises:
        PmpdError: llama.cpp cannot read the grammar.
    """

    def __init__(self, llm: Pmpd, text: str) -> None:
        self._library = native.load()
        with native.captured_log() as log:
            self._sampler = self._library.llama_sampler_init_grammar(llm._model.vocab, text.encode(), b"root")
        if not self._sampler:
            raise PmpdError(f"llama.cpp cannot follow the grammar ({log.reason('no reason given')})", "make it simpler")
        self._end = llm.token_eos()
        self._candidates = np.zeros(llm.n_vocab(), _CANDIDATE)
        self._candidates["id"] = np.arange(llm.n_vocab())
        self._begun = self._stuck = False

    def __call__(self, tokens: npt.NDArray[np.intc], logits: npt.NDArray[np.single]) -> npt.NDArray[np.single]:
        """The logits `[n_vocab]`, minus infinity for what may not come next.

        Args:
            tokens: all that was evaluated; from the second call on its last one is what was sampled before.
            logits: of all tokens, in the order of their ids.
        """
        if self._begun and not self._stuck:
            self._library.llama_sampler_accept(self._sampler, int(tokens[-1]))
        self._begun = True
        self._candidates["logit"] = logits
        if not self._stuck:
            self._library.llama_sampler_apply(self._sampler, ctypes.byref(self._array()))
            self._stuck = not np.isfinite(self._candidates["logit"]).any()
        if self._stuck:
            self._candidates["logit"] = -np.inf
            self._candidates["logit"][self._end] = 0
        return self._candidates["logit"]

    def _array(self) -> Any:
        kind = self._library.llama_token_data_array
        pointer = ctypes.cast(self._candidates.ctypes.data, ctypes.POINTER(self._library.llama_token_data))
        return kind(data=pointer, size=len(self._candidates), selected=-1, sorted=False)

    def close(self) -> None:
        """Free the sampler."""
        self._library.llama_sampler_free(self._sampler)
