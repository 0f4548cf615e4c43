"""One group under its lock: what every thread does around each look at it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from karafka_lite.core.group import Group
from karafka_lite.core.ownership import Partition

log = logging.getLogger("karafka_lite")

LOOK_AGAIN_S = 0.1  # how late somebody who waits for a fact sees that the membership was lost


class Membership(Protocol):
    """What is asked of a client by who holds the lock; neither blocks."""

    def lost(self, now: float) -> bool:
        """Whether the membership is gone."""

    def wake_rebalance(self) -> None:
        """A rebalance that waits for us should ask again."""


class Guard:
    """``group`` is looked at and changed under ``lock``; ``changed`` is notified when somebody may have waited for it.

    Whoever holds the lock calls nothing that waits for another thread. Without it only ``now`` and ``held`` are called.
    """

    now = staticmethod(time.monotonic)

    def __init__(self, group_id: str, group: Group, client: Membership, enlist: Callable[[Partition], None]) -> None:
        self.group_id = group_id
        self.group = group
        self.client = client
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)
        self.handing_over = False  # a rebalance waits for us
        self.commit_error: Exception | None = None  # of the last commit
        self._enlist = enlist  # has a worker come for a partition

    @contextmanager
    def held(self) -> Iterator[float]:
        """Hold the lock, and know the time and whether we are still a member; at the end pass on what was decided."""
        with self.lock:
            now = self.now()
            self.check_membership(now)
            yield now
            self.carry_out()

    def check_membership(self, now: float) -> None:
        """See whether everything was lost; asked live, before ``poll`` knows."""
        if self.group.owned and self.client.lost(now):
            self.lose(join_anew=True)

    def lose(self, *, join_anew: bool) -> None:
        """Everything is lost. ``join_anew``: we found out by ourselves, so the client has to be told."""
        lost = self.group.lose(self.now(), join_anew=join_anew)
        if lost:
            names = ", ".join(map(str, lost))
            log.warning("group %s: membership lost, nothing more is committed for %s", self.group_id, names)

    def carry_out(self) -> None:
        """Pass on what the group has decided; the last step of whoever has changed it."""
        for partition in self.group.take_ready():
            self._enlist(partition)
        if self.group.news:
            self.group.news = False
            self.changed.notify_all()
            if self.handing_over:
                self.client.wake_rebalance()
