"""How fetched bytes become records: our own readers, plugged into the one seam that kafka-python has for it.

    consumer._fetcher.PartitionRecords = reader.choose_reader()

The fetcher makes one reader for each partition that it has fetched, and takes records from it, poll by poll. Its own
builds three objects and a tuple of 13 fields for each record, reads no header whose name is not UTF-8, and decompresses
whatever comes. Ours read what ``messages.Record`` asks for, and only when it is taken, so that few objects live at a
time.

    Reader           Python only
    CompiledReader   with aiokafka's compiled parser, from the extra ``speed``; where it gives up, Python goes on

Private touch points in kafka-python, tested in tests/unit/test_reader.py by comparing with the stock reader: the names
of that reader itself, and

    batch._buffer     the bytes of a batch, as they were fetched
    batch._decompressed, and its sizes of fields: a batch from before Kafka 0.11, which kafka-python's LegacyRecordBatch
                      goes on to read
"""

from __future__ import annotations

import functools
import importlib.metadata
import itertools
import logging
import os
import shlex
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from kafka.consumer.fetcher import Fetcher
from kafka.protocol.consumer import IsolationLevel
from kafka.record.memory_records import MemoryRecordsBuilder
from kafka.record.util import decode_varint

from karafka_lite.client.codecs import MAX_DECOMPRESSED_BYTES, UnreadableError, decompress
from karafka_lite.errors import ConfigurationError, FetchError, describe
from karafka_lite.messages import PlainRecord, next_offset_after, where

log = logging.getLogger("karafka_lite")

VARIABLE, INSTALL = "KARAFKA_LITE_DECODER", "pip install 'karafka-lite[speed]'"
ALL = 1 << 30
POLL_BYTES = 8 << 20  # one poll takes no more once it has so many
MAGIC = 2  # the format of batches since Kafka 0.11
HEADER_SIZE = 61
DISKS = "check the disks of the brokers"
CODEC_AT, CODEC_BITS = 22, 0x07  # in the header: the lower byte of the attributes


