"""What sending costs: rounds of 500 whose answers are all awaited, and whole apps that read 500 and send 500.

    python tests/benchmarks/senders.py confluent '{"broker": "localhost:9092", "topic": "t", …}'

prints one line of JSON. All wait for all in-sync replicas, and write a message once; batches hold up to 256 KB, as ours
do. A whole app commits what it has read, every 5 s, after what it has sent is acknowledged.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from meter import Figures, Meter

ROUND = 500
BATCH_BYTES = 256 << 10
COMMIT_EVERY_S = 5


class Task(NamedTuple):
    """``keys``: "distinct" or "none"; ``size``: bytes of a value; ``source``: what whole apps read, or one message."""

    broker: str
    group: str
    source: str
    topic: str
    size: int
    keys: str

    def rounds(self) -> Iterator[list[tuple[bytes | None, bytes]]]:
        """Key and value of the messages of each round, made before it begins, without an end."""
        value, number = b"x" * self.size, 0
        while True:
            yield [(b"%d" % n if self.keys == "distinct" else None, value) for n in range(number, number + ROUND)]
            number += ROUND


@dataclass(frozen=True)
class Sender:
    """``told`` is its line in the table, with the versions; ``packages`` are what it needs beside ours."""

    told: str
    packages: tuple[str, ...]
    send: Callable[[Task, Meter], None]


def main(name: str, arguments: str) -> None:
    told = json.loads(arguments)
    answers = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def say_and_leave(figures: Figures) -> None:
        os.write(answers, json.dumps(figures).encode())
        os._exit(0)

    meter = Meter(told.pop("messages"), say_and_leave)
    (SENDERS | FORWARDERS)[name].send(Task(**told), meter)


# -- ours -------------------------------------------------------------------------------------------------------------


def produce(task: Task, meter: Meter) -> None:
    from karafka_lite import App, Batch, Context

    app = App(task.group, bootstrap_servers=task.broker)

    @app.topic(task.source)
    def send(batch: Batch, ctx: Context) -> None:
        for messages in task.rounds():
            for sent in [ctx.produce(task.topic, value, key=key) for key, value in messages]:
                sent.result()
            meter.count(ROUND)

    app.run()


def produce_many(task: Task, meter: Meter) -> None:
    from karafka_lite import App, Batch, Context, Outgoing

    app = App(task.group, bootstrap_servers=task.broker)

    @app.topic(task.source)
    def send(batch: Batch, ctx: Context) -> None:
        for messages in task.rounds():
            ctx.produce_many(task.topic, [Outgoing(value, key=key) for key, value in messages]).result()
            meter.count(ROUND)

    app.run()


def one_by_one(task: Task, meter: Meter) -> None:
    from karafka_lite import App, Batch, Context

    app = App(task.group, bootstrap_servers=task.broker)

    @app.topic(task.source)
    def send(batch: Batch, ctx: Context) -> None:
        one = meter.one()
        for messages in task.rounds():
            for key, value in messages:
                ctx.produce(task.topic, value, key=key).result()
                one()

    app.run()


def forward(task: Task, meter: Meter) -> None:
    from karafka_lite import App, Batch, Context

    app = App(task.group, bootstrap_servers=task.broker)

    @app.topic(task.source, deserializer=None)
    def send(batch: Batch, ctx: Context) -> None:
        for message in batch:
            ctx.produce(task.topic, message.value, key=message.key)
        meter.count(len(batch))

    app.run()


def forward_many(task: Task, meter: Meter) -> None:
    from karafka_lite import App, Batch, Context, Outgoing

    app = App(task.group, bootstrap_servers=task.broker)

    @app.topic(task.source, deserializer=None)
    def send(batch: Batch, ctx: Context) -> None:
        ctx.produce_many(task.topic, [Outgoing(message.value, key=message.key) for message in batch])
        meter.count(len(batch))

    app.run()


# -- kafka-python -----------------------------------------------------------------------------------------------------


def _kafka_python(task: Task, **settings: Any) -> Any:
    from kafka import KafkaProducer

    return KafkaProducer(bootstrap_servers=task.broker, acks="all", enable_idempotence=True, **settings)


def kafka_python(task: Task, meter: Meter) -> None:
    producer = _kafka_python(task, linger_ms=50, batch_size=BATCH_BYTES)
    for messages in task.rounds():
        sent = [producer.send(task.topic, value, key) for key, value in messages]
        producer.flush()
        for each in sent:
            each.get()
        meter.count(ROUND)


def kafka_python_one_by_one(task: Task, meter: Meter) -> None:
    producer, one = _kafka_python(task), meter.one()
    for messages in task.rounds():
        for key, value in messages:
            producer.send(task.topic, value, key).get()
            one()


# -- aiokafka ---------------------------------------------------------------------------------------------------------


def _aiokafka(task: Task) -> Any:
    from aiokafka import AIOKafkaProducer

    return AIOKafkaProducer(
        bootstrap_servers=task.broker, acks="all", enable_idempotence=True, max_batch_size=BATCH_BYTES
    )


def aiokafka(task: Task, meter: Meter) -> None:
    async def send() -> None:
        producer = _aiokafka(task)
        await producer.start()
        for messages in task.rounds():
            sent = [await producer.send(task.topic, value, key=key) for key, value in messages]
            for each in sent:
                await each
            meter.count(ROUND)

    asyncio.run(send())


def aiokafka_forward(task: Task, meter: Meter) -> None:
    from aiokafka import AIOKafkaConsumer

    async def run() -> None:
        producer = _aiokafka(task)
        consumer = AIOKafkaConsumer(
            task.source,
            group_id=task.group,
            bootstrap_servers=task.broker,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
        )
        await producer.start()
        await consumer.start()
        committed = time.monotonic()
        while True:
            for records in (await consumer.getmany(timeout_ms=1000, max_records=ROUND)).values():
                sent = [await producer.send(task.topic, record.value, key=record.key) for record in records]
                for each in sent:
                    await each
                meter.count(len(records))
            if time.monotonic() - committed > COMMIT_EVERY_S:
                await consumer.commit()
                committed = time.monotonic()

    asyncio.run(run())


# -- confluent-kafka --------------------------------------------------------------------------------------------------


def _confluent(task: Task) -> Any:
    from confluent_kafka import Producer

    return Producer(
        {
            "bootstrap.servers": task.broker,
            "enable.idempotence": True,
            "linger.ms": 50,
            "batch.size": BATCH_BYTES,
            "partitioner": "murmur2_random",
        }
    )


def confluent(task: Task, meter: Meter) -> None:
    producer, answers = _confluent(task), list[Any]()
    for messages in task.rounds():
        answers.clear()
        for key, value in messages:
            producer.produce(task.topic, value, key, on_delivery=lambda error, message: answers.append(error))
        producer.flush()
        assert answers == [None] * ROUND
        meter.count(ROUND)


def confluent_forward(task: Task, meter: Meter) -> None:
    from confluent_kafka import Consumer

    producer, answers, committed = _confluent(task), list[Any](), time.monotonic()
    consumer = Consumer(
        {
            "bootstrap.servers": task.broker,
            "group.id": task.group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "fetch.queue.backoff.ms": 10,
        }
    )
    consumer.subscribe([task.source])
    while True:
        messages = consumer.consume(ROUND, 1.0)
        answers.clear()
        for message in messages:
            producer.produce(
                task.topic, message.value(), message.key(), on_delivery=lambda error, message: answers.append(error)
            )
        producer.flush()
        assert answers == [None] * len(messages)
        if messages:
            meter.count(len(messages))
        if time.monotonic() - committed > COMMIT_EVERY_S:
            consumer.commit(asynchronous=False)
            committed = time.monotonic()


# -- FastStream -------------------------------------------------------------------------------------------------------


def faststream_forward(task: Task, meter: Meter) -> None:
    from faststream import FastStream
    from faststream.kafka import KafkaBroker

    broker = KafkaBroker(task.broker, logger=None, apply_types=False, acks="all", enable_idempotence=True)

    async def as_it_came(message: Any) -> Any:
        return message

    @broker.subscriber(
        task.source,
        group_id=task.group,
        auto_offset_reset="earliest",
        batch=True,
        max_records=ROUND,
        decoder=as_it_came,
    )
    async def handle(message: Any) -> None:
        records = message.raw_message
        await asyncio.gather(*(broker.publish(record.value, task.topic, key=record.key) for record in records))
        meter.count(len(records))

    asyncio.run(FastStream(broker, logger=None).run())


IN_ROUNDS = {
    "produce": Sender("`ctx.produce`", (), produce),
    "produce-many": Sender("`ctx.produce_many`", (), produce_many),
    "kafka-python": Sender("kafka-python {kafka-python}, `send`", ("kafka-python",), kafka_python),
    "aiokafka": Sender("aiokafka {aiokafka}, `send`", ("aiokafka",), aiokafka),
    "confluent": Sender("confluent-kafka {confluent-kafka}, `produce`", ("confluent-kafka",), confluent),
}
ONE_BY_ONE = {
    "produce-one": Sender("`ctx.produce(…).result()`, one at a time", (), one_by_one),
    "kafka-python-one": Sender(
        "kafka-python {kafka-python}, `send(…).get()`, one at a time", ("kafka-python",), kafka_python_one_by_one
    ),
}
FORWARDERS = {
    "forward": Sender("`karafka-lite`, `ctx.produce`", (), forward),
    "forward-many": Sender("`karafka-lite`, `ctx.produce_many`", (), forward_many),
    "aiokafka-forward": Sender("aiokafka {aiokafka}, by hand", ("aiokafka",), aiokafka_forward),
    "confluent-forward": Sender("confluent-kafka {confluent-kafka}, by hand", ("confluent-kafka",), confluent_forward),
    "faststream-forward": Sender(
        "FastStream {faststream} on aiokafka {aiokafka}", ("faststream", "aiokafka"), faststream_forward
    ),
}
SENDERS = IN_ROUNDS | ONE_BY_ONE


if __name__ == "__main__":
    main(*sys.argv[1:])
