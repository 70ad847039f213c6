"""`lossless` on the command line and in evaluations."""

from __future__ import annotations

import json

import pytest
from agreement import agreed
from command import run
from talk import SENTENCES, prompt

from pmpd_edge import Pmpd, bundle, cli_ui
from pmpd_edge.batch import Batch, Job
from pmpd_edge.chat_template import render
from pmpd_edge.evaluate.drafted import OneByOne
from pmpd_edge.evaluate.methods import Method, make, split
from pmpd_edge.schedule.fixed import FixedScheduler
from pmpd_edge.schedule.spec import make_scheduler
from pmpd_edge.stats import DraftingStats, GenerationStats, Round
from pmpd_edge.stream import Token

CHAT = ("chat", "--threads", "1", "--prompt", SENTENCES[0])


def chat(*options: str) -> dict:
    done = run(*CHAT, "--json", *options)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def same(llm: Pmpd, found: dict, expected: dict) -> int:
    """The number of tokens that two answers share."""
    ids = [[token["id"] for token in said["tokens"]] for said in (found, expected)]
    tokens = render(llm, [{"role": "user", "content": SENTENCES[0]}]).tokens
    return agreed(llm, tokens, *ids, [token["precision"] for token in expected["tokens"]])


def test_the_chat_says_what_high_says_and_which_tokens_were_drafted(llm: Pmpd) -> None:
    high = chat("--method", "high")
    found = chat("--method", "lossless", "--draft-tokens", "4")
    drafted = [token.pop("drafted") for token in found["tokens"]]
    n = same(llm, found, high)
    assert n and found["tokens"][:n] == high["tokens"][:n] and "drafting" not in high["stats"]
    told = found["stats"]["drafting"]
    assert sum(drafted) == told["kept"] > 0
    assert max(told["draft_tokens"]) == 4 and told["precision"] == 2


def test_a_scheduler_is_followed_losslessly(llm: Pmpd) -> None:
    pmpd = chat("--scheduler", "static:8@1,4@5")
    found = chat("--method", "lossless", "--scheduler", "static:8@1,4@5", "--draft-tokens", "2")
    assert same(llm, found, pmpd)
    pairs = zip(found["tokens"], pmpd["tokens"], strict=False)
    assert all(ours["precision"] == theirs["precision"] for ours, theirs in pairs)


@pytest.mark.parametrize("value", ["0", "many", "65", "-1"])
def test_numbers_of_drafts_that_there_are_not(value: str) -> None:
    done = run(*CHAT, "--draft-tokens", value)
    assert done.exit_code == 2 and "--draft-tokens" in done.output


def test_the_summary_and_the_figures_tell_of_the_drafts() -> None:
    drafting = DraftingStats(2, [Round(3, 2, True, 3, 0.2, 0.1), Round(3, 3, False, 4, 0.2, 0.1), Round(0, tokens=1)])
    stats = GenerationStats("lossless", {8: 8.5}, 5, precisions=[8] * 9, decode_seconds=1.0, drafting=drafting)
    assert cli_ui.summary(stats).endswith("all at 8 · 83% of the drafts kept")
    told = cli_ui.details(stats)
    assert "6 at precision 2, 5 of them kept (83%)" in told
    assert "2, 3.50 tokens each" in told
    assert "3 x2, 0" in told
    assert "0.400 s, then verifying 0.200 s" in told
    drafting.rounds = [Round(0, tokens=1)]
    assert "none at precision 2" in cli_ui.details(stats)


def test_drafts_that_were_kept_are_underlined(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with cli_ui.answer_view(4) as view:
        for token in (Token(0, "a", 8), Token(1, "b", 8, drafted=True), Token(2, "c", 4, drafted=True)):
            view.add(token)
    underline, orange, reset = cli_ui.UNDERLINE, cli_ui.ORANGE, cli_ui.RESET
    assert capsys.readouterr().out == f"a{underline}b{reset}{orange}{underline}c{reset}\n"


def test_evaluations_know_it_by_name() -> None:
    assert split("high,lossless,lossless:static:8@1,4@9,low") == ["high", "lossless", "lossless:static:8@1,4@9", "low"]
    default = bundle.load(bundle.default_bundle())
    made = make(["high", "lossless", "pmpd", "lossless:static"], default)
    assert [method.drafts for method in made if isinstance(method, Method)] == [False, True, False, True]
    assert len({method.key for method in made if isinstance(method, Method)}) == 4, "each has answers of its own"
    assert made[1].scheduler() == FixedScheduler(8)


def test_evaluations_answer_with_drafts_what_they_answer_without() -> None:
    default = bundle.load(bundle.default_bundle())
    with Batch(default, n_ctx=256, parallel=1, n_threads=1) as batch:
        llm = Pmpd(n_threads=1, n_ctx=256)
        prompts = [prompt(llm, text) for text in SENTENCES]
        jobs = [
            Job(tokens, make_scheduler(spec, default), 8, length, stop)
            for tokens in prompts
            for spec, length, stop in (("fixed:8", 40, ()), ("static:8@1,4@4", 12, ()), ("fixed:8", 40, ("the",)))
        ]
        jobs.append(Job([300] * 300, FixedScheduler(8), 8, 5))  # does not fit
        done: list[int] = []
        answers = OneByOne(llm, batch.numerics).run(jobs, done.append)
        assert done == list(range(1, len(jobs) + 1))
        for job, found, expected in zip(jobs, answers, batch.run(jobs), strict=True):
            n = agreed(llm, job.prompt, found.tokens, expected.tokens, expected.precisions)
            assert n < len(expected.tokens) or found == expected
        assert llm.stats.method == "lossless"
        llm.close()
