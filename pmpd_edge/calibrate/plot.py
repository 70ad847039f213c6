"""Draws what calibration saw: the pairs of precisions, and what is lost against the steps before each switch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pmpd_edge.calibrate.allocation import Curve, Found, Result

_COLOURS = ("#1f6f8b", "#d75f00", "#5f8700", "#875faf", "#af5f5f", "#5f5f5f", "#00875f")
_APART = 0.06  # of the distance between two precisions: so that bars do not hide each other


def draw(found: Found, metric: str, tolerance: float, path: Path) -> None:
    """Write the plot as PNG: up is better, as losses are drawn downwards.

    Args:
        found: what is drawn.
        metric: names what is lost.
        tolerance: in per cent; drawn as a line.
    """
    from matplotlib.figure import Figure  # without pyplot: no window system, no global state

    figure = Figure(figsize=(5 + 4 * len(found.curves), 4.2), layout="constrained")
    axes: Any = figure.subplots(1, 1 + len(found.curves), sharey=True, squeeze=False)[0]
    _draw_pairs(axes[0], found)
    for side, curve in zip(axes[1:], found.curves, strict=True):
        _draw_curve(side, curve)
    for side in axes:
        side.axhline(0, color="#888888", linewidth=1)
        side.axhline(tolerance, color="#888888", linewidth=1, linestyle="--")
        side.grid(alpha=0.3)
    top = found.reference.prefill
    axes[0].set_ylabel(f"loss of {metric} against all at {top} bits, %\n(bars: 95%; dashed: tolerance)")
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=150)


def _draw_pairs(side: Any, found: Found) -> None:
    precisions = sorted({pair.prefill for pair in found.pairs})
    for i, prefill in enumerate(precisions):
        pairs = sorted((pair for pair in found.pairs if pair.prefill == prefill), key=lambda pair: pair.average_bpw)
        xs = [precisions.index(pair.schedule.switches[0].precision) + _APART * i for pair in pairs]
        _errorbar(side, xs, pairs, color=_COLOURS[i], marker="o", label=f"prefill {prefill}")
    side.set_xticks(range(len(precisions)), map(str, precisions))
    side.set_xlabel("decode precision (bits)")
    side.set_title("prefill and decode, one precision each")
    side.legend()


def _draw_curve(side: Any, curve: Curve) -> None:
    _errorbar(side, list(curve.points), list(curve.points.values()), color=_COLOURS[0], marker="o")
    chosen = f"chosen: {curve.steps} steps" if curve.steps in curve.points else "no switch is within the tolerance"
    side.axvline(curve.steps, color=_COLOURS[1], label=chosen)
    side.set_xlabel(f"steps at {curve.high} bits before {curve.low} bits")
    side.set_title(f"{curve.high} → {curve.low}")
    side.legend()


def _errorbar(side: Any, xs: Sequence[float], results: Sequence[Result], **style: Any) -> None:
    losses = [result.loss for result in results]
    # Rounding may put an interval's end on the wrong side of the value by a hair.
    below = [max(0.0, loss.value - loss.low) for loss in losses]
    above = [max(0.0, loss.high - loss.value) for loss in losses]
    side.errorbar(xs, [loss.value for loss in losses], yerr=(below, above), capsize=3, **style)
