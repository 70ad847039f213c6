"""Tokenizers: ids equal to Hugging Face's, and the way out where llama.cpp does not recognise one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is needed: pip install 'pmpd-edge[convert]'")

from models import TRANSLATOR

from pmpd_edge import gguf_info, native
from pmpd_edge.convert import convert, hf, imatrix, tokens
from pmpd_edge.errors import ConvertError

pytestmark = pytest.mark.filterwarnings("default")  # those of transformers and torch are not ours

END = "<|end|>"


def write_model(path: Path, vocabulary: int) -> None:
    """A Llama of one layer, all zeros: tokenizers need no more."""
    width = 64
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": width,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    (path / "config.json").write_text(json.dumps(config))
    layer = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    layer += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    shapes = {f"model.layers.0.{name}.weight": [width, width] for name in layer}
    shapes |= {f"model.layers.0.{name}_layernorm.weight": [width] for name in ("input", "post_attention")}
    shapes |= {f"{name}.weight": [vocabulary, width] for name in ("model.embed_tokens", "lm_head")}
    shapes["model.norm.weight"] = [width]
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    encoded = json.dumps(header).encode()
    (path / "model.safetensors").write_bytes(len(encoded).to_bytes(8, "little") + encoded + bytes(at))


def train(path: Path, pattern: str | None) -> Path:
    """A model with a byte-level BPE tokenizer trained on the samples, whose hash nobody knows.

    Args:
        pattern: what words are; None for GPT-2's.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    path.mkdir()
    tokenizer = tokenizers.Tokenizer(models.BPE())
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    split = [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")] if pattern else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, by_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(list(tokens.SAMPLES) * 3, trainer)
    tokenizer.save(str(path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END, "eos_token": END}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    write_model(path, tokenizer.get_vocab_size())
    return path


@pytest.fixture(scope="module")
def like_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("models") / "like-gpt2", None)


def test_unrecognised_pre_tokenizer_is_refused_with_those_that_agree(like_gpt2: Path, tmp_path: Path) -> None:
    with pytest.raises(ConvertError) as caught:
        convert(like_gpt2, tmp_path / "out")
    line = str(caught.value)
    assert "unrecognised pre-tokenizer" in line and "\n" not in line
    assert f"for all {len(tokens.SAMPLES)} sample texts: gpt-2, " in line
    assert line.endswith("go on with --pre-tokenizer gpt-2")
    assert not list(tmp_path.iterdir())


def test_named_pre_tokenizer_gives_hugging_faces_tokens(like_gpt2: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    notes: list[str] = []
    made = convert(like_gpt2, tmp_path / "out", precisions=(8,), pre_tokenizer="gpt-2", threads=1, note=notes.append)
    (path,) = made.paths(made.levels[0])
    assert gguf_info.read(path).metadata["tokenizer.ggml.pre"] == "gpt-2"
    assert notes == []

    texts = [*tokens.SAMPLES, "Zwölf Boxkämpfer jagen Viktor 12 345 678 mal — quer über den großen Sylter Deich 🐎"]
    reference = AutoTokenizer.from_pretrained(like_gpt2)
    expected = [tuple(reference.encode(text, add_special_tokens=False)) for text in texts]
    assert list(tokens.tokenize(path, texts)[""]) == expected

    known = tokens.known_pre_tokenizers(native.upstream_dir())
    assert known[:3] == ("gpt-2", "llama-bpe", "qwen2") and len(known) == len({*known}) > 60
    assert tokens.tokenize(path, ("a",), known).keys() == {*known}  # the library takes every name of the converter

    # A rule that splits numbers in another way is found out.
    found = tokens.tokenize(path, texts, ["gpt-2", "llama-bpe", "no-such-rule"])
    assert found.keys() == {"gpt-2", "llama-bpe"}
    assert list(found["gpt-2"]) == expected
    difference = tokens.difference(tuple(expected), found["llama-bpe"], texts)
    differing = [i for i, ids in enumerate(found["llama-bpe"]) if ids != expected[i]]
    assert f"in {len(differing)} of {len(texts)} sample texts, first in {texts[differing[0]]!r:.20}" in difference


def test_where_none_agrees_the_closest_is_named(tmp_path: Path) -> None:
    import tokenizers

    source = train(tmp_path / "odd", r"[aeiou]+|\p{N}{1,5}|[^aeiou\p{N}]+")
    tokenizer = tokenizers.Tokenizer.from_file(str(source / "tokenizer.json"))
    ids = tmp_path / "ids.json"
    ids.write_text(json.dumps({"ids": [tokenizer.encode(text).ids for text in tokens.SAMPLES]}))
    line = str(hf._explain_pre_tokenizer(source, "", ids))
    assert f"; none that it knows gives Hugging Face's tokens for all {len(tokens.SAMPLES)} sample texts, the" in line
    assert "accept the differences with --pre-tokenizer " in line and "\n" not in line


def test_unknown_name_is_refused_at_once_with_those_alike(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match=r"'qwn2': llama.cpp knows none of that name: it knows qwen2"):
        convert(TRANSLATOR, tmp_path / "out", pre_tokenizer="qwn2")


def test_sentencepiece_differs_where_it_is_known_to_and_is_told(tmp_path: Path) -> None:
    notes: list[str] = []
    hf.to_gguf(TRANSLATOR, tmp_path / "out.gguf", pre_tokenizer="gpt-2", note=notes.append)
    assert len(notes) == 2
    assert "first in '  two spaces before'" in notes[0]
    assert notes[1] == "the pre-tokenizer gpt-2 was not used: this tokenizer is no byte-level BPE one"

    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(TRANSLATOR)
    found = tokens.tokenize(tmp_path / "out.gguf")[""]
    for text, ids in zip(tokens.SAMPLES, found, strict=True):
        if not text.startswith(" "):
            assert list(ids or ()) == reference.encode(text, add_special_tokens=False), text


def test_sentencepiece_without_tokenizer_model_takes_the_order_of_the_merges(tmp_path: Path) -> None:
    source = Path(shutil.copytree(TRANSLATOR, tmp_path / "model", ignore=shutil.ignore_patterns("tokenizer.model")))
    for path, out in ((TRANSLATOR, "with.gguf"), (source, "without.gguf")):
        hf.to_gguf(path, tmp_path / out)
    texts = (*tokens.SAMPLES, *imatrix.DEFAULT_TEXT.read_text(encoding="utf-8").splitlines())
    found = [tokens.tokenize(tmp_path / name, texts)[""] for name in ("with.gguf", "without.gguf")]
    assert found[0] == found[1]


def test_tokenizer_that_hugging_face_does_not_load_is_told(tmp_path: Path) -> None:
    ids = tmp_path / "ids.json"
    ids.write_text('{"error": "ValueError: odd"}')
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    notes: list[str] = []
    hf._note_differences(tmp_path / "x.gguf", ids, None, notes.append)
    assert notes == [
        "token ids were not compared with those of Hugging Face's tokenizer, which does not load (ValueError: odd)"
    ]


def test_difference_names_the_first_text_and_hides_control_characters() -> None:
    texts = ("a", "b\x1b[31m" + 50 * "c", "d")
    assert tokens.difference(((1,), (2,), None), ((1,), (2,), (5,)), texts) == ""
    line = tokens.difference(((1,), (2, 3, 4, 5, 6, 7), (9,)), ((1,), (2, 8), (9, 9)), texts)
    assert line.endswith(
        "in 2 of 3 sample texts, first in 'b\\x1b[31m" + 34 * "c" + "…': 8 instead of 3,4,5,6,… from token 1 on"
    )
