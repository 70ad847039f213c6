"""pmpd-edge chat"""

from __future__ import annotations

from typing import Any

import click

from pmpd_edge.verbs.options import (
    CACHE_TYPES,
    Finite,
    debug,
    draft_tokens,
    n_gpu_layers,
    number,
    options,
    threads,
)

# What a chat's /set changes as well: the names are those of chat.Settings.
settings_options = options(
    click.option(
        "--method",
        type=click.Choice(["pmpd", "high", "low", "lossless"]),
        default="pmpd",
        show_default=True,
        help="pmpd follows the scheduler; high and low do everything at the highest or lowest precision; lossless "
        "answers as high does (or as pmpd with a scheduler), and drafts at the lowest.",
    ),
    click.option(
        "--scheduler",
        metavar="SPEC",
        show_default="static; for lossless the highest precision",
        help="static (the bundle's schedule), static:8@1,4@86 (precision 8 from step 1, 4 from step 86), fixed:4, "
        "learned, confidence, random, first:SHARE (or middle, last, alternate), or MODULE:NAME of your own.",
    ),
    number("--high-steps", click.IntRange(0), "Steps before the first switch.", "as scheduled"),
    draft_tokens,
    number("--max-new-tokens", click.IntRange(1), "Length of the longest answer.", "the bundle's"),
    click.option("--system", default="", metavar="TEXT", help="System message."),
    number(
        "--temperature",
        Finite(0),
        "0 takes the likeliest token each time, so that answers of two methods can be compared.",
        default=0.0,
    ),
    number("--top-k", click.IntRange(0), "Sample from the K likeliest tokens; 0: from all.", default=40),
    number("--top-p", Finite(0, 1), "Sample from the likeliest tokens that sum to P.", default=0.95),
    number("--min-p", Finite(0, 1), "Leave out tokens under P times the likeliest's.", default=0.05),
    number("--repeat-penalty", Finite(0, min_open=True), "Against repetition; 1: none.", default=1.0),
    number("--seed", click.IntRange(0, 2**32 - 1), "Seed of the sampling.", "another one for every answer"),
)

model_options = options(
    threads,
    n_gpu_layers,
    number(
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


@click.command()
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

    Tokens decoded at the lowest precision are orange, drafts that lossless has kept underlined. Ctrl-C stops an answer,
    and leaves at the prompt. Where standard input is not a terminal, each of its lines is a message.
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
