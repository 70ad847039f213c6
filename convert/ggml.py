"""The functions of ggml that llama_cpp does not declare, for the worker process, and the tensors that they read."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from pmpd_edge import gguf_info

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


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
    """Types of tensors, and headers of files."""

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

    def write_header(self, like: Path, out: Path, types: Mapping[str, str], ftype: int) -> bool:
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


class Weights:
    """The tensors of a GGUF file, by rows of all their matrices."""

    def __init__(self, ggml: Ggml, path: Path) -> None:
        self.path = path
        self.tensors = {tensor.name: tensor for tensor in gguf_info.read(path).tensors}
        self._ggml = ggml
        self._start, _ = ggml.layout(path)

    def rows(self, name: str, rows: range) -> Floats:
        """Rows of a tensor as float32, `[len(rows), columns]`."""
        tensor = self.tensors[name]
        return self._ggml.dequantize(tensor.type, self.stored(name, rows)).reshape(len(rows), tensor.shape[0])

    def stored(self, name: str, rows: range) -> Bytes:
        """Rows of a tensor as the file holds them."""
        tensor = self.tensors[name]
        _, elements, n_bytes = gguf_info.TYPES[tensor.type]
        row_bytes = tensor.shape[0] // elements * n_bytes
        offset = self._start + tensor.offset + rows.start * row_bytes
        return np.fromfile(self.path, np.uint8, len(rows) * row_bytes, offset=offset)
