"""Looks for NaN and infinite values in stored tensors: one of them makes every answer of a model noise.

Goes by bit patterns in the file, tensor by tensor and block by block: quick, in little memory, without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pmpd_edge.errors import ConvertError

# Safetensors' and ggml's names of a float type: the unsigned integer of its size; all bits but the sign; the lowest of
# these patterns that is not a number. Above the largest finite value there is infinity, then the NaNs.
_FLOATS: dict[str, tuple[str, int, int]] = {
    "BF16": ("<u2", 0x7FFF, 0x7F80),
    "F16": ("<u2", 0x7FFF, 0x7C00),
    "F32": ("<u4", 0x7FFFFFFF, 0x7F800000),
    "F64": ("<u8", 0x7FFFFFFFFFFFFFFF, 0x7FF0000000000000),
    "F8_E4M3": ("u1", 0x7F, 0x7F),  # has no infinity
    "F8_E5M2": ("u1", 0x7F, 0x7C),
}

_BLOCK = 1 << 22  # bytes: what is compared fits into a core's cache


@dataclass(frozen=True)
class Stored:
    """A tensor's place in a file; `offset` is in bytes from the file's beginning."""

    path: Path
    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    bytes: int


def check(tensors: Sequence[Stored], progress: Callable[[float], None] = lambda fraction: None) -> None:
    """Check that all values of all floating-point tensors are numbers; other types are passed over.

    Args:
        progress: called with the fraction that is read.

    Raises:
        ConvertError: a value is NaN or infinite; with the tensor's name and the value's place in it.
    """
    floats = [tensor for tensor in tensors if tensor.type in _FLOATS]
    total, done = sum(tensor.bytes for tensor in floats), 0
    buffer = bytearray(_BLOCK)
    by_file: dict[Path, list[Stored]] = {}
    for tensor in floats:
        by_file.setdefault(tensor.path, []).append(tensor)
    for path, stored in by_file.items():
        with open(path, "rb", buffering=0) as file:
            for tensor in sorted(stored, key=lambda tensor: tensor.offset):
                file.seek(tensor.offset)
                read = 0
                while read < tensor.bytes:
                    block = memoryview(buffer)[: min(_BLOCK, tensor.bytes - read)]
                    _fill(path, file, block)
                    _check_block(tensor, block, read)
                    read += len(block)
                    done += len(block)
                    progress(done / total)


def _fill(path: Path, file: object, block: memoryview) -> None:
    """Read a whole block: one call of an unbuffered file may give less."""
    at = 0
    while at < len(block):
        n_bytes = file.readinto(block[at:])  # type: ignore[attr-defined]
        if not n_bytes:
            raise ConvertError(f"{path}: cut short", "download the model again")
        at += n_bytes


def _check_block(tensor: Stored, block: memoryview, start: int) -> None:
    layout, magnitude, first_bad = _FLOATS[tensor.type]
    bits = np.frombuffer(block, layout) & np.dtype(layout).type(magnitude)
    if bits.size == 0 or bits.max() < first_bad:
        return
    bad = int(np.argmax(bits >= first_bad))
    what = "an infinite value" if bits[bad] == first_bad and tensor.type != "F8_E4M3" else "NaN"
    element = start // bits.itemsize + bad
    raise ConvertError(
        f"{tensor.path}: tensor {tensor.name} has {what} (element {element}): the checkpoint is broken",
        "download the model again, or ask who trained it",
    )
