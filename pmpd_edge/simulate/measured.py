"""Makes a device profile of what was measured on a machine.

The bandwidth is measured by itself. The speed of kernels is measured on models that stay in the last-level cache, as
memory has no part in that; the profile then predicts models that do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pmpd_edge.errors import PmpdError
from pmpd_edge.simulate.model import Level

MEASURED = "measured on this machine"


@dataclass(frozen=True)
class Sample:
    """How fast a level of a small model is, seconds a token."""

    level: Level
    prefill: float
    decode: float


@dataclass(frozen=True)
class Kernels:
    """What samples say of a machine.

    Attributes:
        operations: per second in prefill, by type.
        weights: per second in decode, by type: with all that becomes of them, not dequantisation alone.
        operator_seconds, step_seconds: what is left for each operator and each step.
    """

    operations: Mapping[str, float]
    weights: Mapping[str, float]
    operator_seconds: float
    step_seconds: float


def fit(samples: Sequence[Sample]) -> Kernels:
    """Find the kernels' speed by least squares: decode time is a sum over weights by type, operators and one step.

    Args:
        samples: each type in several shapes, which have to differ in weights for each operator.

    Raises:
        PmpdError: the samples do not tell types and overhead apart.
    """
    types = sorted({product.type for sample in samples for product in sample.level.products})
    rows = [
        [*(_weights(sample.level, name) for name in types), float(len(sample.level.products)), 1.0]
        for sample in samples
    ]
    scale = np.abs(rows).max(0)  # weights are many, seconds few
    found, _, rank, _ = np.linalg.lstsq(np.array(rows) / scale, np.array([s.decode for s in samples]), rcond=1e-6)
    if rank < len(scale) or (found[: len(types)] <= 0).any():
        raise PmpdError(
            "these samples do not tell weights and overhead apart", "measure more shapes, alone on the machine"
        )
    seconds = dict(zip(types, found / scale, strict=False))
    operator, step = (max(0.0, float(value)) for value in (found / scale)[len(types) :])
    return Kernels(_operations(samples), {name: 1 / float(seconds[name]) for name in types}, operator, step)


def profile(
    title: str, *, memory: float, bandwidth: float, buffer: float, types: Mapping[int, str], kernels: Kernels
) -> dict[str, Any]:
    """A profile to be written as JSON.

    Args:
        title: the machine, in words.
        memory, buffer: bytes of memory and of the last-level cache.
        bandwidth: bytes per second that reading reaches.
        types: by precision, as a bundle's levels have them.
        kernels: what `fit` found.
    """
    rates = {name: _kernel(name, kernels) for name in kernels.weights}
    slowest = min(rates.values(), key=lambda rate: rate["tops"])
    return {
        "name": "measured",
        "title": title,
        "memory_gib": memory / 2**30,
        "bandwidth_gb_s": bandwidth / 1e9,
        "buffer_mib": buffer / 2**20,
        "granularity_bytes": 64,
        "attention_tops": slowest["tops"],
        "activation_bits": 32,
        "operator_us": 1e6 * kernels.operator_seconds,
        "step_us": 1e6 * kernels.step_seconds,
        "output_type": "Q8_0",
        "types": {str(precision): name for precision, name in types.items()},
        "kernels": {**rates, "other": slowest},
        "sources": {"bandwidth_gb_s": MEASURED, "kernels": MEASURED, "operator_us": MEASURED, "step_us": MEASURED},
    }


def _kernel(name: str, kernels: Kernels) -> dict[str, float]:
    """Split decode into the arithmetic, which prefill shows, and what is left: dequantisation."""
    operations = kernels.operations.get(name, 2 * kernels.weights[name])
    left = 1 / kernels.weights[name] - 2 / operations
    rate = {"tops": operations / 1e12}
    return {**rate, "gweights_s": 1e-9 / left} if left > 0 else rate


def _operations(samples: Sequence[Sample]) -> dict[str, float]:
    """Operations per second of prefill, by the type of the layers' matrices; the best of several shapes."""
    best: dict[str, float] = {}
    for sample in samples:
        elements = sum(product.elements for product in sample.level.products if not product.is_output)
        kind = sample.level.type
        best[kind] = max(best.get(kind, 0.0), 2 * elements / sample.prefill)
    return best


def _weights(level: Level, kind: str) -> float:
    return float(sum(product.elements for product in level.products if product.type == kind))
