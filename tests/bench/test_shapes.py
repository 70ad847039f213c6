"""The shapes that operators are measured with (pmpd_edge/bench/shapes.py)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pmpd_edge import gguf_info
from pmpd_edge.bench import shapes
from pmpd_edge.bench.random_model import write_mamba
from pmpd_edge.bundle import Bundle, Level
from pmpd_edge.errors import PmpdError


def test_the_papers_models_have_the_sizes_of_their_configurations() -> None:
    found = {layer.model: layer.parts for layer in shapes.of_paper()}
    assert found["Vicuna-7B"] == {
        "attention": ((4096, 4096),) * 4,
        "feed-forward": ((4096, 11008), (4096, 11008), (11008, 4096)),
    }
    assert found["Phi-1.5"]["feed-forward"] == ((2048, 8192), (8192, 2048))  # no gate
    assert found["MobileLLaMA-1.4B"]["feed-forward"][-1] == (5632, 2048)
    assert found["Zephyr-3B"]["attention"] == ((2560, 2560),) * 4
    assert len(found) == 4


def test_a_bundles_layer_is_its_first(short: Bundle) -> None:
    layer = shapes.of_bundle(short)
    info = gguf_info.read(short.paths(short.levels[0])[0])
    assert layer.model == short.name
    assert {part: len(matrices) for part, matrices in layer.parts.items()} == {"attention": 4, "feed-forward": 3}
    weights = sum(columns * rows for matrices in layer.parts.values() for columns, rows in matrices)
    in_layer = [t for t in info.tensors if t.name.startswith("blk.0.") and len(t.shape) == 2]
    assert weights == sum(tensor.elements for tensor in in_layer)


def test_a_model_without_attention_has_no_such_layer(short: Bundle, tmp_path: Path) -> None:
    path = write_mamba(tmp_path / "mamba.gguf")
    recurrent = dataclasses.replace(short, path=tmp_path, levels=(Level(16, (path.name,)),))
    with pytest.raises(PmpdError, match="lacks attention or feed-forward matrices"):
        shapes.of_bundle(recurrent)
