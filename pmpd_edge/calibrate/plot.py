"""Draws what calibration saw: the pairs of precisions, and quality against the steps before each switch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pmpd_edge.calibrate.allocation import Curve, Found, Result

_COLOURS = ("#1f6f8b", "#d75f00", "#5f8700", "#875faf", "#af5f5f", "#5f5f5f", "#00875f")


def draw(found: Found, metric: str, tolerance: float, path: Path) -> None:
    """Write the plot as PNG.

    Args:
        found: what is drawn.
        metric: names the axis of quality.
        tolerance: in per cent; drawn as a line below the reference.
    """
    from matplotlib.figure import Figure  # without pyplot: no window system, no global state

    figure = Figure(figsize=(6 + 4 * max(len(found.curves), 1), 4.2), layout="constrained")
    axes: Any = figure.subplots(1, 1 + len(found.curves), sharey=True, squeeze=False)[0]
    _draw_pairs(axes[0], found)
    for side, curve in zip(axes[1:], found.curves, strict=True):
        _draw_curve(side, curve)
    reference = found.reference.score.value
    for side in axes:
        side.axhline(reference, color="#888888", linewidth=1)
        side.axhline(reference * (1 - tolerance / 100), color="#888888", linewidth=1, linestyle="--")
        side.grid(alpha=0.3)
    axes[0].set_ylabel(f"{metric} (bars: 95%; dashed: tolerance {tolerance:g}%)")
    figure.savefig(path, dpi=150)


def _draw_pairs(side: Any, found: Found) -> None:
    precisions = sorted({pair.prefill for pair in found.pairs})
    for colour, prefill in zip(_COLOURS, precisions, strict=False):
        pairs = sorted((pair for pair in found.pairs if pair.prefill == prefill), key=lambda pair: pair.average_bpw)
        labels = [str(pair.schedule.switches[0].precision) for pair in pairs]
        _errorbar(side, labels, pairs, color=colour, marker="o", label=f"prefill {prefill}")
    side.set_xlabel("decode precision (bits)")
    side.set_title("prefill and decode, one precision each")
    side.legend()


def _draw_curve(side: Any, curve: Curve) -> None:
    points = list(curve.points.values())
    _errorbar(side, list(curve.points), points, color=_COLOURS[0], marker="o")
    side.axvline(curve.steps, color=_COLOURS[1], label=f"chosen: {curve.steps} steps")
    side.set_xlabel(f"steps at {curve.high} bits before {curve.low} bits")
    side.set_title(f"{curve.high} → {curve.low}")
    side.legend()


def _errorbar(side: Any, xs: list[Any], results: list[Result], **style: Any) -> None:
    scores = [result.score for result in results]
    values = [score.value for score in scores]
    # Rounding may put an interval's end on the wrong side of the value by a hair.
    below = [max(0.0, score.value - score.low) for score in scores]
    above = [max(0.0, score.high - score.value) for score in scores]
    side.errorbar(xs, values, yerr=(below, above), capsize=3, **style)
