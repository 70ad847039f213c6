"""The matrices of a model's layer, by name or from a bundle: the shapes that operators are measured with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pmpd_edge import gguf_info
from pmpd_edge.bench.matvec import Shape
from pmpd_edge.bundle import Bundle
from pmpd_edge.errors import PmpdError
from pmpd_edge.simulate.shapes import SHAPES

PARTS = ("attention", "feed-forward")  # of `gguf_info.TENSOR_CLASSES`
_FIRST_LAYER = "blk.0."
_PAPER = {
    "vicuna-7b": "Vicuna-7B",
    "mobilellama-1.4b": "MobileLLaMA-1.4B",
    "phi-1.5": "Phi-1.5",
    "stablelm-zephyr-3b": "Zephyr-3B",
}


@dataclass(frozen=True)
class Layer:
    """The matrices of one layer of a model, (columns, rows) each, by the part that they belong to."""

    model: str
    parts: dict[str, tuple[Shape, ...]]


def of_paper() -> list[Layer]:
    """The models whose operators the paper measures."""
    return [
        _layer(name, ((f"blk.0.{matrix}.weight", (columns, rows)) for matrix, rows, columns in shape.layer_matrices()))
        for shape, name in ((SHAPES[key], name) for key, name in _PAPER.items())
    ]


def of_bundle(bundle: Bundle) -> Layer:
    """The first layer of a bundle's model.

    Raises:
        PmpdError: it has no attention or feed-forward matrices, as in mixtures of experts and recurrent models.
    """
    info = gguf_info.read(bundle.paths(bundle.levels[-1])[0])
    first = (tensor for tensor in info.tensors if tensor.name.startswith(_FIRST_LAYER) and len(tensor.shape) == 2)
    layer = _layer(bundle.name, ((tensor.name, (tensor.shape[0], tensor.shape[1])) for tensor in first))
    if not all(layer.parts.values()):
        raise PmpdError(
            f"{bundle.path}: its first layer lacks attention or feed-forward matrices",
            "leave the bundle out, to measure the shapes of the paper's models",
        )
    return layer


def _layer(model: str, matrices: Iterable[tuple[str, Shape]]) -> Layer:
    parts: dict[str, list[Shape]] = {part: [] for part in PARTS}
    for name, shape in matrices:
        if (part := gguf_info.tensor_class(name)) in parts:
            parts[part].append(shape)
    return Layer(model, {part: tuple(shapes) for part, shapes in parts.items()})
