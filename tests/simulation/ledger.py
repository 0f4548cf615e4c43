"""The second opinion: what must be true of every ownership, from what happened to it and from nothing else.

The watchers (``watch.py``) tell the ledger what the runner did under its lock and what came back. The ledger keeps its
own books (what was handed over, marked, sent to the broker, known to be there) and compares them with the group's each
time the lock is released.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from exact import Calls, ExactLedger
from greenlet import getcurrent
from parts import PartBook, PartsLedger
from simulated_client import RECORD_BYTES
from steps import FOREVER

from karafka_lite.core.answers import Commit, Outcome, PollPlan
from karafka_lite.core.group import FINAL_COMMIT_S, Group
from karafka_lite.core.marks import Refusal
from karafka_lite.core.options import Hook, RegisteredHook
from karafka_lite.core.ownership import Ownership, Run, State
from karafka_lite.core.sends import Send
from karafka_lite.core.starts import Place, Start, Stray
from karafka_lite.errors import CRITICAL, ProduceError
from karafka_lite.messages import TopicPartition

if TYPE_CHECKING:
    from simulated_broker import Broker, Log, Record
    from simulated_runner import Life

EPSILON = 1e-6
NUMBERS = itertools.count(1)
LASTING_RETRY_S = 5.0, 5.0  # between two tries of a commit that was refused for good
COMMIT_RETRY_S = 0.1, 1.0  # the shortest and the longest wait between two tries of a commit
SLACK_S = 5.0  # how late threads may be scheduled, all together, when something has a bound


def blameless(o: Book | PartBook, run: Run) -> bool:
    """Whether a run has failed because another message was refused; what user code raises of it says so as well."""
    error = run.error
    while error is not None and not isinstance(error, ProduceError):
        error = error.__cause__ or error.__context__
    return error is not None and error.collateral and not o.own_fault


class Violation(AssertionError):
    """A promise of the contract is broken."""


def violated(promise: str, *details: object) -> None:
    """End the world. The thread that found it does not go on: user code, and the runner, would catch what it raises."""
    error = Violation(f"{promise}: {', '.join(map(str, details))}")
    hub = getcurrent().parent
    if hub is None:
        raise error
    hub.throw(error)


def require(fact: Any, promise: str, *details: object) -> None:
    """End the world with a Violation that names the ``promise`` unless ``fact``."""
    if not fact:
        violated(promise, *details)


class Mark(NamedTuple):
    """One store."""

    seq: int
    offset: int | None
    number: int  # of all that was stored and requested


class Leaving:
    """A message that user code has sent, and what a failure takes the ownership back to."""

    def __init__(self, retry_position: int, gone: set[int]) -> None:
        self.retry_position, self.gone = retry_position, gone
        self.waits = True  # for its answer


class Book:
    """What the ledger knows of one ownership."""

    exact = False

    def __init__(self, ledger: Ledger, life: Life, ownership: Ownership, predecessors: list[Book]) -> None:
        self.ledger = ledger
        self.life = life
        self.ownership = ownership
        self.tp: TopicPartition = ownership.tp
        self.log = ledger.logs[self.tp]
        self.options = ownership.options
        self.generation = life.client.generation()
        self.predecessors = predecessors  # of this process; their user code must end first
        self.seen = State.ASSIGNED
        self.automatic = False  # the group is marking by itself

        self.start: int | None = None
        self.start_uncommitted = False  # and has to be committed before anything else
        self.seek_to: int | None = None  # where the client has yet to be moved to
        self.sought: object = None  # where to begin, while nobody knows the offset
        self.fetch_next = self.hand_next = 0
        self.queued = 0
        self.queued_since = 0.0
        self.in_jobs = False
        self.running: Run | None = None  # of parts: the batch
        self.parts: dict[Run, PartBook] = {}  # that run
        self.begun_parts: list[Run] = []  # of the batch
        self.failed_parts: list[PartBook] = []
        self.spins = self.repeats = False  # it was left where a part had done nothing; something of it comes again
        self.handed = False
        self.lowest, self.highest = FOREVER, 0  # the first message handed over, and past the last one
        self.done = 0  # where the next batch begins
        self.began_at = 0  # ``done`` of the running batch
        self.attempt = 1
        self.not_before = 0.0
        self.rests_until = 0.0
        self.every_at: dict[RegisteredHook, float] = {}
        self.hooks_first = 0  # runs of ``every`` since the batch that waits was ready
        self.seq_begun = 0  # of stores, when the batch began
        self.redirect: Any = None  # where the running code wants the next batch to start
        self.retry_position = 0
        self.token: object = None
        self.opening = list(ownership.options.hooks_of(Hook.ON_ASSIGNED))  # that have yet to return
        self.opens = len(self.opening)
        self.opened: object = None  # what on_assigned has put into the state
        self.kept: object = None  # the same, as it was when a function of it returned last
        self.no_worker = False  # will come any more
        self.marking: str | None = None  # how its handler goes about it
        self.was_revoked = False  # as user code has seen

        self.stored: int | None = None
        self.stored_ever: set[int] = set()
        self.seq = self.acked_seq = self.applied_seq = 0  # of stores: made, known to be on the broker, on the broker
        self.acked_offset: int | None = None
        self.seqs = 0  # how many there were, void ones included
        self.version = 0  # the highest of the group's own numbers of stores
        self.void: set[int] = set()  # stores that a failed send has undone
        self.last_mark: dict[object, tuple[bool, int]] = {}  # of each thread: whether it was stored, and as which one
        self.backed = Mark(0, None, 0)  # the newest mark with every send before it acknowledged
        self.trail: list[
            Mark | Leaving
        ] = []  # what came after it: messages that were sent, and marks that wait for them
        self.waiting: dict[Send, list[Leaving]] = {}  # messages without an answer, by what the group counts them with
        self.failed_send = False  # of the code that runs
        self.own_fault = False  # it was refused what it has sent, and not because of another message
        self.raised = False  # the code that runs has raised
        self.waits_no_more = False  # the code that runs is about to end: it does not wait for answers any longer
        self.unacked_since = 0.0

        self.tries: dict[int, int] = {}  # offset -> how often it was tried in vain
        self.suspects: set[int] = set()  # offsets of a batch that failed nobody knows where
        self.gone: set[int] = set()  # given up, and not known to be committed
        self.deleted: set[int] = set()  # by retention, before they were fetched
        self.strayed: Stray | None = None  # a position that the log does not have
        self.refused = False  # the last commit
        self.refused_seq: int | None = None  # a store that was refused for good
        self.commit_not_before = self.commit_retry_at = 0.0  # when the next try comes, after a refusal

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
    def given_up(self) -> bool:
        """Nobody waits for its commit: it was refused for good."""
        return self.refused_seq == self.seq

    @property
    def open(self) -> bool:
        """User code may have something to close."""
        return self.handed or len(self.opening) < self.opens

    def reset_state(self) -> None:
        self.token, self.opened = None, self.kept

    @property
    def committable(self) -> bool:
        return self.acked_seq != self.backed.seq

    @property
    def all_backed(self) -> bool:
        """Nothing that is stored waits for a send."""
        return self.seq == self.backed.seq

    @property
    def ours(self) -> bool:
        """Marks count: until the ownership releases its partition or is lost."""
        return not self.lost and self.seen < State.RELEASING

    def is_suspect(self, record: Record) -> bool:
        return record.offset in self.suspects

    def is_done_with(self, offset: int) -> None:
        self.tries.pop(offset, None)
        self.suspects.discard(offset)

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
        """A mark before which no send waits is backed."""
        while self.trail and not (isinstance(self.trail[0], Leaving) and self.trail[0].waits):
            mark = self.trail.pop(0)
            if isinstance(mark, Mark):
                if not self.committable:
                    self.unacked_since = now
                self.backed = mark

    def send_failed(self, message: Leaving) -> None:
        """Everything after ``message`` is void."""
        self.failed_send = True
        if message in self.trail:
            index = self.trail.index(message)
            self.void.update(mark.seq for mark in self.trail[index:] if isinstance(mark, Mark))
            del self.trail[index:]
            marks = [mark for mark in self.trail if isinstance(mark, Mark)]
            last = marks[-1] if marks else self.backed
            self.seq, self.stored = last.seq, last.offset
            self.void.discard(last.seq)  # it was stored again after the send
            self.retry_position = message.retry_position
            self.ledger.reached["a failed send undid that a message was given up"] += message.gone != self.gone
            self.gone = message.gone

    def after(self, message: Leaving) -> list[Mark | Leaving]:
        """What came after ``message``; nothing, where it is void or forgotten."""
        return self.trail[self.trail.index(message) + 1 :] if message in self.trail else []

    def __str__(self) -> str:
        return f"{self.tp[0]}-{self.tp[1]}/{self.life}"


class ExactBook(Book):
    """The same, of a partition with ``exactly_once``: what is visible says more of its offsets than any books."""

    exact = True

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.calls = Calls()  # that have begun, and are not over
        self.had_to_commit = False
        self.claimed_at = FOREVER  # when a run began to wait for its commit
        self.leaves_it_to_hooks: bool | None = None

    @property
    def acked(self) -> bool:
        return not self.ownership.marks.pending

    @property
    def given_up(self) -> bool:
        return not self.ownership.marks.awaited

    @property
    def committable(self) -> bool:
        return self.had_to_commit and self.ownership.marks.committable

    @property
    def all_backed(self) -> bool:
        return self.ownership.marks.commit_point[1] == self.ownership.marks.version

    @property
    def awaited(self) -> bool:
        """A run waits for its commit."""
        return any(call.waits_since is not None for call in self.calls.values())

    def store(self, offset: int, now: float) -> None:
        """A start: nothing else is said."""


class Sent(NamedTuple):
    """One offset on its way to the broker, and which of its owner's stores it is."""

    book: Book
    offset: int
    seq: int


