"""Metrics by the libraries that papers cite, and how sure a figure is, by the paired bootstrap.

A metric turns each answer into a row of statistics; the score of any set of answers follows from the sum of their rows.
So a thousand resamples of the answers cost a matrix product, not a thousand evaluations.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pmpd_edge.errors import PmpdError

Floats = npt.NDArray[np.float64]

RESAMPLES = 1000
INTERVAL = 0.95

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


class Scorer(Protocol):
    """What can be resampled."""

    def score(self, total: Floats) -> float:
        """The score of the answers whose rows sum to `total`, `[n_statistics]`."""


class Metric(Scorer, Protocol):
    """Scores answers from 0 to 100."""

    def rows(self, answers: Sequence[str], references: Sequence[str]) -> Floats:
        """Statistics of each answer, `[n_answers, n_statistics]`."""


class Ratio:
    """A sum over another one: rows have both; 0 where the second is."""

    def score(self, total: Floats) -> float:
        return float(total[0] / total[1]) if total[1] else 0.0


class _Sacrebleu:
    """BLEU and chrF, corpus scores of sacrebleu with its defaults."""

    def __init__(self, metric: Any) -> None:
        self._metric = metric

    def rows(self, answers: Sequence[str], references: Sequence[str]) -> Floats:
        # What sacrebleu's own bootstrap (sacrebleu.significance) goes by.
        statistics = self._metric._extract_corpus_statistics(list(answers), [list(references)])
        return np.array(statistics, dtype=np.float64)

    def score(self, total: Floats) -> float:
        return float(self._metric._compute_score_from_stats(total.round().astype(int).tolist()).score)


class _Mean:
    """The mean of a score of each answer, from 0 to 1."""

    def __init__(self, score: Callable[[str, str], float]) -> None:
        self._score = score

    def rows(self, answers: Sequence[str], references: Sequence[str]) -> Floats:
        pairs = zip(answers, references, strict=True)
        return np.array([[self._score(answer, reference), 1.0] for answer, reference in pairs])

    def score(self, total: Floats) -> float:
        return float(100 * total[0] / total[1])


class _BertScore:
    """The mean F1 of BERTScore (Zhang et al., 2020), without rescaling.

    Args:
        encoder: a directory, or a name on the Hub; None takes what bert-score takes for English.
    """

    def __init__(self, encoder: str | None) -> None:
        from bert_score import BERTScorer

        self._scorer = BERTScorer(model_type=encoder, num_layers=_layers(encoder), lang=None if encoder else "en")
        tokenizer, config = self._scorer._tokenizer, self._scorer._model.config
        if tokenizer.model_max_length > config.max_position_embeddings:  # some do not say; bert-score needs a number
            tokenizer.model_max_length = config.max_position_embeddings - 2  # RoBERTa counts positions from 2

    def rows(self, answers: Sequence[str], references: Sequence[str]) -> Floats:
        rows = np.stack([np.zeros(len(answers)), np.ones(len(answers))], axis=1)
        # An empty answer scores 0, as in bert-score, which fails on one with today's tokenizers.
        some = [i for i, answer in enumerate(answers) if answer.strip()]
        if some:
            _, _, f1 = self._scorer.score([answers[i] for i in some], [references[i] for i in some])
            rows[some, 0] = f1.numpy()
        return rows

    def score(self, total: Floats) -> float:
        return float(100 * total[0] / total[1])


def _layers(encoder: str | None) -> int | None:
    """The layer that bert-score found best for a model, by its name; of one that it does not know, the last."""
    from bert_score.utils import model2layers
    from transformers import AutoConfig

    if encoder is None or encoder in model2layers:
        return None
    known = {name.rpartition("/")[2]: layers for name, layers in model2layers.items()}
    name = Path(encoder).name
    return known[name] if name in known else int(AutoConfig.from_pretrained(encoder).num_hidden_layers)


def last_number(text: str) -> str | None:
    """The last number in a text without its commas and a fraction of zeros, as GSM8K's answers are compared."""
    found = _NUMBER.findall(text)
    return re.sub(r"\.0*$", "", found[-1].replace(",", "")) if found else None


def _same_number(answer: str, reference: str) -> float:
    expected = last_number(reference)
    return float(expected is not None and last_number(answer) == expected)


