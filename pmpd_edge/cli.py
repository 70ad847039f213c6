"""The command line: options in, results on standard output, everything else on standard error.

Only click is imported at first; a verb imports what it needs when it is called, so that `--help` is quick.
"""

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import Callable
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pmpd_edge import __version__
from pmpd_edge.errors import PmpdError

if TYPE_CHECKING:
    from pmpd_edge.bundle import StaticSchedule
    from pmpd_edge.convert import TensorType

LAYOUTS = ("separate", "nested")
PRECISIONS = ("16", "8", "6", "5", "4", "3", "2")
CACHE_TYPES = ("f32", "f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
INTERRUPTED, BROKEN_PIPE, TERMINATED = 130, 141, 143  # as shells report them: 128 + the signal
MAX_THREADS = 512  # GGML_MAX_N_THREADS


class Group(click.Group):
    """Turns whatever a verb raises into one line and an exit status."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except KeyboardInterrupt:
            raise click.exceptions.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what Python still flushes at its end has nowhere to go
            raise click.exceptions.Exit(BROKEN_PIPE) from None
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            if ctx.meta.get("debug"):
                raise
            raise click.ClickException(describe(error)) from error


class Finite(click.FloatRange):
    """A number in a range; click's own takes `nan` for one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


def describe(error: Exception) -> str:
    """An exception in one line."""
    if isinstance(error, PmpdError):
        text = str(error)
    elif isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        text = f"unexpected {type(error).__name__} ({error}): run again with --debug and report what it says"
    return " ".join(text.split())


def main() -> None:
    """The entry point of `pmpd-edge`."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by whoever started this
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))  # so that nothing half-written stays
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace"), (sys.stderr, "replace")):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=errors)
    try:
        cli(prog_name="pmpd-edge")
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # one Ctrl-C more must not change the exit status


def _debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    ctx.meta["debug"] = value or ctx.meta.get("debug", False)  # shared by a group and its verbs


debug = click.option("--debug", is_flag=True, expose_value=False, callback=_debug, help="Show the traceback of errors.")


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="pmpd-edge")
@debug
def cli() -> None:
    """Progressive mixed-precision decoding of language models on llama.cpp.

    A bundle holds a model in several precisions. Prompts are evaluated at a high one; answers begin there and step
    down to lower ones, which read fewer bytes for every token, as they grow.
    """


def _number(
    name: str, kind: click.ParamType, text: str, without: str | bool = True, default: float | None = None
) -> Callable[[Any], Any]:
    """An option with a number; `without` says what happens where neither the user nor `default` gives one."""
    return click.option(name, type=kind, metavar="N", default=default, show_default=without, help=text)


# convert


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
    from pmpd_edge.schedule import parse_switches

    try:
        return parse_switches(text, max_new_tokens)
    except PmpdError as error:
        raise click.BadParameter(str(error), param_hint="'--schedule'") from None


@cli.command()
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
@_number("--max-new-tokens", click.IntRange(1), "Length of the longest answer.", default=256)
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
@_number("--threads", click.IntRange(1, MAX_THREADS), "CPU threads.", "all cores")
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


# info


@cli.command()
@click.argument("bundle", required=False)
@click.option("--verify", is_flag=True, help="Check the SHA-256 of every file and of the tokenizer in it.")
@click.option("--json", "as_json", is_flag=True, help="Print the bundle's manifest.")
@debug
def info(bundle: str | None, verify: bool, as_json: bool) -> None:
    """Show what a bundle holds.

    BUNDLE is a directory or a Hub id; without it, the small model in the package is shown.
    """
    from pmpd_edge import bundle as bundles
    from pmpd_edge import cli_ui as ui

    loaded = bundles.load(bundles.resolve(bundle))
    if verify:
        total = sum(file.bytes for file in loaded.files.values())
        with ui.Progress() as progress:
            done = 0

            def read(n_bytes: int) -> None:
                nonlocal done
                done += n_bytes
                progress("Reading", done / max(1, total))

            loaded.verify(read)
    click.echo(ui.manifest(loaded) if as_json else ui.describe(loaded, verified=verify))


# chat


def _options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


# What a chat's /set changes as well: the names are those of chat.Settings.
settings_options = _options(
    click.option(
        "--method",
        type=click.Choice(["pmpd", "high", "low"]),
        default="pmpd",
        show_default=True,
        help="pmpd follows the scheduler; high and low do everything at the highest or lowest precision.",
    ),
    click.option(
        "--scheduler",
        metavar="SPEC",
        default="static",
        show_default=True,
        help="static (the bundle's schedule), static:8@1,4@86 (precision 8 from step 1, 4 from step 86) or fixed:4.",
    ),
    _number("--high-steps", click.IntRange(0), "Steps before the first switch.", "as scheduled"),
    _number("--max-new-tokens", click.IntRange(1), "Length of the longest answer.", "the bundle's"),
    click.option("--system", default="", metavar="TEXT", help="System message."),
    _number(
        "--temperature",
        Finite(0),
        "0 takes the likeliest token each time, so that answers of two methods can be compared.",
        default=0.0,
    ),
    _number("--top-k", click.IntRange(0), "Sample from the K likeliest tokens; 0: from all.", default=40),
    _number("--top-p", Finite(0, 1), "Sample from the likeliest tokens that sum to P.", default=0.95),
    _number("--min-p", Finite(0, 1), "Leave out tokens under P times the likeliest's.", default=0.05),
    _number("--repeat-penalty", Finite(0, min_open=True), "Against repetition; 1: none.", default=1.0),
    _number("--seed", click.IntRange(0, 2**32 - 1), "Seed of the sampling.", "another one for every answer"),
)

model_options = _options(
    _number(
        "--threads",
        click.IntRange(1, MAX_THREADS),
        "CPU threads; fewer are faster on a busy machine.",
        "one for each fast physical core",
    ),
    _number(
        "--n-gpu-layers", click.IntRange(-1, 2**31 - 1), "Layers on the GPU; -1: all.", "all, if it was built for one"
    ),
    _number(
        "--ctx-size",
        click.IntRange(1, 2**31 - 256),
        "Context in tokens, rounded up to a multiple of 256.",
        "what the model was trained on, at most 4096",
    ),
    click.option("--cache-type-k", type=click.Choice(CACHE_TYPES), help="Type of the K cache.", show_default="f16"),
    click.option("--cache-type-v", type=click.Choice(CACHE_TYPES), help="Type of the V cache.", show_default="f16"),
    click.option("--flash-attn/--no-flash-attn", default=True, show_default=True, help="Flash attention."),
    click.option(
        "--keep-low-kv",
        is_flag=True,
        help="Reuse what earlier answers left in the KV cache: quicker, at a cost in quality.",
    ),
    click.option("--verbose", is_flag=True, help="Show what the library logs."),
)


@cli.command()
@click.argument("bundle", required=False)
@click.option("--prompt", metavar="TEXT", help="Answer TEXT and leave; - reads it from standard input.")
@click.option("--json", "as_json", is_flag=True, help="With --prompt: print text, tokens and statistics as JSON.")
@settings_options
@model_options
@debug
@click.pass_context
def chat(
    ctx: click.Context,
    bundle: str | None,
    prompt: str | None,
    as_json: bool,
    threads: int | None,
    n_gpu_layers: int | None,
    ctx_size: int | None,
    cache_type_k: str | None,
    cache_type_v: str | None,
    flash_attn: bool,
    keep_low_kv: bool,
    verbose: bool,
    **settings: Any,
) -> None:
    """Chat with a bundle.

    BUNDLE is a directory or a Hub id; without it, the small model in the package answers: it translates sentences from
    German or French to English.

    Tokens decoded at the lowest precision are orange. Ctrl-C stops an answer, and leaves at the prompt. Where standard
    input is not a terminal, each of its lines is a message.
    """
    if as_json and prompt is None:
        raise click.UsageError("--json needs --prompt.")
    from pmpd_edge import chat as chatting

    model = {
        "n_threads": threads,
        "n_gpu_layers": n_gpu_layers,
        "n_ctx": ctx_size,
        "type_k": cache_type_k,
        "type_v": cache_type_v,
        "flash_attn": flash_attn,
        "keep_low_kv": keep_low_kv,
        "verbose": verbose,
    }
    by_name = {parameter.name: parameter for parameter in ctx.command.params if parameter.name}
    ctx.exit(chatting.run(bundle, chatting.Settings(**settings), model, by_name, prompt, as_json))
