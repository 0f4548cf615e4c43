"""In the place of the operating system: locks, threads and a clock that the scheduler has in its hands."""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable
from inspect import iscoroutine
from typing import TYPE_CHECKING, Any

from steps import FOREVER, Process, Scheduler, Signal, Thread

from karafka_lite.runner import System

if TYPE_CHECKING:
    from simulation import World


class SimulatedLock:
    """A lock with a point before and after each of its steps. ``before_release`` looks at what was done under it."""

    def __init__(self, scheduler: World, before_release: Callable[[], None]) -> None:
        self._scheduler = scheduler
        self._before_release = before_release
        self._reached = scheduler.reached
        self._released = Signal()
        self.owner: Thread | None = None

    def acquire(self, blocking: bool = True) -> bool:
        scheduler = self._scheduler
        scheduler.point()
        while self.owner is not None:
            self._reached["a thread found the lock taken"] += 1
            if not blocking:
                return False
            scheduler.pause(FOREVER, self._released)
        self.owner = scheduler.current
        scheduler.point()  # it has the lock while others go on, and come to it
        return True

    def release(self) -> None:
        self.let_go()
        self._scheduler.point()

    def let_go(self) -> None:
        if not self._scheduler.over:
            self._before_release()
        self.owner = None
        self._released.wake_all(self._scheduler.now)

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self.release()


class SimulatedCondition:
    """A condition of one lock; ``notify_all`` is called by whoever has the lock."""

    def __init__(self, scheduler: Scheduler, lock: SimulatedLock) -> None:
        self._scheduler = scheduler
        self._lock = lock
        self.signal = Signal()

    def wait(self, timeout: float = FOREVER) -> bool:
        self._lock.let_go()
        self._scheduler.pause(self._scheduler.now + timeout, self.signal)
        self._lock.acquire()
        return True

    def notify_all(self) -> None:
        assert self._lock.owner is self._scheduler.current, "who notifies has the lock"
        self.signal.wake_all(self._scheduler.now)


class SimulatedQueue:
    """A queue; ``delay`` says for how long what was taken is in the hands of a thread that does not go on."""

    def __init__(self, scheduler: Scheduler, delay: Callable[[], float] = lambda: 0.0) -> None:
        self._scheduler = scheduler
        self._delay = delay
        self._items: deque[Any] = deque()
        self._filled = Signal()

    def put(self, item: Any) -> None:
        if isinstance(item, tuple) and iscoroutine(item[1]):
            self._scheduler.rested.add(item[1])
        self._items.append(item)
        self._filled.wake_all(self._scheduler.now)

    def get(self, timeout: float = FOREVER) -> Any:
        scheduler = self._scheduler
        until = scheduler.now + timeout
        scheduler.point()
        while not self._items:
            if scheduler.now >= until:
                raise queue.Empty
            scheduler.pause(until, self._filled)
        item = self._items.popleft()
        if item is not None and (seconds := self._delay()):
            scheduler.pause(scheduler.now + seconds)
        else:
            scheduler.point()
        return item

    def qsize(self) -> int:
        return len(self._items)


class SimulatedEvent:
    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._is_set = False
        self._signal = Signal()

    def set(self) -> None:
        self._is_set = True
        self._signal.wake_all(self._scheduler.now)

    def is_set(self) -> bool:
        return self._is_set

    def wait(self, timeout: float = FOREVER) -> bool:
        until = self._scheduler.now + timeout
        while not self._is_set and self._scheduler.now < until:
            self._scheduler.pause(until, self._signal)
        return self._is_set


class SimulatedSystem(System):
    """What one process has of it. ``before_release``: called before each release of a lock."""

    def __init__(self, world: World, process: Process, before_release: Callable[[], None]) -> None:
        self._world = world
        self._process = process
        self._before_release = before_release
        self.yield_now = world.pause  # type: ignore[assignment]

    def now(self) -> float:  # type: ignore[override]
        return self._world.now

    def lock(self) -> SimulatedLock:  # type: ignore[override]
        return SimulatedLock(self._world, self._before_release)

    def condition(self, lock: SimulatedLock) -> SimulatedCondition:  # type: ignore[override]
        return SimulatedCondition(self._world, lock)

    def queue(self) -> SimulatedQueue:  # type: ignore[override]
        """Of jobs: a worker may be slow to begin."""
        return SimulatedQueue(self._world, self._delay)

    def _delay(self) -> float:
        rng = self._world.rng
        late = not self._world.calm and rng.random() < 0.05
        return rng.uniform(0.1, 3.0) if late else 0.0  # much may happen meanwhile

    def event(self) -> SimulatedEvent:  # type: ignore[override]
        return SimulatedEvent(self._world)

    def thread(self, name: str, function: Callable[[], object]) -> Thread:
        return Thread(self._world, self._process, name, function)

    def thread_id(self) -> int:  # type: ignore[override]
        assert self._world.current is not None
        return self._world.current.ident or 0
