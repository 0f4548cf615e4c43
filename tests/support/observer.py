"""What is true on the broker, asked by a client that shares no code with ours (librdkafka).

A test that let the framework judge itself would only show that it agrees with itself.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, ConsumerGroupDescription, NewPartitions, NewTopic, OffsetSpec
from kafka import OffsetAndMetadata
from kafka import TopicPartition as KafkaTP
from kafka.admin import KafkaAdminClient

T = TypeVar("T")
Headers = Sequence[tuple[str, bytes]]

PATIENCE_S = 30  # for one answer of a broker that works
PUMPS: list[Callable[[], None]] = []  # what has to be done while somebody waits, where there are no threads


def wait_until(fact: Callable[[], T], timeout: float = 15, message: str = "") -> T:
    """Polls ``fact`` until it is truthy and returns that value; AssertionError with ``message`` after ``timeout`` s."""
    deadline = time.monotonic() + timeout
    while not (value := fact()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{message or 'the fact'}: not within {timeout} s; the last value was {value!r}")
        for pump in PUMPS:
            pump()
        time.sleep(0.0 if PUMPS else 0.02)
    return value


class Observer:
    """Makes topics and messages, and tells what the broker knows. Every call works from any thread."""

    def __init__(self, bootstrap_servers: str) -> None:
        self.bootstrap_servers = bootstrap_servers
        self.topics: list[str] = []
        self._quietly = {"bootstrap.servers": bootstrap_servers, "log_level": 0}
        self._lock = threading.Lock()
        self._clients: dict[type, Any] = {}

    def topic(self, partitions: int = 1, *, name: str | None = None, replicas: int = -1, **configs: object) -> str:
        """A new topic, ready for use. ``configs`` with underscores for dots: ``topic(3, retention_ms=1000)``.

        ``replicas``: -1 is the broker's default.
        """
        name = name or self.name("topic")
        config = {key.replace("_", "."): str(value) for key, value in configs.items()}
        new = NewTopic(name, num_partitions=partitions, replication_factor=replicas, config=config)
        try:
            self._ask(lambda admin: admin.create_topics([new])[name])
        except KafkaException as failure:  # librdkafka asks again when an answer is late
            if failure.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise
        self.topics.append(name)
        for partition in range(partitions):  # an offset is answered by nobody but a partition's leader at work
            self.end_offset(name, partition)
        return name

    def group(self) -> str:
        """The id of a consumer group that nobody used before."""
        return self.name("group")

    def name(self, kind: str) -> str:
        """A fresh name, for a topic that does not exist yet."""
        return f"{kind}-{uuid.uuid4().hex[:12]}"

    def produce(
        self,
        topic: str,
        values: Iterable[object],
        partition: int | None = None,
        *,
        keys: Sequence[bytes | str | None] | bytes | str | None = None,
        timestamps: Sequence[int] | int | None = None,
        headers: Headers | None = None,
    ) -> list[tuple[int, int]]:
        """Sends, waits for all acknowledgements, and returns (partition, offset) of each value in their order.

        A value is bytes, str, None (a tombstone), or anything else as JSON. ``keys`` and ``timestamps``: one for each
        value, or one for all. ``headers``: for all. Without ``partition`` the key decides, as Java's partitioner would.
        """
        producer = self._client(Producer, _PRODUCER)
        values = list(values)
        placed: dict[int, tuple[int, int]] = {}
        failed: list[KafkaError] = []

        for index, value in enumerate(values):

            def acknowledged(error: KafkaError | None, message: Message, index: int = index) -> None:
                if error:
                    failed.append(error)
                else:
                    placed[index] = (message.partition(), message.offset())

            producer.produce(
                topic,
                value=_as_bytes(value),
                key=_nth(keys, index),
                partition=-1 if partition is None else partition,
                timestamp=_nth(timestamps, index) or 0,
                headers=list(headers or []),
                on_delivery=acknowledged,
            )
        left = producer.flush(PATIENCE_S)
        assert not failed, f"{len(failed)} of {len(values)} messages were refused by {topic}: {failed[0]}"
        assert not left, f"{left} of {len(values)} messages to {topic} were not acknowledged in {PATIENCE_S} s"
        return [placed[index] for index in range(len(values))]

    def records(self, topic: str) -> list[Message]:
        """Everything in the topic now, partition after partition, in offset order (confluent's ``Message``)."""
        # A consumer that is never subscribed never joins the group whose name it must have.
        consumer = Consumer({**self._quietly, **_READER, "group.id": "observer"})
        try:
            return sorted(_read_to_end(consumer, topic), key=lambda message: (message.partition(), message.offset()))
        finally:
            consumer.close()

    def committed(self, group: str, topic: str, partition: int = 0) -> int | None:
        """The committed offset, which is the next one to read; None without a commit."""
        wanted = ConsumerGroupTopicPartitions(group, [TopicPartition(topic, partition)])
        answer = self._ask(lambda admin: admin.list_consumer_group_offsets([wanted])[group])
        (found,) = answer.topic_partitions
        if found.error:
            raise KafkaException(found.error)
        return found.offset if found.offset >= 0 else None

    def commit(self, group: str, topic: str, offset: int, partition: int = 0, *, metadata: str = "") -> None:
        """For a group without members, as kafka-consumer-groups.sh --reset-offsets does without ``metadata``."""
        if not metadata:
            at = ConsumerGroupTopicPartitions(group, [TopicPartition(topic, partition, offset)])
            self._ask(lambda admin: admin.alter_consumer_group_offsets([at])[group])
            return
        admin = KafkaAdminClient(bootstrap_servers=self.bootstrap_servers)  # librdkafka sends no metadata
        try:
            admin.alter_group_offsets(group, {KafkaTP(topic, partition): OffsetAndMetadata(offset, metadata, -1)})
        finally:
            admin.close()

    def commit_metadata(self, group: str, topic: str, partition: int = 0) -> str:
        """What goes with the commit. confluent-kafka 2.16 reads past its end, now and then."""
        admin = KafkaAdminClient(bootstrap_servers=self.bootstrap_servers)
        try:
            return admin.list_group_offsets(group)[group][KafkaTP(topic, partition)].metadata or ""
        finally:
            admin.close()

    def end_offset(self, topic: str, partition: int = 0) -> int:
        """The offset that the next message will get."""
        wanted = TopicPartition(topic, partition)
        # Once in a while librdkafka 2.16 waits for the answer to a question that it did not send: it is put again soon.
        ask = {wanted: OffsetSpec.latest()}
        return self._ask(lambda admin: admin.list_offsets(ask, request_timeout=1.0)[wanted]).offset

    def members(self, group: str) -> list[str]:
        """The ids of the group's members, as the coordinator sees them; [] for a group that does not exist."""
        return list(self.assignment(group))

    def assignment(self, group: str) -> dict[str, list[tuple[str, int]]]:
        """The (topic, partition) pairs of each member id; empty while the group rebalances."""
        return {
            member.member_id: sorted((at.topic, at.partition) for at in member.assignment.topic_partitions)
            for member in self._describe(group).members
        }

    def group_state(self, group: str) -> str:
        """STABLE, EMPTY, PREPARING_REBALANCING, COMPLETING_REBALANCING; DEAD for a group that does not exist."""
        return self._describe(group).state.name

    def forget_clients(self) -> None:
        """Closes the connections; the next question opens new ones."""
        self._clients.clear()

    def coordinator(self, group: str) -> int:
        """The number of the node that the group is led by."""
        return int(self._describe(group).coordinator.id)

    def delete_topic(self, topic: str) -> None:
        try:
            self._ask(lambda admin: admin.delete_topics([topic])[topic])
        except KafkaException as failure:  # librdkafka asks again when an answer is late
            if failure.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise

    def grow(self, topic: str, partitions: int) -> None:
        """So many partitions altogether; returns when the new ones are ready."""
        try:
            self._ask(lambda admin: admin.create_partitions([NewPartitions(topic, partitions)])[topic])
        except KafkaException as failure:
            if failure.args[0].code() != KafkaError.INVALID_PARTITIONS:  # it has as many: asked again, as above
                raise
        for partition in range(partitions):
            self.end_offset(topic, partition)

    def truncate(self, topic: str, partition: int, before: int) -> None:
        """Deletes the messages before an offset, as retention does."""
        place = TopicPartition(topic, partition, before)
        self._ask(lambda admin: admin.delete_records([place])[place])

    def delete_topics(self) -> None:
        """Leaves a cluster that is not ours as it was."""
        if self.topics:
            for deleted in self._client(AdminClient, _ADMIN).delete_topics(self.topics).values():
                deleted.result(PATIENCE_S)

    def _describe(self, group: str) -> ConsumerGroupDescription:
        return self._ask(lambda admin: admin.describe_consumer_groups([group])[group])

    def _ask(self, question: Callable[[AdminClient], Future[T]]) -> T:
        """The answer; while leaders and coordinators move or load, the question is put again."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                admin = self._client(AdminClient, _ADMIN)  # held by name: a future does not keep its client alive
                return question(admin).result(PATIENCE_S)
            except KafkaException as failure:
                if failure.args[0].code() not in _PASSING or time.monotonic() > deadline:
                    raise
            with (
                self._lock
            ):  # librdkafka 2.16 keeps an outdated leader epoch for good: the next try starts from nothing
                self._clients.pop(AdminClient, None)
            time.sleep(0.05)

    def _client(self, kind: type[T], settings: Mapping[str, object] | None = None) -> T:
        with self._lock:
            if kind not in self._clients:
                self._clients[kind] = kind({**self._quietly, **(settings or {})})
            return self._clients[kind]


class Server(Protocol):
    """What a fault test does to a broker; nodes are numbered from 1."""

    @property
    def bootstrap_servers(self) -> str: ...
    def kill(self, node: int = 1) -> None: ...
    def stop(self, node: int = 1) -> None: ...
    def pause(self, node: int = 1) -> None: ...
    def resume(self, node: int = 1) -> None: ...
    def restart(self, node: int = 1) -> None: ...
    def wait_until_ready(self) -> None: ...


class BreakableKafka(Observer):
    """An observer of a broker that the test may break."""

    def __init__(self, server: Server) -> None:
        super().__init__(server.bootstrap_servers)
        self.server = server

    def kill(self, node: int = 1) -> None:
        """As a crash (SIGKILL)."""
        self.forget_clients()
        self.server.kill(node)

    def stop(self, node: int = 1) -> None:
        """In good order (SIGTERM); returns when the node has ended."""
        self.forget_clients()
        self.server.stop(node)

    def pause(self, node: int = 1) -> None:
        """The node hangs (SIGSTOP): connections stay and are made, nobody answers."""
        self.forget_clients()
        self.server.pause(node)

    def resume(self, node: int = 1) -> None:
        """After ``pause``; returns when the node answers."""
        self.server.resume(node)
        self.server.wait_until_ready()

    def restart(self, node: int = 1) -> None:
        """Same data, same port, stopped before if it runs; returns when the node is ready."""
        self.forget_clients()
        self.server.restart(node)


# Below PATIENCE_S, so that every question comes to its end: an AdminClient that is dropped with a question under way
# aborts the process, or leaves who asked waiting for ever (librdkafka 2.16, "Assertion `eonce->refcnt > 0' failed").
_ADMIN: Mapping[str, object] = {"socket.timeout.ms": 3_000}
_PRODUCER: Mapping[str, object] = {
    "acks": "all",
    "max.in.flight.requests.per.connection": 1,  # keeps the order; idempotence would, too, but its first send takes 1 s
    "linger.ms": 100,  # what one call sends comes as one batch; ``flush`` does not wait for it
    "partitioner": "murmur2_random",
    "sticky.partitioning.linger.ms": 0,  # else what has no key goes to one partition for each batch
    "queue.buffering.max.messages": 0,  # no limit
}
_READER: Mapping[str, object] = {
    "enable.auto.commit": False,
    "enable.partition.eof": True,  # compaction and transactions leave holes: no count and no offset tells the end
    "fetch.wait.max.ms": 10,
}

_PASSING = {
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.OFFSET_NOT_AVAILABLE,
    KafkaError.UNKNOWN_TOPIC_OR_PART,  # a new topic that not every broker has heard of
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError._TRANSPORT,
    KafkaError._TIMED_OUT,
    KafkaError._NOENT,  # "no leaders found"
}


def _read_to_end(consumer: Consumer, topic: str) -> list[Message]:
    unread = set(consumer.list_topics(topic, timeout=PATIENCE_S).topics[topic].partitions)
    consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in unread])
    messages: list[Message] = []
    deadline = time.monotonic() + PATIENCE_S
    while unread:
        assert time.monotonic() < deadline, f"{topic}: partitions {unread} could not be read to their end"
        for message in consumer.consume(1000, timeout=0.1):
            error = message.error()
            if not error:
                messages.append(message)
            elif error.code() == KafkaError._PARTITION_EOF:
                unread.discard(message.partition())
            else:
                raise KafkaException(error)
    return messages


def _as_bytes(value: object) -> bytes | None:
    if value is None or isinstance(value, bytes):
        return value
    return (value if isinstance(value, str) else json.dumps(value)).encode()


def _nth(given: Any, index: int) -> Any:
    return given[index] if isinstance(given, list | tuple) else given
