"""What people are told when a handler fails, or takes long: what, where, and what to do about it.

Whoever calls holds nothing that another thread waits for, but ``slow`` is called under the group's lock.
"""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Callable, Iterable

from karafka_lite.client.consumer import MAX_POLL_INTERVAL_MS
from karafka_lite.core.ownership import Partition, Run, State
from karafka_lite.errors import ProduceError, describe
from karafka_lite.messages import TopicPartition, where
from karafka_lite.settings import Config

log = logging.getLogger("karafka_lite")

CRITICAL = (SystemExit, KeyboardInterrupt, MemoryError)
NEAR = 0.8  # of max_poll_interval_ms
HALF = 0.5  # of drain_timeout_ms
_HERE = os.path.dirname(__file__)


class Failures:
    """Of one group."""

    def __init__(self, name: Callable[[Run], str], config: Config) -> None:
        self._name = name
        self._drain_s = config.drain_timeout_ms / 1000
        self._max_poll_s = config.settings.get("max_poll_interval_ms", MAX_POLL_INTERVAL_MS) / 1000
        self._last: dict[TopicPartition, str] = {}

    def failed(self, run: Run, error: BaseException, wait: float | None) -> bool:
        """The handler raised and is called again in ``wait`` seconds (None: by the partition's next owner).

        A traceback is shown for an error of the user's own, and once while it repeats. Returns whether the app has to
        stop for it.
        """
        if isinstance(error, CRITICAL):
            log.critical("%s: %s raised %r; nothing is marked, the app stops", run, self._name(run), error)
            return True
        again = "the partition is ending, its next owner repeats it"
        if wait is not None:
            again = f"again from {where(*run.partition.place, run.partition.retry_position)} in {max(wait, 0):.1f} s"
        self._tell(run, error, f"failed at attempt {run.attempt}", again)
        return False

    def set_aside(self, run: Run, error: BaseException, tries: int, safe_in: str) -> None:
        """The message of ``run`` was given up after ``tries``; ``safe_in``: where it is now."""
        self._tell(
            run, error, f"failed {tries} times, the last time", f"goes on without it; the message is in {safe_in}"
        )

    def _tell(self, run: Run, error: BaseException, how: str, again: str) -> None:
        place = run.partition.place
        said = describe(error)
        what = f"{run}: {self._name(run)} {how}"
        repeats = run.attempt > 1 and self._last.get(place) == said
        self._last[place] = said
        if (line := _line_that_called_us(error)) is not None:
            log.error("%s, %s (%s); %s", what, said, line, again)
        elif isinstance(error, ProduceError):
            log.error("%s, %s; %s", what, said, again)
        elif repeats:
            log.error("%s as before, %s; %s", what, said, again)
        else:
            log.error("%s; %s", what, again, exc_info=error)

    def slow(self, partitions: Iterable[Partition], now: float) -> None:
        """Warn, once for each run, of what takes so long that it gets in the way."""
        for partition in partitions:
            run = partition.run
            if run is None or run.told:
                continue
            took = now - run.began
            if partition.state is State.DRAINING and partition.deadline - now < HALF * self._drain_s:
                run.told = True
                log.warning(
                    "%s: %s has been running for %.0f s and holds up a %s, which goes on without it past "
                    "drain_timeout_ms=%.0f. Return when ctx.stopping is True, make batches smaller (max_messages), or "
                    "raise drain_timeout_ms",
                    run, self._name(run), took, "stop" if partition.stopping_app else "rebalance", self._drain_s * 1000,
                )  # fmt: skip
            elif partition.state is State.ASSIGNED and took > NEAR * self._max_poll_s:
                run.told = True
                log.warning(
                    "%s: %s has been running for %.0f s; no rebalance waits longer than max_poll_interval_ms=%.0f. "
                    "Make batches smaller (max_messages), or raise max_poll_interval_ms",
                    run, self._name(run), took, self._max_poll_s * 1000,
                )  # fmt: skip


def _line_that_called_us(error: BaseException) -> str | None:
    """``file:line`` of the user's code where it called what raised in here; None for an error of the user's own."""
    steps = traceback.extract_tb(error.__traceback__)
    if not steps or os.path.dirname(steps[-1].filename) != _HERE:
        return None
    users = [step for step in steps if os.path.dirname(step.filename) != _HERE]
    return f"{users[-1].filename}:{users[-1].lineno}" if users else None
