"""The event loop of a TestClient: a coroutine runs to its end, as a plain handler does."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from karafka_lite import forks
from karafka_lite.coroutines import Call
from karafka_lite.errors import ConfigurationError
from karafka_lite.functions import is_coroutine
from karafka_lite.runner import System

if TYPE_CHECKING:
    import asyncio

RUNS_ALREADY = (
    "TestClient has an event loop of its own for async handlers, and one runs in this thread already: make the test a "
    "plain function, and run what it awaits with asyncio.run"
)


class TestLoop:
    """Made when a coroutine comes; ``close`` ends it with all that is left on it."""

    __test__ = False

    def __init__(self) -> None:
        self.current: Call | None = None
        self.thread: int = System.thread_id()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def is_here(self) -> bool:
        """It only runs here."""
        return True

    def run(self, work: Callable[[Call], Coroutine[Any, Any, object]]) -> None:
        """Run a coroutine to its end. Raises ConfigurationError: this thread has a loop that runs."""
        import asyncio  # here: who has no coroutine does not need it

        if asyncio._get_running_loop() is not None:
            raise ConfigurationError(RUNS_ALREADY)
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        call = Call(self)
        call.task = self._loop.create_task(work(call))
        self._loop.run_until_complete(call.task)

    def call(self, function: Callable[[], object]) -> None:
        """Call a process hook."""
        made: Any = forks.call(function)
        if is_coroutine(function):
            self.run(lambda call: call.finish(made))

    def close(self) -> None:
        """Cancel what is left, and end."""
        import asyncio

        if (loop := self._loop) is None:
            return
        self._loop, left = None, asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left, timeout=1.0))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
