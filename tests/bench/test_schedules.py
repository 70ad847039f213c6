"""Answers under a schedule and its parts (pmpd_edge/bench/schedules.py)."""

from __future__ import annotations

import pytest

from pmpd_edge import Pmpd
from pmpd_edge.bench import schedules
from pmpd_edge.bench.schedules import Answers, Comparison, Run


def test_the_schedule_is_held_against_fixed_levels(short_llm: Pmpd) -> None:
    found = schedules.measure(short_llm, "static", 5, 6, 2)
    assert found.prompt == 5
    assert (found.scheduled.prefill, found.scheduled.precisions) == (8, (8, 8, 4, 4, 4, 4))
    assert (found.high.scheduler, found.high.prefill, found.high.precisions) == ("fixed:8", 8, (8,) * 6)
    assert (found.low.scheduler, found.low.prefill, found.low.precisions) == ("fixed:4", 4, (4,) * 6)
    assert all(len(answers.runs) == 2 for answers in (found.scheduled, found.high, found.low))


def test_the_ideal_is_the_sum_of_the_parts_of_runs_that_do_not_switch(
    short_llm: Pmpd, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {"static": {8: 1.0, 4: 1.0}, "fixed:8": {8: 0.5}, "fixed:4": {4: 0.25}, "lossless": {8: 0.4}}
    prefill = {("static", 8): 3.0, ("fixed:8", 8): 2.0, ("fixed:4", 4): 9.0, ("lossless", None): 2.0}
    plans = {"static": (8, 8, 4, 4), "fixed:8": (8,) * 4, "fixed:4": (4,) * 4, "lossless": (8,) * 4}

    def answer(llm: Pmpd, tokens: list[int], steps: int) -> Run:
        way = llm._configuration["scheduler"] or llm.method
        assert len(tokens) == 7 and steps == 4
        times = tuple(seconds[way][p] * (1 + i) for i, p in enumerate(plans[way]))
        return Run(prefill[way, llm._configuration["prefill"]], times, plans[way])

    monkeypatch.setattr(schedules, "_answer", answer)
    found = schedules.measure(short_llm, "static", 7, 4, 3)
    # Steps 1 and 2 at 8 bits, 3 and 4 at 4, each at its position; prompts at 8 bits took 3 and 2 s.
    assert found.ideal_seconds == 2.5 + 0.5 * (1 + 2) + 0.25 * (3 + 4)
    assert found.over_ideal == (3 + 10) / found.ideal_seconds


def test_levels_between_are_parts_too(llm: Pmpd) -> None:
    found = schedules.measure(llm, "static:8@1,4@2,2@4", 4, 5, 1)
    assert found.scheduled.precisions == (8, 4, 4, 2, 2)
    assert found.low.precisions == (2,) * 5


def test_figures_of_answers() -> None:
    answers = Answers("static", 8, (Run(1.0, (0.5, 0.25), (8, 4)), Run(3.0, (0.5, 0.75), (8, 4))))
    assert answers.seconds.values == (1.75, 4.25)
    assert answers.decode_rate.values == (2 / 0.75, 2 / 1.25)
    assert answers.first_token.median == 2.0
    assert answers.steps() == [0.5, 0.5]
    slow = Answers(
        "fixed:8", 8, tuple(Run(2 * run.prefill, (2 * run.steps[0], 2 * run.steps[1]), (8, 8)) for run in answers.runs)
    )
    assert Comparison(1, answers, slow, answers, 3.0).speedup(slow) == 2
