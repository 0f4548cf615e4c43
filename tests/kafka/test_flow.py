"""``ctx.each``, ``ctx.seek``, ``ctx.pause`` and ``ctx.resume``: what comes next, and what is committed."""

from __future__ import annotations

import itertools
import threading
import time
from datetime import datetime, timezone
from typing import Any

import pytest
from support.harness import Gate, make_app, running, stopped_aside
from support.observer import Observer, wait_until

from karafka_lite import App, Message, events


def marked(kafka: Observer, app: App, topic: str, partition: int = 0) -> int | None:
    """What is committed when everything that is stored has been committed."""
    app.stop()
    return kafka.committed(app.config.group_id, topic, partition)


# -- each -------------------------------------------------------------------------------------------------------------


@pytest.mark.test_client
@pytest.mark.parametrize("manual", [False, True], ids=["automatic", "manual"])
def test_a_loop_over_each_marks_everything(kafka: Observer, manual: bool) -> None:
    topic, app, seen = kafka.topic(), make_app(kafka), list[int]()
    kafka.produce(topic, range(10))

    @app.topic(topic, manual_offsets=manual, max_messages=4)
    def work(batch: Any, ctx: Any) -> None:
        seen.extend(message.offset for message in ctx.each(batch))

    with running(app):
        wait_until(lambda: len(seen) == 10)
        assert marked(kafka, app, topic) == 10
    assert seen == list(range(10))


@pytest.mark.test_client
@pytest.mark.parametrize("manual", [False, True], ids=["automatic", "manual"])
def test_the_message_in_hand_of_a_loop_that_was_left_comes_first_in_the_next_batch(
    kafka: Observer, manual: bool
) -> None:
    topic, app, batches = kafka.topic(), make_app(kafka), list[list[int]]()
    kafka.produce(topic, range(6))

    @app.topic(topic, manual_offsets=manual, max_messages=4, backoff_ms=600_000, backoff_max_ms=600_000)
    def work(batch: Any, ctx: Any) -> None:
        batches.append([message.offset for message in batch])
        for message in ctx.each(batch):
            if message.offset == 2 and len(batches) == 1:
                break

    with running(app):
        wait_until(lambda: len(batches) == 2)  # at once: something was marked
        assert marked(kafka, app, topic) == 6
    assert batches == [[0, 1, 2, 3], [2, 3, 4, 5]]


def test_a_loop_that_was_left_without_a_mark_waits_for_backoff_ms_and_does_not_spin(kafka: Observer) -> None:
    topic, app, starts = kafka.topic(), make_app(kafka), list[float]()
    kafka.produce(topic, range(3))

    @app.topic(topic, backoff_ms=400)
    def work(batch: Any, ctx: Any) -> None:
        starts.append(time.monotonic())
        for _ in ctx.each(batch):
            if len(starts) < 3:
                return

    with running(app):
        wait_until(lambda: len(starts) == 3)
        assert marked(kafka, app, topic) == 3
    assert min(later - earlier for earlier, later in itertools.pairwise(starts)) > 0.35


@pytest.mark.test_client
def test_an_exception_inside_each_repeats_from_the_message_in_hand(kafka: Observer) -> None:
    topic, app, batches = kafka.topic(), make_app(kafka), list[tuple[int, int]]()
    kafka.produce(topic, range(5))

    @app.topic(topic, backoff_ms=50)
    def work(batch: Any, ctx: Any) -> None:
        batches.append((batch.first_offset, ctx.attempt))
        for message in ctx.each(batch):
            if message.offset == 3 and not ctx.retrying:
                raise OSError("not yet")

    with running(app):
        wait_until(lambda: len(batches) == 2)
        assert marked(kafka, app, topic) == 5
    assert batches == [(0, 1), (3, 2)]


def test_each_ends_early_at_a_stop_and_what_it_did_not_hand_out_is_not_marked(kafka: Observer) -> None:
    topic, app, seen, gate = kafka.topic(), make_app(kafka), list[int](), Gate()
    kafka.produce(topic, range(10))

    @app.topic(topic)
    def work(batch: Any, ctx: Any) -> None:
        for message in ctx.each(batch):
            seen.append(message.offset)
            if message.offset == 3:
                gate.wait()
                wait_until(lambda: ctx.stopping)

    with running(app):
        gate.reached()
        with stopped_aside(app) as answer:
            gate.open()
            assert answer() is True
    assert seen == [0, 1, 2, 3]
    assert kafka.committed(app.config.group_id, topic) == 4


