"""`llama_get_kv_seq`: K and V of a layer, against what computes them without a cache, whatever the cache is like.

The oracle of the first layer is numpy, that of all layers transformers, and that of other caches the float32 one. On a
GPU: PMPD_TEST_GPU_LAYERS=99 pytest tests/native.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from caches import WINDOW, write_gemma4, write_lfm2, write_mimo
from capi import CACHE_TYPES, F16, F32, GPU_LAYERS, Context, L, Model
from models import TRANSLATOR

from pmpd_edge import Pmpd, native
from pmpd_edge.bench.random_model import write_llama, write_mamba
from pmpd_edge.errors import NativeError

PROMPT = np.random.default_rng(1).integers(300, 4000, 24).tolist()
EXACT: dict[str, Any] = {"flash_attn": False, "type_k": F32, "type_v": F32}
HEADS = {32: 8, 64: 4, 96: 3, 128: 2, 192: 2}  # head_dim: heads. Quantised K is rotated where 64 divides head_dim
# Of random numbers that are rounded to these types, relative to their size; of what is mixed up, it is 1.4.
ROUNDING = {
    "f32": 2e-5, "f16": 4e-4, "bf16": 3e-3, "q8_0": 8e-3, "q5_1": 5e-2, "q5_0": 5e-2, "q4_1": 1e-1, "q4_0": 1.1e-1,
    "iq4_nl": 9e-2,
}  # fmt: skip
ROUNDING_GPU = 2e-3  # CUDA multiplies float32 matrices in TF32


def error(got: np.ndarray, expected: np.ndarray) -> float:
    """Relative to the expected size."""
    assert got.shape == expected.shape
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def assert_close(got: tuple[np.ndarray, ...], expected: tuple[np.ndarray, ...], limit: float) -> None:
    for name, a, b in zip("KV", got, expected, strict=True):
        assert error(a, b) < max(limit, ROUNDING_GPU if GPU_LAYERS else 0), name


def assert_equal(got: tuple[np.ndarray, ...], expected: tuple[np.ndarray, ...]) -> None:
    for name, a, b in zip("KV", got, expected, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


def rope(x: np.ndarray, positions: np.ndarray, *, base: float = 1e4, halves: bool = False) -> np.ndarray:
    """Rotate `[n, heads, dim]`, pairs of neighbours, or of `halves`."""
    dim = x.shape[-1]
    angles = positions[:, None, None] * base ** (-np.arange(0, dim, 2) / dim)
    first, second = (x[..., : dim // 2], x[..., dim // 2 :]) if halves else (x[..., ::2], x[..., 1::2])
    rotated = [first * np.cos(angles) - second * np.sin(angles), first * np.sin(angles) + second * np.cos(angles)]
    return np.concatenate(rotated, -1) if halves else np.stack(rotated, -1).reshape(x.shape)


@cache
def weights_of(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}


def first_layer(
    path: Path, tokens: list[int], positions: Any = None, *, heads: int = 2, **of_rope: Any
) -> tuple[np.ndarray, np.ndarray]:
    """K and V of the first layer, computed from the file's float32 weights."""
    weights = weights_of(path)
    x = weights["token_embd.weight"][tokens].astype(np.float64)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weights["blk.0.attn_norm.weight"]
    k, v = ((x @ weights[f"blk.0.attn_{name}.weight"].T).reshape(len(tokens), heads, -1) for name in "kv")
    return rope(k, np.arange(len(tokens)) if positions is None else np.asarray(positions), **of_rope), v


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """A random Llama with two KV heads for each head dimension."""
    folder = tmp_path_factory.mktemp("llamas")
    return {
        dim: write_llama(folder / f"{dim}.gguf", hidden=dim * heads, heads=heads, kv_heads=2 if heads != 3 else 3)
        for dim, heads in HEADS.items()
    }


@pytest.fixture(scope="module")
def llama(llamas: dict[int, Path]) -> tuple[Path, Model]:
    return llamas[64], Model(llamas[64])


# Types and layouts of the cache


