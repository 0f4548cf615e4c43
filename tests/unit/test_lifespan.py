"""What is called once in a run: in which order, and what is closed when something fails."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Literal

import pytest

from karafka_lite import App, Router
from karafka_lite.events import Event, ProcessHookFailed
from karafka_lite.lifespan import Lifespan, ProcessHook

Kind = Literal["on_start", "on_stop"]


class Story:
    """``open a``, ``open b``, then ``close a``, ``close b``; those of ``failing`` raise."""

    def __init__(self, *names: str, failing: dict[str, BaseException] | None = None) -> None:
        self.told: list[str] = []
        self.failing = failing or {}
        self.events: list[Event] = []
        self.threads: list[int | None] = []
        kinds: list[tuple[Kind, str]] = [("on_start" if "open" in name else "on_stop", name) for name in names]
        hooks = [ProcessHook(kind, self.hook(name)) for kind, name in kinds]
        self.lifespan = Lifespan(hooks, self.events.append, lambda: 7)

    def hook(self, name: str) -> Callable[[], None]:
        def call() -> None:
            self.told.append(name)
            self.threads.append(self.lifespan.thread)
            if name in self.failing:
                raise self.failing[name]

        return call


def test_it_opens_in_the_order_of_registration_and_closes_in_the_reverse_one() -> None:
    story = Story("open a", "close a", "open b", "close b")
    story.lifespan.start()
    assert story.told == ["open a", "open b"]
    story.lifespan.stop()
    story.lifespan.stop()
    assert story.told == ["open a", "open b", "close b", "close a"]


def test_what_only_closes_is_called_after_a_start() -> None:
    story = Story("close a")
    story.lifespan.stop()
    assert story.told == []
    story.lifespan.start()
    story.lifespan.stop()
    assert story.told == ["close a"]


@pytest.mark.parametrize("error", [OSError("no database"), SystemExit("no configuration")])
def test_a_start_that_fails_closes_what_was_opened_before_and_raises_the_same(error: BaseException) -> None:
    story = Story("open a", "open b", "open c", "close a", "close b", failing={"open b": error})
    with pytest.raises(type(error)) as raised:
        story.lifespan.start()
    assert raised.value is error
    assert story.told == ["open a", "open b", "close b", "close a"]
    story.lifespan.stop()
    assert len(story.told) == 4


def test_where_the_first_start_fails_there_is_nothing_to_close() -> None:
    story = Story("open a", "close a", failing={"open a": OSError("no database")})
    with pytest.raises(OSError, match="no database"):
        story.lifespan.start()
    assert story.told == ["open a"]


@pytest.mark.parametrize("error", [OSError("gone"), SystemExit(3)])
def test_a_close_that_fails_is_said_and_the_others_are_called(error: BaseException) -> None:
    story = Story("close a", "close b", failing={"close b": error})
    story.lifespan.start()
    story.lifespan.stop()
    assert story.told == ["close b", "close a"]
    (event,) = story.events
    assert isinstance(event, ProcessHookFailed)
    assert (event.hook, event.error) == ("on_stop", error)
    assert "call" in event.function


def test_it_knows_which_thread_is_inside() -> None:
    story = Story("open a", "close a", failing={"close a": OSError()})
    story.lifespan.start()
    story.lifespan.stop()
    assert story.threads == [7, 7]
    assert story.lifespan.thread is None


def test_the_hooks_are_those_of_a_router() -> None:
    router: Any = Router()
    assert router.on_start(int) is int
    assert router.on_stop(str) is str
    assert router.process_hooks == [ProcessHook("on_start", int), ProcessHook("on_stop", str)]


# -- an app that does not start


def unstartable(error: BaseException) -> tuple[App, list[str]]:
    """Nothing listens at its address: it is not asked."""
    app, told = App("group", bootstrap_servers="127.0.0.1:9"), list[str]()
    app.topic("orders")(lambda batch, ctx: None)

    @app.on_start
    def connect() -> None:
        told.append("connect")
        raise error

    app.on_stop(lambda: told.append("close"))
    return app, told


@pytest.mark.parametrize("error", [OSError("no database"), SystemExit("no configuration")])
def test_a_start_that_fails_raises_what_on_start_raised_and_may_be_tried_again(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    app, told = unstartable(error)
    for _ in range(2):
        with pytest.raises(type(error)) as raised:
            app.start()
        assert raised.value is error
    assert told == ["connect", "connect"]
    assert app.stop() is True
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.CRITICAL]
    name = "unstartable.<locals>.connect"
    assert said == [f"on_start: {name} failed, {type(error).__name__}: {error}; the app does not start"] * 2


def test_a_run_whose_start_fails_ends_with_exit_code_1(caplog: pytest.LogCaptureFixture) -> None:
    app, told = unstartable(OSError("no database"))
    assert app.run() == 1
    assert told == ["connect"]
    (record,) = caplog.records
    assert "OSError: no database; the app does not start" in record.getMessage()
    assert "in connect" in (record.exc_text or ""), "the user's frames"
    assert "karafka_lite/" not in (record.exc_text or "")
