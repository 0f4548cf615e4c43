"""How far the groups of a process have come: totals of what was done, and where each partition is."""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import NamedTuple

from karafka_lite.core.group import Group
from karafka_lite.errors import describe
from karafka_lite.events import CallEnded, DeadLettered, Event, Left, Lost, Revoked, Unreadable
from karafka_lite.messages import TopicPartition


@dataclass
class Totals:
    """What was done with one topic."""

    messages: int = 0  # that the handler has processed; after a failure those that it marked
    batches: int = 0
    failures: int = 0  # batches whose handler raised
    given_up: int = 0  # messages that are in the dead-letter topic, or skipped with dead_letter=False
    seconds: float = 0.0  # in the handler
    unmarked: int = 0  # processed, and past the last mark at the end of the run
    hook_failures: int = 0


class Snapshot(NamedTuple):
    """One group, at one moment; by partition, of those that are ours."""

    group_id: str
    processed: dict[TopicPartition, int]  # where the next batch begins
    done: dict[TopicPartition, int]  # nothing before this offset is left to do; missing while that may change
    committed: dict[TopicPartition, int]  # as far as this ownership knows
    errors: dict[TopicPartition, str]  # of the last call or fetch, where it failed
    totals: dict[str, Totals]  # by topic
    running: bool  # user code runs, or a batch waits for its batch_timeout_ms, or for a try that it has left


class Progress:
    """Counts what happens. An immediate observer: it never blocks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals: dict[str, dict[str, Totals]] = defaultdict(lambda: defaultdict(Totals))  # by group and topic
        self._errors: dict[str, dict[TopicPartition, str]] = defaultdict(dict)
        self._lags: dict[str, dict[TopicPartition, int]] = defaultdict(dict)  # of what is ours, after its last batch

    def observe(self, event: Event) -> None:
        """Count ``event``."""
        if isinstance(event, CallEnded):
            with self._lock:
                self._count(event)
        elif isinstance(event, DeadLettered):
            with self._lock:
                self._totals[event.group_id][event.topic].given_up += 1
        elif isinstance(event, Unreadable):
            with self._lock:
                self._errors[event.group_id][event.topic, event.partition] = describe(event.error)
        elif isinstance(event, Left):
            with self._lock:
                for (topic, _), unmarked in event.unmarked.items():
                    self._totals[event.group_id][topic].unmarked += unmarked
        elif isinstance(event, Revoked | Lost):
            with self._lock:
                for tp in event.committed if isinstance(event, Revoked) else event.partitions:
                    self._lags[event.group_id].pop(tp, None)

    def _count(self, call: CallEnded) -> None:
        totals, errors = self._totals[call.group_id][call.topic], self._errors[call.group_id]
        if call.hook == "on_assigned":  # it holds up its partition as a batch does
            if call.error is None:
                errors.pop(call.tp, None)
            else:
                errors[call.tp] = f"on_assigned: {call.reason}"
            return
        if call.hook:
            totals.hook_failures += call.error is not None
            return
        if call.lag is not None:
            self._lags[call.group_id][call.tp] = call.lag
        totals.seconds += call.seconds
        totals.messages += call.messages
        totals.batches += call.error is None
        totals.failures += call.error is not None
        if call.error is not None and call.given_up is None:  # giving up ends the trouble with it
            errors[call.tp] = call.reason
        elif errors:
            errors.pop(call.tp, None)

    def by_topic(self) -> dict[tuple[str, str], tuple[Totals, int | None]]:
        """By group and topic the totals, and the lag of its partitions that are ours; None where it is not known."""
        with self._lock:
            lags: dict[tuple[str, str], int] = defaultdict(int)
            for group_id, partitions in self._lags.items():
                for (topic, _), lag in partitions.items():
                    lags[group_id, topic] += lag
            pairs = [(group_id, topic) for group_id, topics in self._totals.items() for topic in topics]
            return {pair: (replace(self._totals[pair[0]][pair[1]]), lags.get(pair)) for pair in pairs}

    def errors_of(self, group_id: str) -> dict[TopicPartition, str]:
        """By partition the error of the last call or fetch, where it failed."""
        with self._lock:
            return dict(self._errors[group_id])

    def snapshot(self, group: Group, group_id: str, topics: list[str]) -> Snapshot:
        """To be called under the lock of ``group``."""
        owned = {tp: ownership for tp, ownership in group.owned.items() if ownership.intake.start is not None}
        inside = [*owned.values(), *group.leftovers.values()]
        with self._lock:
            errors, totals = dict(self._errors[group_id]), self._totals[group_id]
            return Snapshot(
                group_id,
                {tp: ownership.intake.next_offset for tp, ownership in owned.items()},
                {tp: done for tp, ownership in owned.items() if (done := ownership.done) is not None},
                {tp: o.marks.committed for tp, o in owned.items() if o.marks.committed is not None},
                {tp: errors[tp] for tp in owned if tp in errors},
                {topic: replace(totals[topic]) for topic in topics},
                any(o.run is not None or o.collects or o.retries.has_tries_left for o in inside),
            )
