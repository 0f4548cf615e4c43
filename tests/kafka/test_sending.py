"""The promises of ``ctx.produce``: no input is committed without its output, and what fails is told."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.harness import Gate, Process, evict, make_app, opened, running, stopped_aside
from support.observer import BreakableKafka, Observer, wait_until

from karafka_lite import App, Batch, CommitError, Context, Outgoing, ProduceError
from karafka_lite.client.outbox import Outbox
from karafka_lite.client.producer import Producer
from karafka_lite.core.sends import Told
from karafka_lite.messages import Addressed

QUICKLY = {"backoff_ms": 20, "backoff_max_ms": 20}
AT_ONCE = {"auto_commit_interval_ms": 20}
Sent = Future[tuple[int, int]]


def describe(caplog: pytest.LogCaptureFixture) -> list[str]:
    errors = [one for one in caplog.records if one.name == "karafka_lite" and one.levelno >= logging.ERROR]
    return [record.getMessage() for record in errors]


class Outputs:
    """In the place of an app's Outbox: messages leave when the test lets them, or fail."""

    def __init__(self, app: App, *, holding: Callable[[bytes], bool] = lambda value: True) -> None:
        self.held: list[tuple[bytes, Callable[[], Sent], Sent]] = []
        self.holding = holding
        self._outbox = app._runner._outbox  # type: ignore[union-attr]
        self._plain = self._outbox.send
        self._outbox.send = self._send  # type: ignore[method-assign]

    def _send(self, message: Any, told: Told) -> Sent:
        if not self.holding(message.value):
            return self._plain(message, told)
        future: Sent = Future()
        future.add_done_callback(lambda done: told(1, done.exception()))
        self.held.append((message.value, lambda: self._plain(message), future))
        return future

    def release(self, value: bytes, failure: Exception | None = None) -> None:
        for held in [one for one in self.held if one[0] == value]:
            self.held.remove(held)
            if failure is None:
                held[2].set_result(held[1]().result(20))
            else:
                held[2].set_exception(failure)

    def release_all(self) -> None:
        self.holding = lambda value: False
        for value in {one[0] for one in self.held}:
            self.release(value)


# -- what is sent -----------------------------------------------------------------------------------------------------


@pytest.mark.test_client
def test_it_sends_key_headers_partition_and_time_and_the_future_says_where_it_is(kafka: Observer) -> None:
    topic, out, places = kafka.topic(), kafka.topic(3), []
    kafka.produce(topic, ["x"])
    app = make_app(kafka)

    @app.topic(topic)
    def forward(batch: Batch, ctx: Context) -> None:
        sent = [
            ctx.produce(out, b"raw", key="schlüssel", headers=[("h", b"\x00")], partition=2, timestamp_ms=1234),
            ctx.produce(out, {"ü": [1, 2.5, None, True]}, key=b"k", partition=0),
            ctx.produce(out, None, key="gone", partition=1),
            ctx.produce(out, "text", partition=1),
            ctx.produce(out, memoryview(b"view"), partition=1),
        ]
        places.extend(future.result(20) for future in sent)

    with running(app):
        wait_until(lambda: places)
    assert places == [(2, 0), (0, 0), (1, 0), (1, 1), (1, 2)]
    as_json, gone, text, view, raw = kafka.records(out)
    assert as_json.value().decode() == '{"ü": [1, 2.5, null, true]}'
    assert (gone.key(), gone.value(), text.value(), view.value()) == (b"gone", None, b'"text"', b"view")
    assert (raw.value(), raw.key(), raw.headers(), raw.timestamp()[1]) == (
        b"raw", "schlüssel".encode(), [("h", b"\x00")], 1234,
    )  # fmt: skip


@pytest.mark.test_client
def test_many_are_sent_in_their_order_and_the_future_says_where_each_is(kafka: Observer) -> None:
    topic, out, places = kafka.topic(), kafka.topic(3), list[Any]()
    kafka.produce(topic, ["x"])
    app = make_app(kafka)

    @app.topic(topic)
    def forward(batch: Batch, ctx: Context) -> None:
        many = [Outgoing(n, f"{n % 5}", [("n", b"%d" % n)], timestamp_ms=1000 + n) for n in range(600)]
        places.append(ctx.produce_many(out, iter([*many, Outgoing(None, partition=2), b"raw", {"a": 1}])).result(20))
        places.append(ctx.produce_many(out, ()).result(0))

    with running(app):
        wait_until(lambda: places[1:] == [[]])
    records = {(one.partition(), one.offset()): one for one in kafka.records(out)}
    assert len(records) == 603
    sent = [records[place] for place in places[0]]
    assert [one.value() for one in sent] == [*(b"%d" % n for n in range(600)), None, b"raw", b'{"a": 1}']
    assert [one.key() for one in sent[:600]] == [b"%d" % (n % 5) for n in range(600)]
    assert [one.headers() for one in sent[:600]] == [[("n", b"%d" % n)] for n in range(600)]
    assert [one.timestamp()[1] for one in sent[:600]] == [1000 + n for n in range(600)]
    assert places[0][600][0] == 2
    for key in range(5):
        assert sorted(places[0][key:600:5]) == places[0][key:600:5], "what has the same key is in order"


