"""Writes a dense-and-sparse file with ggml's own functions, in the worker process; dns.py says what is in it.

Memory in use is that of one matrix in float32, three times, and of a few chunks for each thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from pmpd_edge.convert import imatrix, tensors
from pmpd_edge.convert.ggml import Bytes, Floats, Ggml, Weights
from pmpd_edge.gguf_info import Tensor

Mask = npt.NDArray[np.bool_]


def write(llama_cpp: ModuleType, job: dict[str, Any]) -> bool:
    """Do the job "dns" (see dns.make); returns whether the file was written."""
    ggml = Ggml(llama_cpp)
    source, low = (Weights(ggml, Path(job[name])) for name in ("source", "low"))
    importance = imatrix.read(Path(job["imatrix"])) if job["imatrix"] else {}
    counts, by = job["outliers"], job["by"]
    types = {name: "F32" if name in counts else tensor.type for name, tensor in low.tensors.items()}

    with ThreadPoolExecutor(job["threads"]) as pool:

        def make(tensor: Tensor) -> Iterator[Bytes]:
            if tensor.name not in counts:
                yield from _copy(low, tensor)
                return
            means = tensors.importance_of(tensor, tensor.type, importance)
            for i, rows in enumerate(tensors.matrices(tensor)):
                of_columns = None if means is None else means[i]
                weights = source.rows(tensor.name, rows)
                if by == "sensitivity":
                    values = _sensitivity(weights, low, tensor, rows, of_columns)
                else:
                    values = np.abs(weights)
                marked = largest(values, counts[tensor.name])
                matrix = _Matrix(ggml, tensor.type, weights, marked, of_columns)
                yield from tensors.in_order(pool, matrix.parts(), 2 * job["threads"])

        return tensors.write(ggml, low.path, Path(job["out"]), types, llama_cpp.LLAMA_FTYPE_ALL_F32, make)


def _copy(low: Weights, tensor: Tensor) -> Iterator[Bytes]:
    for matrix in tensors.matrices(tensor):
        for rows in tensors.chunks(matrix, tensor.shape[0]):
            yield low.stored(tensor.name, rows)


def _sensitivity(weights: Floats, low: Weights, tensor: Tensor, rows: range, importance: Floats | None) -> Floats:
    """What the low level's error in each weight of a matrix adds to the squared error of the matrix's outputs.

    Args:
        weights: the source's, `[len(rows), columns]`.
        rows: where they are in the tensor.
        importance: the mean squares of the columns' inputs.
    """
    found = np.empty_like(weights)
    for part in tensors.chunks(range(len(rows)), tensor.shape[0]):
        error = weights[part.start : part.stop] - low.rows(tensor.name, rows[part.start : part.stop])
        np.square(error, out=found[part.start : part.stop])
    if importance is not None:
        found *= importance
    return found


def largest(values: Floats, count: int) -> Mask:
    """Mark as many of the largest values; of equal ones, the first.

    Args:
        count: at least one.
    """
    at = values.size - count
    smallest = np.partition(values, at, axis=None)[at]
    marked = values > smallest
    equal = np.flatnonzero(values == smallest)
    marked.flat[equal[: count - np.count_nonzero(marked)]] = True
    return marked


@dataclass(frozen=True)
class _Matrix:
    """A matrix to take apart and put together again.

    Attributes:
        type: of its dense part.
        weights: the source's, `[rows, columns]`.
        outliers: which of them are, `[rows, columns]`.
        importance: of its columns.
    """

    ggml: Ggml
    type: str
    weights: Floats
    outliers: Mask
    importance: Floats | None

    def parts(self) -> Iterator[Callable[[], Bytes]]:
        rows, columns = self.weights.shape
        return (partial(self._rebuild, part) for part in tensors.chunks(range(rows), columns))

    def _rebuild(self, rows: range) -> Bytes:
        """The dense part with the outliers in their places: float32, as bytes."""
        weights, outliers = (array[rows.start : rows.stop] for array in (self.weights, self.outliers))
        dense = np.where(outliers, np.float32(0), weights)
        quantised = self.ggml.dequantize(self.type, self.ggml.quantize(self.type, dense, self.importance))
        return np.where(outliers, weights, quantised.reshape(weights.shape)).reshape(-1).view(np.uint8)
