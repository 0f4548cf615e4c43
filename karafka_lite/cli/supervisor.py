"""``run --processes N``: one process that starts the others, passes on signals, and replaces who has died."""

from __future__ import annotations

import argparse
import logging
import math
import signal
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import Any

from karafka_lite.cli import probes
from karafka_lite.cli.children import Bell, Child, how_it_ended
from karafka_lite.cli.pulse import ASK_S, Pulse
from karafka_lite.errors import Exit
from karafka_lite.observers import metrics

log = logging.getLogger("karafka_lite")

MOST_DEATHS, WITHIN_S = 5, 60.0
AGAIN_S, AGAIN_MAX_S = 0.5, 30.0
LOOK_S = 60.0  # a signal rings anyway
OWN = (Exit.ERROR.value, Exit.NO_BROKER.value)  # of a first start that never worked: a restart would end the same


class Deaths:
    """When processes have died. It decides how soon one is started again, and when that is given up."""

    def __init__(self) -> None:
        self._recent: deque[tuple[float, int]] = deque()

    def wait_after(self, number: int, now: float) -> float | None:
        """Seconds until process ``number``, which has just died, is started again; None: too many have died."""
        self._recent.append((now, number))
        while self._recent[0][0] <= now - WITHIN_S:
            self._recent.popleft()
        if len(self._recent) >= MOST_DEATHS:
            return None
        times = sum(other == number for _, other in self._recent)
        return float(min(AGAIN_MAX_S, AGAIN_S * 2 ** (times - 1)))


class Supervisor:
    """A process for each of ``numbers``, of the same command; ``start(number)`` starts one.

    ``step`` until it returns None.
    """

    def __init__(self, numbers: Collection[int], start: Callable[[int], Child], bell: Bell, pulse: Pulse) -> None:
        self.children: dict[int, Child] = {}
        self.code = 0
        self._start, self._bell, self._pulse = start, bell, pulse
        self._due = dict.fromkeys(numbers, float("-inf"))  # when to start a process
        self._first = set(self._due)  # who is in its first start
        self._deaths = Deaths()
        self._stops = 0  # signals that were passed on
        self._stopping = False

    def step(self, now: float) -> float | None:
        """Do what is due. Returns the seconds to rest; None: all have ended, with ``code``."""
        for number, child in list(self.children.items()):
            code = child.ended()
            while child.answers:
                self._pulse.answered(number, *child.answers.pop(0), now)
            if code is not None:
                del self.children[number]
                self._pulse.ended(number, how_it_ended(code))
                self._ended(number, child, code, now)
        if self._stops < self._bell.stops:
            self._stops = self._bell.stops
            self._stop()
        if self._stopping and not self.children:
            return None
        for number, due in list(self._due.items()):
            if due <= now:
                del self._due[number]
                self.children[number] = self._start(number)
                self._pulse.started(number, now)
                log.info("[%d] started, pid %d", number, self.children[number].process.pid)
        for number, child in self.children.items():
            if self._pulse.is_due(number, now):
                child.ask()
        return min(*self._due.values(), now + self._pulse.ask_s, now + LOOK_S) - now

    def _stop(self) -> None:
        self._stopping = True
        self._due.clear()
        for child in self.children.values():  # at once: each leaves the group before a rebalance could end
            child.stop()

    def _ended(self, number: int, child: Child, code: int, now: float) -> None:
        first = number in self._first
        self._first.discard(number)
        if self._stopping:
            if code == -signal.SIGTERM and not child.works:
                code = 0  # it had not begun
            self.code = self.code or (Exit.ERROR.value if code < 0 else code)
        elif first and not child.works and code in OWN:
            self.code = code
            self._stop()
        elif (wait := self._deaths.wait_after(number, now)) is None:
            text = "[%d] %s, the fifth process that has died within %.0f s: stopping. Look at their last lines"
            log.critical(text, number, how_it_ended(code), WITHIN_S)
            self.code = Exit.ERROR.value
            self._stop()
        else:
            self._due[number] = now + wait
            log.error("[%d] %s; it is started again in %.1f s", number, how_it_ended(code), wait)


def supervise(arguments: argparse.Namespace, orders: Mapping[str, Any]) -> int:
    """Run as many processes of this command line as it says until a signal; returns the exit code.

    The first one that is not 0; 1 where five processes have died within a minute. The probes are answered for all.
    """
    numbers = range(1, arguments.processes + 1)
    pulse = Pulse(numbers, ASK_S if arguments.health_port or arguments.health_file else math.inf)
    nothing = dict.fromkeys(("health_port", "health_host", "health_file"))

    def start(number: int) -> Child:
        instance = orders["instance_id"]
        own = {"number": str(number), "instance_id": instance and f"{instance}-{number}"}
        return Child(arguments.argv, {**orders, **nothing, **own})

    sources = probes.Sources(lambda: pulse.health(time.monotonic()), lambda: metrics.exposed(pulse.reading()))
    with Bell() as bell, probes.watched(arguments, sources):
        supervisor = Supervisor(numbers, start, bell, pulse)
        while (rest := supervisor.step(time.monotonic())) is not None:
            bell.wait(supervisor.children.values(), rest)
        return supervisor.code
