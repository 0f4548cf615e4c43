"""What happens in one group, as events: collected under its lock, emitted after its release."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from karafka_lite import events
from karafka_lite.core.answers import Commit, Committed, Ended, Outcome, Slow, Undecided
from karafka_lite.core.marks import Refusal
from karafka_lite.core.ownership import Ownership, Run
from karafka_lite.core.starts import Start
from karafka_lite.errors import describe
from karafka_lite.messages import TopicPartition
from karafka_lite.observers.unmarked import Unmarked

DeadLetter = tuple[tuple[str, int, int], tuple[str, ...]] | None  # where it is, and the headers that it lacks


class News:
    """Makes the events of one group. ``name``: what a run calls; ``emit`` never blocks."""

    def __init__(self, group_id: str, name: Callable[[Run], str], emit: Callable[[events.Event], None]) -> None:
        self._group_id = group_id
        self._name = name
        self._emit = emit
        self.waiting: deque[events.Event] = deque()
        self._emitting = threading.Lock()
        self._unmarked = Unmarked()

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

    def placed(self, starts: Mapping[TopicPartition, Start]) -> None:
        """Partitions begin, or go on elsewhere than expected."""
        if begun := {tp: (start.offset, start.reason) for tp, start in starts.items() if start.begins}:
            self.add(events.Assigned, begun)
        for (topic, partition), start in starts.items():
            if start.expected is not None:
                self.add(events.Moved, topic, partition, start.expected, start.offset, start.reason, start.missing)

    # -- commits

    def committed(self, commits: Collection[Commit], refusals: Mapping[TopicPartition, Refusal]) -> None:
        """``commits`` are answered, some by ``refusals``."""
        offsets = {ownership.tp: offset for ownership, offset, *_ in commits}
        if done := {tp: offset for tp, offset in offsets.items() if tp not in refusals}:
            self.add(events.Committed, done)
        failed: dict[tuple[str, str | None], list[TopicPartition]] = defaultdict(list)
        for tp, refusal in refusals.items():
            failed[describe(refusal.error), refusal.lasting].append(tp)
        for (_, lasting), tps in failed.items():
            self.add(events.CommitFailed, {tp: offsets[tp] for tp in tps}, refusals[tps[0]].error, lasting)

    def transacted(self, commits: Collection[Commit], ended: Ended, lost: Collection[Ownership]) -> None:
        """The transaction with ``commits`` has ended. A message that was refused is said by its run."""
        if isinstance(ended, Committed):
            self.committed(commits, ended.refusals)
        elif isinstance(ended, Undecided):
            self.committed(commits, {commit.ownership.tp: Refusal(ended.error) for commit in commits})
        self.lost(lost)

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
        """One function of the hooks of ``run`` (None: all of them) has ended. Not to be called under the lock."""
        call = run.as_call(self._group_id, function or self._name(run))
        self.waiting.append(events.CallEnded(*call, seconds, error=error, reason=describe(error) if error else ""))
        self.emit()

    def call_ended(self, run: Run, outcome: Outcome, letter: DeadLetter = None) -> None:
        """A call that comes again if it fails has ended. Where a message was given up, ``letter`` is its dead one."""
        seconds, messages, retry_offset, retry_s, given_up = outcome
        ended = seconds, messages, run.error, retry_offset, retry_s, run.reason, given_up and given_up[0]
        ours, culprit = run.ownership, run.culprit if run.error is not None else None
        lag = None if ours.over or not run.records else ours.intake.lag_after(run.records[-1].offset)
        self.waiting.append(events.CallEnded(*self._call(run), *ended, culprit, ours.options.budget, lag, run.beside))
        if given_up:
            self.given_up(run, *given_up, run.reason, letter, run.error)
        if ours.options.manual_offsets and run.records:
            name = self._name(run)
            if unmarked := self._unmarked.batch_ended(name, ours):
                self.add(events.Unmarked, name, unmarked)

    def given_up(
        self, run: Run, offset: int, tries: int, reason: str, letter: DeadLetter, error: BaseException | None = None
    ) -> None:
        """The message at ``offset`` was given up; ``letter``: its dead letter."""
        message, (at, left_out) = (*run.ownership.tp, offset), letter or (None, ())
        self.add(events.DeadLettered, *message, self._name(run), tries, reason, at, left_out, error)

    def _call(self, run: Run) -> tuple[str, str, int, str, str | None, int, int, int]:
        return run.as_call(self._group_id, self._name(run))
