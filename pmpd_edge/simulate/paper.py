"""The throughput bars of the PMPD paper's NPU, beside what the model says of them.

The bars are speed-ups over 16 bits. The paper gives for each the average bitwidth, so that an answer's steps divide
into those at the high and those at the low precision. Nothing is fitted to a bar: the figures are the device
profile's, the models' shapes and three data sets' lengths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pmpd_edge.simulate.answer import simulate
from pmpd_edge.simulate.device import Device
from pmpd_edge.simulate.roofline import Roofline
from pmpd_edge.simulate.shapes import named

REFERENCE = 16
METHODS = ("uniform", "static", "learned")
PAIRS = {"vicuna-7b": (3, 2), "mobilellama-1.4b": (4, 3), "phi-1.5": (4, 3)}


@dataclass(frozen=True)
class Task:
    """A data set's mean prompt and longest answer, in tokens."""

    prompt: int
    steps: int


# Answers: the paper's limits, which its average bitwidths show to be reached. Prompts, with the 170 characters or so of
# the paper's instructions: means of samples of the data sets, 4054 characters (CNN/DM), 727 (DialogSum) and 308 (French
# of IWSLT 2017, where the English is over 60 tokens), at 4 characters a token, 3.2 for French, 4.
TASKS = {"cnn_dm": Task(1055, 256), "dialogsum": Task(225, 33), "iwslt": Task(140, 60)}

# arXiv 2410.13461, throughput on the NPU, and the average bitwidths of its tables: (bits, speed-up) for each method.
BARS: dict[tuple[str, str], Sequence[tuple[float, float]]] = {
    ("vicuna-7b", "cnn_dm"): ((3, 4.9), (2.39, 6.1), (2.43, 5.9)),
    ("vicuna-7b", "dialogsum"): ((3, 5.2), (2.0, 8.0), (2.74, 5.9)),
    ("vicuna-7b", "iwslt"): ((3, 5.3), (2.68, 6.0), (2.37, 6.9)),
    ("mobilellama-1.4b", "cnn_dm"): ((4, 3.5), (3.37, 4.1), (3.19, 4.3)),
    ("mobilellama-1.4b", "dialogsum"): ((4, 3.9), (3.0, 5.2), (3.21, 5.0)),
    ("mobilellama-1.4b", "iwslt"): ((4, 4.0), (3.65, 4.4), (3.48, 4.6)),
    ("phi-1.5", "cnn_dm"): ((4, 3.5), (3.71, 3.8), (3.09, 4.4)),
    ("phi-1.5", "dialogsum"): ((4, 3.9), (3.30, 4.8), (3.52, 4.5)),
}


@dataclass(frozen=True)
class Cell:
    """A bar: `paper` and `ours` are speed-ups over 16 bits."""

    model: str
    task: str
    method: str
    bits: float
    paper: float
    ours: float

    @property
    def error(self) -> float:
        """Relative error of ours."""
        return self.ours / self.paper - 1


def cells(device: Device) -> list[Cell]:
    """All bars on a device; raises PmpdError where it lacks a type for one of the precisions."""
    found = []
    for (model, task), bars in BARS.items():
        roofline = Roofline(named(model, device), device)
        reference = _seconds(roofline, TASKS[task], (REFERENCE, REFERENCE), REFERENCE)
        for method, (bits, speedup) in zip(METHODS, bars, strict=True):
            seconds = _seconds(roofline, TASKS[task], PAIRS[model], bits)
            found.append(Cell(model, task, method, bits, speedup, reference / seconds))
    return found


def mean_error(found: Sequence[Cell]) -> float:
    """Mean of the errors without their signs."""
    return sum(abs(cell.error) for cell in found) / len(found)


def document(found: Sequence[Cell]) -> dict[str, Any]:
    """The bars for programs; errors are shares, not per cent."""
    return {
        "mean_error": mean_error(found),
        "cells": [
            {
                "model": cell.model,
                "dataset": cell.task,
                "method": cell.method,
                "bits": cell.bits,
                "paper": cell.paper,
                "ours": cell.ours,
                "error": cell.error,
            }
            for cell in found
        ],
    }


def _seconds(roofline: Roofline, task: Task, pair: tuple[int, int], bits: float) -> float:
    """Mean time to decode answers of `bits` on average: the two whole numbers of high steps next to that, weighted."""
    high, low = pair
    exact = task.steps * (bits - low) / (high - low) if high > low else task.steps
    fewer = math.floor(exact)
    weight = exact - fewer
    seconds = (1 - weight) * _decode(roofline, task, pair, fewer)
    return seconds + (weight * _decode(roofline, task, pair, fewer + 1) if weight else 0.0)


def _decode(roofline: Roofline, task: Task, pair: tuple[int, int], high_steps: int) -> float:
    high, low = pair
    steps = [high] * high_steps + [low] * (task.steps - high_steps)
    return simulate(roofline, task.prompt, [high, *steps]).decode_seconds
