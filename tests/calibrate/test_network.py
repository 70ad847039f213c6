"""The network as it is trained in torch is the one that the library computes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from predictors import SMALL, in_torch, keys_values, random_network, write

from pmpd_edge.calibrate.network import Network, Shape
from pmpd_edge.predictor import Predictor

SHAPES = [
    SMALL,
    Shape(n_head_kv=1, head_dim_k=1, head_dim_v=1, n_hidden=1, n_classes=2),
    Shape(n_head_kv=3, head_dim_k=17, head_dim_v=33, n_hidden=7, n_classes=5),
    Shape(n_head_kv=8, head_dim_k=128, head_dim_v=128, n_hidden=64, n_classes=5),
    Shape(n_head_kv=1, head_dim_k=256, head_dim_v=64, n_hidden=300, n_classes=11),
]


@pytest.mark.parametrize("n_tokens", [1, 2, 100, 3000])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape.n_head_kv}x{shape.head_dim_k}x{shape.head_dim_v}")
def test_the_library_computes_what_torch_computes(tmp_path, shape, n_tokens):
    made = random_network(shape)
    predictor = Predictor.load(write(tmp_path / "p.gguf", made, temperature=1.7))
    keys, values = keys_values(shape, n_tokens)
    found = predictor.probabilities((8, 2), keys, values)
    assert found == pytest.approx(in_torch(made, keys, values, 1.7), abs=1e-5)
    assert sum(found) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("scale", [30.0, 1e4, 1e15])
def test_large_scores_do_not_overflow(tmp_path, scale):
    made = random_network()
    predictor = Predictor.load(write(tmp_path / "p.gguf", made))
    keys, values = keys_values(SMALL, 50, scale=scale)
    assert predictor.probabilities((8, 2), keys, values) == pytest.approx(in_torch(made, keys, values), abs=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1e4])
def test_small_and_large_values_are_normalised_alike(tmp_path, scale):
    made = random_network()
    predictor = Predictor.load(write(tmp_path / "p.gguf", made))
    keys, values = keys_values(SMALL, 50)
    values *= np.float32(scale)
    assert predictor.probabilities((8, 2), keys, values) == pytest.approx(in_torch(made, keys, values), abs=1e-5)


def test_large_logits_do_not_overflow(tmp_path):
    made = random_network()
    made.output.weight.data *= 1e6
    predictor = Predictor.load(write(tmp_path / "p.gguf", made))
    found = predictor.probabilities((8, 2), *keys_values(SMALL, 50))
    assert sorted(found) == [0, 0, 0, 1]


def test_every_pair_has_its_own_network(tmp_path):
    networks = [random_network(seed=seed) for seed in range(3)]
    predictor = Predictor.load(write(tmp_path / "p.gguf", *networks))
    keys, values = keys_values(SMALL, 20)
    for pair, made in zip(predictor.pairs, networks, strict=True):
        assert predictor.probabilities(pair, keys, values) == pytest.approx(in_torch(made, keys, values), abs=1e-5)


def test_the_length_counts(tmp_path):
    predictor = Predictor.load(write(tmp_path / "p.gguf", random_network()))
    keys, values = keys_values(SMALL, 10)
    once, often = ((np.tile(keys, (n, 1, 1)), np.tile(values, (n, 1, 1))) for n in (1, 20))
    assert predictor.probabilities((8, 2), *once) != pytest.approx(predictor.probabilities((8, 2), *often), abs=1e-3)


def test_what_lies_behind_a_prompt_in_a_batch_is_not_seen():
    made = random_network()
    rows = [keys_values(SMALL, n_tokens, seed=n_tokens) for n_tokens in (3, 7, 1)]
    padded = [torch.full((3, 9, SMALL.n_head_kv, dim), 1e3) for dim in (SMALL.head_dim_k, SMALL.head_dim_v)]
    for i, row in enumerate(rows):
        for into, array in zip(padded, row, strict=True):
            into[i, : len(array)] = torch.from_numpy(array)
    with torch.no_grad():
        together = made(*padded, torch.tensor([3, 7, 1])).softmax(dim=1).numpy()
    for found, row in zip(together, rows, strict=True):
        assert found == pytest.approx(in_torch(made, *row), abs=1e-5)


def test_an_untrained_network_prefers_no_class():
    with torch.no_grad():
        logits = Network(SMALL)(*(torch.from_numpy(array)[None] for array in keys_values(SMALL, 5)), torch.tensor([5]))
    assert logits.tolist() == [[0, 0, 0, 0]]


def test_a_file_that_could_not_be_finished_is_not_there(tmp_path, monkeypatch):
    def full(self, **_):
        raise OSError("No space left on device")

    monkeypatch.setattr("gguf.GGUFWriter.write_tensors_to_file", full)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "p.gguf", random_network())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("module", ["labels", "examples", "report", "run"])
def test_torch_is_imported_for_training_alone(module):
    script = f"import pmpd_edge.calibrate.{module}, pmpd_edge.predictor, sys; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
