"""Decides, before anything is written, what a conversion will make: levels, types, file names, schedule, disk space."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pmpd_edge.bundle import LAYOUTS, PRECISIONS, StaticSchedule, Switch
from pmpd_edge.convert import gguf_info
from pmpd_edge.convert.checkpoint import Checkpoint
from pmpd_edge.convert.quantize import FTYPES, NEED_IMATRIX, RESIDUAL_TYPES
from pmpd_edge.errors import ConvertError

DEFAULT_TYPES = {8: "Q8_0", 6: "Q6_K", 5: "Q5_K", 4: "Q4_K", 3: "Q3_K", 2: "Q2_K"}
TYPES_16 = ("F16", "BF16")

# The type of a level's residual over the level below it: the smallest with which the sum's error is at most 1.2 times
# that of the level's own type above. Measured in docs/benchmarks/nested.md. Where both Q4_0 and Q4_K do, it is Q4_0,
# which suits more shapes.
DEFAULT_RESIDUALS = {
    (8, 6): "Q2_K",
    (8, 5): "Q3_K",
    (8, 4): "Q4_0",
    (8, 3): "Q5_K",
    (8, 2): "Q6_K",
    (6, 5): "Q1_0",
    (6, 4): "Q2_K",
    (6, 3): "Q3_K",
    (6, 2): "Q4_K",
    (5, 4): "Q1_0",
    (5, 3): "Q2_K",
    (5, 2): "Q3_K",
    (4, 3): "Q1_0",
    (4, 2): "Q2_K",
    (3, 2): "Q1_0",
}

_UNSAFE_IN_NAME = re.compile(r"[\x00-\x1f/\\:*?\"<>|]")


@dataclass(frozen=True)
class LevelPlan:
    """One level to make.

    Attributes:
        type: of the file; None for 16 bits in the checkpoint's own type.
        file: the file to make; a level may need more, see `Plan.weights`.
        residual: whether the file is to be summed with those of the level below.
    """

    precision: int
    type: str | None
    file: str
    residual: bool = False


@dataclass(frozen=True)
class Plan:
    """A conversion to make; levels from the highest precision to the lowest."""

    name: str
    levels: tuple[LevelPlan, ...]
    prefill: int
    schedule: StaticSchedule
    layout: str = "separate"

    @property
    def precisions(self) -> tuple[int, ...]:
        return tuple(level.precision for level in self.levels)

    def weights(self, level: LevelPlan) -> tuple[str, ...]:
        """The files whose sum a level is: a complete one, then residuals by rising precision."""
        if not level.residual:
            return (level.file,)
        return tuple(other.file for other in reversed(self.levels) if other.precision <= level.precision)


def make(
    name: str,
    precisions: Sequence[int],
    types: Mapping[int, str] | None = None,
    schedule: StaticSchedule | None = None,
    max_new_tokens: int = 256,
    prefill: int | None = None,
    layout: str = "separate",
) -> Plan:
    """Check what was asked for and fill in what was not.

    In the nested layout, `types` names the type of the lowest level's file and of the other levels' residual files.

    Raises:
        ConvertError: a precision, type, name, layout or schedule is impossible; with what is possible.
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
    if layout not in LAYOUTS:
        raise ConvertError(f"layout {layout!r}", f"choose {' or '.join(LAYOUTS)}")
    levels = [_plan_level(name, precision, below, types or {}) for precision, below in _with_below(ordered, layout)]
    _check_order(levels)

    schedule = schedule or default_schedule(ordered, max_new_tokens)
    for switch in schedule.switches:
        if switch.precision not in ordered:
            raise ConvertError(f"schedule at {switch.precision} bits, which is not among the precisions")
    return Plan(name, tuple(levels), prefill or ordered[0], schedule, layout)


def _with_below(ordered: Sequence[int], layout: str) -> list[tuple[int, int | None]]:
    """Precisions from the highest to the lowest, each with that of the level which its residual refines, if any."""
    if layout == "separate":
        return [(precision, None) for precision in ordered]
    nested = [precision for precision in ordered if precision != 16]
    if len(nested) < 2:
        have = ", ".join(map(str, ordered))
        raise ConvertError(
            f"precisions {have}: nothing to nest, as 16 bits are a file of their own",
            "add a precision below 16, or use --layout separate",
        )
    pairs: list[tuple[int, int | None]] = list(itertools.zip_longest(nested, nested[1:]))
    return [(16, None), *pairs] if 16 in ordered else pairs


def _plan_level(name: str, precision: int, below: int | None, types: Mapping[int, str]) -> LevelPlan:
    if precision == 16:
        return LevelPlan(16, _check_type(16, types.get(16)), f"{name}-16.gguf")
    if below is None:
        level_type = _check_type(precision, types.get(precision, DEFAULT_TYPES[precision]))
        return LevelPlan(precision, level_type, f"{name}-q{precision}.gguf")
    level_type = _check_type(precision, types.get(precision, DEFAULT_RESIDUALS[precision, below]), RESIDUAL_TYPES)
    return LevelPlan(precision, level_type, f"{name}-q{precision}-residual.gguf", residual=True)


def _check_type(precision: int, type_name: str | None, known: Mapping[str, str] = FTYPES) -> str | None:
    if precision == 16:
        if type_name is not None and type_name not in TYPES_16:
            raise ConvertError(f"type {type_name} for 16 bits", f"choose {' or '.join(TYPES_16)}")
        return type_name
    if type_name in NEED_IMATRIX:
        raise ConvertError(
            f"type {type_name} needs an importance matrix: without one its weights are noise",
            f"choose another one, such as {DEFAULT_TYPES[precision]}",
        )
    if type_name not in known:
        raise ConvertError(f"type {type_name} for {precision} bits is not known", f"choose from {', '.join(known)}")
    return type_name


def _check_order(levels: Sequence[LevelPlan]) -> None:
    for high, low in itertools.pairwise(level for level in levels if not level.residual):  # sums grow by themselves
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
            # A residual holds zeros there: 1.125 bits, or up to 4.5 where columns are not divisible by 128.
            bits = 4.5 if level.residual else gguf_info.bits(gguf_info.SHARED_TYPE)
            shared = bits * checkpoint.embedding_elements
            total += (gguf_info.bits(level.type) * elements + shared) / 8
    return int(total * 1.02) + (1 << 20) * (1 + len(plan.levels))  # norms in F32, tokenizer, padding
