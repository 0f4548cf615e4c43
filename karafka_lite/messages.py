"""What a handler receives: messages of one partition, in offset order."""

from __future__ import annotations

import itertools
import json
import operator
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from enum import Enum
from typing import Any, NamedTuple, Protocol, cast, overload

from karafka_lite.errors import DeserializationError, describe

Headers = list[tuple[str, bytes]]
TopicPartition = tuple[str, int]
TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")  # a topic's name, but for "." and ".."


class Loads(Protocol):
    """A module (or object) with a ``loads``: ``json``, ``orjson``, ``pickle`` …"""

    loads: Callable[..., Any]


Deserializer = Callable[[bytes], Any]


class Record(Protocol):
    """The fields that a fetched record has under Kafka's names; a Message is built from it when somebody asks."""

    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes]]: ...


class Outgoing(NamedTuple):
    """A message that is to be sent, under Kafka's names; a ``timestamp_ms`` of None is the time of sending."""

    topic: str
    value: bytes | None
    key: bytes | None = None
    headers: Headers | None = None
    partition: int | None = None
    timestamp_ms: int | None = None

    def left_out(self, complete: Outgoing) -> tuple[str, ...]:
        """The names of the last headers of ``complete`` that this one lacks."""
        return tuple(name for name, _ in (complete.headers or [])[len(self.headers or ()) :])


def next_offset_after(offset: int) -> int:
    """The next offset to read once the message at ``offset`` is done. The only ``+ 1`` on an offset."""
    return offset + 1


def where(topic: str, partition: int, offset: int | None = None) -> str:
    """How every text of the package names a place: ``topic-partition@offset``."""
    return f"{topic}-{partition}" if offset is None else f"{topic}-{partition}@{offset}"


def as_deserializer(deserializer: Deserializer | Loads | None) -> Deserializer | None:
    """``json`` and ``json.loads`` are both understood; None leaves payloads as raw bytes."""
    loads: Deserializer | None = getattr(deserializer, "loads", None)
    return loads or cast("Deserializer | None", deserializer)


class _Missing(Enum):
    """A payload that is not decoded yet. An enum: it stays the same object when it is pickled or copied."""

    MISSING = "missing"


_MISSING: Any = _Missing.MISSING


class Message:
    """One message, as Kafka has it.

    Make one in a test with ``Message("user_events", 0, 5, value=b'{"id": 1}')``.

    Attributes:
        topic, partition, offset: its position.
        key, value: ``bytes`` or None; a ``value`` of None is a tombstone.
        headers: list of ``(str, bytes)``; a name that is not UTF-8 is decoded with ``surrogateescape``.
        timestamp_ms: Unix time in milliseconds, -1 where Kafka has none.
    """

    __slots__ = ("_deserialize", "_payload", "headers", "key", "offset", "partition", "timestamp_ms", "topic", "value")

    def __init__(
        self,
        topic: str,
        partition: int,
        offset: int,
        *,
        key: bytes | None = None,
        value: bytes | None = None,
        headers: Iterable[tuple[str, bytes]] = (),
        timestamp_ms: int = -1,
        deserializer: Deserializer | Loads | None = json,
    ) -> None:
        self.topic: str = topic
        # An offset of 5.0 would be equal to that of a message, and no commit of it could be sent.
        self.partition: int = _integer("partition", partition)
        self.offset: int = _integer("offset", offset)
        self.key: bytes | None = key
        self.value: bytes | None = value
        self.headers: Headers = list(headers)
        self.timestamp_ms: int = timestamp_ms
        self._deserialize = as_deserializer(deserializer)
        self._payload = _MISSING

    @property
    def payload(self) -> Any:
        """The decoded value: decoded at the first access and kept; None for a tombstone.

        Raises:
            DeserializationError: the deserializer refused the bytes; raised at every access. ``value`` stays readable.
        """
        if self._payload is _MISSING:
            self._payload = self._decode()
        return self._payload

    @property
    def tombstone(self) -> bool:
        """True where ``value`` is None: Kafka's mark for "this key is deleted"."""
        return self.value is None

    @property
    def next_offset(self) -> int:
        """The offset that is stored when this message is marked: the next one to read."""
        return next_offset_after(self.offset)

    def __eq__(self, other: object) -> bool:
        """Equal where all that Kafka knows of them is."""
        return self._known() == other._known() if isinstance(other, Message) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.topic, self.partition, self.offset))

    def __getstate__(self) -> tuple[None, dict[str, Any]]:
        """For pickle and copy. Where the deserializer cannot be pickled, the payload is decoded now, if it can be."""
        state = {name: getattr(self, name) for name in self.__slots__}
        if self._payload is _MISSING:
            try:
                pickle.dumps(self._deserialize)
            except Exception:  # noqa: BLE001 - it may raise anything
                with suppress(DeserializationError):
                    state["_payload"] = self.payload
        if state["_payload"] is not _MISSING:
            state["_deserialize"] = None
        return None, state

    def _known(self) -> tuple[object, ...]:
        position = self.topic, self.partition, self.offset, self.timestamp_ms
        return (*position, self.key, self.value, [tuple(header) for header in self.headers])

    def _decode(self) -> Any:
        if self.value is None or self._deserialize is None:
            return self.value
        try:
            return self._deserialize(self.value)
        except Exception as cause:
            raise DeserializationError(
                f"{self}: payload not decoded by {_name(self._deserialize)} ({describe(cause)}); read "
                f"message.value, or give the topic another deserializer="
            ) from cause

    def __str__(self) -> str:
        return where(self.topic, self.partition, self.offset)

    def __repr__(self) -> str:
        return f"<Message {self} key={self.key!r} value={_short(self.value)}>"


