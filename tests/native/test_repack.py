"""Products of matrices that our patches repack for the CPU (native/patches), against the same bytes in a plain buffer.

Both quantise the activations in the same way and sum integers, so that they differ by the order of floats alone. On a
CPU whose instructions repack none of the types there is nothing to compare.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from operators import F32, I32, Floats, Inputs, compute, error

from pmpd_edge import bundle, device, gguf_info, native
from pmpd_edge.bench import ggml
from pmpd_edge.bench.ggml import Backend, InitParams
from pmpd_edge.bench.matvec import row_bytes

SCALES = {  # where a block has float16 scales
    "Q8_0": (0,),
    "Q6_K": (208,),
    "Q5_K": (0, 2),
    "Q5_0": (0,),
    "Q4_K": (0, 2),
    "Q4_0": (0,),
    "Q3_K": (108,),
    "Q2_K": (80, 82),
    "Q1_0": (0,),
}
SUB_SCALES = {  # and those of its sub-blocks
    "Q6_K": slice(192, 208),
    "Q5_K": slice(4, 16),
    "Q4_K": slice(4, 16),
    "Q3_K": slice(96, 108),
    "Q2_K": slice(16),
}
REPACKED = "CPU_REPACK"
ROUNDING = 3e-6  # relative: sums of floats in another order
SHAPES = [(256, 8), (512, 24), (2048, 16), (2304, 264), (2304, 288)]  # columns, rows: of 8, 16 and 32 at once

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Case:
    """A matrix in a type and what it is multiplied with: `[rows, bytes of a row]` and `[batch, columns]`."""

    type_name: str
    matrix: Bytes
    x: Floats


def quantized(type_name: str, columns: int, rows: int, seed: int) -> Bytes:
    """Weights as random models have them."""
    return quantize(type_name, np.random.default_rng(seed).standard_normal((rows, columns), dtype=np.float32))


def quantize(type_name: str, values: Floats) -> Bytes:
    (rows, columns), values = values.shape, np.ascontiguousarray(values)
    out = np.empty((rows, row_bytes(type_name, columns)), np.uint8)
    number = gguf_info.TYPES[type_name][0]
    ggml.functions().quantize_chunk(number, values.ctypes.data, out.ctypes.data, 0, rows, columns, None)
    return out


def random_bits(type_name: str, columns: int, rows: int, seed: int) -> Bytes:
    """All codes and sub-block scales that the type has, which quantised weights do not reach."""
    rng = np.random.default_rng(seed)
    _, elements, n_bytes = gguf_info.TYPES[type_name]
    blocks = rng.integers(0, 256, (rows * columns // elements, n_bytes), np.uint8)
    for at in SCALES[type_name]:
        scales = rng.uniform(-0.1, 0.1, len(blocks)).astype(np.float16)
        blocks[:, at : at + 2] = scales.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(rows, -1)


def normal(columns: int, batch: int) -> Floats:
    return np.random.default_rng(7).standard_normal((batch, columns), dtype=np.float32)


def extreme(columns: int, batch: int) -> Floats:
    """Activations that are all quantised to 127 or -127, in runs: the largest sums that there are."""
    signs = np.repeat(np.random.default_rng(8).choice([-1, 1], (batch, columns // 16)), 16, axis=1)
    return signs.astype(np.float32)


def product(case: Case, buffer: str, n_threads: int = 1) -> Floats:
    """x @ matrix.T of the matrix in a kind of buffer, `[batch, rows]`."""
    functions, (batch, columns), rows = ggml.functions(), case.x.shape, len(case.matrix)

    def build(weights: int, rest: int) -> tuple[int, Inputs]:
        matrix = functions.new_tensor_2d(weights, gguf_info.TYPES[case.type_name][0], columns, rows)
        x = functions.new_tensor_2d(rest, F32, columns, batch)
        return functions.mul_mat(rest, matrix, x), [(matrix, case.matrix), (x, case.x)]

    return compute(build, buffer, n_threads, (batch, rows))


def can_repack(type_name: str, columns: int, rows: int) -> bool:
    """Whether the CPU would multiply such a matrix in a repacked buffer, as llama.cpp asks it."""
    functions = ggml.functions()
    with Backend(ggml.find_device("cpu"), 1) as backend:
        kinds = {functions.backend_buft_name(kind).decode(): kind for kind in backend.weight_buffer_types()}
        if REPACKED not in kinds:
            return False
        context = functions.init(InitParams(1 << 20, None, True))
        matrix = functions.new_tensor_2d(context, gguf_info.TYPES[type_name][0], columns, rows)
        buffer = functions.backend_alloc_ctx_tensors_from_buft(context, kinds[REPACKED])
        out = functions.mul_mat(context, matrix, functions.new_tensor_2d(context, F32, columns, 1))
        answer = functions.backend_dev_supports_op(backend.device_pointer, out)
        functions.backend_buffer_free(buffer)
        functions.free(context)
        return answer


def has(instructions: str) -> bool:
    """Whether the library was compiled for instructions, as it calls them, and computes with them here."""
    return f" {instructions} = 1 " in native.load().llama_print_system_info().decode()


@pytest.fixture(params=SCALES)
def type_name(request: pytest.FixtureRequest) -> str:
    """Each type that this CPU repacks."""
    if not can_repack(request.param, 512, 32):
        pytest.skip(f"this CPU does not repack {request.param}: {device.describe()}")
    return request.param


@pytest.mark.parametrize("name", SCALES)
def test_a_cpu_with_avx2_repacks_all_these_types(name: str) -> None:
    if not has("AVX2"):
        pytest.skip(f"without AVX2: {device.describe()}")
    assert can_repack(name, 512, 8)


def test_rows_that_the_interleave_does_not_divide_stay_as_they_are(type_name: str) -> None:
    assert not can_repack(type_name, 512, 10)
    assert not can_repack(type_name, 512, 1)


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 8, 32])
@pytest.mark.parametrize("columns, rows", SHAPES)
def test_repacked_gives_the_numbers_of_the_plain_matrix(type_name: str, columns: int, rows: int, batch: int) -> None:
    case = Case(type_name, quantized(type_name, columns, rows, seed=batch), normal(columns, batch))
    assert error(product(case, REPACKED), product(case, "CPU")) < ROUNDING


@pytest.mark.parametrize("batch", [1, 3, 4])
@pytest.mark.parametrize("blocks", [1, 3, 28, 129, 513, 1100])
def test_any_number_of_blocks_goes(type_name: str, blocks: int, batch: int) -> None:
    """Also more than what a kernel prepares of the activations at once."""
    columns = blocks * gguf_info.TYPES[type_name][1]
    case = Case(type_name, quantized(type_name, columns, 32, seed=batch), normal(columns, batch))
    assert error(product(case, REPACKED), product(case, "CPU")) < ROUNDING


@pytest.mark.parametrize("rows", [264, 288])
def test_a_rows_numbers_do_not_depend_on_the_batch(type_name: str, rows: int) -> None:
    """Lossless decoding verifies rows together that decoding evaluates one by one."""
    if not has("AVX2") and type_name not in ("Q3_K", "Q2_K"):
        pytest.skip(f"upstream's kernels for {type_name} may sum the rows of larger batches in another order")
    matrix, x = quantized(type_name, 2304, rows, seed=1), normal(2304, 32)
    expected = np.concatenate([product(Case(type_name, matrix, row), REPACKED) for row in np.split(x, 32)])
    for batch in (*range(2, 10), 32):
        assert np.array_equal(product(Case(type_name, matrix, x[:batch]), REPACKED), expected[:batch]), batch


@pytest.mark.parametrize("batch", [1, 3, 4])
@pytest.mark.parametrize("activations", [normal, extreme])
def test_no_codes_scales_or_activations_overflow(
    type_name: str, activations: Callable[[int, int], Floats], batch: int
) -> None:
    for seed in range(4):
        case = Case(type_name, random_bits(type_name, 1024, 64, seed), activations(1024, batch))
        assert error(product(case, REPACKED), product(case, "CPU")) < ROUNDING


@pytest.mark.parametrize("codes, sub_scales", [(0x00, 0x00), (0xFF, 0xFF), (0xFF, 0x00), (0x7F, 0xFF), (0x80, 0xFF)])
def test_the_largest_codes_and_scales_do_not_overflow(type_name: str, codes: int, sub_scales: int) -> None:
    """Q3_K's scale of -32 is stored as zeros: with the largest code it makes the largest sum. Q8_0's code of -128 is
    one that quantising does not give."""
    matrix = random_bits(type_name, 512, 32, seed=0)
    n_bytes = gguf_info.TYPES[type_name][2]
    blocks = matrix.reshape(-1, n_bytes)
    kept = [byte for at in SCALES[type_name] for byte in (at, at + 1)]
    blocks[:, [byte for byte in range(n_bytes) if byte not in kept]] = codes
    blocks[:, SUB_SCALES.get(type_name, slice(0))] = sub_scales
    for batch in (1, 3, 4):
        case = Case(type_name, matrix, np.ones((batch, 512), np.float32))
        assert error(product(case, REPACKED), product(case, "CPU")) < ROUNDING


@pytest.mark.parametrize("n_threads", [2, 3, 8])
@pytest.mark.parametrize("batch", [1, 6])
def test_any_number_of_threads_gives_the_same_numbers(type_name: str, batch: int, n_threads: int) -> None:
    for rows in (16, 32, 272, 288):
        case = Case(type_name, quantized(type_name, 512, rows, seed=3), normal(512, batch))
        assert np.array_equal(product(case, REPACKED, n_threads), product(case, REPACKED))


@pytest.mark.parametrize("name", ["blk.0.attn_q.weight", "blk.2.ffn_down.weight"])
def test_the_error_on_a_models_weights_is_that_of_the_plain_matrix(type_name: str, name: str) -> None:
    matrix = quantize(type_name, model_matrix(name))
    weights = dequantized(type_name, matrix)
    for batch in (1, 4):
        x = normal(weights.shape[1], batch)
        exact = x @ weights.T
        errors = [error(product(Case(type_name, matrix, x), buffer), exact) for buffer in (REPACKED, "CPU")]
        assert 1e-4 < errors[1] < 2e-2  # the activations are quantised to 8 bits
        assert errors[0] == pytest.approx(errors[1], rel=1e-3)


def model_matrix(name: str) -> Floats:
    """A matrix of the default model's highest level, `[rows, columns]`."""
    default = bundle.load(bundle.default_bundle())
    tensors = gguf.GGUFReader(default.paths(default.levels[0])[0]).tensors
    tensor = next(tensor for tensor in tensors if tensor.name == name)
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type)