def test_a_key_chooses_the_partition_as_kafka_does(kafka: Observer) -> None:
    topic, out, other, done = kafka.topic(), kafka.topic(7), kafka.topic(7), []
    kafka.produce(topic, range(50))
    app = make_app(kafka)

    @app.topic(topic)
    def forward(batch: Batch, ctx: Context) -> None:
        for message in batch:
            ctx.produce(out, message.value, key=f"key-{message.payload}")
        done.append(batch.last_offset)

    with running(app):
        wait_until(lambda: done[-1:] == [49])
    kafka.produce(other, range(50), keys=[f"key-{n}" for n in range(50)])
    assert [(one.partition(), one.key()) for one in kafka.records(out)] == [
        (one.partition(), one.key()) for one in kafka.records(other)
    ]


def _recursive() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


MISTAKES: list[tuple[str, dict[str, Any], type[Exception]]] = [
    ("value: to_json cannot make bytes of object", {"value": object()}, TypeError),
    ("value: to_json cannot make bytes of float", {"value": float("nan")}, TypeError),
    ("value: to_json cannot make bytes of ", {"value": _recursive()}, TypeError),
    ("value: to_json cannot make bytes of ", {"value": "\udc80"}, TypeError),
    ("key must be bytes, a string or None, got int", {"key": 7}, TypeError),
    ("key cannot be encoded as UTF-8", {"key": "\udc80"}, ValueError),
    ("headers must be a list of (str, bytes) pairs, got ('h', 'text') in it", {"headers": [("h", "text")]}, TypeError),
    ("headers must be a list of (str, bytes) pairs, got ('h', None) in it", {"headers": [("h", None)]}, TypeError),
    ("headers must be a list of (str, bytes) pairs, got dict", {"headers": {"h": b"1"}}, TypeError),
    ("headers must be a list of (str, bytes) pairs, got str", {"headers": "ab"}, TypeError),
    ("headers must be a list of (str, bytes) pairs, got int", {"headers": 7}, TypeError),
    ("headers must be a list of (str, bytes) pairs; the name", {"headers": [("\ud800", b"")]}, ValueError),
    ("topic must be a string, got int", {"topic": 7}, TypeError),
    ("topic must be 1 to 249 of", {"topic": "no topic"}, ValueError),
    ("topic must be 1 to 249 of", {"topic": ".."}, ValueError),
    ("partition must be between 0 and 1 in topic", {"partition": 2}, ValueError),
    ("partition must be between 0 and", {"partition": -1}, ValueError),
    ("partition must be an integer, got 0.0", {"partition": 0.0}, TypeError),
    ("partition must be an integer, got '0'", {"partition": "0"}, TypeError),
    ("timestamp_ms must be an integer, got 1795690067599.5", {"timestamp_ms": 1795690067599.5}, TypeError),
    ("timestamp_ms must be between 0 and", {"timestamp_ms": -1}, ValueError),
    ("timestamp_ms must be between 0 and", {"timestamp_ms": 10**25}, ValueError),
]


@pytest.mark.test_client
def test_what_cannot_be_a_message_is_a_mistake_at_the_call_that_names_the_argument_and_nothing_has_left(
    kafka: Observer,
) -> None:
    topic, out, group = kafka.topic(), kafka.topic(2), kafka.group()
    kafka.produce(topic, ["x"])
    told: list[tuple[str, type[Exception]]] = []
    app = make_app(kafka, group, **AT_ONCE)

    @app.topic(topic)
    def forward(batch: Batch, ctx: Context) -> None:
        for _, wrong, _ in MISTAKES:
            try:
                ctx.produce(**{"topic": out, "value": b"", **wrong})
                told.append((f"accepted: {wrong}", Exception))
            except (TypeError, ValueError) as error:
                told.append((str(error), type(error)))

    with running(app):
        wait_until(lambda: kafka.committed(group, topic) == 1, message="a mistake that was caught fails nothing")
    for (text, kind), (words, wrong, expected) in zip(told, MISTAKES, strict=True):
        assert (text[: len(words)], kind) == (words, expected), wrong
    assert kafka.records(out) == []


@pytest.mark.test_client
def test_of_many_a_mistake_names_the_message_too_and_none_has_left(kafka: Observer) -> None:
    topic, out, group = kafka.topic(), kafka.topic(2), kafka.group()
    kafka.produce(topic, ["x"])
    told: list[tuple[str, type[Exception]]] = []
    app = make_app(kafka, group, **AT_ONCE)

    @app.topic(topic)
    def forward(batch: Batch, ctx: Context) -> None:
        for _, wrong, _ in MISTAKES:
            given = {"value": b"", **wrong}
            try:
                ctx.produce_many(given.pop("topic", out), [*[b""] * 9, Outgoing(**given), b""])
                told.append((f"accepted: {wrong}", Exception))
            except (TypeError, ValueError) as error:
                told.append((str(error), type(error)))

    with running(app):
        wait_until(lambda: kafka.committed(group, topic) == 1, message="a mistake that was caught fails nothing")
    for (text, kind), (words, wrong, expected) in zip(told, MISTAKES, strict=True):
        whole = f"messages[{0 if 'topic' in wrong else 9}]: {words}"
        assert (text[: len(whole)], kind) == (whole, expected), wrong
    assert kafka.records(out) == []


