"""Signals as a wish to stop: which count, which are the same one, and what is there again afterwards."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from karafka_lite import signals
from karafka_lite.errors import ConfigurationError
from karafka_lite.forks import SIGNALS
from karafka_lite.signals import Signals


class Stopped:
    """In the place of a runner: counts how often it is asked to stop."""

    asked = 0

    def ask_to_stop(self) -> None:
        self.asked += 1


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.ended: list[int] = []
        monkeypatch.setattr(signals.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(signals.os, "_exit", self.ended.append)
        monkeypatch.setattr(signals.os, "write", lambda *_: None)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: signal.Signals(number).name)
def test_each_asks_once_and_a_second_one_within_a_second_is_the_same(clock: Clock, number: int) -> None:
    stopped = Stopped()
    with Signals() as under_test:
        under_test.ask_to_stop(stopped)
        send(number)
        clock.now += 0.9
        for again in SIGNALS:
            send(again)
        assert (stopped.asked, clock.ended) == (1, [])


def test_a_further_sigint_or_sigterm_ends_the_process_and_a_sighup_does_not(clock: Clock) -> None:
    with Signals() as under_test:
        under_test.ask_to_stop(Stopped())
        send(signal.SIGTERM)
        clock.now += 1.1
        send(signal.SIGHUP)
        assert clock.ended == []
        send(signal.SIGTERM)
        send(signal.SIGINT)
    assert clock.ended == [2, 2]


def test_one_that_comes_before_there_is_something_to_stop_is_not_forgotten(clock: Clock) -> None:
    stopped = Stopped()
    with Signals() as under_test:
        send(signal.SIGTERM)
        under_test.ask_to_stop(stopped)
        assert stopped.asked == 1


def test_the_handlers_before_are_there_again() -> None:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    with Signals():
        assert all(signal.getsignal(number) != handler for number, handler in before.items())
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


def test_a_sighup_that_nohup_ignores_stays_ignored(clock: Clock) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as under_test:
            stopped = Stopped()
            under_test.ask_to_stop(stopped)
            send(signal.SIGHUP)
            assert stopped.asked == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_outside_the_main_thread_it_is_a_mistake() -> None:
    mistakes: list[ConfigurationError] = []

    def enter() -> None:
        with pytest.raises(ConfigurationError, match="for the main thread") as caught, Signals():
            pass
        mistakes.append(caught.value)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert mistakes


# -- a question --------------------------------------------------------------------------------------------------------


def test_sigusr1_asks_and_afterwards_it_is_as_it_was(clock: Clock) -> None:
    asked: list[str] = []
    with Signals() as under_test:
        under_test.at_dump(lambda: asked.append("where?"))
        send(signal.SIGUSR1)
        send(signal.SIGUSR1)
        assert asked == ["where?"] * 2
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_a_use_that_the_program_has_for_sigusr1_stays(clock: Clock) -> None:
    got: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, _: got.append(number))
    try:
        with Signals() as under_test:
            under_test.at_dump(lambda: got.append(0))
            send(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    assert got == [signal.SIGUSR1]


def test_where_there_is_no_such_signal_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "DUMP", None)  # as on Windows
    with Signals() as under_test:
        under_test.at_dump(lambda: None)
