"""What one answer took and at which precisions it was computed. Data only; drawing it is the caller's business."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from pmpd_edge.bundle import Switch


@dataclass
class GenerationStats:
    """Statistics of one generation; they grow while it runs.

    Attributes:
        method: pmpd, high or low.
        bpw: real bits per weight of each precision that was used.
        prompt_tokens: tokens of the prompt.
        reused_tokens: those of them whose KV rows were kept from before.
        reused_low_tokens: those of the kept rows that were computed at another precision than prefill's (only where
            keeping them was asked for).
        prefill_precision: precision at which the rest of the prompt was evaluated.
        prefill_seconds: from the start of prefill to the first sampled token.
        decode_seconds: time in decode steps and in sampling from them; not the time that the caller takes between two.
        precisions: of every sampled token, the first (prefill's) included; an end-of-answer token counts.
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
        """The statistics for programs, derived figures included."""
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
        }
