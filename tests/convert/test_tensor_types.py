"""Types of single matrices and of embeddings and output: what was asked for is what gguf's reader finds."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from pmpd_edge import Pmpd, bundle, gguf_info
from pmpd_edge.bench.random_model import write_llama
from pmpd_edge.bundle import Bundle
from pmpd_edge.convert import TensorType, convert, plan, quantize
from pmpd_edge.convert.quantize import FTYPES, Recipe
from pmpd_edge.errors import ConvertError

# Patterns overlap: the first that matches counts. One is for all levels, one for each of them alone.
ASKED = (
    TensorType(r"blk\.0\.attn_v", "Q5_K"),
    TensorType("attn_v|ffn_down", "Q6_K", 4),
    TensorType("attn_(q|v)", "Q5_1", 8),
)
VOCABULARY = ("token_embd.weight", "output.weight")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("source") / "model-f16.gguf", tied=False, dtype=np.float16)


def make(source: Path, out: Path, **options: Any) -> Bundle:
    return convert(source, out, **{"use_imatrix": False, "threads": 1, **options})


def matrices(path: Path) -> dict[str, gguf.ReaderTensor]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors if len(tensor.shape) > 1}


def asked_type(name: str, precision: int, otherwise: str) -> str:
    if name in VOCABULARY:
        return "Q8_0"
    matching = [one.type for one in ASKED if one.precision in (None, precision) and re.search(one.pattern, name)]
    return [*matching, otherwise][0]


def overrides(precision: int) -> tuple[tuple[str, str], ...]:
    return tuple((one.pattern, one.type) for one in ASKED if one.precision in (None, precision))


def runs(made: Bundle, precision: int) -> bool:
    llm = Pmpd(made.path, n_threads=1, scheduler=f"fixed:{precision}")
    tokens = list(itertools.islice(llm.generate([1, 300, 301], temp=0.0), 4))
    llm.close()
    return len(tokens) == 4


def test_exactly_the_matching_matrices_have_the_type(source: Path, tmp_path: Path) -> None:
    made = make(source, tmp_path / "out", precisions=(16, 8, 4), tensor_types=ASKED)
    header = gguf_info.read(source)
    plain: dict[str, dict[str, gguf.ReaderTensor]] = {}
    for kind in ("Q8_0", "Q4_K", "Q5_K", "Q6_K", "Q5_1"):
        quantize.quantize(header, tmp_path / f"{kind}.gguf", Recipe(kind), 1)
        plain[kind] = matrices(tmp_path / f"{kind}.gguf")
    for precision, level_type in ((8, "Q8_0"), (4, "Q4_K")):
        (path,) = made.paths(made.level(precision))
        found = matrices(path)
        assert len(found) == 2 + 2 * 7
        for name, tensor in found.items():
            kind = asked_type(name, precision, level_type)
            assert tensor.tensor_type.name == kind, name
            assert (tensor.data == plain["Q8_0" if name in VOCABULARY else kind][name].data).all(), name
        file = made.files[path.name]
        assert (file.type, file.overrides, file.fallbacks) == (level_type, overrides(precision), ())
        assert runs(made, precision)
    (path,) = made.paths(made.level(16))
    assert {tensor.tensor_type.name for tensor in matrices(path).values()} == {"F16"}
    assert made.files[path.name].overrides == ()
    assert bundle.load(made.path) == made


def test_nested_levels_too(source: Path, tmp_path: Path) -> None:
    made = make(source, tmp_path / "out", precisions=(8, 4), layout="nested", tensor_types=ASKED)
    for name, precision, level_type in (("model-q4.gguf", 4, "Q4_K"), ("model-q8-residual.gguf", 8, "Q4_0")):
        for tensor in gguf_info.read(made.path / name).tensors:
            if tensor.name.startswith("blk.") and len(tensor.shape) > 1:
                assert tensor.type == asked_type(tensor.name, precision, level_type), tensor.name
        file = made.files[name]
        assert (file.type, file.overrides, file.fallbacks) == (level_type, overrides(precision), ())
    assert runs(made, 8) and runs(made, 4)


def test_nothing_is_added_to_a_matrix_of_16_bits(source: Path, tmp_path: Path) -> None:
    asked = [TensorType("ffn_up", "F16", 4)]
    made = make(source, tmp_path / "out", precisions=(8, 4), layout="nested", tensor_types=asked)
    low, residual = made.level(8).weights
    assert {t.type for t in gguf_info.read(made.path / low).tensors if "ffn_up" in t.name} == {"F16"}
    assert {t.type for t in gguf_info.read(made.path / residual).tensors if "ffn_up" in t.name} == {"Q1_0"}
    assert not any(file.fallbacks for file in made.files.values())
    assert runs(made, 8)


def test_regular_expressions_are_pythons(source: Path, tmp_path: Path) -> None:
    """Those of C++, which llama.cpp has, know neither of these."""
    asked = [
        TensorType(r"(?i)ATTN_V\.weight\Z", "Q6_K"),
        TensorType(r"(?<=ffn_)down", "Q5_K"),
        TensorType(r"\Ablk.*attn_(?P<which>k|output)", "Q5_1"),
        TensorType(r".*", "Q4_1"),
    ]
    made = make(source, tmp_path / "out", precisions=(4,), tensor_types=asked)
    types = {name: tensor.tensor_type.name for name, tensor in matrices(made.paths(made.level(4))[0]).items()}
    expected = {"attn_v": "Q6_K", "ffn_down": "Q5_K", "attn_k": "Q5_1", "attn_output": "Q5_1"}
    for name, kind in types.items():
        assert kind == ("Q8_0" if name in VOCABULARY else expected.get(name.split(".")[-2], "Q4_1")), name
    assert made.files["model-q4.gguf"].fallbacks == ()


def test_what_the_shape_does_not_allow_is_told(tmp_path: Path) -> None:
    source = write_llama(tmp_path / "narrow.gguf", hidden=96, heads=3, kv_heads=1, layers=1)
    asked = [TensorType("attn_q", "Q6_K"), TensorType("attn_v", "Q5_1")]
    for layout in ("separate", "nested"):
        made = make(source, tmp_path / layout, precisions=(8, 4), types={4: "Q4_0"}, layout=layout, tensor_types=asked)
        (name,) = made.level(4).weights
        assert [(f.type, f.tensors) for f in made.files[name].fallbacks] == [("Q8_0", ("blk.0.attn_q.weight",))]
        (kept,) = [f for f in made.files[made.level(8).weights[-1]].fallbacks if "blk.0.attn_q.weight" in f.tensors]
        assert kept.type == "Q8_0"


def test_a_type_that_needs_a_matrix_gets_one(source: Path) -> None:
    asked = (TensorType("ffn_up", "IQ3_XXS", 8), TensorType("attn_q", "Q5_K"))
    assert [level.uses_imatrix for level in plan.make("m", (8, 6), tensor_types=asked).levels] == [True, False]
    assert not plan.make("m", (8, 6)).uses_imatrix
    with pytest.raises(ConvertError, match="type IQ3_XXS needs an importance matrix"):
        plan.make("m", (8, 6), tensor_types=asked, use_imatrix=False)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (
            TensorType("attn_x", "Q6_K"),
            "'attn_x' for Q6_K matches no matrix of the layers: a matrix's name is like blk.0",
        ),
        (TensorType("attn_norm", "Q6_K"), "'attn_norm' for Q6_K matches no matrix of the layers"),
        (TensorType("token_embd", "Q6_K"), "'token_embd' for Q6_K matches no matrix of the layers"),
        (TensorType("attn_(v", "Q6_K"), "'attn_(v': not a regular expression"),
        (TensorType("attn_v", "Q6_L"), "type Q6_L for 'attn_v' is not known: choose from Q8_0,"),
        (TensorType("attn_v", "F32"), "type F32 for 'attn_v' is not known"),
        (TensorType("attn_v", "Q6_K", 6), "a type for 6 bits, which is not among the precisions"),
        (TensorType("attn_v", "Q6_K", 16), "type Q6_K for 'attn_v' at 16 bits: all matrices have one type there"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(source: Path, tmp_path: Path, asked: TensorType, words: str) -> None:
    with pytest.raises(ConvertError) as caught:
        make(source, tmp_path / "out", precisions=(16, 4), tensor_types=[asked])
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layout", ["separate", "nested"])
def test_embeddings_and_output_have_their_type_at_all_levels(source: Path, tmp_path: Path, layout: str) -> None:
    made = make(source, tmp_path / "out", precisions=(16, 8, 4), layout=layout, shared_type="Q6_K")
    for precision, kind in ((16, "F16"), (8, "Q6_K"), (4, "Q6_K")):
        found = types_of(made.path / made.level(precision).weights[0], VOCABULARY)
        assert found == [kind, kind]
    assert not any(file.fallbacks for file in made.files.values())
    plain = make(source, tmp_path / "plain", precisions=(8, 4), layout=layout)
    for precision in (8, 4):
        assert made.bpw(made.level(precision)) < plain.bpw(plain.level(precision))
    assert runs(made, 4)


def types_of(path: Path, names: Sequence[str]) -> list[str]:
    found = {tensor.name: tensor.type for tensor in gguf_info.read(path).tensors}
    return [found[name] for name in names]


def test_embeddings_that_no_type_suits(tmp_path: Path) -> None:
    source = write_llama(tmp_path / "narrow.gguf", hidden=96, heads=3, kv_heads=1, layers=1)
    made = make(source, tmp_path / "out", precisions=(4,), types={4: "Q4_0"}, shared_type="Q6_K")
    assert types_of(made.paths(made.level(4))[0], ["token_embd.weight"]) == ["F16"]
    assert [(f.type, f.tensors) for f in made.files["narrow-q4.gguf"].fallbacks] == [("F16", ("token_embd.weight",))]
    with pytest.raises(ConvertError, match="type Q2_K for embeddings and output: choose from Q8_0, Q6_K,"):
        make(source, tmp_path / "again", precisions=(4,), shared_type="Q2_K")


@pytest.mark.parametrize("kind", FTYPES)
def test_every_type_makes_a_file_of_that_type(source: Path, tmp_path: Path, kind: str) -> None:
    quantize.quantize(gguf_info.read(source), tmp_path / "out.gguf", Recipe(kind), 1)
    info = gguf_info.read(tmp_path / "out.gguf")
    assert {tensor.type for tensor in info.tensors if tensor.name.startswith("blk.") and len(tensor.shape) > 1} == {
        kind
    }
