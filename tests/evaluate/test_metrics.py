"""Metrics are the libraries' own, and the bootstrap is what its name says."""

from __future__ import annotations

import numpy as np
import pytest

from pmpd_edge.errors import PmpdError
from pmpd_edge.evaluate.metrics import Bootstrap, Ratio, last_number, make

REFERENCES = [
    "A man in an orange hat starring at something.",
    "A Boston Terrier is running on lush green grass in front of a white fence.",
    "A girl in karate uniform breaking a stick with a front kick.",
    "Five people wearing winter jackets and helmets stand in the snow.",
    "People are fixing the roof of a house.",
] * 4
ANSWERS = [
    "A man in an orange hat staring at something.",
    "A Boston terrier runs on green grass in front of a white fence.",
    "A girl in a karate uniform breaks a board with a kick.",
    "Five people in winter jackets are standing in the snow.",
    "People fixing a roof.",
] * 3 + ["", "Something else.", REFERENCES[2], "a", "People are fixing the roof of a house."]


def library_score(name, answers, references):
    if name == "bleu":
        from sacrebleu import corpus_bleu

        return corpus_bleu(answers, [references]).score
    if name == "chrf":
        from sacrebleu import corpus_chrf

        return corpus_chrf(answers, [references]).score
    if name == "rougeL":
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(["rougeL"], use_stemmer=True)
        pairs = zip(references, answers, strict=True)
        return 100 * np.mean([scorer.score(reference, answer)["rougeL"].fmeasure for reference, answer in pairs])
    return 100 * np.mean([answer == reference for answer, reference in zip(answers, references, strict=True)])


@pytest.mark.parametrize("name", ["bleu", "chrf", "rougeL", "exact"])
def test_scores_are_the_librarys(name):
    metric = make(name)
    rows = metric.rows(ANSWERS, REFERENCES)
    assert metric.score(rows.sum(axis=0)) == pytest.approx(library_score(name, ANSWERS, REFERENCES), abs=1e-9)
    # Any sub-set's score follows from its rows: that is what resampling relies on.
    chosen = [0, 3, 3, 7, 16, 19]
    expected = library_score(name, [ANSWERS[i] for i in chosen], [REFERENCES[i] for i in chosen])
    assert metric.score(rows[chosen].sum(axis=0)) == pytest.approx(expected, abs=1e-9)


def test_no_such_metric():
    with pytest.raises(PmpdError, match="no metric 'wer'"):
        make("wer")


def test_the_interval_of_a_mean_is_the_normal_one():
    metric = make("exact")
    right = 300
    answers = ["x"] * right + ["y"] * (400 - right)
    score = Bootstrap(metric, 400).score(metric.rows(answers, ["x"] * 400))
    error = 100 * np.sqrt(0.75 * 0.25 / 400)
    assert score.value == 75
    assert score.low == pytest.approx(75 - 1.96 * error, abs=0.8)
    assert score.high == pytest.approx(75 + 1.96 * error, abs=0.8)


def test_comparisons_are_paired():
    """The same few answers are worse each time: unpaired intervals would hide what these show."""
    metric = make("exact")
    references = ["x"] * 400
    theirs = metric.rows(["x"] * 200 + ["y"] * 200, references)
    ours = metric.rows(["y"] * 8 + ["x"] * 192 + ["y"] * 200, references)
    loss = Bootstrap(metric, 400).loss(ours, theirs, tolerance=1.0)
    assert loss.value == pytest.approx(4.0)
    assert 1.0 < loss.low < 4.0 < loss.high < 8.0
    assert loss.within < 0.05


def test_what_loses_nothing_is_within_any_tolerance():
    metric = make("bleu")
    rows = metric.rows(ANSWERS, REFERENCES)
    loss = Bootstrap(metric, len(ANSWERS)).loss(rows, rows, tolerance=0.0)
    assert (loss.value, loss.low, loss.high, loss.within) == (0, 0, 0, 1)


def test_a_reference_of_zero_cannot_be_lost_against():
    metric = make("exact")
    rows = metric.rows(["y"] * 10, ["x"] * 10)
    loss = Bootstrap(metric, 10).loss(rows, rows, tolerance=1.0)
    assert (loss.value, loss.within) == (0, 0), "nor is anything sure"


@pytest.fixture
def encoder(tmp_path):
    """A tiny BERT with random weights."""
    transformers = pytest.importorskip("transformers", reason="pip install 'pmpd-edge[convert]'")
    pytest.importorskip("bert_score", reason="pip install 'pmpd-edge[eval]'")
    import torch

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "man", "in", "an", "hat", "the", "roof", "fix", "##ing"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizerFast(str(tmp_path / "vocab.txt"), model_max_length=64).save_pretrained(tmp_path)
    size = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.BertConfig(vocab_size=len(words), max_position_embeddings=64, **size)
        transformers.BertModel(config).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("default")
def test_bertscore_is_the_librarys(encoder):
    from bert_score import score

    metric = make("bertscore", str(encoder))
    rows = metric.rows(ANSWERS, REFERENCES)
    some = [i for i, answer in enumerate(ANSWERS) if answer]
    answers, references = [ANSWERS[i] for i in some], [REFERENCES[i] for i in some]
    _, _, f1 = score(answers, references, model_type=str(encoder), num_layers=3)
    np.testing.assert_allclose(rows[some, 0], f1.numpy(), atol=1e-6)
    assert rows[ANSWERS.index(""), 0] == 0
    assert metric.score(rows.sum(axis=0)) == pytest.approx(100 * f1.sum().item() / len(ANSWERS), abs=1e-4)


def test_bertscore_without_its_encoder(tmp_path):
    pytest.importorskip("bert_score", reason="pip install 'pmpd-edge[eval]'")
    with pytest.raises(PmpdError, match=r"no encoder for BERTScore .*--bert-model") as error:
        make("bertscore", str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("She sold 48/2 = <<48/2=24>>24 clips.\n#### 72", "72"),
        ("The answer is $1,234.00.", "1234"),
        ("-3.50 or 7.5", "7.5"),
        ("It is -12.", "-12"),
        ("1,000,000 people", "1000000"),
        ("none", None),
        ("", None),
    ],
)
def test_the_last_number(answer, number):
    assert last_number(answer) == number


def test_right_numbers():
    metric = make("number")
    rows = metric.rows(["so 72.", "71", "no idea", "1,000"], ["48+24 = 72\n#### 72", "#### 72", "#### 72", "#### 1000"])
    assert metric.score(rows.sum(axis=0)) == 50


def test_a_difference_is_paired():
    """Answers that are worse on the same few prompts differ surely, although each score alone is unsure."""
    metric = make("exact")
    rng = np.random.default_rng(0)
    right = rng.random(400) < 0.5
    worse = right & (rng.random(400) > 0.1)
    references = ["x"] * 400
    theirs, ours = (metric.rows(["x" if r else "y" for r in each], references) for each in (right, worse))
    bootstrap = Bootstrap(metric, 400)
    difference = bootstrap.difference(ours, theirs)
    assert difference.value == pytest.approx(100 * (worse.mean() - right.mean()))
    assert difference.low < difference.value < difference.high < 0
    assert bootstrap.score(ours).high > bootstrap.score(theirs).low, "unpaired, they overlap"


def test_a_ratio_of_nothing_is_nothing():
    assert Ratio().score(np.array([0.0, 0.0])) == 0
    assert Ratio().score(np.array([3.0, 4.0])) == 0.75
