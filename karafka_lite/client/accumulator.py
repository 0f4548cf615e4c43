"""Batches of our own in the queues of a KafkaProducer, which sends them, retries them and numbers them.

kafka-python's ``send`` costs 75 us for each message: it looks for the partition in sets that it makes anew, encodes
byte by byte, and makes a future with a condition. Here a message is put into the open batch of its partition. Open
batches are handed over when somebody waits for an answer, when they are full, and after ``linger_ms``.

Private touch points in kafka-python 3.0 (pinned below 3.1), with tests in tests/kafka/test_accumulator.py; where one is
missing, ``Plain`` sends each message with ``KafkaProducer.send``:

    producer._accumulator._batches, _tp_lock, _incomplete, _appends_in_progress, _closed      its queues
    producer._accumulator.ready                      when its thread looks again by itself
    producer._accumulator.split_and_reenqueue        what becomes of a batch that is too large for its topic
    producer._transaction_manager.set_sequence_number
    producer._sender.wakeup
    producer._sender._client.connection_delay        in milliseconds; kafka-python says seconds, and mostly 0
    producer._metadata                               which partitions a topic has
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from kafka.serializer import Serializer
from kafka.structs import TopicPartition

from karafka_lite.client.batches import Batch, Owner
from karafka_lite.client.encoding import Unencoded
from karafka_lite.client.outgoing import partition_of
from karafka_lite.core.sends import Told

KEYS = 8192  # of each topic, whose partition is remembered
REST_S = 0.05  # between two looks of its thread at a broker that takes nothing now, or a partition without a leader
LONG_KEY = 64  # longer ones would take too much memory
LOOKED_UP = "_batches", "_tp_lock", "_incomplete", "_appends_in_progress", "_closed", "ready", "split_and_reenqueue"

NULL: Any = object()


class Partition:
    """A partition, and the batch that is open for it."""

    __slots__ = ("batch", "tp")

    def __init__(self, tp: TopicPartition) -> None:
        self.tp = tp
        self.batch: Batch | None = None


class Topic:
    """What is known of a topic, until the cluster says something new."""

    def __init__(self, partitions: list[Partition], available: list[Partition]) -> None:
        self.partitions = partitions
        self.by_number: dict[int, Partition] = {partition.tp.partition: partition for partition in partitions}
        self.by_known_key: dict[bytes, Partition] = {}
        self._available = available
        self._sticky = partitions[0]

    def by_key(self, key: bytes) -> Partition:
        """As Kafka's own clients choose it; it is remembered."""
        partition = self.partitions[partition_of(key, len(self.partitions))]
        if len(key) <= LONG_KEY:
            if len(self.by_known_key) >= KEYS:
                self.by_known_key.clear()
            self.by_known_key[key] = partition
        return partition

    def any(self) -> Partition:
        """The same one until its batch has left, then another: so that batches are large."""
        if self._sticky.batch is None:
            self._sticky = random.choice(self._available)
        return self._sticky


