"""pmpd-edge calibrate"""

from __future__ import annotations

import json
from typing import Any

import click

from pmpd_edge.verbs.options import PRECISIONS, Finite, debug, n_gpu_layers, number, threads
from pmpd_edge.verbs.task import (
    metric_option,
    parallel,
    prompt_options,
    read_dataset,
    reference_option,
    stop_option,
    task_option,
)


@click.command()
@click.argument("bundle")
@task_option(required=True)
@prompt_options
@reference_option
@metric_option
@stop_option
@number("--tolerance", Finite(0, 100), "Per cent of the highest level's score that may be lost.", default=1.0)
@number(
    "--sure",
    Finite(0, 1),
    "How sure that has to be: the share of bootstrap resamples within the tolerance.",
    default=0.9,
)
@click.option(
    "--objective",
    type=click.Choice(["time", "bpw"]),
    default="time",
    show_default=True,
    help="What is made small: decode time as measured here, or the bits that are read.",
)
@click.option(
    "--prefill",
    type=click.Choice(PRECISIONS),
    metavar="PRECISION",
    help="Precision at which prompts are evaluated.",
    show_default="chosen",
)
@parallel
@threads
@n_gpu_layers
@click.option("--quiet", is_flag=True, help="No progress and no table.")
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
@debug
def calibrate(
    bundle: str,
    tolerance: float,
    sure: float,
    objective: str,
    prefill: str | None,
    parallel: int,
    threads: int | None,
    n_gpu_layers: int | None,
    quiet: bool,
    as_json: bool,
    **task: Any,
) -> None:
    """Choose a bundle's prefill precision and schedule.

    Answers the task's prompts at every pair of precisions, and under one schedule after another, and keeps the quickest
    on this device of those that lose no more than the tolerance. It is written into the bundle, with all that was
    measured; a plot lies beside it. A calibration that was stopped goes on where it was if it is started again.
    """
    from pmpd_edge import bundle as bundles
    from pmpd_edge import cli_ui as ui

    loaded = bundles.load(bundles.resolve(bundle))
    from pmpd_edge.calibrate import run
    from pmpd_edge.verbs import calibration_table

    options = run.Options(
        tolerance=tolerance,
        sure=sure,
        objective=objective,
        prefill=int(prefill) if prefill else None,
        parallel=parallel,
        n_threads=threads,
        n_gpu_layers=-1 if n_gpu_layers is None else n_gpu_layers,
    )
    with ui.Progress(quiet) as progress:
        dataset = read_dataset(progress, **task, purpose="validation", least=run.LEAST)
        found = run.calibrate(loaded, dataset, options, progress)
    if as_json:
        click.echo(json.dumps(run.document(found), indent=1, ensure_ascii=False))
    elif not quiet:
        click.echo(calibration_table.describe(found))
