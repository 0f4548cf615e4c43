"""Topics and offsets of a cluster, without being a member of any group."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import kafka.errors
from kafka import IsolationLevel, KafkaConsumer, OffsetSpec
from kafka import TopicPartition as Place
from kafka.admin import KafkaAdminClient
from kafka.net.compat import KafkaNetClient

from karafka_lite.client.consumer import connecting
from karafka_lite.errors import ClusterError, ConfigurationError
from karafka_lite.messages import TopicPartition

ASK_AGAIN_S = 0.2
READ_S = 5.0  # how long messages are waited for that may not be there
POLL_MS = 100
MISSING = {  # what the brokers say of a topic that does not exist, or that we may not see
    kafka.errors.UnknownTopicOrPartitionError.errno,
    kafka.errors.TopicAuthorizationFailedError.errno,
    kafka.errors.InvalidTopicError.errno,
}

T = TypeVar("T")
Offsets = dict[TopicPartition, int]


class Admin:
    """kafka-python's admin client. ``settings`` are those of an App; what only a consumer knows is left out.

    ``connect``, and ``close``. Every question raises ClusterError when it gets no answer within ``patience_s``: a
    cluster that has just started knows no coordinators and no leaders for a while.
    """

    def __init__(self, bootstrap_servers: Sequence[str], settings: Mapping[str, Any]) -> None:
        self.bootstrap_servers = list(bootstrap_servers)
        self._given = settings
        self.settings = {name: value for name, value in settings.items() if name in KafkaAdminClient.DEFAULT_CONFIG}
        committed_only = settings.get("isolation_level") == "read_committed"
        self._isolation = IsolationLevel.READ_COMMITTED if committed_only else IsolationLevel.READ_UNCOMMITTED
        self._admin: Any = None
        bootstrap_ms = KafkaAdminClient.DEFAULT_CONFIG["bootstrap_timeout_ms"]
        self.patience_s: float = settings.get("bootstrap_timeout_ms", bootstrap_ms) / 1000

    def connect(self) -> None:
        """Reach a broker, for up to ``bootstrap_timeout_ms``. Raises BrokerUnavailableError, ConfigurationError."""
        clients: list[Any] = []

        def client(**config: Any) -> Any:
            clients.append(KafkaNetClient(**config))
            return clients[0]

        try:
            with connecting("the admin client", self.bootstrap_servers, self.settings):
                settings = {"client_id": "karafka-lite", **self.settings, "kafka_client": client}
                self._admin = KafkaAdminClient(bootstrap_servers=self.bootstrap_servers, **settings)
        finally:
            if self._admin is None and clients:  # a constructor that raises leaves its sockets open
                clients[0].close()

    def close(self) -> None:
        admin, self._admin = self._admin, None
        if admin is not None:
            admin.close()

    def partitions(self, topics: Collection[str]) -> list[TopicPartition]:
        """All partitions of those of ``topics`` that exist. Asking creates none."""

        def ask() -> list[Any]:
            known = [topic for topic in self._admin.describe_topics() if topic["name"] in topics]
            for topic in known:
                if topic["error_code"] and topic["error_code"] not in MISSING:
                    raise kafka.errors.for_code(topic["error_code"])()
            return [topic for topic in known if not topic["error_code"]]

        found = self._ask("topics", ask)
        return [(topic["name"], part["partition_index"]) for topic in found for part in topic["partitions"]]

    def ensure_topics(self, topics: Collection[str]) -> set[str]:
        """Create those of ``topics`` that do not exist, with the brokers' own defaults; returns which.

        Raises:
            ConfigurationError: some do not exist and cannot be created; it names all of them.
        """
        missing = sorted(set(topics) - {topic for topic, _ in self.partitions(topics)})
        refused = {topic: said for topic in missing if (said := self._create(topic))}
        if refused:
            told = ", ".join(f"{topic} ({said})" for topic, said in refused.items())
            typed = " --topic ".join(["kafka-topics.sh --create", *refused])
            raise ConfigurationError(f"topics do not exist, and cannot be created: {told}; type: {typed}")
        return set(missing)

    def _create(self, topic: str) -> str | None:
        """Why not; None: it is there."""

        def ask() -> str | None:
            answer = self._admin.create_topics([topic], raise_errors=False)["topics"][0]
            error = kafka.errors.for_code(answer["error_code"])
            if error.retriable:
                raise error(answer["error_message"])
            there = error in (kafka.errors.NoError, kafka.errors.TopicAlreadyExistsError)
            return None if there else f"{error.__name__}: {answer['error_message']}"

        return self._ask(f"creation of topic {topic}", ask)

    def earliest_offsets(self, places: Iterable[TopicPartition]) -> Offsets:
        """Where each partition begins."""
        return self._list_offsets(places, OffsetSpec.EARLIEST)

    def end_offsets(self, places: Iterable[TopicPartition]) -> Offsets:
        """Where each partition ends; with ``isolation_level="read_committed"`` before what is not decided yet."""
        return self._list_offsets(places, OffsetSpec.LATEST)

    def committed(self, group_id: str) -> Offsets:
        """What the group has committed."""
        offsets = self._ask(f"offsets of group {group_id}", lambda: self._admin.list_group_offsets(group_id))
        return {tuple(place): found.offset for place, found in offsets.get(group_id, {}).items() if found.offset >= 0}

    def finished(self, spans: Mapping[TopicPartition, tuple[int, int]]) -> set[TopicPartition]:
        """Those of ``spans`` (from, to) in which no message can be read: markers of transactions take offsets, too.

        Without those of which it cannot be found out within seconds.
        """
        known = {name: value for name, value in self._given.items() if name in KafkaConsumer.DEFAULT_CONFIG}
        fixed = {"group_id": None, "enable_auto_commit": False, "metrics_enabled": False}
        settings = {**known, **fixed, "auto_offset_reset": "earliest"}  # where the beginning was deleted
        with connecting("a consumer", self.bootstrap_servers, settings):
            consumer = KafkaConsumer(bootstrap_servers=self.bootstrap_servers, **settings)
        try:
            return self._ask("messages", lambda: _finished(consumer, spans))
        finally:
            consumer.close(autocommit=False)

    def _list_offsets(self, places: Iterable[TopicPartition], spec: Any) -> Offsets:
        wanted = {Place(*place): spec for place in places}
        ask = partial(self._admin.list_partition_offsets, wanted, self._isolation)
        found = self._ask("offsets of topics", ask) if wanted else {}
        return {tuple(place): at.offset for place, at in found.items()}

    def _ask(self, what: str, question: Callable[[], T]) -> T:
        deadline = time.monotonic() + self.patience_s
        while True:
            try:
                return question()
            except kafka.errors.KafkaError as error:
                if not error.retriable or time.monotonic() > deadline:
                    said = f"{type(error).__name__}: {error}"
                    raise ClusterError(f"the cluster does not tell the {what}: {said}") from error
            time.sleep(ASK_AGAIN_S)


def _finished(consumer: Any, spans: Mapping[TopicPartition, tuple[int, int]]) -> set[TopicPartition]:
    unknown = {Place(*place): end for place, (_, end) in spans.items()}
    consumer.assign(unknown)
    for place, (start, _) in spans.items():
        consumer.seek(Place(*place), start)
    finished: set[TopicPartition] = set()
    deadline = time.monotonic() + READ_S
    while unknown and time.monotonic() < deadline:
        found = consumer.poll(POLL_MS)
        for place, end in list(unknown.items()):
            read = found.get(place)
            if read and read[0].offset < end:
                del unknown[place]
            elif read or (consumer.position(place, timeout_ms=POLL_MS) or 0) >= end:
                finished.add(tuple(place))
                del unknown[place]
        consumer.pause(*(place for place in consumer.assignment() if place not in unknown))
    return finished
