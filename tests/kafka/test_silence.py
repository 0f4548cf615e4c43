"""A member that does not work says what it waits for, and one that has left knows it: whatever the brokers answer."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from threading import Thread
from typing import Any

import kafka.errors
import pytest
from support.harness import make_app, running
from support.kafka_server import JavaKafka, kafka_source
from support.observer import Observer, wait_until

from karafka_lite import App
from karafka_lite.broker import EmbeddedBroker
from karafka_lite.core import watch
from karafka_lite.errors import PollError
from karafka_lite.events import (
    Assigned,
    ClientFailed,
    Crashed,
    Event,
    Idle,
    Left,
    PollFailed,
    Stalled,
    Stopping,
    TopicsCreated,
)

# What kafka-python asks for again and again without a word: kind of request, and the errors.
SILENT = {
    "FindCoordinator": [14, 15],
    "JoinGroup": [14, 15, 16, 25],
    "SyncGroup": [15, 16, 22, 25, 27],
    "OffsetFetch": [14, 15, 88],
    "ListOffsets": [3, 6, 13, 74, 75],
    "Fetch": [3, 6, 56, 74, 75, 100, 103],
}
WAITS_FOR = {"OffsetFetch": "the starting offsets of t-0", "ListOffsets": "the starting offsets of t-0"}
WAITS_FOR |= {"Fetch": "messages of t-0"}
ENOUGH_S = 20.0


@contextmanager
def on(broker: EmbeddedBroker | JavaKafka, **options: Any) -> Iterator[tuple[App, list[Event]]]:
    app, events = App("group", bootstrap_servers=broker.bootstrap_servers), list[Event]()
    app.observe(lambda event: events.append(event))
    app.topic("t", **options)(lambda batch, ctx: None)
    app.start()
    try:
        yield app, events
    finally:
        app.stop()


def first(events: list[Event], kind: type[Event]) -> Any:
    wait_until(lambda: any(isinstance(event, kind) for event in events), ENOUGH_S, kind.__name__)
    return next(event for event in events if isinstance(event, kind))


def test_each_error_that_lasts_is_said_with_what_the_member_waits_for(
    monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    monkeypatch.setattr(watch, "AFTER_S", 0.5)
    monkeypatch.setattr(watch, "AGAIN_S", 0.5)  # so many members at once may say that they wait before they have asked
    monkeypatch.setattr("karafka_lite.client.trouble.RECENT_S", 60.0)

    def said(api: str, code: int) -> Stalled:
        def names_it(event: Event) -> bool:
            return isinstance(event, Stalled) and kafka.errors.for_code(code).__name__ in event.cause

        with EmbeddedBroker({"t": 1}) as broker:
            broker.fail(api, code, times=1_000_000)
            with on(broker) as (_, events):
                wait_until(lambda: any(map(names_it, events)), ENOUGH_S, f"{api} {code} in {events}")
                return next(event for event in events if isinstance(event, Stalled) and names_it(event))

    cells = [(api, code) for api, codes in SILENT.items() for code in codes]
    with ThreadPoolExecutor(len(cells)) as pool:
        found = list(pool.map(said, *zip(*cells, strict=True)))
    for (api, code), stalled in zip(cells, found, strict=True):
        assert stalled.for_ in (f"for {WAITS_FOR.get(api)}", "to join the group"), (api, code)


class WithoutCoordinator(JavaKafka):
    """One node whose topic of offsets wants three copies, which is Kafka's default: there is never a coordinator."""

    def __init__(self) -> None:
        super().__init__(settings={"offsets.topic.replication.factor": 3})

    def wait_until_ready(self) -> None:
        def listens() -> bool:
            with suppress(OSError), socket.create_connection(("127.0.0.1", int(self.bootstrap_servers[10:])), 1):
                return True
            return False

        wait_until(listens, self.timeout, "it listens")


@pytest.mark.kafka
def test_a_coordinator_that_is_never_available_is_said_with_the_brokers_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if (source := kafka_source()).kind != "java":
        pytest.skip(f"a Kafka with settings of its own is started with Java only; the Kafka here is {source.kind}")
    monkeypatch.setattr(watch, "AFTER_S", 0.5)
    with WithoutCoordinator() as server:
        observer = Observer(server.bootstrap_servers)
        observer.topic(name="t")
        with on(server) as (_, events):
            stalled = first(events, Stalled)
        observer.forget_clients()
    assert stalled.for_ == "to join the group"
    assert "FindCoordinator is answered with CoordinatorNotAvailableError (15)" in stalled.cause
    assert "offsets.topic.replication.factor" in stalled.cause


def test_a_controller_that_moves_ends_no_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with EmbeddedBroker({"t": 1}) as broker:
        broker.fail("CreateTopics", 41, times=4)  # kafka-python itself tries it three times
        with on(broker, dead_letter="dead") as (_, events):
            first(events, Assigned)
        assert not [event for event in events if isinstance(event, Crashed)]
        assert [event.topics for event in events if isinstance(event, TopicsCreated)] == [("dead",)]


