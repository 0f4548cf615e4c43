"""Topics of the embedded broker: metadata, produce, fetch, offsets by time, administration."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from kafka import errors

from karafka_lite.broker.log import TRANSACTIONAL, Header, PartitionLog
from karafka_lite.broker.wire import Answer, Call, Handler
from karafka_lite.messages import TopicPartition

log = logging.getLogger("karafka_lite.broker")

NODE, CLUSTER = 1, "karafka-lite-embedded"
NO_ID = uuid.UUID(int=0)
LATEST, EARLIEST, HIGHEST_TIME = -1, -2, -3
READ_COMMITTED = 1
MAX_FETCH_BYTES = 4 << 20  # fetch.max.bytes, 55 MiB in Kafka: a response is copied a few times here
MAX_SESSIONS = 1000  # max.incremental.fetch.session.cache.slots
MAX_EPOCH = (1 << 31) - 1
NUMBERS = {"max.message.bytes", "retention.bytes"}  # the topic configs with an effect, besides message.timestamp.type
IGNORED = {"cleanup.policy", "compression.type", "min.insync.replicas", "retention.ms", "segment.bytes", "segment.ms"}


@dataclass
class Topic:
    """The partitions and settings of one topic."""

    logs: list[PartitionLog]
    configs: dict[str, str] = field(default_factory=dict)
    id: uuid.UUID = field(default_factory=uuid.uuid4)  # another one when the topic is deleted and made anew
    dropped: bool = False  # messages were dropped to make room; logged once

    def limit(self, name: str, otherwise: int) -> int:
        value = int(self.configs.get(name, otherwise))
        return value if value >= 0 else 1 << 62  # -1: no limit

    @property
    def stamps(self) -> bool:
        return self.configs.get("message.timestamp.type") == "LogAppendTime"


@dataclass
class FetchSession:
    """What a consumer asks for, and what it was told last, so that neither is said again (KIP-227).

    ``id``: 0 for one request alone. ``epoch``: of its next request.
    """

    id: int
    asked: dict[TopicPartition, Any]  # in the order in which they are read: what had messages goes to the end
    epoch: int = 1
    told: dict[TopicPartition, tuple[int, int]] = field(default_factory=dict)

    def ask(self, more: Mapping[TopicPartition, Any], forgotten: Iterable[TopicPartition]) -> None:
        for tp in forgotten:
            self.asked.pop(tp, None)
            self.told.pop(tp, None)
        self.asked.update(more)
        self.epoch = self.epoch % MAX_EPOCH + 1

    def is_news(self, tp: TopicPartition, answer: Answer) -> bool:
        return bool(answer["error_code"] or answer["records"]) or self.told.get(tp) != _ends(answer)

    def answered(self, answer: Answer) -> None:
        """It gets this answer."""
        for topic in answer["responses"]:
            for part in topic["partitions"]:
                tp = topic["topic"], part["partition_index"]
                self.told[tp] = _ends(part)
                if part["records"]:
                    self.asked[tp] = self.asked.pop(tp)


class Topics:
    """All topics. Refused requests raise Kafka's own errors."""

    def __init__(self, *, partitions: int, auto_create: bool, max_message_bytes: int, retention_bytes: int) -> None:
        self.address = ("", 0)
        self.topics: dict[str, Topic] = {}
        self.check_transaction: Callable[[Header, TopicPartition], None]  # raises if a batch is not in its transaction
        self.deleted: Callable[[str], None]
        self.partitions = partitions
        self._auto_create = auto_create
        self._max_message_bytes = max_message_bytes
        self._retention_bytes = retention_bytes
        self._sessions: dict[int, FetchSession] = {}  # of consumers, the oldest first
        self._session_ids = itertools.count(1)

    def handlers(self) -> dict[str, tuple[int, Handler]]:
        return {
            "Metadata": (12, self._metadata),
            "DescribeCluster": (1, self._describe_cluster),
            "Produce": (9, self._produce),
            "Fetch": (12, self._fetch),
            "ListOffsets": (7, self._list_offsets),
            "CreateTopics": (5, self._create_topics),
            "DeleteTopics": (5, self._delete_topics),
            "CreatePartitions": (3, self._create_partitions),
            "DeleteRecords": (2, self._delete_records),
        }

    def create(
        self, name: str, partitions: int, configs: Mapping[str, str] | None = None, *, validate_only: bool = False
    ) -> None:
        """Create a topic, or only check whether it can be created."""
        configs = dict(configs or {})
        check_name(name)
        if name in self.topics:
            raise errors.TopicAlreadyExistsError(f"topic {name!r} exists already")
        if twin := next((known for known in self.topics if known.replace(".", "_") == name.replace(".", "_")), None):
            raise errors.InvalidTopicError(f"{name!r} collides with {twin!r}: '.' and '_' count as the same")
        if partitions < 1:
            raise errors.InvalidPartitionsError(f"a topic must have at least 1 partition, got {partitions}")
        if configs.get("message.timestamp.type", "CreateTime") not in ("CreateTime", "LogAppendTime"):
            raise errors.InvalidConfigurationError("message.timestamp.type must be CreateTime or LogAppendTime")
        if unknown := configs.keys() - NUMBERS - IGNORED - {"message.timestamp.type"}:
            names = ", ".join(sorted(unknown))
            raise errors.InvalidConfigurationError(f"topic configs that the embedded broker does not know: {names}")
        if not all(re.fullmatch(r"-1|\d{1,18}", configs.get(number, "0")) for number in NUMBERS):
            raise errors.InvalidConfigurationError(f"{' and '.join(sorted(NUMBERS))} must be integers, got {configs}")
        if not validate_only:
            self.topics[name] = Topic([PartitionLog() for _ in range(partitions)], configs)

    def log(self, name: str, partition: int) -> PartitionLog:
        """The log of a partition."""
        topic = self.topics.get(name)
        if topic is None or not 0 <= partition < len(topic.logs):
            raise errors.UnknownTopicOrPartitionError()
        return topic.logs[partition]

    def end_transaction(self, tp: TopicPartition, producer_id: int, epoch: int, *, commit: bool) -> None:
        """Write the marker of a transaction into one of its partitions."""
        if tp[0] in self.topics and tp[1] < len(self.topics[tp[0]].logs):  # otherwise it was deleted in the meantime
            retention = self.topics[tp[0]].limit("retention.bytes", self._retention_bytes)
            self.log(*tp).end_transaction(producer_id, epoch, _now_ms(), commit=commit, retention_bytes=retention)

    # -- metadata

    def _metadata(self, call: Call) -> Answer:
        r = call.request
        every = r.topics is None or (call.version == 0 and not r.topics)
        may_create = self._auto_create and (call.version < 4 or r.allow_auto_topic_creation)
        leader = {"leader_id": NODE, "leader_epoch": 0, "replica_nodes": [NODE], "isr_nodes": [NODE]}

        def partitions(name: str) -> list[Answer]:
            if name not in self.topics:  # as in Kafka, this response does not know yet a topic that it creates
                check_name(name)
                with suppress(errors.InvalidTopicError):  # it collides with another one
                    self.create(name, self.partitions, validate_only=not may_create)
                raise errors.UnknownTopicOrPartitionError()
            return [
                {"partition_index": index, "error_code": 0, **leader} for index in range(len(self.topics[name].logs))
            ]

        def name_of(topic_id: uuid.UUID) -> str:
            found = next((name for name, topic in self.topics.items() if topic.id == topic_id), None)
            if found is None:
                raise errors.UnknownTopicIdError()
            return found

        topics: list[Answer] = []
        asked = [(name, NO_ID) for name in self.topics]
        if not every:
            asked = [(topic.name, topic.topic_id if call.version >= 10 else NO_ID) for topic in r.topics or ()]
        for name, topic_id in asked:
            answer, found = call.attempt(lambda name=name, known=topic_id: name_of(known) if name is None else name)
            if found is not None:
                name = found
                answer, found = call.attempt(partitions, name)
                topic_id = self.topics[name].id if name in self.topics else NO_ID
            topics.append({**answer, "name": name, "topic_id": topic_id, "partitions": found or []})
        broker = {"node_id": NODE, "host": self.address[0], "port": self.address[1]}
        return {"brokers": [broker], "cluster_id": CLUSTER, "controller_id": NODE, "topics": topics}

    def _describe_cluster(self, call: Call) -> Answer:
        broker = {"broker_id": NODE, "host": self.address[0], "port": self.address[1]}
        return {"error_code": call.error, "cluster_id": CLUSTER, "controller_id": NODE, "brokers": [broker]}

    # -- messages

    def _produce(self, call: Call) -> Answer | None:
        topics = []
        for topic in call.request.topic_data:
            parts = []
            for data in topic.partition_data:
                batch = bytes(data.records or b"")
                answer, appended = call.attempt(self._append, topic.name, data.index, batch, call.request)
                offset, start, stamp = appended or (-1, -1, -1)
                answer.update(base_offset=offset, log_append_time_ms=stamp, log_start_offset=start)
                parts.append({"index": data.index, **answer})
            topics.append({"name": topic.name, "partition_responses": parts})
        return {"responses": topics} if call.request.acks != 0 else None

    def _append(self, name: str, partition: int, batch: bytes, request: Any) -> tuple[int, int, int]:
        """Returns the batch's offset, the log's start, and the append time that the batch was stamped with, or -1."""
        if request.acks not in (-1, 0, 1):
            raise errors.InvalidRequiredAcksError()
        found, topic, now_ms = self.log(name, partition), self.topics[name], _now_ms()
        if len(batch) > (limit := topic.limit("max.message.bytes", self._max_message_bytes)):
            raise errors.MessageSizeTooLargeError(f"the batch has {len(batch)} bytes, the limit is {limit}")
        header = Header.of(batch)
        if header.attributes & TRANSACTIONAL:
            if request.transactional_id is None:
                raise errors.TransactionalIdAuthorizationFailedError()
            self.check_transaction(header, (name, partition))
        start, retention = found.start, topic.limit("retention.bytes", self._retention_bytes)
        offset = found.append(batch, header, now_ms, retention_bytes=retention, stamp=topic.stamps)
        if found.start > start and not topic.dropped:
            topic.dropped = True
            log.warning("%s-%d is larger than %d bytes; its oldest messages are dropped", name, partition, retention)
        return offset, found.start, now_ms if topic.stamps else -1

    async def _fetch(self, call: Call) -> Answer:
        """Responds when there are enough bytes, at an error, or when the time is over."""
        loop, r = asyncio.get_running_loop(), call.request
        deadline = loop.time() + r.max_wait_ms / 1000
        try:
            session = self._session_of(call)
        except (errors.FetchSessionIdNotFoundError, errors.InvalidFetchSessionEpochError) as refused:
            return {"error_code": refused.errno}
        while True:
            answer, size, failed = self._read(call, session)
            if failed or size >= r.min_bytes or loop.time() >= deadline:
                session.answered(answer)
                return answer
            changed = loop.create_future()
            logs = [self.log(*tp) for tp in session.asked]
            for found in logs:
                found.waiting.add(changed)
            timer = loop.call_at(deadline, changed.cancel)
            try:
                await asyncio.wait([changed])
            finally:
                timer.cancel()
                for found in logs:
                    found.waiting.discard(changed)

    def _session_of(self, call: Call) -> FetchSession:
        """The session that a request goes on with, a new one, or one for it alone. Raises Kafka's errors."""
        r = call.request
        asked = {(topic.topic, part.partition): part for topic in r.topics for part in topic.partitions}
        if call.version < 7 or r.session_epoch <= 0:
            session = FetchSession(0, asked)
            if call.version >= 7:
                self._sessions.pop(r.session_id, None)
                if r.session_epoch == 0 and asked:
                    session.id = next(self._session_ids)
                    self._sessions[session.id] = session
                    if len(self._sessions) > MAX_SESSIONS:
                        del self._sessions[next(iter(self._sessions))]
            return session
        if r.session_id not in self._sessions:
            raise errors.FetchSessionIdNotFoundError()
        session = self._sessions[r.session_id]
        if r.session_epoch != session.epoch:
            raise errors.InvalidFetchSessionEpochError()
        forgotten = [(topic.topic, number) for topic in r.forgotten_topics_data for number in topic.partitions]
        session.ask(asked, forgotten)
        if not session.asked:
            del self._sessions[session.id]
            session.id = 0
        return session

    def _read(self, call: Call, session: FetchSession) -> tuple[Answer, int, bool]:
        """What is available now: the response, its number of bytes, and whether a partition has an error."""
        r, size, failed = call.request, 0, not session.asked
        topics: dict[str, list[Answer]] = {}
        for (name, number), part in session.asked.items():
            room = min(part.partition_max_bytes, min(r.max_bytes, MAX_FETCH_BYTES) - size)
            answer, found = call.attempt(self._read_partition, name, part, room, size, r.isolation_level)
            found = found or {"high_watermark": -1, "aborted_transactions": [], "records": b""}
            failed |= answer["error_code"] != 0
            size += len(found["records"])
            answer = {"partition_index": number, **answer, **found}
            if session.is_news((name, number), answer):
                topics.setdefault(name, []).append(answer)
        responses = [{"topic": name, "partitions": parts} for name, parts in topics.items()]
        return {"session_id": session.id, "responses": responses}, size, failed

    def _read_partition(self, name: str, part: Any, room: int, size: int, isolation: int) -> Answer:
        found, offset = self.log(name, part.partition), part.fetch_offset
        if not found.start <= offset <= found.end:
            raise errors.OffsetOutOfRangeError()
        end = found.stable_end if isolation == READ_COMMITTED else found.end
        records, next_offset = found.read(offset, room, end, at_least_one=not size)
        aborted = [one for one in found.aborted if isolation and one.last >= offset and one.first < next_offset]
        return {
            "high_watermark": found.end,
            "last_stable_offset": found.stable_end,
            "log_start_offset": found.start,
            "aborted_transactions": [{"producer_id": one.producer_id, "first_offset": one.first} for one in aborted],
            "records": records,
        }

    def _list_offsets(self, call: Call) -> Answer:
        isolation = call.request.isolation_level if call.version >= 2 else 0

        def find(name: str, part: Any) -> tuple[int, int]:
            found = self.log(name, part.partition_index)
            if part.timestamp == LATEST:
                return (found.stable_end if isolation == READ_COMMITTED else found.end), -1
            if part.timestamp == EARLIEST:
                return found.start, -1
            if part.timestamp < (HIGHEST_TIME if call.version >= 7 else EARLIEST):
                raise errors.UnsupportedVersionError()
            return found.find_time(found.latest_time() if part.timestamp == HIGHEST_TIME else part.timestamp)

        def answer(name: str, part: Any) -> Answer:
            answer, position = call.attempt(find, name, part)
            offset, timestamp = position or (-1, -1)
            return {**answer, "offset": offset, "timestamp": timestamp, "leader_epoch": 0 if offset >= 0 else -1}

        return {"topics": by_partition(call.request.topics, answer)}

    # -- administration

    def _create_topics(self, call: Call) -> Answer:
        def create(wanted: Any, count: int) -> None:
            if [topic.name for topic in call.request.topics].count(wanted.name) > 1:
                raise errors.InvalidRequestError("a topic is in the request twice")
            if wanted.replication_factor not in (-1, 1):
                raise errors.InvalidReplicationFactorError("the replication factor must be 1: there is only one broker")
            configs = {config.name: config.value for config in wanted.configs}
            self.create(wanted.name, count, configs, validate_only=call.request.validate_only)

        topics = []
        for wanted in call.request.topics:
            count = self.partitions if wanted.num_partitions == -1 else wanted.num_partitions
            answer, _ = call.attempt(create, wanted, count)
            topics.append({**answer, "name": wanted.name, "num_partitions": count, "replication_factor": 1})
        return {"topics": topics}

    def _delete_topics(self, call: Call) -> Answer:
        def delete(name: str) -> None:
            self.log(name, 0)
            for found in self.topics.pop(name).logs:
                found.wake()  # fetches that wait for a message get the error that the topic is gone
            self.deleted(name)

        return {"responses": [{"name": name, **call.attempt(delete, name)[0]} for name in call.request.topic_names]}

    def _create_partitions(self, call: Call) -> Answer:
        def extend(name: str, count: int) -> None:
            self.log(name, 0)
            logs = self.topics[name].logs
            if count <= len(logs):
                raise errors.InvalidPartitionsError(f"{name} has {len(logs)} partitions already")
            if not call.request.validate_only:
                logs.extend(PartitionLog() for _ in range(count - len(logs)))

        topics = call.request.topics
        return {"results": [{"name": one.name, **call.attempt(extend, one.name, one.count)[0]} for one in topics]}

    def _delete_records(self, call: Call) -> Answer:
        def delete(name: str, part: Any) -> int:
            found = self.log(name, part.partition_index)
            offset = found.end if part.offset == -1 else part.offset
            if not 0 <= offset <= found.end:
                raise errors.OffsetOutOfRangeError()
            found.drop_before(offset)
            return found.start

        def answer(name: str, part: Any) -> Answer:
            answer, start = call.attempt(delete, name, part)
            return {**answer, "low_watermark": -1 if start is None else start}

        return {"topics": by_partition(call.request.topics, answer)}


def _ends(answer: Answer) -> tuple[int, int]:
    return answer.get("log_start_offset", -1), answer["high_watermark"]


def check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", name) or name in (".", ".."):
        raise errors.InvalidTopicError(f"{name!r} is not a valid topic name: use 1 to 249 of a-z A-Z 0-9 . _ -")


def by_partition(topics: Any, answer: Callable[[str, Any], Answer]) -> list[Answer]:
    """A response in the shape that most of Kafka's requests and responses share."""
    return [
        {"name": topic.name, "partitions": [
            {"partition_index": part.partition_index, **answer(topic.name, part)} for part in topic.partitions
        ]}
        for topic in topics
    ]  # fmt: skip


def _now_ms() -> int:
    return int(time.time() * 1000)
