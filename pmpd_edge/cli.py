"""The command line: options in, results on standard output, everything else on standard error.

Only click is imported at first; a verb imports what it needs when it is called, so that `--help` is quick.
"""

from __future__ import annotations

import os
import signal
import sys
from io import TextIOWrapper
from typing import Any

import click

from pmpd_edge import __version__
from pmpd_edge.errors import PmpdError
from pmpd_edge.verbs.bench import bench
from pmpd_edge.verbs.calibrate import calibrate
from pmpd_edge.verbs.chat import chat
from pmpd_edge.verbs.convert import convert
from pmpd_edge.verbs.evaluate import evaluate
from pmpd_edge.verbs.info import info
from pmpd_edge.verbs.options import debug
from pmpd_edge.verbs.serve import demo, serve
from pmpd_edge.verbs.simulate import simulate
from pmpd_edge.verbs.train_scheduler import train_scheduler

INTERRUPTED, BROKEN_PIPE, TERMINATED = 130, 141, 143  # as shells report them: 128 + the signal


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


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="pmpd-edge")
@debug
def cli() -> None:
    """Progressive mixed-precision decoding of language models on llama.cpp.

    A bundle holds a model in several precisions. Prompts are evaluated at a high one; answers begin there and step
    down to lower ones, which read fewer bytes for every token, as they grow.
    """


for verb in (bench, calibrate, chat, convert, demo, evaluate, info, serve, simulate, train_scheduler):
    cli.add_command(verb)
