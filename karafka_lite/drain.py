"""``run --drain``: the app runs until what was in its topics at the start is processed, then stops as at SIGTERM.

A partition of ours is at its end when nothing before the end is left to do. One of another member is when the group has
committed up to there, or when nothing that can be read lies between. All groups, all partitions; what is produced
meanwhile is processed while the app runs, and nobody waits for it.

Threads: the app runs in the main thread, as ever; ``_watch`` looks at it from beside, and alone asks the cluster then.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from karafka_lite.admin import Admin, Offsets
from karafka_lite.app import App
from karafka_lite.errors import ConfigurationError, KarafkaLiteError
from karafka_lite.messages import TopicPartition, at
from karafka_lite.standing import Standing

log = logging.getLogger("karafka_lite")

NOT_DRAINED = 4
LOOK_S = 0.05
FIRST_ASK_S = 2.0  # until then the group has been joined, and most often nobody else is in it
ASK_S = 0.5  # how often the cluster is asked what other members have committed

Progress = Callable[[int], AbstractContextManager[Callable[[int], None]]]


@dataclass
class _Goal:
    """What one group has to come to."""

    begin: Offsets
    end: Offsets
    committed: Offsets = field(default_factory=dict)  # as the cluster told last
    readable: Offsets = field(default_factory=dict)  # where it was found that a message comes next

    def left(self, standing: Standing) -> list[TopicPartition]:
        """Ours that are not at their end."""
        return [p for p in standing.processed if standing.done.get(p, -1) < self.end.get(p, -1)]

    def elsewhere(self, standing: Standing) -> list[TopicPartition]:
        """Those of others that are not known to be at their end."""
        others = [place for place in self.end if place not in standing.processed]
        return [place for place in others if self.committed.get(place, self.begin[place]) < self.end[place]]

    def done(self, standing: Standing) -> int:
        """How many of the offsets between begin and end are processed."""
        reached = {**self.committed, **standing.processed, **standing.done}
        return sum(max(0, min(reached.get(p, 0), end) - self.begin[p]) for p, end in self.end.items())


class Drain:
    """One drained run: ``prepare``, ``run``, ``close``; behind the run ``standings`` is what was done.

    ``timeout_s``: how long nothing may be processed while no handler runs. ``complaint``: why the end was not reached
    ("" when it was).
    """

    def __init__(self, app: App, timeout_s: float) -> None:
        self.standings: list[Standing] = []
        self.complaint = ""
        self._app = app
        self._timeout_s = timeout_s
        self._admin = Admin(app.brokers(), app.config.settings)
        self._goals: dict[str, _Goal] = {}
        self._reached = False
        self._ask_at = 0.0
        self._over = threading.Event()

    def prepare(self) -> None:
        """Ask the cluster where the topics end now.

        Raises:
            ConfigurationError: a topic does not exist, so there is nothing to come to.
            BrokerUnavailableError, ClusterError: there is no answer.
        """
        self._admin.connect()
        topics = {topic for routes in self._app.groups.values() for topic in routes}
        places = self._admin.partitions(sorted(topics))
        if missing := sorted(topics - {topic for topic, _ in places}):
            raise ConfigurationError(
                f"--drain: there is no topic {', '.join(missing)} (or it may not be seen); fill it with "
                f"karafka-lite produce {missing[0]} FILE, or leave --drain out to wait for it"
            )
        ends, earliest = self._admin.end_offsets(places), self._admin.earliest_offsets(places)
        unread = ends if self._app.config.settings.get("auto_offset_reset") == "latest" else earliest
        for group_id, routes in self._app.groups.items():
            mine = [place for place in places if place[0] in routes]
            committed = self._admin.committed(group_id)
            begin = {p: min(max(committed.get(p, unread[p]), earliest[p]), ends[p]) for p in mine}
            self._goals[group_id] = _Goal(begin, {p: ends[p] for p in mine})

    @property
    def total(self) -> int:
        """How many offsets lie between what is committed and the end."""
        return sum(end - goal.begin[p] for goal in self._goals.values() for p, end in goal.end.items())

    def run(self, progress: Progress) -> int:
        """Run the app to the end of its topics. ``progress(total)`` yields a function that is told what is done.

        Returns the app's exit code, or NOT_DRAINED where it would be 0 and the end was not reached.
        """
        with progress(self.total) as update:
            watcher = threading.Thread(target=self._watch_or_stop, args=(update,), name="karafka-drain", daemon=True)
            watcher.start()
            try:
                code = self._app.run()
            finally:
                self._over.set()
                watcher.join()
        self.standings = self._look()
        if not self._reached and not self.complaint:
            self.complaint = "stopped before the end"
        return code if code or self._reached else NOT_DRAINED

    def close(self) -> None:
        """Hang up."""
        self._admin.close()

    # -- the watcher's thread

    def _watch_or_stop(self, update: Callable[[int], None]) -> None:
        try:
            self._watch(update)
        except Exception:
            log.exception("--drain has crashed; please report this")
            self._app.stop()

    def _watch(self, update: Callable[[int], None]) -> None:
        idle_s, looked_at, before = 0.0, time.monotonic(), -1
        self._ask_at = looked_at + FIRST_ASK_S
        while not self._over.wait(LOOK_S):
            if not (standings := self._look()):
                continue
            left = {s.group_id: self._goals[s.group_id].left(s) for s in standings}
            self._reached = not any(left.values()) and self._others_are_done(standings)
            done = sum(self._goals[s.group_id].done(s) for s in standings)
            update(done)
            waited, looked_at = time.monotonic() - looked_at, time.monotonic()
            if done != before:
                idle_s, before = 0.0, done
            elif not any(s.running for s in standings):
                idle_s += waited
            if idle_s > self._timeout_s:
                self.complaint = self._explain(standings, left)
            if self._reached or self.complaint:
                self._app.stop()
                return

    def _others_are_done(self, standings: list[Standing]) -> bool:
        """Ours is done: whether the group has committed the rest. By a commit the others learn what we have done."""
        waiting = [(s, goal) for s in standings for goal in [self._goals[s.group_id]] if goal.elsewhere(s)]
        if not waiting or time.monotonic() < self._ask_at:
            return not waiting
        self._ask_at = time.monotonic() + ASK_S
        for member in self._app.members:
            member.commit_soon()
        try:
            for standing, goal in waiting:
                goal.committed = {**goal.committed, **self._admin.committed(standing.group_id)}
                for place in goal.elsewhere(standing):
                    next_offset = goal.committed.get(place, goal.begin[place])
                    if goal.readable.get(place) == next_offset:
                        continue
                    if self._admin.nothing_between(place, next_offset, goal.end[place]):
                        goal.committed[place] = goal.end[place]
                    else:
                        goal.readable[place] = next_offset
        except KarafkaLiteError as error:
            log.warning("--drain: %s; asked again", error)
        return False

    def _look(self) -> list[Standing]:
        return [member.standing() for member in self._app.members]

    def _explain(self, standings: list[Standing], left: dict[str, list[TopicPartition]]) -> str:
        lines = [f"nothing was processed for {self._timeout_s:g} s, and these are not at their end:"]
        for standing in standings:
            goal = self._goals[standing.group_id]
            for place in left[standing.group_id]:
                why = standing.errors.get(place, "no error; does the broker answer?")
                lines.append(f"  {at(*place, standing.processed[place])} of {goal.end[place]}: {why}")
            for place in goal.elsewhere(standing):
                reached = goal.committed.get(place, goal.begin[place])
                lines.append(f"  {at(*place, reached)} of {goal.end[place]}: another member's, who commits no more")
        return "\n".join(lines)
