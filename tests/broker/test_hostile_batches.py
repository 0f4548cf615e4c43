"""Batches with odd bytes and a right checksum: what a broker takes, our readers read as kafka-python's own does."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest
from kafka import TopicPartition
from kafka.consumer.fetcher import Fetcher
from kafka.record.memory_records import MemoryRecords, MemoryRecordsBuilder
from kafka.record.util import calc_crc32c
from raw import Wire, fetch_fields, make_topic, produce

from karafka_lite import FetchError
from karafka_lite.client import reader as readers

BATCHES, FLIPS = 80, 3
HEADER, CODECS = 61, [0, 1]  # gzip, which needs no package


def spoiled(dice: random.Random) -> bytes:
    """A batch of a few records, some bits of which are changed before it is compressed."""
    builder = MemoryRecordsBuilder(2, 0, 1 << 20)
    for _ in range(dice.randint(1, 4)):
        headers = [(dice.choice(["a", "", "h\u00e9"]), dice.choice([b"", b"x"])) for _ in range(dice.randint(0, 2))]
        key, value = (dice.choice([None, b"", b"v" * dice.choice([1, 70, 9000])]) for _ in range(2))
        builder.append(dice.choice([-1, 0, 1_700_000_000_000]), key, value, headers)
    builder.close()
    data = bytearray(builder.buffer())
    for _ in range(dice.randint(0, FLIPS)):
        data[dice.randrange(HEADER, len(data))] ^= 1 << dice.randrange(8)
    if codec := dice.choice(CODECS):
        from kafka.codec import gzip_encode

        data[HEADER:] = gzip_encode(bytes(data[HEADER:]))
        struct.pack_into(">h", data, 21, codec)
        struct.pack_into(">i", data, 8, len(data) - 12)
    struct.pack_into(">I", data, 17, calc_crc32c(memoryview(data)[21:]))
    return bytes(data)


def read(reader: Any, data: bytes, offset: int) -> tuple[list[tuple[Any, ...]], bool]:
    """What can be read, and whether there is more that cannot be."""
    opened = reader(offset, TopicPartition("t", 0), MemoryRecords(data))
    records: list[Any] = []
    try:
        while opened:
            records += opened.take(2)
    except Exception as error:
        if reader is not Fetcher.PartitionRecords and not isinstance(error, FetchError):
            raise
        return [(one.offset, one.timestamp, one.key, one.value, list(one.headers)) for one in records], True
    return [(one.offset, one.timestamp, one.key, one.value, list(one.headers)) for one in records], False


@pytest.mark.parametrize("name", ["pure", "compiled"])
def test_what_a_broker_takes_is_read_as_kafka_pythons_reader_reads_it(wire: Wire, name: str) -> None:
    reader: Any = readers.Reader
    if name == "compiled":
        pytest.importorskip("aiokafka")
        readers.CompiledReader.parser = readers._aiokafkas_parser()
        reader = readers.CompiledReader
    dice, topic, taken, odd_names = random.Random(0), make_topic(wire), 0, 0
    for _ in range(BATCHES):
        error, base = produce(wire, topic, spoiled(dice))
        if error:
            continue
        taken += 1
        data = bytes(wire.ask("Fetch", **fetch_fields(topic, base)).responses[0].partitions[0].records)
        ours = read(reader, data, base)
        if any(not header[0].isprintable() for record in ours[0] for header in record[4]):
            odd_names += 1  # which kafka-python's reader cannot read
        else:
            assert ours == read(Fetcher.PartitionRecords, data, base)
    assert taken > BATCHES // 4
    assert odd_names < taken // 2
