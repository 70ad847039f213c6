"""Training finds what is there to be found, and says so where there is nothing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from predictors import CLASSES

from pmpd_edge.calibrate import network
from pmpd_edge.calibrate.examples import Example
from pmpd_edge.calibrate.report import report
from pmpd_edge.calibrate.training import FOLDS, LEAST, Result, train
from pmpd_edge.errors import PmpdError
from pmpd_edge.predictor import Predictor

PAIR = (8, 2)
SHARES = (0.4, 0.3, 0.2, 0.1)  # of the classes


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made(n_prompts: int = 120, *, signal: float, seed: int = 0) -> list[Example]:
    """Examples in which one position's key is marked, and its value points to the label, as strongly as `signal`."""
    rng = np.random.default_rng(seed)
    examples = []
    for i in range(n_prompts):
        n_tokens = int(rng.integers(3, 20))
        label = int(rng.choice(len(CLASSES), p=SHARES))
        keys = rng.standard_normal((n_tokens, 2, 8)).astype(np.float32)
        values = rng.standard_normal((n_tokens, 2, 4)).astype(np.float32)
        marked = int(rng.integers(n_tokens))
        keys[marked, :, 0] += 3 * signal
        values[marked, :, label] += 5 * signal
        examples.append(Example((i,), keys.astype(np.float16), values.astype(np.float16), {PAIR: label}))
    return examples


def trained(examples: list[Example], seed: int = 0) -> Result:
    (result,) = train(examples=examples, classes=CLASSES, seed=seed)
    return result


@pytest.fixture(scope="module")
def separable() -> Result:
    return trained(made(signal=1))


def test_what_can_be_told_apart_is_learned(separable):
    found = separable.report
    assert found.accuracy > found.majority_accuracy + 0.2
    assert found.log_loss < found.prior_log_loss - 0.2
    assert found.beats_majority and found.beats_prior
    assert found.verdict.startswith("8-2: better than the commonest class")
    assert found.calibration_error < 0.2


def test_a_better_predictor_costs_less_for_as_many_prompts_with_enough(separable):
    found = separable.report
    assert found.oracle_cost < found.cost < found.constant_cost
    assert found.enough > found.confidence - 0.1


@pytest.mark.parametrize("seed", range(3))
def test_noise_is_reported_as_noise(seed):
    found = trained(made(signal=0, seed=seed)).report
    assert not found.beats_majority and not found.beats_prior
    assert "not better than the commonest class" in found.verdict
    assert "nor than the prior" in found.verdict and "static" in found.verdict
    assert found.log_loss < found.prior_log_loss + 0.1  # at least it is not sure of what it does not know


def test_prompts_that_are_all_alike_are_reported_as_such():
    examples = [Example(one.prompt, one.keys, one.values, {PAIR: 1}) for one in made(LEAST, signal=0)]
    result = trained(examples)
    assert result.trained.prior == (0, 1, 0, 0)
    assert not result.report.beats_majority
    assert "nothing to learn" in result.report.verdict


def test_the_same_seed_gives_the_same_network_and_leaves_torchs_own_alone(separable):
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    again = trained(made(signal=1))
    assert torch.rand(1) == expected
    assert again.report == separable.report
    assert again.trained.temperature == separable.trained.temperature
    one, other = (result.trained.network.state_dict() for result in (again, separable))
    assert all(torch.equal(one[name], other[name]) for name in other)
    assert trained(made(signal=1), seed=1).report != separable.report


def test_the_prior_is_the_frequency_of_the_labels(separable):
    labels = [example.labels[PAIR] for example in made(signal=1)]
    assert separable.report.counts == tuple(np.bincount(labels))
    assert separable.trained.prior == pytest.approx(np.bincount(labels) / len(labels))


def test_no_prompt_is_on_both_sides_of_a_split():
    """Labels are noise, but each prompt is there several times: who has seen one knows the others."""
    examples = [one for one in made(40, signal=0) for _ in range(4)]
    found = trained(examples).report
    assert sum(found.counts) == 40
    assert not found.beats_majority and not found.beats_prior


