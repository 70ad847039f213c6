"""What switching costs (pmpd_edge/bench/switches.py)."""

from __future__ import annotations

import pytest

from pmpd_edge import Pmpd
from pmpd_edge.bench import switches
from pmpd_edge.bench.switches import FIRST, NORMAL, Alternating, Switching
from pmpd_edge.bench.timing import Series


def test_each_pair_is_switched_to_and_fro_and_at_every_token(short_llm: Pmpd, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    evaluate = short_llm.eval
    monkeypatch.setattr(short_llm, "eval", lambda tokens: (seen.append(short_llm.precision), evaluate(tokens)))
    switchings, (alternating,) = switches.measure(short_llm, (8, 4), 2)
    assert [(one.before, one.after) for one in switchings] == [(8, 4), (4, 8)]
    assert all(len(one.first) == FIRST and len(one.call.values) == 2 for one in switchings)
    assert (alternating.high, alternating.low) == (8, 4)
    steps = FIRST + NORMAL
    once = [8] * (1 + steps) + [4] * steps + [8] * steps + [4, 8] * (switches.ALTERNATING // 2)
    assert seen == once * 3


def test_each_direction_has_its_own_figures(short_llm: Pmpd, monkeypatch: pytest.MonkeyPatch) -> None:
    down, up = (switches._After(call, (call,) * FIRST, 10 * call) for call in (1.0, 3.0))
    monkeypatch.setattr(switches, "_measure", lambda *_: switches._Round(down, up, 40.0))
    switchings, (alternating,) = switches.measure(short_llm, (8, 4), 2)
    assert [(one.after, one.call.median, one.normal.median) for one in switchings] == [(4, 1, 10), (8, 3, 30)]
    assert alternating.mean.values == (20, 20) and alternating.over_mean == 2


def test_no_more_context_is_used_than_is_said(short_llm: Pmpd, monkeypatch: pytest.MonkeyPatch) -> None:
    most = 0
    evaluate = short_llm.eval

    def watched(tokens: list[int]) -> None:
        nonlocal most
        evaluate(tokens)
        most = max(most, short_llm.n_tokens)

    monkeypatch.setattr(short_llm, "eval", watched)
    switches.measure(short_llm, (8, 4), 1)
    assert most == switches.TOKENS


def test_one_level_has_nothing_to_switch_to(short_llm: Pmpd) -> None:
    assert switches.measure(short_llm, (8,), 1) == ([], [])


def test_ratios_are_of_the_same_repetition() -> None:
    normal = Series((1.0, 2.0, 4.0))
    one = Switching(8, 4, Series((0.1,) * 3), (Series((2.0, 4.0, 8.0)), normal), normal)
    assert one.first_over_normal == (2, 1)
    assert Alternating(8, 4, Series((1.5, 3.0, 6.0)), normal).over_mean == 1.5
