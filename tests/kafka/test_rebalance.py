"""The promises of "Rebalance and end" for a hand-over in good order, on a real Kafka, judged from outside.

Of several members the one whose client id sorts first gets partition 0: the range assignor sorts by member id, and
those begin with the client id. So "a" takes a partition away from "m", and "m" gets it back when "a" leaves.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import pytest
from support.harness import Gate, make_app, opened, owner_of, produce_beside, running
from support.observer import Observer, wait_until

# -- a rebalance asks for partitions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("manual", [False, True], ids=["automatic", "manual"])
def test_a_rebalance_waits_for_the_running_batch_commits_it_and_the_new_owner_begins_right_behind_it(
    kafka: Observer, manual: bool
) -> None:
    topic, group, gate = kafka.topic(), kafka.group(), Gate()
    kafka.produce(topic, range(10))
    contexts: list[Any] = []
    before: list[int] = []
    after: list[int] = []
    committed_then: list[int | None] = []
    # Nothing is ever committed by the interval here: it is ten minutes.
    first = make_app(kafka, group, client_id="m", auto_commit_interval_ms=600_000)
    second = make_app(kafka, group, client_id="a")

    @first.topic(topic, max_messages=5, manual_offsets=manual)
    def hold(batch: Any, ctx: Any) -> None:
        contexts.append(ctx)
        before.extend(message.offset for message in batch)
        gate.wait()
        if manual:
            ctx.mark_as_consumed(batch.last)

    @second.topic(topic)
    def go_on(batch: Any, ctx: Any) -> None:
        committed_then.append(kafka.committed(group, topic))
        after.extend(message.offset for message in batch)

    with running(first), opened(gate):
        gate.reached()
        with running(second):
            wait_until(lambda: contexts[0].stopping, message="the first member hears of the second one")
            for _ in range(30):  # time for a rebalance that does not wait
                assert kafka.group_state(group) == "PREPARING_REBALANCING"
            assert kafka.committed(group, topic) is None
            gate.open()
            wait_until(lambda: len(before) + len(after) >= 10, message="all messages")
    assert (before, after) == ([0, 1, 2, 3, 4], [5, 6, 7, 8, 9])
    assert committed_then[0] == 5
    assert kafka.committed(group, topic) == 10


def test_queued_messages_are_dropped_and_come_again_to_the_new_owner_or_to_this_one(kafka: Observer) -> None:
    topic, group, gate = kafka.topic(partitions=2), kafka.group(), Gate()
    for partition in (0, 1):
        kafka.produce(topic, range(60), partition)
    seen: dict[int, list[int]] = {0: [], 1: []}
    owners: dict[int, list[str]] = {0: [], 1: []}
    contexts: list[Any] = []

    def record(batch: Any, ctx: Any, name: str) -> None:
        seen[batch.partition].extend(message.offset for message in batch)
        owners[batch.partition].append(name)
        contexts.append(ctx)

    first, second = make_app(kafka, group, client_id="m"), make_app(kafka, group, client_id="a")

    # Behind the gate the queues fill, the partitions are paused; one of them will come back to this member.
    @first.topic(topic, max_messages=2)
    def hold(batch: Any, ctx: Any) -> None:
        record(batch, ctx, "first")
        if len(seen[batch.partition]) > 10:
            gate.wait()

    @second.topic(topic, max_messages=2)
    def take(batch: Any, ctx: Any) -> None:
        record(batch, ctx, "second")

    with running(first), opened(gate):
        wait_until(lambda: len(seen[0]) == 12 and len(seen[1]) == 12, message="both partitions at the gate")
        with running(second):
            wait_until(lambda: all(ctx.stopping for ctx in contexts), message="a rebalance that waits")
            gate.open()
            wait_until(lambda: all(len(offsets) >= 60 for offsets in seen.values()), message="all messages")
    assert seen == {0: list(range(60)), 1: list(range(60))}
    assert set(owners[0]) == {"first", "second"}
    assert set(owners[1]) == {"first"}
    assert [kafka.committed(group, topic, partition) for partition in (0, 1)] == [60, 60]


def test_during_the_drain_stopping_is_true_revoked_is_not_and_marks_count(kafka: Observer) -> None:
    topic, group, gate = kafka.topic(), kafka.group(), Gate()
    kafka.produce(topic, range(10))
    told: list[object] = []
    begins: list[int] = []
    first, second = make_app(kafka, group, client_id="m"), make_app(kafka, group, client_id="a")

    @first.topic(topic, manual_offsets=True)
    def wrap_up(batch: Any, ctx: Any) -> None:
        told.append((ctx.stopping, ctx.revoked))
        gate.wait()
        wait_until(lambda: ctx.stopping, message="stopping")
        told.append((ctx.stopping, ctx.revoked, ctx.mark_as_consumed(batch[2])))
        told.append(ctx.mark_as_consumed(batch[3], sync=True))
        told.append(kafka.committed(group, topic))
        told.append(ctx.mark_as_consumed(batch[6]))

    @second.topic(topic)
    def begin(batch: Any, ctx: Any) -> None:
        begins.append(batch.first_offset)

    with running(first), opened(gate):
        gate.reached()
        with running(second):
            gate.open()
            wait_until(lambda: begins, message="the new owner")
    assert told == [(False, False), (True, False, True), True, 4, True]
    assert begins[0] == 7


@pytest.mark.slow
def test_heartbeats_go_on_while_a_rebalance_waits_for_a_batch_of_twice_the_session(kafka: Observer) -> None:
    topic, group, gate = kafka.topic(), kafka.group(), Gate()
    kafka.produce(topic, range(10))
    before: list[int] = []
    after: list[int] = []
    told: list[bool] = []
    first = make_app(kafka, group, client_id="m", session_timeout_ms=2000)
    second = make_app(kafka, group, client_id="a")

    @first.topic(topic, max_messages=5)
    def take_two_sessions(batch: Any, ctx: Any) -> None:
        before.extend(message.offset for message in batch)
        gate.wait()
        wait_until(lambda: ctx.stopping, message="the rebalance")
        end = time.monotonic() + 4
        while time.monotonic() < end:
            time.sleep(0.1)  # the batch is work, not a wait
        told.append(ctx.mark_as_consumed(batch.last))

    @second.topic(topic)
    def go_on(batch: Any, ctx: Any) -> None:
        after.extend(message.offset for message in batch)

    with running(first), opened(gate):
        gate.reached()
        (member,) = kafka.members(group)
        with running(second):
            gate.open()
            wait_until(lambda: len(before) + len(after) >= 10, timeout=40, message="all messages")
            assert member in kafka.members(group)  # the same member still: it was never thrown out
    assert told == [True]
    assert (before, after) == ([0, 1, 2, 3, 4], [5, 6, 7, 8, 9])


def test_a_partition_that_waits_in_back_off_is_handed_over_at_once(kafka: Observer) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(4))
    tries: list[int] = []
    after: list[int] = []
    first, second = make_app(kafka, group, client_id="m"), make_app(kafka, group, client_id="a")

    @first.topic(topic, max_messages=2, backoff_ms=600_000, backoff_max_ms=600_000)
    def fail_at_the_second_batch(batch: Any, ctx: Any) -> None:
        tries.append(batch.first_offset)
        if batch.first_offset == 2:
            raise RuntimeError("not today")

    @second.topic(topic)
    def go_on(batch: Any, ctx: Any) -> None:
        after.extend(message.offset for message in batch)

    with running(first):
        wait_until(lambda: tries == [0, 2], message="the failure")
        with running(second):
            wait_until(lambda: after, message="the new owner")
    assert after == [2, 3]
    assert tries == [0, 2]


def test_a_handler_that_fails_during_the_drain_is_repeated_by_the_new_owner_behind_its_last_mark(
    kafka: Observer,
) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(10))
    contexts: list[Any] = []
    after: list[int] = []
    first, second = make_app(kafka, group, client_id="m"), make_app(kafka, group, client_id="a")

    @first.topic(topic)
    def fail(batch: Any, ctx: Any) -> None:
        contexts.append(ctx)
        ctx.mark_as_consumed(batch[3])
        wait_until(lambda: ctx.stopping, timeout=30, message="stopping")
        raise RuntimeError("too late to be tried again here")

    @second.topic(topic)
    def go_on(batch: Any, ctx: Any) -> None:
        after.extend(message.offset for message in batch)

    with running(first):
        wait_until(lambda: contexts, message="the batch")
        with running(second):
            wait_until(lambda: len(after) >= 6, message="the new owner")
    assert after == [4, 5, 6, 7, 8, 9]
    assert len(contexts) == 1
    assert kafka.committed(group, topic) == 10


def test_a_partition_that_comes_back_is_a_new_ownership(kafka: Observer) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(2))
    contexts: list[Any] = []
    messages: list[Any] = []
    fresh: list[tuple[object, ...]] = []
    first, second = make_app(kafka, group, client_id="m"), make_app(kafka, group, client_id="a")

    @first.topic(topic, max_messages=2, backoff_ms=600_000, backoff_max_ms=600_000, manual_offsets=True)
    def fail_the_first_time(batch: Any, ctx: Any) -> None:
        fresh.append((batch.first_offset, ctx.attempt, dict(ctx.state)))
        ctx.state["mine"] = batch.first_offset
        contexts.append(ctx)
        messages.append(batch.first)
        if len(contexts) == 2:
            raise RuntimeError("attempt 2 will not be here")

    @second.topic(topic, manual_offsets=True)
    def mark_nothing(batch: Any, ctx: Any) -> None:
        pass

    with running(first):
        wait_until(lambda: len(contexts) == 1, message="the first batch")
        kafka.produce(topic, range(2))
        wait_until(lambda: len(contexts) == 2, message="the failing batch")
        with running(second):
            wait_until(lambda: owner_of(kafka, group, topic) == "a", message="the hand-over")
            wait_until(lambda: contexts[0].revoked, message="revoked")
        wait_until(lambda: len(contexts) >= 3, message="the partition is back")
        # The newest ownership works; the context of the first one has not come back with it.
        assert not contexts[2].revoked
        assert contexts[0].revoked
        assert not contexts[0].mark_as_consumed(messages[0])
        assert not contexts[0].commit_offsets(sync=True)
    assert fresh[:3] == [(0, 1, {}), (2, 1, {"mine": 0}), (0, 1, {})]
    assert kafka.committed(group, topic) is None


# -- the bound is over ------------------------------------------------------------------------------------------------


def test_past_the_bound_what_is_stored_is_committed_revoked_becomes_true_marks_return_false_and_the_hand_over_goes_on(
    kafka: Observer,
) -> None:
    topic, group, gate = kafka.topic(), kafka.group(), Gate()
    kafka.produce(topic, range(10))
    told: list[object] = []
    after: list[int] = []
    committed_then: list[int | None] = []
    first = make_app(kafka, group, client_id="m", drain_timeout_ms=500)
    second = make_app(kafka, group, client_id="a")

    @first.topic(topic)
    def overstay(batch: Any, ctx: Any) -> None:
        ctx.mark_as_consumed(batch[3])
        told.append(ctx.revoked)
        wait_until(lambda: ctx.revoked, timeout=30, message="revoked")
        gate.wait()
        told.append((ctx.revoked, ctx.mark_as_consumed(batch[5]), ctx.mark_as_consumed(batch[6], sync=True)))
        told.append((ctx.commit_offsets(), ctx.commit_offsets(sync=True), ctx.revoked))

    @second.topic(topic, manual_offsets=True)
    def take(batch: Any, ctx: Any) -> None:
        committed_then.append(kafka.committed(group, topic))
        ctx.mark_as_consumed(batch[1], sync=True)
        after.extend(message.offset for message in batch)

    with running(first), opened(gate):
        wait_until(lambda: told, message="the first batch")
        with running(second):
            wait_until(lambda: len(after) == 6, message="the new owner, although the handler still runs")
            gate.reached()
            gate.open()
            wait_until(lambda: len(told) == 3, message="what the handler was told")
            assert kafka.committed(group, topic) == 6
    assert told == [False, (True, False, False), (False, False, True)]
    assert (committed_then, after) == ([4], [4, 5, 6, 7, 8, 9])
    assert kafka.committed(group, topic) == 6


def test_a_later_ownership_of_the_partition_does_not_start_before_the_overdue_handler_returned(
    kafka: Observer,
) -> None:
    topic, group, gate = kafka.topic(partitions=2), kafka.group(), Gate()
    kafka.produce(topic, range(2), 0)
    events: list[str] = []
    first = make_app(kafka, group, client_id="m", drain_timeout_ms=500)
    second = make_app(kafka, group, client_id="a")

    @first.topic(topic)
    def work(batch: Any, ctx: Any) -> None:
        if batch.partition == 1:
            events.append("beside it")
            return
        events.append("begin")
        if "end" not in events:
            gate.wait()
        events.append("end")

    @second.topic(topic, manual_offsets=True)
    def take(batch: Any, ctx: Any) -> None:
        events.append("elsewhere")

    with running(first), opened(gate):
        gate.reached()
        with running(second):
            wait_until(lambda: "elsewhere" in events, message="the hand-over past the bound")
        wait_until(lambda: owner_of(kafka, group, topic) == "m", message="the partition is back")
        produce_beside(kafka, topic, events)
        assert events.count("begin") == 1
        gate.open()
        wait_until(lambda: events.count("end") == 2, message="the waiting ownership")
    assert [event for event in events if event in ("begin", "end")] == ["begin", "end", "begin", "end"]
    assert kafka.committed(group, topic) == 2


# -- a handler longer than max_poll_interval_ms -----------------------------------------------------------------------


@pytest.mark.slow
def test_a_handler_longer_than_max_poll_interval_ms_keeps_its_partition(kafka: Observer) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(500))
    told: list[object] = []
    # max_messages=1: the queue is full and the partition paused all the time.
    quick = {"session_timeout_ms": 2000, "max_poll_interval_ms": 2000, "drain_timeout_ms": 1500}
    app = make_app(kafka, group, **quick)

    @app.topic(topic, max_messages=1)
    def take_long(batch: Any, ctx: Any) -> None:
        if not told:
            end = time.monotonic() + 3
            while time.monotonic() < end:
                time.sleep(0.1)  # the batch is work, not a wait
        told.append((batch.first_offset, ctx.stopping, ctx.revoked))

    with running(app):
        wait_until(lambda: kafka.members(group), message="the member")
        (member,) = kafka.members(group)
        wait_until(lambda: len(told) >= 5, timeout=40, message="the batches behind the long one")
        assert kafka.members(group) == [member]
    assert told[:5] == [(offset, False, False) for offset in range(5)]
    assert (kafka.committed(group, topic) or 0) >= 5


# -- where an ownership begins ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reset", "marks", "start"),
    [("earliest", False, "0 (earliest)"), ("latest", False, "3 (latest)"), ("earliest", True, "2 (committed)")],
    ids=["earliest", "latest", "committed"],
)
def test_each_assignment_is_logged_with_its_starting_offset_and_why(
    kafka: Observer, caplog: pytest.LogCaptureFixture, reset: str, marks: bool, start: str
) -> None:
    topic, group, gate = kafka.topic(), kafka.group(), Gate()
    kafka.produce(topic, range(3))
    app = make_app(kafka, group, auto_offset_reset=reset)

    @app.topic(topic, manual_offsets=True)
    def mark_two(batch: Any, ctx: Any) -> None:
        ctx.mark_as_consumed(batch[1])
        gate.wait()

    if marks:
        with running(app), opened(gate):
            gate.reached()
    gate.open()
    caplog.set_level(logging.INFO, "karafka_lite")
    with running(app):
        lines = wait_until(lambda: [line for line in caplog.messages if "assigned" in line], message="the line")
    assert len(lines) == 1
    assert f"{topic}-0@{start}" in lines[0]
    assert group in lines[0]
