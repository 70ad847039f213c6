"""How many tokens to draft: what a round costs on this device against what it is likely to give.

A round drafts K tokens and verifies them in one evaluation. With a share `a` of drafts that stand, each on its own, it
gives 1 + a + ... + a^K tokens. Knows nothing about models: costs and rounds come in, numbers of drafts go out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pmpd_edge.stats import Round

# Drafts of the rounds whose costs are measured, and at most; those between are interpolated. From 8 rows on llama.cpp's
# CPU kernels add in another order, so that answers would be less often the same to the bit.
MEASURED = (1, 2, 4, 6)
LEAST_GAIN = 1.02  # as many times as fast as without drafts, or they are left out
MOST_LOSS = 0.02  # of the time without drafts
GRACE = 2.0  # steps that may be lost beyond that, to begin with
PROBE_EVERY = 48  # rounds: one of the other kind, to see whether it has changed
_ACCEPTANCE, _TRIALS = 0.8, 4.0  # what is expected before anything is known, and how firmly
_MEMORY = 0.98  # share that a draft leaves of what is known from those before
_WEIGHT = 0.1  # of a new time against those before it
_STALL = 2.0  # times the expected: somebody else's doing
_LEDGER_MEMORY = 0.995  # share that a round leaves of the time lost and gained before it


@dataclass
class Costs:
    """Seconds on this device; they follow what later rounds take.

    Attributes:
        step: a token without drafts, at the verifier's level.
        begin: what the first draft takes more than the others: the switch to its level.
        draft: each draft.
        verify: `[1 + most]`, to evaluate a token and so many drafts at once, the switch included; the first is a step.
    """

    step: float
    begin: float
    draft: float
    verify: list[float]

    @classmethod
    def of(cls, step: float, begin: float, draft: float, measured: Sequence[float]) -> Costs:
        """From verifications of as many drafts as `MEASURED` says, or the first few of them."""
        known = (0, *MEASURED[: len(measured)])
        return cls(step, begin, draft, np.interp(range(known[-1] + 1), known, (step, *measured)).tolist())

    @property
    def most(self) -> int:
        """The largest number of drafts whose costs are known."""
        return len(self.verify) - 1

    def gain(self, drafts: int, acceptance: float) -> float:
        """How many times as fast as without drafts a round with some is."""
        seconds = self.begin + drafts * self.draft + self.verify[drafts]
        return expected_tokens(drafts, acceptance) * self.step / seconds

    def fastest(self, acceptance: float) -> int:
        """The number of drafts, one at least, that gains most; how long a step takes makes no difference to it."""
        return max(range(1, self.most + 1), key=lambda drafts: self.gain(drafts, acceptance))

    def pays(self, drafts: int, acceptance: float) -> bool:
        """Whether so many drafts gain enough."""
        return self.gain(drafts, acceptance) >= LEAST_GAIN

    def best(self, acceptance: float) -> int:
        """The number of drafts that gains most; 0 where none gains enough."""
        fastest = self.fastest(acceptance)
        return fastest if self.pays(fastest, acceptance) else 0

    def break_even(self) -> float | None:
        """The smallest share of drafts that must stand for drafting to pay; None where not even all are enough."""
        return next((share / 100 for share in range(101) if self.best(share / 100)), None)

    def update(self, done: Round) -> None:
        """Take in what a round took."""
        if not done.drafted:
            self.step *= _correction(done.verifying_seconds, self.step)
            self.verify[0] = self.step
        elif done.drafted <= self.most:
            factor = _correction(done.drafting_seconds, self.begin + done.drafted * self.draft)
            self.begin, self.draft = self.begin * factor, self.draft * factor
            self.verify[done.drafted] *= _correction(done.verifying_seconds, self.verify[done.drafted])


def expected_tokens(drafts: int, acceptance: float) -> float:
    """Tokens that a round gives on average."""
    return drafts + 1.0 if acceptance >= 1 else (1 - acceptance ** (drafts + 1)) / (1 - acceptance)


def _correction(seconds: float, expected: float) -> float:
    return 1 + _WEIGHT * (min(seconds / expected, _STALL) - 1)


class Planner:
    """Chooses the number of drafts of each round, and none where they do not pay.

    Time that drafting loses against steps without drafts is kept account of: beyond `MOST_LOSS` of what the steps
    would have taken, and the first `GRACE` steps, no more is risked until it is made good.

    Attributes:
        can_pay: whether drafts would pay if all of them stood.

    Args:
        costs: as measured before.
    """

    can_pay: bool

    def __init__(self, costs: Costs) -> None:
        self.costs = costs
        self._trials = _TRIALS
        self._kept = _ACCEPTANCE * _TRIALS
        self._lost = self._plain = 0.0  # seconds: against steps without drafts, and what those would have taken
        self._since_probe = 0
        self._compare()
        self._decide()

    @property
    def acceptance(self) -> float:
        """The share of drafts that stand of late."""
        return self._kept / self._trials

    def next(self) -> int:
        """The number of drafts of the next round."""
        if self._lost > MOST_LOSS * self._plain + GRACE * self.costs.step:
            return 0
        if self._since_probe >= PROBE_EVERY:
            return 0 if self._best else int(self.can_pay)
        return self._best

    def record(self, done: Round) -> None:
        """Learn from a round that `next` asked for; it may have had fewer drafts, or been left."""
        self._since_probe = self._since_probe + 1 if bool(done.drafted) == bool(self._best) else 0
        self.costs.update(done)
        self._plain = _LEDGER_MEMORY * self._plain + done.tokens * self.costs.step
        self._lost *= _LEDGER_MEMORY
        if done.drafted:
            self._lost += done.seconds - done.tokens * self.costs.step
            judged = done.kept + done.rejected
            self._trials = _MEMORY**judged * self._trials + judged
            self._kept = _MEMORY**judged * self._kept + done.kept
            self._compare()
        self._decide()

    def _compare(self) -> None:
        """After drafts only: steps without are many and short, and change nothing here."""
        self._fastest, self._fastest_at_most = self.costs.fastest(self.acceptance), self.costs.fastest(1)

    def _decide(self) -> None:
        self._best = self._fastest if self.costs.pays(self._fastest, self.acceptance) else 0
        self.can_pay = self.costs.pays(self._fastest_at_most, 1)

    def forecast(self, draft: int, verifier: int) -> str:
        """What is to be expected of drafting on this device, in a sentence.

        Args:
            draft, verifier: precisions.
        """
        costs, needed = self.costs, self.costs.break_even()
        told = f"a draft at {draft} bits takes {costs.draft / costs.step:.2f} of a step at {verifier} bits here"
        if needed is None:
            return f"drafting cannot pay, so there will be no drafts: {told}"
        most = costs.gain(costs.best(1), 1)
        return f"drafting pays where {needed:.0%} of the drafts stand, up to {most:.2f}x: {told}"
