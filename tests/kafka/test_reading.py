"""What Apache Kafka writes is read by our readers as by kafka-python's own: transactions, codecs, its own clock."""

from __future__ import annotations

import time
from typing import Any

import pytest
from confluent_kafka import Producer
from kafka import KafkaConsumer, TopicPartition
from kafka.consumer.fetcher import Fetcher
from kafka.record.default_records import DefaultRecordBase
from support.observer import PATIENCE_S, Observer, wait_until

from karafka_lite.client import reader as decode
from karafka_lite.messages import Batch

pytestmark = pytest.mark.apache_only("it writes what only Apache Kafka writes")

Fields = tuple[Any, ...]


def producer(kafka: Observer, **settings: Any) -> Any:
    return Producer(
        {"bootstrap.servers": kafka.bootstrap_servers, "linger.ms": 5, "batch.num.messages": 40, **settings}
    )


RECENTLY_MS = int(time.time() * 1000) - 200_000  # retention deletes what is a week old, at any moment


def write(sender: Any, topic: str, name: str, count: int = 100) -> None:
    for i in range(count):
        value = None if i % 11 == 0 else b"" if i % 13 == 0 else f"{name} {i}".encode() * (1 + i % 60)
        key = None if i % 3 == 0 else b"k" * (i % 90)
        headers = [("h", b"x%d" % i), ("h\u00e9", None), ("h", b"")] if i % 4 == 0 else []
        timestamp = RECENTLY_MS + i * 7919 % 100_000
        sender.produce(topic, value, key, partition=0, headers=headers, timestamp=timestamp)
    assert sender.flush(PATIENCE_S) == 0


def read(kafka: Observer, reader: Any, topic: str, start: int, max_records: int, isolation: str) -> list[Fields]:
    """Everything from ``start`` on, and where fetching would go on."""
    place = TopicPartition(topic, 0)
    consumer = KafkaConsumer(
        bootstrap_servers=kafka.bootstrap_servers, isolation_level=isolation, enable_auto_commit=False
    )
    try:
        consumer._fetcher.PartitionRecords = reader
        consumer.assign([place])
        consumer.seek(place, start)
        end = wait_until(lambda: consumer.end_offsets([place])[place], message="the end is known")
        records: list[Any] = []
        while consumer.position(place) < end:
            records += consumer.poll(200, max_records=max_records).get(place, [])
        assert consumer.position(place) == end
    finally:
        consumer.close()
    messages = Batch.of_records(tuple(place), records, None, None)
    return [(m.offset, m.timestamp_ms, m.key, m.value, m.headers) for m in messages]


@pytest.fixture(params=["pure", "compiled"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    if request.param == "pure":
        return decode.Reader
    pytest.importorskip("aiokafka")
    monkeypatch.setattr(decode.CompiledReader, "parser", decode._aiokafkas_parser())
    return decode.CompiledReader


def assert_reads_as_stock(
    kafka: Observer, reader: Any, topic: str, isolation: str = "read_uncommitted"
) -> list[Fields]:
    stock: list[Fields] = []
    for start, max_records in [(77, 37), (0, 500)]:
        stock = read(kafka, Fetcher.PartitionRecords, topic, start, max_records, isolation)
        assert read(kafka, reader, topic, start, max_records, isolation) == stock
    return stock


@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4", "zstd"])
@pytest.mark.parametrize("clock", ["CreateTime", "LogAppendTime"])
def test_each_codec_of_another_client_is_read(kafka: Observer, reader: Any, codec: str, clock: str) -> None:
    if codec != "none":
        number = getattr(DefaultRecordBase, f"CODEC_{codec.upper()}")
        try:
            DefaultRecordBase()._assert_has_codec(number)
        except Exception as missing:  # noqa: BLE001 - kafka-python raises what the codec's package raises
            pytest.skip(str(missing))
    topic = kafka.topic(message_timestamp_type=clock)
    write(producer(kafka, **{"compression.type": codec}), topic, codec, 300)
    assert len(assert_reads_as_stock(kafka, reader, topic)) == 300


@pytest.mark.parametrize("isolation", ["read_committed", "read_uncommitted"])
def test_transactions_of_two_producers_are_told_apart(kafka: Observer, reader: Any, isolation: str) -> None:
    topic = kafka.topic()
    plain = producer(kafka)
    one, two = (producer(kafka, **{"transactional.id": kafka.name("transaction")}) for _ in range(2))
    for sender in (one, two):
        sender.init_transactions()
    for turn in range(6):
        for name, sender in (("one", one), ("two", two)):
            sender.begin_transaction()
            write(sender, topic, name)
        write(plain, topic, "plain")
        write(one, topic, "one, later")
        two.abort_transaction() if turn % 3 else two.commit_transaction()
        one.abort_transaction() if turn % 2 else one.commit_transaction()
    read = assert_reads_as_stock(kafka, reader, topic, isolation)
    committed = 6 * 100 + 3 * 200 + 2 * 100
    assert len(read) == (committed if isolation == "read_committed" else 6 * 400)
