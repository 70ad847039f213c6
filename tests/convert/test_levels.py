"""A converted model against oracles: the checkpoint itself, transformers, and gguf's own reader."""

from __future__ import annotations

import hashlib
import itertools
import json
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is needed: pip install 'pmpd-edge[convert]'")

from models import TRANSLATOR, part_of

from pmpd_edge import bundle, gguf_info, native
from pmpd_edge.bundle import Bundle, Switch
from pmpd_edge.convert import convert

pytestmark = pytest.mark.filterwarnings("default")  # those of transformers and torch are not ours

TYPES = {16: "BF16", 8: "Q8_0", 4: "Q4_K", 3: "Q3_K", 2: "Q2_K"}

SENTENCES = {
    "German": [
        "Ein Hund läuft über die Wiese.",
        "Zwei Männer stehen am Herd und bereiten Essen zu.",
        "Eine Frau mit rotem Hut fährt Fahrrad!",
        "Kinder spielen im Schnee",
        "Ein kleines Mädchen klettert in ein Spielhaus aus Holz.",
    ],
    "French": [
        "Un homme mange une pomme.",
        "Deux enfants jouent près de l'eau, à côté d'un arbre.",
        "Une femme âgée tricote ; elle porte un chapeau bleu.",
        "Le garçon saute très haut",
        "Où est-ce que le chien court ?",
    ],
}
ENDINGS = ["", " 😀", " (3,50 €)", "\n", " A–Z"]


def prompts() -> list[str]:
    """50 prompts in the model's format."""
    return [
        f"<s><|user|>Translate from {language} to English: {sentence}{ending}<|assistant|>"
        for language, sentences in SENTENCES.items()
        for sentence, ending in itertools.product(sentences, ENDINGS)
    ]


@pytest.fixture(scope="module")
def llama_cpp() -> Any:
    return native.load()