@pytest.mark.parametrize("dim", HEADS)
def test_the_first_layer_is_what_numpy_computes(llamas, dim):
    context = Context(Model(llamas[dim]), **EXACT)
    context.start(PROMPT)
    got = context.keys_values(0)
    assert all(array.dtype == np.float32 and array.flags.c_contiguous for array in got)
    assert_close(got, first_layer(llamas[dim], PROMPT, heads=3 if dim == 96 else 2), ROUNDING["f32"])


@pytest.mark.parametrize("kind", CACHE_TYPES)
@pytest.mark.parametrize("dim", HEADS)
def test_every_type_of_cache_holds_what_a_float32_one_does(llamas, dim, kind):
    model = Model(llamas[dim])
    exact = Context(model, **EXACT)
    exact.start(PROMPT)
    number = CACHE_TYPES[kind]
    options = [{"type_k": number, "type_v": number}, {"type_k": number}, {"type_v": number}]
    options += [{"type_k": number, "flash_attn": False}]
    if kind in ("f32", "f16", "bf16"):  # no other V without flash attention
        options += [{"type_k": number, "type_v": number, "flash_attn": False}, {"type_v": number, "flash_attn": False}]
    for chosen in options:
        context = Context(model, **chosen)
        context.start(PROMPT)
        limits = [ROUNDING[kind if name in chosen else "f16"] for name in ("type_k", "type_v")]
        for layer in (0, 1):
            for got, expected, limit in zip(context.keys_values(layer), exact.keys_values(layer), limits, strict=True):
                # What attention reads is rounded too, and so is what the second layer gets.
                limit = limit if layer == 0 else max(2e-3, 2.2 * max(limits))
                assert error(got, expected) < max(limit, ROUNDING_GPU if GPU_LAYERS else 0), (chosen, layer)


def test_flash_attention_makes_no_difference(llama):
    """Nor does the transposed V without it."""
    _, model = llama
    flash, plain = Context(model, type_k=F32, type_v=F32), Context(model, **EXACT)
    for context in (flash, plain):
        context.start(PROMPT)
    assert_equal(flash.keys_values(0), plain.keys_values(0))
    assert_close(flash.keys_values(1), plain.keys_values(1), 2e-3)  # it rounds what it reads


def test_every_layer_is_that_of_transformers(tmp_path):
    """Upstream's converter reorders the rows of K so that RoPE's pairs are neighbours."""
    torch = pytest.importorskip("torch", reason="torch is needed: pip install 'pmpd-edge[convert]'")
    from transformers import AutoModelForCausalLM

    from pmpd_edge.convert import hf

    hf.to_gguf(TRANSLATOR, tmp_path / "float32.gguf", "F32")
    context = Context(Model(tmp_path / "float32.gguf"), **EXACT)
    context.start(PROMPT)
    model = AutoModelForCausalLM.from_pretrained(TRANSLATOR, dtype=torch.float32)
    with torch.inference_mode():
        cache = model(torch.tensor([PROMPT]), use_cache=True).past_key_values
    for i in range(model.config.num_hidden_layers):
        k, v = (array[0].transpose(0, 1).numpy() for array in (cache.layers[i].keys, cache.layers[i].values))
        halves = np.split(k, 2, axis=-1)
        assert_close(context.keys_values(i), (np.stack(halves, -1).reshape(k.shape), v), 1e-4)


# Sequences and positions


@pytest.mark.parametrize("flash_attn", [True, False], ids=["flash", "no-flash"])
@pytest.mark.parametrize("unified", [True, False], ids=["unified", "streams"])
def test_each_sequence_has_its_own(llama, unified, flash_attn):
    path, model = llama
    context = Context(model, n_ctx=768, n_seq=3, unified=unified, flash_attn=flash_attn, type_k=F32, type_v=F32)
    texts = {2: PROMPT[:7], 0: PROMPT[7:]}
    for i in range(20):  # their cells alternate
        for seq, text in texts.items():
            if i < len(text):
                context.start([text[i]], seq)
    for seq, text in texts.items():
        assert_close(context.keys_values(0, seq), first_layer(path, text), ROUNDING["f32"])
    assert [array.shape for array in context.keys_values(1, 1)] == [(0, 2, 64)] * 2

    L.llama_memory_seq_cp(context.memory, 0, 1, -1, -1)  # between streams it is done later
    for layer in (0, 1):
        assert_equal(context.keys_values(layer, 1), context.keys_values(layer, 0))


