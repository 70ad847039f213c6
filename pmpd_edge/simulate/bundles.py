"""A bundle as the hardware model sees it: every tensor of its files, with its real type and size.

Reads the headers of the GGUF files, no weights.
"""

from __future__ import annotations

from collections.abc import Iterator

from pmpd_edge import bundle as bundles
from pmpd_edge import gguf_info
from pmpd_edge.bundle import Bundle
from pmpd_edge.errors import BundleError
from pmpd_edge.gguf_info import GgufInfo, Tensor
from pmpd_edge.simulate.model import Level, Model, Product

_SUMMED = ("attention", "feed-forward")  # of a residual file, nothing else is read


def of_bundle(bundle: Bundle) -> Model:
    """Make a model of a bundle.

    Raises:
        BundleError: it has layers without keys and values of their own for all tokens, which is not modelled.
    """
    headers = {name: gguf_info.read(bundle.path / name) for name in bundle.files}
    base = headers[bundle.levels[0].weights[0]]
    layers, heads = _count(base, "block_count"), _count(base, "attention.head_count")
    kv_heads = _count(base, "attention.head_count_kv", heads)
    head_dim = _count(base, "attention.key_length", _count(base, "embedding_length") // heads)
    value_dim = _count(base, "attention.value_length", head_dim)
    if f"{base.architecture}.attention.kv_lora_rank" in base.metadata:
        raise BundleError(f"{base.path}: latent attention", "simulate knows models with keys and values in each layer")
    return Model(
        name=bundle.name,
        parameters=bundle.parameters,
        parameters_read=sum(base.share_read(tensor) * tensor.elements for tensor in base.tensors),
        layers=layers,
        heads=heads,
        head_dim=head_dim,
        kv_elements=kv_heads * (head_dim + value_dim),
        context_length=bundle.context_length,
        levels=tuple(_level(bundle, level, headers) for level in bundle.levels),
    )


def _count(info: GgufInfo, key: str, default: int | None = None) -> int:
    value = info.metadata.get(f"{info.architecture}.{key}", default)
    if not isinstance(value, int) or value <= 0:
        raise BundleError(
            f"{info.path}: no single {key} of all layers", "simulate knows models with keys and values in each layer"
        )
    return value


def _level(bundle: Bundle, level: bundles.Level, headers: dict[str, GgufInfo]) -> Level:
    base, *residuals = (headers[name] for name in level.weights)
    products, other = [], 0.0
    for tensor in base.tensors:
        share = base.share_read(tensor)
        if share and len(tensor.shape) > 1:
            products.append(_product(tensor, share, base))
        else:
            other += share * tensor.bytes
    for residual in residuals:
        products += _summed(residual, base)
    return Level(
        precision=level.precision,
        type=" + ".join(bundle.files[name].type for name in level.weights),
        products=tuple(products),
        other_bytes=other,
        files={name: float(bundle.files[name].bytes) for name in level.weights},
    )


def _summed(residual: GgufInfo, base: GgufInfo) -> Iterator[Product]:
    share = {tensor.name: base.share_read(tensor) for tensor in base.tensors}
    for tensor in residual.tensors:
        if len(tensor.shape) > 1 and gguf_info.tensor_class(tensor.name) in _SUMMED:
            yield _product(tensor, share[tensor.name], base)


def _product(tensor: Tensor, share: float, base: GgufInfo) -> Product:
    columns, rows = tensor.shape[:2]
    in_last = tensor.name.startswith(f"blk.{_count(base, 'block_count') - 1}.")
    return Product(
        name=tensor.name,
        type=tensor.type,
        rows=rows,
        columns=columns,
        elements=tensor.elements,
        bytes=tensor.bytes,
        used=share,
        sampled_only=tensor.name in gguf_info.VOCABULARY_MATRICES
        or (in_last and gguf_info.tensor_class(tensor.name) == "feed-forward"),
    )