# -- seek -------------------------------------------------------------------------------------------------------------


def target_of(word: str) -> Any:
    times = {"a time": 1_003, "a time between": 1_002.5, "a time behind the end": 9_000}
    return datetime.fromtimestamp(times[word], timezone.utc) if word in times else word


@pytest.mark.parametrize("manual", [False, True], ids=["automatic", "manual"])
@pytest.mark.parametrize(
    ("to", "next_offset"),
    [
        (3, 3),
        (0, 0),
        ("earliest", 0),
        ("latest", 6),
        ("a time", 3),
        ("a time between", 3),
        ("a time behind the end", 6),
    ],
)
def test_the_next_batch_starts_where_seek_points_to(kafka: Observer, to: Any, next_offset: int, manual: bool) -> None:
    topic, app, batches = kafka.topic(), make_app(kafka), list[int]()
    kafka.produce(topic, range(6), timestamps=[1_000_000 + 1000 * i for i in range(6)])

    @app.topic(topic, manual_offsets=manual, max_messages=2)
    def work(batch: Any, ctx: Any) -> None:
        batches.append(batch.first_offset)
        if len(batches) == 2:
            assert ctx.seek(target_of(to)) is True
        if len(batches) == 3:
            gate.wait()

    gate = Gate()
    with running(app):
        wait_until(lambda: len(batches) >= 2)
        if next_offset == 6:  # nothing is there before it is produced; what comes too early would be skipped
            wait_until(lambda: app.snapshots()[0].done.get((topic, 0)) == 6, message="the seek is done")
            kafka.produce(topic, ["new"])
        gate.reached()
        gate.open()
    assert batches[:3] == [0, 2, next_offset]


def test_a_run_that_seeks_is_not_marked_by_itself_but_its_own_marks_count(kafka: Observer) -> None:
    topic, app, batches = kafka.topic(), make_app(kafka), list[int]()
    kafka.produce(topic, range(6))

    @app.topic(topic, max_messages=2)
    def work(batch: Any, ctx: Any) -> None:
        batches.append(batch.first_offset)
        if len(batches) == 1:
            ctx.mark_as_consumed(batch.first)
            ctx.seek(6)

    with running(app):
        wait_until(lambda: app.snapshots()[0].done.get((topic, 0)) == 6, message="the seek is done")
        assert marked(kafka, app, topic) == 1
    assert batches == [0]


@pytest.mark.test_client
def test_a_seek_of_a_run_that_fails_is_where_the_retry_starts(kafka: Observer) -> None:
    topic, app, batches = kafka.topic(), make_app(kafka), list[tuple[int, int]]()
    kafka.produce(topic, range(6))

    @app.topic(topic, max_messages=2, backoff_ms=50)
    def work(batch: Any, ctx: Any) -> None:
        batches.append((batch.first_offset, ctx.attempt))
        if len(batches) == 1:
            ctx.seek(4)
            raise OSError("not yet")

    with running(app):
        wait_until(lambda: len(batches) == 2)
        assert marked(kafka, app, topic) == 6
    assert batches == [(0, 1), (4, 2)]


@pytest.mark.test_client
def test_what_was_queued_before_a_seek_is_dropped_and_nothing_comes_twice(kafka: Observer) -> None:
    topic, app, seen = kafka.topic(), make_app(kafka), list[int]()
    kafka.produce(topic, range(40))

    @app.topic(topic, max_messages=5)
    def work(batch: Any, ctx: Any) -> None:
        seen.extend(message.offset for message in batch)
        if batch.last_offset == 9:
            ctx.seek(30)

    with running(app):
        wait_until(lambda: seen[-1:] == [39])
        assert marked(kafka, app, topic) == 40
    assert seen == [*range(10), *range(30, 40)]


