"""Decides, before anything is written, what a conversion will make: levels, types, file names, schedule, disk space."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pmpd_edge.bundle import PRECISIONS, StaticSchedule, Switch
from pmpd_edge.convert import gguf_info
from pmpd_edge.convert.checkpoint import Checkpoint
from pmpd_edge.convert.quantize import FTYPES, NEED_IMATRIX
from pmpd_edge.errors import ConvertError

DEFAULT_TYPES = {8: "Q8_0", 6: "Q6_K", 5: "Q5_K", 4: "Q4_K", 3: "Q3_K", 2: "Q2_K"}
TYPES_16 = ("F16", "BF16")

_UNSAFE_IN_NAME = re.compile(r"[\x00-\x1f/\\:*?\"<>|]")


@dataclass(frozen=True)
class LevelPlan:
    """One level to make; `type` is None for 16 bits in the checkpoint's own type."""

    precision: int
    type: str | None
    file: str


@dataclass(frozen=True)
class Plan:
    """A conversion to make; levels from the highest precision to the lowest."""

    name: str
    levels: tuple[LevelPlan, ...]
    prefill: int
    schedule: StaticSchedule

    @property
    def precisions(self) -> tuple[int, ...]:
        return tuple(level.precision for level in self.levels)


def make(
    name: str,
    precisions: Sequence[int],
    types: Mapping[int, str] | None = None,
    schedule: StaticSchedule | None = None,
    max_new_tokens: int = 256,
    prefill: int | None = None,
) -> Plan:
    """Check what was asked for and fill in what was not.

    Raises:
        ConvertError: a precision, type, name or schedule is impossible; with what is possible.
    """
    if not name or name in (".", "..") or _UNSAFE_IN_NAME.search(name):
        raise ConvertError(f"name {name!r} cannot be part of a file name", "choose a plain one")
    ordered = sorted(set(precisions), reverse=True)
    if not ordered or len(ordered) < len(precisions) or not set(ordered) <= set(PRECISIONS):
        asked = ",".join(map(str, precisions)) or "none"
        raise ConvertError(f"precisions {asked}", f"choose from {', '.join(map(str, PRECISIONS))}, each once")
    if prefill is not None and prefill not in ordered:
        raise ConvertError(f"prefill at {prefill} bits, which is not among the precisions", f"add {prefill} to them")
    if max_new_tokens < 1:
        raise ConvertError(f"max_new_tokens {max_new_tokens}", "choose a positive number")

    for precision in types or {}:
        if precision not in ordered:
            raise ConvertError(f"a type for {precision} bits, which is not among the precisions")
    levels = []
    for precision in ordered:
        level_type = _check_type(precision, (types or {}).get(precision, DEFAULT_TYPES.get(precision)))
        file = f"{name}-16.gguf" if precision == 16 else f"{name}-q{precision}.gguf"
        levels.append(LevelPlan(precision, level_type, file))
    _check_order(levels)

    schedule = schedule or default_schedule(ordered, max_new_tokens)
    for switch in schedule.switches:
        if switch.precision not in ordered:
            raise ConvertError(f"schedule at {switch.precision} bits, which is not among the precisions")
    return Plan(name, tuple(levels), prefill or ordered[0], schedule)


def _check_type(precision: int, type_name: str | None) -> str | None:
    if precision == 16:
        if type_name is not None and type_name not in TYPES_16:
            raise ConvertError(f"type {type_name} for 16 bits", f"choose {' or '.join(TYPES_16)}")
        return type_name
    if type_name in NEED_IMATRIX:
        raise ConvertError(
            f"type {type_name} needs an importance matrix: without one its weights are noise",
            f"choose another one, such as {DEFAULT_TYPES[precision]}",
        )
    if type_name not in FTYPES:
        raise ConvertError(f"type {type_name} for {precision} bits is not known", f"choose from {', '.join(FTYPES)}")
    return type_name


def _check_order(levels: Sequence[LevelPlan]) -> None:
    for high, low in itertools.pairwise(levels):
        bits = [16.0 if level.type is None else gguf_info.bits(level.type) for level in (high, low)]
        if bits[0] <= bits[1]:
            raise ConvertError(
                f"{high.precision} bits as {high.type} has no more bits than {low.precision} bits as {low.type}",
                "choose types that become smaller with the precision",
            )


def default_schedule(precisions: Sequence[int], max_new_tokens: int) -> StaticSchedule:
    """Step down at even distances, the last level having at least a third of the tokens; for use before calibration.

    Args:
        precisions: from the highest to the lowest.
    """
    switches = [Switch(1, precisions[0])]
    for i, precision in enumerate(precisions[1:], start=1):
        step = 1 + i * max_new_tokens // max(3, len(precisions))
        if step > switches[-1].step:  # few tokens, many levels: some are left out
            switches.append(Switch(step, precision))
    return StaticSchedule(tuple(switches), max_new_tokens)


def bytes_needed(plan: Plan, checkpoint: Checkpoint) -> int:
    """Disk space that a conversion takes at most, its 16-bit intermediate included."""
    elements = checkpoint.elements - checkpoint.embedding_elements
    total = checkpoint.elements * 2.0
    for level in plan.levels:
        if level.precision != 16:
            assert level.type
            shared = gguf_info.bits(gguf_info.SHARED_TYPE) * checkpoint.embedding_elements
            total += (gguf_info.bits(level.type) * elements + shared) / 8
    return int(total * 1.02) + (1 << 20) * (1 + len(plan.levels))  # norms in F32, tokenizer, padding
