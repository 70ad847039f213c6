#!/usr/bin/env python3
"""What switching costs, on a random model of a billion parameters: the figures of docs/benchmarks/switching.md.

    python scripts/bench_switching.py --llama-bench build/.../llama-bench --work DIR > docs/benchmarks/switching.md

Three ratios, each of times taken in this one run, by turns, so that they travel between machines where times do not:
decode through `Pmpd` at a fixed level against llama-bench on the same file; a static run against the sum of its parts
(prefill, high steps, low steps, each at the same position in a run that does not switch); the first step after a
switch against a normal one. Then the peak memory of a run with two levels against what it has to hold. Run it alone:
two compute threads spin at barriers, and any other busy process slows them many times.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from time import perf_counter

import numpy as np
from random_bundle import make_bundle

from pmpd_edge import Pmpd, bundle, device

N_CTX = 1024
N_DECODE, N_RUNS = 64, 2
MEASURE_DECODE, MEASURE_MEMORY = "--measure-decode", "--measure-memory"


def llama_bench(program: Path, model: Path, threads: int) -> float:
    """Decode tokens/s of llama-bench: the best of some runs in one process."""
    command = [program, "-m", model, "-p", 0, "-n", N_DECODE, "-r", N_RUNS]
    command += ["-t", threads, "-fa", 1, "-lm", "none", "-o", "json"]
    out = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout
    return float(max(json.loads(out)[0]["samples_ts"]))


def ourselves(args: argparse.Namespace, *more: str) -> subprocess.CompletedProcess[str]:
    """Run this script again for one measurement: a process of its own has memory of its own."""
    command = [sys.executable, __file__, "--work", str(args.work), "--threads", str(args.threads), *more]
    return subprocess.run(command, check=True, capture_output=True, text=True)


@dataclass
class Run:
    """Seconds of a generation: prefill with the first token, then each step, as the caller sees them."""

    prefill: float
    steps: list[float]


def generate(llm: Pmpd, prompt: list[int], n_steps: int) -> Run:
    """Time a generation from outside, sampling and Python included."""
    llm.reset()
    stamps = [perf_counter()]
    for _ in llm.generate(prompt, temp=0.0):
        stamps.append(perf_counter())
        if len(stamps) == n_steps + 2:
            break
    seconds = [b - a for a, b in pairwise(stamps)]
    return Run(seconds[0], seconds[1:])


def by_step(runs: list[Run]) -> list[float]:
    """The median of each step over several runs."""
    return [statistics.median(step) for step in zip(*(run.steps for run in runs), strict=True)]


def compare_with_llama_bench(args: argparse.Namespace, made: bundle.Bundle) -> Iterator[str]:
    yield f"Tokens/s over {N_DECODE} steps, the better of {N_RUNS} runs in each of {args.pairs} processes by turns,"
    yield "each first in every second pair: mean (least to most); mean of the pairs' ratios, with its standard error."
    yield "Where a process finds its memory, and what else the host does, make up to 20%, so `outside` says directly"
    yield "what Pmpd adds: the share of a step that is not spent in `llama_decode` (sampling, Python).\n"
    yield "| level | llama-bench | Pmpd | ratio | outside |"
    yield "|---|---|---|---|---|"
    for level in made.levels:
        theirs, ours, outside = [], [], []
        for pair in range(args.pairs):
            if pair % 2:
                theirs.append(llama_bench(args.llama_bench, made.paths(level)[0], args.threads))
            measured = json.loads(ourselves(args, MEASURE_DECODE, str(level.precision)).stdout)
            ours.append(measured["tokens_per_second"])
            outside.append(measured["outside"])
            if not pair % 2:
                theirs.append(llama_bench(args.llama_bench, made.paths(level)[0], args.threads))
        ratios = [b / a for a, b in zip(theirs, ours, strict=True)]
        error = statistics.stdev(ratios) / len(ratios) ** 0.5
        yield (
            f"| {made.files[level.weights[0]].type} | {spread(theirs)} | {spread(ours)} "
            f"| **{statistics.mean(ratios):.3f} ± {error:.3f}** | {statistics.median(outside):.2%} |"
        )


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def measure_decode(made: bundle.Bundle, threads: int, precision: int) -> None:
    llm = Pmpd(made.path, scheduler=f"fixed:{precision}", n_threads=threads, n_ctx=N_CTX)
    generate(llm, [1], 8)
    decode, inside = llm._ctx.decode, 0.0

    def timed(batch: object) -> None:
        nonlocal inside
        start = perf_counter()
        decode(batch)
        inside += perf_counter() - start

    llm._ctx.decode = timed
    best = {"tokens_per_second": 0.0, "outside": 0.0}
    for _ in range(N_RUNS):
        inside = 0.0
        run = generate(llm, [1], N_DECODE)
        total = run.prefill + sum(run.steps)
        speed = N_DECODE / sum(run.steps)
        if speed > best["tokens_per_second"]:
            best = {"tokens_per_second": speed, "outside": 1 - inside / total}
    print(json.dumps(best))


def compare_with_parts(args: argparse.Namespace, made: bundle.Bundle) -> Iterator[str]:
    llm = Pmpd(made.path, n_threads=args.threads, n_ctx=N_CTX)
    generate(llm, [1], 16)
    prompt = np.random.default_rng(0).integers(300, 4000, 256).tolist()
    n_steps, switch = 96, 32
    runs: dict[str, list[Run]] = {"fixed:8": [], "fixed:4": [], "static": []}
    for _ in range(args.repetitions):
        for scheduler, done in runs.items():
            llm.configure(scheduler=scheduler)
            done.append(generate(llm, prompt, n_steps))
    high, low = by_step(runs["fixed:8"]), by_step(runs["fixed:4"])
    prefill = statistics.median(run.prefill for done in runs.values() for run in done)
    parts = prefill + sum(high[:switch]) + sum(low[switch:])
    whole = statistics.median(run.prefill + sum(run.steps) for run in runs["static"])
    first = statistics.median(run.steps[switch] / statistics.median(run.steps[switch + 1 :]) for run in runs["static"])
    yield "| part | time |"
    yield "|---|---|"
    yield f"| prefill of {len(prompt)} tokens | {prefill:.3f} s |"
    yield f"| {switch} steps at Q8_0, {n_steps - switch} at Q4_K, taken apart | {parts - prefill:.3f} s |"
    yield f"| the parts, summed | {parts:.3f} s |"
    yield f"| the static run | {whole:.3f} s |"
    yield f"| static run / parts | **{whole / parts:.3f}** |"
    yield f"| first step after the switch / a normal one | **{first:.3f}** |"
    alternating = switch_every_token(args, llm, prompt)
    mean = (statistics.median(high) + statistics.median(low)) / 2
    yield f"| a step when every step switches / mean of the two levels' steps | {alternating / mean:.3f} |"


def switch_every_token(args: argparse.Namespace, llm: Pmpd, prompt: list[int]) -> float:
    steps = ",".join(f"{8 if step % 2 else 4}@{step}" for step in range(1, 65))
    llm.configure(scheduler=f"static:{steps}")
    return statistics.median(statistics.mean(generate(llm, prompt, 64).steps) for _ in range(args.repetitions))


def peak_memory(args: argparse.Namespace, made: bundle.Bundle) -> Iterator[str]:
    out = ourselves(args, MEASURE_MEMORY)
    measured = json.loads(out.stdout)
    compute = sum(float(size) for size in re.findall(r"compute buffer size = +([\d.]+) MiB", out.stderr))
    kv = sum(float(size) for size in re.findall(r"KV buffer size = +([\d.]+) MiB", out.stderr))
    files = sum(file.bytes for file in made.files.values()) / 2**20
    needed = files + kv + compute
    yield "| what | MiB |"
    yield "|---|---|"
    yield f"| the two files | {files:.0f} |"
    yield f"| KV cache of {N_CTX} tokens | {kv:.0f} |"
    yield f"| compute buffers | {compute:.0f} |"
    yield f"| peak resident size of the process | {measured['peak_mib']:.0f} |"
    yield f"| peak / (files + KV + compute) | **{measured['peak_mib'] / needed:.3f}** |"


def measure_memory(made: bundle.Bundle, threads: int) -> None:
    llm = Pmpd(made.path, n_threads=threads, n_ctx=N_CTX, verbose=True)
    generate(llm, list(range(300, 556)), 48)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"peak_mib": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="where the random model is made and kept")
    parser.add_argument("--llama-bench", type=Path, help="llama-bench of the same llama.cpp")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repetitions", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=40, help="processes of each kind beside llama-bench")
    parser.add_argument(MEASURE_DECODE, type=int, metavar="PRECISION", help=argparse.SUPPRESS)
    parser.add_argument(MEASURE_MEMORY, action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    made = make_bundle(args.work)
    if args.measure_memory:
        measure_memory(made, args.threads)
        return
    if args.measure_decode:
        measure_decode(made, args.threads, args.measure_decode)
        return
    if not args.llama_bench:
        parser.error("--llama-bench is needed")

    import llama_cpp

    load = os.getloadavg()[0]
    print("# What switching costs\n")
    print("Made by `python scripts/bench_switching.py --llama-bench .../llama-bench --work DIR`.\n")
    print(f"Machine: {device.describe()}.")
    print(f"llama-cpp-python {llama_cpp.__version__}, {args.threads} threads, flash attention, no mmap.")
    print(f"{args.repetitions} repetitions by turns, medians; load average before the start {load:.2f}.")
    print("Model: random weights, 2048 wide, 22 layers, 0.99 billion parameters, Q8_0 and Q4_K.\n")
    sections = {
        "Decode at a fixed level": compare_with_llama_bench(args, made),
        "A static run and its parts": compare_with_parts(args, made),
        "Memory of a run with two levels": peak_memory(args, made),
    }
    for title, lines in sections.items():
        print(f"## {title}\n\n" + "\n".join(lines) + "\n", flush=True)


if __name__ == "__main__":
    main()
