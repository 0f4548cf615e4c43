"""Reading partitions of a topic from one offset to another, for nobody: no group, no commits.

Private touch points in kafka-python 3.0 (pinned below 3.1), as ``consumer.py`` explains them:

    consumer._cluster.config, consumer._fetcher.PartitionRecords, consumer._subscription.assignment,
    consumer._manager.trouble
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import kafka.errors
from kafka import KafkaConsumer
from kafka import TopicPartition as KafkaTP

from karafka_lite.client.codecs import MAX_DECOMPRESSED_BYTES
from karafka_lite.client.connection import BOOTSTRAP_MS, RECONNECT_MAX_MS, Connection
from karafka_lite.client.consumer import FETCH_BYTES, POLL_RECORDS
from karafka_lite.client.reader import PollIsFullError, choose_reader
from karafka_lite.client.refusals import ACL
from karafka_lite.errors import AccessError, ClusterError, describe
from karafka_lite.messages import Record, TopicPartition

POLL_MS = 200
ASK_AGAIN_S = 0.2
DEFAULTS: dict[str, Any] = {
    "client_id": "karafka-lite",
    "reconnect_backoff_max_ms": RECONNECT_MAX_MS,
    "max_poll_records": POLL_RECORDS,
    "fetch_max_bytes": FETCH_BYTES,
}
FORCED: dict[str, Any] = {
    "group_id": None,
    "group_instance_id": None,
    "enable_auto_commit": False,
    "metrics_enabled": False,
    "auto_offset_reset": "earliest",  # where retention has overtaken us
}

Span = tuple[int, int | None]
"""From an offset to before another one; None: without end."""


class Browser:
    """A KafkaConsumer without a group: ``connect``, ``read``, ``close``. ``settings`` are those of an App."""

    def __init__(self, bootstrap_servers: Sequence[str], settings: Mapping[str, Any]) -> None:
        self.bootstrap_servers = list(bootstrap_servers)
        known = {name: value for name, value in settings.items() if name in KafkaConsumer.DEFAULT_CONFIG}
        self.settings = {**DEFAULTS, **known, **FORCED}
        self.patience_s: float = self.settings.get("bootstrap_timeout_ms", BOOTSTRAP_MS) / 1000
        self._most = settings.get("max_decompressed_bytes", MAX_DECOMPRESSED_BYTES)
        self._connection = Connection("a consumer")
        self._consumer: Any = None

    def connect(self) -> None:
        """Reach a broker, for up to ``bootstrap_timeout_ms``. Raises BrokerUnavailableError, ConfigurationError."""
        consumer = self._connection.open(KafkaConsumer, self.bootstrap_servers, self.settings)
        consumer._cluster.config["allow_auto_create_topics"] = False
        consumer._fetcher.PartitionRecords = partial(choose_reader(), most=self._most)
        self._consumer = consumer

    def close(self) -> None:
        """Close the connections."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.close(autocommit=False)
        self._connection.close()

    def read(self, spans: Mapping[TopicPartition, Span]) -> Iterator[list[tuple[TopicPartition, list[Record]]]]:
        """What is in ``spans``, poll by poll, and an empty list when nothing came for a moment, up to their ends.

        Raises:
            FetchError: what comes next cannot be read.
            AccessError: the topic may not be read.
            ClusterError: nothing comes of what is there, for ``bootstrap_timeout_ms``.
        """
        left = {tp: (start, end) for tp, (start, end) in spans.items() if end is None or start < end}
        self._consumer.assign([KafkaTP(*tp) for tp in left])
        for tp, (start, _) in left.items():
            self._consumer.seek(KafkaTP(*tp), start)
        moved_at, positions = time.monotonic(), {tp: start for tp, (start, _) in left.items()}
        why: Exception | None = None
        while left:
            try:
                polled, why = self._consumer.poll(POLL_MS), None
            except PollIsFullError:
                polled = {}
            except kafka.errors.TopicAuthorizationFailedError as error:
                names = sorted(error.args[0])
                command = f"{ACL} --operation Read " + " ".join(f"--topic {name}" for name in names)
                text = f"topics may not be read: {', '.join(names)} (TopicAuthorizationFailed); use {command}"
                raise AccessError(text) from error
            except kafka.errors.KafkaError as error:
                polled, why = {}, error
                time.sleep(ASK_AGAIN_S)
            yield [
                (tuple(tp), self._before(left[tuple(tp)][1], records)) for tp, records in polled.items() if tp in left
            ]
            before, positions = positions, self._positions()
            done = [tp for tp, (_, end) in left.items() if end is not None and positions.get(tp, 0) >= end]
            for tp in done:
                del left[tp]
                self._consumer.pause(KafkaTP(*tp))
            now = time.monotonic()
            if positions != before:
                moved_at = now
            elif now - moved_at > self.patience_s and any(end is not None for _, end in left.values()):
                cause = describe(why) if why else self._consumer._manager.trouble.cause() or "no answer"
                raise ClusterError(f"could not read messages ({cause})")

    def _before(self, end: int | None, records: list[Record]) -> list[Record]:
        return records if end is None else [record for record in records if record.offset < end]

    def _positions(self) -> dict[TopicPartition, int]:
        states = list(self._consumer._subscription.assignment.items())
        return {tuple(tp): position.offset for tp, state in states if (position := state.position) is not None}
