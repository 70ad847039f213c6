"""Shapes have the weights that transformers and GGUF files say, and bundles are read tensor by tensor."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from command import make_bundle
from simulated import make_device

from pmpd_edge import bundle as bundles
from pmpd_edge import gguf_info
from pmpd_edge.bench.random_model import quantize, write_llama, write_mamba
from pmpd_edge.bundle import Bundle, Level, StaticSchedule, Switch, WeightsFile
from pmpd_edge.errors import BundleError, PmpdError
from pmpd_edge.simulate.bundles import of_bundle
from pmpd_edge.simulate.device import Kernel
from pmpd_edge.simulate.shapes import SHAPES, Shape, named, of_shape

# As the models' cards and papers have them.
MILLIONS = {
    "vicuna-7b": 6738,
    "mobilellama-1.4b": 1364,
    "phi-1.5": 1418,
    "stablelm-zephyr-3b": 2795,
    "tinyllama-1.1b": 1100,
    "llama-2-7b": 6738,
    "llama-2-13b": 13016,
    "llama-3.1-8b": 8030,
    "llama-3.2-1b": 1236,
    "llama-3.2-3b": 3213,
}


def config_of(name: str, shape: Shape):
    from transformers import LlamaConfig, PhiConfig, StableLmConfig

    kinds = {"phi-1.5": (PhiConfig, {}), "stablelm-zephyr-3b": (StableLmConfig, {"use_qkv_bias": False})}
    kind, more = kinds.get(name, (LlamaConfig, {"head_dim": shape.head_dim}))
    return kind(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.ff,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        tie_word_embeddings=shape.tied,
        **more,
    )


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_has_as_many_weights_as_transformers_makes_of_it(name):
    import torch
    from transformers import AutoModelForCausalLM

    shape = dataclasses.replace(SHAPES[name], layers=2)  # the others are alike
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(name, shape))
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    per_layer = sum(rows * columns for _, rows, columns in shape.layer_matrices())
    matrices = [p.numel() for key, p in model.named_parameters() if ".layers.0." in key and p.dim() == 2]
    assert per_layer == sum(matrices)


def test_the_shapes_have_the_sizes_that_the_models_are_known_by():
    assert {name: round(shape.parameters / 1e6) for name, shape in SHAPES.items()} == MILLIONS


def write_bundle(folder: Path, tied: bool = False) -> Bundle:
    """A random Llama at 8 and 4 bits, and its shape."""
    folder.mkdir()
    source = write_llama(folder / "f32.gguf", hidden=256, layers=2, heads=4, kv_heads=2, ff=512, tied=tied)
    files, levels = {}, []
    for precision, kind in ((8, "Q8_0"), (4, "Q4_K")):
        path = quantize(source, folder / f"q{precision}.gguf", kind)
        info = gguf_info.read(path)
        files[path.name] = WeightsFile(kind, path.stat().st_size, "0", info.bpw)
        levels.append(Level(precision, (path.name,)))
    schedule = StaticSchedule((Switch(1, 8), Switch(9, 4)), 64)
    made = Bundle(
        folder,
        "m",
        {},
        "llama",
        info.parameters,
        512,
        info.tokenizer_sha256,
        "separate",
        files,
        tuple(levels),
        8,
        schedule,
    )
    bundles.write(made)
    return made


@pytest.mark.parametrize("tied", [False, True])
def test_a_bundle_and_the_shape_of_its_model_read_the_same(tmp_path, tied):
    bundle = write_bundle(tmp_path / "b", tied)
    found = of_bundle(bundle)
    shape = Shape(256, 2, 4, 2, 64, 512, 4096, 512, tied=tied)
    device = make_device(types={8: "Q8_0", 4: "Q4_K"}, output_type="Q8_0")
    expected = of_shape("m", shape, device)
    assert found.parameters == expected.parameters
    assert found.parameters_read == expected.parameters_read
    assert (found.layers, found.heads, found.head_dim, found.kv_elements) == (2, 4, 64, 2 * 2 * 64)
    for level, other in zip(found.levels, expected.levels, strict=True):
        assert level.weight_bytes == other.weight_bytes
        assert sorted((p.rows, p.columns, p.type, p.sampled_only) for p in level.products) == sorted(
            (p.rows, p.columns, p.type, p.sampled_only) for p in other.products
        )
        (name,) = level.files
        assert sum(tensor.bytes for tensor in gguf_info.read(bundle.path / name).tensors) == sum(other.files.values())


def test_a_level_has_the_bits_that_the_manifest_says(tmp_path):
    bundle = write_bundle(tmp_path / "b")
    model = of_bundle(bundle)
    for level in bundle.levels:
        assert model.bpw(model.level(level.precision)) == pytest.approx(bundle.bpw(level))
    default = bundles.load(bundles.default_bundle())
    model = of_bundle(default)
    for level in default.levels:
        assert model.bpw(model.level(level.precision)) == pytest.approx(default.bpw(level), abs=1e-3)


def test_of_a_residual_only_the_layers_matrices_are_read(tmp_path):
    bundle = write_bundle(tmp_path / "b")
    base, residual = "q4.gguf", "q8.gguf"
    nested = dataclasses.replace(bundle, layout="nested", levels=(Level(8, (base, residual)), Level(4, (base,))))
    high, low = of_bundle(nested).levels
    assert high.type == "Q4_K + Q8_0"
    added = [p for p in high.products if p not in low.products]
    assert {p.type for p in added} == {"Q8_0"}
    assert sorted(p.name.split(".")[2] for p in added) == sorted(
        2 * ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    )
    assert high.weight_bytes == low.weight_bytes + sum(p.bytes for p in added)
    assert dict(high.files) == {base: bundle.files[base].bytes, residual: bundle.files[residual].bytes}


def test_what_has_no_keys_and_values_is_refused(tmp_path):
    made = make_bundle(tmp_path / "b")
    for level in made.levels:
        write_mamba(tmp_path / "b" / level.weights[0])
    with pytest.raises(BundleError, match=r"no single attention\.head_count of all layers: simulate knows"):
        of_bundle(made)


def test_an_unknown_model_is_told_beside_the_known_ones():
    with pytest.raises(PmpdError, match=r"no model 'gpt-5': choose one of vicuna-7b, .*, or give a bundle"):
        named("gpt-5", make_device())


def test_a_type_that_ggml_does_not_know_needs_its_bits():
    with pytest.raises(PmpdError, match="type 3-bit is none of GGML's: say how many bits its kernel has"):
        named("phi-1.5", make_device(types={3: "3-bit"}))
    kernels = {"3-bit": Kernel(1e30, bits=3, centroids=8)}
    level = named("phi-1.5", make_device(types={3: "3-bit"}, kernels=kernels)).level(3)
    assert level.weight_bytes == pytest.approx((24 * (4 * 2048**2 + 2 * 2048 * 8192) + 51200 * 2048) * 3 / 8, rel=1e-2)
    assert level.tables == 16 * (24 * (4 * 2048 + 8192 + 2048) + 51200)
