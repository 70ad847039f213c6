"""The report on levels against oracles: transformers for the model, contexts of the levels, numpy for the rest."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("torch", reason="torch is needed: pip install 'pmpd-edge[convert]'")

from command import run
from models import TRANSLATOR, calibration_text, random_checkpoint, tiny_llama

from pmpd_edge import Pmpd, native
from pmpd_edge.bench.random_model import write_llama
from pmpd_edge.bundle import Bundle, Level
from pmpd_edge.convert import convert, hf, quality, report
from pmpd_edge.errors import ConvertError

pytestmark = pytest.mark.filterwarnings("default")  # those of transformers and torch are not ours

CONTEXT = 256
LogProbabilities = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def llama_cpp() -> Any:
    return native.load()


@dataclass
class Case:
    """A checkpoint, a text in chunks of tokens, and what transformers expects in the second half of each."""

    model: Path
    text: Path
    chunks: list[list[int]]
    expected: LogProbabilities
    following: npt.NDArray[np.int64]


@pytest.fixture(scope="module")
def case(llama_cpp: Any, tmp_path_factory: pytest.TempPathFactory) -> Case:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    folder = tmp_path_factory.mktemp("case")
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
    checkpoint = random_checkpoint(folder / "checkpoint", config)
    model = folder / "m-f32.gguf"
    hf.to_gguf(checkpoint, model, "F32")
    text = calibration_text(folder / "text.txt", 3000)
    llm = llama_cpp.Llama(str(model), vocab_only=True, verbose=False)
    tokens = llm.tokenize(text.read_bytes(), add_bos=True, special=False)
    llm.close()
    chunks = [[1, *tokens[at + 1 : at + CONTEXT]] for at in range(0, len(tokens) - CONTEXT + 1, CONTEXT)]
    reference = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.inference_mode():
        logits = [reference(torch.tensor([chunk])).logits[0].numpy() for chunk in chunks]
    following = np.concatenate([chunk[CONTEXT // 2 + 1 :] for chunk in chunks])
    return Case(model, text, chunks, second_halves(logits), following)


def second_halves(logits: list[npt.NDArray[np.float32]]) -> LogProbabilities:
    """Log-probabilities of all tokens after each position in the second half of a chunk but the last."""
    values = np.concatenate([chunk[CONTEXT // 2 : CONTEXT - 1] for chunk in logits]).astype(np.float64)
    values -= values.max(-1, keepdims=True)
    return values - np.log(np.exp(values).sum(-1, keepdims=True))


def evaluate(llama_cpp: Any, made: Bundle, level: Level, chunks: list[list[int]]) -> LogProbabilities:
    options: dict[str, Any] = {"n_ctx": CONTEXT, "n_batch": CONTEXT, "n_threads": 1, "logits_all": True}
    if made.layout == "separate":
        (path,) = made.paths(level)
        llm = llama_cpp.Llama(str(path), flash_attn=True, verbose=False, **options)
    else:
        llm = Pmpd(made.path, **options)
        llm.set_precision(level.precision)
    logits = []
    for chunk in chunks:
        llm.reset()
        llm.eval(chunk)
        logits.append(np.array(llm.scores[: len(chunk)]))
    llm.close()
    return second_halves(logits)


def perplexity(values: LogProbabilities, following: npt.NDArray[np.int64]) -> float:
    return float(np.exp(-values[np.arange(len(values)), following].mean()))


@pytest.mark.parametrize(("layout", "precisions"), [("separate", (16, 8, 4)), ("nested", (8, 4, 2))])
def test_quality_is_what_transformers_and_plain_contexts_say(
    llama_cpp: Any, case: Case, tmp_path: Path, layout: str, precisions: tuple[int, ...]
) -> None:
    options: dict[str, Any] = {"precisions": precisions, "layout": layout, "use_imatrix": False, "threads": 1}
    made = convert(case.model, tmp_path / "m", with_report=True, report_text=case.text, **options)
    report = json.loads((made.path / "report.json").read_text())
    assert report["tokens"] == len(case.chunks) * (CONTEXT // 2 - 1) == len(case.following)
    assert report["text"] == {"name": "text.txt", "sha256": hashlib.sha256(case.text.read_bytes()).hexdigest()}
    # The reference is the float32 file, or where there is one the level of 16 bits: that rounds weights to 11 bits.
    rounding = 1e-3 if 16 in precisions else 1e-4
    reference = report["reference"]
    assert reference["perplexity"] == pytest.approx(perplexity(case.expected, case.following), rel=10 * rounding)
    assert (reference["kl"], reference["top1"]) == (0, 1)

    for level, found in zip(made.levels, report["levels"], strict=True):
        values = evaluate(llama_cpp, made, level, case.chunks)
        divergence = (np.exp(case.expected) * (case.expected - values)).sum(-1)
        same = (case.expected.argmax(-1) == values.argmax(-1)).mean()
        assert found["perplexity"] == pytest.approx(perplexity(values, case.following), rel=2e-3)
        assert found["kl"] == pytest.approx(divergence.mean(), rel=0.01, abs=rounding**2)
        assert found["kl_error"] == pytest.approx(divergence.std(ddof=1) / len(values) ** 0.5, rel=0.03, abs=1e-6)
        assert found["top1"] == pytest.approx(same, abs=0.01)
        assert found["precision"] == level.precision
        assert found["bytes"] == sum(path.stat().st_size for path in made.paths(level))
        assert found["bpw"] == pytest.approx(made.bpw(level), abs=1e-4)
        assert found["type"] == " + ".join(made.files[name].type for name in level.weights)
        assert found["prefill_tokens_per_second"] > 0 and found["decode_tokens_per_second"] > 0
    kl = [found["kl"] for found in report["levels"]]
    assert kl == sorted(kl) and kl[-1] > 1e-3, "the levels differ, and so the comparison says something"
    if 16 in precisions:
        assert (report["levels"][0]["kl"], report["levels"][0]["top1"]) == (0, 1)

    lines = run("info", made.path).output.split("\n\n")[-1].splitlines()
    assert lines[0] == f"  on {report['tokens']} tokens of text.txt, against {reference['type']}"
    assert [line.split()[0] for line in lines[1:]] == ["precision", reference["type"], *map(str, precisions)]
    for line, found in zip(lines[3:], report["levels"], strict=True):
        assert f"{found['perplexity']:.2f}  {found['kl']:.4f} ± {found['kl_error']:.4f}" in line
    check_picture(made.path / "report.png")


def test_scores_of_predictions_that_differ_much() -> None:
    """A divergence has a direction then. One token is ruled out by both."""
    generator = np.random.default_rng(0)
    n, n_vocab = 100, 50
    p, q = generator.dirichlet(np.full(n_vocab, 0.3), (2, n)) + 1e-6
    p[:, 7] = q[:, 7] = 0
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    following = generator.integers(8, n_vocab, n)
    scores = quality._Scores()
    with np.errstate(divide="ignore"):
        for rows in (slice(0, 33), slice(33, n)):
            scores.add(np.log(p[rows]).astype(np.float32), np.log(q[rows]).astype(np.float32), following[rows].tolist())
    p, q = np.delete(p, 7, 1), np.delete(q, 7, 1)
    divergences = (p * np.log(p / q)).sum(-1)
    assert scores.result() == pytest.approx(
        {
            "perplexity": np.exp(-np.log(q[np.arange(n), following - 1]).mean()),
            "kl": divergences.mean(),
            "kl_error": divergences.std(ddof=1) / n**0.5,
            "top1": (p.argmax(-1) == q.argmax(-1)).mean(),
        },
        rel=1e-4,
    )


def check_picture(path: Path) -> None:
    from matplotlib import image

    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = image.imread(path)
    assert pixels.ndim == 3 and min(pixels.shape[:2]) > 300 and pixels.std() > 0


def test_a_report_leaves_no_file_of_16_bits(case: Case, tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "m", layers=1)
    options: dict[str, Any] = {"use_imatrix": False, "threads": 1, "with_report": True, "report_text": case.text}
    made = convert(source, tmp_path / "out", precisions=(8, 4), **options)
    assert {path.name for path in made.path.iterdir()} == {*made.files, "pmpd.json", "report.json", "report.png"}
    report = json.loads((made.path / "report.json").read_text())
    assert report["reference"]["type"] == "BF16" and report["reference"]["bytes"] > 3e6
    assert {path.name for path in tmp_path.iterdir()} == {"m", "out"}


def test_a_bundle_of_16_bits_alone(tmp_path: Path, case: Case) -> None:
    source = write_llama(tmp_path / "m.gguf", layers=1, metadata={"context_length": CONTEXT})
    made = convert(source, tmp_path / "out", precisions=(16,), threads=1, with_report=True, report_text=case.text)
    report = json.loads((made.path / "report.json").read_text())
    assert [(found["kl"], found["top1"]) for found in report["levels"]] == [(0, 1)]
    check_picture(made.path / "report.png")


def test_progress_rises_over_all_parts_of_a_conversion(case: Case, tmp_path: Path) -> None:
    source = write_llama(tmp_path / "m.gguf", layers=1, metadata={"context_length": CONTEXT})
    seen: list[tuple[str, float]] = []
    convert(
        source,
        tmp_path / "out",
        precisions=(8, 4),
        layout="nested",
        calibration_text=case.text,
        with_report=True,
        report_text=case.text,
        threads=1,
        progress=lambda label, done: seen.append((label, done)),
    )
    labels = list(dict.fromkeys(label for label, _ in seen))
    assert labels == ["Checking", "16 bits", "Importance matrix", "4 bits, Q4_K", "8 bits, Q4_0", "Measuring", "m"]
    shares = [done for _, done in seen]
    assert shares == sorted(shares) and (shares[0], shares[-1]) == (0, 1)
    assert len({done for label, done in seen if label == "Measuring"}) > 3
    assert len({done for label, done in seen if label == "Importance matrix"}) > 3


def test_missing_matplotlib_is_told_at_the_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConvertError, match=r"matplotlib: pip install 'pmpd-edge\[convert\]'"):
        convert(TRANSLATOR, tmp_path / "out", with_report=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "text.txt: no such file: give the path of a text"),
        (b"", "tokens: too few: give one of 256 or more"),
        (b"A dog runs.", "tokens: too few: give one of 256 or more"),
    ],
)
def test_a_text_that_is_missing_or_too_short_is_refused(tmp_path: Path, content: bytes | None, words: str) -> None:
    source = write_llama(tmp_path / "m.gguf", layers=1, metadata={"context_length": CONTEXT})
    text = tmp_path / "text.txt"
    if content is not None:
        text.write_bytes(content)
    options: dict[str, Any] = {"use_imatrix": False, "threads": 1, "with_report": True, "report_text": text}
    with pytest.raises(ConvertError) as caught:
        convert(source, tmp_path / "out", precisions=(4,), **options)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
