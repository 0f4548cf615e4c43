"""When what is stored goes to the broker, and what becomes of it: the part of ``Group`` that the committer asks.

It goes with the interval, or soon: when somebody waits for it, when a partition is handed over, and after a refusal.
Offsets of what user code has sent with them go in one transaction for all partitions that are ready.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from karafka_lite.core.answers import Commit, Ended, Refused, Undecided
from karafka_lite.core.exact import ExactOwnership
from karafka_lite.core.marks import Refusal
from karafka_lite.core.ownership import Ownership, State
from karafka_lite.messages import TopicPartition


class Commits:
    """Of a group. ``interval``: seconds."""

    def __init__(self, interval: float, now: float) -> None:
        self.owned: dict[TopicPartition, Ownership] = {}
        self.changed = False  # who waits should look again
        self._interval = interval
        self._commit_at = now + interval
        self._commit_requested = False
        self._leaving: dict[Ownership, None] = {}  # DRAINING or RELEASING
        self._soon: dict[Ownership, None] = {}  # do not wait for the interval: somebody waits, or one was refused

    def lose(self, now: float, *, rejoin: bool) -> list[Ownership]:
        """As ``Group``."""
        raise NotImplementedError

    def _settle(self, ownership: Ownership, now: float) -> None:
        raise NotImplementedError

    def _is_ours(self, ownership: Ownership) -> bool:
        return self.owned.get(ownership.tp) is ownership

    def request_commit(self) -> None:
        """Commit what is stored without waiting for the interval."""
        self._commit_requested = True
        self.changed = True

    def claim(self, ownership: Ownership, now: float) -> None:
        """A run waits for the commit of what it has released."""
        if ownership.marks.released:
            self._soon[ownership], self.changed = None, True
        self._settle(ownership, now)

    def commit_batch(self, now: float) -> list[Commit]:
        """What has to be committed now; empty when nothing has to."""
        due = now >= self._commit_at
        ready = [o for o in self._to_commit(due or self._commit_requested) if now >= o.marks.commit_at]
        if due:
            self._commit_at = now + self._interval
        # A request waits for what has yet to be acknowledged.
        self._commit_requested &= any(o.marks.version != o.marks.commit_point[1] for o in self.owned.values())
        points = ((o, *o.marks.commit_point) for o in ready)
        return [Commit(o, at, version, o.marks.sends.released(version)) for o, at, version in points if at is not None]

    def committed(self, commits: Iterable[Commit], refusals: Mapping[TopicPartition, Refusal], now: float) -> None:
        """The broker has acknowledged ``commits``, but for ``refusals``: these stay pending, and are tried again."""
        for ownership, offset, version, _ in commits:
            if not self._is_ours(ownership):
                continue
            if (refusal := refusals.get(ownership.tp)) is None:
                ownership.marks.acknowledged(offset, version)
                if not ownership.marks.released:  # else there is more by now, and somebody waits for it
                    self._soon.pop(ownership, None)
            else:
                ownership.marks.refused(version, refusal, now)
                self._soon[ownership] = None
            self._settle(ownership, now)
        self.changed = True

    def transacted(self, commits: Collection[Commit], ended: Ended, now: float) -> list[Ownership]:
        """The transaction with ``commits`` has ended. Returns the ownerships that are lost by it."""
        if isinstance(ended, Undecided):
            return self.lose(now, rejoin=True)
        if isinstance(ended, Refused):  # only one of them is to blame: the others go again, and at once
            for ownership in [commit.ownership for commit in commits if self._is_ours(commit.ownership)]:
                self._soon[ownership], self.changed = None, True
                if isinstance(ownership, ExactOwnership):
                    ownership.refused(ended.held, ended.error, now)
                self._settle(ownership, now)
        else:
            for held in ended.receipts:
                held.answer = ended.receipts[held]
            self.committed(commits, ended.refusals, now)
        return []

    def _to_commit(self, all_of_them: bool) -> Iterator[Ownership]:
        """Who has something to commit: all, or those that do not wait for the interval."""
        for ownership in self.owned.values() if all_of_them else {**self._leaving, **self._soon}:
            waits = all_of_them or ownership.state is State.RELEASING or ownership in self._soon
            if waits and ownership.marks.committable:
                yield ownership
