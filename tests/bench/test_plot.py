"""The plots of a result (pmpd_edge/bench/plot.py)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="plots need matplotlib")

from matplotlib.figure import Figure

from pmpd_edge.bench import plot
from pmpd_edge.bench.run import Result


def test_each_plot_is_a_picture_and_a_drawing(result: Result, tmp_path: Path) -> None:
    files = plot.draw(result, tmp_path / "new" / "plots")
    assert {path.name for path in files} == {
        f"{name}.{kind}" for name in ("throughput", "roofline", "tokens") for kind in ("png", "svg")
    }
    for path in files:
        begin = path.read_bytes()[:200]
        assert begin.startswith(b"\x89PNG") if path.suffix == ".png" else b"<?xml" in begin


def test_one_level_has_no_answers_to_draw(result: Result, tmp_path: Path) -> None:
    files = plot.draw(dataclasses.replace(result, answers=None), tmp_path)
    assert {path.stem for path in files} == {"throughput", "roofline"}


def test_tokens_are_drawn_at_their_times_and_the_switch_is_marked(result: Result) -> None:
    axes = Figure().subplots()
    plot._tokens(axes, result)
    line = axes.lines[0]
    # The first token after 0.1 s, two steps of 0.02 s, four of 0.01 s.
    assert line.get_xdata() == pytest.approx([0.1, 0.12, 0.14, 0.15, 0.16, 0.17, 0.18])
    assert list(line.get_ydata()) == [1, 2, 3, 4, 5, 6, 7]
    assert axes.collections[0].get_offsets().tolist() == [pytest.approx([0.14, 3])]
    assert axes.texts[0].get_text().strip() == "8 → 4 bits"


def test_levels_stand_under_the_roofs_at_their_share_of_bandwidth(result: Result) -> None:
    axes = Figure().subplots()
    plot._roofline(axes, result)
    prompt, decode = axes.collections[1].get_offsets().tolist()  # of 4 bits
    operations = 2 * 5e6
    assert decode == pytest.approx([operations / 50e6, operations * 100])
    assert prompt == pytest.approx([4 * operations / 50e6, operations * 200])
    assert decode[1] / decode[0] == pytest.approx(0.5 * result.bandwidth.bytes_per_second)
