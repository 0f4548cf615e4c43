"""The peers, each as a consumer that does nothing with its messages, in the form its documentation has for throughput.

    python tests/benchmarks/peers.py installed                    what this interpreter has of them
    python tests/benchmarks/peers.py aiokafka '{"broker": "localhost:9092", "group": "g", "topic": "t", "messages": 9}'

They pin versions of their clients that do not go together, so that each line here makes an environment of its own; its
interpreter is told to ``bench.py`` with ``--python``:

    pip install 'faststream[kafka]' kstreams orjson             FastStream on aiokafka, kstreams; aiokafka
    pip install 'faststream[confluent]' sentry-arroyo orjson    FastStream on confluent-kafka, Arroyo; confluent-kafka
    pip install quixstreams                                     Quix Streams
    pip install faust-streaming                                 Faust

FastStream decodes with orjson where it is there.

A peer is imported only where it is measured. All begin at the earliest offset, in a new group, and commit at least
every 5 s by their own means; where messages come in batches these are of up to 500.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from meter import Figures, Meter

MOST = 500  # messages in a batch
WAIT_S = 1.0
COMMIT_EVERY_S = 5

# For consumers that are quicker than librdkafka's default, which rests for 1 s whenever it has fetched enough: the same
# CPU time, and twice the messages/s.
QUICK: dict[str, Any] = {"fetch.queue.backoff.ms": 10}


class Where(NamedTuple):
    """What every peer is told."""

    broker: str
    group: str
    topic: str


@dataclass(frozen=True)
class Peer:
    """``told`` is its line in the table, with the versions; ``packages`` are what it needs, itself first."""

    told: str
    packages: tuple[str, ...]
    consume: Callable[[Where, Meter], None]
    most: int | None = None  # messages that it is given, where all would take minutes


def main(name: str, arguments: str = "") -> None:
    if name == "installed":
        print(json.dumps(installed()))
        return
    told = json.loads(arguments)
    answers = os.dup(1)  # out of the way of those that log to the standard output, or put something else in its place
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def say_and_leave(figures: Figures) -> None:
        """Nothing is measured any more, and some have no quick way to stop."""
        os.write(answers, json.dumps(figures).encode())
        os._exit(0)

    PEERS[name].consume(Where(told["broker"], told["group"], told["topic"]), Meter(told["messages"], say_and_leave))


def installed() -> dict[str, str]:
    """The version of each package that is there, and that of Python."""
    found = {"python": sys.version.split()[0]}
    for name in {"kafka-python", *(name for peer in PEERS.values() for name in peer.packages)}:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


# -- clients without a framework --------------------------------------------------------------------------------------


def confluent(where: Where, meter: Meter) -> None:
    from confluent_kafka import Consumer

    consumer = Consumer(
        {"bootstrap.servers": where.broker, "group.id": where.group, "auto.offset.reset": "earliest", **QUICK}
    )  # commits every 5 s by itself
    consumer.subscribe([where.topic])
    while True:
        messages = consumer.consume(MOST, WAIT_S)
        if messages:
            meter.count(len(messages))


def aiokafka(where: Where, meter: Meter) -> None:
    from aiokafka import AIOKafkaConsumer

    async def consume() -> None:
        consumer = AIOKafkaConsumer(
            where.topic, group_id=where.group, bootstrap_servers=where.broker, auto_offset_reset="earliest"
        )  # commits every 5 s by itself
        await consumer.start()
        while True:
            for records in (await consumer.getmany(timeout_ms=1000, max_records=MOST)).values():
                meter.count(len(records))

    asyncio.run(consume())


# -- frameworks on aiokafka -------------------------------------------------------------------------------------------


def faststream_raw(where: Where, meter: Meter) -> None:
    from faststream.kafka import KafkaBroker

    _raw(where, meter, KafkaBroker(where.broker, logger=None, apply_types=False))


def _raw(where: Where, meter: Meter, broker: Any) -> None:
    """No validation, and no decoding: the bytes of a batch as they came."""
    from faststream import FastStream

    async def as_it_came(message: Any) -> Any:
        return message.body

    @broker.subscriber(
        where.topic, group_id=where.group, auto_offset_reset="earliest", batch=True, max_records=MOST,
        decoder=as_it_came,
    )  # fmt: skip
    async def handle(values: list[bytes]) -> None:
        meter.count(len(values))

    asyncio.run(FastStream(broker, logger=None).run())


def faststream_batches(where: Where, meter: Meter) -> None:
    """As its documentation begins, in batches; its log of each batch is off."""
    from faststream import FastStream
    from faststream.kafka import KafkaBroker

    broker = KafkaBroker(where.broker, logger=None)

    @broker.subscriber(where.topic, group_id=where.group, auto_offset_reset="earliest", batch=True, max_records=MOST)
    async def handle(payloads: list[Any]) -> None:
        meter.count(len(payloads))

    asyncio.run(FastStream(broker, logger=None).run())


def faststream_each(where: Where, meter: Meter) -> None:
    """As its documentation begins: one message at a time; its log of each message is off."""
    _each(where, meter, logger=None)


def faststream_logging(where: Where, meter: Meter) -> None:
    """With two lines of log for each message, into the void."""
    _each(where, meter)


def _each(where: Where, meter: Meter, **settings: Any) -> None:
    from faststream import FastStream
    from faststream.kafka import KafkaBroker

    broker = KafkaBroker(where.broker, **settings)
    came = meter.one()

    @broker.subscriber(where.topic, group_id=where.group, auto_offset_reset="earliest")
    async def handle(payload: Any) -> None:
        came()

    asyncio.run(FastStream(broker, logger=None).run())


def kstreams(where: Where, meter: Meter) -> None:
    """It takes batches from its client, and hands over one message at a time."""
    import kstreams as ks

    engine = ks.create_engine(title="benchmark", backend=ks.backends.Kafka(bootstrap_servers=[where.broker]))
    came = meter.one()

    async def handle(record: Any) -> None:
        came()

    handle.__annotations__["record"] = ks.ConsumerRecord  # it takes them as they are, and ours are strings
    many = ks.GetMany(max_records=MOST, timeout_ms=1000)
    engine.stream(where.topic, group_id=where.group, auto_offset_reset="earliest", get_many=many)(handle)

    async def run() -> None:
        await engine.start()
        await asyncio.Event().wait()

    asyncio.run(run())


def faust(where: Where, meter: Meter) -> None:
    import faust as f

    app = f.App(
        where.group, broker=f"kafka://{where.broker}", value_serializer="raw", web_enabled=False, topic_partitions=12
    )  # commits every 2.8 s by itself
    topic = app.topic(where.topic, value_serializer="raw", key_serializer="raw")
    came = meter.one()

    @app.agent(topic)
    async def handle(stream: Any) -> None:
        async for _ in stream:
            came()

    f.Worker(app, loglevel="error").execute_from_commandline()


# -- frameworks on confluent-kafka ------------------------------------------------------------------------------------


def faststream_confluent(where: Where, meter: Meter) -> None:
    from faststream.confluent import KafkaBroker

    _raw(where, meter, KafkaBroker(where.broker, logger=None, apply_types=False, config=QUICK))


def quix(where: Where, meter: Meter) -> None:
    """Its checkpoint is every 5 s."""
    from quixstreams import Application

    folder = tempfile.TemporaryDirectory()
    where_to = {"broker_address": where.broker, "consumer_group": where.group, "state_dir": folder.name}
    app = Application(**where_to, auto_offset_reset="earliest", loglevel="ERROR")
    topic = app.topic(where.topic, value_deserializer="bytes", key_deserializer="bytes")
    came = meter.one()
    app.dataframe(topic).update(lambda value: came())
    app.run()


def arroyo(where: Where, meter: Meter) -> None:
    from arroyo.backends.kafka import KafkaConsumer
    from arroyo.backends.kafka.configuration import build_kafka_consumer_configuration
    from arroyo.commit import CommitPolicy
    from arroyo.processing import StreamProcessor
    from arroyo.processing.strategies import CommitOffsets, ProcessingStrategyFactory, RunTask
    from arroyo.types import Topic

    came = meter.one()

    def nothing(message: Any) -> Any:
        came()
        return message.payload

    class Factory(ProcessingStrategyFactory[Any]):
        def create_with_partitions(self, commit: Any, partitions: Any) -> Any:
            return RunTask(nothing, CommitOffsets(commit))

    settings = build_kafka_consumer_configuration(
        {}, where.group, auto_offset_reset="earliest", bootstrap_servers=[where.broker]
    )
    policy = CommitPolicy(COMMIT_EVERY_S, None)
    StreamProcessor(KafkaConsumer(settings), Topic(where.topic), Factory(), policy).run()


PEERS = {
    "confluent": Peer("confluent-kafka {confluent-kafka}, `consume(500)`", ("confluent-kafka",), confluent),
    "aiokafka": Peer("aiokafka {aiokafka}, `getmany(max_records=500)`", ("aiokafka",), aiokafka),
    "faststream-raw": Peer(
        "FastStream {faststream} on aiokafka {aiokafka}: batches of raw bytes",
        ("faststream", "aiokafka"),
        faststream_raw,
    ),
    "faststream-confluent": Peer(
        "FastStream {faststream} on confluent-kafka {confluent-kafka}: batches of raw bytes",
        ("faststream", "confluent-kafka"),
        faststream_confluent,
    ),
    "faststream-batches": Peer(
        "FastStream {faststream} on aiokafka {aiokafka}: batches, decoded by default",
        ("faststream", "aiokafka"),
        faststream_batches,
        3_000_000,
    ),
    "faststream-each": Peer(
        "FastStream {faststream} on aiokafka {aiokafka}: each message, its log off",
        ("faststream", "aiokafka"),
        faststream_each,
        600_000,
    ),
    "faststream-logging": Peer(
        "FastStream {faststream} on aiokafka {aiokafka}: each message, its log on as by default",
        ("faststream", "aiokafka"),
        faststream_logging,
        300_000,
    ),
    "kstreams": Peer("kstreams {kstreams} on aiokafka {aiokafka}: `get_many`", ("kstreams", "aiokafka"), kstreams),
    "quix": Peer(
        "Quix Streams {quixstreams} on confluent-kafka {confluent-kafka}: raw bytes",
        ("quixstreams", "confluent-kafka"),
        quix,
        4_000_000,
    ),
    "arroyo": Peer(
        "Arroyo {sentry-arroyo} on confluent-kafka {confluent-kafka}: `RunTask`",
        ("sentry-arroyo", "confluent-kafka"),
        arroyo,
        3_000_000,
    ),
    "faust": Peer(
        "Faust {faust-streaming} on aiokafka {aiokafka}: an agent, raw bytes",
        ("faust-streaming", "aiokafka"),
        faust,
        450_000,
    ),
}


if __name__ == "__main__":
    main(*sys.argv[1:])
