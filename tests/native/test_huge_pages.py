"""Whether Linux is asked for huge pages for weights (native/patches): their kernels wait for fewer pages."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pmpd_edge import native

HUGE = 2 << 20
SMAPS = Path("/proc/self/smaps")

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not Path("/sys/kernel/mm/transparent_hugepage").exists(),
    reason="a system that cannot give huge pages on request",
)


@contextmanager
def buffer(size: int) -> Iterator[int]:
    """The address of a CPU buffer."""
    base, pointer = native.library("ggml-base"), ctypes.c_void_p
    base.ggml_backend_cpu_buffer_type.restype = base.ggml_backend_buft_alloc_buffer.restype = pointer
    base.ggml_backend_buffer_get_base.restype = pointer
    base.ggml_backend_buft_alloc_buffer.argtypes = [pointer, ctypes.c_size_t]
    base.ggml_backend_buffer_get_base.argtypes = base.ggml_backend_buffer_free.argtypes = [pointer]
    base.ggml_backend_buffer_free.restype = None
    owner = base.ggml_backend_buft_alloc_buffer(base.ggml_backend_cpu_buffer_type(), size)
    try:
        yield base.ggml_backend_buffer_get_base(owner)
    finally:
        base.ggml_backend_buffer_free(owner)


def is_advised(address: int) -> bool:
    """Whether the program asked for huge pages where an address lies: the flag hg of its mapping."""
    inside = False
    for line in SMAPS.read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            start, end = (int(number, 16) for number in first.split("-"))
            inside = start <= address < end
        elif inside and first == "VmFlags:":
            return "hg" in rest
    raise AssertionError(f"{address:x} is not mapped")


def test_large_buffers_ask_for_huge_pages_from_end_to_end() -> None:
    size = 32 * HUGE
    with buffer(size) as start:
        assert start % HUGE == 0
        assert is_advised(start)
        assert is_advised(start + size - 1)
