"""What importing costs and what the installed package holds."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from pmpd_edge import cpu


@pytest.mark.parametrize("statement", ["import pmpd_edge", "from pmpd_edge import Pmpd"])
def test_the_runtime_loads_neither_torch_nor_transformers(statement):
    script = f"{statement}; import sys; print(*sorted({{'torch', 'transformers', 'gguf'}} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_importing_the_package_loads_nothing_heavy():
    script = "import pmpd_edge, sys; print(*sorted({'numpy', 'llama_cpp', 'click'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def installed() -> list[Path]:
    files = metadata.distribution("pmpd-edge").files
    assert files is not None
    return [Path(str(file.locate())) for file in files]


def test_the_package_is_small_without_its_libraries():
    files = [path for path in installed() if path.parent.name != "lib"]
    assert 0 < sum(path.stat().st_size for path in files if path.exists()) < 40e6


def test_each_library_and_program_is_there_once():
    names = [path.name for path in installed() if path.parent.name == "lib" and "llama" in path.name]
    stems = sorted(name.partition(".")[0].removeprefix("lib") for name in names)
    assert stems == ["llama", "llama-common", "llama-imatrix"], names


def test_threads_are_those_of_cores_that_may_be_used(tmp_path, monkeypatch):
    for number, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        (tmp_path / f"cpu{number}/topology").mkdir(parents=True)
        (tmp_path / f"cpu{number}/topology/thread_siblings_list").write_text(siblings)
    monkeypatch.setattr(cpu, "_TOPOLOGY", tmp_path)
    monkeypatch.setattr(sys, "platform", "linux")
    for allowed, threads in (({0, 1, 2, 3}, 2), ({0, 2}, 1), ({1}, 1)):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, allowed=allowed: allowed, raising=False)
        assert cpu.default_threads() == threads
    monkeypatch.setattr(cpu, "_TOPOLOGY", tmp_path / "nothing")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert cpu.default_threads() == 4
