"""What one answer took and at which precisions it was computed. Data only; drawing it is the caller's business."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from pmpd_edge.bundle import Switch


@dataclass
class Round:
    """One verification of lossless decoding, or one step without drafts.

    Attributes:
        drafted: tokens that were drafted.
        kept: those of them that became part of the answer.
        rejected: whether the next one was replaced by another token; false where none was left to judge.
        tokens: of the answer, the verifier's own included.
        drafting_seconds, verifying_seconds: what it took; a step without drafts counts as verifying.
    """

    drafted: int
    kept: int = 0
    rejected: bool = False
    tokens: int = 0
    drafting_seconds: float = 0.0
    verifying_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """What it took in all."""
        return self.drafting_seconds + self.verifying_seconds


@dataclass
class DraftingStats:
    """What lossless decoding drafted.

    Attributes:
        precision: of the drafts.
        rounds: verifications and steps without drafts, in their order; none where no draft could have paid.
        kept: of every sampled token, the first (prefill's) included, whether it had been drafted; empty without rounds.
    """

    precision: int
    rounds: list[Round] = field(default_factory=list)
    kept: list[bool] = field(default_factory=list)

    @property
    def acceptance(self) -> float | None:
        """The share of drafts that became part of the answer; None where there were none."""
        drafted = sum(done.drafted for done in self.rounds)
        return sum(done.kept for done in self.rounds) / drafted if drafted else None

    @property
    def tokens_per_verification(self) -> float | None:
        """Tokens of the answer for each verification of drafts; None where there were none."""
        found = [done.tokens for done in self.rounds if done.drafted]
        return sum(found) / len(found) if found else None

    def to_dict(self) -> dict[str, Any]:
        """The statistics for programs; `draft_tokens` are the drafts of each of its `rounds`."""
        return {
            "precision": self.precision,
            "drafted": sum(done.drafted for done in self.rounds),
            "kept": sum(done.kept for done in self.rounds),
            "acceptance": self.acceptance,
            "verifications": sum(done.drafted > 0 for done in self.rounds),
            "tokens_per_verification": self.tokens_per_verification,
            "draft_tokens": [done.drafted for done in self.rounds],
            "drafting_seconds": sum(done.drafting_seconds for done in self.rounds),
            "verifying_seconds": sum(done.verifying_seconds for done in self.rounds),
        }


@dataclass
class GenerationStats:
    """Statistics of one generation; they grow while it runs.

    Attributes:
        method: pmpd, high, low or lossless.
        bpw: real bits per weight of each precision that was used.
        prompt_tokens: tokens of the prompt.
        reused_tokens: those of them whose KV rows were kept from before.
        reused_low_tokens: those of the kept rows that were computed at another precision than prefill's (only where
            keeping them was asked for).
        prefill_precision: precision at which the rest of the prompt was evaluated.
        prefill_seconds: from the start of prefill to the first sampled token.
        decode_seconds: time in decode steps and in sampling from them; not the time that the caller takes between two.
        precisions: of every sampled token, the first (prefill's) included; an end-of-answer token counts.
        drafting: what `lossless` drafted; None for other methods.
    """

    method: str
    bpw: dict[int, float] = field(default_factory=dict)
    prompt_tokens: int = 0
    reused_tokens: int = 0
    reused_low_tokens: int = 0
    prefill_precision: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    precisions: list[int] = field(default_factory=list)
    drafting: DraftingStats | None = None

    def add_seconds(self, seconds: float, is_first: bool) -> None:
        """Count the time that a token took, the first or a later one."""
        if is_first:
            self.prefill_seconds += seconds
        else:
            self.decode_seconds += seconds

    def is_drafted(self, index: int) -> bool:
        """Whether a sampled token had been drafted."""
        return self.drafting is not None and index < len(self.drafting.kept) and self.drafting.kept[index]

    @property
    def decode_precisions(self) -> list[int]:
        """Precision of each decode step, from step 1 on."""
        return self.precisions[1:]

    @property
    def prefill_tokens_per_second(self) -> float:
        """Evaluated prompt tokens per second, kept ones not counted; 0 before the first token."""
        evaluated = self.prompt_tokens - self.reused_tokens
        return evaluated / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """Decode steps per second; 0 before the first step."""
        return len(self.decode_precisions) / self.decode_seconds if self.decode_seconds else 0.0

    @property
    def average_bitwidth(self) -> float | None:
        """Mean nominal precision over the decode steps, the paper's "Bit"; None before the first step."""
        steps = self.decode_precisions
        return sum(steps) / len(steps) if steps else None

    @property
    def average_bpw(self) -> float | None:
        """Mean real bits per weight over the decode steps; None before the first step."""
        steps = self.decode_precisions
        return sum(self.bpw[precision] for precision in steps) / len(steps) if steps else None

    @property
    def switches(self) -> list[Switch]:
        """The changes of precision between two tokens, by the decode step that made them."""
        pairs = enumerate(pairwise(self.precisions), start=1)
        return [Switch(step, after) for step, (before, after) in pairs if before != after]

    def to_dict(self) -> dict[str, Any]:
        """The statistics for programs, derived figures included; `drafting` only where there was a drafter."""
        drafting = {"drafting": self.drafting.to_dict()} if self.drafting else {}
        return {
            "method": self.method,
            "prompt_tokens": self.prompt_tokens,
            "reused_tokens": self.reused_tokens,
            "reused_low_tokens": self.reused_low_tokens,
            "prefill_precision": self.prefill_precision,
            "prefill_seconds": self.prefill_seconds,
            "prefill_tokens_per_second": self.prefill_tokens_per_second,
            "decode_steps": len(self.decode_precisions),
            "decode_seconds": self.decode_seconds,
            "decode_tokens_per_second": self.decode_tokens_per_second,
            "average_bitwidth": self.average_bitwidth,
            "average_bpw": self.average_bpw,
            "switches": [{"step": switch.step, "precision": switch.precision} for switch in self.switches],
            **drafting,
        }
