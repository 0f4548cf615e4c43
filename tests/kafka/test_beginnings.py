"""Where partitions begin, and what happens when their logs change: retention, partitions that are added, topics that
are waited for, deleted, and made anew; and what a commit is worth that can never succeed."""

from __future__ import annotations

import logging
import time
from typing import Any

import pytest
from support.harness import Gate, make_app, opened, running, stopped_aside
from support.observer import Observer, wait_until

from karafka_lite import App
from karafka_lite.client.offsets import decode

OFTEN = {"metadata_max_age_ms": 500}  # new partitions are seen soon
COMMITS = {"auto_commit_interval_ms": 50}


def reading(app: App, *topics: str, **options: Any) -> list[tuple[int, int]]:
    """What the app is handed, of all its topics: partition and offset."""
    seen: list[tuple[int, int]] = []

    def take(batch: Any, ctx: Any) -> None:
        seen.extend((message.partition, message.offset) for message in batch)

    app.topic(*topics, **options)(take)
    return seen


def offsets(seen: list[tuple[int, int]], partition: int = 0) -> list[int]:
    return [offset for number, offset in seen if number == partition]


def errors_of(caplog: pytest.LogCaptureFixture, topic: str) -> list[str]:
    """What was said at ERROR of a topic."""
    ours = [record for record in caplog.records if record.name == "karafka_lite"]
    found = [record for record in ours if record.levelno >= logging.ERROR]
    return [text for record in found if topic in (text := record.getMessage())]


# -- at the start ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reset", ["earliest", "latest"])
def test_a_commit_that_retention_has_overtaken_begins_at_the_logs_start_and_that_is_said_once(
    kafka: Observer, reset: str, caplog: pytest.LogCaptureFixture
) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(100))
    kafka.commit(group, topic, 20)
    kafka.truncate(topic, 0, 60)
    app = make_app(kafka, group, auto_offset_reset=reset)
    seen = reading(app, topic)
    with running(app):
        wait_until(lambda: len(seen) >= 40, message="what retention has left")
    assert offsets(seen) == list(range(60, 100))
    (line,) = errors_of(caplog, topic)
    assert f"{topic}-0@20: 40 offsets were deleted" in line
    assert "goes on at 60" in line


def test_with_latest_a_run_that_sees_nothing_after_retention_leaves_a_place_for_the_next(
    kafka: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(100))
    kafka.commit(group, topic, 20)
    kafka.truncate(topic, 0, 100)
    first, second = (make_app(kafka, group, auto_offset_reset="latest") for _ in range(2))
    assert reading(first, topic) == []
    with running(first):
        wait_until(lambda: kafka.committed(group, topic) == 100, message="its place")
    kafka.produce(topic, range(10))
    seen = reading(second, topic)
    with running(second):
        wait_until(lambda: len(seen) >= 10, message="what came between the runs")
    assert offsets(seen) == list(range(100, 110))
    assert len(errors_of(caplog, topic)) == 1


@pytest.mark.parametrize("reset", ["earliest", "latest", "none"])
def test_a_commit_past_the_end_begins_at_the_end(kafka: Observer, reset: str, caplog: pytest.LogCaptureFixture) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(10))
    kafka.commit(group, topic, 50)
    app = make_app(kafka, group, auto_offset_reset=reset)
    seen = reading(app, topic)
    with running(app):
        wait_until(lambda: kafka.committed(group, topic) == 10, message="the end is committed")
        kafka.produce(topic, range(5))
        wait_until(lambda: len(seen) >= 5, message="what came since")
    assert offsets(seen) == list(range(10, 15))
    (line,) = errors_of(caplog, topic)
    assert f"{topic}-0@50: the log ends before, 40 offsets are missing" in line


# -- what is younger than the group ------------------------------------------------------------------------------------


def test_with_latest_partitions_that_are_added_while_it_runs_begin_at_their_start(kafka: Observer) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(3))
    app = make_app(kafka, group, auto_offset_reset="latest", **OFTEN)
    seen = reading(app, topic)
    with running(app):
        wait_until(lambda: kafka.committed(group, topic) == 3, message="the first start")
        kafka.grow(topic, 3)
        kafka.forget_clients()  # who produces would not know of them
        for partition in (1, 2):
            kafka.produce(topic, range(15), partition)
        wait_until(lambda: len(seen) >= 30, message="all of the new partitions")
    assert [offsets(seen, partition) for partition in (0, 1, 2)] == [[], [*range(15)], [*range(15)]]


