"""Threads without threads: generators that a scheduler moves on one step at a time, in random order.

What stands between two ``yield`` is one event, as if done under a lock; at a ``yield`` any other thread may come first.
``yield None`` goes on when the scheduler likes, ``yield moment`` at that time, or sooner when somebody notifies the
Condition that was named with ``Scheduler.listen`` just before.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from typing import Any

FOREVER = float("inf")
Steps = Generator[float | None, None, Any]


class Condition:
    """Threads that sleep until somebody notifies, or until their time."""

    def __init__(self) -> None:
        self.sleepers: set[Thread] = set()

    def notify_all(self, now: float) -> None:
        for thread in self.sleepers:
            thread.wake = min(thread.wake, now)
            thread.condition = None
        self.sleepers.clear()


class Process:
    """Threads that crash together, or do not move for a while together (as behind a SIGSTOP)."""

    def __init__(self) -> None:
        self.frozen_until = 0.0


class Thread:
    """A generator and the time of its next step."""

    __slots__ = ("condition", "name", "process", "steps", "wake")

    def __init__(self, process: Process | None, name: str, steps: Steps, now: float) -> None:
        self.process = process
        self.name = name
        self.steps = steps
        self.wake = now
        self.condition: Condition | None = None  # that may wake it before its time

    def forget_condition(self) -> None:
        if self.condition is not None:
            self.condition.sleepers.discard(self)
            self.condition = None


class Scheduler:
    """The time, and who moves next. ``jumps``: how often time moves on although somebody could go on."""

    def __init__(self, rng: random.Random, jumps: float, before_time_moves: Callable[[], None]) -> None:
        self.now = 1000.0
        self.events = 0
        self.threads: list[Thread] = []
        self._rng = rng
        self._jumps = jumps
        self._before_time_moves = before_time_moves
        self._current: Thread | None = None

    def spawn(self, process: Process | None, name: str, steps: Steps) -> Thread:
        thread = Thread(process, name, steps, self.now)
        self.threads.append(thread)
        return thread

    def listen(self, condition: Condition) -> None:
        """The current thread may be woken by ``condition`` before its time."""
        assert self._current is not None
        condition.sleepers.add(self._current)
        self._current.condition = condition

    def kill(self, process: Process) -> None:
        for thread in [thread for thread in self.threads if thread.process is process]:
            self.threads.remove(thread)
            thread.forget_condition()

    def step(self) -> None:
        """One event, or a move of the time."""
        now = self.now
        runnable = [
            thread
            for thread in self.threads
            if thread.wake <= now and (thread.process is None or thread.process.frozen_until <= now)
        ]
        if not runnable or self._rng.random() < self._jumps:
            self._before_time_moves()
            self._move_time(bool(runnable))
            return
        thread = self._current = self._rng.choice(runnable)
        thread.forget_condition()
        self.events += 1
        try:
            wake = next(thread.steps)
        except StopIteration:
            self.threads.remove(thread)
        else:
            thread.wake = now if wake is None else wake

    def _move_time(self, somebody_could_go_on: bool) -> None:
        """To exactly when somebody gets up, or a little further."""
        if somebody_could_go_on:
            self.now += self._rng.expovariate(20)
            return
        self.now = max(self.now, min(max(t.wake, t.process.frozen_until if t.process else 0.0) for t in self.threads))
        if self._rng.random() < 0.3:
            self.now += self._rng.expovariate(10)
