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
import gzip
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from pmpd_edge import cpu, native

llama_cpp = native.load()

from pmpd_edge.bench.random_model import write_llama  # noqa: E402
from pmpd_edge.convert import gguf_info, hf, plan, quantize, remainder, residual  # noqa: E402
from pmpd_edge.levels import load_model  # noqa: E402

MODEL = Path(__file__).parent.parent / "tests" / "data" / "translator-7m"
SHAPE = {"hidden": 2048, "layers": 22, "heads": 32, "kv_heads": 4, "ff": 5632, "metadata": {"context_length": 2048}}
N_PREFILL, N_DECODE = 256, 32
LADDER = ("Q1_0", "Q2_K", "Q3_K", "Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0")  # what residuals are tried as

Types = tuple[str, ...]  # of the files that are summed: a base, then residuals
Logits = npt.NDArray[np.float32]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Store:
    """The files of sums of types, made once from one 16-bit file and found again."""

    def __init__(self, source: Path, threads: int) -> None:
        self.source = gguf_info.read(source)
        self._threads = threads

    @cache  # noqa: B019 - one or two of them live as long as the program
    def files(self, types: Types) -> list[gguf_info.GgufInfo]:
        """The files of a sum."""
        below = self.files(types[:-1]) if len(types) > 1 else []
        out = self.source.path.with_name(f"{self.source.path.stem}-{'-'.join(types)}.gguf")

        def make(path: Path) -> None:
            if below:
                residual.make(self.source, below, path, types[-1], self._threads)
            else:
                quantize.quantize(self.source, path, types[-1], self._threads)

        return [*below, gguf_info.read(once(out, make))]

    def bpw(self, types: Types) -> float:
        base, *residuals = self.files(types)
        return base.bpw + sum(residual.bpw(file, base) for file in residuals)

    def size(self, types: Types) -> int:
        return sum(file.path.stat().st_size for file in self.files(types))

    def error(self, types: Types) -> float:
        """Relative error of the layers' matrices, all taken as one vector."""
        ggml = remainder.Ggml(llama_cpp)
        source = remainder.Weights(ggml, self.source.path)
        parts = [remainder.Weights(ggml, file.path) for file in self.files(types)]
        lost = whole = 0.0
        for tensor in filter(residual.is_summed, source.tensors.values()):
            rows = range(tensor.elements // tensor.shape[0])
            weights = source.rows(tensor.name, rows)
            whole += float(np.square(weights, dtype=np.float64).sum())
            for part in parts:
                weights -= part.rows(tensor.name, rows)
            lost += float(np.square(weights, dtype=np.float64).sum())
        return float(np.sqrt(lost / whole))


@contextmanager
def opened(paths: Sequence[Path], threads: int, **options: Any) -> Iterator[Any]:
    """A `llama_cpp.Llama` that evaluates with the sum of files."""
    llm = llama_cpp.Llama(
        str(paths[0]), n_threads=threads, n_threads_batch=threads, flash_attn=True, verbose=False,
        use_mmap=False, n_gpu_layers=0, **options,
    )  # fmt: skip
    residuals = [load_model(str(path), llm._model.params) for path in paths[1:]]
    native.set_weights(llm._ctx.ctx, [llm._model.model, *(model.model for model in residuals)])
    try:
        yield llm
    finally:
        llm.close()
        for model in residuals:
            model.close()


# Quality


@dataclass
class Text:
    """Prompts with their reference translations, as token ids."""

    prompts: list[list[int]]
    answers: list[list[int]]


def read_text(path: Path, count: int, tokenizer: Any) -> Text:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(count), strict=False)]

    def ids(text: str) -> list[int]:
        return tokenizer.tokenize(text.encode(), add_bos=False, special=True)

    languages = [("German", "de") if i % 2 else ("French", "fr") for i in range(len(rows))]
    return Text(
        [
            ids(f"<s><|user|>Translate from {language} to English: {row[key]}<|assistant|>")
            for row, (language, key) in zip(rows, languages, strict=True)
        ],
        [ids(f"{row['en']}<|end|>") for row in rows],
    )


def logits(paths: Sequence[Path], text: Text, threads: int) -> Logits:
    """Logits for every token of the answers, `[n_tokens, n_vocab]`."""
    found = []
    with opened(paths, threads, n_ctx=512, logits_all=True) as llm:
        for prompt, answer in zip(text.prompts, text.answers, strict=True):
            llm.reset()
            llm.eval(prompt + answer)
            found.append(np.array(llm.scores[len(prompt) - 1 : len(prompt) + len(answer) - 1]))
    return np.concatenate(found)


def compare(reference: Logits, other: Logits) -> tuple[float, float]:
    """Mean KL divergence in nats and top-1 agreement."""

    def log_softmax(x: Logits) -> npt.NDArray[np.float64]:
        shifted = x.astype(np.float64) - x.max(-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))

    p, q = log_softmax(reference), log_softmax(other)
    agree = (reference.argmax(-1) == other.argmax(-1)).mean()
    return float((np.exp(p) * (p - q)).sum(-1).mean()), float(agree)


