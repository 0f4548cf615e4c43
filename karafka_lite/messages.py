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
from typing import Any, Generic, NamedTuple, Protocol, cast, overload

from typing_extensions import TypeVar

from karafka_lite.errors import DeserializationError, describe

Headers = list[tuple[str, bytes]]
TopicPartition = tuple[str, int]
TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")  # a topic's name, but for "." and ".."


class Loads(Protocol):
    """A module (or object) with a ``loads``: ``json``, ``orjson``, ``pickle`` …"""

    loads: Callable[..., Any]


Deserializer = Callable[[bytes], Any]
T = TypeVar("T", default=Any)  # of a payload
D = TypeVar("D")


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


class Message(Generic[T]):
    """One message, as Kafka has it. ``T`` is the type of its payload.

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
        deserializer: Callable[[bytes], T] | Loads | None = json,
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
    def payload(self) -> T:
        """The decoded value: decoded at the first access and kept; None for a tombstone.

        Raises:
            DeserializationError: the deserializer refused the bytes; raised at every access. ``value`` stays readable.
        """
        if self._payload is _MISSING:
            self._payload = self._decode()
        return cast("T", self._payload)

    @property
    def tombstone(self) -> bool:
        """True where ``value`` is None: Kafka's mark for "this key is deleted"."""
        return self.value is None

    @property
    def next_offset(self) -> int:
        """The offset that is stored when this message is marked: the next one to read."""
        return next_offset_after(self.offset)

    @overload
    def header(self, name: str) -> bytes | None: ...
    @overload
    def header(self, name: str, default: D) -> bytes | D: ...
    def header(self, name: str, default: Any = None) -> Any:
        """The value of the last header of that name, as Kafka's clients have it; ``default`` where there is none."""
        return next((value for own, value in reversed(self.headers) if own == name), default)

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


class Batch(Sequence[Message[T]], Generic[T]):
    """An immutable sequence of messages of **one** topic-partition in offset order, never empty.

    ``T`` is the type of their payloads, as the deserializer of the topic returns it: ``Batch[Order]``.

    Make one in a test from messages: ``Batch([Message("user_events", 0, 5, value=b"{}")])``. A Message is built when it
    is asked for and kept, so ``len``, ``last``, ``values`` and the offsets cost nothing per message.

    Raises:
        ValueError: no message, messages of two partitions, or offsets that do not rise.
    """

    __slots__ = ("_deserialize", "_end", "_messages", "_payloads", "_records", "_values", "partition", "topic")

    def __init__(self, messages: Iterable[Message[T]], *, end_offset: int | None = None) -> None:
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
        self._messages: list[Message[T] | None] = list(given)
        self._records: Sequence[Message[T] | Record] = given
        self._payloads: tuple[T, ...] | None = None
        self._values: tuple[bytes | None, ...] | None = None
        self._end = end_offset
        self._deserialize: Deserializer | None = None

    @classmethod
    def of_records(
        cls, place: TopicPartition, records: Sequence[Record], end_offset: int | None, deserialize: Deserializer | None
    ) -> Batch[T]:
        """A batch over fetched records of ``place``; ``end_offset`` is the partition's end when they were fetched."""
        batch = cls.__new__(cls)
        batch.topic, batch.partition = place
        batch._records = records
        batch._messages = [None] * len(records)
        batch._payloads = batch._values = None
        batch._end = end_offset
        batch._deserialize = deserialize
        return batch

    def is_of(self, tp: TopicPartition, records: Sequence[object]) -> bool:
        """Whether this is the batch of ``records`` of ``tp``."""
        return self._records is records and (self.topic, self.partition) == tp

    @property
    def first(self) -> Message[T]:
        """The message with the lowest offset."""
        return self[0]

    @property
    def last(self) -> Message[T]:
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
    def payloads(self) -> tuple[T, ...]:
        """Decoded values, in order, each decoded once. Raises DeserializationError at the first that cannot be."""
        if self._payloads is None:
            self._payloads = self._decoded()
        return self._payloads

    @property
    def values(self) -> tuple[bytes | None, ...]:
        """Raw values, in order; None for a tombstone."""
        if self._values is None:
            self._values = tuple([record.value for record in self._records])
        return self._values

    @property
    def lag(self) -> int:
        """How many offsets lay between the end of this batch and the end of the partition when it was fetched."""
        return max(0, (self._end or 0) - next_offset_after(self.last_offset))

    @overload
    def __getitem__(self, index: int) -> Message[T]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Message[T]]: ...
    def __getitem__(self, index: int | slice) -> Message[T] | Sequence[Message[T]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self._records)))]
        message = self._messages[index]
        if message is None:
            message = self._messages[index] = self._build(index)
        return message

    def __iter__(self) -> Iterator[Message[T]]:
        for index, message in enumerate(self._messages):
            if message is None:
                message = self._messages[index] = self._build(index)
            yield message

    def __len__(self) -> int:
        return len(self._records)

    def __repr__(self) -> str:
        return f"<Batch {where(self.topic, self.partition)}@{self.first_offset}..{self.last_offset} of {len(self)}>"

    def _decoded(self) -> tuple[T, ...]:
        # Without messages, where none was asked for; below an error is raised with the name of its message.
        if (decode := self._deserialize) is not None and not any(self._messages):
            with suppress(Exception):
                return tuple([cast("T", None) if value is None else decode(value) for value in self.values])
        return tuple([message.payload for message in self])

    def _build(self, index: int) -> Message[T]:
        record: Any = self._records[index]
        message: Message[T] = Message.__new__(Message)
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
