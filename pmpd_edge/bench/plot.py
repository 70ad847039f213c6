"""Draws what was measured: throughput by method, the roofline with the levels on it, tokens over time."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

from pmpd_edge.bench.document import bytes_per_step
from pmpd_edge.bench.levels import Row
from pmpd_edge.bench.place import N_UBATCH
from pmpd_edge.bench.run import Result
from pmpd_edge.bench.schedules import Answers

_COLOURS = ("#1f6f8b", "#d75f00", "#5f8700", "#875faf", "#af5f5f", "#5f5f5f", "#00875f")
_DPI = 150


def draw(result: Result, folder: Path) -> list[Path]:
    """Write each plot as PNG and SVG into a folder; returns the files."""
    plots: dict[str, Callable[[Any, Result], None]] = {"throughput": _throughput, "roofline": _roofline}
    if result.answers:
        plots["tokens"] = _tokens
    folder.mkdir(parents=True, exist_ok=True)
    return [path for name, plot in plots.items() for path in _save(plot, result, folder / name)]


def _save(plot: Callable[[Any, Result], None], result: Result, path: Path) -> list[Path]:
    from matplotlib.figure import Figure  # without pyplot: no window system, no global state

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    plot(axes, result)
    axes.set_axisbelow(True)
    axes.grid(alpha=0.3)
    files = [path.with_suffix(suffix) for suffix in (".png", ".svg")]
    for file in files:
        figure.savefig(file, dpi=_DPI)
    return files


def _throughput(axes: Any, result: Result) -> None:
    """Decode tokens/s of the levels, and of answers under the schedule, from the least repetition to the best."""
    decoding = [row for row in result.rows if row.workload.steps]
    first = decoding[0].workload
    bars = {f"{row.precision} bits\n{first.name}": row.rate for row in decoding if row.workload == first}
    if result.answers:
        found = result.answers
        ways = {"high": found.high, found.scheduled.scheduler: found.scheduled, "low": found.low}
        bars |= {f"{name}\nanswer": answers.decode_rate for name, answers in ways.items()}
    for i, series in enumerate(bars.values()):
        error = [[series.median - min(series.values)], [max(series.values) - series.median]]
        axes.bar(i, series.median, yerr=error, capsize=3, color=_COLOURS[i % len(_COLOURS)])
    axes.set_xticks(range(len(bars)), list(bars), fontsize="small")
    axes.set_ylabel("decode tokens/s")
    axes.set_title(result.bundle.name)


def _roofline(axes: Any, result: Result) -> None:
    """Operations a second against operations a byte, of all tests, under the roofs of memory and of prefill."""
    bandwidth = result.bandwidth.bytes_per_second
    points = {
        precision: [_point(result, row) for row in result.rows if row.precision == precision]
        for precision in result.levels
    }
    best = max(rate for found in points.values() for _, rate in found)
    ridge = best / bandwidth
    least = min(intensity for found in points.values() for intensity, _ in found)
    most = max(ridge, *(intensity for found in points.values() for intensity, _ in found))
    axes.plot([least / 2, ridge, 2 * most], [least / 2 * bandwidth, best, best], color="#888888")
    axes.text(least / 2, least / 2 * bandwidth, f" {bandwidth / 1e9:.1f} GB/s", va="top", fontsize="small")
    axes.text(2 * most, best, f"{best / 1e9:.0f} G/s: the best prefill", ha="right", va="bottom", fontsize="small")
    for i, (precision, found) in enumerate(points.items()):
        axes.scatter(*zip(*found, strict=True), color=_COLOURS[i % len(_COLOURS)], label=f"{precision} bits", zorder=3)
    axes.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="operations/s", title=result.bundle.name)
    axes.legend(loc="lower right")


def _point(result: Result, row: Row) -> tuple[float, float]:
    """Operations a byte and a second: a multiplication and an addition for each weight and token."""
    tokens = min(row.workload.prompt or 1, N_UBATCH)  # that share one pass over the weights
    operations = 2 * result.levels[row.precision].parameters_read
    read = bytes_per_step(result, row)
    return tokens * operations / read, operations * row.rate.median


def _tokens(axes: Any, result: Result) -> None:
    """Tokens that are there after so many seconds, the switches marked."""
    found = result.answers
    assert found
    ways = {found.scheduled.scheduler: found.scheduled, "high": found.high, "low": found.low}
    for (name, answers), colour in zip(ways.items(), _COLOURS, strict=False):
        times = _times(answers)
        axes.plot(times, range(1, len(times) + 1), label=name, color=colour)
        switches = [i for i in range(1, len(answers.precisions)) if answers.precisions[i] != answers.precisions[i - 1]]
        axes.scatter([times[i] for i in switches], [i + 1 for i in switches], color=colour, marker="o", zorder=3)
        for i in switches[:1]:
            label = f"  {answers.precisions[i - 1]} → {answers.precisions[i]} bits"
            axes.annotate(label, (times[i], i + 1), va="top", fontsize="small")
    axes.set(xlabel="seconds since the prompt", ylabel="tokens", title=result.bundle.name)
    axes.legend()


def _times(answers: Answers) -> list[float]:
    """Seconds until each token is there."""
    return list(accumulate([answers.first_token.median, *answers.steps()]))
