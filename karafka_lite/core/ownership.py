"""One ownership of one partition: its states, and which user code is due.

A new assignment always makes a new Ownership, so code that still holds an old one can never touch its successor.

The states, forwards only, and what changes them:

    ASSIGNED   ours; see below                          -> DRAINING   a rebalance wants it, or the app stops
    DRAINING   ours; user code ends, its marks count    -> RELEASING  user code has ended, or the bound is over
    RELEASING  marks are closed, the rest is committed  -> REVOKED    committed, or given up
    REVOKED    over, in good order
    LOST       over, the broker gave it away            <- any of the first three

ASSIGNED has three parts: its start is looked for (``intake.start`` is None); each function of ``on_assigned`` is called
until it has returned (``opening``: those that have not); batches are handed over. The end may come in each of them.
It is *open* once user code may have something to close: a function of ``on_assigned`` has returned, or a batch was
handed over. The hooks of the end are called for what is open, also where it becomes so after the end has begun.

The rest is in three parts: ``Marks`` (what is stored and committed), ``Retries`` (attempts and budgets) and ``Intake``
(the queue, and where fetching goes on).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar

from karafka_lite.core.intake import Chunk, Intake
from karafka_lite.core.marks import Marks
from karafka_lite.core.options import Hook, Options, RegisteredHook, SeekTarget
from karafka_lite.core.retries import Retries
from karafka_lite.core.starts import Note, Start
from karafka_lite.errors import CRITICAL, describe, is_collateral
from karafka_lite.messages import Record, TopicPartition, next_offset_after, where


class State(IntEnum):
    """See the table above; from REVOKED on the ownership is over."""

    ASSIGNED = 1
    DRAINING = 2
    RELEASING = 3
    REVOKED = 4
    LOST = 5


@dataclass(eq=False)
class Run:
    """One call of user code: of the handler with a batch, or of hooks of one kind without one."""

    ownership: Ownership
    attempt: int
    began: float
    chunk: Chunk = Chunk((), None, 0)  # noqa: RUF009 - a NamedTuple cannot be changed
    hooks: Sequence[RegisteredHook] = ()
    begin_offset: int = 0  # where the batch begins; before its first message where offsets are missing
    version: int = 0  # of the marks when it began
    in_hand: int | None = None  # offset of the message that ``each`` has handed out and not marked
    redirect: SeekTarget | None = None  # where the user wants the next batch to start
    pointless: bool = False  # it has failed, and the same would fail again
    reported: bool = False  # as one that takes long
    error: BaseException | None = None  # what it has failed with
    reason: str = ""  # the same, described
    beside: bool = False  # another part of the batch has failed, too, and tells of it
    returned: bool = False  # from its user code; it waits for what that has sent
    over: bool = False  # nothing more comes of it
    seconds: float = 0.0  # how long it took
    messages: int = 0  # of which it is done
    excused: bool = False  # that was the fault of another run: no try is counted, and there is no back-off
    is_part: ClassVar[bool] = False  # of a batch, beside others

    @property
    def marks(self) -> Marks:
        """The ledger of what it marks and sends."""
        return self.ownership.marks

    @property
    def hook(self) -> Hook | None:
        """The kind of the hooks; None for a batch."""
        return self.hooks[0].kind if self.hooks else None

    @property
    def comes_again(self) -> bool:
        """Whether it is repeated when it fails; a hook of another kind is over, however it ends."""
        return self.hook in (None, Hook.ON_ASSIGNED)

    @property
    def records(self) -> Sequence[Record]:
        """The batch; empty for hooks."""
        return self.chunk.records

    @property
    def culprit(self) -> int | None:
        """Offset of the message at which this batch fails, if it does; None where that is not known."""
        return self.records[0].offset if self.in_hand is None and len(self.records) == 1 else self.in_hand

    def begin_of(self, offset: int) -> int:
        """Where the message at ``offset`` begins: right after the one before it, as offsets may be missing between."""
        before = [record.offset for record in self.records if record.offset < offset]
        return next_offset_after(before[-1]) if before else self.begin_offset

    def failed_with(self, error: BaseException | None, *, pointless: bool = False) -> None:
        """Keep what it has failed with. This calls user code, which may take long: not to be called under the lock."""
        self.error = error
        self.reason = "" if error is None else describe(error)
        unsent = self.marks.failure
        self.excused = is_collateral(error) and (unsent is None or is_collateral(unsent))
        self.pointless = pointless

    def as_call(self, group_id: str, function: str) -> tuple[str, str, int, str, str | None, int, int, int]:
        """The fields of ``events.Call``."""
        hook, records = self.hook, self.chunk.records
        if hook:
            return group_id, *self.ownership.tp, function, hook.value, -1, -1, self.attempt
        return group_id, *self.ownership.tp, function, None, records[0].offset, records[-1].offset, self.attempt

    def __str__(self) -> str:
        if self.hook:
            return f"{self.ownership} {self.hook.value}"
        return where(*self.ownership.tp, self.records[0].offset, self.records[-1].offset)


class Ownership:
    """What this process knows of one ownership. Changed under its group's lock only."""

    __slots__ = (
        "_kept", "deadline", "every_at", "handed", "hook_due", "intake", "marks", "note", "opening", "options",
        "predecessor", "retries", "run", "scheduled", "sought", "state", "stopping_app", "timer", "tp", "untold",
        "user_state"
    )  # fmt: skip

    def __init__(self, tp: TopicPartition, options: Options, predecessor: Ownership | None = None) -> None:
        self.tp: TopicPartition = tp
        self.options: Options = options
        self.predecessor: Ownership | None = predecessor  # an earlier ownership whose user code still runs
        self.state: State = State.ASSIGNED
        self.stopping_app: bool = False  # DRAINING because the app stops, not because of a rebalance
        self.deadline: float = 0.0  # of the drain; later of the last commit
        self.marks: Marks = Marks()
        self.retries: Retries = Retries(options.backoff, options.budget)
        self.intake: Intake = Intake(options)
        self.note: Note = Note()  # goes with its commits: which topic they are of
        self.sought: int | None = None  # where user code wanted to go on last
        self.user_state: dict[Any, Any] = {}
        self._kept: dict[Any, Any] = {}  # of it: what ``on_assigned`` has left, which a failure does not take away
        self.untold: Sequence[Run] = ()  # that have failed, and of which nobody was told before the end
        self.run: Run | None = None  # a worker is inside this ownership's user code
        self.scheduled: bool = False  # waits for a worker
        self.opening: Sequence[RegisteredHook] = options.hooks_of(Hook.ON_ASSIGNED)  # that have yet to return
        self.handed: bool = False  # at least one batch was handed over
        self.hook_due: Hook | None = None  # the last one before the end, or the one after it
        self.every_at: dict[RegisteredHook, float] = {}  # when each is due; from the first batch on
        self.timer: float = float("inf")  # the group's: when it looks at this ownership next

    # -- questions

    @property
    def over(self) -> bool:
        """True as soon as marks are refused."""
        return self.marks.closed

    @property
    def busy(self) -> bool:
        """User code of this ownership runs, or has yet to run."""
        return self.run is not None or self.hook_due is not None

    @property
    def calls(self) -> Sequence[Run]:
        """The calls of user code that run now."""
        return () if self.run is None else (self.run,)

    @property
    def open(self) -> bool:
        """User code may have something to close: it was handed a batch, or a function of ``on_assigned`` returned."""
        return self.handed or len(self.opening) < len(self.options.hooks_of(Hook.ON_ASSIGNED))

    @property
    def done(self) -> int | None:
        """Nothing before this offset is left to do; None while something may have to be repeated."""
        intake = self.intake
        if self.state is not State.ASSIGNED or intake.moving or self.opening:
            return None
        at_rest = not intake.size and not self.busy and self.predecessor is None
        return max(intake.next_offset, intake.position or 0) if at_rest else intake.next_offset

    @property
    def collects(self) -> bool:
        """A first try waits for ``max_messages`` or ``batch_timeout_ms``."""
        first_try = self.retries.attempt == 1 and not self._has_suspect()
        return bool(self.intake.size and self.options.batch_timeout_ms and first_try)

    @property
    def unmarked(self) -> int:
        """How many offsets of processed messages are past the last mark, or past the start without one."""
        stored = self.marks.stored
        return max(0, self.intake.next_offset - (self.intake.start or 0 if stored is None else stored))

    def processed(self, run: Run, *, failed: bool) -> int:
        """How many messages of a batch are done: all, or those that were marked."""
        if not failed and run.in_hand is None:
            return len(run.records)
        marks = run.marks
        marked = marks.stored or 0 if marks.version != run.version else 0
        done = marked if run.in_hand is None else max(marked, run.in_hand)
        return sum(record.offset < done for record in run.records)

    # -- which user code is due

    def ready_at(self) -> float | None:
        """When the next piece of user code may run (0.0: now); None: not before something else happens."""
        if self.run is not None or (self.predecessor and self.predecessor.busy):
            return None
        if self.hook_due:
            return 0.0
        if self.state is not State.ASSIGNED:
            return None
        if self.opening:
            return None if self.intake.start is None else self.retries.not_before
        batch_at = self._batch_at()
        if not self.every_at:  # nearly always
            return batch_at
        return min(self.every_at.values() if batch_at is None else (batch_at, *self.every_at.values()))

    def _most_overdue(self, now: float) -> RegisteredHook | None:
        """Whose turn it is: what has been due longest, a batch (None) or a function of ``every``."""
        if not self.every_at:
            return None
        since: dict[RegisteredHook | None, float] = {}
        batch_at = self._batch_at()
        if batch_at is not None and batch_at <= now:
            since[None] = max(batch_at, self.intake.queued_since)
        since.update((hook, moment) for hook, moment in self.every_at.items() if moment <= now)
        return min(since, key=since.__getitem__)

    def _batch_at(self) -> float | None:
        intake = self.intake
        if not intake.size:
            return None
        if self.marks.pending and not self.handed:  # a starting position that has to be on the broker first
            return None
        ready_at = max(self.retries.not_before, intake.paused_until)
        enough = intake.size >= self.options.max_messages or intake.paused  # paused: no more comes
        if enough or not self.options.batch_timeout_ms or self._has_suspect():
            return ready_at
        return max(ready_at, intake.queued_since + self.options.batch_timeout_ms / 1000)

    def _has_suspect(self) -> bool:
        return self.retries.counting and any(map(self.retries.is_suspect, self.intake.peek(1)))

    # -- messages

    def begin_at(self, start: Start, note: Note) -> None:
        """The starting position is known.

        Where it is neither committed nor simply the start of the log, it is committed before anything is handed over:
        the next owner would look for it again, and find another one.
        """
        self.note = note
        self.intake.begin_at(start.offset)
        chosen = start.reason not in ("committed", "earliest")
        self.marks.begin_at(start.offset, committed=start.reason == "committed", commit_start=chosen)

    def fetched(self, records: Sequence[Record], end_offset: int | None, size_bytes: int, now: float) -> bool:
        """Queue what was fetched; False where it was dropped because it is not what is to be read next."""
        if self.state is not State.ASSIGNED or self.intake.moving:
            return False
        self.intake.accept(self._wanted(records), end_offset, size_bytes, now)
        return True

    def _wanted(self, records: Sequence[Record]) -> Sequence[Record]:
        """Without what is done, and comes again because something before it is not."""
        if not self.marks.has_done:
            return records
        return [record for record in records if not self.marks.is_done(record.offset)]

    def redirect(self, target: SeekTarget) -> None:
        """The user wants the next batch to start there, and to be repeated from there."""
        self.marks.sends.keep()
        self.intake.go_to(target)
        if isinstance(target, int):
            self.sought = self.marks.retry_position = target
            self.marks.forget_done(from_offset=target)

    # -- a call of user code

    def begin(self, now: float) -> Run | None:
        """Hand over what is due; None when nothing is (any more)."""
        self.scheduled = False
        ready_at = self.ready_at()
        if ready_at is None or ready_at > now:
            return None
        hooks: Sequence[RegisteredHook] = ()
        if self.hook_due:
            hooks, self.hook_due = self.options.hooks_of(self.hook_due), None
        elif self.opening:
            hooks = self.opening[:1]
        elif (hook := self._most_overdue(now)) is not None:
            hooks = (hook,)
        self.run = Run(self, self.retries.attempt, now, hooks=hooks) if hooks else self._begin_batch(now)
        self.marks.sends.begin()
        return self.run

    def _begin_batch(self, now: float) -> Run:
        intake, marks, most = self.intake, self.marks, self.options.max_messages
        limit = self.retries.limit(intake.peek(most), most) if self.retries.counting else most
        chunk = intake.take(limit, now)
        first = chunk.records[0].offset
        marks.handed_over(first, next_offset_after(chunk.records[-1].offset))
        if not self.handed:
            self.handed = True
            self.every_at = {hook: now + hook.every_ms / 1000 for hook in self.options.hooks_of(Hook.EVERY)}
        if not self.options.manual_offsets:
            marks.retry_position = intake.next_offset
        attempt = self.retries.attempt_at(first)
        return Run(self, attempt, now, chunk, begin_offset=intake.next_offset, version=marks.version)

    def _drop_what_comes_again(self, run: Run, failed: bool) -> None:
        """Where messages wait for a mark."""

    def _come_again(self) -> None:  # although no run of theirs has failed
        self._reset_state()
        if self.state is State.ASSIGNED and self.intake.target is None:
            self.intake.go_to(self.marks.retry_position)

    def gives_up(self, run: Run) -> bool:
        """The handler has failed: count the try. True: the culprit of ``run`` is known, and has no tries left."""
        if not self._counts(run):
            return False
        culprit, marked = run.culprit, run.marks.retry_position
        tried = [record.offset for record in run.records] if culprit is None else [culprit]
        self.retries.count([one for one in tried if one >= marked], known=culprit is not None)
        self.retries.forget(before=self.marks.retry_position)
        if culprit is None or culprit < marked or self.over or (self.run is not None and self.run.redirect is not None):
            return False
        return run.pointless or self.retries.is_exhausted(culprit)

    def _counts(self, run: Run) -> bool:
        return not (run.hook or run.excused or isinstance(run.error, CRITICAL) or self.options.budget is None)

    def give_up(self, run: Run) -> Sequence[Run]:
        """The culprit of ``run`` is given up: go on without it. What is unmarked comes again. Returns as ``end``."""
        self._end_run(run)
        self._leave_out(run)
        self._repeat(run)
        return (run,)

    def _leave_out(self, run: Run) -> None:
        culprit = run.culprit
        assert culprit is not None, "who is not known is not given up"
        self.mark_alone(run, culprit)
        self.retries.succeeded(record for record in run.records if record.offset == culprit)

    def mark_alone(self, run: Run, offset: int) -> None:
        """The message at ``offset`` of ``run`` is done: it counts as marked as soon as everything before it is."""
        marks = run.marks
        if not self.over and marks.failure is None and offset >= marks.retry_position:  # else it is marked already
            marks.add_done((run.begin_of(offset), next_offset_after(offset)))

    def end(self, run: Run, *, failed: bool, now: float) -> Sequence[Run]:
        """The run is over. What the user wants to come next comes next; else what succeeded is marked (automatic), and
        a failed batch comes again after its back-off. Returns the runs that are to be told of."""
        unsent = self.marks.failure is not None
        self._end_run(run)
        if run.hook:
            self._end_hooks(run, failed, unsent, now)
        elif failed:
            self._drop_what_comes_again(run, failed)
            if not run.excused:
                self.retries.failed(now, run.attempt, run.culprit, wait=not self._is_found_at_once(run))
            self._repeat(run)
        elif run.redirect is not None:
            self.retries.attempt = 1
            self.intake.done(run.records)
            self.redirect(run.redirect)
        elif run.in_hand is not None:
            self._end_left(run, now)
        else:
            self._end_processed(run)
        return (run,)

    def _end_hooks(self, run: Run, failed: bool, unsent: bool, now: float) -> None:
        self._drop_what_comes_again(run, failed)
        for hook in run.hooks:
            if hook in self.every_at:  # from its end on, so that one that takes long leaves room for batches
                self.every_at[hook] = now + hook.every_ms / 1000
        if run.hook is Hook.ON_ASSIGNED:
            self._end_opening(run, failed, now)
        if unsent and self.state is State.ASSIGNED:  # user code may have forgotten what it could not send
            if not run.excused:
                self.retries.back_off(now)
            self._come_again()

    def _end_opening(self, run: Run, failed: bool, now: float) -> None:
        """A function of ``on_assigned`` has ended: the next one is due, or the same one again after its back-off."""
        if not failed:
            self.opening, self._kept, self.retries.attempt = self.opening[1:], dict(self.user_state), 1
            self._make_due()  # the end may have come meanwhile
        else:
            self._reset_state()
            if not run.excused:
                self.retries.failed(now, run.attempt)

    def _repeat(self, run: Run) -> None:
        """What is not marked comes again, unless the user wants to go on elsewhere."""
        self._reset_state()  # a buffer would hold it twice
        if run.redirect is None:
            self._go_on_at(run, self.marks.retry_position)
        else:
            self.redirect(run.redirect)

    def _reset_state(self) -> None:
        self.user_state.clear()
        self.user_state.update(self._kept)

    def _is_found_at_once(self, run: Run) -> bool:
        """Nothing is gained by waiting: trying the batch again is pointless, and its messages are tried one by one."""
        return run.pointless and run.culprit is None and any(map(self.retries.is_suspect, run.records))

    def _end_left(self, run: Run, now: float) -> None:
        """A loop over ``each`` was left: the next batch begins with the message in hand."""
        self.retries.attempt = 1
        done = [record.offset for record in run.records if record.offset < (run.in_hand or 0)]
        self._go_on_at(run, next_offset_after(done[-1]) if done else run.begin_offset)
        if self.marks.version == run.version:  # else it might spin
            self.retries.back_off(now)

    def _end_processed(self, run: Run) -> None:
        self.intake.done(run.records)
        self.retries.succeeded(run.records)
        if self.marks.has_done:
            # What was done before them, and is committed, cannot come again (until there is a newer commit, the message
            # before it may be marked again).
            self.marks.forget_done(before=min(self.marks.committed or 0, run.records[0].offset))
        if not self.options.manual_offsets:
            self.marks.mark(self.intake.next_offset)

    def _go_on_at(self, run: Run, offset: int) -> None:
        """The next batch begins at ``offset``: with what ``run`` had, put back; or fetched again, from elsewhere."""
        in_hand = run.begin_offset <= offset <= next_offset_after(run.records[-1].offset)
        if self.state is State.ASSIGNED and in_hand:
            self.intake.put_back(run.chunk._replace(records=self._wanted(run.records)), offset)
        else:
            self.intake.go_to(offset)

    def _end_run(self, run: Run) -> None:
        run.over, self.run, self.marks.failure = True, None, None

    # -- the end

    def drain(self, deadline: float, *, stopping_app: bool) -> None:
        """Hand over nothing more; the last hook before the end is due."""
        self.state, self.stopping_app, self.deadline = State.DRAINING, stopping_app, deadline
        self.intake.clear()
        self._make_due()

    def release(self, commit_deadline: float) -> None:
        """Close the marks; a hook that had no time is left out."""
        self.state, self.hook_due, self.deadline = State.RELEASING, None, commit_deadline
        self.marks.closed = True

    def finish(self, state: State) -> None:
        """The ownership is over: ``state`` is REVOKED or LOST. A stop in good order runs no ``on_revoked``."""
        self.state, self.hook_due = state, None
        self.marks.closed = True
        self.marks.sends.end()
        self.intake.clear()
        self._make_due()

    def call_no_more(self) -> None:
        """No worker will come: what is due, and what would be, is left out."""
        self.hook_due, self.options = None, self.options._replace(hooks=())

    def _make_due(self) -> None:
        """The hooks of the end, if it has come and they have something to close."""
        before = Hook.ON_SHUTDOWN if self.stopping_app else Hook.BEFORE_REVOKE
        after = None if self.stopping_app else Hook.ON_REVOKED
        kind = {State.DRAINING: before, State.REVOKED: after, State.LOST: Hook.ON_REVOKED}.get(self.state)
        if kind is not None and self.open and self.options.hooks_of(kind):
            self.hook_due = kind

    def __str__(self) -> str:
        return where(*self.tp)

    def __repr__(self) -> str:
        return f"<Ownership {self} {self.state.name} stored={self.marks.stored} committed={self.marks.committed}>"


Leftovers = Mapping[str, Iterable[Ownership]]
"""By group: ownerships of an earlier start of the app whose user code still runs."""
