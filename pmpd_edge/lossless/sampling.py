"""Which token a sampler chain leaves, with which probability, and whether a draft may stand for the verifier's.

Speculative sampling (Leviathan et al. 2023, Chen et al. 2023): a draft from the distribution q is kept with probability
min(1, p / q), and otherwise replaced by a draw from the positive part of p - q; what is given is then distributed as p.
Knows nothing about levels, rounds or the KV cache.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pmpd_edge import native
from pmpd_edge.errors import PmpdError

if TYPE_CHECKING:
    from pmpd_edge.runner import Pmpd

Processor = Callable[[npt.NDArray[np.intc], npt.NDArray[np.single]], npt.NDArray[np.single]]

CANDIDATE = np.dtype([("id", np.intc), ("logit", np.single), ("p", np.single)], align=True)  # llama_token_data


@dataclass(frozen=True)
class Choice:
    """What a sampler chain makes of logits.

    Attributes:
        token: what it draws with its own random numbers.
        ids, probabilities: `[n_candidates]`, what it draws from; one candidate where it takes the likeliest.
    """

    token: int
    ids: npt.NDArray[np.intc]
    probabilities: npt.NDArray[np.float64]

    def probability(self, token: int) -> float:
        """Of a token; 0 where the chain has left it out."""
        return float(self.probabilities[self.ids == token].sum())

    def draw(self, rng: np.random.RandomState) -> int:
        """A token, drawn with other random numbers than the chain's."""
        return _draw(self.ids, self.probabilities, rng)


def random_numbers(seed: int) -> np.random.RandomState:
    """Random numbers to draw and judge an answer's drafts with.

    Numpy has newer generators, but this one is in C++ too (std::mt19937): libpmpd gives the same tokens for the same
    seed. As llama.cpp's chain also draws with it, the seed is not the same but its complement.

    Args:
        seed: of the answer, 32 bits of it; 0xFFFFFFFF is another one each time, as for llama.cpp.
    """
    complement = ~seed & 0xFFFFFFFF
    return np.random.RandomState(complement or None)


def judge(draft: int, drafter: Choice, verifier: Choice, rng: np.random.RandomState) -> int:
    """The draft, where it may stand, or else the token that replaces it, which is never the draft.

    Args:
        draft: drawn from `drafter`.
        drafter, verifier: the distributions q and p.
        rng: random numbers that the draft does not depend on.
    """
    if rng.random_sample() * drafter.probability(draft) < verifier.probability(draft):
        return draft
    size = 1 + max(int(verifier.ids.max()), int(drafter.ids.max()))
    drafted = np.zeros(size)
    drafted[drafter.ids] = drafter.probabilities
    rest = np.maximum(verifier.probabilities - drafted[verifier.ids], 0)  # nothing for the draft: q is above p there
    if not rest.any():  # p and q are one up to rounding
        return verifier.token
    return _draw(verifier.ids, rest, rng)


def _draw(ids: npt.NDArray[np.intc], weights: npt.NDArray[np.float64], rng: np.random.RandomState) -> int:
    sums = np.cumsum(weights)
    if not np.isfinite(sums[-1]):
        raise PmpdError("the logits are not finite", "convert the model again, or use another precision")
    return int(ids[np.searchsorted(sums, rng.random_sample() * sums[-1], side="right")])


def check(options: Mapping[str, Any]) -> None:
    """Refuse options of `llama_cpp.Llama.generate` with which nothing can be drafted.

    Raises:
        PmpdError: mirostat was asked for: it changes with every token that it looks at, kept or not.
    """
    if options["mirostat_mode"] and options["temp"] > 0:
        raise PmpdError("mirostat and drafting do not go together", "leave mirostat out, or choose another method")


class Sampler:
    """A llama_cpp sampler chain of one answer, which can be forked to look ahead.

    Attributes:
        is_greedy: whether it takes the likeliest token.

    Args:
        llm: what it samples from.
        options: of `llama_cpp.Llama.generate`, all of them that concern sampling.
    """

    def __init__(self, llm: Pmpd, options: Mapping[str, Any]) -> None:
        self._llm, self._library = llm, native.load()
        kinds = signature(llm._init_sampler).parameters.keys() & options.keys()
        self._chain = llm._init_sampler(**{name: options[name] for name in kinds - {"logits_processor"}})
        self._processors: Sequence[Processor] = options["logits_processor"] or ()
        self.is_greedy: bool = options["temp"] == 0
        self._ids = np.arange(llm.n_vocab(), dtype=np.intc)
        self._candidates = np.zeros(llm.n_vocab(), CANDIDATE)

    def sample(self) -> int:
        """The token that the chain draws after the last one in the context; it is accepted."""
        if not self._processors:
            return int(self._chain.sample(self._llm._ctx, self._llm._row))
        token = self.choose().token
        self.accept(token)
        return token

    def choose(self) -> Choice:
        """What the chain makes of the logits of the last token in the context."""
        tokens, logits = self._llm.tokens, self._llm.logits()
        for processor in self._processors:
            logits = processor(tokens, logits.copy())
        self._candidates["id"] = self._ids
        self._candidates["logit"] = logits
        kept = self._apply()
        token = int(kept["id"][self._selected])
        if self.is_greedy:
            return Choice(token, np.array([token], dtype=np.intc), np.ones(1))
        return Choice(token, kept["id"].copy(), kept["p"].astype(np.float64))

    def _apply(self) -> npt.NDArray[Any]:
        """The candidates that the chain leaves: a view."""
        library = self._library
        pointer = ctypes.cast(self._candidates.ctypes.data, ctypes.POINTER(library.llama_token_data))
        array = library.llama_token_data_array(data=pointer, size=len(self._ids), selected=-1, sorted=False)
        library.llama_sampler_apply(self._chain.sampler, ctypes.byref(array))
        self._selected = int(array.selected)
        return self._candidates[: array.size]

    def accept(self, token: int) -> None:
        """Take a token for a part of the answer: penalties and grammars go on from it."""
        self._chain.accept(token)

    def fork(self) -> Sampler:
        """Another one in the same state."""
        other = object.__new__(Sampler)
        other.__dict__.update(self.__dict__)
        other._chain = self._chain.clone()
        return other

    def close(self) -> None:
        """Free the chain."""
        self._chain.close()
