"""What user code of one ownership has sent, and what becomes of it.

A message leaves in one of two ways:

*At once.* A mark may be committed only when every message that was sent before it is acknowledged (``point``). Where
one fails, the marks made after it are void.

*With the next mark* (``exactly_once``). Until then it is *held* in memory; it leaves with the commit of that mark, in
one transaction. Its states, and what changes them:

    waits       sent after the last mark             -> released    by the next mark, of the handler or an automatic one
    released    sent before the last mark            -> committed   by the transaction that commits the mark
    dropped     never leaves                         <- waits       its run has failed, or the ownership is over
                                                     <- released    it, or one before it, was refused, or it is over

Nobody keeps these states. A message knows the mark before it (``Held.mark``), and is released by any later one. A mark
that is void takes back what it has released, and there is nothing else to undo.

A run that fails drops what was sent after the last mark: its messages come again. After a seek they do not. So what was
sent before a seek is of an *era* that is over, and no failure drops it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from karafka_lite.errors import ProduceError
from karafka_lite.messages import Addressed

Receipt = tuple[int, int]
"""Partition and offset of a message that was sent."""
Told = Callable[[int, BaseException | None], None]
"""Is called with how many messages have an answer, and why they have failed; None: they are acknowledged."""


class Mark(NamedTuple):
    """The last mark of an ownership, as it is, or was when a message was sent."""

    stored: int | None
    version: int
    retry_position: int
    done: list[tuple[int, int]]


@dataclass(eq=False)
class Send:
    """Messages on their way that were sent one after another, without a mark in between; ``told``: for the runner."""

    mark: Mark
    unanswered: int = 0
    told: Told | None = None


@dataclass(eq=False)
class Held:
    """Messages that wait, sent by one run one after another, without a mark in between.

    ``watchers``: who is told of the answer; of no matter here. ``letter``: it is a dead letter, and the offsets in this
    range count as given up because of it. ``answer``: where they are, or why they never left; None: that is open.
    """

    mark: Mark
    messages: list[Addressed] = field(default_factory=list)
    watchers: list[Any] = field(default_factory=list)
    number: int = 0
    era: int = 0
    letter: tuple[int, int] | None = None
    answer: Sequence[Receipt] | ProduceError | None = None


DROPPED = "it never left: its run has failed, or a loop over each was left, before the next mark; it is made anew"
VOID = "it never left: a message that was sent before it, or with it, was refused; it is made anew"
OVER = "it never left, unless a last commit had no answer: the partition is not ours any more"


class Sends:
    """Of one ownership. Changed under the group's lock only."""

    __slots__ = ("_began", "_era", "_goes", "_numbers", "_open", "_sends", "held", "in_flight", "newest", "settled")

    def __init__(self) -> None:
        self.in_flight: int = 0  # messages that have left at once, and that have no answer
        self.newest: Send | None = None  # to which more can be counted: the last one, while it has no answer
        self.held: list[Held] = []  # in the order in which they were sent
        self.settled: list[Held] = []  # whose answers have yet to be passed on
        self._open: set[Send] = set()  # with messages that have no answer
        self._sends: deque[Send] = deque()  # from the oldest one without an answer on
        self._era = self._numbers = 0
        self._began = self._goes = 0  # the number of the first that the last run, or its last function, may have sent

    # -- at once

    def begin_send(self, mark: Mark) -> Send:
        """What is sent after ``mark``."""
        send = self.newest = Send(mark)
        self._sends.append(send)
        self._open.add(send)
        return send

    def answered(self, send: Send, count: int, *, failed: bool) -> Mark | None:
        """``count`` messages of ``send`` have an answer. Returns the mark to go back to, where one is void by now."""
        back = None
        send.unanswered -= count
        self.in_flight -= count
        if not send.unanswered:
            self._open.remove(send)
        if failed and send in self._sends:  # else an older one has failed, and this one went with it
            while self._sends.pop() is not send:
                pass
            back = send.mark
        while self._sends and not self._sends[0].unanswered:
            self._sends.popleft()
        self.newest = self._sends[-1] if self._sends and self._sends[-1].unanswered else None
        return back

    @property
    def open(self) -> list[Send]:
        """Those with messages that have no answer."""
        return list(self._open)

    def is_open(self, send: Send) -> bool:
        """Whether an answer to ``send`` is still one."""
        return send in self._open

    @property
    def point(self) -> Mark | None:
        """The newest mark before which every send is acknowledged; None: the last one."""
        return self._sends[0].mark if self._sends else None

    # -- with the next mark

    def hold(self, mark: Mark, letter: tuple[int, int] | None = None) -> Held:
        """What is put into the answer waits for the next mark after ``mark``."""
        held = Held(mark, number=self._numbers, era=self._era, letter=letter)
        self._numbers += 1
        self.held.append(held)
        return held

    def held_since(self, version: int, retry_position: int) -> Held | None:
        """What the last function of the last run has sent since then, if more can be put to it."""
        last = self.held[-1] if self.held else None
        if last is None or last.number < self._goes or last.era != self._era or last.letter is not None:
            return None
        return last if last.mark.version == version and last.mark.retry_position == retry_position else None

    def released(self, version: int) -> list[Held]:
        """What leaves with the mark of ``version``."""
        return [held for held in self.held if held.mark.version < version]

    def waits(self, version: int) -> bool:
        """Whether something was sent after the mark of ``version``."""
        return bool(self.held) and self.held[-1].mark.version >= version

    def begin(self) -> None:
        """A run begins."""
        self._began = self._goes = self._numbers

    def goes_on(self) -> None:
        """One of its functions has ended: how others end is no matter for what it has sent."""
        self._goes = self._numbers

    def is_of_run(self, held: Held) -> bool:
        """Whether the last run has sent these."""
        return held.number >= self._began

    def keep(self) -> None:
        """What was sent so far belongs to messages that will not come again: no failure drops it."""
        self._era += 1

    def drop(self, version: int, *, of_run: bool) -> list[Held]:
        """What was sent after the mark of ``version`` never leaves; ``of_run``: only what the last run has sent, or its
        last function."""
        waiting = [held for held in self.held if held.mark.version >= version]
        waiting = [held for held in waiting if (held.number >= self._goes if of_run else held.era == self._era)]
        return self._take_out(waiting, DROPPED)

    def void(self, refused: Held, error: ProduceError) -> list[Held]:
        """What was sent from ``refused`` on never leaves, and is returned; nothing, where it has been dropped.

        With it goes what was sent before it after the same mark: the same messages come again. What has left at once
        after marks that are void now holds up those that are made from now on.
        """
        if refused not in self.held:
            return []
        for send in [send for send in self._sends if send.mark.version > refused.mark.version]:
            send.mark = refused.mark
        refused.answer, place = error, (refused.mark.version, refused.era)
        return self._take_out([held for held in self.held if (held.mark.version, held.era) >= place], VOID)

    def committed(self, version: int) -> None:
        """What left with the mark of ``version`` is in its topics, and knows where."""
        self.settled += self.released(version)
        self.held = [held for held in self.held if held.mark.version >= version]

    def end(self) -> None:
        """The ownership is over."""
        self._take_out(self.held, OVER)

    def _take_out(self, dropped: list[Held], why: str) -> list[Held]:
        if dropped:
            self.held = [held for held in self.held if held not in dropped]  # there are few
            self.settled += dropped
            for held in dropped:
                held.answer = held.answer or ProduceError(why)
        return dropped
