"""pmpd-edge convert"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pmpd_edge.errors import PmpdError
from pmpd_edge.verbs.options import MAX_THREADS, PRECISIONS, debug, number

if TYPE_CHECKING:
    from pmpd_edge.bundle import StaticSchedule
    from pmpd_edge.convert import TensorType

LAYOUTS = ("separate", "nested")


def _precisions(_: click.Context, __: click.Parameter, value: str) -> tuple[int, ...]:
    parts = [part.strip() for part in value.split(",")]
    if not set(parts) <= set(PRECISIONS) or len(set(parts)) < len(parts):
        raise click.BadParameter(f"{value!r}: give some of {','.join(PRECISIONS)}, each once")
    return tuple(map(int, parts))


def _types(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[int, str]:
    pairs = [(precision, name) for precision, _, name in (value.partition("=") for value in values)]
    for precision, name in pairs:
        if precision not in PRECISIONS or not name:
            raise click.BadParameter(f"{precision}={name}: write PRECISION=TYPE, like 4=Q4_K")
    return {int(precision): name.upper() for precision, name in pairs}


def _tensor_types(values: tuple[str, ...]) -> list[TensorType]:
    """`REGEX=TYPE`, or `PRECISION:REGEX=TYPE`; llama-quantize's form, with a precision before it."""
    from pmpd_edge.convert import TensorType

    types = []
    for value in values:
        pattern, _, name = value.rpartition("=")
        first, _, rest = pattern.partition(":")
        precision, pattern = (int(first), rest) if first in PRECISIONS and rest else (None, pattern)
        if not pattern or not name:
            raise click.BadParameter(f"{value!r}: write REGEX=TYPE, like attn_v=Q6_K", param_hint="'--tensor-type'")
        types.append(TensorType(pattern, name.upper(), precision))
    return types


def _schedule(text: str, max_new_tokens: int) -> StaticSchedule:
    from pmpd_edge.schedule.spec import parse_switches

    try:
        return parse_switches(text, max_new_tokens)
    except PmpdError as error:
        raise click.BadParameter(str(error), param_hint="'--schedule'") from None


@click.command()
@click.argument("source")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--precisions", default="8,4", show_default=True, callback=_precisions, help="Levels of the bundle.")
@click.option(
    "--layout",
    type=click.Choice(LAYOUTS),
    default="separate",
    show_default=True,
    help="separate: a complete file for each level; nested: for the lowest, and each higher level adds to it.",
)
@click.option(
    "--type",
    "types",
    multiple=True,
    metavar="PRECISION=TYPE",
    callback=_types,
    help="Tensor type of a level's file: 4=Q4_K.",
)
@click.option(
    "--tensor-type",
    "tensor_types",
    multiple=True,
    metavar="[PRECISION:]REGEX=TYPE",
    help="Type of the matrices that a regular expression matches: attn_v=Q6_K, or at one precision 4:ffn_down=Q5_K.",
)
@click.option(
    "--embedding-type",
    metavar="TYPE",
    default="Q8_0",
    show_default=True,
    help="Type of token embeddings and output below 16 bits.",
)
@click.option(
    "--imatrix",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Importance matrix of the model, made by llama-imatrix.",
)
@click.option(
    "--calibration-text",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Text to compute the importance matrix from.",
    show_default="one that comes along, of many kinds and languages",
)
@click.option("--no-imatrix", is_flag=True, help="No importance matrix for levels of 4 bits and below.")
@click.option(
    "--report", is_flag=True, help="Measure what the levels lose and gain: perplexity, KL divergence, size, speed."
)
@click.option(
    "--report-text",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Text for --report.",
    show_default="another one that comes along",
)
@click.option(
    "--schedule", metavar="SWITCHES", help="Where the precision changes: 8@1,4@86 is 8 from step 1, 4 from step 86."
)
@number("--max-new-tokens", click.IntRange(1), "Length of the longest answer.", default=256)
@click.option(
    "--prefill",
    type=click.Choice(PRECISIONS),
    metavar="PRECISION",
    help="Precision at which prompts are evaluated.",
    show_default="the highest",
)
@click.option(
    "--name", metavar="TEXT", help="The bundle's name and the beginning of its files'.", show_default="SOURCE's"
)
@click.option(
    "--pre-tokenizer",
    metavar="NAME",
    help="llama.cpp's rule for splitting text into words, where it does not recognise a byte-level BPE tokenizer.",
)
@number("--threads", click.IntRange(1, MAX_THREADS), "CPU threads.", "all cores")
@click.option("--overwrite", is_flag=True, help="Replace OUT where it exists.")
@click.option("--trust-remote-code", is_flag=True, help="Run the Python code that some models bring with them.")
@click.option("--quiet", is_flag=True, help="No progress and no table; warnings alone.")
@click.option("--json", "as_json", is_flag=True, help="Print the bundle's manifest.")
@debug
def convert(
    source: str,
    out: Path,
    precisions: tuple[int, ...],
    layout: str,
    types: dict[int, str],
    tensor_types: tuple[str, ...],
    embedding_type: str,
    imatrix: Path | None,
    calibration_text: Path | None,
    no_imatrix: bool,
    report: bool,
    report_text: Path | None,
    schedule: str | None,
    max_new_tokens: int,
    prefill: str | None,
    name: str | None,
    pre_tokenizer: str | None,
    threads: int | None,
    overwrite: bool,
    trust_remote_code: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Make a bundle from a model.

    SOURCE is the model's directory, its Hub id (org/name or org/name@revision), or a GGUF file of F32, F16 or BF16. OUT
    is the bundle's directory. A conversion that was stopped goes on where it was if it is started again.
    """
    from pmpd_edge import cli_ui as ui

    if bool(imatrix) + bool(calibration_text) + no_imatrix > 1:
        raise click.UsageError("--imatrix, --calibration-text and --no-imatrix exclude each other.")
    static = _schedule(schedule, max_new_tokens) if schedule else None
    try:
        from pmpd_edge.convert import convert as convert_model
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("pmpd_edge"):
            raise
        raise PmpdError(f"converting needs {error.name}", "pip install 'pmpd-edge[convert]'") from None

    with ui.Progress(quiet) as progress:
        bundle = convert_model(
            source,
            out,
            precisions=precisions,
            layout=layout,
            types=types or None,
            tensor_types=_tensor_types(tensor_types),
            shared_type=embedding_type.upper(),
            imatrix_file=imatrix,
            calibration_text=calibration_text,
            use_imatrix=not no_imatrix,
            with_report=report or bool(report_text),
            report_text=report_text,
            schedule=static,
            max_new_tokens=max_new_tokens,
            prefill=int(prefill) if prefill else None,
            name=name,
            pre_tokenizer=pre_tokenizer,
            threads=threads,
            progress=progress,
            note=progress.note,
            show_download=not quiet,
            overwrite=overwrite,
            trust_remote_code=trust_remote_code,
        )
    for line in ui.notes(bundle):
        ui.note(line)
    if as_json:
        click.echo(ui.manifest(bundle))
    elif not quiet:
        click.echo(ui.table(bundle))
        if measured := ui.report(bundle):
            click.echo(f"\n{measured}")
