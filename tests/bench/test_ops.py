"""Operators in each type against F16 (pmpd_edge/bench/ops.py)."""

from __future__ import annotations

import pytest

from pmpd_edge.bench import ggml, ops
from pmpd_edge.bench.ggml import Backend
from pmpd_edge.bench.matvec import Matrices
from pmpd_edge.bench.ops import OpCost
from pmpd_edge.bench.shapes import Layer
from pmpd_edge.bench.timing import Series

LAYER = Layer("m", {"attention": ((256, 32), (256, 16)), "feed-forward": ((96, 64),)})


@pytest.mark.usefixtures("small_reads")
def test_parts_are_measured_in_all_types_that_their_columns_allow() -> None:
    labels: list[str] = []
    with Backend(ggml.find_device("CPU"), 1) as backend:
        costs = ops.measure(backend, [LAYER], 2, progress=lambda label, done: labels.append(label))
    found = {(cost.part, cost.type): cost for cost in costs}
    assert {kind for part, kind in found if part == "attention"} == set(ops.TYPES)
    assert {kind for part, kind in found if part == "feed-forward"} == {"F16", "Q8_0", "Q4_0"}
    assert found["attention", "Q4_K"].bytes == 256 * 48 * 4.5 / 8
    assert found["attention", "F16"].bytes == 256 * 48 * 2
    assert all(len(cost.seconds.values) == len(cost.reference.values) == 2 for cost in costs)
    assert labels[:2] == ["m: F16", "m: Q8_0"]


@pytest.mark.usefixtures("small_reads")
def test_what_is_multiplied_is_larger_than_what_counts_as_cold(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []

    class Seen(Matrices):
        def multiply(self) -> float:
            sizes.append((self.bytes, len(self._shapes)))
            return len(self._shapes)  # seconds: one a matrix

    monkeypatch.setattr(ops, "Matrices", Seen)
    with Backend(ggml.find_device("CPU"), 1) as backend:
        (cost,) = ops.measure(backend, [Layer("m", {"attention": ((256, 32), (256, 16))})], 1, types=["Q4_0"])
    assert all(n_bytes >= 1 << 16 for n_bytes, _ in sizes)
    # However many copies there are, the figure is that of one part: its two matrices.
    assert cost.seconds.median == cost.reference.median == 2


def test_the_speedup_is_the_median_of_paired_ratios() -> None:
    cost = OpCost("m", "attention", "Q4_K", 50, "CPU", Series((1.0, 2.0, 1.0)), Series((2.0, 6.0, 9.0)))
    assert cost.speedup == 3
    assert cost.bytes_per_second == 50
