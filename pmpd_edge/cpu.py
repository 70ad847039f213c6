"""How many threads to compute with: one for each physical core, on a hybrid CPU each fast one.

A second thread on the same core, or a slow core, holds the others up at every barrier.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_TOPOLOGY = Path("/sys/devices/system/cpu")


def default_threads() -> int:
    """Physical (on Apple silicon: performance) cores that this process may use; half of all cores if unknown."""
    if sys.platform == "darwin":
        return _performance_cores() or max((os.cpu_count() or 2) // 2, 1)
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    siblings = {_siblings(cpu) for cpu in allowed}
    if siblings and None not in siblings:
        return len(siblings)
    return max((len(allowed) or os.cpu_count() or 2) // 2, 1)


def _siblings(cpu: int) -> str | None:
    try:
        return (_TOPOLOGY / f"cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:
        return None


def _performance_cores() -> int:
    command = ["sysctl", "-n", "hw.perflevel0.physicalcpu"]
    try:
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    except (OSError, ValueError, subprocess.CalledProcessError):
        return 0
