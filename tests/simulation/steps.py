"""Threads that are greenlets: a scheduler moves them on one at a time, in random order.

A thread runs until it comes to a *point* where the operating system could interrupt it. There the scheduler may have
any other thread go on first. A thread that waits says until when, and which ``Signal`` wakes it before that time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet

FOREVER = float("inf")


class Signal:
    """Threads that sleep until somebody wakes them, or until their time."""

    __slots__ = ("sleepers",)

    def __init__(self) -> None:
        self.sleepers: dict[Thread, None] = {}

    def wake_all(self, now: float) -> None:
        for thread in self.sleepers:
            thread.wake = min(thread.wake, now)
            thread.signal = None
        self.sleepers.clear()


class Process:
    """Threads that end together, or do not move for a while together (as after a SIGSTOP)."""

    def __init__(self) -> None:
        self.frozen_until = 0.0


class Thread:
    """A greenlet and the time of its next step. Has the methods of ``threading.Thread`` that the runner calls."""

    __slots__ = ("_ends", "_scheduler", "greenlet", "ident", "name", "process", "signal", "wake")

    def __init__(
        self, scheduler: Scheduler, process: Process | None, name: str, function: Callable[[], object]
    ) -> None:
        self._scheduler = scheduler
        self.process = process
        self.name = name
        self.greenlet = greenlet(function, scheduler.hub)
        self.wake = 0.0
        self.signal: Signal | None = None  # that may wake it before its time
        self.ident: int | None = None
        self._ends = Signal()

    def start(self) -> None:
        self._scheduler.add(self)

    def is_alive(self) -> bool:
        return self.ident is not None and not self.greenlet.dead

    def join(self, timeout: float = FOREVER) -> None:
        until = self._scheduler.now + timeout
        while self.is_alive() and self._scheduler.now < until:
            self._scheduler.pause(until, self._ends)

    def stop_waiting(self) -> None:
        if self.signal is not None:
            self.signal.sleepers.pop(self, None)
            self.signal = None

    def ended(self) -> None:
        self._ends.wake_all(self._scheduler.now)


class Scheduler:
    """The time, and who moves next.

    ``interrupts``: at which part of its points a thread is interrupted. ``jumps``: how often time moves on although
    somebody could go on.
    """

    def __init__(
        self, rng: random.Random, interrupts: float, jumps: float, before_time_moves: Callable[[], None]
    ) -> None:
        self.now = 1000.0
        self.events = 0
        self.threads: list[Thread] = []
        self.hub = getcurrent()
        self.current: Thread | None = None  # None: the hub itself
        self.long = 0.1  # how often an interruption takes time
        self.favourite = ""  # threads with this in their name often go first
        self.over = False
        self.rested = set[Coroutine[Any, Any, object]]()  # that went on, or are about to
        self._interrupts = interrupts
        self._rng, self._random = rng, rng.random
        self._jumps = jumps
        self._before_time_moves = before_time_moves
        self._idents = 0
        self._graves: list[Thread] = []  # of processes that were killed: a greenlet that is collected would run again

    # -- called by threads

    def point(self) -> None:
        """The current thread may be interrupted here, now and then for longer."""
        if self._random() < self._interrupts:
            self.pause(self.now + self._rng.expovariate(10) if self._random() < self.long else None)

    def pause(self, until: float | None = None, signal: Signal | None = None) -> None:
        """Have others go on; the current thread goes on at ``until`` (None: any time), or when ``signal`` wakes it."""
        thread = self.current
        assert thread is not None, "only threads pause"
        if self.over:
            raise GreenletExit
        thread.wake = self.now if until is None else until
        if signal is not None:
            signal.sleepers[thread] = None
            thread.signal = signal
        self.hub.switch()

    def spawn(self, process: Process | None, name: str, function: Callable[[], object]) -> Thread:
        thread = Thread(self, process, name, function)
        self.add(thread)
        return thread

    def add(self, thread: Thread) -> None:
        self._idents += 1
        thread.ident = -self._idents  # no thread of the operating system has such a number
        thread.wake = self.now
        self.threads.append(thread)

    # -- called by the world

    def kill(self, process: Process) -> None:
        """Its threads do nothing more, not even what is in a ``finally``."""
        for thread in [thread for thread in self.threads if thread.process is process]:
            self.threads.remove(thread)
            thread.stop_waiting()
            self._graves.append(thread)

    def calm_down(self) -> None:
        """Everybody gets enough time to go on."""
        self.long, self.favourite = 0.0, ""
        self._jumps, self._interrupts = min(self._jumps, 0.02), min(self._interrupts, 0.3)

    def step(self) -> None:
        """Have one thread go on, or the time."""
        now = self.now
        runnable = [
            thread
            for thread in self.threads
            if thread.wake <= now and (thread.process is None or thread.process.frozen_until <= now)
        ]
        if not runnable or self._random() < self._jumps:
            self._before_time_moves()
            self._move_time(bool(runnable))
            return
        if self.favourite and self._random() < 0.7:
            runnable = [thread for thread in runnable if self.favourite in thread.name] or runnable
        thread = self.current = runnable[int(self._random() * len(runnable))]
        if thread.signal is not None:
            thread.stop_waiting()
        self.events += 1
        thread.greenlet.switch()  # an exception that ends the thread is raised here: none of ours dies unnoticed
        self.current = None
        if thread.greenlet.dead:
            self.threads.remove(thread)
            thread.ended()

    def _move_time(self, somebody_could_go_on: bool) -> None:
        """To exactly when somebody gets up, or a little further."""
        if somebody_could_go_on:
            self.now += self._rng.expovariate(20)
            return
        self.now = max(self.now, min(max(t.wake, t.process.frozen_until if t.process else 0.0) for t in self.threads))
        if self._random() < 0.3:
            self.now += self._rng.expovariate(10)

    @contextmanager
    def ending(self) -> Iterator[None]:
        """At the end each thread that is left is unwound; what it calls then does nothing."""
        try:
            yield
        finally:
            self.over, self._interrupts = True, 2.0
            for thread in [*self.threads, *self._graves]:
                self.current = thread
                while not thread.greenlet.dead:
                    thread.greenlet.throw(GreenletExit)
            self.current = None