@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("flash_attn", [True, False], ids=["flash", "no-flash"])
@pytest.mark.parametrize("dim", [64, 192])
def test_removed_shifted_and_refilled_positions(llamas, dim, flash_attn, kind):
    """Freed cells are filled with later tokens, so that the order of the cells is none.

    Quantised caches that are not rotated (head dimensions that 64 does not divide) cannot be shifted: llama.cpp would
    crash (its pull request 25636), in evaluations too.
    """
    type_v = CACHE_TYPES[kind] if flash_attn or kind in ("f32", "f16") else F16
    context = Context(Model(llamas[dim]), flash_attn=flash_attn, type_k=CACHE_TYPES[kind], type_v=type_v)

    def check(tokens: list[int], positions: Any = None, roundings: float = 1) -> None:
        assert_close(context.keys_values(0), first_layer(llamas[dim], tokens, positions), roundings * ROUNDING[kind])

    context.start(PROMPT)
    assert L.llama_memory_seq_rm(context.memory, 0, 5, 9)
    kept = PROMPT[:5] + PROMPT[9:]
    check(kept, [*range(5), *range(9, len(PROMPT))])
    L.llama_memory_seq_add(context.memory, 0, 9, -1, -4)
    context.n_past[0] -= 4
    check(kept, roundings=2)  # shifting rounds again
    context.start(PROMPT[::-1][:10])
    check(kept + PROMPT[::-1][:10], roundings=2)
    context.shift(0, 2, 20)  # evaluating shifts before reading does
    context.start(PROMPT[:9])
    text = kept + PROMPT[::-1][:10]
    check(text[:2] + text[20:] + PROMPT[:9], roundings=3)


@pytest.mark.parametrize("unified", [True, False], ids=["unified", "streams"])
def test_a_shift_of_one_sequence_leaves_the_others(llama, unified):
    path, model = llama
    context = Context(model, n_ctx=512, n_seq=2, unified=unified, **EXACT)
    for seq in (0, 1):
        context.start(PROMPT, seq)
    context.shift(1, 3, 8)
    assert_close(context.keys_values(0, 0), first_layer(path, PROMPT), ROUNDING["f32"])
    assert_close(context.keys_values(0, 1), first_layer(path, PROMPT[:3] + PROMPT[8:]), 2 * ROUNDING["f32"])


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_reading_changes_nothing(llama, kind):
    """Not even where it applies a shift: logits before and after it are those of a context that is never read."""
    _, model = llama
    options = {"type_k": CACHE_TYPES[kind], "type_v": CACHE_TYPES[kind]}
    read, undisturbed = Context(model, **options), Context(model, **options)
    for context in (read, undisturbed):
        logits = context.decode(PROMPT)
        context.shift(0, 4, 9)
    read.keys_values(1)
    pointer = L.llama_get_logits_ith(read.pointer, -1)
    np.testing.assert_array_equal(np.ctypeslib.as_array(pointer, logits.shape), logits)
    for token in PROMPT[:3]:
        np.testing.assert_array_equal(read.decode([token]), undisturbed.decode([token]))
        read.keys_values(0)


def test_rows_keep_what_the_weights_of_their_time_computed(llama, tmp_path):
    _, model = llama
    other = write_llama(tmp_path / "other.gguf", seed=1)
    context = Context(model, **EXACT)
    context.start(PROMPT)
    before = [context.keys_values(layer) for layer in (0, 1)]
    context.set_weights(Model(other))
    for layer in (0, 1):
        assert_equal(context.keys_values(layer), before[layer])
    context.start(PROMPT[:5])
    for layer in (0, 1):
        assert_equal(tuple(array[: len(PROMPT)] for array in context.keys_values(layer)), before[layer])
    added = tuple(array[len(PROMPT) :] for array in context.keys_values(0))
    assert_close(added, first_layer(other, PROMPT[:5], range(len(PROMPT), len(PROMPT) + 5)), ROUNDING["f32"])


