"""The bytes that a decode step reads (pmpd_edge/bench/traffic.py)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from pmpd_edge import Pmpd, gguf_info
from pmpd_edge.bench import traffic
from pmpd_edge.bench.random_model import quantize, write_llama
from pmpd_edge.bench.timing import timed
from pmpd_edge.bundle import Bundle, Level


def test_a_step_reads_all_of_a_model_with_tied_embeddings(short: Bundle) -> None:
    for level in short.levels:
        info = gguf_info.read(short.paths(level)[0])
        assert traffic.weight_bytes(short, level) == sum(tensor.bytes for tensor in info.tensors)
        assert traffic.parameters_read(short, level) == short.parameters
        # The manifest's figure, which the converter wrote, says the same.
        assert traffic.weight_bytes(short, level) == pytest.approx(short.bpw(level) * short.parameters / 8, rel=1e-4)


def test_a_table_that_is_looked_up_is_not_read(short: Bundle, tmp_path: Path) -> None:
    path = quantize(write_llama(tmp_path / "f32.gguf", tied=False), tmp_path / "q8.gguf", "Q8_0")
    made = dataclasses.replace(short, path=tmp_path, levels=(Level(8, (path.name,)),))
    info = gguf_info.read(path)
    table = next(tensor for tensor in info.tensors if tensor.name == "token_embd.weight")
    assert traffic.weight_bytes(made, made.levels[0]) == sum(tensor.bytes for tensor in info.tensors) - table.bytes


def test_residuals_add_what_the_manifest_says_of_them(short: Bundle) -> None:
    names = tuple(level.weights[0] for level in short.levels)
    summed = dataclasses.replace(short, levels=(Level(8, names[::-1]),))
    base = traffic.weight_bytes(short, short.levels[1])
    expected = base + short.files[names[0]].bpw * short.parameters / 8
    assert traffic.weight_bytes(summed, summed.levels[0]) == pytest.approx(expected, abs=1)


def test_the_cache_grows_by_keys_and_values_of_each_token(short_llm: Pmpd) -> None:
    sizes = []
    for _ in range(3):
        timed(short_llm, [1] * 20)
        sizes.append(traffic.cache_bytes(short_llm))
    keys, values = short_llm.keys_values(0)
    layers = int(short_llm.metadata["llama.block_count"])
    a_token = 2 * layers * (keys[0].size + values[0].size)  # 16 bits each
    for more in np.diff(sizes) / 20:
        assert a_token <= more < 1.05 * a_token  # positions and sequences are told too


def test_what_a_cache_will_take_is_known_before(short: Bundle, short_llm: Pmpd) -> None:
    timed(short_llm, [1] * 100)
    held = traffic.cache_bytes(short_llm)
    assert traffic.cache_bytes_wanted(short, 100) == pytest.approx(held, rel=0.05)


def test_heads_that_differ_by_layer_are_not_guessed(short: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    info = gguf_info.read(short.paths(short.levels[0])[0])
    metadata = {key: value for key, value in info.metadata.items() if not key.endswith("head_count")}
    monkeypatch.setattr(gguf_info, "read", lambda path: dataclasses.replace(info, metadata=metadata))
    assert traffic.cache_bytes_wanted(short, 100) == 0