@pytest.mark.test_client
def test_a_seek_is_over_with_the_ownership(kafka: Observer) -> None:
    topic, group, batches = kafka.topic(), kafka.group(), list[int]()
    kafka.produce(topic, range(4))
    app = make_app(kafka, group)

    @app.topic(topic)
    def work(batch: Any, ctx: Any) -> None:
        batches.append(batch.first_offset)
        if len(batches) == 1:
            ctx.mark_as_consumed(batch[1])
            ctx.seek(3)
            app.stop()  # from a handler it only asks

    with running(app):
        wait_until(lambda: kafka.committed(group, topic) == 2)
    with running(app):
        wait_until(lambda: len(batches) == 2)
    assert batches == [0, 2]


# -- pause and resume -------------------------------------------------------------------------------------------------


def test_a_paused_partition_has_no_batch_for_so_long_and_the_others_go_on(kafka: Observer) -> None:
    topic, app = kafka.topic(2), make_app(kafka)
    kafka.produce(topic, range(2), 0)
    kafka.produce(topic, range(2), 1)
    batches: list[tuple[int, int, float]] = []

    @app.topic(topic, max_messages=1)
    def work(batch: Any, ctx: Any) -> None:
        batches.append((ctx.partition, batch.first_offset, time.monotonic()))
        if batch.first_offset == 0 and ctx.partition == 0:
            assert ctx.pause(700) is True

    with running(app):
        wait_until(lambda: len(batches) == 4)
        assert marked(kafka, app, topic, 0) == 2
    at = {(partition, offset): moment for partition, offset, moment in batches}
    assert at[0, 1] - at[0, 0] > 0.65
    assert at[1, 1] < at[0, 1]


@pytest.mark.test_client
def test_a_pause_without_an_offset_changes_only_the_time(kafka: Observer) -> None:
    topic, app, batches = kafka.topic(), make_app(kafka), list[int]()
    kafka.produce(topic, range(4))

    @app.topic(topic, max_messages=2)
    def work(batch: Any, ctx: Any) -> None:
        batches.append(batch.first_offset)
        ctx.pause(600_000)

    with running(app):
        wait_until(lambda: batches)
        assert marked(kafka, app, topic) == 2  # marked by itself; and a stop does not wait for a pause
    assert batches == [0]


def test_a_pause_with_an_offset_starts_there_and_the_run_is_not_marked_by_itself(kafka: Observer) -> None:
    topic, app, batches = kafka.topic(), make_app(kafka), list[tuple[int, float]]()
    kafka.produce(topic, range(4))

    @app.topic(topic, max_messages=4)
    def work(batch: Any, ctx: Any) -> None:
        batches.append((batch.first_offset, time.monotonic()))
        if len(batches) == 1:
            ctx.mark_as_consumed(batch.first)
            ctx.pause(300, offset=1)
        else:
            ctx.pause(600_000, offset=1)

    with running(app):
        wait_until(lambda: len(batches) == 2)
        assert marked(kafka, app, topic) == 1
    assert [offset for offset, _ in batches] == [0, 1]
    assert batches[1][1] - batches[0][1] > 0.28


def test_resume_ends_a_pause_also_from_another_thread(kafka: Observer) -> None:
    topic, app, batches = kafka.topic(), make_app(kafka), list[int]()
    kafka.produce(topic, range(2))
    contexts: list[Any] = []

    @app.topic(topic, max_messages=1)
    def work(batch: Any, ctx: Any) -> None:
        batches.append(batch.first_offset)
        contexts.append(ctx)
        ctx.pause(600_000)

    with running(app):
        wait_until(lambda: app.snapshots()[0].processed.get((topic, 0)) == 1)
        thread = threading.Thread(target=contexts[0].resume)
        thread.start()
        thread.join()
        wait_until(lambda: batches == [0, 1])


def test_a_back_off_that_is_longer_than_a_pause_stays(kafka: Observer) -> None:
    topic, app, starts = kafka.topic(), make_app(kafka), list[float]()
    kafka.produce(topic, range(2))

    @app.topic(topic, backoff_ms=500)
    def work(batch: Any, ctx: Any) -> None:
        starts.append(time.monotonic())
        if not ctx.retrying:
            ctx.pause(1)
            raise OSError("not yet")

    with running(app):
        wait_until(lambda: len(starts) == 2)
    assert starts[1] - starts[0] > 0.45


