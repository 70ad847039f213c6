"""Finds the patched llama.cpp library, makes llama_cpp use it, and declares the functions that our patches add.

Importing this module is cheap; `load()` must run before anything imports llama_cpp, because llama_cpp binds its library
when it is first imported.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pmpd_edge.errors import NativeError
from pmpd_edge.interrupts import kept_interrupts

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

LIB_PATH = "LLAMA_CPP_LIB_PATH"
_NOT_SUMMED = -3  # of llama_set_weights
_NO_KV = -2  # of llama_get_kv_seq
REINSTALL = "install pmpd-edge again: pip install --no-cache-dir -r requirements.txt -c constraints.txt ."


def installed_dir(name: str) -> Path:
    """A directory that the build installed inside the package, `lib` or `_upstream`.

    Found through the distribution's metadata: in an editable install it does not lie beside this file.
    """
    try:
        distribution = metadata.distribution("pmpd-edge")
    except metadata.PackageNotFoundError:
        raise NativeError("pmpd-edge is not installed, only its sources are on the path", REINSTALL) from None
    path = Path(str(distribution.locate_file(f"pmpd_edge/{name}")))
    if not path.is_dir():
        raise NativeError(f"{path}: missing", REINSTALL)
    return path


def upstream_dir() -> Path:
    """The private directory of upstream's converter (`convert_hf_to_gguf.py`, `conversion`, `gguf`)."""
    return installed_dir("_upstream")


def program(name: str) -> Path:
    """A program of upstream's that was built with the library and lies beside it.

    Raises:
        NativeError: it is not there.
    """
    directory = Path(os.environ[LIB_PATH]) if LIB_PATH in os.environ else installed_dir("lib")
    path = directory / (f"{name}.exe" if sys.platform == "win32" else name)
    if not path.is_file():
        raise NativeError(f"{path}: missing", REINSTALL)
    return path


def library(name: str) -> Any:
    """A library that lies beside llama.cpp's: `pmpd`, `ggml`, `ggml-base`.

    Raises:
        NativeError: it is not there.
    """
    load()  # sets the path
    from llama_cpp._ctypes_extensions import load_shared_library

    directory = Path(os.environ[LIB_PATH])
    try:
        return load_shared_library(name, directory)
    except (FileNotFoundError, RuntimeError) as error:
        raise NativeError(f"{directory}: no library {name} to load ({error})", REINSTALL) from None


_imported_here = False


@cache
def load() -> ModuleType:
    """Import llama_cpp bound to the patched library, and return it.

    `LLAMA_CPP_LIB_PATH`, where it is set, names the library's directory instead of the installed one.

    Raises:
        NativeError: the library is missing or is not the patched one, or llama_cpp was imported before with its own.
    """
    global _imported_here
    imported_before = "llama_cpp" in sys.modules and not _imported_here
    if not imported_before and LIB_PATH not in os.environ:
        os.environ[LIB_PATH] = str(installed_dir("lib"))
    _imported_here = not imported_before
    try:
        import llama_cpp
    except (RuntimeError, OSError) as error:  # llama_cpp's own words for a library that is missing or does not load
        raise NativeError(f"{os.environ[LIB_PATH]}: no llama.cpp library to load ({error})", REINSTALL) from None

    library = llama_cpp.llama_cpp._lib
    if not hasattr(library, "llama_set_weights"):
        if imported_before:
            raise NativeError(
                "llama_cpp was imported before pmpd_edge and uses a stock library, which cannot switch weights",
                "write 'from pmpd_edge import Pmpd' before anything that imports llama_cpp",
            )
        raise NativeError(
            f"{library._name}: a stock llama.cpp library, which cannot switch weights",
            f"unset {LIB_PATH}, or point it at the patched one",
        )
    if not hasattr(library, "llama_get_kv_seq"):
        raise NativeError(f"{library._name}: built without the patch that adds llama_get_kv_seq", REINSTALL)
    _declare(library)
    _install_log(llama_cpp)
    return llama_cpp


class _KvShape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int32) for name in ("n_head_kv", "n_embd_head_k", "n_embd_head_v")]


def _declare(library: Any) -> None:
    """Give the added functions their types."""
    pointer, int32 = ctypes.c_void_p, ctypes.c_int32
    library.llama_set_weights.argtypes = [pointer, ctypes.POINTER(pointer), ctypes.c_size_t]
    library.llama_set_weights.restype = int32
    floats, shape = ctypes.POINTER(ctypes.c_float), ctypes.POINTER(_KvShape)
    library.llama_get_kv_seq.argtypes = [pointer, int32, int32, floats, floats, int32, shape]
    library.llama_get_kv_seq.restype = int32


_WARNING, _ERROR, _CONTINUED = 3, 4, 5  # enum ggml_log_level


