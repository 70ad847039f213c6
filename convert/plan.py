"""Decides, before anything is written, what a conversion will make: levels, types, file names, schedule, disk space."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pmpd_edge import gguf_info
from pmpd_edge.bundle import LAYOUTS, PRECISIONS, StaticSchedule, Switch
from pmpd_edge.convert.checkpoint import Checkpoint
from pmpd_edge.convert.quantize import FTYPES, NEED_IMATRIX, RESIDUAL_TYPES, Recipe
from pmpd_edge.errors import ConvertError

DEFAULT_TYPES = {8: "Q8_0", 6: "Q6_K", 5: "Q5_K", 4: "Q4_K", 3: "Q3_K", 2: "Q2_K"}
TYPES_16 = ("F16", "BF16")
TENSOR_TYPES = (*RESIDUAL_TYPES, *NEED_IMATRIX, *TYPES_16)  # of single matrices
SHARED_TYPES = ("Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", *TYPES_16)

# What an importance matrix is used for: levels and residuals of at most so many bits. Others lose next to nothing.
_IMATRIX_BELOW = 5

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
class TensorType:
    """The type of the matrices whose names a regular expression matches, at one precision or, None, at all below 16."""

    pattern: str
    type: str
    precision: int | None = None


@dataclass(frozen=True)
class LevelPlan:
    """One level to make.

    Attributes:
        type: of the file; None for 16 bits in the checkpoint's own type.
        file: the file to make; a level may need more, see `Plan.weights`.
        residual: whether the file is to be summed with those of the level below.
        shared_type: of token embeddings and output.
        overrides: see `Recipe`.
        uses_imatrix: whether it is made with an importance matrix.
    """

    precision: int
    type: str | None
    file: str
    residual: bool = False
    shared_type: str = gguf_info.SHARED_TYPE
    overrides: tuple[tuple[str, str], ...] = ()
    uses_imatrix: bool = False

    def recipe(self, imatrix: Path | None) -> Recipe:
        """How to make it, below 16 bits."""
        assert self.type
        return Recipe(self.type, self.shared_type, self.overrides, imatrix if self.uses_imatrix else None)


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

    @property
    def lower(self) -> tuple[LevelPlan, ...]:
        """The levels below 16 bits from the lowest to the highest, as they are made: residuals need those below."""
        return tuple(level for level in reversed(self.levels) if level.precision != 16)

    @property
    def uses_imatrix(self) -> bool:
        return any(level.uses_imatrix for level in self.levels)

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
    tensor_types: Sequence[TensorType] = (),
    shared_type: str = gguf_info.SHARED_TYPE,
    use_imatrix: bool = True,
) -> Plan:
    """Check what was asked for and fill in what was not.

    In the nested layout, `types` names the type of the lowest level's file and of the other levels' residual files.

    Args:
        tensor_types: of single matrices; the first that matches counts.
        shared_type: of token embeddings and output at all levels below 16 bits.
        use_imatrix: whether levels, residuals and types of 4 bits and below are made with an importance matrix.

    Raises:
        ConvertError: a precision, type, name, layout or schedule is impossible; with what is possible.
    """
    if not name.isprintable() or name in ("", ".", "..") or _UNSAFE_IN_NAME.search(name):
        raise ConvertError(f"name {name!r} cannot be part of a file name", "choose a plain one")
    ordered = sorted(set(precisions), reverse=True)
    if not ordered or len(ordered) < len(precisions) or not set(ordered) <= set(PRECISIONS):
        given = ",".join(map(str, precisions)) or "none"
        raise ConvertError(f"precisions {given}", f"choose from {', '.join(map(str, PRECISIONS))}, each once")
    if prefill is not None and prefill not in ordered:
        raise ConvertError(f"prefill at {prefill} bits, which is not among the precisions", f"add {prefill} to them")
    if max_new_tokens < 1:
        raise ConvertError(f"max_new_tokens {max_new_tokens}", "choose a positive number")

    if layout not in LAYOUTS:
        raise ConvertError(f"layout {layout!r}", f"choose {' or '.join(LAYOUTS)}")
    if shared_type not in SHARED_TYPES:
        raise ConvertError(f"type {shared_type} for embeddings and output", f"choose from {', '.join(SHARED_TYPES)}")
    for precision in (*(types or {}), *(asked.precision for asked in tensor_types if asked.precision is not None)):
        if precision not in ordered:
            raise ConvertError(f"a type for {precision} bits, which is not among the precisions")
    for asked in tensor_types:
        _check_tensor_type(asked)
    levels = [
        _plan_level(name, precision, below, types or {}, tensor_types, shared_type, use_imatrix)
        for precision, below in _with_below(ordered, layout)
    ]
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


def _plan_level(
    name: str,
    precision: int,
    below: int | None,
    types: Mapping[int, str],
    tensor_types: Sequence[TensorType],
    shared_type: str,
    use_imatrix: bool,
) -> LevelPlan:
    if precision == 16:
        return LevelPlan(16, _check_type_16(types.get(16)), f"{name}-16.gguf")
    default = DEFAULT_TYPES[precision] if below is None else DEFAULT_RESIDUALS[precision, below]
    level_type = types.get(precision, default)
    known = FTYPES if below is None else RESIDUAL_TYPES
    if level_type not in known and level_type not in NEED_IMATRIX:
        have = ", ".join((*known, *NEED_IMATRIX))
        raise ConvertError(f"type {level_type} for {precision} bits is not known", f"choose from {have}")
    overrides = tuple((t.pattern, t.type) for t in tensor_types if t.precision in (None, precision))
    for needing in (level_type, *(type_name for _, type_name in overrides)):
        if needing in NEED_IMATRIX and not use_imatrix:
            raise ConvertError(
                f"type {needing} needs an importance matrix: without one its weights are noise",
                f"choose another one, such as {default}, or leave --no-imatrix out",
            )
    needs = any(type_name in NEED_IMATRIX for type_name in (level_type, *(type_name for _, type_name in overrides)))
    is_low = min(precision, gguf_info.bits(level_type)) < _IMATRIX_BELOW
    return LevelPlan(
        precision,
        level_type,
        f"{name}-q{precision}.gguf" if below is None else f"{name}-q{precision}-residual.gguf",
        residual=below is not None,
        shared_type=shared_type,
        overrides=overrides,
        uses_imatrix=needs or (use_imatrix and is_low),
    )


def _check_type_16(type_name: str | None) -> str | None:
    if type_name is not None and type_name not in TYPES_16:
        raise ConvertError(f"type {type_name} for 16 bits", f"choose {' or '.join(TYPES_16)}")
    return type_name


def _check_tensor_type(asked: TensorType) -> None:
    if asked.precision == 16:
        raise ConvertError(f"type {asked.type} for {asked.pattern!r} at 16 bits", "all matrices have one type there")
    try:
        re.compile(asked.pattern)
    except re.error as error:
        raise ConvertError(f"{asked.pattern!r}: not a regular expression ({error})") from None
    if asked.type not in TENSOR_TYPES:
        have = ", ".join(TENSOR_TYPES)
        raise ConvertError(f"type {asked.type} for {asked.pattern!r} is not known", f"choose from {have}")


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
            bits = 4.5 if level.residual else gguf_info.bits(level.shared_type)
            shared = bits * checkpoint.embedding_elements
            total += (gguf_info.bits(level.type) * elements + shared) / 8
    return int(total * 1.02) + (1 << 20) * (1 + len(plan.levels))  # norms in F32, tokenizer, padding
