"""DNS, dense-and-sparse decomposition: the baseline for progressive decoding at an equal budget of bits.

After SqueezeLLM (Kim et al., arXiv 2306.07629): W = D + S. S is sparse and keeps a few weights exactly, the outliers;
D is dense, W with zeros in their places, quantised to the types of a bundle's lowest level. It is a baseline of
quality, not of speed: a file holds the matrices put together again, in F32, and their bits are counted as if the parts
were stored.

An outlier replaces what the dense part has in its place, which is not always zero: some types cannot store one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pmpd_edge.convert import quantize, residual, staging
from pmpd_edge.errors import ConvertError
from pmpd_edge.gguf_info import GgufInfo, Tensor

# Bits of compressed sparse rows: of a value; of a column's index, the long one where the short one cannot count the
# columns; of a pointer to where a row begins, of which a matrix has one more than rows.
_VALUE, _SHORT_INDEX, _LONG_INDEX, _POINTER = 16, 16, 32, 32

_MOST_OUTLIERS = 0.5  # of a matrix: with more, it is the rest that is sparse
_TOLERANCE = 0.01  # of a budget
_SOURCE_TYPES = ("F32", "F16", "BF16")

RULES = ("magnitude", "sensitivity")


@dataclass(frozen=True)
class Decomposition:
    """What a model's matrices were taken apart into.

    Attributes:
        type: of the dense part.
        dense_bpw: real bits per weight of the low level, embeddings and all else included.
        sparse_bpw: those that the outliers add, over the same weights.
        outliers: their number.
        share: theirs of the weights of all matrices that were taken apart.
    """

    type: str
    dense_bpw: float
    sparse_bpw: float
    outliers: int
    share: float

    @property
    def bpw(self) -> float:
        """Real bits per weight, as `GgufInfo.bpw` counts them."""
        return self.dense_bpw + self.sparse_bpw


def limits(low: GgufInfo) -> tuple[float, float]:
    """The smallest and the largest budget, in real bits per weight, for which a level can be the dense part.

    The smallest pays for the level and for where each row's outliers begin; with the largest, half of the weights are
    outliers.

    Args:
        low: a bundle's lowest level.

    Raises:
        ConvertError: the level has no quantised matrices.
    """
    if not _matrices(low):
        raise ConvertError(f"{low.path.name}: has no quantised matrices to take apart", "give a level below 16 bits")
    least = low.bpw + _bpw(low, _pointer_bits)
    return least, least + _MOST_OUTLIERS * _bpw(low, lambda tensor: _outlier_bits(tensor) * _weights(tensor))


def outliers(low: GgufInfo, bpw: float) -> dict[str, int]:
    """The number of outliers in each matrix (of a tensor's several, as many in each), by the tensor's name.

    They are the same share of every matrix, at least one: so many that the level and they take as many bits.

    Args:
        low: a bundle's lowest level.
        bpw: the budget, in real bits per weight, as `GgufInfo.bpw` counts them.

    Raises:
        ConvertError: the budget is outside of `limits`, or cannot be met within one per cent.
    """
    least, most = limits(low)
    if not least <= bpw <= most:
        reason = (
            "the level and its rows' pointers take more" if bpw < least else "that is more than half of the weights"
        )
        raise ConvertError(
            f"{low.path.name}: cannot spend {bpw:.4g} bits per weight on it and its outliers: {reason}",
            f"choose a budget from {math.ceil(100 * least) / 100:.2f} to {math.floor(100 * most) / 100:.2f}",
        )
    share = _MOST_OUTLIERS * (bpw - least) / (most - least)
    counts = {tensor.name: max(1, round(share * _weights(tensor))) for tensor in _matrices(low)}
    met = _describe(low, counts).bpw
    if abs(met - bpw) > _TOLERANCE * bpw:
        raise ConvertError(
            f"{low.path.name}: its matrices are too small for a budget of {bpw:.4g} bits per weight",
            "choose a larger one",
        )
    return counts


def plan(low: GgufInfo, bpw: float) -> Decomposition:
    """What `make` would make; raises as `outliers` does."""
    return _describe(low, outliers(low, bpw))


def make(
    source: GgufInfo,
    low: GgufInfo,
    out: Path,
    bpw: float,
    imatrix: Path | None = None,
    threads: int | None = None,
    progress: Callable[[float], None] = lambda fraction: None,
    *,
    by: str = "magnitude",
) -> Decomposition:
    """Write a file with the weights of a dense-and-sparse decomposition; it appears whole or not at all.

    Outliers are the weights of the largest magnitude in each matrix, as the ranges of their blocks are narrower without
    them; or, by sensitivity, those whose error in the low level adds most to the squared error of the outputs: the
    largest E[x^2] (w - low)^2, x the input of w's column. By magnitude is the stronger baseline (docs/evaluation.md).
    Embeddings, output, and all that the low level does not quantise are the level's own.

    Args:
        source: the 16- or 32-bit file of the model.
        low: a bundle's lowest level.
        out: the file to write.
        bpw: the budget, in real bits per weight, as `GgufInfo.bpw` counts them.
        imatrix: the importance matrix that the level was made with; the dense part is quantised with it.
        threads: None for all cores.
        progress: called with the fraction of tensors done.
        by: one of `RULES`.

    Raises:
        ConvertError: the budget cannot be met, the level is not of this model or needs an importance matrix, llama.cpp
            refused, or the disk is full.
    """
    counts = outliers(low, bpw)
    _check(source, low, imatrix)
    unfinished = out.with_name(out.name + staging.UNFINISHED)
    job = {
        "source": str(source.path),
        "low": str(low.path),
        "out": str(unfinished),
        "outliers": counts,
        "by": by,
        "imatrix": str(imatrix) if imatrix else None,
        "threads": threads or os.cpu_count() or 1,
    }
    try:
        quantize.run_job("dns", job, unfinished, low.type, progress)
        os.replace(unfinished, out)
    finally:
        unfinished.unlink(missing_ok=True)
    return _describe(low, counts)


def _check(source: GgufInfo, low: GgufInfo, imatrix: Path | None) -> None:
    shapes = {tensor.name: tensor.shape for tensor in source.tensors}
    if shapes != {tensor.name: tensor.shape for tensor in low.tensors}:
        raise ConvertError(f"{low.path.name}: not made of {source.path.name}: its tensors are others")
    types = {tensor.name: tensor.type for tensor in source.tensors}
    for tensor in _matrices(low):
        if types[tensor.name] not in _SOURCE_TYPES:
            raise ConvertError(
                f"{source.path.name}: {tensor.name} is {types[tensor.name]}", "give the model's 16-bit file"
            )
        if imatrix is None and tensor.type in quantize.NEED_IMATRIX:
            raise ConvertError(
                f"{low.path.name}: {tensor.type} needs an importance matrix", "give the one that it was made with"
            )


def _matrices(low: GgufInfo) -> list[Tensor]:
    """The tensors that are taken apart."""
    return [tensor for tensor in low.tensors if residual.holds_remainder(tensor)]


def _weights(tensor: Tensor) -> int:
    """Of one of its matrices."""
    return tensor.shape[0] * tensor.shape[1]


def _outlier_bits(tensor: Tensor) -> int:
    return _VALUE + (_SHORT_INDEX if tensor.shape[0] <= 1 << _SHORT_INDEX else _LONG_INDEX)


def _pointer_bits(tensor: Tensor) -> int:
    """Of one of its matrices."""
    return _POINTER * (tensor.shape[1] + 1)


def _bpw(low: GgufInfo, bits: Callable[[Tensor], float]) -> float:
    """Real bits per weight of a model that has, beside all else, so many bits for each matrix of a tensor."""
    matrices = ((tensor, tensor.elements // _weights(tensor)) for tensor in _matrices(low))
    read = sum(low.share_read(tensor) * count * bits(tensor) for tensor, count in matrices)
    return read / sum(low.share_read(tensor) * tensor.elements for tensor in low.tensors)


def _describe(low: GgufInfo, counts: Mapping[str, int]) -> Decomposition:
    matrices = _matrices(low)
    total = sum(counts[tensor.name] * tensor.elements // _weights(tensor) for tensor in matrices)
    return Decomposition(
        type=low.type,
        dense_bpw=low.bpw,
        sparse_bpw=_bpw(low, lambda tensor: _pointer_bits(tensor) + counts[tensor.name] * _outlier_bits(tensor)),
        outliers=total,
        share=total / sum(tensor.elements for tensor in matrices),
    )
