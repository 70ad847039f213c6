"""Energy meters (pmpd_edge/bench/energy.py), on files and libraries of our own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pmpd_edge.bench import energy


@pytest.fixture(autouse=True)
def nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that reports no energy."""
    monkeypatch.setattr(energy, "_POWERCAP", tmp_path / "powercap")
    monkeypatch.setattr(energy, "_POWER_SUPPLY", tmp_path / "power_supply")
    monkeypatch.setattr(energy.ctypes, "CDLL", missing)


def missing(name: str) -> Any:
    raise OSError(name)


def write(folder: Path, **files: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(f"{content}\n")
    return folder


def zone(tmp_path: Path, number: str, name: str, microjoules: int) -> Path:
    folder = tmp_path / "powercap" / f"intel-rapl:{number}"
    return write(folder, name=name, energy_uj=microjoules, max_energy_range_uj=10_000_000)


def test_where_nothing_reports_energy_there_are_no_meters() -> None:
    assert energy.meters() == []
    assert energy.used(energy.read([]), energy.read([])) == {}


def test_rapl_sums_packages_only_and_survives_a_counter_that_wraps(tmp_path: Path) -> None:
    first, second = zone(tmp_path, "0", "package-0", 1_000_000), zone(tmp_path, "1", "package-1", 9_000_000)
    part = zone(tmp_path, "0:0", "core", 0)
    meters = energy.meters()
    before = energy.read(meters)
    write(first, energy_uj=3_000_000)
    write(second, energy_uj=500_000)  # 1.5 J on, past 10 J
    write(part, energy_uj=5_000_000)
    assert energy.used(before, energy.read(meters)) == pytest.approx({"CPU package": 3.5})


def test_a_counter_that_only_root_may_read_is_no_meter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone(tmp_path, "0", "package-0", 1)
    real = Path.read_text

    def refuse(path: Path, *args: Any, **kwargs: Any) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", refuse)
    assert energy.meters() == []


@pytest.mark.parametrize(
    "figures",
    [{"power_now": 4_000_000}, {"current_now": 1_000_000, "voltage_now": 4_000_000}, {"power_now": -4_000_000}],
)
def test_a_batterys_power_is_integrated(
    figures: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "power_supply" / "AC", type="Mains", online=0)
    write(tmp_path / "power_supply" / "BAT0", type="Battery", status="Discharging", **figures)
    now = 0.0
    monkeypatch.setattr(energy.time, "monotonic", lambda: now)
    meters = energy.meters()
    before = energy.read(meters)
    now = 2.5
    assert energy.used(before, energy.read(meters)) == pytest.approx({"battery": 10.0})


def test_a_battery_that_is_charged_measures_nothing(tmp_path: Path) -> None:
    write(tmp_path / "power_supply" / "BAT0", type="Battery", status="Charging", power_now=4_000_000)
    assert energy.meters() == []


class Nvml:
    """Two GPUs that use 1 J each between any two readings."""

    def __init__(self) -> None:
        self.readings = [0, 0]

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = len(self.readings)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, handle: Any) -> int:
        handle._obj.value = index + 1
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any, millijoules: Any) -> int:
        self.readings[handle.value - 1] += 1000
        millijoules._obj.value = self.readings[handle.value - 1]
        return 0


def test_nvml_sums_all_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy.ctypes, "CDLL", lambda name: Nvml())
    meters = energy.meters()
    before = energy.read(meters)
    assert energy.used(before, energy.read(meters)) == {"2 GPUs": 2.0}


def test_a_gpu_that_does_not_count_energy_is_no_meter(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Nvml()
    library.nvmlDeviceGetTotalEnergyConsumption = lambda handle, millijoules: 3  # type: ignore[method-assign]
    monkeypatch.setattr(energy.ctypes, "CDLL", lambda name: library)
    assert energy.meters() == []
