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

from karafka_lite.app import App
from karafka_lite.client.admin import Admin, Offsets
from karafka_lite.errors import ConfigurationError, KarafkaLiteError
from karafka_lite.messages import TopicPartition, where
from karafka_lite.observers.progress import Standing

log = logging.getLogger("karafka_lite")

NOT_DRAINED = 4
LOOK_S = 0.05
FIRST_ASK_S = 2.0  # until then the group has been joined, and most often nobody else is in it
ASK_S = 0.5  # how often the cluster is asked what other members have committed
PATIENCE_S = 5.0  # how long the end waits for an answer; how long nothing is asked when there was none

Progress = Callable[[int], AbstractContextManager[Callable[[int], None]]]


@dataclass
class _Goal:
    """What one group has to come to."""

    begin: Offsets
    end: Offsets
    beyond: Offsets  # commits behind the end: the topic was made anew, and the client will begin anew, too
    unsettled: set[TopicPartition]  # without a commit, which "latest" has to make before anything is skipped
    committed: Offsets = field(default_factory=dict)  # as the cluster told last
    readable: Offsets = field(default_factory=dict)  # where it was found that a message comes next

    def left(self, standing: Standing) -> list[TopicPartition]:
        """Ours that are not at their end."""
        return [place for place in standing.processed if place in self.end and not self._is_done(place, standing)]

    def _is_done(self, place: TopicPartition, standing: Standing) -> bool:
        done = standing.done.get(place, -1)
        settled = place not in self.unsettled or place in standing.committed
        return settled and done >= self.end[place] and done != self.beyond.get(place)

    def elsewhere(self, standing: Standing) -> list[TopicPartition]:
        """Those of others that are not known to be at their end."""
        others = [place for place in self.end if place not in standing.processed]
        return [p for p in others if self.reached(p) < self.end[p] or (p in self.unsettled and p not in self.committed)]

    def reached(self, place: TopicPartition) -> int:
        """How far the group has come, by its commits."""
        return max(self.begin[place], self.committed.get(place, 0))

    def progress(self, standing: Standing) -> int:
        """How many of the offsets between begin and end are processed."""
        at = {place: standing.processed.get(place, self.reached(place)) for place in self.end}
        at.update((place, max(done, at[place])) for place, done in standing.done.items() if place in at)
        return sum(max(0, min(at[place], end) - self.begin[place]) for place, end in self.end.items())


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
        latest = self._app.config.settings.get("auto_offset_reset") == "latest"
        unread = ends if latest else earliest
        for group_id, routes in self._app.groups.items():
            mine = [place for place in places if place[0] in routes]
            committed = self._admin.committed(group_id)
            beyond = {p: committed[p] for p in mine if committed.get(p, 0) > ends[p]}
            begin = {p: max(unread[p] if p in beyond else committed.get(p, unread[p]), earliest[p]) for p in mine}
            unsettled = {p for p in mine if latest and p not in committed}
            self._goals[group_id] = _Goal(begin, {p: ends[p] for p in mine}, beyond, unsettled)
        self._admin.patience_s = 0.0  # from now on it is asked again and again

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
                watcher.join(PATIENCE_S)  # it may just wait for an answer
        self.standings = self._look()
        if not self.complaint:
            self.complaint = self._why_not(code)
        return code or (NOT_DRAINED if self.complaint else 0)

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
        idle_s, looked_at, furthest = 0.0, time.monotonic(), -1
        self._ask_at = looked_at + FIRST_ASK_S
        while not self._over.wait(LOOK_S):
            if not (standings := self._look()):
                continue
            left = {s.group_id: self._goals[s.group_id].left(s) for s in standings}
            self._reached = not any(left.values()) and self._others_are_done(standings)
            progress = sum(self._goals[s.group_id].progress(s) for s in standings)
            update(progress)
            waited, looked_at = time.monotonic() - looked_at, time.monotonic()
            if progress > furthest:  # a rebalance, or a batch that is to be repeated, may throw it back
                idle_s, furthest = 0.0, progress
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
                asked = [p for p in goal.elsewhere(standing) if goal.readable.get(p) != goal.reached(p)]
                spans = {p: (goal.reached(p), goal.end[p]) for p in asked if p not in goal.unsettled}
                finished = self._admin.finished(spans) if spans else set()
                goal.committed.update((p, goal.end[p]) for p in finished)
                goal.readable.update((p, start) for p, (start, _) in spans.items() if p not in finished)
        except KarafkaLiteError as error:
            self._ask_at = time.monotonic() + PATIENCE_S
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
                lines.append(f"  {where(*place, standing.processed[place])} of {goal.end[place]}: {why}")
            for place in goal.elsewhere(standing):
                line = f"  {where(*place, goal.reached(place))} of {goal.end[place]}: not ours"
                lines.append(f"{line}; its owner commits no more, or the group has not been joined")
        return "\n".join(lines)

    def _why_not(self, code: int) -> str:
        """What to say of a run that ended by itself; "" when nothing is missing."""
        if code:
            return f"it ended with exit code {code}, see above"
        if not self._reached:
            return "stopped before the end"
        failures = sum(tally.hook_failures for standing in self.standings for tally in standing.tallies.values())
        return f"{failures} of the hooks raised, see above" if failures else ""
