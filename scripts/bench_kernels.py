#!/usr/bin/env python3
"""What our patches to ggml's CPU kernels gain: the figures of docs/benchmarks/kernels.md.

    python scripts/bench_kernels.py --before LIB --work DIR > docs/benchmarks/kernels.md

LIB holds the libraries built without those patches (native/README.md). Both libraries run by turns, in processes of
their own, on random Llamas whose files are made in DIR and kept: one of 1.1 B, and one with the shape of Qwen2.5-0.5B,
whose rows 256 does not divide, so that K types fall back to others. Run it alone: what else runs only ever slows
both down, so that the best of all turns counts. Products hold four times the last cache, or 512 MiB, of each type at
once. With --cached, one thread's products of a matrix that stays in the cache are timed, too, by the number of rows
that it is multiplied with at once; with --instructions, valgrind counts what they execute, which other programs do not
change; it takes half an hour, and knows no AVX-512.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from measure import N_DECODE, N_PREFILL, Store, Types, once, say, speeds

from pmpd_edge import cpu, device, native
from pmpd_edge.bench import bandwidth, ggml, matvec
from pmpd_edge.bench.random_model import write_llama

CONTEXT = {"metadata": {"context_length": 2048}}
WIDE: dict[str, Any] = {"layers": 22, "hidden": 2048, "heads": 32, "kv_heads": 4, "ff": 5632, **CONTEXT}
NARROW: dict[str, Any] = {"layers": 24, "hidden": 896, "heads": 14, "kv_heads": 2, "ff": 4864, **CONTEXT}
WIDE_SUMS: tuple[Types, ...] = (
    ("Q8_0",), ("Q6_K",), ("Q5_K",), ("Q5_0",), ("Q4_K",), ("Q4_0",), ("Q3_K",), ("Q2_K",),
    ("Q4_K", "Q4_0"), ("Q3_K", "Q1_0"), ("Q2_K", "Q1_0"),
)  # fmt: skip
NARROW_SUMS: tuple[Types, ...] = (("Q8_0",), ("Q4_K",), ("Q2_K",))
TYPES = ("Q8_0", "Q6_K", "Q5_K", "Q5_0", "Q4_K", "Q4_0", "Q3_K", "Q2_K", "Q1_0")
MATRIX = (2048, 512)  # columns, rows of one that stays in the cache
ROWS = (1, 2, 3, 4, 9, 32)  # that it is multiplied with at once
LAYER = (*[(2048, 2048)] * 2, *[(2048, 256)] * 2, *[(2048, 5632)] * 2, (5632, 2048))  # columns, rows of a layer's
COMPUTE = "ggml_graph_compute"  # whose instructions are counted, and nothing of Python's
COUNTED_PRODUCTS = 4
LIMIT = "F32"  # does next to nothing with each byte: what the others are held against
ROUNDS, REPETITIONS = 8, 3  # of products
CACHED_ROUNDS, CACHED_ROWS = 6, 180  # of those in the cache
BEFORE, AFTER = "before", "after"


@dataclass
class Figures:
    """What one library reached, one of each per turn: tokens/s by label, products' bytes/s by type, bytes/s."""

    prefill: dict[str, list[float]] = field(default_factory=dict)
    decode: dict[str, list[float]] = field(default_factory=dict)
    products: dict[str, list[float]] = field(default_factory=dict)
    bandwidth: list[float] = field(default_factory=list)

    def add(self, turn: dict[str, dict[str, float]], bandwidth: float) -> None:
        for kind, values in turn.items():
            for name, value in values.items():
                getattr(self, kind).setdefault(name, []).append(value)
        self.bandwidth.append(bandwidth)


def child(library: Path, *arguments: str, under: Sequence[str] = ()) -> str:
    """What this script prints in a process that computes with another library."""
    environment = {**os.environ, native.LIB_PATH: str(library), "PYTHONHASHSEED": "0"}
    command = [*under, sys.executable, __file__, *arguments]
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout


@dataclass
class Model:
    """A random model in the sums of types that are measured."""

    store: Store
    sums: tuple[Types, ...]

    def label(self, types: Types) -> str:
        return f"{self.store.source.path.stem} {' + '.join(types)}"


def models(work: Path, threads: int) -> list[Model]:
    """The wide and the narrow one, with all their files."""
    work.mkdir(parents=True, exist_ok=True)
    made = []
    for shape, sums in ((WIDE, WIDE_SUMS), (NARROW, NARROW_SUMS)):
        path = work / f"random-{shape['hidden']}.gguf"
        store = Store(once(path, partial(write_llama, dtype=np.float16, **shape)), threads)
        for types in sums:
            store.files(types)  # all before the first is timed
        made.append(Model(store, sums))
    return made


