"""The static search: the smallest number of steps that is enough, where each test costs a run and is noisy."""

from __future__ import annotations

from collections.abc import Callable

CONFIRM = 2


def smallest(enough: Callable[[int], bool], most: int, confirm: int = CONFIRM) -> int:
    """The smallest number in `[0, most]` that is enough, as the next larger ones are too.

    It bisects, as if every number above one that is enough were enough; then it tests the next `confirm` larger ones,
    and where one of them is not enough, goes on above it. The number below the result is never enough.

    Args:
        enough: tests a number; the same number gives the same result.
        most: enough without a test.
    """
    too_few, found = -1, most
    while True:
        while found - too_few > 1:
            middle = (too_few + found) // 2
            if enough(middle):
                found = middle
            else:
                too_few = middle
        larger = range(found + 1, min(found + confirm + 1, most))
        failing = [number for number in larger if not enough(number)]
        if not failing:
            return found
        too_few, found = failing[-1], most
