"""Matrix-vector products through ggml (pmpd_edge/bench/ggml.py, matvec.py), against numpy and gguf's own types."""

from __future__ import annotations

from collections.abc import Iterator

import gguf
import numpy as np
import pytest

from pmpd_edge import device
from pmpd_edge.bench import ggml, matvec
from pmpd_edge.bench.ggml import Backend
from pmpd_edge.bench.matvec import Matrices
from pmpd_edge.bench.ops import TYPES
from pmpd_edge.errors import PmpdError

SHAPES = [(512, 64), (256, 40), (512, 24)]


@pytest.fixture
def backend() -> Iterator[Backend]:
    with Backend(ggml.find_device("cpu"), 1) as opened:
        yield opened


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("type_name", [*TYPES, "F32"])
def test_each_product_is_that_of_its_matrix(type_name: str, tokens: int, backend: Backend) -> None:
    with Matrices(backend, type_name, SHAPES, tokens) as matrices:
        assert matrices.multiply() > 0
        for index, (columns, rows) in enumerate(SHAPES):
            tile = matvec.quantized_rows(type_name, columns)
            weights = gguf.quants.dequantize(tile, gguf.GGMLQuantizationType[type_name])
            expected = np.resize(weights @ matvec.random_vector(columns), rows)
            found = matrices.product(index)
            assert found.shape == (tokens, rows)
            error = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected)
            assert (error < 0.02).all()  # the vector is quantised too


def test_the_bytes_are_those_of_the_matrices(backend: Backend) -> None:
    with Matrices(backend, "Q4_K", SHAPES) as matrices:
        assert matrices.bytes == (512 * 64 + 256 * 40 + 512 * 24) * 4.5 / 8


def test_a_type_lies_in_the_buffer_that_repacks_it_where_the_cpu_has_one(backend: Backend) -> None:
    names = [ggml.functions().backend_buft_name(kind).decode() for kind in backend.weight_buffer_types()]
    assert names[-1] == "CPU"
    with Matrices(backend, "Q4_0", SHAPES) as matrices:
        # FACTS: AVX2 and ARM repack Q4_0. Without such instructions there is nothing to see.
        can_repack = any(feature in device.describe() for feature in ("avx2", "asimddp"))
        assert matrices.buffer == ("CPU_REPACK" if can_repack else "CPU")
    with Matrices(backend, "F32", SHAPES) as matrices:
        assert matrices.buffer == "CPU"


def test_types_whose_blocks_do_not_divide_the_columns_are_known() -> None:
    assert matvec.fits("Q4_0", 96) and not matvec.fits("Q4_K", 96)


def test_what_does_not_fit_the_memory_is_one_line(backend: Backend) -> None:
    with pytest.raises(PmpdError, match=r"CPU has no room for \d+ MiB of F32"):
        Matrices(backend, "F32", [(1 << 20, 1 << 25)])


def test_devices_are_listed_with_their_memory_and_found_in_any_case() -> None:
    cpu = ggml.find_device("cPu")
    assert cpu in ggml.devices()
    assert (cpu.kind, cpu.backend, cpu.is_gpu) == ("CPU", "CPU", False)
    assert cpu.total > 1 << 28


def test_an_unknown_device_is_answered_with_the_known_ones() -> None:
    with pytest.raises(PmpdError, match=r"no device 'CUDA9': choose one of .*CPU"):
        ggml.find_device("CUDA9")
