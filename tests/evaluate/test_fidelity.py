"""Distributions along the reference's answer are those that each method computes alone."""

from __future__ import annotations

import numpy as np
import pytest
from talk import SENTENCES, answer, prompt

from pmpd_edge import bundle
from pmpd_edge.batch import Batch
from pmpd_edge.evaluate.fidelity import Led, lead
from pmpd_edge.evaluate.methods import make, uniform

METHODS = ["high", "uniform:4", "low", "pmpd:static:8@1,4@4,2@8", "pmpd:alternate:0.5"]


@pytest.fixture(scope="module")
def default() -> bundle.Bundle:
    return bundle.load(bundle.default_bundle())


def probabilities(llm, asked, tokens, precisions):
    """By torch's softmax, an evaluation at a time."""
    torch = pytest.importorskip("torch", reason="pip install 'pmpd-edge[convert]'")
    llm.reset()
    rows = []
    for index, precision in enumerate(precisions):
        llm.set_precision(precision)
        llm.eval(asked if index == 0 else [tokens[index - 1]])
        rows.append(np.array(llm.logits(), dtype=np.float64))
    return torch.log_softmax(torch.tensor(np.array(rows)), dim=-1)


@pytest.mark.parametrize("parallel", [2, 6])
def test_kl_and_agreement_are_torchs(llm, default, parallel):
    """To the last bits, which depend on how many are evaluated together."""
    torch = pytest.importorskip("torch", reason="pip install 'pmpd-edge[convert]'")
    asked = prompt(llm, SENTENCES[0])
    llm.configure(method="high")
    tokens = answer(llm, asked)
    methods, top = make(METHODS, default), uniform("reference", 8, default)
    with Batch(default, n_ctx=256, parallel=parallel, n_threads=1) as batch:
        led = lead(batch, asked, tokens, methods, top.prefill)
    expected = probabilities(llm, asked, tokens, [8] * len(tokens))
    for method, found in zip(methods, led, strict=True):
        scheduler = method.scheduler()
        precisions = [method.prefill, *(scheduler.next(step, llm) for step in range(1, len(tokens)))]
        assert found.precisions == tuple(precisions)
        actual = probabilities(llm, asked, tokens, precisions)
        kl = torch.nn.functional.kl_div(actual, expected, reduction="none", log_target=True).sum(dim=-1)
        np.testing.assert_allclose(found.kl, kl.numpy(), rtol=0.05, atol=1e-3)
        assert (found.agreed != (actual.argmax(-1) == expected.argmax(-1)).numpy()).sum() <= 1
    assert led[0].kl.max() < 1e-3 and led[0].agreed.all(), "the reference against itself"
    assert led[2].kl.mean() > 10 * led[1].kl.mean() > 0


def test_what_counts_is_from_the_first_switch_on():
    kl, agreed = np.array([9.0, 1.0, 2.0, 3.0]), np.array([False, True, False, True])
    switching = Led(kl, agreed, (8, 8, 4, 4))
    assert switching.sums() == [3, 6, 2, 2, 5, 1]
    assert Led(kl, agreed, (8, 8, 4, 8)).sums() == switching.sums(), "what comes after a switch back counts too"
    assert Led(kl, agreed, (8, 4, 4, 4)).sums() == [3, 6, 2, 3, 6, 2]
    assert Led(kl, agreed, (4, 4, 4, 4)).sums() == [3, 6, 2, 3, 6, 2], "without a switch, all decode steps"
