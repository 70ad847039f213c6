"""Attention of few tokens on the CPU (native/patches), against the same attention in float64."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pytest
from operators import F16, F32, Floats, Inputs, compute, error

from pmpd_edge import device, native

ROUNDING = 2e-6  # relative: sums of floats
KINDS = {"f16": (F16, np.float16), "f32": (F32, np.float32)}


@dataclass(frozen=True)
class Attention:
    """Queries of some tokens, and a cache whose cells after the first `used` are masked.

    Attributes:
        heads, kv_heads: of queries, and of K and V.
        k_size, v_size: numbers in a row of a head.
        tokens: the last of them sees all used cells, each one before it one cell less.
        cells: of the cache.
        streams: caches, each with its own tokens.
        kind: of K and V.
        masks: how many heads have a mask of their own; 0 for no mask at all.
        unused: what K and V hold in cells that no token sees.
    """

    heads: int = 8
    kv_heads: int = 2
    k_size: int = 64
    v_size: int = 64
    tokens: int = 1
    cells: int = 512
    used: int = 300
    streams: int = 1
    kind: str = "f16"
    masks: int = 1
    max_bias: float = 0.0
    softcap: float = 0.0
    sinks: bool = False
    unused: float = 0.0

    def random(self, *shape: int) -> Floats:
        return np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32)

    @property
    def q(self) -> Floats:
        """`[streams, heads, tokens, k_size]`."""
        return self.random(self.streams, self.heads, self.tokens, self.k_size)

    def cache(self, size: int) -> npt.NDArray[np.generic]:
        """`[streams, cells, kv_heads, size]`: cells behind each other, as llama.cpp has them."""
        rng = np.random.default_rng(size)  # the same in a larger cache
        cells = rng.standard_normal((self.cells, self.streams, self.kv_heads, size), dtype=np.float32)
        if self.masks:
            cells[np.isneginf(self.mask).all(axis=(0, 1, 2))] = self.unused
        return np.ascontiguousarray(cells.swapaxes(0, 1).astype(KINDS[self.kind][1]))

    @property
    def mask(self) -> npt.NDArray[np.float16]:
        """`[streams, masks, tokens, cells]`; with ALiBi it has distances. Some cells in use are masked, too."""
        cells, tokens = np.arange(self.cells), np.arange(self.tokens)
        last = (self.used - self.tokens + tokens)[:, None]
        seen = (cells <= last) & ((cells % 17 != 3) | (cells == last))
        mask = np.where(seen, -(last - cells) / 8 if self.max_bias else 0.0, -np.inf).astype(np.float16)
        return np.ascontiguousarray(np.broadcast_to(mask, (self.streams, self.masks, *mask.shape)))

    @property
    def sink(self) -> Floats:
        return self.random(self.heads)

    def exact(self) -> Floats:
        """`[streams, tokens, heads, v_size]`."""
        repeated = self.heads // self.kv_heads
        k, v = (
            self.cache(size).astype(np.float64).transpose(0, 2, 1, 3).repeat(repeated, axis=1)
            for size in (self.k_size, self.v_size)
        )
        scores = self.q.astype(np.float64) @ k.swapaxes(2, 3) / np.sqrt(self.k_size)
        if self.softcap:
            scores = self.softcap * np.tanh(scores / self.softcap)
        if self.masks:
            slopes = 2.0 ** (-self.max_bias / self.heads * (1 + np.arange(self.heads)))
            scores += slopes[:, None, None] * np.repeat(self.mask.astype(np.float64), self.heads // self.masks, axis=1)
        weights = np.exp(scores)
        total = weights.sum(axis=-1, keepdims=True)
        if self.sinks:
            total += np.exp(self.sink.astype(np.float64))[:, None, None]
        return (weights / total @ v).transpose(0, 2, 1, 3).astype(np.float32)

    def computed(self, n_threads: int = 1, token: int | None = None) -> Floats:
        """What ggml makes of it, `[streams, tokens, heads, v_size]`; or of one of its tokens alone."""
        base = library()
        kind = KINDS[self.kind][0]
        q, mask, tokens = self.q, self.mask, self.tokens
        if token is not None:
            q, mask = (np.ascontiguousarray(x[:, :, token : token + 1]) for x in (q, mask))
            tokens = 1

        def build(_: int, rest: int) -> tuple[int, Inputs]:
            inputs: Inputs = []

            def tensor(type_: int, data: npt.NDArray[np.generic]) -> int:
                shape = [*data.shape[::-1], 1, 1, 1][:4]
                inputs.append((base.ggml_new_tensor_4d(rest, type_, *shape), data))
                return inputs[-1][0]

            k, v = (
                base.ggml_permute(rest, tensor(kind, self.cache(size)), 0, 2, 1, 3)
                for size in (self.k_size, self.v_size)
            )
            masked = tensor(F16, mask) if self.masks else None
            scale = self.k_size**-0.5
            out = base.ggml_flash_attn_ext(rest, tensor(F32, q), k, v, masked, scale, self.max_bias, self.softcap)
            if self.sinks:
                base.ggml_flash_attn_ext_add_sinks(out, tensor(F32, self.sink))
            return out, inputs

        return compute(build, "CPU", n_threads, (self.streams, tokens, self.heads, self.v_size))


def library() -> ctypes.CDLL:
    """ggml, with the types of what attention needs."""
    base = native.library("ggml-base")
    pointer, i, i64, f = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float
    base.ggml_new_tensor_4d.argtypes = [pointer, i, i64, i64, i64, i64]
    base.ggml_permute.argtypes = [pointer, pointer, i, i, i, i]
    base.ggml_flash_attn_ext.argtypes = [pointer] * 5 + [f, f, f]
    base.ggml_flash_attn_ext_add_sinks.argtypes = [pointer, pointer]
    base.ggml_new_tensor_4d.restype = base.ggml_permute.restype = base.ggml_flash_attn_ext.restype = pointer
    return base


CASES = {
    "one token": Attention(),
    "as many KV heads as heads": Attention(kv_heads=8),
    "one KV head": Attention(kv_heads=1, k_size=256, v_size=256),
    "seven heads of a KV head": Attention(heads=14, k_size=128, v_size=128, cells=256, used=256),
    "several tokens": Attention(tokens=5),
    "many tokens": Attention(tokens=63),
    "many rows": Attention(heads=16, kv_heads=1, tokens=40),
    "another size of V": Attention(k_size=192, v_size=128),
    "latent attention": Attention(heads=16, kv_heads=1, k_size=576, v_size=512),
    "sizes that no vector divides": Attention(k_size=100, v_size=60, tokens=3),
    "few cells": Attention(cells=16, used=3),
    "one cell": Attention(cells=32, used=1),
    "a short last chunk": Attention(cells=1040, used=1040),
    "many chunks": Attention(cells=4352, used=4000, tokens=2),
    "streams": Attention(streams=3, tokens=2),
    "float32": Attention(kind="f32", tokens=3),
    "no mask": Attention(masks=0, used=512, tokens=2),
    "a mask for each head": Attention(masks=8, tokens=2),
    "ALiBi": Attention(max_bias=8.0, tokens=2),
    "softcap": Attention(softcap=2.0),
    "sinks": Attention(sinks=True, tokens=2, streams=2),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request: pytest.FixtureRequest) -> Attention:
    found: Attention = request.param
    return found


def test_it_is_attention(case: Attention) -> None:
    if "avx2" not in device.describe():
        pytest.skip(f"a CPU without AVX2: {device.describe()}")
    assert error(case.computed(), case.exact()) < ROUNDING


@pytest.mark.parametrize("n_threads", [2, 3, 8])
def test_threads_make_no_difference(case: Attention, n_threads: int) -> None:
    np.testing.assert_array_equal(case.computed(n_threads), case.computed())


@pytest.mark.parametrize("tokens", [2, 7, 63])
def test_a_token_gets_the_same_whatever_it_is_computed_with(case: Attention, tokens: int) -> None:
    """What makes lossless answers the same to the bit."""
    if not case.masks:
        pytest.skip("its tokens would not differ by what they see")
    several = replace(case, tokens=tokens, cells=max(case.cells, 32), used=max(case.used, tokens))
    together = several.computed(2)
    for token in (0, tokens // 2, tokens - 1):
        alone = several.computed(1, token)
        np.testing.assert_array_equal(alone[:, 0], together[:, token])


@pytest.mark.parametrize("used", [300, 2047])
def test_more_cells_make_no_difference(used: int) -> None:
    """As where a token of the same evaluation is the first in the next 256."""
    few = Attention(cells=-(-used // 256) * 256, used=used)
    np.testing.assert_array_equal(replace(few, cells=few.cells + 256).computed(), few.computed())


@pytest.mark.parametrize("unused", [np.nan, np.inf])
def test_cells_that_nobody_sees_may_hold_anything(unused: float) -> None:
    clean = Attention(tokens=2)
    np.testing.assert_array_equal(replace(clean, unused=unused).computed(), clean.computed())


def test_more_tokens_are_attention_too() -> None:
    """64 go by tiles, and so they have other last bits."""
    many = Attention(tokens=64)
    assert error(many.computed(2), many.exact()) < ROUNDING


def test_tokens_that_see_nothing_get_nothing() -> None:
    assert not Attention(used=0).computed().any()
