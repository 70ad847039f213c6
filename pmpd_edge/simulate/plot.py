"""Draws what was simulated: throughput by method, the roofline and the levels, tokens over time, the paper's bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pmpd_edge.simulate.answer import Answer
from pmpd_edge.simulate.paper import METHODS, Cell, mean_error
from pmpd_edge.simulate.roofline import Cost, Roofline

FORMATS = ("png", "svg")
_COLOURS = ("#1f6f8b", "#d75f00", "#5f8700", "#875faf", "#af5f5f", "#5f5f5f", "#00875f")
_GREY = "#888888"


def draw(roofline: Roofline, levels: Mapping[int, Answer], answers: Mapping[str, Answer], folder: Path) -> list[Path]:
    """Write throughput.*, roofline.* and tokens.* into a folder.

    Args:
        levels: an answer at each precision alone.
        answers: what is compared, by name, such as a schedule and the fixed precisions.
    """
    title = f"{roofline.model.name} on {roofline.device.name}"
    figure, axes = _figure(title)
    _draw_throughput(axes, answers)
    written = _save(figure, folder, "throughput")
    figure, axes = _figure(title)
    _draw_roofline(axes, roofline, levels)
    written += _save(figure, folder, "roofline")
    figure, axes = _figure(title)
    _draw_tokens(axes, answers)
    return written + _save(figure, folder, "tokens")


def draw_paper(cells: Sequence[Cell], folder: Path) -> list[Path]:
    """Write paper.* into a folder: the paper's bars, and ours as marks on them."""
    figure, axes = _figure(f"speed-up over 16 bits on the paper's NPU; mean error {mean_error(cells):.1%}", width=11)
    groups = list(dict.fromkeys((cell.model, cell.task) for cell in cells))
    for cell in cells:
        method = METHODS.index(cell.method)
        x = groups.index((cell.model, cell.task)) + 0.27 * (method - 1)
        label = cell.method if (cell.model, cell.task) == groups[0] else None
        axes.bar(x, cell.paper, width=0.25, color=_COLOURS[method], label=label)
        axes.plot(x, cell.ours, marker="D", color="black", linestyle="", label="ours" if cell is cells[-1] else None)
    axes.set_xticks(range(len(groups)), [f"{model}\n{task}" for model, task in groups], fontsize=8)
    axes.set_ylabel("times")
    axes.legend()
    return _save(figure, folder, "paper")


def _figure(title: str, width: float = 7.5) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # without pyplot: no window system, no global state

    figure = Figure(figsize=(width, 4.5), layout="constrained")
    axes: Any = figure.subplots()
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    return figure, axes


def _save(figure: Any, folder: Path, name: str) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{kind}" for kind in FORMATS]
    for path in paths:
        figure.savefig(path, dpi=150)
    return paths


def _draw_throughput(axes: Any, answers: Mapping[str, Answer]) -> None:
    speeds = [answer.decode_tokens_per_second for answer in answers.values()]
    bars = axes.bar(range(len(speeds)), speeds, color=[_COLOURS[i % len(_COLOURS)] for i in range(len(speeds))])
    axes.bar_label(
        bars, [f"{speed:.1f}\n{a.average_bitwidth:.2f} bits" for speed, a in zip(speeds, answers.values(), strict=True)]
    )
    axes.set_xticks(range(len(speeds)), list(answers))
    axes.set_ylabel("decode, tokens/s")
    axes.margins(y=0.18)


def _draw_roofline(axes: Any, roofline: Roofline, levels: Mapping[int, Answer]) -> None:
    """Levels as points: filled for decode, open for prefill; lines are the memory's roof and each type's ceiling."""
    device = roofline.device
    points: list[tuple[float, float]] = []
    for i, (precision, answer) in enumerate(levels.items()):
        colour = _COLOURS[i % len(_COLOURS)]
        kinds = {product.type for product in roofline.model.level(precision).products if not product.sampled_only}
        ceiling = min(device.kernel(kind).operations for kind in kinds)
        axes.axhline(ceiling, color=colour, linewidth=0.8, linestyle=":")
        for cost, fill in ((answer.decode, colour), (answer.prefill, "white")):
            if cost.bytes:
                points.append(_point(cost))
                label = f"{precision} bits" if cost is not answer.prefill else None
                axes.plot(*points[-1], marker="o", linestyle="", color=colour, markerfacecolor=fill, label=label)
    xs = [x for x, _ in points] or [1.0]
    ends = [min(xs) / 3, max(xs) * 3]
    axes.plot(
        ends, [x * device.bandwidth for x in ends], color=_GREY, label=f"memory, {device.bandwidth / 1e9:.0f} GB/s"
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations for each byte (filled: decode, open: prefill, dotted: types' peaks)")
    axes.set_ylabel("operations/s")
    axes.legend()


def _point(cost: Cost) -> tuple[float, float]:
    return cost.operations / cost.bytes, cost.operations / cost.seconds


def _draw_tokens(axes: Any, answers: Mapping[str, Answer]) -> None:
    for i, (name, answer) in enumerate(answers.items()):
        times, colour = answer.times(), _COLOURS[i % len(_COLOURS)]
        axes.plot(times, range(1, len(times) + 1), color=colour, label=name)
        for switch in answer.switches:
            axes.plot(times[switch.step], switch.step + 1, marker="o", color=colour)
            axes.annotate(
                f"{switch.precision} bits",
                (times[switch.step], switch.step + 1),
                xytext=(6, -10),
                textcoords="offset points",
            )
    axes.set_xlabel("seconds")
    axes.set_ylabel("tokens")
    axes.legend()
