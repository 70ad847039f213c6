"""The queue between clients (pmpd_edge/serve/fair.py)."""

from __future__ import annotations

import pytest

from pmpd_edge.serve.fair import FairQueue


def order(queue: FairQueue[str]) -> str:
    return "".join(queue.get()[0] for _ in range(len(queue)))


def filled(items: str) -> FairQueue[str]:
    """A queue with items whose first letter is their client's."""
    queue: FairQueue[str] = FairQueue()
    for i, client in enumerate(items):
        queue.put(client, f"{client}{i}")
    return queue


@pytest.mark.parametrize(
    ("came", "turns"), [("aaa", "aaa"), ("aaab", "abaa"), ("aabbc", "abcab"), ("aaaabcb", "abcabaa"), ("", "")]
)
def test_each_client_has_one_item_done_before_any_has_another(came: str, turns: str) -> None:
    assert order(filled(came)) == turns


def test_a_clients_items_keep_their_order() -> None:
    queue = filled("abab")
    assert [queue.get() for _ in range(4)] == ["a0", "b1", "a2", "b3"]


def test_nobody_waits_for_ever_behind_clients_that_keep_coming() -> None:
    queue = filled("aabc")
    turns = ""
    for i in range(6):  # whoever had a turn comes again
        item = queue.get()
        turns += item[0]
        if item[0] != "a":
            queue.put(item[0], f"{item[0]} again {i}")
    assert turns[:4] == "abca"


def test_one_who_waited_owes_nothing_later() -> None:
    queue = filled("aaa")
    order(queue)
    queue.put("b", "b")
    queue.put("a", "a")
    queue.put("b", "b2")
    assert [queue.get() for _ in range(3)] == ["b", "a", "b2"]


def test_an_item_can_be_taken_out() -> None:
    queue = filled("abc")
    item = sorted(entry[3] for entry in queue._heap)[1]
    assert queue.remove(item) and not queue.remove(item)
    assert order(queue) == "ac"
    with pytest.raises(IndexError):
        queue.get()


def test_clear_takes_all_in_their_turns() -> None:
    queue = filled("aab")
    assert [item[0] for item in queue.clear()] == ["a", "b", "a"] and len(queue) == 0
