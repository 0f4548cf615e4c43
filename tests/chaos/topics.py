"""The topics of a run: which there are, how many partitions each has, and in which of a topic's lives what was written.

A topic that is deleted and made anew under its name is another topic: its next life, ``name#2``. Messages have numbers;
a number belongs to the life that it was sent to.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from support.observer import Observer, wait_until

SETTLED_S = 2.0  # after a topic was made anew: until nobody is shown a commit of its earlier life


@dataclass
class Life:
    topic: str
    name: str
    began: float
    ended: float = float("inf")


class Topics:
    def __init__(self, kafka: Observer) -> None:
        self.kafka = kafka
        self.partitions: dict[str, int] = {}  # of those that are there
        self.lives: list[Life] = []
        self._life_of: dict[int, str] = {}  # of a message's number
        self._unanswered: Counter[str] = Counter()
        self._lock = threading.Lock()

    def make(self, topic: str, partitions: int) -> None:
        self.kafka.topic(partitions, name=topic)
        wait_until(lambda: all(self.kafka.end_offset(topic, n) == 0 for n in range(partitions)), 30, f"{topic} is new")
        before = sum(life.topic == topic for life in self.lives)
        self.lives.append(Life(topic, f"{topic}#{before + 1}" if before else topic, time.time()))
        with self._lock:
            self.partitions[topic] = partitions

    def delete(self, topic: str) -> None:
        """Everything that was sent to it has been answered before."""
        with self._lock:
            del self.partitions[topic]
        wait_until(lambda: not self._unanswered[topic], 60, f"all that was sent to {topic} is answered")
        self._living(topic).ended = time.time()
        self.kafka.delete_topic(topic)

    def grow(self, topic: str, partitions: int) -> None:
        self.kafka.grow(topic, partitions)
        with self._lock:
            self.partitions[topic] = partitions

    @property
    def places(self) -> list[tuple[str, int]]:
        with self._lock:
            return [(topic, partition) for topic, count in self.partitions.items() for partition in range(count)]

    # -- what is written into them

    def choose(self, number: int, dice: random.Random) -> tuple[str, int]:
        """Where the message of this number goes."""
        with self._lock:
            topic = dice.choice(list(self.partitions))
            self._unanswered[topic] += 1
            self._life_of[number] = self._living(topic).name
            return topic, dice.randrange(self.partitions[topic])

    def answered(self, topic: str) -> None:
        with self._lock:
            self._unanswered[topic] -= 1

    # -- which life is meant

    def life(self, topic: str) -> str:
        return self._living(topic).name

    def life_of(self, number: int) -> str:
        return self._life_of[number]

    def _living(self, topic: str) -> Life:
        return next(life for life in reversed(self.lives) if life.topic == topic)

    def of_members(self, facts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """What members tell, with the topic's life in the place of its name."""
        return [fact | {"topic": self._life_of.get(fact.get("number", -1), fact["topic"])} for fact in facts]

    def of_watcher(self, facts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The commits that were seen while it was clear which life they were of."""
        spans = {
            life.name: (life.topic, life.began + (SETTLED_S if "#" in life.name else 0), life.ended)
            for life in self.lives
        }
        return [
            fact | {"topic": name}
            for fact in facts
            for name, (topic, began, ended) in spans.items()
            if fact["topic"] == topic and began <= fact["at"] < ended
        ]
