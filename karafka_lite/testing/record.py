"""A message in a log that is a list."""

from __future__ import annotations

from typing import NamedTuple

from karafka_lite.messages import Headers, Message


class Record(NamedTuple):
    """With the names that fetched records have."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers

    def message(self, topic: str, partition: int) -> Message:
        return Message(
            topic,
            partition,
            self.offset,
            key=self.key,
            value=self.value,
            headers=self.headers,
            timestamp_ms=self.timestamp,
        )