@pytest.mark.parametrize("code", [6, 74, 103])
def test_a_fetch_that_fails_at_once_is_not_repeated_without_a_pause(code: int) -> None:
    with EmbeddedBroker({"t": 1}) as broker, on(broker) as (_, events):
        first(events, Assigned)
        broker.fail("Fetch", code, times=1_000_000)
        wait_until(lambda: len(broker._server.faults["Fetch"]) < 1_000_000, message="a fetch")
        before, began = len(broker._server.faults["Fetch"]), time.monotonic()
        wait_until(lambda: time.monotonic() - began > 1)
        assert 2 < before - len(broker._server.faults["Fetch"]) < 40


@pytest.mark.parametrize(
    ("api", "code", "waits_for"),
    [
        ("Produce", 6, "for topic out to acknowledge messages"),
        ("CreateTopics", 7, "for the brokers to create topic letters"),
    ],
)
def test_what_is_sent_or_created_in_vain_is_said(
    monkeypatch: pytest.MonkeyPatch, api: str, code: int, waits_for: str
) -> None:
    monkeypatch.setattr("karafka_lite.client.connection.AFTER_S", 0.3)
    with EmbeddedBroker({"t": 1, "out": 1}, auto_create_topics=False) as broker:
        Observer(broker.bootstrap_servers).produce("t", [1])
        broker.fail(api, code, times=1_000_000)
        app, events = App("group", bootstrap_servers=broker.bootstrap_servers), list[Event]()
        app.observe(lambda event: events.append(event))
        app.topic("t", dead_letter="letters")(lambda batch, ctx: ctx.produce("out", 1))
        starts = Thread(target=app.start)
        starts.start()
        try:
            stalled: Stalled = first(events, Stalled)
        finally:
            broker._call(broker._server.faults.clear)
            starts.join()
            app.stop()
    assert stalled.for_ == waits_for
    assert f"({code})" in stalled.cause or f"[Error {code}]" in stalled.cause


def test_a_broker_that_does_not_answer_is_a_cause_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "AFTER_S", 0.5)
    monkeypatch.setattr("karafka_lite.client.trouble.PENDING_S", 0.2)
    with EmbeddedBroker({"t": 1}) as broker:
        broker.fail("JoinGroup", 1.2)
        with on(broker) as (_, events):
            assert first(events, Stalled).cause == "JoinGroup has no answer yet"
            first(events, Assigned)


@pytest.mark.parametrize("api", ["FindCoordinator", "JoinGroup", "SyncGroup", "OffsetFetch"])
def test_error_1_outside_of_a_fetch_is_not_about_auto_offset_reset(api: str) -> None:
    with EmbeddedBroker({"t": 1}) as broker:
        broker.fail(api, 1, times=2)
        with on(broker) as (_, events):
            first(events, Assigned)
    assert not [event for event in events if isinstance(event, Stopping) and event.error is not None]
    assert not [event for event in events if isinstance(event, ClientFailed)]


@pytest.mark.parametrize(
    ("code", "says"), [(23, "use another group_id"), (24, "refuses the group_id 'group'"), (26, "session_timeout_ms=")]
)
def test_what_cannot_heal_ends_the_app_with_the_setting(code: int, says: str) -> None:
    with EmbeddedBroker({"t": 1}) as broker:
        broker.fail("JoinGroup", code)
        with on(broker) as (_, events):
            error = first(events, Stopping).error
    assert says in str(error)
    assert not [event for event in events if isinstance(event, PollFailed)]


def test_a_session_timeout_out_of_the_brokers_range_ends_the_app_with_exit_1(kafka: Observer) -> None:
    app = make_app(kafka, session_timeout_ms=300, heartbeat_interval_ms=100)
    app.topic(kafka.topic())(lambda batch, ctx: None)
    began = time.monotonic()
    assert app.run() == 1
    assert time.monotonic() - began < 5


def test_a_member_without_a_partition_says_so_once(kafka: Observer, caplog: pytest.LogCaptureFixture) -> None:
    topic, group = kafka.topic(partitions=1), kafka.group()
    caplog.set_level("INFO", "karafka_lite")
    events: list[Event] = []
    first_app, second_app = make_app(kafka, group), make_app(kafka, group)
    for app in (first_app, second_app):
        app.observe(lambda event: events.append(event))
        app.topic(topic)(lambda batch, ctx: None)
    with running(first_app), running(second_app):
        first(events, Idle)
        wait_until(lambda: "no partition for this member" in caplog.text, message="the line")


LEAVES: dict[str, Callable[[EmbeddedBroker], None]] = {
    "refused once": lambda broker: broker.fail("LeaveGroup", 16),
    "not answered once": lambda broker: broker.fail("LeaveGroup", "drop"),
}


@pytest.mark.parametrize("fault", LEAVES.values(), ids=LEAVES)
def test_leaving_is_tried_once_more(fault: Callable[[EmbeddedBroker], None]) -> None:
    with EmbeddedBroker({"t": 1}) as broker:
        with on(broker) as (_, events):
            first(events, Assigned)
            fault(broker)
        assert first(events, Left).error is None
        assert Observer(broker.bootstrap_servers).members("group") == []


def test_a_leaving_that_is_refused_is_said() -> None:
    with EmbeddedBroker({"t": 1}) as broker, on(broker) as (app, events):
        first(events, Assigned)
        broker.fail("LeaveGroup", 16, times=2)
        app.stop()
        assert "NotCoordinatorError" in repr(first(events, Left).error)
    assert not isinstance(first(events, Left).error, PollError)
