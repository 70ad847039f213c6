"""Nested bundles against oracles: gguf's reader and numpy for the weights, one file of the sum for the logits."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("torch", reason="torch is needed: pip install 'pmpd-edge[convert]'")

from models import TRANSLATOR, part_of, tiny_llama, write_like

from pmpd_edge import Pmpd, bundle, gguf_info, native
from pmpd_edge.bench.random_model import write_mamba
from pmpd_edge.bundle import Bundle
from pmpd_edge.convert import convert, plan, quantize, residual
from pmpd_edge.convert.ggml import Ggml, Weights
from pmpd_edge.convert.quantize import Recipe
from pmpd_edge.errors import ConvertError
from pmpd_edge.gguf_info import Tensor

pytestmark = pytest.mark.filterwarnings("default")  # those of transformers and torch are not ours

PROMPT = "<s><|user|>Translate from German to English: Ein Hund läuft über die Wiese.<|assistant|>"
Arrays = dict[str, npt.NDArray[np.float32]]


@pytest.fixture(scope="module")
def llama_cpp() -> Any:
    return native.load()


@pytest.fixture(scope="module")
def made(llama_cpp: Any, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The translator, every kind of level: 16 bits, a sum of three, a sum of two, a base."""
    out = tmp_path_factory.mktemp("nested") / "translator"
    return convert(TRANSLATOR, out, precisions=(16, 8, 4, 2), layout="nested", use_imatrix=False, threads=1)