def test_with_latest_partitions_that_were_added_between_two_runs_begin_at_their_start(kafka: Observer) -> None:
    """A process that has seen nothing of it learns from the commits how many there were."""
    topic, group = kafka.topic(2), kafka.group()
    kafka.produce(topic, range(3), 0)
    first = make_app(kafka, group, auto_offset_reset="latest")
    reading(first, topic)
    with running(first):
        wait_until(lambda: kafka.committed(group, topic, 1) == 0, message="the first start")
    kafka.grow(topic, 3)
    kafka.forget_clients()  # who produces would not know of them
    kafka.produce(topic, range(15), 2)
    second = make_app(kafka, group, auto_offset_reset="latest")
    seen = reading(second, topic)
    with running(second):
        wait_until(lambda: len(seen) >= 15, message="all of the new partition")
    assert offsets(seen, 2) == list(range(15))


def test_with_latest_a_partition_that_another_member_has_not_begun_with_begins_at_its_end(kafka: Observer) -> None:
    """It existed when the group started: that others have commits does not make it a new one."""
    topic, group = kafka.topic(2), kafka.group()
    first = make_app(kafka, group, auto_offset_reset="latest", **COMMITS)
    reading(first, topic)
    kafka.produce(topic, range(9), 0)
    kafka.produce(topic, range(9), 1)
    with running(first):
        wait_until(lambda: kafka.committed(group, topic, 1) == 9, message="the first start")
    note = decode(kafka.commit_metadata(group, topic))
    assert (len(note.topic_id), note.partitions) == (22, 2)
    group, metadata = kafka.group(), kafka.commit_metadata(group, topic)
    kafka.commit(group, topic, 9, metadata=metadata)  # and nothing of the other partition
    second = make_app(kafka, group, auto_offset_reset="latest", **COMMITS)
    seen = reading(second, topic)
    with running(second):
        wait_until(lambda: kafka.committed(group, topic, 1) == 9, message="its first start")
        kafka.produce(topic, range(2), 1)
        wait_until(lambda: seen, message="what came since")
    assert offsets(seen, 1) == [9, 10]


def test_with_latest_a_topic_that_was_waited_for_begins_at_its_start(kafka: Observer) -> None:
    topic, there, group = kafka.name("topic"), kafka.topic(), kafka.group()
    app = make_app(kafka, group, auto_offset_reset="latest")
    seen = reading(app, topic, there)
    with running(app):
        wait_until(lambda: kafka.committed(group, there) == 0, message="it runs")
        kafka.topic(name=topic, partitions=2)
        for partition in (0, 1):
            kafka.produce(topic, range(15), partition)
        wait_until(lambda: len(seen) >= 30, message="all of the new topic")
    assert [offsets(seen, partition) for partition in (0, 1)] == [[*range(15)], [*range(15)]]


# -- while it runs -----------------------------------------------------------------------------------------------------


def test_retention_that_overtakes_a_reader_is_said_with_what_is_missing(
    kafka: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    topic, gate, seen = kafka.topic(), Gate(), list[int]()
    for number in range(25):
        kafka.produce(topic, [number])  # one batch each, so that not all of them are fetched at once
    app = make_app(kafka, max_partition_fetch_bytes=1, fetch_max_bytes=1, max_poll_records=1)

    @app.topic(topic, max_messages=1)
    def work(batch: Any, ctx: Any) -> None:
        seen.append(batch.first_offset)
        gate.wait()

    with running(app), opened(gate):
        gate.reached()
        member = app._runner.members[0]  # type: ignore[union-attr]
        wait_until(lambda: any(o.intake.paused for o in list(member.group.owned.values())), message="its queue is full")
        kafka.truncate(topic, 0, 20)
        gate.open()
        wait_until(lambda: seen[-1] == 24, message="what retention has left")
    last = max(offset for offset in seen if offset < 20)
    assert seen == [*range(last + 1), *range(20, 25)]
    (line,) = errors_of(caplog, topic)
    assert f"{topic}-0@{last + 1}: {19 - last} offsets were deleted" in line


@pytest.mark.parametrize("reset", ["earliest", "latest", "none"])
def test_a_seek_to_an_offset_that_does_not_exist_breaks_nothing(
    kafka: Observer, reset: str, caplog: pytest.LogCaptureFixture
) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(10))
    kafka.commit(group, topic, 8)
    kafka.truncate(topic, 0, 5)
    wanted, seen = [1000, 2], list[int]()
    app = make_app(kafka, group, auto_offset_reset=reset)

    @app.topic(topic)
    def work(batch: Any, ctx: Any) -> None:
        seen.extend(message.offset for message in batch)
        if wanted:
            ctx.seek(wanted.pop(0))

    with running(app):
        wait_until(lambda: errors_of(caplog, topic), message="there is no offset 1000")
        kafka.produce(topic, [10])
        wait_until(lambda: len(seen) >= 9, message="from the log's start")
        assert len(kafka.members(group)) == 1
    assert seen == [8, 9, 10, *range(5, 11)]
    past, before = errors_of(caplog, topic)
    assert f"{topic}-0@1000: the log ends before, 990 offsets are missing" in past
    assert f"{topic}-0@2: 3 offsets were deleted" in before


