"""Shapes of known models, by name: what their checkpoints' configurations say, and how many weights follow from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pmpd_edge import gguf_info
from pmpd_edge.errors import PmpdError
from pmpd_edge.simulate.device import Device
from pmpd_edge.simulate.model import Level, Model, Product


@dataclass(frozen=True)
class Shape:
    """A dense decoder.

    Attributes:
        hidden, ff: widths of the residual stream and of the feed-forward layer.
        gated: whether the feed-forward layer has a gate: three matrices instead of two.
        tied: whether the output matrix is the token embeddings.
        norms: vectors of `hidden` numbers that the norms of one layer hold; a norm with a bias holds two.
        final_norms: those of the norm before the output.
        biased: whether every matrix has a bias.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ff: int
    vocabulary: int
    context_length: int
    gated: bool = True
    tied: bool = False
    norms: int = 2
    final_norms: int = 1
    biased: bool = False

    def layer_matrices(self) -> Iterator[tuple[str, int, int]]:
        """Name, rows and columns of the matrices of one layer."""
        wide, narrow = self.heads * self.head_dim, self.kv_heads * self.head_dim
        yield "attn_q", wide, self.hidden
        yield "attn_k", narrow, self.hidden
        yield "attn_v", narrow, self.hidden
        yield "attn_output", self.hidden, wide
        if self.gated:
            yield "ffn_gate", self.ff, self.hidden
        yield "ffn_up", self.ff, self.hidden
        yield "ffn_down", self.hidden, self.ff

    @property
    def vectors(self) -> int:
        """Numbers in norms and biases, of the whole model."""
        biases = sum(rows for _, rows, _ in self.layer_matrices()) if self.biased else 0
        in_layers = self.layers * (self.norms * self.hidden + biases)
        return in_layers + self.final_norms * self.hidden + (self.vocabulary if self.biased else 0)

    @property
    def parameters_read(self) -> int:
        """Weights that a decode step reads."""
        in_layers = self.layers * sum(rows * columns for _, rows, columns in self.layer_matrices())
        return in_layers + self.vocabulary * self.hidden + self.vectors

    @property
    def parameters(self) -> int:
        """All weights; tied embeddings count once."""
        return self.parameters_read + (0 if self.tied else self.vocabulary * self.hidden)


# config.json of lmsys/vicuna-7b-v1.5, mtgv/MobileLLaMA-1.4B-Chat, microsoft/phi-1_5, stabilityai/stablelm-zephyr-3b,
# TinyLlama/TinyLlama-1.1B-Chat-v1.0, meta-llama/Llama-2-13b-chat-hf, Llama-3.1-8B, Llama-3.2-1B and Llama-3.2-3B.
SHAPES = {
    "vicuna-7b": Shape(4096, 32, 32, 32, 128, 11008, 32000, 4096),
    "mobilellama-1.4b": Shape(2048, 24, 16, 16, 128, 5632, 32000, 2048),
    "phi-1.5": Shape(2048, 24, 32, 32, 64, 8192, 51200, 2048, gated=False, norms=2, final_norms=2, biased=True),
    "stablelm-zephyr-3b": Shape(2560, 32, 32, 32, 80, 6912, 50304, 4096, norms=4, final_norms=2),
    "tinyllama-1.1b": Shape(2048, 22, 32, 4, 64, 5632, 32000, 2048),
    "llama-2-7b": Shape(4096, 32, 32, 32, 128, 11008, 32000, 4096),
    "llama-2-13b": Shape(5120, 40, 40, 40, 128, 13824, 32000, 4096),
    "llama-3.1-8b": Shape(4096, 32, 32, 8, 128, 14336, 128256, 131072),
    "llama-3.2-1b": Shape(2048, 16, 32, 8, 64, 8192, 128256, 131072, tied=True),
    "llama-3.2-3b": Shape(3072, 28, 24, 8, 128, 8192, 128256, 131072, tied=True),
}


def named(name: str, device: Device) -> Model:
    """A model by its name, with a level for each precision of which the device has a type; raises PmpdError."""
    if name not in SHAPES:
        raise PmpdError(f"no model {name!r}", f"choose one of {', '.join(SHAPES)}, or give a bundle")
    return of_shape(name, SHAPES[name], device)


def of_shape(name: str, shape: Shape, device: Device) -> Model:
    """A model of a shape, its weights of the device's types."""
    levels = tuple(_level(shape, precision, device) for precision in device.types)
    return Model(
        name=name,
        parameters=shape.parameters,
        parameters_read=shape.parameters_read,
        layers=shape.layers,
        heads=shape.heads,
        head_dim=shape.head_dim,
        kv_elements=2 * shape.kv_heads * shape.head_dim,
        context_length=shape.context_length,
        levels=_nested(levels) if device.layout == "nested" else levels,
    )


def _level(shape: Shape, precision: int, device: Device) -> Level:
    kind = device.type_of(precision)
    output_kind = kind if precision == 16 or device.output_type is None else device.output_type
    products = [
        _product(f"blk.{layer}.{name}.weight", rows, columns, kind, device, _is_last(shape, layer, name))
        for layer in range(shape.layers)
        for name, rows, columns in shape.layer_matrices()
    ]
    output = _product("output.weight", shape.vocabulary, shape.hidden, output_kind, device, sampled_only=True)
    embeddings = 0 if shape.tied else output.bytes  # a table of which a step looks up one row
    other = 4.0 * shape.vectors
    size = sum(product.bytes + product.tables for product in (*products, output)) + embeddings + other
    return Level(precision, kind, (*products, output), other, {f"{precision} bits": size})


def _is_last(shape: Shape, layer: int, name: str) -> bool:
    """Whether nothing but the logits depends on what this matrix computes."""
    return layer == shape.layers - 1 and name.startswith("ffn_")


def _product(name: str, rows: int, columns: int, kind: str, device: Device, sampled_only: bool) -> Product:
    kernel = device.kernel(kind)
    if kernel.bits is None and kind not in gguf_info.TYPES:
        raise PmpdError(f"{device.name}: type {kind} is none of GGML's", "say how many bits its kernel has")
    bits = gguf_info.bits(kind) if kernel.bits is None else kernel.bits
    elements = rows * columns
    return Product(
        name,
        kind,
        rows,
        columns,
        elements,
        elements * bits / 8,
        tables=2.0 * kernel.centroids * rows,
        sampled_only=sampled_only,
    )


def _nested(levels: tuple[Level, ...]) -> tuple[Level, ...]:
    """The same levels, where each holds all bits of the lower ones: only the difference takes up memory."""
    files: dict[str, float] = {}
    made = []
    for level in reversed(levels):
        if level.precision == 16:  # is always complete
            made.append(level)
            continue
        ((name, size),) = level.files.items()
        files = {**files, name: size - sum(files.values())}
        made.append(Level(level.precision, level.type, level.products, level.other_bytes, files))
    return tuple(reversed(made))