class Accumulator:
    """The open batches of one KafkaProducer. ``add``, ``hand_over`` and ``drop`` are called under its owner's lock,
    which comes before kafka-python's own.

    Raises AttributeError: kafka-python has other names than these.
    """

    def __init__(self, producer: Any, owner: Owner) -> None:
        self._producer, self._owner, self._lock = producer, owner, owner.lock
        self._queues = producer._accumulator
        self._manager = producer._transaction_manager
        for name in LOOKED_UP:
            getattr(self._queues, name)
        if self._manager is not None:
            self._manager.set_sequence_number  # noqa: B018 - it is there
        self._wake: Callable[[], None] = producer._sender.wakeup
        self._codec: int = producer.config["compression_attrs"]
        self.batch_size: int = producer.config["batch_size"]
        self._linger_s: float = producer.config["linger_ms"] / 1000
        self.topics: dict[str, Topic] = {}
        self._partitions: dict[TopicPartition, Partition] = {}
        self._open: dict[Batch, Partition] = {}
        self._due: float | None = None  # when what is open is handed over at the latest; None: nothing is open
        self._looks_at = float("inf")  # when the sender's thread looks whether something is due
        self._handed_over_at = float("-inf")
        self._asked_at = float("-inf")  # for new leaders
        producer._sender._client.connection_delay = lambda _node: REST_S * 1000
        self._stock_ready, self._queues.ready = self._queues.ready, self._ready
        self._stock_split, self._queues.split_and_reenqueue = self._queues.split_and_reenqueue, self._split
        producer._metadata.add_listener(self._forget_topics)

    def partition_of(self, topic: str, key: bytes | None, number: int | None) -> Partition | None:
        """Where a message goes; None: the topic has no such partition. Waits for a topic that is not known yet.

        Raises:
            KafkaError: there is no such topic within ``max_block_ms``, or we may not see it.
        """
        known = self.topics.get(topic) or self._look_up(topic)
        if number is not None:
            return known.by_number.get(number)
        return known.any() if key is None else known.by_known_key.get(key) or known.by_key(key)

    def partitions(self, topic: str) -> int:
        """How many partitions a topic has."""
        return len((self.topics.get(topic) or self._look_up(topic)).partitions)

    def add(self, partition: Partition, message: Unencoded, size: int, told: Told | None) -> tuple[Batch, int]:
        """Put ``message`` into the open batch, or into a new one; returns that, and the index in it."""
        batch = partition.batch
        if batch is None:
            batch = partition.batch = Batch(partition.tp, self._codec, self._owner)
            self._open[batch] = partition
        index = batch.add(message, size, told)
        if self._due is None:
            self._due = time.monotonic() + self._linger_s
            if self._due < self._looks_at:
                self._wake()
        return batch, index

    def added(self, batch: Batch) -> None:
        """Called after ``add``, not under the lock."""

    def hand_over(self, batch: Batch | None = None) -> None:
        """What is open leaves now: all, or one batch."""
        if self._open:
            self._hand_over([batch] if batch else list(self._open))
            self._wake()

    def drop(self, batch: Batch) -> None:
        """It has its answer, perhaps before it was handed over."""
        partition = self._open.pop(batch, None)
        if partition is not None:
            partition.batch = None

    def _hand_over(self, batches: Sequence[Batch]) -> None:
        for batch in batches:
            self._queue(batch)
        self._handed_over_at = time.monotonic()
        if not self._open:
            self._due = None

    def _queue(self, batch: Batch) -> None:
        queues = self._queues
        self.drop(batch)
        queues._appends_in_progress.increment()  # else a close overlooks what is queued right now
        try:
            with queues._tp_lock(batch.topic_partition):
                if not queues._closed:  # else its owner says that it fails
                    queues._batches[batch.topic_partition].append(batch)
                    queues._incomplete.add(batch)
        finally:
            queues._appends_in_progress.decrement()

    def _forget_topics(self, *_: object) -> None:
        self.topics = {}  # another one: who looks up a topic right now puts what is old into the old one

    def _look_up(self, topic: str) -> Topic:
        self._producer.partitions_for(topic)  # which may wait for it
        topics = self.topics
        numbers = sorted(self._producer.partitions_for(topic))
        tps = [TopicPartition(topic, number) for number in numbers]
        with self._lock:
            partitions = [self._partitions.setdefault(tp, Partition(tp)) for tp in tps]
        available = self._producer._metadata.available_partitions_for_topic(topic) or ()
        known = Topic(partitions, [each for each in partitions if each.tp.partition in available] or partitions)
        topics[topic] = known
        return known

    # -- on the sender's thread

    def _ready(self, cluster: Any, now: float | None = None) -> Any:
        """Which brokers can be sent to, and when to look again."""
        now = time.monotonic() if now is None else now
        with self._lock:
            if self._due is not None and now >= self._due:
                self._hand_over(list(self._open))
            self._looks_at = self._due or float("inf")
            if now - self._handed_over_at < self._linger_s:  # who sends goes on sending, and need not wake us
                self._looks_at = min(self._looks_at, now + self._linger_s)
            rest_s = self._looks_at - now
        nodes, delay_s, unknown = self._stock_ready(cluster, now=now)
        if unknown:  # to ask at every turn would wake it at every turn
            delay_s, unknown = min(delay_s, REST_S), now - self._asked_at >= REST_S
            self._asked_at = now if unknown else self._asked_at
        return nodes, min(delay_s, rest_s), unknown

    def _split(self, batch: Any, now: float | None = None) -> int:
        """Put two batches into the place of one that is too large; they are numbered as if it had not been."""
        if not isinstance(batch, Batch):
            return int(self._stock_split(batch, now=now))
        if self._manager is not None and batch.has_sequence:
            self._manager.set_sequence_number(batch.topic_partition, batch.base_sequence)
        with self._lock:
            halves = batch.split()
            self._owner.split(batch, halves)
        with self._queues._tp_lock(batch.topic_partition):
            for half in reversed(halves):
                self._queues._batches[batch.topic_partition].appendleft(half)
                self._queues._incomplete.add(half)
        return len(halves)


class Plain:
    """In the place of an Accumulator: each message by ``KafkaProducer.send``, as a batch of its own."""

    def __init__(self, producer: Any, owner: Owner) -> None:
        self._producer, self._owner = producer, owner
        self.topics: dict[str, Topic] = {}  # none is known
        self.batch_size = 0
        self._receipts: dict[Batch, Any] = {}  # between ``add`` and ``added``
        producer._accumulator.config["linger_ms"] = 0
        producer.config["value_serializer"] = _Values()

    def partition_of(self, topic: str, _key: bytes | None, number: int | None) -> Partition | None:
        numbers = self._producer.partitions_for(topic)  # else ``send`` would wait for them, under the lock
        if number is not None and number not in numbers:
            return None
        chosen: Any = number  # or None: kafka-python chooses
        return Partition(TopicPartition(topic, chosen))

    def partitions(self, topic: str) -> int:
        return len(self._producer.partitions_for(topic))

    def add(self, partition: Partition, message: Unencoded, size: int, told: Told | None) -> tuple[Batch, int]:
        timestamp_ms, key, value, headers = message
        batch = Batch(partition.tp, 0, self._owner)
        batch.add(message, size, told)
        data, names = NULL if value is None else value, [(_RawName(name), raw) for name, raw in headers or ()]
        self._receipts[batch] = self._producer.send(
            partition.tp.topic, data, key, names, partition.tp.partition, timestamp_ms
        )
        return batch, 0

    def added(self, batch: Batch) -> None:
        def acknowledged(found: Any) -> None:
            batch.topic_partition = TopicPartition(found.topic, found.partition)
            self._owner.answered(batch, found.offset, None)

        receipt = self._receipts.pop(batch)  # it may have its answer: then this thread is told, which takes the lock
        receipt.add_callback(acknowledged)
        receipt.add_errback(lambda error: self._owner.answered(batch, -1, lambda _: error))

    def hand_over(self, batch: Batch | None = None) -> None: ...
    def drop(self, batch: Batch) -> None: ...


class _Values(Serializer):  # type: ignore[misc]
    """kafka-python refuses a message with neither key nor value, which Kafka does not."""

    def serialize(self, _topic: str, _headers: Any, data: Any) -> Any:
        return None if data is NULL else data


class _RawName(str):
    """The name of a header that is not UTF-8, as it was read: it leaves as the bytes that it was."""

    __slots__ = ()

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return super().encode(encoding, "surrogateescape" if errors == "strict" else errors)