def dequantized(type_name: str, matrix: Bytes) -> Floats:
    if type_name != "Q1_0":
        return gguf.quants.dequantize(matrix, gguf.GGMLQuantizationType[type_name])
    blocks = matrix.reshape(-1, 18)
    signs = 2.0 * np.unpackbits(blocks[:, 2:], axis=1, bitorder="little") - 1
    return (signs * blocks[:, :2].copy().view(np.float16)).astype(np.float32).reshape(len(matrix), -1)


@pytest.mark.parametrize("n_threads", [1, 3, 8])
def test_experts_are_repacked_one_by_one(type_name: str, n_threads: int) -> None:
    columns, rows, experts, tokens = 512, 32, 3, 5
    matrices = [quantized(type_name, columns, rows, seed) for seed in range(experts)]
    x, chosen = normal(columns, tokens), np.array([2, 0, 1, 2, 2], np.int32)
    result = expert_products(type_name, np.stack(matrices), x, chosen, n_threads)
    for token, expert in enumerate(chosen):
        expected = product(Case(type_name, matrices[expert], x[token : token + 1]), "CPU")[0]
        assert error(result[token], expected) < ROUNDING


def expert_products(
    type_name: str, matrices: Bytes, x: Floats, chosen: npt.NDArray[np.int32], n_threads: int
) -> Floats:
    """The product of each row of x with the expert that is chosen for it, repacked, `[tokens, rows]`."""
    functions, base = ggml.functions(), native.library("ggml-base")
    pointer, i64 = ctypes.c_void_p, ctypes.c_int64
    base.ggml_new_tensor_3d.restype = base.ggml_mul_mat_id.restype = pointer
    base.ggml_new_tensor_3d.argtypes = [pointer, ctypes.c_int, i64, i64, i64]
    base.ggml_mul_mat_id.argtypes = [pointer] * 4
    (experts, rows, _), (tokens, columns) = matrices.shape, x.shape

    def build(weights: int, rest: int) -> tuple[int, Inputs]:
        stack = base.ggml_new_tensor_3d(weights, gguf_info.TYPES[type_name][0], columns, rows, experts)
        inputs = base.ggml_new_tensor_3d(rest, F32, columns, 1, tokens)
        ids = functions.new_tensor_2d(rest, I32, 1, tokens)
        out = base.ggml_mul_mat_id(rest, stack, inputs, ids)
        return out, [(stack, matrices), (inputs, x), (ids, chosen)]

    return compute(build, REPACKED, n_threads, (tokens, rows))