# Other architectures


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mimo(tmp_path_factory.mktemp("windowed") / "mimo.gguf")


@pytest.mark.parametrize("kind", ["f32", "q8_0"])
@pytest.mark.parametrize("flash_attn", [True, False], ids=["flash", "no-flash"])
def test_windows_keep_their_last_tokens(windowed, flash_attn, kind):
    model = Model(windowed)
    type_v = CACHE_TYPES[kind] if flash_attn else F32
    options = {"n_ctx": 512, "n_ubatch": 32, "flash_attn": flash_attn, "type_k": CACHE_TYPES[kind], "type_v": type_v}
    tokens = np.random.default_rng(2).integers(300, 4000, 330).tolist()
    short, full = Context(model, swa_full=False, **options), Context(model, swa_full=True, **options)
    for context in (short, full):
        context.start(tokens)
        context.start(tokens[:3])
    expected = first_layer(windowed, tokens + tokens[:3], halves=True)
    assert_close(full.keys_values(0), expected, ROUNDING[kind])
    first = L.llama_memory_seq_pos_min(short.memory, 0)
    assert 0 < first <= 333 - WINDOW
    for layer in range(4):
        start = first if layer in (0, 2) else 0
        kept = tuple(array[start:] for array in full.keys_values(layer))
        assert [array.shape for array in kept] == [(333 - start, 2, 128), (333 - start, 2, 64)]
        # Cells in another order are summed in another order, by flash attention in 16 bits (an H100: 6.1e-3).
        assert_close(short.keys_values(layer), kept, (1e-2 if GPU_LAYERS else 5e-3) if layer else 1e-12)


def test_layers_that_share_have_the_same(tmp_path):
    model = Model(write_gemma4(tmp_path / "gemma4.gguf"))
    flash, plain = Context(model, type_k=F32, type_v=F32), Context(model, **EXACT)
    for context in (flash, plain):
        context.start(PROMPT)
        for layer, shared in ((4, 2), (5, 3)):
            assert_equal(context.keys_values(layer), context.keys_values(shared))
        for layer in range(6):
            dim = 64 if layer % 2 else 32
            assert [array.shape for array in context.keys_values(layer)] == [(len(PROMPT), 1, dim)] * 2
    assert_equal(flash.keys_values(0), plain.keys_values(0))
    for layer in range(1, 4):  # the transposed V of smaller heads is padded
        assert_close(flash.keys_values(layer), plain.keys_values(layer), 1e-2)


def test_a_hybrid_has_some_of_its_attention_layers_only(tmp_path):
    model = Model(write_lfm2(tmp_path / "lfm2.gguf"))
    exact, rounded = Context(model, **EXACT), Context(model, type_k=CACHE_TYPES["q8_0"], type_v=CACHE_TYPES["q8_0"])
    for context in (exact, rounded):
        context.start(PROMPT)
        with pytest.raises(NativeError, match="no K and V of layer 0"):
            context.keys_values(0)
    assert_close(rounded.keys_values(-1), exact.keys_values(-1), ROUNDING["q8_0"])
    assert [array.shape for array in exact.keys_values(1)] == [(len(PROMPT), 2, 64)] * 2


def test_a_recurrent_model_is_refused_and_works_on(tmp_path):
    model = Model(write_mamba(tmp_path / "mamba.gguf"))
    context, undisturbed = Context(model), Context(model)
    for c in (context, undisturbed):
        c.decode(PROMPT)
    with pytest.raises(NativeError, match="the memory has no K and V of layer 1: name a layer with attention"):
        context.keys_values(-1)
    np.testing.assert_array_equal(context.decode([400]), undisturbed.decode([400]))


# What callers may get wrong


