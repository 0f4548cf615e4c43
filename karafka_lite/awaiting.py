"""What blocks, awaited: it is done on a thread of ours, and the caller's event loop goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


async def beside(
    system: Any, function: Callable[[], T], cancel: Callable[[], object], undo: Callable[[], object] = lambda: None
) -> T:
    """What ``function`` returns or raises. ``system``: has threads, as the runner's.

    Where this task is cancelled, ``cancel`` is called, which has ``function`` end soon; then ``undo``, on its thread,
    if it has returned. CancelledError is raised when all that is done, and not before.
    """
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    outcome: list[tuple[T | None, BaseException | None]] = []
    cancelled: asyncio.CancelledError | None = None

    def work() -> None:
        try:
            outcome.append((function(), None))
            if cancelled is not None:
                undo()
        except BaseException as error:  # noqa: BLE001 - it is raised where it is awaited
            outcome.append((None, error))
        with suppress(RuntimeError):  # the loop is closed: nobody awaits it any more
            loop.call_soon_threadsafe(done.set)

    system.thread("karafka-awaited", work).start()
    while not done.is_set():
        try:
            await done.wait()
        except asyncio.CancelledError as error:
            cancelled = error
            cancel()
    if cancelled is not None:
        raise cancelled
    result, raised = outcome[-1]
    if raised is not None:
        raise raised
    return result  # type: ignore[return-value] # it has returned
