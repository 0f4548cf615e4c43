"""The promises of ``dead_letter`` and ``max_retries``: one message leaves, with all that is needed to replay it."""

from __future__ import annotations

import itertools
import logging
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaException
from confluent_kafka import Message as Found
from confluent_kafka.admin import AdminClient, NewTopic
from support.harness import Gate, Process, make_app, opened, running
from support.observer import Observer, wait_until

from karafka_lite import Batch, ConfigurationError, Context, Message

QUICKLY = {"backoff_ms": 10, "backoff_max_ms": 20}
BAD = (10, 50, 90)


class Poison(Exception):
    """What a handler of these tests cannot digest."""


def headers_of(found: Found) -> dict[str, str]:
    """Those that a dead letter gets, behind its own."""
    return {name: value.decode() for name, value in found.headers()[-7:]}


def sources(kafka: Observer, topic: str) -> list[int]:
    """The offsets of the messages that came to be dead letters, in the order in which they came."""
    return [int(headers_of(found)["source-offset"]) for found in kafka.records(topic)]


def describe(caplog: pytest.LogCaptureFixture) -> list[str]:
    errors = [one for one in caplog.records if one.name == "karafka_lite" and one.levelno >= logging.ERROR]
    return [record.getMessage() for record in errors]


class Poisoned:
    """An app whose handler fails at some offsets; what it did, and in which order."""

    def __init__(
        self, kafka: Observer, bad: tuple[int, ...] = BAD, *, count: int = 100, dead: Any = "dead", **options: Any
    ) -> None:
        self.kafka, self.bad, self.count = kafka, bad, count
        self.topic, self.dead, self.group = kafka.topic(), kafka.topic() if dead == "dead" else dead, kafka.group()
        self.begun: list[tuple[list[int], int]] = []
        self.processed: list[int] = []
        self.each: Callable[[Message, Context], object] = lambda message, ctx: None
        self.behind: Callable[[Batch, Context], object] = lambda batch, ctx: None
        self.app = make_app(kafka, self.group, auto_commit_interval_ms=50)

        @self.app.topic(self.topic, dead_letter=self.dead, **{**QUICKLY, "max_messages": 100, **options})
        def store(batch: Batch, ctx: Context) -> None:
            self.begun.append(([message.offset for message in batch], ctx.attempt))
            for message in batch:
                if message.offset in self.bad:
                    raise Poison(f"no good: {message.offset}")
                self.processed.append(message.offset)
                self.each(message, ctx)
            self.behind(batch, ctx)

        self.store = store

    def produce(self) -> None:
        self.kafka.produce(
            self.topic,
            [{"n": n} for n in range(self.count)],
            keys=[f"k{n}" for n in range(self.count)],
            headers=[("trace", b"\xff\x00"), ("source-topic", b"where it was before")],
        )

    def committed(self) -> int | None:
        return self.kafka.committed(self.group, self.topic)

    def run(self) -> None:
        with running(self.app):
            wait_until(lambda: self.committed() == self.count, message=f"committed {self.count}")


# -- what leaves, and what stays --------------------------------------------------------------------------------------


@pytest.mark.test_client
@pytest.mark.parametrize("mode", ["automatic", "manual"])
def test_of_a_batch_of_100_exactly_the_3_bad_ones_become_dead_letters(kafka: Observer, mode: str) -> None:
    given = Poisoned(kafka, max_retries=1, manual_offsets=mode == "manual")
    if mode == "manual":
        given.behind = lambda batch, ctx: ctx.mark_as_consumed(batch.last)
    given.produce()
    given.run()
    assert sources(kafka, given.dead) == [*BAD]
    assert set(given.processed) == {*range(100)} - {*BAD}
    assert [len(batch) for batch, _ in given.begun[:2]] == [100, 1], "one try of the batch"
    assert all(len(batch) == 1 for batch, _ in given.begun[1:]), "then one by one"
    alone = Counter(batch[0] for batch, _ in given.begun[1:])
    assert {alone[offset] for offset in BAD} == {1}, "two tries in all"


