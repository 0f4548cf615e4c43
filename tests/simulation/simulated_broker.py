"""A broker as far as one consumer group can tell: logs with gaps, committed offsets, and a coordinator that hands out.

The coordinator is the eager one of Kafka: a rebalance waits until everybody has given everything back and has joined
(or is thrown out), then a new generation begins. A commit counts only with the generation that the coordinator knows.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Collection
from dataclasses import dataclass, field

from karafka_lite.core.starts import Note
from karafka_lite.messages import TopicPartition


class Record:
    """A fetched record; what matters is its offset."""

    __slots__ = ("headers", "key", "offset", "timestamp", "value")

    def __init__(self, offset: int) -> None:
        self.offset = offset
        self.timestamp = -1
        self.key = None if offset % 9 == 8 else b"%d" % (offset * 7919 % 5)
        self.value = None
        self.headers: list[tuple[str, bytes]] = []


class Log:
    """One partition. Offsets rise, with gaps as compaction and transaction markers leave them, also at the end."""

    def __init__(self, rng: random.Random, topic_id: str) -> None:
        self._rng = rng
        self.topic_id = topic_id
        self.start = self.end = rng.choice([0, 0, 7, 1000])
        self._records: list[Record] = []
        self._offsets: list[int] = []

    def grow(self, count: int) -> None:
        for _ in range(count):
            offset = self.end + self._rng.choice([0, 0, 0, 0, 1, 3])
            self._records.append(Record(offset))
            self._offsets.append(offset)
            self.end = offset + 1
        self.end += self._rng.choice([0, 0, 0, 1])

    def delete_before(self, offset: int) -> None:
        """Retention. The records stay known, for who was handed them before."""
        self.start = max(self.start, min(offset, self.end))

    def read(self, position: int, count: int) -> list[Record]:
        """Up to ``count`` records from ``position`` on, also deleted ones."""
        index = bisect_left(self._offsets, position)
        return self._records[index : index + count]

    @property
    def last(self) -> int | None:
        return self._offsets[-1] if self._offsets else None


@dataclass
class Session:
    """What the coordinator knows of a member."""

    heard_at: float
    topics: frozenset[str] = frozenset()
    generation: int = -1
    joined: bool = False  # waits for the new generation
    assignment: list[TopicPartition] = field(default_factory=list)


class Broker:
    """The logs, the committed offsets and the group coordinator."""

    def __init__(
        self, rng: random.Random, tps: list[TopicPartition], *, session_timeout: float, rebalance_timeout: float
    ) -> None:
        self._rng = rng
        self.topic_ids = {topic: f"{topic} 1" for topic, _ in tps}
        self.logs = {tp: Log(rng, self.topic_ids[tp[0]]) for tp in tps}
        self.gone: dict[tuple[TopicPartition, str], Log] = {}  # of topics that were deleted, by their ids
        self.committed: dict[TopicPartition, int] = {}
        self.notes: dict[TopicPartition, Note] = {}  # of these commits
        self.session_timeout = session_timeout
        self.rebalance_timeout = rebalance_timeout
        self.generation = 0
        self.sessions: dict[int, Session] = {}
        self.rebalancing = False
        self._rebalance_until = 0.0
        self._next_id = 1

    # -- requests of members

    def join(self, member: int | None, topics: Collection[str], now: float) -> int:
        """JoinGroup; the answer comes from ``sync``. A member that is not known becomes a new one."""
        if member not in self.sessions:
            member, self._next_id = self._next_id, self._next_id + 1
            self.sessions[member] = Session(now)
        assert member is not None
        self.rebalance(now)
        session = self.sessions[member]
        session.joined, session.heard_at, session.topics = True, now, frozenset(topics)
        self._complete(now)
        return member

    def sync(self, member: int) -> tuple[int, list[TopicPartition]] | str:
        """The new generation and the assignment; else ``wait``, ``join`` (again) or ``unknown``."""
        session = self.sessions.get(member)
        if session is None:
            return "unknown"
        if session.joined:
            return "wait"
        return "join" if self.rebalancing else (session.generation, session.assignment)

    def heartbeat(self, member: int | None, generation: int, now: float) -> str:
        """``ok``, ``rebalance`` (give back and join) or ``unknown`` (evicted)."""
        session = self.sessions.get(member or 0)
        if session is None or session.generation != generation:
            return "unknown"
        session.heard_at = now
        return "rebalance" if self.rebalancing else "ok"

    def accepts(self, member: int | None, generation: int) -> bool:
        """Whether a commit of this member and generation counts."""
        session = self.sessions.get(member or 0)
        return session is not None and session.generation == generation

    def leave(self, member: int | None, now: float) -> None:
        if self.sessions.pop(member or 0, None):
            self.rebalance(now)
            self._complete(now)

    # -- what happens by itself

    def remake(self, topic: str, number: int) -> None:
        """Delete a topic, and make it anew. What is committed for it goes with it."""
        self.topic_ids[topic] = f"{topic} {number}"
        for tp in [tp for tp in self.logs if tp[0] == topic]:
            self.gone[tp, self.logs[tp].topic_id] = self.logs[tp]
            self.logs[tp] = Log(self._rng, self.topic_ids[topic])
            self.committed.pop(tp, None)
            self.notes.pop(tp, None)

    def rebalance(self, now: float) -> None:
        """Ask everybody to give back what they have and to join."""
        if not self.rebalancing:
            self.rebalancing = True
            self._rebalance_until = now + self.rebalance_timeout

    def evict(self, member: int, now: float) -> None:
        """Without a warning: the member finds out when it asks."""
        self.leave(member, now)

    def tick(self, now: float) -> int:
        """Throw out who is silent or does not join in time; returns how many."""
        late = self.rebalancing and now >= self._rebalance_until
        gone = [
            member
            for member, session in self.sessions.items()
            if not session.joined and (late or now - session.heard_at > self.session_timeout)
        ]
        for member in gone:
            self.leave(member, now)
        return len(gone)

    def _complete(self, now: float) -> None:
        if not self.rebalancing or not all(session.joined for session in self.sessions.values()):
            return
        self.rebalancing = False
        if not self.sessions:
            return
        self.generation += 1
        before = {tp: member for member, session in self.sessions.items() for tp in session.assignment}
        for session in self.sessions.values():
            session.joined, session.generation, session.heard_at, session.assignment = False, self.generation, now, []
        for tp in self.logs:
            members = [member for member, session in self.sessions.items() if tp[0] in session.topics]
            if members:
                stays = before.get(tp) in members and self._rng.random() < 0.5
                owner = before[tp] if stays else self._rng.choice(members)
                self.sessions[owner].assignment.append(tp)
