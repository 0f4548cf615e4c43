"""A handler with its topics, options and hooks, and the one call of user code."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from inspect import iscoroutine
from typing import TYPE_CHECKING, Any, Literal

from karafka_lite import forks
from karafka_lite.context import Context
from karafka_lite.core.options import Options, RegisteredHook
from karafka_lite.core.ownership import Run
from karafka_lite.coroutines import Call
from karafka_lite.errors import DeserializationError
from karafka_lite.functions import is_coroutine, name_of
from karafka_lite.messages import Batch, Decode

if TYPE_CHECKING:
    from karafka_lite.async_context import AsyncContext

# A function that takes a Context takes an AsyncContext, too.
Handler = Callable[[Batch[Any], "AsyncContext"], object]
HookFunction = Callable[["AsyncContext"], object]
HookEnded = Callable[[Run, str, float, BaseException | None], object]
"""Is told which function has ended, of what call, after how many seconds, and what it raised."""
DeadLetter = str | Literal[False] | None
Order = Literal["partition", "key"]
NO_RETRY: tuple[type[BaseException], ...] = (DeserializationError,)


@dataclass(eq=False)
class Route:
    """A handler with the topics and options of one ``@app.topic``; equal only to itself.

    Attributes:
        group_id: "" as long as it names none, and no App includes its router.
        deserialize: ``bytes -> payload``; None: payloads stay bytes.
        hooks: in the order of registration, shared by all routes of the handler.
    """

    topics: tuple[str, ...]
    handler: Handler
    group_id: str
    options_without_hooks: Options
    deserialize: Decode | None
    hooks: list[RegisteredHook]
    dead_letter: DeadLetter = None
    no_retry: tuple[type[BaseException], ...] = NO_RETRY
    concurrency: int | None = None
    order: Order = "partition"

    @functools.cached_property
    def name(self) -> str:
        """The handler's name in messages: its qualified name without the module."""
        return name_of(self.handler)

    def name_of_call(self, run: Run) -> str:
        """What ``run`` calls, in messages: the handler, or hooks."""
        return ", ".join([name_of(hook.function) for hook in run.hooks]) if run.hooks else self.name

    @functools.cached_property
    def is_async(self) -> bool:
        """Whether the handler, and with it its hooks, are coroutine functions."""
        return is_coroutine(self.handler)

    @functools.cached_property
    def context(self) -> type[Context]:
        """The class of what a call gets."""
        if self.is_async:
            from karafka_lite.async_context import AsyncContext  # here: who has no coroutine does not need asyncio

            return AsyncContext
        return Context

    @property
    def options(self) -> Options:
        """What the rules about offsets need to know, with the hooks registered so far."""
        return self.options_without_hooks._replace(hooks=tuple(self.hooks))

    def options_for(self, concurrency: int) -> Options:
        """The same, for an App with this ``concurrency``."""
        return self.options._replace(parts=(self.concurrency or concurrency) if self.order == "key" else 0)

    def batch_of(self, run: Run) -> Batch:
        """The messages of a call of the handler."""
        return Batch.of_records(run.ownership.tp, run.records, run.chunk.end_offset, self.deserialize)

    async def call(
        self, run: Run, context: Context, now: Callable[[], float], hook_ended: HookEnded, place: int | Call
    ) -> BaseException | None:
        """Call the handler, or each of the hooks that are due. Returns what the last one that failed raised.

        ``hook_ended`` is told of each hook that does not come again.
        """
        failed: BaseException | None = None
        functions: list[Callable[..., object]] = [hook.function for hook in run.hooks] or [self.handler]
        arguments = (context,) if run.hooks else (self.batch_of(run), context)
        for function in functions:
            began, error = now(), None
            try:
                if (result := forks.call(function, *arguments)) is not None and iscoroutine(result):
                    await _on_loop(place, function, result)
            except BaseException as raised:  # noqa: BLE001 - user code may raise anything
                failed = error = raised
            if not run.comes_again:
                hook_ended(run, name_of(function), now() - began, error)
        return failed


async def _on_loop(place: int | Call, function: object, coroutine: Coroutine[Any, Any, object]) -> None:
    if not isinstance(place, Call):
        coroutine.close()
        raise TypeError(
            f"{name_of(function)} has returned a coroutine, which nobody runs: it is not an async def, but calls one. "
            "Make it async def, and await what it calls"
        )
    await place.finish(coroutine)