@pytest.mark.test_client
def test_a_pause_is_over_with_the_ownership(kafka: Observer) -> None:
    topic, group, batches = kafka.topic(), kafka.group(), list[int]()
    kafka.produce(topic, range(4))
    app = make_app(kafka, group)

    @app.topic(topic, max_messages=2)
    def work(batch: Any, ctx: Any) -> None:
        batches.append(batch.first_offset)
        ctx.pause(600_000)

    with running(app):
        wait_until(lambda: batches == [0])
    with running(app):
        wait_until(lambda: batches == [0, 2])


def test_a_paused_partition_that_fetches_much_goes_on_with_the_first_message_behind_it(kafka: Observer) -> None:
    topic, app, seen = kafka.topic(), make_app(kafka), list[int]()
    kafka.produce(topic, range(5))
    contexts: list[Any] = []

    @app.topic(topic, max_messages=5)
    def work(batch: Any, ctx: Any) -> None:
        seen.extend(message.offset for message in batch)
        if not contexts:
            contexts.append(ctx)
            ctx.pause(600_000)

    with running(app):
        wait_until(lambda: len(seen) == 5)
        kafka.produce(topic, range(200))  # more than a queue holds: fetching pauses, too
        wait_until(lambda: app.members[0].group.owned[topic, 0].intake.size >= 10)
        contexts[0].resume()
        wait_until(lambda: len(seen) == 205)
    assert seen == list(range(205))


# -- every ------------------------------------------------------------------------------------------------------------


@pytest.mark.test_client
def test_every_is_called_again_and_again_also_when_no_message_comes_and_its_marks_count(kafka: Observer) -> None:
    topic, app, ticks = kafka.topic(2), make_app(kafka), list[int]()
    kafka.produce(topic, range(3), 0)

    @app.topic(topic, manual_offsets=True)
    def work(batch: Any, ctx: Any) -> None:
        ctx.state["buffer"] = batch.last

    @app.every(work, ms=30)
    def flush(ctx: Any) -> None:
        ticks.append(ctx.partition)
        if "buffer" in ctx.state:
            assert ctx.mark_as_consumed(ctx.state.pop("buffer"), sync=True) is True

    with running(app):
        wait_until(lambda: kafka.committed(app.config.group_id, topic) == 3)
        seen = len(ticks)
        wait_until(lambda: len(ticks) >= seen + 3)
    assert set(ticks) == {0}, "only for partitions that were handed a batch"


@pytest.mark.test_client
def test_every_never_runs_beside_a_batch_and_leaves_room_for_batches(kafka: Observer) -> None:
    topic, app = kafka.topic(), make_app(kafka)
    kafka.produce(topic, range(40))
    inside, beside, seen = list[str](), list[str](), list[int]()

    @app.topic(topic, max_messages=2)
    def work(batch: Any, ctx: Any) -> None:
        inside.append("batch")
        time.sleep(0.005)
        beside.extend(inside[1:])
        seen.extend(message.offset for message in batch)
        inside.clear()

    @app.every(work, ms=1)
    def tick(ctx: Any) -> None:
        inside.append("tick")
        time.sleep(0.01)  # longer than its own interval
        beside.extend(inside[1:])
        inside.clear()

    with running(app):
        wait_until(lambda: len(seen) == 40)
    assert seen == list(range(40))
    assert beside == []


@pytest.mark.test_client
def test_every_goes_on_while_a_partition_waits_in_back_off_or_in_a_pause(kafka: Observer) -> None:
    topic, app, ticks = kafka.topic(2), make_app(kafka), list[int]()
    kafka.produce(topic, range(2), 0)
    kafka.produce(topic, range(2), 1)
    waiting: set[int] = set()

    @app.topic(topic, max_messages=1, backoff_ms=600_000, backoff_max_ms=600_000)
    def work(batch: Any, ctx: Any) -> None:
        waiting.add(ctx.partition)
        if ctx.partition == 0:
            raise OSError("not yet")
        ctx.pause(600_000)

    @app.every(work, ms=20)
    def tick(ctx: Any) -> None:
        ticks.append(ctx.partition)

    with running(app):
        wait_until(lambda: waiting == {0, 1})
        ticks.clear()
        wait_until(lambda: ticks.count(0) >= 3 and ticks.count(1) >= 3)


