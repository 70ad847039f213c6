"""Importance matrices against oracles: transformers for what is in one, llama.cpp's quantiser for what it does."""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from models import TRANSLATOR, calibration_text, random_checkpoint, write_matrix

from pmpd_edge import Pmpd, gguf_info, native
from pmpd_edge.bench.random_model import write_llama
from pmpd_edge.bundle import Bundle
from pmpd_edge.convert import convert, hf, imatrix, quantize
from pmpd_edge.convert.ggml import Ggml, Weights
from pmpd_edge.convert.quantize import ALL_TYPES, NEED_IMATRIX
from pmpd_edge.errors import ConvertError, DiskFullError

pytestmark = pytest.mark.filterwarnings("default")  # those of transformers and torch are not ours

CONTEXT = 256  # tokens; the text has eight chunks of that, a power of two: no sum is rounded when it is divided
Importance = dict[str, npt.NDArray[np.float32]]


@pytest.fixture(scope="module")
def llama_cpp() -> Any:
    return native.load()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibration_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model in float32: it rounds nothing."""
    path = tmp_path_factory.mktemp("source") / "model-f32.gguf"
    return write_llama(path, metadata={"context_length": CONTEXT})


@pytest.fixture(scope="module")
def made(source: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("made") / "out"
    return convert(source, out, precisions=(8, 4, 2), calibration_text=text, threads=1)


@pytest.fixture(scope="module")
def matrix(made: Bundle) -> Path:
    return made.path / "model-imatrix.gguf"


def read(path: Path) -> Importance:
    """An importance matrix by upstream's own reader, as llama-quantize normalises it: `[n_matrices, columns]`."""
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
    names = [name.removesuffix(".in_sum2") for name in tensors if name.endswith(".in_sum2")]
    found = {}
    for name in names:
        counts = np.array(tensors[f"{name}.counts"]).reshape(-1, 1)
        sums = np.array(tensors[f"{name}.in_sum2"]).reshape(len(counts), -1)
        found[name] = np.divide(sums, counts, out=np.ones_like(sums), where=counts > 0)
    return found


