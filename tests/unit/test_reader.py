"""Our readers of record batches read what kafka-python's own reads: the same records, positions and errors."""

from __future__ import annotations

import importlib.metadata
import itertools
import logging
import re
import struct
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import kafka.codec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from kafka import TopicPartition
from kafka.consumer.fetcher import ConsumerRecord, Fetcher
from kafka.protocol.consumer import IsolationLevel
from kafka.record.default_records import DefaultRecordBatchBuilder
from kafka.record.legacy_records import LegacyRecordBatchBuilder
from kafka.record.memory_records import MemoryRecords
from kafka.record.util import calc_crc32c, encode_varint

from karafka_lite import App, ConfigurationError, FetchError
from karafka_lite.client import reader as readers
from karafka_lite.messages import Batch, PlainRecord

PLACE = TopicPartition("user_events", 3)
NOW = 1_700_000_000_000
CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
INSTALLED = [name for name in CODECS if name == "none" or getattr(kafka.codec, f"has_{name}")()]
COMMITTED, UNCOMMITTED = IsolationLevel.READ_COMMITTED, IsolationLevel.READ_UNCOMMITTED
HEADER = 61
STOCK: Any = Fetcher.PartitionRecords


@pytest.fixture(params=["pure", "compiled"])
def reader(request: pytest.FixtureRequest) -> type[readers.Reader]:
    return reader_named(request.param)


def reader_named(name: str) -> type[readers.Reader]:
    if name == "pure":
        return readers.Reader
    pytest.importorskip("aiokafka")
    readers.CompiledReader.parser = readers._aiokafkas_parser()
    return readers.CompiledReader


# -- bytes as a broker sends them -------------------------------------------------------------------------------------


class R(NamedTuple):
    """One record; ``gap``: how many offsets before it were compacted away."""

    value: bytes | None = b"value"
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes | None]] = ()
    timestamp: int = NOW
    gap: int = 0


class Aborted(NamedTuple):
    """A transaction that was rolled back, as a fetch response names it."""

    producer_id: int
    first_offset: int


def batch(
    *records: R,
    base: int = 0,
    codec: str = "none",
    producer: int = -1,
    transactional: bool = False,
    control: bool = False,
    append_time: int | None = None,
    removed_behind: int = 0,
    count: int | None = None,
    body: bytes | None = None,
    epoch: int = 5,
    crc: int | None = None,
) -> bytes:
    """One batch of format 2. ``count``, ``body`` and ``crc`` tell lies; ``body`` is what comes before compression."""
    builder = DefaultRecordBatchBuilder(2, CODECS[codec], transactional, producer, 0, 0, 1 << 30)
    offset = -1
    for record in records:
        offset += 1 + record.gap
        builder.append(offset, record.timestamp, record.key, record.value, record.headers)
    if body is not None:
        builder._buffer[HEADER:] = body
    data = builder.build()
    attributes = struct.unpack_from(">h", data, 21)[0] | (8 if append_time is not None else 0) | (32 if control else 0)
    struct.pack_into(">q", data, 0, base)
    struct.pack_into(">i", data, 12, epoch)
    struct.pack_into(">hi", data, 21, attributes, offset + removed_behind)
    if append_time is not None:
        struct.pack_into(">q", data, 35, append_time)
    if count is not None:
        struct.pack_into(">i", data, 57, count)
    struct.pack_into(">I", data, 17, calc_crc32c(memoryview(data)[21:]) if crc is None else crc)
    return bytes(data)


def body_of(*records: R) -> bytes:
    return batch(*records)[HEADER:]


def raw(*parts: int | bytes, size: int | None = None) -> bytes:
    """One record of numbers and bytes, in the order of the format; ``size`` tells a lie."""
    record = bytearray()
    for part in parts:
        record.extend(part) if isinstance(part, bytes) else encode_varint(part, record.append)
    length = bytearray()
    encode_varint(len(record) if size is None else size, length.append)
    return bytes(length + record)


def marker(base: int, producer: int, *, commit: bool) -> bytes:
    """The end of a transaction."""
    record = R(key=struct.pack(">hh", 0, commit), value=struct.pack(">hi", 0, 0))
    return batch(record, base=base, producer=producer, transactional=True, control=True)


def old_batch(*records: R, magic: int, base: int = 0, codec: str = "none") -> bytes:
    """From before Kafka 0.11: without headers, without the batch's own header."""
    builder = LegacyRecordBatchBuilder(magic, CODECS[codec], 1 << 30)
    for offset, record in enumerate(records):
        inside = codec != "none" and magic == 1  # there offsets are relative
        builder.append(offset if inside else base + offset, record.timestamp, record.key, record.value)
    data = builder.build()
    if codec != "none":  # the offset of the wrapper is that of its last message
        struct.pack_into(">q", data, 0, base + len(records) - 1)
    return bytes(data)