class Books:
    """What the ledger knows of one member."""

    def __init__(self, life: Life) -> None:
        self.life = life
        self.open: dict[TopicPartition, Book] = {}  # not over
        self.plan: PollPlan | None = None  # that was made, and is not applied yet
        self.has_to_rejoin = False  # because it said by itself that it is lost
        self.commit_requested_at: float | None = None
        self.commit_requested_number = 0
        self.stopped_at: float | None = None
        self.lost_partitions: Counter[TopicPartition] = Counter()  # less those that an event has named
        self.wake_at = 0.0  # until when the committer may sleep
        self.found_nothing = False  # the last look for something to commit, since the lock was taken
        self._committed_at = 0.0
        self._unasked = 0  # commits in a row for which there was no reason
        self._batch: dict[TopicPartition, Sent] = {}
        self.transaction: Sequence[Sent] = ()  # that is under way
        self.undecided = False  # nobody knows whether it is committed

    @property
    def committing(self) -> bool:
        return bool(self._batch)

    def requested(self, now: float) -> None:
        self.commit_requested_number = next(NUMBERS)
        if self.commit_requested_at is None:
            self.commit_requested_at = now

    def handed_over(self, tps: Sequence[TopicPartition], began: float) -> None:
        """A rebalance has got ``tps``."""
        self.within_bounds(began, "a hand-over")
        kept = [tp for tp in tps if tp in self.open]
        require(not kept, "what is handed over is over", self.life, *kept)

    def within_bounds(self, began: float, what: str) -> None:
        took = self.life.world.now - began
        bound = self.life.drain_s + FINAL_COMMIT_S + SLACK_S
        frozen = self.life.process.frozen_until >= began
        require(took <= bound or frozen, f"{what} ends within its bound", self.life, took)

    # -- commits

    def batched(self, commits: Sequence[Commit], now: float) -> None:
        """The committer was given ``commits``."""
        books = self.open.values()
        if all(o.acked for o in books):
            self.commit_requested_at = None
        self.found_nothing = not commits
        if not commits:
            return
        self._batch = {commit.ownership.tp: self._sent(commit) for commit in commits}
        self._is_asked_for(commits, now)
        if all(o.all_backed for o in books):
            self.commit_requested_at = None  # else it waits for what was sent
        for o, _, _ in self._batch.values():
            waited = now >= o.commit_not_before - EPSILON
            require(waited, "a failed commit is tried again after a pause", o, now, o.commit_not_before)

    def _sent(self, commit: Commit) -> Sent:
        o = self.open.get(commit.ownership.tp)
        ours = o is not None and o.ownership is commit.ownership and not o.ended
        require(ours, "only what is ours is committed", commit.ownership)
        assert o is not None
        if o.exact:
            return Sent(o, commit.offset, commit.version)
        require(
            commit.offset == o.backed.offset and o.committable,
            "what is stored is committed once everything that was sent before it is acknowledged",
            *(o, commit.offset, o.backed, o.trail),
        )
        return Sent(o, commit.offset, o.backed.seq)

    def on_the_way(self, commits: Iterable[Commit]) -> list[Sent]:
        """The client is to make ``commits``."""
        sent = [self._batch[commit.ownership.tp] for commit in commits if commit.ownership.tp in self._batch]
        due = [one.offset for one in sent] == [commit.offset for commit in commits]
        require(due, "what is due is committed", self.life, self._batch, commits)
        return sent

    def answered(self, commits: Iterable[Commit], refusals: Mapping[TopicPartition, Refusal], now: float) -> list[Sent]:
        """The client has answered; returns what was acknowledged."""
        sent = self.ended(commits)
        for o, _, seq in sent:
            refusal = refusals.get(o.tp)
            o.refused = refusal is not None
            o.refused_seq = seq if refusal is not None and refusal.lasting else None
            waits = (0.0, 0.0) if refusal is None else LASTING_RETRY_S if refusal.lasting else COMMIT_RETRY_S
            o.commit_not_before, o.commit_retry_at = (now + wait if wait else 0.0 for wait in waits)
        return [one for one in sent if one.book.tp not in refusals]

    def ended(self, commits: Iterable[Commit]) -> list[Sent]:
        """Whatever became of them, they are not under way any more."""
        return [self._batch.pop(tp) for tp in [commit.ownership.tp for commit in commits] if tp in self._batch]

    def _is_asked_for(self, commits: Sequence[Commit], now: float) -> None:
        """By the interval, somebody who waits, a hand-over, or a failure before; now and then once more."""
        releasing = any(commit.ownership.state is State.RELEASING for commit in commits)
        interval = now >= self._committed_at + self.life.commit_interval_s - EPSILON
        again = any(one.book.refused or one.book.exact for one in self._batch.values())
        asked = releasing or interval or self.commit_requested_at is not None or again
        self._committed_at = now
        self._unasked = 0 if asked else self._unasked + 1
        require(self._unasked <= 8, "commits keep to their interval", self.life, self._unasked)

    # -- promises about time

    def due(self) -> tuple[float, str]:
        """When the group has to be looked at next, and why, so that nothing is late."""
        first, reason = FOREVER, ""
        for o in self.open.values():
            for moment, why in self._due_of(o):
                if moment < first:
                    first, reason = moment, f"{why} of {o}"
        return first, reason

    def _due_of(self, o: Book) -> Iterator[tuple[float, str]]:
        if o.seen is State.DRAINING:
            yield o.deadline, "the bound of the drain"
        if o.seen is State.RELEASING:
            yield o.commit_deadline, "the bound of the last commit"
        if o.committable and not self.committing:
            yield max(o.unacked_since + self.life.commit_interval_s, o.commit_retry_at), "the interval commit"
            if o.seen is State.RELEASING:
                yield max(o.released_at, o.commit_retry_at), "the last commit"
            if o.exact:
                if o.awaited and o.ownership.marks.released:  # type: ignore[attr-defined]
                    yield max(o.unacked_since, o.claimed_at, o.commit_retry_at), "a commit that a run waits for"  # type: ignore[attr-defined]
            elif self.commit_requested_at is not None and o.backed.number < self.commit_requested_number:
                yield max(self.commit_requested_at, o.commit_retry_at), "the requested commit"
            if o.refused:
                yield o.commit_retry_at, "the next try of a commit"
        if not o.in_jobs and not o.ownership.scheduled and o.running is None:
            yield self._code_due(o), "user code"
        elif not o.in_jobs and o.options.parts and o.ownership.waiting:  # type: ignore[attr-defined]
            yield 0.0, "a part"

    def _code_due(self, o: Book) -> float:
        if o.seen is State.DRAINING and not o.code_ended:
            return 0.0
        if o.seen is not State.ASSIGNED:
            return FOREVER
        elsewhere = o.ownership.predecessor is not None and any(p.life is not self.life for p in o.predecessors)
        if elsewhere or any(p.busy for p in o.predecessors):
            return FOREVER
        if o.opening:
            return FOREVER if o.start is None else o.not_before
        if o.exact:
            return FOREVER if (moment := o.ownership.ready_at()) is None else moment
        return min([o.ledger.batch_due(o)[0], *o.every_at.values()])


