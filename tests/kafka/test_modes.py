"""The promises of "Automatic and manual", on a real Kafka, judged from outside."""

from __future__ import annotations

import pytest
from support.harness import Gate, make_app, running
from support.observer import Observer, wait_until

from karafka_lite import Batch, Context

BOTH = pytest.mark.parametrize("manual", [False, True], ids=["automatic", "manual"])

# -- automatic --------------------------------------------------------------------------------------------------------


def test_automatic_after_the_handler_returned_the_last_message_of_the_batch_is_marked(kafka: Observer) -> None:
    topic, group, gate = kafka.topic(), kafka.group(), Gate()
    kafka.produce(topic, range(5))
    app = make_app(kafka, group)

    @app.topic(topic, max_messages=3)
    def store(batch: Batch, ctx: Context) -> None:
        if batch.first_offset == 3:
            ctx.commit_offsets(sync=True)
            gate.wait()

    with running(app):
        gate.reached()
        assert kafka.committed(group, topic) == 3, "the first batch is marked, of the second one nothing"
        gate.open()
    assert kafka.committed(group, topic) == 5


def test_automatic_commits_only_whole_finished_batches_never_a_half_done_one(kafka: Observer) -> None:
    topic, group, gate = kafka.topic(2), kafka.group(), Gate()
    kafka.produce(topic, range(5), 0)
    app = make_app(kafka, group, auto_commit_interval_ms=50)

    @app.topic(topic, max_messages=3)
    def store(batch: Batch, ctx: Context) -> None:
        if (ctx.partition, batch.first_offset) == (0, 3):
            gate.wait()

    with running(app):
        gate.reached()
        for number in range(1, 4):  # intervals pass: the other partition goes on and is committed
            kafka.produce(topic, ["x"], 1)
            wait_until(lambda number=number: kafka.committed(group, topic, 1) == number, message=f"commit {number}")
        assert kafka.committed(group, topic, 0) == 3
        gate.open()
        wait_until(lambda: kafka.committed(group, topic, 0) == 5, message="the commit of the batch when it has ended")


def test_automatic_a_batch_whose_partition_was_revoked_meanwhile_is_not_marked(kafka: Observer) -> None:
    topic, group, gate, ended = kafka.topic(), kafka.group(), Gate(), Gate()
    kafka.produce(topic, range(5))
    app = make_app(kafka, group, drain_timeout_ms=200)

    @app.topic(topic, max_messages=3)
    def store(batch: Batch, ctx: Context) -> None:
        if batch.first_offset == 3:
            gate.wait()
            assert ctx.revoked
            ended.open()

    app.start()
    try:
        gate.reached()
        assert app.stop() is False, "the handler is stuck"
    finally:
        gate.open()
    ended.wait()
    assert kafka.committed(group, topic) == 3


def test_automatic_a_handler_that_returns_early_because_of_stopping_has_its_whole_batch_marked(kafka: Observer) -> None:
    topic, group, gate, done = kafka.topic(), kafka.group(), Gate(), []
    kafka.produce(topic, range(5))
    app = make_app(kafka, group)

    @app.topic(topic)
    def store(batch: Batch, ctx: Context) -> None:
        for message in batch:
            if ctx.stopping:
                return
            done.append(message.offset)
            gate.wait()
            wait_until(lambda: ctx.stopping, message="the app stops")

    with running(app):
        gate.reached()
        gate.open()
    assert done == [0]
    assert kafka.committed(group, topic) == 5


def test_automatic_a_mark_inside_the_batch_is_allowed_and_committed_before_its_end(kafka: Observer) -> None:
    topic, group, gate, marked = kafka.topic(), kafka.group(), Gate(), []
    kafka.produce(topic, range(5))
    app = make_app(kafka, group, auto_commit_interval_ms=50)

    @app.topic(topic)
    def store(batch: Batch, ctx: Context) -> None:
        marked.append(ctx.mark_as_consumed(batch[1]))
        gate.wait()

    with running(app):
        gate.reached()
        wait_until(
            lambda: kafka.committed(group, topic) == 2, message="the mark in the middle of the batch is committed"
        )
        gate.open()
        wait_until(lambda: kafka.committed(group, topic) == 5, message="the batch is committed at its end")
    assert marked == [True]


def test_automatic_an_older_mark_does_not_outlast_the_batch_which_is_marked_at_its_end(kafka: Observer) -> None:
    topic, group, gate = kafka.topic(), kafka.group(), Gate()
    kafka.produce(topic, range(5))
    app = make_app(kafka, group)

    @app.topic(topic)
    def store(batch: Batch, ctx: Context) -> None:
        ctx.mark_as_consumed(batch[3])
        ctx.mark_as_consumed(batch[1], sync=True)
        gate.wait()

    with running(app):
        gate.reached()
        assert kafka.committed(group, topic) == 2
        gate.open()
    assert kafka.committed(group, topic) == 5


# -- manual -----------------------------------------------------------------------------------------------------------


