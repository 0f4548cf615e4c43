"""Topics whose lag grows and grows."""

from __future__ import annotations

import logging

from karafka_lite.observers.progress import Progress

log = logging.getLogger("karafka_lite")

LOOKS = 10  # so many times in a row it has to be more than the time before


class Growth:
    """Warns of a lag that has grown at each of ten looks, and of the same one again after ten more."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._streaks: dict[tuple[str, str], list[int]] = {}  # lags that grew, by group and topic

    def look(self, seconds: float) -> None:
        """``seconds`` have passed since the last time."""
        for place, (_, lag) in self._progress.by_topic().items():
            streak = self._streaks.setdefault(place, [])
            if lag is None or (streak and lag <= streak[-1]):
                streak.clear()
            if lag is not None:
                streak.append(lag)
            if len(streak) > LOOKS:
                text = "group %s: the lag of %s has grown for %.0f minutes, from %s to %s: more comes in than is "
                text += "processed. Run more processes, as many as there are partitions, or a higher concurrency, or "
                text += "make the handler faster"
                log.warning(text, *place, LOOKS * seconds / 60, f"{streak[0]:,}", f"{lag:,}")
                del streak[:-1]
