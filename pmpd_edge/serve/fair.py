"""A queue in which nobody waits behind somebody else's pile.

Every client's jobs come in their order. Between clients it is fair: each has one job done before any has a second one,
counted from when it came (start-time fair queueing with jobs of equal weight).
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from itertools import count
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)


class FairQueue(Generic[Item]):
    """Items by client; not thread-safe."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Hashable, Item]] = []  # round, order of coming, client, item
        self._order = count()
        self._round = 0
        self._last: dict[Hashable, int] = {}  # of clients: the round of the latest item

    def __len__(self) -> int:
        return len(self._heap)

    def put(self, client: Hashable, item: Item) -> None:
        """Add a client's item behind its others."""
        at = max(self._round, self._last.get(client, self._round - 1) + 1)
        self._last[client] = at
        heapq.heappush(self._heap, (at, next(self._order), client, item))

    def get(self) -> Item:
        """Take the item whose turn it is; raises IndexError where there is none."""
        self._round, _, _, item = heapq.heappop(self._heap)
        self._last = {client: at for client, at in self._last.items() if at >= self._round}
        return item

    def remove(self, item: Item) -> bool:
        """Take an item out before its turn; False where it is not there."""
        kept = [entry for entry in self._heap if entry[3] is not item]
        if len(kept) == len(self._heap):
            return False
        heapq.heapify(kept)
        self._heap = kept
        return True

    def clear(self) -> list[Item]:
        """Take everything, in the order of its turns."""
        return [self.get() for _ in range(len(self._heap))]
