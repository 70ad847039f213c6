"""Looks at a Hugging Face checkpoint before anything is converted: is everything there, and how large is it?

Reads headers only and needs neither torch nor safetensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pmpd_edge.errors import ConvertError

_INDEX = "model.safetensors.index.json"
_DOWNLOAD_AGAIN = "download the model again"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's size.

    Attributes:
        elements: number of weights.
        embedding_elements: how many of them are in matrices with one row per token (embeddings and output).
    """

    path: Path
    elements: int
    embedding_elements: int


def inspect(source: Path, trust_remote_code: bool = False) -> Checkpoint:
    """Check that a directory holds a complete checkpoint.

    Upstream's converter runs the Python code that a model brings with it (`auto_map`), so that has to be allowed.

    Raises:
        ConvertError: it is not a directory, has no configuration or no weights, a weights file is damaged, or it brings
            code and `trust_remote_code` is not set.
    """
    if not source.is_dir():
        what = "not a directory" if source.exists() else "no such directory"
        raise ConvertError(f"{source}: {what}", "give the directory of a Hugging Face model")
    config = _read_json(source / "config.json")
    for name in ("config.json", "tokenizer_config.json"):
        if not trust_remote_code and (source / name).is_file() and "auto_map" in _read_json(source / name):
            raise ConvertError(
                f"{source / name}: the model brings its own Python code, which converting would run",
                "read it, then allow that with --trust-remote-code",
            )
    text_config = config.get("text_config")
    vocabulary = config.get("vocab_size", text_config.get("vocab_size") if isinstance(text_config, dict) else None)

    files = _safetensors(source)
    if files:
        shapes = [shape for file in files for shape in _read_shapes(file)]
        return Checkpoint(
            path=source,
            elements=sum(map(math.prod, shapes)),
            embedding_elements=sum(math.prod(shape) for shape in shapes if len(shape) == 2 and shape[0] == vocabulary),
        )
    pickled = sorted(source.glob("pytorch_model*.bin"))
    if pickled:
        return Checkpoint(source, sum(file.stat().st_size for file in pickled) // 2, 0)
    raise ConvertError(
        f"{source}: no weights (model*.safetensors or pytorch_model*.bin)", "give the directory of a Hugging Face model"
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConvertError(
            f"{path.parent}: no {path.name}", "give the directory of a Hugging Face model, which has one"
        ) from None
    except (OSError, ValueError) as error:
        raise ConvertError(f"{path}: not readable ({error})", _DOWNLOAD_AGAIN) from None
    if not isinstance(document, dict):
        raise ConvertError(f"{path}: not a JSON object", _DOWNLOAD_AGAIN)
    return document


def _safetensors(source: Path) -> list[Path]:
    """The safetensors files of a checkpoint; raises ConvertError where the index lists one that is missing."""
    if not (source / _INDEX).is_file():
        return sorted(source.glob("model*.safetensors"))
    weight_map = _read_json(source / _INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ConvertError(f"{source / _INDEX}: no 'weight_map'", _DOWNLOAD_AGAIN)
    files = [source / name for name in sorted(set(weight_map.values()))]
    for file in files:
        if not file.is_file():
            raise ConvertError(f"{file}: missing", _DOWNLOAD_AGAIN)
    return files


def _read_shapes(path: Path) -> Iterable[tuple[int, ...]]:
    """The shapes in a safetensors file; raises ConvertError where the file is cut short or is not one."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        if start == b"version ":
            raise ConvertError(f"{path}: a Git LFS pointer, not the weights", "run 'git lfs pull' in the model")
        header_size = int.from_bytes(start, "little")
        if len(start) < 8 or header_size > size:
            raise ConvertError(f"{path}: not a safetensors file, or cut short ({size} bytes)", _DOWNLOAD_AGAIN)
        try:
            header = json.loads(file.read(header_size))
            header.pop("__metadata__", None)
            shapes = [tuple(map(int, entry["shape"])) for entry in header.values()]
            data_size = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            raise ConvertError(f"{path}: not a safetensors file", _DOWNLOAD_AGAIN) from None
    if size < 8 + header_size + data_size:
        raise ConvertError(f"{path}: cut short ({size} of {8 + header_size + data_size} bytes)", _DOWNLOAD_AGAIN)
    return shapes
