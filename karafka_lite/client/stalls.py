"""What a member waits for when it does not work, as events: to join, to learn where to begin, to fetch.

Private touch points in kafka-python 3.0 (pinned below 3.1), with tests in tests/kafka/test_silence.py:

    consumer._subscription.assignment, consumer._cluster.leader_for_partition, unauthorized_topics
                                  a partition without a leader is not fetched, and no answer says so
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

import kafka.errors

from karafka_lite.client.connection import Emit
from karafka_lite.client.protocol import Rebalance
from karafka_lite.core.watch import Health, Watch
from karafka_lite.events import Idle, Joined, Resumed, Stalled
from karafka_lite.messages import TopicPartition

LEADERS_S = 1.0  # between two looks for partitions that have no leader
SLACK_S = 1.0  # of an answer to a heartbeat
NO_LEADER = (None, -1)


class Stalls:
    """Of one KafkaConsumer. ``assigned`` runs on kafka-python's thread, the rest belongs to the poller."""

    def __init__(self, consumer: Any, group_id: str, rebalance: Rebalance, emit: Emit) -> None:
        self.unstarted: dict[TopicPartition, str] = {}  # whose start was not found since the last poll, and why
        self._consumer, self._cluster, self._trouble = consumer, consumer._cluster, consumer._manager.trouble
        self._group_id, self._rebalance, self._emit = group_id, rebalance, emit
        self._watch = Watch()
        self._leaderless: dict[TopicPartition, tuple[float, str]] = {}  # since when, and what to say
        self._look_at = self._joined_at = 0.0
        self._join: list[TopicPartition] | None = None  # what the last join has given us
        self._said: list[TopicPartition] | None = None  # the same, as far as it was said

    def assigned(self, tps: Collection[Any]) -> None:
        """A join has ended."""
        self._joined_at = time.monotonic()
        self._join = sorted((tp.topic, tp.partition) for tp in tps)
        self._trouble.forget()

    def say(self, joining: bool) -> None:
        """Emit what the member waits for, where it is time to."""
        unfetched = {**self._leaderless, **self._trouble.unfetched()}
        health = Health(not joining, unfetched, self._trouble.cause(), self._silent_since(time.monotonic()))
        had_said = self._watch.has_said
        if wait := self._watch.look(health, self.unstarted, time.monotonic()):
            self._emit(Stalled(self._group_id, *wait))
        elif had_said and not self._watch.has_said:
            self._emit(Resumed(self._group_id))
        self.unstarted = {}
        join = self._join
        if join is not None and join is not self._said:
            self._said = join
            self._emit(Joined(self._group_id, tuple(join)))
            if not join:
                self._emit(Idle(self._group_id))
        self._rebalance.begun |= self._trouble.fetched or join == []

    def _silent_since(self, now: float) -> float | None:
        """Since when heartbeats have no answer: two in a row, and a moment."""
        heartbeat = self._consumer._coordinator.heartbeat
        since: float = max(heartbeat.last_receive, self._joined_at)
        return since if now - since > 2 * heartbeat.config["heartbeat_interval_ms"] / 1000 + SLACK_S else None

    def look_for_leaders(self) -> None:
        """Find partitions that have no leader. Raises TopicAuthorizationFailedError where a right is missing."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at, known = now + LEADERS_S, self._leaderless
        without = [
            tp
            for tp in self._consumer._subscription.assignment.copy()
            if self._cluster.leader_for_partition(tp) in NO_LEADER
        ]
        self._leaderless = {tuple(tp): known.get(tuple(tp), (now, "it has no leader")) for tp in without}
        if denied := {tp.topic for tp in without} & set(self._cluster.unauthorized_topics):
            raise kafka.errors.TopicAuthorizationFailedError(denied)