@pytest.mark.test_client
@pytest.mark.parametrize("manual", [False, True], ids=["automatic", "manual"])
def test_with_marks_on_each_message_nothing_good_is_processed_twice(kafka: Observer, manual: bool) -> None:
    given = Poisoned(kafka, manual_offsets=manual)
    given.each = lambda message, ctx: ctx.mark_as_consumed(message)
    given.produce()
    given.run()
    assert sources(kafka, given.dead) == [*BAD]
    assert given.processed == [n for n in range(100) if n not in BAD]


def test_a_dead_letter_has_everything_that_is_needed_to_replay_it(kafka: Observer) -> None:
    given = Poisoned(kafka, (0,), count=2, max_retries=2)
    given.produce()
    before = time.time() * 1000
    given.run()
    (found,) = kafka.records(given.dead)
    source = kafka.records(given.topic)[0]
    assert (found.key(), found.value()) == (b"k0", b'{"n": 0}')
    assert found.headers()[:2] == [("trace", b"\xff\x00"), ("source-topic", b"where it was before")], "its own stay"
    assert headers_of(found) == {
        "source-topic": given.topic,
        "source-partition": "0",
        "source-offset": "0",
        "source-timestamp": str(source.timestamp()[1]),
        "source-group": given.group,
        "attempts": "3",
        "error": "Poison: no good: 0",
    }
    assert found.timestamp()[1] >= before - 1000, "or its retention would be over at once"


@pytest.mark.test_client
def test_with_each_only_the_message_in_hand_is_blamed_and_the_others_stay_in_their_batches(kafka: Observer) -> None:
    topic, dead, group, begun = kafka.topic(), kafka.topic(), kafka.group(), []
    kafka.produce(topic, range(20))
    app = make_app(kafka, group, auto_commit_interval_ms=50)

    @app.topic(topic, dead_letter=dead, max_retries=1, **QUICKLY)
    def store(batch: Batch, ctx: Context) -> None:
        begun.append([message.offset for message in batch])
        for message in ctx.each(batch):
            if message.offset in (0, 19):
                raise Poison

    with running(app):
        wait_until(lambda: kafka.committed(group, topic) == 20)
    assert sources(kafka, dead) == [0, 19]
    attempts = [headers_of(found)["attempts"] for found in kafka.records(dead)]
    assert attempts == ["2", "2"]
    assert begun == [[*range(20)], [*range(20)], [*range(1, 20)], [19]]


@pytest.mark.test_client
def test_attempts_counts_every_try_of_this_message_and_no_other(kafka: Observer) -> None:
    given = Poisoned(kafka, (1, 3), count=5, max_retries=1)
    given.produce()
    given.run()
    assert [headers_of(found)["attempts"] for found in kafka.records(given.dead)] == ["2", "2"]


@pytest.mark.test_client
def test_a_message_that_was_alone_from_the_start_has_one_budget(kafka: Observer) -> None:
    given = Poisoned(kafka, (0,), count=1, max_retries=2)
    given.produce()
    given.run()
    assert given.begun == [([0], 1), ([0], 2), ([0], 3)]
    assert [headers_of(found)["attempts"] for found in kafka.records(given.dead)] == ["3"]


@pytest.mark.test_client
def test_max_retries_is_3_unless_said_otherwise_and_0_is_a_number(kafka: Observer) -> None:
    for given, tries in (Poisoned(kafka, (0,), count=1), 4), (Poisoned(kafka, (0,), count=1, max_retries=0), 1):
        given.produce()
        given.run()
        assert len(given.begun) == tries


