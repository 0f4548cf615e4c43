"""One ownership of one partition: what was handed over, what is stored, what is committed.

A new assignment always makes a new Partition, so whoever still holds an old one can never touch its successor.
Offsets here are *next* offsets (the one to read next), but for those of records.

The states, forwards only, and who changes them:

    ASSIGNED   ours; batches are handed over            -> DRAINING   a rebalance wants it, or the app stops
    DRAINING   ours; user code ends, its marks count    -> RELEASING  user code has ended, or the bound is over
    RELEASING  marks are closed, the rest is committed  -> REVOKED    committed, or given up
    REVOKED    over, in good order
    LOST       over, the broker gave it away            <- any of the first three
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Any, Literal, NamedTuple

from karafka_lite.backoff import Backoff
from karafka_lite.messages import Record, TopicPartition, at, following


class State(IntEnum):
    """See the drawing above; the order of the values is the order in time."""

    ASSIGNED = 1
    DRAINING = 2
    RELEASING = 3
    REVOKED = 4
    LOST = 5


RELEASING = State.RELEASING  # looking up a member of an enum costs more than all the rest of a mark


class Hook(Enum):
    """What a user may hang on a handler, by the moment at which it runs."""

    ON_SHUTDOWN = "on_shutdown"
    BEFORE_REVOKE = "before_revoke"
    ON_REVOKED = "on_revoked"
    EVERY = "every"


class Time(NamedTuple):
    """The first message that is not older, as a place to begin at."""

    ms: int


# Where a batch may begin: an offset, or what only the cluster can turn into one.
Target = int | Literal["earliest", "latest"] | Time


class Policy(NamedTuple):
    """What a route asks of its partitions."""

    manual_offsets: bool = False
    max_messages: int = 500
    batch_timeout_ms: int = 0
    backoff: Backoff = Backoff()
    hooks: frozenset[Hook] = frozenset()
    every_ms: tuple[int, ...] = ()  # of each function that is called again and again


@dataclass(eq=False)
class Run:
    """One call of user code: a batch (``hook`` is None) or a hook (no records)."""

    partition: Partition
    hook: Hook | None
    records: Sequence[Record]
    end_offset: int | None
    attempt: int
    version: int = 0  # of the marks when it began
    in_hand: int | None = None  # ``each`` stands at this message, which is not marked
    redirect: Target | None = None  # where the user wants the next batch to start
    number: int = 0  # which of the functions of ``every``
    began: float = 0.0
    told: bool = False  # that it takes long

    def __str__(self) -> str:
        if self.hook:
            return f"{self.partition} {self.hook.value}"
        return f"{self.partition}@{self.records[0].offset}..{self.records[-1].offset}"


class Partition:
    """What this process knows of one ownership. Changed under its group's lock only."""

    def __init__(self, place: TopicPartition, policy: Policy, predecessor: Partition | None = None) -> None:
        self.place = place
        self.policy = policy
        self.predecessor = predecessor  # an earlier ownership whose user code still runs: we wait for it
        self.state = State.ASSIGNED
        self.stopping_app = False  # DRAINING because the app stops, not because of a rebalance
        self.deadline = 0.0  # of the drain; later of the last commit

        self.start: int | None = None  # where this ownership begins; None until known
        self.seek_to: int | None = None  # the next fetch must begin here; until then what is fetched is dropped
        self.target: Target | None = None  # the same, while only the cluster knows the offset
        self.position: int | None = None  # where fetching goes on
        self.paused = False  # as the client was told last
        self.fetch_failures = 0
        self.fetch_at = 0.0
        self._chunks: deque[tuple[Sequence[Record], int | None]] = deque()
        self.queued = 0
        self.queued_since = 0.0

        self.run: Run | None = None  # a worker is inside this partition's user code
        self.enlisted = False  # waits for a worker
        self.hook_due: Hook | None = None
        self.handed = False  # at least one batch was handed over
        self.every_at: list[float] = []  # when each function of ``every`` is due; from the first batch on
        self._lowest = 0
        self.delivered = 0  # behind the highest message that was handed over
        self.processed = 0  # behind the last message of a run that did not raise, or where the next one begins
        self.attempt = 1
        self.not_before = 0.0  # end of the back-off
        self.rests_until = 0.0  # the user's own pause
        self.retry_position = 0

        self.stored: int | None = None
        self.committed: int | None = None
        self.version = 0  # counts changes of ``stored``; ``committed_version`` says which of them the broker has
        self.committed_version = 0
        self.user_state: dict[Any, Any] = {}

    # -- questions

    @property
    def over(self) -> bool:
        """True as soon as marks are refused."""
        return self.state >= RELEASING

    @property
    def running(self) -> bool:
        """User code of this ownership runs."""
        return self.run is not None

    @property
    def busy(self) -> bool:
        """User code of this ownership runs, or has yet to run."""
        return self.running or self.hook_due is not None

    @property
    def pending(self) -> bool:
        """Something is stored that the broker does not have."""
        return self.version != self.committed_version

    @property
    def done(self) -> int | None:
        """Nothing before this offset is left to do; None while something may have to be repeated."""
        goes_on = self.state is State.ASSIGNED and self.start is not None and self.attempt == 1
        if not goes_on or self.seek_to is not None or self.target is not None:
            return None
        at_rest = not self.queued and not self.busy and self.predecessor is None
        return max(self.processed, self.position or 0) if at_rest else self.processed

    @property
    def collects(self) -> bool:
        """A first try waits for ``max_messages`` or ``batch_timeout_ms``."""
        return bool(self.queued and self.policy.batch_timeout_ms and self.attempt == 1)

    @property
    def unmarked(self) -> int:
        """How many offsets of processed messages are behind the last mark, or behind the start without one."""
        return max(0, self.processed - (self.start or 0 if self.stored is None else self.stored))

    def was_handed(self, offset: int) -> bool:
        """Whether the message at ``offset`` was handed over by this ownership."""
        return self.handed and self._lowest <= offset < self.delivered

    def ready_at(self) -> float | None:
        """When the next piece of user code may run (0.0: now); None: not before something else happens."""
        if self.running or (self.predecessor and self.predecessor.busy):
            return None
        if self.hook_due:
            return 0.0
        if self.state is not State.ASSIGNED:
            return None
        batch_at = self._batch_at()
        return min(self.every_at if batch_at is None else [batch_at, *self.every_at], default=None)

    def _batch_at(self) -> float | None:
        if not self.queued:
            return None
        if self.pending and not self.handed:  # a starting position that has to be on the broker first
            return None
        ready_at = max(self.not_before, self.rests_until)
        if self.queued >= self.policy.max_messages or not self.policy.batch_timeout_ms:
            return ready_at
        return max(ready_at, self.queued_since + self.policy.batch_timeout_ms / 1000)

    # -- messages

    def begin_at(self, start: int, *, committed: bool, commit_start: bool) -> None:
        """The starting position is known. ``committed``: the broker has it; ``commit_start``: it has to get it."""
        self.start = self.seek_to = self.retry_position = self.delivered = self.processed = start
        if committed:
            self.stored = self.committed = start
        elif commit_start:
            self.mark(start)

    def fetched(self, records: Sequence[Record], end_offset: int | None, now: float) -> bool:
        """Queue what was fetched; False where it was dropped because it is not what is to be read next."""
        if self.state is not State.ASSIGNED or self.start is None:
            return False
        if self.seek_to is not None or self.target is not None:
            return False
        self.fetch_failures = 0
        if not self.queued:
            self.queued_since = now
        self._chunks.append((records, end_offset))
        self.queued += len(records)
        return True

    def fetch_failed(self, now: float) -> float:
        """What stands next cannot be read: wait, then read it again. Returns the seconds until then."""
        self.fetch_failures += 1
        wait = self.policy.backoff.delay_ms(self.fetch_failures) / 1000
        self.fetch_at = now + wait
        return wait

    def wants_pause(self, now: float) -> bool:
        """Whether fetching should rest: the queue is full (and not yet half empty again), or reading failed."""
        limit = self.policy.max_messages * (1 if self.paused else 2)
        return self.queued >= limit or now < self.fetch_at

    def take(self) -> tuple[list[Record], int | None]:
        """The next batch from the queue, and the partition's end when its last message was fetched."""
        limit = self.policy.max_messages
        records: list[Record] = []
        end_offset: int | None = None
        while self._chunks and len(records) < limit:
            chunk, end_offset = self._chunks.popleft()
            room = limit - len(records)
            if len(chunk) > room:
                self._chunks.appendleft((chunk[room:], end_offset))
                chunk = chunk[:room]
            records.extend(chunk)
        self.queued -= len(records)
        return records, end_offset

    def drop_queue(self) -> None:
        self._chunks.clear()
        self.queued = 0

    # -- user code

    def begin(self, now: float) -> Run | None:
        """Hand over what is due; None when nothing is (any more)."""
        self.enlisted = False
        due = self.ready_at()
        if due is None or due > now:
            return None
        if self.hook_due:
            hook, self.hook_due = self.hook_due, None
            self.run = Run(self, hook, (), None, self.attempt, began=now)
            return self.run
        number = next((i for i, at in enumerate(self.every_at) if at <= now), None)
        if number is not None:
            self.run = Run(self, Hook.EVERY, (), None, self.attempt, number=number, began=now)
            return self.run
        records, end_offset = self.take()
        self.queued_since = now
        first, behind = records[0].offset, following(records[-1].offset)
        self._lowest = min(self._lowest, first) if self.handed else first
        self.delivered = max(self.delivered, behind)
        if not self.handed:
            self.every_at = [now + ms / 1000 for ms in self.policy.every_ms]
        self.handed = True
        if not self.policy.manual_offsets:
            self.retry_position = first
        self.run = Run(self, None, records, end_offset, self.attempt, self.version, began=now)
        return self.run

    def end(self, run: Run, *, failed: bool, now: float) -> None:
        """The run is over. What the user wants to come next comes next; else what succeeded is marked (automatic), and
        a failed batch is read again after its back-off."""
        self.run = None
        if run.hook is Hook.EVERY:  # from its end on, so that one that takes long leaves room for batches
            self.every_at[run.number] = now + self.policy.every_ms[run.number] / 1000
        if run.hook:
            return
        if failed:
            self.not_before = now + self.policy.backoff.delay_ms(self.attempt) / 1000
            self.attempt += 1
            self.user_state.clear()  # its unmarked messages come again: a buffer would hold them twice
            self.begin_next_at(self.retry_position if run.redirect is None else run.redirect)
            return
        self.attempt = 1
        self.processed = following(run.records[-1].offset)
        if run.redirect is not None:
            self.begin_next_at(run.redirect)
        elif run.in_hand is not None:
            self.begin_next_at(run.in_hand)
            if self.version == run.version:  # else it might spin
                self.not_before = now + self.policy.backoff.delay_ms(1) / 1000
        elif not self.policy.manual_offsets:
            self.mark(self.processed)

    def begin_next_at(self, target: Target) -> None:
        """The next batch starts there, whatever has been fetched."""
        self.drop_queue()
        if isinstance(target, int):
            self.target = None
            self.seek_to = self.retry_position = self.processed = target
        else:
            self.target, self.seek_to = target, None

    # -- offsets

    def mark(self, offset: int) -> bool:
        """Store the next offset to read; False, and nothing stored, when marks are closed."""
        if self.state >= RELEASING:
            return False
        self.retry_position = offset
        if offset != self.stored:
            self.stored = offset
            self.version += 1
        return True

    def commit_succeeded(self, offset: int, version: int) -> None:
        """The broker has the offset that was stored as ``version``."""
        self.committed = offset
        self.committed_version = version

    # -- the end

    def drain(self, deadline: float, *, stopping_app: bool) -> None:
        """Hand over nothing more; the last hook before the end is due."""
        self.state = State.DRAINING
        self.stopping_app = stopping_app
        self.deadline = deadline
        self.drop_queue()
        self._due(Hook.ON_SHUTDOWN if stopping_app else Hook.BEFORE_REVOKE)

    def release(self, commit_deadline: float) -> None:
        """Close the marks; a hook that had no time is left out."""
        self.state = State.RELEASING
        self.deadline = commit_deadline
        self.hook_due = None

    def finish(self, state: State) -> None:
        """The ownership is over: ``state`` is REVOKED or LOST. A stop in good order runs no ``on_revoked``."""
        self.state = state
        self.drop_queue()
        self.hook_due = None
        if state is State.LOST or not self.stopping_app:
            self._due(Hook.ON_REVOKED)

    def _due(self, hook: Hook) -> None:
        if self.handed and hook in self.policy.hooks:
            self.hook_due = hook

    def __str__(self) -> str:
        return at(*self.place)

    def __repr__(self) -> str:
        return f"<Partition {self} {self.state.name} stored={self.stored} committed={self.committed}>"
