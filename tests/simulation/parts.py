"""The ledger's books of parts of batches: what is done in a partition whose order is by key.

Of each part: what it has marked, and which of its messages wait for an answer. What is marked with no such message
before it is done. What is stored is what comes before the first message that is not done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from greenlet import getcurrent

from karafka_lite.core.ownership import Run
from karafka_lite.core.sends import Send
from karafka_lite.errors import CRITICAL, ProduceError

if TYPE_CHECKING:
    from collections import Counter

    from ledger import Book

Require = Callable[..., None]


class Waiting:
    """A message of a part that has no answer yet."""

    def __init__(self) -> None:
        self.waits = True


class PartBook:
    """What the ledger knows of one part."""

    def __init__(self, o: Book, run: Run) -> None:
        self.o, self.run = o, run
        self.offsets = [record.offset for record in run.records]
        self.trail: list[Waiting | frozenset[int]] = []  # sends, and what was marked after them
        self.done: set[int] = set()
        self.waiting: dict[Send, list[Waiting]] = {}
        self.failed_send = self.own_fault = self.raised = self.over = False

    @property
    def position(self) -> int:
        """Where it would go on."""
        marked = self.done.union(*(marks for marks in self.trail if isinstance(marks, frozenset)))
        return next((offset for offset in self.offsets if offset not in marked), self.offsets[-1] + 1)

    def before(self, offset: int) -> frozenset[int]:
        return frozenset(one for one in self.offsets if one < offset)


class PartsLedger:
    """What ``Ledger`` does for parts."""

    reached: Counter[str]

    def part_begun(self, o: Book, run: Run, now: float) -> None:
        from ledger import require

        batch = o.running
        require(batch is not None and o.ours and not o.lost, "parts are begun while the partition is ours", o, run)
        assert batch is not None
        mine, all_of_it = {record.offset for record in run.records}, {record.offset for record in batch.records}
        begun = {record.offset for other in o.begun_parts for record in other.records}
        require(mine and mine <= all_of_it - begun, "each message of a batch is in one part", o, run)
        offsets = [record.offset for record in run.records]
        require(offsets == sorted(offsets), "a part is in the order of its offsets", o, run)
        keys = {record.key for record in run.records if record.key is not None}
        for other in o.begun_parts:
            theirs = {record.key for record in other.records if record.key is not None}
            require(not keys & theirs, "messages of a key are in one part", o, run, other)
        o.begun_parts.append(run)
        require(len(o.begun_parts) <= o.options.parts, "there are no more parts than calls at the same time", o)
        if len(o.begun_parts) > 1:
            self.reached["parts ran side by side" if len(o.parts) else "parts ran one after the other"] += 1
        self.reached["a part began during a drain"] += o.asked is not None
        book = o.parts[run] = PartBook(o, run)
        run.marks.book = book  # type: ignore[attr-defined]

    # -- what a part says

    def part_marked(self, p: PartBook, offset: int, result: bool, now: float) -> None:
        from ledger import require

        o = p.o
        require(result is o.ours, "a mark counts while the partition is ours", o, offset, result, o.seen)
        o.last_mark[getcurrent()] = result and not p.failed_send, o.seq
        if result and not p.failed_send and not p.over and offset > p.position:
            p.trail.append(p.before(offset))
            self._backed(p, now)

    def part_gave_up(self, p: PartBook, offset: int, now: float) -> None:
        """The message is done, whatever is before it."""
        if p.o.ours and not p.failed_send and not p.over and offset >= p.position:
            self.reached["a part gave a message up"] += 1
            p.trail.append(frozenset([offset]))
            self._backed(p, now)

    def part_sent(self, p: PartBook, send: Send) -> None:
        message = Waiting()
        p.waiting.setdefault(send, []).append(message)
        p.trail.append(message)

    def part_answered(self, p: PartBook, send: Send, failure: BaseException | None, now: float) -> None:
        if not p.waiting.get(send):
            return
        message = p.waiting[send].pop(0)
        message.waits = False
        if failure is not None:
            p.failed_send = True
            p.own_fault |= not (isinstance(failure, ProduceError) and failure.collateral)
            if message in p.trail:
                left = p.trail[p.trail.index(message) :]
                self.reached["a part could not send, and its marks were void"] += any(
                    isinstance(one, frozenset) for one in left
                )
                del p.trail[p.trail.index(message) :]
        self._backed(p, now)

    def _backed(self, p: PartBook, now: float) -> None:
        while p.trail and not (isinstance(p.trail[0], Waiting) and p.trail[0].waits):
            marks = p.trail.pop(0)
            if isinstance(marks, frozenset):
                p.done |= marks
                self._done(p.o, marks, now)

    def _done(self: Any, o: Book, offsets: frozenset[int], now: float) -> None:
        o.gone |= {offset for offset in offsets if offset >= o.retry_position}
        if o.gone and o.ours and self._unmarked_from(o) in o.gone:
            self._stored(o, o.retry_position, now)
        elif offsets:
            self.reached["a message was done out of order"] += 1

    # -- its end

    def _part_out(self, run: Run) -> PartBook:
        from ledger import require

        o = self[run.ownership]  # type: ignore[index]
        require(run in o.parts, "a part ends once", o, run)
        p: PartBook = o.parts.pop(run)
        require(not any(p.waiting.values()), "a part ends with the answers to what it sent", o, run)
        return p

    def part_ended(self: Any, run: Run, *, failed: bool, now: float) -> None:
        from ledger import require

        p = self._part_out(run)
        o = p.o
        require(failed is (p.raised or p.failed_send), "a call fails when it raises or cannot send, and only then", o)
        if failed:
            o.failed_parts.append(p)
            o.life.untold += 1
        elif run.in_hand is not None:
            self.reached["a loop over each was left in a part"] += 1
            o.spins |= not p.done
        elif o.redirect is None and o.ours:
            self._done(o, frozenset(p.offsets), now)
        p.over = True
        self.batch_of_parts_ends(o, len(o.ownership.waiting), now)

    def part_given_up(self: Any, run: Run, now: float) -> tuple[int, int]:
        from ledger import _culprit, require

        p, culprit = self._part_out(run), _culprit(run)
        o = p.o
        require(culprit is not None, "who is not known is not given up", o, run)
        tries = o.tries[culprit]
        if o.ours and culprit >= p.position:
            self._done(o, frozenset([culprit]), now)
        o.is_done_with(culprit)
        o.attempt, o.repeats, p.over = 1, True, True
        self.reached["a message was given up in a part"] += 1
        self.batch_of_parts_ends(o, len(o.ownership.waiting), now)
        return culprit, tries

    def batch_of_parts_ends(self: Any, o: Book, waiting: int, now: float) -> None:
        from ledger import _culprit, blameless

        batch = o.running
        if batch is None or o.parts or waiting:
            return
        o.running = None
        del o.life.process.inside[o.tp]
        failed = sorted(o.failed_parts, key=lambda p: (isinstance(p.run.error, CRITICAL), -p.offsets[0]))
        undone = [record.offset for record in batch.records if not self._is_done(o, record.offset)]
        for record in batch.records:
            if record.offset not in undone:
                o.is_done_with(record.offset)
        o.attempt = batch.attempt if failed else 1
        for p in failed:
            if blameless(p, p.run):
                self.reached["a part failed by the fault of another"] += 1
                continue
            culprit = _culprit(p.run)
            tries = p.run.attempt if culprit is None else o.tries.get(culprit, p.run.attempt)
            o.attempt = tries + 1
            found_at_once = p.run.pointless and culprit is None and any(map(o.is_suspect, p.run.records))
            if not found_at_once:
                o.not_before = max(o.not_before, now + o.options.backoff.delay_ms(tries) / 1000)
        if failed or o.repeats:
            o.reset_state()
            self.reached["a batch of parts failed"] += bool(failed)
            self.reached["several parts of a batch failed"] += len(failed) > 1
        if o.redirect is not None:
            self._redirect(o, o.redirect)
            self.reached["a part has sought"] += 1
        elif o.retry_position > batch.records[-1].offset:
            o.hand_next = o.done = o.retry_position
        else:
            self._go_on_at(o, batch, o.retry_position)
            if o.spins:
                o.not_before = max(o.not_before, now + o.options.backoff.delay_ms(1) / 1000)
        o.gone = {offset for offset in o.gone if offset >= o.retry_position}

    def _is_done(self, o: Book, offset: int) -> bool:
        return offset < o.retry_position or offset in o.gone
