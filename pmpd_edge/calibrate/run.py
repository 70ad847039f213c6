"""Calibrates a bundle: renders the prompts, measures the device, chooses a schedule, writes it into the manifest."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pmpd_edge import __version__, device
from pmpd_edge import bundle as bundles
from pmpd_edge.batch import PARALLEL, Batch
from pmpd_edge.bench import speed
from pmpd_edge.bundle import Bundle
from pmpd_edge.calibrate.allocation import Allocation, Curve, Found, LevelCost, Progress, Result, costs
from pmpd_edge.calibrate.plot import draw
from pmpd_edge.errors import PmpdError
from pmpd_edge.evaluate import metrics
from pmpd_edge.evaluate.answers import Answers, Store
from pmpd_edge.evaluate.prompts import prompts_of
from pmpd_edge.evaluate.tasks import Dataset
from pmpd_edge.runner import Pmpd, llama_cpp
from pmpd_edge.schedule.spec import format_switches

STORE = "calibration.jsonl"
PLOT = "calibration.png"
LEAST = 8  # examples: fewer tell nothing
OBJECTIVES = ("time", "bpw")


@dataclass(frozen=True)
class Options:
    """How a bundle is calibrated.

    Attributes:
        tolerance: what answers may lose against those at the highest level, in per cent of the score.
        sure: how sure that has to be, as the share of bootstrap resamples that stay within the tolerance; 0.5 goes by
            the score itself, which flatters what was chosen by it.
        objective: `time`, decode time as measured here, or `bpw`, bits read.
        prefill: precision of the prompt; None has it chosen.
        parallel: answers at a time.
        n_threads, n_gpu_layers: as `Pmpd` takes them.
    """

    tolerance: float = 1.0
    sure: float = 0.9
    objective: str = "time"
    prefill: int | None = None
    parallel: int = PARALLEL
    n_threads: int | None = None
    n_gpu_layers: int = -1


@dataclass(frozen=True)
class Calibration:
    """What calibration found, and on what.

    Attributes:
        bundle: with the chosen prefill and schedule in its manifest.
        levels: their costs on this device.
        found: pairs, curves and the choice.
    """

    bundle: Bundle
    dataset: Dataset
    options: Options
    levels: tuple[LevelCost, ...]
    speeds: Mapping[int, speed.Speed]
    found: Found


def calibrate(
    bundle: Bundle, dataset: Dataset, options: Options, progress: Progress = lambda label, fraction: None
) -> Calibration:
    """Choose prefill precision and schedule of a bundle, and write them into its manifest.

    What is measured is kept in the bundle's `calibration.jsonl`: a run that is stopped goes on where it was.

    Raises:
        PmpdError: there is only one level, prompts do not fit the context, or a package is missing.
    """
    if not importlib.util.find_spec("matplotlib"):  # said now, not after hours
        raise PmpdError("calibration draws a plot with matplotlib", "pip install 'pmpd-edge[eval]'")
    if len(bundle.levels) < 2:
        raise PmpdError(f"{bundle.path}: one level only", "convert with more: --precisions 8,4")
    if options.prefill is not None:
        bundle.level(options.prefill)
    metric = metrics.make(dataset.task.metric)
    bundles.check_writable(bundle)
    store = Store(bundle.path / STORE)
    prompts, speeds = _prepare(bundle, dataset, options, store, progress)
    bpw = {level.precision: bundle.bpw(level) for level in bundle.levels}
    levels = costs(speeds, bpw, options.objective)
    max_new_tokens = dataset.task.max_new_tokens or bundle.schedule.max_new_tokens
    n_ctx = min(max(map(len, prompts)) + max_new_tokens, bundle.context_length)
    if (longest := max(map(len, prompts))) >= n_ctx:
        raise PmpdError(f"a prompt of {longest} tokens in a context of {n_ctx}", "leave the longest rows out")
    with Batch(
        bundle,
        n_ctx=n_ctx,
        parallel=options.parallel,
        n_threads=options.n_threads,
        n_gpu_layers=options.n_gpu_layers,
    ) as batch:
        inputs = _inputs(bundle, dataset)
        answers = Answers(store, batch, prompts, max_new_tokens, inputs, dataset.task.stop)
        found = Allocation(
            answers,
            [example.reference for example in dataset.examples],
            metric,
            levels,
            tolerance=options.tolerance,
            sure=options.sure,
            objective=options.objective,
            max_new_tokens=max_new_tokens,
            progress=progress,
        ).find(options.prefill)
    calibration = Calibration(bundle, dataset, options, tuple(levels), speeds, found)
    return dataclasses.replace(calibration, bundle=_write(calibration))


def _inputs(bundle: Bundle, dataset: Dataset) -> dict[str, Any]:
    return {"bundle": bundle.fingerprint, "data": dataset.sha256}


def _speed_inputs(bundle: Bundle, options: Options, n_threads: int) -> dict[str, Any]:
    """What decides about the levels' speed; measured anew once a calibration has ended, and not while it goes on."""
    return {
        "speed": True,
        "bundle": bundle.fingerprint,
        "versions": [__version__, llama_cpp.__version__],
        "device": device.describe(),
        "threads": n_threads,
        "n_gpu_layers": options.n_gpu_layers,
        "after": hashlib.sha256(json.dumps(bundle.calibration).encode()).hexdigest(),
    }


