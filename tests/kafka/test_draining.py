"""``app.drain()``: a run to the end from Python, on any thread; librdkafka judges what is committed."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from support.harness import make_app
from support.observer import Observer, wait_until

from karafka_lite import Batch, ConfigurationError, Context, Drained, DrainError, TopicTotals


def totals(of: TopicTotals) -> tuple[int, int, int, int]:
    return of.messages, of.failures, of.dead_letters, of.unmarked


def test_it_processes_what_is_there_and_says_what_was_done_in_all_and_by_topic(kafka: Observer) -> None:
    orders, refunds, dead, group = kafka.topic(2), kafka.topic(), kafka.topic(), kafka.group()
    kafka.produce(orders, range(10))
    kafka.produce(refunds, ['"bad"', 1])
    app = make_app(kafka, group)

    @app.topic(orders)
    def store(batch: Batch, ctx: Context) -> None: ...

    @app.topic(refunds, dead_letter=dead, max_retries=1, backoff_ms=10)
    def refund(batch: Batch, ctx: Context) -> None:
        for message in ctx.each(batch):
            if message.payload == "bad":
                raise ValueError("no refund")

    drained = app.drain(idle_timeout_ms=20_000)

    assert totals(drained.topics[orders]) == (10, 0, 0, 0)
    assert totals(drained.topics[refunds]) == (1, 2, 1, 0)
    assert totals(drained) == (11, 2, 1, 0)
    assert drained.batches == drained.topics[orders].batches + drained.topics[refunds].batches
    assert sum(kafka.committed(group, orders, partition) or 0 for partition in range(2)) == 10
    assert kafka.committed(group, refunds) == 2
    assert kafka.members(group) == []


def test_it_may_be_called_on_any_thread_and_again(kafka: Observer) -> None:
    topic, group = kafka.topic(), kafka.group()
    app, done = make_app(kafka, group), []
    app.topic(topic)(lambda batch, ctx: None)
    for expected in (3, 2):
        kafka.produce(topic, range(expected))
        thread = threading.Thread(target=lambda: done.append(app.drain(idle_timeout_ms=20_000)))
        thread.start()
        thread.join(30)
        assert [each.messages for each in done[-1:]] == [expected]
    assert not [each for each in threading.enumerate() if each.name.startswith("karafka-worker")]


def test_a_partition_that_does_not_come_to_its_end_is_named_with_its_last_error(kafka: Observer) -> None:
    topic, app = kafka.topic(2), make_app(kafka)
    kafka.produce(topic, ["bad"], 1)
    kafka.produce(topic, [1, 2], 0)

    @app.topic(topic, backoff_ms=10)
    def store(batch: Batch, ctx: Context) -> None:
        if batch.partition:
            raise OSError("the disk is full")

    with pytest.raises(DrainError, match="the disk is full") as caught:
        app.drain(idle_timeout_ms=3000)
    assert caught.value.errors == {(topic, 1): "OSError: the disk is full"}
    assert caught.value.drained.messages == 2


def test_a_message_that_waits_to_become_a_dead_letter_is_progress(kafka: Observer) -> None:
    topic, app = kafka.topic(), make_app(kafka)
    kafka.produce(topic, [1])

    @app.topic(topic, dead_letter=False, max_retries=1, backoff_ms=4000)
    def store(batch: Batch, ctx: Context) -> None:
        raise OSError("no")

    assert app.drain(idle_timeout_ms=3000).dead_letters == 1


def test_mistakes_are_said_before_anything_runs(kafka: Observer) -> None:
    app = make_app(kafka)
    with pytest.raises(ConfigurationError, match="no topic is registered"):
        app.drain()
    app.topic(kafka.name("missing"))(lambda batch, ctx: pytest.fail("nothing runs"))
    wrong: Any
    for wrong in (0, 1.5, "1"):
        with pytest.raises(ConfigurationError, match="idle_timeout_ms must be an integer ≥ 1"):
            app.drain(idle_timeout_ms=wrong)
    with pytest.raises(ConfigurationError, match="missing topics"):
        app.drain()


def test_while_it_runs_a_second_run_is_refused(kafka: Observer) -> None:
    topic, app = kafka.topic(), make_app(kafka)
    kafka.produce(topic, [1])
    inside, release, results = threading.Event(), threading.Event(), list[Drained]()

    @app.topic(topic)
    def store(batch: Batch, ctx: Context) -> None:
        inside.set()
        release.wait(20)

    thread = threading.Thread(target=lambda: results.append(app.drain()))
    thread.start()
    assert inside.wait(20)
    for again in (app.drain, app.start):
        with pytest.raises(ConfigurationError, match="runs already"):
            again()
    release.set()
    wait_until(lambda: results, message="the drain ends")
    thread.join(5)
    assert results[0].messages == 1