@pytest.mark.test_client
def test_an_exception_in_every_is_logged_and_it_is_called_again(
    kafka: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    topic, app, ticks = kafka.topic(), make_app(kafka), list[int]()
    kafka.produce(topic, range(3))

    @app.topic(topic)
    def work(batch: Any, ctx: Any) -> None: ...

    @app.every(work, ms=20)
    def tick(ctx: Any) -> None:
        ticks.append(ctx.attempt)
        raise OSError("the disk is full")

    with running(app):
        wait_until(lambda: len(ticks) >= 3)
    assert ticks[:3] == [1, 1, 1]
    assert f"{topic}-0 every: " in caplog.text
    assert "the disk is full" in caplog.text
    assert kafka.committed(app.config.group_id, topic) == 3


def test_every_is_not_called_any_more_once_the_app_stops(kafka: Observer) -> None:
    topic, app, calls, gate = kafka.topic(), make_app(kafka), list[str](), Gate()
    kafka.produce(topic, range(3))

    @app.topic(topic)
    def work(batch: Any, ctx: Any) -> None: ...

    @app.every(work, ms=10)
    def tick(ctx: Any) -> None:
        calls.append("tick")
        if not ctx.stopping:
            gate.wait()
            wait_until(lambda: ctx.stopping)

    @app.on_shutdown(work)
    def end(ctx: Any) -> None:
        calls.append("end")

    with running(app):
        gate.reached()
        with stopped_aside(app) as answer:
            gate.open()
            assert answer() is True
    assert calls == ["tick", "end"]


# -- whatever user code says


def odd_words(out: str) -> list[Any]:
    """What a handler may say by mistake, with its context and its batch."""
    late, early = datetime.max.replace(tzinfo=timezone.utc), datetime.min.replace(tzinfo=timezone.utc)
    return [
        *(lambda ctx, batch, to=to: ctx.seek(to) for to in (late, early, datetime(1960, 1, 1, tzinfo=timezone.utc))),
        *(lambda ctx, batch, to=to: ctx.seek(to) for to in (2**63 - 1, 2**63, 10**30, -1, 1.5, "nowhere", None)),
        *(lambda ctx, batch, ms=ms: ctx.pause(ms) and ctx.resume() for ms in (1e308, 10**400, -1, float("nan"), "1")),
        lambda ctx, batch: ctx.pause(0, offset=2**64),
        lambda ctx, batch: ctx.mark_as_consumed(Message(ctx.topic, 0, batch.first_offset - 1.0), sync=True),
        lambda ctx, batch: ctx.mark_as_consumed(batch.first, sync=True, timeout_ms=float("inf")),
        lambda ctx, batch: ctx.commit_offsets(sync=True, timeout_ms="soon"),
        lambda ctx, batch: ctx.produce(out, b"", timestamp_ms=2**63 - 1),
        lambda ctx, batch: ctx.produce(out, b"", headers=[("h", b"")] * 10_000),
        lambda ctx, batch: setattr(batch.first, "offset", "5") or ctx.mark_as_consumed(batch.first),
    ]


def test_nothing_that_a_handler_says_breaks_the_client(kafka: Observer) -> None:
    topic, out, group = kafka.topic(), kafka.topic(), kafka.group()
    app, seen, said = make_app(kafka, group, auto_commit_interval_ms=20), list[Any](), 0
    broken: list[Any] = []

    @app.observe
    def watch(event: Any) -> None:
        if isinstance(event, events.ClientFailed | events.Crashed | events.Lost | events.Stopping):
            broken.append(event)

    @app.topic(topic, manual_offsets=True, max_messages=1, backoff_ms=1, backoff_max_ms=1)
    def listen(batch: Any, ctx: Any) -> None:
        nonlocal said
        ctx.mark_as_consumed(batch.last)
        seen.append(batch.first_offset)
        if said < len(words):
            said += 1
            words[said - 1](ctx, batch)

    words = odd_words(out)
    with running(app):
        for number in range(len(words)):

            def goes_on(number: int = number) -> bool:
                kafka.produce(topic, [number])  # again and again: a seek may have gone past the one before
                return said > number

            wait_until(goes_on, message=f"it goes on after word {number}")
        count = len(seen)
        kafka.produce(topic, ["after all"])
        wait_until(lambda: len(seen) > count, message="messages go on")
        wait_until(lambda: kafka.committed(group, topic) == kafka.end_offset(topic), message="commits go on")
        assert broken == []
