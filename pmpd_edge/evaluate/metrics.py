"""Metrics by the libraries that papers cite, and how sure a figure is, by the paired bootstrap.

A metric turns each answer into a row of statistics; the score of any set of answers follows from the sum of their rows.
So a thousand resamples of the answers cost a matrix product, not a thousand evaluations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pmpd_edge.errors import PmpdError

Floats = npt.NDArray[np.float64]

RESAMPLES = 1000
INTERVAL = 0.95


class Metric(Protocol):
    """Scores answers from 0 to 100."""

    def rows(self, answers: Sequence[str], references: Sequence[str]) -> Floats:
        """Statistics of each answer, `[n_answers, n_statistics]`."""

    def score(self, total: Floats) -> float:
        """The score of the answers whose rows sum to `total`, `[n_statistics]`."""


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


def make(name: str) -> Metric:
    """A metric by name: `bleu`, `chrf`, `rougeL` (F1, stemmed), `exact`.

    Raises:
        PmpdError: its library is not installed.
    """
    try:
        if name in ("bleu", "chrf"):
            from sacrebleu.metrics import BLEU, CHRF

            return _Sacrebleu(BLEU() if name == "bleu" else CHRF())
        if name == "rougeL":
            from rouge_score.rouge_scorer import RougeScorer

            scorer = RougeScorer(["rougeL"], use_stemmer=True)
            return _Mean(lambda answer, reference: scorer.score(reference, answer)["rougeL"].fmeasure)
    except ModuleNotFoundError as error:
        raise PmpdError(f"the metric {name} needs {error.name}", "pip install 'pmpd-edge[eval]'") from None
    if name == "exact":
        return _Mean(lambda answer, reference: float(answer.strip() == reference.strip()))
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

    def __init__(self, metric: Metric, n_examples: int, seed: int = 0) -> None:
        self._metric = metric
        equal = np.full(n_examples, 1 / n_examples)
        counts = np.random.default_rng(seed).multinomial(n_examples, equal, size=RESAMPLES)
        self._counts: Floats = counts.astype(np.float64)

    def score(self, rows: Floats) -> Score:
        """The score of answers, from their statistics `[n_examples, n_statistics]`."""
        low, high = self._interval(self._resampled(rows))
        return Score(self._metric.score(rows.sum(axis=0)), low, high)

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
