"""What a producer says without a broker, and whose fault a failure is; the rest is in tests/kafka/test_produce.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from kafka.errors import InvalidTimestampError, KafkaError
from kafka.errors import MessageSizeTooLargeError as TooLarge
from kafka.structs import TopicPartition

from karafka_lite import forks
from karafka_lite.client.batches import Batch
from karafka_lite.client.outbox import Outbox
from karafka_lite.client.producer import Producer
from karafka_lite.errors import ConfigurationError, ProduceError
from karafka_lite.messages import Addressed

GOOD = Addressed("orders", b"value", b"key", [("h", b"1")], 0, 1_700_000_000_000)


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


def batch_of(producer: Producer, topic: str = "orders", count: int = 1) -> Batch:
    batch = Batch(TopicPartition(topic, 0), 0, producer)
    for _ in range(count):
        batch.add((0, b"k" * 4, b"v" * 6, None), 10, None)
    return batch


def failures(producer: Producer, batch: Batch, error: Exception) -> list[ProduceError]:
    """What the messages of ``batch`` fail with; kafka-python has the same error for all."""
    producer.answered(batch, -1, lambda _: error)
    answers: list[Any] = [batch.answer_to(index) for index in range(batch.records.count)]
    return answers


@pytest.mark.parametrize("cause", [TooLarge, InvalidTimestampError])
def test_of_a_producer_that_has_died_only_what_was_refused_fails_by_its_own_fault(cause: type[Exception]) -> None:
    producer = Producer([], {}, idempotent=True)
    producer._manager = SimpleNamespace(has_fatal_error=lambda: True)
    never_sent = producer.send(GOOD).exception(0)
    first, neighbour = failures(producer, batch_of(producer, count=2), cause())
    (same_topic,) = failures(producer, batch_of(producer), cause())
    (other_topic,) = failures(producer, batch_of(producer, "invoices"), cause())
    assert isinstance(never_sent, ProduceError)
    each = (never_sent, first, neighbour, same_topic, other_topic)
    assert [error.collateral for error in each] == [True, False, False, True, True]
    if cause is TooLarge:
        assert "a message of 10 bytes is too large for topic orders" in str(first)
    assert [error.too_large for error in each] == [False, *[cause is TooLarge] * 2, False, False]
    assert "topic invoices did not take a message, because a message for topic orders was refused" in str(other_topic)
    assert "because another message was refused" in str(never_sent)


def test_without_a_fatal_error_each_message_fails_by_its_own_fault() -> None:
    producer = Producer([], {}, idempotent=True)
    producer._manager = SimpleNamespace(has_fatal_error=lambda: False)
    for _ in range(2):
        assert not failures(producer, batch_of(producer), TooLarge())[0].collateral


def test_beside_an_invalid_message_the_others_of_its_batch_are_collateral() -> None:
    producer = Producer([], {})
    batch = Batch(TopicPartition("orders", 0), 0, producer)
    told: list[tuple[int, BaseException | None]] = []
    for _ in range(3):
        batch.add((0, None, b"", None), 10, lambda count, failure: told.append((count, failure)))
    invalid = InvalidTimestampError("")
    producer.answered(batch, -1, lambda index: invalid if index == 1 else KafkaError("part of a batch"))
    answers: list[Any] = [batch.answer_to(index) for index in range(3)]
    assert [answer.collateral for answer in answers] == [True, False, True]
    assert told == [(1, answer) for answer in answers]


def test_who_has_sent_several_is_told_once_and_of_its_own_fault_first() -> None:
    producer = Producer([], {})
    batch = Batch(TopicPartition("orders", 0), 0, producer)
    told: list[Any] = []

    def tell(count: int, failure: Any) -> None:
        told.append((count, failure and failure.collateral))

    for who in (tell, tell, None, tell):
        batch.add((0, None, b"", None), 10, who)
    errors = [KafkaError(""), InvalidTimestampError(""), KafkaError(""), KafkaError("")]
    producer.answered(batch, -1, lambda index: errors[index])
    producer.answered(batch, 7, None)
    assert told == [(2, False), (1, True)]
    assert isinstance(batch.answer_to(0), ProduceError)


def test_at_a_flush_the_messages_without_an_answer_are_counted_and_not_their_batches() -> None:
    outbox, producer = Outbox([], {}), Producer([], {})
    producer._accumulator = SimpleNamespace(hand_over=lambda: None)
    assert outbox.flush(0) == 0, "nothing was sent"
    outbox._producer = producer
    for count in (2, 3):
        batch = Batch(TopicPartition("orders", count), 0, producer)
        for _ in range(count):
            batch.add((0, None, b"", None), 10, None)
        producer._unanswered[batch] = 0.0
    assert outbox.flush(0) == 5


def test_of_many_a_mistake_at_the_call_while_no_broker_can_be_reached_and_else_all_fail() -> None:
    outbox, told = Outbox(["127.0.0.1:9"], {"bootstrap_timeout_ms": 1}), list[Any]()
    with pytest.raises(TypeError, match=r"^messages\[1\]: partition must be an integer"):
        outbox.send_many([GOOD, GOOD._replace(partition=0.0)])  # type: ignore[arg-type]
    failure = outbox.send_many([GOOD, GOOD], lambda *answer: told.append(answer)).exception(20)
    assert isinstance(failure, ProduceError)
    assert told == [(2, failure)]


def test_in_a_forked_child_nobody_waits_for_the_lock_of_the_parent() -> None:
    producer = Producer([], {})
    producer._unanswered[batch_of(producer)] = 1.0
    with producer.lock:  # as if another thread had it at the fork
        forks._in_child[producer](producer)
        with pytest.raises(ConfigurationError, match="belongs to the process that started it"):
            producer.hand_over()
