"""The bytes that a decode step reads from memory: weights and KV cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pmpd_edge import gguf_info
from pmpd_edge.bundle import Bundle, Level

if TYPE_CHECKING:
    from pmpd_edge.runner import Pmpd


def parameters_read(bundle: Bundle, level: Level) -> float:
    """The weights that a step multiplies with: of a mixture of experts, those of the experts that it uses."""
    base = gguf_info.read(bundle.paths(level)[0])
    return sum(base.share_read(tensor) * tensor.elements for tensor in base.tensors)


def weight_bytes(bundle: Bundle, level: Level) -> int:
    """Bytes of weights that a step at a level reads: the base's from its header, the residuals' from the manifest."""
    base = gguf_info.read(bundle.paths(level)[0])
    read = sum(base.share_read(tensor) * tensor.bytes for tensor in base.tensors)
    residual_bits = sum(bundle.files[name].bpw for name in level.weights[1:])
    return round(read + parameters_read(bundle, level) * residual_bits / 8)


def cache_bytes(llm: Pmpd) -> int:
    """Bytes that the KV cache holds, and a step reads: what a saved state would take, whatever the architecture."""
    from pmpd_edge.runner import llama_cpp

    return llama_cpp.llama_state_seq_get_size(llm.ctx, 0)


def cache_bytes_wanted(bundle: Bundle, n_ctx: int) -> int:
    """Bytes of a 16-bit KV cache before there is one; an upper bound for models with windows or compressed caches."""
    info = gguf_info.read(bundle.paths(bundle.levels[0])[0])

    def number(key: str, otherwise: int = 0) -> int:
        return int(info.metadata.get(f"{info.architecture}.{key}", otherwise))

    heads = number("attention.head_count")
    if not heads:
        return 0  # no attention, or heads that differ by layer
    head = number("embedding_length") // heads
    width = number("attention.key_length", head) + number("attention.value_length", head)
    return 2 * n_ctx * number("block_count") * number("attention.head_count_kv", heads) * width
