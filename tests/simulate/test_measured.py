"""Profiles of measured machines: the fit finds what made the figures."""

from __future__ import annotations

import dataclasses
import json
from itertools import product

import numpy as np
import pytest
from simulated import make_device

from pmpd_edge import gguf_info
from pmpd_edge.errors import PmpdError
from pmpd_edge.simulate import device as devices
from pmpd_edge.simulate import measured
from pmpd_edge.simulate.device import Device, Kernel
from pmpd_edge.simulate.measured import Sample
from pmpd_edge.simulate.roofline import Roofline
from pmpd_edge.simulate.shapes import Shape, of_shape

KERNELS = {"Q8_0": Kernel(6e11, 4e11), "Q4_K": Kernel(5e11, 1.3e11), "Q3_K": Kernel(6e11, 8e10)}
OPERATIONS = {name: kernel.operations for name, kernel in KERNELS.items()}
TRUE = make_device(
    buffer=1e12,
    attention=1e10,
    operator_seconds=3e-6,
    step_seconds=2e-4,
    output_type="Q8_0",
    types={8: "Q8_0", 4: "Q4_K", 3: "Q3_K"},
    kernels=KERNELS,
)
SHAPES = (
    Shape(512, 2, 8, 4, 64, 1536, 4096, 512),
    Shape(512, 6, 8, 4, 64, 1536, 4096, 512),
    Shape(1024, 1, 16, 4, 64, 2816, 4096, 512),
)


def sample(device: Device, shapes: tuple[Shape, ...] = SHAPES) -> list[Sample]:
    found = []
    for shape in shapes:
        roofline = Roofline(of_shape("m", shape, device), device)
        for level, before in product(roofline.model.levels, (0, 400)):
            decode = roofline.evaluate(level.precision, before).seconds
            found.append(Sample(roofline.model, level.precision, before + 1, decode))
    return found


def test_the_fit_finds_the_kernels_and_the_overhead():
    found = measured.fit(sample(TRUE), OPERATIONS)
    for name, kernel in KERNELS.items():
        assert 1 / found.weights[name] == pytest.approx(2 / kernel.operations + 1 / kernel.weights, rel=1e-2)
    assert found.attention == pytest.approx(1e10, rel=1e-2)
    # Attention is an operator of which the fit does not know: its overhead adds to the others'.
    assert found.operator_seconds == pytest.approx(3e-6 * 8 / 7, rel=0.02)
    assert found.step_seconds == pytest.approx(2e-4, rel=0.05)


def test_the_profile_predicts_a_model_that_does_not_stay_in_the_cache(tmp_path):
    profile = measured.profile(
        "a machine",
        memory=2**36,
        bandwidth=4e10,
        buffer=2**25,
        types=TRUE.types,
        kernels=measured.fit(sample(TRUE), OPERATIONS),
        overlap=0.7,
    )
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(profile))
    found = devices.load(str(path))
    assert found.bandwidth == 4e10 and found.types == TRUE.types
    true = dataclasses.replace(TRUE, bandwidth=4e10, buffer=2**25, overlap=0.7)
    shape = Shape(2048, 22, 32, 4, 64, 5632, 4096, 2048)
    model = of_shape("m", shape, true)
    for precision in TRUE.types:
        expected = Roofline(model, true).evaluate(precision, 100)
        cost = Roofline(model, found).evaluate(precision, 100)
        assert cost.seconds == pytest.approx(expected.seconds, rel=0.03)
        assert cost.bound == expected.bound
        prompt = Roofline(model, true).evaluate(precision, 0, 256)
        assert Roofline(model, found).evaluate(precision, 0, 256).seconds == pytest.approx(prompt.seconds, rel=0.03)


def test_the_overlap_is_found_from_cold_products():
    moving = {name: gguf_info.bits(name) / 8 / 4e10 for name in KERNELS}
    computing = {name: 2 / kernel.operations + 1 / kernel.weights for name, kernel in KERNELS.items()}
    assert {moving[name] < computing[name] for name in KERNELS} == {True, False}
    for share in (1.0, 0.7, 0.1):
        cold = {
            name: max(moving[name], computing[name]) + (1 - share) * min(moving[name], computing[name])
            for name in KERNELS
        }
        assert measured.overlap(4e10, computing, cold) == pytest.approx(share)
    assert measured.overlap(4e10, computing, {name: 0.9 * one for name, one in moving.items()}) == 1.0


def test_noise_moves_it_a_little():
    rng = np.random.default_rng(0)
    noisy = [dataclasses.replace(s, decode=s.decode * rng.normal(1, 0.01)) for s in sample(TRUE)]
    found = measured.fit(noisy, OPERATIONS)
    assert 1 / found.weights["Q3_K"] == pytest.approx(2 / 6e11 + 1 / 8e10, rel=0.1)


def test_samples_of_one_shape_are_not_enough():
    with pytest.raises(PmpdError, match="do not tell weights and overhead apart: measure more shapes"):
        measured.fit(sample(TRUE, SHAPES[:1]), OPERATIONS)


def test_times_that_fall_with_the_weights_are_refused():
    samples = sample(TRUE)
    times = sorted((s.decode for s in samples), reverse=True)
    by_size = sorted(samples, key=lambda s: s.level.weight_bytes)
    with pytest.raises(PmpdError, match="alone on the machine"):
        measured.fit([dataclasses.replace(s, decode=t) for s, t in zip(by_size, times, strict=True)], OPERATIONS)
