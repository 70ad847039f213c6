"""Dense-and-sparse decompositions against oracles: numpy for the choice, llama.cpp's quantiser for the dense part."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from models import write_like, write_matrix

from pmpd_edge import gguf_info, native
from pmpd_edge.bench.random_model import write_llama
from pmpd_edge.convert import dns, outliers, quantize, tensors
from pmpd_edge.convert.quantize import Recipe
from pmpd_edge.errors import ConvertError
from pmpd_edge.gguf_info import GgufInfo, Tensor

Arrays = dict[str, npt.NDArray[np.float32]]
EXPERTS = 4


@dataclass
class Made:
    """A decomposition, and all that went into it."""

    source: GgufInfo
    low: GgufInfo
    imatrix: Path | None
    out: Path
    found: dns.Decomposition


@pytest.fixture(scope="module")
def llama_cpp() -> Any:
    return native.load()


def importance(source: Path, seed: int = 0) -> Arrays:
    """Mean squares of inputs that differ much from column to column, by the names of matrices."""
    rng = np.random.default_rng(seed)
    found = {}
    for tensor in layers(source):
        columns, rows = tensor.shape[:2]
        means = rng.lognormal(0, 2, (tensor.elements // (columns * rows), columns))
        found[tensor.name] = means.astype(np.float32)
    return found


def layers(path: Path) -> list[Tensor]:
    """The matrices that are taken apart."""
    return [
        tensor
        for tensor in gguf_info.read(path).tensors
        if tensor.name.startswith("blk.") and len(tensor.shape) > 1 and "ffn_gate_inp" not in tensor.name
    ]


def dequantize(path: Path) -> Arrays:
    """All tensors as gguf reads them, `[..., rows, columns]`."""
    return {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1])
        for tensor in gguf.GGUFReader(path).tensors
    }


def write_experts(path: Path) -> Path:
    """A Llama whose feed-forward layer is four experts, of which a token goes to two."""
    numbers = {"expert_count": EXPERTS, "expert_used_count": 2}
    plain = write_llama(path.with_name("plain.gguf"), layers=1, ff=256, metadata=numbers)
    arrays = dequantize(plain)
    rng = np.random.default_rng(1)
    for name in ("gate", "up", "down"):
        shape = arrays.pop(f"blk.0.ffn_{name}.weight").shape
        arrays[f"blk.0.ffn_{name}_exps.weight"] = rng.standard_normal((EXPERTS, *shape), np.float32) / 16
    arrays["blk.0.ffn_gate_inp.weight"] = rng.standard_normal((EXPERTS, 256), np.float32) / 16
    return write_like(plain, path, arrays)


def make(source: Path, folder: Path, kind: str, more: float, matrix: Path | None) -> Made:
    low, out = folder / f"low-{kind}.gguf", folder / f"dns-{kind}.gguf"
    info = gguf_info.read(source)
    quantize.quantize(info, low, Recipe(kind, imatrix=matrix), 1)
    lowest = gguf_info.read(low)
    return Made(info, lowest, matrix, out, dns.make(info, lowest, out, lowest.bpw + more, matrix, 1))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("source") / "model-16.gguf", layers=1, dtype=np.float16)


@pytest.fixture(scope="module")
def made(llama_cpp: Any, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    return make(source, folder, "Q2_K", 1.0, write_matrix(folder / "imatrix.gguf", importance(source)))


@pytest.fixture(scope="module")
def plain(llama_cpp: Any, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(source, tmp_path_factory.mktemp("plain"), "Q4_0", 0.3, None)


@pytest.fixture(scope="module")
def experts(llama_cpp: Any, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("experts")
    source = write_experts(folder / "model-16.gguf")
    return make(source, folder, "Q3_K", 0.5, write_matrix(folder / "imatrix.gguf", importance(source)))


@pytest.fixture(params=["made", "plain", "experts"])
def each(request: pytest.FixtureRequest) -> Made:
    return request.getfixturevalue(request.param)


# What is in the file


def chosen(made: Made, values: Arrays | None = None) -> dict[str, npt.NDArray[np.bool_]]:
    """Where the largest values (by default, weights) of each matrix are, by sorting them all; of equals, the first."""
    whole, counts = values or dequantize(made.source.path), dns.outliers(made.low, made.found.bpw)
    marks = {}
    for tensor in layers(made.low.path):
        array = whole[tensor.name]
        mark = np.zeros(array.shape, bool)
        matrices = (part.reshape(-1, *array.shape[-2:]) for part in (array, mark))
        for weights, of_matrix in zip(*matrices, strict=True):
            order = np.argsort(-np.abs(weights), axis=None, kind="stable")
            of_matrix.flat[order[: counts[tensor.name]]] = True
        marks[tensor.name] = mark
    return marks


def test_outliers_are_exact_and_all_else_is_the_quantised_rest(each: Made, tmp_path: Path) -> None:
    """To the bit. The rest is quantised by llama.cpp, as any other model, and read by gguf."""
    whole, found, marks = dequantize(each.source.path), dequantize(each.out), chosen(each)
    zeroed = {name: np.where(marks[name], 0, array) if name in marks else array for name, array in whole.items()}
    rest, dense = write_like(each.source.path, tmp_path / "zeroed.gguf", zeroed), tmp_path / "dense.gguf"
    quantize.quantize(gguf_info.read(rest), dense, Recipe(each.found.type, imatrix=each.imatrix), 1)
    quantised = dequantize(dense)
    assert len(marks) == 7
    for name, mark in marks.items():
        np.testing.assert_array_equal(found[name], np.where(mark, whole[name], quantised[name]), name)
        assert (found[name] != whole[name])[~mark].mean() > 0.9, "as the rest is coarse"


def test_every_matrix_has_its_share_of_outliers(each: Made) -> None:
    counts = dns.outliers(each.low, each.found.bpw)
    matrices = {tensor.name: (tensor.shape, tensor.elements) for tensor in layers(each.low.path)}
    assert counts.keys() == matrices.keys()
    for name, ((columns, rows, *_), _) in matrices.items():
        assert counts[name] == pytest.approx(each.found.share * rows * columns, abs=1)
    number = sum(counts[name] * elements // (shape[0] * shape[1]) for name, (shape, elements) in matrices.items())
    assert each.found.outliers == number
    assert each.found.share == pytest.approx(number / sum(elements for _, elements in matrices.values()))


def test_what_is_not_taken_apart_is_the_low_levels_own(each: Made) -> None:
    low, found = ({t.name: t for t in gguf.GGUFReader(path).tensors} for path in (each.low.path, each.out))
    apart = {tensor.name for tensor in layers(each.low.path)}
    assert list(low) == list(found)
    for name, tensor in found.items():
        assert tensor.shape.tolist() == low[name].shape.tolist()
        if name in apart:
            assert tensor.tensor_type.name == "F32"
        else:
            assert tensor.tensor_type == low[name].tensor_type
            np.testing.assert_array_equal(tensor.data, low[name].data)
    assert low["token_embd.weight"].tensor_type.name == "Q8_0"


def test_metadata_is_the_low_levels_but_for_the_type(each: Made) -> None:
    info = gguf_info.read(each.out)
    assert info.tokenizer_sha256 == each.low.tokenizer_sha256
    assert info.metadata == {**each.low.metadata, "general.file_type": 0}


def test_the_file_loads_and_runs(each: Made, llama_cpp: Any) -> None:
    quantize.check_loads(each.out, each.source.path)
    llm = llama_cpp.Llama(str(each.out), n_ctx=64, n_threads=1, verbose=False)
    tokens = [token for token, _ in zip(llm.generate([1, 3, 300, 4], temp=0.0), range(3), strict=False)]
    llm.close()
    assert len(tokens) == 3


def test_neither_threads_nor_chunks_change_a_byte(
    each: Made, llama_cpp: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = tmp_path / "again.gguf"
    assert dns.make(each.source, each.low, again, each.found.bpw, each.imatrix, 3) == each.found
    assert again.read_bytes() == each.out.read_bytes()
    monkeypatch.setattr(tensors, "_CHUNK", 20 * 256 + 7)
    job = {
        "source": str(each.source.path),
        "low": str(each.low.path),
        "out": str(again),
        "by": "magnitude",
        "outliers": dns.outliers(each.low, each.found.bpw),
        "imatrix": str(each.imatrix) if each.imatrix else None,
        "threads": 2,
    }
    again.unlink()
    assert outliers.write(llama_cpp, job)
    assert again.read_bytes() == each.out.read_bytes()


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 11, 12])
def test_of_equal_values_the_first_are_taken(count: int) -> None:
    values = np.array([[2, 7, 2, 2], [9, 0, 2, 0], [0, 7, 2, 2]], np.float32)
    expected = np.zeros(12, bool)
    expected[sorted(range(12), key=lambda i: (-values.flat[i], i))[:count]] = True
    np.testing.assert_array_equal(outliers.largest(values, count), expected.reshape(values.shape))


# What it is good for


def errors(made: Made, path: Path) -> tuple[float, float]:
    """The squared error of all matrices, plain and times the importance of its column."""
    whole, found, inputs = dequantize(made.source.path), dequantize(path), importance(made.source.path)
    plain = weighted = 0.0
    for tensor in layers(made.low.path):
        error = np.square(found[tensor.name].astype(np.float64) - whole[tensor.name])
        plain += error.sum()
        weighted += (error.reshape(-1, *error.shape[-2:]) * inputs[tensor.name][:, None, :]).sum()
    return plain, weighted


def test_by_sensitivity_they_are_where_the_low_level_loses_most(made: Made, tmp_path: Path) -> None:
    """By the squared error in the low level, times the mean square of the input."""
    whole, low, inputs = dequantize(made.source.path), dequantize(made.low.path), importance(made.source.path)
    lost = {name: np.square(whole[name] - low[name]) * means for name, means in inputs.items()}
    out = tmp_path / "out.gguf"
    dns.make(made.source, made.low, out, made.found.bpw, made.imatrix, 1, by="sensitivity")
    found = dequantize(out)
    for name, mark in chosen(made, lost).items():
        np.testing.assert_array_equal(found[name][mark], whole[name][mark])
        assert (found[name] == whole[name]).mean() < 2 * mark.mean(), "and hardly any others"


def test_errors_fall_as_the_budget_grows(made: Made, tmp_path: Path) -> None:
    found = [errors(made, made.low.path)]
    for more in (0.3, 1.0, 3.0):
        out = tmp_path / f"{more}.gguf"
        dns.make(made.source, made.low, out, made.low.bpw + more, made.imatrix, 1)
        found.append(errors(made, out))
    for before, after in itertools.pairwise(found):
        assert after[0] < before[0] and after[1] < 0.8 * before[1]


def test_the_importance_matrix_moves_errors_to_where_inputs_are_small(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "plain.gguf"
    dns.make(made.source, made.low, out, made.found.bpw, None, 1)
    (plain, weighted), (plain_without, weighted_without) = errors(made, made.out), errors(made, out)
    assert weighted < 0.9 * weighted_without and plain > plain_without


# The budget


@pytest.mark.parametrize("more", [0.2, 0.25, 0.5, 1.0, 2.0, 5.0])
def test_the_budget_is_met_as_counted_by_hand(made: Made, more: float) -> None:
    """16 bits a value, 16 its column, 32 for each row and one row more; every tensor here is read in a step."""
    counts = dns.outliers(made.low, made.low.bpw + more)
    bits = weights = 0
    for tensor in gguf.GGUFReader(made.low.path).tensors:
        bits += 8 * int(tensor.n_bytes)
        weights += int(tensor.n_elements)
        if tensor.name in counts:
            _, rows = tensor.shape.tolist()
            bits += 32 * counts[tensor.name] + 32 * (rows + 1)
    assert bits / weights == pytest.approx(made.low.bpw + more, rel=1e-4)
    found = dns.plan(made.low, made.low.bpw + more)
    assert found.bpw == pytest.approx(bits / weights)
    assert (found.type, found.dense_bpw) == ("Q2_K", made.low.bpw)
    assert found.dense_bpw + found.sparse_bpw == found.bpw


def header(*found: Tensor, **numbers: int) -> GgufInfo:
    metadata: dict[str, Any] = {"general.architecture": "m", **{f"m.{key}": value for key, value in numbers.items()}}
    return GgufInfo(Path("low.gguf"), metadata, "", found)


def test_columns_that_16_bits_cannot_count_take_32() -> None:
    for columns, bits in ((65536, 32), (65792, 48)):
        low = header(Tensor("blk.0.ffn_down.weight", "Q2_K", (columns, 16), 0))
        assert dns.outliers(low, 4) == {
            "blk.0.ffn_down.weight": pytest.approx(((4 - 2.625) * 16 * columns - 17 * 32) / bits, abs=0.5)
        }


def test_of_experts_only_those_that_a_step_reads_are_paid_for() -> None:
    """8 experts of 256 * 512 weights, of which 2 are read, beside a matrix that always is."""
    low = header(
        Tensor("blk.0.attn_q.weight", "Q4_0", (256, 256), 0),
        Tensor("blk.0.ffn_up_exps.weight", "Q2_K", (256, 512, 8), 0),
        Tensor("blk.0.ffn_gate_inp.weight", "F32", (256, 8), 0),
        expert_count=8,
        expert_used_count=2,
    )
    counts = dns.outliers(low, 6)
    alone, each = counts["blk.0.attn_q.weight"], counts["blk.0.ffn_up_exps.weight"]
    assert each == pytest.approx(2 * alone, abs=1), "the same share of a matrix of twice the size"
    bits = 4.5 * 65536 + 2 * 2.625 * 131072 + 32 * 2048 + 32 * (alone + 257) + 2 * 32 * (each + 513)
    assert bits / (65536 + 2 * 131072 + 2048) == pytest.approx(6, rel=1e-4)
    found = dns.plan(low, 6)
    assert found.bpw == pytest.approx(6, rel=1e-4)
    assert found.outliers == alone + 8 * each


def test_both_limits_can_be_met(made: Made) -> None:
    least, most = dns.limits(made.low)
    assert dns.plan(made.low, least).outliers == 7, "one a matrix"
    assert dns.plan(made.low, least).bpw == pytest.approx(least, rel=1e-3)
    assert dns.plan(made.low, most).share == pytest.approx(0.5)
    assert dns.plan(made.low, most).bpw == pytest.approx(most, rel=1e-3)


@pytest.mark.parametrize(("beyond", "reason"), [(-0.01, "pointers take more"), (0.01, "more than half of the weights")])
def test_budgets_beyond_the_limits_are_refused_with_those_that_are_not(made: Made, beyond: float, reason: str) -> None:
    least, most = dns.limits(made.low)
    with pytest.raises(ConvertError, match=reason) as caught:
        dns.plan(made.low, (least if beyond < 0 else most) + beyond)
    assert "\n" not in str(caught.value)
    for named in caught.value.hint.removeprefix("choose a budget from ").split(" to "):
        assert abs(dns.plan(made.low, float(named)).bpw / float(named) - 1) < 0.01


def test_matrices_too_small_for_a_budget_are_refused() -> None:
    low = header(Tensor("blk.0.attn_q.weight", "Q4_0", (32, 2), 0))
    with pytest.raises(ConvertError, match="are too small for a budget"):
        dns.outliers(low, 6.2)


# Refusals


def attempt(made: Made, folder: Path, **changes: Any) -> str:
    """The line with which a decomposition is refused; it leaves nothing, and what was there before."""
    out = folder / "out.gguf"
    out.write_bytes(b"before")
    given = {"source": made.source, "low": made.low, "imatrix": made.imatrix, "bpw": made.found.bpw, **changes}
    before = {path.name for path in folder.iterdir()}
    with pytest.raises(ConvertError) as caught:
        dns.make(out=out, threads=1, **given)
    assert {path.name for path in folder.iterdir()} == before
    assert out.read_bytes() == b"before"
    assert "\n" not in str(caught.value)
    return str(caught.value)


def with_types(info: GgufInfo, kind: str) -> GgufInfo:
    """A header in which the layers' matrices have another type."""
    changed = {tensor.name for tensor in layers(info.path)}
    return replace(info, tensors=tuple(replace(t, type=kind) if t.name in changed else t for t in info.tensors))


