"""The context of an async handler: what waits is awaited, and who forgets it is told."""

from __future__ import annotations

import asyncio
import gc
from concurrent.futures import Future
from typing import Any

import pytest

from karafka_lite import AsyncContext, Batch, ConfigurationError, Context, Message, ProduceError
from karafka_lite.async_context import Answer
from karafka_lite.testing import AsyncRecordingContext, context


def made(**options: Any) -> AsyncRecordingContext:
    return context("t", asynchronous=True, **options)


MESSAGES = [Message("t", 0, offset, value=b"%d" % offset) for offset in range(3)]


def test_it_is_a_context_and_what_does_not_wait_is_called_as_ever() -> None:
    ctx = made(stopping=True, state={"a": 1})
    assert isinstance(ctx, Context)
    assert isinstance(ctx, AsyncContext)
    assert ctx.mark_as_consumed(MESSAGES[0]) is True
    assert ctx.commit_offsets() is True
    assert (ctx.stopping, ctx.revoked, ctx.state) == (True, False, {"a": 1})
    assert ctx.seek(7)
    assert ctx.pause(5)
    assert (ctx.marks, ctx.sought, ctx.paused_ms) == ([1], 7, 5)
    assert [message.offset for message in made().each(Batch(MESSAGES))] == [0, 1, 2]


def test_what_waits_is_awaited_and_marks_at_the_call() -> None:
    ctx = made()

    async def main() -> None:
        pending = ctx.mark_as_consumed(MESSAGES[1], sync=True)
        assert ctx.marks == [2]
        assert await pending is True
        assert await asyncio.wait_for(ctx.commit_offsets(sync=True), 1) is True
        assert await asyncio.create_task(ctx.commit_offsets(sync=True)) is True
        assert await asyncio.gather(ctx.commit_offsets(sync=True), ctx.commit_offsets(sync=True)) == [True, True]
        assert await made(revoked=True).mark_as_consumed(MESSAGES[0], sync=True) is False
        with pytest.raises(TypeError, match="takes a Message, not dict"):
            await ctx.mark_as_consumed({}, sync=True)  # type: ignore[arg-type]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("ask", "what"),
    [
        (lambda ctx: ctx.mark_as_consumed(MESSAGES[0], sync=True), "await ctx.mark_as_consumed(…, sync=True)"),
        (lambda ctx: ctx.commit_offsets(sync=True), "await ctx.commit_offsets(sync=True)"),
    ],
)
def test_a_forgotten_await_is_a_type_error_where_the_answer_is_looked_at(ask: Any, what: str) -> None:
    with pytest.raises(TypeError) as caught:
        bool(ask(made()))
    assert str(caught.value).endswith(what)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_forgotten_await_is_warned_of_where_nobody_looks() -> None:
    def forget() -> None:
        made().commit_offsets(sync=True)
        gc.collect()

    with pytest.warns(RuntimeWarning, match="was never awaited"):
        forget()


def test_sends_are_futures_of_asyncio() -> None:
    ctx = made(dead_letter="t.dead")

    async def main() -> None:
        futures = [ctx.produce("out", number) for number in range(3)]
        assert all(isinstance(future, asyncio.Future) for future in futures)
        assert await asyncio.gather(*futures) == [(0, 0), (0, 1), (0, 2)]
        assert await ctx.produce_many("out", [3, 4]) == [(0, 3), (0, 4)]
        assert await ctx.produce_many("out", []) == []
        assert await asyncio.wait_for(ctx.dead_letter(MESSAGES[0], "no"), 1) == (0, 0)
        with pytest.raises(ConfigurationError, match="no topic for dead letters"):
            made().dead_letter(MESSAGES[0])

    asyncio.run(main())
    assert [message.topic for message in ctx.produced] == ["out"] * 5 + ["t.dead"]


def test_an_answer_is_asked_for_when_somebody_looks_and_one_that_failed_is_not_said_twice(
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked: list[int] = []

    async def main() -> None:
        sent: Future[int] = Future()
        answer = Answer(sent, lambda: asked.append(1))
        assert not asked
        assert not answer.done()
        assert asked == [1]
        sent.set_exception(ProduceError("refused"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert answer.done()
        del answer
        gc.collect()
        cancelled: Future[int] = Future()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(Answer(cancelled, print), 0.001)
        cancelled.set_result(7)
        with pytest.raises(ProduceError):
            await Answer(sent, print)

    asyncio.run(main())
    assert not caplog.records
