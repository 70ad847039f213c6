"""The static search finds the smallest number that is enough, and tests few."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from pmpd_edge.calibrate.search import CONFIRM, smallest


@given(most=st.integers(0, 300), needed=st.integers(0, 300))
def test_finds_the_threshold_and_tests_few(most, needed):
    tested = set()

    def enough(number):
        tested.add(number)
        return number >= needed

    assert smallest(enough, most) == min(most, needed)
    assert len(tested) <= math.ceil(math.log2(most + 1)) + 1 + CONFIRM
    assert all(0 <= number < most for number in tested), "what most gives is known"


@given(most=st.integers(1, 60), data=st.data())
def test_noise_does_not_mislead_it(most, data):
    """Whatever the curve: what it finds is enough, so are the next ones, and the number below is not."""
    curve = [data.draw(st.booleans()) for _ in range(most)] + [True] * (CONFIRM + 1)
    found = smallest(lambda number: curve[number], most)
    assert all(curve[found : found + CONFIRM + 1])
    assert found == 0 or not curve[found - 1]


def test_a_lucky_small_number_is_not_taken():
    curve = [False] * 4 + [True] + [False] * 3 + [True] * 9
    assert smallest(lambda number: curve[number], 16) == 8
