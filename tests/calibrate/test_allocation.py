"""Allocation and the search on a made-up model, whose answers and costs are known: the choice is the right one."""

from __future__ import annotations

import numpy as np
import pytest

from pmpd_edge.bench.speed import Speed
from pmpd_edge.calibrate.allocation import Allocation, costs
from pmpd_edge.errors import PmpdError
from pmpd_edge.evaluate.answers import Kept
from pmpd_edge.evaluate.metrics import make

N, LENGTH = 400, 20
BPW = {8: 8.5, 4: 4.5, 2: 2.6}


class MadeUp:
    """Each example survives a number of steps at each lower precision; where a schedule has more, its answer is wrong.

    Low steps count the more the earlier they are, as errors go on.
    """

    def __init__(self, seed: int = 0) -> None:
        self._budget = np.random.default_rng(seed).uniform(0, 60, N)
        self.asked: list[tuple[str, int]] = []

    def make(self, name, prefill, scheduler, progress=lambda fraction: None):
        self.asked.append((name, prefill))
        kept = []
        for i in range(N):
            made = scheduler(i)
            precisions = [made.next(step, None) for step in range(1, LENGTH + 1)]
            harm = {8: 0.0, 4: 0.02, 2: 0.6}
            spent = sum(harm[p] * (LENGTH - step) / 10 for step, p in enumerate(precisions)) + 5 * harm[prefill]
            right = spent <= self._budget[i]
            kept.append(Kept("right" if right else "wrong", (), (prefill, *precisions), "stop"))
        return kept


def speeds(seconds):
    """Speeds of levels, in three rounds of which one was disturbed."""
    return {precision: Speed((s,) * 3, (s, 7 * s, s)) for precision, s in seconds.items()}


def allocation(answers, *, tolerance=2.0, objective="time", seconds=None, sure=0.5):
    levels = costs(speeds(seconds or {8: 4.0, 4: 2.0, 2: 1.0}), BPW, objective)
    return Allocation(
        answers, ["right"] * N, make("exact"), levels, tolerance=tolerance, sure=sure, objective=objective,
        max_new_tokens=64, progress=lambda label, fraction: None,
    )  # fmt: skip


def brute_force(answers, start, low, tolerance):
    """The smallest number of steps, by trying every one of them."""
    for steps in range(LENGTH + 1):
        switches = [(1, start), (1 + steps, low)] if steps else [(1, low)]
        one = allocation(answers, tolerance=tolerance)
        one.measure(8, one._schedule((1, 8)))
        if one.measure(8, one._schedule(*switches)).loss.value <= tolerance:
            return steps
    raise AssertionError


def test_pairs_then_the_earliest_switch_within_the_tolerance():
    answers = MadeUp()
    found = allocation(answers).find()
    assert len(found.pairs) == 9
    start = found.curves[0].high
    assert start == 4, "4 bits throughout lose less than the tolerance"
    (curve,) = found.curves
    assert (curve.high, curve.low, curve.begins) == (4, 2, 1)
    assert curve.steps == brute_force(answers, 4, 2, 2.0)
    assert found.chosen == curve.points[curve.steps]
    assert [(s.step, s.precision) for s in found.chosen.schedule.switches] == [(1, 4), (1 + curve.steps, 2)]
    assert found.chosen.loss.value <= 2.0 < curve.points[curve.steps - 1].loss.value
    assert found.chosen.seconds < min(pair.seconds for pair in found.pairs if pair.loss.value <= 2.0)


def test_a_strict_tolerance_begins_at_the_top_and_steps_down_twice():
    found = allocation(MadeUp(), tolerance=0.3).find()
    assert [(curve.high, curve.low) for curve in found.curves] == [(8, 4), (4, 2), (8, 2)]
    first, second, straight = found.curves
    assert second.begins == 1 + first.steps
    assert straight.begins == 1
    ends = [curve.points[curve.steps].seconds for curve in found.curves if curve.steps in curve.points]
    assert found.chosen.seconds == min(ends)
    assert found.chosen.prefill == 8
    assert found.chosen.loss.value <= 0.3


