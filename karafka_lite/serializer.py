"""What makes bytes of a value that is sent."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

from karafka_lite.errors import describe
from karafka_lite.functions import name_of

Serializer = Callable[[Any], bytes]


def to_json(value: Any) -> bytes:
    """JSON in UTF-8, also of what JSON itself does not know.

    Dataclasses and pydantic models (whatever has a ``model_dump``) become objects, enums their value, ``datetime``,
    ``date`` and ``time`` text in ISO 8601, ``UUID`` and ``Decimal`` text.

    Raises:
        TypeError, ValueError: something else, NaN, or a value that contains itself.

    Example::

        to_json({"at": date(2026, 1, 31), "price": Decimal("9.90")})  # b'{"at": "2026-01-31", "price": "9.90"}'
    """
    return _ENCODER.encode(value).encode()


def _plain(value: Any) -> Any:
    """What stands for ``value`` in JSON; json asks again for what is inside."""
    from datetime import date, time  # here: most values need none of these, and their import takes its time
    from decimal import Decimal
    from enum import Enum
    from uuid import UUID

    if isinstance(value, Enum):
        return value.value
    if isinstance(value, UUID | Decimal):
        return str(value)
    if isinstance(value, date | time):  # a datetime is a date
        return value.isoformat()
    if not isinstance(value, type):
        if callable(dump := getattr(value, "model_dump", None)):
            return dump(mode="json")
        if dataclasses.is_dataclass(value):
            return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    raise TypeError(f"{type(value).__name__} is not JSON serializable")


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_plain)


def serialized(serializer: Serializer, topic: object, value: Any) -> bytes | None:
    """``value`` as it is sent: bytes and None as they are, anything else by ``serializer``.

    Raises:
        TypeError: it cannot; the message names the topic and the type of the value.
    """
    if value is None or isinstance(value, bytes):
        return value
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    what = f"value: {name_of(serializer)} cannot make bytes of {type(value).__name__} for topic {topic!r}"
    try:
        made: object = serializer(value)
    except Exception as error:
        raise TypeError(f"{what}: {describe(error)}") from error
    if not isinstance(made, bytes | bytearray | memoryview):
        raise TypeError(f"{what}: it returned {type(made).__name__}, not bytes")
    return bytes(made)
