"""Metrics: counted from events, kept as values that can be sent and added up, written as text for Prometheus.

``prometheus-client`` (the extra ``metrics``) writes the text; nothing else needs it.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from karafka_lite import events
from karafka_lite.errors import ConfigurationError

if TYPE_CHECKING:
    from typing_extensions import Self

BUCKETS_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0)
MISSING = "metrics need prometheus-client, which is not installed: pip install 'karafka-lite[metrics]'"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass
class Histogram:
    """How many durations were how long; the last count is of those that are longer than all of ``BUCKETS_S``."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """One more."""
        self.counts[bisect_left(BUCKETS_S, seconds)] += 1
        self.seconds += seconds

    def include(self, other: Histogram) -> None:
        """Those of ``other``, too."""
        self.counts = [one + another for one, another in zip(self.counts, other.counts, strict=True)]
        self.seconds += other.seconds


@dataclass
class GroupCounts:
    """Of one group."""

    commits: int = 0
    commit_failures: int = 0
    rebalances: int = 0
    drains: Histogram = field(default_factory=Histogram)  # hand-overs


@dataclass
class TopicCounts:
    """Of one topic in one group; a commit counts for each topic that it has offsets of."""

    messages: int = 0
    batches: int = 0
    failures: int = 0
    dead_letters: int = 0
    commits: int = 0
    commit_failures: int = 0
    calls: Histogram = field(default_factory=Histogram)


@dataclass
class Reading:
    """The counts of one process at one moment, or of several together."""

    groups: dict[str, GroupCounts] = field(default_factory=dict)
    topics: dict[tuple[str, str], TopicCounts] = field(default_factory=dict)
    lags: dict[tuple[str, str, int], int] = field(default_factory=dict)

    def plain(self) -> list[Any]:
        """As values that JSON has; ``of`` reads them."""
        groups = {group: asdict(counts) for group, counts in self.groups.items()}
        topics = [[*key, asdict(counts)] for key, counts in self.topics.items()]
        return [groups, topics, [[*key, lag] for key, lag in self.lags.items()]]

    @classmethod
    def of(cls, plain: list[Any]) -> Self:
        """What ``plain`` has made."""
        groups, topics, lags = plain
        return cls(
            {group: GroupCounts(**_counts(values)) for group, values in groups.items()},
            {(group, topic): TopicCounts(**_counts(values)) for group, topic, values in topics},
            {(group, topic, partition): lag for group, topic, partition, lag in lags},
        )


def _counts(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: Histogram(**value) if isinstance(value, dict) else value for name, value in values.items()}


class Counts:
    """Counts what happens. An immediate observer: it never blocks.

    Attributes:
        since: by group, topic and partition, when it became ours, or its last call ended.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.since: dict[tuple[str, str, int], float] = {}
        self._groups: dict[str, GroupCounts] = defaultdict(GroupCounts)
        self._topics: dict[tuple[str, str], TopicCounts] = defaultdict(TopicCounts)
        self._lock = threading.Lock()
        self._now = now

    def read(self, lags: Mapping[tuple[str, str, int], int]) -> Reading:
        """The counts so far, which are the caller's, with these ``lags``."""
        with self._lock:
            return Reading(deepcopy(dict(self._groups)), deepcopy(dict(self._topics)), dict(lags))

    def observe(self, event: events.Event) -> None:
        """Count ``event``."""
        if type(event) in _COUNTED:  # a look into a set: it is asked of each event
            with self._lock:
                self._count(event)

    def _count(self, event: events.Event) -> None:
        group_id = event.group_id
        if isinstance(event, events.CallEnded):
            self.since[group_id, event.topic, event.partition] = self._now()
            if event.hook is None:
                self._call(event)
        elif isinstance(event, events.DeadLettered):
            self._topics[group_id, event.topic].dead_letters += 1
        elif isinstance(event, events.Committed):
            self._groups[group_id].commits += 1
            for topic in {topic for topic, _ in event.offsets}:
                self._topics[group_id, topic].commits += 1
        elif isinstance(event, events.CommitFailed):
            self._groups[group_id].commit_failures += 1
            for topic in {topic for topic, _ in event.offsets}:
                self._topics[group_id, topic].commit_failures += 1
        elif isinstance(event, events.Joined):
            self._groups[group_id].rebalances += 1
            now = self._now()
            self.since.update(((group_id, *tp), now) for tp in event.partitions)
        elif isinstance(event, events.Revoked):
            self._groups[group_id].drains.add(event.seconds)

    def _call(self, call: events.CallEnded) -> None:
        counts = self._topics[call.group_id, call.topic]
        counts.messages += call.messages
        counts.batches += call.error is None
        counts.failures += call.error is not None
        counts.calls.add(call.seconds)


