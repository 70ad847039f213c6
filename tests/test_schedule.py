"""Schedulers and statistics, without any model."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmpd_edge import bundle
from pmpd_edge.bundle import StaticSchedule, Switch
from pmpd_edge.errors import PmpdError
from pmpd_edge.schedule.confidence import ConfidenceScheduler, top_probability
from pmpd_edge.schedule.learned import LearnedScheduler, RandomScheduler
from pmpd_edge.schedule.patterns import PATTERNS, PatternScheduler
from pmpd_edge.schedule.spec import format_switches, ladder, make_scheduler, parse_switches
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
        ("confidence:high", None, "no scheduler"),
        ("confidence:0.9", None, "no scheduler"),
        ("confidence:0.5,0.9", None, "confidence thresholds 0.5 and 0.9"),
        ("confidence:nan,nan", None, "no scheduler"),
        ("first", None, "no scheduler"),
        ("middle:1.5", None, "no scheduler"),
        ("random:one", None, "no scheduler"),
        ("random", 3, "no meaning"),
        ("learned", None, "no predictor"),
        ("no_such_module:Calm", None, "no_such_module:Calm cannot be made"),
        ("json:Calm", None, "json:Calm cannot be made"),
        ("builtins:len", None, "builtins:len cannot be made"),
        ("builtins:str", None, "lacks 'precisions'"),
    ],
)
def test_wrong_specifications(default, spec, high_steps, message):
    with pytest.raises(PmpdError, match=message):
        make_scheduler(spec, default, high_steps)


class Prefilled:
    """What a scheduler may see: a prompt and logits."""

    n_tokens = 3

    def __init__(self, logits=(0.0, 0.0), tokens=(1, 2, 3)):
        self._logits = np.array(logits, dtype=np.float32)
        self.tokens = np.array(tokens, dtype=np.intc)

    def logits(self):
        return self._logits


def sure(probability):
    """Two logits of which the first has this probability."""
    return Prefilled((np.log(probability), np.log(1 - probability)))


def test_confidence_steps_down_when_calm_and_up_when_unsure():
    scheduler = ConfidenceScheduler((8, 4, 2), calm=0.9, unsure=0.6, memory=0.0)
    scheduler.start(sure(0.5))
    seen = [scheduler.next(step, sure(p)) for step, p in enumerate([0.7, 0.95, 0.7, 0.95, 0.95, 0.5, 0.7, 0.55], 1)]
    assert seen == [8, 4, 4, 2, 2, 4, 4, 8], "between the thresholds it stays where it is"


def test_confidence_looks_back_and_begins_anew():
    scheduler = ConfidenceScheduler((8, 4), calm=0.9, unsure=0.6, memory=0.75)
    for _ in range(2):
        scheduler.start(sure(0.5))
        assert [scheduler.next(step, sure(0.95)) for step in (1, 2)] == [4, 4], "the mean is of what there was"
        assert scheduler.next(3, sure(0.51)) == 4, "one unsure token is not enough"
        assert [scheduler.next(step, sure(0.51)) for step in range(4, 12)][-1] == 8


@pytest.mark.parametrize("probability", [0.5001, 0.75, 0.999])
def test_top_probability_is_softmax(probability):
    assert top_probability(sure(probability).logits()) == pytest.approx(probability, rel=1e-5)
    assert top_probability(np.array([1e4, -1e4, 0], dtype=np.float32)) == 1.0


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("first", "HHHHLLLLLLLL"),
        ("middle", "LLLHHHHLLLLL"),
        ("last", "LLLLLLHHHHLL"),
        ("alternate", "LLHLHLLHLHLL"),
    ],
)
def test_patterns_spend_the_same_steps_elsewhere(pattern, expected):
    scheduler = PatternScheduler(pattern, 8, 2, high_steps=4, length=10)
    assert "".join("H" if p == 8 else "L" for p in precisions(scheduler, 12)) == expected


@given(length=st.integers(1, 200), data=st.data())
def test_every_pattern_has_its_number_of_high_steps(length, data):
    high_steps = data.draw(st.integers(0, length))
    for pattern in PATTERNS:
        scheduler = PatternScheduler(pattern, 8, 2, high_steps, length)
        assert [scheduler.next(step, Nothing()) for step in range(1, length + 50)].count(8) == high_steps


def test_wrong_patterns():
    for pattern, high_steps in (("zigzag", 1), ("first", 11), ("first", -1)):
        with pytest.raises(PmpdError):
            PatternScheduler(pattern, 8, 2, high_steps, 10)


class Prophet:
    """A predictor that says what it is told."""

    layer, steps, pairs = -1, (0, 10, 20, math.inf), ((8, 2),)

    def __init__(self, *probabilities):
        self._probabilities = probabilities

    def probabilities(self, pair, keys, values):
        return np.array(self._probabilities)


class WithCache(Prefilled):
    def keys_values(self, layer):
        assert layer == -1
        return None, None


@pytest.mark.parametrize(
    ("probabilities", "confidence", "high_steps"),
    [
        ((0.9, 0.1, 0.0, 0.0), 0.8, 0),
        ((0.6, 0.1, 0.2, 0.1), 0.8, 20),
        ((0.6, 0.1, 0.2, 0.1), 0.5, 0),
        ((0.6, 0.1, 0.2, 0.1), 0.95, 42),
        ((0.0, 0.0, 0.0, 1.0), 1.0, 42),
        ((0.1, 0.1, 0.1, 0.69), 1.0, 42),
    ],
)
def test_learned_takes_the_smallest_class_that_is_enough_with_confidence(probabilities, confidence, high_steps):
    scheduler = LearnedScheduler(Prophet(*probabilities), (8, 2), confidence)
    scheduler.start(WithCache())
    assert [scheduler.next(step, Nothing()) for step in range(1, 43)] == [8] * high_steps + [2] * (42 - high_steps)


def test_learned_refuses_a_pair_that_it_was_not_trained_for():
    with pytest.raises(PmpdError, match="nothing of 8-4: choose one of 8-2"):
        LearnedScheduler(Prophet(1.0), (8, 4))


def test_random_depends_on_seed_and_prompt_alone_and_has_the_prior():
    steps, prior = [0, 10, 20], [0.5, 0.3, 0.2]

    def draw(prompt, seed=0):
        scheduler = RandomScheduler((8, 2), steps, prior, seed)
        scheduler.start(Prefilled(tokens=prompt))
        return scheduler.high_steps

    prompts = [(1, i, i * i % 97) for i in range(1000)]
    drawn = [draw(prompt) for prompt in prompts]
    assert drawn == [draw(prompt) for prompt in reversed(prompts)][::-1]
    assert drawn != [draw(prompt, seed=1) for prompt in prompts]
    shares = [drawn.count(step) / len(drawn) for step in steps]
    assert shares == pytest.approx(prior, abs=0.05)


def test_a_scheduler_of_ones_own_is_found_beside_the_user(default, tmp_path, monkeypatch):
    (tmp_path / "my_schedulers.py").write_text(
        "class Calm:\n"
        "    def __init__(self, bundle):\n"
        "        self.precisions = bundle.precisions[:2]\n"
        "    def start(self, prefill):\n"
        "        pass\n"
        "    def next(self, step, last):\n"
        "        return self.precisions[step > 2]\n"
        "class Wrong(Calm):\n"
        "    def __init__(self, bundle):\n"
        "        self.precisions = (7,)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert precisions(make_scheduler("my_schedulers:Calm", default), 4) == [8, 8, 4, 4]
    with pytest.raises(PmpdError, match="no level of precision 7"):
        make_scheduler("my_schedulers:Wrong", default)


def test_the_scheduler_in_the_documentation(default, tmp_path, monkeypatch):
    page = (Path(__file__).parent.parent / "docs" / "schedules.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n# margins.py\n(.*?)```", page, re.DOTALL)
    (tmp_path / "margins.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    scheduler = make_scheduler("margins:Margin", default)
    scheduler.start(Prefilled())
    assert [scheduler.next(1, Prefilled(logits)) for logits in ((0, 1, 2), (9, 1, 2))] == [8, 2]


def test_two_levels_are_the_ends_of_the_bundles_schedule(default):
    assert ladder(default) == (8, 4, 2)
    assert make_scheduler("first:0.5", default).precisions == (8, 2)
    assert make_scheduler("confidence:0.9,0.5", default).precisions == (8, 4, 2)
    fixed = dataclasses.replace(default, schedule=StaticSchedule((Switch(1, 4),), 10))
    assert ladder(fixed) == (8, 4, 2), "one level is nothing to choose from"
    two = dataclasses.replace(default, schedule=StaticSchedule((Switch(1, 8), Switch(9, 4)), 10))
    assert make_scheduler("random", two).precisions == (8, 4)
    assert precisions(make_scheduler("first:0.3", two), 5) == [8, 8, 8, 4, 4]


def test_switches_are_written_as_they_are_read():
    assert format_switches(parse_switches("8@1,4@86,2@90", 256)) == "8@1,4@86,2@90"


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
