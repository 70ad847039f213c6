"""Random GGUF files of architectures whose caches differ: windows, shared layers, convolutions. No torch, no converter.

Attributes of each are in its docstring; all have width 128 and the default model's tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from pmpd_edge.bench.random_model import tokenizer_fields

Shapes = dict[str, tuple[int, ...]]
WINDOW = 16


def write_mimo(path: Path) -> Path:
    """MiMo: layers 0 and 2 of four with a window; two KV heads, of dimension 128 for K and 64 for V."""
    metadata = {
        "attention.head_count": 2,
        "attention.head_count_kv": 2,
        "attention.key_length": 128,
        "attention.value_length": 64,
        "attention.sliding_window": WINDOW,
        "attention.sliding_window_pattern": [True, False, True, False],
        "expert_feed_forward_length": 0,
        "rope.dimension_count": 128,
        "rope.freq_base": 1e6,
        "rope.freq_base_swa": 1e4,
    }
    shapes: Shapes = {"token_embd": (4096, 128), "output_norm": (128,), "output": (4096, 128)}
    for layer in range(4):
        shapes |= _layer(layer, {"attn_q": (256, 128), "attn_k": (256, 128), "attn_v": (128, 128)}, out=128)
    return _write(path, "mimo2", 4, metadata, shapes)


def write_gemma4(path: Path) -> Path:
    """Gemma 4: windows in even layers; the last two of six read the cache of those before them.

    One KV head, of dimension 32 in layers with a window, 64 in the others.
    """
    metadata = {
        "attention.head_count": 2,
        "attention.head_count_kv": 1,
        "attention.key_length": 64,
        "attention.value_length": 64,
        "attention.key_length_swa": 32,
        "attention.value_length_swa": 32,
        "attention.sliding_window": WINDOW,
        "attention.sliding_window_pattern": [True, False] * 3,
        "attention.shared_kv_layers": 2,
        "embedding_length_per_layer_input": 0,
        "rope.dimension_count": 64,
        "rope.dimension_count_swa": 32,
        "rope.freq_base": 1e6,
        "rope.freq_base_swa": 1e4,
    }
    shapes: Shapes = {"token_embd": (4096, 128), "output_norm": (128,), "rope_freqs": (32,)}
    for layer in range(6):
        dim = 64 if layer % 2 else 32
        norms = {"attn_q_norm": (dim,), "attn_k_norm": (dim,), "post_attention_norm": (128,), "post_ffw_norm": (128,)}
        matrices = {"attn_q": (2 * dim, 128), "attn_k": (dim, 128), "attn_v": (dim, 128)}
        shapes |= _layer(layer, {**norms, **matrices}, out=2 * dim)
    return _write(path, "gemma4", 6, metadata, shapes)


def write_lfm2(path: Path) -> Path:
    """LFM2: a convolution, which is recurrent, before a layer with attention, of two KV heads of dimension 64."""
    metadata = {
        "attention.head_count": 2,
        "attention.head_count_kv": [0, 2],
        "shortconv.l_cache": 3,
        "rope.freq_base": 1e4,
    }
    convolution = {"shortconv.conv": (128, 3), "shortconv.in_proj": (384, 128), "shortconv.out_proj": (128, 128)}
    attention = {
        **dict.fromkeys(["attn_q", "attn_k", "attn_v"], (128, 128)),
        "attn_q_norm": (64,),
        "attn_k_norm": (64,),
    }
    shapes: Shapes = {"token_embd": (4096, 128), "token_embd_norm": (128,), **_layer(0, convolution)}
    return _write(path, "lfm2", 2, metadata, {**shapes, **_layer(1, attention, out=128)})


def _layer(layer: int, shapes: Mapping[str, tuple[int, ...]], out: int = 0) -> Shapes:
    """What all layers have, and more; `out`: the width of attention's output."""
    own: Shapes = {**dict.fromkeys(["attn_norm", "ffn_norm"], (128,)), **shapes}
    own |= dict.fromkeys(["ffn_gate", "ffn_up", "ffn_down"], (128, 128))
    own |= {"attn_output": (128, out)} if out else {}
    return {f"blk.{layer}.{name}": shape for name, shape in own.items()}


def _write(path: Path, architecture: str, layers: int, metadata: Mapping[str, Any], shapes: Shapes) -> Path:
    """Write tensors near one (those of one dimension) and near zero."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, architecture)
    common = {
        "block_count": layers,
        "context_length": 1024,
        "embedding_length": 128,
        "feed_forward_length": 128,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "vocab_size": 4096,
    }
    for key, value in {**common, **metadata}.items():
        add = {float: writer.add_float32, int: writer.add_uint32, list: writer.add_array}[type(value)]
        add(f"{architecture}.{key}", value)
    for key, (value, kind, element) in tokenizer_fields().items():
        writer.add_key_value(key, value, kind, sub_type=element)
    for name, shape in shapes.items():
        noise = rng.standard_normal(shape)
        array = 1 + 0.1 * noise if len(shape) == 1 else noise / np.sqrt(shape[-1])
        writer.add_tensor(f"{name}.weight", array.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
