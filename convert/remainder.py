"""Writes a residual file with ggml's own functions, in the worker process; residual.py says what is in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from pmpd_edge import gguf_info
from pmpd_edge.convert import imatrix, residual, tensors
from pmpd_edge.convert.ggml import Bytes, Floats, Ggml, Weights
from pmpd_edge.gguf_info import Tensor


def write(llama_cpp: ModuleType, job: dict[str, Any]) -> bool:
    """Do the job "residual" (see residual.make); returns whether the file was written."""
    ggml = Ggml(llama_cpp)
    source = Weights(ggml, Path(job["source"]))
    below = [Weights(ggml, Path(path)) for path in job["below"]]
    types = job["types"]
    importance = imatrix.read(Path(job["imatrix"])) if job["imatrix"] else {}

    with ThreadPoolExecutor(job["threads"]) as pool:

        def make(tensor: Tensor) -> Iterator[Bytes]:
            type_name = types[tensor.name]
            if not residual.holds_remainder(tensor):
                return _zeros(tensor, type_name)
            means = tensors.importance_of(tensor, type_name, importance)
            work = (chunk.make for chunk in _chunks(ggml, tensor, type_name, source, below, means))
            return tensors.in_order(pool, work, 2 * job["threads"])

        return tensors.write(ggml, below[0].path, Path(job["out"]), types, getattr(llama_cpp, job["ftype"]), make)


def _zeros(tensor: Tensor, type_name: str) -> Iterator[Bytes]:
    _, elements, n_bytes = gguf_info.TYPES[type_name]
    size = tensor.elements // elements * n_bytes
    return (np.zeros(min(size - done, 1 << 20), np.uint8) for done in range(0, size, 1 << 20))


def _chunks(
    ggml: Ggml, tensor: Tensor, type_name: str, source: Weights, below: Sequence[Weights], means: Floats | None
) -> Iterator[_Chunk]:
    """A tensor in parts, none of which has rows of two matrices: each has an importance of its own."""
    for i, matrix in enumerate(tensors.matrices(tensor)):
        for rows in tensors.chunks(matrix, tensor.shape[0]):
            yield _Chunk(ggml, tensor, type_name, rows, source, below, None if means is None else means[i])


@dataclass(frozen=True)
class _Chunk:
    """Rows of a matrix to make; `importance` is that of its columns."""

    ggml: Ggml
    tensor: Tensor
    type: str
    rows: range
    source: Weights
    below: Sequence[Weights]
    importance: Floats | None

    def make(self) -> Bytes:
        remainder = self.source.rows(self.tensor.name, self.rows)
        for weights in self.below:
            remainder -= weights.rows(self.tensor.name, self.rows)
        return self.ggml.quantize(self.type, remainder, self.importance)
