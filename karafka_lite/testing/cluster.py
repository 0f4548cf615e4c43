"""The cluster of a test: a list for each partition, the committed offsets, and the clock."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Future

from karafka_lite.client.outgoing import check_many, check_outgoing, partition_of
from karafka_lite.errors import ProduceError
from karafka_lite.messages import Addressed, Message, PlainRecord, TopicPartition
from karafka_lite.runner import System

EPOCH_MS = 1_577_836_800_000  # the clock begins with 2020


class Cluster:
    """What members of a test read from, and where they send and commit to.

    Attributes:
        now: seconds since the test began.
        logs: the records of each partition.
        commits: by group.
        sent: by topic, what the app has sent.
        refusing: by topic, the errors of the next messages that the app sends.
    """

    def __init__(self, partitions: int | Mapping[str, int]) -> None:
        self.now: float = 0.0
        self.logs: dict[TopicPartition, list[PlainRecord]] = {}
        self.commits: dict[str, dict[TopicPartition, int]] = {}
        self.sent: dict[str, list[Message]] = {}
        self.refusing: dict[str, list[Exception]] = {}
        self._partitions = partitions
        self._sending = System.lock()  # app.produce may be called in any thread

    def create(self, topic: str) -> None:
        """Make the partitions of ``topic``, unless they exist."""
        for number in range(self.count(topic)):
            self.logs.setdefault((topic, number), [])

    def count(self, topic: str) -> int:
        """How many partitions ``topic`` has. Raises ValueError: fewer than one."""
        count = self._partitions if isinstance(self._partitions, int) else self._partitions.get(topic, 1)
        if count < 1:
            raise ValueError(f"topic {topic!r} cannot have {count} partitions")
        return count

    def check(self, message: Addressed) -> None:
        """Raises TypeError, ValueError: Kafka would not take it at the call."""
        check_outgoing(message, self.count(message.topic) if isinstance(message.topic, str) else None)

    def append(self, message: Addressed) -> tuple[int, int]:
        """Write ``message``; returns its partition and offset. Without a key and a partition it goes to 0."""
        topic, value, key, headers, partition, timestamp_ms = message
        if partition is None:
            partition = partition_of(key, self.count(topic)) if key is not None else 0
        log = self.logs.setdefault((topic, partition), [])
        now_ms = EPOCH_MS + int(self.now * 1000)
        record = PlainRecord(
            len(log), now_ms if timestamp_ms is None else timestamp_ms, key, value, list(headers or ())
        )
        log.append(record)
        return partition, record.offset

    def accept_many(self, messages: Sequence[Addressed]) -> Future[list[tuple[int, int]]]:
        """The app sends all of these to one topic, or none where Kafka would not take one."""
        check_many(messages)
        check_many(messages, self.count(messages[0].topic))
        return together([self.accept(message) for message in messages])

    def accept(self, message: Addressed) -> Future[tuple[int, int]]:
        """The app sends ``message``; the answer is there at once."""
        self.check(message)
        future: Future[tuple[int, int]] = Future()
        with self._sending:
            if refusing := self.refusing.get(message.topic):
                future.set_exception(refusing.pop(0))
            else:
                future.set_result(self._write(message))
        return future

    def refusal_of(self, message: Addressed) -> ProduceError | None:
        """Why ``message``, which is part of a transaction, is refused; None: it can be written."""
        try:
            self.check(message)
        except ValueError as no_such_partition:
            return ProduceError(str(no_such_partition))
        with self._sending:
            refusing = self.refusing.get(message.topic)
            return ProduceError.from_failure(refusing.pop(0)) if refusing else None

    def write(self, message: Addressed) -> tuple[int, int]:
        """The app has sent ``message``."""
        with self._sending:
            return self._write(message)

    def _write(self, message: Addressed) -> tuple[int, int]:
        partition, offset = self.append(message)
        record = self.logs[message.topic, partition][offset]
        sent = Message.of_record((message.topic, partition), record, json.loads)
        self.sent.setdefault(message.topic, []).append(sent)
        return partition, offset


def together(futures: Sequence[Future[tuple[int, int]]]) -> Future[list[tuple[int, int]]]:
    """Has a result when all of ``futures`` have one; fails with the first failure."""
    future: Future[list[tuple[int, int]]] = Future()

    def look(_: object) -> None:
        if future.done() or not all(each.done() for each in futures):
            return
        if failures := [failure for each in futures if (failure := each.exception()) is not None]:
            future.set_exception(failures[0])
        else:
            future.set_result([each.result() for each in futures])

    for each in futures:
        each.add_done_callback(look)
    return future
