"""Names the device that figures were measured on."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

_FEATURES = ("avx2", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")  # what low-bit kernels go by


def describe() -> str:
    """The CPU, its cores and instruction sets, and the system, in words."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    model = re.search(r"model name\s*: (.*)", text)
    name = model[1] if model else platform.processor() or platform.machine()
    features = [feature for feature in _FEATURES if feature in text]
    return f"{name}, {os.cpu_count()} cores, {' '.join(features)}; {platform.system()}"
