"""What a consumer costs while it runs at full speed: CPU, wall clock, memory.

Of the standard library only, for it is loaded beside every peer.
"""

from __future__ import annotations

import resource
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

Figures = dict[str, float]
Clocks = tuple[float, float]  # CPU, wall

FEW = 500  # messages that are counted at once, where they come one by one


class Meter:
    """CPU and wall clock from the first batch, when everything is joined, to the last; ``done`` is told them, once.

    The first batch is not counted: what it cost lies before the clock starts.
    """

    def __init__(self, messages: int, done: Callable[[Figures], None]) -> None:
        self._messages = messages
        self._done = done
        self._seen = 0
        self._before = 0
        self._began: Clocks | None = None
        self._ended = False
        self._lock = threading.Lock()

    def count(self, messages: int) -> None:
        """A batch came; from any thread."""
        with self._lock:
            self._seen += messages
            if self._began is None:
                self._before, self._began = self._seen, clocks()
            if self._seen < self._messages or self._ended:
                return
            self._ended = True
            (cpu, wall), (cpu_end, wall_end) = self._began, clocks()
            counted = max(1, self._seen - self._before)
        cost = {"cpu_us": (cpu_end - cpu) / counted * 1e6, "per_s": counted / (wall_end - wall)}
        self._done({**cost, **memory()})

    def one(self) -> Callable[[], None]:
        """Counts one message at each call, from one thread, at a price that does not count."""
        few = left = min(FEW, self._messages)

        def came() -> None:
            nonlocal few, left
            left -= 1
            if not left:
                self.count(few)
                few = left = max(1, min(FEW, self._messages - self._seen))

        return came


def clocks() -> Clocks:
    """All threads of the process, and those of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime, time.perf_counter()


def memory() -> Figures:
    """Resident, in MB: the most there ever was, and now (only where Linux says it)."""
    status = Path("/proc/self/status")
    if not status.exists():
        unit = 1 if sys.platform == "darwin" else 1 << 10
        return {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6}
    # Linux's ru_maxrss begins with what the parent had when it forked: the benchmark's own memory.
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return {name: int(lines[key].split()[0]) * 1024 / 1e6 for name, key in (("peak_mb", "VmHWM"), ("mb", "VmRSS"))}
