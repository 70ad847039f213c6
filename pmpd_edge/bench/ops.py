"""How long the matrix products of a layer take in each weight type, against F16: the paper's table of hardware.

One product for each matrix, with a vector, as in a decode step. So many layers lie in memory that each is cold when its
turn comes. A type and F16 are measured by turns, so that what else the machine does hits both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pmpd_edge.bench.bandwidth import cold_bytes
from pmpd_edge.bench.ggml import Backend
from pmpd_edge.bench.matvec import Matrices, Shape, fits, row_bytes
from pmpd_edge.bench.shapes import Layer
from pmpd_edge.bench.timing import Series

REFERENCE = "F16"
TYPES = (REFERENCE, "Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q4_0", "Q3_K", "Q2_K")

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class OpCost:
    """The products of one part of a layer in one type.

    Attributes:
        part: attention or feed-forward.
        bytes: of the part's matrices.
        buffer: the kind of buffer that they lay in.
        seconds: of one layer's part, for each repetition.
        reference: those of F16, measured by turns with them.
    """

    model: str
    part: str
    type: str
    bytes: int
    buffer: str
    seconds: Series
    reference: Series

    @property
    def speedup(self) -> float:
        """How many times as fast as F16: the median over the repetitions."""
        pairs = zip(self.reference.values, self.seconds.values, strict=True)
        return Series(tuple(slow / fast for slow, fast in pairs)).median

    @property
    def bytes_per_second(self) -> float:
        """In the median repetition."""
        return self.bytes / self.seconds.median


def measure(
    backend: Backend,
    layers: Sequence[Layer],
    repetitions: int,
    types: Sequence[str] = TYPES,
    progress: Progress = lambda label, done: None,
) -> list[OpCost]:
    """Measure the parts of layers in all types whose blocks divide the shapes' columns.

    Raises:
        PmpdError: the device has not enough memory, or does not multiply a type.
    """
    work = [(layer, part, type_name) for layer in layers for part in layer.parts for type_name in types]
    found = []
    for i, (layer, part, type_name) in enumerate(work):
        progress(f"{layer.model}: {type_name}", i / len(work))
        shapes = layer.parts[part]
        if all(fits(type_name, columns) for columns, _ in shapes):
            found.append(_measure(backend, layer.model, part, type_name, shapes, repetitions))
    return found


def _measure(
    backend: Backend, model: str, part: str, type_name: str, shapes: Sequence[Shape], repetitions: int
) -> OpCost:
    copies, reference_copies = _copies(type_name, shapes), _copies(REFERENCE, shapes)
    with (
        Matrices(backend, type_name, list(shapes) * copies) as matrices,
        Matrices(backend, REFERENCE, list(shapes) * reference_copies) as reference,
    ):
        matrices.warm_up()
        reference.warm_up()
        rounds = [(matrices.multiply(), reference.multiply()) for _ in range(repetitions)]
        return OpCost(
            model,
            part,
            type_name,
            matrices.bytes // copies,
            matrices.buffer,
            Series(tuple(seconds / copies for seconds, _ in rounds)),
            Series(tuple(seconds / reference_copies for _, seconds in rounds)),
        )


def _copies(type_name: str, shapes: Sequence[Shape]) -> int:
    """So many layers that the first one is cold again after the last."""
    return -(-cold_bytes() // sum(row_bytes(type_name, columns) * rows for columns, rows in shapes))