_COUNTED = {
    events.CallEnded, events.DeadLettered, events.Committed, events.CommitFailed, events.Joined, events.Revoked
}  # fmt: skip


def together(readings: Iterable[Reading]) -> Reading:
    """The sum; of a partition that changes hands, the last lag counts."""
    groups: dict[str, GroupCounts] = defaultdict(GroupCounts)
    topics: dict[tuple[str, str], TopicCounts] = defaultdict(TopicCounts)
    lags: dict[tuple[str, str, int], int] = {}
    for reading in readings:
        for group_id, group in reading.groups.items():
            _include(groups[group_id], group)
        for topic, counts in reading.topics.items():
            _include(topics[topic], counts)
        lags.update(reading.lags)
    return Reading(dict(groups), dict(topics), lags)


def _include(to: object, other: object) -> None:
    for name, value in vars(other).items():
        if isinstance(value, Histogram):
            getattr(to, name).include(value)
        else:
            setattr(to, name, getattr(to, name) + value)


# -- as text

_BY_TOPIC = {
    "messages": "Messages that handlers have processed.",
    "batches": "Batches that handlers have processed.",
    "failures": "Calls of handlers that raised.",
    "dead_letters": "Messages that were given up.",
    "commits": "Commits with offsets of the topic that the broker has acknowledged.",
    "commit_failures": "Commits with offsets of the topic that were refused, or not answered.",
}


def exposed(reading: Reading) -> str:
    """``reading`` in Prometheus' text format. Raises ConfigurationError: ``prometheus-client`` is not installed."""
    try:
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
        from prometheus_client.registry import Collector
    except ImportError:
        raise ConfigurationError(MISSING) from None

    def histogram(name: str, told: str, labels: list[str], found: Mapping[Any, Histogram]) -> Metric:
        family = HistogramMetricFamily(f"karafka_lite_{name}", told, labels=labels)
        for values, each in found.items():
            bounds, sums = [*map(str, BUCKETS_S), "+Inf"], [sum(each.counts[: n + 1]) for n in range(len(each.counts))]
            family.add_metric(values, list(zip(bounds, sums, strict=True)), each.seconds)
        return family

    class Ours(Collector):
        def collect(self) -> Iterable[Metric]:
            by_topic, groups = list(reading.topics.items()), reading.groups.items()
            for name, told in _BY_TOPIC.items():
                counter = CounterMetricFamily(f"karafka_lite_{name}", told, labels=["group", "topic"])
                for labels, counts in by_topic:
                    counter.add_metric(labels, getattr(counts, name))
                yield counter
            calls = {labels: counts.calls for labels, counts in by_topic}
            yield histogram("handler_seconds", "How long calls of handlers took.", ["group", "topic"], calls)
            lag = GaugeMetricFamily(
                "karafka_lite_lag", "Offsets after what is processed.", labels=["group", "topic", "partition"]
            )
            for (group, topic, partition), value in reading.lags.items():
                lag.add_metric([group, topic, str(partition)], value)
            yield lag
            joins = CounterMetricFamily("karafka_lite_rebalances", "Joins of a member.", labels=["group"])
            for group, of_group in groups:
                joins.add_metric([group], of_group.rebalances)
            yield joins
            drains = {(group,): of_group.drains for group, of_group in groups}
            yield histogram("drain_seconds", "How long hand-overs of partitions took.", ["group"], drains)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Ours())
    return generate_latest(registry).decode()
