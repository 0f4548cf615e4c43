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
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, cast, overload

from karafka_lite.errors import DeserializationError, describe
from karafka_lite.functions import name_of, only_parameter

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    T = TypeVar("T", default=Any)  # of a payload
else:  # only the checkers need the default, and typing_extensions takes its time to import
    from typing import TypeVar

    T = TypeVar("T")

Headers = list[tuple[str, bytes]]
TopicPartition = tuple[str, int]
TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")  # a topic's name, but for "." and ".."


class Loads(Protocol):
    """A module (or object) with a ``loads``: ``json``, ``orjson``, ``pickle`` …"""

    loads: Callable[..., Any]


Deserializer = Callable[[bytes], Any]
T_co = TypeVar("T_co", covariant=True)
D = TypeVar("D")


class MessageDeserializer(Protocol[T_co]):
    """A function whose only parameter is named ``message``."""

    def __call__(self, message: Message) -> T_co: ...


class FromMessage:
    """A deserializer that gets the Message, and not its value."""

    def __init__(self, function: MessageDeserializer[Any]) -> None:
        self.function = function
        self.__qualname__ = name_of(function)

    def __call__(self, message: Message) -> Any:
        """The payload of ``message``."""
        return self.function(message)


Decode = Deserializer | FromMessage


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


class PlainRecord(NamedTuple):
    """A record in Python's own terms: of our reader, of tests, and of messages that are made by hand."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


class Outgoing(NamedTuple):
    """One message for ``produce_many``, with more than a value; the fields are the arguments of ``produce``.

    Example::

        Outgoing({"id": 7}, key="7", headers=[("source", b"web")])
    """

    value: Any
    key: bytes | str | None = None
    headers: Iterable[tuple[str, bytes]] | None = None
    partition: int | None = None
    timestamp_ms: int | None = None


class Addressed(NamedTuple):
    """A message that is to be sent, under Kafka's names; a ``timestamp_ms`` of None is the time of sending."""

    topic: str
    value: bytes | None
    key: bytes | None = None
    headers: Headers | None = None
    partition: int | None = None
    timestamp_ms: int | None = None

    def left_out(self, complete: Addressed) -> tuple[str, ...]:
        """The names of the last headers of ``complete`` that this one lacks."""
        return tuple(name for name, _ in (complete.headers or [])[len(self.headers or ()) :])


def next_offset_after(offset: int) -> int:
    """The next offset to read once the message at ``offset`` is done. The only ``+ 1`` on an offset."""
    return offset + 1


def where(topic: str, partition: int, offset: int | None = None, last: int | None = None) -> str:
    """How every text of the package names a place: ``topic-partition@offset``, of a batch ``…@first..last``."""
    if offset is None:
        return f"{topic}-{partition}"
    return f"{topic}-{partition}@{offset}" + ("" if last is None or last == offset else f"..{last}")


def as_deserializer(
    deserializer: Deserializer | MessageDeserializer[Any] | Loads | None,
) -> Decode | None:
    """``json`` and ``json.loads`` are both understood; None leaves payloads as raw bytes."""
    if deserializer is None or deserializer is json:
        return None if deserializer is None else json.loads
    function: Any = getattr(deserializer, "loads", None) or deserializer
    parameter = only_parameter(function) if callable(function) else None
    return FromMessage(function) if parameter is not None and parameter.name == "message" else function


class _Missing(Enum):
    """A payload that is not decoded yet. An enum: it stays the same object when it is pickled or copied."""

    MISSING = "missing"


_MISSING: Any = _Missing.MISSING