@pytest.mark.test_client
def test_a_tombstone_without_a_key_an_empty_value_and_a_long_error_become_dead_letters(
    kafka: Observer,
) -> None:
    topic, dead, group = kafka.topic(), kafka.topic(), kafka.group()
    kafka.produce(topic, [None, b""])
    app = make_app(kafka, group, auto_commit_interval_ms=50)

    @app.topic(topic, dead_letter=dead, max_retries=0, max_messages=1, **QUICKLY)
    def store(batch: Batch, ctx: Context) -> None:
        raise Poison("x" * 10_000)

    with running(app):
        wait_until(lambda: kafka.committed(group, topic) == 2, message="both")
    nothing, empty = kafka.records(dead)
    assert (nothing.key(), nothing.value()) == (None, None)
    assert empty.value() == b""
    assert headers_of(empty)["error"].startswith("Poison: xxx")
    assert len(headers_of(empty)["error"]) == 2000


@pytest.mark.test_client
def test_a_header_of_null_and_an_exception_without_a_text_do_not_hold_up_a_dead_letter(kafka: Observer) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise TypeError("no text")

    topic, dead, group = kafka.topic(), kafka.topic(), kafka.group()
    kafka.produce(topic, ["x"], headers=[("null", None), ("own", b"1")])  # type: ignore[list-item]
    app = make_app(kafka, group, auto_commit_interval_ms=50)

    @app.topic(topic, dead_letter=dead, max_retries=1, **QUICKLY)
    def store(batch: Batch, ctx: Context) -> None:
        raise Mute

    with running(app):
        wait_until(lambda: kafka.committed(group, topic) == 1)
    (found,) = kafka.records(dead)
    assert found.headers()[:2] == [("null", b""), ("own", b"1")]
    assert headers_of(found)["error"] == "Mute"


def test_dead_letter_false_logs_and_skips(kafka: Observer, caplog: pytest.LogCaptureFixture) -> None:
    given = Poisoned(kafka, (3,), count=5, dead=False, max_retries=0)
    given.produce()
    given.run()
    assert set(given.processed) == {0, 1, 2, 4}
    (line,) = [line for line in describe(caplog) if "skipped" in line]
    assert line.startswith(f"{given.topic}-0@3: ")
    assert line.endswith("store failed 2 times, Poison: no good: 3; skipped (dead_letter=False)")


