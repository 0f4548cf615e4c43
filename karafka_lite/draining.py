"""A run to the end: everything that was in the topics at the start is processed, then the app stops.

All partitions of all groups count. A partition that we own is at its end when nothing before the end is left to do; a
partition of another member, when the group has committed the end, or when no readable message is left before the end.
Messages produced meanwhile are processed while the app runs, but they do not delay the stop.

Threads: the app runs in the caller's; ``_watch`` runs in its own, and is the only one that queries the cluster.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Protocol

from karafka_lite.errors import ConfigurationError, KarafkaLiteError
from karafka_lite.messages import TopicPartition, where
from karafka_lite.observers.progress import Snapshot
from karafka_lite.route import Route
from karafka_lite.runner import Member, System
from karafka_lite.settings import Config

if TYPE_CHECKING:
    from karafka_lite.client.admin import Offsets

log = logging.getLogger("karafka_lite")

NOT_DRAINED = 4
LOOK_S = 0.05
FIRST_QUERY_S = 2.0  # by then we have joined the group, and usually we are its only member
QUERY_INTERVAL_S = 0.5  # how often the cluster is asked for the commits of other members
PATIENCE_S = 5.0  # how long the stop waits for an answer, and how long no query is sent after one failed

Progress = Callable[[int], AbstractContextManager[Callable[[int], None]]]


class DrainedApp(Protocol):
    """What is asked of an App."""

    config: Config

    @property
    def groups(self) -> Mapping[str, Mapping[str, Route]]: ...
    @property
    def members(self) -> Sequence[Member]: ...
    def brokers(self) -> list[str]: ...
    def snapshots(self) -> list[Snapshot]: ...
    def stop(self) -> bool: ...


@dataclass(frozen=True)
class TopicTotals:
    """What was done with the messages of one topic, or of all.

    Attributes:
        messages: that handlers have processed.
        batches: that they have processed.
        failures: calls of handlers that raised.
        dead_letters: messages that were given up: sent to a dead-letter topic, or skipped with ``dead_letter=False``.
        unmarked: messages that were processed and not marked.
        handler_seconds: spent in handlers.
    """

    messages: int = 0
    batches: int = 0
    failures: int = 0
    dead_letters: int = 0
    unmarked: int = 0
    handler_seconds: float = 0.0


@dataclass(frozen=True)
class Drained(TopicTotals):
    """What a run to the end has done, in all and by topic."""

    topics: dict[str, TopicTotals] = field(default_factory=dict)


class DrainError(KarafkaLiteError):
    """A run to the end did not come to the end.

    Attributes:
        drained: what was done.
        errors: the last error of each partition that is not at its end, by (topic, partition).
    """

    def __init__(self, complaint: str, drained: Drained, errors: dict[TopicPartition, str]) -> None:
        super().__init__(complaint)
        self.drained = drained
        self.errors = errors


@dataclass
class _Goal:
    """What one group has to reach. All offsets are *next* offsets."""

    begin: Offsets
    end: Offsets
    past_end: Offsets  # commits past the end: the topic was re-created, and the client will start over as well
    unsettled: set[TopicPartition]  # without a commit: "latest" has to make one, or the next run would skip messages
    committed: Offsets = field(default_factory=dict)  # as last reported by the cluster
    readable: Offsets = field(default_factory=dict)  # offsets that are known to be followed by a message

    def left(self, snapshot: Snapshot) -> list[TopicPartition]:
        """Our partitions that are not at their end."""
        return [tp for tp in snapshot.processed if tp in self.end and not self._is_done(tp, snapshot)]

    def _is_done(self, tp: TopicPartition, snapshot: Snapshot) -> bool:
        done = snapshot.done.get(tp, -1)
        settled = tp not in self.unsettled or tp in snapshot.committed
        return settled and done >= self.end[tp] and done != self.past_end.get(tp)

    def elsewhere(self, snapshot: Snapshot) -> list[TopicPartition]:
        """Partitions of other members that are not known to be at their end."""
        others = [tp for tp in self.end if tp not in snapshot.processed]
        return [tp for tp in others if self.reached(tp) < self.end[tp] or self._lacks_commit(tp)]

    def _lacks_commit(self, tp: TopicPartition) -> bool:
        return tp in self.unsettled and tp not in self.committed

    def reached(self, tp: TopicPartition) -> int:
        """How far the group has come, according to its commits."""
        return max(self.begin[tp], self.committed.get(tp, 0))

    def progress(self, snapshot: Snapshot) -> int:
        """How many of the offsets between begin and end are processed."""
        positions = {tp: snapshot.processed.get(tp, self.reached(tp)) for tp in self.end}
        positions.update((tp, max(done, positions[tp])) for tp, done in snapshot.done.items() if tp in positions)
        return sum(max(0, min(positions[tp], end) - self.begin[tp]) for tp, end in self.end.items())


class Drain:
    """One run to the end: call ``prepare``, ``run`` and ``close``; ``serve`` runs the app and returns its exit code.

    Attributes:
        snapshots: after the run, what was done, by group.
        complaint: why the end was not reached; "" if it was.

    ``timeout_s``: the run ends after this long without progress while no handler runs.
    """

    def __init__(self, app: DrainedApp, serve: Callable[[], int], timeout_s: float) -> None:
        from karafka_lite.client.admin import Admin

        self.snapshots: list[Snapshot] = []
        self.complaint = ""
        self.errors: dict[TopicPartition, str] = {}
        self._app = app
        self._serve = serve
        self._timeout_s = timeout_s
        self._admin = Admin(app.brokers(), app.config.settings)
        self._goals: dict[str, _Goal] = {}
        self._reached = False
        self._query_at = 0.0
        self._over = System.event()

    def prepare(self) -> None:
        """Ask the cluster for the current end of each partition.

        Raises:
            ConfigurationError: a topic does not exist.
            BrokerUnavailableError, ClusterError: the cluster did not answer.
        """
        self._admin.connect()
        topics = {topic for routes in self._app.groups.values() for topic in routes}
        partitions = self._admin.partitions(sorted(topics))
        if missing := sorted(topics - {topic for topic, _ in partitions}):
            raise ConfigurationError(
                f"missing topics: {', '.join(missing)} (or no Describe permission). Create them, for example "
                f"with karafka-lite produce {missing[0]} FILE, or use run, which waits for them"
            )
        ends, earliest = self._admin.end_offsets(partitions), self._admin.earliest_offsets(partitions)
        latest = self._app.config.settings.get("auto_offset_reset") == "latest"
        unread = ends if latest else earliest
        for group_id, routes in self._app.groups.items():
            mine = [tp for tp in partitions if tp[0] in routes]
            committed = self._admin.committed(group_id)
            past_end = {tp: committed[tp] for tp in mine if committed.get(tp, 0) > ends[tp]}
            begin = {
                tp: max(unread[tp] if tp in past_end else committed.get(tp, unread[tp]), earliest[tp]) for tp in mine
            }
            unsettled = {tp for tp in mine if latest and tp not in committed}
            self._goals[group_id] = _Goal(begin, {tp: ends[tp] for tp in mine}, past_end, unsettled)
        self._admin.patience_s = 0.0  # _watch repeats its queries anyway

    @property
    def total(self) -> int:
        """How many offsets lie between what is committed and the end."""
        return sum(end - goal.begin[p] for goal in self._goals.values() for p, end in goal.end.items())

    def run(self, progress: Progress = lambda total: nullcontext(lambda done: None)) -> int:
        """Run the app to the end of its topics and return the exit code.

        ``progress(total)`` yields a function to call with the number of processed offsets. The exit code is the app's,
        or NOT_DRAINED if that is 0 but the end was not reached.
        """
        with progress(self.total) as update:
            watcher = System().thread("karafka-drain", partial(self._watch_or_stop, update))
            watcher.start()
            try:
                code = self._serve()
            finally:
                self._over.set()
                watcher.join(PATIENCE_S)  # it may be waiting for an answer
        self.snapshots = self._app.snapshots()
        if not self.complaint:
            self.complaint = self._why_not(code)
        return code or (NOT_DRAINED if self.complaint else 0)

    def result(self) -> Drained:
        """What was done; after the run. Raises DrainError: it did not come to the end."""
        topics: dict[str, TopicTotals] = {}
        for snapshot in self.snapshots:
            for topic, t in snapshot.totals.items():
                done = TopicTotals(t.messages, t.batches, t.failures, t.given_up, t.unmarked, t.seconds)
                topics[topic] = _sum(topics.get(topic, TopicTotals()), done)
        total = _sum(*topics.values())
        drained = Drained(**{each.name: getattr(total, each.name) for each in fields(total)}, topics=topics)
        if self.complaint:
            raise DrainError(self.complaint, drained, self.errors)
        return drained

    def close(self) -> None:
        """Close the connections to the cluster."""
        self._admin.close()

    # -- the watcher's thread

    def _watch_or_stop(self, update: Callable[[int], None]) -> None:
        try:
            self._watch(update)
        except Exception:
            log.exception(
                "the watch over a run to the end has crashed; this is a bug of karafka-lite: please report it"
            )
            self._app.stop()

    def _watch(self, update: Callable[[int], None]) -> None:
        idle_s, looked_at, furthest = 0.0, time.monotonic(), -1
        self._query_at = looked_at + FIRST_QUERY_S
        while not self._over.wait(LOOK_S):
            if not (snapshots := self._app.snapshots()):
                continue
            left = {s.group_id: self._goals[s.group_id].left(s) for s in snapshots}
            self._reached = not any(left.values()) and self._others_are_done(snapshots)
            progress = sum(self._goals[s.group_id].progress(s) for s in snapshots)
            update(progress)
            waited, looked_at = time.monotonic() - looked_at, time.monotonic()
            if progress > furthest:  # it may fall back: after a rebalance, or when a batch is repeated
                idle_s, furthest = 0.0, progress
            elif not any(s.running for s in snapshots):
                idle_s += waited
            if idle_s > self._timeout_s:
                self.complaint = self._explain(snapshots, left)
            if self._reached or self.complaint:
                self._app.stop()
                return

    def _others_are_done(self, snapshots: list[Snapshot]) -> bool:
        """Whether the group has committed the partitions of other members. Call it when ours are at their end.

        Asks our members to commit, so that the other ones learn the same of us.
        """
        pairs = [(snapshot, self._goals[snapshot.group_id]) for snapshot in snapshots]
        waiting = [(snapshot, goal) for snapshot, goal in pairs if goal.elsewhere(snapshot)]
        if not waiting or time.monotonic() < self._query_at:
            return not waiting
        self._query_at = time.monotonic() + QUERY_INTERVAL_S
        for member in self._app.members:
            with member.locked():
                member.group.request_commit()
        try:
            for snapshot, goal in waiting:
                goal.committed = {**goal.committed, **self._admin.committed(snapshot.group_id)}
                unknown = [tp for tp in goal.elsewhere(snapshot) if goal.readable.get(tp) != goal.reached(tp)]
                spans = {tp: (goal.reached(tp), goal.end[tp]) for tp in unknown if tp not in goal.unsettled}
                finished = self._admin.finished(spans) if spans else set()
                goal.committed.update((tp, goal.end[tp]) for tp in finished)
                goal.readable.update((tp, start) for tp, (start, _) in spans.items() if tp not in finished)
        except KarafkaLiteError as error:
            self._query_at = time.monotonic() + PATIENCE_S
            log.warning("the ends of other members' partitions are not known: %s; retrying", error)
        return False

    def _explain(self, snapshots: list[Snapshot], left: dict[str, list[TopicPartition]]) -> str:
        lines = [f"no progress for {self._timeout_s:g} s; partitions that are not at their end:"]
        for snapshot in snapshots:
            goal = self._goals[snapshot.group_id]
            for tp in left[snapshot.group_id]:
                why = self.errors[tp] = snapshot.errors.get(tp, "no error; is the broker reachable?")
                lines.append(f"  {where(*tp, snapshot.processed[tp])} of {goal.end[tp]}: {why}")
            for tp in goal.elsewhere(snapshot):
                why = "another member owns it and does not commit, or this member has not joined the group"
                self.errors[tp] = why
                lines.append(f"  {where(*tp, goal.reached(tp))} of {goal.end[tp]}: {why}")
        return "\n".join(lines)

    def _why_not(self, code: int) -> str:
        """Why a run that ended by itself did not reach the end; "" if it did."""
        if code:
            return f"the app ended with exit code {code}; see the log above"
        if not self._reached:
            return "stopped before the end"
        failures = sum(totals.hook_failures for snapshot in self.snapshots for totals in snapshot.totals.values())
        return f"calls of hooks that failed: {failures}; see the log above" if failures else ""


def _sum(*totals: TopicTotals) -> TopicTotals:
    return TopicTotals(*(sum(getattr(each, one.name) for each in totals) for one in fields(TopicTotals)))
