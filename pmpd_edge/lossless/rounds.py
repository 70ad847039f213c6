"""Generates an answer in rounds: the low level drafts, the verifier evaluates the drafts at once, and keeps what it
would have written itself.

The drafts' KV rows are removed before the verification, so every row that stays was computed by the verifier. Verified
tokens are given one by one, and until the next is asked for, the context looks as if it had just been evaluated up to
the last: tokens, KV record and logits. A caller may leave, or evaluate something, at any of them.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from pmpd_edge import native
from pmpd_edge.lossless.drafter import Drafter
from pmpd_edge.lossless.sampling import Choice, Sampler, judge, random_numbers
from pmpd_edge.stats import DraftingStats, GenerationStats, Round

if TYPE_CHECKING:
    from pmpd_edge.runner import Pmpd
    from pmpd_edge.schedule import Scheduler


@dataclass(frozen=True)
class _Draft:
    """A drafted token, and what it was drawn from; None where it was the likeliest."""

    token: int
    choice: Choice | None


class Rounds:
    """One answer.

    Args:
        llm: what evaluates; its prompt has not been evaluated yet.
        options: of `llama_cpp.Llama.generate`.
        scheduler: says at which precision each token is to be computed: the verifier's.
        drafter: says how many tokens to draft, and learns what became of them.
        stats: of the answer, with `drafting`.
    """

    def __init__(
        self,
        llm: Pmpd,
        options: Mapping[str, Any],
        scheduler: Scheduler,
        drafter: Drafter,
        stats: GenerationStats,
    ) -> None:
        assert stats.drafting
        self._llm, self._scheduler, self._stats = llm, scheduler, stats
        self._drafting: DraftingStats = stats.drafting
        self._drafter = drafter
        self._stopping_criteria = options["stopping_criteria"]
        self._sampler = Sampler(llm, options)
        self._precision: int | None = None  # of the next token, where the scheduler has been asked already

    @cached_property
    def _rng(self) -> np.random.RandomState:
        return random_numbers(self._llm._seed)

    def tokens(self, prompt: Sequence[int]) -> Generator[int, Any, None]:
        """The answer's tokens; `prompt` is what is not evaluated yet.

        Tokens that are sent are not looked at: to llama_cpp they are drafts, which change no answer.
        """
        llm = self._llm
        llm.eval(prompt)
        token = self._sampler.sample()
        goes_on = yield from self._give(token, kept=False)
        while goes_on:
            token, goes_on = yield from self._round(token)

    def _give(self, token: int, kept: bool) -> Generator[int, Any, bool]:
        """Give a token; returns whether the answer goes on."""
        self._stats.precisions.append(self._llm.precision)
        self._drafting.kept.append(kept)
        if self._stopping_criteria and self._stopping_criteria(self._llm.tokens, self._llm.logits()):
            return False
        yield token
        return True

    def _round(self, token: int) -> Generator[int, Any, tuple[int, bool]]:
        """Draft and verify what follows a token, and give what is kept and the verifier's token after it.

        Returns:
            The last token, and whether the answer goes on.
        """
        llm = self._llm
        precision = self._next_precision()
        count = self._room(precision)
        if not count:
            return (yield from self._step(token, precision))
        drafts, done = self._draft(token, count)
        goes_on = True
        try:
            first = self._verify(token, drafts, precision, done)
            self._drafting.rounds.append(done)
            for i in range(self._rows(drafts)):
                if i and not self._asks_for(precision):
                    break
                draft = drafts[i] if i < len(drafts) else None
                at = first + i, i
                llm._show(*at)
                token = self._judge(draft, done)
                done.tokens += 1
                kept = draft is not None and token == draft.token
                goes_on = yield from self._give(token, kept)
                if not (goes_on and kept and llm._shows(*at)):
                    break
            return token, goes_on
        finally:
            if done.tokens:  # else it has failed
                self._drafter.record(precision, done)

    def _step(self, token: int, precision: int) -> Generator[int, Any, tuple[int, bool]]:
        """A round without drafts: what the verifier alone would do, and as little more as can be, as it is short."""
        llm, start = self._llm, perf_counter()
        if precision != llm.precision:
            llm.set_precision(precision)
        llm._eval([token])
        token = self._sampler.sample()
        done = Round(0, tokens=1, verifying_seconds=perf_counter() - start)
        self._drafting.rounds.append(done)
        self._drafter.record(precision, done)
        return token, (yield from self._give(token, kept=False))

    def _next_precision(self) -> int:
        asked, self._precision = self._precision, None
        return self._scheduler.next(len(self._stats.precisions), self._llm) if asked is None else asked

    def _asks_for(self, precision: int) -> bool:
        """Whether the scheduler wants the next token at this precision; where not, the next round knows at which."""
        asked = self._next_precision()
        self._precision = asked if asked != precision else None
        return asked == precision

    def _room(self, precision: int) -> int:
        """The number of tokens to draft, as far as the context and one evaluation have room for them."""
        llm, count = self._llm, self._drafter.count(precision)
        return count and max(min(count, llm.n_ctx() - llm.n_tokens - 1, llm.n_batch - 1), 0)

    def _draft(self, token: int, count: int) -> tuple[list[_Draft], Round]:
        """Go on at the low level by a token or more, and take it back; ends early where the answer would."""
        llm, drafts, done = self._llm, list[_Draft](), Round(0)
        start, sampler, n_tokens = perf_counter(), self._sampler.fork(), llm.n_tokens
        try:
            llm.set_precision(self._drafter.precision)
            while len(drafts) < count and not (drafts and self._ends(token)):
                llm._eval([token])
                drafts.append(self._draw(sampler))
                token = drafts[-1].token
        finally:
            llm._give_up(n_tokens)
            sampler.close()
        done.drafted, done.drafting_seconds = len(drafts), perf_counter() - start
        return drafts, done

    def _draw(self, sampler: Sampler) -> _Draft:
        if sampler.is_greedy:
            return _Draft(sampler.sample(), None)
        choice = sampler.choose()
        token = choice.draw(self._rng)
        sampler.accept(token)
        return _Draft(token, choice)

    def _verify(self, token: int, drafts: Sequence[_Draft], precision: int, done: Round) -> int:
        """Evaluate a token and the drafts after it at the verifier's level; returns the number of tokens up to it."""
        llm, start = self._llm, perf_counter()
        if precision != llm.precision:
            llm.set_precision(precision)
        rows = [draft.token for draft in drafts[: self._rows(drafts) - 1]]
        llm._eval([token, *rows], all_logits=True)
        done.verifying_seconds += perf_counter() - start
        return llm.n_tokens - len(rows)

    def _rows(self, drafts: Sequence[_Draft]) -> int:
        """Rows whose logits are of use: none after a token that ends the answer."""
        return len(drafts) + (not self._ends(drafts[-1].token))

    def _judge(self, draft: _Draft | None, done: Round) -> int:
        """The verifier's next token: the draft, or its own."""
        start = perf_counter()
        if draft and draft.choice:
            token = judge(draft.token, draft.choice, self._sampler.choose(), self._rng)
            self._sampler.accept(token)
        else:
            token = self._sampler.sample()
        if draft:
            done.kept += token == draft.token
            done.rejected = token != draft.token
        done.verifying_seconds += perf_counter() - start
        return token

    def _ends(self, token: int) -> bool:
        """Whether the model ends its answer with this token."""
        return bool(native.load().llama_vocab_is_eog(self._llm._model.vocab, token))
