#!/usr/bin/env python3
"""Predicted against measured speed of a random model of a billion parameters: docs/benchmarks/simulate.md.

    python scripts/check_simulator.py --work DIR > docs/benchmarks/simulate.md

The prediction knows nothing of that model's speed. Its device profile is made of the memory bandwidth; of the decode
speed of small models that stay in the last-level cache: kernels, attention and overhead, without memory; of single
products with one token whose weights are in a cache, and in none: how much of computing is hidden behind moving; and
with many tokens, as prompts have them. Run it alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from random_bundle import SHAPE, make_bundle

from pmpd_edge import Pmpd, cpu, device, gguf_info
from pmpd_edge.bench import bandwidth, machine, speed
from pmpd_edge.bench.ggml import Backend, Device, devices
from pmpd_edge.bench.matvec import Matrices, Shape, row_bytes
from pmpd_edge.bundle import Bundle
from pmpd_edge.simulate import device as profiles
from pmpd_edge.simulate import measured
from pmpd_edge.simulate.answer import Answer, simulate
from pmpd_edge.simulate.bundles import of_bundle
from pmpd_edge.simulate.roofline import Roofline

LEVELS = ((8, "Q8_0"), (6, "Q6_K"), (5, "Q5_K"), (4, "Q4_K"), (3, "Q3_K"), (2, "Q2_K"))
# The largest has 22 MB at 8 bits. They differ in layers, and in weights for each operator.
SMALL: tuple[dict[str, Any], ...] = (
    {"hidden": 512, "layers": 2, "heads": 8, "kv_heads": 4, "ff": 1536},
    {"hidden": 512, "layers": 6, "heads": 8, "kv_heads": 4, "ff": 1536},
    {"hidden": 1024, "layers": 1, "heads": 16, "kv_heads": 4, "ff": 2816},
)
N_PROMPT, N_STEPS = 256, 64
N_PROMPTS_SMALL = (64, 384)  # so that steps attend to few tokens and to many
COLD: Shape = (4096, 4096)  # columns, rows of products whose weights are in no cache
CACHED: Shape = (4096, 1024)  # and of one whose weights are: 4 MB at 8 bits
N_TOKENS = 256  # of a product as prompts have them


def measure(bundle: Bundle, prompt: int, args: argparse.Namespace) -> dict[int, speed.Speed]:
    """The speed of each level."""
    print(f"measuring {bundle.path.name} ...", file=sys.stderr)
    with closing(Pmpd(bundle.path, n_threads=args.threads, n_ctx=2 * (prompt + N_STEPS), n_gpu_layers=0)) as llm:
        return speed.measure(llm, bundle.precisions, prompt=prompt, steps=N_STEPS, repetitions=args.repetitions)


def small_samples(bundles: Sequence[Bundle], args: argparse.Namespace) -> Iterator[measured.Sample]:
    for bundle in bundles:
        model = of_bundle(bundle)
        for prompt in N_PROMPTS_SMALL:
            context = prompt + (N_STEPS + 1) / 2  # of the mean step
            for precision, found in measure(bundle, prompt, args).items():
                yield measured.Sample(model, precision, context, min(found.decode))


def products(processor: Device, args: argparse.Namespace) -> tuple[dict[str, float], dict[str, float]]:
    """By type, seconds for each weight of products whose weights are in a cache, and in none."""
    columns, rows = COLD
    cached, cold = {}, {}
    for _, name in LEVELS:
        copies = -(-bandwidth.cold_bytes() // (row_bytes(name, columns) * rows))
        cached[name] = per_weight(processor, name, [CACHED], 50 * args.repetitions, args)
        cold[name] = per_weight(processor, name, [COLD] * copies, args.repetitions, args)
    return cached, cold


def operations(processor: Device, args: argparse.Namespace) -> dict[str, float]:
    """By type, operations per second of products with many tokens."""
    return {
        name: 2 * N_TOKENS / per_weight(processor, name, [CACHED], 5 * args.repetitions, args, N_TOKENS)
        for _, name in LEVELS
    }


def per_weight(
    processor: Device, name: str, shapes: Sequence[Shape], repetitions: int, args: argparse.Namespace, tokens: int = 1
) -> float:
    """Seconds for each weight of products with some tokens."""
    with Backend(processor, args.threads) as backend, Matrices(backend, name, shapes, tokens) as matrices:
        matrices.warm_up()
        seconds = statistics.median(matrices.multiply() for _ in range(repetitions))
        return seconds / sum(columns * rows for columns, rows in shapes)


def make_profile(small: Sequence[Bundle], args: argparse.Namespace) -> dict[str, Any]:
    """This machine's profile."""
    (processor,) = (found for found in devices() if found.kind == "CPU")
    read = bandwidth.measure(processor, args.threads, args.repetitions).bytes_per_second
    return measured.profile(
        device.describe(),
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        bandwidth=read,
        buffer=bandwidth.last_level_cache(),
        types=dict(LEVELS),
        kernels=measured.fit(list(small_samples(small, args)), operations(processor, args)),
        overlap=measured.overlap(read, *products(processor, args)),
    )


