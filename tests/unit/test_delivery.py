"""Events reach observers in order, and nothing that an observer does holds up the thread that emits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from support.observer import wait_until

from karafka_lite import App, ConfigurationError
from karafka_lite.events import Event
from karafka_lite.observers import delivery
from karafka_lite.observers.delivery import Deliveries, Delivery, Observer
from karafka_lite.testing import TestClient

Start = Callable[..., Delivery]


def everything(event: Event) -> bool:
    return True


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[Delivery] = []

    def start(*observers: Observer, wants: Callable[[Event], bool] = everything) -> Delivery:
        started.append(Delivery("observers under test", observers, wants))
        started[-1].start()
        return started[-1]

    yield start
    for one in started:
        one.stop()


def emit(to: Delivery | Deliveries, count: int) -> list[Event]:
    events = [Event(str(number)) for number in range(count)]
    for event in events:
        to.emit(event)
    return events


def test_events_come_in_order_and_a_stop_delivers_the_rest(start: Start) -> None:
    seen: list[Event] = []
    threads: set[threading.Thread] = set()
    under_test = start(lambda event: (seen.append(event), threads.add(threading.current_thread())))
    events = emit(under_test, 1000)
    under_test.stop()
    assert seen == events
    assert [thread.name for thread in threads] == ["observers under test"]


def test_what_is_not_wanted_is_not_delivered(start: Start) -> None:
    seen: list[str] = []
    under_test = start(lambda event: seen.append(event.group_id), wants=lambda event: event.group_id == "3")
    emit(under_test, 5)
    under_test.stop()
    assert seen == ["3"]


def test_an_observer_that_raises_is_logged_and_all_else_goes_on(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    def broken(event: Event) -> None:
        raise ValueError(event.group_id)

    seen: list[Event] = []
    under_test = start(broken, seen.append)
    events = emit(under_test, 2)
    under_test.stop()
    assert seen == events
    assert len(caplog.records) == 2
    assert "broken" in caplog.text
    assert "ValueError: 0" in caplog.text


@pytest.mark.parametrize("error", [SystemExit(1), GeneratorExit(), KeyboardInterrupt()], ids=repr)
def test_an_observer_that_exits_does_not_end_the_thread(
    start: Start, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(event: Event) -> None:
        raise error

    seen: list[Event] = []
    under_test = start(broken, seen.append)
    events = emit(under_test, 3)
    under_test.stop()
    assert seen == events
    assert len(caplog.records) == 3


class Hangs:
    """An observer that hangs at its first event until it is released, by ``with``."""

    def __init__(self) -> None:
        self.seen: list[Event] = []
        self.inside, self._released = threading.Event(), threading.Event()

    def __call__(self, event: Event) -> None:
        self.seen.append(event)
        self.inside.set()
        self._released.wait()

    def __enter__(self) -> Hangs:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._released.set()


def test_what_comes_on_top_of_the_bound_is_dropped_and_counted(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(delivery, "MOST_WAITING", 3)
    with Hangs() as hangs:
        under_test = start(hangs)
        under_test.emit(Event("first"))
        assert hangs.inside.wait(5)
        events = emit(under_test, 10)
    under_test.stop()
    assert hangs.seen[1:] == events[:3]
    assert "7 events were dropped" in caplog.text


def test_a_stop_waits_with_a_bound_for_an_observer_that_hangs(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "END_S", 0.01)
    with Hangs() as hangs:
        under_test = start(hangs)
        emit(under_test, 2)
        assert hangs.inside.wait(5)
        under_test.stop()
        assert len(hangs.seen) == 1


def test_an_observer_may_stop_its_own_delivery(start: Start) -> None:
    ended = threading.Event()

    def stop(event: Event) -> None:
        under_test.stop()
        ended.set()

    under_test = start(stop)
    under_test.emit(Event("group"))
    assert ended.wait(2), "it waited for itself"


def test_an_observer_that_hangs_holds_up_no_count_and_no_log() -> None:
    counted: list[threading.Thread] = []
    logged: list[Event] = []
    all_logged = threading.Event()

    def log(event: Event) -> None:
        logged.append(event)
        if len(logged) == 3:
            all_logged.set()

    observers: Sequence[Observer]
    with Hangs() as hangs:
        observers = [hangs]
        under_test = Deliveries(
            [lambda event: counted.append(threading.current_thread())], Delivery("log", [log], everything), observers
        )
        under_test.start()
        events = emit(under_test, 3)
        assert all_logged.wait(5)
        assert hangs.inside.wait(5)
    under_test.stop()
    assert counted == [threading.current_thread()] * 3
    assert logged == hangs.seen == events


# -- a function of @app.observe


async def asynchronous(event: Event) -> None: ...


def generator(event: Event) -> Iterator[None]:
    yield


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (asynchronous, "asynchronous is an async function; observers must be plain functions of (event)"),
        (generator, "generator is a generator function, of which a call runs nothing; observers have no yield"),
        (lambda: None, "must accept"),
        (lambda event, ctx: None, "must accept"),
        (None, "got None"),
    ],
    ids=["async", "generator", "no argument", "two arguments", "no function"],
)
def test_what_cannot_be_called_with_an_event_is_no_observer(function: Any, words: str) -> None:
    app = App("group")
    with pytest.raises(ConfigurationError) as caught:
        app.observe(function)
    assert str(caught.value).startswith("@app.observe")
    assert words in str(caught.value)
    assert "(event)" in str(caught.value) or function is generator
    assert list(app._observers) == []


def test_an_observer_is_returned_unchanged_and_hears_of_a_run() -> None:
    app, seen = App("group"), list[Event]()

    @app.topic("orders")
    def store(batch: Any, ctx: Any) -> None: ...

    @app.observe
    def observe(event: Event) -> None:
        seen.append(event)

    assert observe.__name__ == "observe"
    with TestClient(app) as client:
        client.send("orders", 1)
        client.run()
    kinds = [type(event).__name__ for event in seen]
    assert kinds == ["Assigned", "CallEnded", "Stopping", "Committed"]


def test_an_observer_that_raises_does_not_fail_a_test_of_its_app(caplog: pytest.LogCaptureFixture) -> None:
    app = App("group")
    app.topic("orders")(lambda batch, ctx: None)
    app.observe(lambda event: 1 / 0)
    with TestClient(app) as client:
        client.send("orders", 1)
        (run,) = client.run()
    assert run.outcome == "done"
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "between events"])
def test_a_tick_comes_from_time_to_time_with_the_seconds_that_have_passed(busy: bool) -> None:
    ticks: list[float] = []
    under_test = Delivery("observers under test", [], everything, ticks.append, 0.02)
    under_test.start()

    def has_ticked() -> bool:
        if busy:
            emit(under_test, 10)
        return len(ticks) >= 3

    wait_until(has_ticked, 10, "three ticks")
    under_test.stop()
    assert min(ticks) >= 0.02
