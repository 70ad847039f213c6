"""Writes a calibration for a person: the levels, the pairs, the search, the choice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pmpd_edge.calibrate.allocation import Curve, LevelCost, Result
from pmpd_edge.calibrate.run import PLOT, Calibration
from pmpd_edge.cli_ui import aligned
from pmpd_edge.schedule.spec import format_switches

_RESULT_HEAD = ("loss, %", "sure", "bits", "bpw", "decode t/s")


def describe(calibration: Calibration) -> str:
    """All of it, some screens at most."""
    return "\n".join(_lines(calibration))


def _lines(calibration: Calibration) -> Iterator[str]:
    found, options = calibration.found, calibration.options
    metric = calibration.dataset.task.metric
    yield "Levels on this device"
    yield aligned(_level_rows(calibration.levels, options.objective), text=(4,))
    yield ""
    reference = found.reference
    yield (
        f"{metric} of {len(calibration.dataset.examples)} answers, 95% intervals; loss against all at "
        f"{reference.prefill} bits; sure: that it is at most {options.tolerance:g}%"
    )
    head = ["prefill", "decode", metric, *_RESULT_HEAD]
    yield aligned([head, *([*_at(pair), *_cells(pair)] for pair in found.pairs)], text=())
    for curve in found.curves:
        yield ""
        yield f"Steps at {curve.high} bits before {curve.low} bits"
        yield aligned([["steps", "", metric, *_RESULT_HEAD], *_curve_rows(curve)], text=(1,))
    yield ""
    yield _choice(calibration)


def _level_rows(levels: Sequence[LevelCost], objective: str) -> list[list[str]]:
    rows = [["precision", "bpw", "decode t/s", "gain", ""]]
    useless = "not used: no faster here than the next higher" if objective == "time" else "not used: reads no less"
    for level in levels:
        told = "" if level.useful else useless
        rows.append([str(level.precision), f"{level.bpw:.2f}", f"{1 / level.seconds:.1f}", f"{level.gain:.2f}", told])
    return rows


def _at(result: Result) -> list[str]:
    return [str(result.prefill), str(result.schedule.switches[0].precision)]


def _cells(result: Result) -> list[str]:
    score, loss = result.score, result.loss
    return [
        f"{score.value:.2f} ({score.low:.2f} to {score.high:.2f})",
        f"{loss.value:.2f} ({loss.low:.2f} to {loss.high:.2f})",
        f"{loss.within:.0%}",
        f"{result.average_bitwidth:.2f}",
        f"{result.average_bpw:.2f}",
        f"{1 / result.seconds:.1f}",
    ]


def _curve_rows(curve: Curve) -> list[list[str]]:
    rows = [[str(n), "<" if n == curve.steps else "", *_cells(point)] for n, point in curve.points.items()]
    if curve.steps not in curve.points:
        rows.append([str(curve.steps), "< none but all", *[""] * (1 + len(_RESULT_HEAD))])
    return rows


def _choice(calibration: Calibration) -> str:
    chosen, reference = calibration.found.chosen, calibration.found.reference
    cut = f"; {chosen.cut} answers reached the length limit" if chosen.cut else ""
    missed = "" if calibration.found.within else "\nNothing with this prefill is within the tolerance."
    return (
        f"Chosen: prefill {chosen.prefill}, {format_switches(chosen.schedule)}: {chosen.average_bitwidth:.2f} bits "
        f"({chosen.average_bpw:.2f} bpw), {_gain(calibration):.2f} times the speed of "
        f"{reference.prefill} bits, loss {chosen.loss.value:.2f}% ({chosen.loss.within:.0%} sure that it is at most "
        f"{calibration.options.tolerance:g}%){cut}{missed}\nWritten into {calibration.bundle.path}; "
        f"plot: {calibration.bundle.path / PLOT}"
    )


def _gain(calibration: Calibration) -> float:
    """How many times as fast whole answers are decoded."""
    chosen, reference = calibration.found.chosen, calibration.found.reference
    return reference.steps * reference.seconds / (chosen.steps * chosen.seconds)
