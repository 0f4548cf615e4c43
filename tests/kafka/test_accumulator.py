"""Batches of our own in kafka-python's queues: what arrives, where, how often, and what becomes of the futures."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import pytest
from kafka.structs import TopicPartition
from support.observer import BreakableKafka, Observer, wait_until

from karafka_lite.client.accumulator import LOOKED_UP, Accumulator, Plain
from karafka_lite.client.encoding import COMPRESS
from karafka_lite.client.producer import Producer
from karafka_lite.errors import ProduceError
from karafka_lite.messages import Addressed

Sent = Future[tuple[int, int]]


@contextmanager
def producer_of(kafka: Observer, *, idempotent: bool = True, **settings: Any) -> Iterator[Producer]:
    producer = Producer(kafka.bootstrap_servers.split(","), settings, idempotent=idempotent)
    producer.connect()
    try:
        yield producer
    finally:
        producer.close()


def arrived(kafka: Observer, topic: str) -> list[tuple[int, int, Any, Any]]:
    """(partition, offset, key, value) of each message, as another client reads them."""
    return [(record.partition(), record.offset(), record.key(), record.value()) for record in kafka.records(topic)]


def test_kafka_python_has_the_names_that_batches_of_our_own_need(kafka: Observer) -> None:
    with producer_of(kafka) as producer:
        assert isinstance(producer._accumulator, Accumulator)


@pytest.mark.parametrize("codec", [None, "gzip", "snappy", "lz4", "zstd"])
def test_all_that_a_message_can_have_arrives_in_every_codec(kafka: Observer, codec: str | None) -> None:
    topic = kafka.topic()
    messages = [
        Addressed(
            topic, b"value" * 20, b"key", [("h", b"1"), ("h", b""), ("h\u00e9", b"\x00")], None, 1_700_000_000_000
        ),
        Addressed(topic, None, b"key", None, 0, 1_600_000_000_000),
        Addressed(topic, b"", None, None, 0, 1_800_000_000),
        Addressed(topic, None, None),
        Addressed(topic, b"x" * 300_000, b"k" * 300),
    ]
    with producer_of(kafka, compression_type=codec) as producer:
        assert len(COMPRESS) == 4
        sent = [producer.send(message) for message in messages]
        assert [future.result(20) for future in sent] == [(0, offset) for offset in range(5)]
    for message, record in zip(messages, kafka.records(topic), strict=True):
        assert (record.value(), record.key()) == (message.value, message.key)
        assert (record.headers() or None) == message.headers
        assert message.timestamp_ms in (None, record.timestamp()[1])


def test_a_key_chooses_the_partition_as_librdkafka_does_and_the_answer_says_where_each_is(kafka: Observer) -> None:
    ours, theirs = kafka.topic(7), kafka.topic(7)
    keys = [random.Random(n).randbytes(n % 70) for n in range(300)] * 2
    with producer_of(kafka) as producer:
        sent = [producer.send(Addressed(ours, b"%d" % n, key)) for n, key in enumerate(keys)]
        places = [future.result(20) for future in sent]
    kafka.produce(theirs, [b""] * len(keys), keys=keys)
    assert arrived(kafka, ours) == sorted((*place, keys[n], b"%d" % n) for n, place in enumerate(places))
    partitions = {record.key(): record.partition() for record in kafka.records(theirs)}
    assert [partition for partition, _ in places] == [partitions[key] for key in keys]


def test_without_a_key_messages_stay_together_until_their_batch_has_left(kafka: Observer) -> None:
    topic = kafka.topic(6)
    with producer_of(kafka, linger_ms=5000) as producer:  # else a slow machine ends a batch between two messages
        partitions = []
        for _ in range(20):
            sent = [producer.send(Addressed(topic, b"1")) for _ in range(9)]
            assert producer.flush(20)
            (partition,) = {future.result(0)[0] for future in sent}
            partitions.append(partition)
    assert len({*partitions}) > 1


def test_what_nobody_waits_for_leaves_after_linger_ms(kafka: Observer) -> None:
    topic = kafka.topic()
    with producer_of(kafka) as producer:
        producer.send(Addressed(topic, b"1"))
        wait_until(lambda: kafka.end_offset(topic) == 1, 5)
        producer.send(Addressed(topic, b"2"))  # while the sender thread has nothing to do
        wait_until(lambda: kafka.end_offset(topic) == 2, 5)


def test_a_batch_of_kafka_pythons_own_and_ours_get_along_in_one_queue(kafka: Observer) -> None:
    topic = kafka.topic(max_message_bytes=20_000)
    with producer_of(kafka, max_in_flight_requests_per_connection=1) as producer:
        stock = producer._producer
        futures: list[Any] = []
        for n in range(60):
            futures.append(producer.send(Addressed(topic, b"ours %d " % n + b"x" * 900)))
            futures.append(stock.send(topic, b"stock %d " % n + b"x" * 900))
        offsets = [each.result(20)[1] if isinstance(each, Future) else each.get(20).offset for each in futures]
    values = [value.split(b"x")[0] for _, _, _, value in arrived(kafka, topic)]
    assert sorted(offsets) == list(range(120))
    for kind in (b"ours", b"stock"):
        assert [value for value in values if value.startswith(kind)] == [kind + b" %d " % n for n in range(60)]


def test_a_batch_that_is_too_large_for_its_topic_is_split_until_it_fits_once_each_and_in_order(kafka: Observer) -> None:
    topic = kafka.topic(2, max_message_bytes=2000)
    told: Counter[str] = Counter()
    with producer_of(kafka) as producer:
        sent: list[Sent] = []
        for n in range(600):
            who = "even" if n % 6 < 3 else "odd"
            message = Addressed(topic, b"%d " % n + b"x" * 300, partition=n % 2)
            sent.append(producer.send_checked(message, lambda count, failure, who=who: told.update({who: count})))
        looked_at = [future for future in sent[::7] if not future.done()]
        assert len(producer._unanswered) == 2
        assert producer.flush(30)
        assert not producer.dead
        places = [future.result(0) for future in sent]
        assert looked_at
    assert told == {"even": 300, "odd": 300}
    records = {(partition, offset): value for partition, offset, _, value in arrived(kafka, topic)}
    assert len(records) == 600
    assert [records[place].split()[0] for place in places] == [b"%d" % n for n in range(600)]
    assert places[::2] == [(0, n) for n in range(300)]
    assert places[1::2] == [(1, n) for n in range(300)]


@pytest.mark.parametrize("_round", range(3))
def test_closing_while_others_send_leaves_no_future_without_an_answer(kafka: Observer, _round: int) -> None:
    topic, futures, over = kafka.topic(3), list[Sent](), threading.Event()
    with producer_of(kafka) as producer:

        def send() -> None:
            while not over.is_set():
                futures.append(producer.send(Addressed(topic, b"1")))

        threads = [threading.Thread(target=send) for _ in range(3)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(futures) > 2000)
        producer.close(0)
        over.set()
        for thread in threads:
            thread.join(10)
        producer.check()
        assert all(future.done() for future in futures)
        assert isinstance(futures[-1].exception(0), ProduceError)
        assert not producer._unanswered
        assert producer._weight == 0


def test_the_window_counts_what_is_open_in_a_thousand_partitions_and_nothing_after_the_answers(
    kafka: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("karafka_lite.client.producer.WINDOW_BYTES", 100_000)
    topic = kafka.topic(200)
    most = 0
    with producer_of(kafka) as producer:
        for n in range(1000):
            producer.send(Addressed(topic, b"x" * 500, partition=n % 200))
            most = max(most, producer._weight)
        assert producer.flush(30)
        assert producer._weight == 0
        assert not producer._unanswered
        assert not producer._accumulator._open
    assert 90_000 < most <= 100_000
    assert sum(kafka.end_offset(topic, partition) for partition in range(200)) == 1000


def test_while_leaders_stop_and_start_again_each_is_written_once_in_order_and_where_its_future_says(
    cluster: BreakableKafka,
) -> None:
    kafka = cluster
    topic = kafka.topic(6, replicas=3)
    sent: list[Sent] = []
    over = threading.Event()
    with producer_of(kafka) as producer:

        def send() -> None:
            while not over.is_set():
                for _ in range(30):
                    number = len(sent)
                    sent.append(producer.send(Addressed(topic, b"%d" % number, partition=number % 6)))
                producer.hand_over()
                over.wait(0.02)

        thread = threading.Thread(target=send)
        thread.start()
        wait_until(lambda: len(sent) > 1000)
        kafka.stop(2)  # to be killed takes 15 s longer; tests/chaos/forwarding.py does that
        wait_until(lambda: kafka_python_knows(producer, topic, 2), 60, "others lead")
        kafka.restart(2)
        kafka.server.wait_until_ready()
        count = len(sent)
        wait_until(lambda: len(sent) > count + 1000 and sent[count].done(), 60)
        over.set()
        thread.join(10)
        assert producer.flush(60)
        places = [future.result(0) for future in sent]
    found = {(partition, offset): int(value) for partition, offset, _, value in arrived(kafka, topic)}
    assert len(found) == len(places), "each once"
    assert [found[place] for place in places] == [*range(len(places))], "where its future says"
    for partition in range(6):
        numbers = [found[place] for place in sorted(found) if place[0] == partition]
        assert numbers == sorted(numbers), "in order"


def kafka_python_knows(producer: Producer, topic: str, dead: int) -> bool:
    """Whether another broker leads each partition."""
    metadata = producer._producer._metadata
    tps = [TopicPartition(topic, partition) for partition in range(6)]
    return all(metadata.leader_for_partition(tp) not in (None, -1, dead) for tp in tps)


@pytest.mark.apache_only("it looks at the times of messages")
def test_beside_a_message_that_the_broker_refuses_the_others_of_its_batch_fail_by_its_fault(kafka: Observer) -> None:
    topic, told = kafka.topic(), list[Any]()
    tomorrow = int(time.time() * 1000) + 86_400_000
    with producer_of(kafka, idempotent=False) as producer:
        times = [None, None, tomorrow, None]

        def tell(count: int, failure: Any) -> None:
            told.append((count, failure.collateral))

        sent = [producer.send_checked(Addressed(topic, b"1", timestamp_ms=each), tell) for each in times]
        failures = [future.exception(20) for future in sent]
        assert [getattr(failure, "collateral", None) for failure in failures] == [True, True, False, True]
        assert "InvalidTimestamp" in str(failures[2])
        assert told == [(4, False)], "of its own fault first"
        assert producer.send(Addressed(topic, b"2")).result(20) == (0, 0)


def test_a_topic_that_changes_while_it_is_looked_up_is_looked_up_again(
    kafka: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = kafka.topic()
    with producer_of(kafka) as producer:
        accumulator, stock = producer._accumulator, producer._producer.partitions_for

        def outdated(name: str) -> Any:
            found = stock(name)
            accumulator._forget_topics()  # the cluster says something new
            return found

        monkeypatch.setattr(producer._producer, "partitions_for", outdated)
        assert producer.send(Addressed(topic, b"1")).result(20) == (0, 0)
        assert topic not in accumulator.topics


@pytest.mark.parametrize("what", ["a broker that is frozen", "no leader"])
def test_the_sender_thread_rests_while_it_cannot_send(private_kafka: BreakableKafka, what: str) -> None:
    kafka, turns = private_kafka, list[float]()
    topic = kafka.topic(8)
    with producer_of(kafka) as producer:
        assert [producer.send(Addressed(topic, b"1", partition=n)).result(20) for n in range(8)]
        sender, metadata = producer._producer._sender, producer._producer._metadata
        stock, leader = sender.run_once, metadata.leader_for_partition
        if what == "no leader":
            metadata.leader_for_partition = lambda tp: -1 if tp.partition == 0 else leader(tp)
        else:
            kafka.pause()
        sender.run_once = lambda: (turns.append(time.monotonic()), stock())[1]
        sent = []
        for n in range(8):  # more requests than may be on their way at once
            before = len(turns)
            sent.append(producer.send(Addressed(topic, b"2", partition=n)))
            producer.hand_over()
            wait_until(lambda before=before: len(turns) > before + 1)  # type: ignore[misc]
        began, before = time.monotonic(), len(turns)
        wait_until(lambda: time.monotonic() > began + 0.5)
        assert len(turns) - before < 100, "turns in half a second"
        metadata.leader_for_partition = leader
        kafka.resume()
        assert [future.result(20) for future in sent] == [(n, 1) for n in range(8)]


# -- where kafka-python has other names -------------------------------------------------------------------------------


def test_without_those_names_each_message_is_sent_by_kafka_python_which_is_said(
    kafka: Observer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("karafka_lite.client.accumulator.LOOKED_UP", (*LOOKED_UP, "_moved"))
    topic, small, told = kafka.topic(3), kafka.topic(max_message_bytes=1000), Counter[bool]()
    with producer_of(kafka, idempotent=False) as producer:
        assert isinstance(producer._accumulator, Plain)
        (line,) = [record.getMessage() for record in caplog.records if record.name == "karafka_lite"]
        assert "sent one by one" in line
        assert "_moved" in line
        messages = [
            Addressed(topic, b"v", b"key", [("h", b"1"), (b"\xff".decode(errors="surrogateescape"), b"2")], 1, 1234),
            Addressed(topic, None, None, partition=1),
            Addressed(topic, b"3", b"a key"),
            Addressed(small, b"x" * 5000),
        ]
        sent = [producer.send_checked(each, lambda n, failure: told.update({failure is None: n})) for each in messages]
        assert [future.result(20) for future in sent[:2]] == [(1, 0), (1, 1)]
        partition, offset = sent[2].result(20)
        assert getattr(sent[3].exception(20), "too_large", False)
        with pytest.raises(ValueError, match="partition must be between 0 and 2"):
            producer.send(Addressed(topic, b"", partition=7))
        assert producer.flush(20)
        assert told == {True: 3, False: 1}
        assert producer._weight == 0
    first, second = [record for record in kafka.records(topic) if record.value() != b"3"]
    assert (first.key(), first.timestamp()[1]) == (b"key", 1234)
    assert (second.key(), second.value()) == (None, None)
    assert (partition, offset, b"a key", b"3") in arrived(kafka, topic)


def test_an_answer_that_is_there_when_send_returns_is_one(kafka: Observer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("karafka_lite.client.accumulator.LOOKED_UP", (*LOOKED_UP, "_moved"))
    topic, places = kafka.topic(), list[Any]()
    with producer_of(kafka) as producer:
        stock = producer._producer.send

        def send_and_wait(*arguments: Any) -> Any:
            receipt = stock(*arguments)
            receipt.get(20)
            return receipt

        monkeypatch.setattr(producer._producer, "send", send_and_wait)
        thread = threading.Thread(target=lambda: places.append(producer.send(Addressed(topic, b"1")).result(5)))
        thread.daemon = True
        thread.start()
        thread.join(10)
        assert places == [(0, 0)], "not a deadlock"
        assert not producer._unanswered
        assert producer._weight == 0
