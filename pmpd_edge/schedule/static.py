"""Switches at fixed decode steps: the paper's static scheduler, with any number of switches."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pmpd_edge.bundle import StaticSchedule, Switch
from pmpd_edge.errors import PmpdError
from pmpd_edge.schedule import Evaluation


@dataclass(frozen=True)
class StaticScheduler:
    """Follows a schedule that was set before the answer began."""

    schedule: StaticSchedule

    @property
    def precisions(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(switch.precision for switch in self.schedule.switches))

    def start(self, prefill: Evaluation) -> None:
        pass

    def next(self, step: int, last: Evaluation) -> int:
        due = [switch for switch in self.schedule.switches if switch.step <= step]
        return due[-1].precision


def with_high_steps(schedule: StaticSchedule, high_steps: int) -> StaticSchedule:
    """The schedule with its first switch after `high_steps` steps; the later switches keep their distance from it.

    With no high steps the starting precision is left out. A schedule that never switches stays as it is.
    """
    if high_steps < 0:
        raise PmpdError(f"{high_steps} high steps", "give 0 or more")
    first, *later = schedule.switches
    if not later:
        return schedule
    shift = high_steps + 1 - later[0].step
    moved = tuple(Switch(switch.step + shift, switch.precision) for switch in later)
    return replace(schedule, switches=moved if high_steps == 0 else (first, *moved))