@pytest.fixture(scope="module")
def pair(llama_cpp: Any, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("pair") / "translator"
    return convert(TRANSLATOR, out, precisions=(8, 4), layout="nested", use_imatrix=False, threads=1)


@pytest.fixture(scope="module")
def narrow(llama_cpp: Any, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """96 columns: divisible by 32 alone; the feed-forward layer's 512 suit all types."""
    folder = tmp_path_factory.mktemp("narrow")
    source = tiny_llama(folder / "source", hidden=96, heads=3, kv_heads=1, ff=512)
    return convert(source, folder / "out", precisions=(16, 8, 4, 2), layout="nested", use_imatrix=False, threads=1)


def dequantize(path: Path) -> Arrays:
    """All tensors that gguf knows; those of other types are checked to be zeros, byte by byte."""
    found = {}
    for tensor in gguf_info.read(path).tensors:
        data = raw(path, tensor)
        shape = tensor.shape[::-1]
        if data.any():
            kind = gguf.GGMLQuantizationType[tensor.type]
            found[tensor.name] = gguf.quants.dequantize(data.reshape(*shape[:-1], -1), kind).reshape(shape)
        else:
            found[tensor.name] = np.zeros(shape, np.float32)
    return found


def raw(path: Path, tensor: Tensor) -> npt.NDArray[np.uint8]:
    start, offsets = Ggml(native.load()).layout(path)
    return np.fromfile(path, np.uint8, tensor.bytes, offset=start + offsets[tensor.name])


def summed(made: Bundle, precision: int) -> Arrays:
    base, *residuals = (dequantize(path) for path in made.paths(made.level(precision)))
    return {name: sum((part[name] for part in residuals), start=array) for name, array in base.items()}


def error(weights: Arrays, expected: Arrays) -> float:
    """Relative error of the layers' matrices, taken as one vector."""
    names = [name for name, array in expected.items() if name.startswith("blk.") and array.ndim > 1]
    lost = sum(float(np.square(weights[name] - expected[name], dtype=np.float64).sum()) for name in names)
    return (lost / sum(float(np.square(expected[name], dtype=np.float64).sum()) for name in names)) ** 0.5


def test_manifest_lists_a_base_and_its_residuals(made: Bundle) -> None:
    names = [f"translator-7m-{part}.gguf" for part in ("q2", "q4-residual", "q8-residual")]
    assert made == bundle.load(made.path)
    made.verify()
    assert made.layout == "nested"
    assert {level.precision: level.weights for level in made.levels} == {
        16: ("translator-7m-16.gguf",),
        8: tuple(names),
        4: tuple(names[:2]),
        2: tuple(names[:1]),
    }
    assert {name: file.type for name, file in made.files.items() if name in names} == dict(
        zip(names, ("Q2_K", "Q2_K", "Q4_0"), strict=True)
    )
    assert {path.name for path in made.path.iterdir()} == {*made.files, "pmpd.json", "README.md"}


def test_errors_fall_from_level_to_level_to_those_of_their_own_types(made: Bundle) -> None:
    expected = dequantize(made.path / "translator-7m-16.gguf")
    errors = {precision: error(summed(made, precision), expected) for precision in (8, 4, 2)}
    # A sum's error is the product of its parts': 0.298, 0.079 / 0.298 and 0.0050 / 0.072.
    assert errors == pytest.approx({2: 0.298, 4: 0.079, 8: 0.0057}, rel=0.06)


def test_4_bits_and_a_residual_are_as_good_as_8_bits_at_a_tenth_more(
    made: Bundle, pair: Bundle, tmp_path: Path
) -> None:
    source = gguf_info.read(made.path / "translator-7m-16.gguf")
    alone = tmp_path / "q8.gguf"
    quantize.quantize(source, alone, Recipe("Q8_0"), 1)
    expected = dequantize(source.path)
    assert error(summed(pair, 8), expected) < error(dequantize(alone), expected)
    assert sum(file.bytes for file in pair.files.values()) <= 1.10 * alone.stat().st_size


def test_narrow_matrices_fall_back_and_errors_still_fall(narrow: Bundle) -> None:
    types = {path.name: {tensor.name: tensor.type for tensor in gguf_info.read(path).tensors} for path in files(narrow)}
    assert [types[name]["blk.0.attn_q.weight"] for name in narrow.level(8).weights] == ["Q4_0", "Q4_0", "Q4_0"]
    assert [types[name]["blk.0.ffn_down.weight"] for name in narrow.level(8).weights] == ["Q2_K", "Q2_K", "Q4_0"]
    assert types["source-q8-residual.gguf"]["output.weight"] == "Q4_0"  # zeros, in what fits 96 columns
    expected = dequantize(narrow.path / "source-16.gguf")
    errors = [error(summed(narrow, precision), expected) for precision in (2, 4, 8)]
    assert errors[0] > 3 * errors[1] > 9 * errors[2] > 0


def files(made: Bundle) -> list[Path]:
    return [made.path / name for name in made.files]


@pytest.mark.parametrize("which", ["made", "narrow"])
def test_what_is_not_summed_is_zero_in_a_residual_and_small(request: pytest.FixtureRequest, which: str) -> None:
    nested: Bundle = request.getfixturevalue(which)
    for name in nested.level(8).weights[1:]:
        info = gguf_info.read(nested.path / name)
        for tensor in info.tensors:
            is_summed = tensor.name.startswith("blk.") and len(tensor.shape) > 1
            assert raw(nested.path / name, tensor).any() == is_summed, tensor.name
            if not is_summed and len(tensor.shape) > 1:
                assert tensor.type == ("Q1_0" if which == "made" else "Q4_0")


@pytest.mark.parametrize("which", ["made", "narrow"])
def test_bits_per_weight_are_those_that_a_step_reads(request: pytest.FixtureRequest, which: str) -> None:
    nested: Bundle = request.getfixturevalue(which)
    tied = which == "made"
    for precision in (8, 4, 2):
        base, *residuals = (gguf_info.read(path) for path in nested.paths(nested.level(precision)))
        read = [tensor for tensor in base.tensors if tied or tensor.name != "token_embd.weight"]
        read += [t for file in residuals for t in file.tensors if t.name.startswith("blk.") and len(t.shape) > 1]
        weights = sum(t.elements for t in base.tensors if tied or t.name != "token_embd.weight")
        bits = sum(8 * tensor.bytes for tensor in read)
        assert nested.bpw(nested.level(precision)) == pytest.approx(bits / weights, abs=3e-4)


@pytest.mark.parametrize("which", ["made", "narrow"])
def test_bits_of_each_part_are_those_that_files_add(request: pytest.FixtureRequest, which: str) -> None:
    nested: Bundle = request.getfixturevalue(which)
    for name in nested.level(8).weights:
        is_base = name == nested.level(2).weights[0]
        bits: Counter[str] = Counter()
        weights: Counter[str] = Counter()
        for tensor in gguf.GGUFReader(nested.path / name).tensors:
            weights[part_of(tensor.name)] += int(tensor.n_elements)
            if is_base or part_of(tensor.name) in ("attention", "feed-forward"):
                bits[part_of(tensor.name)] += 8 * int(tensor.n_bytes)
        expected = {part: bits[part] / weights[part] for part in bits}
        assert nested.files[name].bpw_by_class == pytest.approx(expected, abs=1e-4)
        assert ("output" in expected) == (is_base and which == "narrow")


@pytest.mark.parametrize("which", ["made", "narrow"])
def test_every_file_loads_and_runs_on_its_own(request: pytest.FixtureRequest, llama_cpp: Any, which: str) -> None:
    for path in files(request.getfixturevalue(which)):
        llm = llama_cpp.Llama(str(path), n_ctx=64, n_threads=1, verbose=False)
        tokens = [token for token, _ in zip(llm.generate([1, 3, 300, 4], temp=0.0), range(3), strict=False)]
        llm.close()
        assert len(tokens) == 3


@pytest.fixture(scope="module")
def llm(made: Bundle) -> Iterator[Pmpd]:
    opened = Pmpd.from_bundle(made.path, n_threads=1, n_ctx=256, logits_all=True)
    yield opened
    opened.close()


@pytest.mark.parametrize("precision", [8, 4, 2])
def test_a_level_computes_what_one_file_of_the_sum_does(
    made: Bundle, llm: Pmpd, llama_cpp: Any, tmp_path: Path, precision: int
) -> None:
    """Weights are equal, activations are not: the sum's products round them to 8 bits, those of float32 do not.

    That alone moves the logits by 0.02 here; the nearest other level is at 0.07.
    """
    weights = summed(made, precision)
    base = dequantize_exactly(made.paths(made.level(precision))[0])
    path = write_like(made.path / "translator-7m-16.gguf", tmp_path / "sum.gguf", {**base, **layers_of(weights)})
    whole = llama_cpp.Llama(str(path), n_ctx=256, logits_all=True, n_threads=1, verbose=False)
    ids = whole.tokenize(PROMPT.encode(), add_bos=False, special=True)
    expected = evaluate(whole, ids)
    whole.close()

    distances = {}
    for other in (8, 4, 2):
        llm.reset()
        llm.set_precision(other)
        distances[other] = float(np.linalg.norm(evaluate(llm, ids) - expected) / np.linalg.norm(expected))
    assert distances[precision] < 0.03
    assert all(distance > 2 * distances[precision] for p, distance in distances.items() if p != precision), distances


def evaluate(llm: Any, ids: list[int]) -> npt.NDArray[np.float32]:
    llm.eval(ids)
    return np.array(llm.scores[: len(ids)])


def dequantize_exactly(path: Path) -> Arrays:
    return {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1])
        for tensor in gguf.GGUFReader(path).tensors
    }


