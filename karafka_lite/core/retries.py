"""How often the handler has failed at a message, and when the next try is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from karafka_lite.core.backoff import Backoff
from karafka_lite.messages import Record


class Tries(NamedTuple):
    """How often the handler has failed at a message; ``alone``: as the only one of its batch."""

    all: int = 0
    alone: int = 0


class Retries:
    """The attempts of one ownership. Changed under the group's lock only."""

    __slots__ = ("_backoff", "_budget", "_tries", "attempt", "not_before")

    def __init__(self, backoff: Backoff, budget: int | None) -> None:
        self.attempt: int = 1
        self.not_before: float = 0.0  # the end of the back-off
        self._backoff = backoff
        self._budget = budget
        self._tries: dict[int, Tries] = {}  # by offset; empty without a budget

    def back_off(self, now: float, attempt: int = 1) -> None:
        """Have the next batch wait as after the failed ``attempt``."""
        self.not_before = max(self.not_before, now + self._backoff.delay_ms(attempt) / 1000)

    def failed(self, now: float) -> None:
        """The batch has failed: it is tried again after the back-off."""
        self.back_off(now, self.attempt)
        self.attempt += 1

    def succeeded(self, records: Iterable[Record]) -> None:
        """``records`` are processed."""
        self.attempt = 1
        if self._tries:
            for record in records:
                self._tries.pop(record.offset, None)

    # -- the budget of a message

    @property
    def counting(self) -> bool:
        """Whether there are messages at which the handler has failed."""
        return bool(self._tries)

    def count(self, records: Sequence[Record], culprit: int | None, retry_position: int) -> None:
        """Count a failed try of ``records``, up to the ``culprit`` where it is known; marked ones do not count."""
        if self._budget is None:
            return
        self._tries = {offset: tries for offset, tries in self._tries.items() if offset >= retry_position}
        alone = len(records) == 1
        for record in records:
            tried = culprit is None or record.offset <= culprit
            if tried and record.offset >= retry_position:
                before = self.tries_of(record.offset)
                self._tries[record.offset] = Tries(before.all + 1, before.alone + alone)

    def tries_of(self, offset: int) -> Tries:
        """How often the handler has failed at the message."""
        return self._tries.get(offset, Tries())

    def is_exhausted(self, offset: int) -> bool:
        """Whether the message has to be given up."""
        return self._budget is not None and self.tries_of(offset).alone >= self._budget

    def is_isolated(self, record: Record) -> bool:
        """Whether the message has to be tried alone: its batches have failed too often."""
        return self._budget is not None and self.tries_of(record.offset).all >= self._budget

    def limit(self, upcoming: Iterable[Record], most: int) -> int:
        """How many of the ``upcoming`` messages the next batch may have, so that an isolated one is alone."""
        if not self._tries:
            return most
        first_isolated = (index for index, record in enumerate(upcoming) if self.is_isolated(record))
        return max(next(first_isolated, most), 1)
