"""ggml's devices and the functions that compute on them, none of which llama_cpp declares."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

from pmpd_edge import native
from pmpd_edge.errors import PmpdError

KINDS = ("CPU", "GPU", "IGPU", "ACCEL")  # enum ggml_backend_dev_type


class InitParams(ctypes.Structure):
    """struct ggml_init_params"""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


@cache
def functions() -> SimpleNamespace:
    """ggml's functions with their types, by their names without `ggml_`."""
    registry, base = native.library("ggml"), native.library("ggml-base")
    p, i, i64, size, text = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_size_t, ctypes.c_char_p
    sizes = ctypes.POINTER(size)
    signatures: dict[str, tuple[Any, Any, list[Any]]] = {
        "backend_dev_count": (registry, size, []),
        "backend_dev_get": (registry, p, [size]),
        "backend_dev_name": (base, text, [p]),
        "backend_dev_description": (base, text, [p]),
        "backend_dev_type": (base, i, [p]),
        "backend_dev_memory": (base, None, [p, sizes, sizes]),
        "backend_dev_init": (base, p, [p, text]),
        "backend_dev_buffer_type": (base, p, [p]),
        "backend_dev_backend_reg": (base, p, [p]),
        "backend_dev_supports_op": (base, ctypes.c_bool, [p, p]),
        "backend_reg_name": (base, text, [p]),
        "backend_reg_get_proc_address": (base, p, [p, text]),
        "backend_free": (base, None, [p]),
        "backend_alloc_ctx_tensors_from_buft": (base, p, [p, p]),
        "backend_buffer_set_usage": (base, None, [p, i]),
        "backend_buffer_free": (base, None, [p]),
        "backend_buft_name": (base, text, [p]),
        "backend_tensor_set": (base, None, [p, p, size, size]),
        "backend_tensor_get": (base, None, [p, p, size, size]),
        "backend_graph_compute": (base, i, [p, p]),
        "init": (base, p, [InitParams]),
        "free": (base, None, [p]),
        "tensor_overhead": (base, size, []),
        "graph_overhead_custom": (base, size, [size, ctypes.c_bool]),
        "new_graph_custom": (base, p, [p, size, ctypes.c_bool]),
        "build_forward_expand": (base, None, [p, p]),
        "new_tensor_2d": (base, p, [p, i, i64, i64]),
        "mul_mat": (base, p, [p, p, p]),
        "quantize_chunk": (base, size, [i, p, p, i64, i64, i64, p]),
    }
    found = SimpleNamespace()
    for name, (library, result, arguments) in signatures.items():
        function = getattr(library, f"ggml_{name}")
        function.restype, function.argtypes = result, arguments
        setattr(found, name, function)
    return found


@dataclass(frozen=True)
class Device:
    """A device that ggml can compute on.

    Attributes:
        kind: CPU, GPU, IGPU (shares the CPU's memory) or ACCEL (helps the CPU).
        backend: what drives it: CPU, CUDA, MTL, Vulkan, ...
        free, total: its memory in bytes, as far as it says.
    """

    name: str
    description: str
    kind: str
    backend: str
    free: int
    total: int

    @property
    def is_gpu(self) -> bool:
        return self.kind in ("GPU", "IGPU")


def devices() -> list[Device]:
    """All devices, in ggml's order."""
    return [_describe(pointer) for pointer in _pointers()]


def find_device(name: str) -> Device:
    """The device of this name, in any case; raises PmpdError where there is none."""
    found = devices()
    for device in found:
        if device.name.lower() == name.lower():
            return device
    raise PmpdError(f"no device {name!r}", f"choose one of {', '.join(device.name for device in found)}")


def _pointers() -> list[int]:
    ggml = functions()
    return [ggml.backend_dev_get(at) for at in range(ggml.backend_dev_count())]


def _describe(pointer: int) -> Device:
    ggml = functions()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    ggml.backend_dev_memory(pointer, ctypes.byref(free), ctypes.byref(total))
    kind = ggml.backend_dev_type(pointer)
    return Device(
        name=_text(ggml.backend_dev_name(pointer)),
        description=_text(ggml.backend_dev_description(pointer)),
        kind=KINDS[kind] if kind < len(KINDS) else "other",
        backend=_text(ggml.backend_reg_name(ggml.backend_dev_backend_reg(pointer))),
        free=free.value,
        total=total.value,
    )


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


class Backend:
    """A device opened for computing.

    Args:
        device: one of `devices()`.
        n_threads: for the CPU.

    Raises:
        PmpdError: the device does not open.
    """

    def __init__(self, device: Device, n_threads: int) -> None:
        self._ggml = functions()
        self.device = device
        self.device_pointer = next(
            p for p, found in zip(_pointers(), devices(), strict=True) if found.name == device.name
        )
        with native.captured_log() as log:
            self.pointer = self._ggml.backend_dev_init(self.device_pointer, None)
        if not self.pointer:
            raise PmpdError(f"{device.name} does not open ({log.reason('no reason given')})")
        if set_threads := self._of_registry(b"ggml_backend_set_n_threads"):
            ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int)(set_threads)(self.pointer, n_threads)

    def __enter__(self) -> Backend:
        return self

    def __exit__(self, *_: object) -> None:
        self._ggml.backend_free(self.pointer)

    @property
    def buffer_type(self) -> int:
        """The device's usual kind of buffer."""
        return self._ggml.backend_dev_buffer_type(self.device_pointer)

    def weight_buffer_types(self) -> Iterator[int]:
        """The kinds of buffers that weights may lie in, the best first: the CPU has some that repack them."""
        if extra := self._of_registry(b"ggml_backend_dev_get_extra_bufts"):
            pointers = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(extra)(self.device_pointer)
            at = 0
            while pointers and pointers[at]:
                yield pointers[at]
                at += 1
        yield self.buffer_type

    def _of_registry(self, name: bytes) -> int | None:
        """A function that only some backends have."""
        registry = self._ggml.backend_dev_backend_reg(self.device_pointer)
        return self._ggml.backend_reg_get_proc_address(registry, name)
