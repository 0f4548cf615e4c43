"""Topics and offsets of a cluster, without being a member of any group."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import kafka.errors
from kafka import IsolationLevel, KafkaConsumer, OffsetSpec
from kafka import TopicPartition as Place
from kafka.admin import KafkaAdminClient
from kafka.net.compat import KafkaNetClient

from karafka_lite.client import connecting
from karafka_lite.errors import ClusterError
from karafka_lite.messages import TopicPartition

READ_S = 5.0  # how long a message is waited for that may not be there
POLL_MS = 100

Offsets = dict[TopicPartition, int]


class Admin:
    """kafka-python's admin client. ``settings`` are those of an App; what only a consumer knows is left out.

    Use as a context manager, or ``connect`` and ``close``. Every question raises ClusterError when it gets no answer.
    """

    def __init__(self, bootstrap_servers: Sequence[str], settings: Mapping[str, Any]) -> None:
        self.bootstrap_servers = list(bootstrap_servers)
        self._given = settings
        self.settings = {name: value for name, value in settings.items() if name in KafkaAdminClient.DEFAULT_CONFIG}
        committed_only = settings.get("isolation_level") == "read_committed"
        self._isolation = IsolationLevel.READ_COMMITTED if committed_only else IsolationLevel.READ_UNCOMMITTED
        self._admin: Any = None

    def __enter__(self) -> Admin:
        self.connect()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

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
        with _asking("topics"):
            known = {topic["name"]: topic for topic in self._admin.describe_topics() if not topic["error_code"]}
        found = [known[name] for name in topics if name in known]
        return [(topic["name"], part["partition_index"]) for topic in found for part in topic["partitions"]]

    def earliest_offsets(self, places: Iterable[TopicPartition]) -> Offsets:
        """Where each partition begins."""
        return self._list_offsets(places, OffsetSpec.EARLIEST)

    def end_offsets(self, places: Iterable[TopicPartition]) -> Offsets:
        """Where each partition ends; with ``isolation_level="read_committed"`` before what is not decided yet."""
        return self._list_offsets(places, OffsetSpec.LATEST)

    def committed(self, group_id: str) -> Offsets:
        """What the group has committed."""
        with _asking(f"offsets of group {group_id}"):
            offsets = self._admin.list_group_offsets(group_id).get(group_id, {})
        return {tuple(place): found.offset for place, found in offsets.items() if found.offset >= 0}

    def nothing_between(self, place: TopicPartition, start: int, end: int) -> bool:
        """Whether no message can be read from ``start`` on before ``end``: markers of transactions take offsets, too.

        False also when it cannot be found out within seconds.
        """
        known = {name: value for name, value in self._given.items() if name in KafkaConsumer.DEFAULT_CONFIG}
        settings = {**known, "enable_auto_commit": False, "auto_offset_reset": "none", "group_id": None}
        settings["metrics_enabled"] = False
        with connecting("a consumer", self.bootstrap_servers, settings), _asking(f"messages of {place[0]}"):
            consumer = KafkaConsumer(bootstrap_servers=self.bootstrap_servers, **settings)
            try:
                consumer.assign([Place(*place)])
                consumer.seek(Place(*place), start)
                deadline = time.monotonic() + READ_S
                while time.monotonic() < deadline:
                    if found := consumer.poll(POLL_MS, max_records=1):
                        return bool(found[Place(*place)][0].offset >= end)
                    if consumer.position(Place(*place)) >= end:
                        return True
                return False
            finally:
                consumer.close(autocommit=False)

    def _list_offsets(self, places: Iterable[TopicPartition], spec: Any) -> Offsets:
        wanted = {Place(*place): spec for place in places}
        if not wanted:
            return {}
        with _asking("offsets of topics"):
            found = self._admin.list_partition_offsets(wanted, self._isolation)
        return {tuple(place): at.offset for place, at in found.items()}


@contextmanager
def _asking(what: str) -> Iterator[None]:
    try:
        yield
    except kafka.errors.KafkaError as error:
        raise ClusterError(f"the cluster does not tell the {what}: {type(error).__name__}: {error}") from error
