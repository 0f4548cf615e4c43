"""How several processes are, as one: what each has answered last, for the probes of ``run --processes``.

Their counts are added up, as if one process did it all. Those of a process that has ended stay in the sums, but for
what it has counted since its last answer: no counter goes back, and who is started again begins no new series.

Told by the thread that supervises, asked by those of the probes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import replace

from karafka_lite.observers import health, metrics
from karafka_lite.observers.health import Health
from karafka_lite.observers.metrics import Reading

ASK_S = 1.0  # between two questions
SILENT_S = 5.0  # who has not answered for longer hangs
START_S = 30.0  # the same, before the first answer: on a busy machine Python takes its time


class Pulse:
    """The last answers of the processes ``numbers``, which are asked every ``ask_s`` seconds."""

    def __init__(self, numbers: Iterable[int], ask_s: float) -> None:
        self.ask_s = ask_s
        self._healths = dict.fromkeys(numbers, _waits("is starting"))
        self._readings: dict[int, Reading] = {}
        self._gone = Reading()  # of those that have ended
        self._heard: dict[int, float] = {}  # when it was started, or has answered
        self._asked: dict[int, float] = {}
        self._owes: set[int] = set()  # whose answer is on its way
        self._lock = threading.Lock()

    def started(self, number: int, now: float) -> None:
        """There is a process ``number``."""
        with self._lock:
            self._heard[number] = now
            self._healths[number] = _waits("is starting")

    def is_due(self, number: int, now: float) -> bool:
        """Whether to ask ``number`` now; if so, its answer is on its way."""
        due = number not in self._owes and now - self._asked.get(number, float("-inf")) > self.ask_s
        if due:
            self._owes.add(number)
            self._asked[number] = now
        return due

    def answered(self, number: int, health: Health, reading: Reading, now: float) -> None:
        """What ``number`` has answered."""
        with self._lock:
            self._owes.discard(number)
            self._heard[number] = now
            self._healths[number], self._readings[number] = health, reading

    def ended(self, number: int, how: str) -> None:
        """There is no process ``number`` until the next ``started``."""
        with self._lock:
            self._owes.discard(number)
            self._heard.pop(number, None)
            self._healths[number] = _waits(how)
            last = self._readings.pop(number, Reading())
            self._gone = metrics.together([self._gone, replace(last, lags={})])

    def health(self, now: float) -> Health:
        """Of all. Not live: one is not, or does not answer. Not ready: one is not, or is not there."""
        with self._lock:
            return health.together({number: self._health_of(number, now) for number in self._healths})

    def reading(self) -> Reading:
        """The sums of all, also of those that have ended."""
        with self._lock:
            return metrics.together([self._gone, *self._readings.values()])

    def _health_of(self, number: int, now: float) -> Health:
        silent = now - self._heard.get(number, now)
        if silent > (SILENT_S if number in self._readings else START_S):
            return Health(live=False, ready=False, reasons=(f"has not answered for {silent:.0f} s",))
        return self._healths[number]


def _waits(why: str) -> Health:
    return Health(live=True, ready=False, reasons=(why,))