def row(precision: int, type_name: str, answer: Answer, found: speed.Speed) -> str:
    cells = [str(precision), type_name]
    for predicted, seconds in (
        (answer.decode_tokens_per_second, found.decode),
        (answer.prefill_tokens_per_second, found.prefill),
    ):
        rate = 1 / statistics.median(seconds)
        spread = f"{rate:.1f} ({1 / max(seconds):.1f} to {1 / min(seconds):.1f})"
        cells += [f"{predicted:.1f}", spread, f"{predicted / rate - 1:+.1%}"]
    return "| " + " | ".join([*cells, answer.decode.bound]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="directory of the random models, kept")
    parser.add_argument("--threads", type=int, default=cpu.default_threads())
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--profile", type=Path, help="where the machine's profile is written")
    args = parser.parse_args()

    large = make_bundle(args.work / "large", SHAPE, LEVELS)
    small = [make_bundle(args.work / f"small-{i}", shape, LEVELS) for i, shape in enumerate(SMALL)]
    machine.check_idle()
    profile = make_profile(small, args)
    if args.profile:
        args.profile.write_text(json.dumps(profile, indent=1) + "\n", encoding="utf-8")
    target = profiles.parse(profile, "measured")
    roofline = Roofline(of_bundle(large), target)
    found = measure(large, N_PROMPT, args)
    answers = {p: simulate(roofline, N_PROMPT, [p] * (N_STEPS + 1)) for p in large.precisions}

    kernels = "\n".join(kernel_row(name, kernel) for name, kernel in target.kernels.items() if name != profiles.OTHER)
    levels = "\n".join(row(p, dict(LEVELS)[p], answers[p], found[p]) for p in large.precisions)
    decode = [abs(answers[p].decode_tokens_per_second * statistics.median(found[p].decode) - 1) for p in found]
    prefill = [abs(answers[p].prefill_tokens_per_second * statistics.median(found[p].prefill) - 1) for p in found]
    print(
        PAGE.format(
            machine=device.describe(),
            threads=args.threads,
            repetitions=args.repetitions,
            bandwidth=target.bandwidth / 1e9,
            cache=target.buffer / 2**20,
            operator=1e6 * target.operator_seconds,
            attention=target.attention / 1e9,
            overlap=target.overlap,
            step=1e6 * target.step_seconds,
            kernels=kernels,
            levels=levels,
            decode=statistics.mean(decode),
            prefill=statistics.mean(prefill),
            n_tokens=N_TOKENS,
            n_prompt=N_PROMPT,
            n_steps=N_STEPS,
        )
    )


def kernel_row(name: str, kernel: profiles.Kernel) -> str:
    weights = 1 / (2 / kernel.operations + 1 / kernel.weights)
    return (
        f"| {name} | {kernel.operations / 1e9:.0f} | {weights / 1e9:.1f} | {weights * gguf_info.bits(name) / 8e9:.1f} |"
    )


PAGE = """# The hardware model against this machine

Made by `python scripts/check_simulator.py --work DIR`.

Machine: {machine}; {threads} threads. {repetitions} repetitions by turns, medians (least to most).

## What it is told

Memory bandwidth {bandwidth:.1f} GB/s, last-level cache {cache:.0f} MiB. From the decode steps of three small models
that stay in it, by least squares: {operator:.1f} µs for each operator, {step:.0f} µs for each step, {attention:.1f} G
operations of attention a second, and the kernels of each type. From single products whose weights are in a cache, and
in none: {overlap:.0%} of the shorter one of moving and computing is hidden behind the longer one; and from such with
{n_tokens} tokens, as prompts have them: the operations a second.

| type | prefill, G operations/s | decode, G weights/s | the same in GB/s |
|---|---|---|---|
{kernels}

## What it predicts

Random weights, 0.99 billion parameters; prompt of {n_prompt} tokens, {n_steps} steps; tokens/s.

| precision | type | decode, predicted | measured | error | prefill, predicted | measured | error | decode bound by |
|---|---|---|---|---|---|---|---|---|
{levels}

Mean errors, without signs: {decode:.1%} of decode, {prefill:.1%} of prefill.
"""


if __name__ == "__main__":
    main()
