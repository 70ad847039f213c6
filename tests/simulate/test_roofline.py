"""The roofline of one evaluation: its limits in closed form, and what must never happen whatever the figures."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated import BITS, LAST, MATRICES, OUTPUT, SHAPE, TYPES, VECTORS, make_device

from pmpd_edge.simulate.device import Device, Kernel
from pmpd_edge.simulate.model import Level, Model, Product
from pmpd_edge.simulate.roofline import COMPUTE, MEMORY, OVERHEAD, Cost, Roofline
from pmpd_edge.simulate.shapes import of_shape

rates = st.floats(1e6, 1e15)
contexts = st.integers(0, 2000)


def evaluate(device: Device, precision: int = 16, before: int = 0, tokens: int = 1) -> Cost:
    return Roofline(of_shape("m", SHAPE, device), device).evaluate(precision, before, tokens)


def kv_bytes(tokens: int) -> float:
    return 3 * 2 * 2 * 64 * tokens * 2


@pytest.mark.parametrize("precision", TYPES)
def test_bound_by_memory_a_step_takes_its_bytes_over_the_bandwidth(precision):
    cost = evaluate(make_device(), precision, before=99)
    weights = (MATRICES + OUTPUT) * BITS[precision] / 8 + 4 * VECTORS
    assert cost.bytes == pytest.approx(weights + kv_bytes(100) + kv_bytes(1))
    assert cost.seconds == pytest.approx(cost.bytes / 1e9)
    assert cost.bound == MEMORY


def test_bound_by_arithmetic_a_step_takes_its_operations_over_the_peak():
    cost = evaluate(make_device(bandwidth=1e30, attention=2e9, kernels={"other": Kernel(1e9)}), before=99)
    attention = 3 * 4 * 4 * 64 * 100
    assert cost.operations == 2 * (MATRICES + OUTPUT) + attention
    assert cost.seconds == pytest.approx(2 * (MATRICES + OUTPUT) / 1e9 + attention / 2e9)
    assert cost.bound == COMPUTE


def test_what_is_not_hidden_of_the_shorter_one_adds_to_the_longer_one():
    kernels = {"other": Kernel(5e9)}
    hidden = evaluate(make_device(kernels=kernels), 8)
    half, none = (evaluate(make_device(kernels=kernels, overlap=share), 8) for share in (0.5, 1e-12))
    assert hidden.memory > 0 < hidden.compute
    assert none.seconds == pytest.approx(none.memory + none.compute)
    assert half.seconds == pytest.approx((hidden.seconds + none.seconds) / 2)


def test_dequantisation_adds_to_the_arithmetic():
    cost = evaluate(make_device(bandwidth=1e30, kernels={"other": Kernel(1e9, weights=5e8)}))
    assert cost.compute == pytest.approx((MATRICES + OUTPUT) * (2 / 1e9 + 1 / 5e8))


def test_prefill_dequantises_once_a_block():
    kernels = {"other": Kernel(1e30, weights=1e9)}
    together, blocks = (make_device(bandwidth=1e30, buffer=n, kernels=kernels) for n in (1e9, 1.0))
    assert evaluate(together, tokens=10).compute == pytest.approx((MATRICES + OUTPUT) / 1e9)
    assert evaluate(blocks, tokens=10).compute == pytest.approx((10 * (MATRICES - LAST) + LAST + OUTPUT) / 1e9)


def test_of_a_mixture_a_token_needs_few_experts_and_a_prompt_all():
    product = Product("blk.0.ffn_up_exps.weight", "F16", 512, 256, 8 * 512 * 256, 2.0 * 8 * 512 * 256, used=0.25)
    level = Level(16, "F16", (product,), 0.0, {"m": product.bytes})
    model = Model("m", product.elements, product.elements / 4, 1, 4, 64, 256, 4096, (level,))
    roofline = Roofline(model, make_device(buffer=1e5))
    assert level.weight_bytes == product.bytes / 4
    kv = 256 * 2
    moved = [roofline.evaluate(16, 0, tokens).bytes - 2 * tokens * kv for tokens in (1, 2, 4, 20)]
    assert moved == [product.bytes / 4, product.bytes / 2, product.bytes, product.bytes]
    pairs = Roofline(model, make_device(buffer=2 * (512 + 256) * 2.0)).evaluate(16, 0, 20)
    assert pairs.bytes - 2 * 20 * kv == 10 * product.bytes / 2, "two tokens at a time need half of the experts"
    attention = 4 * 4 * 64 * 20 * 21 / 2
    assert roofline.evaluate(16, 0, 20).operations - attention == 20 * 2 * product.elements / 4


def test_the_longer_of_the_two_counts_for_each_operator_not_for_the_whole():
    kernels = {"Q8_0": Kernel(1e30), "other": Kernel(1e8)}
    cost = evaluate(make_device(output_type="Q8_0", kernels=kernels), 4)
    output, rest = OUTPUT * 8.5 / 8 / 1e9, 2 * MATRICES / 1e8
    others = (4 * VECTORS + kv_bytes(1) + kv_bytes(1)) / 1e9
    assert cost.seconds == pytest.approx(output + rest + others)
    assert cost.seconds > max(cost.memory, cost.compute)


def test_overhead_is_of_every_operator_and_of_the_step():
    device = make_device(bandwidth=1e30, operator_seconds=1e-3, step_seconds=0.5)
    cost = evaluate(device)
    assert cost.overhead == pytest.approx(0.5 + 1e-3 * (3 * (7 + 1) + 1))
    assert cost.seconds == pytest.approx(cost.overhead)
    assert cost.bound == OVERHEAD


def test_prefill_reads_the_weights_once_where_its_activations_fit_and_once_a_block_where_not():
    fitting = (256 + 1000) * 2 * 10
    room, blocks = make_device(buffer=float(fitting)), make_device(buffer=(256 + 512) * 2 * 4.0)
    weights = (MATRICES + OUTPUT) * 2 + 4 * VECTORS
    assert evaluate(room, tokens=10).bytes == pytest.approx(weights + 2 * kv_bytes(10))
    # Matrices of the feed-forward layer go in three blocks, smaller ones in fewer, and the output is of one token.
    narrow, square, wide = 3 * 2 * 128 * 256, 3 * 2 * 256 * 256, 2 * 3 * 512 * 256
    per_block = {narrow: 8, square: 6, wide: 4}
    expected = sum(2 * elements * math.ceil(10 / block) for elements, block in per_block.items())
    once = 2 * (LAST + OUTPUT) + 4 * VECTORS
    assert evaluate(blocks, tokens=10).bytes == pytest.approx(expected + once + 2 * kv_bytes(10))


def test_prefill_computes_of_the_last_token_only_what_just_the_logits_depend_on():
    one, ten = (evaluate(make_device(), tokens=n).operations for n in (1, 10))
    attention = [3 * 4 * 4 * 64 * n * (n + 1) / 2 for n in (1, 10)]
    assert one - attention[0] == 2 * (MATRICES + OUTPUT)
    assert ten - attention[1] == 2 * (10 * (MATRICES - LAST) + LAST + OUTPUT)


def test_the_attention_of_a_prompt_is_that_of_its_tokens_one_by_one():
    device = make_device(bandwidth=1e30, kernels={"other": Kernel(1e30)}, attention=1e9)
    together = evaluate(device, tokens=20).compute
    assert together == pytest.approx(sum(evaluate(device, before=i).compute for i in range(20)), rel=1e-6)


def test_what_fits_on_the_chip_is_not_moved():
    weights = evaluate(make_device(), 4).bytes - kv_bytes(1)
    assert evaluate(make_device(buffer=weights), 4).bytes == 0
    assert evaluate(make_device(buffer=weights - 1), 4).bytes > 0
    assert evaluate(make_device(buffer=weights), 4, before=1).bytes > 0, "the cache has grown"
    kernels = {"4-bit": Kernel(1e30, bits=4.5, centroids=16)}
    assert evaluate(make_device(buffer=weights, types={4: "4-bit"}, kernels=kernels), 4).bytes > 0, "nor do tables fit"


def test_what_is_moved_comes_in_whole_grains():
    cost = evaluate(make_device(granularity=4096.0, kv_bits=8), 2, before=9)
    of_kv = 3 * (math.ceil(10 * 256 / 4096) + math.ceil(256 / 4096)) * 4096
    matrices = [(256, 256), (128, 256), (128, 256), (256, 256), (512, 256), (512, 256), (256, 512)]
    of_weights = sum(math.ceil(rows * columns * 2.625 / 8 / 4096) * 4096 for rows, columns in matrices)
    output = math.ceil(OUTPUT * 2.625 / 8 / 4096) * 4096
    assert cost.bytes == 3 * of_weights + output + 4 * VECTORS + of_kv


@given(
    bandwidth=rates, more=st.floats(1, 100), peak=rates, dequantised=rates, before=contexts, tokens=st.integers(1, 64)
)
def test_more_bandwidth_is_never_slower(bandwidth, more, peak, dequantised, before, tokens):
    slow = make_device(bandwidth=bandwidth, kernels={"other": Kernel(peak, dequantised)}, operator_seconds=1e-6)
    fast = dataclasses.replace(slow, bandwidth=bandwidth * more)
    for precision in TYPES:
        assert evaluate(fast, precision, before, tokens).seconds <= evaluate(slow, precision, before, tokens).seconds


@given(buffer=st.floats(1, 1e7), grain=st.integers(1, 8192), before=contexts, tokens=st.integers(1, 64))
def test_fewer_bits_never_move_more_bytes(buffer, grain, before, tokens):
    device = make_device(buffer=buffer, granularity=float(grain))
    moved = [evaluate(device, precision, before, tokens).bytes for precision in TYPES]
    assert moved == sorted(moved, reverse=True)


@given(before=contexts, bandwidth=rates, peak=rates)
def test_a_longer_context_is_never_faster(before, bandwidth, peak):
    device = make_device(bandwidth=bandwidth, attention=peak)
    assert evaluate(device, before=before + 1).seconds >= evaluate(device, before=before).seconds


@given(bandwidth=rates, peak=rates, dequantised=rates)
def test_an_evaluation_takes_as_long_as_its_longest_part_and_no_longer_than_all_together(bandwidth, peak, dequantised):
    cost = evaluate(
        make_device(bandwidth=bandwidth, kernels={"other": Kernel(peak, dequantised)}, step_seconds=1e-5), before=7
    )
    assert max(cost.memory, cost.compute, cost.overhead) <= cost.seconds * (1 + 1e-9)
    assert cost.seconds <= (cost.memory + cost.compute + cost.overhead) * (1 + 1e-9)
