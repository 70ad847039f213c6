"""Tokens with their text, one after the other, as a terminal or a server shows them.

Takes tokens in and gives tokens out: it knows nothing about messages, templates or terminals.
"""

from __future__ import annotations

import codecs
import ctypes
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pmpd_edge import native
from pmpd_edge.errors import ContextFullError

if TYPE_CHECKING:
    from pmpd_edge.runner import Pmpd

Finish = Literal["", "stop", "length", "context"]


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen from the logits; temperature 0 takes the likeliest."""

    temperature: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0


@dataclass(frozen=True)
class Candidate:
    """A token with its bytes and the logarithm of the probability that the model gives it, whatever is sampled how."""

    id: int
    piece: bytes
    logprob: float


@dataclass
class Token:
    """One sampled token.

    Attributes:
        id: in the model's vocabulary.
        text: what it adds to the answer; empty until a character is complete, and for an end-of-answer token.
        precision: of the weights that computed the logits it was sampled from.
        finish: on the last token, why it is the last: `stop` (the model or a stop string ended the answer), `length`
            (max_new_tokens) or `context` (no room left); empty on all others.
        sampled: itself as a candidate, where probabilities were asked for.
        likeliest: as many of the likeliest candidates as were asked for, from the likeliest on.
        drafted: whether a lower level had drafted it (`lossless`).
    """

    id: int
    text: str
    precision: int
    finish: Finish = ""
    sampled: Candidate | None = None
    likeliest: tuple[Candidate, ...] = ()
    drafted: bool = False


def stream(
    llm: Pmpd,
    tokens: Sequence[int],
    sampling: Sampling,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    *,
    n_likeliest: int | None = None,
    grammar: Callable[[Any, Any], Any] | None = None,
    after_each: Callable[[], Any] = lambda: None,
) -> Generator[Token, None, None]:
    """Generate an answer token by token; closing the iterator stops generating.

    Every sampled token is given, an end-of-answer token included: they match `llm.stats.precisions` one by one. A token
    is held back while the text that ends with it may be the beginning of a stop string.

    Args:
        llm: the model; `llm.set_seed` and `llm.configure` take effect on the next call.
        tokens: the prompt.
        sampling: how tokens are chosen.
        max_new_tokens: the answer's length at most.
        stop: strings that end the answer and are not part of it.
        n_likeliest: give each token's probability, and this many of the likeliest tokens' beside it; None computes no
            probabilities.
        grammar: what may be sampled: takes the evaluated tokens and the logits `[n_vocab]`, and returns logits that
            are minus infinity elsewhere.
        after_each: is called after each sampled token, held back or not; what it raises ends the answer.

    Raises:
        ContextFullError: the prompt leaves no room for an answer.
        Cancelled: `llm.cancel` was called while the prompt was evaluated.
    """
    room = llm.n_ctx() - len(tokens)
    if room <= 0:
        raise ContextFullError(
            f"a prompt of {len(tokens)} tokens in a context of {llm.n_ctx()}", "shorten it, or raise --ctx-size"
        )
    pieces = _Pieces(llm)
    text = _StopText(stop)
    answer = llm.generate(
        tokens,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        temp=sampling.temperature,
        repeat_penalty=sampling.repeat_penalty,
        frequency_penalty=sampling.frequency_penalty,
        presence_penalty=sampling.presence_penalty,
        logits_processor=[grammar] if grammar else None,
    )
    with closing(answer):
        for i, token_id in enumerate(answer):
            after_each()
            finish: Finish = ""
            if pieces.ends(token_id):
                finish = "stop"
            elif i + 1 >= max_new_tokens:
                finish = "length"
            elif i + 1 >= room:
                finish = "context"
            token = Token(token_id, pieces.text(token_id, last=bool(finish)), llm.stats.precisions[i], finish)
            token.drafted = llm.stats.is_drafted(i)
            if n_likeliest is not None:
                token.sampled, token.likeliest = _candidates(llm, pieces, token_id, n_likeliest)
            yield from text.add(token)
            if token.finish:
                return


def _candidates(llm: Pmpd, pieces: _Pieces, token: int, n: int) -> tuple[Candidate, tuple[Candidate, ...]]:
    """The sampled token and the `n` likeliest ones, with their probabilities."""
    import numpy as np

    logits = llm.logits()
    highest = logits.max()
    total = highest + np.log(np.exp(logits - highest).sum(dtype=np.float64))
    likeliest = np.argpartition(-logits, n - 1)[:n] if n else np.empty(0, dtype=np.intp)
    likeliest = likeliest[np.argsort(-logits[likeliest], kind="stable")]
    sampled, *others = (Candidate(int(i), pieces.piece(int(i)), float(logits[i] - total)) for i in (token, *likeliest))
    return sampled, tuple(others)


class _Pieces:
    """The text of tokens: llama.cpp gives bytes, of which one character may take several tokens.

    llama_cpp's `detokenize` would go over the whole answer for each of its tokens, and loses pieces over 32 bytes.
    """

    def __init__(self, llm: Pmpd) -> None:
        self._library = native.load()
        self._vocab = llm._model.vocab
        self._bos = llm.token_bos()
        self._buffer = ctypes.create_string_buffer(64)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._first = True

    def ends(self, token: int) -> bool:
        """Whether the model ends its answer with this token."""
        return bool(self._library.llama_vocab_is_eog(self._vocab, token))

    def text(self, token: int, last: bool) -> str:
        """The characters that a token completes; at the last one, U+FFFD for what stays incomplete."""
        piece = b"" if self.ends(token) else self.piece(token)
        if self._first and token == self._bos:
            piece = piece.removeprefix(b" ")  # as llama_cpp does; else sentencepiece's leading space is kept
        self._first = False
        return self._decoder.decode(piece, final=last)

    def piece(self, token: int) -> bytes:
        """What a token is in llama.cpp's vocabulary; nothing for control tokens."""
        size = self._library.llama_token_to_piece(self._vocab, token, self._buffer, len(self._buffer), 0, False)
        if size < 0:  # the buffer is too small by this measure
            self._buffer = ctypes.create_string_buffer(-size)
            return self.piece(token)
        return self._buffer.raw[:size]


class _StopText:
    """Cuts an answer at the first stop string, and holds back tokens that may turn out to be part of one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = [word for word in stop if word]
        self._held: list[Token] = []

    def add(self, token: Token) -> Iterator[Token]:
        """The tokens that are certain now; the last one has a `finish`, set here where a stop string is complete."""
        self._held.append(token)
        text = "".join(held.text for held in self._held)
        found = [at for word in self._stop if (at := text.find(word)) >= 0]
        if found:
            token.finish = "stop"
            self._cut(min(found))
        certain = len(text) if token.finish else len(text) - self._doubtful(text)
        while self._held and (token.finish or len(self._held[0].text) <= certain):
            certain -= len(self._held[0].text)
            yield self._held.pop(0)

    def _doubtful(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        lengths = (n for word in self._stop for n in range(1, len(word)) if text.endswith(word[:n]))
        return max(lengths, default=0)

    def _cut(self, length: int) -> None:
        for held in self._held:
            held.text = held.text[:length]
            length -= len(held.text)
