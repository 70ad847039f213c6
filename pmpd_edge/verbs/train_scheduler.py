"""pmpd-edge train-scheduler"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pmpd_edge.verbs.options import Finite, debug, n_gpu_layers, number, threads
from pmpd_edge.verbs.task import parallel, prompt_options, read_dataset, task_option

if TYPE_CHECKING:
    from pmpd_edge.bundle import Bundle
    from pmpd_edge.calibrate.report import Report
    from pmpd_edge.evaluate.tasks import Dataset


def _pairs(_: click.Context, __: click.Parameter, value: str | None) -> tuple[tuple[int, int], ...]:
    try:
        pairs = [part.split("-") for part in value.split(",")] if value else []
        return tuple((int(high), int(low)) for high, low in pairs)
    except ValueError:
        raise click.BadParameter(f"{value!r}: write HIGH-LOW, like 8-4,8-2") from None


@click.command()
@click.argument("bundle")
@click.option(
    "--text",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="A text, the longer the better: prompts are cut out of it; may be gzipped.",
)
@task_option(required=False)
@prompt_options
@click.option(
    "--pairs",
    metavar="HIGH-LOW,...",
    callback=_pairs,
    help="Pairs of precisions.",
    show_default="all of levels below 16",
)
@number("--prompts", click.IntRange(1), "Prompts that are cut out of the text.", default=256)
@number("--tolerance", Finite(0, 1), "ROUGE-L, 0 to 1, that an answer may lose against the high level's.", default=0.0)
@number(
    "--confidence", Finite(0, 1, min_open=True), "At which the report tells costs; the scheduler's own.", default=0.8
)
@number("--seed", click.IntRange(0, 2**32 - 1), "Of the cuts and the training.", default=0)
@parallel
@threads
@n_gpu_layers
@click.option("--quiet", is_flag=True, help="No progress and no table.")
@click.option("--json", "as_json", is_flag=True, help="Print what training found as JSON.")
@debug
def train_scheduler(
    bundle: str,
    text: Path | None,
    pairs: tuple[tuple[int, int], ...],
    prompts: int,
    tolerance: float,
    confidence: float,
    seed: int,
    parallel: int,
    threads: int | None,
    n_gpu_layers: int | None,
    quiet: bool,
    as_json: bool,
    **task: Any,
) -> None:
    """Train a bundle's learned scheduler.

    It looks once at what the prompt left in the last layer's cache, and says how many steps at the high precision the
    answer needs. It is trained on prompts cut out of a text (or on a task's), against the highest level's own answers.
    What it is worth on prompts that it has not seen is printed. Training that was stopped goes on where it was.
    """
    if bool(text) + bool(task["task"]) != 1:
        raise click.UsageError("Give either --text FILE or --task.")
    if text and any(value is not None for key, value in task.items() if key != "max_new_tokens"):
        raise click.UsageError("--data, --prompt, --chat, --plain and --limit go with --task.")
    from pmpd_edge import bundle as bundles
    from pmpd_edge import cli_ui as ui
    from pmpd_edge.calibrate import train

    loaded = bundles.load(bundles.resolve(bundle))
    options = train.Options(
        pairs=pairs,
        n_prompts=prompts,
        max_new_tokens=task["max_new_tokens"],
        tolerance=tolerance,
        confidence=confidence,
        seed=seed,
        parallel=parallel,
        n_threads=threads,
        n_gpu_layers=-1 if n_gpu_layers is None else n_gpu_layers,
    )
    with ui.Progress(quiet) as progress:
        if text:
            made, reports = train.train_scheduler(loaded, text, options, progress)
        else:
            dataset = read_dataset(progress, **task, purpose="train", least=1, with_references=False)
            options = replace(options, max_new_tokens=dataset.task.max_new_tokens)
            made, reports = train.train_scheduler(loaded, _prompts(loaded, dataset), options, progress)
    assert made.predictor
    if as_json:
        click.echo(json.dumps(made.predictor.training, indent=1))
    elif not quiet:
        click.echo(_describe(made, reports))


def _prompts(bundle: Bundle, dataset: Dataset) -> list[list[int]]:
    from pmpd_edge.evaluate.prompts import prompts_of
    from pmpd_edge.runner import Pmpd

    with closing(Pmpd(bundle.path, method="high", n_threads=1, n_gpu_layers=0)) as llm:
        return prompts_of(llm, dataset.task, dataset.examples)


def _describe(bundle: Bundle, reports: Sequence[Report]) -> str:
    from pmpd_edge.cli_ui import aligned

    rows = [["pair", "right", "commonest", "random", "log loss", "of prior", "ECE", "high share", "constant", "least"]]
    for found in reports:
        rows.append(
            [
                f"{found.pair[0]}-{found.pair[1]}",
                f"{found.accuracy:.0%}",
                f"{found.majority_accuracy:.0%}",
                f"{found.random_accuracy:.0%}",
                f"{found.log_loss:.3f}",
                f"{found.prior_log_loss:.3f}",
                f"{found.calibration_error:.3f}",
                f"{found.cost:.2f} (enough: {found.enough:.0%})",
                f"{found.constant_cost:.2f} ({found.constant_enough:.0%})",
                f"{found.oracle_cost:.2f}",
            ]
        )
    assert bundle.predictor
    told = f"On {bundle.predictor.training['prompts']} prompts, each judged by a network that has not seen it:"
    verdicts = "\n".join(f"  {found.verdict}" for found in reports)
    return f"{told}\n{aligned(rows, text=(0,))}\n{verdicts}\nWritten: {bundle.path / bundle.predictor.file}"
