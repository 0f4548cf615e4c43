"""Bytes of what is sent."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Any, NamedTuple
from uuid import UUID

import pydantic
import pytest

from karafka_lite import to_json
from karafka_lite.serializer import serialized


class Colour(Enum):
    RED = "red"


class Text(str, Enum):
    A = "a"


class Level(IntEnum):
    LOW = 1


class Price(Enum):
    LOW = Decimal("9.90")


@dataclass
class Item:
    name: str
    price: Decimal
    colours: list[Colour] = field(default_factory=list)


@dataclass(frozen=True)
class Slotted:
    __slots__ = ("item",)
    item: Item


class Point(NamedTuple):
    x: int


class Order(pydantic.BaseModel):
    at: datetime
    number: UUID
    total: Decimal
    by: dict[UUID, date] = {}


NUMBER = UUID(int=7)
AT = datetime(2026, 1, 31, 12, 30, tzinfo=timezone(timedelta(hours=1)))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"ü": [1, None, True, 1.5]}, {"ü": [1, None, True, 1.5]}),
        ([Colour.RED, Text.A, Level.LOW, Price.LOW], ["red", "a", 1, "9.90"]),
        (AT, "2026-01-31T12:30:00+01:00"),
        (datetime(2026, 1, 31), "2026-01-31T00:00:00"),
        (date(2026, 1, 31), "2026-01-31"),
        (time(12, 30), "12:30:00"),
        (NUMBER, "00000000-0000-0000-0000-000000000007"),
        (Decimal("1.10"), "1.10"),
        (Item("pen", Decimal("2"), [Colour.RED]), {"name": "pen", "price": "2", "colours": ["red"]}),
        (
            {"deep": [Slotted(Item("pen", Decimal("2")))]},
            {"deep": [{"item": {"name": "pen", "price": "2", "colours": []}}]},
        ),
        (Point(1), [1]),
        (
            [Order(at=AT, number=NUMBER, total=Decimal("1.10"), by={NUMBER: date(2026, 1, 31)})],
            [
                {
                    "at": "2026-01-31T12:30:00+01:00",
                    "number": str(NUMBER),
                    "total": "1.10",
                    "by": {str(NUMBER): "2026-01-31"},
                }
            ],
        ),
    ],
)
def test_json_knows_what_services_send(value: Any, said: Any) -> None:
    assert json.loads(to_json(value)) == said


def test_json_is_in_utf_8() -> None:
    assert to_json("ü") == b'"\xc3\xbc"'


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, timedelta(1), Item, Order, float("nan"), {("a", "b"): 1}, "\udc80"]
)
def test_json_does_not_guess(value: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        to_json(value)


def test_what_contains_itself_is_refused() -> None:
    item: Any = Item("pen", Decimal("1"))
    item.price = item
    with pytest.raises(ValueError, match="ircular reference"):
        to_json(item)


# -- what is sent


@pytest.mark.parametrize(
    ("value", "sent"), [(b"raw", b"raw"), (bytearray(b"raw"), b"raw"), (None, None), ("x", b"'x'")]
)
def test_bytes_and_none_are_sent_as_they_are_and_anything_else_as_the_serializer_has_it(value: Any, sent: Any) -> None:
    assert serialized(lambda given: bytearray(repr(given).encode()), "orders", value) == sent


def fails(value: Any) -> bytes:
    raise OSError("no registry")


def text(value: Any) -> Any:
    return str(value)


def none(value: Any) -> Any:
    return None


@pytest.mark.parametrize(
    ("serializer", "why"),
    [
        (fails, "fails cannot make bytes of Item for topic 'orders': OSError: no registry"),
        (text, "text cannot make bytes of Item for topic 'orders': it returned str, not bytes"),
        (none, "none cannot make bytes of Item for topic 'orders': it returned NoneType, not bytes"),
    ],
)
def test_an_error_names_topic_serializer_and_type(serializer: Any, why: str) -> None:
    with pytest.raises(TypeError) as raised:
        serialized(serializer, "orders", Item("pen", Decimal("1")))
    assert str(raised.value) == f"value: {why}"