@functools.cache
def choose_reader() -> type[Reader]:
    """The reader of this process: compiled where aiokafka is installed and reads a sample as it should, else pure.

    Where aiokafka is installed and does not read as it should, that is logged, once. With the environment variable
    ``KARAFKA_LITE_DECODER=pure`` it is not even tried; with ``compiled`` there is no other reader.

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
            if getattr(error, "name", "") != "aiokafka":  # it is there, and unfit
                log.warning("records are read in pure Python: %s", error)
    return Reader


def reader_in_words() -> str:
    """The reader of this process, for the banner, and how to have a faster one unless the slow one is wished for."""
    reader = choose_reader()
    faster = reader is Reader and os.environ.get(VARIABLE) != "pure"
    return f"{reader.name} (faster: {INSTALL})" if faster else reader.name


class PollIsFullError(Exception):
    """This poll has taken as much as it may; the next one goes on."""


class Reader(Fetcher.PartitionRecords):  # type: ignore[misc]
    """What was fetched of one partition. The batches are walked as the stock reader does it; nothing is counted, for
    metrics are off.

    ``sizes``: bytes that the current poll has taken, by partition; after ``poll_bytes`` it takes no more. ``most``: how
    many bytes a batch may hold. ``group_id``: whose offset has to be moved past what cannot be read; "": nobody's.
    """

    name = "pure Python"
    fetch_offset: float  # -inf as soon as it was found: offsets rise
    next_fetch_offset: int

    def __init__(
        self,
        fetch_offset: int,
        tp: Any,
        batches: Any,
        *args: Any,
        sizes: Any = None,
        poll_bytes: int = ALL,
        most: int = MAX_DECOMPRESSED_BYTES,
        group_id: str = "",
        **more: Any,
    ) -> None:
        super().__init__(fetch_offset, tp, batches, *args, **more)
        self._batches = batches
        self._poll_bytes, self._most, self._group_id = poll_bytes, most, group_id
        self._sizes: Counter[Any] = Counter() if sizes is None else sizes
        self._batch: Any = None  # the one in hand
        self._size = 0.0  # of a record of it in bytes, on average: to look at each would cost too much. 0: not known
        self._passed = 0  # records of the batch in hand that were taken
        self._records: Iterator[Any] = iter(())  # of the batch in hand
        self._ahead: list[Any] = []  # one of them, as long as there are more
        self._otherwise: Callable[[], Iterator[Any]] | None = None  # reads the batch in hand where ``_records`` give up
        self._resting = False  # the batch in hand has to be read again, from where it was left
        self._error: Exception | None = None  # why what comes after ``_ahead`` cannot be read
        self._end = fetch_offset  # the next offset after the batch in hand, which may be past its last record

    def take(self, n: int | None = None) -> list[Any]:
        """The next ``n`` records, or all; fewer: that was all, and the reader is drained, or the poll is full.

        Raises:
            FetchError: the next record cannot be read. The stock reader would then never return anything again, nor
                would ``poll``. This one is drained, so that the data are fetched again: that heals a bad wire; a bad
                disk raises at each poll until the group is moved past it.
            PollIsFullError: this poll has taken enough.
        """
        taken: list[Any] = []
        n = n or ALL
        try:
            while self and len(taken) < n:
                room = self._poll_bytes - self._sizes.total()
                if room <= 0:
                    break
                taken += self._some(n - len(taken), room)
        except Exception as error:
            self._error = error  # raised by the next call, too: first what could be read
            if not taken:
                self.drain()
                raise self._unreadable(error) from error
        if self and not taken:
            raise PollIsFullError
        return taken

    def rest(self) -> None:
        """Hold no more than what was fetched, until the next ``take``: the partition is paused, perhaps for long."""
        if self._ahead and self._batch.magic == MAGIC and self._batch.compression_type:
            self._resting, self._error = True, None
            self._records, self._otherwise, self._ahead = iter(()), None, []

    def _some(self, n: int, room: int) -> list[Any]:
        """At most ``n`` records of one batch, of not much more than ``room`` bytes; perhaps none."""
        if self._resting:
            self._resting = False
            again = self._read(self._batch, self._content(self._batch))
            self._records = itertools.islice(again, self._passed, None)
        elif not self._ahead:
            if self._error is not None:
                raise self._error
            batch = self._batches.next_batch()
            if batch is None:
                self.next_fetch_offset = self._end
                self.drain()
                return []
            self._open(batch)
        n = min(n, 1 + int(room / max(1.0, self._size)))
        self._look_ahead(n + 1)
        records, self._ahead = self._ahead[:n], self._ahead[n:]
        self._passed += len(records)
        size = len(records) * self._size or sum(len(record.value or b"") for record in records)
        self._sizes[self.topic_partition] += int(size)
        if records and records[0].offset < self.fetch_offset:  # what is fetched begins with the batch that holds it
            records = list(itertools.dropwhile(lambda record: record.offset < self.fetch_offset, records))
        if records:
            self.fetch_offset, self.next_fetch_offset = float("-inf"), next_offset_after(records[-1].offset)
        return records

    def _look_ahead(self, n: int) -> None:
        """Have ``n`` records ahead, if there are so many; one more than asked: aiokafka sees only at the next record
        that one runs over the end of the batch."""
        try:
            self._ahead += itertools.islice(self._records, n - len(self._ahead))
        except Exception as error:  # noqa: BLE001 - whatever is odd; what comes before it is read first
            if self._otherwise is None:
                self._error = error
                return
            self._records = itertools.islice(self._otherwise(), self._passed, None)
            self._otherwise, self._ahead = None, []
            self._look_ahead(n)

    def _open(self, batch: Any) -> None:
        self._batch, self._passed, self._size, self._otherwise = batch, 0, 0.0, None
        if self.check_crcs and not batch.validate_crc():
            raise UnreadableError("a batch with a wrong checksum", DISKS)
        if batch.magic < MAGIC:
            self._end = next_offset_after(batch.base_offset)  # the last one's, where it is a batch of several
            self._records = _old_records_of(batch, self._most, check_crcs=self.check_crcs)
            return
        if batch.magic > MAGIC:
            raise UnreadableError(f"a batch in format {batch.magic}, which is not known")
        self.leader_epoch = batch.leader_epoch
        hidden = self._hides(batch)
        self._end = batch.next_offset
        if hidden:
            self.next_fetch_offset, self._records = self._end, iter(())
            return
        data = self._content(batch)
        self._size = len(data) / max(1, batch.records_count)
        self._records = self._read(batch, data)

    def _content(self, batch: Any) -> Any:
        """The bytes of a batch as if it had never been compressed."""
        data = batch._buffer
        if not (codec := batch.compression_type):
            return data
        header = data[:HEADER_SIZE]
        header[CODEC_AT] &= ~CODEC_BITS
        return decompress(codec, memoryview(data)[HEADER_SIZE:], self._most, bytes(header))

    def _hides(self, batch: Any) -> bool:
        """Markers of transactions are not for consumers; nor is, with ``read_committed``, what was rolled back."""
        if self.isolation_level == IsolationLevel.READ_COMMITTED and batch.has_producer_id():
            self._consume_aborted_transactions_up_to(batch.last_offset)
            if self._contains_abort_marker(batch):
                self.aborted_producer_ids.discard(batch.producer_id)
            elif self._is_batch_aborted(batch):
                return True
        return bool(batch.is_control_batch)

    def _read(self, batch: Any, data: Any) -> Iterator[Any]:
        """The records of one batch, lazily."""
        return _records_of(batch, data)

    def _unreadable(self, error: Exception) -> FetchError:
        topic, partition = self.topic_partition
        offset = int(max(self.fetch_offset, self.next_fetch_offset))
        after = max(next_offset_after(offset), getattr(self._batch, "next_offset", 0))
        what, cure = str(error), getattr(error, "cure", DISKS)
        if not isinstance(error, UnreadableError):  # of kafka-python, or there is no memory
            what = describe(error)
        skip = f"karafka-lite read {topic} --partition {partition} --from {after}"
        if group := self._group_id:
            skip = f"stop the group, then karafka-lite reset --group {shlex.quote(group)} --topic {topic}"
            skip += f" --partition {partition} --to {after}"
        message = f"{where(topic, partition, offset)} cannot be read: {what}. Cure: {cure}. To skip it: {skip}"
        return FetchError(message, topic, partition, offset)


# -- Python only ------------------------------------------------------------------------------------------------------


def _records_of(batch: Any, content: Any) -> Iterator[PlainRecord]:
    """The format of a record::

        length, attributes, timestamp - first, offset - base, key length, key, value length, value, headers

    Numbers are varints, 7 bits a byte, the lowest first; the highest bit says that there is one more byte. The
    lowest of all bits is the sign. The usual ones, not negative and short, are decoded in line: calls would cost
    more than all the rest. Attributes have no meaning.
    """
    data, pos, at = bytes(content), HEADER_SIZE, HEADER_SIZE
    base, first_timestamp = batch.base_offset, batch.first_timestamp
    append_time = batch.max_timestamp if batch.timestamp_type else None  # the broker's clock, one for the batch
    new = tuple.__new__  # half the price of PlainRecord()
    try:
        for _ in range(batch.records_count):
            c = data[at := pos]
            if not c & 0x81:  # one byte, not negative
                pos += 1
                end = pos + (c >> 1)
            elif not c & 1 and (d := data[pos + 1]) < 0x80:  # two
                pos += 2
                end = pos + (c >> 1 & 0x3F | d << 6)
            else:
                length, pos = decode_varint(data, pos)
                end = pos + length
            if data[pos] & 0x80:  # attributes
                _, pos = decode_varint(data, pos + 1)
                pos -= 1
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
            c = data[pos]
            if c == 1:  # a length of -1
                key = None
                pos += 1
            elif not c & 0x81:
                start = pos + 1
                pos = start + (c >> 1)
                key = data[start:pos]
            else:
                key, pos = _blob(data, pos)
            c = data[pos]
            if not c & 0x81:
                start = pos + 1
                pos = start + (c >> 1)
                value = data[start:pos]
            elif not c & 1 and (d := data[pos + 1]) < 0x80:
                start = pos + 2
                pos = start + (c >> 1 & 0x3F | d << 6)
                value = data[start:pos]
            elif c == 1:
                value = None
                pos += 1
            else:
                value, pos = _blob(data, pos)
            if data[pos]:
                headers, pos = _headers(data, pos)
            else:
                headers = ()
                pos += 1
            if pos != end:
                raise ValueError(f"it ends {pos - end:+} bytes from where it should")
            if append_time is not None:
                timestamp = append_time
            yield new(PlainRecord, (offset, timestamp, key, value, headers))
    except (IndexError, ValueError) as error:
        raise UnreadableError(f"a malformed record at byte {at} of its batch ({error})") from error
    if pos != len(data):
        raise UnreadableError(f"a batch with {len(data) - pos} bytes after its last record")


def _headers(data: bytes, pos: int) -> tuple[Sequence[tuple[str, bytes | None]], int]:
    count, pos = decode_varint(data, pos)
    if not 0 <= count <= len(data):
        raise ValueError(f"{count} headers")
    headers = []
    for _ in range(count):
        name, pos = _blob(data, pos)
        if name is None:
            raise ValueError("a header without a name")
        value, pos = _blob(data, pos)
        headers.append((name.decode(errors="surrogateescape"), value))
    return headers, pos


def _blob(data: bytes, pos: int) -> tuple[bytes | None, int]:
    """The bytes whose length is at ``pos``, None where that is negative, and where they end."""
    size, start = decode_varint(data, pos)
    return (None, start) if size < 0 else (data[start : start + size], start + size)


def _old_records_of(batch: Any, most: int, *, check_crcs: bool) -> Iterator[PlainRecord]:
    """Of formats 0 and 1: one record, or one whose value holds others, compressed."""
    try:
        if codec := batch.compression_type:
            at = batch.KEY_OFFSET_V1 if batch.magic else batch.KEY_OFFSET_V0
            (key_size,) = struct.unpack_from(">i", batch._buffer, at)
            at += batch.KEY_LENGTH + max(0, key_size)
            (size,) = struct.unpack_from(">i", batch._buffer, at)
            at += batch.VALUE_LENGTH
            old_lz4 = codec == batch.CODEC_LZ4 and not batch.magic  # with a wrong checksum of its own: kafka-python's
            if not old_lz4 and size >= 0:
                batch._buffer = memoryview(decompress(codec, memoryview(batch._buffer)[at : at + size], most))
                batch._decompressed = True
        for record in batch:
            if check_crcs and not record.validate_crc():
                raise UnreadableError("a message with a wrong checksum", DISKS)
            timestamp = -1 if record.timestamp is None else record.timestamp
            yield PlainRecord(record.offset, timestamp, record.key, record.value, ())
    except (AssertionError, IndexError, ValueError, struct.error) as error:
        raise UnreadableError(f"a malformed message in format {batch.magic} ({error!r})") from error


# -- compiled ---------------------------------------------------------------------------------------------------------


class CompiledReader(Reader):
    """Hands out the records of aiokafka's compiled parser, which have the fields that ``messages.Record`` asks for."""

    parser: Any = None  # set by ``choose_reader``

    def _read(self, batch: Any, data: Any) -> Iterator[Any]:
        self._otherwise = partial(_records_of, batch, data)
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
