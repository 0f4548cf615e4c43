"""TestClient in the place of a Kafka: the promises that need no network are tested on it, too.

The tests stay as they are: ``wait_until`` lets the client work and moves its clock, where threads would.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from karafka_lite import App
from karafka_lite.messages import PlainRecord
from karafka_lite.testing import TestClient
from support.observer import PUMPS, _as_bytes, _nth

STEP_MS = 20


class ClientKafka:
    """What an ``observer.Observer`` can, of topics and offsets that outlive the client."""

    bootstrap_servers = "test-client:1"

    def __init__(self) -> None:
        self.logs: dict[tuple[str, int], list[PlainRecord]] = {}
        self.commits: dict[str, dict[tuple[str, int], int]] = defaultdict(dict)
        self.partitions: dict[str, int] = {}
        self.topics: list[str] = []

    def topic(self, partitions: int = 1, *, name: str | None = None, replicas: int = -1, **configs: object) -> str:
        assert not configs, f"TestClient's topics have no settings: {configs}"
        name = name or self.name("topic")
        self.partitions[name] = partitions
        self.logs |= {(name, number): [] for number in range(partitions)}
        return name

    def group(self) -> str:
        return self.name("group")

    def name(self, kind: str) -> str:
        return f"{kind}-{uuid.uuid4().hex[:12]}"

    def produce(
        self,
        topic: str,
        values: Iterable[object],
        partition: int | None = None,
        *,
        keys: Sequence[bytes | str | None] | bytes | str | None = None,
        timestamps: Sequence[int] | int | None = None,
        headers: Sequence[tuple[str, bytes]] | None = None,
    ) -> list[tuple[int, int]]:
        placed = []
        for index, value in enumerate(values):
            key = _nth(keys, index)
            raw = key.encode() if isinstance(key, str) else key
            log = self.logs[topic, partition or 0]
            placed.append((partition or 0, len(log)))
            log.append(PlainRecord(len(log), _nth(timestamps, index) or 1, raw, _as_bytes(value), list(headers or ())))
        return placed

    def records(self, topic: str) -> list[Any]:
        places = sorted(place for place in self.logs if place[0] == topic)
        return [_Found(record, place[1]) for place in places for record in self.logs[place]]

    def committed(self, group: str, topic: str, partition: int = 0) -> int | None:
        return self.commits[group].get((topic, partition))

    def end_offset(self, topic: str, partition: int = 0) -> int:
        return len(self.logs[topic, partition])

    @contextmanager
    def running(self, app: App) -> Iterator[App]:
        client = TestClient(app, self.partitions)
        client._cluster.logs, client._cluster.commits = self.logs, self.commits

        def pump() -> None:
            client.run()
            client.advance(ms=STEP_MS)

        with client:
            PUMPS.append(pump)
            try:
                yield app
            finally:
                PUMPS.remove(pump)


class _Found:
    """As confluent's Message has it."""

    def __init__(self, record: PlainRecord, partition: int) -> None:
        self._record = record
        self._partition = partition

    def key(self) -> bytes | None:
        return self._record.key

    def value(self) -> bytes | None:
        return self._record.value

    def headers(self) -> list[tuple[str, bytes]] | None:
        return self._record.headers or None

    def timestamp(self) -> tuple[int, int]:
        return 1, self._record.timestamp

    def partition(self) -> int:
        return self._partition

    def offset(self) -> int:
        return self._record.offset