# -- reading them -----------------------------------------------------------------------------------------------------


class Step(NamedTuple):
    """What one ``take`` does."""

    records: list[tuple[Any, ...]]
    next_fetch_offset: int
    leader_epoch: int
    more: bool
    drained: int
    failed: bool = False


def fields(record: Any) -> tuple[Any, ...]:
    """As a Message has them."""
    (message,) = Batch.of_records(PLACE, [record], None, None)
    timestamp_ms = -1 if message.timestamp_ms is None else message.timestamp_ms  # the stock reader has None in format 0
    return (message.offset, timestamp_ms, message.key, message.value, message.headers)


def opened(kind: Any, data: bytes, offset: int = 0, aborted: Sequence[Aborted] = (), **settings: Any) -> Any:
    return kind(offset, PLACE, MemoryRecords(data), aborted_transactions=list(aborted), **settings)


def steps(kind: Any, data: bytes, sizes: Sequence[int | None] = (), **settings: Any) -> list[Step]:
    """Take ``sizes``, then three at a time, until the data or the patience of the stock reader are at their end."""
    drained: list[Any] = []
    reader = opened(kind, data, on_drain=drained.append, **settings)
    done = []
    for size in itertools.chain(sizes, itertools.repeat(3)):
        try:
            records = [fields(record) for record in reader.take(size)]
        except Exception:  # noqa: BLE001 - whatever a reader raises
            done.append(Step([], 0, 0, False, 0, failed=True))
            break
        done.append(Step(records, reader.next_fetch_offset, reader.leader_epoch, bool(reader), len(drained)))
        if not reader:
            break
    return done


def has_odd_names(done: Sequence[Step]) -> bool:
    """Whether a header's name is not UTF-8, which the stock reader cannot read."""
    names = (name for step in done for record in step.records for name, _ in record[4])
    return any("\udc80" <= character <= "\udcff" for character in "".join(names))


def assert_reads_as_stock(reader: Any, data: bytes, sizes: Sequence[int | None] = (), **settings: Any) -> list[Any]:
    """Returns the values."""
    read = steps(reader, data, sizes, **settings)
    assert read == steps(STOCK, data, sizes, **settings)
    return [value for step in read for _, _, _, value, _ in step.records]


def is_ours(record: Any) -> bool:
    return not isinstance(record, ConsumerRecord)


# -- the same as the stock reader, whatever comes ----------------------------------------------------------------------

lengths = st.sampled_from([0, 1, 5, 63, 64, 127, 128, 8191, 8192, 20_000])
blobs = st.binary(max_size=20) | lengths.map(lambda length: b"x" * length)
timestamps = st.sampled_from([-1, 0, NOW]) | st.integers(NOW - 10_000, NOW + 10_000) | st.integers(0, 1 << 53)
headers = st.lists(st.tuples(st.text(max_size=5), st.none() | blobs), max_size=3) | st.just([])
gaps = st.just(0) | st.sampled_from([1, 63, 64, 8191, 8192, 1 << 21])
records = st.builds(R, value=st.none() | blobs, key=st.none() | blobs, headers=headers, timestamp=timestamps, gap=gaps)
codecs = st.sampled_from(INSTALLED)
producers = st.sampled_from([-1, 1, 2])


@st.composite
def batches(draw: st.DrawFn, base: int) -> tuple[bytes, int]:
    """Any batch, and the offset behind it."""
    kind = draw(st.sampled_from(["data", "data", "data", "transaction", "transaction", "marker", "empty"]))
    producer = draw(producers) if kind == "data" else draw(st.sampled_from([1, 2]))
    if kind == "marker":
        return marker(base, producer, commit=draw(st.booleans())), base + 1
    held = [] if kind == "empty" else draw(st.lists(records, min_size=1, max_size=8))
    removed_behind = draw(st.integers(1, 3)) if kind == "empty" else draw(st.sampled_from([0, 0, 2]))
    data = batch(
        *held,
        base=base,
        codec=draw(codecs),
        producer=producer,
        transactional=kind == "transaction",
        append_time=draw(st.none() | timestamps),
        removed_behind=removed_behind,
        epoch=draw(st.integers(0, 2)),
    )
    return data, base + sum(1 + record.gap for record in held) + removed_behind


class Fetch(NamedTuple):
    """What was fetched, and how it is read."""

    batches: list[bytes]
    sizes: list[int | None]
    settings: dict[str, Any]