def test_what_is_sent_behind_the_end_of_its_run_is_a_mistake(kafka: Observer) -> None:
    topic, out, kept = kafka.topic(), kafka.topic(), []
    kafka.produce(topic, ["x"])
    app = make_app(kafka)

    @app.topic(topic)
    def forward(batch: Batch, ctx: Context) -> None:
        kept.append(ctx)

    with running(app):
        wait_until(lambda: kept and app.members[0].group.owned[topic, 0].run is None)
        with pytest.raises(RuntimeError, match=r"cannot produce after the handler has returned \(.*-0@0\)"):
            kept[0].produce(out, b"late")
    assert kafka.records(out) == []


# -- the order of acknowledgement and commit --------------------------------------------------------------------------


@pytest.mark.parametrize("manual", [False, True], ids=["automatic", "manual"])
def test_nothing_is_committed_before_what_was_sent_for_it_is_acknowledged(kafka: Observer, manual: bool) -> None:
    topic, out, group = kafka.topic(2), kafka.topic(), kafka.group()
    app, ready = make_app(kafka, group, **AT_ONCE), Gate()

    @app.topic(topic, manual_offsets=manual, max_messages=1)
    def forward(batch: Batch, ctx: Context) -> None:
        ready.wait()
        if ctx.partition == 0:
            ctx.produce(out, batch.values[0])
        if manual:
            assert ctx.mark_as_consumed(batch.last)

    with running(app), opened(ready):
        outputs = Outputs(app)
        kafka.produce(topic, [b"0", b"1"], 0)
        ready.open()
        wait_until(lambda: len(outputs.held) == 1)
        partition = app.members[0].group.owned[topic, 0]
        if manual:
            assert (partition.marks.stored, partition.marks.pending) == (1, True)
        for number in (1, 2, 3):  # commits do go on
            kafka.produce(topic, [b"x"], 1)
            wait_until(lambda number=number: kafka.committed(group, topic, 1) == number)
        assert kafka.committed(group, topic) is None
        assert kafka.records(out) == []
        outputs.release(b"0")
        wait_until(lambda: kafka.committed(group, topic) == 1)
        assert [one.value() for one in kafka.records(out)] == [b"0"]
        outputs.release_all()
        wait_until(lambda: kafka.committed(group, topic) == 2)


def test_what_was_made_from_is_committed_when_the_last_of_many_is_acknowledged(kafka: Observer) -> None:
    topic, out, group = kafka.topic(), kafka.topic(), kafka.group()
    app, ready, told = make_app(kafka, group, **AT_ONCE), Gate(), list[Any]()

    @app.topic(topic)
    def forward(batch: Batch, ctx: Context) -> None:
        ready.wait()
        ctx.produce_many(out, range(3))

    with running(app), opened(ready):
        outbox: Outbox = app._runner._outbox  # type: ignore[union-attr, assignment]
        plain = outbox.send_many

        def send_many(messages: Any, tell: Told) -> Any:
            return plain(messages, lambda *answer: told.append(partial(tell, *answer)))

        outbox.send_many = send_many  # type: ignore[method-assign, assignment]
        kafka.produce(topic, ["x"])
        ready.open()
        wait_until(lambda: told, message="they have left, and the answers are held back")
        partition = app.members[0].group.owned[topic, 0]
        assert (partition.marks.in_flight, kafka.committed(group, topic)) == (3, None)
        told.pop()()
        wait_until(lambda: kafka.committed(group, topic) == 1)
    assert [one.value() for one in kafka.records(out)] == [b"0", b"1", b"2"]


def test_marks_before_a_send_do_not_wait_for_it(kafka: Observer) -> None:
    topic, out, group = kafka.topic(), kafka.topic(), kafka.group()
    app, ready = make_app(kafka, group, **AT_ONCE), Gate()

    @app.topic(topic, manual_offsets=True)
    def forward(batch: Batch, ctx: Context) -> None:
        ready.wait()
        ctx.mark_as_consumed(batch[0])
        ctx.produce(out, b"for 1")
        ctx.mark_as_consumed(batch[1])
        ctx.produce(out, b"for 2")
        ctx.mark_as_consumed(batch[2])

    kafka.produce(topic, range(3))
    with running(app), opened(ready):
        outputs = Outputs(app)
        ready.open()
        wait_until(lambda: kafka.committed(group, topic) == 1)
        outputs.release(b"for 2")  # out of order
        outputs.release(b"for 1")
        wait_until(lambda: kafka.committed(group, topic) == 3)