def make(name: str, encoder: str | None = None) -> Metric:
    """A metric by name.

    Args:
        name: `bleu`, `chrf`, `rougeL` (F1, stemmed), `bertscore` (F1), `exact` (the whole answer), `number` (the last
            number in it).
        encoder: for `bertscore`: the directory or the Hub id of its model.

    Raises:
        PmpdError: its library or its model is not to be had.
    """
    try:
        if name in ("bleu", "chrf"):
            from sacrebleu.metrics import BLEU, CHRF

            return _Sacrebleu(BLEU() if name == "bleu" else CHRF())
        if name == "rougeL":
            from rouge_score.rouge_scorer import RougeScorer

            scorer = RougeScorer(["rougeL"], use_stemmer=True)
            return _Mean(lambda answer, reference: scorer.score(reference, answer)["rougeL"].fmeasure)
        if name == "bertscore":
            return _BertScore(encoder)
    except ModuleNotFoundError as error:
        raise PmpdError(f"the metric {name} needs {error.name}", "pip install 'pmpd-edge[eval]'") from None
    except (OSError, ValueError) as error:  # transformers': no such model, here or on the Hub
        reason = str(error).strip().splitlines()[0]
        raise PmpdError(f"no encoder for BERTScore ({reason})", "give its directory with --bert-model") from None
    if name == "exact":
        return _Mean(lambda answer, reference: float(answer.strip() == reference.strip()))
    if name == "number":
        return _Mean(_same_number)
    raise PmpdError(f"no metric {name!r}")


@dataclass(frozen=True)
class Score:
    """A score, and the interval that holds it in 95% of resamples."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Loss:
    """What answers lose against others to the same prompts, in per cent of those others' score.

    Attributes:
        value: negative where they are better.
        low, high: the interval that holds it in 95% of resamples.
        within: share of resamples in which it is at most the tolerance; those in which the others score 0 do not count.
    """

    value: float
    low: float
    high: float
    within: float


class Bootstrap:
    """Resamples of the same examples for everything that is compared: the comparisons are paired.

    Args:
        metric: what scores them.
        n_examples: number of examples.
        seed: of the resampling.
    """

    def __init__(self, metric: Scorer, n_examples: int, seed: int = 0) -> None:
        self._metric = metric
        equal = np.full(n_examples, 1 / n_examples)
        counts = np.random.default_rng(seed).multinomial(n_examples, equal, size=RESAMPLES)
        self._counts: Floats = counts.astype(np.float64)

    def score(self, rows: Floats) -> Score:
        """The score of answers, from their statistics `[n_examples, n_statistics]`."""
        low, high = self._interval(self._resampled(rows))
        return Score(self._metric.score(rows.sum(axis=0)), low, high)

    def difference(self, rows: Floats, reference: Floats) -> Score:
        """How much higher answers score than the reference's, in points; from statistics as `score` takes them."""
        low, high = self._interval(self._resampled(rows) - self._resampled(reference))
        value = self._metric.score(rows.sum(axis=0)) - self._metric.score(reference.sum(axis=0))
        return Score(value, low, high)

    def loss(self, rows: Floats, reference: Floats, tolerance: float) -> Loss:
        """What answers lose against the reference's.

        Args:
            rows, reference: statistics `[n_examples, n_statistics]`.
            tolerance: in per cent.
        """
        ours, theirs = self._resampled(rows), self._resampled(reference)
        losses = _relative(ours, theirs)
        low, high = self._interval(losses)
        value = _relative(*(np.array(self._metric.score(r.sum(axis=0))) for r in (rows, reference)))
        return Loss(float(value), low, high, float(np.mean((losses <= tolerance) & (theirs > 0))))

    def _resampled(self, rows: Floats) -> Floats:
        return np.array([self._metric.score(total) for total in self._counts @ rows])

    def _interval(self, values: Floats) -> tuple[float, float]:
        low, high = np.quantile(values, [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2])
        return float(low), float(high)


def _relative(ours: Floats, theirs: Floats) -> Floats:
    """Loss in per cent; 0 against a score of zero, which says nothing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(theirs > 0, 100 * (theirs - ours) / theirs, 0.0)
