"""Clients of others work with the embedded broker as with Kafka: send, read, share a group, run a transaction."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import confluent_kafka
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import ProducerFenced
from confluent_kafka import KafkaException
from kafka import KafkaConsumer, KafkaProducer
from kafka import TopicPartition as Place
from kafka.errors import ProducerFencedError
from support.observer import Observer, wait_until

PATIENCE_S = 20


# -- librdkafka -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def confluent_consumer(kafka: Observer, topic: str, group: str) -> Iterator[confluent_kafka.Consumer]:
    settings = {"bootstrap.servers": kafka.bootstrap_servers, "group.id": group, "auto.offset.reset": "earliest"}
    quick = {"session.timeout.ms": 6000, "heartbeat.interval.ms": 200, "isolation.level": "read_committed"}
    consumer = confluent_kafka.Consumer({**settings, **quick, "enable.auto.commit": False})
    consumer.subscribe([topic])
    try:
        yield consumer
    finally:
        consumer.close()


def shares(*consumers: confluent_kafka.Consumer) -> list[int]:
    """How many partitions each has; polling is what makes them take part in a rebalance."""
    for consumer in consumers:
        message = consumer.poll(0.02)
        assert message is None or not message.error(), message
    return [len(consumer.assignment()) for consumer in consumers]


def test_confluent_shares_a_group_and_goes_on_where_it_was(kafka: Observer) -> None:
    topic, group = kafka.topic(4), kafka.group()
    kafka.produce(topic, range(8), 0)
    with confluent_consumer(kafka, topic, group) as first:
        read: list[int] = []

        def all_read() -> bool:
            message = first.poll(0.1)
            if message:
                assert not message.error()
                read.append(message.offset())
            return len(read) == 8

        wait_until(all_read, PATIENCE_S, "all is read")
        assert read == list(range(8))
        first.commit(asynchronous=False)
        assert kafka.committed(group, topic) == 8
        with confluent_consumer(kafka, topic, group) as second:
            wait_until(lambda: shares(first, second) == [2, 2], PATIENCE_S, "they share")
        wait_until(lambda: shares(first) == [4], PATIENCE_S, "one left")
        with confluent_consumer(kafka, topic, group) as third:
            wait_until(lambda: shares(first, third) == [2, 2], PATIENCE_S, "one came")
    assert kafka.members(group) == []


def test_confluent_runs_transactions_that_are_all_or_nothing_and_fences(kafka: Observer) -> None:
    topic, source, group, name = kafka.topic(), kafka.topic(), kafka.group(), kafka.name("transactions")
    kafka.produce(source, range(3))

    def producer() -> confluent_kafka.Producer:
        new = confluent_kafka.Producer(
            {"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": name, "log_level": 0}
        )
        new.init_transactions(PATIENCE_S)
        return new

    first = producer()
    with confluent_consumer(kafka, source, group) as consumer:
        wait_until(lambda: consumer.poll(0.1), PATIENCE_S, "something to process")
        for text, commit, offset in ((b"aborted", False, 2), (b"committed", True, 1)):
            first.begin_transaction()
            first.produce(topic, text)
            places = [confluent_kafka.TopicPartition(source, 0, offset)]
            first.send_offsets_to_transaction(places, consumer.consumer_group_metadata(), PATIENCE_S)
            (first.commit_transaction if commit else first.abort_transaction)(PATIENCE_S)
            wait_until(
                lambda commit=commit: kafka.committed(group, source) == (1 if commit else None), message="offsets"
            )
    with confluent_consumer(kafka, topic, kafka.group()) as reader:
        assert wait_until(lambda: reader.poll(0.1), PATIENCE_S).value() == b"committed"
    first.begin_transaction()
    first.produce(topic, b"of the fenced one")
    first.flush(PATIENCE_S)
    second = producer()
    with pytest.raises(KafkaException, match=r"(?i)fenced"):
        first.commit_transaction(PATIENCE_S)
    second.begin_transaction()
    second.produce(topic, b"second")
    second.commit_transaction(PATIENCE_S)
    with confluent_consumer(kafka, topic, kafka.group()) as reader:
        values = [wait_until(lambda: reader.poll(0.1), PATIENCE_S).value() for _ in range(2)]
    assert values == [b"committed", b"second"]


# -- aiokafka ---------------------------------------------------------------------------------------------------------


async def until(fact: Callable[[], Any], message: str) -> Any:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE_S
    while not (value := fact()):
        assert loop.time() < deadline, message
        await asyncio.sleep(0.02)
    return value


@contextlib.asynccontextmanager
async def started(client: Any) -> Any:
    await client.start()
    try:
        yield client
    finally:
        await client.stop()


def aio_consumer(kafka: Observer, topic: str, group: str) -> Any:
    quick = {"heartbeat_interval_ms": 200, "session_timeout_ms": 6000, "isolation_level": "read_committed"}
    return started(
        AIOKafkaConsumer(
            topic, bootstrap_servers=kafka.bootstrap_servers, group_id=group, auto_offset_reset="earliest",
            enable_auto_commit=False, **quick,
        )
    )  # fmt: skip


def aio_producer(kafka: Observer, name: str | None = None) -> Any:
    return started(AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers, transactional_id=name))


def test_aiokafka_shares_a_group_and_goes_on_where_it_was(kafka: Observer) -> None:
    topic, group = kafka.topic(4), kafka.group()

    async def scenario() -> None:
        def shares(*consumers: Any) -> list[int]:
            return [len(consumer.assignment()) for consumer in consumers]

        async with aio_producer(kafka) as producer:
            for index in range(5):
                await producer.send_and_wait(topic, b"%d" % index, partition=0)
        async with aio_consumer(kafka, topic, group) as first:
            read = [await asyncio.wait_for(first.getone(), PATIENCE_S) for _ in range(5)]
            assert [message.value for message in read] == [b"0", b"1", b"2", b"3", b"4"]
            await first.commit({TopicPartition(topic, 0): 5})
            async with aio_consumer(kafka, topic, group) as second:
                await until(lambda: shares(first, second) == [2, 2], "they share")
            await until(lambda: shares(first) == [4], "one left")
            async with aio_consumer(kafka, topic, group) as third:
                await until(lambda: shares(first, third) == [2, 2], "one came")

    asyncio.run(scenario())
    assert kafka.committed(group, topic) == 5
    assert kafka.members(group) == []


def test_aiokafka_runs_transactions_that_are_all_or_nothing_and_fences(kafka: Observer) -> None:
    topic, group, name = kafka.topic(), kafka.group(), kafka.name("transactions")

    async def scenario() -> None:
        async with aio_producer(kafka, name) as first:
            for text, commit in ((b"aborted", False), (b"committed", True)):
                await first.begin_transaction()
                await first.send_and_wait(topic, text)
                await first.send_offsets_to_transaction({TopicPartition(topic, 0): 1 + commit}, group)
                await (first.commit_transaction() if commit else first.abort_transaction())
            async with aio_consumer(kafka, topic, group + "-reader") as reader:
                message = await asyncio.wait_for(reader.getone(), PATIENCE_S)
            assert message.value == b"committed"
            await first.begin_transaction()
            async with aio_producer(kafka, name):
                with pytest.raises(ProducerFenced):
                    await first.send_and_wait(topic, b"of the fenced one")

    asyncio.run(scenario())
    wait_until(lambda: kafka.committed(group, topic) == 2, message="the offset of the transaction")


# A poll of kafka-python 3.0.12 that ends amid a join may leave it unfinished for good: the first ones have a second.

# -- kafka-python -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def python_consumer(kafka: Observer, topic: str, group: str) -> Iterator[KafkaConsumer]:
    quick = {"heartbeat_interval_ms": 200, "session_timeout_ms": 6000, "isolation_level": "read_committed"}
    consumer = KafkaConsumer(
        topic, bootstrap_servers=kafka.bootstrap_servers, group_id=group, auto_offset_reset="earliest",
        enable_auto_commit=False, **quick,
    )  # fmt: skip
    try:
        yield consumer
    finally:
        consumer.close()


def test_kafka_python_shares_a_group_and_goes_on_where_it_was(kafka: Observer) -> None:
    topic, group = kafka.topic(4), kafka.group()
    kafka.produce(topic, range(5), 0)

    def shares(*consumers: KafkaConsumer) -> list[int]:
        # Side by side, and with time: kafka-python forgets a join that ends between two polls.
        with ThreadPoolExecutor() as threads:
            list(threads.map(lambda consumer: consumer.poll(timeout_ms=1000), consumers))
        return [len(consumer.assignment()) for consumer in consumers]

    with python_consumer(kafka, topic, group) as first:
        read: list[int] = []

        def all_read() -> bool:
            for records in first.poll(timeout_ms=1000).values():
                read.extend(record.offset for record in records)
            return len(read) == 5

        wait_until(all_read, PATIENCE_S, "all is read")
        first.commit()
        assert kafka.committed(group, topic) == 5
        with python_consumer(kafka, topic, group) as second:
            wait_until(lambda: shares(first, second) == [2, 2], PATIENCE_S, "they share")
        wait_until(lambda: shares(first) == [4], PATIENCE_S, "one left")
    assert kafka.members(group) == []


def test_kafka_python_runs_transactions_that_are_all_or_nothing_and_fences(kafka: Observer) -> None:
    topic, name = kafka.topic(), kafka.name("transactions")

    def producer() -> KafkaProducer:
        new = KafkaProducer(bootstrap_servers=kafka.bootstrap_servers, transactional_id=name)
        new.init_transactions()
        return new

    with contextlib.closing(producer()) as first:
        for text, commit in ((b"aborted", False), (b"committed", True)):
            first.begin_transaction()
            first.send(topic, text).get(PATIENCE_S)
            (first.commit_transaction if commit else first.abort_transaction)()
        with python_consumer(kafka, topic, kafka.group()) as reader:
            records = wait_until(lambda: reader.poll(timeout_ms=1000), PATIENCE_S, "something to read")
        assert [record.value for record in records[Place(topic, 0)]] == [b"committed"]
        first.begin_transaction()
        with contextlib.closing(producer()):
            with pytest.raises(ProducerFencedError):
                first.send(topic, b"of the fenced one").get(PATIENCE_S)
