"""llama.cpp's C API, thin enough to write oracles with: models, contexts, batches, states."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pmpd_edge import native

L = native.load()
L.llama_backend_init()

GPU_LAYERS = int(os.environ.get("PMPD_TEST_GPU_LAYERS", "0"))
F32, F16, Q8_0 = 0, 1, 8  # enum ggml_type
CACHE_TYPES = {
    "f32": F32, "f16": F16, "bf16": 30, "q8_0": Q8_0, "q5_1": 7, "q5_0": 6, "q4_1": 3, "q4_0": 2, "iq4_nl": 20
}  # fmt: skip


class Model:
    """A loaded GGUF file."""

    def __init__(self, path: Path, *, overrides: Any = None) -> None:
        params = L.llama_model_default_params()
        params.n_gpu_layers = GPU_LAYERS
        if overrides is not None:
            params.kv_overrides = overrides
        with native.captured_log() as lines:
            self.pointer = L.llama_model_load_from_file(str(path).encode(), params)
        assert self.pointer, lines
        self.n_vocab = L.llama_vocab_n_tokens(L.llama_model_get_vocab(self.pointer))

    def __del__(self) -> None:
        L.llama_model_free(self.pointer)


class Context:
    """A context, its models kept alive, and the number of tokens of each of its sequences."""

    def __init__(
        self,
        *models: Model,
        n_ctx: int = 256,
        n_seq: int = 1,
        flash_attn: bool = True,
        type_k: int = F16,
        type_v: int = F16,
        n_threads: int = 1,
        unified: bool = False,
        n_ubatch: int | None = None,
        swa_full: bool = True,
    ) -> None:
        self.options = {
            "n_ctx": n_ctx, "n_seq": n_seq, "flash_attn": flash_attn, "type_k": type_k, "type_v": type_v,
            "n_threads": n_threads, "unified": unified, "n_ubatch": n_ubatch, "swa_full": swa_full,
        }  # fmt: skip
        params = L.llama_context_default_params()
        params.n_ctx = params.n_batch = n_ctx
        params.n_ubatch = n_ubatch or n_ctx
        params.n_seq_max = n_seq
        params.kv_unified, params.swa_full = unified, swa_full
        params.n_threads = params.n_threads_batch = n_threads
        params.flash_attn_type = L.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash_attn else L.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.type_k, params.type_v = type_k, type_v
        with native.captured_log() as lines:
            self.pointer = L.llama_init_from_model(models[0].pointer, params)
        assert self.pointer, lines
        self.n_vocab = models[0].n_vocab
        self.keep: list[Any] = [models[0]]
        self.n_past = [0] * n_seq
        self.memory = L.llama_get_memory(self.pointer)
        if len(models) > 1:
            self.set_weights(*models)

    def __del__(self) -> None:
        if getattr(self, "pointer", None):
            L.llama_free(self.pointer)

    def set_weights(self, *models: Model) -> None:
        native.set_weights(self.pointer, [model.pointer for model in models])
        self.keep += [model for model in models if model not in self.keep]

    def decode(self, tokens: Sequence[int], seq: int = 0) -> np.ndarray:
        """Evaluate tokens at the end of a sequence; returns the last one's logits, `[n_vocab]`."""
        self.start(tokens, seq)
        return np.ctypeslib.as_array(L.llama_get_logits_ith(self.pointer, -1), (self.n_vocab,)).copy()

    def start(self, tokens: Sequence[int], seq: int = 0) -> None:
        """Evaluate tokens at the end of a sequence without waiting for a GPU."""
        batch = L.llama_batch_init(len(tokens), 0, 1)
        for i, token in enumerate(tokens):
            batch.token[i] = token
            batch.pos[i] = self.n_past[seq] + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = seq
            batch.logits[i] = i == len(tokens) - 1
        batch.n_tokens = len(tokens)
        with native.captured_log() as lines:
            assert L.llama_decode(self.pointer, batch) == 0, lines
        L.llama_batch_free(batch)
        self.n_past[seq] += len(tokens)

    def greedy(self, token: int, n: int, seq: int = 0) -> tuple[np.ndarray, int]:
        """Decode `n` tokens greedily; returns their logits, `[n, n_vocab]`, and the next token."""
        rows = []
        for _ in range(n):
            rows.append(self.decode([token], seq))
            token = int(rows[-1].argmax())
        return np.array(rows), token

    def shift(self, seq: int, first: int, last: int) -> None:
        """Remove positions [first, last) of a sequence and close the gap."""
        assert L.llama_memory_seq_rm(self.memory, seq, first, last)
        L.llama_memory_seq_add(self.memory, seq, last, -1, first - last)
        self.n_past[seq] -= last - first

    def keys_values(self, layer: int, seq: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """K and V of a layer of a sequence, each `[n_tokens, n_head_kv, head_dim]`."""
        return native.keys_values(self.pointer, seq, layer)

    def state(self) -> ctypes.Array[ctypes.c_uint8]:
        size = L.llama_state_get_size(self.pointer)
        buffer = (ctypes.c_uint8 * size)()
        assert L.llama_state_get_data(self.pointer, buffer, size) > 0
        return buffer

    def moved_to(self, *models: Model, **changed: Any) -> Context:
        """The slow way to switch, and the oracle: a context of other weights with this one's state."""
        other = Context(*models, **{**self.options, **changed})
        state = self.state()
        assert L.llama_state_set_data(other.pointer, state, len(state)) > 0
        other.n_past = list(self.n_past)
        return other