def test_every_pair_is_trained_and_reported_on():
    examples = [
        Example(one.prompt, one.keys, one.values, {(4, 2): 3 - one.labels[PAIR], (8, 2): one.labels[PAIR], (8, 4): 0})
        for one in made(60, signal=1)
    ]
    seen: dict[str, list[float]] = {}
    results = train(
        examples=examples, classes=CLASSES, progress=lambda name, done: seen.setdefault(name, []).append(done)
    )
    assert [result.trained.pair for result in results] == [(8, 4), (8, 2), (4, 2)]
    assert [result.report.pair for result in results] == [(8, 4), (8, 2), (4, 2)]
    assert list(seen) == ["training 8-4", "training 8-2", "training 4-2"]
    for fractions in seen.values():
        assert fractions == sorted(fractions) and fractions[-1] == pytest.approx(1)


def test_too_few_prompts_are_refused():
    few = made(LEAST - 1, signal=1)
    with pytest.raises(PmpdError, match=f"{LEAST - 1} different prompts, at least {LEAST}"):
        train(examples=[*few, *few], classes=CLASSES)
    assert LEAST >= 4 * FOLDS  # some are left for every part of every split


def test_what_is_trained_predicts_from_its_file(separable, tmp_path):
    path = tmp_path / "predictor.gguf"
    network.write(path, trained=[separable.trained], classes=CLASSES, max_new_tokens=64, layer=-1, fingerprint="abc")
    predictor = Predictor.load(path)
    fresh = made(200, signal=1, seed=9)
    found = [predictor.probabilities(PAIR, one.keys, one.values) for one in fresh]
    right = np.mean([np.argmax(row) == one.labels[PAIR] for row, one in zip(found, fresh, strict=True)])
    assert right > max(SHARES) + 0.2
    mean = np.mean(found, axis=0)
    assert mean == pytest.approx(SHARES, abs=0.12)  # weighting rare classes is undone


# The figures of a report, by hand


def test_figures_of_a_report():
    labels = np.array([0, 0, 1, 3])
    probabilities = np.array([[0.7, 0.1, 0.1, 0.1], [0.2, 0.6, 0.1, 0.1], [0.1, 0.8, 0.1, 0.0], [0.1, 0.2, 0.3, 0.4]])
    priors = np.tile([0.5, 0.25, 0.05, 0.2], (4, 1))
    found = report(PAIR, np.array(CLASSES), labels, probabilities, priors, confidence=0.75)
    assert found.counts == (2, 1, 0, 1)
    assert (found.accuracy, found.majority_accuracy) == (0.75, 0.5)
    assert found.random_accuracy == pytest.approx((0.5 + 0.5 + 0.25 + 0.2) / 4)
    assert found.log_loss == pytest.approx(-np.log(0.7 * 0.2 * 0.8 * 0.4) / 4)
    assert found.prior_log_loss == pytest.approx(-np.log(0.5 * 0.5 * 0.25 * 0.2) / 4)
    assert found.calibration_error == pytest.approx((0.3 + 0.6 + 0.2 + 0.6) / 4)
    # Chosen at a confidence of 0.75: classes 1, 1, 1, 3; by the prior class 1.
    assert found.cost == pytest.approx((0.25 + 0.25 + 0.25 + 1) / 4)
    assert found.enough == 1
    assert (found.constant_cost, found.constant_enough) == (0.25, 0.75)
    assert found.oracle_cost == pytest.approx((0 + 0 + 0.25 + 1) / 4)


@pytest.mark.parametrize(
    ("accuracy", "loss", "words"),
    [
        (True, True, ["better than the commonest", "and than the prior"]),
        (True, False, ["better than the commonest", "but not better than the prior"]),
        (False, True, ["not better than the commonest", "though better than the prior"]),
        (False, False, ["not better than the commonest", "nor than the prior", "static"]),
    ],
)
def test_verdicts(separable, accuracy, loss, words):
    verdict = dataclasses.replace(separable.report, beats_majority=accuracy, beats_prior=loss).verdict
    assert all(word in verdict for word in words)
