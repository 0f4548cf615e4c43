"""What is stored, what may be committed, and what is committed.

Three offsets of one ownership, each the *next* offset to read:

    stored           marked by the handler, or automatically after it returned
    committed        acknowledged by the broker
    retry_position   where the next batch starts after a failure

What is stored is *pending* until the broker has it: ``version`` differs from ``committed_version``. A commit that can
never succeed (``Refusal.lasting``) is tried again from time to time, and nobody waits for it.

A message may be *done out of order*, while one before it is not: in manual mode a dead letter, and with ``order="key"``
what one part of a batch has come to. It counts as marked once all before it is, and is not handed over again.

A mark may be committed only when every message that was sent before it is acknowledged, or goes with it (``sends``).
When a send fails, the marks made after it are void.
"""

from __future__ import annotations

import sys
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Literal, NamedTuple

from karafka_lite.core.backoff import Backoff
from karafka_lite.core.sends import Held, Mark, Send, Sends
from karafka_lite.errors import ProduceError, describe, is_collateral

COMMIT_RETRY = Backoff(100, 1000)
LASTING_RETRY_S = 5.0


class Refusal(NamedTuple):
    """Why the broker does not have an offset that was sent to it.

    ``lasting``: as long as nobody changes something, it never will: the topic is ``"gone"`` (deleted, or made anew), or
    the commit is ``"denied"``.
    """

    error: Exception
    lasting: Literal["gone", "denied"] | None = None


