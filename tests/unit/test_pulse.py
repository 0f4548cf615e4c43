"""Several processes as one: who is live, who is ready, and sums that never go back. No process, no clock."""

from __future__ import annotations

import math

import pytest

from karafka_lite import Health
from karafka_lite.cli.pulse import ASK_S, SILENT_S, START_S, Pulse
from karafka_lite.observers.metrics import Reading, TopicCounts

GOOD = Health(live=True, ready=True)


def counted(messages: int, **lags: int) -> Reading:
    of_partition = {("shop", "orders", int(name[1:])): lag for name, lag in lags.items()}
    return Reading(topics={("shop", "orders"): TopicCounts(messages=messages)}, lags=of_partition)


def messages(pulse: Pulse) -> int:
    return pulse.reading().topics["shop", "orders"].messages


@pytest.fixture
def pulse() -> Pulse:
    """Both have been started at 0, and have answered at 1."""
    pulse = Pulse([1, 2], ASK_S)
    for number in (1, 2):
        pulse.started(number, 0.0)
        assert pulse.is_due(number, 0.5)
        pulse.answered(number, GOOD, counted(10 * number), 1.0)
    return pulse


def test_it_is_what_each_of_them_is(pulse: Pulse) -> None:
    assert pulse.health(1.0) == GOOD
    pulse.answered(1, Health(live=True, ready=False, reasons=("group shop: has not joined",)), Reading(), 2.0)
    assert pulse.health(2.0) == Health(live=True, ready=False, reasons=("[1] group shop: has not joined",))
    pulse.answered(2, Health(live=False, ready=False, reasons=("it hangs",)), Reading(), 2.0)
    told = ("[2] it hangs", "[1] group shop: has not joined")
    assert pulse.health(2.0) == Health(live=False, ready=False, reasons=told)


def test_who_does_not_answer_is_not_live_until_it_does(pulse: Pulse) -> None:
    pulse.answered(1, GOOD, Reading(), 3.0)
    assert pulse.health(1.0 + SILENT_S) == GOOD
    silent = Health(live=False, ready=False, reasons=("[2] has not answered for 6 s",))
    assert pulse.health(2.0 + SILENT_S) == silent
    pulse.answered(2, GOOD, Reading(), 8.0)
    assert pulse.health(8.0) == GOOD


def test_who_starts_is_live_and_not_ready_and_may_take_longer_for_its_first_answer() -> None:
    pulse = Pulse([1], ASK_S)
    starts = Health(live=True, ready=False, reasons=("[1] is starting",))
    assert pulse.health(0.0) == starts
    pulse.started(1, 100.0)
    assert pulse.health(100.0 + START_S) == starts
    assert not pulse.health(101.0 + START_S).live


def test_who_has_died_is_live_and_not_ready_until_the_next_one_answers(pulse: Pulse) -> None:
    pulse.ended(2, "was killed by SIGKILL")
    pulse.answered(1, GOOD, Reading(), 60.0)
    assert pulse.health(60.0) == Health(live=True, ready=False, reasons=("[2] was killed by SIGKILL",))
    pulse.started(2, 61.0)
    assert pulse.health(61.0) == Health(live=True, ready=False, reasons=("[2] is starting",))
    pulse.answered(2, GOOD, Reading(), 62.0)
    assert pulse.health(62.0) == GOOD


def test_each_is_asked_every_second_but_not_before_it_has_answered(pulse: Pulse) -> None:
    assert not pulse.is_due(1, 1.4)
    assert pulse.is_due(1, 1.6)
    assert pulse.is_due(2, 1.6)
    assert not pulse.is_due(1, 90.0), "what it does not read does not pile up"
    pulse.ended(1, "was killed by SIGKILL")
    assert pulse.is_due(1, 90.0), "its successor owes nothing"


def test_where_no_probe_is_asked_for_nobody_is_asked() -> None:
    assert not Pulse([1], math.inf).is_due(1, 1e9)


def test_the_sums_never_go_back_when_one_dies_and_its_lags_go_with_it(pulse: Pulse) -> None:
    pulse.answered(1, GOOD, counted(11, p0=3), 2.0)
    pulse.answered(2, GOOD, counted(22, p1=4), 2.0)
    assert messages(pulse) == 33
    pulse.ended(2, "was killed by SIGKILL")
    assert messages(pulse) == 33
    assert pulse.reading().lags == {("shop", "orders", 0): 3}
    pulse.started(2, 3.0)
    pulse.answered(2, GOOD, counted(1, p1=9), 4.0)
    pulse.answered(1, GOOD, counted(12), 4.0)
    assert messages(pulse) == 35
    pulse.ended(2, "has ended with exit code 0")
    assert messages(pulse) == 35, "each is counted once"
