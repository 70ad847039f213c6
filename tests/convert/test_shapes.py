"""Models whose shapes do not suit the types: what falls back is reported, and the bits are the real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest

pytest.importorskip("torch", reason="torch is needed: pip install 'pmpd-edge[convert]'")

from models import tiny_llama

from pmpd_edge import bundle, cli_ui, gguf_info, native
from pmpd_edge.bundle import Bundle
from pmpd_edge.convert import convert
from pmpd_edge.convert.quantize import Recipe

pytestmark = pytest.mark.filterwarnings("default")  # those of transformers and torch are not ours


@pytest.fixture(scope="module")
def llama_cpp() -> Any:
    return native.load()


def bits_read(path: Path) -> float:
    """Real bits per weight of a Llama file, by gguf's own reader; an embedding beside an output matrix is not read."""
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    if "output.weight" in tensors:
        del tensors["token_embd.weight"]
    bits = sum(8 * int(tensor.n_bytes) for tensor in tensors.values())
    return bits / sum(int(tensor.n_elements) for tensor in tensors.values())


def generates(llama_cpp: Any, path: Path) -> bool:
    llm = llama_cpp.Llama(str(path), n_ctx=64, n_threads=1, verbose=False)
    tokens = [token for token, _ in zip(llm.generate([1, 3, 300, 4], temp=0.0), range(4), strict=False)]
    llm.close()
    return len(tokens) == 4


def check_bits(made: Bundle) -> None:
    for level in made.levels:
        (path,) = made.paths(level)
        assert made.bpw(level) == pytest.approx(bits_read(path), abs=1e-4)


@pytest.mark.parametrize(("hidden", "tie"), [(96, True), (288, False)])
def test_columns_not_divisible_by_256_fall_back_and_are_reported(
    llama_cpp: Any, tmp_path: Path, hidden: int, tie: bool
) -> None:
    source = tiny_llama(tmp_path / "odd", hidden=hidden, layers=2, heads=3, kv_heads=1, ff=512, tie=tie)
    made = convert(source, tmp_path / "out", precisions=(8, 4, 2), use_imatrix=False, threads=1)
    check_bits(made)

    for precision, fallback in [(8, None), (4, "Q5_0"), (2, "Q4_0")]:
        (path,) = made.paths(made.level(precision))
        info = gguf_info.read(path)
        fallbacks = info.fallbacks(Recipe(made.files[path.name].type).type_of)
        assert {tensor.type for tensor in fallbacks} == ({fallback} if fallback else set())
        kept = {(kept.type, name) for kept in made.files[path.name].fallbacks for name in kept.tensors}
        assert kept == {(tensor.type, tensor.name) for tensor in fallbacks}
        # The columns of ffn_down are the 512 of the feed-forward layer: they suit.
        expected = 2 * len(("q", "k", "v", "o", "gate", "up")) if fallback else 0
        assert len(fallbacks) == expected
        assert not any("ffn_down" in tensor.name for tensor in fallbacks)
        assert generates(llama_cpp, path)
    assert made.bpw(made.level(2)) > 4  # nominal 2
    told = cli_ui.notes(bundle.load(made.path))
    assert [line.partition(":")[0] for line in told[:2]] == ["odd-q4.gguf", "odd-q2.gguf"]


def test_columns_not_divisible_by_32_become_f16_instead_of_an_abort(llama_cpp: Any, tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "narrow", hidden=48, layers=1, heads=2, kv_heads=1, ff=256)
    made = convert(source, tmp_path / "out", precisions=(8, 4), use_imatrix=False, threads=1)
    check_bits(made)
    for level in made.levels:
        (path,) = made.paths(level)
        types = {tensor.name: tensor.type for tensor in gguf_info.read(path).tensors}
        assert types["token_embd.weight"] == types["output.weight"] == types["blk.0.attn_q.weight"] == "F16"
        assert generates(llama_cpp, path)


def test_untied_output_is_read_and_embeddings_are_not(llama_cpp: Any, tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "untied", layers=1, ff=256, tie=False)
    options: dict[str, Any] = {"types": {16: "F16", 4: "Q4_0"}, "name": "small one", "use_imatrix": False, "threads": 1}
    made = convert(source, tmp_path / "out", precisions=(16, 4), **options)
    check_bits(made)
    assert sorted(made.files) == ["small one-16.gguf", "small one-q4.gguf"]
    assert [file.type for file in made.files.values()] == ["F16", "Q4_0"]
    info = gguf_info.read(made.path / "small one-q4.gguf")
    types = {tensor.name: tensor.type for tensor in info.tensors}
    assert types["token_embd.weight"] == types["output.weight"] == "Q8_0"
    assert types["blk.0.attn_k.weight"] == types["blk.0.ffn_down.weight"] == "Q4_0"
    assert info.fallbacks(Recipe("Q4_0").type_of) == ()
    assert info.parameters == sum(tensor.elements for tensor in info.tensors)
    assert generates(llama_cpp, made.path / "small one-q4.gguf")


def test_all_types_have_the_sizes_and_numbers_of_upstream() -> None:
    known = {kind.name: (kind.value, *gguf.GGML_QUANT_SIZES[kind]) for kind in gguf.GGMLQuantizationType}
    assert {name: known[name] for name in gguf_info.TYPES if name in known} == {
        name: value for name, value in gguf_info.TYPES.items() if name in known
    }
