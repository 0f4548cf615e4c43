"""How fetched bytes become records: our own readers, plugged into the one seam that kafka-python has for it.

    consumer._fetcher.PartitionRecords = reader.choose_reader()

The fetcher makes one reader for each partition that it has fetched, and takes records from it, poll by poll. Its own
builds three objects and a tuple of 13 fields for each record. Ours read what ``messages.Record`` asks for, and only
when it is taken, so that few objects live at a time.

    Reader           Python only
    CompiledReader   the same with aiokafka's compiled parser, which comes with the extra ``speed``

What they are not made for (batches from before Kafka 0.11), and what they cannot make sense of, is left to the stock
reader: it alone says what is corrupt, and what may still be handed out before that.

Private touch points in kafka-python, tested in tests/unit/test_reader.py by comparing with the stock reader: the names
of that reader itself, and

    batch._buffer, batch._pos    where the records of a batch begin
    batch._maybe_uncompress()    the codecs, so that the same packages are needed as without us
"""

from __future__ import annotations

import functools
import importlib.metadata
import itertools
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from kafka.consumer.fetcher import Fetcher
from kafka.protocol.consumer import IsolationLevel
from kafka.record.memory_records import MemoryRecords, MemoryRecordsBuilder
from kafka.record.util import decode_varint

from karafka_lite.errors import ConfigurationError, FetchError
from karafka_lite.messages import next_offset_after, where

log = logging.getLogger("karafka_lite")

VARIABLE, INSTALL = "KARAFKA_LITE_DECODER", "pip install 'karafka-lite[speed]'"
ALL = 1 << 30
MAGIC = 2  # the format of batches since Kafka 0.11
HEADER_SIZE = 61
CODEC_AT, CODEC_BITS = 22, 0x07  # in the header: the lower byte of the attributes


