"""What the benchmarks of weight types share: files of types and their sums, their quality and their speed.

A type is written as in llama.cpp, with a star where an importance matrix is used: `Q4_K*`.
"""

from __future__ import annotations

import gzip
import json
import os
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

from pmpd_edge import native

llama_cpp = native.load()

from pmpd_edge import gguf_info  # noqa: E402
from pmpd_edge.convert import imatrix, quantize, residual  # noqa: E402
from pmpd_edge.convert.ggml import Ggml, Weights  # noqa: E402
from pmpd_edge.levels import load_model  # noqa: E402

MODEL = Path(__file__).parent.parent / "tests" / "data" / "translator-7m"
N_PREFILL, N_DECODE = 256, 32

Types = tuple[str, ...]  # of the files that are summed: a base, then residuals
Logits = npt.NDArray[np.float32]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Store:
    """The files of sums of types, made once from one 16-bit file and found again.

    Args:
        source: the 16-bit file.
        imatrix: for types with a star.
    """

    def __init__(self, source: Path, threads: int, imatrix: Path | None = None) -> None:
        self.source = gguf_info.read(source)
        self._threads, self._imatrix = threads, imatrix

    @cache  # noqa: B019 - one or two of them live as long as the program
    def files(self, types: Types) -> list[gguf_info.GgufInfo]:
        """The files of a sum."""
        below = self.files(types[:-1]) if len(types) > 1 else []
        name = "-".join(types).replace("*", f"~{self._imatrix.stem}" if self._imatrix else "")
        out = self.source.path.with_name(f"{self.source.path.stem}-{name}.gguf")
        kind = types[-1].removesuffix("*")
        recipe = quantize.Recipe(kind, imatrix=self._imatrix if kind != types[-1] else None)

        def make(path: Path) -> None:
            if below:
                residual.make(self.source, below, path, recipe, self._threads)
            else:
                quantize.quantize(self.source, path, recipe, self._threads)

        return [*below, gguf_info.read(once(out, make))]

    def bpw(self, types: Types) -> float:
        base, *residuals = self.files(types)
        return base.bpw + sum(residual.bpw(file, base) for file in residuals)

    def size(self, types: Types) -> int:
        return sum(file.path.stat().st_size for file in self.files(types))

    def error(self, types: Types) -> float:
        """Relative error of the layers' matrices, all taken as one vector."""
        ggml = Ggml(llama_cpp)
        source = Weights(ggml, self.source.path)
        parts = [Weights(ggml, file.path) for file in self.files(types)]
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
    """What sums lose on reference translations."""

    def __init__(self, store: Store, text_path: Path, count: int, threads: int) -> None:
        self._store, self._threads = store, threads
        with opened([store.source.path], threads, n_ctx=512) as llm:
            self._text = read_text(text_path, count, llm)
        self._reference = logits([store.source.path], self._text, threads)
        self.positions = len(self._reference)

    @cache  # noqa: B019
    def of(self, types: Types, store: Store | None = None) -> tuple[float, float, float, float]:
        """bpw, error, KL, top-1; `store` is another one of the same model."""
        store = store or self._store
        paths = [file.path for file in store.files(types)]
        kl, top = compare(self._reference, logits(paths, self._text, self._threads))
        bpw, error = store.bpw(types), store.error(types)
        say(f"{' + '.join(types)}: {bpw:.2f} bpw, error {error:.4f}, KL {kl:.4f}, top-1 {top:.3f}")
        return bpw, error, kl, top

    def cells(self, types: Types) -> str:
        """The same, for a table."""
        bpw, error, kl, top = self.of(types)
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


def importance(source: Path, text: Path, threads: int) -> Path:
    """The importance matrix of a 16-bit file on a text, made once."""
    out = source.with_name(f"{source.stem}-{text.stem}.imatrix")
    return once(out, lambda path: imatrix.compute(gguf_info.read(source), text, path, threads))


def once(path: Path, make: Callable[[Path], object]) -> Path:
    """A file, made if it is not there."""
    if not path.exists():
        say(f"making {path.name}")
        partial = path.with_suffix(".partial")
        make(partial)
        os.replace(partial, path)
    return path
