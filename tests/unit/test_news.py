"""What happens in a group as events: their fields, their order, and that no thread waits for another."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest
from support.partitions import Partitions, hook

from karafka_lite import events
from karafka_lite.core.answers import Outcome, Slow
from karafka_lite.core.marks import Refusal
from karafka_lite.core.options import Hook
from karafka_lite.core.starts import Start
from karafka_lite.observers.news import News


class Told(News):
    """News with a list of what was emitted."""

    def __init__(self) -> None:
        self.events: list[events.Event] = []
        super().__init__("group", lambda run: "store", self.events.append)


def test_what_was_collected_is_emitted_once_in_its_order() -> None:
    news = Told()
    news.add(events.TopicsCreated, ("a",))
    news.add(events.TopicsCreated, ("b",))
    assert news.events == []
    news.emit()
    news.emit()
    assert news.events == [events.TopicsCreated("group", ("a",)), events.TopicsCreated("group", ("b",))]


def test_many_threads_emit_each_event_once_and_none_fails() -> None:
    """Two that saw the same last event took it both, and the slower one died."""
    news, failed = Told(), list[Exception]()

    def emit(number: int) -> None:
        try:
            for turn in range(3000):
                news.emit_now(events.Unreachable, f"{number} {turn}")
        except Exception as error:  # noqa: BLE001 - the thread's own failure is what is looked for
            failed.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=emit, args=(number,)) for number in range(4)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert failed == []
    reasons = [event.reason for event in news.events if isinstance(event, events.Unreachable)]
    for number in range(4):
        own = [reason for reason in reasons if reason.startswith(f"{number} ")]
        assert own == [f"{number} {turn}" for turn in range(3000)], "in the order in which a thread emitted them"


def test_who_comes_while_another_emits_does_not_wait() -> None:
    inside, release = threading.Event(), threading.Event()
    seen: list[str] = []

    def slow(event: Any) -> None:
        seen.append(event.reason)
        inside.set()
        release.wait()

    news = News("group", lambda run: "store", slow)
    thread = threading.Thread(target=news.emit_now, args=(events.Unreachable, "first"))
    thread.start()
    try:
        assert inside.wait(5)
        news.emit_now(events.Unreachable, "second")  # it would hang here
        assert seen == ["first"]
    finally:
        release.set()
        thread.join()
    assert seen == ["first", "second"]


def test_an_emit_that_raises_leaves_the_rest_to_the_next() -> None:
    failures = [ZeroDivisionError("a bug")]
    seen: list[Any] = []

    def emit(event: Any) -> None:
        if failures:
            raise failures.pop()
        seen.append(event.reason)

    news = News("group", lambda run: "store", emit)
    news.add(events.Unreachable, "first")
    news.add(events.Unreachable, "second")
    with pytest.raises(ZeroDivisionError):
        news.emit()
    news.emit()
    assert seen == ["second"]


# -- what the events hold


def test_partitions_come_and_go() -> None:
    scene, news = Partitions(2), Told()
    first, second = scene[0], scene[1]
    first.marks.mark(7)
    scene.now = 5.0
    scene.commit()
    moved = Start(60, "deleted", 20, 40, begins=False)
    news.placed({first.tp: Start(7, "committed"), second.tp: Start(0, "earliest"), ("topic", 2): moved})
    news.handed_over([first, second], 0.5)
    news.lost([first])
    news.uncommitted([first])
    news.emit()
    assert news.events == [
        events.Assigned("group", {("topic", 0): (7, "committed"), ("topic", 1): (0, "earliest")}),
        events.Moved("group", "topic", 2, 20, 60, "deleted", 40),
        events.Revoked("group", {("topic", 0): 7, ("topic", 1): None}, 0.5),
        events.Lost("group", (("topic", 0),)),
        events.Uncommitted("group", {("topic", 0): 7}),
    ]


def test_a_commit_is_answered_by_partition_and_said_by_cause() -> None:
    scene, news = Partitions(4), Told()
    for number in range(4):
        scene[number].marks.mark(number)
    scene.now = 5.0
    late, gone = OSError("late"), OSError("gone")
    refusals = {
        ("topic", 1): Refusal(late),
        ("topic", 2): Refusal(gone, "gone"),
        ("topic", 3): Refusal(OSError("late")),
    }
    news.committed(scene.group.commit_batch(5.0), refusals)
    news.emit()
    assert news.events == [
        events.Committed("group", {("topic", 0): 0}),
        events.CommitFailed("group", {("topic", 1): 1, ("topic", 3): 3}, late),
        events.CommitFailed("group", {("topic", 2): 2}, gone, "gone"),
    ]


def test_nothing_is_said_of_no_partition() -> None:
    news = Told()
    news.placed({})
    news.committed([], {})
    news.handed_over([], 0.5)
    news.lost([])
    news.uncommitted([])
    news.slow([], 0.0)
    news.stuck([], 0.0)
    news.emit()
    assert news.events == []


def test_a_batch_has_ended() -> None:
    scene, news, error = Partitions(), Told(), ValueError("bad")
    scene.fetch(0, 3, 4)
    scene[0].intake.end_offset = 100
    run = scene.begin()
    news.call_ended(run, Outcome(0.5, 2))
    run.failed_with(error)
    run.in_hand = 4
    news.call_ended(run, Outcome(0.5, 1, 4, 2.0))
    news.call_ended(run, Outcome(0.5, given_up=(3, 4)), (("dead", 0, 9), ("error",)))
    news.call_ended(run, Outcome(0.5, given_up=(3, 4)))
    news.emit()
    call = ("group", "topic", 0, "store", None, 3, 4, 1)
    message = ("group", "topic", 0, 3)
    assert news.events == [
        events.CallEnded(*call, 0.5, 2, lag=95),
        events.CallEnded(*call, 0.5, 1, error, 4, 2.0, "ValueError: bad", culprit=4, lag=95),
        events.CallEnded(*call, 0.5, 0, error, None, 0.0, "ValueError: bad", 3, culprit=4, lag=95),
        events.DeadLettered(*message, "store", 4, "ValueError: bad", ("dead", 0, 9), ("error",), error),
        events.CallEnded(*call, 0.5, 0, error, None, 0.0, "ValueError: bad", 3, culprit=4, lag=95),
        events.DeadLettered(*message, "store", 4, "ValueError: bad", None, (), error),
    ]


def test_a_batch_says_after_how_many_tries_a_message_is_given_up_and_has_no_lag_when_it_is_not_ours() -> None:
    scene, news = Partitions(budget=4), Told()
    scene.fetch(0, 3)
    scene[0].intake.end_offset = 100
    run = scene.begin()
    scene.group.lose(scene.now, rejoin=False)
    news.call_ended(run, Outcome(0.5, 1))
    news.emit()
    assert [(event.tries, event.lag) for event in news.events if isinstance(event, events.CallEnded)] == [(4, None)]


def test_each_function_of_hooks_has_ended() -> None:
    scene, news, error = Partitions(hooks=(hook(Hook.EVERY, 1),)), Told(), ValueError("bad")
    scene.fetch(0, 0)
    scene.process()
    scene.now = 9.0
    run = scene.begin()
    news.hook_ended(run, "flush", 0.5, error)
    news.hook_ended(run, None, 0.5, error)
    news.emit()
    assert [
        (event.function, event.hook, event.error, event.reason)
        for event in news.events
        if isinstance(event, events.CallEnded)
    ] == [
        ("flush", "every", error, "ValueError: bad"),
        ("store", "every", error, "ValueError: bad"),
    ]


def test_a_call_takes_long_and_is_stuck() -> None:
    scene, news = Partitions(), Told()
    scene.fetch(0, 3, 4)
    run = scene.begin()
    news.slow([Slow(run, "stop", 60_000)], 31.0)
    news.stuck([(run, "the stack")], 60_000)
    news.emit()
    call = ("group", "topic", 0, "store", None, 3, 4, 1)
    assert news.events == [
        events.TakesLong(*call, 31.0, "stop", 60_000),
        events.Stuck(*call, "the stack", 60_000),
    ]