@functools.cache
def choose_reader() -> type[Reader]:
    """The reader of this process: compiled where aiokafka is installed and reads a sample as it should, else pure.

    Its ``name`` is for the banner. Why it is not the compiled one is logged, once. With the environment variable
    ``KARAFKA_LITE_DECODER=pure`` that one is not even tried; with ``compiled`` there is no other.

    Raises:
        ConfigurationError: the variable has another value, or asks for the compiled one where it cannot be had.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted not in ("", "pure", "compiled"):
        raise ConfigurationError(f"{VARIABLE}={wanted!r} must be pure or compiled, or unset")
    if wanted != "pure":
        try:
            CompiledReader.parser = _aiokafkas_parser()
            CompiledReader.name = f"compiled (aiokafka {importlib.metadata.version('aiokafka')})"
            return CompiledReader
        except Exception as error:
            if wanted:
                raise ConfigurationError(f"{VARIABLE}=compiled: {error}; install it with {INSTALL}") from error
            level = logging.INFO if getattr(error, "name", "") == "aiokafka" else logging.WARNING  # missing, or unfit
            log.log(level, "records are read in pure Python (%s); faster: %s", error, INSTALL)
    return Reader


class Reader(Fetcher.PartitionRecords):  # type: ignore[misc]
    """What was fetched of one partition. The batches are walked as the stock reader does it; nothing is counted, for
    metrics are off."""

    name = "pure Python"
    fetch_offset: float  # -inf as soon as it was found: offsets rise
    next_fetch_offset: int

    def __init__(self, fetch_offset: int, tp: Any, batches: Any, *args: Any, sizes: Any = None, **more: Any) -> None:
        super().__init__(fetch_offset, tp, self, *args, **more)  # it takes its batches from us
        self._batches = batches
        self._sizes: Counter[Any] = Counter() if sizes is None else sizes  # of what was taken, in bytes, by partition
        self._size = 0.0  # bytes of a record of the batch in hand, on average: to look at each would cost too much
        self._fetched = b""  # the batch in hand as it was fetched; reading it decompresses it where it is
        self._left = False  # the stock reader goes on, with the batch in hand
        self._passed = 0  # records of the batch in hand that were taken
        self._records: Iterator[Any] = iter(())  # of the batch in hand
        self._ahead: list[Any] = []  # one of them, as long as there are more
        self._end = fetch_offset  # the next offset after the batch in hand, which may be past its last record

    def take(self, n: int | None = None) -> list[Any]:
        """The next ``n`` records, or all; fewer: that was all, and the reader is drained.

        Raises:
            FetchError: the next record cannot be read. The stock reader would then never return anything again, nor
                would ``poll``. This one is drained, so that the data are fetched again: that heals a bad wire; a bad
                disk raises at each poll until the group is moved past it.
        """
        taken: list[Any] = []
        n = n or ALL
        try:
            self._maybe_raise_next_inline_exception()
            while self and len(taken) < n:
                taken += self._some(n - len(taken))
        except Exception as error:
            if not taken:
                self.drain()
                raise self._unreadable(error) from error
            self._next_inline_exception = error  # at the next call: first what could be read
        return taken

    def _unreadable(self, error: Exception) -> FetchError:
        topic, partition = self.topic_partition
        offset = int(max(self.fetch_offset, self.next_fetch_offset))
        message = (
            f"{where(topic, partition, offset)} cannot be read ({type(error).__name__}: {error}); retrying. "
            f"A missing codec: install python-snappy, lz4 or zstandard. Bad data: check the broker's disk, or move "
            f"the group past it with kafka-consumer-groups.sh --reset-offsets"
        )
        return FetchError(message, topic, partition, offset)

    def _some(self, n: int) -> list[Any]:
        """At most ``n`` records of one batch; perhaps none."""
        if self._left:
            rest = list(super().take(n))
            self._sizes[self.topic_partition] += sum(len(record.value or b"") for record in rest)
            return rest
        batch = None
        if not self._ahead:
            batch = self._batches.next_batch()
            if batch is None:
                self.next_fetch_offset = self._end
                self.drain()
                return []
            self._fetched, self._passed = batch._buffer, 0
        try:
            if batch is not None:
                self._records = self._open(batch)
            # One more than asked: aiokafka sees only at the next record that one runs over the end of the batch.
            self._ahead += itertools.islice(self._records, n + 1 - len(self._ahead))
            if batch is not None:
                self._size = len(batch._buffer) / max(1, batch.records_count)
        except Exception as error:  # noqa: BLE001 - whatever is odd, kafka-python's own reader names it
            log.debug("%s: left to kafka-python's own reader: %r", where(*self.topic_partition), error)
            self._left = True
            return []
        records, self._ahead = self._ahead[:n], self._ahead[n:]
        self._passed += len(records)
        self._sizes[self.topic_partition] += int(len(records) * self._size)
        if records and records[0].offset < self.fetch_offset:  # what is fetched begins with the batch that holds it
            records = list(itertools.dropwhile(lambda record: record.offset < self.fetch_offset, records))
        if records:
            self.fetch_offset, self.next_fetch_offset = float("-inf"), next_offset_after(records[-1].offset)
        return records

    def next_batch(self) -> Any:
        """For the stock reader: it begins with the batch that is left to it."""
        fetched, self._fetched = self._fetched, b""
        return MemoryRecords(fetched).next_batch() or self._batches.next_batch()

    def _maybe_skip_record(self, record: Any) -> bool:
        """For the stock reader, which asks until the answer is no."""
        if self._passed:
            self._passed -= 1
            return True
        return bool(record.offset < self.fetch_offset)

    def _open(self, batch: Any) -> Iterator[Any]:
        if batch.magic != MAGIC or (self.check_crcs and not batch.validate_crc()):
            raise _NotForUsError(f"format {batch.magic}, or a wrong checksum")
        self.leader_epoch = batch.leader_epoch
        hidden = self._hides(batch)
        self._end = batch.next_offset
        if hidden:
            self.next_fetch_offset = self._end
        return iter(()) if hidden else self._read(batch)

    def _hides(self, batch: Any) -> bool:
        """Markers of transactions are not for consumers; nor is, with ``read_committed``, what was rolled back."""
        if self.isolation_level == IsolationLevel.READ_COMMITTED and batch.has_producer_id():
            self._consume_aborted_transactions_up_to(batch.last_offset)
            if self._contains_abort_marker(batch):
                self.aborted_producer_ids.discard(batch.producer_id)
            elif self._is_batch_aborted(batch):
                return True
        return bool(batch.is_control_batch)

    def _read(self, batch: Any) -> Iterator[Any]:
        """The records of one batch, lazily. Whatever is raised leaves it to the stock reader."""
        return _records_of(batch)


class _NotForUsError(Exception):
    """The stock reader knows what to do."""


# -- Python only ------------------------------------------------------------------------------------------------------


class ReadRecord(NamedTuple):
    """One record: what ``messages.Record`` asks for."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


