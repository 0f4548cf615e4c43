"""What can be a message, and which partition its key chooses."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.partitioner.default import murmur2 as kafkas_murmur2

from karafka_lite.client.outgoing import check_outgoing, murmur2
from karafka_lite.messages import Addressed

GOOD = Addressed("orders", b"value", b"key", [("h", b"1")], 0, 1_700_000_000_000)


class Number(IntEnum):
    ONE = 1


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"value": None},
        {"value": b""},
        {"key": None},
        {"headers": None},
        {"headers": []},
        {"headers": [("", b""), ("h\u00e9", b"\x00")]},
        {"headers": [("h\udce9", b"not UTF-8")]},
        {"partition": None},
        {"partition": Number.ONE},
        {"partition": (1 << 31) - 1},
        {"timestamp_ms": None},
        {"timestamp_ms": 0},
        {"timestamp_ms": (1 << 63) - 1},
        {"topic": "a.b_c-D9"},
        {"topic": "x" * 249},
    ],
    ids=repr,
)
def test_what_can_be_a_message(change: dict[str, Any]) -> None:
    check_outgoing(GOOD._replace(**change))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"topic": None}, TypeError, "topic must be a string, got NoneType"),
        ({"topic": b"orders"}, TypeError, "topic must be a string, got bytes"),
        ({"topic": ""}, ValueError, "topic"),
        ({"topic": "."}, ValueError, "topic must be 1 to 249 of a-z A-Z 0-9 . _ - .*, got '.'"),
        ({"topic": "a b"}, ValueError, "topic must be 1 to 249 of .*, got 'a b'"),
        ({"topic": "x" * 250}, ValueError, "topic must be 1 to 249"),
        ({"topic": "orders\n"}, ValueError, "topic must be 1 to 249"),
        ({"value": "text"}, TypeError, "value must be bytes or None, got str"),
        ({"value": bytearray(b"1")}, TypeError, "value must be bytes or None, got bytearray"),
        ({"value": 1}, TypeError, "value must be bytes or None, got int"),
        ({"key": "text"}, TypeError, "key must be bytes, a string or None, got str"),
        ({"key": 7}, TypeError, "key must be bytes, a string or None, got int"),
        (
            {"headers": {"h": b"1"}},
            TypeError,
            r"headers must be a list of \(str, bytes\) pairs, got dict; for a dict: ",
        ),
        ({"headers": (("h", b"1"),)}, TypeError, "headers must be a list .* got tuple"),
        ({"headers": [("h", b"1"), ("h", "1")]}, TypeError, r"headers must be a list .* got \('h', '1'\) in it"),
        ({"headers": [("h", None)]}, TypeError, "headers must be a list"),
        ({"headers": [(b"h", b"1")]}, TypeError, "headers must be a list"),
        ({"headers": [("h", b"1", b"2")]}, TypeError, "headers must be a list"),
        ({"headers": [["h", b"1"]]}, TypeError, "headers must be a list"),
        ({"headers": ["hi"]}, TypeError, "headers must be a list"),
        ({"headers": [("\ud800", b"1")]}, ValueError, r"headers .* the name '\\ud800' cannot be encoded"),
        ({"headers": [("x" * 9999, 1)]}, TypeError, "headers must be a list .{,2100}$"),
        ({"headers": 5}, TypeError, "headers must be a list .* got int"),
        ({"partition": 0.0}, TypeError, "partition must be an integer, got 0.0"),
        ({"partition": True}, TypeError, "partition must be an integer, got True"),
        ({"partition": "0"}, TypeError, "partition must be an integer, got '0'"),
        ({"partition": -1}, ValueError, "partition must be between 0 and 2147483647, got -1"),
        ({"partition": 1 << 31}, ValueError, "partition must be between 0 and 2147483647"),
        (
            {"timestamp_ms": 1.5},
            TypeError,
            r"timestamp_ms must be an integer, got 1.5; for the time now: int\(time.time\(\) \* 1000\)",
        ),
        ({"timestamp_ms": False}, TypeError, "timestamp_ms must be an integer, got False"),
        ({"timestamp_ms": -1}, ValueError, "timestamp_ms must be between 0 and 9223372036854775807, got -1"),
        ({"timestamp_ms": 1 << 63}, ValueError, "timestamp_ms must be between 0 and 9223372036854775807"),
    ],
    ids=repr,
)
def test_what_cannot_be_a_message_is_named(change: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        check_outgoing(GOOD._replace(**change))


def test_a_partition_that_the_topic_does_not_have_is_named() -> None:
    check_outgoing(GOOD._replace(partition=2), 3)
    with pytest.raises(ValueError, match="partition must be between 0 and 2 in topic orders, got 3"):
        check_outgoing(GOOD._replace(partition=3), 3)


@given(st.binary(max_size=300))
def test_a_key_is_hashed_as_kafka_python_does_it(key: bytes) -> None:
    assert murmur2(key) == kafkas_murmur2(key)
