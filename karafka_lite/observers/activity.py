"""One line a minute for each topic that was worked on, so that a healthy service is not silent."""

from __future__ import annotations

import logging

from karafka_lite.observers.progress import Progress, Totals

log = logging.getLogger("karafka_lite")

EVERY_S = 60.0


class Activity:
    """Logs what ``progress`` has counted since the last time; nothing where nothing was done."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._before: dict[tuple[str, str], Totals] = {}

    def log(self, seconds: float) -> None:
        """``seconds`` have passed since the last time."""
        for (group, topic), (now, lag) in self._progress.by_topic().items():
            before = self._before.get((group, topic), Totals())
            self._before[group, topic] = now
            batches, failures = now.batches - before.batches, now.failures - before.failures
            if not batches and not failures:
                continue
            told = f"{_many(now.messages - before.messages, 'message')} in {_many(batches, 'batch', 'batches')}"
            told += f", lag {'unknown' if lag is None else f'{lag:,}'}"
            told += f", {_many(now.given_up - before.given_up, 'dead letter')}"
            told += f", {_many(failures, 'failure')}" if failures else ""
            log.info("group %s: %s: %s in the last %.0f s", group, topic, told, seconds)


def _many(count: int, one: str, more: str = "") -> str:
    return f"{count:,} {one if count == 1 else more or one + 's'}"
