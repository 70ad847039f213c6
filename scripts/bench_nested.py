#!/usr/bin/env python3
"""Nested levels against separate ones: the figures of docs/benchmarks/nested.md, and of `plan.DEFAULT_RESIDUALS`.

    python scripts/bench_nested.py --text multi30k.validation.jsonl.gz --work DIR > docs/benchmarks/nested.md

Quality is measured on the translator in tests/data: relative error of the layers' matrices, and the KL divergence and
top-1 agreement of the next token's distribution against the 16-bit file's, over reference translations. Size and speed
are measured on a random model of a billion parameters, whose steps are bound by memory, as those of a user's model are;
the speeds by turns. Run it alone, or pass --shared to have the page say that it was not.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import numpy as np
from measure import MODEL, N_DECODE, N_PREFILL, Quality, Store, Types, importance, once, speeds

from pmpd_edge import cpu, device
from pmpd_edge.bench.random_model import write_llama
from pmpd_edge.convert import hf, imatrix, plan

SHAPE = {"hidden": 2048, "layers": 22, "heads": 32, "kv_heads": 4, "ff": 5632, "metadata": {"context_length": 2048}}
LADDER = ("Q1_0", "Q2_K", "Q3_K", "Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0")  # what residuals are tried as


# The page


def default_sums(*precisions: int, layout: str = "nested") -> dict[int, Types]:
    """The types of each level of a bundle, by default."""
    planned = plan.make("model", precisions, layout=layout)
    types = {level.file: f"{level.type}{'*' * level.uses_imatrix}" for level in planned.levels}
    return {level.precision: tuple(types[file] for file in planned.weights(level)) for level in planned.levels}


BUNDLES = ((8, 4), (8, 3), (4, 2), (8, 4, 2))


def print_bundles(store: Store, quality: Quality) -> None:
    print("| levels | layout | level | types | bpw | error | KL | top-1 | all files, MB |")
    print("|---|---|---|---|---|---|---|---|---|")
    for precisions in BUNDLES:
        for layout in ("separate", "nested"):
            sums = default_sums(*precisions, layout=layout)
            files = {file.path for types in sums.values() for file in store.files(types)}
            total = sum(path.stat().st_size for path in files) / 1e6
            for precision, types in sums.items():
                first = precision == precisions[0]
                name = ", ".join(map(str, precisions)) if first and layout == "separate" else ""
                print(
                    f"| {name} | {layout if first else ''} | {precision} | {' + '.join(types)} "
                    f"| {quality.cells(types)} | {f'{total:.2f}' if first else ''} |"
                )


def print_residuals(quality: Quality) -> None:
    print("| level | over | residual | bpw | error | KL | top-1 |")
    print("|---|---|---|---|---|---|---|")
    above = 0
    for (high, low), chosen in sorted(plan.DEFAULT_RESIDUALS.items(), reverse=True):
        if high != above:
            alone, above = plan.DEFAULT_TYPES[high], high
            print(f"| {high} | | {alone} alone | {quality.cells((alone,))} |")
        base, at = plan.DEFAULT_TYPES[low], LADDER.index(chosen)
        for kind in LADDER[max(0, at - 1) : at + 2]:
            name = f"**{kind}**" if kind == chosen else kind
            print(f"| {high} | {low} ({base}) | {name} | {quality.cells((base, kind))} |")


def print_speeds(store: Store, args: argparse.Namespace) -> None:
    sums = (("Q8_0",), ("Q4_K",), ("Q4_K", "Q4_0"), ("Q4_K", "Q4_K"))
    found = speeds(store, sums, args.repeats, args.threads)
    print("| files | MB | of Q8_0's | prefill, t/s | decode, t/s | decode of Q8_0's |")
    print("|---|---|---|---|---|---|")
    whole = ("Q8_0",)
    for types, speed in found.items():
        ratios = [a / b for a, b in zip(speed.decode, found[whole].decode, strict=True)]
        print(
            f"| {' + '.join(types)} | {store.size(types) / 1e6:.0f} | {store.size(types) / store.size(whole):.3f} "
            f"| {statistics.median(speed.prefill):.1f} | {statistics.median(speed.decode):.1f} "
            f"| {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="gzipped JSON lines with `de`, `fr` and `en`")
    parser.add_argument("--work", type=Path, required=True, help="directory for the files, kept")
    parser.add_argument("--sentences", type=int, default=500)
    parser.add_argument("--threads", type=int, default=cpu.default_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shared", action="store_true", help="say that the machine did other work too")
    args = parser.parse_args()

    args.work.mkdir(parents=True, exist_ok=True)
    source = once(args.work / "translator.gguf", lambda path: hf.to_gguf(MODEL, path))
    small = Store(source, args.threads, importance(source, imatrix.DEFAULT_TEXT, args.threads))
    large_file = once(args.work / "large.gguf", lambda path: write_llama(path, dtype=np.float16, **SHAPE))
    large = Store(large_file, args.threads)
    quality = Quality(small, args.text, args.sentences, args.threads)

    shared = "\nOther programs ran beside it: the times are rough, their ratios less so." if args.shared else ""
    print(HEAD.format(machine=device.describe(), threads=args.threads, shared=shared, positions=quality.positions))
    print_bundles(small, quality)
    print(ACTIVATIONS)
    for types in (("Q4_K", "Q8_0"), ("Q4_0", "Q8_0"), ("Q4_0", "Q4_0")):
        print(f"| {' + '.join(types)} | {quality.cells(types)} |")
    print(CALIBRATED)
    for base, kind in (("Q4_K*", "Q4_0"), ("Q3_K*", "Q5_K"), ("Q2_K*", "Q6_K"), ("Q2_K*", "Q2_K"), ("Q3_K*", "Q1_0")):
        for types in ((base, kind), (base, f"{kind}*")):
            print(f"| {' + '.join(types)} | {quality.cells(types)} |")
    print(RESIDUALS)
    print_residuals(quality)
    print(SPEED.format(prefill=N_PREFILL, decode=N_DECODE, repeats=args.repeats))
    print_speeds(large, args)


HEAD = """# Nested levels against separate ones

Made by `python scripts/bench_nested.py --text multi30k.validation.jsonl.gz --work DIR`.

Machine: {machine}. {threads} thread(s).{shared}

## Quality and size

The translator (7.3 M parameters), against its 16-bit file, over {positions} tokens of reference translations. bpw: real
bits per weight of a level; error: of the layers' matrices, relative; KL: divergence of the next token's distribution,
nats; top-1: how often both take the same token. A star: with the importance matrix of the text that
comes with the converter, which is not of the translator's kind.
"""

CALIBRATED = """
Residuals with and without the importance matrix:

| types | bpw | error | KL | top-1 |
|---|---|---|---|---|"""

ACTIVATIONS = """
With K types, the KL stays at about 0.001 however small the error of the weights is. That is what the activations lose,
which these types multiply in blocks of 256 with one scale; Q8_0 and Q4_0 do so in blocks of 32:

| types | bpw | error | KL | top-1 |
|---|---|---|---|---|"""

RESIDUALS = """
## Residual types

Bold: the default, `plan.DEFAULT_RESIDUALS`: the smallest type with which the sum's error is at most 1.2 times that of
the level's own type, all without importance matrices. Beside it, its neighbours in size.
"""

SPEED = """
## Size and speed

Random weights, 2048 wide, 22 layers, 0.99 billion parameters. Tokens/s of {prefill} tokens of prefill and {decode}
steps after it, medians of {repeats} runs by turns; the last column compares runs of one turn: median (least to most).
"""


if __name__ == "__main__":
    main()