class Message(Generic[T]):
    """One message, as Kafka has it. ``T`` is the type of its payload.

    Make one in a test with ``Message("user_events", 0, 5, value=b'{"id": 1}')``.

    A name of a header that is not UTF-8 is decoded with ``surrogateescape``.

    Attributes:
        tp: topic and partition as a pair.
    """

    # What was fetched is looked into when somebody asks: to copy its fields would cost more than all the rest.
    __slots__ = ("_deserialize", "_payload", "_record", "tp")

    tp: TopicPartition
    _record: Record
    _deserialize: Decode | None
    _payload: Any

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
        deserializer: Callable[[bytes], T] | MessageDeserializer[T] | Loads | None = json,
    ) -> None:
        # An offset of 5.0 would be equal to that of a message, and no commit of it could be sent.
        self.tp = topic, _integer("partition", partition)
        self._record = PlainRecord(_integer("offset", offset), timestamp_ms, key, value, list(headers))
        self._deserialize = as_deserializer(deserializer)
        self._payload = _MISSING

    @classmethod
    def of_record(cls, tp: TopicPartition, record: Record, deserialize: Decode | None) -> Message[T]:
        """The message that a fetched record of ``tp`` is."""
        message = cls.__new__(cls)
        message.tp, message._record, message._deserialize, message._payload = tp, record, deserialize, _MISSING
        return message

    @property
    def topic(self) -> str:
        """The topic's name."""
        return self.tp[0]

    @property
    def partition(self) -> int:
        """The number of the partition."""
        return self.tp[1]

    @property
    def offset(self) -> int:
        """Its position in the partition."""
        return self._record.offset

    @property
    def key(self) -> bytes | None:
        """The key as Kafka has it."""
        return self._record.key

    @property
    def value(self) -> bytes | None:
        """The value as Kafka has it; None for a tombstone."""
        return self._record.value

    @property
    def headers(self) -> Headers:
        """``(name, value)`` in their order, in a new list."""
        return list(self._record.headers)

    @property
    def timestamp_ms(self) -> int:
        """Unix time in milliseconds, -1 where Kafka has none."""
        return self._record.timestamp

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
        return next((value for own, value in reversed(self._record.headers) if own == name), default)

    def __eq__(self, other: object) -> bool:
        """Equal where all that Kafka knows of them is."""
        return self._known() == other._known() if isinstance(other, Message) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.tp, self.offset))

    def __getstate__(self) -> tuple[None, dict[str, Any]]:
        """For pickle and copy. Where the deserializer cannot be pickled, the payload is decoded now, if it can be."""
        payload, deserialize = self._payload, self._deserialize
        if payload is _MISSING:
            try:
                pickle.dumps(deserialize)
            except Exception:  # noqa: BLE001 - it may raise anything
                with suppress(DeserializationError):
                    payload = self.payload
        if payload is not _MISSING:
            deserialize = None
        record = PlainRecord(self.offset, self.timestamp_ms, self.key, self.value, self.headers)
        return None, {"tp": self.tp, "_record": record, "_deserialize": deserialize, "_payload": payload}

    def _known(self) -> tuple[object, ...]:
        headers = [tuple(header) for header in self._record.headers]
        return self.tp, self.offset, self.timestamp_ms, self.key, self.value, headers

    def _decode(self) -> Any:
        decode: Any = self._deserialize
        if self._record.value is None or decode is None:
            return self._record.value
        try:
            return decode(self if isinstance(decode, FromMessage) else self._record.value)
        except Exception as cause:
            raise DeserializationError(
                f"{self}: payload not decoded by {name_of(decode)} ({describe(cause)}); read "
                f"message.value, or give the topic another deserializer="
            ) from cause

    def __str__(self) -> str:
        return where(*self.tp, self.offset)

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

    __slots__ = ("_deserialize", "_end", "_messages", "_payloads", "_records", "_some", "_values", "tp")

    def __init__(self, messages: Iterable[Message[T]], *, end_offset: int | None = None) -> None:
        given = list(messages)
        if not given:
            raise ValueError("a batch has at least one message")
        self.tp: TopicPartition = given[0].tp
        for before, after in itertools.pairwise(given):
            if after.tp != self.tp:
                raise ValueError(f"a batch is of one partition: {before} and {after} are not")
            if after.offset <= before.offset:
                raise ValueError(f"a batch is in offset order: {after} comes after {before}")
        self._messages: list[Message[T]] | None = given  # None: not all were asked for
        self._some: dict[int, Message[T]] = {}  # those that were asked for by their index, until all are
        self._records: Sequence[Record] = [message._record for message in given]
        self._payloads: tuple[T, ...] | None = None
        self._values: tuple[bytes | None, ...] | None = None
        self._end = end_offset
        self._deserialize: Decode | None = None

    @classmethod
    def of_records(
        cls, tp: TopicPartition, records: Sequence[Record], end_offset: int | None, deserialize: Decode | None
    ) -> Batch[T]:
        """A batch over fetched records of ``tp``; ``end_offset`` is the partition's end when they were fetched."""
        batch = cls.__new__(cls)
        batch.tp = tp
        batch._records = records
        batch._messages, batch._some = None, {}
        batch._payloads = batch._values = None
        batch._end = end_offset
        batch._deserialize = deserialize
        return batch

    def is_of(self, tp: TopicPartition, records: Sequence[object]) -> bool:
        """Whether this is the batch of ``records`` of ``tp``."""
        return self._records is records and self.tp == tp

    @property
    def topic(self) -> str:
        """The topic's name."""
        return self.tp[0]

    @property
    def partition(self) -> int:
        """The number of the partition."""
        return self.tp[1]

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
        if self._messages is not None:
            return self._messages[index]
        index = range(len(self._records))[index]  # the same key, whether it was counted from the front or the back
        if (message := self._some.get(index)) is None:
            message = self._some[index] = Message.of_record(self.tp, self._records[index], self._deserialize)
            if self._payloads is not None:
                message._payload = self._payloads[index]
        return message

    def __iter__(self) -> Iterator[Message[T]]:
        if self._messages is None:
            self._messages = self._all()
        return iter(self._messages)

    def __len__(self) -> int:
        return len(self._records)

    def __repr__(self) -> str:
        return f"<Batch {where(*self.tp, self.first_offset, self.last_offset)} of {len(self)}>"

    def _decoded(self) -> tuple[T, ...]:
        # Without messages, where none was asked for; below an error is raised with the name of its message.
        decode = self._deserialize
        untouched = self._messages is None and not self._some
        if decode is not None and not isinstance(decode, FromMessage) and untouched:
            with suppress(Exception):
                return tuple([cast("T", None) if value is None else decode(value) for value in self.values])
        return tuple([message.payload for message in self])

    def _all(self) -> list[Message[T]]:
        """The messages of all records, in one loop: nothing that is done for each message costs more."""
        tp, deserialize, missing = self.tp, self._deserialize, _MISSING
        messages: list[Message[T]] = list(map(object.__new__, itertools.repeat(Message, len(self._records))))
        for message, record in zip(messages, self._records, strict=True):
            message.tp = tp
            message._record = record
            message._deserialize = deserialize
            message._payload = missing
        for message, payload in zip(messages, self._payloads or (), strict=False):
            message._payload = payload
        for index, message in self._some.items():
            messages[index] = message
        return messages


def _integer(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None


def _short(value: bytes | None) -> str:
    return repr(value) if value is None or len(value) <= 40 else f"{value[:40]!r}… ({len(value)} bytes)"
