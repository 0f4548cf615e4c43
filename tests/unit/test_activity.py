"""One line a minute: what was done, by group and topic, and nothing of what was idle."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from karafka_lite import events
from karafka_lite.observers.activity import Activity
from karafka_lite.observers.progress import Progress


@pytest.fixture
def progress(caplog: pytest.LogCaptureFixture) -> Progress:
    caplog.set_level(logging.INFO, logger="karafka_lite")
    return Progress()


def done(partition: int = 0, messages: int = 500, topic: str = "orders", **more: Any) -> events.CallEnded:
    call = ("g", topic, partition, "store", None, 0, messages - 1, 1)
    return events.CallEnded(*call, 0.1, messages, **more)


def lines(activity: Activity, caplog: pytest.LogCaptureFixture) -> list[str]:
    caplog.clear()
    activity.log(60.2)
    return caplog.messages


def test_what_was_done_since_the_last_line_is_said_by_topic(
    progress: Progress, caplog: pytest.LogCaptureFixture
) -> None:
    activity = Activity(progress)
    for event in (done(0, lag=7), done(1, 734, lag=1000), done(0, lag=3), done(0, 1, "clicks")):
        progress.observe(event)
    assert lines(activity, caplog) == [
        "group g: orders: 1,734 messages in 3 batches, lag 1,003, 0 dead letters in the last 60 s",
        "group g: clicks: 1 message in 1 batch, lag unknown, 0 dead letters in the last 60 s",
    ]
    progress.observe(done(0, 10, lag=0, error=ValueError("bad"), reason="ValueError: bad"))
    progress.observe(events.DeadLettered("g", "orders", 0, 9, "store", 4, "ValueError: bad"))
    assert lines(activity, caplog) == [
        "group g: orders: 10 messages in 0 batches, lag 1,000, 1 dead letter, 1 failure in the last 60 s",
    ]


def test_nothing_is_said_of_what_was_idle(progress: Progress, caplog: pytest.LogCaptureFixture) -> None:
    activity = Activity(progress)
    assert lines(activity, caplog) == []
    progress.observe(done(lag=7))
    assert len(lines(activity, caplog)) == 1
    assert lines(activity, caplog) == []


@pytest.mark.parametrize(
    "gone", [events.Revoked("g", {("orders", 1): 5}, 0.1), events.Lost("g", (("orders", 1),))], ids=["revoked", "lost"]
)
def test_the_lag_is_that_of_what_is_ours(
    progress: Progress, caplog: pytest.LogCaptureFixture, gone: events.Event
) -> None:
    for event in (done(0, lag=7), done(1, lag=1000), gone):
        progress.observe(event)
    (line,) = lines(Activity(progress), caplog)
    assert ", lag 7, " in line