def measure_turn(work: Path, threads: int) -> None:
    """One turn of one library, as JSON."""
    turn: dict[str, dict[str, float]] = {"prefill": {}, "decode": {}}
    for model in models(work, threads):
        for types, speed in speeds(model.store, model.sums, 1, threads).items():
            turn["prefill"][model.label(types)] = speed.prefill[0]
            turn["decode"][model.label(types)] = speed.decode[0]
    turn["products"] = product_rates(threads)
    reached = turn["products"].pop(LIMIT)
    print(json.dumps([turn, reached]))


def product_rates(threads: int) -> dict[str, float]:
    """Bytes/s of the products of a model's layers with a vector, and nothing else, by type.

    The best of repetitions counts, and types take turns, so that each finds the quiet moments.
    """
    seconds: dict[str, list[float]] = {type_name: [] for type_name in (LIMIT, *TYPES)}
    with ggml.Backend(ggml.find_device("cpu"), threads) as backend, ExitStack() as stack:
        layers = {type_name: stack.enter_context(cold_layers(backend, type_name)) for type_name in seconds}
        for _ in range(ROUNDS):
            for type_name, matrices in layers.items():
                matrices.multiply()
                seconds[type_name] += (matrices.multiply() for _ in range(REPETITIONS))
        rates = {type_name: matrices.bytes / min(seconds[type_name]) for type_name, matrices in layers.items()}
    for type_name, rate in rates.items():
        say(f"{type_name}: {rate / 1e9:.1f} GB/s in products alone")
    return rates


