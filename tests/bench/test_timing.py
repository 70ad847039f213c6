"""Series of measurements (pmpd_edge/bench/timing.py)."""

from __future__ import annotations

import statistics

from hypothesis import given
from hypothesis import strategies as st

from pmpd_edge import Pmpd
from pmpd_edge.bench.timing import Series, random_tokens, timed

values = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=9)


@given(values)
def test_a_series_says_what_statistics_say(values: list[float]) -> None:
    found = Series(tuple(values)).to_dict()
    assert found["median"] == statistics.median(values)
    assert found["low"] == min(values) and found["high"] == max(values)
    assert found["mean"] == statistics.fmean(values)
    assert found["deviation"] == (statistics.stdev(values) if len(values) > 1 else 0)


def test_rates_are_of_each_value_as_in_llama_bench() -> None:
    # The mean of rates is not the rate of the mean.
    assert Series((1.0, 4.0)).rate(8).mean == (8 + 2) / 2


def test_evaluating_counts_its_tokens_and_random_ones_are_the_same_each_time(llm: Pmpd) -> None:
    tokens = random_tokens(llm, 6)
    assert tokens == random_tokens(llm, 6) and set(tokens) <= set(range(llm.n_vocab()))
    assert timed(llm, tokens) > 0
    assert llm.n_tokens == 6