def _prepare(
    bundle: Bundle, dataset: Dataset, options: Options, store: Store, progress: Progress
) -> tuple[list[list[int]], dict[int, speed.Speed]]:
    """The prompts' tokens, and the levels' speed on this device."""
    n_ctx = min(bundle.context_length, speed.PROMPT + speed.STEPS)
    llm = Pmpd(
        bundle.path,
        method="high",
        n_threads=options.n_threads,
        n_gpu_layers=options.n_gpu_layers,
        n_ctx=n_ctx,
    )
    try:
        inputs = {**_inputs(bundle, dataset), "prompts": True}
        prompts = store.get(inputs, lambda: prompts_of(llm, dataset.task, dataset.examples, progress))

        def measure() -> dict[str, Any]:
            found = speed.measure(
                llm, bundle.precisions, progress=lambda done, of: progress("measuring the levels' speed", done / of)
            )
            return {str(precision): dataclasses.asdict(level) for precision, level in found.items()}

        measured = store.get(_speed_inputs(bundle, options, llm.n_threads), measure)
    finally:
        llm.close()
    speeds = {
        precision: speed.Speed(tuple(found["prefill"]), tuple(found["decode"]))
        for precision, found in ((int(key), value) for key, value in measured.items())
    }
    return prompts, speeds


def _write(calibration: Calibration) -> Bundle:
    """Write what was chosen, and what it was chosen by, into the manifest; and the plot beside it."""
    bundle, chosen = calibration.bundle, calibration.found.chosen
    draw(calibration.found, calibration.dataset.task.metric, calibration.options.tolerance, bundle.path / PLOT)
    schedule = dataclasses.replace(chosen.schedule, max_new_tokens=bundle.schedule.max_new_tokens)
    return bundles.update(bundle, prefill=chosen.prefill, schedule=schedule, calibration=document(calibration))


def document(calibration: Calibration) -> dict[str, Any]:
    """What the manifest keeps of a calibration."""
    dataset, options, found = calibration.dataset, calibration.options, calibration.found
    return {
        "data": {"name": dataset.name, "sha256": dataset.sha256, "examples": len(dataset.examples)},
        "task": {**dataset.task.asked, "reference": dataset.task.reference, "metric": dataset.task.metric},
        "tolerance": options.tolerance,
        "sure": options.sure,
        "objective": options.objective,
        "parallel": options.parallel,
        "device": device.describe(),
        "levels": [
            {
                **dataclasses.asdict(level),
                "prefill_tokens_per_second": calibration.speeds[level.precision].prefill_tokens_per_second,
                "decode_tokens_per_second": calibration.speeds[level.precision].decode_tokens_per_second,
            }
            for level in calibration.levels
        ],
        "reference": _result(found.reference),
        "pairs": [_result(pair) for pair in found.pairs],
        "curves": [_curve(curve) for curve in found.curves],
        "chosen": _result(found.chosen),
        "within": found.within,
    }


def _result(result: Result) -> dict[str, Any]:
    return {**dataclasses.asdict(result), "schedule": format_switches(result.schedule)}


def _curve(curve: Curve) -> dict[str, Any]:
    points: Sequence[dict[str, Any]] = [{"steps": steps, **_result(point)} for steps, point in curve.points.items()]
    return {"high": curve.high, "low": curve.low, "begins": curve.begins, "steps": curve.steps, "points": points}
