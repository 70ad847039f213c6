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
from pmpd_edge.lossless.sampling import CANDIDATE

if TYPE_CHECKING:
    from pmpd_edge.runner import Pmpd


class Grammar:
    """Says for one answer, token by token, what may come next; `close` it then.

    It goes by the tokens that it is given, also where those of the call before have been taken back, as drafts are.

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
        self._kept = [(0, self._library.llama_sampler_clone(self._sampler))]  # earlier states, by their tokens' number
        self._end = llm.token_eos()
        self._candidates = np.zeros(llm.n_vocab(), CANDIDATE)
        self._candidates["id"] = np.arange(llm.n_vocab())
        self._prompt: int | None = None
        self._answer: list[int] = []
        self._stuck = False

    def __call__(self, tokens: npt.NDArray[np.intc], logits: npt.NDArray[np.single]) -> npt.NDArray[np.single]:
        """The logits `[n_vocab]`, minus infinity for what may not come next.

        Args:
            tokens: all that was evaluated; in the first call the prompt, later the answer so far too.
            logits: of all tokens, in the order of their ids.
        """
        self._prompt = len(tokens) if self._prompt is None else self._prompt
        self._follow(tokens[self._prompt :].tolist())
        self._candidates["logit"] = logits
        if not self._stuck:
            self._library.llama_sampler_apply(self._sampler, ctypes.byref(self._array()))
            self._stuck = not np.isfinite(self._candidates["logit"]).any()
        if self._stuck:
            self._candidates["logit"] = -np.inf
            self._candidates["logit"][self._end] = 0
        return self._candidates["logit"]

    def _follow(self, answer: list[int]) -> None:
        """Take in what has been added to the answer, after taking back what is no part of it any more."""
        if answer[: len(self._answer)] != self._answer:
            pairs = enumerate(zip(answer, self._answer, strict=False))
            self._go_back(next((i for i, (new, old) in pairs if new != old), len(answer)))
        for token in answer[len(self._answer) :] if not self._stuck else ():
            self._library.llama_sampler_accept(self._sampler, token)
        self._answer = answer

    def _go_back(self, n_tokens: int) -> None:
        """Be as after the first tokens; that state is kept, as the next one to go back to is hardly before it."""
        if self._kept[-1][0] > n_tokens:
            self._library.llama_sampler_free(self._kept.pop()[1])
        known, state = self._kept[-1]
        self._library.llama_sampler_free(self._sampler)
        self._sampler = self._library.llama_sampler_clone(state)
        for token in self._answer[known:n_tokens]:
            self._library.llama_sampler_accept(self._sampler, token)
        if known:
            self._library.llama_sampler_free(self._kept.pop()[1])
        if n_tokens:
            self._kept.append((n_tokens, self._library.llama_sampler_clone(self._sampler)))
        del self._answer[n_tokens:]
        self._stuck = False

    def _array(self) -> Any:
        kind = self._library.llama_token_data_array
        pointer = ctypes.cast(self._candidates.ctypes.data, ctypes.POINTER(self._library.llama_token_data))
        return kind(data=pointer, size=len(self._candidates), selected=-1, sorted=False)

    def close(self) -> None:
        """Free the sampler and its earlier states."""
        for sampler in (self._sampler, *(state for _, state in self._kept)):
            self._library.llama_sampler_free(sampler)
