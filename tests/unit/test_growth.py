"""A lag that grows for ten minutes is said; one that goes up and down is not. The clock is the test's."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import pytest

from karafka_lite import events
from karafka_lite.observers.growth import Growth
from karafka_lite.observers.progress import Progress


class Scene:
    def __init__(self) -> None:
        self.progress = Progress()
        self.growth = Growth(self.progress)

    def minutes(self, lags: Iterable[int], topic: str = "orders") -> None:
        """Each minute the partition has a batch, after which its lag is one of ``lags``."""
        for lag in lags:
            call = ("g", topic, 0, "store", None, 0, 9, 1)
            self.progress.observe(events.CallEnded(*call, 0.1, 10, lag=lag))
            self.growth.look(60.0)


@pytest.fixture
def scene(caplog: pytest.LogCaptureFixture) -> Scene:
    caplog.set_level(logging.WARNING, logger="karafka_lite")
    return Scene()


def test_a_lag_that_grows_for_ten_minutes_is_said_and_again_after_ten_more(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.minutes(range(1000, 11_000, 1000))
    assert caplog.messages == []
    scene.minutes([11_000])
    (said,) = caplog.messages
    assert said.startswith("group g: the lag of orders has grown for 10 minutes, from 1,000 to 11,000: more comes in")
    scene.minutes(range(12_000, 21_000, 1000))
    assert len(caplog.messages) == 1
    scene.minutes([21_000])
    assert "from 11,000 to 21,000" in caplog.messages[1]


@pytest.mark.parametrize(
    "lags",
    [[*range(10), 9, *range(10, 19)], [7] * 30, list(range(40, 0, -1)), [0, 5] * 15],
    ids=["once less", "the same", "less", "up and down"],
)
def test_a_lag_that_does_not_always_grow_is_not_said(
    scene: Scene, caplog: pytest.LogCaptureFixture, lags: list[int]
) -> None:
    scene.minutes(lags)
    assert caplog.messages == []


def test_each_topic_has_its_own_and_one_that_went_begins_anew(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.minutes(range(6))
    scene.progress.observe(events.Lost("g", (("orders", 0),)))
    scene.growth.look(60.0)
    scene.minutes(range(6, 12))
    assert caplog.messages == []
    scene.minutes([0] * 5, "clicks")
    assert caplog.messages == []