def test_wrong_arguments_write_nothing(llama):
    _, model = llama
    context = Context(model)
    context.start(PROMPT)
    k, v = (np.full((len(PROMPT), 2, 64), 7, dtype=np.float32) for _ in range(2))
    shape = (ctypes.c_int32 * 3)(7, 7, 7)

    def call(seq: int, layer: int, n_max: int, *, k: Any = k, v: Any = v) -> int:
        pointers = [None if a is None else a.ctypes.data_as(ctypes.POINTER(ctypes.c_float)) for a in (k, v)]
        typed = ctypes.cast(shape, ctypes.POINTER(native._KvShape))
        with native.captured_log() as log:
            result = L.llama_cpp._lib.llama_get_kv_seq(context.pointer, seq, layer, *pointers, n_max, typed)
        assert (result < 0) == bool(log.errors)
        return result

    n = len(PROMPT)
    assert [call(seq, 0, n) for seq in (-1, 1, 10**6)] == [-1] * 3
    assert [call(0, layer, n) for layer in (-1, 2, 10**6)] == [-2] * 3
    assert [call(0, 0, n_max) for n_max in (n - 1, 0, -1)] == [-3] * 3
    assert (k == 7).all() and (v == 7).all() and list(shape) == [7, 7, 7]
    assert call(0, 0, 0, k=None, v=None) == n and list(shape) == [2, 64, 64]
    assert call(0, 1, n, v=None) == n and (v == 7).all()
    assert call(0, 1, n + 5, k=None) == n
    assert_equal((k, v), context.keys_values(1))


def test_wrong_layers_and_sequences_are_named(llama):
    _, model = llama
    context = Context(model)
    assert context.keys_values(-2)[0].shape == (0, 2, 64)
    for layer, named in ((2, "layer 2"), (-3, "layer -1")):
        with pytest.raises(NativeError, match=f"no K and V of {named}"):
            context.keys_values(layer)
    with pytest.raises(NativeError, match="invalid seq_id 1"):
        context.keys_values(0, seq=1)


IMPORT = """
try:
    from pmpd_edge import Pmpd
except Exception as error:
    print(type(error).__name__, error)
"""


def test_a_library_without_the_function_is_named(tmp_path):
    """A copy of the library whose added function has another name."""
    library = Path(native.load().llama_cpp._lib._name)
    shutil.copytree(library.parent, tmp_path / "lib")
    copy = tmp_path / "lib" / library.name
    copy.write_bytes(library.read_bytes().replace(b"llama_get_kv_seq\0", b"llama_get_kv_zeq\0"))
    environment = {**os.environ, "LLAMA_CPP_LIB_PATH": str(tmp_path / "lib")}
    run = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, env=environment)
    assert run.stdout.startswith(f"NativeError {copy}: built without the patch"), run.stderr


# The runner


class Recorder:
    """A scheduler that reads the last layer once after prefill and before every step."""

    precisions = (8, 4)

    def __init__(self) -> None:
        self.seen: list[tuple[np.ndarray, np.ndarray]] = []

    def start(self, prefill: Any) -> None:
        self.seen.append(prefill.keys_values(-1))

    def next(self, step: int, last: Any) -> int:
        self.seen.append(last.keys_values(-1))
        return 8 if step < 3 else 4


def test_schedulers_see_what_their_evaluations_computed():
    recorder = Recorder()
    llm = Pmpd(scheduler=recorder, n_threads=1, n_ctx=256)
    generated = llm.generate(PROMPT, temp=0.0)
    for _ in range(6):
        next(generated)
    generated.close()
    assert [k.shape for k, _ in recorder.seen] == [(len(PROMPT) + i, 4, 32) for i in (0, *range(5))]
    for (k, v), (later_k, later_v) in zip(recorder.seen, recorder.seen[1:], strict=False):
        assert_equal((later_k[: len(k)], later_v[: len(v)]), (k, v))
    context = Context(Model(llm.bundle.paths(llm.bundle.level(8))[0]))
    context.start(PROMPT)
    assert_close(recorder.seen[0], context.keys_values(7), 1e-6)

    llm.n_tokens = 10  # what follows is given up, as when a prompt shares its beginning only
    assert_equal(llm.keys_values(-1), tuple(array[:10] for array in recorder.seen[0]))
    llm.reset()
    assert llm.keys_values(0)[0].shape == (0, 4, 32)
    llm.close()
