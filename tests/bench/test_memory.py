"""Memory of a process and of the machine (pmpd_edge/bench/memory.py)."""

from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path

import psutil
import pytest

from pmpd_edge.bench import memory
from pmpd_edge.bench.memory import Memory

SIZE = 64 << 20
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the kinds apart")


@linux
def test_anonymous_and_file_backed_pages_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(SIZE))
    before = memory.sample()
    own = bytearray(os.urandom(1 << 20) * (SIZE >> 20))
    with open(tmp_path / "file", "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[at] for at in range(0, SIZE, mmap.PAGESIZE)) == 0
        after = memory.sample()
    assert after.anonymous - before.anonymous == pytest.approx(SIZE, rel=0.1)
    assert after.file_backed - before.file_backed == pytest.approx(SIZE, rel=0.1)
    assert after.peak >= after.anonymous + after.file_backed - before.file_backed
    del own


@linux
def test_the_sum_is_what_the_system_says_is_resident() -> None:
    found = memory.sample()
    assert found.anonymous + found.file_backed == pytest.approx(psutil.Process().memory_info().rss, rel=0.05)


def test_without_proc_only_the_peak_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "none")
    found = memory.sample()
    assert (found.anonymous, found.file_backed) == (None, None)
    assert found.peak is None if sys.platform == "win32" else found.peak > 1 << 20


def test_the_highest_of_two_samples() -> None:
    assert Memory(1, None, 5).highest(Memory(3, None, 4)) == Memory(3, None, 5)


@pytest.mark.parametrize(
    ("limit", "free"), [("max", 3 << 20), ("1048576", 1 << 20), ("99999999999", 3 << 20), (None, 3 << 20)]
)
def test_a_containers_limit_is_all_there_is(
    limit: str | None, free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:       9000 kB\nMemAvailable:   3072 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path / "memory.max")
    if limit:
        (tmp_path / "memory.max").write_text(f"{limit}\n")
    assert memory.available() == free
    (tmp_path / "meminfo").unlink()
    assert memory.available() is None
