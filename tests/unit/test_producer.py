"""What can be a message, and whose fault a failure is; what needs a broker is in tests/kafka/test_produce.py."""

from __future__ import annotations

import time
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import pytest
from kafka.errors import InvalidTimestampError
from kafka.errors import MessageSizeTooLargeError as TooLarge

from karafka_lite.client.producer import Outbox, Producer, _sendable, _Sent, check_outgoing
from karafka_lite.errors import ProduceError
from karafka_lite.messages import Outgoing

GOOD = Outgoing("orders", b"value", b"key", [("h", b"1")], 0, 1_700_000_000_000)


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


def test_a_header_name_that_is_not_utf_8_leaves_as_the_bytes_that_it_was() -> None:
    name = b"h\xe9\xff".decode(errors="surrogateescape")
    (sent, _), (plain, _) = _sendable([(name, b"1"), ("h\u00e9", b"2")]) or []
    assert (sent.encode("utf-8"), plain.encode("utf-8")) == (b"h\xe9\xff", "h\u00e9".encode())
    assert sent == name
    assert _sendable(None) is None


def test_while_no_broker_can_be_reached_a_mistake_is_still_a_mistake_at_the_call() -> None:
    outbox = Outbox(["127.0.0.1:9"], {"bootstrap_timeout_ms": 1})
    with pytest.raises(TypeError, match=r"partition must be an integer, got 0\.0"):
        outbox.send(GOOD._replace(partition=0.0))  # type: ignore[arg-type]


def test_a_producer_without_a_connection_sends_nothing() -> None:
    producer = Producer(["127.0.0.1:9"], {})
    assert producer.dead
    error = producer.send(GOOD).exception(0)
    assert isinstance(error, ProduceError)
    assert not error.collateral
    producer.close()
    with pytest.raises(TypeError):
        producer.send(GOOD._replace(partition=0.0))  # type: ignore[arg-type]


def test_the_bound_of_an_answer_follows_from_the_settings() -> None:
    settings = {"delivery_timeout_ms": 2000, "max_block_ms": 1000}
    assert Producer([], settings).answer_timeout_s == Outbox([], settings).answer_timeout_s == 8.0
    assert Producer([], {}).answer_timeout_s == 140.0


# -- whose fault it is ------------------------------------------------------------------------------------------------


def failed(producer: Producer, batch: object, topic: str = "orders", cause: type[Exception] = TooLarge) -> ProduceError:
    """What a message of ``batch`` fails with; kafka-python has the same error for all."""
    sent = _Sent(topic, 10, time.monotonic() + 60)
    sent.batch = batch
    number = next(producer._numbers)
    assert producer._enter(number, sent)
    producer._fail(number, cause())
    error = sent.future.exception(0)
    assert isinstance(error, ProduceError)
    return error


@pytest.mark.parametrize(("cause", "whole_batch"), [(TooLarge, False), (InvalidTimestampError, True)])
def test_of_a_producer_that_has_died_only_what_was_refused_fails_by_its_own_fault(
    cause: type[Exception], whole_batch: bool
) -> None:
    producer = Producer([], {}, idempotent=True)
    producer._manager = SimpleNamespace(has_fatal_error=lambda: True)
    refused, other = object(), object()
    never_sent = failed(producer, None, cause=cause)
    first, neighbour = failed(producer, refused, cause=cause), failed(producer, refused, cause=cause)
    same_topic = failed(producer, other, cause=cause)
    other_topic = failed(producer, object(), "invoices", cause)
    assert [error.collateral for error in (never_sent, first, neighbour, same_topic, other_topic)] == [
        *(True, False, not whole_batch, True, True)
    ], "a batch that is too large was split until it had one message"
    if cause is TooLarge:
        assert "a message of 10 bytes is too large for topic orders" in str(first)
    assert [error.too_large for error in (first, neighbour, same_topic)] == [cause is TooLarge, False, False]
    assert "topic invoices did not take a message, because a message for topic orders was refused" in str(other_topic)
    assert "because another message was refused" in str(never_sent)


def test_without_a_fatal_error_each_message_fails_by_its_own_fault() -> None:
    producer = Producer([], {}, idempotent=True)
    producer._manager = SimpleNamespace(has_fatal_error=lambda: False)
    assert not failed(producer, object()).collateral
    assert not failed(producer, object()).collateral
