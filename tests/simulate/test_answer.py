"""A simulated answer is the sum of its parts, and what does not fit is refused."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated import SHAPE, TYPES, make_device

from pmpd_edge.errors import PmpdError
from pmpd_edge.simulate.answer import simulate
from pmpd_edge.simulate.device import Kernel
from pmpd_edge.simulate.roofline import Roofline
from pmpd_edge.simulate.shapes import SHAPES, named, of_shape

CENTROIDS = {16: Kernel(1e30, bits=16), **{bits: Kernel(1e30, bits=bits, centroids=2**bits) for bits in (4, 3, 2)}}
TABLES = {"types": {p: str(p) for p in CENTROIDS}, "kernels": {str(p): kernel for p, kernel in CENTROIDS.items()}}


def roofline(**changes) -> Roofline:
    device = make_device(**changes)
    return Roofline(of_shape("m", SHAPE, device), device)


@given(prompt=st.integers(1, 300), tokens=st.lists(st.sampled_from(sorted(TYPES)), min_size=2, max_size=40))
def test_an_answer_is_the_sum_of_prefill_steps_and_switches(prompt, tokens):
    model = roofline(switch_seconds=0.25)
    answer = simulate(model, prompt, tokens)
    steps = [model.evaluate(precision, prompt + i).seconds for i, precision in enumerate(tokens[1:])]
    changes = sum(a != b for a, b in pairwise(tokens))
    assert len(answer.switches) == changes
    assert answer.decode_seconds == pytest.approx(sum(steps) + 0.25 * changes)
    assert answer.seconds == pytest.approx(model.evaluate(tokens[0], 0, prompt).seconds + answer.decode_seconds)
    assert answer.average_bitwidth == pytest.approx(sum(tokens[1:]) / len(steps))
    times = answer.times()
    assert len(times) == len(tokens) and times == sorted(times)
    assert times[-1] == pytest.approx(answer.seconds)


def test_each_token_comes_when_its_step_and_the_switch_before_it_are_done():
    model = roofline(switch_seconds=0.25)
    answer = simulate(model, 10, [8, 8, 4])
    assert [(switch.step, switch.precision) for switch in answer.switches] == [(2, 4)]
    first, second, third = answer.times()
    assert second - first == pytest.approx(model.evaluate(8, 10).seconds)
    assert third - second == pytest.approx(0.25 + model.evaluate(4, 11).seconds)


def test_a_schedule_lies_between_its_precisions():
    model = roofline()
    high, mixed, low = (simulate(model, 50, [8, *steps]) for steps in ([8] * 20, [8] * 9 + [4] * 11, [4] * 20))
    assert low.decode_seconds < mixed.decode_seconds < high.decode_seconds


def test_tables_that_stay_on_the_chip_are_moved_by_the_switch():
    rows = 3 * (2 * 256 + 2 * 128 + 2 * 512 + 256) + 1000
    stay, read = roofline(buffer=32.0 * rows, **TABLES), roofline(buffer=1.0, **TABLES)
    switched = [simulate(model, 10, [3, 3, 2]).switches[0] for model in (stay, read)]
    assert [switch.bytes for switch in switched] == [2 * 4 * rows, 0]
    assert switched[0].seconds == pytest.approx(2 * 4 * rows / 1e9)
    difference = read.evaluate(4, 10).bytes - stay.evaluate(4, 10).bytes
    assert difference == pytest.approx(2 * 16 * rows), "what does not stay is read at every step"


def test_levels_that_are_not_in_memory_together_are_loaded_by_the_switch():
    sizes = {p: sum(roofline().model.level(p).files.values()) for p in TYPES}
    kv = roofline().model.kv_bytes(12, 16)
    model = roofline(memory=sizes[8] + kv + 1, storage=2e9)
    (switch,) = simulate(model, 10, [8, 8, 4]).switches
    assert switch.bytes == sizes[4]
    assert switch.seconds == pytest.approx(sizes[4] / 2e9)
    assert simulate(roofline(memory=sizes[8] + sizes[4] + kv + 1, storage=2e9), 10, [8, 8, 4]).switches[0].bytes == 0


def test_nested_levels_share_memory_and_only_what_is_added_is_loaded():
    model = roofline(layout="nested", **TABLES)
    sizes = {p: sum(model.model.level(p).files.values()) for p in (4, 3, 2)}
    assert sizes[4] > sizes[3] > sizes[2]
    small = roofline(layout="nested", memory=sizes[4] + model.model.kv_bytes(12, 16) + 1, storage=1e9, **TABLES)
    assert simulate(small, 10, [4, 3, 2]).switches[-1].bytes == 0
    separate = roofline(memory=small.device.memory, storage=1e9, **TABLES)
    assert simulate(separate, 10, [4, 3, 2]).switches[-1].bytes == pytest.approx(sizes[2])


def test_nothing_but_the_parts_that_are_missing_is_loaded_on_the_way_up():
    model = roofline(layout="nested", **TABLES)
    files = {p: model.model.level(p).files for p in (4, 2)}
    needed = sum(files[4].values()) + model.model.kv_bytes(12, 16)
    with_16 = dataclasses.replace(
        model.device, memory=sum(model.model.level(16).files.values()) + needed / 2, storage=1e9
    )
    up = simulate(Roofline(model.model, with_16), 10, [16, 2, 4]).switches[-1]
    assert up.bytes == pytest.approx(sum(files[4].values()) - sum(files[2].values()))


@pytest.mark.parametrize(
    ("prompt", "precisions", "changes", "message"),
    [
        (10, [8], {}, "10 prompt tokens and 0 decode steps: give at least one of each"),
        (0, [8, 8], {}, "0 prompt tokens"),
        (10, [8, 7], {}, "m: no level of precision 7: choose one of 16, 8, 6, 4, 3, 2"),
        (4095, [8, 8, 8], {}, "m: 4097 tokens, its context has 4096: shorten"),
        (10, [8, 8], {"memory": 1e6}, "GiB of weights and KV cache, d has 0.0: choose lower precisions"),
        (10, [8, 4], {"memory": 2.5e6}, "GiB of weights"),  # no storage to load from
    ],
)
def test_the_impossible_is_refused(prompt, precisions, changes, message):
    with pytest.raises(PmpdError) as raised:
        simulate(roofline(**changes), prompt, precisions)
    assert message in str(raised.value)


def test_a_kv_cache_larger_than_the_memory_is_refused():
    device = make_device(memory=20 * 2**30)
    model = Roofline(named("llama-3.1-8b", device), device)
    simulate(model, 1000, [4, 4])
    assert SHAPES["llama-3.1-8b"].context_length == 131072
    with pytest.raises(PmpdError, match=r"20\.2 GiB of weights and KV cache, d has 20\.0"):
        simulate(model, 131070, [4, 4])
