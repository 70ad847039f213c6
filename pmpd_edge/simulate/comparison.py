"""A schedule on a device, beside everything at one precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pmpd_edge.errors import PmpdError
from pmpd_edge.simulate.answer import Answer, simulate
from pmpd_edge.simulate.roofline import Roofline


@dataclass(frozen=True)
class Comparison:
    """Answers of one length.

    Attributes:
        levels: everything at one precision, for each that fits into memory.
        left_out: why the other precisions do not.
        schedule: what is compared with them, if anything, and its name.
    """

    roofline: Roofline
    levels: Mapping[int, Answer]
    left_out: Mapping[int, str]
    schedule: Answer | None
    name: str

    @property
    def answers(self) -> dict[str, Answer]:
        """The schedule and those of its precisions alone between which it moves; all levels where there is none."""
        if self.schedule is None:
            return {f"{precision} bits": answer for precision, answer in self.levels.items()}
        used = set(self.schedule.precisions)
        fixed = {f"{p} bits": self.levels[p] for p in (max(used), min(used)) if p in self.levels}
        return {self.name: self.schedule, **fixed}

    def document(self) -> dict[str, Any]:
        """Everything for programs; bytes and seconds."""
        model, device = self.roofline.model, self.roofline.device
        any_answer = self.schedule or next(iter(self.levels.values()))
        return {
            "model": model.name,
            "device": device.name,
            "prompt_tokens": any_answer.prompt_tokens,
            "new_tokens": len(any_answer.steps),
            "levels": [self._level(precision) for precision in self.levels],
            "schedule": self.schedule and {"name": self.name, **_answer(self.schedule)},
        }

    def _level(self, precision: int) -> dict[str, Any]:
        model = self.roofline.model
        level, answer = model.level(precision), self.levels[precision]
        return {
            "precision": precision,
            "type": level.type,
            "bpw": model.bpw(level),
            "weight_bytes": level.weight_bytes,
            "bytes_per_token": answer.decode.bytes / len(answer.steps),
            "bound": answer.decode.bound,
            "prefill_bound": answer.prefill.bound,
            **_answer(answer),
        }


def compare(
    roofline: Roofline, prompt_tokens: int, steps: int, name: str, precisions: Sequence[int] | None
) -> Comparison:
    """Simulate a schedule and all levels.

    Args:
        steps: decode steps.
        name: of the schedule.
        precisions: of every token under it, prefill's included; None for no schedule.

    Raises:
        PmpdError: the schedule, or without one every level, asks for more than the model or the memory has.
    """
    schedule = simulate(roofline, prompt_tokens, precisions) if precisions is not None else None
    levels, left_out = {}, {}
    for precision in roofline.model.precisions:
        try:
            levels[precision] = simulate(roofline, prompt_tokens, [precision] * (steps + 1))
        except PmpdError as error:
            left_out[precision] = error
    if not levels:
        raise next(iter(left_out.values()))
    return Comparison(roofline, levels, {p: error.message for p, error in left_out.items()}, schedule, name)


def _answer(answer: Answer) -> dict[str, Any]:
    return {
        "average_bitwidth": answer.average_bitwidth,
        "prefill_tokens_per_second": answer.prefill_tokens_per_second,
        "decode_tokens_per_second": answer.decode_tokens_per_second,
        "prefill_seconds": answer.prefill.seconds,
        "decode_seconds": answer.decode_seconds,
        "switches": [
            {"step": s.step, "precision": s.precision, "seconds": s.seconds, "bytes": s.bytes} for s in answer.switches
        ],
    }