@st.composite
def fetches(draw: st.DrawFn) -> Fetch:
    first = base = draw(st.sampled_from([0, 7, 1 << 40]))
    fetched = []
    for _ in range(draw(st.integers(0, 5))):
        data, base = draw(batches(base + draw(st.sampled_from([0, 0, 4]))))
        fetched.append(data)
    bases = st.builds(Aborted, st.sampled_from([1, 2]), st.integers(first, base))
    settings = {
        "offset": draw(st.just(first) | st.integers(first, base)),
        "isolation_level": draw(st.sampled_from([COMMITTED, UNCOMMITTED])),
        "aborted": draw(st.lists(bases, max_size=3)),
        "check_crcs": draw(st.booleans()),
    }
    return Fetch(fetched, draw(st.lists(st.none() | st.integers(1, 9), max_size=6)), settings)


@pytest.mark.parametrize("name", ["pure", "compiled"])
@given(fetch=fetches())
def test_whatever_a_broker_sends_is_read_as_the_stock_reader_reads_it(name: str, fetch: Fetch) -> None:
    reader, data = reader_named(name), b"".join(fetch.batches)
    assert_reads_as_stock(reader, data, fetch.sizes, **fetch.settings)
    assert all(map(is_ours, opened(reader, data, **fetch.settings).take()))


@pytest.mark.parametrize("name", ["pure", "compiled"])
@given(fetch=fetches(), old=st.lists(records, min_size=1, max_size=3), magic=st.sampled_from([0, 1]), where=st.data())
def test_old_formats_among_others_are_read_as_the_stock_reader_reads_them(
    name: str, fetch: Fetch, old: list[R], magic: int, where: st.DataObject
) -> None:
    at = where.draw(st.integers(0, len(fetch.batches)))
    old_ones = [record._replace(timestamp=abs(record.timestamp)) for record in old]
    data = b"".join([*fetch.batches[:at], old_batch(*old_ones, magic=magic, base=1 << 50), *fetch.batches[at:]])
    assert_reads_as_stock(reader_named(name), data, fetch.sizes, **fetch.settings)


@pytest.mark.parametrize("name", ["pure", "compiled"])
@given(
    held=st.lists(records.map(lambda record: record._replace(gap=0)), min_size=1, max_size=6),
    codec=codecs,
    cut=st.integers(0, 40),
    flips=st.lists(st.tuples(st.integers(0, 200), st.integers(1, 255)), max_size=2),
    sizes=st.lists(st.integers(1, 4), max_size=4),
    right_crc=st.booleans(),
    check_crcs=st.booleans(),
)
def test_what_is_damaged_is_read_as_far_and_refused_as_the_stock_reader_does_it(
    name: str,
    held: list[R],
    codec: str,
    cut: int,
    flips: list[tuple[int, int]],
    sizes: list[int],
    right_crc: bool,
    check_crcs: bool,
) -> None:
    body = bytearray(body_of(*held))
    del body[max(0, len(body) - cut) :]
    for where, bits in flips:
        if body:
            body[where % len(body)] ^= bits
    bad = batch(*held, base=2, codec=codec, body=bytes(body), crc=None if right_crc else 1)
    reader, data = reader_named(name), batch(R(), R()) + bad + batch(R(), base=99)
    assume(not has_odd_names(steps(reader, data, sizes, check_crcs=check_crcs)))
    assert_reads_as_stock(reader, data, sizes, check_crcs=check_crcs)


# -- one thing after the other -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS)
def test_each_codec_is_read(reader: Any, codec: str) -> None:
    if codec not in INSTALLED:
        pytest.skip(f"the package for {codec} is not installed")
    data = batch(*[R(b"%d" % number * 50) for number in range(200)], codec=codec)
    assert data[22] == CODECS[codec]
    assert assert_reads_as_stock(reader, data, [7, 150]) == [b"%d" % number * 50 for number in range(200)]