@pytest.mark.test_client
def test_manual_nothing_is_marked_but_what_the_handler_marks(kafka: Observer) -> None:
    topic, group, ends = kafka.topic(), kafka.group(), []
    kafka.produce(topic, range(6))
    app = make_app(kafka, group, auto_commit_interval_ms=50)

    @app.topic(topic, manual_offsets=True, max_messages=2)
    def store(batch: Batch, ctx: Context) -> None:
        ctx.commit_offsets(sync=True)
        ends.append(batch.last_offset)

    with running(app):
        wait_until(lambda: ends == [1, 3, 5], message="three batches")
        assert kafka.committed(group, topic) is None
    assert kafka.committed(group, topic) is None


@pytest.mark.test_client
def test_manual_a_batch_without_a_mark_leaves_the_last_mark_where_it_was(kafka: Observer) -> None:
    topic, group, ends = kafka.topic(), kafka.group(), []
    kafka.produce(topic, range(6))
    app = make_app(kafka, group)

    @app.topic(topic, manual_offsets=True, max_messages=2)
    def store(batch: Batch, ctx: Context) -> None:
        if batch.first_offset == 0:
            ctx.mark_as_consumed(batch.first)
        ends.append(batch.last_offset)

    with running(app):
        wait_until(lambda: ends == [1, 3, 5], message="three batches")
    assert kafka.committed(group, topic) == 1


# -- both commit at the same moments, and only marks ------------------------------------------------------------------


@pytest.mark.test_client
@BOTH
def test_both_commit_every_interval(kafka: Observer, manual: bool) -> None:
    topic, group = kafka.topic(), kafka.group()
    app = make_app(kafka, group, auto_commit_interval_ms=100)

    @app.topic(topic, manual_offsets=manual)
    def store(batch: Batch, ctx: Context) -> None:
        if manual:
            ctx.mark_as_consumed(batch.last)

    with running(app):
        for number in range(1, 4):
            kafka.produce(topic, ["x"])
            wait_until(lambda number=number: kafka.committed(group, topic) == number, message=f"commit {number}")


@pytest.mark.test_client
@BOTH
def test_both_commit_at_the_stop_and_nothing_before_when_the_interval_is_long(kafka: Observer, manual: bool) -> None:
    topic, group, ends = kafka.topic(), kafka.group(), []
    kafka.produce(topic, range(4))
    app = make_app(kafka, group)

    @app.topic(topic, manual_offsets=manual, max_messages=2)
    def store(batch: Batch, ctx: Context) -> None:
        if manual:
            ctx.mark_as_consumed(batch.last)
        ends.append(batch.last_offset)

    with running(app):
        wait_until(lambda: ends == [1, 3], message="two batches")
        assert kafka.committed(group, topic) is None
    assert kafka.committed(group, topic) == 4


@BOTH
def test_both_commit_at_a_hand_over_so_that_the_next_owner_begins_there(kafka: Observer, manual: bool) -> None:
    topic, group = kafka.topic(2), kafka.group()
    for partition in (0, 1):
        kafka.produce(topic, range(4), partition)
    ends: set[tuple[int, int]] = set()
    handed: list[int] = []
    first, second = make_app(kafka, group), make_app(kafka, group)

    @first.topic(topic, manual_offsets=manual)
    def store(batch: Batch, ctx: Context) -> None:
        if manual:
            ctx.mark_as_consumed(batch.last)
        ends.add((batch.partition, batch.last_offset))

    @second.topic(topic, manual_offsets=manual)
    def go_on(batch: Batch, ctx: Context) -> None:
        handed.extend(message.offset for message in batch)

    with running(first):
        wait_until(lambda: ends >= {(0, 3), (1, 3)}, message="a batch of both partitions")
        assert kafka.committed(group, topic, 0) is kafka.committed(group, topic, 1) is None
        with running(second):
            shared = [[(topic, 0)], [(topic, 1)]]
            wait_until(lambda: sorted(kafka.assignment(group).values()) == shared, message="two members with one each")
            for partition in (0, 1):
                kafka.produce(topic, ["new"], partition)
            wait_until(lambda: handed, message="a message of the second member")
            assert [kafka.committed(group, topic, partition) for partition in (0, 1)] == [4, 4]
    assert handed == [4]


@pytest.mark.test_client
@BOTH
def test_both_commit_what_an_on_shutdown_hook_marks(kafka: Observer, manual: bool) -> None:
    topic, group, handed, marked = kafka.topic(), kafka.group(), [], []
    kafka.produce(topic, range(4))
    app = make_app(kafka, group)

    @app.topic(topic, manual_offsets=manual)
    def store(batch: Batch, ctx: Context) -> None:
        ctx.state["held"] = batch[2]
        handed.append(batch.last_offset)

    @app.on_shutdown(store)
    def flush(ctx: Context) -> None:
        marked.append(ctx.mark_as_consumed(ctx.state["held"]))

    with running(app):
        wait_until(lambda: handed == [3], message="the batch")
    assert marked == [True]
    assert kafka.committed(group, topic) == 3
