"""The second opinion: what must be true of every ownership, from what happened to it and from nothing else.

The shell tells the ledger what it did to the group and what came back. The ledger keeps its own books (what was handed
over, marked, sent to the broker, known to be there) and compares them with the group's after each event.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from steps import FOREVER

from karafka_lite.core.group import FINAL_COMMIT_S, Commit, Group
from karafka_lite.core.options import Hook
from karafka_lite.core.ownership import Partition, Run, State
from karafka_lite.messages import TopicPartition

if TYPE_CHECKING:
    from simulated_broker import Broker, Record

RECORD_BYTES = 7
EPSILON = 1e-6
NUMBERS = itertools.count(1)


class Violation(AssertionError):
    """A promise of the contract is broken."""


def require(fact: Any, promise: str, *details: object) -> None:
    """Raise a Violation that names the ``promise`` unless ``fact``."""
    if not fact:
        raise Violation(f"{promise}: {', '.join(map(str, details))}")


class Mark(NamedTuple):
    """One store."""

    seq: int
    offset: int | None
    number: int  # of all that was stored and requested


class Ownership:
    """The books of one Partition object."""

    def __init__(self, partition: Partition, member: Any, predecessors: list[Ownership]) -> None:
        self.partition = partition
        self.place: TopicPartition = partition.place
        self.policy = partition.policy
        self.member = member
        self.generation: int = member.client.generation
        self.predecessors = predecessors  # of this process; their user code must end first
        self.seen = State.ASSIGNED

        self.start: int | None = None
        self.start_committed = False
        self.start_uncommitted_latest = False
        self.fetch_next = self.hand_next = 0
        self.queued = 0
        self.queued_since = 0.0
        self.in_jobs = False
        self.running: Run | None = None
        self.handed = False
        self.highest = 0  # behind the highest message handed over
        self.done = 0  # behind the last batch that was processed
        self.attempt = 1
        self.not_before = 0.0
        self.rests_until = 0.0
        self.every_at: list[float] = []
        self.seq_begun = 0  # of stores, when the batch began
        self.redirect: Any = None  # where the running code wants the next batch to start
        self.sought: object = None  # where to begin, while nobody knows the offset
        self.retry_position = 0
        self.token: object = None
        self.marking: str | None = None  # how its handler goes about it

        self.stored: int | None = None
        self.stored_ever: set[int] = set()
        self.seq = self.acked_seq = self.applied_seq = 0  # of stores: made, known to be on the broker, on the broker
        self.acked_offset: int | None = None
        self.seqs = 0  # how many there were, void ones included
        self.backed = Mark(0, None, 0)  # the newest mark with every send before it acknowledged
        self.trail: list[Mark | object] = []  # what came behind it: sends, and marks that wait for them
        self.waiting: set[object] = set()  # sends without an answer
        self.retry_at: dict[object, int] = {}  # send -> the retry position before it
        self.failed_send = False  # of the code that runs
        self.unacked_since = 0.0

        self.tries: dict[int, list[int]] = {}  # offset -> failures, and those of a batch of one
        self.gone: set[int] = set()  # set aside, and not known to be committed
        self.passed_over = 0  # tries of commits since it was part of one that could succeed

        self.asked: str | None = None  # "revoke" or "stop", whichever came first
        self.deadline = self.released_at = self.commit_deadline = 0.0
        self.final_hook: Hook | None = None  # the one that is due before the end
        self.final_hook_done = False
        self.lost = False
        self.ended = False
        self.revoked_hook_due = False
        self.hooks_run: set[Hook] = set()

    @property
    def acked(self) -> bool:
        return self.acked_seq == self.seq

    @property
    def committable(self) -> bool:
        return self.acked_seq != self.backed.seq

    def is_isolated(self, record: Record) -> bool:
        budget = self.policy.budget
        return budget is not None and self.tries.get(record.offset, [0])[0] >= budget

    @property
    def busy(self) -> bool:
        """User code runs or has yet to run, now that the ownership is over."""
        return self.running is not None or self.revoked_hook_due

    @property
    def code_ended(self) -> bool:
        """Nothing but the bound of the drain could hold up the release."""
        return self.running is None and (self.final_hook is None or self.final_hook_done)

    def store(self, offset: int, now: float) -> None:
        self.retry_position = offset
        if offset != self.stored:
            self.stored = offset
            self.seqs += 1
            self.seq = self.seqs
        self.stored_ever.add(offset)
        self.trail.append(Mark(self.seq, offset, next(NUMBERS)))
        self.trim(now)

    def trim(self, now: float) -> None:
        """What nothing stands before any more is backed."""
        while self.trail and self.trail[0] not in self.waiting:
            mark = self.trail.pop(0)
            if isinstance(mark, Mark):
                if not self.committable:
                    self.unacked_since = now
                self.backed = mark

    def send_failed(self, send: object, now: float) -> None:
        """Everything behind ``send`` is void."""
        self.failed_send = True
        if send in self.trail:
            del self.trail[self.trail.index(send) :]
            marks = [mark for mark in self.trail if isinstance(mark, Mark)]
            last = marks[-1] if marks else self.backed
            self.seq, self.stored = last.seq, last.offset
            self.retry_position = self.retry_at[send]

    def __str__(self) -> str:
        return f"{self.place[0]}-{self.place[1]}/{self.member}"


class Ledger:
    """The books of one world: all ownerships of all processes."""

    def __init__(self, broker: Broker, reset: str, *, backward_marks: bool, reached: Counter[str]) -> None:
        self._broker = broker
        self._reset = reset
        self._backward_marks = backward_marks
        self.reached = reached
        self.books: dict[Partition, Ownership] = {}
        self.open: dict[Any, dict[TopicPartition, Ownership]] = defaultdict(dict)  # member -> not over
        self._over: dict[tuple[Any, TopicPartition], list[Ownership]] = defaultdict(list)  # process -> over
        # How far each log is processed without a hole; None: nobody has begun (latest).
        self.covered: dict[TopicPartition, int | None] = {
            place: log.start if reset == "earliest" else None for place, log in broker.logs.items()
        }

    def __getitem__(self, partition: Partition) -> Ownership:
        return self.books[partition]

    # -- assignment

    def assigned(self, member: Any, fresh: Iterable[Partition]) -> None:
        for partition in fresh:
            over = self._over[member.process, partition.place]
            over[:] = [o for o in over if o.busy]
            require(partition not in self.books, "an assignment makes a new ownership", partition)
            o = Ownership(partition, member, list(over))
            self.books[partition] = o
            self.open[member][partition.place] = o
            if over:
                self.reached["an ownership waited for its predecessor's handler"] += 1

    def started(self, member: Any, place: TopicPartition, offset: int, committed: bool, now: float) -> None:
        o = self.open[member].get(place)
        if o is None or o.start is not None:
            return
        o.start = o.fetch_next = o.hand_next = o.retry_position = o.done = offset
        o.start_committed = committed
        if committed:
            o.stored = o.acked_offset = offset
            o.backed = Mark(0, offset, 0)
            o.stored_ever.add(offset)
        elif self._reset == "latest":
            o.start_uncommitted_latest = True
            o.store(offset, now)

    def asked(self, member: Any, places: Iterable[TopicPartition], why: str, now: float, drain: float) -> None:
        """``why``: a rebalance wants ``places`` ("revoke"), or the app stops ("stop")."""
        hook = Hook.BEFORE_REVOKE if why == "revoke" else Hook.ON_SHUTDOWN
        for place in places:
            o = self.open[member].get(place)
            if o is None:
                continue
            if o.asked:
                self.reached[f"{why} while already ending by {o.asked}"] += o.asked != why
                continue
            o.asked, o.deadline, o.queued = why, now + drain, 0
            o.final_hook = hook if o.handed and hook in o.policy.hooks else None
            self.reached["a stop during back-off"] += why == "stop" and not o.running and now < o.not_before

    def lost(self, member: Any) -> None:
        for o in self.open[member].values():
            o.lost, o.queued = True, 0
            self.reached["a loss while a handler ran"] += o.running is not None
            self.reached["a loss during a drain"] += o.asked is not None

    def crashed(self, process: Any) -> None:
        for member in [member for member in self.open if member.process is process]:
            del self.open[member]
        for key in [key for key in self._over if key[0] is process]:
            del self._over[key]

    def closed(self, member: Any) -> None:
        """The member has left: its hooks that had no time are left out."""
        for (process, _), over in self._over.items():
            for o in over:
                if process is member.process and o.member is member:
                    self.reached["a member left with an on_revoked hook waiting"] += o.revoked_hook_due
                    o.revoked_hook_due = False

    # -- messages

    def fetched(self, member: Any, place: TopicPartition, records: Sequence[Record], wanted: bool, now: float) -> None:
        o = self.open[member].get(place)
        self.reached["fetched records were dropped"] += not wanted
        if not wanted:
            return
        require(o is not None and o.asked is None and not o.lost, "nothing is queued for what is not ours", place)
        assert o is not None
        follows = o.start is not None and o.sought is None and self._log_has(o, o.fetch_next, records)
        require(follows, "what is queued follows what was queued before", o, records[0].offset, o.fetch_next)
        wanted_records = sum(record.offset not in o.gone for record in records)
        if not o.queued and wanted_records:
            o.queued_since = now
        o.queued += wanted_records
        o.fetch_next = records[-1].offset + 1
        batch, room = o.policy.max_messages, member.room
        full = min(max(2 * batch, min(8 * batch, room.messages)), math.ceil(room.size_bytes / RECORD_BYTES))
        require(o.queued <= full - 1 + member.poll_records, "a queue is bounded", o, o.queued)

    def _log_has(self, o: Ownership, position: int, records: Sequence[Record]) -> bool:
        return list(records) == self._broker.logs[o.place].read(position, len(records))

    def _next_in_log(self, o: Ownership, count: int) -> list[Record]:
        """What has to be handed over next."""
        records = self._broker.logs[o.place].read(o.hand_next, count + len(o.gone))
        return [record for record in records if record.offset not in o.gone][:count]

    # -- user code

    def enlisted(self, partition: Partition) -> None:
        o = self.books[partition]
        require(not o.in_jobs, "a partition waits for a worker once", o)
        o.in_jobs = True

    def begun(self, member: Any, partition: Partition, run: Run | None, now: float) -> None:
        o = self.books[partition]
        o.in_jobs = False
        if run is None:
            self.reached["a worker came when its job had passed"] += 1
            return
        inside = member.process.inside
        require(o.place not in inside, "one run per partition at a time", o, inside.get(o.place))
        require(o.running is None, "one run per ownership at a time", o)
        o.running = inside[o.place] = run
        if run.hook is Hook.EVERY:
            owned = o.asked is None and not o.lost and o.handed
            require(owned, "every is called for what was handed a batch, and no more behind the end", o)
            require(now >= o.every_at[run.number] - EPSILON, "every keeps to its time", o, now, o.every_at)
            self.reached["every was called"] += 1
        elif run.hook:
            self._hook_begun(o, run.hook)
        else:
            self._batch_begun(o, run, now)

    def _batch_begun(self, o: Ownership, run: Run, now: float) -> None:
        records = run.records
        owned = o.asked is None and not o.lost and o.seen is State.ASSIGNED
        require(owned, "a batch is handed over to its owner only", o, o.seen)
        require(not any(p.busy for p in o.predecessors), "an ownership waits for the code of its predecessor", o)
        require(0 < len(records) <= o.policy.max_messages, "a batch has 1 to max_messages messages", o, len(records))
        require(
            self._next_in_log(o, len(records)) == list(records),
            "nothing is skipped, repeated or out of order",
            o,
            records[0].offset,
            o.hand_next,
        )
        require(run.attempt == o.attempt, "attempts are counted", o, run.attempt, o.attempt)
        require(now >= o.not_before - EPSILON, "a failed batch waits for its back-off", o, now, o.not_before)
        require(now >= o.rests_until - EPSILON, "a paused partition rests", o, now, o.rests_until)
        o.seq_begun, o.redirect = o.seq, None
        isolated = o.is_isolated(records[0])
        by_itself = len(records) == 1 if isolated else not any(map(o.is_isolated, records))
        require(by_itself, "a message whose batch failed too often is tried by itself", o, run, o.tries)
        self.reached["a message was tried by itself"] += isolated
        if o.queued < o.policy.max_messages and not isolated and not o.partition.paused:
            wait = o.policy.batch_timeout_ms / 1000
            require(now >= o.queued_since + wait - EPSILON, "a batch waits for max_messages or its timeout", o)
        if self._reset == "latest":
            require(o.place in self._broker.committed, "a start at the end is committed before anything else", o)
        if not o.handed:
            self._first_batch(o)
            o.every_at = [now + ms / 1000 for ms in o.policy.every_ms]
        o.handed = True
        o.queued -= len(records)
        o.queued_since = now
        o.hand_next = records[-1].offset + 1
        o.highest = max(o.highest, o.hand_next)
        if not o.policy.manual_offsets:
            o.retry_position = records[0].offset

    def _first_batch(self, o: Ownership) -> None:
        if o.generation != self._broker.generation or o.member.client.session not in self._broker.sessions:
            self.reached["an evicted member went on before it knew"] += 1
            return
        committed = self._broker.committed.get(o.place)
        require(
            committed == o.start or (committed is None and o.start == self._broker.logs[o.place].start),
            "an owner begins at the committed offset, or where auto_offset_reset points to",
            o,
            o.start,
            committed,
        )

    def _hook_begun(self, o: Ownership, hook: Hook) -> None:
        require(hook in o.policy.hooks, "a hook runs where it was hung", o, hook)
        require(hook not in o.hooks_run, "a hook runs once per ownership", o, hook)
        require(o.handed, "a hook runs only for what was handed a batch", o, hook)
        if hook is Hook.ON_REVOKED:
            require(o.ended and o.revoked_hook_due, "on_revoked runs after a hand-over or a loss", o)
        else:
            require(o.final_hook is hook and not o.lost, "the last hook fits the kind of end", o, hook, o.asked)
            require(o.seen is State.DRAINING, "the last hook runs while marks count", o, hook, o.seen)
        o.hooks_run.add(hook)
        self.reached[f"a hook ran: {hook.value}"] += 1

    def gives_up(self, run: Run, result: bool) -> None:
        """The handler has failed; ``result``: the group says that its message is to be set aside."""
        o = self.books[run.partition]
        if run.hook or o.policy.budget is None:
            require(not result, "only what has a budget is given up", o)
            return
        first = run.records[0].offset
        o.tries = {offset: tries for offset, tries in o.tries.items() if offset >= o.retry_position}  # else marked
        for record in run.records:
            if record.offset >= o.retry_position and (run.in_hand is None or record.offset <= run.in_hand):
                tries = o.tries.setdefault(record.offset, [0, 0])
                tries[0] += 1
                tries[1] += len(run.records) == 1
        spent = len(run.records) == 1 and o.tries.get(first, [0, 0])[1] >= o.policy.budget
        expected = spent and o.redirect is None and first >= o.retry_position and self.marks_count(o)
        require(result is expected, "a message is given up when its budget is spent, and not before", o, first, o.tries)
        if result:
            o.failed_send = False

    def set_aside(self, run: Run, now: float) -> None:
        """The message of ``run`` is in safety."""
        o = self._out(run)
        (record,) = run.records
        o.attempt, o.token = 1, None
        o.tries.pop(record.offset, None)
        o.done = record.offset + 1
        self.reached["a message was set aside"] += 1
        if not o.policy.manual_offsets:
            if self.marks_count(o):
                self._stored(o, record.offset + 1, now)
            return
        o.gone.add(record.offset)
        between = self._broker.logs[o.place].read(o.retry_position, 1)
        if between[0] is record:
            if self.marks_count(o):
                self._stored(o, o.retry_position, now)
        else:
            self.reached["a message was set aside with others unmarked before it"] += 1
            self._begin_next_at(o, o.retry_position)

    def _out(self, run: Run) -> Ownership:
        o = self.books[run.partition]
        require(not o.waiting, "a run ends with the answers to what it sent", o)
        o.running = None
        o.failed_send = False
        del o.member.process.inside[o.place]
        return o

    def run_ended(self, run: Run, *, failed: bool, now: float) -> None:
        unsent = self.books[run.partition].failed_send
        o = self._out(run)
        if run.hook and unsent and o.asked is None and not o.lost:
            self.reached["what a hook could not send came again"] += 1
            o.token = None
            o.not_before = max(o.not_before, now + o.policy.backoff.delay_ms(1) / 1000)
            if o.sought is None:
                self._begin_next_at(o, o.retry_position)
        if run.hook is Hook.EVERY:
            o.every_at[run.number] = now + o.policy.every_ms[run.number] / 1000
        elif run.hook is Hook.ON_REVOKED:
            o.revoked_hook_due = False
        elif run.hook:
            o.final_hook_done = True
        elif failed:
            self._batch_failed(o, run, now)
        elif o.redirect is not None or run.in_hand is not None:
            self._batch_left(o, run, now)
        else:
            o.attempt = 1
            o.done = run.records[-1].offset + 1
            for record in run.records:
                o.tries.pop(record.offset, None)
            o.gone = {gone for gone in o.gone if gone >= min(o.acked_offset or 0, run.records[0].offset)}
            if not o.policy.manual_offsets and self.marks_count(o):
                self._stored(o, o.done, now)

    def _batch_failed(self, o: Ownership, run: Run, now: float) -> None:
        o.not_before = now + o.policy.backoff.delay_ms(o.attempt) / 1000
        o.attempt += 1
        if o.redirect is None:
            self._begin_next_at(o, o.retry_position)
        else:
            self._redirect(o, o.redirect)
        o.token = None
        self.reached["a handler failed"] += 1
        self.reached["a handler failed during a drain"] += o.asked is not None and not o.ended

    def _batch_left(self, o: Ownership, run: Run, now: float) -> None:
        o.attempt = 1
        if o.redirect is not None:
            self._redirect(o, o.redirect)
            return
        done = [record.offset + 1 for record in run.records if record.offset < run.in_hand]
        self._begin_next_at(o, done[-1] if done else o.done)
        self.reached["a loop over each was left"] += 1
        if o.seq == o.seq_begun:
            o.not_before = now + o.policy.backoff.delay_ms(1) / 1000

    def _redirect(self, o: Ownership, target: Any) -> None:
        """User code wants to begin there, and to repeat from there."""
        self._begin_next_at(o, target)
        if isinstance(target, int):
            o.retry_position = target
            o.gone = {offset for offset in o.gone if offset < target}

    def _begin_next_at(self, o: Ownership, target: Any) -> None:
        o.queued = 0
        if isinstance(target, int):
            o.fetch_next = o.hand_next = o.done = target
            o.sought = None
        else:
            o.sought = target

    def redirected(self, partition: Partition, target: Any, result: bool) -> None:
        o = self.books[partition]
        require(result is self.marks_count(o), "a seek counts while the partition is ours", o)
        if result:
            o.redirect = target
            self.reached["user code has sought"] += 1

    def found(self, member: Any, place: TopicPartition, target: object, offset: int) -> None:
        o = self.open[member].get(place)
        if o is not None and o.sought == target:
            self._redirect(o, offset)
            self.reached["a place that only the cluster knew was found"] += 1

    def rested(self, partition: Partition, until: float, result: bool) -> None:
        o = self.books[partition]
        require(result is self.marks_count(o), "a pause counts while the partition is ours", o)
        if result:
            o.rests_until = until
            self.reached["user code has paused"] += 1

    # -- offsets

    def marks_count(self, o: Ownership) -> bool:
        """As the contract says: until the ownership releases its partition or is lost."""
        return not o.lost and o.seen < State.RELEASING

    def marked(self, partition: Partition, offset: int, result: bool, now: float) -> None:
        o = self.books[partition]
        require(result is self.marks_count(o), "a mark counts while the partition is ours", o, offset, result, o.seen)
        if not result:
            self.reached["a mark was refused"] += 1
        elif o.failed_send:
            self.reached["a mark behind a failed send was void"] += 1
        else:
            self.reached["a mark went backward"] += o.stored is not None and offset < o.stored
            self._stored(o, offset, now)

    def _stored(self, o: Ownership, offset: int, now: float) -> None:
        while (following := self._broker.logs[o.place].read(offset, 1)) and following[0].offset in o.gone:
            offset = following[0].offset + 1
            self.reached["a message that was set aside counted as marked"] += 1
        o.store(offset, now)
        self.reached["a mark waited for a send"] += bool(o.trail)
        self._cover(o)

    def _cover(self, o: Ownership) -> None:
        """What is backed is processed."""
        covered = self.covered[o.place]
        assert o.start is not None
        require(covered is not None and o.start <= covered, "an ownership begins where everything before is done", o)
        self.covered[o.place] = max(o.backed.offset or 0, covered or 0)

    # -- sends

    def sent(self, partition: Partition, send: object) -> None:
        o = self.books[partition]
        o.waiting.add(send)
        o.trail.append(send)
        o.retry_at[send] = o.retry_position

    def answered(self, partition: Partition, send: object, failed: bool, now: float) -> None:
        o = self.books[partition]
        o.waiting.remove(send)
        if failed:
            self.reached["a send failed"] += 1
            self.reached["a send failed, and the marks behind it were void"] += send in o.trail and o.trail[-1] != send
            o.send_failed(send, now)
        o.trim(now)
        if self.covered[o.place] is not None:
            self._cover(o)

    def batched(self, group: Group, commits: Sequence[Commit]) -> list[tuple[Ownership, int, int]]:
        """The committer was given ``commits``; each with the number of its store, by our own counting."""
        batch = []
        for commit in commits:
            o = self.books[commit.partition]
            require(group.owned.get(o.place) is commit.partition and not o.ended, "only what is ours is committed", o)
            require(
                commit.offset == o.backed.offset and o.committable,
                "what is stored is committed once everything that was sent before it is acknowledged",
                *(o, commit.offset, o.backed, o.trail),
            )
            batch.append((o, commit.offset, o.backed.seq))
        return batch

    def applied(self, batch: Sequence[tuple[Ownership, int, int]], generation: int) -> None:
        """The broker has accepted ``batch``."""
        for o, offset, seq in batch:
            require(generation == o.generation, "nothing is committed for an earlier ownership", o, generation)
            require(offset in o.stored_ever, "what is committed was stored by the owner", o, offset)
            if o.start_uncommitted_latest and self.covered[o.place] is None:
                self.covered[o.place] = offset
                self.reached["a start at the end of the log was committed"] += 1
            covered = self.covered[o.place]
            require(covered is not None and offset <= covered, "nothing unprocessed is committed", o, offset, covered)
            committed = self._broker.committed.get(o.place, 0)
            if not self._backward_marks:
                require(o.stored is not None and committed <= offset <= o.stored, "committed <= stored", o, offset)
            self.reached["a backward mark was committed"] += offset < committed
            self._broker.committed[o.place] = offset
            o.applied_seq = max(o.applied_seq, seq)

    def count_tries(self, member: Any, topics: set[str], accepted: bool) -> None:
        """A commit was tried: how long has each topic waited for its turn, to be tried without any other?"""
        for o in self.open[member].values():
            its_turn = o.place[0] in topics and (accepted or len(topics) == 1)
            o.passed_over = 0 if not o.committable or its_turn else o.passed_over + 1
            require(o.passed_over <= 8, "a topic that refuses commits does not hold up the others", o, o.passed_over)

    def acknowledged(self, batch: Sequence[tuple[Ownership, int, int]], now: float) -> None:
        for o, offset, seq in batch:
            if not o.lost:
                o.acked_seq, o.acked_offset = max(o.acked_seq, seq), offset
                o.unacked_since = now

    # -- after each event

    def compare(self, member: Any, now: float) -> None:
        """The group's books of what ``member`` owns against ours."""
        group: Group = member.group
        ended = [o for o in self.open[member].values() if not self._compare_one(o, now)]
        for o in ended:
            del self.open[member][o.place]
            self._end(o)
            require(group.owned.get(o.place) is not o.partition, "what is over is not owned", o)
            if o.busy:
                require(group.leftovers.get(o.place) is o.partition, "what still runs is remembered", o)
        require(len(group.owned) == len(self.open[member]), "what is owned is open", member)
        for place, partition in group.leftovers.items():
            left = self.books[partition]
            require(left.ended and (left.busy or left.member is not member), "leftovers are forgotten", member, place)

    def _compare_one(self, o: Ownership, now: float) -> bool:
        """False when the ownership is over."""
        p = o.partition
        if p.state is not o.seen or o.lost:
            self._observe(o, p.state, now)
        require(p.stored == o.stored, "stored is what was marked last", o, p.stored, o.stored)
        require(p.attempt == o.attempt, "attempts are counted", o, p.attempt, o.attempt)
        require(p.backlog.size == o.queued, "the queue holds what was fetched", o, p.backlog.size, o.queued)
        require(p.running is (o.running is not None), "who runs is known", o)
        require(p.user_state.get("token") is o.token, "the state is kept over batches, and emptied by a failure", o)
        if not o.lost:
            require(p.pending is not o.acked, "pending until the broker has it", o, p.stored, p.committed)
            require(p.committable is o.committable, "a mark waits for what was sent before it", o, p.backed, o.backed)
            require(o.acked_seq <= o.applied_seq, "acknowledged is on the broker", o)
        if o.stored is not None:
            require(o.stored <= max(o.highest, o.start or 0), "stored <= delivered", o, o.stored, o.highest)
        if o.seen >= State.REVOKED:
            return False
        require(not (o.seen is State.DRAINING and o.code_ended), "a drain ends with the last user code", o)
        require(not (o.seen is State.RELEASING and o.acked), "a hand-over ends with its commit", o)
        return True

    def _observe(self, o: Ownership, state: State, now: float) -> None:
        """``o`` has moved on to ``state``: was it allowed to?"""
        before, o.seen = o.seen, state
        require(state >= before, "states go forwards", o, before, state)
        require((state is State.LOST) is o.lost, "a loss ends an ownership at once, and nothing else does", o, state)
        if o.lost:
            return
        require(o.asked, "an ownership ends for a reason", o, state)
        if before < State.RELEASING <= state:
            require(o.code_ended or now >= o.deadline, "user code has until the bound of the drain", o, now, o.deadline)
            o.released_at = now
            o.commit_deadline = max(o.deadline, now + FINAL_COMMIT_S)
            if not o.code_ended:
                self.reached[f"the drain bound was over while a handler ran ({o.asked})"] += o.running is not None
                if o.final_hook and o.final_hook not in o.hooks_run:
                    self.reached[f"a hook was left out: {o.final_hook.value}"] += 1
        if state is State.REVOKED:
            in_time = now < o.commit_deadline
            require(o.acked or not in_time, "the last commit has until its bound", o, now, o.commit_deadline)
            self.reached["the last commit was given up"] += not o.acked

    def _end(self, o: Ownership) -> None:
        o.ended = True
        o.queued = 0
        if o.handed and Hook.ON_REVOKED in o.policy.hooks:
            o.revoked_hook_due = o.lost or o.asked == "revoke"
        self._over[o.member.process, o.place].append(o)

    def settled(self, member: Any, now: float) -> None:
        """After ``advance``: no bound that is over is left standing."""
        for o in self.open[member].values():
            require(o.seen is not State.DRAINING or now < o.deadline, "a drain ends at its bound", o)
            require(o.seen is not State.RELEASING or now < o.commit_deadline, "a last commit ends at its bound", o)

    # -- promises about time

    def due(self, member: Any) -> tuple[float, str]:
        """When the group has to be looked at next, and why, so that nothing is late."""
        first, reason = FOREVER, ""
        for o in self.open[member].values():
            for at, why in self._due_of(o, member):
                if at < first:
                    first, reason = at, f"{why} of {o}"
        return first, reason

    def _due_of(self, o: Ownership, member: Any) -> Iterable[tuple[float, str]]:
        if o.seen is State.DRAINING:
            yield o.deadline, "the bound of the drain"
        if o.seen is State.RELEASING:
            yield o.commit_deadline, "the bound of the last commit"
        if o.committable and not member.committing:
            yield max(o.unacked_since + member.commit_interval, member.commit_retry_at), "the interval commit"
            if o.seen is State.RELEASING:
                yield max(o.released_at, member.commit_retry_at), "the last commit"
            if member.commit_requested_at is not None and o.backed.number < member.commit_requested_number:
                yield max(member.commit_requested_at, member.commit_retry_at), "the requested commit"
        if not o.in_jobs and o.running is None:
            yield self._code_due(o, member), "user code"

    def _code_due(self, o: Ownership, member: Any) -> float:
        if o.seen is State.DRAINING and not o.code_ended:
            return 0.0
        if o.seen is not State.ASSIGNED:
            return FOREVER
        return min([self._batch_due(o, member), *o.every_at])

    def _batch_due(self, o: Ownership, member: Any) -> float:
        elsewhere = o.partition.predecessor is not None and any(p.member is not member for p in o.predecessors)
        if not o.queued or elsewhere or any(p.busy for p in o.predecessors):
            return FOREVER
        if o.start_uncommitted_latest and not o.handed and not o.acked:
            return FOREVER
        isolated = any(map(o.is_isolated, self._next_in_log(o, 1)))
        enough = o.queued >= o.policy.max_messages or o.partition.paused
        if enough or not o.policy.batch_timeout_ms or isolated:
            return max(o.not_before, o.rests_until)
        return max(o.not_before, o.rests_until, o.queued_since + o.policy.batch_timeout_ms / 1000)

    # -- at the end of a world

    def hooks_waiting(self) -> list[Ownership]:
        return [o for over in self._over.values() for o in over if o.busy]