def test_no_tolerance_keeps_the_reference_or_what_equals_it():
    found = allocation(MadeUp(), tolerance=0.0).find()
    assert found.chosen.loss.value <= 0
    assert found.reference.loss.value == 0


def test_a_low_level_that_is_no_faster_is_not_picked():
    slow = {8: 4.0, 4: 2.0, 2: 2.05}
    found = allocation(MadeUp(), tolerance=90.0, seconds=slow).find()
    used = {switch.precision for pair in found.pairs for switch in pair.schedule.switches}
    assert used == {8, 4}
    assert [switch.precision for switch in found.chosen.schedule.switches] == [4]
    assert [level.useful for level in costs(speeds(slow), BPW, "time")] == [True, True, False]
    assert [level.useful for level in costs(speeds(slow), BPW, "bpw")] == [True, True, True]


def test_a_level_is_compared_with_the_next_useful_one():
    levels = costs(speeds({8: 2.0, 4: 3.0, 2: 1.9}), BPW, "time")
    assert [level.useful for level in levels] == [True, False, True]
    assert levels[2].gain == pytest.approx(2.0 / 1.9)


def test_any_tolerance_is_enough_for_the_lowest():
    found = allocation(MadeUp(), tolerance=100.0).find()
    assert [switch.precision for switch in found.chosen.schedule.switches] == [2]
    assert found.curves == ()
    assert found.chosen.prefill == 8, "prefill's cost is paid once"


def test_prefill_can_be_given():
    found = allocation(MadeUp(), tolerance=3.0).find(prefill=4)
    assert found.chosen.prefill == 4
    assert {point.prefill for curve in found.curves for point in curve.points.values()} <= {4}


def test_a_prefill_of_which_nothing_is_within_the_tolerance_is_told():
    found = allocation(MadeUp(), tolerance=0.5).find(prefill=2)
    assert (found.chosen.prefill, found.within) == (2, False)
    assert [switch.precision for switch in found.chosen.schedule.switches] == [8], "the best that there is"
    assert allocation(MadeUp(), tolerance=0.5).find().within


def test_rounds_are_compared_not_medians():
    rounds = {8: Speed((1.0,) * 3, (1.0, 2.0, 3.0)), 4: Speed((1.0,) * 3, (0.9, 1.8, 2.7))}
    assert costs(rounds, BPW, "time")[1].gain == pytest.approx(1 / 0.9)


class Rambling(MadeUp):
    """Answers that end at 2 bits go on for twice as long."""

    def make(self, name, prefill, scheduler, progress=lambda fraction: None):
        kept = super().make(name, prefill, scheduler, progress)
        return [
            Kept(k.text, (), k.precisions + (2,) * 2 * LENGTH if k.precisions[-1] == 2 else k.precisions, "length")
            for k in kept
        ]


def test_cheap_steps_do_not_make_longer_answers_cheap():
    found = allocation(Rambling(), tolerance=100.0).find()
    assert [switch.precision for switch in found.chosen.schedule.switches] == [4]


def test_a_reference_that_scores_nothing_is_refused():
    class Wrong(MadeUp):
        def make(self, *arguments, **options):
            return [Kept("wrong", (), k.precisions, "stop") for k in super().make(*arguments, **options)]

    with pytest.raises(PmpdError, match="score 0, so that nothing can be lost"):
        allocation(Wrong()).find()


def test_being_surer_takes_more_steps():
    steps = [allocation(MadeUp(), tolerance=2.0, sure=sure).find().curves[-1].steps for sure in (0.0, 0.5, 0.95)]
    assert steps[0] <= steps[1] < steps[2]


def test_figures_are_means_over_all_steps():
    answers = MadeUp()
    one = allocation(answers)
    one.measure(8, one._schedule((1, 8)))
    result = one.measure(8, one._schedule((1, 8), (6, 2)))
    assert result.average_bitwidth == pytest.approx((5 * 8 + 15 * 2) / 20)
    assert result.average_bpw == pytest.approx((5 * 8.5 + 15 * 2.6) / 20)
    assert result.seconds == pytest.approx((5 * 4.0 + 15 * 1.0) / 20)
