"""pmpd-edge bench"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pmpd_edge.verbs.options import debug, draft_tokens, n_gpu_layers, number, options, threads

if TYPE_CHECKING:
    from pmpd_edge.bench.run import OpsResult, Result

FORMATS = ("table", "markdown", "json", "jsonl", "csv")
FILE = click.Path(dir_okay=False, path_type=Path)


class Numbers(click.ParamType):
    """Whole numbers with commas between them, each once, from a least one on."""

    name = "numbers"

    def __init__(self, least: int) -> None:
        self._least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        try:
            numbers = tuple(int(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r}: write numbers like 128,512.", param, ctx)
        if min(numbers) < self._least or max(numbers) >= 2**31 or len(set(numbers)) < len(numbers):
            self.fail(f"{value!r}: give numbers of {self._least} and more, each once.", param, ctx)
        return numbers


def _numbers(name: str, least: int, text: str, without: str) -> Any:
    return click.option(name, type=Numbers(least), metavar="N,...", show_default=without, help=text)


what_options = options(
    _numbers("--prompt-lengths", 1, "Tokens of the prompts.", "those of 128,512 that fit the context"),
    _numbers("--depths", 0, "Tokens that are there before decode steps.", "those of 0,1024 that fit"),
    number("--steps", click.IntRange(1, 2**31 - 1), "Decode steps of a test.", "128"),
    number("--repetitions", click.IntRange(1, 1000), "Repetitions of everything, after a warm-up.", default=5),
    click.option(
        "--scheduler",
        metavar="SPEC",
        default="static",
        show_default=True,
        help="The schedule whose answers are measured, as chat takes it.",
    ),
    draft_tokens,
    click.option("--ops", is_flag=True, help="Measure single operators: BUNDLE's, or those of the paper's models."),
    click.option(
        "--peer",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        metavar="FILE",
        help="llama-bench, to be measured beside.",
    ),
    threads,
    n_gpu_layers,
    click.option(
        "--device", metavar="NAME", help="The only device that computes.", show_default="all GPUs, or the CPU"
    ),
    click.option("--force", is_flag=True, help="Measure on a busy machine too, and where memory seems too small."),
)

result_options = options(
    click.option(
        "-o",
        "--output",
        type=click.Choice(FORMATS),
        default="table",
        show_default=True,
        help="What is printed: jsonl and csv have a row for each test, named as llama-bench names them.",
    ),
    click.option("--json", "output", flag_value="json", help="The same as --output json."),
    click.option("--out", type=FILE, metavar="FILE", help="Write everything as JSON too, for --compare."),
    click.option(
        "--plot", type=click.Path(file_okay=False, path_type=Path), metavar="DIR", help="Draw plots into DIR."
    ),
    click.option(
        "--compare", type=FILE, nargs=2, metavar="A B", help="Compare two files of --out, and measure nothing."
    ),
    click.option("--list-devices", is_flag=True, help="Show what can compute here, and measure nothing."),
    click.option("--quiet", is_flag=True, help="No progress."),
)


@click.command()
@click.argument("bundle", required=False)
@what_options
@result_options
@debug
def bench(
    bundle: str | None,
    ops: bool,
    output: str,
    out: Path | None,
    plot: Path | None,
    compare: tuple[Path, Path] | None,
    list_devices: bool,
    quiet: bool,
    **asked: Any,
) -> None:
    """Measure what a bundle's levels, and stepping down, gain on this device.

    Speed of prompts and of decoding, memory, the share of the device's memory bandwidth, what a switch costs, and
    answers under the schedule against everything at the highest and at the lowest level. BUNDLE is a directory or a
    Hub id; without it, the small model in the package is measured.

    Tests are named as llama-bench names them: pp512 evaluates 512 tokens of prompt, tg128 decodes 128 tokens,
    "@ d1024" on top of 1024. The machine must be idle.
    """
    from pmpd_edge.verbs import bench_output as show

    if list_devices:
        click.echo(show.devices())
    elif compare:
        if output not in ("table", "markdown"):
            raise click.UsageError("--compare prints a table, or --output markdown.")
        click.echo(show.comparison(*compare, output))
    else:
        _check(ops, plot, asked)
        result = _measure(bundle, ops, quiet, **asked)
        if out:
            show.write(result, out)
        for path in show.draw(result, plot) if plot else ():
            click.echo(f"{path}", err=True)
        click.echo(show.text(result, output))


def _check(ops: bool, plot: Path | None, asked: Mapping[str, Any]) -> None:
    """Say now what would only come out after minutes."""
    from importlib.util import find_spec

    from pmpd_edge.errors import PmpdError

    given = [name for name in ("prompt_lengths", "depths", "steps", "peer") if asked[name] is not None]
    if ops and (given or plot):
        raise click.UsageError(f"--{(given or ['plot'])[0].replace('_', '-')} has no meaning with --ops.")
    if plot and not find_spec("matplotlib"):
        raise PmpdError("plots are drawn with matplotlib", "pip install 'pmpd-edge[eval]'")


def _measure(
    bundle: str | None,
    ops: bool,
    quiet: bool,
    threads: int | None,
    n_gpu_layers: int | None,
    device: str | None,
    **asked: Any,
) -> Result | OpsResult:
    from pmpd_edge import bundle as bundles
    from pmpd_edge import cli_ui as ui

    loaded = None if ops and bundle is None else bundles.load(bundles.resolve(bundle))
    from pmpd_edge.bench import place, run

    chosen = run.Options(place=place.make(threads, n_gpu_layers, device), **asked)
    with ui.Progress(quiet) as progress:
        if ops or loaded is None:
            return run.bench_ops(loaded, chosen, progress)
        return run.bench(loaded, chosen, progress)
