"""What was fetched of one partition and not yet handed over."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import NamedTuple

from karafka_lite.messages import Record

LEAST_BATCHES, MOST_BATCHES = 2, 8  # more would only be dropped again at the next rebalance


class Room(NamedTuple):
    """How much may be fetched ahead."""

    messages: int
    size_bytes: int

    def shared_by(self, queues: int) -> Room:
        """The part of each."""
        return Room(self.messages // queues, max(1, self.size_bytes // queues))


class Backlog:
    """Records in offset order, in the pieces in which they came; ``size`` is their number."""

    def __init__(self) -> None:
        self.size = 0
        self.size_bytes = 0  # about: where a piece was cut, each of its records counts the same
        self._chunks: deque[tuple[Sequence[Record], int | None, int]] = deque()

    def add(self, records: Sequence[Record], end_offset: int | None, size_bytes: int) -> None:
        """``records``, not empty, came when the partition ended at ``end_offset``."""
        each_bytes = size_bytes // len(records)
        self._chunks.append((records, end_offset, each_bytes))
        self.size += len(records)
        self.size_bytes += each_bytes * len(records)

    def filled(self, batch: int, room: Room) -> float:
        """Which part of its room it takes; there is always room for a few batches of ``batch`` messages."""
        messages = max(LEAST_BATCHES * batch, min(MOST_BATCHES * batch, room.messages))
        return max(self.size / messages, self.size_bytes / room.size_bytes)

    def peek(self, limit: int) -> Iterator[Record]:
        """The first ``limit`` records, which stay."""
        return islice(chain.from_iterable(records for records, _, _ in self._chunks), limit)

    def take(self, limit: int) -> tuple[Sequence[Record], int | None]:
        """The first ``limit`` records, and the partition's end when the last of them was fetched."""
        records: Sequence[Record] = ()
        end_offset: int | None = None
        while self._chunks and len(records) < limit:
            chunk, end_offset, each_bytes = self._chunks.popleft()
            room = limit - len(records)
            if len(chunk) > room:
                self._chunks.appendleft((chunk[room:], end_offset, each_bytes))
                chunk = chunk[:room]
            records = [*records, *chunk] if records else chunk
            self.size_bytes -= each_bytes * len(chunk)
        self.size -= len(records)
        return records, end_offset

    def clear(self) -> None:
        self._chunks.clear()
        self.size = self.size_bytes = 0
