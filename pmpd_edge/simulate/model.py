"""What a decode step of a model multiplies and reads, level by level. Data only.

Models come from a bundle's files (`bundles.py`) or from a name and a device's types (`shapes.py`). Nothing here knows
how fast anything is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pmpd_edge.errors import PmpdError


@dataclass(frozen=True)
class Product:
    """A matrix that every token is multiplied with.

    Attributes:
        rows, columns: outputs and inputs of the matrix; of one expert's, where there are several.
        elements, bytes: all its weights, those of all experts together.
        used: the share of them that one token is multiplied with: 1, or a mixture's few experts.
        tables: bytes of look-up tables (centroids) that its weights are indices into.
        sampled_only: whether only the tokens that are sampled from are multiplied with it: the output matrix, and the
            last layer's feed-forward matrices, as llama.cpp leaves out what nothing depends on.
    """

    name: str
    type: str
    rows: int
    columns: int
    elements: int
    bytes: float
    used: float = 1.0
    tables: float = 0.0
    sampled_only: bool = False


@dataclass(frozen=True)
class Level:
    """One precision of a model.

    Attributes:
        type: names its weights' type, or types that are summed.
        products: all matrices; of a sum, those of each part.
        other_bytes: what a step reads beside them, such as norms.
        files: what has to be in memory, by name, in bytes; levels may share files.
    """

    precision: int
    type: str
    products: tuple[Product, ...]
    other_bytes: float
    files: Mapping[str, float]

    @property
    def weight_bytes(self) -> float:
        """Bytes of weights that a decode step reads, look-up tables apart."""
        return sum(product.used * product.bytes for product in self.products) + self.other_bytes

    @property
    def tables(self) -> float:
        """Bytes of its look-up tables."""
        return sum(product.tables for product in self.products)


@dataclass(frozen=True)
class Model:
    """A decoder whose layers all attend to all tokens before.

    Attributes:
        parameters: all weights.
        parameters_read: those that a decode step reads, as `bpw` counts them.
        heads: of queries, in each layer.
        kv_elements: numbers of one token in the KV cache of one layer, keys and values.
        levels: from the highest precision to the lowest.
    """

    name: str
    parameters: int
    parameters_read: float
    layers: int
    heads: int
    head_dim: int
    kv_elements: int
    context_length: int
    levels: tuple[Level, ...]

    @property
    def precisions(self) -> tuple[int, ...]:
        return tuple(level.precision for level in self.levels)

    def level(self, precision: int) -> Level:
        """The level of a precision; raises PmpdError if there is none."""
        for level in self.levels:
            if level.precision == precision:
                return level
        have = ", ".join(map(str, self.precisions))
        raise PmpdError(f"{self.name}: no level of precision {precision}", f"choose one of {have}")

    def bpw(self, level: Level) -> float:
        """Real bits per weight of a level: bits that a decode step reads / parameters read."""
        return 8 * level.weight_bytes / self.parameters_read

    def attention(self, pairs: float) -> float:
        """Operations of the attention of all layers, for pairs of a token and one that it attends to."""
        return 4.0 * self.layers * self.heads * self.head_dim * pairs

    def kv_bytes(self, tokens: int, bits: float) -> float:
        """Bytes of the KV cache of all layers."""
        return self.layers * self.kv_elements * tokens * bits / 8
