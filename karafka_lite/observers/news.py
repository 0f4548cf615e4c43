"""What happens in one group, as events: collected under its lock, emitted after its release."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from karafka_lite import events
from karafka_lite.client.protocol import Start
from karafka_lite.core.answers import Outcome, Slow
from karafka_lite.core.ownership import Ownership, Run

DeadLetter = tuple[str, int, int] | None  # its topic, partition and offset


class News:
    """Makes the events of one group. ``name``: what a run calls; ``emit`` never blocks."""

    def __init__(self, group_id: str, name: Callable[[Run], str], emit: Callable[[events.Event], None]) -> None:
        self._group_id = group_id
        self._name = name
        self._emit = emit
        self.waiting: deque[events.Event] = deque()
        self._emitting = threading.Lock()

    def add(self, kind: type[events.Event], *values: Any) -> None:
        """An event of ``kind`` with these fields after ``group_id``."""
        self.waiting.append(kind(self._group_id, *values))

    def emit(self) -> None:
        """Emit what was collected, in its order. Not to be called under the lock.

        One thread emits at a time; who comes meanwhile does not wait, and leaves it what it has brought.
        """
        while self.waiting and self._emitting.acquire(blocking=False):
            try:
                while self.waiting:
                    self._emit(self.waiting.popleft())
            finally:
                self._emitting.release()

    def emit_now(self, kind: type[events.Event], *values: Any) -> None:
        """``add`` and ``emit``. Not to be called under the lock."""
        self.add(kind, *values)
        self.emit()

    # -- partitions

    def assigned(self, starts: Mapping[Ownership, Start]) -> None:
        """Ownerships have begun."""
        if starts:
            self.add(events.Assigned, {ownership.tp: tuple(start) for ownership, start in starts.items()})

    def handed_over(self, ownerships: Collection[Ownership], seconds: float) -> None:
        """A rebalance has got ``ownerships``."""
        if ownerships:
            self.add(events.Revoked, {ownership.tp: ownership.marks.committed for ownership in ownerships}, seconds)

    def lost(self, ownerships: Collection[Ownership]) -> None:
        """The broker gave ``ownerships`` away."""
        if ownerships:
            self.add(events.Lost, tuple(ownership.tp for ownership in ownerships))

    def uncommitted(self, ownerships: Collection[Ownership]) -> None:
        """``ownerships`` are over, and what they had stored could not be committed."""
        if ownerships:
            self.add(events.Uncommitted, {ownership.tp: ownership.marks.stored or 0 for ownership in ownerships})

    # -- calls of user code

    def slow(self, runs: Sequence[Slow], now: float) -> None:
        """``runs`` take long."""
        for run, what, limit_ms in runs:
            self.waiting.append(events.TakesLong(*self._call(run), now - run.began, what, limit_ms))

    def stuck(self, stacks: Sequence[tuple[Run, str]], limit_ms: float) -> None:
        """Runs have not ended in time."""
        for run, stack in stacks:
            self.waiting.append(events.Stuck(*self._call(run), stack, limit_ms))

    def hook_ended(self, run: Run, function: str | None, seconds: float, error: BaseException | None) -> None:
        """One function of the hooks of ``run`` (None: all of them) has ended."""
        call = run.as_call(self._group_id, function or self._name(run))
        self.waiting.append(events.CallEnded(*call, seconds, error=error))

    def batch_ended(self, run: Run, outcome: Outcome, error: BaseException | None) -> None:
        """The call of a handler has ended."""
        seconds, messages, retry_offset, retry_s, given_up = outcome
        call = *self._call(run), seconds, messages, error, retry_offset, retry_s, given_up and given_up[0]
        self.waiting.append(events.CallEnded(*call))

    def given_up(
        self, run: Run, offset: int, attempts: int, reason: str, at: DeadLetter, error: BaseException | None = None
    ) -> None:
        """The message at ``offset`` was given up; ``at``: where its dead letter is."""
        message = *run.ownership.tp, offset
        self.add(events.DeadLettered, *message, self._name(run), attempts, reason, at, error)

    def _call(self, run: Run) -> tuple[str, str, int, str, str | None, int, int, int]:
        return run.as_call(self._group_id, self._name(run))