def layers_of(weights: Arrays) -> Arrays:
    return {name: array for name, array in weights.items() if name.startswith("blk.") and array.ndim > 1}


def test_chat_translates_at_every_level(made: Bundle) -> None:
    message = {"role": "user", "content": "Ein Hund läuft über die Wiese."}
    opened = Pmpd.from_bundle(made.path, n_threads=1, n_ctx=256)
    answers = {}
    for precision in made.precisions:
        opened.configure(scheduler=f"fixed:{precision}")
        answers[precision] = opened.create_chat_completion([message], temperature=0.0, max_tokens=32)["choices"][0]
    opened.configure(method="low")  # prefill too
    low = opened.create_chat_completion([message], temperature=0.0, max_tokens=32)["choices"][0]
    opened.close()
    assert low["finish_reason"] == "stop" and "dog" in low["message"]["content"], low
    for precision, answer in answers.items():
        assert answer["finish_reason"] == "stop", precision
        assert "dog" in answer["message"]["content"], (precision, answer)
    assert answers[8]["message"] == answers[16]["message"]


def test_threads_do_not_change_a_byte(made: Bundle, tmp_path: Path) -> None:
    source = gguf_info.read(made.path / "translator-7m-16.gguf")
    *below, path = made.paths(made.level(8))
    again = tmp_path / "again.gguf"
    residual.make(source, [gguf_info.read(file) for file in below], again, Recipe("Q4_0"), 3)
    assert again.read_bytes() == path.read_bytes()


def test_types_name_the_base_and_the_residuals(llama_cpp: Any, tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "source", layers=1)
    types = {8: "Q3_K", 4: "Q4_0"}
    options: dict[str, Any] = {"layout": "nested", "types": types, "use_imatrix": False, "threads": 1}
    nested = convert(source, tmp_path / "out", precisions=(8, 4), **options)
    assert [(name, file.type) for name, file in sorted(nested.files.items())] == [
        ("source-q4.gguf", "Q4_0"),
        ("source-q8-residual.gguf", "Q3_K"),
    ]
    for name, file in nested.files.items():
        found = {tensor.name: tensor.type for tensor in gguf_info.read(nested.path / name).tensors}
        assert found["blk.0.attn_q.weight"] == file.type


