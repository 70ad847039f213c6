"""Draws an evaluation: quality against bits, and which precisions the answers' steps have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pmpd_edge.evaluate.metrics import Score
from pmpd_edge.evaluate.report import TITLES
from pmpd_edge.evaluate.results import MethodResult, Results

QUALITY, TIMELINE = "quality", "timeline"  # .png and .svg
_COLOURS = {16: "#08306b", 8: "#08519c", 6: "#2171b5", 5: "#4292c6", 4: "#fdae6b", 3: "#f16913", 2: "#a63603"}
_COLUMNS = 4  # of the timeline


def draw(results: Results, out: Path) -> list[Path]:
    """Write the plots into a directory, as PNG and SVG; returns their paths."""
    figures = {QUALITY: _quality(results)} if results.methods[0].scores else {}
    if any(method.shares for method in results.methods):
        figures[TIMELINE] = _timeline(results)
    paths = [out / f"{name}.{kind}" for name in figures for kind in ("png", "svg")]
    for path in paths:
        figures[path.stem].savefig(path, dpi=150)
    return paths


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # without pyplot: no window system, no global state

    return Figure(figsize=(width, height), layout="constrained")


def _quality(results: Results) -> Any:
    """A panel for each metric: up is better, left is cheaper."""
    metrics = list(results.methods[0].scores)
    figure = _figure(1 + 5 * len(metrics), 4.5)
    for side, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        for i, method in enumerate(results.methods):
            score = method.scores[metric]
            style = {"marker": _marker(method), "color": f"C{i % 10}", "capsize": 3, "label": method.name}
            side.errorbar([method.bits], [score.value], yerr=_around(score), linestyle="none", **style)
        side.set_xlabel("average bitwidth of the decode steps")
        side.set_ylabel(TITLES[metric])
        side.grid(alpha=0.3)
    figure.axes[-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    return figure


def _marker(method: MethodResult) -> str:
    kind = method.name.partition(":")[0]
    return {"pmpd": "o", "dns": "X", "uniform": "s"}.get(kind, "D")


def _around(score: Score) -> list[list[float]]:
    # Rounding may put an interval's end on the wrong side of the value by a hair.
    return [[max(0.0, score.value - score.low)], [max(0.0, score.high - score.value)]]


def _timeline(results: Results) -> Any:
    """A panel for each method: the answers that are not at their end at each decode step, by precision."""
    methods = [method for method in results.methods if method.shares]
    columns = min(_COLUMNS, len(methods))
    rows = -(-len(methods) // columns)
    figure = _figure(1 + 3 * columns, 0.5 + 2 * rows)
    sides = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flatten()
    precisions = sorted({precision for method in methods for step in method.shares for precision in step})
    for side, method in zip(sides, methods, strict=False):
        steps = range(1, 1 + len(method.shares))
        shares = [[step.get(precision, 0.0) for step in method.shares] for precision in precisions]
        colours = [_COLOURS.get(precision, "#888888") for precision in precisions]
        side.stackplot(steps, shares, colors=colours, labels=[f"{precision} bits" for precision in precisions])
        side.set_title(method.name, fontsize="small")
        side.margins(0)
    for side in sides[len(methods) :]:
        side.set_axis_off()
    figure.supxlabel("decode step")
    figure.supylabel("share of the answers")
    handles, labels = sides[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper")
    return figure