def test_a_codec_that_is_not_installed_is_named(reader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = batch(R(b"x" * 500), codec="gzip")
    data = data[:22] + b"\x03" + data[23:]
    monkeypatch.setattr(kafka.codec, "lz4", None)
    text = "cannot be read: a batch in lz4, for which no package is installed. Cure: pip install lz4. To skip"
    with pytest.raises(FetchError, match=f"^user_events-3@0 {re.escape(text)}"):
        opened(reader, data, check_crcs=False).take(1)


def test_keys_values_and_headers_are_none_empty_or_there(reader: Any) -> None:
    headers = [("a", b"1"), ("a", None), ("h\u00e9", b""), ("", b"x" * 200)]
    data = batch(R(None, None), R(b"", b""), R(b"v", b"k", headers), R(b"v" * 9000, b"k" * 9000))
    records = opened(reader, data).take()
    assert [fields(record)[2:] for record in records] == [
        (None, None, []),
        (b"", b"", []),
        (b"k", b"v", headers),
        (b"k" * 9000, b"v" * 9000, []),
    ]
    assert_reads_as_stock(reader, data)


names = st.binary(max_size=6) | st.sampled_from([b"", b"\xff", b"\xed\xa0\x80", "h\u00e9".encode(), b"n" * 20_000])
hostile_headers = st.lists(st.tuples(names, st.none() | blobs), max_size=5)


def with_headers(*headers: tuple[bytes, bytes | None], offset: int = 0) -> bytes:
    """A record whose headers have any names at all."""
    parts: list[int | bytes] = [0, 0, offset, -1, 1, b"v", len(headers)]
    for name, value in headers:
        parts += [len(name), name, *((-1,) if value is None else (len(value), value))]
    return raw(*parts)


def as_bytes(record: Any) -> list[tuple[bytes, bytes | None]]:
    return [(name.encode(errors="surrogateescape"), value) for name, value in record.headers]


@pytest.mark.parametrize("name", ["pure", "compiled"])
@given(
    held=st.lists(hostile_headers, min_size=1, max_size=6),
    codec=codecs,
    sizes=st.lists(st.tuples(st.integers(1, 4), st.booleans())),
)
def test_headers_of_any_bytes_are_read_and_keep_them(
    name: str, held: list[list[tuple[bytes, bytes | None]]], codec: str, sizes: list[tuple[int, bool]]
) -> None:
    body = b"".join(with_headers(*headers, offset=offset) for offset, headers in enumerate(held))
    data = batch(body=body, count=len(held), codec=codec, removed_behind=len(held) - 1)
    taken = opened(reader_named(name), data + batch(R(), base=len(held)))
    records = []
    for size, rests in [*sizes, (None, False)]:
        records += taken.take(size)
        if rests:
            taken.rest()
    assert [as_bytes(record) for record in records] == [*held, []]
    assert [record.offset for record in records] == list(range(len(held) + 1))


def test_ten_thousand_headers_are_read(reader: Any) -> None:
    many = [(b"%d" % (number % 7), b"%d" % number) for number in range(10_000)]
    (record,) = opened(reader, batch(body=with_headers(*many), count=1)).take()
    assert as_bytes(record) == many


def test_what_the_compiled_parser_cannot_read_is_read_in_python_from_where_it_gave_up() -> None:
    body = b"".join(with_headers(*([(b"\xff", None)] if offset == 5 else []), offset=offset) for offset in range(9))
    taken = opened(reader_named("compiled"), batch(body=body, count=9, removed_behind=8), offset=2)
    kinds = [[type(record) is PlainRecord for record in taken.take(1)] for _ in range(7)]
    assert kinds == [[False], [False], [True], [True], [True], [True], [True]]


def test_messages_share_no_headers(reader: Any) -> None:
    first, second = Batch.of_records(PLACE, opened(reader, batch(R(), R())).take(), None, None)
    first.headers.append(("mine", b""))
    assert second.headers == []


def test_timestamps_are_the_producers_or_the_brokers(reader: Any) -> None:
    own = [R(timestamp=time) for time in (NOW, NOW + 63, NOW + 64, NOW - 1, NOW + 10_000_000, -1, 0)]
    assert [record.timestamp for record in opened(reader, batch(*own)).take()] == [record.timestamp for record in own]
    assert {record.timestamp for record in opened(reader, batch(*own, append_time=NOW + 5)).take()} == {NOW + 5}
    assert_reads_as_stock(reader, batch(*own) + batch(*own, base=7, append_time=NOW + 5))


INTERLEAVED = (
    batch(R(b"1 rolled back"), base=0, producer=1, transactional=True)
    + batch(R(b"2 committed"), base=1, producer=2, transactional=True)
    + batch(R(b"plain"), base=2)
    + batch(R(b"1 rolled back too"), base=3, producer=1, transactional=True)
    + marker(4, 1, commit=False)
    + batch(R(b"1 committed"), base=5, producer=1, transactional=True)
    + batch(R(b"1 idempotent"), base=6, producer=1)
    + marker(7, 2, commit=True)
    + batch(R(b"2 rolled back"), base=8, producer=2, transactional=True)
    + marker(9, 1, commit=True)
    + marker(10, 2, commit=False)
)
ROLLED_BACK = [Aborted(2, 8), Aborted(1, 0)]


@pytest.mark.parametrize("sizes", [(), [1] * 20, [None]], ids=str)
def test_what_was_rolled_back_is_hidden_where_that_is_asked_for(reader: Any, sizes: Sequence[int | None]) -> None:
    settings: dict[str, Any] = {"aborted": ROLLED_BACK, "isolation_level": COMMITTED}
    read = assert_reads_as_stock(reader, INTERLEAVED, sizes, **settings)
    assert read == [b"2 committed", b"plain", b"1 committed", b"1 idempotent"]
    assert steps(reader, INTERLEAVED, sizes, **settings)[-1].next_fetch_offset == 11


def test_without_isolation_only_the_markers_are_hidden(reader: Any) -> None:
    read = assert_reads_as_stock(reader, INTERLEAVED, isolation_level=UNCOMMITTED)
    assert len(read) == 7
    assert b"1 rolled back" in read


@pytest.mark.parametrize("codec", ["none", "gzip"])
def test_a_fetch_may_begin_in_the_middle_of_a_batch(reader: Any, codec: str) -> None:
    data = batch(*[R(b"%04d" % number) for number in range(100)], base=1000, codec=codec)
    for offset in (1000, 1001, 1050, 1099):
        read = assert_reads_as_stock(reader, data, [3], offset=offset)
        assert read == [b"%04d" % number for number in range(offset - 1000, 100)]


def test_what_was_compacted_away_leaves_gaps_and_the_position_goes_behind_them(reader: Any) -> None:
    data = batch(R(b"a", gap=2), R(b"b", gap=100), base=10, removed_behind=3) + batch(base=118, removed_behind=5)
    taken = opened(reader, data, offset=11)
    assert [record.offset for record in taken.take(2)] == [12, 113]
    assert taken.next_fetch_offset == 114
    assert taken.take(1) == []
    assert taken.next_fetch_offset == 118 + 4 + 1
    for offset in (10, 12, 13, 113, 114, 118):
        assert_reads_as_stock(reader, data, offset=offset)


@pytest.mark.parametrize("magic", [0, 1])
@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4"])
def test_older_formats_are_read(reader: Any, magic: int, codec: str) -> None:
    if codec not in INSTALLED or (codec, magic) == ("lz4", 0):
        pytest.skip("its package is not installed; for lz4 in format 0 that is xxhash")
    data = old_batch(R(b"a", b"k"), R(None), R(b"c" * 500), magic=magic, base=5, codec=codec)
    assert assert_reads_as_stock(reader, data, [1], offset=5) == [b"a", None, b"c" * 500]
    assert {record.timestamp for record in opened(reader, data, offset=5).take()} == {NOW if magic else -1}
    assert_reads_as_stock(reader, batch(R(), R()) + data + batch(R(b"new"), base=8), [1])
    damaged = data[:-3] + b"???"
    assert_reads_as_stock(reader, batch(R(), R()) + damaged + batch(R(b"new"), base=8), [1])
    assert_reads_as_stock(reader, damaged, [1], check_crcs=False)


def test_a_format_of_the_future_is_not_skipped(reader: Any) -> None:
    future = bytearray(batch(R()))
    future[16] = 3
    with pytest.raises(FetchError, match="a batch in format 3, which is not known"):
        opened(reader, bytes(future)).take()


def test_records_are_read_when_they_are_taken(reader: Any) -> None:
    damaged = batch(*[R()] * 100, body=body_of(*[R()] * 50) + b"no record", count=100)
    taken = opened(reader, damaged)
    assert len(taken.take(40)) == 40
    assert len(taken._ahead) == 1


def test_a_batch_that_is_cut_off_by_the_size_of_the_fetch_is_not_there_yet(reader: Any) -> None:
    whole, half = batch(R(b"whole")), batch(R(b"half"), base=1)[:-1]
    assert assert_reads_as_stock(reader, whole + half) == [b"whole"]
    assert steps(reader, whole + half)[-1].next_fetch_offset == 1


# -- what is damaged ---------------------------------------------------------------------------------------------------


def test_a_wrong_checksum_is_an_error_once_everything_before_it_was_read(reader: Any) -> None:
    drained: list[Any] = []
    data = batch(R(b"good")) + batch(R(b"bad"), base=1, crc=1) + batch(R(b"behind"), base=2)
    taken = opened(reader, data, on_drain=drained.append)
    assert [record.value for record in taken.take(9)] == [b"good"]
    assert taken.next_fetch_offset == 1
    assert not drained
    with pytest.raises(FetchError, match=r"^user_events-3@1 cannot be read: a batch with a wrong checksum") as caught:
        taken.take(9)
    assert (caught.value.topic, caught.value.partition, caught.value.offset) == ("user_events", 3, 1)
    assert drained == [taken]
    assert not taken
    assert taken.take(9) == []
    assert_reads_as_stock(reader, data)


def test_an_error_in_front_of_what_was_asked_for_names_what_was_asked_for(reader: Any) -> None:
    with pytest.raises(FetchError, match="user_events-3@57"):
        opened(reader, batch(body=body_of(*[R()] * 30), count=60, removed_behind=60), offset=57).take(9)


def test_an_error_behind_a_marker_is_placed_behind_the_marker(reader: Any) -> None:
    data = batch(R()) + marker(1, 1, commit=True) + batch(R(), base=2, crc=1)
    assert_reads_as_stock(reader, data, [9])
    with pytest.raises(FetchError, match="user_events-3@2"):
        opened(reader, data, offset=1).take(9)


def test_checksums_are_left_alone_where_that_is_asked_for(reader: Any) -> None:
    data = batch(R(b"good"), crc=1) + batch(R(b"old"), base=1)
    assert assert_reads_as_stock(reader, data, check_crcs=False) == [b"good", b"old"]
    assert all(map(is_ours, opened(reader, data, check_crcs=False).take()))


SOUND = raw(0, 0, 0, -1, 1, b"v", 0)
DAMAGED = {
    "one record less than counted": (SOUND, 2),
    "one more": (SOUND + SOUND, 1),
    "bytes behind": (SOUND + b"\0", 1),
    "fewer than none": (SOUND, -1),
    "cut at the end": (SOUND[:-1], 1),
    "a number that does not end": (SOUND + b"\x80", 2),
    "a number of more than 64 bits": (SOUND + raw(0, b"\xff" * 12), 2),
    "too short a length": (SOUND + raw(0, 0, 1, -1, -1, 0, size=5), 2),
    "too long a length": (SOUND + raw(0, 0, 1, -1, -1, 0, size=7), 2),
    "a negative length": (SOUND + raw(0, 0, 1, -1, -1, 0, size=-7), 2),
    "attributes": (SOUND + raw(1, 0, 1, -1, -1, 0), 2),
    "attributes of two bytes": (SOUND + raw(100, 0, 1, -1, -1, 0), 2),
    "a negative offset": (raw(0, 0, -1, -1, -1, 0) + SOUND, 2),
    "a long negative offset": (raw(0, 0, -100, -1, -1, 0) + SOUND, 2),
    "offsets that fall": (raw(0, 0, 5, -1, -1, 0) + SOUND + raw(0, 0, 1, -1, -1, 0, size=1), 3),
    "another negative length of a key": (SOUND + raw(0, 0, 1, -2, -1, 0), 2),
    "another negative length of a value": (SOUND + raw(0, 0, 1, -1, -100, 0), 2),
    "a negative length that leads back into the key": (SOUND + raw(0, 0, 1, 1, b"\2", -2), 2),
    "a key behind the end": (SOUND + raw(0, 0, 1, 100, b"k"), 2),
    "a value behind the end": (SOUND + raw(0, 0, 1, -1, 100, b"v"), 2),
    "a huge value": (SOUND + raw(0, 0, 1, -1, (1 << 62) - 1, b"v"), 2),
    "a negative number of headers": (SOUND + raw(0, 0, 1, -1, -1, -1), 2),
    "more headers than there are": (SOUND + raw(0, 0, 1, -1, -1, 2, 1, b"h", -1), 2),
    "fewer headers than there are": (SOUND + raw(0, 0, 1, -1, -1, 1, 1, b"h", -1, 1, b"h", -1), 2),
    "a negative length of a header": (SOUND + raw(0, 0, 1, -1, -1, 1, -1, -1), 2),
    "another negative length of a header's value": (SOUND + raw(0, 0, 1, -1, -1, 1, 1, b"h", -2), 2),
    "a header's value that is cut": (SOUND + raw(0, 0, 1, -1, -1, 1, 1, b"h", 5, b"v", size=13), 2),
    "a header without a value": (SOUND + raw(0, 0, 1, -1, -1, 1, 1, b"h", size=9), 2),
    "nothing": (b"", 1),
}


@pytest.mark.parametrize("what", DAMAGED)
@pytest.mark.parametrize("codec", ["none", "gzip"])
def test_damage_behind_a_right_checksum_is_found(reader: Any, what: str, codec: str) -> None:
    body, count = DAMAGED[what]
    padding = raw(0, 0, 0, -1, 300, b"x" * 300, 0) if codec == "gzip" else b""
    data = batch(codec=codec, body=padding + body, count=count + bool(padding), base=1, removed_behind=9)
    assert data[22] == CODECS[codec]
    for sizes in [(), [1] * 5, [2], [None]]:
        assert_reads_as_stock(reader, batch(R()) + data + batch(R(), base=20), sizes)


@pytest.mark.parametrize("length", [0, 5, 20, 30, 48])
def test_a_batch_that_is_too_short_for_its_header_is_not_skipped(reader: Any, length: int) -> None:
    short = bytearray(batch(R(b"short"), base=1)[: 12 + length])
    struct.pack_into(">i", short, 8, length)
    read = steps(reader, batch(R()) + short + batch(R(b"behind"), base=2))
    assert read == steps(STOCK, batch(R()) + short + batch(R(b"behind"), base=2))
    assert read[-1].failed


def test_a_marker_that_is_damaged_is_an_error(reader: Any) -> None:
    bad = batch(R(key=b"?"), base=1, producer=1, transactional=True, control=True)
    empty = batch(base=1, producer=1, transactional=True, control=True)
    for data in (bad, empty):
        assert_reads_as_stock(reader, batch(R()) + data + batch(R(), base=2), isolation_level=COMMITTED)
        assert_reads_as_stock(reader, batch(R()) + data + batch(R(), base=2), isolation_level=UNCOMMITTED)


# -- how much it was ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", INSTALLED)
def test_what_was_taken_is_counted_in_bytes_as_they_are_when_decompressed(
    reader: type[readers.Reader], codec: str
) -> None:
    sizes: Counter[Any] = Counter()
    data = batch(*[R(b"x" * 1000)] * 10, codec=codec) + batch(*[R(b"y")] * 10, base=10, codec=codec)
    records = opened(reader, data, sizes=sizes)
    records.take(5)
    assert 5_000 < sizes[PLACE] < 5_100
    sizes.clear()
    records.take(None)
    assert 5_000 < sizes[PLACE] < 5_500, "five of the first, and ten with nothing in them"


def test_what_is_left_to_the_stock_reader_is_counted_too(reader: type[readers.Reader]) -> None:
    sizes: Counter[Any] = Counter()
    opened(reader, old_batch(*[R(b"x" * 1000)] * 10, magic=1), sizes=sizes).take(None)
    assert sizes[PLACE] == 10_000


@pytest.mark.parametrize("codec", [name for name in INSTALLED if name != "none"])
def test_a_batch_that_holds_more_than_is_allowed_is_refused_and_named(reader: type[readers.Reader], codec: str) -> None:
    bomb = batch(*[R(b"x" * 10_000)] * 10, base=1, codec=codec)
    holds = len(batch(*[R(b"x" * 10_000)] * 10)) - HEADER
    data = batch(R()) + bomb + batch(R(b"behind"), base=11)
    assert [len(record.value) for record in opened(reader, data, most=holds).take()] == [5] + [10_000] * 10 + [6]
    text = (
        f"user_events-3@1 cannot be read: a batch of {len(bomb) - HEADER} bytes of {codec} that holds more than "
        f"max_decompressed_bytes={holds - 1}. Cure: raise that setting of App, if there is enough memory. To skip it: "
    )
    reset = "karafka-lite reset --group 'a b' --topic user_events --partition 3 --to 11"
    for group_id, skip in [
        ("a b", f"stop the group, then {reset}"),
        ("", "karafka-lite read user_events --partition 3 --from 11"),
    ]:
        taken = opened(reader, data, most=holds - 1, group_id=group_id)
        assert len(taken.take()) == 1
        with pytest.raises(FetchError, match=f"^{re.escape(text + skip)}$"):
            taken.take()


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4"])
def test_so_is_a_batch_in_an_old_format(reader: Any, codec: str) -> None:
    if codec not in INSTALLED:
        pytest.skip("its package is not installed")
    data = old_batch(*[R(b"x" * 10_000)] * 10, magic=1, codec=codec)
    assert len(opened(reader, data, most=200_000).take()) == 10
    with pytest.raises(FetchError, match="holds more than max_decompressed_bytes=99999"):
        opened(reader, data, most=99_999).take()


@pytest.mark.parametrize("name", ["pure", "compiled"])
@given(fetch=fetches(), rests=st.lists(st.booleans(), max_size=8))
def test_a_reader_that_rests_goes_on_where_it_was(name: str, fetch: Fetch, rests: list[bool]) -> None:
    taken, steady = (opened(reader_named(name), b"".join(fetch.batches), **fetch.settings) for _ in range(2))
    for size, rest in itertools.zip_longest(fetch.sizes, rests, fillvalue=1):
        if rest:
            taken.rest()
        assert list(map(fields, taken.take(size))) == list(map(fields, steady.take(size)))
        assert taken.next_fetch_offset == steady.next_fetch_offset
    assert list(map(fields, taken.take())) == list(map(fields, steady.take()))


def test_so_does_one_in_front_of_what_is_damaged(reader: Any) -> None:
    held = [R(b"%d" % number * 100) for number in range(9)]
    data = batch(body=body_of(*held)[:-1], count=9, codec="gzip", removed_behind=8)
    taken = opened(reader, data)
    assert len(taken.take(8)) == 8
    taken.rest()
    with pytest.raises(FetchError, match="user_events-3@8 cannot be read: a malformed record"):
        taken.take(8)


@pytest.mark.parametrize("codec", [name for name in INSTALLED if name != "none"])
def test_a_reader_that_rests_holds_only_what_was_fetched(reader: Any, codec: str) -> None:
    data = batch(*[R(b"x" * (1 << 20))] * 8, codec=codec)
    taken = opened(reader, data)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        assert len(taken.take(1)) == 1
        held = tracemalloc.get_traced_memory()[0] - before
        taken.rest()
        rests = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert held > 8 << 20
    assert rests < len(data) + (1 << 20)
    assert len(taken.take()) == 7


def test_a_poll_that_has_enough_bytes_is_ended_and_the_next_one_goes_on(reader: Any) -> None:
    sizes: Counter[Any] = Counter()
    data = batch(*[R(b"x" * 1000)] * 10, codec="gzip") + batch(*[R(b"y" * 1000)] * 10, base=10)
    taken = opened(reader, data, sizes=sizes, poll_bytes=3000)
    polls = []
    while taken:
        sizes.clear()
        polls.append(len(taken.take(100)))
        if taken:
            with pytest.raises(readers.PollIsFullError):
                taken.take(100)
    assert sum(polls) == 20
    assert max(polls) <= 4


# -- which one is chosen ----------------------------------------------------------------------------------------------


@pytest.fixture
def choose(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], type[readers.Reader]]]:
    """Choose as a new process would, twice."""
    monkeypatch.delenv(readers.VARIABLE, raising=False)
    caplog.set_level(logging.INFO, "karafka_lite")

    def chosen() -> type[readers.Reader]:
        readers.choose_reader.cache_clear()
        assert readers.choose_reader() is readers.choose_reader()
        return readers.choose_reader()

    yield chosen
    monkeypatch.undo()
    readers.choose_reader.cache_clear()


