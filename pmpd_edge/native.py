"""Finds the patched llama.cpp library, makes llama_cpp use it, and declares the functions that our patches add.

Importing this module is cheap; `load()` must run before anything imports llama_cpp, because llama_cpp binds its library
when it is first imported.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from pmpd_edge.errors import NativeError

LIB_PATH = "LLAMA_CPP_LIB_PATH"
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


@cache
def load() -> ModuleType:
    """Import llama_cpp bound to the patched library, and return it.

    `LLAMA_CPP_LIB_PATH`, where it is set, names the library's directory instead of the installed one.

    Raises:
        NativeError: the library is missing or is not the patched one, or llama_cpp was imported before with its own.
    """
    imported_before = "llama_cpp" in sys.modules
    if not imported_before and LIB_PATH not in os.environ:
        os.environ[LIB_PATH] = str(installed_dir("lib"))
    try:
        import llama_cpp
    except (RuntimeError, OSError) as error:  # llama_cpp's own words for a library that is missing or does not load
        raise NativeError(f"{os.environ[LIB_PATH]}: no llama.cpp library to load ({error})", REINSTALL) from None

    library = llama_cpp.llama_cpp._lib
    if not hasattr(library, "llama_set_weights"):
        if imported_before:
            raise NativeError(
                "llama_cpp was imported before pmpd_edge and uses a stock library, which cannot switch weights",
                "import pmpd_edge.Pmpd first",
            )
        raise NativeError(
            f"{library._name}: a stock llama.cpp library, which cannot switch weights",
            f"unset {LIB_PATH}, or point it at the patched one",
        )
    library.llama_set_weights.argtypes = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t]
    library.llama_set_weights.restype = ctypes.c_int32
    _install_log(llama_cpp)
    return llama_cpp


_WARNING, _ERROR, _CONTINUED = 3, 4, 5  # enum ggml_log_level
_collectors: list[list[str]] = []


def _install_log(llama_cpp: ModuleType) -> None:
    """Print errors only, or everything after llama_cpp's `set_verbose`, or give the lines to `captured_log`."""
    from llama_cpp import _logger

    last = 0

    @llama_cpp.llama_log_callback
    def log(level: int, text: bytes, _: Any) -> None:
        nonlocal last
        last = last if level == _CONTINUED else level
        if _collectors:
            if last in (_WARNING, _ERROR):
                _collectors[-1].extend(text.decode("utf-8", "replace").strip().splitlines())
        elif last == _ERROR or _logger.logger.level == logging.DEBUG:
            print(text.decode("utf-8", "replace"), end="", flush=True, file=sys.stderr)

    llama_cpp.llama_log_set(log, None)
    _logger.llama_log_callback = log  # keeps it alive


@contextmanager
def captured_log() -> Iterator[list[str]]:
    """Collect the warnings and errors that the library logs, instead of printing them."""
    lines: list[str] = []
    _collectors.append(lines)
    try:
        yield lines
    finally:
        _collectors.remove(lines)


def set_weights(ctx: Any, models: Sequence[Any]) -> None:
    """Evaluate what follows on `ctx` with the summed weights of `models`; its KV cache stays.

    Args:
        ctx: a `llama_context *`.
        models: `llama_model *`: a base, then its residuals. They must be freed after `ctx`.

    Raises:
        NativeError: a model does not match the context's, or its architecture does not sum all of its matrices; the
            context works on as before.
    """
    library = load().llama_cpp._lib
    pointers = (ctypes.c_void_p * len(models))(*models)
    with captured_log() as lines:
        result = library.llama_set_weights(ctx, pointers, len(models))
    if result < 0:
        reason = lines[-1].split(": ", 1)[-1] if lines else f"llama_set_weights returned {result}"
        raise NativeError(f"the weights cannot be switched: {reason}", "use levels that were converted together")
    if result > 0:
        names = ", ".join(line.split(": ", 1)[-1].removesuffix(" is not summed") for line in lines[:3])
        raise NativeError(
            f"this architecture does not sum all matrices ({result}, among them {names})",
            "convert with --layout separate",
        )
