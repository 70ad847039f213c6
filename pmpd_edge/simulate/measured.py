"""Makes a device profile of what was measured on a machine.

The bandwidth is measured by itself, and so is the speed of products with many tokens. That of decoding's kernels is
measured on models that stay in the last-level cache, as memory has no part in that; the profile then predicts models
that do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pmpd_edge import gguf_info
from pmpd_edge.errors import PmpdError
from pmpd_edge.simulate.model import Level, Model, Product

MEASURED = "measured on this machine"


@dataclass(frozen=True)
class Sample:
    """How fast a level of a small model decodes.

    Attributes:
        context: tokens that a step attends to, itself among them; their mean.
        decode: seconds a step.
    """

    model: Model
    precision: int
    context: float
    decode: float

    @property
    def level(self) -> Level:
        return self.model.level(self.precision)


@dataclass(frozen=True)
class Kernels:
    """What samples say of a machine.

    Attributes:
        operations: per second of products with many tokens, by type.
        weights: per second in decode, by type: with all that becomes of them, not dequantisation alone.
        attention: operations of attention per second in decode.
        operator_seconds, step_seconds: what is left for each operator and each step.
    """

    operations: Mapping[str, float]
    weights: Mapping[str, float]
    attention: float
    operator_seconds: float
    step_seconds: float


def fit(samples: Sequence[Sample], operations: Mapping[str, float]) -> Kernels:
    """Find the kernels' speed by least squares: decode time is a sum over weights by type, attention and overheads.

    Args:
        operations: per second of products with many tokens, by type.
        samples: each type in several shapes, which have to differ in weights for each operator, and in the tokens that
            a step attends to.

    Raises:
        PmpdError: the samples do not tell types and overhead apart.
    """
    types = sorted({product.type for sample in samples for product in sample.level.products})
    rows = [
        [
            *(_elements(sample.level.products, name) for name in types),
            sample.model.attention(sample.context),
            float(len(sample.level.products)),
            1.0,
        ]
        for sample in samples
    ]
    scale = np.abs(rows).max(0)  # weights are many, seconds few
    found, _, rank, _ = np.linalg.lstsq(np.array(rows) / scale, np.array([s.decode for s in samples]), rcond=1e-6)
    if rank < len(scale) or (found[: len(types) + 1] <= 0).any():
        raise PmpdError(
            "these samples do not tell weights and overhead apart", "measure more shapes, alone on the machine"
        )
    seconds = dict(zip(types, found / scale, strict=False))
    attention, operator, step = (max(0.0, float(value)) for value in (found / scale)[len(types) :])
    weights = {name: 1 / float(seconds[name]) for name in types}
    return Kernels(operations, weights, 1 / attention, operator, step)


def overlap(bandwidth: float, cached: Mapping[str, float], cold: Mapping[str, float]) -> float:
    """How much of the shorter one of moving and computing the longer one hides, the mean over types.

    Args:
        bandwidth: bytes per second that reading reaches.
        cached, cold: by type, seconds for each weight of products whose weights are in a cache, and in none.
    """
    shares = []
    for name, computing in cached.items():
        moving = gguf_info.bits(name) / 8 / bandwidth
        shares.append((cold[name] - max(moving, computing)) / min(moving, computing))
    return min(1.0, max(0.01, 1 - float(np.mean(shares))))  # a profile's figures are above 0


def profile(
    title: str,
    *,
    memory: float,
    bandwidth: float,
    buffer: float,
    types: Mapping[int, str],
    kernels: Kernels,
    overlap: float,
) -> dict[str, Any]:
    """A profile to be written as JSON.

    Args:
        title: the machine, in words.
        memory, buffer: bytes of memory and of the last-level cache.
        bandwidth: bytes per second that reading reaches.
        types: by precision, as a bundle's levels have them.
        kernels: what `fit` found.
        overlap: what `overlap` found.
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
        "attention_tops": kernels.attention / 1e12,
        "overlap": overlap,
        "activation_bits": 32,
        "operator_us": 1e6 * kernels.operator_seconds,
        "step_us": 1e6 * kernels.step_seconds,
        "output_type": "Q8_0",
        "types": {str(precision): name for precision, name in types.items()},
        "kernels": {**rates, "other": slowest},
        "sources": dict.fromkeys(
            ("bandwidth_gb_s", "attention_tops", "overlap", "operator_us", "step_us", "kernels"), MEASURED
        ),
    }


def _kernel(name: str, kernels: Kernels) -> dict[str, float]:
    """Split decode into the arithmetic, which many tokens show, and what is left: dequantisation."""
    operations = kernels.operations.get(name, 2 * kernels.weights[name])
    left = 1 / kernels.weights[name] - 2 / operations
    rate = {"tops": operations / 1e12}
    return {**rate, "gweights_s": 1e-9 / left} if left > 0 else rate


def _elements(products: Iterable[Product], kind: str | None = None) -> float:
    """Weights of products, all or those of a type."""
    return float(sum(product.elements for product in products if kind in (None, product.type)))