@pytest.fixture(scope="module")
def made(llama_cpp: Any, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("made") / "translator"
    return convert(TRANSLATOR, out, precisions=(16, 8, 4, 3, 2))


@pytest.fixture(scope="module")
def reference() -> tuple[Any, Any]:
    """The tokenizer and the float32 model, by transformers."""
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(TRANSLATOR, dtype=torch.float32)
    return AutoTokenizer.from_pretrained(TRANSLATOR), model


@pytest.fixture(scope="module")
def llm(made: Bundle, llama_cpp: Any) -> Iterator[Any]:
    path = made.path / "translator-7m-16.gguf"
    with_logits = llama_cpp.Llama(str(path), n_ctx=256, logits_all=True, n_threads=1, verbose=False)
    yield with_logits
    with_logits.close()


def file_of(made: Bundle, precision: int) -> Path:
    (path,) = made.paths(made.level(precision))
    return path


def checkpoint_tensors() -> dict[str, np.ndarray]:
    """The safetensors under GGUF's names, query and key rows in GGUF's order."""
    import torch
    from safetensors.torch import load_file

    config = json.loads((TRANSLATOR / "config.json").read_text())
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    found = {}
    for key, tensor in load_file(TRANSLATOR / "model.safetensors").items():
        values = tensor.to(torch.float32).numpy()
        stem = key.removesuffix(".weight")
        if stem in names:
            found[f"{names[stem]}.weight"] = values
            continue
        _, _, layer, rest = stem.split(".", 3)
        name = names[rest]
        if name in heads:  # the two halves of a head's rotary dimensions become pairs
            rows, columns = values.shape
            halves = values.reshape(heads[name], 2, rows // heads[name] // 2, columns)
            values = halves.swapaxes(1, 2).reshape(rows, columns)
        found[f"blk.{layer}.{name}.weight"] = values
    return found


def test_16_bit_level_holds_exactly_the_checkpoint(made: Bundle) -> None:
    expected = checkpoint_tensors()
    reader = gguf.GGUFReader(file_of(made, 16))
    assert {tensor.name for tensor in reader.tensors} == set(expected)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(values, expected[tensor.name]), tensor.name


@pytest.mark.parametrize("precision", [8, 4, 3, 2])
def test_level_has_the_types_it_claims_and_comes_close_to_the_checkpoint(made: Bundle, precision: int) -> None:
    expected = checkpoint_tensors()
    largest_error = {8: 0.01, 4: 0.1, 3: 0.2, 2: 0.4}[precision]
    assert made.files[file_of(made, precision).name].type == TYPES[precision]
    for tensor in gguf.GGUFReader(file_of(made, precision)).tensors:
        if len(tensor.shape) == 1:
            claimed = "F32"
        else:
            claimed = "Q8_0" if tensor.name == "token_embd.weight" else TYPES[precision]
        assert tensor.tensor_type.name == claimed, tensor.name
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        error = np.linalg.norm(values - expected[tensor.name]) / np.linalg.norm(expected[tensor.name])
        assert error < largest_error, tensor.name


@pytest.mark.parametrize("precision", sorted(TYPES))
def test_bits_per_weight_are_those_of_the_tensors_in_the_file(made: Bundle, precision: int) -> None:
    reader = gguf.GGUFReader(file_of(made, precision))
    bits = sum(8 * int(tensor.n_bytes) for tensor in reader.tensors)  # embeddings are tied: all is read
    weights = sum(int(tensor.n_elements) for tensor in reader.tensors)
    assert weights == made.parameters == 7344384
    assert made.bpw(made.level(precision)) == pytest.approx(bits / weights, abs=1e-4)


@pytest.mark.parametrize("precision", sorted(TYPES))
def test_bits_of_each_part_are_those_of_its_tensors(made: Bundle, precision: int) -> None:
    bits: Counter[str] = Counter()
    weights: Counter[str] = Counter()
    for tensor in gguf.GGUFReader(file_of(made, precision)).tensors:
        bits[part_of(tensor.name)] += 8 * int(tensor.n_bytes)
        weights[part_of(tensor.name)] += int(tensor.n_elements)
    found = made.files[file_of(made, precision).name].bpw_by_class
    assert found == pytest.approx({part: bits[part] / weights[part] for part in bits}, abs=1e-4)
    assert [*found] == ["embeddings", "attention", "feed-forward", "other"]
    assert found["attention"] == gguf_info.bits(TYPES[precision])


def test_tokenizer_hash_is_over_the_entries_as_the_file_encodes_them(made: Bundle) -> None:
    reader = gguf.GGUFReader(file_of(made, 4))
    entries = []
    for key, field in sorted(reader.fields.items()):
        if key.startswith("tokenizer."):
            entries.append(b"".join(part.tobytes() for part in field.parts))
            assert entries[-1].startswith(struct.pack("<Q", len(key)) + key.encode())
    assert made.tokenizer_sha256 == hashlib.sha256(b"".join(entries)).hexdigest()
    assert {gguf_info.read(file_of(made, p)).tokenizer_sha256 for p in made.precisions} == {made.tokenizer_sha256}


def test_manifest_loads_and_says_what_is_there(made: Bundle) -> None:
    loaded = bundle.load(made.path)
    assert loaded == made
    loaded.verify()
    assert loaded.precisions == (16, 8, 4, 3, 2)
    assert (loaded.name, loaded.architecture, loaded.context_length) == ("translator-7m", "llama", 512)
    assert loaded.prefill == 16
    assert loaded.schedule.switches == (
        Switch(1, 16),
        Switch(52, 8),
        Switch(103, 4),
        Switch(154, 3),
        Switch(205, 2),
    )
    files = {path.name for path in made.path.iterdir()}
    assert files == {*loaded.files, "translator-7m-imatrix.gguf", "pmpd.json", "README.md"}


def test_tokens_are_those_of_transformers(reference: tuple[Any, Any], llm: Any) -> None:
    tokenizer, _ = reference
    for prompt in prompts():
        expected = tokenizer(prompt, add_special_tokens=False).input_ids
        assert llm.tokenize(prompt.encode(), add_bos=False, special=True) == expected, prompt


def test_logits_of_16_bits_are_those_of_transformers(reference: tuple[Any, Any], llm: Any) -> None:
    import torch

    tokenizer, model = reference
    for prompt in prompts()[::10]:
        ids = tokenizer(prompt, add_special_tokens=False).input_ids
        with torch.inference_mode():
            expected = model(torch.tensor([ids])).logits[0].numpy()
        llm.reset()
        llm.eval(ids)
        logits = np.array(llm.scores[: len(ids)])
        assert np.linalg.norm(logits - expected) / np.linalg.norm(expected) < 5e-3
        assert (logits.argmax(-1) == expected.argmax(-1)).mean() > 0.95


def test_two_conversions_of_one_model_are_equal(made: Bundle, tmp_path: Path) -> None:
    again = convert(TRANSLATOR, tmp_path / "again", precisions=(4,), threads=1)
    name = file_of(made, 4).name
    assert again.files[name] == made.files[name]
    assert again.schedule.switches == (Switch(1, 4),)
    assert not list(again.path.glob("*-16.gguf"))
