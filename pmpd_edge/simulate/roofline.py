"""What evaluating tokens costs on a device: a roofline for every operator.

An operator takes as long as moving its bytes or as doing its arithmetic, whichever is longer, and what this does not
hide of the other; an evaluation takes as long as its operators one after the other. docs/simulate.md has the equations.
Knows one evaluation; answers are the business of `answer.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from pmpd_edge.simulate.device import Device
from pmpd_edge.simulate.model import Level, Model, Product

MEMORY, COMPUTE, OVERHEAD = "memory", "compute", "overhead"


@dataclass(frozen=True)
class Cost:
    """What an evaluation takes.

    Attributes:
        seconds: all of it.
        memory, compute, overhead: seconds that moving bytes, arithmetic, and everything beside them take by themselves.
        bytes: moved between memory and chip.
        operations: of arithmetic; a multiplication and an addition are two.
    """

    seconds: float = 0.0
    memory: float = 0.0
    compute: float = 0.0
    overhead: float = 0.0
    bytes: float = 0.0
    operations: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.seconds + other.seconds,
            self.memory + other.memory,
            self.compute + other.compute,
            self.overhead + other.overhead,
            self.bytes + other.bytes,
            self.operations + other.operations,
        )

    def __mul__(self, times: float) -> Cost:
        return Cost(
            times * self.seconds,
            times * self.memory,
            times * self.compute,
            times * self.overhead,
            times * self.bytes,
            times * self.operations,
        )

    @property
    def bound(self) -> str:
        """What it spends most time on: memory, compute or overhead."""
        return max((self.memory, MEMORY), (self.compute, COMPUTE), (self.overhead, OVERHEAD))[1]


class Roofline:
    """A model on a device."""

    def __init__(self, model: Model, device: Device) -> None:
        self.model, self.device = model, device
        self._weights = lru_cache(maxsize=256)(self._all_products)

    def evaluate(self, precision: int, before: int, tokens: int = 1) -> Cost:
        """The cost of evaluating tokens together: of a decode step for one token, of prefill for a prompt.

        Args:
            precision: of the weights.
            before: tokens in the KV cache already.
            tokens: how many are evaluated; the last one's logits are computed.
        """
        model, device = self.model, self.device
        cached = self.on_chip(model.level(precision), before + tokens)
        attention = self._attention(before, tokens, cached) * model.layers
        return (
            self._weights(precision, tokens, cached)
            + attention
            + Cost(device.step_seconds, overhead=device.step_seconds)
        )

    def on_chip(self, level: Level, context: int) -> bool:
        """Whether a level and the KV cache stay on the chip: all or nothing, as all is read in turn."""
        needed = level.weight_bytes + level.tables + self.model.kv_bytes(context, self.device.kv_bits)
        return needed <= self.device.buffer

    def tables_stay(self, level: Level) -> bool:
        """Whether a level's look-up tables stay on the chip, so that only a switch moves them."""
        return level.tables <= self.device.buffer

    def _all_products(self, precision: int, tokens: int, cached: bool) -> Cost:
        level = self.model.level(precision)
        with_tables = not (cached or self.tables_stay(level))
        total = self._cost(0 if cached else level.other_bytes, 0.0, 0.0)
        for product in level.products:
            total += self._product(product, 1 if product.sampled_only else tokens, cached, with_tables)
        return total

    def _product(self, product: Product, tokens: int, cached: bool, with_tables: bool) -> Cost:
        """A matrix and `tokens` vectors: they go in blocks whose activations fit on the chip, weights once a block."""
        device, kernel = self.device, self.device.kernel(product.type)
        per_token = (product.rows + product.columns) * device.activation_bits / 8
        block = max(1, int(device.buffer / per_token))
        blocks = -(-tokens // block)
        share = min(1.0, product.used * min(tokens, block))  # of a mixture, several tokens need more experts
        moved = 0.0 if cached else self._transferred(share * product.bytes + (product.tables if with_tables else 0.0))
        operations = 2.0 * product.elements * product.used * tokens
        seconds = operations / kernel.operations + blocks * share * product.elements / kernel.weights
        return self._cost(blocks * moved, operations, seconds, operators=1)

    def _attention(self, before: int, tokens: int, cached: bool) -> Cost:
        """Attention of one layer: all keys and values are read once, those of the new tokens written."""
        model, device = self.model, self.device
        one = model.kv_elements * device.kv_bits / 8
        moved = 0.0 if cached else self._transferred((before + tokens) * one) + self._transferred(tokens * one)
        pairs = tokens * before + tokens * (tokens + 1) / 2
        operations = model.attention(pairs) / model.layers
        return self._cost(moved, operations, operations / device.attention, operators=1)

    def _transferred(self, n_bytes: float) -> float:
        grain = self.device.granularity
        return math.ceil(n_bytes / grain) * grain

    def _cost(self, moved: float, operations: float, compute: float, operators: int = 0) -> Cost:
        memory, overhead = moved / self.device.bandwidth, operators * self.device.operator_seconds
        unhidden = (1 - self.device.overlap) * min(memory, compute)
        return Cost(max(memory, compute) + unhidden + overhead, memory, compute, overhead, moved, operations)