def _records_of(batch: Any) -> Iterator[ReadRecord]:
    """The format of a record::

        length, attributes, timestamp - first, offset - base, key length, key, value length, value, headers

    Numbers are varints, 7 bits a byte, the lowest first; the highest bit says that there is one more byte. The
    lowest of all bits is the sign. The usual ones, not negative and short, are decoded in line: calls would cost
    more than all the rest.
    """
    batch._maybe_uncompress()
    data, pos = bytes(batch._buffer), batch._pos
    base, first_timestamp = batch.base_offset, batch.first_timestamp
    append_time = batch.max_timestamp if batch.timestamp_type else None  # the broker's clock, one for the batch
    new = tuple.__new__  # half the price of ReadRecord()
    for _ in range(batch.records_count):
        c = data[pos]
        if not c & 0x81:  # one byte, not negative
            pos += 1
            end = pos + (c >> 1)
        elif not c & 1 and (d := data[pos + 1]) < 0x80:  # two
            pos += 2
            end = pos + (c >> 1 & 0x3F | d << 6)
        else:
            pos, end = _span(data, pos)
        if data[pos]:
            raise _NotForUsError("attributes of a record, of which Kafka has none")
        c = data[pos + 1]
        if not c & 0x81:
            timestamp = first_timestamp + (c >> 1)
            pos += 2
        else:
            delta, pos = decode_varint(data, pos + 1)
            timestamp = first_timestamp + delta
        c = data[pos]
        if not c & 0x81:
            offset = base + (c >> 1)
            pos += 1
        elif not c & 1 and (d := data[pos + 1]) < 0x80:
            offset = base + (c >> 1 & 0x3F | d << 6)
            pos += 2
        else:
            delta, pos = decode_varint(data, pos)
            offset = base + delta
        key = value = None
        c = data[pos]
        if c == 1:  # a length of -1
            pos += 1
        else:
            if not c & 0x81:
                start = pos + 1
                pos = start + (c >> 1)
            else:
                start, pos = _span(data, pos)
            key = data[start:pos]
        c = data[pos]
        if c == 1:
            pos += 1
        else:
            if not c & 0x81:
                start = pos + 1
                pos = start + (c >> 1)
            elif not c & 1 and (d := data[pos + 1]) < 0x80:
                start = pos + 2
                pos = start + (c >> 1 & 0x3F | d << 6)
            else:
                start, pos = _span(data, pos)
            value = data[start:pos]
        if data[pos]:
            headers, pos = _headers(data, pos)
        else:
            headers = ()
            pos += 1
        if pos != end:
            raise _NotForUsError("a wrong length")
        if append_time is not None:
            timestamp = append_time
        yield new(ReadRecord, (offset, timestamp, key, value, headers))
    if pos != len(data):
        raise _NotForUsError("bytes after the last record")


def _headers(data: bytes, pos: int) -> tuple[Sequence[tuple[str, bytes | None]], int]:
    count, pos = decode_varint(data, pos)
    if count < 0:
        raise _NotForUsError("a negative number of headers")
    headers = []
    for _ in range(count):
        start, pos = _span(data, pos)
        key, value = data[start:pos].decode(), None
        if data[pos] == 1:
            pos += 1
        else:
            start, pos = _span(data, pos)
            value = data[start:pos]
        headers.append((key, value))
    return headers, pos


def _span(data: bytes, pos: int) -> tuple[int, int]:
    """Where the bytes begin and end whose length is at ``pos``."""
    size, start = decode_varint(data, pos)
    if size < 0:
        raise _NotForUsError("a negative length")
    return start, start + size


# -- compiled ---------------------------------------------------------------------------------------------------------


class CompiledReader(Reader):
    """Hands out the records of aiokafka's compiled parser, which have the fields that ``messages.Record`` asks for."""

    parser: Any = None  # set by ``choose_reader``

    def _read(self, batch: Any) -> Iterator[Any]:
        data = batch._buffer
        if batch.compression_type:  # kafka-python's codecs, so that the same packages are needed as without us
            header = data[:HEADER_SIZE]
            header[CODEC_AT] &= ~CODEC_BITS
            batch._maybe_uncompress()
            data = header + batch._buffer
        return itertools.chain(self.parser(data))  # a chain: islice asks for iter(), which the parser allows once


def _aiokafkas_parser() -> Any:
    """Raises when it is missing, or does not read a sample as it should."""
    from aiokafka.record._crecords.default_records import DefaultRecordBatch

    sample = [(7, 1_700_000_000_000, None, b"value", [("header", b"1"), ("h\u00e9", None)]), (8, -1, b"key", None, [])]
    builder = MemoryRecordsBuilder(MAGIC, compression_type=0, batch_size=1 << 10, offset=7)
    for _, *record in sample:
        builder.append(*record)
    builder.close()
    read = [(r.offset, r.timestamp, r.key, r.value, r.headers) for r in DefaultRecordBatch(builder.buffer())]
    if read != sample:
        raise ValueError(f"this aiokafka reads a sample as {read}")
    return DefaultRecordBatch
