"""Residual files of the nested layout: what remains of a 16-bit GGUF after the levels below, quantised.

A residual file is a GGUF with every tensor of the model, so that it loads on its own. Those that `llama_set_weights`
sums hold the remainder; all others are zeros in the cheapest form, for they come from the base.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from pmpd_edge import gguf_info
from pmpd_edge.convert import child, quantize
from pmpd_edge.convert.quantize import Recipe
from pmpd_edge.errors import ConvertError
from pmpd_edge.gguf_info import GgufInfo, Tensor

# What a type becomes where a matrix's columns are not divisible by its blocks: llama.cpp's table. Q1_0 is not in that.
_FALLBACKS = {
    **dict.fromkeys((*quantize.NEED_IMATRIX, "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    "Q1_0": "Q4_0",
    "Q2_0": "Q4_0",
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
_ZEROS = ("Q1_0", "Q2_0", "Q4_0", "F16")  # by rising size; all bytes zero are all weights zero
_UNQUANTISED = ("F32", "F16", "BF16")
_MOST_UNQUANTISED = 0.01  # of the summed weights: a residual stores 16 bits of nothing for each of them

_NOT_SUMMED = re.compile(r"(\S+) is not summed")


def is_summed(tensor: Tensor) -> bool:
    """Whether `llama_set_weights` sums a tensor, by its contract: the layers' matrices, but not the routers."""
    return "blk." in tensor.name and len(tensor.shape) > 1 and tensor.shape[1] > 1 and not _is_router(tensor)


def _is_router(tensor: Tensor) -> bool:
    return "ffn_gate_inp" in tensor.name


def holds_remainder(base: Tensor) -> bool:
    """Whether something remains of a tensor after the base: it is summed, and quantised there."""
    return is_summed(base) and base.type not in _UNQUANTISED


def type_of(base: Tensor, recipe: Recipe) -> str:
    """The type of a tensor in a residual file.

    Args:
        base: the tensor in the base.
        recipe: the level's.
    """
    if holds_remainder(base):
        type_name = recipe.type_of(base)
        return type_name if _fits(base, type_name) else _FALLBACKS[type_name]
    # llama.cpp loads no other type than F32 for most of what it keeps in F32 itself, such as norms.
    if len(base.shape) == 1 or (base.type == "F32" and not _is_router(base)):
        return "F32"
    return next(name for name in _ZEROS if _fits(base, name))


def _fits(tensor: Tensor, type_name: str) -> bool:
    return tensor.shape[0] % gguf_info.TYPES[type_name][1] == 0


def check(source: GgufInfo) -> None:
    """Check that a model can be the sum of a base and residuals, before hours are spent on that.

    Args:
        source: its 16-bit file.

    Raises:
        ConvertError: its architecture does not sum all matrices of the layers, or too many of them stay in 16 bits.
    """
    check_sum([source.path, source.path])
    summed = [tensor for tensor in source.tensors if is_summed(tensor)]
    stay = [tensor for tensor in summed if not _fits(tensor, "Q4_0")]
    if sum(tensor.elements for tensor in stay) > _MOST_UNQUANTISED * sum(tensor.elements for tensor in summed):
        raise ConvertError(
            f"{source.path.name}: {_kinds(tensor.name for tensor in stay)} stay in 16 bits, as their columns are not "
            "divisible by 32: nested levels would gain nothing",
            "use --layout separate",
        )


def make(
    source: GgufInfo,
    below: Sequence[GgufInfo],
    out: Path,
    recipe: Recipe,
    threads: int | None = None,
    progress: Callable[[float], None] = lambda fraction: None,
) -> None:
    """Write a residual file: source - (the sum of the files below).

    Memory in use is a few tens of MB per thread, whatever the model.

    Args:
        source: the 16-bit file.
        below: the base, then its residuals so far.
        out: the file to write.
        recipe: the types of matrices; `_FALLBACKS` where columns do not suit one.
        threads: None for all cores.
        progress: called with the fraction of tensors done.

    Raises:
        ConvertError: llama.cpp refused or the disk is full.
    """
    job = {
        **recipe.job(),
        "source": str(source.path),
        "below": [str(info.path) for info in below],
        "out": str(out),
        "types": {tensor.name: type_of(tensor, recipe) for tensor in below[0].tensors},
        "threads": threads or os.cpu_count() or 1,
    }
    quantize.run_job("residual", job, out, recipe.type, progress)


def check_sum(paths: Sequence[Path]) -> None:
    """Check that llama.cpp evaluates the sum of files; their weights are not read.

    Raises:
        ConvertError: it does not; with the matrices that it does not sum, or its reason.
    """
    names: list[str] = []

    def on_line(line: str) -> None:
        names.extend(_NOT_SUMMED.findall(line))

    try:
        child.run(quantize.CODE, ["sum", json.dumps({"files": [str(path) for path in paths]})], on_line)
    except child.ChildError as error:
        if names:
            reason = f"this architecture multiplies {_kinds(names)} in a way that cannot be summed"
        else:
            reason = f"llama.cpp does not sum the levels ({error.reason})"
        raise ConvertError(f"{paths[0].name}: {reason}", "use --layout separate") from None


def _kinds(names: Iterable[str]) -> str:
    """Tensors of all layers by their common names: `attn_q.weight, ffn_down.weight`."""
    return ", ".join(sorted({re.sub(r"^.*?blk\.\d+\.", "", name) for name in names}))


def bpw(residual: GgufInfo, base: GgufInfo) -> float:
    """Real bits per weight that a residual adds to a level: bits of its summed matrices / parameters that a step reads.

    Both over what a decode step reads. Matrices of zeros that are summed count: they are read.
    """
    share = {tensor.name: base.share_read(tensor) for tensor in base.tensors}
    bits = sum(8 * share[tensor.name] * tensor.bytes for tensor in residual.tensors if is_summed(tensor))
    return bits / sum(share[tensor.name] * tensor.elements for tensor in base.tensors)


def bpw_by_class(info: GgufInfo, base: GgufInfo | None = None) -> dict[str, float]:
    """Bits per weight of the parts of a model (`gguf_info.TENSOR_CLASSES`), whatever share of them a step reads.

    Args:
        info: a complete file, or a residual.
        base: of a residual, whose part in a sum is then returned.
    """
    bits: Counter[str] = Counter()
    elements: Counter[str] = Counter()
    for tensor in info.tensors:
        if base is None or is_summed(tensor):
            bits[gguf_info.tensor_class(tensor.name)] += 8 * tensor.bytes
    for tensor in (base or info).tensors:
        elements[gguf_info.tensor_class(tensor.name)] += tensor.elements
    labels = (*gguf_info.TENSOR_CLASSES, "other")
    return {label: round(bits[label] / elements[label], 4) for label in labels if bits[label]}
