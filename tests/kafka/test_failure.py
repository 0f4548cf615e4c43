"""The promises of "Failure", on a real Kafka, judged from outside: what is repeated, from where, and who waits."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from pathlib import Path
from typing import Any

import pytest
from support.harness import Gate, Process, make_app, running, stopped_aside
from support.observer import Observer, wait_until

from karafka_lite import Batch, Context

QUICKLY = {"backoff_ms": 20, "backoff_max_ms": 20}


def offsets(batch: Batch) -> list[int]:
    return [message.offset for message in batch]


def failures(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "karafka_lite" and record.levelno >= logging.ERROR]


class Flaky(Exception):
    """What the handlers of these tests raise."""


# -- what is told -----------------------------------------------------------------------------------------------------


@pytest.mark.test_client
def test_an_exception_is_logged_once_with_where_it_was_which_attempt_and_the_next_try(
    kafka: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    topic, handed = kafka.topic(2), []
    kafka.produce(topic, range(3), 1)
    app = make_app(kafka)

    @app.topic(topic, backoff_ms=200, max_messages=2)
    def store(batch: Batch, ctx: Context) -> None:
        handed.append((batch.first_offset, ctx.attempt))
        if batch.last_offset == 2 and ctx.attempt < 3:
            raise Flaky("broken")

    with running(app):
        wait_until(lambda: len(handed) == 4, message="two failures, then a success")
    first, second = failures(caplog)
    assert f"{topic}-1@2" in first.getMessage()
    assert "attempt 1, Flaky: broken; " in first.getMessage()
    assert f"retrying from {topic}-1@2 in 200 ms" in first.getMessage()
    assert f"retrying from {topic}-1@2 in 400 ms" in second.getMessage()
    assert all("store" in record.getMessage() for record in (first, second)), "the handler is named"
    assert first.exc_info
    assert isinstance(first.exc_info[1], Flaky)
    assert second.exc_info is None, "its traceback has been seen"
    assert "failed at attempt 2, Flaky: broken; retrying" in second.getMessage()


@pytest.mark.test_client
def test_an_exception_of_another_type_or_line_than_before_is_shown_with_its_traceback(
    kafka: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    topic, handed = kafka.topic(), []
    kafka.produce(topic, ["x"])
    app = make_app(kafka)

    @app.topic(topic, **QUICKLY)
    def store(batch: Batch, ctx: Context) -> None:
        handed.append(ctx.attempt)
        if ctx.attempt <= 4:
            raise [Flaky, Flaky, LookupError, Flaky][ctx.attempt - 1](f"text {ctx.attempt}")

    with running(app):
        wait_until(lambda: len(handed) == 5, message="a success at the fifth try")
    told = failures(caplog)
    assert [bool(record.exc_info) for record in told] == [True, False, True, False]
    assert [record.getMessage().split(": ")[2][:6] for record in told] == ["text 1", "text 2", "text 3", "text 4"]


@pytest.mark.test_client
def test_an_error_of_ours_is_one_line_with_the_line_of_the_handler(
    kafka: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    topic, handed = kafka.topic(), []
    kafka.produce(topic, [b"{}", b"not json"])
    app = make_app(kafka)

    @app.topic(topic, **QUICKLY)
    def store(batch: Batch, ctx: Context) -> None:
        handed.append(ctx.attempt)
        if ctx.attempt == 1:
            ctx.mark_as_consumed(batch.payloads[0])  # not JSON: this raises before the mark does
        if ctx.attempt == 2:
            ctx.mark_as_consumed(b"a payload")  # type: ignore[arg-type]

    with running(app):
        wait_until(lambda: len(handed) == 3, message="a success at the third try")
    told = failures(caplog)
    lines = store.__code__.co_firstlineno
    for record, words, line in zip(told, ["DeserializationError", "TypeError"], [lines + 4, lines + 6], strict=True):
        assert record.exc_info is None
        assert words in record.getMessage()
        assert f" ({__file__}:{line}); retrying from {topic}-0@" in record.getMessage()


def test_a_run_that_holds_up_a_rebalance_or_a_stop_is_warned_of_once_with_the_setting_to_change(
    kafka: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    topic, app, gate = kafka.topic(), make_app(kafka, drain_timeout_ms=3000), Gate()
    kafka.produce(topic, ["x"])

    @app.topic(topic)
    def store(batch: Batch, ctx: Context) -> None:
        gate.wait()

    def warnings() -> list[str]:
        return [record.getMessage() for record in caplog.records if "drain_timeout_ms=3000" in record.getMessage()]

    with running(app):
        gate.reached()
        with stopped_aside(app) as answer:
            wait_until(warnings, message="the warning")
            gate.open()
            assert answer() is True
    (warning,) = warnings()
    assert f"{topic}-0@0" in warning
    assert "store has been running for " in warning
    assert "holds up a stop" in warning


def test_a_run_near_max_poll_interval_ms_is_warned_of_once_with_the_setting_to_change(
    kafka: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    topic, gate = kafka.topic(), Gate()
    app = make_app(kafka, drain_timeout_ms=1000, max_poll_interval_ms=1500)
    kafka.produce(topic, ["x"])

    @app.topic(topic)
    def store(batch: Batch, ctx: Context) -> None:
        gate.wait()

    def warnings() -> list[str]:
        return [record.getMessage() for record in caplog.records if "max_poll_interval_ms=1500" in record.getMessage()]

    with running(app):
        gate.reached()
        wait_until(warnings, message="the warning")
        gate.open()
    (warning,) = warnings()
    assert f"{topic}-0@0" in warning
    assert "store has been running for 1 s" in warning


# -- who waits, and how long ------------------------------------------------------------------------------------------


def test_the_wait_doubles_from_backoff_ms_up_to_backoff_max_ms_and_it_never_gives_up(
    kafka: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    topic = kafka.topic()
    kafka.produce(topic, ["x"])
    began: list[float] = []
    ended: list[float] = []
    app = make_app(kafka)

    @app.topic(topic, backoff_ms=100, backoff_max_ms=400)
    def store(batch: Batch, ctx: Context) -> None:
        began.append(time.monotonic())
        assert ctx.attempt == len(began)
        ended.append(time.monotonic())
        raise Flaky

    with running(app):
        wait_until(lambda: len(failures(caplog)) >= 6, message="six failures")
    told = [float(wait) for record in failures(caplog) for wait in re.findall(r" in ([\d.]+) ms$", record.getMessage())]
    assert told == [100, 200, *[400] * (len(told) - 2)]
    assert len(told) >= 5
    waited = [again - failed for failed, again in zip(ended, began[1:], strict=False)]
    assert all(wait >= least for wait, least in zip(waited, [0.1, 0.2, 0.4, 0.4, 0.4], strict=False))


def test_only_the_failed_partition_waits_and_it_holds_no_worker(kafka: Observer) -> None:
    topic, other, group = kafka.topic(2), kafka.topic(), kafka.group()
    kafka.produce(topic, range(3), 0)
    failed = Gate()
    failed.open()
    app = make_app(kafka, group, concurrency=1, auto_commit_interval_ms=50)

    @app.topic(topic, other, backoff_ms=600_000, backoff_max_ms=600_000)
    def store(batch: Batch, ctx: Context) -> None:
        if (batch.topic, batch.partition) == (topic, 0):
            failed.wait()
            raise Flaky

    with running(app):
        failed.reached()
        for number in (3, 6):
            kafka.produce(topic, range(3), 1)
            kafka.produce(other, range(3))
            wait_until(lambda number=number: kafka.committed(group, topic, 1) == number, message="the other partition")
            wait_until(lambda number=number: kafka.committed(group, other) == number, message="the other topic")
        assert kafka.committed(group, topic, 0) is None


def test_nothing_is_marked_by_a_failure_and_a_stop_need_not_wait_for_its_back_off(kafka: Observer) -> None:
    topic, group, failed, hooks = kafka.topic(), kafka.group(), Gate(), []
    kafka.produce(topic, range(4))
    failed.open()
    app = make_app(kafka, group)

    @app.topic(topic, max_messages=2, backoff_ms=600_000, backoff_max_ms=600_000)
    def store(batch: Batch, ctx: Context) -> None:
        if batch.first_offset == 2:
            failed.wait()
            raise Flaky

    @app.on_shutdown(store)
    def flush(ctx: Context) -> None:
        hooks.append((ctx.partition, ctx.stopping))

    with running(app):
        failed.reached()
    assert kafka.committed(group, topic) == 2
    assert hooks == [(0, True)], "on_shutdown also runs for a partition that waits in back-off"


# -- where the next batch starts --------------------------------------------------------------------------------------


@pytest.mark.test_client
def test_manual_the_next_batch_starts_at_the_last_mark(kafka: Observer) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(6))
    handed: list[list[int]] = []
    app = make_app(kafka, group)

    @app.topic(topic, manual_offsets=True, max_messages=4, **QUICKLY)
    def store(batch: Batch, ctx: Context) -> None:
        handed.append(offsets(batch))
        if len(handed) == 1:
            ctx.mark_as_consumed(batch[1])
            raise Flaky

    with running(app):
        wait_until(lambda: len(handed) == 2, message="the next try")
    assert handed == [[0, 1, 2, 3], [2, 3, 4, 5]]
    assert kafka.committed(group, topic) == 2


@pytest.mark.test_client
def test_manual_the_next_batch_starts_at_the_last_mark_also_when_that_is_batches_ago(kafka: Observer) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(6))
    handed: list[list[int]] = []
    app = make_app(kafka, group)

    @app.topic(topic, manual_offsets=True, max_messages=2, **QUICKLY)
    def store(batch: Batch, ctx: Context) -> None:
        handed.append(offsets(batch))
        if len(handed) == 1:
            ctx.mark_as_consumed(batch[0])
        if len(handed) == 3:
            raise Flaky

    with running(app):
        wait_until(lambda: len(handed) == 6, message="everything again")
    assert handed == [[0, 1], [2, 3], [4, 5], [1, 2], [3, 4], [5]]
    assert kafka.committed(group, topic) == 1


@pytest.mark.test_client
def test_manual_the_next_batch_starts_at_an_older_mark_when_that_was_the_last_one(kafka: Observer) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(5))
    handed: list[list[int]] = []
    app = make_app(kafka, group)

    @app.topic(topic, manual_offsets=True, **QUICKLY)
    def store(batch: Batch, ctx: Context) -> None:
        handed.append(offsets(batch))
        if len(handed) == 1:
            ctx.mark_as_consumed(batch[3])
            ctx.mark_as_consumed(batch[0])
            raise Flaky

    with running(app):
        wait_until(lambda: len(handed) == 2, message="the next try")
    assert handed == [[0, 1, 2, 3, 4], [1, 2, 3, 4]]


@pytest.mark.test_client
def test_manual_without_a_mark_the_next_batch_starts_where_this_ownership_began_also_after_several_batches(
    kafka: Observer,
) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(8))
    handed: list[list[int]] = []
    marks: dict[int, int] = {}
    app = make_app(kafka, group)

    @app.topic(topic, manual_offsets=True, max_messages=2, **QUICKLY)
    def store(batch: Batch, ctx: Context) -> None:
        handed.append(offsets(batch))
        if batch.last_offset in marks:
            ctx.mark_as_consumed(batch[marks[batch.last_offset]])
        if len(handed) == 3 and not marks:
            raise Flaky

    marks[1] = 1  # the first ownership: its mark is where the second one begins
    with running(app):
        wait_until(lambda: len(handed) == 4, message="the first ownership")
    assert kafka.committed(group, topic) == 2
    marks.clear()
    handed.clear()
    with running(app):
        wait_until(lambda: len(handed) == 6, message="everything again")
    assert handed == [[2, 3], [4, 5], [6, 7], [2, 3], [4, 5], [6, 7]]
    assert kafka.committed(group, topic) == 2


@pytest.mark.test_client
def test_automatic_the_next_batch_starts_at_the_failed_batchs_first_message(kafka: Observer) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(6))
    handed: list[list[int]] = []
    app = make_app(kafka, group)

    @app.topic(topic, max_messages=2, **QUICKLY)
    def store(batch: Batch, ctx: Context) -> None:
        handed.append(offsets(batch))
        if len(handed) in (2, 3):
            raise Flaky

    with running(app):
        wait_until(lambda: handed[-1:] == [[4, 5]], message="the last batch")
    assert handed == [[0, 1], [2, 3], [2, 3], [2, 3], [4, 5]]
    assert kafka.committed(group, topic) == 6


@pytest.mark.test_client
def test_automatic_the_next_batch_starts_at_a_mark_made_inside_the_failed_batch(kafka: Observer) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(6))
    handed: list[list[int]] = []
    app = make_app(kafka, group)

    @app.topic(topic, max_messages=4, **QUICKLY)
    def store(batch: Batch, ctx: Context) -> None:
        handed.append(offsets(batch))
        if len(handed) == 1:
            ctx.mark_as_consumed(batch[2])
            raise Flaky

    with running(app):
        wait_until(lambda: len(handed) == 2, message="the next try")
    assert handed == [[0, 1, 2, 3], [3, 4, 5]]
    assert kafka.committed(group, topic) == 6


def test_what_arrives_during_the_back_off_comes_behind_what_failed_and_nothing_twice(kafka: Observer) -> None:
    topic, group, failed = kafka.topic(), kafka.group(), Gate()
    kafka.produce(topic, range(3))
    handed: list[list[int]] = []
    app = make_app(kafka, group)

    @app.topic(topic, backoff_ms=300)
    def store(batch: Batch, ctx: Context) -> None:
        handed.append(offsets(batch))
        if len(handed) == 1:
            failed.wait()
            raise Flaky

    with running(app):
        failed.reached()
        kafka.produce(topic, range(3))  # fetched while the handler runs, and dropped when it fails
        failed.open()
        kafka.produce(topic, range(3))
        wait_until(lambda: handed[-1][-1] == 8, message="the last message")
    assert [offset for batch in handed[1:] for offset in batch] == list(range(9))
    assert kafka.committed(group, topic) == 9


# -- state, attempt, retrying -----------------------------------------------------------------------------------------


@pytest.mark.test_client
def test_state_is_kept_over_batches_and_emptied_when_a_failed_run_is_to_be_repeated(kafka: Observer) -> None:
    topic = kafka.topic()
    kafka.produce(topic, range(6))
    seen: list[list[int]] = []
    app = make_app(kafka)

    @app.topic(topic, manual_offsets=True, max_messages=2, **QUICKLY)
    def store(batch: Batch, ctx: Context) -> None:
        buffer: list[int] = ctx.state.setdefault("buffer", [])
        seen.append(list(buffer))
        buffer.extend(offsets(batch))
        if len(seen) == 2:
            raise Flaky

    with running(app):
        wait_until(lambda: len(seen) == 5, message="two runs, and three again")
    assert seen == [[], [0, 1], [], [0, 1], [0, 1, 2, 3]]


@pytest.mark.test_client
def test_state_is_not_shared_by_two_partitions_and_another_ones_failure_leaves_it_alone(kafka: Observer) -> None:
    topic, other, group = kafka.topic(2), kafka.topic(), kafka.group()
    seen: dict[tuple[str, int], list[int]] = {}
    app = make_app(kafka, group, auto_commit_interval_ms=50)

    @app.topic(topic, other, **QUICKLY)
    def store(batch: Batch, ctx: Context) -> None:
        ctx.state["count"] = ctx.state.get("count", 0) + 1
        seen.setdefault((ctx.topic, ctx.partition), []).append(ctx.state["count"])
        if ctx.topic == topic and ctx.partition == 0 and ctx.attempt == 1:
            raise Flaky

    with running(app):
        for number in (1, 2):
            for place in ((topic, 0), (topic, 1), (other, 0)):
                kafka.produce(place[0], ["x"], place[1])
                wait_until(lambda place=place, number=number: kafka.committed(group, *place) == number)
    assert seen == {(topic, 0): [1, 1, 2, 1], (topic, 1): [1, 2], (other, 0): [1, 2]}


def test_state_is_dropped_with_the_ownership_and_attempt_begins_anew(kafka: Observer) -> None:
    topic, failed = kafka.topic(), Gate()
    kafka.produce(topic, ["x"])
    seen: list[tuple[dict[Any, Any], int]] = []
    failed.open()
    app = make_app(kafka)

    @app.topic(topic, backoff_ms=600_000, backoff_max_ms=600_000)
    def store(batch: Batch, ctx: Context) -> None:
        seen.append((dict(ctx.state), ctx.attempt))
        if len(seen) == 2:
            failed.wait()
            raise Flaky
        ctx.state["from"] = len(seen)

    with running(app):
        wait_until(lambda: len(seen) == 1, message="the first batch")
        kafka.produce(topic, ["x"])
        failed.reached()
    with running(app):
        wait_until(lambda: len(seen) == 3, message="the second ownership")
    assert seen == [({}, 1), ({"from": 1}, 1), ({}, 1)]


@pytest.mark.test_client
def test_attempt_and_retrying_count_the_tries_and_are_back_at_one_after_a_success(kafka: Observer) -> None:
    topic = kafka.topic()
    kafka.produce(topic, range(3))
    seen: list[tuple[int, int, bool]] = []
    app = make_app(kafka)

    @app.topic(topic, max_messages=1, **QUICKLY)
    def store(batch: Batch, ctx: Context) -> None:
        seen.append((batch.first_offset, ctx.attempt, ctx.retrying))
        if batch.first_offset == 1 and ctx.attempt < 4:
            raise Flaky

    with running(app):
        wait_until(lambda: seen[-1:] == [(2, 1, False)], message="the last message")
    assert seen == [(0, 1, False), (1, 1, False), (1, 2, True), (1, 3, True), (1, 4, True), (2, 1, False)]


# -- what is caught ---------------------------------------------------------------------------------------------------


@pytest.mark.test_client
def test_any_base_exception_but_the_critical_ones_is_a_failed_run_that_is_tried_again(
    kafka: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    class Unusual(BaseException):
        pass

    topic, group, done = kafka.topic(), kafka.group(), []
    kafka.produce(topic, ["x"])
    raised = [Unusual("own"), GeneratorExit(), asyncio.CancelledError(), StopIteration(), Flaky()]
    app = make_app(kafka, group)

    @app.topic(topic, **QUICKLY)
    def store(batch: Batch, ctx: Context) -> None:
        if ctx.attempt <= len(raised):
            raise raised[ctx.attempt - 1]
        done.append(ctx.attempt)

    with running(app):
        wait_until(lambda: done == [6], message="a success at the sixth try")
    assert [record.exc_info[1] for record in failures(caplog) if record.exc_info] == raised
    assert kafka.committed(group, topic) == 1


@pytest.mark.test_client
def test_a_payload_that_cannot_be_decoded_fails_the_run_as_any_exception_would(
    kafka: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    topic, group, tries = kafka.topic(), kafka.group(), []
    kafka.produce(topic, [b"{}", b"not json", b"{}"])
    app = make_app(kafka, group, auto_commit_interval_ms=50)

    @app.topic(topic, max_messages=1, **QUICKLY)
    def store(batch: Batch, ctx: Context) -> None:
        tries.append(batch.first_offset)
        assert batch.payloads == ({},)

    with running(app):
        wait_until(lambda: tries[-2:] == [1, 1], message="the bad message again")
        wait_until(lambda: kafka.committed(group, topic) == 1, message="the good one before it is committed")
    assert kafka.committed(group, topic) == 1
    assert "DeserializationError" in caplog.text


def test_a_critical_exception_stops_the_app_gracefully_other_handlers_finish_and_hooks_run(
    kafka: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    topic, group, gate = kafka.topic(2), kafka.group(), Gate()
    for partition in (0, 1):
        kafka.produce(topic, range(2), partition)
    handed: list[int] = []
    hooks: list[int] = []
    app = make_app(kafka, group)

    @app.topic(topic)
    def store(batch: Batch, ctx: Context) -> None:
        handed.append(ctx.partition)
        if ctx.partition == 0:
            gate.reached()
            raise MemoryError("full")
        gate.open()
        gate.wait()
        wait_until(lambda: ctx.stopping, message="the app stops")

    @app.on_shutdown(store)
    def flush(ctx: Context) -> None:
        hooks.append(ctx.partition)

    with running(app):
        wait_until(lambda: not kafka.members(group) and len(hooks) == 2, message="the app has left by itself")
    assert sorted(handed) == sorted(hooks) == [0, 1]
    assert kafka.committed(group, topic, 0) is None
    assert kafka.committed(group, topic, 1) == 2
    (told,) = failures(caplog)
    assert told.levelno == logging.CRITICAL
    assert f"{topic}-0@0" in told.getMessage()
    assert "MemoryError: full" in told.getMessage()


CRITICAL_PROGRAM = """
    from karafka_lite import App

    app = App(os.environ["GROUP"], bootstrap_servers=BROKERS, auto_commit_interval_ms=600_000)

    @app.topic(os.environ["TOPIC"], max_messages=1, backoff_ms=1)
    def store(batch, ctx):
        say(handed=batch.first_offset)
        if batch.first_offset == 1:
            raise {raised}

    @app.on_shutdown(store)
    def flush(ctx):
        say(hook=ctx.partition, stopping=ctx.stopping)

    sys.exit(app.run())
