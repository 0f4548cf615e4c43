"""Topics and offsets of a cluster, without being a member of any group."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import kafka.errors
from kafka import IsolationLevel, KafkaConsumer, OffsetSpec
from kafka import TopicPartition as KafkaTP
from kafka.admin import KafkaAdminClient

from karafka_lite.client.connection import Connection, Emit
from karafka_lite.client.refusals import writes_refused
from karafka_lite.errors import AccessError, ClusterError, ConfigurationError, describe
from karafka_lite.messages import TopicPartition

ASK_AGAIN_S = 0.2
READ_S = 5.0  # how long ``without_messages`` waits for messages, which may not exist
POLL_MS = 100
MISSING = {  # the brokers' answers for a topic that does not exist, or that we may not see
    kafka.errors.UnknownTopicOrPartitionError.errno,
    kafka.errors.TopicAuthorizationFailedError.errno,
    kafka.errors.InvalidTopicError.errno,
}

NOT_REACHED = (kafka.errors.NodeNotReadyError, kafka.errors.KafkaConnectionError, kafka.errors.KafkaTimeoutError)

T = TypeVar("T")
Offsets = dict[TopicPartition, int]


class Admin:
    """kafka-python's admin client. ``settings`` are those of an App; those that only a consumer knows are left out.

    ``connect``, and ``close``. Every question raises ClusterError when it gets no answer within ``patience_s``: a
    cluster that has just started knows no coordinators and no leaders for a while. ``emit``: as ``Connection`` has it.
    """

    def __init__(self, bootstrap_servers: Sequence[str], settings: Mapping[str, Any], emit: Emit | None = None) -> None:
        self.bootstrap_servers = list(bootstrap_servers)
        self._given = settings
        self.settings = {name: value for name, value in settings.items() if name in KafkaAdminClient.DEFAULT_CONFIG}
        committed_only = settings.get("isolation_level") == "read_committed"
        self._isolation = IsolationLevel.READ_COMMITTED if committed_only else IsolationLevel.READ_UNCOMMITTED
        self._emit = emit
        self._connection = Connection("the admin client", emit)
        self._admin: Any = None
        bootstrap_ms = KafkaAdminClient.DEFAULT_CONFIG["bootstrap_timeout_ms"]
        self.patience_s: float = settings.get("bootstrap_timeout_ms", bootstrap_ms) / 1000

    def connect(self) -> None:
        """Reach a broker, for up to ``bootstrap_timeout_ms``. Raises BrokerUnavailableError, ConfigurationError."""
        settings = {"client_id": "karafka-lite", **self.settings}
        self._admin = self._connection.open(KafkaAdminClient, self.bootstrap_servers, settings)

    def close(self) -> None:
        """Close the connections."""
        admin, self._admin = self._admin, None
        if admin is not None:
            admin.close()
        self._connection.close()

    def partitions(self, topics: Collection[str]) -> list[TopicPartition]:
        """All partitions of those of ``topics`` that exist. Asking creates none."""

        def ask() -> list[Any]:
            known = [topic for topic in self._admin.describe_topics() if topic["name"] in topics]
            for topic in known:
                if topic["error_code"] and topic["error_code"] not in MISSING:
                    raise kafka.errors.for_code(topic["error_code"])()
            return [topic for topic in known if not topic["error_code"]]

        found = self._ask("fetch the list of topics", ask)
        return [(topic["name"], part["partition_index"]) for topic in found for part in topic["partitions"]]

    def ensure_topics(self, topics: Collection[str]) -> set[str]:
        """Create those of ``topics`` that do not exist, with the brokers' own defaults; returns them.

        Raises:
            ConfigurationError: some do not exist and cannot be created; it names all of them.
            AccessError: we may not see or create some; whether they exist, Kafka does not say then.
        """
        missing = sorted(set(topics) - {topic for topic, _ in self.partitions(topics)})
        refused = {topic: reason for topic in missing if (reason := self._create(topic))}
        denied = [topic for topic, (error, _) in refused.items() if issubclass(error, kafka.errors.AuthorizationError)]
        if denied:
            raise AccessError(writes_refused(denied))
        if refused:
            reasons = ", ".join(f"{topic} ({error.__name__}: {why})" for topic, (error, why) in refused.items())
            command = " --topic ".join(["kafka-topics.sh --create", *refused])
            raise ConfigurationError(
                f"topics do not exist and cannot be created: {reasons}; create them with {command}"
            )
        return set(missing)

    def _create(self, topic: str) -> tuple[type[Exception], str] | None:
        """Why it cannot be created; None: it exists now."""

        def ask() -> tuple[type[Exception], str] | None:
            answer = self._admin.create_topics([topic], raise_errors=False)["topics"][0]
            error = kafka.errors.for_code(answer["error_code"])
            if error.retriable:
                raise error(answer["error_message"])
            exists = error in (kafka.errors.NoError, kafka.errors.TopicAlreadyExistsError)
            return None if exists else (error, answer["error_message"])

        return self._ask(f"create topic {topic}", ask)

    def earliest_offsets(self, tps: Iterable[TopicPartition]) -> Offsets:
        """Where each partition begins."""
        return self._list_offsets(tps, OffsetSpec.EARLIEST)

    def end_offsets(self, tps: Iterable[TopicPartition]) -> Offsets:
        """Where each partition ends; with ``isolation_level="read_committed"``, before transactions that are open."""
        return self._list_offsets(tps, OffsetSpec.LATEST)

    def committed(self, group_id: str) -> Offsets:
        """What the group has committed."""
        ask = partial(self._admin.list_group_offsets, group_id)
        offsets = self._ask(f"fetch the offsets of group {group_id}", ask)
        return {tuple(tp): found.offset for tp, found in offsets.get(group_id, {}).items() if found.offset >= 0}

    def finished(self, spans: Mapping[TopicPartition, tuple[int, int]]) -> set[TopicPartition]:
        """Those of ``spans`` (from, to) in which no message can be read: markers of transactions take offsets, too.

        Without those for which it cannot be found out within seconds.
        """
        known = {name: value for name, value in self._given.items() if name in KafkaConsumer.DEFAULT_CONFIG}
        fixed = {"group_id": None, "enable_auto_commit": False, "metrics_enabled": False}
        settings = {**known, **fixed, "auto_offset_reset": "earliest"}  # where the first messages were deleted
        connection = Connection("a consumer", self._emit)
        consumer = connection.open(KafkaConsumer, self.bootstrap_servers, settings)
        try:
            return self._ask("read messages", partial(_finished, consumer, spans))
        finally:
            consumer.close(autocommit=False)
            connection.close()

    def _list_offsets(self, tps: Iterable[TopicPartition], spec: Any) -> Offsets:
        wanted = {KafkaTP(*tp): spec for tp in tps}
        ask = partial(self._admin.list_partition_offsets, wanted, self._isolation)
        found = self._ask("fetch the offsets of topics", ask) if wanted else {}
        return {tuple(tp): at.offset for tp, at in found.items()}

    def _ask(self, what: str, question: Callable[[], T]) -> T:
        deadline = (began := time.monotonic()) + self.patience_s
        while True:
            try:
                return question()
            except (kafka.errors.KafkaError, RuntimeError) as error:
                # kafka-python has a RuntimeError for "no controller now", say.
                if not getattr(error, "retriable", True) or time.monotonic() > deadline:
                    why = self._admin._manager.trouble.cause() if isinstance(error, NOT_REACHED) else ""
                    raise ClusterError(f"could not {what} ({why or describe(error)})") from error
                self._connection.waits(f"the brokers to {what}", began, describe(error))
            time.sleep(ASK_AGAIN_S)


def _finished(consumer: Any, spans: Mapping[TopicPartition, tuple[int, int]]) -> set[TopicPartition]:
    unknown = {KafkaTP(*tp): end for tp, (_, end) in spans.items()}
    consumer.assign(unknown)
    for tp, (start, _) in spans.items():
        consumer.seek(KafkaTP(*tp), start)
    finished: set[TopicPartition] = set()
    deadline = time.monotonic() + READ_S
    while unknown and time.monotonic() < deadline:
        found = consumer.poll(POLL_MS)
        for tp, end in list(unknown.items()):
            read = found.get(tp)
            if read and read[0].offset < end:
                del unknown[tp]
            elif read or (consumer.position(tp, timeout_ms=POLL_MS) or 0) >= end:
                finished.add(tuple(tp))
                del unknown[tp]
        consumer.pause(*(tp for tp in consumer.assignment() if tp not in unknown))
    return finished
