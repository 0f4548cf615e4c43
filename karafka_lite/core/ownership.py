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

import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

from karafka_lite.core.intake import Backlog, Room
from karafka_lite.core.options import Hook, Policy, Target
from karafka_lite.messages import Record, TopicPartition, next_offset_after, where


class State(IntEnum):
    """See the drawing above; the order of the values is the order in time."""

    ASSIGNED = 1
    DRAINING = 2
    RELEASING = 3
    REVOKED = 4
    LOST = 5


RELEASING = State.RELEASING  # looking up a member of an enum costs more than all the rest of a mark


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


class Tries(NamedTuple):
    """How often the handler failed at a message."""

    all: int = 0
    alone: int = 0  # as the only one of its batch


@dataclass(eq=False)
class Send:
    """A message on its way, and where the marks stood when it was sent."""

    stored: int | None
    version: int
    retry_position: int
    acknowledged: bool = False


class Partition:
    """What this process knows of one ownership. Changed under its group's lock only."""

    __slots__ = (  # more than 30 attributes would be looked up more slowly; a mark has seven of them
        "_sends", "_set_aside", "_tries", "attempt", "backlog", "committed", "committed_version", "deadline",
        "delivered", "enlisted", "every_at", "failure", "fetch_at", "fetch_failures", "handed", "hook_due", "lowest",
        "not_before", "paused", "place", "policy", "position", "predecessor", "processed", "queued_since",
        "rests_until", "retry_position", "run", "seek_to", "start", "state", "stopping_app", "stored", "target",
        "unanswered", "user_state", "version")  # fmt: skip

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
        self.backlog = Backlog()
        self.queued_since = 0.0

        self.run: Run | None = None  # a worker is inside this partition's user code
        self.enlisted = False  # waits for a worker
        self.hook_due: Hook | None = None
        self.handed = False  # at least one batch was handed over
        self.every_at: list[float] = []  # when each function of ``every`` is due; from the first batch on
        self.lowest = sys.maxsize  # of all that was handed over
        self.delivered = 0  # behind the highest message that was handed over
        self.processed = 0  # behind the last message of a run that did not raise, or where the next one begins
        self.attempt = 1
        self.not_before = 0.0  # end of the back-off
        self.rests_until = 0.0  # the user's own pause
        self.retry_position = 0
        self._tries: dict[int, Tries] = {}  # by offset; only where a budget is
        self._set_aside: dict[int, int] = {}  # the position before a message that was given up -> its offset

        self.stored: int | None = None
        self.committed: int | None = None
        self.version = 0  # counts changes of ``stored``; ``committed_version`` says which of them the broker has
        self.committed_version = 0
        self._sends: deque[Send] = deque()  # from the oldest unacknowledged one on
        self.unanswered = 0  # of what the running code has sent
        self.failure: BaseException | None = None  # of a send; until the run has ended marks are void
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
    def backed(self) -> tuple[int | None, int]:
        """The newest mark, and its version, before which everything that was sent is acknowledged."""
        mark = self._sends[0] if self._sends else self
        return mark.stored, mark.version

    @property
    def committable(self) -> bool:
        """Something may be committed that the broker does not have."""
        return self.backed[1] != self.committed_version

    @property
    def done(self) -> int | None:
        """Nothing before this offset is left to do; None while something may have to be repeated."""
        goes_on = self.state is State.ASSIGNED and self.start is not None
        if not goes_on or self.seek_to is not None or self.target is not None:
            return None
        at_rest = not self.backlog.size and not self.busy and self.predecessor is None
        return max(self.processed, self.position or 0) if at_rest else self.processed

    @property
    def collects(self) -> bool:
        """A first try waits for ``max_messages`` or ``batch_timeout_ms``."""
        return bool(self.backlog.size and self.policy.batch_timeout_ms and self.attempt == 1 and not self._isolates())

    @property
    def unmarked(self) -> int:
        """How many offsets of processed messages are behind the last mark, or behind the start without one."""
        return max(0, self.processed - (self.start or 0 if self.stored is None else self.stored))

    def was_handed(self, offset: int) -> bool:
        """Whether the message at ``offset`` was handed over by this ownership."""
        return self.lowest <= offset < self.delivered

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
        if not self.backlog.size:
            return None
        if self.pending and not self.handed:  # a starting position that has to be on the broker first
            return None
        ready_at = max(self.not_before, self.rests_until)
        enough = self.backlog.size >= self.policy.max_messages or self.paused  # paused: no more comes
        if enough or not self.policy.batch_timeout_ms or self._isolates():
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

    def fetched(self, records: Sequence[Record], end_offset: int | None, size_bytes: int, now: float) -> bool:
        """Queue what was fetched; False where it was dropped because it is not what is to be read next."""
        if self.state is not State.ASSIGNED or self.start is None:
            return False
        if self.seek_to is not None or self.target is not None:
            return False
        self.fetch_failures = 0
        if self._set_aside:  # fetched again, because something before them is not marked
            gone = set(self._set_aside.values())
            records = [record for record in records if record.offset not in gone]
        if not records:
            return True
        if not self.backlog.size:
            self.queued_since = now
        self.backlog.add(records, end_offset, size_bytes)
        return True

    def fetch_failed(self, now: float) -> float:
        """What stands next cannot be read: wait, then read it again. Returns the seconds until then."""
        self.fetch_failures += 1
        wait = self.policy.backoff.delay_ms(self.fetch_failures) / 1000
        self.fetch_at = now + wait
        return wait

    def wants_pause(self, room: Room, now: float) -> bool:
        """Whether fetching should rest: the queue is full (and not yet half empty again), or reading failed."""
        limit = 0.5 if self.paused else 1
        return self.backlog.filled(self.policy.max_messages, room) >= limit or now < self.fetch_at

    def _limit(self) -> int:
        """How many messages the next batch may have: one that has to be tried by itself is."""
        limit = self.policy.max_messages
        alone = (number for number, record in enumerate(self.backlog.peek(limit)) if self._is_isolated(record))
        return max(next(alone, limit), 1)

    def _isolates(self) -> bool:
        return bool(self._tries) and any(map(self._is_isolated, self.backlog.peek(1)))

    def _is_isolated(self, record: Record) -> bool:
        return self.policy.budget is not None and self.tries(record.offset).all >= self.policy.budget

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
        records, end_offset = self.backlog.take(self._limit() if self._tries else self.policy.max_messages)
        self.queued_since = now
        first, behind = records[0].offset, next_offset_after(records[-1].offset)
        self.lowest = min(self.lowest, first)
        self.delivered = max(self.delivered, behind)
        if not self.handed:
            self.every_at = [now + ms / 1000 for ms in self.policy.every_ms]
        self.handed = True
        if not self.policy.manual_offsets:
            self.retry_position = first
        self.run = Run(self, None, records, end_offset, self.attempt, self.version, began=now)
        return self.run

    def gives_up(self, run: Run) -> bool:
        """The handler failed: count the try. True: the only message has no budget left and is to be ``set_aside``."""
        if self.policy.budget is None or run.hook:
            return False
        self._tries = {offset: tries for offset, tries in self._tries.items() if offset >= self.retry_position}
        alone = len(run.records) == 1
        for record in run.records:
            reached = run.in_hand is None or record.offset <= run.in_hand  # a loop over ``each`` knows who it was
            if reached and record.offset >= self.retry_position:
                before = self.tries(record.offset)
                self._tries[record.offset] = Tries(before.all + 1, before.alone + alone)
        offset = run.records[0].offset
        if run.redirect is not None or self.over or self.tries(offset).alone < self.policy.budget:
            return False
        self.failure = None  # a new send, of the message itself, may do
        return True

    def tries(self, offset: int) -> Tries:
        """How often the handler has failed at the message."""
        return self._tries.get(offset, Tries())

    def set_aside(self, run: Run) -> None:
        """The only message of ``run`` is in safety: go on behind it, but not past what waits unmarked before it."""
        self._ended()
        self.attempt = 1
        self.user_state.clear()
        (record,) = run.records
        before, self.processed = self._past_set_aside(self.processed), next_offset_after(record.offset)
        self._tries.pop(record.offset, None)
        if not self.policy.manual_offsets:
            self.mark(self.processed)
            return
        self._set_aside[before] = record.offset
        if before == self.retry_position:
            self.mark(before)
        else:  # what is not marked has to come again, as after each failure
            self.begin_next_at(self.retry_position)

    def _past_set_aside(self, offset: int) -> int:
        """Messages that were set aside count as marked as soon as everything before them is."""
        while offset in self._set_aside:
            offset = next_offset_after(self._set_aside[offset])
        return offset

    def end(self, run: Run, *, failed: bool, now: float) -> None:
        """The run is over. What the user wants to come next comes next; else what succeeded is marked (automatic), and
        a failed batch is read again after its back-off."""
        unsent = self.failure is not None
        self._ended()
        if run.hook is Hook.EVERY:  # from its end on, so that one that takes long leaves room for batches
            self.every_at[run.number] = now + self.policy.every_ms[run.number] / 1000
        if run.hook:
            if unsent and self.state is State.ASSIGNED:  # it may have forgotten what it sent
                self._repeat(now + self.policy.backoff.delay_ms(1) / 1000, self.target)
            return
        if failed:
            wait = self.policy.backoff.delay_ms(self.attempt) / 1000
            self.attempt += 1
            self._repeat(now + wait, run.redirect)
            return
        self.attempt = 1
        if run.redirect is not None:
            self.processed = next_offset_after(run.records[-1].offset)
            self.redirect(run.redirect)
        elif run.in_hand is not None:
            done = [record.offset for record in run.records if record.offset < run.in_hand]
            self.begin_next_at(next_offset_after(done[-1]) if done else self.processed)
            if self.version == run.version:  # else it might spin
                self.not_before = now + self.policy.backoff.delay_ms(1) / 1000
        else:
            self.processed = next_offset_after(run.records[-1].offset)
            self._forget(run.records)
            if not self.policy.manual_offsets:
                self.mark(self.processed)

    def _repeat(self, not_before: float, redirect: Target | None) -> None:
        """What is not marked comes again, unless the user wants to go on elsewhere."""
        self.not_before = max(self.not_before, not_before)
        self.user_state.clear()  # a buffer would hold it twice
        if redirect is None:
            self.begin_next_at(self.retry_position)
        else:
            self.redirect(redirect)

    def _forget(self, records: Sequence[Record]) -> None:
        """``records`` are processed: their failures count no more, nor does what was set aside before them and is
        committed (until there is a newer one, the message before it may be marked again)."""
        for record in records if self._tries else ():
            self._tries.pop(record.offset, None)
        if self._set_aside:
            needed = min(self.committed or 0, records[0].offset)
            self._set_aside = {before: gone for before, gone in self._set_aside.items() if gone >= needed}

    def _ended(self) -> None:
        self.run = self.failure = None

    def redirect(self, target: Target) -> None:
        """The user wants the next batch to start there, and to be repeated from there."""
        self.begin_next_at(target)
        if isinstance(target, int):
            self.retry_position = target
            self._set_aside = {before: gone for before, gone in self._set_aside.items() if gone < target}

    def begin_next_at(self, target: Target) -> None:
        """The next batch starts there, whatever has been fetched."""
        self.backlog.clear()
        if isinstance(target, int):
            self.target = None
            self.seek_to = self.processed = target
        else:
            self.target, self.seek_to = target, None

    # -- offsets

    def mark(self, offset: int) -> bool:
        """Store the next offset to read; False, and nothing stored, when marks are closed.

        Behind the ``failure`` of a send it is void: nothing is stored, although the partition is ours.
        """
        if self.state >= RELEASING:
            return False
        if self.failure is not None:
            return True
        offset = self._past_set_aside(offset) if self._set_aside else offset
        self.retry_position = offset
        if offset != self.stored:
            self.stored = offset
            self.version += 1
        return True

    def sending(self) -> Send:
        """The running code sends a message: later marks are not committed before it is acknowledged."""
        send = Send(self.stored, self.version, self.retry_position)
        self._sends.append(send)
        self.unanswered += 1
        return send

    def answered(self, send: Send, failure: BaseException | None) -> None:
        """``send`` is acknowledged; or it has failed, and the marks behind it are void."""
        self.unanswered -= 1
        send.acknowledged = failure is None
        if failure is not None:
            self.failure = self.failure or failure
            if send in self._sends:
                while self._sends[-1] is not send:
                    self._sends.pop()
                self._sends.pop()
                self.stored, self.version, self.retry_position = send.stored, send.version, send.retry_position
        while self._sends and self._sends[0].acknowledged:
            self._sends.popleft()

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
        self.backlog.clear()
        self._due(Hook.ON_SHUTDOWN if stopping_app else Hook.BEFORE_REVOKE)

    def release(self, commit_deadline: float) -> None:
        """Close the marks; a hook that had no time is left out."""
        self.state = State.RELEASING
        self.deadline = commit_deadline
        self.hook_due = None

    def finish(self, state: State) -> None:
        """The ownership is over: ``state`` is REVOKED or LOST. A stop in good order runs no ``on_revoked``."""
        self.state = state
        self.backlog.clear()
        self.hook_due = None
        if state is State.LOST or not self.stopping_app:
            self._due(Hook.ON_REVOKED)

    def _due(self, hook: Hook) -> None:
        if self.handed and hook in self.policy.hooks:
            self.hook_due = hook

    def __str__(self) -> str:
        return where(*self.place)

    def __repr__(self) -> str:
        return f"<Partition {self} {self.state.name} stored={self.stored} committed={self.committed}>"