@pytest.mark.test_client
def test_what_is_told_names_the_message_the_handler_the_tries_and_where_the_dead_letter_is(
    kafka: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    given = Poisoned(kafka, (0,), count=1, max_retries=1)
    given.produce()
    given.run()
    first, last = describe(caplog)
    assert "failed at attempt 1, Poison: no good: 0; retrying from" in first
    assert last.startswith(f"{given.topic}-0@0: ")
    assert last.endswith(f"store failed 2 times, Poison: no good: 0; sent to {given.dead}-0@0")


# -- manual mode ------------------------------------------------------------------------------------------------------


def test_manual_a_dead_letter_never_commits_past_a_message_that_waits_unmarked(kafka: Observer) -> None:
    given = Poisoned(kafka, (2,), count=4, max_retries=0, manual_offsets=True)
    held = Gate()
    given.behind = lambda batch, ctx: held.wait() if batch.last_offset == 3 else None
    given.produce()
    with running(given.app), opened(held):
        held.reached()
        assert sources(kafka, given.dead) == [2]
        assert given.committed() is None


@pytest.mark.test_client
def test_manual_a_dead_letter_counts_as_marked_as_soon_as_everything_before_it_is(kafka: Observer) -> None:
    given = Poisoned(kafka, (2, 3), count=5, max_retries=0, manual_offsets=True)
    first: list[Message] = []

    def mark_before(message: Message, ctx: Context) -> None:
        first.append(message)
        if message.offset == 4:  # both are dead by now: the last one before them is marked
            ctx.mark_as_consumed(first[-2])

    given.each = mark_before
    given.produce()
    with running(given.app):
        wait_until(lambda: given.committed() == 4, message="committed behind the dead letters")
    assert sources(kafka, given.dead) == [2, 3]


@pytest.mark.test_client
def test_manual_what_waits_unmarked_before_a_dead_letter_comes_again_with_an_empty_state_and_the_dead_letter_does_not(
    kafka: Observer,
) -> None:
    """Else a buffer that was half written when the handler failed would lose what it held."""
    given = Poisoned(kafka, (), count=6, max_retries=1, manual_offsets=True)
    written: list[int] = []

    def buffer(message: Message, ctx: Context) -> None:
        held = ctx.state.setdefault("held", [])
        held.append(message)
        if message.offset == 2:
            ctx.state["held"] = []  # taken out to be written; and then it fails
            raise Poison("cannot be written")
        if message.offset == 5:
            written.extend(one.offset for one in held)
            ctx.mark_as_consumed(message)

    given.each = buffer
    given.produce()
    given.run()
    assert sources(kafka, given.dead) == [2], "once"
    assert written == [0, 1, 3, 4, 5]


@pytest.mark.test_client
def test_manual_a_success_of_its_neighbours_does_not_renew_a_budget(kafka: Observer) -> None:
    """The batches before the bad one succeed each time that they come again, unmarked; that must not go on for ever."""
    given = Poisoned(kafka, (5,), count=8, max_retries=1, manual_offsets=True, max_messages=2)
    given.each = lambda message, ctx: ctx.mark_as_consumed(message) if message.offset == 7 else None
    given.produce()
    given.run()
    assert sources(kafka, given.dead) == [5]
    assert headers_of(kafka.records(given.dead)[0])["attempts"] == "2"


def test_automatic_a_dead_letter_is_marked_at_once(kafka: Observer) -> None:
    given, held = Poisoned(kafka, (1,), count=3, max_retries=0), Gate()
    given.each = lambda message, ctx: held.wait() if message.offset == 2 else None
    given.bad = (1,)
    given.produce()
    with running(given.app), opened(held):
        held.reached()
        if given.begun[-1][0] != [2]:  # the first batch had all three
            pytest.fail(f"message 2 came with others: {given.begun}")
        wait_until(lambda: given.committed() == 2, message="the dead letter is committed")


# -- a dispatch that fails --------------------------------------------------------------------------------------------


def make_anew(kafka: Observer, topic: str) -> None:
    """With the broker's own settings; a producer that asks for it meanwhile may be the one that creates it."""
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers, "log_level": 0})
    admin.delete_topics([topic])[topic].result(20)

    def created() -> bool:
        with suppress(KafkaException):
            admin.create_topics([NewTopic(topic, 1)])[topic].result(20)
        return topic in admin.list_topics(timeout=20).topics

    wait_until(created, message="the topic is there again")