def cold_layers(backend: ggml.Backend, type_name: str) -> matvec.Matrices:
    """The matrices of a model's layers, more of them than a cache holds."""
    n_bytes = sum(matvec.row_bytes(type_name, columns) * rows for columns, rows in LAYER)
    return matvec.Matrices(backend, type_name, LAYER * -(-bandwidth.cold_bytes() // n_bytes))


def cached_times() -> dict[str, list[float]]:
    """Nanoseconds for each weight and row, by type: the best, types by turns."""
    best = {type_name: [float("inf")] * len(ROWS) for type_name in TYPES}
    with ggml.Backend(ggml.find_device("cpu"), 1) as backend:
        for _ in range(CACHED_ROUNDS):
            for type_name, times in best.items():
                for i, rows in enumerate(ROWS):
                    with matvec.Matrices(backend, type_name, [MATRIX], rows) as matrices:
                        matrices.warm_up()
                        seconds = min(matrices.multiply() for _ in range(CACHED_ROWS // rows + 1))
                    times[i] = min(times[i], 1e9 * seconds / rows / MATRIX[0] / MATRIX[1])
    return best


def multiply(type_name: str, rows: int, products: int) -> None:
    """Products of one matrix with one thread, for valgrind to count."""
    with (
        ggml.Backend(ggml.find_device("cpu"), 1) as backend,
        matvec.Matrices(backend, type_name, [MATRIX], rows) as matrices,
    ):
        for _ in range(products):
            matrices.multiply()


def instructions(library: Path, type_name: str, rows: int) -> float:
    """Instructions per weight of a product with some rows, with all that ggml does around it."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        valgrind = ("valgrind", "--quiet", "--tool=callgrind", f"--callgrind-out-file={out}")
        child(library, "--products", type_name, str(rows), str(COUNTED_PRODUCTS), under=valgrind)
        annotate = ("callgrind_annotate", "--inclusive=yes", "--threshold=100", out)
        listing = subprocess.run(annotate, stdout=subprocess.PIPE, text=True, check=True).stdout
    counted = re.search(rf"^ *([\d,]+) .*:{COMPUTE} ", listing, re.MULTILINE)
    assert counted, "callgrind knows the functions that a library exports"
    columns, rows = MATRIX
    return int(counted[1].replace(",", "")) / COUNTED_PRODUCTS / columns / rows


def speed_table(model: Model, figures: dict[str, Figures], limit: float) -> None:
    """Speeds of both libraries, and how much of the bandwidth the bytes of a decode step take."""
    store = model.store
    print("| type | bpw | prefill, t/s: before | after | decode, t/s: before | after | gain | share: before | after |")
    print("|---|---|---|---|---|---|---|---|---|")
    for types in model.sums:
        name, size = model.label(types), store.size(types)
        prefill = [max(figures[side].prefill[name]) for side in (BEFORE, AFTER)]
        decode = [max(figures[side].decode[name]) for side in (BEFORE, AFTER)]
        gain = decode[1] / decode[0]
        shares = [rate * size / limit for rate in decode]
        print(
            f"| {' + '.join(types)} | {store.bpw(types):.2f} | {prefill[0]:.0f} | {prefill[1]:.0f} "
            f"| {decode[0]:.1f} | {decode[1]:.1f} | {gain:.2f} | {shares[0]:.2f} | {shares[1]:.2f} |"
        )


def product_table(figures: dict[str, Figures], limit: float) -> None:
    """How near products alone come to the bandwidth."""
    print(PRODUCTS)
    for type_name in TYPES:
        before, after = (max(figures[side].products[type_name]) for side in (BEFORE, AFTER))
        print(
            f"| {type_name} | {before / 1e9:.1f} | {after / 1e9:.1f} | {after / before:.2f} "
            f"| {before / limit:.2f} | {after / limit:.2f} |"
        )


def table_by_rows(types: Sequence[str], figures: dict[str, dict[str, list[float]]], digits: int) -> None:
    """Figures of both libraries by type and number of rows."""
    print(f"\n| type | | {' | '.join(map(str, ROWS))} |")
    print("|---|---" + "|---" * len(ROWS) + "|")
    for type_name in types:
        for side in (BEFORE, AFTER):
            print(f"| {type_name} | {side} | {' | '.join(f'{x:.{digits}f}' for x in figures[side][type_name])} |")


def count_instructions(libraries: dict[str, Path], types: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """Instructions per weight of both libraries, by type and number of rows."""
    counts: dict[str, dict[str, list[float]]] = {side: {} for side in libraries}
    for side, library in libraries.items():
        for type_name in types:
            counts[side][type_name] = [instructions(library, type_name, rows) for rows in ROWS]
            say(f"{side}, {type_name}: {counts[side][type_name]} instructions per weight")
    return counts


def compare(args: argparse.Namespace, libraries: dict[str, Path]) -> None:
    """Measure both libraries by turns, and print what they reached."""
    wide, narrow = models(args.work, args.threads)
    figures = {side: Figures() for side in libraries}
    for turn in range(args.turns):
        # Each is the first in every second turn: what runs first may find a cooler CPU.
        for side in (BEFORE, AFTER) if turn % 2 == 0 else (AFTER, BEFORE):
            say(f"{side}:")
            job = ("--turn", "--work", str(args.work), "--threads", str(args.threads))
            figures[side].add(*json.loads(child(libraries[side], *job)))
    limit = max(rate for side in figures.values() for rate in side.bandwidth)
    print(HEAD.format(machine=device.describe(), limit=limit / 1e9, **vars(args), prefill=N_PREFILL, decode=N_DECODE))
    speed_table(wide, figures, limit)
    print(NARROW_HEAD)
    speed_table(narrow, figures, limit)
    product_table(figures, limit)


HEAD = """# Low-bit kernels of the CPU

Made by `python scripts/bench_kernels.py --before LIB --work DIR --threads {threads} --turns {turns}`. What bounds these
kernels: [kernels](../kernels.md).

Machine: {machine}. {threads} thread(s).

A Llama of 22 layers, 2048 wide, random weights; {prefill} tokens of prefill and {decode} steps after it, the best
of {turns} turns; before: the library without the patches of kernels. Share: bytes of weights read per second of decode,
of {limit:.1f} GB/s, the best rate at which either library multiplied float32 matrices of these shapes in this run.
"""

NARROW_HEAD = """
## Narrow models

The same of a Llama with the shape of Qwen2.5-0.5B: 24 layers, 896 wide. Blocks of 256 do not divide such rows, so that
most matrices are not of the type that was asked for: Q5_0 for Q4_K, Q4_0 for Q2_K.
"""

PRODUCTS = """
## Products alone

The products of such layers' matrices with a vector, weights in no cache, without all else that a step does. GB/s of
weights, the best of all turns' repetitions, and its share of the same bandwidth.

| type | GB/s: before | after | gain | share: before | after |
|---|---|---|---|---|---|"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="directory of the libraries without the patches of kernels")
    parser.add_argument("--work", type=Path, help="directory for the model's files, kept")
    parser.add_argument("--threads", type=int, default=cpu.default_threads())
    parser.add_argument("--turns", type=int, default=5, help="of both libraries; 0: none of these")
    parser.add_argument("--cached", action="store_true", help="time products in the cache, too")
    parser.add_argument("--instructions", action="store_true", help="count instructions, too")
    parser.add_argument("--times", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--turn", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--products", nargs=3, metavar=("TYPE", "ROWS", "COUNT"), help=argparse.SUPPRESS)
    parser.add_argument("--types", nargs="+", default=TYPES, metavar="TYPE", help="whose instructions are counted")
    args = parser.parse_args()
    if args.products:
        multiply(args.products[0], *map(int, args.products[1:]))
    elif args.times:
        print(json.dumps(cached_times()))
    elif args.turn:
        measure_turn(args.work, args.threads)
    elif args.before and args.work:
        native.load()
        libraries = {BEFORE: args.before, AFTER: Path(os.environ[native.LIB_PATH])}
        if args.turns:
            compare(args, libraries)
        if args.cached:
            times = {side: json.loads(child(library, "--times")) for side, library in libraries.items()}
            table_by_rows(TYPES, times, 4)
        if args.instructions:
            table_by_rows(args.types, count_instructions(libraries, args.types), 2)
    else:
        parser.error("--before and --work are needed")


if __name__ == "__main__":
    main()