class Marks:
    """The ledger of offsets of one ownership. Changed under the group's lock only."""

    __slots__ = (
        "_done", "_refused_version", "_tries", "_versions", "closed", "commit_at", "committed", "committed_version",
        "delivered", "failure", "last_failure", "lowest", "refusal", "retry_position", "sends", "stored", "version"
    )  # fmt: skip

    def __init__(self) -> None:
        self.stored: int | None = None
        self.committed: int | None = None
        self.version: int = 0  # of ``stored``; never used twice
        self.committed_version: int = 0
        self.retry_position: int = 0  # where the next batch starts after a failure
        self.closed: bool = False  # marks are refused
        self.lowest: int = sys.maxsize  # offset of the first message that was handed over
        self.delivered: int = 0  # next offset after the highest message that was handed over
        self.failure: BaseException | None = None  # of a send of the running code: until it ends, marks are void
        self.last_failure: BaseException | None = None  # of any send
        self.refusal: Refusal | None = None  # of the last commit; None after one that succeeded
        self.commit_at: float = 0.0  # not before that, after a refusal
        self.sends: Sends = Sends()
        self._tries = 0  # since a commit succeeded
        self._refused_version = -1  # for good
        self._versions = 0
        self._done: list[tuple[int, int]] = []  # ranges [from, to), sorted, never changed but replaced

    # -- marking

    def begin_at(self, start: int, *, committed: bool, commit_start: bool) -> None:
        """The ownership begins at ``start``. ``committed``: the broker has it; ``commit_start``: it has to get it."""
        self.retry_position = self.delivered = start
        if committed:
            self.stored = self.committed = start
        elif commit_start:
            self.mark(start)

    def handed_over(self, first_offset: int, next_offset: int) -> None:
        """Messages from ``first_offset`` up to before ``next_offset`` were handed to user code."""
        self.lowest = min(self.lowest, first_offset)
        self.delivered = max(self.delivered, next_offset)

    def was_handed(self, offset: int) -> bool:
        """Whether the message at ``offset`` was handed over by this ownership."""
        return self.lowest <= offset < self.delivered

    def mark(self, offset: int) -> bool:
        """Store the next offset to read. False, and nothing is stored, when marks are closed.

        After the ``failure`` of a send the mark is void: nothing is stored, although the partition is ours.
        """
        if self.closed:
            return False
        if self.failure is not None:
            return True
        if self._done:
            offset = self.past_done(offset)
        self.retry_position = offset
        if offset != self.stored or (self.sends.held and self.sends.waits(self.version)):
            self.stored = offset
            self.version = self._versions = self._versions + 1
        return True

    # -- committing

    @property
    def pending(self) -> bool:
        """Something is stored that the broker does not have."""
        return self.version != self.committed_version

    @property
    def awaited(self) -> bool:
        """The broker may have soon what it does not have yet."""
        return self.pending and self._refused_version != self.version

    @property
    def uncommitted(self) -> bool:
        """What is pending comes again: there is still a topic that it belongs to."""
        return self.pending and (self.awaited or self.refusal is None or self.refusal.lasting != "gone")

    @property
    def commit_point(self) -> tuple[int | None, int]:
        """The newest offset, and its version, before which every send is acknowledged."""
        mark = self.sends.point or self
        return mark.stored, mark.version

    @property
    def done(self) -> list[tuple[int, int]]:
        """What is done out of order, as far as every send before that is acknowledged."""
        return self.sends.point.done if self.sends.point else self._done

    @property
    def committable(self) -> bool:
        """Something may be committed that the broker does not have."""
        return self.commit_point[1] != self.committed_version

    @property
    def waits_for(self) -> str:
        """Why what is stored is not committed yet."""
        if self.refusal is not None:
            return describe(self.refusal.error)
        return "a message that was sent before it has no answer yet" if self.sends.open else "no answer yet"

    def acknowledged(self, offset: int, version: int) -> None:
        """The broker has ``offset``, which was stored as ``version``."""
        self.committed = offset
        self.committed_version = version
        self.refusal, self.commit_at, self._tries = None, 0.0, 0
        if self.sends.held:
            self.sends.committed(version)

    def refused(self, version: int, refusal: Refusal, now: float) -> None:
        """The broker does not have what was stored as ``version``; it is tried again."""
        self.refusal = refusal
        self._tries += 1
        self._refused_version = version if refusal.lasting else -1
        self.commit_at = now + (LASTING_RETRY_S if refusal.lasting else COMMIT_RETRY.delay_ms(self._tries) / 1000)

    def try_again(self) -> None:
        """Somebody waits for a commit that was refused for good."""
        if self._refused_version != -1:
            self._refused_version, self.commit_at = -1, 0.0

    def is_refused(self, version: int) -> bool:
        """Whether it is of no use to wait for ``version``."""
        return self._refused_version >= version

    # -- sends

    @property
    def in_flight(self) -> int:
        """How many messages the running code has sent that have no answer."""
        return self.sends.in_flight

    @property
    def last(self) -> Mark:
        """The last mark."""
        return Mark(self.stored, self.version, self.retry_position, self._done)

    def sending(self, count: int = 1) -> Send:
        """The running code sends ``count`` messages: marks from now on are not committed before they are acknowledged.

        It is the same ``Send`` as before, where nothing was marked since.
        """
        sends, send = self.sends, self.sends.newest
        if send is None or not (  # in one function: it is called for each message
            (mark := send.mark).version == self.version
            and mark.retry_position == self.retry_position
            and mark.done is self._done
        ):
            send = sends.begin_send(self.last)
        send.unanswered += count
        sends.in_flight += count
        return send

    def answered(self, send: Send, failure: BaseException | None, count: int = 1) -> None:
        """``count`` messages of ``send`` are acknowledged; or they have failed, and the marks made after them are void.

        An answer after the last one is none.
        """
        if not self.sends.is_open(send):
            return
        back = self.sends.answered(send, count, failed=failure is not None)
        if failure is not None:
            self._failed(failure, back)

    def _failed(self, failure: BaseException, back: Mark | None) -> None:
        if self.failure is None or (is_collateral(self.failure) and not is_collateral(failure)):
            self.failure = failure  # a fault of its own counts before that of another, in whichever order they come
        self.last_failure = failure
        if back is not None:
            self.stored, self.version, self.retry_position, self._done = back

    # -- sends that wait for the next mark

    def hold(self) -> Held:
        """What is put into the answer leaves with the next mark."""
        return self.sends.held_since(self.version, self.retry_position) or self.sends.hold(self.last)

    @property
    def released(self) -> list[Held]:
        """What leaves with the commit of the last mark."""
        return self.sends.released(self.version) if self.sends.held else []

    @property
    def owes(self) -> bool:
        """A run cannot end yet: what it has sent has no answer, or what it has released is not committed."""
        return self.in_flight > 0 or bool(self.released)

    def drop(self, *, of_run: bool) -> None:
        """What was sent after the last mark never leaves; ``of_run``: only what the last run has sent."""
        self._take_back(self.sends.drop(self.version, of_run=of_run))

    def refused_with(self, held: Held, error: ProduceError) -> None:
        """``held`` was refused: the marks made after it are void."""
        by_run = self.sends.is_of_run(held)
        if dropped := self.sends.void(held, error):
            failure = ProduceError.from_failure(error)
            failure.collateral = not by_run  # what an earlier run has sent is no fault of this one
            self._failed(failure, held.mark)
            self._take_back(dropped)

    def _take_back(self, dropped: Sequence[Held]) -> None:
        """What counts as done because of a dead letter that is dropped comes again."""
        for begin, end in [held.letter for held in dropped if held.letter is not None]:
            outside = [(b, min(e, begin)) for b, e in self._done] + [(max(b, end), e) for b, e in self._done]
            self._done = sorted((b, e) for b, e in outside if b < e)

    def give_up_answers(self, failure: BaseException) -> None:
        """Nothing waits any longer for answers: what has none has failed."""
        for send in self.sends.open:
            self.answered(send, failure, send.unanswered)

    # -- messages that are done out of order: before others that are before them

    def add_done(self, *ranges: tuple[int, int]) -> None:
        """What is in ``ranges``, each from one offset up to before another, is done; it counts as marked once all
        before it is. It is one mark at the most, however many ranges there are.
        """
        for begin, end in ranges:
            self._add_done(begin, end)
        if self.is_done(self.retry_position):
            self.mark(self.retry_position)

    def _add_done(self, begin: int, end: int) -> None:
        ranges = self._done
        first = bisect_left(ranges, begin, key=lambda one: one[1])
        after = bisect_right(ranges, end, key=lambda one: one[0])
        if first < after:  # it touches these
            begin, end = min(begin, ranges[first][0]), max(end, ranges[after - 1][1])
        self._done = [*ranges[:first], (begin, end), *ranges[after:]]

    @property
    def has_done(self) -> bool:
        """Whether there are messages that are done and may be fetched again."""
        return bool(self._done)

    def is_done(self, offset: int) -> bool:
        """Whether the message at ``offset`` is done out of order."""
        return self.past_done(offset) != offset

    def past_done(self, offset: int) -> int:
        """``offset``, or the next one after the messages from there on that are done."""
        index = bisect_right(self._done, (offset, sys.maxsize)) - 1
        return max(offset, self._done[index][1]) if index >= 0 else offset

    def forget_done(self, *, before: int = 0, from_offset: int = sys.maxsize) -> None:
        """Messages before ``before`` cannot come again; those from ``from_offset`` on are wanted again."""
        if self._done:
            cut = ((max(begin, before), min(end, from_offset)) for begin, end in self._done)
            self._done = [(begin, end) for begin, end in cut if begin < end]
