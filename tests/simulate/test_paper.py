"""The paper's bars: copied right, and reproduced."""

from __future__ import annotations

from itertools import pairwise

import pytest

from pmpd_edge.simulate import device as devices
from pmpd_edge.simulate import paper
from pmpd_edge.simulate.roofline import Roofline
from pmpd_edge.simulate.shapes import named

# As the paper has them: uniform, static, learned, for CNN/DM, DialogSum, IWSLT.
SPEEDUPS = {
    "vicuna-7b": "4.9/6.1/5.9 5.2/8.0/5.9 5.3/6.0/6.9",
    "mobilellama-1.4b": "3.5/4.1/4.3 3.9/5.2/5.0 4.0/4.4/4.6",
    "phi-1.5": "3.5/3.8/4.4 3.9/4.8/4.5",
}
BITS = {  # static, learned
    "vicuna-7b": ("2.39/2.0/2.68", "2.43/2.74/2.37"),
    "mobilellama-1.4b": ("3.37/3.0/3.65", "3.19/3.21/3.48"),
    "phi-1.5": ("3.71/3.30", "3.09/3.52"),
}


@pytest.fixture(scope="module")
def cells() -> list[paper.Cell]:
    return paper.cells(devices.load("npu"))


def test_the_bars_are_the_papers():
    for model, rows in SPEEDUPS.items():
        tasks = list(paper.TASKS)[: len(rows.split())]
        for task, row in zip(tasks, rows.split(), strict=True):
            assert [speedup for _, speedup in paper.BARS[model, task]] == list(map(float, row.split("/")))
    assert sum(map(len, paper.BARS.values())) == 24


def test_the_average_bitwidths_are_the_papers():
    for model, methods in BITS.items():
        for method, row in enumerate(methods, start=1):
            found = [paper.BARS[model, task][method][0] for task in paper.TASKS if (model, task) in paper.BARS]
            assert found == list(map(float, row.split("/")))
        high, low = paper.PAIRS[model]
        for (name, _), bars in paper.BARS.items():
            if name == model:
                assert bars[0][0] == high
                assert all(low <= bits <= high for bits, _ in bars)


def test_they_are_reproduced(cells):
    assert len(cells) == 24
    assert paper.mean_error(cells) < 0.03
    assert max(abs(cell.error) for cell in cells) < 0.06


def test_the_order_of_methods_is_the_papers_wherever_its_bars_differ_visibly(cells):
    groups = [cells[i : i + 3] for i in range(0, 24, 3)]
    for group in groups:
        for one in group:
            for other in group:
                if one.paper > 1.05 * other.paper:
                    assert one.ours > other.ours


def test_the_average_bits_alone_decide_about_a_methods_time():
    device = devices.load("npu")
    roofline = Roofline(named("vicuna-7b", device), device)
    task = paper.Task(100, 10)
    exact = [paper._seconds(roofline, task, (3, 2), bits) for bits in (2.0, 2.2, 2.25, 2.3, 3.0)]
    assert all(fewer < more for fewer, more in pairwise(exact))
    assert exact[2] == pytest.approx((exact[1] + exact[3]) / 2)


def test_the_document_holds_the_mean_error_and_every_bar(cells):
    document = paper.document(cells)
    assert document["mean_error"] == pytest.approx(sum(abs(c["error"]) for c in document["cells"]) / 24)
    first = document["cells"][0]
    assert (first["model"], first["dataset"], first["method"], first["paper"]) == (
        "vicuna-7b",
        "cnn_dm",
        "uniform",
        4.9,
    )
    assert first["error"] == pytest.approx(first["ours"] / first["paper"] - 1)
