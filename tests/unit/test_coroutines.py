"""Coroutines step by step: what waits for nothing is one step, and where one is can be asked at any time."""

from __future__ import annotations

import asyncio
import gc
import threading
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from karafka_lite import ConfigurationError
from karafka_lite.coroutines import Call, drive
from karafka_lite.testing.loop import TestLoop


def names(call: Call) -> list[str]:
    return [frame.f_code.co_name for frame, _ in call.frames]


async def nothing() -> int:
    return 7


async def sleeps() -> None:
    await asyncio.sleep(0)


def test_what_waits_for_nothing_is_driven_in_one_step_and_what_waits_is_refused() -> None:
    assert drive(nothing()) == 7
    with pytest.raises(RuntimeError, match="waits for an event loop"):
        drive(sleeps())


@pytest.fixture
def loop() -> Iterator[TestLoop]:
    loop = TestLoop()
    yield loop
    loop.close()


def test_the_frames_of_a_call_are_those_of_its_coroutine_whether_it_runs_or_awaits(loop: TestLoop) -> None:
    seen: list[list[str]] = []
    calls: list[Call] = []

    async def agen() -> Any:
        await asyncio.sleep(0)
        yield 1

    async def inner() -> None:
        seen.append(names(calls[0]))
        async for _ in agen():
            pass

    async def outer() -> None:
        await inner()

    async def work(call: Call) -> None:
        calls.append(call)
        asyncio.get_running_loop().call_soon(lambda: seen.append(names(call)))
        await call.finish(outer())
        seen.append(names(call))

    loop.run(work)
    running, awaiting, ended = seen
    assert running[:2] == ["outer", "inner"]
    assert awaiting[:3] in (["outer", "inner", "agen"], ["outer", "inner"])  # Python 3.10 does not show what is in it
    assert ended == []


def test_a_call_is_cancelled_once_and_not_behind_the_users_coroutine(loop: TestLoop) -> None:
    said: list[str] = []

    async def user(call: Call) -> None:
        for _ in range(2):
            call.cancel()
            try:
                await asyncio.sleep(0)
                said.append("slept")
            except asyncio.CancelledError:
                said.append("cancelled")

    async def work(call: Call) -> None:
        await call.finish(user(call))
        call.cancelled = False
        call.cancel()
        await asyncio.sleep(0)
        said.append("ours goes on")

    loop.run(work)
    assert said == ["cancelled", "slept", "ours goes on"]


def test_nothing_is_run_where_the_loop_is_not_and_a_call_of_a_closed_one_ends_with_what_it_has_open() -> None:
    class Elsewhere:
        current, thread, is_here = None, 0, False

    async def never() -> None:
        raise AssertionError

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ConfigurationError, match="was closed while the app ran"):
            drive(Call(Elsewhere()).finish(never()))
        gc.collect()
    said: list[str] = []

    async def user() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            said.append("closed")
            await asyncio.sleep(60)

    async def work(call: Call) -> None:
        try:
            await call.finish(user())
        except (ConfigurationError, RuntimeError):  # of its second sleep
            said.append("ended")

    loop = asyncio.new_event_loop()
    call = Call(type("Here", (), {"current": None, "thread": threading.get_ident(), "is_here": True})())
    call.task = loop.create_task(work(call))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    call.abandon()
    assert said == ["closed", "ended"]


def test_a_traceback_of_user_code_shows_the_users_lines(loop: TestLoop) -> None:
    async def user() -> None:
        await asyncio.sleep(0)
        raise KeyError("mine")

    async def work(call: Call) -> None:
        with pytest.raises(KeyError) as caught:
            await call.finish(user())
        assert "user" in [step.name for step in traceback.extract_tb(caught.value.__traceback__)]

    loop.run(work)
