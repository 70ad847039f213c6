"""Options that several verbs have, and kinds of values. Only click is imported here, so that `--help` is quick."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import click

PRECISIONS = ("16", "8", "6", "5", "4", "3", "2")
CACHE_TYPES = ("f32", "f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
MAX_THREADS = 512  # GGML_MAX_N_THREADS


class Finite(click.FloatRange):
    """A number in a range; click's own takes `nan` for one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


class DraftTokens(click.IntRange):
    """A number of tokens to draft, or `auto`."""

    name = "number|auto"

    def __init__(self) -> None:
        super().__init__(1, 64)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "auto" else super().convert(value, param, ctx)


def _debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    ctx.meta["debug"] = value or ctx.meta.get("debug", False)  # shared by a group and its verbs


debug = click.option("--debug", is_flag=True, expose_value=False, callback=_debug, help="Show the traceback of errors.")


def number(
    name: str, kind: click.ParamType, text: str, without: str | bool = True, default: float | None = None
) -> Callable[[Any], Any]:
    """An option with a number; `without` says what happens where neither the user nor `default` gives one."""
    return click.option(name, type=kind, metavar="N", default=default, show_default=without, help=text)


def options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several options as one decorator."""

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


threads = number(
    "--threads",
    click.IntRange(1, MAX_THREADS),
    "CPU threads; fewer are faster on a busy machine.",
    "one for each fast physical core",
)

n_gpu_layers = number(
    "--n-gpu-layers", click.IntRange(-1, 2**31 - 1), "Layers on the GPU; -1: all.", "all, if it was built for one"
)

draft_tokens = click.option(
    "--draft-tokens",
    type=DraftTokens(),
    default="auto",
    show_default=True,
    metavar="K|auto",
    help="For lossless: tokens to draft at a time; auto: as many as pay on this device.",
)