class Batch(Sequence[Message]):
    """An immutable sequence of messages of **one** topic-partition in offset order, never empty.

    Make one in a test from messages: ``Batch([Message("user_events", 0, 5, value=b"{}")])``. A Message is built when it
    is asked for and kept, so ``len``, ``last``, ``values`` and the offsets cost nothing per message.

    Raises:
        ValueError: no message, messages of two partitions, or offsets that do not rise.
    """

    __slots__ = ("_deserialize", "_end", "_messages", "_payloads", "_records", "partition", "topic")

    def __init__(self, messages: Iterable[Message], *, end_offset: int | None = None) -> None:
        given = list(messages)
        if not given:
            raise ValueError("a batch has at least one message")
        self.topic: str = given[0].topic
        self.partition: int = given[0].partition
        for before, after in itertools.pairwise(given):
            if (after.topic, after.partition) != (self.topic, self.partition):
                raise ValueError(f"a batch is of one partition: {before} and {after} are not")
            if after.offset <= before.offset:
                raise ValueError(f"a batch is in offset order: {after} comes after {before}")
        self._messages: list[Message | None] = list(given)
        self._records: Sequence[Message | Record] = given
        self._payloads: list[Any] | None = None
        self._end = end_offset
        self._deserialize: Deserializer | None = None

    @classmethod
    def of_records(
        cls, place: TopicPartition, records: Sequence[Record], end_offset: int | None, deserialize: Deserializer | None
    ) -> Batch:
        """A batch over fetched records of ``place``; ``end_offset`` is the partition's end when they were fetched."""
        batch = cls.__new__(cls)
        batch.topic, batch.partition = place
        batch._records = records
        batch._messages = [None] * len(records)
        batch._payloads = None
        batch._end = end_offset
        batch._deserialize = deserialize
        return batch

    def is_of(self, tp: TopicPartition, records: Sequence[object]) -> bool:
        """Whether this is the batch of ``records`` of ``tp``."""
        return self._records is records and (self.topic, self.partition) == tp

    @property
    def first(self) -> Message:
        """The message with the lowest offset."""
        return self[0]

    @property
    def last(self) -> Message:
        """The message with the highest offset; marking it marks the batch."""
        return self[-1]

    @property
    def first_offset(self) -> int:
        """Offset of ``first``."""
        return self._records[0].offset

    @property
    def last_offset(self) -> int:
        """Offset of ``last``."""
        return self._records[-1].offset

    @property
    def payloads(self) -> list[Any]:
        """Decoded values, in order, each decoded once. Raises DeserializationError at the first that cannot be."""
        if self._payloads is None:
            self._payloads = self._decoded()
        return self._payloads.copy()

    @property
    def values(self) -> list[bytes | None]:
        """Raw values, in order; None for a tombstone."""
        return [record.value for record in self._records]

    @property
    def lag(self) -> int:
        """How many offsets lay between the end of this batch and the end of the partition when it was fetched."""
        return max(0, (self._end or 0) - next_offset_after(self.last_offset))

    @overload
    def __getitem__(self, index: int) -> Message: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Message]: ...
    def __getitem__(self, index: int | slice) -> Message | Sequence[Message]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self._records)))]
        message = self._messages[index]
        if message is None:
            message = self._messages[index] = self._build(index)
        return message

    def __iter__(self) -> Iterator[Message]:
        for index, message in enumerate(self._messages):
            if message is None:
                message = self._messages[index] = self._build(index)
            yield message

    def __len__(self) -> int:
        return len(self._records)

    def __repr__(self) -> str:
        return f"<Batch {where(self.topic, self.partition)}@{self.first_offset}..{self.last_offset} of {len(self)}>"

    def _decoded(self) -> list[Any]:
        # Without messages, where none was asked for; below an error is raised with the name of its message.
        if (decode := self._deserialize) is not None and not any(self._messages):
            with suppress(Exception):
                return [None if value is None else decode(value) for value in self.values]
        return [message.payload for message in self]

    def _build(self, index: int) -> Message:
        record: Any = self._records[index]
        message = Message.__new__(Message)
        message.topic, message.partition = self.topic, self.partition
        message.offset = record.offset
        message.key = record.key
        message.value = record.value
        message.headers = record.headers or []  # a list of its own: records without headers share what is empty
        message.timestamp_ms = record.timestamp
        message._deserialize = self._deserialize
        message._payload = _MISSING if self._payloads is None else self._payloads[index]
        return message


def _integer(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None


def _name(function: object) -> str:
    return getattr(function, "__qualname__", None) or repr(function)


def _short(value: bytes | None) -> str:
    return repr(value) if value is None or len(value) <= 40 else f"{value[:40]!r}… ({len(value)} bytes)"