def test_a_blocking_mark_waits_for_what_was_sent_before_it(kafka: Observer) -> None:
    topic, out, group, answers = kafka.topic(), kafka.topic(), kafka.group(), []
    app, ready = make_app(kafka, group), Gate()

    @app.topic(topic, manual_offsets=True)
    def forward(batch: Batch, ctx: Context) -> None:
        ready.wait()
        ctx.produce(out, b"x")
        try:
            ctx.mark_as_consumed(batch.last, sync=True, timeout_ms=200)
        except CommitError as error:
            answers.append(error)
        answers.append(ctx.commit_offsets(sync=True))

    kafka.produce(topic, range(2))
    with running(app), opened(ready):
        outputs = Outputs(app)
        ready.open()
        wait_until(lambda: answers)
        assert "a message that was sent before it has no answer yet" in str(answers[0])
        assert kafka.committed(group, topic) is None
        outputs.release_all()
        wait_until(lambda: len(answers) == 2)
        assert answers[1] is True
        assert kafka.committed(group, topic) == 2


# -- a send that fails ------------------------------------------------------------------------------------------------


def test_a_failed_send_fails_the_run_and_the_batch_comes_again_from_the_last_mark_before_it(
    kafka: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    topic, out, group, begun = kafka.topic(), kafka.topic(max_message_bytes=1000), kafka.group(), []
    kafka.produce(topic, range(6))
    app = make_app(kafka, group, **AT_ONCE)

    @app.topic(topic, manual_offsets=True, **QUICKLY)
    def forward(batch: Batch, ctx: Context) -> None:
        begun.append((batch.first_offset, ctx.attempt))
        for message in batch:
            large = message.offset == 3 and ctx.attempt == 1
            ctx.produce(out, b"x" * 5000 if large else message.value)
            ctx.mark_as_consumed(message)

    with running(app):
        wait_until(lambda: kafka.committed(group, topic) == 6)
    assert begun[0] == (0, 1)
    assert begun[1][1] == 2
    assert begun[1][0] <= 3, "the marks behind the refused message are void"
    outputs = [one.value() for one in kafka.records(out)]
    assert {*outputs} >= {b"0", b"1", b"2", b"3", b"4", b"5"}
    (line,) = describe(caplog)
    assert f"forward failed at attempt 1, ProduceError: a message of 5000 bytes is too large for topic {out}" in line
    assert "retrying from" in line
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("raises", [False, True], ids=["the run fails", "the handler raises because of it"])
def test_who_fails_by_the_fault_of_another_is_tried_again_at_once_and_that_is_no_try(
    kafka: Observer, raises: bool
) -> None:
    topic, out, dead, group = kafka.topic(), kafka.topic(), kafka.topic(), kafka.group()
    attempts: list[int] = []
    app, ready = make_app(kafka, group, **AT_ONCE), Gate()

    @app.topic(topic, dead_letter=dead, max_retries=0, max_messages=1, backoff_ms=600_000, backoff_max_ms=600_000)
    def forward(batch: Batch, ctx: Context) -> None:
        ready.wait()
        attempts.append(ctx.attempt)
        sent = ctx.produce(out, batch.values[0])
        if raises:
            try:
                sent.result(20)
            except ProduceError as error:
                raise LookupError("not sent") from error

    kafka.produce(topic, [b"1"])
    with running(app), opened(ready):
        outputs = Outputs(app)
        ready.open()
        for tries in (1, 2, 3):
            wait_until(lambda tries=tries: len(attempts) == tries and outputs.held, message="it is tried at once")
            refused = ProduceError("another message was refused")
            refused.collateral = True
            outputs.release(b"1", refused)
        wait_until(lambda: outputs.held, message="a fourth time")
        outputs.release_all()
        wait_until(lambda: kafka.committed(group, topic) == 1)
    assert attempts == [1, 1, 1, 1]
    assert kafka.records(dead) == []
    assert [one.value() for one in kafka.records(out)] == [b"1"]


def test_marks_behind_a_failed_send_are_void_and_the_stored_offset_goes_back(kafka: Observer) -> None:
    topic, out, group, raised = kafka.topic(), kafka.topic(), kafka.group(), []
    app, ready, held = make_app(kafka, group, **AT_ONCE), Gate(), Gate()

    @app.topic(topic, manual_offsets=True, backoff_ms=600_000, backoff_max_ms=600_000)
    def forward(batch: Batch, ctx: Context) -> None:
        ready.wait()
        ctx.mark_as_consumed(batch[0])
        ctx.produce(out, b"for 1")
        ctx.mark_as_consumed(batch[1])
        ctx.produce(out, b"for 2")
        ctx.mark_as_consumed(batch[2])
        held.wait()
        for ask in (
            lambda: ctx.mark_as_consumed(batch[3]),
            lambda: ctx.produce(out, b"more"),
            lambda: ctx.mark_as_consumed(batch[3], sync=True),
        ):
            try:
                ask()
            except ProduceError as error:
                raised.append(error)

    kafka.produce(topic, range(5))
    with running(app), opened(ready, held):
        outputs = Outputs(app)
        ready.open()
        held.reached()
        partition = app.members[0].group.owned[topic, 0]
        assert partition.marks.stored == 3
        outputs.release(b"for 2", ProduceError("refused"))
        assert partition.marks.stored == 2
        outputs.release(b"for 1", ProduceError("refused, too"))
        assert partition.marks.stored == 1
        held.open()
        wait_until(lambda: partition.retries.attempt == 2, message="the run has failed")
        assert len(raised) == 3, "the handler learns of it at its next step"
        assert (partition.marks.stored, partition.marks.retry_position) == (1, 1)
    assert kafka.committed(group, topic) == 1


def test_a_blocking_mark_behind_a_send_that_fails_raises(kafka: Observer) -> None:
    topic, out, group, raised = kafka.topic(), kafka.topic(), kafka.group(), []
    app, ready = make_app(kafka, group), Gate()

    @app.topic(topic, manual_offsets=True, backoff_ms=600_000, backoff_max_ms=600_000)
    def forward(batch: Batch, ctx: Context) -> None:
        ready.wait()
        ctx.produce(out, b"x")
        try:
            ctx.mark_as_consumed(batch.last, sync=True)
        except ProduceError as error:
            raised.append(error)

    kafka.produce(topic, range(2))
    with running(app), opened(ready):
        outputs = Outputs(app)
        ready.open()
        wait_until(lambda: outputs.held)
        outputs.release(b"x", ProduceError("refused"))
        wait_until(lambda: raised)
    assert kafka.committed(group, topic) is None


def test_an_exception_that_the_handler_swallows_from_a_future_fails_the_run_all_the_same(kafka: Observer) -> None:
    topic, out, group = kafka.topic(), kafka.topic(max_message_bytes=1000), kafka.group()
    kafka.produce(topic, range(2))
    app, failures = make_app(kafka, group, **AT_ONCE), []

    @app.topic(topic, **QUICKLY)
    def forward(batch: Batch, ctx: Context) -> None:
        failures.append(ctx.produce(out, b"x" * 5000).exception(20))

    with running(app):
        wait_until(lambda: len(failures) >= 3)
        assert kafka.committed(group, topic) is None
    assert all(isinstance(failure, ProduceError) for failure in failures)


def test_one_of_many_that_is_refused_fails_the_run(kafka: Observer) -> None:
    topic, out, group = kafka.topic(), kafka.topic(max_message_bytes=1000), kafka.group()
    app, refused = make_app(kafka, group, **AT_ONCE), list[Any]()

    @app.topic(topic, manual_offsets=True, **QUICKLY)
    def forward(batch: Batch, ctx: Context) -> None:
        future = ctx.produce_many(out, [b"1", b"x" * (10 if refused else 5000), b"2"])
        if not refused:
            refused.append(future.exception(20))
            with pytest.raises(ProduceError, match="too large"):
                ctx.mark_as_consumed(batch.last)
        else:
            ctx.mark_as_consumed(batch.last)

    kafka.produce(topic, ["x"])
    with running(app):
        wait_until(lambda: kafka.committed(group, topic) == 1)
    assert isinstance(refused[0], ProduceError)
    assert f"a message of 5000 bytes is too large for topic {out}" in str(refused[0])
    assert [one.value() for one in kafka.records(out)][-3:] == [b"1", b"x" * 10, b"2"]


def test_one_refused_message_fails_its_own_run_and_the_producer_goes_on_for_everybody(kafka: Observer) -> None:
    """kafka-python's idempotent producer is dead behind a refused message: it is made anew."""
    topic, out, group = kafka.topic(2), kafka.topic(max_message_bytes=1000), kafka.group()
    app, refused = make_app(kafka, group, **AT_ONCE), []

    @app.topic(topic, **QUICKLY)
    def forward(batch: Batch, ctx: Context) -> None:
        if ctx.partition == 1 and not refused:
            refused.append(ctx.produce(out, b"x" * 5000).exception(20))
        for value in batch.values:
            ctx.produce(out, value)

    with running(app):
        for number in range(1, 6):
            kafka.produce(topic, [f"{number}"], 0)
            kafka.produce(topic, [f"-{number}"], 1)
        wait_until(lambda: [kafka.committed(group, topic, n) for n in (0, 1)] == [5, 5])
    assert refused
    assert {int(one.value()) for one in kafka.records(out)} == {*range(-5, 0), *range(1, 6)}


def test_a_failed_send_counts_as_a_failed_try_and_ends_as_a_dead_letter(kafka: Observer) -> None:
    topic, out, dead, group = kafka.topic(), kafka.topic(max_message_bytes=1000), kafka.topic(), kafka.group()
    kafka.produce(topic, [1, 5000, 2])
    app = make_app(kafka, group, **AT_ONCE)

    @app.topic(topic, dead_letter=dead, max_retries=1, **QUICKLY)
    def forward(batch: Batch, ctx: Context) -> None:
        for message in batch:
            ctx.produce(out, b"x" * message.payload)

    with running(app):
        wait_until(lambda: kafka.committed(group, topic) == 3)
    assert [one.value() for one in kafka.records(dead)] == [b"5000"]
    assert {one.value() for one in kafka.records(out)} == {b"x", b"xx"}


# -- the end ----------------------------------------------------------------------------------------------------------


def test_a_stop_waits_for_the_answers_and_commits_behind_them(kafka: Observer) -> None:
    topic, out, group = kafka.topic(), kafka.topic(), kafka.group()
    app, ready = make_app(kafka, group), Gate()

    @app.topic(topic)
    def forward(batch: Batch, ctx: Context) -> None:
        ready.wait()
        ctx.produce(out, b"x")

    kafka.produce(topic, range(2))
    with running(app), opened(ready):
        outputs = Outputs(app)
        ready.open()
        wait_until(lambda: outputs.held)
        with stopped_aside(app) as answer:
            wait_until(lambda: app.members[0].group.stopping)
            outputs.release_all()
            assert answer() is True
    assert kafka.committed(group, topic) == 2
    assert len(kafka.records(out)) == 1


@pytest.mark.usefixtures("impatient")
def test_a_stop_past_its_bound_commits_only_what_is_acknowledged_and_names_who_waits(
    kafka: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    topic, out, group = kafka.topic(), kafka.topic(), kafka.group()
    app, ready = make_app(kafka, group, drain_timeout_ms=300), Gate()

    @app.topic(topic, manual_offsets=True)
    def forward(batch: Batch, ctx: Context) -> None:
        ready.wait()
        ctx.mark_as_consumed(batch[0])
        ctx.produce(out, b"x")
        ctx.mark_as_consumed(batch[1])

    kafka.produce(topic, range(2))
    app.start()
    with opened(ready):
        outputs = Outputs(app)
        ready.open()
        wait_until(lambda: outputs.held)
        assert app.stop() is False
    assert kafka.committed(group, topic) == 1
    lost = f"final commit failed; messages from these offsets will be delivered again: {topic}-0@2"
    assert any(line.endswith(lost) for line in describe(caplog))
    assert any("waits for what it sent to be acknowledged" in line for line in describe(caplog))
    for _, _, future in outputs.held:
        future.set_exception(ProduceError("the test is over"))


def test_a_hand_over_waits_for_the_answers(kafka: Observer) -> None:
    topic, out, group = kafka.topic(2), kafka.topic(), kafka.group()
    app, other, ready = make_app(kafka, group), make_app(kafka, group), Gate()

    def register(app: App) -> None:
        @app.topic(topic)
        def forward(batch: Batch, ctx: Context) -> None:
            ready.wait()
            ctx.produce(out, batch.values[0])

    register(app)
    register(other)
    kafka.produce(topic, [b"0"], 0)
    kafka.produce(topic, [b"1"], 1)
    with running(app), opened(ready):
        outputs = Outputs(app)
        ready.open()
        wait_until(lambda: len(outputs.held) == 2)
        other.start()
        try:
            wait_until(lambda: app.members[0]._handing_over, message="the rebalance asks")
            assert kafka.committed(group, topic, 0) is None
            outputs.release_all()
            wait_until(lambda: [kafka.committed(group, topic, n) for n in (0, 1)] == [1, 1])
        finally:
            other.stop()
    assert {one.value() for one in kafka.records(out)} == {b"0", b"1"}


@pytest.mark.test_client
def test_hooks_may_send_and_their_marks_wait_too(kafka: Observer) -> None:
    topic, out, group = kafka.topic(), kafka.topic(), kafka.group()
    kafka.produce(topic, range(3))
    app, seen = make_app(kafka, group), []

    @app.topic(topic, manual_offsets=True)
    def collect(batch: Batch, ctx: Context) -> None:
        ctx.state.setdefault("held", []).extend(batch)
        seen.append(batch.last_offset)

    @app.on_shutdown(collect)
    def flush(ctx: Context) -> None:
        ctx.produce(out, [message.payload for message in ctx.state["held"]])
        ctx.mark_as_consumed(ctx.state["held"][-1])

    with running(app):
        wait_until(lambda: seen[-1:] == [2])
    assert [one.value() for one in kafka.records(out)] == [b"[0, 1, 2]"]
    assert kafka.committed(group, topic) == 3


def test_a_hook_whose_message_is_refused_is_logged_and_its_marks_are_void(
    kafka: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    topic, out, group = kafka.topic(), kafka.topic(max_message_bytes=1000), kafka.group()
    kafka.produce(topic, range(3))
    app, seen = make_app(kafka, group), []

    @app.topic(topic, manual_offsets=True)
    def collect(batch: Batch, ctx: Context) -> None:
        ctx.mark_as_consumed(batch.first)
        ctx.state["last"] = batch.last
        seen.append(batch.last_offset)

    @app.on_shutdown(collect)
    def flush(ctx: Context) -> None:
        ctx.produce(out, b"x" * 5000)
        ctx.mark_as_consumed(ctx.state["last"])

    with running(app):
        wait_until(lambda: seen[-1:] == [2])
    assert kafka.committed(group, topic) == 1
    (line,) = describe(caplog)
    assert "flush failed, ProduceError: a message of 5000 bytes is too large" in line
    assert "marks made after that send were discarded" in line


def test_what_was_sent_by_a_lost_ownership_arrives_and_commits_nothing(kafka: Observer) -> None:
    topic, out, group, marks = kafka.topic(), kafka.topic(), kafka.group(), []
    app, ready, held = make_app(kafka, group, **AT_ONCE), Gate(), Gate()

    @app.topic(topic, manual_offsets=True)
    def forward(batch: Batch, ctx: Context) -> None:
        if marks:
            return
        ready.wait()
        ctx.produce(out, b"x")
        ctx.mark_as_consumed(batch.last)
        held.wait()
        marks.append(ctx.mark_as_consumed(batch.last))

    kafka.produce(topic, range(2))
    with running(app), opened(ready, held):
        outputs = Outputs(app)
        ready.open()
        held.reached()
        partition = app.members[0].group.owned[topic, 0]
        evict(kafka, group)
        wait_until(lambda: partition.over)
        outputs.release_all()
        held.open()
        wait_until(lambda: marks)
    assert marks == [False]
    assert kafka.committed(group, topic) is None
    assert [one.value() for one in kafka.records(out)] == [b"x"]


# -- brokers that are down, slow, killed ------------------------------------------------------------------------------


def test_a_broker_that_goes_and_comes_back_holds_the_commits_up_and_loses_nothing(
    private_kafka: BreakableKafka,
) -> None:
    kafka = private_kafka
    topic, out, group = kafka.topic(), kafka.topic(), kafka.group()
    app = make_app(kafka, group, auto_commit_interval_ms=50, session_timeout_ms=30_000)

    @app.topic(topic, max_messages=10, **QUICKLY)
    def forward(batch: Batch, ctx: Context) -> None:
        for value in batch.values:
            ctx.produce(out, value)

    kafka.produce(topic, range(200))
    with running(app):
        wait_until(lambda: (kafka.committed(group, topic) or 0) >= 200)
        kafka.produce(topic, range(200, 300))
        partition = app.members[0].group.owned[topic, 0]
        wait_until(lambda: partition.intake.next_offset > 200)
        kafka.pause()
        with ThreadPoolExecutor(1) as aside:
            more = aside.submit(kafka.produce, topic, range(300, 310))
            kafka.resume()
            more.result()
        wait_until(lambda: (kafka.committed(group, topic) or 0) >= 300, timeout=30)
        kafka.stop()
        kafka.restart()
        kafka.produce(topic, range(310, 400))
        wait_until(lambda: (kafka.committed(group, topic) or 0) >= 400, timeout=60)
    assert {int(one.value()) for one in kafka.records(out)} >= {*range(400)}


def test_killed_between_the_mark_and_the_answer_the_input_comes_again(kafka: Observer, tmp_path: Path) -> None:
    topic, out, group = kafka.topic(2), kafka.topic(), kafka.group()
    kafka.produce(topic, range(3), 0)
    text = """
        from concurrent.futures import Future
        from karafka_lite import App
        from karafka_lite.client.outbox import Outbox

        topic, out, group, kills = sys.argv[1:]
        if kills == "yes":
            Outbox.send = lambda self, message, told: Future()  # it never leaves

        app = App(group, bootstrap_servers=BROKERS, concurrency=5, auto_commit_interval_ms=1, session_timeout_ms=2000,
                  heartbeat_interval_ms=300, fetch_max_wait_ms=50)

        @app.topic(topic, manual_offsets=True)
        def forward(batch, ctx):
            for message in batch:
                if ctx.partition == 0:
                    ctx.produce(out, message.value)
                ctx.mark_as_consumed(message)
            ctx.commit_offsets()
            say(marked=batch.last_offset)

        app.run()
    """
    with Process(kafka, text, tmp_path / "first", topic, out, group, "yes") as first:
        first.until(lambda fact: fact.get("marked") == 2)
        for number in (1, 2, 3):  # commits do go on
            kafka.produce(topic, [b"x"], 1)
            wait_until(lambda number=number: kafka.committed(group, topic, 1) == number)
        first.signal(signal.SIGKILL)
        first.wait()
    assert kafka.committed(group, topic) is None
    with Process(kafka, text, tmp_path / "second", topic, out, group, "no") as second:
        wait_until(lambda: kafka.committed(group, topic) == 3, timeout=30)
        second.signal(signal.SIGTERM)
        second.wait()
    assert {one.value() for one in kafka.records(out)} == {b"0", b"1", b"2"}


# -- the producer -----------------------------------------------------------------------------------------------------


def test_there_is_one_producer_for_all_groups_made_when_something_is_sent_first_and_closed_at_the_stop(
    kafka: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Producer] = []
    plain = Producer.connect
    monkeypatch.setattr(Producer, "connect", lambda self: (made.append(self), plain(self))[1])
    topic, out, groups = kafka.topic(), kafka.topic(), [kafka.group(), kafka.group()]
    app = make_app(kafka, groups[0], **AT_ONCE)

    def forward(batch: Batch, ctx: Context) -> None:
        if batch.last_offset:
            ctx.produce(out, ctx.group_id)

    for group in groups:
        app.topic(topic, group_id=group)(forward)
    with running(app):
        kafka.produce(topic, [0])
        wait_until(lambda: all(kafka.committed(group, topic) == 1 for group in groups))
        assert not made, "nothing was sent yet"
        kafka.produce(topic, [1])
        wait_until(lambda: all(kafka.committed(group, topic) == 2 for group in groups))
    assert len(made) == 1
    assert made[0].settings["enable_idempotence"] is True
    assert made[0].settings["acks"] == "all"
    assert made[0].dead, "closed"
    assert len(kafka.records(out)) == 2


def test_an_outbox_makes_a_new_producer_behind_a_refused_message_and_fails_when_it_is_closed(kafka: Observer) -> None:
    topic, small = kafka.topic(), kafka.topic(max_message_bytes=1000)
    outbox = Outbox([kafka.bootstrap_servers], {})
    try:
        assert outbox.send(Addressed(topic, b"1")).result(20) == (0, 0)
        first = outbox._producer
        assert isinstance(outbox.send(Addressed(small, b"x" * 5000)).exception(20), ProduceError)
        wait_until(lambda: first is not None and first.dead)
        assert outbox.send(Addressed(topic, b"2")).result(20) == (0, 1)
        assert outbox._producer is not first
    finally:
        outbox.close()
    assert "the app has stopped" in str(outbox.send(Addressed(topic, b"3")).exception(20))


@pytest.mark.test_client
def test_no_broker_for_the_producer_is_a_failed_send(kafka: Observer) -> None:
    outbox = Outbox(["127.0.0.1:1"], {"bootstrap_timeout_ms": 200})
    failure = outbox.send(Addressed("out", b"1")).exception(20)
    assert isinstance(failure, ProduceError)
    assert "topic out did not take a message (" in str(failure)
    outbox.close()


# -- what hooks send, and no broker at all ----------------------------------------------------------------------------


def test_what_was_sent_and_forgotten_by_a_buffer_comes_again_when_it_is_refused(kafka: Observer) -> None:
    source, target, group = kafka.topic(), kafka.topic(max_message_bytes=2000), kafka.group()
    app = make_app(kafka, group, auto_commit_interval_ms=50)
    refused: list[int] = []

    @app.topic(source, manual_offsets=True, max_messages=1)
    def collect(batch: Any, ctx: Any) -> None:
        ctx.state.setdefault("held", []).extend(batch)

    @app.every(collect, ms=20)
    def flush(ctx: Any) -> None:
        for message in (held := ctx.state.get("held", [])):
            if message.payload == 1 and not refused:
                refused.append(message.offset)
                ctx.produce(target, "x" * 5000)
            else:
                ctx.produce(target, message.payload)
            ctx.mark_as_consumed(message)
        held.clear()

    with running(app):
        kafka.produce(source, [0])
        wait_until(lambda: kafka.committed(group, source) == 1, message="the first one is committed")
        kafka.produce(source, [1])
        wait_until(lambda: refused, message="the second one is sent")
        kafka.produce(source, [2, 3])
        wait_until(lambda: kafka.committed(group, source) == 4, message="everything is committed")
    assert sorted({record.value() for record in kafka.records(target)}) == [b"0", b"1", b"2", b"3"]


@pytest.mark.usefixtures("impatient")
def test_a_stop_does_not_wait_for_a_producer_that_reaches_nobody(private_kafka: BreakableKafka) -> None:
    kafka, gate = private_kafka, Gate()
    source, target = kafka.topic(), kafka.topic()
    app = make_app(kafka, drain_timeout_ms=1000, bootstrap_timeout_ms=15_000)

    @app.topic(source)
    def forward(batch: Any, ctx: Any) -> None:
        gate.wait()
        ctx.produce(target, batch.first.payload)

    before = set(threading.enumerate())
    app.start()
    kafka.produce(source, [1])
    with opened(gate):
        gate.reached()
        kafka.pause()
    began = time.monotonic()
    assert app.stop() is False, "what was sent has no answer"
    took = time.monotonic() - began
    kafka.resume()
    wait_until(lambda: before.issuperset(threading.enumerate()), 30, "the worker, whom nobody waited for, has ended")
    assert took < 8, f"{took:.1f} s"


def test_what_fails_with_the_refused_message_of_somebody_else_is_not_called_too_large(kafka: Observer) -> None:
    topic = kafka.topic(max_message_bytes=2000)
    producer = Producer([kafka.bootstrap_servers], {}, idempotent=True)
    producer.connect()
    try:
        refused = producer.send(Addressed(topic, b"x" * 5000)).exception(10)
        assert "a message of 5000 bytes is too large" in str(refused)
        assert producer.dead
        failed = producer.send(Addressed(topic, b"x")).exception(10)
    finally:
        producer.close()
    assert "a message of 1 bytes is too large" not in str(failed)
