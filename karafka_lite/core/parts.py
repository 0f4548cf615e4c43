"""The parts of a batch that run side by side, in a partition whose order is by key.

A batch is dealt into parts: messages of one key are in one part, in their order. Its states, and who changes them:

    the batch   begun   ``Ownership.run``; no hook and no other batch beside it   -> over   its last part is over
    a part      waits   for a worker, in ``waiting``                              -> runs   ``begin``: a worker takes it
                runs    in ``inside``; it marks "done up to here" of itself       -> over   ``end``, or ``give_up``
                over    returned: all of it is done; else what it marked

A drain lets a batch that has begun come to its end, with the parts that wait. When the ownership closes its marks,
these are dropped: nobody has begun them, and the next owner reads them.

A message of a part that is done, and whose sends are acknowledged, is *done out of order* for the partition (see
``core.marks``): what is stored never passes a message that is not done. What one part sends, and what becomes of it,
concerns its own marks only.

The batch has failed when a part has raised: the others run to their end, then comes one back-off, and after it the
messages that are not done.

Where a batch is one unit, as in a transaction, nothing is done before all parts have returned: see ``core.units``.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from karafka_lite.core.marks import Marks
from karafka_lite.core.options import Options
from karafka_lite.core.ownership import Ownership, Run, State
from karafka_lite.core.sends import Send
from karafka_lite.errors import CRITICAL
from karafka_lite.messages import Record, TopicPartition, next_offset_after

Span = tuple[int, int]  # from, and up to before


def deal(records: Iterable[Record], most: int) -> list[list[Record]]:
    """``records`` in up to ``most`` parts, in the order of their first messages.

    The longest keys are dealt first, each to the emptiest part; then what has no key, one by one.
    """
    by_key: dict[object, list[Record]] = {}
    for record in records:
        by_key.setdefault(record.offset if record.key is None else record.key, []).append(record)
    parts: list[list[Record]] = [[] for _ in range(min(most, len(by_key)))]
    sizes = [(0, number) for number in range(len(parts))]
    for same in sorted(by_key.values(), key=len, reverse=True):
        size, number = sizes[0]
        parts[number] += same
        heapq.heapreplace(sizes, (size + len(same), number))
    for part in parts:
        part.sort(key=_offset)
    return sorted(parts, key=lambda part: part[0].offset)


def _offset(record: Record) -> int:
    return record.offset


class KeyMarks(Marks):
    """The ledger of a partition whose batches have parts."""

    __slots__ = ()

    def mark(self, offset: int) -> bool:
        """As far as all before it is done, whatever a hook says."""
        return super().mark(min(offset, self.retry_position))


class PartMarks(Marks):
    """The ledger of one part. What is done, it tells the ledger of the partition."""

    __slots__ = "_offsets", "_spans", "_told", "_whole", "over"

    def __init__(self, whole: Marks, spans: Sequence[Span], offsets: Sequence[int]) -> None:
        self._whole = whole
        super().__init__()
        self._spans = spans
        self._offsets = offsets  # of the messages that end the spans
        self._told = 0  # how many of them
        self.over = False  # what it has not told comes again
        self.retry_position = offsets[0]
        self.delivered = spans[-1][1]  # ``lowest`` is not set: there are messages of others between

    def was_handed(self, offset: int) -> bool:
        """Whether the message at ``offset`` is of this part."""
        at = bisect_left(self._offsets, offset)
        return at < len(self._offsets) and self._offsets[at] == offset

    def mark(self, offset: int) -> bool:
        """Of this part, all before ``offset`` is done. What is done stays done: an older mark changes nothing."""
        if self._whole.closed:
            return False
        if offset >= self.retry_position:
            super().mark(offset)
            self._tell()
        return True

    def add_done(self, *ranges: Span) -> None:
        """As for a partition, of this part."""
        super().add_done(*ranges)
        self._tell()

    def answered(self, send: Send, failure: BaseException | None, count: int = 1) -> None:
        """As for a partition; marks that have waited for it count now."""
        super().answered(send, failure, count)
        self._tell()

    def _tell(self) -> None:
        if self.over:
            return
        first, offsets = self._told, self._offsets
        self._told = max(first, bisect_left(offsets, self.commit_point[0] or 0))
        done = [*range(first, self._told)]
        for begin, end in self.done:
            done += range(max(self._told, bisect_left(offsets, begin)), bisect_left(offsets, end))
        if done:
            self._whole.add_done(*(self._spans[index] for index in done))


@dataclass(eq=False)
class Part(Run):
    """A call with a part of a batch."""

    ledger: PartMarks = field(kw_only=True)
    is_part = True

    @property
    def marks(self) -> PartMarks:
        """Its own."""
        return self.ledger


class KeyOwnership(Ownership):
    """One ownership of a partition whose order is by key."""

    __slots__ = "_failed", "_repeats", "_spins", "inside", "waiting"

    def __init__(self, tp: TopicPartition, options: Options, predecessor: Ownership | None = None) -> None:
        super().__init__(tp, options, predecessor)
        self.marks = KeyMarks()
        self.waiting: deque[Part] = deque()
        self.inside: list[Part] = []
        self._failed: list[Part] = []
        self._repeats = False  # something of the batch comes again, because it failed there
        self._spins = False  # it would at once, although a part has done nothing

    @property
    def calls(self) -> Sequence[Run]:
        """The calls of user code that run now."""
        return self.inside or (() if self.run is None or not self.run.hook else (self.run,))

    def ready_at(self) -> float | None:
        """As of any ownership; parts of a batch that has begun come first."""
        return 0.0 if self.waiting else super().ready_at()

    # -- a call of user code

    def begin(self, now: float) -> Run | None:
        """Hand over what is due: a hook, or a part."""
        if not self.waiting:
            run = super().begin(now)
            if run is None or run.hook:
                return run
            self._deal(run)
        self.scheduled = False
        part = self.waiting.popleft()
        part.began = now
        self.inside.append(part)
        return part

    def _deal(self, batch: Run) -> None:
        ends = [next_offset_after(record.offset) for record in batch.records]
        begins = dict(zip(ends, [batch.begin_offset, *ends], strict=False))
        for records in deal(batch.records, self.options.parts):
            spans = [(begins[end], end) for end in (next_offset_after(record.offset) for record in records)]
            self.waiting.append(self._part(batch, records, spans))
        self._failed, self._repeats, self._spins = [], False, False

    def _part(self, batch: Run, records: Sequence[Record], spans: Sequence[Span]) -> Part:
        offsets = [record.offset for record in records]
        return Part(
            self,
            self.retries.attempt_at(offsets[0]),
            batch.began,
            batch.chunk._replace(records=records),
            begin_offset=offsets[0],
            ledger=self._ledger(spans, offsets),
        )

    def _ledger(self, spans: Sequence[Span], offsets: Sequence[int]) -> PartMarks:
        return PartMarks(self.marks, spans, offsets)

    def end(self, run: Run, *, failed: bool, now: float) -> Sequence[Run]:
        """A hook or a part is over. What is to be told of: of parts that have failed, with the last of their batch."""
        if not isinstance(run, Part):
            self.waiting.clear()
            return super().end(run, failed=failed, now=now)
        self._out(run)
        if failed:
            self._failed.append(run)
        elif run.in_hand is not None:  # a loop over ``each`` was left
            self._spins |= run.marks.stored is None
        elif self.run is None or self.run.redirect is None:
            run.marks.mark(run.marks.delivered)
        run.marks.over = True
        return [*([] if failed else [run]), *self._end_batch(now)]

    def give_up(self, run: Run) -> Sequence[Run]:
        """The culprit of a part is given up. What the part has not done comes again."""
        assert isinstance(run, Part)
        self._out(run)
        run.marks.failure = None
        self._leave_out(run)
        run.marks.over = self._repeats = True
        return [run, *self._end_batch(run.began + run.seconds)]

    def _out(self, part: Part) -> None:
        self.inside.remove(part)
        part.over = True

    def _end_batch(self, now: float) -> Sequence[Run]:
        """When all parts are over. Returns those that have failed, first those of which no line is said."""
        batch = self.run
        if batch is None or self.inside or self.waiting:
            return ()
        marks, failed = self.marks, sorted(self._failed, key=_tells)
        self._end_run(batch)
        self.retries.succeeded(record for record in batch.records if self._is_done(record.offset))
        if failed:
            self.retries.attempt = batch.attempt
        for part in failed:
            part.beside = part is not failed[-1]
            if not part.excused:
                self.retries.failed(now, part.attempt, part.culprit, wait=not self._is_found_at_once(part))
        if failed or self._repeats:
            self._reset_state()
        if batch.redirect is not None:
            self.redirect(batch.redirect)
        elif marks.retry_position > batch.records[-1].offset:  # what was done before may follow
            self.intake.put_back(batch.chunk._replace(records=()), marks.retry_position)
        else:
            self._go_on_at(batch, marks.retry_position)
            if self._spins:
                self.retries.back_off(now)
        marks.forget_done(before=marks.retry_position)
        return failed

    def _is_done(self, offset: int) -> bool:
        return offset < self.marks.retry_position or self.marks.is_done(offset)

    # -- the end

    def release(self, commit_deadline: float) -> None:
        """Close the marks; parts and hooks that had no time are left out."""
        self._drop()
        super().release(commit_deadline)

    def finish(self, state: State) -> None:
        """The ownership is over."""
        self._drop()
        super().finish(state)

    def _drop(self) -> None:
        """Parts that wait are not begun any more."""
        if self.waiting:
            self.waiting.clear()
            self.untold = self._end_batch(0.0)


def _tells(part: Part) -> tuple[bool, int]:
    """The last of all tells of the batch: one that stops the app, else the first one of the partition."""
    return isinstance(part.error, CRITICAL), -part.records[0].offset
