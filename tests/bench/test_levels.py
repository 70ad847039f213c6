"""Workloads at each level (pmpd_edge/bench/levels.py): what is evaluated, how often and in which order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pmpd_edge import Pmpd
from pmpd_edge.bench import energy, levels
from pmpd_edge.bench.levels import Row, Sample, Workload
from pmpd_edge.bench.random_model import write_mamba
from pmpd_edge.bench.timing import random_tokens, timed


@pytest.mark.parametrize(
    ("workload", "name"),
    [
        (Workload(prompt=512), "pp512"),
        (Workload(steps=128), "tg128"),
        (Workload(steps=128, depth=1024), "tg128 @ d1024"),
        (Workload(prompt=4, depth=8), "pp4 @ d8"),
    ],
)
def test_workloads_are_named_as_llama_bench_names_them(workload: Workload, name: str) -> None:
    assert workload.name == name


class Watch:
    """Every evaluation of a Pmpd: precision, tokens that were there, tokens that came."""

    def __init__(self, llm: Pmpd, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[int, int, int]] = []
        evaluate = llm.eval

        def watched(tokens: Any) -> None:
            self.seen.append((llm.precision, llm.n_tokens, len(tokens)))
            evaluate(tokens)

        monkeypatch.setattr(llm, "eval", watched)


def test_levels_take_turns_in_every_repetition(short_llm: Pmpd, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(short_llm, monkeypatch)
    rows = levels.measure(short_llm, (8, 4), [Workload(prompt=5)], 2)
    assert watch.seen == [(8, 0, 5), (4, 0, 5)] * 3  # the first round warms up
    assert [(row.precision, len(row.samples)) for row in rows] == [(8, 2), (4, 2)]


def test_decoding_goes_one_by_one_on_top_of_what_is_there(short_llm: Pmpd, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(short_llm, monkeypatch)
    levels.measure(short_llm, (8, 4), [Workload(steps=2, depth=6)], 1)
    assert watch.seen[0] == (8, 0, 6)
    # What is there is evaluated once: each level and repetition goes back to it.
    assert watch.seen[1:] == [(8, 6, 1), (8, 7, 1), (4, 6, 1), (4, 7, 1)] * 2


def test_going_back_leaves_what_was_there_as_it_was(short_llm: Pmpd) -> None:
    tokens = random_tokens(short_llm, 12)
    timed(short_llm, tokens)
    levels.go_to(short_llm, tokens[:6])
    timed(short_llm, tokens[6:8])
    kept = short_llm.logits().copy()
    short_llm.reset()
    timed(short_llm, tokens[:6])
    timed(short_llm, tokens[6:8])
    assert abs(kept - short_llm.logits()).max() < 1e-3  # rows of another batch


def test_other_tokens_are_not_taken_for_those_that_are_wanted(short_llm: Pmpd) -> None:
    timed(short_llm, [7] * 12)
    levels.go_to(short_llm, [8] * 6)
    assert short_llm.tokens.tolist() == [8] * 6


def test_a_model_that_cannot_go_back_evaluates_again(tmp_path: Path) -> None:
    from pmpd_edge.runner import llama_cpp

    path = write_mamba(tmp_path / "mamba.gguf")
    llm = llama_cpp.Llama(str(path), n_ctx=64, n_threads=1, verbose=False)
    llm.tokens = llm.input_ids[:8]
    timed(llm, [7] * 8)
    evaluated: list[int] = []
    evaluate = llm.eval
    llm.eval = lambda tokens: (evaluated.append(len(tokens)), evaluate(tokens))
    levels.go_to(llm, [7] * 5)
    assert evaluated == [5] and llm.n_tokens == 5
    llm.close()


def test_only_prompts_have_a_first_token(short_llm: Pmpd) -> None:
    prompt, decode = levels.measure(short_llm, (8,), [Workload(prompt=5), Workload(steps=2)], 1)
    assert prompt.first_token.median > prompt.samples[0].seconds
    assert decode.first_token.median == 0


def test_the_cache_of_a_step_is_the_mean_of_before_and_after(short_llm: Pmpd) -> None:
    workloads = [Workload(steps=20, depth=4), Workload(steps=20, depth=14)]
    shallow, deep = levels.measure(short_llm, (8,), workloads, 1)
    assert deep.cache_bytes / shallow.cache_bytes == pytest.approx(24 / 14, rel=0.05)


def test_energy_is_told_for_each_token(short_llm: Pmpd, monkeypatch: pytest.MonkeyPatch) -> None:
    class Meter:
        name = "made up"
        count = 0.0

        def joules(self) -> float:
            self.count += 6.0
            return self.count

    monkeypatch.setattr(energy, "meters", lambda: [Meter()])
    (row,) = levels.measure(short_llm, (8,), [Workload(steps=3)], 2)
    assert row.joules == {"made up": 2.0}


def test_rates_are_of_the_tokens_that_are_timed() -> None:
    row = Row(8, Workload(steps=4, depth=100), (Sample(2.0, 0.0, 0.0, {}),))
    assert row.rate.values == (2.0,)
