"""Measurements in processes of their own (pmpd_edge/bench/child.py)."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path

import pytest

from pmpd_edge import bundle, gguf_info
from pmpd_edge.bench import child
from pmpd_edge.bench.levels import Workload
from pmpd_edge.bench.place import Place
from pmpd_edge.bundle import Bundle, Level
from pmpd_edge.errors import PmpdError

PLACE = Place(1)


def test_a_level_alone_is_described_and_weighed(short: Bundle) -> None:
    found = child.alone(short, 4, PLACE, 8, 256)
    info = gguf_info.read(short.paths(short.level(4))[0])
    assert found.precision == 4 and found.description.startswith("llama ")
    assert found.size == sum(tensor.bytes for tensor in info.tensors)
    assert found.parameters == short.parameters
    assert found.load_seconds > 0 and found.device_memory == 0
    if sys.platform == "linux":
        assert found.memory.peak > found.memory.anonymous > found.size


def test_no_other_level_is_loaded(short: Bundle) -> None:
    (short.path / "other").mkdir()
    for name in short.files:
        if name != short.level(4).weights[0]:
            (short.path / name).rename(short.path / "other" / name)
            (short.path / name).write_bytes(b"GGUF".ljust(short.files[name].bytes))  # a bundle still, but no model
    try:
        assert child.alone(short, 4, PLACE, 8, 256).parameters == short.parameters
        with pytest.raises(PmpdError, match=r"does not load"):
            child.alone(short, 8, PLACE, 8, 256)
    finally:
        for path in (short.path / "other").iterdir():
            path.replace(short.path / path.name)
        (short.path / "other").rmdir()


def test_a_sum_of_files_is_all_of_them(short: Bundle, tmp_path: Path) -> None:
    (high,), (low,) = (level.weights for level in short.levels)
    for name in short.files:
        shutil.copyfile(short.path / name, tmp_path / name)
    levels = (Level(8, (low, high)), Level(4, (low,)))
    made = dataclasses.replace(short, path=tmp_path, layout="nested", levels=levels, imatrix=None)
    bundle.write(made)
    both, base = (child.alone(made, precision, PLACE, 8, 256) for precision in (8, 4))
    assert both.description.startswith(f"{base.description} + llama ")
    assert both.size == base.size + child.alone(short, 8, PLACE, 8, 256).size
    assert both.parameters == base.parameters


def test_rates_are_those_of_the_workloads_in_their_order(short: Bundle) -> None:
    prompt, decode = child.rates(short, 4, PLACE, [Workload(prompt=64), Workload(steps=4)], 256)
    assert prompt > decode > 0


def test_a_process_that_dies_is_one_line(short: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "_CODE", "import sys; print('first', file=sys.stderr); sys.exit('last words')")
    with pytest.raises(PmpdError, match=r"measuring level 4 alone failed \(status 1\): last words$"):
        child.alone(short, 4, PLACE, 8, 256)


def test_modules_in_the_working_directory_are_not_imported(
    short: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.chdir(tmp_path)
    assert child.alone(dataclasses.replace(short, path=short.path.resolve()), 4, PLACE, 8, 256).parameters
