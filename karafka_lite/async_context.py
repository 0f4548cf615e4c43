"""What an async handler may ask and do: what waits is awaited, and nothing blocks the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator, Iterable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Literal, NoReturn, TypeVar, overload

from karafka_lite.context import Context
from karafka_lite.messages import Message

T = TypeVar("T")


class AsyncContext(Context):
    """The second argument of an ``async def`` handler and the only one of its hooks: a Context whose waits are awaited.

    All that does not wait is called as ever: ``mark_as_consumed(message)``, ``commit_offsets()``, ``each``, ``seek``,
    ``pause``, ``resume``, ``revoked``, ``stopping``, ``state``. Awaited are ``mark_as_consumed(message, sync=True)``,
    ``commit_offsets(sync=True)``, and what ``produce``, ``produce_many`` and ``dead_letter`` return.

    Example::

        @app.topic("user_events", manual_offsets=True, concurrency=100)
        async def store(batch: Batch[Event], ctx: AsyncContext) -> None:
            for message in batch:
                await save(message.payload)
                if not ctx.mark_as_consumed(message):
                    return
    """

    __slots__ = ()

    @overload  # type: ignore[override] # with sync it is awaited
    def mark_as_consumed(self, message: Message, *, sync: Literal[False] = False, timeout_ms: int = ...) -> bool: ...
    @overload
    def mark_as_consumed(self, message: Message, *, sync: Literal[True], timeout_ms: int = ...) -> Pending[bool]: ...
    def mark_as_consumed(  # pyright: ignore[reportIncompatibleMethodOverride] - with sync it is awaited
        self, message: Message, *, sync: bool = False, timeout_ms: int = 30_000
    ) -> bool | Pending[bool]:
        """As ``Context.mark_as_consumed``: with ``sync=True`` the mark is made at the call, and the result is awaited.

        Example::

            if not await ctx.mark_as_consumed(message, sync=True):
                return
        """
        if sync:
            self._check_sync()
        ours = super().mark_as_consumed(message)
        return Pending(self._committed(ours, timeout_ms), "ctx.mark_as_consumed(…, sync=True)") if sync else ours

    @overload  # type: ignore[override] # with sync it is awaited
    def commit_offsets(self, *, sync: Literal[False] = False, timeout_ms: int = ...) -> bool: ...
    @overload
    def commit_offsets(self, *, sync: Literal[True], timeout_ms: int = ...) -> Pending[bool]: ...
    def commit_offsets(  # pyright: ignore[reportIncompatibleMethodOverride] - with sync it is awaited
        self, *, sync: bool = False, timeout_ms: int = 30_000
    ) -> bool | Pending[bool]:
        """As ``Context.commit_offsets``; with ``sync=True`` the result is awaited."""
        if not sync:
            return super().commit_offsets()
        self._check_sync()
        ours = self._shell.owns(self._ownership)
        return Pending(self._committed(ours, timeout_ms), "ctx.commit_offsets(sync=True)")

    async def _committed(self, ours: bool, timeout_ms: int) -> bool:
        return ours and await self._shell.commit(self._ownership, timeout_ms)

    def produce(  # type: ignore[override] # another kind of future
        self,
        topic: str,
        value: Any,
        *,
        key: bytes | str | None = None,
        headers: Iterable[tuple[str, bytes]] | None = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
    ) -> asyncio.Future[tuple[int, int]]:
        """As ``Context.produce``, but it never blocks, and returns an ``asyncio.Future``.

        Where a plain handler would wait, the message waits for its turn instead; the order is kept. A message that
        turns out to be none by then (a partition that does not exist) fails the run.

        Raises:
            TypeError, ValueError, ProduceError, RuntimeError: as ``Context.produce``.
            ProduceError: more than 32 MB of this call wait for their turn: await the future now and then.

        Example::

            partition, offset = await ctx.produce("orders.priced", price(message.payload), key=message.key)
        """
        more: dict[str, Any] = {"headers": headers, "partition": partition, "timestamp_ms": timestamp_ms}
        return self._to_await(super().produce(topic, value, key=key, **more))

    def produce_many(  # type: ignore[override] # another kind of future
        self, topic: str, messages: Iterable[Any]
    ) -> asyncio.Future[list[tuple[int, int]]]:
        """As ``Context.produce_many``; as ``produce`` it never blocks, and returns an ``asyncio.Future``."""
        return self._to_await(super().produce_many(topic, messages))

    def dead_letter(  # type: ignore[override] # another kind of future
        self, message: Message, reason: str = ""
    ) -> asyncio.Future[tuple[int, int]]:
        """As ``Context.dead_letter``; as ``produce`` it never blocks, and returns an ``asyncio.Future``."""
        return self._to_await(super().dead_letter(message, reason))

    def _to_await(self, sent: Future[T]) -> Answer[T]:
        return Answer(sent, self._shell.hand_over)


class Pending(Coroutine[Any, Any, T]):
    """A result that has to be awaited; who forgets it is told."""

    __slots__ = ("_coroutine", "_what")

    def __init__(self, coroutine: Coroutine[Any, Any, T], what: str) -> None:
        self._coroutine, self._what = coroutine, what

    def __await__(self) -> Any:
        return self._coroutine.__await__()

    def send(self, value: Any) -> Any:
        """As ``Coroutine`` has it."""
        return self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        """As ``Coroutine`` has it."""
        return self._coroutine.throw(*error)

    def close(self) -> None:
        """As ``Coroutine`` has it."""
        self._coroutine.close()

    def __bool__(self) -> NoReturn:
        self._coroutine.close()
        raise TypeError(f"{self._what} of an async handler has to be awaited: await {self._what}")


class Answer(asyncio.Future[T]):
    """The answer to what was sent. It is asked for when somebody looks: most answers nobody looks at."""

    def __init__(self, sent: Future[T], hand_over: Callable[[], object]) -> None:
        super().__init__(loop=asyncio.get_running_loop())
        self._sent: Future[T] | None = sent
        self._hand_over = hand_over
        self._check_wait: Callable[[], object] = getattr(sent, "check_wait", lambda: None)  # with exactly_once

    def _ask(self) -> None:
        if (sent := self._sent) is not None:
            self._sent = None
            sent.add_done_callback(self._answered)
            self._hand_over()

    def _answered(self, sent: Future[T]) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            self.get_loop().call_soon_threadsafe(self._resolve, sent)

    def _resolve(self, sent: Future[T]) -> None:
        if self.done():  # cancelled by who waits, which changes nothing of the message
            return
        if (error := sent.exception()) is not None:
            self.set_exception(error)
            self._log_traceback = False  # the run fails of it
        else:
            self.set_result(sent.result())

    def __await__(self) -> Generator[Any, None, T]:
        self._check_wait()
        return super().__await__()

    def add_done_callback(self, *arguments: Any, **more: Any) -> None:
        """As ``asyncio.Future`` has it, and so for the following. Who adds one waits: ``asyncio.gather``, for example.

        Raises:
            RuntimeError: with ``exactly_once``, inside the run: there is no answer before the next mark.
        """
        self._check_wait()
        self._ask()
        super().add_done_callback(*arguments, **more)

    def done(self) -> bool:
        """Whether there is an answer; it comes while the loop goes on."""
        self._ask()
        return super().done()
