"""Where no draft can pay on a device, `auto` is the highest level, or the schedule, alone."""

from __future__ import annotations

import itertools

import pytest
from talk import SENTENCES, answer, prompt

from pmpd_edge import Pmpd
from pmpd_edge.errors import PmpdError
from pmpd_edge.lossless import costs
from pmpd_edge.lossless.planner import MEASURED, Costs
from pmpd_edge.stream import Sampling, stream


@pytest.fixture
def hopeless(monkeypatch: pytest.MonkeyPatch, llm: Pmpd) -> Pmpd:
    """On a device where a draft takes as long as ten steps."""
    monkeypatch.setattr(costs, "measure", lambda *_: Costs.of(1e-9, 0.0, 1e-8, [1e-9] * len(MEASURED)))
    llm.configure(method="lossless")
    return llm


@pytest.mark.parametrize(
    "options",
    [{"temp": 0.0}, {"temp": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}, {"temp": 0.8, "repeat_penalty": 1.3}],
)
def test_tokens_are_those_of_the_highest_level(hopeless: Pmpd, options: dict[str, float]) -> None:
    tokens, found = prompt(hopeless, SENTENCES[1]), []
    for method in ("high", "lossless"):
        hopeless.reset()
        hopeless.set_seed(7)
        hopeless.configure(method=method)
        found.append(list(itertools.islice(hopeless.generate(tokens, **options), 20)))
    assert found[0] == found[1]


def test_nothing_is_drafted_and_the_figures_say_so(hopeless: Pmpd) -> None:
    assert "there will be no drafts" in hopeless.forecast()
    given = list(stream(hopeless, prompt(hopeless, SENTENCES[0]), Sampling(), 9))
    assert len(given) == 9 and not any(token.drafted for token in given)
    told = hopeless.stats.to_dict()["drafting"]
    assert (told["drafted"], told["verifications"], told["draft_tokens"]) == (0, 0, [])


def test_a_schedule_is_followed(hopeless: Pmpd) -> None:
    hopeless.configure(method="lossless", scheduler="static:8@1,4@3,2@5")
    answer(hopeless, prompt(hopeless, SENTENCES[0]), 7)
    assert hopeless.stats.precisions == [8, 8, 8, 4, 4, 2, 2]


def test_drafts_are_made_as_soon_as_steps_turn_out_slow(hopeless: Pmpd) -> None:
    """A step was measured at a nanosecond here."""
    tokens = prompt(hopeless, SENTENCES[0])
    for _ in range(40):
        answer(hopeless, tokens, 3)
        assert hopeless.stats.drafting
        if any(done.drafted for done in hopeless.stats.drafting.rounds):
            return
    pytest.fail("there are no drafts")


def test_what_cannot_be_drafted_with_is_refused_all_the_same(hopeless: Pmpd) -> None:
    with pytest.raises(PmpdError, match="mirostat and drafting do not go together"):
        next(hopeless.generate([1], mirostat_mode=2))