class Ledger(PartsLedger, ExactLedger):
    """The books of one world: all ownerships of all processes."""

    def __init__(self, broker: Broker, reset: str, *, backward_marks: bool, reached: Counter[str]) -> None:
        super().__init__()
        self._broker = broker
        self._reset = reset
        self._backward_marks = backward_marks
        self.reached = reached
        self.books: dict[Ownership, Book] = {}
        self._over: dict[tuple[Any, TopicPartition], list[Book]] = defaultdict(list)  # process -> over
        # How far each log is processed without a hole; None: nobody has begun (latest).
        self.covered: dict[TopicPartition, int | None] = {
            tp: log.start if reset == "earliest" else None for tp, log in broker.logs.items()
        }

    def __getitem__(self, ownership: Ownership) -> Book:
        return self.books[ownership]

    def of(self, run: Run) -> Book | PartBook:
        """Who has to know what becomes of ``run``."""
        o = self.books[run.ownership]
        if o.exact:
            return o.calls[run]  # type: ignore[attr-defined, no-any-return]
        return o.parts[run] if run.is_part else o

    # -- assignment

    @property
    def logs(self) -> dict[TopicPartition, Log]:
        return self._broker.logs

    @property
    def committed(self) -> dict[TopicPartition, int]:
        """What the broker has for the topics that there are."""
        broker = self._broker
        return {tp: at for tp, at in broker.committed.items() if broker.notes[tp].topic_id == broker.logs[tp].topic_id}

    def assigned(self, life: Life, tps: Sequence[TopicPartition]) -> None:
        require(life.client.reporting, "an assignment is of the client that is ours", life)
        life.books.has_to_rejoin = False
        self.reached["an assignment came while stopping"] += life.member.group.stopping and bool(tps)
        for tp in tps:
            require(tp not in life.books.open, "a partition has one ownership at a time", tp)

    def owned(self, life: Life, ownership: Ownership) -> Book:
        over = self._over[life.process, ownership.tp]
        over[:] = [o for o in over if o.busy]
        require(ownership not in self.books, "an assignment makes a new ownership", ownership)
        require(ownership.tp not in life.books.open, "a partition has one ownership at a time", ownership)
        self.reached["an ownership waited for its predecessor's handler"] += bool(over)
        o = (ExactBook if ownership.options.exactly_once else Book)(self, life, ownership, list(over))
        self.books[ownership] = life.books.open[ownership.tp] = o
        return o

    def remade(self, topic: str) -> None:
        """A topic was deleted and made anew."""
        self.reached["a topic was made anew"] += 1
        for tp in [tp for tp in self.logs if tp[0] == topic]:
            self.covered[tp] = self.logs[tp].start if self._reset == "earliest" else None

    def replaced(self, life: Life, tp: TopicPartition, now: float) -> None:
        """Another ownership takes the place of one of a topic that was made anew."""
        o = life.books.open.pop(tp, None)
        if o is None:
            return
        require(o.strayed is not None and o.log is not self.logs[tp], "an ownership is replaced for a reason", o)
        self.reached["a topic was made anew under a handler"] += o.running is not None
        self.reached["a topic was made anew with marks pending"] += not o.acked
        o.lost, o.queued, o.seek_to = True, 0, None
        self._observe(o, o.ownership.state, now)
        self._end(o)

    def deleted(self, tp: TopicPartition) -> None:
        """Retention has moved a log's start: what was before it is lost to all."""
        covered = self.covered[tp]
        if covered is not None:
            self.covered[tp] = max(covered, self._broker.logs[tp].start)

    def strayed(self, life: Life, tp: TopicPartition, stray: Stray) -> None:
        o = life.books.open.get(tp)
        if o is None or o.start is None:
            return
        if o.exact or stray.position is None or (o.seek_to is None and o.sought is None):
            o.strayed = stray

    def placed(self, life: Life, o: Book, place: Place, start: Start | None, now: float) -> None:
        successor = life.books.open.get(o.tp)
        if o.ownership.state is State.LOST and not o.lost:  # it was to be given away
            require(o.asked and o.strayed is not None and start is None, "who is not replaced was to be given away", o)
            o.lost, o.queued, o.seek_to = True, 0, None
            return
        if o.strayed is not None and o.ended and successor is not None and successor.start is None and start:
            o.strayed, successor.automatic = None, False
            self._begins(successor, place._replace(committed=None), start, now)
            return
        expected = not o.ended and not o.lost and (o.start is None or o.strayed is not None)
        self.reached["a start came for an earlier ownership"] += not expected
        require(expected or start is None, "an answer to an earlier ownership changes nothing", o, start)
        if not expected:
            return
        asked_for = o.life.client.asked_for.get(o.tp)
        require(asked_for is o, "an ownership begins with the answer that it asked for", o, asked_for)
        if o.start is None:
            self._begins(o, place, start, now)
            return
        assert o.strayed is not None
        if o.exact:
            o.strayed = None
            return
        position, o.strayed = o.strayed.position, None
        if position is None or position >= place.start:  # it is there after all, or was when the cluster was asked
            require(start is None, "what the log has is read", o, start)
            return
        right = start is not None and start[:4] == (place.start, "deleted", position, place.start - position)
        require(right, "a reader that retention has overtaken goes on at the log's start, which is said", o, start)
        self.reached["retention was faster than a reader"] += 1
        left = o.log.read(position, 1 << 30)
        o.deleted.update(record.offset for record in left if record.offset < place.start)
        o.fetch_next = place.start
        o.seek_to = None if o.asked else place.start

    def _begins(self, o: Book, place: Place, start: Start | None, now: float) -> None:
        committed = place.committed
        assert start is not None
        if o.log.topic_id != place.topic_id:  # what it was assigned, or what it begins with, was deleted meanwhile
            current = self.logs[o.tp]
            o.log = current if current.topic_id == place.topic_id else self._broker.gone[o.tp, place.topic_id]
        if start.reason == "recreated":
            foreign = committed is None or place.note.topic_id != place.topic_id
            require(foreign, "what was committed for another topic does not count", o, place)
            wanted = (place.start, "recreated")
        elif committed is not None:
            wanted = (max(committed, place.start), "deleted" if committed < place.start else "committed")
        elif self._reset == "earliest":
            wanted = (place.start, "earliest")
        else:  # a member that has waited for the topic begins at its start
            wanted = (place.start, "new") if start.reason == "new" else (place.latest, "latest")
        require(start[:2] == wanted, "an ownership begins where the table says", o, start, place)
        offset = o.start = o.fetch_next = o.hand_next = o.retry_position = o.done = start.offset
        o.seek_to = None if o.asked else offset
        if start.reason == "committed":
            o.stored = o.acked_offset = offset
            o.backed = Mark(0, offset, 0)
            o.stored_ever.add(offset)
        elif start.reason != "earliest":
            self.reached["retention was faster at a start"] += start.reason == "deleted"
            o.start_uncommitted = True
            o.store(offset, now)

    def asked(self, life: Life, tps: Iterable[TopicPartition], why: str, now: float) -> None:
        """``why``: a rebalance wants ``tps`` ("revoke"), or the app stops ("stop")."""
        hook = Hook.BEFORE_REVOKE if why == "revoke" else Hook.ON_SHUTDOWN
        if why == "revoke":
            require(life.client.reporting, "a rebalance is of the client that is ours", life)
        else:
            life.books.stopped_at = now
        for tp in tps:
            o = life.books.open.get(tp)
            if o is None:
                continue
            if o.asked:
                self.reached[f"{why} while already ending by {o.asked}"] += o.asked != why
                continue
            o.asked, o.deadline, o.queued, o.seek_to = why, now + life.drain_s, 0, None
            o.final_hook = hook if o.open and o.options.hooks_of(hook) else None
            self.reached["a stop during back-off"] += why == "stop" and not o.running and now < o.not_before

    def lost(self, life: Life, rejoin: bool, now: float) -> None:
        client, open_books = life.client, life.books.open
        if open_books and not rejoin:
            require(client.reporting or client.broken, "a loss is reported by the client that is ours", life)
        elif open_books:
            undecided = life.books.undecided
            require(undecided or client.lost(now), "a member is lost when its client says so", life)
            self.reached["a member was lost because nobody knew what it had committed"] += undecided
            self.reached["a member declared its own loss"] += 1
            life.books.has_to_rejoin = True
        for o in open_books.values():
            o.lost, o.queued, o.seek_to = True, 0, None
            life.books.lost_partitions[o.tp] += 1
            self.reached["a loss while a handler ran"] += o.running is not None
            self.reached["a loss during a drain"] += o.asked is not None

    def crashed(self, process: Any) -> None:
        for key in [key for key in self._over if key[0] is process]:
            del self._over[key]

    def closed(self, life: Life) -> None:
        """The member has left: its hooks that had no time are left out."""
        life.books.within_bounds(life.member._wind_down_until - life.drain_s, "a stop")
        self.reached["a stop left a stuck handler behind"] += bool(life.process.inside)
        for (process, _), over in self._over.items():
            for o in over:
                if process is life.process and o.ownership in life.member.group.leftovers.values():
                    self.reached["a member left with an on_revoked hook waiting"] += o.revoked_hook_due
                    o.revoked_hook_due, o.no_worker = False, True

    # -- what the poller does

    def planned(self, life: Life, plan: PollPlan) -> None:
        """A plan was made: everything that has to be done is in it."""
        books = life.books
        if books.plan is not None:
            self.reached["a plan was dropped and made again"] += 1
        books.plan = None if plan.is_empty else plan
        require(plan.rejoin or not books.has_to_rejoin, "a member that declares its own loss joins again", life)
        require(not (plan.rejoin and books.open), "who has joined again stays", life)
        for o in books.open.values():
            if o.seen is State.ASSIGNED and o.seek_to is not None and not o.exact:
                planned = plan.seeks.get(o.ownership)
                require(planned == o.seek_to, "a seek is planned until it is done", o, planned, o.seek_to)
        limits = life.limits.shared_by(len(books.open) or 1)
        for ownership in plan.pause:
            full_of_bytes = ownership.intake.size_bytes >= limits.size_bytes
            self.reached["a queue was full of bytes" if full_of_bytes else "a queue was full of messages"] += 1

    def carried_out(self, life: Life, plan: PollPlan) -> None:
        life.books.plan = None
        life.books.has_to_rejoin &= not plan.rejoin
        for ownership, offset in plan.seeks.items():
            o = self.books[ownership]
            if o.seek_to == offset:
                o.seek_to = None
        for o in life.books.open.values():
            fetch = life.client.assignment.get(o.tp)
            if fetch and o.seen is State.ASSIGNED:
                agreed = fetch.paused is o.ownership.intake.paused
                require(agreed, "a pause and a resume are planned until they are done", o, fetch.paused)

    def fetched(self, life: Life, tp: TopicPartition, records: Sequence[Record], wanted: bool, now: float) -> None:
        o = life.books.open.get(tp)
        self.reached["fetched records were dropped"] += not wanted
        if not wanted:
            return
        require(o is not None and o.asked is None and not o.lost, "nothing is queued for what is not ours", tp)
        assert o is not None
        if o.exact:
            return
        follows = o.start is not None and o.sought is None and self._log_has(o, o.fetch_next, records)
        require(follows, "what is queued follows what was queued before", o, records[0].offset, o.fetch_next)
        wanted_records = sum(record.offset not in o.gone for record in records)
        if not o.queued and wanted_records:
            o.queued_since = now
        o.queued += wanted_records
        o.fetch_next = records[-1].offset + 1
        batch, limits = o.options.max_messages, life.limits
        full = min(max(2 * batch, min(8 * batch, limits.messages)), math.ceil(limits.size_bytes / RECORD_BYTES))
        most = full - 1 + life.world.settings.poll_records + batch  # of one poll, and a batch that was put back
        require(o.queued <= most, "a queue is bounded", o, o.queued)

    def _log_has(self, o: Book, position: int, records: Sequence[Record]) -> bool:
        return list(records) == o.log.read(position, len(records))

    def _next_in_log(self, o: Book, count: int) -> list[Record]:
        """What has to be handed over next."""
        left_out = o.gone | o.deleted
        records = o.log.read(o.hand_next, count + len(left_out))
        return [record for record in records if record.offset not in left_out][:count]

    def positions(self, life: Life) -> None:
        """What is done by the group's own account is done."""
        for o in life.books.open.values():
            done = None if o.exact else o.ownership.done
            if done is not None:
                left = [r.offset for r in self._next_in_log(o, 1) if r.offset < done]
                at_rest = o.running is None
                require(not (left and at_rest), "what is done has been processed", o, done, *left)

    # -- user code

    def enlisted(self, ownership: Ownership) -> None:
        o = self.books[ownership]
        require(not o.in_jobs, "a partition waits for a worker once", o)
        o.in_jobs = True

    def begun(self, life: Life, ownership: Ownership, run: Run | None, now: float) -> None:
        o = self.books[ownership]
        o.in_jobs = False
        if run is None:
            self.reached["a worker came when its job had passed"] += 1
            return
        if run.is_part and o.running is not None:
            if not o.exact:
                self.part_begun(o, run, now)
                return
            o.begun_parts.append(run)
            self.reached["parts of a unit ran side by side"] += len(o.ownership.calls) > 1
            require(o.ours and not o.lost, "parts are begun while the partition is ours", o, run)
            return
        part, run = run, ownership.run if run.is_part else run
        assert run is not None
        inside = life.process.inside
        require(o.tp not in inside, "one run per partition at a time", o, inside.get(o.tp))
        require(o.running is None, "one run per ownership at a time", o)
        require(not any(p.busy for p in o.predecessors), "an ownership waits for the code of its predecessor", o)
        o.redirect, o.raised = None, False
        if run.hook is Hook.EVERY:
            self._every_begun(o, run.hooks[0], now)
        elif run.hook is Hook.ON_ASSIGNED:
            self._opening_begun(o, run, now)
        elif run.hook:
            self._hook_begun(o, run.hook)
        else:
            self._batch_begun(o, run, now)
        o.running = inside[o.tp] = run
        if part is not run and o.exact:
            o.begun_parts = [part]
        elif part is not run:
            o.begun_parts, o.failed_parts, o.spins, o.repeats = [], [], False, False
            self.part_begun(o, part, now)

    def _opening_begun(self, o: Book, run: Run, now: float) -> None:
        owned = o.asked is None and not o.lost and o.seen is State.ASSIGNED and o.start is not None
        require(owned, "on_assigned is called when a partition is ours and its start is known", o, o.seen)
        require(list(run.hooks) == o.opening[:1], "functions of on_assigned are called in turn until they return", o)
        require(now >= o.not_before - EPSILON, "on_assigned that failed waits its back-off", o, now, o.not_before)
        require(run.attempt == o.attempt, "attempts are counted", o, run.attempt, o.attempt)
        self.reached["a hook ran: on_assigned"] += 1
        self.reached["on_assigned was called again"] += run.attempt > 1

    def _every_begun(self, o: Book, hook: RegisteredHook, now: float) -> None:
        owned = o.asked is None and not o.lost and o.handed
        require(owned, "every is called for what was handed a batch, and no more after the end", o)
        due = o.every_at[hook]
        require(now >= due - EPSILON, "every keeps to its time", o, now, due)
        self.reached["every was called"] += 1
        if o.exact:
            return
        require(due <= min(o.every_at.values()), "the most overdue function of every goes first", o)
        batch_at, since = self.batch_due(o)
        if batch_at > now:
            o.hooks_first = 0
            return
        o.hooks_first += 1
        self.reached["an every went before a batch"] += 1
        require(due <= since + EPSILON, "a batch goes before an every that became due later", o, due, since)
        many = o.hooks_first > len(o.every_at)
        require(not many, "a batch that is ready waits for each function of every once at the most", o)

    def _batch_begun(self, o: Book, run: Run, now: float) -> None:
        records = run.records
        owned = o.asked is None and not o.lost and o.seen is State.ASSIGNED
        require(owned, "a batch is handed over to its owner only", o, o.seen)
        require(not o.opening, "no batch is handed over before on_assigned has returned", o, len(o.opening))
        require(not o.life.client.lost(now), "a batch is handed over to who is a member, for all that it knows", o)
        require(0 < len(records) <= o.options.max_messages, "a batch has 1 to max_messages messages", o, len(records))
        if o.exact:
            self.exact_batch_begun(o, run, now)
        else:
            self._follows(o, run, now)
        if self._reset == "latest" and o.log is self.logs[o.tp]:
            require(o.tp in self._broker.committed, "a start at the end is committed before anything else", o)
        if not o.handed:
            self._first_batch(o)
            o.every_at = {hook: now + hook.every_ms / 1000 for hook in o.options.hooks_of(Hook.EVERY)}
        o.handed = True
        o.hooks_first = 0
        o.seq_begun, o.began_at = o.seq, o.done
        o.queued -= len(records)
        o.queued_since = now
        o.hand_next = records[-1].offset + 1
        o.lowest = min(o.lowest, records[0].offset)
        o.highest = max(o.highest, o.hand_next)
        if not o.options.manual_offsets:
            o.retry_position = o.began_at

    def _follows(self, o: Book, run: Run, now: float) -> None:
        """Of all that waits a batch is what comes next, and it comes when it is due."""
        records = run.records
        require(
            self._next_in_log(o, len(records)) == list(records),
            "nothing is skipped, repeated or out of order",
            *(o, records[0].offset, o.hand_next),
        )
        attempt = o.tries[records[0].offset] + 1 if records[0].offset in o.tries else o.attempt
        require(run.attempt == attempt, "attempts are counted", o, run.attempt, attempt)
        require(now >= o.not_before - EPSILON, "a failed batch waits for its back-off", o, now, o.not_before)
        require(now >= o.rests_until - EPSILON, "a paused partition rests", o, now, o.rests_until)
        suspect = o.is_suspect(records[0])
        by_itself = len(records) == 1 if suspect else not any(map(o.is_suspect, records))
        require(by_itself, "a message whose batch has failed is tried by itself", o, run, o.tries)
        self.reached["a message was tried by itself"] += suspect
        due, since = self.batch_due(o)
        require(now >= due - EPSILON, "a batch waits for max_messages or its timeout", o, now, due)
        overdue = [moment for moment in o.every_at.values() if moment <= now]
        if overdue:
            self.reached["a batch went before an every"] += 1
            require(since <= min(overdue) + EPSILON, "an every goes before a batch that became due later", o, since)

    def batch_due(self, o: Book) -> tuple[float, float]:
        """When the next batch may be handed over, and since when it waits."""
        if not o.queued or (o.start_uncommitted and not o.handed and not o.acked):
            return FOREVER, FOREVER
        due = max(o.not_before, o.rests_until)
        suspect = any(map(o.is_suspect, self._next_in_log(o, 1)))
        enough = o.queued >= o.options.max_messages or o.ownership.intake.paused
        if o.options.batch_timeout_ms and not enough and not suspect:
            due = max(due, o.queued_since + o.options.batch_timeout_ms / 1000)
        return due, max(due, o.queued_since)

    def _first_batch(self, o: Book) -> None:
        if o.log is not self.logs[o.tp]:
            return
        if o.generation != self._broker.generation or o.life.client.session not in self._broker.sessions:
            self.reached["an evicted member went on before it knew"] += 1
            return
        committed = self._broker.committed.get(o.tp)
        require(
            committed == o.start or (committed is None and (o.start or 0) <= o.log.start),
            "an owner begins at the committed offset, or where auto_offset_reset points to",
            *(o, o.start, committed),
        )

    def _hook_begun(self, o: Book, hook: Hook) -> None:
        require(o.options.hooks_of(hook), "a hook runs where it was registered", o, hook)
        require(hook not in o.hooks_run, "a hook runs once per ownership", o, hook)
        require(o.open, "a hook runs only for what was handed a batch, or was opened", o, hook)
        self.reached["what on_assigned opened was closed without a batch"] += not o.handed
        if hook is Hook.ON_REVOKED:
            require(o.ended and o.revoked_hook_due, "on_revoked runs after a hand-over or a loss", o)
        else:
            require(o.final_hook is hook and not o.lost, "the last hook fits the kind of end", o, hook, o.asked)
            require(o.seen is State.DRAINING, "the last hook runs while marks count", o, hook, o.seen)
        o.hooks_run.add(hook)
        self.reached[f"a hook ran: {hook.value}"] += 1

    def gives_up(self, run: Run, result: bool) -> None:
        """The handler has failed; ``result``: the group says that its message is to be given up."""
        if self.books[run.ownership].exact:
            self.exact_gives_up(self.books[run.ownership], run, result)
            return
        o, own = self.books[run.ownership], self.of(run)
        if run.hook or o.options.budget is None or blameless(own, run) or isinstance(run.error, CRITICAL):
            require(not result, "only what has a budget, and has failed by its own fault, is given up", o)
            return
        for offset in [offset for offset in o.tries if offset < o.retry_position]:
            o.is_done_with(offset)  # it is marked
        culprit = _culprit(run)
        position = own.position if isinstance(own, PartBook) else o.retry_position
        unmarked = [record.offset for record in run.records if record.offset >= position]
        for offset in unmarked:
            if culprit in (None, offset):
                o.tries[offset] = o.tries.get(offset, 0) + 1
            if culprit is None:
                o.suspects.add(offset)
        spent = culprit in unmarked and (run.pointless or o.tries[culprit] >= o.options.budget)
        expected = spent and o.redirect is None and o.ours
        require(result is expected, "a message is given up when its budget is spent, and not before", o, run, o.tries)
        self.reached["a culprit was given up, and the others stayed a batch"] += result and len(run.records) > 1
        self.reached["a message was given up at once"] += result and run.pointless

    def given_up(self, run: Run, now: float) -> tuple[int, int]:
        """The message at which ``run`` has failed is in safety. Returns its offset, and how often it was tried."""
        if self.books[run.ownership].exact:
            self.reached["a message of exactly_once was given up"] += 1
            self._exact_run_ended(run, failed=True, given_up=True, now=now)
            assert run.culprit is not None
            return run.culprit, run.ownership.retries.tries_of(run.culprit)
        if run.is_part:
            return self.part_given_up(run, now)
        o, culprit = self._out(run), _culprit(run)
        require(culprit is not None, "who is not known is not given up", o, run)
        assert culprit is not None
        tries = o.tries[culprit]
        o.attempt = 1
        o.reset_state()
        o.is_done_with(culprit)
        self.reached["a message was given up"] += 1
        self._give_up(o, culprit, now)
        if o.redirect is not None:
            self._redirect(o, o.redirect)
        else:
            self._go_on_at(o, run, o.retry_position)
        return culprit, tries

    def given_up_by_hand(self, o: Book, offset: int, now: float) -> None:
        """User code has sent the message to the dead letters."""
        if not o.failed_send and offset >= o.retry_position:
            self.reached["a message was given up by hand"] += o.ours
            self._give_up(o, offset, now)

    def _give_up(self, o: Book, offset: int, now: float) -> None:
        if not o.ours:
            return
        o.gone.add(offset)
        first = self._unmarked_from(o)
        if first is None or first in o.gone:
            self._stored(o, o.retry_position, now)
        else:
            self.reached["a message was given up with others unmarked before it"] += 1

    def _unmarked_from(self, o: Book) -> int | None:
        return self._not_deleted(o, o.retry_position)

    def _not_deleted(self, o: Book, position: int) -> int | None:
        """The next message that could be handed over."""
        records = o.log.read(position, 1 + len(o.deleted))
        return next((record.offset for record in records if record.offset not in o.deleted), None)

    def _out(self, run: Run) -> Book:
        o = self.books[run.ownership]
        require(not any(o.waiting.values()), "a run ends with the answers to what it sent", o)
        require(o.running is run, "a run ends once", o)
        o.running = None
        o.failed_send = o.own_fault = o.waits_no_more = False
        del o.life.process.inside[o.tp]
        return o

    def _exact_run_ended(self, run: Run, *, failed: bool, given_up: bool = False, now: float) -> None:
        o = self.books[run.ownership]
        self.exact_ended(o, run, failed=failed, given_up=given_up, now=now)
        if run.is_part:
            return
        self._out(run)
        if run.hook is Hook.ON_ASSIGNED:
            self._opening_ended(o, run, failed, run.excused, now)
        if run.hook:
            self._hooks_ended(o, run, unsent=False, excused=run.excused, now=now)

    def run_ended(self, run: Run, *, failed: bool, now: float) -> None:
        if self.books[run.ownership].exact:
            self._exact_run_ended(run, failed=failed, now=now)
            return
        if run.is_part:
            self.part_ended(run, failed=failed, now=now)
            return
        o = self.books[run.ownership]
        unsent = o.failed_send
        reason, excused = o.raised or unsent, blameless(o, run)
        once = run.hook not in (None, Hook.ON_ASSIGNED)
        require(once or failed is reason, "a call fails when it raises or cannot send, and only then", o, failed)
        self._out(run)
        if run.hook is Hook.ON_ASSIGNED:
            self._opening_ended(o, run, failed, excused, now)
        if run.hook:
            self._hooks_ended(o, run, unsent, excused, now)
        elif failed:
            self._batch_failed(o, run, excused, now)
        elif o.redirect is not None or run.in_hand is not None:
            self._batch_left(o, run, now)
        else:
            o.attempt = 1
            o.done = run.records[-1].offset + 1
            for record in run.records:
                o.is_done_with(record.offset)
            o.gone = {gone for gone in o.gone if gone >= min(o.acked_offset or 0, run.records[0].offset)}
            if not o.options.manual_offsets and o.ours:
                self._stored(o, o.done, now)

    def _hooks_ended(self, o: Book, run: Run, unsent: bool, excused: bool, now: float) -> None:
        if unsent and o.seen is State.ASSIGNED and not o.lost:
            self.reached["what a hook could not send came again"] += 1
            o.reset_state()
            if not excused:
                o.not_before = max(o.not_before, now + o.options.backoff.delay_ms(1) / 1000)
            if o.sought is None:
                self._fetch_again_from(o, o.retry_position)
        if run.hook is Hook.EVERY:
            o.every_at[run.hooks[0]] = now + run.hooks[0].every_ms / 1000
        elif run.hook is Hook.ON_REVOKED:
            o.revoked_hook_due = False
        elif run.hook is not Hook.ON_ASSIGNED:
            o.final_hook_done = True

    def _opening_ended(self, o: Book, run: Run, failed: bool, excused: bool, now: float) -> None:
        if failed:
            o.reset_state()
            if not excused:
                o.not_before = max(o.not_before, now + o.options.backoff.delay_ms(run.attempt) / 1000)
                o.attempt = run.attempt + 1
            return
        del o.opening[0]
        o.kept, o.attempt = o.opened, 1
        self.reached["on_assigned returned after the end had begun"] += o.asked is not None and not o.ended
        if o.ended and not o.no_worker:
            self.reached["on_assigned returned after the end"] += 1
            o.revoked_hook_due = bool(o.options.hooks_of(Hook.ON_REVOKED)) and (o.lost or o.asked == "revoke")
        elif o.asked and o.seen is State.DRAINING:
            hook = Hook.BEFORE_REVOKE if o.asked == "revoke" else Hook.ON_SHUTDOWN
            o.final_hook = hook if o.options.hooks_of(hook) else None

    def _batch_failed(self, o: Book, run: Run, excused: bool, now: float) -> None:
        if excused:
            self.reached["a run failed by the fault of another"] += 1
        else:
            culprit = _culprit(run)
            tries = run.attempt if culprit is None else o.tries.get(culprit, run.attempt)
            o.attempt = tries + 1
            if run.pointless and culprit is None and any(map(o.is_suspect, run.records)):
                self.reached["suspects were tried without a wait"] += 1
            else:
                o.not_before = max(o.not_before, now + o.options.backoff.delay_ms(tries) / 1000)
        if o.redirect is None:
            self._go_on_at(o, run, o.retry_position)
        else:
            self._redirect(o, o.redirect)
        o.reset_state()
        self.reached["a handler failed"] += 1
        self.reached["a handler failed during a drain"] += o.asked is not None and not o.ended

    def _batch_left(self, o: Book, run: Run, now: float) -> None:
        o.attempt = 1
        if o.redirect is not None:
            o.done = run.records[-1].offset + 1
            self._redirect(o, o.redirect)
            return
        done = [record.offset + 1 for record in run.records if record.offset < (run.in_hand or 0)]
        self._go_on_at(o, run, done[-1] if done else o.began_at)
        self.reached["a loop over each was left"] += 1
        if o.seq == o.seq_begun:
            o.not_before = max(o.not_before, now + o.options.backoff.delay_ms(1) / 1000)

    def _redirect(self, o: Book, target: Any) -> None:
        """User code wants to begin there, and to repeat from there."""
        self._fetch_again_from(o, target)
        if isinstance(target, int):
            o.retry_position = target
            o.gone = {offset for offset in o.gone if offset < target}

    def _go_on_at(self, o: Book, run: Run, offset: int) -> None:
        """What is in hand is put back, and not fetched again."""
        if o.seen is not State.ASSIGNED or o.lost or not o.began_at <= offset <= run.records[-1].offset + 1:
            self._fetch_again_from(o, offset)
            return
        o.hand_next = o.done = offset
        back = sum(record.offset >= offset and record.offset not in o.gone for record in run.records)
        if back:
            o.queued += back
            o.queued_since = -FOREVER
            self.reached["a batch was put back"] += 1

    def _fetch_again_from(self, o: Book, target: Any) -> None:
        o.queued = o.hooks_first = 0
        if isinstance(target, int):
            o.fetch_next = o.hand_next = o.done = target
            o.seek_to, o.sought = target, None
        else:
            o.seek_to, o.sought = None, target

    def redirected(self, ownership: Ownership, target: Any, result: bool) -> None:
        o = self.books[ownership]
        require(result is o.ours, "a seek counts while the partition is ours", o)
        if not result or o.exact:
            return
        self.reached["user code has sought"] += 1
        if o.running and not o.running.hook:
            o.redirect = target
        else:
            self.reached["user code has sought while no batch ran"] += 1
            self._redirect(o, target)

    def found(self, o: Book, target: object, offset: int) -> None:
        if not o.exact and o.sought == target and not o.ended and not o.lost:
            self._redirect(o, offset)
            self.reached["a place that only the cluster knew was found"] += 1

    def rested(self, ownership: Ownership, until: float, result: bool) -> None:
        o = self.books[ownership]
        require(result is o.ours, "a pause counts while the partition is ours", o)
        if result:
            o.rests_until = until
            o.hooks_first = 0
            self.reached["user code has paused"] += 1

    # -- offsets

    def marked(self, o: Book, offset: int, result: bool, now: float) -> None:
        if o.exact:
            self.exact_marked(o, offset, result)
            return
        if o.options.parts and offset > o.retry_position:
            self.reached["a hook marked what is not done"] += result and not o.failed_send
            offset = o.retry_position
        require(result is o.ours, "a mark counts while the partition is ours", o, offset, result, o.seen)
        if not result:
            self.reached["a mark was refused"] += 1
        elif o.failed_send:
            self.reached["a mark after a failed send was void"] += 1
        else:
            self.reached["a mark went backward"] += o.stored is not None and offset < o.stored
            self._stored(o, offset, now)
        o.last_mark[getcurrent()] = result and not o.failed_send, o.seq

    def has_marked(self, o: Book, result: bool) -> None:
        """What a mark has said to user code."""
        stored, _ = o.last_mark.get(getcurrent(), (None, 0))
        require(result is stored, "a mark says what it did", o, result, stored)

    def has_synced(self, o: Book) -> None:
        """A call has said to user code that its last mark is on the broker."""
        if o.exact:
            self.exact_synced(o)
            return
        stored, seq = o.last_mark[getcurrent()]
        require(stored and seq not in o.void, "a sync mark never returns True for a void mark", o, seq)
        require(o.applied_seq >= seq, "a sync commit is on the broker when the call returns", o)
        self.reached["a sync commit was acknowledged"] += 1

    def _stored(self, o: Book, offset: int, now: float) -> None:
        while (following := self._not_deleted(o, offset)) in o.gone:
            offset = (following or 0) + 1
            self.reached["a message that was given up counted as marked"] += 1
        o.store(offset, now)
        self.reached["a mark waited for a send"] += bool(o.trail)
        self._cover(o)

    def _cover(self, o: Book) -> None:
        """What is backed is processed."""
        covered = self.covered[o.tp]
        if o.log is not self.logs[o.tp]:
            return
        assert o.start is not None
        require(covered is not None and o.start <= covered, "an ownership begins where everything before is done", o)
        self.covered[o.tp] = max(o.backed.offset or 0, covered or 0)

    # -- sends

    def sent(self, o: Book, send: Send) -> None:
        message = Leaving(o.retry_position, {*o.gone})
        others = o.waiting.setdefault(send, [])
        self.reached["messages were counted together"] += bool(others)
        others.append(message)
        o.trail.append(message)

    def answered(self, o: Book, send: Send, failure: BaseException | None, now: float) -> None:
        if not o.waiting.get(send):
            self.reached["an answer came after nothing waited for it"] += 1
            return
        message = o.waiting[send].pop(0)
        message.waits = False
        if failure is not None:
            o.own_fault |= not (isinstance(failure, ProduceError) and failure.collateral)
            self.reached["a send failed"] += 1
            undone = any(isinstance(mark, Mark) for mark in o.after(message))
            self.reached["a send failed, and the marks after it were void"] += undone
            o.send_failed(message)
        o.trim(now)
        if self.covered[o.tp] is not None:
            self._cover(o)

    # -- commits

    def applied(self, batch: Sequence[Sent], generation: int) -> None:
        """The broker has accepted ``batch``."""
        for sent in batch:
            o, offset, seq = sent
            if o.exact:
                self.exact_committed(sent, (), generation)
                continue
            require(generation == o.generation, "nothing is committed for an earlier ownership", o, generation)
            require(offset in o.stored_ever, "what is committed was stored by the owner", o, offset)
            if o.log is not self.logs[o.tp]:  # nobody knew of the new topic: the commit says of which one it is
                self._broker.committed[o.tp], self._broker.notes[o.tp] = offset, o.ownership.note
                o.applied_seq = max(o.applied_seq, seq)
                continue
            if o.start_uncommitted and self.covered[o.tp] is None:
                self.covered[o.tp] = max(offset, o.log.start)
                self.reached["a start at the end of the log was committed"] += 1
            covered = self.covered[o.tp]
            require(covered is not None and offset <= covered, "nothing unprocessed is committed", o, offset, covered)
            committed = self.committed.get(o.tp, 0)
            if not self._backward_marks:
                require(o.stored is not None and committed <= offset <= o.stored, "committed <= stored", o, offset)
            self.reached["a backward mark was committed"] += offset < committed
            self._broker.committed[o.tp] = offset
            self._broker.notes[o.tp] = o.ownership.note
            o.applied_seq = max(o.applied_seq, seq)

    def acknowledged(self, batch: Sequence[Sent], now: float) -> None:
        for o, offset, seq in batch:
            if not o.lost:
                o.acked_seq, o.acked_offset = max(o.acked_seq, seq), offset
                o.unacked_since = now

    # -- each time the lock is released

    def compare(self, life: Life, now: float) -> None:
        """The group's books of what ``life`` owns against ours."""
        group: Group = life.member.group
        open_books = life.books.open
        if life.member._resting:
            self.check_rests(life, now)
        for o in [o for o in open_books.values() if not self._compare_one(o, now)]:
            del open_books[o.tp]
            self._end(o)
            require(group.owned.get(o.tp) is not o.ownership, "what is over is not owned", o)
            if o.busy:
                require(group.leftovers.get(o.tp) is o.ownership, "what still runs is remembered", o)
        require(len(group.owned) == len(open_books), "what is owned is open", life)
        for tp, ownership in group.leftovers.items():
            left = self.books[ownership]
            require(left.ended and (left.busy or left.life is not life), "leftovers are forgotten", life, tp)

    def _compare_one(self, o: Book, now: float) -> bool:
        """False when the ownership is over. A third of all the time goes by here: what holds is not even a call."""
        p, marks, intake = o.ownership, o.ownership.marks, o.ownership.intake
        if p.state is not o.seen or o.lost:
            self._observe(o, p.state, now)
        if o.exact:
            self.exact_compare(o, now)
        else:
            if marks.stored != o.stored:
                violated("stored is what was marked last", o, marks.stored, o.stored)
            if p.retries.attempt != o.attempt:
                violated("attempts are counted", o, p.retries.attempt, o.attempt)
            if intake.next_offset != o.done:
                violated("where the next batch begins is known", o, intake.next_offset, o.done)
            if intake.size != o.queued:
                violated("the queue holds what was fetched", o, intake.size, o.queued)
            if p.run is not o.running:
                violated("who runs is known", o)
            if p.user_state.get("token") is not o.token:
                violated("the state is kept over batches, and emptied by a failure", o)
            if p.user_state.get("opened") is not o.opened:
                violated("what on_assigned has left in the state outlives failures", o)
            if len(p.opening) != len(o.opening):
                violated("on_assigned is called until it has returned", o)
            if not o.lost:
                if marks.pending is o.acked:
                    violated("pending until the broker has it", o, marks.stored, marks.committed)
                if marks.committable is not o.committable:
                    violated("a mark waits for what was sent before it", o, o.backed)
                if o.acked_seq > o.applied_seq:
                    violated("acknowledged is on the broker", o)
            if o.stored is not None and o.stored > o.highest and o.stored > (o.start or 0):
                violated("stored <= delivered", o, o.stored, o.highest)
        if o.seen < State.DRAINING:
            return True
        if o.seen >= State.REVOKED:
            return False
        require(not (o.seen is State.DRAINING and o.code_ended), "a drain ends with the last user code", o)
        kept = o.seen is State.RELEASING and (o.acked or o.given_up) and not o.waits_no_more
        require(not kept, "a hand-over ends with its commit", o)
        return True

    def _observe(self, o: Book, state: State, now: float) -> None:
        """``o`` has moved on to ``state``: was it allowed to?"""
        before, o.seen = o.seen, state
        if o.exact:
            self.exact_out(o)
        elif (
            state >= State.RELEASING and o.begun_parts and not o.parts and o.running is not None and not o.running.hook
        ):
            self.reached["parts that nobody had begun were dropped"] += 1
            self.batch_of_parts_ends(o, 0, now)
        require(state >= before, "states go forwards", o, before, state)
        require((state is State.LOST) is o.lost, "a loss ends an ownership at once, and nothing else does", o, state)
        if o.lost:
            return
        require(o.asked, "an ownership ends for a reason", o, state)
        if before < State.RELEASING <= state:
            require(o.code_ended or now >= o.deadline, "user code has until the bound of the drain", o, now, o.deadline)
            o.released_at = o.released_at or now  # the lock may be released later
            o.commit_deadline = max(o.deadline, o.released_at + FINAL_COMMIT_S)
            if not o.code_ended:
                self.reached[f"the drain bound was over while a handler ran ({o.asked})"] += o.running is not None
                if o.final_hook and o.final_hook not in o.hooks_run:
                    self.reached[f"a hook was left out: {o.final_hook.value}"] += 1
        if state is State.REVOKED:
            in_time = now < o.commit_deadline
            waited = o.acked or o.given_up or not in_time
            require(waited, "the last commit has until its bound", o, now, o.commit_deadline)
            self.reached["the last commit was given up"] += not o.acked
            self.reached["nobody waited for a commit that was refused for good"] += o.given_up and in_time
            self.reached["a hand-over"] += o.asked == "revoke"

    def _end(self, o: Book) -> None:
        o.ended = True
        o.queued = 0
        if o.open and o.options.hooks_of(Hook.ON_REVOKED):
            o.revoked_hook_due = o.lost or o.asked == "revoke"
        self._over[o.life.process, o.tp].append(o)

    def settled(self, life: Life, now: float) -> None:
        """After ``advance``: no bound that is over is left standing."""
        for o in life.books.open.values():
            state = o.ownership.state
            require(state is not State.DRAINING or now < o.deadline, "a drain ends at its bound", o)
            late = state is State.RELEASING and o.seen is State.RELEASING and now >= o.commit_deadline
            require(not late, "a last commit ends at its bound", o)

    def ended(self, o: Book, run: Run, outcome: Outcome, failed: bool, now: float) -> None:
        """What the group says of how a batch ended, or a part of one that has failed."""
        if o.exact:
            return
        again = failed and o.ownership.state is State.ASSIGNED
        require((outcome.retry_offset is not None) is again, "a failed batch comes again", o, outcome)
        if again and o.sought is None:
            require(outcome.retry_offset == o.done, "the next try is where it is said to be", o, outcome, o.done)

    # -- at the end of a world

    def hooks_waiting(self) -> list[Book]:
        return [o for over in self._over.values() for o in over if o.busy]


def _culprit(run: Run) -> int | None:
    """The message at which ``run`` has failed, where that is known."""
    alone = run.records[0].offset if len(run.records) == 1 else None
    return alone if run.in_hand is None else run.in_hand
