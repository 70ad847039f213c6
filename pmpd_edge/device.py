"""Names the device that figures were measured on."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from pathlib import Path

from pmpd_edge import native

_FEATURES = ("avx2", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")  # what low-bit kernels go by
_GPUS = (1, 2)  # enum ggml_backend_dev_type: GPU, IGPU


def describe() -> str:
    """The CPU, its cores and instruction sets, the GPUs that the library sees, and the system, in words."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    model = re.search(r"model name\s*: (.*)", text)
    name = model[1] if model else platform.processor() or platform.machine()
    features = [feature for feature in _FEATURES if feature in text]
    cpu = f"{name}, {os.cpu_count()} cores, {' '.join(features)}"
    return "; ".join([cpu, *gpus(), platform.system()])


def gpus() -> list[str]:
    """Descriptions of the GPUs that llama.cpp can compute on."""
    registry, base = native.library("ggml"), native.library("ggml-base")
    registry.ggml_backend_dev_count.restype = ctypes.c_size_t
    registry.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    registry.ggml_backend_dev_get.restype = ctypes.c_void_p
    base.ggml_backend_dev_type.argtypes = base.ggml_backend_dev_description.argtypes = [ctypes.c_void_p]
    base.ggml_backend_dev_description.restype = ctypes.c_char_p
    devices = [registry.ggml_backend_dev_get(i) for i in range(registry.ggml_backend_dev_count())]
    return [
        base.ggml_backend_dev_description(device).decode("utf-8", "replace")
        for device in devices
        if base.ggml_backend_dev_type(device) in _GPUS
    ]
