"""Metrics are the libraries' own, and the bootstrap is what its name says."""

from __future__ import annotations

import numpy as np
import pytest

from pmpd_edge.errors import PmpdError
from pmpd_edge.evaluate.metrics import Bootstrap, make

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