def test_a_dead_letter_topic_that_refuses_loses_and_marks_nothing_and_goes_on_once_it_accepts(
    kafka: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    given = Poisoned(kafka, (1,), count=3, max_retries=0, max_messages=1, dead=kafka.topic(max_message_bytes=50))
    given.produce()
    with running(given.app):
        unsent = "could not send to the dead-letter topic"
        wait_until(lambda: sum(unsent in line for line in describe(caplog)) >= 3, message="three refusals")
        assert given.committed() == 1
        assert kafka.records(given.dead) == []
        make_anew(kafka, given.dead)
        wait_until(lambda: given.committed() == 3, message="it goes on", timeout=30)
    # Not by its headers: the topic may have come between the sizes in which it is sent.
    assert [found.value() for found in kafka.records(given.dead)] == [b'{"n": 1}']
    assert set(given.processed) == {0, 2}
    line = next(line for line in describe(caplog) if unsent in line)
    assert f"too large for topic {given.dead}; raise its max.message.bytes" in line
    assert "handler error was Poison: no good: 1" in line
    assert f"retrying from {given.topic}-0@1" in line


def test_a_message_too_large_for_the_dead_letter_topic_holds_up_its_own_partition_only(kafka: Observer) -> None:
    topic, dead, group = kafka.topic(2), kafka.topic(max_message_bytes=2000), kafka.group()
    kafka.produce(topic, [b"x" * 3000], 0)
    app = make_app(kafka, group, auto_commit_interval_ms=50)
    failures: list[int] = []

    @app.topic(topic, dead_letter=dead, max_retries=0, max_messages=1, **QUICKLY)
    def store(batch: Batch, ctx: Context) -> None:
        failures.append(ctx.partition)
        raise Poison

    with running(app):
        wait_until(lambda: failures.count(0) >= 3, message="tried again and again")
        kafka.produce(topic, [b"small"] * 5, 1)
        wait_until(lambda: kafka.committed(group, topic, 1) == 5, message="the other partition goes on", timeout=30)
        assert kafka.committed(group, topic, 0) is None
    assert [headers_of(found)["source-partition"] for found in kafka.records(dead)].count("0") == 0


def test_of_a_dead_letter_that_is_too_large_the_added_headers_are_left_out_and_never_the_message(
    kafka: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    topic, dead, group = kafka.topic(), kafka.topic(max_message_bytes=2000), kafka.group()
    kafka.produce(topic, [b"s", b"m" * 1500, b"l" * 1850], headers=[("own", b"1")])
    app = make_app(kafka, group, auto_commit_interval_ms=50)

    @app.topic(topic, dead_letter=dead, max_retries=0, max_messages=1, **QUICKLY)
    def store(batch: Batch, ctx: Context) -> None:
        raise Poison("x" * 1000)

    with running(app):
        wait_until(lambda: kafka.committed(group, topic) == 3, message="all three are given up", timeout=30)
    found = kafka.records(dead)
    assert [one.value()[:1] for one in found] == [b"s", b"m", b"l"]
    added = ["source-topic", "source-partition", "source-offset", "source-timestamp", "source-group", "attempts"]
    names = [[name for name, _ in one.headers()] for one in found]
    assert names == [["own", *added, "error"], ["own", *added], ["own"]]
    lines = [line for line in describe(caplog) if "sent to" in line]
    assert "without" not in lines[0]
    assert f"sent to {dead}-0@1," in lines[1]
    assert lines[1].endswith(", without the headers error: with them it is too large for that topic")
    assert lines[2].startswith(f"{topic}-0@2: "), "it says where it was, and where it is"
    assert f"sent to {dead}-0@2," in lines[2]


# -- killed at each step ----------------------------------------------------------------------------------------------

STEPS = ["failed", "given up", "sent", "acknowledged", "set aside", "committed"]


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_each_step_between_the_failure_and_the_commit_nothing_is_lost_and_at_most_one_is_repeated(
    kafka: Observer, tmp_path: Path, step: str
) -> None:
    topic, dead, group = kafka.topic(), kafka.topic(), kafka.group()
    kafka.produce(topic, range(5))
    text = """
        from karafka_lite import App
        from karafka_lite.client import consumer, outbox
        from karafka_lite.core import ownership

        topic, dead, group, step = sys.argv[1:]

        def fault(where):
            if where == step:
                say(killed=where)
                os.kill(os.getpid(), 9)

        def around(owner, name, before=None, after=None):
            plain = getattr(owner, name)
            def wrapped(*arguments, **named):
                fault(before)
                result = plain(*arguments, **named)
                if after == "acknowledged":
                    result.result(20)
                fault(after)
                return result
            setattr(owner, name, wrapped)

        around(ownership.Ownership, "gives_up", "failed", "given up")
        around(ownership.Ownership, "give_up", None, "set aside")
        plain_send = outbox.Outbox.send
        def send(*arguments):
            future = plain_send(*arguments)
            fault("sent")
            if step == "acknowledged":
                future.result(20)
                fault("acknowledged")
            return future
        outbox.Outbox.send = send
        plain_commit = consumer.Client.commit
        def commit(self, commits, generation):
            refusals = plain_commit(self, commits, generation)
            if not refusals and any(one.offset == 3 for one in commits):
                fault("committed")
            return refusals
        consumer.Client.commit = commit

        app = App(group, bootstrap_servers=BROKERS, auto_commit_interval_ms=1, session_timeout_ms=2000,
                  heartbeat_interval_ms=300, fetch_max_wait_ms=50)

        @app.topic(topic, dead_letter=dead, max_retries=0, max_messages=1)
        def store(batch, ctx):
            if batch.first_offset == 2:
                raise ValueError("poison")
            if batch.first_offset == 3 and step == "committed":
                time.sleep(60)  # the commit of the dead letter comes first
            say(processed=batch.first_offset)

        say(started=True)
        app.run()
    """
    with Process(kafka, text, tmp_path / "first", topic, dead, group, step) as first:
        first.until(lambda fact: fact.get("killed") == step)
        assert first.wait() == -signal.SIGKILL
    done = [fact["processed"] for fact in first.facts if "processed" in fact]
    with Process(kafka, text, tmp_path / "second", topic, dead, group, "none") as second:
        wait_until(lambda: kafka.committed(group, topic) == 5, timeout=30, message="everything is committed")
        second.signal(signal.SIGTERM)
        second.wait()
    done += [fact["processed"] for fact in second.facts if "processed" in fact]
    letters = sources(kafka, dead)
    assert {*done, *letters} == {0, 1, 2, 3, 4}, "nothing is lost"
    assert {*letters} == {2}
    assert len(done) + len(letters) <= 6 + (step != "committed"), (done, letters)
    assert len(letters) <= 2
    if step in ("failed", "given up", "committed"):
        assert letters == [2], "not sent before, or committed before"


# -- by hand ----------------------------------------------------------------------------------------------------------


@pytest.mark.test_client
def test_by_hand_manual_it_is_marked_as_soon_as_everything_before_it_is(kafka: Observer) -> None:
    topic, dead, group = kafka.topic(), kafka.topic(), kafka.group()
    kafka.produce(topic, [{"id": 1}, {}], keys=["a", "b"])
    app, places = make_app(kafka, group), []

    @app.topic(topic, manual_offsets=True, dead_letter=dead)
    def store(batch: Batch, ctx: Context) -> None:
        for message in batch:
            if "id" not in message.payload:
                places.append(ctx.dead_letter(message, "no id").result(20))
        ctx.commit_offsets(sync=True)
        places.append(kafka.committed(group, topic))
        ctx.mark_as_consumed(batch.first, sync=True)
        places.append(kafka.committed(group, topic))

    with running(app):
        wait_until(lambda: len(places) == 3)
    assert places[1:] == [None, 2]
    assert places[:1] == [(0, 0)]
    (found,) = kafka.records(dead)
    assert (found.key(), found.value()) == (b"b", b"{}")
    assert headers_of(found) == {
        "source-topic": topic, "source-partition": "0", "source-offset": "1", "source-group": group,
        "source-timestamp": str(kafka.records(topic)[1].timestamp()[1]), "attempts": "1", "error": "no id",
    }  # fmt: skip


@pytest.mark.test_client
@pytest.mark.parametrize("way", ["by each", "by a batch", "by hand"])
@pytest.mark.parametrize("manual", [False, True], ids=["automatic", "manual"])
def test_of_1000_messages_with_5_bad_ones_exactly_5_are_dead_letters(
    kafka: Observer, way: str, manual: bool, caplog: pytest.LogCaptureFixture
) -> None:
    topic, dead, group, bad = kafka.topic(), kafka.topic(), kafka.group(), [0, 7, 500, 501, 999]
    kafka.produce(topic, ["bad" if n in bad else n for n in range(1000)])
    app, processed = make_app(kafka, group, auto_commit_interval_ms=50), Counter[int]()

    @app.topic(topic, dead_letter=dead, manual_offsets=manual, max_retries=1, max_messages=100, **QUICKLY)
    def store(batch: Batch, ctx: Context) -> None:
        for message in ctx.each(batch) if way == "by each" else batch:
            if message.value != b"bad":
                processed[message.offset] += 1
            elif way == "by hand":
                ctx.dead_letter(message, "no good")
            else:
                raise Poison("no good")
        if manual and way != "by each":
            ctx.mark_as_consumed(batch.last)

    with running(app):
        wait_until(lambda: kafka.committed(group, topic) == 1000, timeout=30)
    assert sources(kafka, dead) == bad
    assert set(processed) == {*range(1000)} - {*bad}
    if way != "by a batch":
        assert set(processed.values()) == {1}
    assert sum("sent to" in record.getMessage() for record in caplog.records) == 5


def test_by_hand_a_dead_letter_that_is_refused_fails_the_run_and_its_message_comes_again(kafka: Observer) -> None:
    topic, dead, group = kafka.topic(), kafka.topic(max_message_bytes=2000), kafka.group()
    kafka.produce(topic, [b"x" * 5000, b"small"])
    app, begun = make_app(kafka, group, auto_commit_interval_ms=50), []

    @app.topic(topic, dead_letter=dead, deserializer=None, max_retries=1, **QUICKLY)
    def store(batch: Batch, ctx: Context) -> None:
        begun.append(batch.first_offset)
        if batch.first_offset == 0 and len(begun) < 3:
            ctx.dead_letter(batch.first)

    with running(app):
        wait_until(lambda: kafka.committed(group, topic) == 2)
    assert begun[:3] == [0, 0, 0]


@pytest.mark.test_client
def test_by_hand_what_cannot_be_a_dead_letter_is_refused(kafka: Observer) -> None:
    topic, other, dead = kafka.topic(), kafka.topic(), kafka.topic()
    kafka.produce(topic, [{}])
    kafka.produce(other, [{}])
    refused: list[Exception] = []
    app = make_app(kafka)

    @app.topic(topic, dead_letter=dead)
    def store(batch: Batch, ctx: Context) -> None:
        for wrong in ({}, Message("else", 0, 0), Message(topic, 0, 7)):
            try:
                ctx.dead_letter(wrong)  # type: ignore[arg-type]
            except (TypeError, ValueError) as error:
                refused.append(error)

    @app.topic(other)
    def no_topic(batch: Batch, ctx: Context) -> None:
        try:
            ctx.dead_letter(batch.first)
        except ConfigurationError as error:
            refused.append(error)

    with running(app):
        wait_until(lambda: len(refused) == 4)
    texts = "\n".join(sorted(map(str, refused)))
    assert "dead_letter takes a Message, not dict" in texts
    assert "else-0@0 does not belong to" in texts
    assert f"{topic}-0@7 was never handed" in texts
    assert f'@app.topic({other!r}, dead_letter="{other}.dead")' in texts
    assert kafka.records(dead) == []


# -- what the handler wants goes before -------------------------------------------------------------------------------


@pytest.mark.parametrize("manual", [False, True], ids=["automatic", "manual"])
@pytest.mark.parametrize("alone", [False, True], ids=["retry", "isolation"])
@pytest.mark.parametrize("kind", ["offset", "earliest", "latest", "datetime"])
def test_a_seek_to_every_kind_of_target_works_during_retries_and_in_isolation(
    kafka: Observer, manual: bool, alone: bool, kind: str
) -> None:
    topic, dead, group = kafka.topic(), kafka.topic(), kafka.group()
    at = [1_700_000_000_000 + 1000 * n for n in range(6)]
    kafka.produce(topic, range(6), timestamps=at)
    target: Any = {"offset": 1, "datetime": datetime.fromtimestamp(at[1] / 1000, tz=timezone.utc)}.get(kind, kind)
    expected = {"offset": 1, "datetime": 1, "earliest": 0, "latest": 6}[kind]
    app, begun, sought = make_app(kafka, group), [], []

    @app.topic(topic, dead_letter=dead, max_retries=1, manual_offsets=manual, **QUICKLY)
    def store(batch: Batch, ctx: Context) -> None:
        begun.append(batch.first_offset)
        if not sought:
            if len(batch) == 1 if alone else ctx.attempt == 2:
                sought.append(len(begun))
                ctx.seek(target)
            raise Poison

    with running(app):
        wait_until(lambda: sought, message="the seek")
        if kind == "latest":
            wait_until(lambda: app.members[0].group.owned[topic, 0].intake.next_offset == 6, message="the end is found")
            kafka.produce(topic, ["new"])
        wait_until(lambda: len(begun) > sought[0], message="the next batch")
    assert begun[sought[0]] == expected
    assert kafka.records(dead) == [], "who steers does not give up"


def test_a_pause_with_an_offset_in_isolation_is_obeyed_and_the_message_is_not_given_up(kafka: Observer) -> None:
    given = Poisoned(kafka, (), count=3, max_retries=0, max_messages=1)
    began: list[float] = []

    def pause(message: Message, ctx: Context) -> None:
        if message.offset == 1:
            began.append(time.monotonic())
            if len(began) < 3:
                ctx.pause(150, offset=1)
                raise Poison

    given.each = pause
    given.produce()
    given.run()
    assert [b - a >= 0.15 for a, b in itertools.pairwise(began)] == [True, True]
    assert kafka.records(given.dead) == []


@pytest.mark.test_client
def test_each_in_isolation_and_a_marked_message_that_fails_is_not_given_up(kafka: Observer) -> None:
    given = Poisoned(kafka, (), count=3, max_retries=0, max_messages=1)

    def mark_and_fail(message: Message, ctx: Context) -> None:
        if message.offset == 1:
            ctx.mark_as_consumed(message)
            raise Poison

    given.each = mark_and_fail
    given.produce()
    given.run()
    assert given.processed == [0, 1, 2]
    assert kafka.records(given.dead) == []


def test_user_code_that_ends_the_process_is_never_a_dead_letter(kafka: Observer) -> None:
    given = Poisoned(kafka, (), count=1, max_retries=0)

    def leave(message: Message, ctx: Context) -> None:
        raise SystemExit

    given.each = leave
    given.produce()
    given.app.start()
    wait_until(lambda: given.app._runner.ended.is_set())  # type: ignore[union-attr]
    assert kafka.records(given.dead) == []
    assert given.committed() is None


@pytest.mark.test_client
def test_the_isolated_messages_do_not_wait_for_a_batch(kafka: Observer) -> None:
    given = Poisoned(kafka, (2,), count=10, max_retries=0, batch_timeout_ms=60_000, max_messages=10)
    given.produce()
    given.run()
    assert sources(kafka, given.dead) == [2]


# -- the topic for dead letters ---------------------------------------------------------------------------------------


def test_a_dead_letter_topic_that_is_missing_is_created_at_the_start(
    kafka: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "karafka_lite")
    app, names = make_app(kafka), [kafka.name("dead"), kafka.name("dead")]
    topics = [kafka.topic(), kafka.topic()]
    for topic, name in zip(topics, names, strict=True):
        app.topic(topic, dead_letter=name)(lambda batch, ctx: None)
    with running(app):
        assert [kafka.end_offset(name) for name in names] == [0, 0]
    (created,) = [record.getMessage() for record in caplog.records if "created topics" in record.getMessage()]
    assert created.endswith(", ".join(sorted(names)))


def test_dead_letter_topics_that_no_broker_creates_end_the_start_with_one_message(kafka: Observer) -> None:
    """A dot and an underscore are one and the same in the names of Kafka's metrics: it refuses the second of two."""
    app, name = make_app(kafka), kafka.name("dead")
    for number in (1, 2):
        kafka.topic(name=f"{name}.{number}")
        app.topic(kafka.topic(), dead_letter=f"{name}_{number}")(lambda batch, ctx: None)
    with pytest.raises(ConfigurationError) as refused:
        app.start()
    assert f"{name}_1 (InvalidTopic" in str(refused.value)
    assert str(refused.value).endswith(f"create them with kafka-topics.sh --create --topic {name}_1 --topic {name}_2")
