"""pmpd-edge eval"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from pmpd_edge.verbs.options import debug, draft_tokens, n_gpu_layers, number, threads
from pmpd_edge.verbs.task import parallel, prompt_options, read_dataset, reference_option, stop_option, task_option


@click.command("eval")
@click.argument("bundle", required=False)
@task_option(required=True)
@prompt_options
@reference_option
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    type=click.Choice(["bleu", "chrf", "rougeL", "bertscore", "exact", "number"]),
    help="What answers are scored by; several times for several.  [default: the task's]",
)
@stop_option
@click.option(
    "--methods",
    default="high,low,pmpd",
    show_default=True,
    metavar="METHOD,...",
    help="What is compared: high, low, uniform (each level), uniform:PRECISION, pmpd, pmpd:SCHEDULER, lossless, "
    "lossless:SCHEDULER, dns, dns:BPW, dns-sensitive.",
)
@draft_tokens
@click.option("--baseline", metavar="METHOD", help="What differences are from.", show_default="high, or the first")
@number("--kl", click.IntRange(0), "Prompts on which distributions are compared with the 16-bit level's.", default=100)
@number("--timed", click.IntRange(0), "Prompts that are answered one at a time, for the speeds.", default=5)
@click.option("--bert-model", metavar="DIR|ID", help="BERTScore's encoder.", show_default="bert-score's for English")
@click.option(
    "--source",
    metavar="SOURCE",
    help="The model that the bundle was made from: the reference, and for dns, where there is no 16-bit level.",
)
@number("--seed", click.IntRange(0, 2**32 - 1), "Of the bootstrap.", default=0)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where results, plots and answers go; what is there is used.",
    show_default="eval/BUNDLE-TASK",
)
@parallel
@threads
@n_gpu_layers
@click.option("--quiet", is_flag=True, help="No progress and no table.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
@debug
def evaluate(
    bundle: str | None,
    methods: str,
    draft_tokens: int | str,
    baseline: str | None,
    metrics: tuple[str, ...],
    kl: int,
    timed: int,
    bert_model: str | None,
    source: str | None,
    seed: int,
    out: Path | None,
    parallel: int,
    threads: int | None,
    n_gpu_layers: int | None,
    quiet: bool,
    as_json: bool,
    **task: Any,
) -> None:
    """Compare methods on a task: what is lost, what is gained.

    Answers the task's prompts with each method and scores the answers, as the paper does: everything at the highest or
    at the lowest precision (high, low), stepping down (pmpd), and a dense-and-sparse decomposition at the same bits
    (dns). Every answer is kept: an evaluation that was stopped goes on where it was if it is started again.
    """
    from pmpd_edge import bundle as bundles
    from pmpd_edge import cli_ui as ui

    loaded = bundles.load(bundles.resolve(bundle))
    from pmpd_edge.evaluate import plot, report, run
    from pmpd_edge.evaluate.methods import split

    options = run.Options(
        methods=tuple(split(methods)),
        draft_tokens=draft_tokens,
        baseline=baseline,
        parallel=parallel,
        timed=timed,
        led=kl,
        encoder=bert_model,
        source=source,
        seed=seed,
        n_threads=threads,
        n_gpu_layers=-1 if n_gpu_layers is None else n_gpu_layers,
    )
    folder = out or Path("eval") / f"{loaded.name}-{Path(task['task']).name.partition('.')[0]}"
    run.check_installed()
    with ui.Progress(quiet) as progress:
        dataset = read_dataset(progress, **task, metrics=metrics or None, purpose="test", least=1, keep_going=True)
        found = run.evaluate(loaded, dataset, options, folder, progress, progress.note)
        plots = plot.draw(found.results, folder)
        report.write(found, folder, shlex.join(["pmpd-edge", *sys.argv[1:]]), plots)
    if as_json:
        click.echo(json.dumps(report.document(found.results), indent=1, ensure_ascii=False))
    elif not quiet:
        click.echo(report.text(found.results))
        click.echo(f"\nWritten: {folder}")
