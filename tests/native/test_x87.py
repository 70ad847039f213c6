"""The x87 registers, which AMD's Zen keeps in the file of physical vector registers once they were written.

Importing NumPy writes them. Until they are discarded, every kernel of the process is slower, so ggml's threads do that
(native/patches).
"""

from __future__ import annotations

import ctypes
import ctypes.util
import mmap
import platform
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pmpd_edge import native
from pmpd_edge.bench import ggml, matvec

CPU_INFO = Path("/proc/cpuinfo")
AVX = b" AVX = 1 "  # that ggml was compiled for it
XGETBV_1 = bytes.fromhex("b901000000 0f01d0 c3")  # mov ecx, 1; xgetbv; ret: which state is not the initial one
X87 = 1
FE_TONEAREST, FE_UPWARD = 0, 0x800


def is_supported() -> bool:
    if platform.machine() != "x86_64" or not CPU_INFO.is_file():
        return False
    return "xgetbv1" in CPU_INFO.read_text().split() and AVX in native.load().llama_print_system_info()


pytestmark = pytest.mark.skipif(not is_supported(), reason="needs Linux, and a CPU that tells which state is in use")


@pytest.fixture
def state() -> Iterator[ctypes._CFunctionType]:  # type: ignore[name-defined]
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except PermissionError:
        pytest.skip("this system forbids memory that is written and executed")
    with page:
        page.write(XGETBV_1)
        first = ctypes.c_char.from_buffer(page)
        yield ctypes.CFUNCTYPE(ctypes.c_uint32)(ctypes.addressof(first))
        del first


def multiply() -> None:
    with (
        ggml.Backend(ggml.find_device("cpu"), 1) as backend,
        matvec.Matrices(backend, "Q8_0", [(32, 4)]) as matrices,
    ):
        matrices.multiply()


def write_x87() -> None:
    assert np.longdouble(1) / np.longdouble(3) != np.longdouble(1 / 3)


def test_computing_discards_the_registers(state):
    left = []
    for _ in range(3):  # the kernel writes them where it returns from a signal
        write_x87()
        assert state() & X87
        multiply()
        left.append(state() & X87)
    assert not all(left)


def test_a_control_word_of_the_program_stays():
    libm = ctypes.CDLL(ctypes.util.find_library("m"))
    try:
        assert libm.fesetround(FE_UPWARD) == 0
        write_x87()
        multiply()
        assert libm.fegetround() == FE_UPWARD
    finally:
        libm.fesetround(FE_TONEAREST)
