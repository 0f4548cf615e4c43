"""What can be stored in Kafka can be read, or is refused by name; nothing of it takes more memory than is allowed."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
from kafka import KafkaProducer
from support.client_kafka import ClientKafka
from support.harness import make_app, running
from support.member import Member, plan
from support.observer import PATIENCE_S, Observer, wait_until

from karafka_lite.client import consumer

MIB = 1 << 20
ODD = [b"\xff\xfe", b"", b"twice", b"twice", "h\u00e9".encode(), b"\xed\xa0\x80", b"n" * 1000]
"""Names of headers."""


class Name(str):
    """Any bytes as the name of a header, past kafka-python's encoding."""

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return super().encode(encoding, "surrogateescape")


def write(kafka: Observer, topic: str, value: bytes, headers: Sequence[tuple[bytes, bytes]], **settings: Any) -> None:
    pairs = [(name.decode(errors="surrogateescape"), content) for name, content in headers]
    if isinstance(kafka, ClientKafka):
        kafka.produce(topic, [value], headers=pairs)
        return
    producer = KafkaProducer(bootstrap_servers=kafka.bootstrap_servers, **settings)
    try:
        producer.send(topic, value, partition=0, headers=[(Name(name), content) for name, content in pairs]).get(
            PATIENCE_S
        )
    finally:
        producer.close()


def raw(headers: Sequence[tuple[str, bytes]]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(errors="surrogateescape"), value) for name, value in headers]


@pytest.mark.test_client
def test_headers_of_any_bytes_are_read_sent_on_and_kept_in_dead_letters(kafka: Observer) -> None:
    topic, sent_on, dead, app = kafka.topic(), kafka.topic(), kafka.topic(), make_app(kafka)
    many = [(b"\xff%d" % (number % 7), b"%d" % number) for number in range(1000)]
    given = [[(name, b"\x00\xff") for name in ODD], many, []]
    for headers in given:
        write(kafka, topic, b"value", headers)
    read, forwarded, kept = (list[Any]() for _ in range(3))

    @app.topic(topic, deserializer=None, dead_letter=dead, max_messages=1, max_retries=0)
    def handle(batch: Any, ctx: Any) -> None:
        read.append(raw(batch.first.headers))
        ctx.produce(sent_on, batch.first.value, headers=batch.first.headers)
        raise ValueError("for the dead letters")

    @app.topic(sent_on, deserializer=None)
    def take(batch: Any, ctx: Any) -> None:
        forwarded.extend(raw(message.headers) for message in batch)

    @app.topic(dead, deserializer=None)
    def keep(batch: Any, ctx: Any) -> None:
        kept.extend(raw(message.headers) for message in batch)

    with running(app):
        wait_until(lambda: len(forwarded) == len(kept) == 3, PATIENCE_S, "all were read")
    assert read == given
    assert forwarded == given
    assert [headers[: len(before)] for headers, before in zip(kept, given, strict=True)] == given


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_a_decompression_bomb_holds_up_its_partition_alone_and_is_named(
    kafka: Observer, caplog: pytest.LogCaptureFixture, codec: str
) -> None:
    topic, seen, changed = kafka.topic(2), list[Any](), threading.Event()
    write(kafka, topic, bytes(4 * MIB), [], compression_type=codec, max_request_size=64 * MIB)
    kafka.produce(topic, [b"behind"], partition=0)
    kafka.produce(topic, [b"other"], partition=1)
    app = make_app(kafka, max_decompressed_bytes=3 * MIB)

    @app.topic(topic, deserializer=None, backoff_ms=50, backoff_max_ms=100)
    def handle(batch: Any, ctx: Any) -> None:
        seen.extend((message.partition, message.offset, len(message.value)) for message in batch)
        changed.set()

    def complaints() -> list[str]:
        return [record.message for record in caplog.records if "cannot be read" in record.message]

    with running(app):
        wait_until(lambda: len(complaints()) >= 2 and len(seen) == 1, PATIENCE_S, "it is said again and again")
    assert seen == [(1, 0, 5)]
    assert f"{topic}-0@0 cannot be read: a batch of " in complaints()[0]
    assert f" bytes of {codec} that holds more than max_decompressed_bytes={3 * MIB}. Cure: " in complaints()[0]
    assert f"--topic {topic} --partition 0 --to 1" in complaints()[0]


def polls_of_large_messages(kafka: Observer) -> list[tuple[int, int]]:
    """How many messages each poll has brought, and how many bytes; there are 60, of 10 KB each."""
    topic, polls = kafka.topic(2), list[tuple[int, int]]()
    for partition in (0, 1):
        kafka.produce(topic, [b"%02d" % number * 5000 for number in range(30)], partition=partition)
    with Member(kafka, topic) as member:
        member.until_assigned()
        member.consumer.seek_to_beginning()
        read: list[int] = []

        def poll() -> None:
            for _, records, _, size_bytes in member.client.poll():
                read.extend(record.offset for record in records)
                polls.append((len(records), size_bytes))

        member.until(lambda: len(read) == 60, poll)
    assert sorted(read) == sorted([*range(30), *range(30)])
    return polls


def test_a_poll_takes_no_more_bytes_than_it_may(kafka: Observer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer, "POLL_BYTES", 50_000)
    polls = polls_of_large_messages(kafka)
    assert max(count for count, _ in polls) <= 5
    assert max(size for _, size in polls) < 62_000


def test_without_the_cure_it_takes_all_that_was_fetched(kafka: Observer) -> None:
    assert max(count for count, _ in polls_of_large_messages(kafka)) > 5


def test_a_pause_amid_a_compressed_batch_keeps_it_compressed_and_loses_nothing(kafka: Observer) -> None:
    topic = kafka.topic()
    producer = KafkaProducer(bootstrap_servers=kafka.bootstrap_servers, compression_type="gzip", linger_ms=10_000)
    for number in range(9):
        producer.send(topic, b"%d" % number * 1000)
    producer.flush()
    producer.close()
    with Member(kafka, topic, max_poll_records=3) as member:
        assert member.read(3) == [(0, 0), (0, 1), (0, 2)]
        member.client.apply(plan(pause=[(topic, 0)]))
        left = member.consumer._fetcher._next_partition_records
        assert left.next_fetch_offset == 3
        assert left._resting
        member.poll()
        member.client.apply(plan(resume=[(topic, 0)]))
        assert member.read(6) == [(0, offset) for offset in range(3, 9)]
