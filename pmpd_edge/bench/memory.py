"""How much memory a process holds, and how much the machine has.

Anonymous memory is the process's own; file-backed memory is pages of files, weights that are mapped among them, which
the system may drop and read again.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CGROUP = Path("/sys/fs/cgroup/memory.max")
_MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class Memory:
    """Resident memory of this process in bytes; None where the system does not tell.

    Attributes:
        peak: the most that was resident at a time, of both kinds together.
    """

    anonymous: int | None
    file_backed: int | None
    peak: int | None

    def highest(self, other: Memory) -> Memory:
        """The higher of each figure."""
        pairs = ((getattr(self, name), getattr(other, name)) for name in ("anonymous", "file_backed", "peak"))
        return Memory(*(max((v for v in pair if v is not None), default=None) for pair in pairs))


def sample() -> Memory:
    """What this process holds now, and its peak."""
    try:
        text = _STATUS.read_text()
    except OSError:
        return Memory(None, None, _peak())
    return Memory(_field(text, "RssAnon"), _field(text, "RssFile"), _field(text, "VmHWM"))


def available() -> int | None:
    """Bytes that a process may take without that others are swapped out; None where the system does not tell."""
    try:
        free = _field(_MEMINFO.read_text(), "MemAvailable")
    except OSError:
        return None
    try:
        limit = int(_CGROUP.read_text())
    except (OSError, ValueError):  # no limit is "max"
        return free
    return limit if free is None else min(free, limit)


def _field(text: str, name: str) -> int | None:
    found = re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
    return 1024 * int(found[1]) if found else None


def _peak() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
