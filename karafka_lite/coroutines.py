"""Coroutines, step by step: ours, which wait for nothing on a thread, and those of handlers on their event loop."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Coroutine, Generator
from types import FrameType
from typing import Any, Protocol, TypeVar

from karafka_lite import forks
from karafka_lite.errors import ConfigurationError

T = TypeVar("T")
LOOP_CLOSED = (
    "the event loop of this app was closed while the app ran: leave `async with app:`, or let `await app.serve()` end, "
    "before the loop ends"
)
FORKED = "a fork of the process awaits in a handler, and has no event loop: run what it does in a function of its own"


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """What one of our coroutines returns, on a thread, where it waits as any function does."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    coroutine.close()
    raise RuntimeError("this waits for an event loop, and there is none: call it in an async handler")


class Rest:
    """``await Rest(keep)``: a coroutine of ours waits, and its thread goes on. ``keep`` gets it, and has it go on."""

    __slots__ = ("keep",)

    def __init__(self, keep: Callable[[Coroutine[Any, Any, Any]], object]) -> None:
        self.keep = keep

    def __await__(self) -> Generator[Rest, None, None]:
        yield self


def go_on(coroutine: Coroutine[Any, Any, object]) -> Rest | None:
    """Run one of our coroutines on this thread, to its end or to a rest, which is returned."""
    try:
        rest: Rest = coroutine.send(None)
    except StopIteration:
        return None
    return rest


class Host(Protocol):
    """The event loop that calls are on. ``current``: the call that takes a step; None between two steps."""

    current: Call | None

    @property
    def is_here(self) -> bool:
        """Whether it runs, and on this thread."""

    @property
    def thread(self) -> int: ...


class Call:
    """A call of user code on an event loop. ``task``: set by who runs it."""

    __slots__ = ("_coroutine", "_host", "begun", "cancelled", "task")

    def __init__(self, host: Host) -> None:
        self._host = host
        self.task: Any = None
        self.begun = self.cancelled = False
        self._coroutine: Coroutine[Any, Any, object] | None = None  # of the user

    async def finish(self, coroutine: Coroutine[Any, Any, object]) -> None:
        """Run a coroutine of user code to its end. Raises what it raises; RuntimeError: the loop is closed."""
        if not self._host.is_here:
            coroutine.close()
            raise ConfigurationError(LOOP_CLOSED)
        self._coroutine = coroutine
        try:
            await _Steps(coroutine, self, self._host)
        finally:
            self._coroutine = None

    def cancel(self) -> None:
        """Cancel the user's coroutine, once; what we do before and after it goes on. On the loop's thread."""
        if self._coroutine is not None and not self.cancelled:
            self.cancelled = True
            self.task.cancel()

    def abandon(self) -> None:
        """The loop is closed: what the call waits for does not come. On any thread; nothing else runs it."""
        coroutine = self.task.get_coro()
        self.task._log_destroy_pending = False
        for _ in range(10):  # user code may catch it, and wait again
            try:
                coroutine.throw(ConfigurationError(LOOP_CLOSED))
            except StopIteration:
                return

    @property
    def frames(self) -> list[tuple[FrameType, int]]:
        """Where the user's coroutine is, the innermost call last, each with its line; empty where none runs."""
        if self._host.current is self:
            return _running(sys._current_frames().get(self._host.thread))
        found, inner = list[tuple[FrameType, int]](), self._coroutine
        while inner is not None:
            kind = next((kind for kind in ("cr", "ag", "gi") if hasattr(inner, f"{kind}_frame")), None)
            frame: FrameType | None = getattr(inner, f"{kind}_frame", None)
            if frame is not None:
                found.append((frame, frame.f_lineno))
            inner = getattr(inner, "gi_yieldfrom" if kind == "gi" else f"{kind}_await", None)
        return found


def _running(frame: FrameType | None) -> list[tuple[FrameType, int]]:
    """The frames of a thread below the step that it takes."""
    found: list[tuple[FrameType, int]] = []
    while frame is not None and frame.f_code is not _Steps.__await__.__code__:
        found.insert(0, (frame, frame.f_lineno))
        frame = frame.f_back
    return found


class _Steps:
    """``await`` of a coroutine of user code that may fork, may block, and may be asked where it is."""

    __slots__ = ("_call", "_coroutine", "_host")

    def __init__(self, coroutine: Coroutine[Any, Any, object], call: Call, host: Host) -> None:
        self._coroutine, self._call, self._host = coroutine, call, host

    def __await__(self) -> Generator[Any, Any, object]:
        coroutine, host, process = self._coroutine, self._host, os.getpid()
        thrown: BaseException | None = None
        while True:
            host.current = self._call
            try:
                waits_for = coroutine.send(None) if thrown is None else coroutine.throw(thrown)
            except StopIteration as end:
                if os.getpid() != process:
                    forks.end(None)
                return end.value
            except BaseException as raised:
                if os.getpid() != process:
                    forks.end(raised)
                raise
            finally:
                host.current = None
            if os.getpid() != process:  # a child goes no further than to the next await: the loop is the parent's
                forks.end(RuntimeError(FORKED))
            thrown = None
            try:
                yield waits_for
            except BaseException as error:  # noqa: BLE001 - a cancellation, or what it waited for has failed
                thrown = error
