"""At which level `lossless` drafts, and how many tokens at a time; measures what decides that when it has to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pmpd_edge import native
from pmpd_edge.errors import PmpdError
from pmpd_edge.lossless import costs
from pmpd_edge.lossless.planner import Planner
from pmpd_edge.stats import GenerationStats, Round

if TYPE_CHECKING:
    from pmpd_edge.runner import Pmpd

AUTO = "auto"


class Drafter:
    """A level that drafts for others.

    Args:
        precision: of the drafts.
        draft_tokens: how many at a time, or `auto`: what planners say, which go on from answer to answer.

    Raises:
        PmpdError: no such number.
    """

    def __init__(self, precision: int, draft_tokens: int | str) -> None:
        if draft_tokens != AUTO and not (isinstance(draft_tokens, int) and draft_tokens > 0):
            raise PmpdError(f"{draft_tokens!r} draft tokens", "give a number from 1 on, or auto")
        self.precision, self.draft_tokens = precision, draft_tokens
        self._planners: dict[tuple[int, int], Planner] = {}  # by the precisions of drafts and verifier

    def keep(self, other: Drafter) -> None:
        """Go on with what another one for the same context has measured and learned."""
        self._planners = other._planners

    def prepare(self, llm: Pmpd, verifiers: Iterable[int]) -> None:
        """Load the level, and measure what drafting costs, where that has to be known and is not.

        Args:
            llm: has what it has evaluated afterwards, but no logits.
            verifiers: precisions; their weights are loaded.

        Raises:
            PmpdError: the model's KV cache cannot take drafts back.
        """
        if kind := obstacle(llm):
            raise PmpdError(
                f"{llm.bundle.name}: lossless takes drafts back, which is not possible with {kind}",
                "use another method",
            )
        llm.levels.load(self.precision)
        for verifier in verifiers if self.draft_tokens == AUTO else ():
            pair = self.precision, verifier
            if verifier > self.precision and pair not in self._planners:
                found = costs.measure(llm, *pair)
                if found:
                    self._planners[pair] = Planner(found)

    def may_draft(self, verifiers: Iterable[int]) -> bool:
        """Whether an answer may have drafts at all: for `auto`, whether any could pay."""
        pairs = [(self.precision, verifier) for verifier in verifiers if verifier > self.precision]
        if self.draft_tokens != AUTO:
            return bool(pairs)
        return any(pair in self._planners and self._planners[pair].can_pay for pair in pairs)

    def count(self, verifier: int) -> int:
        """The number of tokens to draft now; 0 where the verifier is no better, or nothing is known of it."""
        if verifier <= self.precision:
            return 0
        if isinstance(self.draft_tokens, int):
            return self.draft_tokens
        planner = self._planners.get((self.precision, verifier))
        return planner.next() if planner else 0

    def record(self, verifier: int, done: Round) -> None:
        """Learn from a round."""
        planner = self._planners.get((self.precision, verifier))
        if planner and self.draft_tokens == AUTO:
            planner.record(done)

    def record_steps(self, stats: GenerationStats) -> None:
        """Learn from an answer that could have no drafts: its steps may turn out slower than they were measured."""
        steps = stats.decode_precisions
        if len(set(steps)) == 1:
            self.record(steps[0], Round(0, tokens=1, verifying_seconds=stats.decode_seconds / len(steps)))

    def forecast(self, verifier: int) -> str:
        """What drafting for a verifier promises on this device; empty where nothing was measured."""
        planner = self._planners.get((self.precision, verifier))
        return planner.forecast(self.precision, verifier) if planner and self.draft_tokens == AUTO else ""


def obstacle(llm: Pmpd) -> str:
    """What of a model keeps drafts from being taken back; empty where nothing does."""
    if native.load().llama_model_n_swa(llm.model) > 0 and not llm.context_params.swa_full:
        return "a sliding window"
    return "recurrent layers" if llm._is_recurrent or llm._is_hybrid else ""
