"""What the arguments of a send make: messages with their addresses, as bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from typing import Any

from karafka_lite.errors import cut, in_message
from karafka_lite.messages import Addressed, Outgoing
from karafka_lite.serializer import Serializer, serialized, to_json


def outgoing(
    topic: Any,
    value: Any,
    key: Any,
    headers: Any,
    partition: Any,
    timestamp_ms: Any,
    serializer: Serializer = to_json,
) -> Addressed:
    """The message that these arguments of a send make. What cannot be sent stays as it is: ``check_outgoing`` names it.

    Raises TypeError, ValueError: the serializer cannot make bytes of the value, or the key is no text.
    """
    if key is not None and type(key) is not bytes:
        key = _key(key)
    pairs: Any = headers
    if headers is not None and isinstance(headers, Iterable) and not isinstance(headers, Mapping | str | bytes):
        pairs = list(headers)
    if type(value) is not bytes:
        value = serialized(serializer, topic, value)
    return Addressed(topic, value, key, pairs, partition, timestamp_ms)


def _key(key: Any) -> Any:
    if isinstance(key, str):
        try:
            return key.encode()
        except UnicodeEncodeError:
            raise ValueError(f"key cannot be encoded as UTF-8, it has surrogates: {cut(ascii(key))}") from None
    return bytes(key) if isinstance(key, bytearray | memoryview) else key


def outgoing_many(topic: Any, messages: Any, serializer: Serializer) -> list[Addressed]:
    """``outgoing`` for each of ``messages``, which are values or ``Outgoing``. Raises TypeError, ValueError."""
    if isinstance(messages, Outgoing | Mapping | str | bytes | bytearray) or not isinstance(messages, Iterable):
        raise TypeError(
            f"messages must be an iterable of values or of Outgoing, got {type(messages).__name__}; for one message: "
            f"produce"
        )
    made: list[Addressed] = []
    for message in messages:
        try:
            if isinstance(message, Outgoing):
                made.append(outgoing(topic, *message, serializer))
            else:
                made.append(Addressed(topic, serialized(serializer, topic, message)))
        except (TypeError, ValueError) as mistake:
            raise in_message(len(made), mistake) from mistake.__cause__
    return made


def none_sent() -> Future[list[tuple[int, int]]]:
    """The answer to no message at all."""
    future: Future[list[tuple[int, int]]] = Future()
    future.set_result([])
    return future
