"""What is decided before anything is written; needs neither the library nor torch."""

from __future__ import annotations

import pytest

from pmpd_edge.bundle import StaticSchedule, Switch
from pmpd_edge.convert import plan
from pmpd_edge.errors import ConvertError


def test_defaults() -> None:
    made = plan.make("m", (4, 8))
    assert [(level.precision, level.type, level.file) for level in made.levels] == [
        (8, "Q8_0", "m-q8.gguf"),
        (4, "Q4_K", "m-q4.gguf"),
    ]
    assert made.prefill == 8
    assert made.schedule == StaticSchedule((Switch(1, 8), Switch(86, 4)), 256)


@pytest.mark.parametrize(
    ("precisions", "n", "expected"),
    [
        ((8,), 256, [(1, 8)]),
        ((8, 4, 2), 64, [(1, 8), (22, 4), (43, 2)]),
        ((16, 8, 4, 2), 100, [(1, 16), (26, 8), (51, 4), (76, 2)]),
        ((8, 4, 3, 2), 2, [(1, 8), (2, 3)]),
        ((8, 4), 1, [(1, 8)]),
    ],
)
def test_default_schedule_steps_down_at_rising_steps(
    precisions: tuple[int, ...], n: int, expected: list[tuple[int, int]]
) -> None:
    schedule = plan.default_schedule(precisions, n)
    assert [(switch.step, switch.precision) for switch in schedule.switches] == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precisions": ()}, "none"),
        ({"precisions": (7,)}, "7"),
        ({"precisions": (8, 8)}, "each once"),
        ({"precisions": (8, 4), "types": {4: "IQ2_XS"}, "use_imatrix": False}, "importance matrix"),
        ({"precisions": (8, 4), "types": {4: "Q4_K_M"}}, "Q4_K_M"),
        ({"precisions": (8, 4), "types": {4: "Q8_0"}}, "no more bits"),
        ({"precisions": (16, 4), "types": {16: "Q8_0"}}, "BF16"),
        ({"precisions": (8, 4), "types": {3: "Q3_K"}}, "3 bits"),
        ({"precisions": (8, 4), "prefill": 16}, "prefill at 16"),
        ({"precisions": (8, 4), "max_new_tokens": 0}, "max_new_tokens 0"),
        ({"precisions": (8, 4), "schedule": StaticSchedule((Switch(1, 2),), 9)}, "schedule at 2"),
        ({"name": "a/b", "precisions": (8,)}, "a/b"),
        ({"name": "..", "precisions": (8,)}, "'..'"),
    ],
)
def test_what_is_impossible_is_refused_in_one_line(arguments: dict, message: str) -> None:
    with pytest.raises(ConvertError) as caught:
        plan.make(**{"name": "m", **arguments})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
