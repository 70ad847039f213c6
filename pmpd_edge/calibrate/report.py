"""What a predictor is worth, from its probabilities for prompts that it was not trained on, in figures and in words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pmpd_edge.calibrate.examples import Pair
from pmpd_edge.schedule.learned import choose

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

BINS = 10  # of the calibration error
SURE = 1.645  # standard errors: a gain above so many is chance in 1 of 20 cases


@dataclass(frozen=True)
class Report:
    """A predictor on prompts that it was not trained on, beside what needs no predictor.

    The majority and the prior are those of the labels that it was trained on. Shares are of the longest answer's steps.

    Attributes:
        counts: how many prompts have each class as their label.
        accuracy, majority_accuracy, random_accuracy: how often its likeliest class, the commonest class, and a class
            drawn from the prior are right.
        log_loss, prior_log_loss: mean of -ln(probability of the right class), its own and the prior's.
        calibration_error: mean difference between how sure it is of its likeliest class and how often that is right, in
            ten bins.
        confidence: at which shares are chosen for the figures that follow.
        cost, enough: mean share of high steps that it chooses, and how often that is enough.
        constant_cost, constant_enough: likewise, of the one share that the prior chooses for all prompts.
        oracle_cost: mean share that is just enough.
        beats_majority, beats_prior: whether accuracy and log loss are better by more than what chance gives in 1 of 20
            cases.
    """

    pair: Pair
    counts: tuple[int, ...]
    accuracy: float
    majority_accuracy: float
    random_accuracy: float
    log_loss: float
    prior_log_loss: float
    calibration_error: float
    confidence: float
    cost: float
    enough: float
    constant_cost: float
    constant_enough: float
    oracle_cost: float
    beats_majority: bool
    beats_prior: bool

    @property
    def verdict(self) -> str:
        """Whether it is worth using, in one sentence."""
        name = f"{self.pair[0]}-{self.pair[1]}"
        if sum(count > 0 for count in self.counts) == 1:
            return f"{name}: nothing to learn, as all prompts need the same share of high steps; use a static schedule"
        majority = f"the commonest class (right for {self.accuracy:.0%} against {self.majority_accuracy:.0%})"
        prior = f"the prior (log loss {self.log_loss:.3f} against {self.prior_log_loss:.3f})"
        if self.beats_majority and self.beats_prior:
            return f"{name}: better than {majority} and than {prior}"
        if self.beats_majority:
            return f"{name}: better than {majority}, but not better than {prior}"
        if self.beats_prior:
            return f"{name}: not better than {majority}, though better than {prior}"
        return f"{name}: not better than {majority}, nor than {prior}; use a static schedule"


def report(
    pair: Pair, classes: Floats, labels: Ints, probabilities: Floats, priors: Floats, confidence: float
) -> Report:
    """Compare predictions with labels.

    Args:
        classes: shares of the longest answer's steps, `[n_classes]`.
        labels: the right class of each prompt, `[n_prompts]`.
        probabilities: what the predictor says without having seen the prompt, `[n_prompts, n_classes]`.
        priors: frequencies of the labels that the predictor was trained on, above zero, of the same shape.
        confidence: at which shares are chosen.
    """
    rows = np.arange(len(labels))
    right, majority_right = (p.argmax(axis=1) == labels for p in (probabilities, priors))
    losses, prior_losses = (-np.log(np.maximum(p[rows, labels], 1e-12)) for p in (probabilities, priors))
    chosen, constant = (np.array([choose(row.tolist(), confidence) for row in p]) for p in (probabilities, priors))
    return Report(
        pair=pair,
        counts=tuple(np.bincount(labels, minlength=len(classes)).tolist()),
        accuracy=float(right.mean()),
        majority_accuracy=float(majority_right.mean()),
        random_accuracy=float(priors[rows, labels].mean()),
        log_loss=float(losses.mean()),
        prior_log_loss=float(prior_losses.mean()),
        calibration_error=_calibration_error(probabilities.max(axis=1), right),
        confidence=confidence,
        cost=float(classes[chosen].mean()),
        enough=float((chosen >= labels).mean()),
        constant_cost=float(classes[constant].mean()),
        constant_enough=float((constant >= labels).mean()),
        oracle_cost=float(classes[labels].mean()),
        beats_majority=_is_gain(right.astype(float) - majority_right),
        beats_prior=_is_gain(prior_losses - losses),
    )


def _calibration_error(sure: Floats, right: npt.NDArray[np.bool_]) -> float:
    """Expected calibration error (Guo et al., 2017): over bins of equal width, weighted by what is in them."""
    bins = np.minimum((sure * BINS).astype(int), BINS - 1)
    gaps = [abs(right[bins == i].mean() - sure[bins == i].mean()) * (bins == i).mean() for i in np.unique(bins)]
    return float(sum(gaps))


def _is_gain(gains: Floats) -> bool:
    """Whether paired gains are above zero by more than chance."""
    standard_error = gains.std(ddof=1) / np.sqrt(len(gains))
    return bool(gains.mean() > SURE * standard_error)
