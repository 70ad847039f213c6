"""Looks at a Hugging Face checkpoint before anything is converted: is everything there, and how large is it?

Reads headers only and needs neither torch nor safetensors.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pmpd_edge.convert.values import Stored
from pmpd_edge.errors import ConvertError

_INDEX = "model.safetensors.index.json"
_DOWNLOAD_AGAIN = "download the model again"

# How checkpoints name the tensors of a layer, and how configurations count the layers.
_LAYER = re.compile(r"((?:^|.*\.)(?:layers|h|blocks)\.)(\d+)(\..+)")
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        elements: number of weights.
        embedding_elements: how many of them are in matrices with one row per token (embeddings and output).
        tensors: where they are stored; empty for pickled weights, which only torch can read.
    """

    path: Path
    elements: int
    embedding_elements: int
    tensors: tuple[Stored, ...] = ()


def inspect(source: Path, trust_remote_code: bool = False) -> Checkpoint:
    """Check that a directory holds a complete checkpoint.

    Upstream's converter runs the Python code that a model brings with it (`auto_map`), so that has to be allowed.

    Raises:
        ConvertError: it is not a directory, has no configuration or no weights, a weights file is damaged, tensors are
            missing, or it brings code and `trust_remote_code` is not set.
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
    _check_experts(source, config)
    text_config = config.get("text_config")
    texts = [config, text_config] if isinstance(text_config, dict) else [config]
    vocabulary = next((text["vocab_size"] for text in texts if "vocab_size" in text), None)

    files, listed = _safetensors(source)
    if files:
        tensors = tuple(tensor for file in files for tensor in _read_header(file))
        _check_complete(source, tensors, listed, texts)
        matrices = [tensor.shape for tensor in tensors if len(tensor.shape) == 2]
        return Checkpoint(
            path=source,
            elements=sum(math.prod(tensor.shape) for tensor in tensors),
            embedding_elements=sum(math.prod(shape) for shape in matrices if shape[0] == vocabulary),
            tensors=tensors,
        )
    pickled = sorted(source.glob("pytorch_model*.bin"))
    if pickled:
        return Checkpoint(source, sum(file.stat().st_size for file in pickled) // 2, 0)
    raise ConvertError(
        f"{source}: no weights (model*.safetensors or pytorch_model*.bin)", "give the directory of a Hugging Face model"
    )


# Whether the weights of a token's chosen experts are made to sum to one: fixed in llama.cpp for these architectures.
_EXPERTS_NORMALISED = {
    "Qwen3MoeForCausalLM": True,
    "Qwen2MoeForCausalLM": False,
    "OlmoeForCausalLM": False,
}


def _check_experts(source: Path, config: Mapping[str, Any]) -> None:
    """Raise ConvertError where llama.cpp would compute something else than the model, without a word."""
    for name in config.get("architectures") or ():
        fixed = _EXPERTS_NORMALISED.get(name)
        asked = bool(config.get("norm_topk_prob", False))
        if fixed is not None and asked != fixed:
            raise ConvertError(
                f"{source / 'config.json'}: norm_topk_prob is {str(asked).lower()}; for {name}, llama.cpp computes as "
                f"if it were {str(fixed).lower()}, and the answers would be wrong",
                "this model cannot be converted",
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


def _safetensors(source: Path) -> tuple[list[Path], Mapping[str, str]]:
    """The safetensors files of a checkpoint, and what its index lists: file names by tensor.

    Raises:
        ConvertError: the index is damaged or lists a file that is missing.
    """
    if not (source / _INDEX).is_file():
        return sorted(source.glob("model*.safetensors")), {}
    weight_map = _read_json(source / _INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ConvertError(f"{source / _INDEX}: no 'weight_map'", _DOWNLOAD_AGAIN)
    files = [source / name for name in sorted(set(weight_map.values()))]
    for file in files:
        if not file.is_file():
            raise ConvertError(f"{file}: missing", _DOWNLOAD_AGAIN)
    return files, weight_map


def _read_header(path: Path) -> list[Stored]:
    """The tensors of a safetensors file; raises ConvertError where the file is cut short or is not one."""
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
            tensors = [_read_entry(path, name, entry, 8 + header_size) for name, entry in header.items()]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            raise ConvertError(f"{path}: not a safetensors file", _DOWNLOAD_AGAIN) from None
    end = max((tensor.offset + tensor.bytes for tensor in tensors), default=8 + header_size)
    if size < end:
        raise ConvertError(f"{path}: cut short ({size} of {end} bytes)", _DOWNLOAD_AGAIN)
    return tensors


def _read_entry(path: Path, name: str, entry: Mapping[str, Any], data_start: int) -> Stored:
    start, end = (int(offset) for offset in entry["data_offsets"])
    if not 0 <= start <= end:
        raise ValueError(f"offsets {start} and {end}")
    return Stored(path, name, str(entry["dtype"]), tuple(map(int, entry["shape"])), data_start + start, end - start)


def _check_complete(
    source: Path, tensors: Sequence[Stored], listed: Mapping[str, str], configs: Sequence[Mapping[str, Any]]
) -> None:
    """Raise ConvertError where the index names a tensor that is missing, or a whole layer is.

    A tensor missing from a layer that is there is found later: only llama.cpp knows what each architecture needs.
    """
    names = {tensor.name for tensor in tensors}
    for name, file in listed.items():
        if name not in names:
            raise ConvertError(f"{source / file}: tensor {name} is missing, which {_INDEX} lists", _DOWNLOAD_AGAIN)

    counts = [config[key] for key in _LAYER_COUNTS for config in configs if isinstance(config.get(key), int)]
    layers = {int(match[2]): match for match in map(_LAYER.fullmatch, sorted(names)) if match}
    if not counts or not layers:
        return
    for layer in range(counts[0]):
        if layer not in layers:
            example = next(iter(layers.values()))
            raise ConvertError(
                f"{source}: tensor {example[1]}{layer}{example[3]} and all others of layer {layer} are missing; "
                f"config.json says that there are {counts[0]} layers",
                _DOWNLOAD_AGAIN,
            )
