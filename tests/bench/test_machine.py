"""The machine and what else runs on it (pmpd_edge/bench/machine.py)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pmpd_edge import native
from pmpd_edge.bench import machine
from pmpd_edge.errors import PmpdError

TICKS = 100


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /proc of our own, whose clock has 100 ticks a second, and a second that is over at once."""
    monkeypatch.setattr(machine, "_PROC", tmp_path)
    monkeypatch.setattr(os, "sysconf", {"SC_CLK_TCK": TICKS}.__getitem__)
    monkeypatch.setattr(machine, "_own_seconds", lambda: 0.0)
    clock = iter(range(100))
    monkeypatch.setattr(machine.time, "monotonic", lambda: float(next(clock)))
    write(tmp_path, user=1000)
    return tmp_path


def write(proc: Path, user: int, idle: int = 5000, processes: dict[int, tuple[str, int]] | None = None) -> None:
    """user and idle ticks of all CPUs, and name and ticks of processes."""
    (proc / "stat").write_text(f"cpu  {user} 0 0 {idle} 7 0 0 0 0 0\ncpu0 1 2 3\n")
    for number, (name, ticks) in (processes or {}).items():
        (proc / str(number)).mkdir(exist_ok=True)
        (proc / str(number) / "stat").write_text(f"{number} ({name}) R 1 1 1 0 -1 4 0 0 0 0 {ticks} 0 0 0 20 0\n")


def busy(proc: Path, monkeypatch: pytest.MonkeyPatch, ticks: int) -> None:
    """Have others use so many ticks while the machine is watched."""
    write(proc, 1000, processes={7: ("a (b) c", 10), 8: ("idle", 10)})
    later = {7: ("a (b) c", 10 + ticks), 8: ("idle", 10)}
    monkeypatch.setattr(machine.time, "sleep", lambda _: write(proc, 1000 + ticks, 9999, later))


def test_a_busy_machine_is_refused_and_the_busiest_process_named(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    busy(proc, monkeypatch, 50)
    with pytest.raises(
        PmpdError, match=re.escape("other processes use 0.50 cores, the most of it a (b) c (7)")
    ) as error:
        machine.check_idle()
    assert "--force" in error.value.hint


def test_an_idle_machine_is_not_refused(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    busy(proc, monkeypatch, 9)
    machine.check_idle()


def test_what_this_process_uses_does_not_count(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    busy(proc, monkeypatch, 200)
    own = iter((0.0, 2.0))
    monkeypatch.setattr(machine, "_own_seconds", lambda: next(own))
    machine.check_idle()


def test_what_a_child_used_counts_as_our_own() -> None:
    before = machine._own_seconds()
    subprocess.run(
        [sys.executable, "-c", "import time; end = time.process_time() + 0.2\nwhile time.process_time() < end: pass"]
    )
    assert machine._own_seconds() - before > 0.15


def test_where_the_system_does_not_tell_nothing_is_refused(proc: Path) -> None:
    (proc / "stat").unlink()
    machine.check_idle()
    assert machine.Others().cores() is None


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no affinity")
@pytest.mark.parametrize(("cpus", "text"), [({0}, "0"), ({0, 1, 2, 5}, "0-2,5"), ({1, 3, 4}, "1,3-4")])
def test_affinity_is_written_as_taskset_does(cpus: set[int], text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cpus)
    assert machine.affinity() == text


def test_the_machine_is_described_with_its_versions() -> None:
    found = machine.describe()
    assert found.versions["llama-cpp-python"] == native.load().__version__
    assert found.time.endswith("+00:00")