class Quality:
    """Table cells of sums: bpw, error, KL, top-1."""

    def __init__(self, store: Store, text_path: Path, count: int, threads: int) -> None:
        self._store, self._threads = store, threads
        with opened([store.source.path], threads, n_ctx=512) as llm:
            self._text = read_text(text_path, count, llm)
        self._reference = logits([store.source.path], self._text, threads)
        self.positions = len(self._reference)

    @cache  # noqa: B019
    def cells(self, types: Types) -> str:
        paths = [file.path for file in self._store.files(types)]
        kl, top = compare(self._reference, logits(paths, self._text, self._threads))
        bpw, error = self._store.bpw(types), self._store.error(types)
        say(f"{' + '.join(types)}: {bpw:.2f} bpw, error {error:.4f}, KL {kl:.4f}, top-1 {top:.3f}")
        return f"{bpw:.2f} | {error:.4f} | {kl:.4f} | {top:.3f}"


# Speed


@dataclass
class Speed:
    """Tokens/s of runs by turns."""

    prefill: list[float]
    decode: list[float]


def speeds(store: Store, sums: Sequence[Types], repeats: int, threads: int) -> dict[Types, Speed]:
    found = {types: Speed([], []) for types in sums}
    for turn in range(repeats):
        for types in sums:
            paths = [file.path for file in store.files(types)]
            with opened(paths, threads, n_ctx=512) as llm:
                if turn == 0:
                    llm.eval(list(range(10, 10 + N_PREFILL)))  # the first touch of everything
                llm.reset()
                begin = perf_counter()
                llm.eval(list(range(10, 10 + N_PREFILL)))
                middle = perf_counter()
                for token in range(N_DECODE):
                    llm.eval([20 + token])
                end = perf_counter()
            found[types].prefill.append(N_PREFILL / (middle - begin))
            found[types].decode.append(N_DECODE / (end - middle))
            say(f"{' + '.join(types)}: {found[types].prefill[-1]:.1f}, {found[types].decode[-1]:.1f} t/s")
    return found


# The page


def default_sums(*precisions: int) -> dict[int, Types]:
    """The types of each level of a nested bundle, by default."""
    planned = plan.make("model", precisions, layout="nested")
    types = {level.file: level.type or "" for level in planned.levels}
    return {level.precision: tuple(types[file] for file in planned.weights(level)) for level in planned.levels}


def separate(precisions: Sequence[int]) -> dict[int, Types]:
    return {precision: (plan.DEFAULT_TYPES[precision],) for precision in precisions}


BUNDLES = ((8, 4), (8, 3), (4, 2), (8, 4, 2))


def print_bundles(store: Store, quality: Quality) -> None:
    print("| levels | layout | level | types | bpw | error | KL | top-1 | all files, MB |")
    print("|---|---|---|---|---|---|---|---|---|")
    for precisions in BUNDLES:
        for layout, sums in (("separate", separate(precisions)), ("nested", default_sums(*precisions))):
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
    sums = list(dict.fromkeys([*separate((8, 4)).values(), *default_sums(8, 4).values(), ("Q4_K", "Q4_K")]))
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
    small = Store(once(args.work / "translator.gguf", lambda path: hf.to_gguf(MODEL, path)), args.threads)
    large_file = once(args.work / "large.gguf", lambda path: write_llama(path, dtype=np.float16, **SHAPE))
    large = Store(large_file, args.threads)
    quality = Quality(small, args.text, args.sentences, args.threads)

    shared = "\nOther programs ran beside it: the times are rough, their ratios less so." if args.shared else ""
    print(HEAD.format(machine=machine(), threads=args.threads, shared=shared, positions=quality.positions))
    print_bundles(small, quality)
    print(ACTIVATIONS)
    for types in (("Q4_K", "Q8_0"), ("Q4_0", "Q8_0"), ("Q4_0", "Q4_0")):
        print(f"| {' + '.join(types)} | {quality.cells(types)} |")
    print(RESIDUALS)
    print_residuals(quality)
    print(SPEED.format(prefill=N_PREFILL, decode=N_DECODE, repeats=args.repeats))
    print_speeds(large, args)


def once(path: Path, make: Callable[[Path], object]) -> Path:
    """A file, made if it is not there."""
    if not path.exists():
        say(f"making {path.name}")
        partial = path.with_suffix(".partial")
        make(partial)
        os.replace(partial, path)
    return path


def machine() -> str:
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [name for name in ("avx2", "avx512f", "avx512_vnni") if name in flags]
    return " ".join([platform.machine(), *names]) + f", {os.cpu_count()} cores, {platform.system()}"


HEAD = """# Nested levels against separate ones

Made by `python scripts/bench_nested.py --text multi30k.validation.jsonl.gz --work DIR`.

Machine: {machine}. {threads} thread(s).{shared}

## Quality and size

The translator (7.3 M parameters), against its 16-bit file, over {positions} tokens of reference translations. bpw: real
bits per weight of a level; error: of the layers' matrices, relative; KL: divergence of the next token's distribution,
nats; top-1: how often both take the same token.
"""

ACTIVATIONS = """
With K types, the KL stays at about 0.001 however small the error of the weights is. That is what the activations lose,
which these types multiply in blocks of 256 with one scale; Q8_0 and Q4_0 do so in blocks of 32:

| types | bpw | error | KL | top-1 |
|---|---|---|---|---|"""

RESIDUALS = """
## Residual types

Bold: the default, `plan.DEFAULT_RESIDUALS`: the smallest type with which the sum's error is at most 1.2 times that of
the level's own type. Beside it, its neighbours in size. Q1_0's kernels are slow on x86 today.
"""

SPEED = """
## Size and speed

Random weights, 2048 wide, 22 layers, 0.99 billion parameters. Tokens/s of {prefill} tokens of prefill and {decode}
steps after it, medians of {repeats} runs by turns; the last column compares runs of one turn: median (least to most).
"""


if __name__ == "__main__":
    main()
