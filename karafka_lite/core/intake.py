"""What was fetched of one partition and not yet handed over, and where fetching goes on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from typing import NamedTuple

from karafka_lite.core.options import Options, SeekTarget
from karafka_lite.core.starts import Stray
from karafka_lite.messages import Record, next_offset_after

LEAST_BATCHES, MOST_BATCHES = 2, 8  # more would only be dropped again at the next rebalance


class BufferLimits(NamedTuple):
    """How much may be fetched ahead."""

    messages: int
    size_bytes: int

    def shared_by(self, queues: int) -> BufferLimits:
        """The part of each of ``queues``."""
        queues = max(1, queues)
        return BufferLimits(self.messages // queues, max(1, self.size_bytes // queues))


class Chunk(NamedTuple):
    """Records that came together; ``end_offset``: where the partition ended then."""

    records: Sequence[Record]
    end_offset: int | None
    record_bytes: int  # of each record, on average


class Intake:
    """The queue of one ownership. Changed under the group's lock only.

    ``start`` is None until the starting position is known. ``seek_to`` is set from the moment at which the next fetch
    has to begin elsewhere until the client was moved there; ``target`` while only the cluster knows the offset;
    ``stray`` while only the cluster knows where to go on, because the log does not have the position any more. As long
    as one is set, what is fetched is dropped.
    """

    __slots__ = (
        "_chunks", "_options", "end_offset", "fetch_at", "fetch_failures", "next_offset", "paused", "paused_until",
        "position", "queued_since", "seek_to", "size", "size_bytes", "start", "stray", "target"
    )  # fmt: skip

    def __init__(self, options: Options) -> None:
        self._options = options
        self._chunks: deque[Chunk] = deque()  # in offset order
        self.size: int = 0  # messages
        self.size_bytes: int = 0
        self.queued_since: float = 0.0  # since when the first message waits; -inf: it was handed over before
        self.end_offset: int | None = None  # where the partition ended, as far as its fetches say
        self.start: int | None = None
        self.seek_to: int | None = None
        self.target: SeekTarget | None = None
        self.stray: Stray | None = None
        self.next_offset: int = 0  # where the next batch begins
        self.position: int | None = None  # where fetching goes on
        self.paused: bool = False  # the client fetches nothing for this partition
        self.paused_until: float = 0.0  # the user's own pause
        self.fetch_failures: int = 0
        self.fetch_at: float = 0.0  # not before that, after a failed fetch

    # -- where to read

    def begin_at(self, start: int) -> None:
        """The starting position is known."""
        self.start = self.seek_to = self.next_offset = start

    def go_to(self, target: SeekTarget) -> None:
        """The next batch begins there, whatever has been fetched."""
        self.clear()
        if self.stray is not None and self.stray.position is not None:  # else the topic may be another one
            self.stray = None
        if isinstance(target, int):
            self.target = None
            self.seek_to = self.next_offset = target
        else:
            self.target, self.seek_to = target, None

    def strays(self, stray: Stray) -> bool:
        """The log does not have the position; False where that is known, or does not matter."""
        if self.start is None or (stray.position is not None and self.moving):
            return False
        self.stray = stray
        return True

    def fetch_from(self, offset: int | None) -> None:
        """Fetching goes on there (None: where it was); what has been fetched stays."""
        self.stray, self.seek_to = None, offset

    def sought(self, offset: int) -> None:
        """The client fetches from ``offset`` on."""
        if self.seek_to == offset:  # else user code wants to go elsewhere by now
            self.seek_to = None
            self.position = offset

    @property
    def moving(self) -> bool:
        """The client does not fetch yet from where the next batch begins."""
        return self.start is None or self.seek_to is not None or self.is_unknown

    @property
    def is_unknown(self) -> bool:
        """Only the cluster knows where to begin, or to go on."""
        return self.target is not None or self.needs_place

    @property
    def needs_place(self) -> bool:
        """What is unknown depends on the log and on what is committed."""
        return self.start is None or self.stray is not None

    def wants_pause(self, limits: BufferLimits, now: float) -> bool:
        """Whether fetching should pause: the queue is full (and not yet half empty again), or a fetch has failed."""
        full = self._filled(limits) >= (0.5 if self.paused else 1)
        return full or now < self.fetch_at or self.stray is not None

    def _filled(self, limits: BufferLimits) -> float:
        """Which part of its limits the queue takes; a few batches always fit."""
        batch = self._options.max_messages
        messages = max(LEAST_BATCHES * batch, min(MOST_BATCHES * batch, limits.messages))
        return max(self.size / messages, self.size_bytes / limits.size_bytes)

    # -- what was fetched

    def accept(self, records: Sequence[Record], end_offset: int | None, size_bytes: int, now: float) -> None:
        """Queue ``records``, which follow what was queued before."""
        self.fetch_failures = 0
        if not records:
            return
        self.end_offset = end_offset
        if not self.size:
            self.queued_since = now
        self._add(Chunk(records, end_offset, size_bytes // len(records)), self._chunks.append)

    def lag_after(self, offset: int) -> int | None:
        """How many offsets the partition has after that one, as far as its last fetch knows; None: there was none."""
        return None if self.end_offset is None else max(0, self.end_offset - next_offset_after(offset))

    def unreadable(self, now: float) -> float:
        """What comes next cannot be read: wait, then fetch it again. Returns the seconds until then."""
        self.fetch_failures += 1
        wait = self._options.backoff.delay_ms(self.fetch_failures) / 1000
        self.fetch_at = now + wait
        return wait

    def peek(self, limit: int) -> Iterator[Record]:
        """The first ``limit`` records, which stay."""
        return islice(chain.from_iterable(chunk.records for chunk in self._chunks), limit)

    def take(self, limit: int, now: float) -> Chunk:
        """The first ``limit`` records; ``next_offset`` moves past them when they are done, not now."""
        records: Sequence[Record] = ()
        end_offset, record_bytes = None, 0
        while self._chunks and len(records) < limit:
            chunk, end_offset, record_bytes = self._chunks.popleft()
            room = limit - len(records)
            if len(chunk) > room:
                self._chunks.appendleft(Chunk(chunk[room:], end_offset, record_bytes))
                chunk = chunk[:room]
            records = [*records, *chunk] if records else chunk
            self.size_bytes -= record_bytes * len(chunk)
        self.size -= len(records)
        self.queued_since = now
        return Chunk(records, end_offset, record_bytes)

    def put_back(self, chunk: Chunk, from_offset: int) -> None:
        """Queue those of ``chunk`` again, in front, from ``from_offset`` on: the next batch begins there."""
        self.next_offset = from_offset
        records = [record for record in chunk.records if record.offset >= from_offset]
        if records:
            self._add(chunk._replace(records=records), self._chunks.appendleft)
            self.queued_since = float("-inf")  # they have waited already

    def done(self, records: Sequence[Record]) -> None:
        """``records`` are processed."""
        self.next_offset = next_offset_after(records[-1].offset)

    def clear(self) -> None:
        """Drop what was fetched."""
        self._chunks.clear()
        self.size = self.size_bytes = 0

    def _add(self, chunk: Chunk, put: Callable[[Chunk], None]) -> None:
        put(chunk)
        self.size += len(chunk.records)
        self.size_bytes += chunk.record_bytes * len(chunk.records)
