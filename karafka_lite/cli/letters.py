"""What becomes of a dead letter that goes back: pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from karafka_lite.messages import Addressed, Headers, Record

SOURCE = "source-topic"
ADDED = (SOURCE, "source-partition", "source-offset", "source-timestamp", "source-group", "attempts", "error")
NO_ERROR = "-"
ERROR_CHARACTERS = 60


class Letter(NamedTuple):
    """A message of a dead-letter topic, and the headers that were added to it, the last of each name."""

    record: Record
    own: Headers
    added: Mapping[str, str]

    @classmethod
    def of(cls, record: Record) -> Letter:
        """Added headers come after those that the message had, each once; a letter of a letter has them twice."""
        own = [(name, value or b"") for name, value in record.headers]  # a header of null cannot be sent
        added: dict[str, str] = {}
        while own and own[-1][0] in ADDED and own[-1][0] not in added:
            name, value = own.pop()
            added[name] = value.decode(errors="replace")
        if SOURCE not in added:  # then these are its own
            return cls(record, [(name, value or b"") for name, value in record.headers], {})
        return cls(record, own, added)

    @property
    def kind(self) -> str:
        """The error in a few characters, to count by."""
        kind = self.added.get("error", NO_ERROR).partition(":")[0].strip()
        return kind[:ERROR_CHARACTERS] or NO_ERROR

    def matches(self, error: str | None) -> bool:
        """Whether ``error`` stands in what the letter says of its failure; None stands in everything."""
        return error is None or error in self.added.get("error", "")

    def topic(self, to: str | None) -> str | None:
        """Where it goes back to; ``to`` wins. None: nobody knows."""
        return to or self.added.get(SOURCE)

    def sent_back(self, to: str | None, partitions: Mapping[str, int]) -> Addressed:
        """What is sent, in a cluster whose topics have so many ``partitions``; into the partition that it is from."""
        topic, number = self.topic(to) or "", self.added.get("source-partition", "")
        stays = topic == self.added.get(SOURCE) and number.isdecimal() and int(number) < partitions[topic]
        return Addressed(topic, self.record.value, self.record.key, self.own, int(number) if stays else None)

    def put_back(self, topic: str, partition: int) -> Addressed:
        """The letter as it is, for the end of its partition."""
        headers = [(name, value or b"") for name, value in self.record.headers]
        timestamp = self.record.timestamp if self.record.timestamp >= 0 else None
        return Addressed(topic, self.record.value, self.record.key, headers, partition, timestamp)
