"""The log of one partition: record batches as their producers encoded them, by offset.

The broker sets a batch's base offset and otherwise does not decode batches, except to find a timestamp.
"""

from __future__ import annotations

import asyncio
import bisect
import struct
from collections import deque
from typing import Any, NamedTuple

from kafka import errors
from kafka.record import MemoryRecords
from kafka.record.util import calc_crc32c

NO_PRODUCER = -1
TRANSACTIONAL, CONTROL, LOG_APPEND_TIME = 0x10, 0x20, 0x08
FUTURE_MS = 3_600_000  # message.timestamp.after.max.ms
_HEADER = struct.Struct(">qiibIhiqqqhii")  # https://kafka.apache.org/documentation/#recordbatch
_CRC_FROM = 21  # the checksum covers the bytes from here; offset and epoch come before, so that brokers may set them
_INT32 = 1 << 31


class Header(NamedTuple):
    """The 61 bytes before the records of a batch."""

    base_offset: int
    length: int
    leader_epoch: int
    magic: int
    crc: int
    attributes: int
    last_offset_delta: int
    base_timestamp: int
    max_timestamp: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    records: int

    @classmethod
    def of(cls, batch: bytes) -> Header:
        """The header of the one batch that Kafka accepts per partition and request. Raises Kafka's errors."""
        header = cls(*_HEADER.unpack_from(batch.ljust(_HEADER.size, b"\0")))
        if header.magic != 2 or header.length + 12 != len(batch):
            raise errors.InvalidRecordError("each partition must have exactly one record batch, of format 2")
        if header.crc != calc_crc32c(batch[_CRC_FROM:]):
            raise errors.CorruptRecordError()
        count = header.last_offset_delta + 1
        if header.base_offset or header.attributes & CONTROL or header.records < 1 or header.records != count:
            raise errors.InvalidRecordError()
        return header


class Batch(NamedTuple):
    """One record batch in the log."""

    base: int
    last: int
    max_timestamp: int
    data: bytes


class Aborted(NamedTuple):
    """The messages of an aborted transaction; ``last``: the offset of its marker."""

    producer_id: int
    first: int
    last: int


class _Sequences(NamedTuple):
    """The producer's epoch, and its last batches as (first sequence, last sequence, base offset)."""

    epoch: int
    recent: deque[tuple[int, int, int]]


