"""Reads what a GGUF file says about itself: metadata, tensor types and shapes, real bits per weight.

Knows the header only; no weights are read. (gguf on PyPI reads headers too, but not all of the types here, and it
takes seconds for a large vocabulary.)
"""

from __future__ import annotations

import hashlib
import math
import mmap
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from pmpd_edge.errors import BundleError

# enum ggml_type: number, elements per block, bytes per block
TYPES = {
    "F32": (0, 1, 4),
    "F16": (1, 1, 2),
    "Q4_0": (2, 32, 18),
    "Q4_1": (3, 32, 20),
    "Q5_0": (6, 32, 22),
    "Q5_1": (7, 32, 24),
    "Q8_0": (8, 32, 34),
    "Q2_K": (10, 256, 84),
    "Q3_K": (11, 256, 110),
    "Q4_K": (12, 256, 144),
    "Q5_K": (13, 256, 176),
    "Q6_K": (14, 256, 210),
    "IQ2_XXS": (16, 256, 66),
    "IQ2_XS": (17, 256, 74),
    "IQ3_XXS": (18, 256, 98),
    "IQ1_S": (19, 256, 50),
    "IQ4_NL": (20, 32, 18),
    "IQ3_S": (21, 256, 110),
    "IQ2_S": (22, 256, 82),
    "IQ4_XS": (23, 256, 136),
    "I8": (24, 1, 1),
    "I16": (25, 1, 2),
    "I32": (26, 1, 4),
    "I64": (27, 1, 8),
    "F64": (28, 1, 8),
    "IQ1_M": (29, 256, 56),
    "BF16": (30, 1, 2),
    "TQ1_0": (34, 256, 54),
    "TQ2_0": (35, 256, 66),
    "MXFP4": (39, 32, 17),
    "NVFP4": (40, 64, 36),
    "Q1_0": (41, 128, 18),
    "Q2_0": (42, 64, 18),
}
_NAMES = {number: name for name, (number, _, _) in TYPES.items()}

# Matrices with one row per token; all levels below 16 share one type for them.
VOCABULARY_MATRICES = ("token_embd.weight", "per_layer_token_embd.weight", "output.weight")
SHARED_TYPE = "Q8_0"

# The parts of a model whose bits are told apart; everything else, such as norms, is "other".
TENSOR_CLASSES = {
    "embeddings": re.compile(r"^(token_embd|per_layer_token_embd|position_embd)\.weight$"),
    "output": re.compile(r"^output\.weight$"),
    "attention": re.compile(r"\.attn_(?!.*norm).*\.weight$"),
    "feed-forward": re.compile(r"\.ffn_(?!.*norm|gate_inp).*\.weight$"),
}

# A step looks up one row of these, however large they are.
_LOOKED_UP = ("per_layer_token_embd.weight", "position_embd.weight", "token_types.weight")
# Constants of the rotary embedding, not weights.
_CONSTANTS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


def bits(type_name: str) -> float:
    """Bits per weight of a tensor type."""
    _, elements, n_bytes = TYPES[type_name]
    return 8 * n_bytes / elements


@dataclass(frozen=True)
class Tensor:
    """A tensor's entry; `shape` is in ggml's order: columns first."""

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        _, elements, n_bytes = TYPES[self.type]
        return self.elements // elements * n_bytes


@dataclass(frozen=True)
class GgufInfo:
    """The header of a GGUF file.

    Attributes:
        metadata: all values that are not arrays.
        tokenizer_sha256: over all entries `tokenizer.*`, sorted by key, each as the file encodes it (key, type, value).
        data_start: where the tensors' offsets count from, in bytes.
    """

    path: Path
    metadata: dict[str, bool | int | float | str]
    tokenizer_sha256: str
    tensors: tuple[Tensor, ...]
    data_start: int = 0

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    @property
    def context_length(self) -> int:
        """The number of tokens that the model was trained on."""
        return int(self.metadata.get(f"{self.architecture}.context_length", 0))

    @property
    def parameters(self) -> int:
        """Number of weights; tied embeddings count once."""
        return sum(tensor.elements for tensor in self.tensors if not tensor.name.endswith(_CONSTANTS))

    @property
    def type(self) -> str:
        """The type of most weights in matrices other than embeddings and output."""
        count: Counter[str] = Counter()
        for tensor in self.tensors:
            if len(tensor.shape) > 1 and tensor.name not in VOCABULARY_MATRICES:
                count[tensor.type] += tensor.elements
        return count.most_common(1)[0][0] if count else self.tensors[0].type

    @property
    def bpw(self) -> float:
        """Real bits per weight: bits of all tensors that a decode step reads / parameters read."""
        read = [(self.share_read(tensor), tensor) for tensor in self.tensors]
        return sum(8 * share * t.bytes for share, t in read) / sum(share * t.elements for share, t in read)

    def share_read(self, tensor: Tensor) -> float:
        """The share of a tensor that a decode step reads: 0 of look-up tables, a few experts of a mixture."""
        if tensor.name.endswith(_CONSTANTS) or tensor.name in _LOOKED_UP:
            return 0.0
        if tensor.name == "token_embd.weight":  # is the output matrix too, unless there is one
            return 0.0 if any(other.name == "output.weight" for other in self.tensors) else 1.0
        if "_exps." in tensor.name:
            count = float(self.metadata.get(f"{self.architecture}.expert_count", 0))
            used = float(self.metadata.get(f"{self.architecture}.expert_used_count", 0))
            return used / count if count and used else 1.0
        return 1.0

    def fallbacks(self, expected: Callable[[Tensor], str]) -> tuple[Tensor, ...]:
        """The matrices whose type is not the expected one, because their shape does not allow it.

        Routers and the like, which stay F32, are as they should be.
        """
        return tuple(
            tensor
            for tensor in self.tensors
            if len(tensor.shape) > 1 and tensor.type != "F32" and tensor.type != expected(tensor)
        )


