"""Writes a residual file with ggml's own functions, in the worker process; residual.py says what is in it.

Rows are read, subtracted, quantised and written in chunks, so that memory does not grow with the model.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from pmpd_edge import gguf_info
from pmpd_edge.convert import imatrix, quantize, residual
from pmpd_edge.gguf_info import Tensor

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

_CHUNK = 1 << 20  # weights that a thread works on at a time: 4 MB for each float32 copy


def write(llama_cpp: ModuleType, job: dict[str, Any]) -> bool:
    """Do the job "residual" (see residual.make); returns whether the file was written."""
    ggml = Ggml(llama_cpp)
    source = Weights(ggml, Path(job["source"]))
    below = [Weights(ggml, Path(path)) for path in job["below"]]
    base = list(below[0].tensors.values())
    types = job["types"]
    importance = imatrix.read(Path(job["imatrix"])) if job["imatrix"] else {}
    out = Path(job["out"])
    if not ggml.write_header(below[0].path, out, types, getattr(llama_cpp, job["ftype"])):
        return False

    with open(out, "r+b") as file, ThreadPoolExecutor(job["threads"]) as pool:
        start, offsets = ggml.layout(out)
        for i, tensor in enumerate(base):
            print(f"[{i + 1:4}/{len(base):4}] {tensor.name} -> {types[tensor.name]}", file=sys.stderr, flush=True)
            file.seek(start + offsets[tensor.name])
            if residual.holds_remainder(tensor):
                chunks = _chunks(tensor)
                means = _by_matrix(importance.get(tensor.name), tensor)
                if means is None and types[tensor.name] in quantize.NEED_IMATRIX:  # ggml would abort
                    raise ValueError(f"the importance matrix does not know {tensor.name}")
                work = (_Chunk(ggml, tensor, types[tensor.name], rows, source, below, means) for rows in chunks)
                for data in _in_order(pool, work, 2 * job["threads"]):
                    file.write(data.data)
            else:
                _, elements, n_bytes = gguf_info.TYPES[types[tensor.name]]
                _write_zeros(file, tensor.elements // elements * n_bytes)
        _write_zeros(file, -file.tell() % 32)  # llama.cpp's own files end on a boundary
    return True


def _chunks(tensor: Tensor) -> Iterator[range]:
    """The rows of a tensor (of all its matrices, where it has several) in parts of about `_CHUNK` weights.

    No part has rows of two matrices: each has an importance of its own.
    """
    columns, rows = tensor.shape[:2]
    step = max(1, _CHUNK // columns)
    for first in range(0, tensor.elements // columns, rows):
        yield from (range(at, min(at + step, first + rows)) for at in range(first, first + rows, step))


def _by_matrix(means: Floats | None, tensor: Tensor) -> Floats | None:
    """The importance of each column of each matrix of a tensor, `[n_matrices, columns]`."""
    if means is None:
        return None
    columns, rows = tensor.shape[:2]
    if means.size * rows != tensor.elements:
        raise ValueError(f"imatrix size {means.size} is different from tensor size for {tensor.name}")
    return means.reshape(-1, columns)


def _write_zeros(file: Any, count: int) -> None:
    for done in range(0, count, 1 << 20):
        file.write(bytes(min(count - done, 1 << 20)))


@dataclass(frozen=True)
class _Chunk:
    """Rows of a tensor to make."""

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
        matrix = self.rows.start // self.tensor.shape[1]
        return self.ggml.quantize(self.type, remainder, None if self.importance is None else self.importance[matrix])


def _in_order(pool: ThreadPoolExecutor, work: Iterable[_Chunk], ahead: int) -> Iterator[Bytes]:
    """What chunks make, in their order; at most `ahead` of them are under way or wait to be taken."""
    waiting: deque[Future[Bytes]] = deque()
    iterator = iter(work)
    for chunk in itertools.islice(iterator, ahead):
        waiting.append(pool.submit(chunk.make))
    while waiting:
        yield waiting.popleft().result()
        for chunk in itertools.islice(iterator, 1):
            waiting.append(pool.submit(chunk.make))


class Weights:
    """The tensors of a GGUF file as float32."""

    def __init__(self, ggml: Ggml, path: Path) -> None:
        self.path = path
        self.tensors = {tensor.name: tensor for tensor in gguf_info.read(path).tensors}
        self._ggml = ggml
        self._start, _ = ggml.layout(path)

    def rows(self, name: str, rows: range) -> Floats:
        """Rows of a tensor, `[len(rows), columns]`."""
        tensor = self.tensors[name]
        _, elements, n_bytes = gguf_info.TYPES[tensor.type]
        row_bytes = tensor.shape[0] // elements * n_bytes
        offset = self._start + tensor.offset + rows.start * row_bytes
        data = np.fromfile(self.path, np.uint8, len(rows) * row_bytes, offset=offset)
        return self._ggml.dequantize(tensor.type, data).reshape(len(rows), tensor.shape[0])


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class _GgufInitParams(ctypes.Structure):
    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.POINTER(ctypes.c_void_p)))


_TO_FLOAT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class _TypeTraits(ctypes.Structure):
    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", _TO_FLOAT),
        ("from_float_ref", ctypes.c_void_p),
    )


class Ggml:
    """The functions of ggml that llama_cpp does not declare."""

    def __init__(self, llama_cpp: ModuleType) -> None:
        # Elsewhere, a library gives the symbols of those that it was linked to.
        library = ctypes.CDLL("ggml-base") if sys.platform == "win32" else llama_cpp.llama_cpp._lib
        p, i, i64, size, text = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_size_t, ctypes.c_char_p

        def declare(name: str, result: Any, *arguments: Any) -> Any:
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
            return function

        self._traits = declare("ggml_get_type_traits", ctypes.POINTER(_TypeTraits), i)
        self._quantize = declare("ggml_quantize_chunk", size, i, p, p, i64, i64, i64, p)
        self._validate = declare("ggml_validate_row_data", ctypes.c_bool, i, p, size)
        self._gguf_read = declare("gguf_init_from_file", p, text, _GgufInitParams)
        self._gguf_free = declare("gguf_free", None, p)
        self._gguf_data = declare("gguf_get_data_offset", size, p)
        self._gguf_count = declare("gguf_get_n_tensors", i64, p)
        self._gguf_name = declare("gguf_get_tensor_name", text, p, i64)
        self._gguf_offset = declare("gguf_get_tensor_offset", size, p, i64)
        self._gguf_set_type = declare("gguf_set_tensor_type", None, p, text, i)
        self._gguf_set_u32 = declare("gguf_set_val_u32", None, p, text, ctypes.c_uint32)
        self._gguf_write = declare("gguf_write_to_file", ctypes.c_bool, p, text, ctypes.c_bool)

    def dequantize(self, type_name: str, data: Bytes) -> Floats:
        """The weights in whole blocks of a type, `[n_weights]`."""
        number, elements, n_bytes = gguf_info.TYPES[type_name]
        if type_name == "F32":
            return data.view(np.float32).copy()
        out = np.empty(len(data) // n_bytes * elements, np.float32)
        self._traits(number).contents.to_float(data.ctypes.data, out.ctypes.data, out.size)
        return out

    def quantize(self, type_name: str, rows: Floats, importance: Floats | None = None) -> Bytes:
        """Quantise rows, `[n_rows, columns]`, to the bytes of a type; `importance` is that of the columns."""
        number, elements, n_bytes = gguf_info.TYPES[type_name]
        out = np.empty(rows.size // elements * n_bytes, np.uint8)
        weights = None if importance is None else importance.ctypes.data
        self._quantize(number, rows.ctypes.data, out.ctypes.data, 0, *rows.shape, weights)
        if not self._validate(number, out.ctypes.data, out.size):
            raise ValueError(f"{type_name}: quantised data validation failed")
        return out

    def layout(self, path: Path) -> tuple[int, dict[str, int]]:
        """Where the tensors of a file begin, and the offset of each from there."""
        gguf = self._open(path)
        try:
            names = [(i, self._gguf_name(gguf, i).decode()) for i in range(self._gguf_count(gguf))]
            return self._gguf_data(gguf), {name: self._gguf_offset(gguf, i) for i, name in names}
        finally:
            self._gguf_free(gguf)

    def write_header(self, like: Path, out: Path, types: dict[str, str], ftype: int) -> bool:
        """Write the metadata and tensor list of a file to another one, with other types.

        Args:
            ftype: a llama_ftype, what the file calls itself.
        """
        gguf = self._open(like)
        try:
            for name, type_name in types.items():
                self._gguf_set_type(gguf, name.encode(), gguf_info.TYPES[type_name][0])
            self._gguf_set_u32(gguf, b"general.file_type", ftype)
            return self._gguf_write(gguf, os.fsencode(out), True)
        finally:
            self._gguf_free(gguf)

    def _open(self, path: Path) -> Any:
        gguf = self._gguf_read(os.fsencode(path), _GgufInitParams(True, None))
        if not gguf:
            raise ValueError(f"{path}: not a GGUF file")
        return gguf