class Log(list[str]):
    """Warnings and errors that the library logged, without the names of its functions."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[str] = []

    def add(self, text: str, is_error: bool) -> None:
        """Keep the lines of a message."""
        lines = [line.split(": ", 1)[-1] for line in text.strip().splitlines()]
        self.extend(lines)
        if is_error:
            self.errors.extend(lines)

    def reason(self, otherwise: object) -> str:
        """What went wrong: the first error (those after it follow from it), else the first warning."""
        return next(iter([*self.errors, *self]), str(otherwise))


class _Collectors(threading.local):
    """The logs that this thread collects at present, the innermost last."""

    def __init__(self) -> None:
        self.logs: list[Log] = []


_collectors = _Collectors()


def _install_log(llama_cpp: ModuleType) -> None:
    """Give warnings and errors to `captured_log`, or print errors; print everything after llama_cpp's `set_verbose`."""
    from llama_cpp import _logger

    last = 0

    @llama_cpp.llama_log_callback
    def log(level: int, text: bytes, _: Any) -> None:
        nonlocal last
        last = last if level == _CONTINUED else level
        line = text.decode("utf-8", "replace")
        if _collectors.logs and last in (_WARNING, _ERROR):
            _collectors.logs[-1].add(line, last == _ERROR)
        if _logger.logger.level == logging.DEBUG or (last == _ERROR and not _collectors.logs):
            print(line, end="", flush=True, file=sys.stderr)

    llama_cpp.llama_log_set(log, None)
    _logger.llama_log_callback = log  # keeps it alive


@contextmanager
def loading_log() -> Iterator[Log]:
    """`captured_log` while models are loaded, which logs much: Ctrl-C, likely to be heard in the log's callback, is
    raised at the end."""
    with kept_interrupts(), captured_log() as log:
        yield log


@contextmanager
def captured_log() -> Iterator[Log]:
    """Collect the warnings and errors that the library logs in this thread, instead of printing them."""
    log = Log()
    _collectors.logs.append(log)
    try:
        yield log
    finally:
        _collectors.logs.pop()


def set_weights(ctx: Any, models: Sequence[Any]) -> None:
    """Evaluate what follows on `ctx` with the summed weights of `models`; its KV cache stays.

    Args:
        ctx: a `llama_context *`.
        models: `llama_model *`: a base, then its residuals. They must be freed after `ctx`.

    Raises:
        NativeError: a model does not match the context's, or its architecture does not sum all matrices; the context
            keeps its weights.
    """
    pointers = (ctypes.c_void_p * len(models))(*models)
    with captured_log() as log:
        result = load().llama_cpp._lib.llama_set_weights(ctx, pointers, len(models))
    if result == 0:
        return
    reason = log.reason(f"llama_set_weights returned {result}")
    if result == _NOT_SUMMED:
        raise NativeError(f"this architecture cannot be summed ({reason})", "convert with --layout separate")
    if "device" in reason:
        raise NativeError(f"the weights cannot be switched: {reason}", "place all levels alike with tensor_split")
    raise NativeError(f"the weights cannot be switched: {reason}", "use levels that were converted together")


def keys_values(ctx: Any, seq: int, layer: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Copy K and V of one layer from the KV cache, for all tokens of a sequence in the order of their positions.

    Args:
        ctx: a `llama_context *`.
        seq: the sequence.
        layer: its index; a negative one counts from the end.

    Returns:
        K (after RoPE) and V, each `[n_tokens, n_head_kv, head_dim]`, as they were computed up to the rounding of the
        cache's type. Layers with a sliding window have only the tokens that are still in the cache, the last ones.

    Raises:
        NativeError: the layer does not exist or has no K and V (recurrent layers, multi-head latent attention).
    """
    import numpy as np  # here, as importing this module is cheap

    llama_cpp = load()
    library = llama_cpp.llama_cpp._lib
    index = layer if layer >= 0 else layer + llama_cpp.llama_model_n_layer(llama_cpp.llama_get_model(ctx))
    shape = _KvShape()
    with captured_log() as log:
        n_tokens = library.llama_get_kv_seq(ctx, seq, index, None, None, 0, ctypes.byref(shape))
        n_rows, n_heads = max(n_tokens, 0), shape.n_head_kv
        keys = np.empty((n_rows, n_heads, shape.n_embd_head_k), dtype=np.float32)
        values = np.empty((n_rows, n_heads, shape.n_embd_head_v), dtype=np.float32)
        if n_tokens > 0:
            pointers = [array.ctypes.data_as(ctypes.POINTER(ctypes.c_float)) for array in (keys, values)]
            n_tokens = library.llama_get_kv_seq(ctx, seq, index, *pointers, n_rows, None)
    if n_tokens < 0:
        hint = "name a layer with attention; not every architecture has one" if n_tokens == _NO_KV else ""
        raise NativeError(f"no keys and values: {log.reason(f'llama_get_kv_seq returned {n_tokens}')}", hint)
    return keys, values
