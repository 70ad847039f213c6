"""The machine that is measured: what it is, which versions run on it, and what else runs on it.

Two compute threads wait for each other at every operation, so another busy process makes decoding several times slower.
Measurements therefore begin on an idle machine, and say what other processes used until they ended.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from pmpd_edge import __version__, device, native
from pmpd_edge.errors import PmpdError

IDLE = 0.1  # cores that other processes may use
_PROC = Path("/proc")


@dataclass(frozen=True)
class Machine:
    """What was measured on.

    Attributes:
        device: CPU, instruction sets, GPUs, system.
        affinity: the CPUs that this process may run on, as `taskset` writes them; empty where the system does not say.
        versions: of pmpd-edge, llama-cpp-python, Python.
        time: when the measurement began, UTC.
    """

    device: str
    affinity: str
    versions: dict[str, str]
    time: str


def describe() -> Machine:
    """This machine, now."""
    versions = {
        "pmpd-edge": __version__,
        "llama-cpp-python": native.load().__version__,
        "python": platform.python_version(),
    }
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Machine(device.describe(), affinity(), versions, now)


def affinity() -> str:
    """The CPUs that this process may run on: `0-3,8`."""
    if not hasattr(os, "sched_getaffinity"):
        return ""
    ranges: list[list[int]] = []
    for cpu in sorted(os.sched_getaffinity(0)):
        if ranges and cpu == ranges[-1][1] + 1:
            ranges[-1][1] = cpu
        else:
            ranges.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


class Others:
    """The CPU time that other processes take, from when this is made. Only Linux says it."""

    def __init__(self) -> None:
        self._begun, self._busy, self._own = time.monotonic(), busy_seconds(), _own_seconds()
        self._processes = dict(_processes())

    def cores(self) -> float | None:
        """How many cores other processes used on average; None where that is not known."""
        busy = busy_seconds()
        if busy is None or self._busy is None:
            return None
        used = busy - self._busy - (_own_seconds() - self._own)
        return max(0.0, used / max(time.monotonic() - self._begun, 1e-9))

    def most(self) -> str:
        """The other process that used the most: its name and number; empty where there is none."""
        used = {
            key: seconds - self._processes.get(key, 0.0) for key, seconds in _processes() if key[0] != str(os.getpid())
        }
        if not used or max(used.values()) <= 0:
            return ""
        number, name = max(used, key=lambda key: used[key])
        return f"{name} ({number})"


def check_idle(seconds: float = 1.0) -> None:
    """Watch other processes for a while.

    Raises:
        PmpdError: they use more than a tenth of a core. (A load average would tell of the last minutes, not of now.)
    """
    others = Others()
    time.sleep(seconds)
    cores = others.cores()
    if cores is not None and cores > IDLE:
        most = others.most()
        who = f", the most of it {most}" if most else ""
        raise PmpdError(
            f"the machine is busy: other processes use {cores:.2f} cores{who}",
            "wait until they have ended, or measure anyway with --force",
        )


def busy_seconds() -> float | None:
    """CPU time that was not idle, of all CPUs since the system started; what a hypervisor took away counts."""
    try:
        fields = [int(field) for field in (_PROC / "stat").read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    user, nice, system, _idle, _waiting, interrupts, soft_interrupts, stolen = fields
    return (user + nice + system + interrupts + soft_interrupts + stolen) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    """CPU time of this process and of those that it started and that have ended."""
    return sum(os.times()[:4])


def _processes() -> Iterator[tuple[tuple[str, str], float]]:
    """Number and name of each process, with its CPU time in seconds."""
    for path in _PROC.glob("[0-9]*/stat"):
        try:
            number, rest = path.read_text(errors="replace").split(" (", 1)
        except (OSError, ValueError):
            continue  # it has ended
        name, _, fields = rest.rpartition(") ")
        user, system = fields.split()[11:13]
        yield (number, name), (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