def tensor_class(name: str) -> str:
    """What a tensor is part of: one of `TENSOR_CLASSES`."""
    return next((label for label, pattern in TENSOR_CLASSES.items() if pattern.search(name)), "other")


def read(path: Path) -> GgufInfo:
    """Read the header of a GGUF file, and check that the file is as long as it says.

    Raises:
        BundleError: the file is not a GGUF, is damaged or cut short, or has a tensor type that is not known here.
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(path, data)
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}") from None
    except (struct.error, ValueError, IndexError, OverflowError) as error:
        raise BundleError(f"{path}: not a GGUF file, or damaged ({error})") from None


def write_u32(path: Path, key: str, value: int) -> None:
    """Change a number in a file's metadata in its place.

    Raises:
        BundleError: the file has no such number.
    """
    name = key.encode()
    entry = struct.pack("<Q", len(name)) + name + struct.pack("<I", _U32)
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as data:
        at = data.find(entry)
        if at < 0:
            raise BundleError(f"{path}: has no {key}")
        data[at + len(entry) : at + len(entry) + 4] = struct.pack("<I", value)


_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_U32, _STRING, _ARRAY = 4, 8, 9


class _Cursor:
    """A position in the file's bytes; struct.error where they end too early."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = 0

    def scalar(self, layout: str) -> bool | int | float:
        (value,) = struct.unpack_from(layout, self.data, self.at)
        self.at += struct.calcsize(layout)
        return value

    def u32(self) -> int:
        return int(self.scalar("<I"))

    def u64(self) -> int:
        return int(self.scalar("<Q"))

    def string(self) -> str:
        size = self.u64()
        start, self.at = self.at, self.at + size
        if self.at > len(self.data):
            raise ValueError("cut short")
        return self.data[start : self.at].decode("utf-8", "replace")

    def skip_array(self, depth: int = 0) -> None:
        item, count = self.u32(), self.u64()
        if item in _SCALARS:
            self.at += count * struct.calcsize(_SCALARS[item])
        elif item == _STRING:
            for _ in range(count):
                size = self.u64()
                self.at += size
        elif item == _ARRAY and depth < 4:
            for _ in range(count):
                self.skip_array(depth + 1)
        else:
            raise ValueError(f"array of type {item}")


def _parse(path: Path, data: mmap.mmap) -> GgufInfo:
    cursor = _Cursor(data)
    if data[:4] != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    cursor.at = 4
    version, n_tensors, n_entries = cursor.u32(), cursor.u64(), cursor.u64()
    if version not in (2, 3):
        raise ValueError(f"GGUF version {version}")

    metadata: dict[str, bool | int | float | str] = {}
    tokenizer: dict[str, bytes] = {}
    for _ in range(n_entries):
        start = cursor.at
        key, kind = cursor.string(), cursor.u32()
        if kind == _ARRAY:
            cursor.skip_array()
        elif kind == _STRING:
            metadata[key] = cursor.string()
        elif kind in _SCALARS:
            metadata[key] = cursor.scalar(_SCALARS[kind])
        else:
            raise ValueError(f"entry {key!r} of type {kind}")
        if key.startswith("tokenizer."):
            tokenizer[key] = data[start : cursor.at]

    tensors = tuple(_parse_tensor(cursor) for _ in range(n_tensors))
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment <= 0:
        raise ValueError(f"alignment {alignment!r}")
    data_start = -(-cursor.at // alignment) * alignment
    size = data_start + max((tensor.offset + tensor.bytes for tensor in tensors), default=0)
    if len(data) < size or not tensors:
        raise ValueError(f"{len(data)} of {size} bytes, {len(tensors)} tensors")
    return GgufInfo(path, metadata, _hash(tokenizer[key] for key in sorted(tokenizer)), tensors, data_start)


def _parse_tensor(cursor: _Cursor) -> Tensor:
    name = cursor.string()
    shape = tuple(cursor.u64() for _ in range(cursor.u32()))
    number, offset = cursor.u32(), cursor.u64()
    if number not in _NAMES:
        raise ValueError(f"tensor {name!r} of type {number}")
    return Tensor(name, _NAMES[number], shape, offset)


def _hash(entries: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(entry)
    return digest.hexdigest()