def test_the_compiled_reader_is_chosen_where_it_is_installed(choose: Any, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("aiokafka")
    assert choose() is readers.CompiledReader
    assert readers.choose_reader().name == f"compiled (aiokafka {importlib.metadata.version('aiokafka')})"
    assert caplog.messages == []


def test_the_pure_reader_can_be_asked_for(
    choose: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KARAFKA_LITE_DECODER", "pure")
    assert choose() is readers.Reader
    assert readers.choose_reader().name == "pure Python"
    assert caplog.messages == []


def test_without_aiokafka_the_pure_reader_is_chosen_and_only_the_banner_says_so(
    choose: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_aiokafka(monkeypatch)
    assert choose() is readers.Reader
    assert caplog.messages == []
    assert readers.reader_in_words() == "pure Python (faster: pip install 'karafka-lite[speed]')"
    monkeypatch.setenv("KARAFKA_LITE_DECODER", "pure")
    choose()
    assert readers.reader_in_words() == "pure Python"


def test_the_compiled_reader_can_be_insisted_on(choose: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("aiokafka")
    monkeypatch.setenv("KARAFKA_LITE_DECODER", "compiled")
    assert choose() is readers.CompiledReader
    without_aiokafka(monkeypatch)
    install = "pip install 'karafka-lite[speed]'"
    text = f"KARAFKA_LITE_DECODER=compiled: No module named 'aiokafka'; install it with {install}"
    with pytest.raises(ConfigurationError, match=f"^{re.escape(text)}$"):
        choose()


def test_a_reader_that_nobody_knows_is_refused_before_anything_starts(
    choose: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KARAFKA_LITE_DECODER", "Pure")
    text = "KARAFKA_LITE_DECODER='Pure' must be pure or compiled, or unset"
    with pytest.raises(ConfigurationError, match=f"^{re.escape(text)}$"):
        choose()
    app = App("event-store", bootstrap_servers="localhost:1")
    app.topic("user_events")(lambda batch, ctx: None)
    for start in (app.start, app.run):
        with pytest.raises(ConfigurationError, match=f"^{re.escape(text)}$"):
            start()
    assert list(app.members) == []


def test_a_variable_that_is_empty_is_none(choose: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KARAFKA_LITE_DECODER", "")
    assert choose() in (readers.Reader, readers.CompiledReader)


def without_aiokafka(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.partition(".")[0] == "aiokafka"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "meta_path", [NoAiokafka(), *sys.meta_path])


class NoAiokafka:
    def find_spec(self, name: str, path: object, target: object = None) -> None:
        if name == "aiokafka":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


class WithoutNoTimestamp:
    """A parser of another time."""

    def __init__(self, data: bytes) -> None:
        batch: Any = MemoryRecords(data).next_batch()
        self._records = readers._records_of(batch, batch._buffer)

    def __iter__(self) -> Iterator[Any]:
        for record in self._records:
            yield SimpleNamespace(**{**record._asdict(), "timestamp": max(0, record.timestamp)})


@pytest.mark.parametrize(
    "parser",
    [None, object, lambda data: [], lambda data: [object()], WithoutNoTimestamp],
    ids=["gone", "takes nothing", "reads nothing", "other fields", "another timestamp where there is none"],
)
def test_an_aiokafka_that_has_changed_is_not_used_and_said_once(
    choose: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, parser: Any
) -> None:
    pytest.importorskip("aiokafka")
    module = ModuleType("default_records")
    if parser is not None:
        module.DefaultRecordBatch = parser  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "aiokafka.record._crecords.default_records", module)
    assert choose() is readers.Reader
    (said,) = caplog.records
    assert said.levelname == "WARNING"
