"""How far the groups of a process have come, for ``run --drain``. Pure; changed under its group's lock only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from karafka_lite.core.group import Group
from karafka_lite.core.ownership import Partition, Run
from karafka_lite.errors import describe
from karafka_lite.messages import TopicPartition


@dataclass
class Tally:
    """What was done with one topic."""

    messages: int = 0  # that the handler has processed: behind a failure those that it marked
    batches: int = 0
    failures: int = 0  # batches whose handler raised
    given_up: int = 0  # messages at which it failed once too often: in the dead-letter topic, or skipped
    seconds: float = 0.0  # in the handler
    unmarked: int = 0  # processed, and behind the last mark at the end of the run
    hook_failures: int = 0


class Standing(NamedTuple):
    """One group, at one moment; by partition, of those that are ours."""

    group_id: str
    processed: dict[TopicPartition, int]  # behind the last message of a run that did not raise
    done: dict[TopicPartition, int]  # nothing before this offset is left to do; missing while that may change
    committed: dict[TopicPartition, int]  # as far as this ownership knows
    errors: dict[TopicPartition, str]  # of the last run or fetch, where it failed
    tallies: dict[str, Tally]  # by topic
    running: bool  # user code runs, or a batch waits for its batch_timeout_ms


class Score:
    """Counts what happens to one group."""

    def __init__(self, topics: Iterable[str]) -> None:
        self._tallies = {topic: Tally() for topic in topics}
        self._errors: dict[TopicPartition, str] = {}

    def ran(self, run: Run, error: BaseException | None, seconds: float, *, set_aside: bool = False) -> None:
        """A run has ended; ``set_aside``: its message was given up, which ends the trouble with it."""
        tally = self._tallies[run.partition.place[0]]
        if run.hook:
            tally.hook_failures += error is not None
            return
        tally.seconds += seconds
        tally.messages += 0 if set_aside else _processed(run, failed=error is not None)
        if error is None:
            tally.batches += 1
            self._errors.pop(run.partition.place, None)
        elif set_aside:
            tally.failures += 1
            tally.given_up += 1
            self._errors.pop(run.partition.place, None)
        else:
            tally.failures += 1
            self._errors[run.partition.place] = describe(error)

    def unreadable(self, place: TopicPartition, error: Exception) -> None:
        """What stands next could not be fetched."""
        self._errors[place] = str(error)

    def ended(self, partitions: Iterable[Partition]) -> None:
        """The app stops, and ``partitions`` were ours to the end."""
        for partition in partitions:
            self._tallies[partition.place[0]].unmarked += partition.unmarked

    def standing(self, group_id: str, group: Group) -> Standing:
        """A snapshot."""
        owned = {place: partition for place, partition in group.owned.items() if partition.start is not None}
        return Standing(
            group_id,
            {place: partition.processed for place, partition in owned.items()},
            {place: done for place, partition in owned.items() if (done := partition.done) is not None},
            {place: p.committed for place, p in owned.items() if p.committed is not None},
            {place: self._errors[place] for place in owned if place in self._errors},
            {topic: replace(tally) for topic, tally in self._tallies.items()},
            any(partition.running or partition.collects for partition in [*owned.values(), *group.leftovers.values()]),
        )


def _processed(run: Run, *, failed: bool) -> int:
    """How many messages of a batch are done."""
    if not failed and run.in_hand is None:
        return len(run.records)
    marked = run.partition.stored or 0 if run.partition.version != run.version else 0
    behind = marked if run.in_hand is None else max(marked, run.in_hand)
    return sum(record.offset < behind for record in run.records)