# -- topics that are deleted and made anew -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("partitions", "messages"), [(2, 5), (2, 40), (1, 40)], ids=["shorter", "longer", "fewer partitions"]
)
def test_marks_of_a_topic_that_was_deleted_never_count_for_the_one_that_was_made_anew(
    kafka: Observer, partitions: int, messages: int, caplog: pytest.LogCaptureFixture
) -> None:
    topic, group = kafka.topic(2), kafka.group()
    for partition in (0, 1):
        kafka.produce(topic, range(10), partition)
    app = make_app(kafka, group, drain_timeout_ms=20_000)  # marks are pending: nothing is committed by itself
    seen = reading(app, topic)
    with running(app):
        wait_until(lambda: len(seen) >= 20, message="the old topic")
        seen.clear()
        kafka.delete_topic(topic)
        kafka.topic(partitions, name=topic)
        for partition in range(partitions):
            kafka.produce(topic, range(messages), partition)
        wait_until(lambda: len(set(seen)) >= messages * partitions, timeout=30, message="all of the new topic")
    for partition in range(partitions):
        assert sorted(set(offsets(seen, partition))) == list(range(messages))
        assert kafka.committed(group, topic, partition) == messages


def test_a_topic_that_was_made_anew_while_nothing_was_fetched_from_it_is_read_from_its_start(
    kafka: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No fetch fails, and the position exists in the new topic as well: only its id tells."""
    monkeypatch.setattr("karafka_lite.client.consumer.METADATA_S", 0.5)
    topic, group, gate, seen = kafka.topic(), kafka.group(), Gate(), list[str]()
    kafka.produce(topic, [f"old {number}" for number in range(10)])
    app = make_app(kafka, group, auto_commit_interval_ms=200)

    @app.topic(topic, max_messages=1)
    def work(batch: Any, ctx: Any) -> None:
        seen.append(batch.first.value.decode())
        gate.wait()

    with running(app), opened(gate):
        gate.reached()
        member = app._runner.members[0]  # type: ignore[union-attr]
        wait_until(lambda: any(o.intake.paused for o in list(member.group.owned.values())), message="its queue is full")
        kafka.delete_topic(topic)
        kafka.topic(name=topic)
        kafka.produce(topic, [f"new {number}" for number in range(30)])
        gate.open()
        wait_until(lambda: {f"new {number}" for number in range(30)} <= set(seen), message="all of the new topic")
    assert kafka.committed(group, topic) == 30


def test_a_topic_that_was_made_anew_between_two_runs_is_known_by_what_was_committed(
    kafka: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    """Kafka forgets the commits of a topic that is deleted, but one may come after the deletion."""
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(10))
    app = make_app(kafka, group)
    seen = reading(app, topic)
    with running(app):
        wait_until(lambda: len(seen) >= 10, message="the old topic")
    metadata = kafka.commit_metadata(group, topic)
    kafka.delete_topic(topic)
    kafka.topic(name=topic)
    kafka.produce(topic, range(20))
    kafka.commit(group, topic, 10, metadata=metadata)
    again = make_app(kafka, group)
    seen = reading(again, topic)
    with running(again):
        wait_until(lambda: len(seen) >= 20, message="all of the new topic")
    assert offsets(seen) == list(range(20))
    (line,) = errors_of(caplog, topic)
    assert "deleted and made anew" in line


def test_a_deleted_topic_holds_up_no_hand_over_and_no_stop(kafka: Observer, caplog: pytest.LogCaptureFixture) -> None:
    gone, stays, group = kafka.topic(), kafka.topic(), kafka.group()
    kafka.produce(gone, range(5))
    app = make_app(kafka, group, **OFTEN)
    seen = reading(app, gone, stays)
    with running(app):
        wait_until(lambda: len(seen) >= 5, message="it runs")
        kafka.delete_topic(gone)
        heir = make_app(kafka, group, **OFTEN)
        taken = reading(heir, gone, stays)
        began = time.monotonic()
        with running(heir):
            kafka.produce(stays, range(5))
            wait_until(lambda: len(seen) + len(taken) >= 10, timeout=10, message="the other topic goes on")
            with stopped_aside(app) as stopped:
                assert stopped()
        assert time.monotonic() - began < 15
    assert len([record for record in caplog.records if "marks are dropped" in record.getMessage()]) <= 2
    assert not [record for record in caplog.records if "work again" in record.getMessage()]
