"""Events on their way to observers: nothing that an observer does can hold up the thread that emits."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from karafka_lite import forks
from karafka_lite.events import Event
from karafka_lite.observers.failures import log_failure

log = logging.getLogger("karafka_lite")

MOST_WAITING = 10_000  # events that come on top are dropped, and counted
END_S = 5.0  # how long the last events may take

Observer = Callable[[Event], object]
Observers = Sequence[Observer]


class Delivery:
    """Calls ``observers`` with each event for which ``wants`` is True, in order, on a thread of its own.

    And ``tick`` with the seconds since it was called last, every ``tick_s``.
    """

    def __init__(
        self,
        name: str,
        observers: Observers,
        wants: Callable[[Event], bool],
        tick: Callable[[float], object] = lambda seconds: None,
        tick_s: float = 3600.0,
    ) -> None:
        self._observers = observers
        self._wants = wants
        self._queue: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._dropped = 0
        self._tick, self._tick_s = tick, tick_s
        self._thread = threading.Thread(target=self._deliver, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def emit(self, event: Event) -> None:
        """Never blocks."""
        if not self._wants(event):
            return
        if self._queue.qsize() < MOST_WAITING:
            self._queue.put(event)
        else:
            self._dropped += 1

    def stop(self) -> None:
        """Deliver what was emitted, then end the thread; where an observer hangs, the thread is left running."""
        self._queue.put(None)
        if self._thread is not threading.current_thread():
            self._thread.join(END_S)

    def _deliver(self) -> None:
        self._ticked = time.monotonic()
        while (event := self._next()) is not None:
            if dropped := self._dropped:
                self._dropped = 0
                log.warning("%d events were dropped: an observer or the log's stream is too slow", dropped)
            deliver(event, self._observers)

    def _next(self) -> Event | None:
        """The next event, when there is one; None: the end."""
        while True:
            passed = time.monotonic() - self._ticked
            if passed >= self._tick_s:
                self._ticked += passed
                self._tick(passed)
                continue
            with suppress(queue.Empty):
                return self._queue.get(timeout=self._tick_s - passed)


def deliver(event: Event, observers: Observers) -> None:
    """Call each observer. One that raises is logged, and never matters."""
    for observer in observers:
        try:
            forks.call(observer, event)
        except BaseException as error:  # also SystemExit, which would end the thread
            if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
                raise  # of a test's user, who ends it
            name = getattr(observer, "__qualname__", type(observer).__name__)
            log_failure(logging.ERROR, f"observer {name} raised; everything else goes on", error)


class Deliveries:
    """Where the events of one run go: to ``immediate`` on the thread that emits, to others on threads of their own.

    The log lines have a thread for themselves: an observer of the user's that hangs does not hold them up.
    """

    def __init__(self, immediate: Observers, report: Delivery, observers: Observers) -> None:
        users = [Delivery("karafka-observers", observers, lambda event: True)] if observers else []
        self._immediate = immediate
        self._deliveries = [report, *users]

    def start(self) -> None:
        for delivery in self._deliveries:
            delivery.start()

    def emit(self, event: Event) -> None:
        """Never blocks."""
        self.keep(event)
        for delivery in self._deliveries:
            delivery.emit(event)

    def keep(self, event: Event) -> None:
        """Have the ``immediate`` ones hear of it, and nobody else."""
        for observer in self._immediate:
            observer(event)

    def stop(self) -> None:
        """Deliver what was emitted, and end the threads."""
        for delivery in self._deliveries:
            delivery.stop()