"""


@pytest.mark.parametrize("raised", ["SystemExit(0)", "KeyboardInterrupt", "MemoryError"])
def test_after_a_critical_exception_nothing_is_marked_hooks_run_and_run_returns_one(
    kafka: Observer, tmp_path: Path, raised: str
) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(3))

    with Process(kafka, CRITICAL_PROGRAM.format(raised=raised), tmp_path, TOPIC=topic, GROUP=group) as process:
        assert process.wait() == 1, process.errors()
    assert [fact["handed"] for fact in process.facts if "handed" in fact][:2] == [0, 1]
    assert {fact["handed"] for fact in process.facts if "handed" in fact} == {0, 1}
    assert process.facts[-1] == {"hook": 0, "stopping": True}
    assert kafka.committed(group, topic) == 1, "what was finished before is committed, the message that failed is not"
    assert kafka.members(group) == [], "the group was left"


# -- hooks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [Flaky("in a hook"), SystemExit(3)], ids=["exception", "critical"])
def test_an_exception_in_a_hook_is_logged_and_the_others_the_commit_and_the_leaving_still_happen(
    kafka: Observer, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    topic, group, handed, hooks = kafka.topic(), kafka.group(), [], []
    kafka.produce(topic, range(3))
    app = make_app(kafka, group)

    @app.topic(topic, manual_offsets=True)
    def store(batch: Batch, ctx: Context) -> None:
        ctx.state["last"] = batch.last
        ctx.mark_as_consumed(batch.first)
        handed.append(batch.last_offset)

    @app.on_shutdown(store)
    def broken(ctx: Context) -> None:
        raise error

    @app.on_shutdown(store)
    def flush(ctx: Context) -> None:
        hooks.append(ctx.mark_as_consumed(ctx.state["last"]))

    with running(app):
        wait_until(lambda: handed, message="a batch")
        assert app.stop() is True
    assert hooks == [True]
    assert kafka.committed(group, topic) == 3
    assert kafka.members(group) == []
    (told,) = failures(caplog)
    assert f"{topic}-0 on_shutdown" in told.getMessage()
    assert "broken" in told.getMessage()
    assert told.exc_info
    assert told.exc_info[1] is error
