"""Schedulers: they decide at which precision each decode step is evaluated.

A scheduler is asked once after the prompt has been evaluated (`start`) and then before every decode step (`next`). It
may step down by several levels, and up again. It sees the context only through `Evaluation`, and reads from it only
what it needs: reading costs time, and on a GPU a synchronisation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from pmpd_edge.bundle import Bundle, StaticSchedule, Switch
from pmpd_edge.errors import PmpdError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

METHODS = ("pmpd", "high", "low")


class Evaluation(Protocol):
    """What the last evaluation left in the context."""

    @property
    def n_tokens(self) -> int:
        """Number of tokens in the KV cache."""

    def logits(self) -> npt.NDArray[np.float32]:
        """The last token's logits, `[n_vocab]`: a view that the next evaluation overwrites."""


class Scheduler(Protocol):
    """Decides the precision of each decode step of one answer."""

    @property
    def precisions(self) -> tuple[int, ...]:
        """All precisions that `next` may return; their weights are loaded before the answer starts."""

    def start(self, prefill: Evaluation) -> None:
        """The prompt has been evaluated; an answer begins."""

    def next(self, step: int, last: Evaluation) -> int:
        """The precision of decode step `step` (1 is the first); `last` is what the step before it left."""


def make_scheduler(spec: str, bundle: Bundle, high_steps: int | None = None) -> Scheduler:
    """Make a scheduler from its specification on the command line.

    Args:
        spec: `static` (the bundle's own schedule), `static:8@1,4@86` (precision 8 from step 1, 4 from step 86), or
            `fixed:4` (every step at precision 4).
        bundle: the bundle whose levels are scheduled.
        high_steps: for `static`: number of steps before the first switch; the later switches keep their distance.

    Raises:
        PmpdError: the specification is not one of these, or names a level that the bundle does not have.
    """
    from pmpd_edge.schedule.fixed import FixedScheduler
    from pmpd_edge.schedule.static import StaticScheduler, with_high_steps

    kind, colon, argument = spec.partition(":")
    scheduler: Scheduler
    if kind == "fixed" and argument:
        if high_steps is not None:
            raise PmpdError("high steps have no meaning for a fixed scheduler", "leave them out")
        scheduler = FixedScheduler(_integer(argument))
    elif kind == "static" and (argument or not colon):
        schedule = parse_switches(argument, bundle.schedule.max_new_tokens) if argument else bundle.schedule
        scheduler = StaticScheduler(schedule if high_steps is None else with_high_steps(schedule, high_steps))
    else:
        raise PmpdError(f"no scheduler {spec!r}", "choose static, static:PRECISION@STEP,... or fixed:PRECISION")
    for precision in scheduler.precisions:
        bundle.level(precision)
    return scheduler


def parse_switches(text: str, max_new_tokens: int) -> StaticSchedule:
    """Read `8@1,4@86`: precision 8 from step 1, 4 from step 86; raises PmpdError where it is not of that form."""
    parts = [part.partition("@") for part in text.split(",")]
    switches = [Switch(step=_integer(step), precision=_integer(precision)) for precision, _, step in parts]
    return StaticSchedule(tuple(switches), max_new_tokens)


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise PmpdError(
            f"{text!r} in a schedule is not a number", "write PRECISION@STEP,..., like 8@1,4@86, or a PRECISION"
        ) from None
