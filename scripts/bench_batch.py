#!/usr/bin/env python3
"""What answering several prompts at a time gains: the figures of docs/benchmarks/batch.md.

    python scripts/bench_batch.py --work DIR > docs/benchmarks/batch.md

A billion random parameters at two precisions, each answer switching from one to the other, its prompt included. One by
one through `Pmpd`, then with `Batch` and more and more sequences. Run it alone.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from time import perf_counter

import numpy as np
from random_bundle import make_bundle

from pmpd_edge import Pmpd, cpu, device
from pmpd_edge.batch import Batch, Job
from pmpd_edge.schedule.spec import make_scheduler

SCHEDULE = "static:8@1,4@16"
N_PROMPT, N_NEW = 64, 48


def seconds(run: Callable[[], object], repeats: int) -> float:
    """Of the median run, after one that loads and warms up."""
    times = []
    for _ in range(repeats + 1):
        start = perf_counter()
        run()
        times.append(perf_counter() - start)
    return statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="directory for the model, kept")
    parser.add_argument("--answers", type=int, default=16)
    parser.add_argument("--threads", type=int, default=cpu.default_threads())
    parser.add_argument("--n-gpu-layers", type=int, default=0)
    parser.add_argument("--device", default=device.describe(), help="what it ran on, if not the CPU")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()

    bundle = make_bundle(args.work)
    options = {"n_threads": args.threads, "n_gpu_layers": args.n_gpu_layers, "n_ctx": 256}
    rng = np.random.default_rng(0)
    prompts = rng.integers(300, 4000, (args.answers, N_PROMPT)).tolist()
    lengths = rng.integers(N_NEW // 2, N_NEW + 1, args.answers).tolist()  # as answers differ

    def one_by_one(llm: Pmpd) -> int:
        n_tokens = 0
        for prompt, length in zip(prompts, lengths, strict=True):
            for token, _ in zip(llm.generate(prompt, temp=0.0), range(length), strict=False):
                n_tokens += 1
                if token == llm.token_eos():
                    break
        return n_tokens

    print(HEAD.format(machine=args.device, threads=args.threads, schedule=SCHEDULE, answers=args.answers,
                      n_prompt=N_PROMPT, n_new=N_NEW))  # fmt: skip
    with closing(Pmpd(bundle.path, scheduler=SCHEDULE, **options)) as llm:
        alone = seconds(lambda: one_by_one(llm), args.repeats)
        one = one_by_one(llm) / alone
    print(f"| `Pmpd`, one by one | {one:.1f} | 1.00 |", flush=True)
    for parallel in (1, 2, 4, 8, 16):
        with Batch(bundle, parallel=parallel, **options) as batch:
            jobs = [Job(p, make_scheduler(SCHEDULE, bundle), 8, n) for p, n in zip(prompts, lengths, strict=True)]
            taken = seconds(lambda batch=batch, jobs=jobs: batch.run(jobs), args.repeats)
            several = sum(len(answer.tokens) for answer in batch.run(jobs)) / taken
        print(f"| `Batch`, {parallel} at a time | {several:.1f} | {several / one:.2f} |", flush=True)


HEAD = """# Answering several prompts at a time

Made by `python scripts/bench_batch.py --work DIR`.

Machine: {machine}; {threads} threads.
Random weights, 0.99 billion parameters, Q8_0 and Q4_K. {answers} prompts of {n_prompt} tokens, answers of half of
{n_new} to {n_new}, {schedule}. Tokens of answers per second, prefill included, medians.

| how | t/s | of one by one |
|---|---|---|"""


if __name__ == "__main__":
    main()
