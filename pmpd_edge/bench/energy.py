"""Energy as the platform reports it: RAPL for the CPU package, NVML for NVIDIA's GPUs, the battery for all.

Each meter counts joules up from when it was made; the difference of two readings is what was used between them, by
everything on that part of the machine, idle draw included.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

_POWERCAP = Path("/sys/class/powercap")
_POWER_SUPPLY = Path("/sys/class/power_supply")


class Meter(Protocol):
    """Something that counts joules."""

    name: str

    def joules(self) -> float:
        """Joules since it was made."""


class Rapl:
    """The CPU packages of Intel's and AMD's processors; on most systems only root may read them.

    Source: Documentation/power/powercap/powercap.rst of Linux. A counter wraps at `max_energy_range_uj`.
    """

    name = "CPU package"

    def __init__(self, zones: Sequence[Path]) -> None:
        self._zones = zones
        self._ranges = [_number(zone / "max_energy_range_uj") for zone in zones]
        self._last = self._read()
        self._total = 0.0

    def _read(self) -> list[float]:
        return [_number(zone / "energy_uj") for zone in self._zones]

    def joules(self) -> float:
        now = self._read()
        for before, after, wrap in zip(self._last, now, self._ranges, strict=True):
            self._total += (after - before + (wrap if after < before else 0)) / 1e6
        self._last = now
        return self._total


class Battery:
    """What a battery gives, its power integrated between readings: the whole machine's, coarse."""

    name = "battery"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._last = (time.monotonic(), self._watts())
        self._total = 0.0

    def _watts(self) -> float:
        if (self._folder / "power_now").exists():
            return _number(self._folder / "power_now") / 1e6
        return _number(self._folder / "current_now") * _number(self._folder / "voltage_now") / 1e12

    def joules(self) -> float:
        (then, before), (now, after) = self._last, (time.monotonic(), self._watts())
        self._last = (now, after)
        self._total += (now - then) * (abs(before) + abs(after)) / 2
        return self._total


class Nvml:
    """All GPUs of NVIDIA's in the machine, those that compute and those that idle.

    Source: nvmlDeviceGetTotalEnergyConsumption, millijoules; Volta and later.
    """

    def __init__(self, library: Any) -> None:
        self._library = library
        count = ctypes.c_uint()
        if library.nvmlInit_v2() or library.nvmlDeviceGetCount_v2(ctypes.byref(count)) or not count.value:
            raise OSError("no GPU of NVIDIA's")
        self._handles = [ctypes.c_void_p() for _ in range(count.value)]
        for i, handle in enumerate(self._handles):
            if library.nvmlDeviceGetHandleByIndex_v2(i, ctypes.byref(handle)):
                raise OSError("a GPU that NVML cannot open")
        self.name = "GPU" if len(self._handles) == 1 else f"{len(self._handles)} GPUs"
        self._begun = self._read()

    def _read(self) -> float:
        total = 0
        for handle in self._handles:
            millijoules = ctypes.c_ulonglong()
            if self._library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)):
                raise OSError("a GPU that does not count energy")
            total += millijoules.value
        return total / 1e3

    def joules(self) -> float:
        return self._read() - self._begun


def meters() -> list[Meter]:
    """Those that work on this machine; none, where nothing reports energy."""
    found: list[Meter] = []
    for make in (_rapl, _nvml, _battery):
        try:
            found.append(make())
        except (OSError, ValueError, AttributeError):
            continue  # not there, not readable, or too old
    return found


def read(meters: Sequence[Meter]) -> dict[str, float]:
    """The reading of each meter, in joules."""
    return {meter.name: meter.joules() for meter in meters}


def used(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Joules between two readings."""
    return {name: after[name] - joules for name, joules in before.items()}


def _rapl() -> Meter:
    # AMD's are called so too. Zones that are no packages are parts of one, or (psys) hold all of them.
    zones = [zone for zone in sorted(_POWERCAP.glob("intel-rapl:*")) if _text(zone / "name").startswith("package")]
    if not zones:
        raise OSError("no package")
    return Rapl(zones)


def _battery() -> Meter:
    for folder in sorted(_POWER_SUPPLY.glob("*")):
        if _text(folder / "type") == "Battery" and _text(folder / "status") == "Discharging":
            return Battery(folder)
    raise OSError("no battery in use")


def _nvml() -> Meter:
    name = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"
    return Nvml(ctypes.CDLL(name))


def _text(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""


def _number(path: Path) -> float:
    return float(path.read_text())
