"""The process in which the library quantises or checks files; started by quantize.py, with a job in JSON."""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from pmpd_edge import gguf_info, native
from pmpd_edge.convert import imatrix, outliers, quality, remainder
from pmpd_edge.errors import ConvertError, NativeError

_BUFFER = 256 << 20  # bytes of rows that are quantised at a time


def main() -> None:
    """Do the job that the command line names; the library's log goes to standard error, where the parent reads it."""
    verb, job = sys.argv[1], json.loads(sys.argv[2])
    try:
        llama_cpp = native.load()
    except NativeError as error:
        sys.exit(f"NativeError: {error}")
    llama_cpp.llama_log_set(llama_cpp.llama_log_callback(), ctypes.c_void_p(0))  # null: print to standard error
    verbs = {
        "quantize": _quantize,
        "check": _check,
        "residual": remainder.write,
        "dns": outliers.write,
        "sum": _sum,
        "quality": quality.measure,
        "speed": quality.measure_speed,
    }
    try:
        done = verbs[verb](llama_cpp, job)
    except ConvertError as error:
        sys.exit(f"ConvertError: {error}")
    sys.exit(0 if done else 1)


def _quantize(llama_cpp: ModuleType, job: dict[str, Any]) -> bool:
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread = job["threads"]
    params.ftype = getattr(llama_cpp, job["ftype"])
    params.pure = True
    params.token_embedding_type = params.output_tensor_type = job["vocabulary_type"]
    params.max_buf_size = _BUFFER
    types = _types(Path(job["source"]), job["overrides"]) if job.get("overrides") else {}
    patterns = [(f"^{re.escape(name)}$".encode(), number) for name, number in types.items()]
    params.tt_overrides = (llama_cpp.llama_model_tensor_override * (len(patterns) + 1))(*patterns)  # ends with null
    values = imatrix.read(Path(job["imatrix"])) if job.get("imatrix") else {}
    if values:
        pointer = ctypes.POINTER(ctypes.c_float)
        entries = [(name.encode(), means.ctypes.data_as(pointer), means.size) for name, means in values.items()]
        params.imatrix = (llama_cpp.llama_model_imatrix_data * (len(entries) + 1))(*entries)
    paths = os.fsencode(job["source"]), os.fsencode(job["out"])
    return llama_cpp.llama_model_quantize(*paths, ctypes.byref(params)) == 0


def _types(source: Path, overrides: Sequence[tuple[str, int]]) -> dict[str, int]:
    """The types of the matrices that overrides name, by Python's regular expressions: C++ has others."""
    found = {}
    for tensor in gguf_info.read(source).tensors:
        number = next((number for pattern, number in overrides if re.search(pattern, tensor.name)), None)
        if number is not None and tensor.name not in gguf_info.VOCABULARY_MATRICES:
            found[tensor.name] = number
    return found


def _check(llama_cpp: ModuleType, job: dict[str, Any]) -> bool:
    return bool(_load_shapes(llama_cpp, job["source"]))


def _load_shapes(llama_cpp: ModuleType, path: str) -> Any:
    """A model without its weights: for what the library compares and plans, which takes none."""
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    params.use_extra_bufts = False
    params.no_alloc = True
    params.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE  # what no_alloc needs
    return llama_cpp.llama_model_load_from_file(os.fsencode(path), params)


def _sum(llama_cpp: ModuleType, job: dict[str, Any]) -> bool:
    models = [_load_shapes(llama_cpp, path) for path in job["files"]]
    if not all(models):
        return False
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 32
    context = llama_cpp.llama_init_from_model(models[0], params)
    pointers = (ctypes.c_void_p * len(models))(*models)
    return bool(context) and llama_cpp.llama_cpp._lib.llama_set_weights(context, pointers, len(models)) == 0