CHANGES: dict[str, tuple[Callable[[Made], dict[str, Any]], str]] = {
    "source": (lambda made: {"source": made.low}, ".weight is Q2_K: give the model's 16-bit file"),
    "whole": (lambda made: {"low": made.source}, "has no quantised matrices to take apart"),
    "budget": (lambda made: {"bpw": 2.0}, "cannot spend 2 bits per weight on it and its outliers"),
    "matrix": (
        lambda made: {"low": with_types(made.low, "IQ2_XXS"), "imatrix": None},
        "IQ2_XXS needs an importance matrix: give the one that it was made with",
    ),
    "no file": (lambda made: {"imatrix": made.imatrix.with_name("missing")}, "No such file"),
    "no matrix": (lambda made: {"imatrix": made.source.path}, "not an importance matrix"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_cannot_be_taken_apart_is_refused(made: Made, tmp_path: Path, name: str) -> None:
    changes, words = CHANGES[name]
    assert words in attempt(made, tmp_path, **changes(made))


def test_a_level_of_another_model_is_refused(made: Made, experts: Made, tmp_path: Path) -> None:
    assert "its tensors are others" in attempt(made, tmp_path, low=experts.low)


def test_a_failure_half_way_leaves_nothing(made: Made, tmp_path: Path) -> None:
    inputs = importance(made.source.path)
    inputs["blk.0.ffn_down.weight"] = np.ones((1, 256), np.float32)  # 512 columns
    matrix = write_matrix(tmp_path / "matrix.gguf", inputs)
    assert "blk.0.ffn_down.weight" in attempt(made, tmp_path, imatrix=matrix)


def test_an_interrupt_leaves_nothing(made: Made, tmp_path: Path) -> None:
    seen = []

    def stop(fraction: float) -> None:
        seen.append(fraction)
        if fraction > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dns.make(made.source, made.low, tmp_path / "out.gguf", made.found.bpw, made.imatrix, 1, stop)
    assert seen == sorted(seen) and seen[0] == 0
    assert not list(tmp_path.iterdir())
