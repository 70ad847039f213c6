"""Drafts are judged so that what is given is distributed as the verifier's (pmpd_edge/lossless/sampling.py)."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from sampled import GENERATE, chi_square, critical
from talk import SENTENCES, prompt

from pmpd_edge import Pmpd
from pmpd_edge.errors import PmpdError
from pmpd_edge.lossless.sampling import Choice, Sampler, check, judge, random_numbers


def choice(*probabilities: float) -> Choice:
    ids = np.array([id for id, p in enumerate(probabilities) if p], dtype=np.intc)
    found = np.array([p for p in probabilities if p])
    return Choice(int(ids[found.argmax()]), ids, found)


P = choice(0.1, 0.2, 0.3, 0.4, 0.0)
CASES = {
    "alike": choice(0.15, 0.2, 0.3, 0.35, 0.0),
    "opposite": choice(0.4, 0.3, 0.2, 0.1, 0.0),
    "with what the verifier has left out": choice(0.1, 0.1, 0.1, 0.1, 0.6),
    "without what the verifier has": choice(0.0, 0.0, 0.5, 0.5, 0.0),
    "of one token": choice(0.0, 1.0, 0.0, 0.0, 0.0),
    "the same": P,
}


@pytest.mark.parametrize("drafter", CASES.values(), ids=CASES)
def test_what_is_given_is_distributed_as_the_verifiers(drafter: Choice) -> None:
    rng = random_numbers(1)
    n = 20_000
    given = np.bincount([judge(drafter.draw(rng), drafter, P, rng) for _ in range(n)], minlength=5)
    assert given[4] == 0
    assert chi_square(given[:4], n * P.probabilities) < critical(3)


def test_as_many_drafts_stand_as_the_distributions_share() -> None:
    rng = random_numbers(2)
    for drafter in CASES.values():
        shared = np.minimum([P.probability(i) for i in range(5)], [drafter.probability(i) for i in range(5)]).sum()
        drafts = [drafter.draw(rng) for _ in range(5000)]
        stand = np.mean([judge(draft, drafter, P, rng) == draft for draft in drafts])
        assert stand == pytest.approx(shared, abs=0.03)


def test_the_likeliest_token_stands_or_is_replaced_by_the_verifiers() -> None:
    rng = random_numbers(3)
    one, other = choice(0, 1.0), choice(0, 0, 1.0)
    assert judge(1, one, one, rng) == 1
    assert judge(1, one, other, rng) == 2


def test_random_numbers_are_those_that_the_cpp_standard_wants_of_mt19937() -> None:
    """After [rand.predef]; the seed is the complement of 5489. Two numbers make one in [0, 1)."""
    numbers = random_numbers(0xFFFFFFFF - 5489).randint(0, 2**32, size=10_000, dtype=np.uint32)
    assert numbers[-1] == 4123659995
    high, low = int(numbers[0]) >> 5, int(numbers[1]) >> 6
    assert random_numbers(0xFFFFFFFF - 5489).random_sample() == (high * 2**26 + low) / 2**53


def test_the_seed_of_chance_is_another_one_each_time() -> None:
    assert random_numbers(0xFFFFFFFF).random_sample() != random_numbers(0xFFFFFFFF).random_sample()


def evaluated(llm: Pmpd) -> npt.NDArray[np.float32]:
    llm.eval(prompt(llm, SENTENCES[0]))
    return llm.logits()


CHAINS = [
    {"temp": 0.0},
    {"temp": 1.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
    {"temp": 1.5},
    {"temp": 1.2, "top_k": 5, "repeat_penalty": 1.3, "presence_penalty": 0.5},
    {"temp": -1.0},
]


@pytest.mark.parametrize("options", CHAINS)
def test_a_chain_draws_what_llama_cpp_draws(llm: Pmpd, options: dict[str, float]) -> None:
    evaluated(llm)
    llm.set_seed(5)
    sampler = Sampler(llm, GENERATE | options)
    stock = llm._init_sampler(**GENERATE | options)
    for _ in range(20):
        expected = stock.sample(llm._ctx, -1)  # accepts it too
        found = sampler.fork().choose()
        assert sampler.sample() == found.token == expected
        assert found.probabilities.sum() == pytest.approx(1)
        assert found.probability(expected) > 0


def test_probabilities_are_those_after_the_chain(llm: Pmpd) -> None:
    logits = evaluated(llm)
    found = Sampler(llm, GENERATE | {"temp": 2.0, "top_k": 3, "top_p": 1.0, "min_p": 0.0}).choose()
    best = np.argsort(-logits)[:3]
    expected = np.exp((logits[best] - logits.max()) / 2.0)
    assert found.ids.tolist() == best.tolist()
    np.testing.assert_allclose(found.probabilities, expected / expected.sum(), rtol=1e-4)


def test_a_fork_looks_ahead_and_leaves_the_chain_as_it_was(llm: Pmpd) -> None:
    evaluated(llm)
    sampler = Sampler(llm, GENERATE | {"temp": 0.0, "repeat_penalty": 5.0})
    first = sampler.choose().token
    fork = sampler.fork()
    fork.accept(first)
    assert fork.choose().token != first, "the penalty of what it has accepted"
    fork.close()
    assert sampler.choose().token == first


def test_processors_see_the_tokens_and_change_no_logits(llm: Pmpd) -> None:
    logits = evaluated(llm)
    before = logits.copy()
    seen = []

    def forbid(tokens: npt.NDArray[np.intc], scores: npt.NDArray[np.single]) -> npt.NDArray[np.single]:
        seen.append(tokens.tolist())
        scores[scores.argmax()] = -np.inf
        return scores

    sampler = Sampler(llm, GENERATE | {"temp": 0.0, "logits_processor": [forbid, forbid]})
    assert sampler.choose().token == int(np.argsort(-before)[2])
    assert seen == list(itertools.repeat(llm.tokens.tolist(), 2))
    np.testing.assert_array_equal(logits, before)


def test_mirostat_is_refused() -> None:
    with pytest.raises(PmpdError, match="mirostat and drafting do not go together"):
        check(GENERATE | {"mirostat_mode": 2})
    check(GENERATE | {"mirostat_mode": 2, "temp": 0.0})  # has no effect there


def test_probabilities_that_are_not_numbers_are_an_error() -> None:
    with pytest.raises(PmpdError, match="the logits are not finite"):
        Choice(0, np.array([0, 1], np.intc), np.array([np.nan, np.nan])).draw(random_numbers(1))
