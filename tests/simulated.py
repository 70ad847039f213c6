"""A small model and a device of round figures for tests of the hardware model."""

from __future__ import annotations

import dataclasses

from pmpd_edge.simulate.device import Device, Kernel
from pmpd_edge.simulate.shapes import Shape

SHAPE = Shape(hidden=256, layers=3, heads=4, kv_heads=2, head_dim=64, ff=512, vocabulary=1000, context_length=4096)
MATRICES = 3 * (2 * 256 * 256 + 2 * 128 * 256 + 3 * 512 * 256)
LAST = 3 * 512 * 256  # of the last layer, nothing but the logits depends on these
OUTPUT = 1000 * 256
VECTORS = 7 * 256
TYPES = {16: "F16", 8: "Q8_0", 6: "Q6_K", 4: "Q4_K", 3: "Q3_K", 2: "Q2_K"}
BITS = {16: 16, 8: 8.5, 6: 6.5625, 4: 4.5, 3: 3.4375, 2: 2.625}


def make_device(**changes) -> Device:
    device = Device(
        name="d",
        title="a device",
        memory=2**40,
        bandwidth=1e9,
        buffer=1.0,
        granularity=1.0,
        storage=0.0,
        attention=1e30,
        overlap=1.0,
        activation_bits=16,
        kv_bits=16,
        operator_seconds=0.0,
        step_seconds=0.0,
        switch_seconds=0.0,
        layout="separate",
        output_type=None,
        types=TYPES,
        kernels={"other": Kernel(1e30)},
    )
    return dataclasses.replace(device, **changes)
