"""The life of what an app sends with: opened by a message, closed by a stop, opened again."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any

import pytest
from support.observer import wait_until

from karafka_lite import events
from karafka_lite import sender as sender_module
from karafka_lite.messages import Addressed
from karafka_lite.runner import System
from karafka_lite.sender import Sender

MESSAGE = Addressed("t", b"1")


class StubOutbox:
    def __init__(self, emit: Any, unanswered: int = 0) -> None:
        self.emit, self.unanswered = emit, unanswered
        self.done: list[object] = []

    def send(self, message: Addressed) -> Future[tuple[int, int]]:
        self.done.append(message)
        return Future()

    def check(self) -> None:
        self.done.append("check")

    def flush(self, timeout_s: float) -> int:
        self.done.append(timeout_s)
        return self.unanswered

    def close(self) -> None:
        self.done.append("close")


def sender_of(made: list[StubOutbox], unanswered: int = 0) -> Sender:
    def make(emit: Any) -> Any:
        made.append(StubOutbox(emit, unanswered))
        return made[-1]

    return Sender(System(), make)


def test_it_opens_with_a_message_is_flushed_and_closed_and_opens_again() -> None:
    made: list[StubOutbox] = []
    sender, before = sender_of(made), set(threading.enumerate())
    sender.close(5)
    assert (made, sender.is_open) == ([], False)
    sender.send(MESSAGE)
    sender.send(MESSAGE)
    assert sender.is_open
    sender.close(5)
    assert set(threading.enumerate()) == before, "no thread is left"
    assert [outbox.done for outbox in made] == [[MESSAGE, MESSAGE, 5, "close"]]
    sender.send(MESSAGE)
    sender.close(0)
    assert len(made) == 2


def test_what_has_no_answer_at_the_close_is_said(caplog: pytest.LogCaptureFixture) -> None:
    sender = sender_of([], unanswered=3)
    sender.send(MESSAGE)
    sender.close(2)
    (line,) = caplog.messages
    assert line.startswith("app.produce: no answer from a broker within 2 s at the stop to messages: 3; ")


def test_messages_without_an_answer_are_looked_at_while_nobody_sends_and_what_is_said_is_logged_elsewhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sender_module, "LOOK_S", 0.01)
    made: list[StubOutbox] = []
    sender = sender_of(made)
    sender.send(MESSAGE)
    try:
        wait_until(lambda: made[0].done.count("check") > 1, message="it is looked at")
        made[0].emit(events.Unreachable("", "kafka:9092 is asleep"))
        wait_until(lambda: "kafka:9092 is asleep" in caplog.text, message="it is logged")
        assert {record.threadName for record in caplog.records} == {"karafka-log"}
    finally:
        sender.close(0)
