"""How often the handler has failed at a message, and when the next try is.

Who has failed is known where the batch has one message, or the loop is over ``each``: the *culprit*, and only it is
counted. Else the failed try is one of each message of the batch, and all are *suspects*: they are handed over one at a
time until each is done or given up. So a message is tried as often as its budget says, whoever stands beside it.
"""

from __future__ import annotations

from collections.abc import Iterable

from karafka_lite.core.backoff import Backoff
from karafka_lite.messages import Record


class Retries:
    """The attempts of one ownership. Changed under the group's lock only."""

    __slots__ = ("_backoff", "_budget", "_suspects", "_tries", "attempt", "not_before")

    def __init__(self, backoff: Backoff, budget: int | None) -> None:
        self.attempt: int = 1  # of the next batch, unless its first message has been counted
        self.not_before: float = 0.0  # the end of the back-off
        self._backoff = backoff
        self._budget = budget
        self._tries: dict[int, int] = {}  # by offset; empty without a budget
        self._suspects: set[int] = set()  # offsets of messages that are tried alone

    def attempt_at(self, offset: int) -> int:
        """The attempt of a batch that begins with the message at ``offset``."""
        tries = self._tries.get(offset)
        return self.attempt if tries is None else tries + 1

    def back_off(self, now: float, attempt: int = 1) -> None:
        """Have the next batch wait as after the failed ``attempt``."""
        self.not_before = max(self.not_before, now + self._backoff.delay_ms(attempt) / 1000)

    def failed(self, now: float, attempt: int, culprit: int | None = None, *, wait: bool = True) -> None:
        """A batch has failed at its ``attempt``: it is tried again after the back-off, which grows with the tries of
        the ``culprit`` where it is counted."""
        attempt = attempt if culprit is None else self._tries.get(culprit, attempt)
        if wait:
            self.back_off(now, attempt)
        self.attempt = attempt + 1

    def succeeded(self, records: Iterable[Record]) -> None:
        """``records`` are processed."""
        self.attempt = 1
        if self._tries:
            for record in records:
                self._forget(record.offset)

    # -- the budget of a message

    @property
    def counting(self) -> bool:
        """Whether there are messages at which the handler has failed."""
        return bool(self._tries)

    @property
    def has_tries_left(self) -> bool:
        """Whether a message that has failed will be done or given up after some more tries."""
        return self._budget is not None and any(tries < self._budget for tries in self._tries.values())

    def count(self, offsets: Iterable[int], *, known: bool) -> None:
        """Count a failed try of these messages; ``known``: of the one at which the handler has failed."""
        if self._budget is None:
            return
        for offset in offsets:
            self._tries[offset] = self.tries_of(offset) + 1
            if not known:
                self._suspects.add(offset)

    def forget(self, *, before: int) -> None:
        """What is before that offset is done."""
        for offset in [offset for offset in self._tries if offset < before]:
            self._forget(offset)

    def tries_of(self, offset: int) -> int:
        """How often the handler has failed at the message."""
        return self._tries.get(offset, 0)

    def is_exhausted(self, offset: int) -> bool:
        """Whether the message has no tries left."""
        return self._budget is not None and self.tries_of(offset) >= self._budget

    def is_suspect(self, record: Record) -> bool:
        """Whether the message is tried alone."""
        return record.offset in self._suspects

    def limit(self, upcoming: Iterable[Record], most: int) -> int:
        """How many of the ``upcoming`` messages the next batch may have, so that a suspect is alone."""
        if not self._suspects:
            return most
        first_suspect = (index for index, record in enumerate(upcoming) if self.is_suspect(record))
        return max(next(first_suspect, most), 1)

    def _forget(self, offset: int) -> None:
        self._tries.pop(offset, None)
        self._suspects.discard(offset)