class PartitionLog:
    """Appends batches at ``end``, drops the oldest ones above ``retention_bytes``, and wakes waiting fetches."""

    def __init__(self) -> None:
        self.start = self.end = self.size = 0
        self.aborted: list[Aborted] = []
        self.waiting: set[asyncio.Future[None]] = set()
        self._batches: list[Batch] = []
        self._sequences: dict[int, _Sequences] = {}
        self._open: dict[int, int] = {}  # producer id -> first offset of its transaction

    @property
    def stable_end(self) -> int:
        """The last stable offset: all transactions before it are committed or aborted."""
        return max(self.start, min(self._open.values(), default=self.end))

    def append(self, data: bytes, header: Header, now_ms: int, *, retention_bytes: int, stamp: bool) -> int:
        """Append one batch and return its base offset; a batch that a producer sends twice is appended once.

        ``stamp``: set the time of the messages to the time of the append. Raises Kafka's errors.
        """
        if header.max_timestamp > now_ms + FUTURE_MS and not stamp:
            raise errors.InvalidTimestampError("the message is more than an hour ahead of the broker's clock")
        if header.producer_id != NO_PRODUCER and (duplicate := self._check_sequence(header)) is not None:
            return duplicate
        base = self.end
        max_timestamp = now_ms if stamp else header.max_timestamp
        batch = bytearray(data)
        struct.pack_into(">q", batch, 0, base)
        struct.pack_into(">i", batch, 12, 0)  # the leader's epoch
        if stamp:
            struct.pack_into(">h", batch, 21, header.attributes | LOG_APPEND_TIME)
            struct.pack_into(">q", batch, 35, now_ms)
            struct.pack_into(">I", batch, 17, calc_crc32c(bytes(batch[_CRC_FROM:])))
        if header.attributes & TRANSACTIONAL:
            self._open.setdefault(header.producer_id, base)
        self._add(Batch(base, base + header.last_offset_delta, max_timestamp, bytes(batch)), retention_bytes)
        return base

    def end_transaction(self, producer_id: int, epoch: int, now_ms: int, *, commit: bool, retention_bytes: int) -> None:
        """Append the marker that ends the open transaction of ``producer_id``."""
        key, value = struct.pack(">hh", 0, commit), struct.pack(">hi", 0, 0)
        record = bytes([0, 0, 0, 2 * len(key)]) + key + bytes([2 * len(value)]) + value + b"\0"  # lengths are zigzag
        records = bytes([2 * len(record)]) + record
        length = _HEADER.size - 12 + len(records)
        head = [self.end, length, 0, 2, 0, TRANSACTIONAL | CONTROL, 0, now_ms, now_ms, producer_id, epoch, -1, 1]
        marker = bytearray(_HEADER.pack(*head) + records)
        struct.pack_into(">I", marker, 17, calc_crc32c(bytes(marker[_CRC_FROM:])))
        first = self._open.pop(producer_id, None)
        if first is not None and not commit:
            self.aborted.append(Aborted(producer_id, first, self.end))
        self._add(Batch(self.end, self.end, now_ms, bytes(marker)), retention_bytes)

    def read(self, offset: int, max_bytes: int, end: int, *, at_least_one: bool) -> tuple[bytes, int]:
        """Whole batches from the one that contains ``offset``, up to ``end``; also the offset after the last one."""
        found: list[bytes] = []
        next_offset = offset
        for index in range(self._index(offset), len(self._batches)):
            batch = self._batches[index]
            if batch.last < offset:
                continue
            if batch.base >= end or (len(batch.data) > max_bytes and (found or not at_least_one)):
                break
            found.append(batch.data)
            next_offset = batch.last + 1
            max_bytes -= len(batch.data)
        return b"".join(found), next_offset

    def find_time(self, timestamp_ms: int) -> tuple[int, int]:
        """Offset and time of the first message that is not older; (-1, -1) if there is none."""
        for batch in self._batches:
            if batch.max_timestamp >= timestamp_ms:
                for offset, timestamp in _times(batch):
                    if timestamp >= timestamp_ms and offset >= self.start:
                        return offset, timestamp
        return -1, -1

    def latest_time(self) -> int:
        """The highest time of a message; -1 if there is none."""
        return max((batch.max_timestamp for batch in self._batches), default=-1)

    def drop_before(self, offset: int) -> None:
        """Delete the messages before ``offset``."""
        self.start = max(self.start, offset)
        gone = next((i for i, batch in enumerate(self._batches) if batch.last >= self.start), len(self._batches))
        self.size -= sum(len(batch.data) for batch in self._batches[:gone])
        del self._batches[:gone]
        self.aborted = [aborted for aborted in self.aborted if aborted.last >= self.start]

    def wake(self) -> None:
        """Wake all fetches that wait for this partition."""
        for waiting in self.waiting:
            if not waiting.done():
                waiting.set_result(None)
        self.waiting.clear()

    def _check_sequence(self, header: Header) -> int | None:
        """Idempotence: the offset of a batch that was appended before, None for a new one. Raises Kafka's errors."""
        first, last = header.base_sequence, (header.base_sequence + header.last_offset_delta) % _INT32
        known = self._sequences.get(header.producer_id)
        if known and header.producer_epoch < known.epoch:
            raise errors.InvalidProducerEpochError()
        if known and header.producer_epoch == known.epoch:
            for known_first, known_last, offset in known.recent:
                if (known_first, known_last) == (first, last):
                    return offset
            if first != (known.recent[-1][1] + 1) % _INT32:
                raise errors.OutOfOrderSequenceNumberError()
        else:
            if known and first != 0:
                raise errors.OutOfOrderSequenceNumberError()
            self._sequences[header.producer_id] = known = _Sequences(header.producer_epoch, deque(maxlen=5))
        known.recent.append((first, last, self.end))
        return None

    def _add(self, batch: Batch, retention_bytes: int) -> None:
        self._batches.append(batch)
        self.size += len(batch.data)
        self.end = batch.last + 1
        while self.size > retention_bytes and len(self._batches) > 1:
            self.drop_before(self._batches[1].base)
        self.wake()

    def _index(self, offset: int) -> int:
        return max(0, bisect.bisect_right(self._batches, offset, key=lambda batch: batch.base) - 1)


def _times(batch: Batch) -> list[tuple[int, int]]:
    """(offset, time in ms) of each message."""
    try:
        records: Any = MemoryRecords(batch.data).next_batch()
        return [(record.offset, record.timestamp) for record in records]
    except Exception:  # noqa: BLE001 - the codec is missing; the start of the batch may be too early, never too late
        return [(batch.base, batch.max_timestamp)]
