"""The number of drafts follows costs and acceptance, and drafting never loses much (pmpd_edge/lossless/planner.py)."""

from __future__ import annotations

import random

import pytest

from pmpd_edge.lossless.planner import MEASURED, Costs, Planner, expected_tokens
from pmpd_edge.stats import Round


def costs(draft: float = 0.5, row: float = 0.1, begin: float = 0.05) -> Costs:
    """A step takes a second; every row more that is verified takes `row`."""
    return Costs.of(1.0, begin, draft, [1.0 + row * drafts for drafts in MEASURED])


def generate(planner: Planner, acceptance: float, n_tokens: int, true: Costs, noise: float = 0.0) -> tuple[float, int]:
    """Play an answer: seconds that it took, and tokens that it has."""
    rng = random.Random(0)
    seconds, tokens = 0.0, 0
    while tokens < n_tokens:
        drafts = planner.next()
        kept = next((i for i in range(drafts) if rng.random() >= acceptance), drafts)
        done = Round(drafts, kept, rejected=kept < drafts, tokens=kept + 1)
        jitter = 1 + noise * rng.random()
        done.drafting_seconds = jitter * (true.begin + drafts * true.draft) if drafts else 0.0
        done.verifying_seconds = jitter * true.verify[drafts]
        planner.record(done)
        seconds, tokens = seconds + done.seconds, tokens + done.tokens
    return seconds, tokens


def test_expected_tokens_are_a_geometric_sum() -> None:
    for acceptance in (0.0, 0.3, 0.9, 1.0):
        assert expected_tokens(3, acceptance) == pytest.approx(sum(acceptance**n for n in range(4)))


def test_costs_between_those_that_were_measured_are_interpolated() -> None:
    found = Costs.of(1.0, 0.0, 0.5, [1.2, 1.4, 2.0])  # as where there is no room for more
    assert found.verify == [1.0, 1.2, 1.4, 1.7, 2.0] and found.most == 4


@pytest.mark.parametrize("draft", [0.2, 0.5, 0.8, 1.2])
@pytest.mark.parametrize("acceptance", [0.0, 0.5, 0.7, 0.9, 0.99])
def test_the_best_number_is_that_of_the_quickest_rounds(draft: float, acceptance: float) -> None:
    given = costs(draft)
    speeds = [1.0] + [
        expected_tokens(drafts, acceptance) / (given.begin + drafts * draft + given.verify[drafts])
        for drafts in range(1, given.most + 1)
    ]
    best = given.best(acceptance)
    assert speeds[best] >= max(speeds) / 1.02
    assert best == 0 or speeds[best] > 1.0


def test_the_break_even_lies_between_what_pays_and_what_does_not() -> None:
    given = costs()
    share = given.break_even()
    assert share is not None and 0.3 < share < 0.9
    assert given.best(share) > 0 and given.best(share - 0.02) == 0
    assert costs(draft=1.1).break_even() is None


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("draft", [0.1, 0.5, 0.9, 1.5])
@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.6, 0.8, 0.95])
def test_it_never_ends_up_much_slower_than_without_drafts(draft: float, acceptance: float, noise: float) -> None:
    true = costs(draft)
    planner = Planner(costs(draft))
    seconds, tokens = generate(planner, acceptance, 1000, true, noise)
    assert seconds < 1.03 * tokens * true.step * (1 + noise / 2)


@pytest.mark.parametrize("wrong", [0.5, 0.8])
def test_costs_that_were_measured_too_low_are_found_out(wrong: float) -> None:
    true = costs(1.3)
    planner = Planner(costs(1.3 * wrong))
    seconds, tokens = generate(planner, 0.7, 1000, true)
    assert seconds < 1.03 * tokens * true.step


@pytest.mark.parametrize("acceptance", [0.8, 0.95])
def test_it_gets_nearly_all_that_the_best_number_gives(acceptance: float) -> None:
    true = costs(0.3)
    planner = Planner(costs(0.3))
    seconds, tokens = generate(planner, acceptance, 2000, true)
    assert tokens / seconds > 0.95 * true.gain(true.best(acceptance), acceptance)


def test_it_drafts_again_when_drafts_stand_again() -> None:
    planner = Planner(costs())
    generate(planner, 0.1, 500, costs())
    assert planner.next() <= 1
    generate(planner, 0.95, 3000, costs())
    assert planner.next() > 1 and planner.acceptance > 0.85


def test_it_never_drafts_where_that_cannot_pay() -> None:
    planner = Planner(costs(draft=1.1))
    for _ in range(300):
        assert planner.next() == 0
        planner.record(Round(0, tokens=1, verifying_seconds=1.0))


def test_it_drafts_where_steps_turn_out_slower_than_measured() -> None:
    """As where the first measurement was at a time when the machine was busy with something else."""
    planner = Planner(costs(draft=1.1))
    for _ in range(300):
        planner.record(Round(0, tokens=1, verifying_seconds=3.0))
    assert planner.next() > 0


def test_a_stall_is_not_taken_for_the_devices_speed() -> None:
    planner = Planner(costs())
    planner.record(Round(0, tokens=1, verifying_seconds=100.0))
    assert planner.costs.step < 1.2


def test_the_forecast_says_beforehand_whether_drafting_pays() -> None:
    assert Planner(costs(draft=1.1)).forecast(2, 8).startswith("drafting cannot pay, so there will be no drafts: ")
    told = Planner(costs()).forecast(4, 8)
    assert told.startswith("drafting pays where ")
    assert told.endswith(": a draft at 4 bits takes 0.50 of a step at 8 bits here")


def test_what_was_lost_is_made_good_before_more_is_risked() -> None:
    """Though drafting pays by all that is known of costs and acceptance: somebody else may be slowing it down."""
    planner = Planner(costs(draft=0.1))
    assert planner.next() > 0
    planner.record(Round(4, 4, False, 5, drafting_seconds=20.0, verifying_seconds=1.4))
    waited = 0
    while planner.next() == 0:
        planner.record(Round(0, tokens=1, verifying_seconds=1.0))
        waited += 1
    assert 100 < waited < 1000
