"""When a group looks at an ownership next, although nothing happens to it."""

from __future__ import annotations

import heapq
import itertools

from karafka_lite.core.ownership import Ownership, State

NEVER = float("inf")
MOST_STALE = 100


class Timers:
    """One moment for each ownership, its ``timer``. Changed under the group's lock only."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Ownership]] = []  # an entry counts while it is ``timer``
        self._numbers = itertools.count()  # ownerships have no order
        self._most = MOST_STALE

    def __len__(self) -> int:
        return len(self._heap)

    def set(self, ownership: Ownership, moment: float) -> bool:
        """Look at ``ownership`` at ``moment``. An earlier timer stays: who looks finds out that it was too early.

        Returns whether it is earlier than all others.
        """
        if moment >= ownership.timer:
            return False
        first = not self._heap or moment < self._heap[0][0]
        ownership.timer = moment
        heapq.heappush(self._heap, (moment, next(self._numbers), ownership))
        if len(self._heap) > self._most:  # most of them do not count any more
            counting = {one: moment for moment, _, one in self._heap if one.timer == moment and _lives(one)}
            self._heap = [(moment, next(self._numbers), one) for one, moment in counting.items()]
            heapq.heapify(self._heap)
            self._most = MOST_STALE + 4 * len(self._heap)
        return first

    def due(self, now: float) -> Ownership | None:
        """The next one whose moment has come, which has none any more; None: there is none (left)."""
        while self._heap and self._heap[0][0] <= now:
            moment, _, ownership = heapq.heappop(self._heap)
            if ownership.timer == moment:
                ownership.timer = NEVER
                return ownership
        return None

    def next(self) -> float:
        """The earliest moment of all."""
        while self._heap and self._heap[0][2].timer != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else NEVER


def _lives(ownership: Ownership) -> bool:
    return ownership.state < State.REVOKED or ownership.busy
