"""Who runs the user code of one run of an app: threads, and an event loop where there are coroutines."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from karafka_lite import events, forks
from karafka_lite.core.ownership import Run
from karafka_lite.ending import ExitRequest
from karafka_lite.errors import Exit
from karafka_lite.functions import is_coroutine
from karafka_lite.observers.frames import Place
from karafka_lite.route import Route
from karafka_lite.routing import Router
from karafka_lite.workers import Workers

if TYPE_CHECKING:
    from karafka_lite.client.protocol import Outbox
    from karafka_lite.loops import Guest, Side, Tasks


class Staff:
    """Threads of each handler, or its tasks. ``loop``: the caller's event loop; None: one of ours, if one is needed.

    ``inside``: the user code that runs; ``ask`` for the end, where the event loop has come to its own too early.
    """

    def __init__(
        self,
        system: Any,
        concurrency: int,
        router: Router,
        inside: dict[Place, Run],
        outbox: Outbox,
        emit: Callable[[events.Event], None],
        ask: Callable[[ExitRequest], object],
        loop: Any = None,
    ) -> None:
        self._system, self._concurrency, self._inside, self._outbox = system, concurrency, inside, outbox
        self._crews: dict[int, Workers | Tasks] = {}  # by the list of hooks that the routes of a handler share
        self._guest: Guest | None = None
        if _has_coroutines(router):
            from karafka_lite.loops import Guest  # here: who has no coroutine does not need asyncio

            self._guest = Guest(
                system, loop, inside, emit, outbox.check, lambda why: ask(ExitRequest(Exit.ERROR, error=why))
            )

    def of(self, route: Route) -> Workers | Tasks:
        """Who runs its handler and hooks: the same for all routes of a handler, in whatever group."""
        if (crew := self._crews.get(id(route.hooks))) is None:
            name, concurrency = route.name, route.concurrency or self._concurrency
            if route.is_async and self._guest is not None:
                crew = self._guest.tasks_of(name, concurrency, self._outbox)
            else:
                crew = Workers(self._system, name, concurrency, self._inside)
            self._crews[id(route.hooks)] = crew
        return crew

    def side(self) -> Side | None:
        """What a member needs on the event loop; None where there is none."""
        return None if self._guest is None else self._guest.side()

    def start(self) -> None:
        """Have an event loop, where one is needed."""
        if self._guest is not None:
            self._guest.start()

    def stop(self) -> None:
        """End the threads of handlers."""
        for crew in self._crews.values():
            crew.stop()

    def leave(self) -> None:
        """Leave the event loop, on which nothing more is called."""
        if self._guest is not None:
            self._guest.stop()

    def call(self, function: Callable[[], object]) -> object:
        """Call a process hook and wait for its end, on the event loop where it is a coroutine."""
        return forks.call(function) if self._guest is None else self._guest.call(function)

    @property
    def waits_for_us(self) -> bool:
        """Whether this thread is that of the event loop, on which coroutines have yet to end."""
        return self._guest is not None and self._guest.is_here


def _has_coroutines(router: Router) -> bool:
    routes = [route for topics in router.groups.values() for route in topics.values()]
    return any(route.is_async for route in routes) or any(is_coroutine(hook.function) for hook in router.process_hooks)