def quantised(llama_cpp: Any, source: Path, out: Path, kind: str, importance: Importance) -> bytes:
    """What llama.cpp's quantiser makes of a file, called here."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread, params.pure = 1, True
    params.ftype = getattr(llama_cpp, ALL_TYPES[kind])
    params.token_embedding_type = params.output_tensor_type = llama_cpp.GGML_TYPE_Q8_0
    entries = [
        (name.encode(), values.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), values.size)
        for name, values in importance.items()
    ]
    if entries:
        params.imatrix = (llama_cpp.llama_model_imatrix_data * (len(entries) + 1))(*entries)
    assert llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(out), ctypes.byref(params)) == 0
    return out.read_bytes()


# What it does


def test_levels_are_what_llama_cpp_makes_with_the_matrix(
    llama_cpp: Any, made: Bundle, source: Path, matrix: Path, tmp_path: Path
) -> None:
    importance = read(matrix)
    assert len(importance) == 2 * 7
    plain = {}
    for precision, used in ((8, {}), (4, importance), (2, importance)):
        (name,) = made.level(precision).weights
        kind = made.files[name].type
        assert (made.path / name).read_bytes() == quantised(llama_cpp, source, tmp_path / "x.gguf", kind, used), name
        assert made.files[name].imatrix == bool(used)
        plain[precision] = quantised(llama_cpp, source, tmp_path / "x.gguf", kind, {})

    without = convert(source, tmp_path / "out", precisions=(8, 4, 2), use_imatrix=False, threads=1)
    assert {path.name for path in without.path.iterdir()} == {*without.files, "pmpd.json"}
    assert without.imatrix is None and not any(file.imatrix for file in without.files.values())
    for precision in (8, 4, 2):
        (path,) = without.paths(without.level(precision))
        assert path.read_bytes() == plain[precision]
        same = without.files[path.name].sha256 == made.files[path.name].sha256
        assert same == (precision == 8), "it makes a difference where it is used, and there alone"


def test_the_manifest_names_the_matrix(made: Bundle, matrix: Path) -> None:
    assert made.imatrix
    assert (made.imatrix.file, made.imatrix.text, made.imatrix.chunks) == (matrix.name, "text.txt", 8)
    made.verify()
    assert {path.name for path in made.path.iterdir()} == {*made.files, matrix.name, "pmpd.json"}


@pytest.mark.parametrize("kind", NEED_IMATRIX)
def test_types_that_need_a_matrix(matrix: Path, tmp_path: Path, kind: str) -> None:
    source = write_llama(tmp_path / "one-layer.gguf", layers=1)  # these types take their time
    types = {8: "Q8_0", 2: kind}
    bundle = convert(source, tmp_path / "out", precisions=(8, 2), types=types, imatrix_file=matrix, threads=1)
    (path,) = bundle.paths(bundle.level(2))
    assert bundle.files[path.name].type == gguf_info.read(path).type == kind
    llm = Pmpd(bundle.path, n_threads=1, scheduler="fixed:2")
    tokens = list(itertools.islice(llm.generate([1, 300, 301], temp=0.0), 5))
    assert len(tokens) == 5 and set(llm.stats.precisions[1:]) == {2}
    llm.close()


@pytest.mark.parametrize("layout", ["separate", "nested"])
def test_types_that_need_a_matrix_say_so_where_it_lacks_one(
    source: Path, matrix: Path, tmp_path: Path, layout: str
) -> None:
    """As that of a model with fewer layers does."""
    partial = write_matrix(
        tmp_path / "partial.gguf", {k: v for k, v in read(matrix).items() if "blk.1.attn_q" not in k}
    )
    types = {4: "IQ2_XXS" if layout == "nested" else "IQ3_XXS", 2: "Q2_K"}
    options: dict[str, Any] = {"types": types, "layout": layout, "imatrix_file": partial, "threads": 1}
    line = refusal(source, tmp_path / "out", precisions=(4, 2), **options)
    assert line.startswith("model-q4") and "blk.1.attn_q" in line


def test_residuals_have_less_error_where_it_matters(text: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is needed: pip install 'pmpd-edge[convert]'")
    options: dict[str, Any] = {"layout": "nested", "threads": 1}
    made = convert(TRANSLATOR, tmp_path / "with", precisions=(16, 8, 4, 2), calibration_text=text, **options)
    (whole,) = made.paths(made.level(16))
    plain = convert(whole, tmp_path / "without", precisions=(8, 4, 2), use_imatrix=False, name="plain", **options)
    importance = read(made.path / "translator-7m-imatrix.gguf")
    assert [made.files[name].type for name in made.level(8).weights] == ["Q2_K", "Q2_K", "Q4_0"]
    assert all(made.files[name].imatrix for name in made.level(8).weights)
    for precision in (8, 4, 2):
        paths = [bundle.paths(bundle.level(precision)) for bundle in (made, plain)]
        weighted, unweighted = (errors(parts, whole, importance) for parts in paths)
        assert sum(weighted.values()) < 0.95 * sum(unweighted.values()), precision
        assert sum(weighted[name] < unweighted[name] for name in weighted) > 0.9 * len(weighted)


def errors(parts: tuple[Path, ...], whole: Path, importance: Importance) -> dict[str, float]:
    """The squared error of a sum of files times the importance of its column, summed over each matrix."""
    ggml = Ggml(native.load())
    expected, summed = Weights(ggml, whole), [Weights(ggml, path) for path in parts]
    found = {}
    for name, means in importance.items():
        rows = range(expected.tensors[name].shape[1])
        error = expected.rows(name, rows) - sum(part.rows(name, rows) for part in summed)
        found[name] = float((np.square(error, dtype=np.float64) * means).sum())
    return found


# What is in it


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch", reason="torch is needed: pip install 'pmpd-edge[convert]'")
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=1,
        eos_token_id=5,
    )
    return random_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", config)


def mean_squares(llama_cpp: Any, model: Path, checkpoint: Path, text: Path) -> dict[str, npt.NDArray[np.float64]]:
    """Of the inputs of the matrices, computed by transformers in float32 for the chunks that llama-imatrix makes."""
    import torch
    from transformers import AutoModelForCausalLM

    llm = llama_cpp.Llama(str(model), vocab_only=True, verbose=False)
    tokens = llm.tokenize(text.read_bytes(), add_bos=True, special=False)
    llm.close()
    chunks = [[1, *tokens[at + 1 : at + CONTEXT]] for at in range(0, len(tokens) - CONTEXT + 1, CONTEXT)]
    reference = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    names = {
        "self_attn.q_proj": ("attn_q", "attn_k", "attn_v"),
        "self_attn.o_proj": ("attn_output",),
        "mlp.up_proj": ("ffn_up", "ffn_gate"),
        "mlp.down_proj": ("ffn_down",),
    }
    sums: dict[str, Any] = {}

    def watch(path: str) -> Callable[..., None]:
        def hook(_: Any, inputs: tuple[Any, ...]) -> None:
            sums[path] = sums.get(path, 0) + inputs[0].double().square().sum((0, 1))

        return hook

    for path, module in reference.named_modules():
        if path.endswith(tuple(names)):
            module.register_forward_pre_hook(watch(path))
    with torch.inference_mode():
        for chunk in chunks:
            reference(torch.tensor([chunk]))
    found = {}
    for path, total in sums.items():
        _, _, layer, kind = path.split(".", 3)
        for name in names[kind]:
            found[f"blk.{layer}.{name}.weight"] = total.numpy() / (len(chunks) * CONTEXT)
    return found


def test_the_matrix_holds_the_mean_squares_of_transformers(
    llama_cpp: Any, checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    """From float32, where keys and values alone are rounded (to 11 bits), and from the checkpoint itself.

    BF16's products round their other factor to 8 bits: an input is off by 2^-9 at most for every product before it, its
    square by twice that, at two products by four times; errors of both signs average over the tokens.
    """
    wide = tmp_path / "wide-f32.gguf"
    hf.to_gguf(checkpoint, wide, "F32")
    expected = mean_squares(llama_cpp, wide, checkpoint, text)
    assert len(expected) == 2 * 7
    for model, largest in ((wide, 1e-3), (checkpoint, 2**-7)):
        options: dict[str, Any] = {"precisions": (4,), "calibration_text": text, "threads": 1}
        made = convert(model, tmp_path / f"out-{largest}", name="m", **options)
        found = read(made.path / "m-imatrix.gguf")
        assert found.keys() == expected.keys()
        for name, means in found.items():
            assert np.abs(means[0] / expected[name] - 1).max() < largest, name


# Mixtures of experts


@pytest.fixture(scope="module")
def experts(text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Bundle]:
    """A mixture of four experts in float32, and its levels; no token has reached the last expert."""
    pytest.importorskip("torch", reason="torch is needed: pip install 'pmpd-edge[convert]'")
    from transformers import MixtralConfig

    folder = tmp_path_factory.mktemp("experts")
    config = MixtralConfig(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        num_local_experts=4,
        num_experts_per_tok=2,
        bos_token_id=1,
        eos_token_id=5,
    )
    model = folder / "experts-f32.gguf"
    hf.to_gguf(random_checkpoint(folder / "checkpoint", config), model, "F32")
    made = convert(model, folder / "first", precisions=(4,), calibration_text=text, threads=1)
    matrix = Path(shutil.copyfile(made.path / "experts-imatrix.gguf", folder / "matrix.gguf"))
    edited = gguf.GGUFReader(matrix, "r+")
    for tensor in edited.tensors:
        if "_exps.weight" in tensor.name:
            assert (tensor.data != 0).all()
            tensor.data[3] = 0
    edited.data.flush()
    del tensor, edited
    return model, convert(model, folder / "out", precisions=(4,), imatrix_file=matrix, threads=1)


@pytest.mark.parametrize("layout", ["separate", "nested"])
def test_each_expert_is_quantised_with_its_own_importance(
    llama_cpp: Any, experts: tuple[Path, Bundle], tmp_path: Path, layout: str
) -> None:
    model, made = experts
    matrix = made.path / "experts-imatrix.gguf"
    importance = read(matrix)
    if layout == "nested":
        made = convert(model, tmp_path / "out", precisions=(4, 2), layout=layout, imatrix_file=matrix, threads=1)
    ggml = Ggml(llama_cpp)
    whole = Weights(ggml, model)
    *below, path = made.paths(made.level(4))
    info = gguf_info.read(path)
    data = np.fromfile(path, np.uint8)
    checked = 0
    for tensor in info.tensors:
        if "_exps.weight" not in tensor.name:
            continue
        _, n_rows, n_experts = tensor.shape
        size = tensor.bytes // n_experts
        assert (importance[tensor.name][3] == 1).all() and (importance[tensor.name][:3] != 1).any()
        for expert in range(n_experts):
            rows = range(expert * n_rows, (expert + 1) * n_rows)
            weights = whole.rows(tensor.name, rows)
            for part in below:
                weights -= Weights(ggml, part).rows(tensor.name, rows)
            start = info.data_start + tensor.offset + expert * size
            own, others = (importance[tensor.name][i] for i in (expert, (expert + 1) % n_experts))
            kind = made.files[path.name].type
            assert (data[start : start + size] == ggml.quantize(kind, weights, own)).all(), (tensor.name, expert)
            assert (data[start : start + size] != ggml.quantize(kind, weights, others)).any()
            checked += 1
    assert checked == 3 * 4


# Given by the user


def write_dat(matrix: Path, model: Path, out: Path) -> Path:
    """An importance matrix in the form that older versions of llama-imatrix wrote."""
    command = [native.program("llama-imatrix"), "--model", model, "--in-file", matrix, "--output-file", out]
    command += ["--output-format", "dat", "--ctx-size", CONTEXT, "--batch-size", CONTEXT]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    assert out.read_bytes()[:4] != b"GGUF"
    return out


def test_a_given_matrix_does_what_the_computed_one_does(
    made: Bundle, source: Path, matrix: Path, tmp_path: Path
) -> None:
    odd = tmp_path / ('with, "quote' if os.name == "posix" else "with, comma")
    odd.mkdir()
    copy = Path(shutil.copyfile(matrix, odd / "given.gguf"))
    for given in (copy, write_dat(matrix, source, tmp_path / "old.dat")):
        again = convert(source, tmp_path / given.stem, precisions=(8, 4, 2), imatrix_file=given, threads=1)
        assert again.files == made.files
        assert again.imatrix and (again.imatrix.text, again.imatrix.chunks) == (given.name, 8)
        again.verify()
        if given is copy:
            assert (again.path / again.imatrix.file).read_bytes() == matrix.read_bytes()


def with_value(path: Path, value: float) -> bytes:
    """An importance matrix, one of whose values is changed."""
    edited = gguf.GGUFReader(path, "r+")
    next(tensor for tensor in edited.tensors if tensor.name == "blk.1.ffn_up.weight.in_sum2").data[7] = value
    edited.data.flush()
    del edited
    return path.read_bytes()


REFUSED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "empty"),
    "a text": (lambda data: b"The quick brown fox " * 1000, "not an importance matrix"),
    "cut short": (lambda data: data[:-5000], "damaged"),
    "cut short in the header": (lambda data: data[:300], "damaged"),
    "without a name": (lambda data: data.replace(b".in_sum2", b".in_sum3"), "it has no .in_sum2"),
    "without counts": (lambda data: data.replace(b"k.weight.counts", b"k.weight.count5"), "no counts of blk.0.attn_k"),
    "of 4 bytes": (lambda data: data[:4], "damaged"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_matrix_is_refused(source: Path, matrix: Path, tmp_path: Path, name: str) -> None:
    change, words = REFUSED[name]
    given = tmp_path / "given.gguf"
    given.write_bytes(change(matrix.read_bytes()))
    line = refusal(source, tmp_path / "out", imatrix_file=given)
    assert line.startswith(f"{given}: ") and words in line


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_matrix_with_values_that_are_not_finite_is_refused(
    source: Path, matrix: Path, tmp_path: Path, value: float
) -> None:
    given = Path(shutil.copyfile(matrix, tmp_path / "given.gguf"))
    with_value(given, value)
    line = refusal(source, tmp_path / "out", imatrix_file=given)
    assert line.startswith(f"{given}: values of blk.1.ffn_up.weight are not finite")
    old = write_dat(given, source, tmp_path / "given.dat")
    line = refusal(source, tmp_path / "out", imatrix_file=old)
    assert line.startswith(f"{old}: values of blk.1.ffn_up.weight are not finite")


def test_an_old_matrix_that_is_cut_short_is_refused(source: Path, matrix: Path, tmp_path: Path) -> None:
    given = write_dat(matrix, source, tmp_path / "given.dat")
    given.write_bytes(given.read_bytes()[:3000])
    line = refusal(source, tmp_path / "out", imatrix_file=given)
    assert line.startswith(f"{given}: not an importance matrix (")


def test_a_matrix_of_another_model_is_refused(source: Path, matrix: Path, tmp_path: Path) -> None:
    wide = write_llama(tmp_path / "wide.gguf", hidden=512, layers=1, metadata={"context_length": CONTEXT})
    line = refusal(wide, tmp_path / "out", imatrix_file=matrix)
    assert line.startswith(f"{matrix}: of another model: blk.0.attn_") and "has 512 columns here" in line
    other = write_matrix(tmp_path / "other.gguf", {"h.0.attn": np.ones((1, 256), np.float32)})
    line = refusal(source, tmp_path / "out", imatrix_file=other)
    assert line.startswith(f"{other}: of another model: it knows none of the matrices")
    line = refusal(source, tmp_path / "out", imatrix_file=source)
    assert line.startswith(f"{source}: not an importance matrix: it has no .in_sum2")
    assert "No such file" in refusal(source, tmp_path / "out", imatrix_file=tmp_path / "missing")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty: give the path of another file"),
        (b" \n\n", "empty"),
        (b"A dog runs.", "tokens are too few for an importance matrix: give a text of 512 or more"),
        (b"dog " * 300, "tokens are too few"),
    ],
)
def test_a_text_that_is_too_short_is_refused(source: Path, tmp_path: Path, content: bytes, words: str) -> None:
    short = tmp_path / "short.txt"
    short.write_bytes(content)
    line = refusal(source, tmp_path / "out", calibration_text=short)
    assert line.startswith(f"{short}: ") and words in line


def test_variables_that_are_set_for_other_programs_change_nothing(
    source: Path, text: Path, matrix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_ARG_CACHE_TYPE_K", "q4_0")
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "128")
    model = gguf_info.read(source)
    imatrix.compute(model, text, tmp_path / "again.gguf", 1)
    assert (tmp_path / "again.gguf").read_bytes() == matrix.read_bytes()


def test_a_matrix_that_no_level_uses_is_told(source: Path, matrix: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    made = convert(source, tmp_path / "out", precisions=(8,), imatrix_file=matrix, threads=1, note=notes.append)
    assert notes == ["the importance matrix is not used: no level has 4 bits or less"]
    assert made.imatrix is None


@pytest.mark.skipif(os.name != "posix", reason="names of other systems are plain")
def test_a_text_of_any_name(source: Path, text: Path, tmp_path: Path) -> None:
    """Not all that a file may be called can be in a manifest."""
    odd = tmp_path / "-a\tb\n.txt"
    odd.symlink_to(text)
    made = convert(source, tmp_path / "out", precisions=(4,), calibration_text=odd, threads=1)
    assert made.imatrix and made.imatrix.text == "-a\ufffdb\ufffd.txt"


def test_a_disk_that_is_full_is_noticed(
    source: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Upstream's program does not notice."""

    def run(arguments: list[str], *_: Any) -> None:
        Path(arguments[arguments.index("--output-file") + 1]).write_bytes(b"GGUF")

    monkeypatch.setattr(imatrix, "_run", run)
    assert "llama-imatrix wrote none" in refusal(source, tmp_path / "out", calibration_text=text)
    monkeypatch.setattr(quantize, "is_disk_full", lambda path: True)
    with pytest.raises(DiskFullError, match=r"^model-imatrix\.gguf: No space left on device"):
        convert(source, tmp_path / "out", precisions=(4,), calibration_text=text, threads=1)


def refusal(source: Path, out: Path, **options: Any) -> str:
    """The line with which a conversion is refused; it leaves no bundle."""
    with pytest.raises(ConvertError) as caught:
        convert(source, out, **{"precisions": (4,), "threads": 1, **options})
    assert "\n" not in str(caught.value)
    assert not out.exists()
    return str(caught.value)
