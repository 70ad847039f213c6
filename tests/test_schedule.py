"""Schedulers and statistics, without any model."""

from __future__ import annotations

import itertools

import pytest

from pmpd_edge import bundle
from pmpd_edge.bundle import StaticSchedule, Switch
from pmpd_edge.errors import PmpdError
from pmpd_edge.schedule import make_scheduler
from pmpd_edge.schedule.static import StaticScheduler, with_high_steps
from pmpd_edge.stats import GenerationStats


class Nothing:
    """A scheduler that looks at the context here is wrong."""

    n_tokens = property()
    logits = None


@pytest.fixture
def default() -> bundle.Bundle:
    return bundle.load(bundle.default_bundle())


def precisions(scheduler, n):
    scheduler.start(Nothing())
    return [scheduler.next(step, Nothing()) for step in range(1, n + 1)]


def test_static_switches_at_its_steps():
    schedule = StaticSchedule((Switch(1, 8), Switch(4, 4), Switch(6, 2)), 10)
    assert precisions(StaticScheduler(schedule), 8) == [8, 8, 8, 4, 4, 2, 2, 2]
    assert StaticScheduler(schedule).precisions == (8, 4, 2)


@pytest.mark.parametrize("high_steps", range(7))
def test_high_steps_counts_steps_at_the_starting_precision(high_steps):
    schedule = StaticSchedule((Switch(1, 8), Switch(4, 4), Switch(6, 2)), 10)
    moved = StaticScheduler(with_high_steps(schedule, high_steps))
    assert precisions(moved, high_steps + 4) == [8] * high_steps + [4, 4, 2, 2]


def test_high_steps_of_a_schedule_without_switches():
    schedule = StaticSchedule((Switch(1, 4),), 10)
    assert with_high_steps(schedule, 3) == schedule


@pytest.mark.parametrize("steps", [[], [2], [1, 1], [1, 5, 3], [0, 2]])
def test_steps_begin_at_one_and_rise(steps):
    with pytest.raises(PmpdError, match="steps"):
        StaticSchedule(tuple(Switch(step, 8) for step in steps), 10)


def test_specifications(default):
    assert precisions(make_scheduler("static", default), 11) == [8] * 5 + [4] * 5 + [2]
    assert precisions(make_scheduler("static", default, 1), 7) == [8] + [4] * 5 + [2]
    assert precisions(make_scheduler("static:4@1,8@3,2@4", default), 4) == [4, 4, 8, 2]
    assert precisions(make_scheduler("fixed:2", default), 3) == [2, 2, 2]


@pytest.mark.parametrize(
    ("spec", "high_steps", "message"),
    [
        ("fixed", None, "no scheduler"),
        ("fixed:two", None, "'two' in a schedule"),
        ("fixed:4", 3, "no meaning"),
        ("fixed:6", None, "no level of precision 6"),
        ("static:8@1,5@4", None, "no level of precision 5"),
        ("static:8", None, "'' in a schedule"),
        ("static", -1, "-1 high steps"),
        ("", None, "no scheduler"),
        ("static:", None, "no scheduler"),
    ],
)
def test_wrong_specifications(default, spec, high_steps, message):
    with pytest.raises(PmpdError, match=message):
        make_scheduler(spec, default, high_steps)


def test_statistics_are_over_decode_steps():
    stats = GenerationStats("pmpd", bpw={8: 8.5, 4: 4.5}, prompt_tokens=30, reused_tokens=10)
    assert (stats.average_bitwidth, stats.average_bpw, stats.decode_tokens_per_second) == (None, None, 0.0)
    stats.precisions = [8, 8, 4, 4, 8]  # the first is prefill's
    stats.prefill_seconds, stats.decode_seconds = 2.0, 0.5
    assert stats.average_bitwidth == 6.0
    assert stats.average_bpw == 6.5
    assert stats.switches == [Switch(2, 4), Switch(4, 8)]
    assert stats.prefill_tokens_per_second == 10.0
    assert stats.decode_tokens_per_second == 8.0
    assert stats.to_dict()["decode_steps"] == 4


def test_a_switch_at_the_first_step_is_one():
    stats = GenerationStats("pmpd", precisions=[8, 4, 4])
    assert stats.switches == [Switch(1, 4)]
    assert list(itertools.chain(stats.decode_precisions)) == [4, 4]
