"""Random Llama GGUF files of any shape, for measuring and for testing the C side: no torch, no download.

They borrow the default model's tokenizer. Needs the package `gguf`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from pmpd_edge import native
from pmpd_edge.bundle import default_bundle, load

Matrix = npt.NDArray[np.float32]
Fields = dict[str, tuple[Any, gguf.GGUFValueType, gguf.GGUFValueType | None]]

# enum llama_ftype
FTYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "Q2_K": 10, "Q3_K": 12, "Q4_K": 15, "Q5_K": 17, "Q6_K": 18}


def tokenizer_fields() -> Fields:
    """The `tokenizer.*` metadata of the default model: key -> (value, type, element type)."""
    default = load(default_bundle())
    reader = gguf.GGUFReader(default.paths(default.levels[0])[0])
    fields: Fields = {}
    for key, field in reader.fields.items():
        if key.startswith("tokenizer."):
            kind, *element = field.types
            fields[key] = (field.contents(), kind, element[-1] if element else None)
    return fields


def write_llama(
    path: Path,
    *,
    architecture: str = "llama",
    hidden: int = 256,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    ff: int = 512,
    tied: bool = True,
    seed: int = 0,
    metadata: Mapping[str, float | int] | None = None,
    tokenizer: Callable[[dict[str, Any]], None] = lambda fields: None,
    weights: Callable[[str, Matrix], Matrix] = lambda name, array: array,
    dtype: npt.DTypeLike = np.float32,
) -> Path:
    """Write a Llama with the default model's tokenizer and random weights.

    Args:
        metadata: hyperparameters (keys without the architecture) that replace the usual ones.
        tokenizer: changes the tokenizer's fields in place.
        weights: maps a matrix's name and float32 values to what is written.
        dtype: of the matrices, float32 or float16.
    """
    rng = np.random.default_rng(seed)
    fields = tokenizer_fields()
    tokenizer(fields)
    n_vocab = len(fields["tokenizer.ggml.tokens"][0])
    head = hidden // heads
    numbers: dict[str, float | int] = {
        "block_count": layers,
        "context_length": 512,
        "embedding_length": hidden,
        "feed_forward_length": ff,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 10000.0,
        "rope.dimension_count": head,
        "vocab_size": n_vocab,
        **(metadata or {}),
    }
    writer = _writer(path, architecture, numbers, fields)

    def matrix(name: str, rows: int, columns: int) -> None:
        array = rng.standard_normal((rows, columns), dtype=np.float32) / np.sqrt(columns)
        writer.add_tensor(name, weights(name, array.astype(np.float32)).astype(dtype))

    def norm(name: str) -> None:
        writer.add_tensor(name, (1 + 0.1 * rng.standard_normal(hidden)).astype(np.float32))

    matrix("token_embd.weight", n_vocab, hidden)
    norm("output_norm.weight")
    if not tied:
        matrix("output.weight", n_vocab, hidden)
    for i in range(layers):
        norm(f"blk.{i}.attn_norm.weight")
        matrix(f"blk.{i}.attn_q.weight", hidden, hidden)
        matrix(f"blk.{i}.attn_k.weight", kv_heads * head, hidden)
        matrix(f"blk.{i}.attn_v.weight", kv_heads * head, hidden)
        matrix(f"blk.{i}.attn_output.weight", hidden, hidden)
        norm(f"blk.{i}.ffn_norm.weight")
        matrix(f"blk.{i}.ffn_gate.weight", ff, hidden)
        matrix(f"blk.{i}.ffn_up.weight", ff, hidden)
        matrix(f"blk.{i}.ffn_down.weight", hidden, ff)

    return _finish(writer, path)


def write_mamba(path: Path, *, seed: int = 0) -> Path:
    """Write a small F32 Mamba: a recurrent model, some of whose matrices are no factors of a matrix product."""
    rng = np.random.default_rng(seed)
    fields = tokenizer_fields()
    n_vocab = len(fields["tokenizer.ggml.tokens"][0])
    hidden, inner, state, rank, kernel, layers = 64, 128, 16, 4, 4, 2
    numbers: dict[str, float | int] = {
        "block_count": layers,
        "context_length": 512,
        "embedding_length": hidden,
        "feed_forward_length": 0,
        "attention.head_count": 0,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "ssm.conv_kernel": kernel,
        "ssm.inner_size": inner,
        "ssm.state_size": state,
        "ssm.time_step_rank": rank,
        "vocab_size": n_vocab,
    }
    writer = _writer(path, "mamba", numbers, fields)

    def random(*shape: int) -> Matrix:
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    writer.add_tensor("token_embd.weight", random(n_vocab, hidden))
    writer.add_tensor("output_norm.weight", np.ones(hidden, np.float32))
    for i in range(layers):
        writer.add_tensor(f"blk.{i}.attn_norm.weight", np.ones(hidden, np.float32))
        writer.add_tensor(f"blk.{i}.ssm_in.weight", random(2 * inner, hidden))
        writer.add_tensor(f"blk.{i}.ssm_conv1d.weight", random(inner, kernel))
        writer.add_tensor(f"blk.{i}.ssm_conv1d.bias", np.zeros(inner, np.float32))
        writer.add_tensor(f"blk.{i}.ssm_x.weight", random(rank + 2 * state, inner))
        writer.add_tensor(f"blk.{i}.ssm_dt.weight", random(inner, rank))
        writer.add_tensor(f"blk.{i}.ssm_dt.bias", np.zeros(inner, np.float32))
        writer.add_tensor(f"blk.{i}.ssm_a", -np.abs(random(inner, state)))
        writer.add_tensor(f"blk.{i}.ssm_d", np.ones(inner, np.float32))
        writer.add_tensor(f"blk.{i}.ssm_out.weight", random(hidden, inner))
    return _finish(writer, path)


def _writer(path: Path, architecture: str, numbers: Mapping[str, float | int], tokenizer: Fields) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, architecture)
    for key, number in numbers.items():
        add = writer.add_float32 if isinstance(number, float) else writer.add_uint32
        add(f"{architecture}.{key}", number)
    for key, (value, kind, element) in tokenizer.items():
        writer.add_key_value(key, value, kind, sub_type=element)
    return writer


def _finish(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def quantize(source: Path, out: Path, type_name: str) -> Path:
    """Quantise every matrix to one type, embeddings and output to Q8_0."""
    llama_cpp = native.load()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = FTYPES[type_name]
    params.pure = True
    params.nthread = 1
    params.token_embedding_type = params.output_tensor_type = 8  # GGML_TYPE_Q8_0
    with native.captured_log() as lines:
        result = llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params))
    assert result == 0, lines
    return out


def write_lora(path: Path, *, hidden: int, layers: int, seed: int = 0, rank: int = 4) -> Path:
    """Write a LoRA adapter for the attention's query and output matrices, strong enough to change the answer."""
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(rank))
    for i in range(layers):
        for name in ("attn_q", "attn_output"):
            a = (rng.standard_normal((rank, hidden)) / np.sqrt(hidden)).astype(np.float32)
            b = rng.standard_normal((hidden, rank)).astype(np.float32)
            writer.add_tensor(f"blk.{i}.{name}.weight.lora_a", a)
            writer.add_tensor(f"blk.{i}.{name}.weight.lora_b", b)
    return _finish(writer, path)