def test_default_residuals_bring_a_level_to_the_error_of_its_own_type(llama_cpp: Any, made: Bundle) -> None:
    ggml = Ggml(llama_cpp)
    source = Weights(ggml, made.path / "translator-7m-16.gguf")
    rows = {f"blk.0.{name}.weight": range(128) for name in ("attn_q", "attn_v", "ffn_up", "ffn_down")}
    whole = np.concatenate([source.rows(name, part).reshape(-1, 256) for name, part in rows.items()])

    def lost(weights: npt.NDArray[np.float32], type_name: str) -> npt.NDArray[np.float32]:
        coarse = ggml.dequantize(type_name, ggml.quantize(type_name, weights))
        return weights - coarse.reshape(weights.shape)

    assert set(plan.DEFAULT_RESIDUALS) == set(itertools.combinations((8, 6, 5, 4, 3, 2), 2))
    for (high, low), type_name in plan.DEFAULT_RESIDUALS.items():
        alone = np.linalg.norm(lost(whole, plan.DEFAULT_TYPES[high]))
        nested = np.linalg.norm(lost(lost(whole, plan.DEFAULT_TYPES[low]), type_name))
        assert nested < 1.2 * alone, (high, low)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precisions": (8,)}, "nothing to nest"),
        ({"precisions": (16, 8)}, "nothing to nest"),
        ({"precisions": (8, 4), "layout": "folded"}, "layout 'folded': choose separate or nested"),
        ({"precisions": (8, 4), "types": {8: "Q9"}}, "Q9"),
        ({"precisions": (8, 4), "types": {8: "IQ2_XS"}, "use_imatrix": False}, "importance matrix"),
        ({"precisions": (8, 4), "types": {4: "Q1_0"}}, "type Q1_0 for 4 bits is not known"),
    ],
)
def test_what_cannot_be_nested_is_refused_in_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConvertError) as caught:
        plan.make(**{"name": "m", "layout": "nested", **arguments})
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_plan_lists_files_from_the_base_up() -> None:
    made = plan.make("m", (16, 8, 3, 2), {8: "Q6_K"}, layout="nested")
    assert [(level.precision, level.type, made.weights(level)) for level in made.levels] == [
        (16, None, ("m-16.gguf",)),
        (8, "Q6_K", ("m-q2.gguf", "m-q3-residual.gguf", "m-q8-residual.gguf")),
        (3, "Q1_0", ("m-q2.gguf", "m-q3-residual.gguf")),
        (2, "Q2_K", ("m-q2.gguf",)),
    ]


def test_an_architecture_that_is_not_summed_is_refused_before_and_after(llama_cpp: Any, tmp_path: Path) -> None:
    """Mamba's convolution and its state matrix are no factors of matrix products."""
    source = gguf_info.read(write_mamba(tmp_path / "mamba.gguf"))
    with pytest.raises(ConvertError) as caught:
        residual.check(source)
    assert str(caught.value).startswith("mamba.gguf: this architecture multiplies ssm_a, ssm_conv1d.weight in a way")
    assert "--layout separate" in str(caught.value) and "\n" not in str(caught.value)

    base, made = tmp_path / "base.gguf", tmp_path / "residual.gguf"
    quantize.quantize(source, base, Recipe("Q4_0"), 1)
    residual.make(source, [gguf_info.read(base)], made, Recipe("Q4_0"), 1)
    with pytest.raises(ConvertError, match=r"base.gguf: .* ssm_a, ssm_conv1d\.weight"):
        residual.check_sum([base, made])
    residual.check_sum([base])


def test_columns_that_no_type_suits_are_refused(llama_cpp: Any, tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "source", hidden=48, layers=1, heads=2, kv_heads=1, ff=256)
    with pytest.raises(ConvertError, match=r"attn_k\.weight, .* stay in 16 bits, .*: use --layout separate"):
        convert(source, tmp_path / "out", precisions=(8, 4), layout="nested", threads=1)
    assert {path.name for path in tmp_path.iterdir()} == {"source", "out.partial"}
    left = {path.name for path in (tmp_path / "out.partial").glob("*.gguf")}
    assert left == {"source-16.gguf"}, "nothing that takes long was done in vain"


def test_failures_say_why_and_keep_what_is_finished(
    llama_cpp: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny_llama(tmp_path / "source", layers=1)
    monkeypatch.setitem(quantize.ALL_TYPES, "Q8_0", "LLAMA_FTYPE_OF_NOBODY")
    options: dict[str, Any] = {"layout": "nested", "types": {8: "Q8_0"}, "use_imatrix": False, "threads": 1}
    with pytest.raises(ConvertError, match=r"source-q8-residual\.gguf: .*LLAMA_FTYPE_OF_NOBODY"):
        convert(source, tmp_path / "out", precisions=(8, 4), **options)
    assert {path.name for path in tmp_path.iterdir()} == {"source", "out.partial"}
    assert {path.name for path in (tmp_path / "out.partial").glob("*.gguf")} == {"source-16.gguf", "source-q4.gguf"}
    assert json.loads((source / "config.json").read_text())["hidden_size"] == 256
