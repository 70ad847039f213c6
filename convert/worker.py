"""The process in which the library quantises or checks files; started by quantize.py, with a job in JSON."""

from __future__ import annotations

import ctypes
import json
import os
import sys
from types import ModuleType
from typing import Any

from pmpd_edge import native
from pmpd_edge.convert import remainder
from pmpd_edge.errors import NativeError


def main() -> None:
    """Do the job that the command line names; the library's log goes to standard error, where the parent reads it."""
    verb, job = sys.argv[1], json.loads(sys.argv[2])
    try:
        llama_cpp = native.load()
    except NativeError as error:
        sys.exit(f"NativeError: {error}")
    llama_cpp.llama_log_set(llama_cpp.llama_log_callback(), ctypes.c_void_p(0))  # null: print to standard error
    done = {"quantize": _quantize, "check": _check, "residual": remainder.write, "sum": _sum}[verb](llama_cpp, job)
    sys.exit(0 if done else 1)


def _quantize(llama_cpp: ModuleType, job: dict[str, Any]) -> bool:
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread = job["threads"]
    params.ftype = getattr(llama_cpp, job["ftype"])
    params.pure = True
    params.token_embedding_type = params.output_tensor_type = job["vocabulary_type"]
    paths = os.fsencode(job["source"]), os.fsencode(job["out"])
    return llama_cpp.llama_model_quantize(*paths, ctypes.byref(params)) == 0


def _check(llama_cpp: ModuleType, job: dict[str, Any]) -> bool:
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    params.no_alloc = True  # tensors' shapes are compared, nothing is read
    params.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE  # what no_alloc needs
    return bool(llama_cpp.llama_model_load_from_file(os.fsencode(job["source"]), params))


def _sum(llama_cpp: ModuleType, job: dict[str, Any]) -> bool:
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    params.use_extra_bufts = False  # with the files mapped and nothing repacked, no weights are read
    models = [llama_cpp.llama_model_load_from_file(os.fsencode(path), params) for path in job["files"]]
    if not all(models):
        return False
    context_params = llama_cpp.llama_context_default_params()
    context_params.n_ctx = context_params.n_batch = context_params.n_ubatch = 32
    context = llama_cpp.llama_init_from_model(models[0], context_params)
    pointers = (ctypes.c_void_p * len(models))(*models)
    return bool(context) and llama_cpp.llama_cpp._lib.llama_set_weights(context, pointers, len(models)) == 0
