"""In the place of an event loop: tasks that go on in any order, and are cancelled where they await.

The tasks of a handler, and what cancels them, are the product's own. Each task is a thread of the simulation, so that
two steps, which a loop takes one after the other, may also be interrupted by each other: that is more than there is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from greenlet import GreenletExit
from steps import Signal

from karafka_lite import forks
from karafka_lite.async_context import AsyncContext
from karafka_lite.context import Context
from karafka_lite.loops import Side, Tasks
from karafka_lite.posts import Posts
from karafka_lite.route import Route

if TYPE_CHECKING:
    from simulated_runner import Life
    from simulation import World


class SimulatedStaff:
    """In the place of ``Staff``, where all handlers are coroutines."""

    waits_for_us = False

    def __init__(self, life: Life, system: Any, concurrency: int, _: object, inside: Any, outbox: Any, *more: Any):
        loop: Any = SimulatedLoop(life)
        self._guest: Any = SimpleNamespace(system=system, inside=inside, loop=loop, context=None, is_here=False)
        self._concurrency, self._outbox = concurrency, outbox
        self._tasks: dict[int, Tasks] = {}

    def of(self, route: Route) -> Tasks:
        posts = Posts(self._guest.system, "worker", self._concurrency, self._outbox)
        return self._tasks.setdefault(id(route.hooks), Tasks(self._guest, self._concurrency, posts))

    def side(self) -> Side:
        return Side(self._guest)

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def leave(self) -> None:
        for tasks in self._tasks.values():
            tasks.posts.stop()

    call = staticmethod(forks.call)


class SimulatedLoop:
    current, thread, is_here = None, 0, True

    def __init__(self, life: Life) -> None:
        self._life = life

    def submit(self, function: Callable[..., object], *arguments: object) -> bool:
        self._life.world.spawn(self._life.process, f"{self._life} worker callback", lambda: function(*arguments))
        return True

    def create(self, coroutine: Coroutine[Any, Any, object], _: object) -> SimulatedTask:
        return SimulatedTask(self._life, coroutine)


class SimulatedTask:
    def __init__(self, life: Life, coroutine: Coroutine[Any, Any, object]) -> None:
        self._world, self._coroutine = life.world, coroutine
        self._cancelled, self._awaits = False, Signal()
        life.world.spawn(life.process, f"{life} worker task", self._run)

    def cancel(self) -> None:
        self._world.reached["a coroutine was cancelled"] += 1
        self._cancelled = True
        self._awaits.wake_all(self._world.now)

    def done(self) -> bool:
        return False  # it is not asked of those that have begun

    def _run(self) -> None:
        try:
            self._steps()
        except GreenletExit:  # the world is over
            with suppress(BaseException):
                self._coroutine.close()
            raise

    def _steps(self) -> None:
        world, step = self._world, self._coroutine.send
        try:
            step(None)
            while True:
                rest = 0.0 if world.calm else world.rng.choice([0.0, 0.0, 0.01, 0.3, 6.0])
                world.pause(world.now + rest, self._awaits)
                cancelled, self._cancelled = self._cancelled, False
                if cancelled:
                    self._coroutine.throw(asyncio.CancelledError())
                else:
                    step(None)
        except StopIteration:
            return


class Rest:
    """User code awaits something."""

    def __await__(self) -> Generator[None, None, None]:
        yield


def as_coroutine(world: World, function: Callable[..., object]) -> Callable[..., Coroutine[Any, Any, None]]:
    """User code that awaits before and after what it does; now and then it does not care for a cancellation."""

    async def call(*arguments: Any) -> None:
        o, swallows = world.ledger.of(arguments[-1]._run), world.rng.random() < 0.3
        try:
            for act in (None, function):
                if act is not None:
                    act(*arguments)
                try:
                    await Rest()
                except asyncio.CancelledError:
                    if not swallows:
                        raise
                    world.reached["a coroutine swallowed a cancellation"] += 1
        except BaseException:
            o.raised = True
            raise

    return call


class SimulatedAsyncContext(AsyncContext):
    """User code waits as it does in a thread: an interruption there may come everywhere, too."""

    mark_as_consumed = Context.mark_as_consumed  # type: ignore[assignment]
    commit_offsets = Context.commit_offsets  # type: ignore[assignment]

    def _to_await(self, sent: Any) -> Any:
        return sent
