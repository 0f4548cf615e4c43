"""Which process is started, stopped and given up, and when. No process, no clock."""

from __future__ import annotations

import math
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from karafka_lite import Health
from karafka_lite.cli.pulse import ASK_S, Pulse
from karafka_lite.cli.supervisor import Supervisor
from karafka_lite.observers.metrics import Reading, TopicCounts

ANSWER = Health(live=True, ready=True), Reading(topics={("shop", "orders"): TopicCounts(messages=5)})


class FakeChild:
    def __init__(self, number: int) -> None:
        self.number, self.works, self.stopped, self.code = number, False, 0, None
        self.process = SimpleNamespace(pid=1000 + number)
        self.asked, self.answers = 0, list[Any]()

    def ended(self) -> Any:
        return self.code

    def stop(self) -> None:
        self.stopped += 1

    def ask(self) -> None:
        self.asked += 1


class Scene:
    def __init__(self, count: int, ask_s: float = math.inf) -> None:
        self.now, self.starts, self.bell = 0.0, list[FakeChild](), SimpleNamespace(stops=0)
        numbers = range(1, count + 1)
        self.pulse = Pulse(numbers, ask_s)
        self.supervisor = Supervisor(numbers, self.start, self.bell, self.pulse)  # type: ignore[arg-type]
        self.rest: float | None = 0.0
        self.step()

    def start(self, number: int) -> Any:
        self.starts.append(FakeChild(number))
        return self.starts[-1]

    def step(self, seconds: float = 0.0) -> list[int]:
        """The numbers that it starts after ``seconds``."""
        self.now += seconds
        before = len(self.starts)
        self.rest = self.supervisor.step(self.now)
        return [child.number for child in self.starts[before:]]

    def child(self, number: int) -> FakeChild:
        return next(child for child in reversed(self.starts) if child.number == number)

    def ends(self, number: int, code: int, *, works: bool = True) -> None:
        self.child(number).works, self.child(number).code = works, code


def test_one_that_dies_is_started_again_after_half_a_second_and_then_later_each_time() -> None:
    scene = Scene(2)
    assert [child.number for child in scene.starts] == [1, 2]
    for wait in (0.5, 1.0, 2.0):
        scene.ends(2, -signal.SIGKILL)
        assert scene.step() == []
        assert scene.rest == pytest.approx(wait)
        assert scene.step(wait - 0.01) == []
        assert scene.step(0.01) == [2]
    scene.now += 61.0
    scene.ends(2, 1)
    scene.step()
    assert scene.rest == pytest.approx(0.5), "what was more than a minute ago is forgotten"


def test_five_deaths_of_all_together_within_a_minute_end_all_with_1() -> None:
    scene = Scene(3)
    for number in (1, 2, 3, 1):
        scene.ends(number, -signal.SIGSEGV)
        scene.step()
        scene.step(10.0)
    scene.ends(2, 0)
    assert scene.step(19.0) == []
    assert [scene.child(number).stopped for number in (1, 3)] == [1, 1]
    for number in (1, 3):
        assert scene.rest is not None
        scene.ends(number, 0)
        scene.step()
    assert (scene.rest, scene.supervisor.code) == (None, 1)


@pytest.mark.parametrize("code", [1, 3])
def test_what_the_first_start_ends_with_before_it_worked_is_the_exit_code(code: int) -> None:
    scene = Scene(2)
    scene.ends(1, code, works=False)
    scene.step()
    assert scene.child(2).stopped == 1
    scene.ends(2, -signal.SIGTERM, works=False)
    assert (scene.step(), scene.rest, scene.supervisor.code) == ([], None, code)


def test_a_broker_that_is_away_at_a_later_start_is_waited_for() -> None:
    scene = Scene(1)
    scene.ends(1, -signal.SIGKILL)
    scene.step()
    assert scene.step(0.5) == [1]
    scene.ends(1, 3, works=False)
    scene.step()
    assert scene.step(1.0) == [1]


def test_a_signal_goes_to_all_at_once_and_a_second_one_too_and_nobody_is_started_again() -> None:
    scene = Scene(3)
    scene.ends(3, -signal.SIGKILL)
    scene.step()
    scene.bell.stops = 1
    assert scene.step(0.5) == []
    assert [scene.child(number).stopped for number in (1, 2)] == [1, 1]
    scene.bell.stops = 2
    scene.step()
    assert [scene.child(number).stopped for number in (1, 2)] == [2, 2]
    scene.ends(1, 0)
    scene.ends(2, 2)
    assert (scene.step(), scene.rest, scene.supervisor.code) == ([], None, 2)


def test_who_was_stopped_before_it_began_has_ended_well() -> None:
    scene = Scene(2)
    scene.bell.stops = 1
    scene.step()
    scene.ends(1, -signal.SIGTERM, works=False)
    scene.ends(2, -signal.SIGKILL)
    assert (scene.step(), scene.rest, scene.supervisor.code) == ([], None, 1)


def test_all_are_asked_how_they_are_also_while_they_stop_and_what_one_said_last_counts() -> None:
    scene = Scene(2, ASK_S)
    assert [child.asked for child in scene.starts] == [1, 1]
    assert scene.rest == ASK_S
    for child in scene.starts:
        child.answers.append(ANSWER)
    scene.step(0.1)
    assert scene.pulse.health(0.1) == Health(live=True, ready=True)
    scene.step(ASK_S)
    assert [child.asked for child in scene.starts] == [2, 2]
    scene.child(2).answers.append(ANSWER)
    scene.ends(2, -signal.SIGKILL)
    scene.step()
    assert scene.pulse.health(scene.now).reasons == ("[2] was killed by SIGKILL",)
    assert scene.pulse.reading().topics["shop", "orders"].messages == 10
    assert scene.step(0.5) == [2]
    assert scene.pulse.health(scene.now).reasons == ("[2] is starting",)
    scene.ends(2, -signal.SIGKILL)
    scene.child(1).answers.append(ANSWER)
    scene.bell.stops = 1
    scene.step(ASK_S + 0.1)
    assert scene.child(1).asked == 3
    assert scene.rest == ASK_S, "nobody is started any more"


def test_where_no_probe_is_asked_for_nobody_is_asked() -> None:
    scene = Scene(1)
    scene.step(10.0)
    assert (scene.child(1).asked, scene.rest) == (0, 60.0)
