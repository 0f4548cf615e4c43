"""What was fetched of one partition and not yet handed over."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain, islice

from karafka_lite.messages import Record


class Backlog:
    """Records in offset order, in the pieces in which they came; ``size`` is their number."""

    def __init__(self) -> None:
        self.size = 0
        self._chunks: deque[tuple[Sequence[Record], int | None]] = deque()

    def add(self, records: Sequence[Record], end_offset: int | None) -> None:
        """``records``, not empty, came when the partition ended at ``end_offset``."""
        self._chunks.append((records, end_offset))
        self.size += len(records)

    def peek(self, limit: int) -> Iterator[Record]:
        """The first ``limit`` records, which stay."""
        return islice(chain.from_iterable(records for records, _ in self._chunks), limit)

    def take(self, limit: int) -> tuple[list[Record], int | None]:
        """The first ``limit`` records, and the partition's end when the last of them was fetched."""
        records: list[Record] = []
        end_offset: int | None = None
        while self._chunks and len(records) < limit:
            chunk, end_offset = self._chunks.popleft()
            room = limit - len(records)
            if len(chunk) > room:
                self._chunks.appendleft((chunk[room:], end_offset))
                chunk = chunk[:room]
            records.extend(chunk)
        self.size -= len(records)
        return records, end_offset

    def clear(self) -> None:
        self._chunks.clear()
        self.size = 0
