"""One consumer group in this process: the threads that carry out what ``group.py`` decides.

    poller                     polls without a pause; fills queues, applies the plan; at the end winds down and leaves
    committer                  the only caller of ``commit``; also the clock of the group
    workers (``workers.py``)   user code, by ``calls.py``
    kafka-python's IO thread   asks ``on_assigned``, ``on_revoke``, ``on_lost`` at a rebalance

One lock and one condition (``guard.py``).
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from enum import Enum
from functools import partial
from typing import NamedTuple

from karafka_lite.calls import Calls, Outbox
from karafka_lite.client.admin import Admin
from karafka_lite.client.consumer import SAY_AGAIN_S, Client, PollError, Start
from karafka_lite.core.group import Commit, Group
from karafka_lite.core.ownership import Partition, Run, State
from karafka_lite.errors import BrokerUnavailableError, FetchError, KarafkaLiteError
from karafka_lite.guard import LOOK_AGAIN_S, Guard
from karafka_lite.messages import TopicPartition, where
from karafka_lite.observers.progress import Score, Standing
from karafka_lite.observers.report import Failures
from karafka_lite.routing import Route
from karafka_lite.settings import Config
from karafka_lite.workers import Workers

log = logging.getLogger("karafka_lite")

TOPICS_CHECK_S = 1.0
AWAITS_ANSWERS = "  its end, and waits for what it has sent to be acknowledged"


class Exit(Enum):
    """The exit codes of ``karafka-lite run``."""

    CLEAN = 0
    ERROR = 1
    FORCED = 2
    NO_BROKER = 3


class Event(NamedTuple):
    """What a thread tells the main thread: stop, with this exit code; ``left``: that member has ended."""

    exit: Exit = Exit.CLEAN
    error: BaseException | None = None
    left: Member | None = None


class Member:
    """One consumer group in this process: its rules (``Group``) under a lock, its client, its two threads.

    It is the ``Rebalance`` of the client.
    """

    def __init__(
        self,
        workers: Workers,
        events: queue.SimpleQueue[Event],
        group_id: str,
        config: Config,
        bootstrap_servers: Sequence[str],
        routes: Mapping[str, Route],
        leftovers: Iterable[Partition],
        outbox: Outbox,
    ) -> None:
        self.group_id = group_id
        self.connected = threading.Event()  # or it could not: then ``error`` is set
        self.error: KarafkaLiteError | None = None
        self._workers = workers
        self._events = events
        self._routes = routes
        self._config = config
        self._drain_s = config.drain_timeout_ms / 1000
        self._client = Client(group_id, bootstrap_servers, config.settings, self)
        self.group = Group(
            {topic: route.policy for topic, route in routes.items()},
            commit_interval_ms=config.auto_commit_interval_ms,
            drain_timeout_ms=config.drain_timeout_ms,
            reset=self._client.reset,
            leftovers=leftovers,
            now=time.monotonic(),
        )
        self._guard = Guard(group_id, self.group, self._client, self._enlist)
        self._lock, self._changed = self._guard.lock, self._guard.changed
        self._score = Score(routes)
        self._failures = Failures(self._name, config)
        ask_to_stop = partial(events.put, Event(Exit.ERROR))
        self._calls = Calls(self._guard, workers, routes, outbox, self._failures, self._score, ask_to_stop)
        self._closed = False
        self._poller = threading.Thread(target=self._live, name=f"karafka-poller-{group_id}", daemon=True)
        self._committer = threading.Thread(target=self._commit_all, name=f"karafka-committer-{group_id}", daemon=True)
        self._missing: set[str] = set(routes)
        self._check_topics_at = 0.0
        self._said: dict[str, float] = {}  # message -> when it was said last
        self._last: list[Partition] = []  # what was ours when the stop began

    def start(self) -> None:
        self._poller.start()

    def _enlist(self, partition: Partition) -> None:
        self._workers.put(partial(self._calls.run, partition))

    def begin_stop(self) -> None:
        with self._lock:
            if not self.group.stopping:
                self._last = list(self.group.owned.values())
                self.group.stop(time.monotonic())
                self._guard.carry_out()

    def standing(self) -> Standing:
        """How far the group has come."""
        with self._lock:
            return self._score.standing(self.group_id, self.group)

    def commit_soon(self) -> None:
        """Commit what is stored without waiting for the interval."""
        with self._lock:
            self.group.request_commit()
            self._guard.carry_out()

    # -- the poller

    def _live(self) -> None:
        """The life of a member, in order. Whatever ends it, what runs is drained and what is stored is committed."""
        result: Exit = Exit.CLEAN
        error: BaseException | None = None
        try:
            self._client.connect()
            self._committer.start()
            self._ensure_dead_letters()
            self.connected.set()
            self._poll_until_stopped()
        except KarafkaLiteError as mistake:
            self.error = error = mistake
            result = Exit.NO_BROKER if isinstance(mistake, BrokerUnavailableError) else Exit.ERROR
        except BaseException as bug:
            log.exception("group %s: the poller has crashed; please report this", self.group_id)
            result, error = Exit.ERROR, bug
        try:
            self.begin_stop()
            if self._wind_down() is Exit.FORCED:
                result = Exit.FORCED
            self._leave()
        finally:
            self.connected.set()
            self._events.put(Event(result, error, left=self))

    def _ensure_dead_letters(self) -> None:
        """The topics for dead letters are there before there is one."""
        topics = {route.dead_letter for route in self._routes.values() if route.dead_letter}
        if topics:
            admin = Admin(self._client.bootstrap_servers, self._config.settings)
            admin.connect()
            try:
                for topic in sorted(admin.ensure_topics(topics)):
                    log.info("group %s: created topic %s for dead letters", self.group_id, topic)
            finally:
                admin.close()

    def _poll_until_stopped(self) -> None:
        while not self.group.stopping:
            try:
                self._poll_once()
            except PollError as error:
                self._say("group %s: polling failed, it is tried again: %s", self.group_id, error)
                with self._lock:
                    self._changed.wait(LOOK_AGAIN_S)
            except KarafkaLiteError:
                raise
            except Exception:
                log.exception("group %s: the client has broken down; a new one joins", self.group_id)
                self._start_over()

    def _poll_once(self) -> None:
        now = time.monotonic()
        subscribed = self._subscribe_to_what_exists(now)
        self._find_positions()
        with self._lock:
            self._guard.check_membership(now)
            self.group.advance(now)
            self._failures.slow(self.group.owned.values(), now)
            plan = self.group.poll_plan(now)
            paused = any(partition.paused for partition in self.group.owned.values())
            self._guard.carry_out()
            if not subscribed and not self.group.stopping:
                self._changed.wait(TOPICS_CHECK_S)
                return
        self._client.apply(plan)
        try:
            for fetched in self._client.poll(paused=paused):
                with self._lock:
                    self.group.fetched(*fetched, time.monotonic())
                    self._guard.carry_out()
            with self._lock:
                self.group.polled(self._client.positions())
        except FetchError as error:
            with self._lock:
                self._score.unreadable((error.topic, error.partition), error)
                wait = self.group.fetch_failed((error.topic, error.partition), time.monotonic())
            if wait is not None:
                log.error("%s; next try in %.1f s", error, wait)

    def _start_over(self) -> None:
        with self._lock:
            self._guard.lose(join_anew=False)
            self._guard.carry_out()
        self._client.close()
        self._missing = set(self._routes)
        while not self.group.stopping:
            with self._lock:
                self._changed.wait(TOPICS_CHECK_S)
            try:
                self._client.connect()
                return
            except BrokerUnavailableError as error:
                self._say("%s", error)

    def _subscribe_to_what_exists(self, now: float) -> bool:
        """Join for the topics that exist; ask for the others from time to time. False while there is none at all."""
        if self._missing and now >= self._check_topics_at:
            self._check_topics_at = now + TOPICS_CHECK_S
            missing = self._client.missing_topics(self._routes)
            if missing:
                told = "group %s: waiting for topics that do not exist (or may not be seen): %s; create them with %s"
                names = ", ".join(sorted(missing))
                self._say(told, self.group_id, names, "kafka-topics.sh --create --topic NAME")
            if self._missing - missing:
                self._client.subscribe(set(self._routes) - missing)
            self._missing = missing
        return len(self._missing) < len(self._routes)

    def _find_positions(self) -> None:
        with self._lock:
            places, sought = self.group.unstarted(), self.group.sought()
        for place, target in sought.items():
            if (offset := self._client.offset_of(place, target)) is not None:
                with self._lock:
                    self.group.found(place, target, offset)
        if not places:
            return
        starts = self._client.starts(places)
        with self._lock:
            for place, (offset, reason) in starts.items():
                self.group.started(place, offset, committed=reason == "committed", now=time.monotonic())
            self._guard.carry_out()
        if starts:
            log.info("group %s: assigned %s", self.group_id, _told(starts))

    def _wind_down(self) -> Exit:
        """Wait for handlers, ``on_shutdown`` hooks and the last commit, inside the bounds; then name what is stuck.

        The poller does not poll meanwhile: heartbeats go on, and no new assignment can come in between.
        """
        deadline = time.monotonic() + self._drain_s
        with self._lock:
            while self.group.owned or (self.group.leftovers and time.monotonic() < deadline):
                now = time.monotonic()
                self._guard.check_membership(now)
                self.group.advance(now)
                self._failures.slow(self.group.owned.values(), now)
                self._guard.carry_out()
                if self.group.owned or self.group.leftovers:
                    self._changed.wait(LOOK_AGAIN_S)
            stuck = self._workers.stacks(self.group.leftovers.values())
            uncommitted = [where(*p.place, p.stored) for p in self._last if p.state is State.REVOKED and p.pending]
            self._score.ended(self._last)
        if uncommitted:
            log.error("stored but not committed, these messages will come again: %s", ", ".join(uncommitted))
        for run, stack in stuck:
            told = f"{run}: {self._name(run)} has not returned within drain_timeout_ms={self._drain_s * 1000:.0f}"
            stands = f"what it stored is committed, the rest comes again. It stands at:\n{stack or AWAITS_ANSWERS}"
            log.error("%s; %s", told, stands)
        return Exit.FORCED if stuck or uncommitted else Exit.CLEAN

    def _leave(self) -> None:
        with self._lock:
            self._closed = True
            self.group.close()
            self._changed.notify_all()
        if self._committer.ident is not None:
            self._committer.join(self._drain_s)
            self._client.close()
            log.info("group %s: left", self.group_id)

    def _name(self, run: Run) -> str:
        return self._routes[run.partition.place[0]].called(run)

    # -- the committer

    def _commit_all(self) -> None:
        try:
            self._commit_until_closed()
        except BaseException as bug:
            log.exception("group %s: the committer has crashed; please report this", self.group_id)
            self._events.put(Event(Exit.ERROR, bug))

    def _commit_until_closed(self) -> None:
        while True:
            with self._lock:
                while True:
                    now = time.monotonic()
                    self.group.advance(now)
                    self._guard.carry_out()
                    commits = self.group.commit_batch(now)
                    generation = self._client.generation()
                    if commits or self._closed:
                        break
                    self._changed.wait(max(0.0, self.group.wake_at(now) - now))
            if not commits:
                return
            self._commit(commits, generation)

    def _commit(self, commits: Sequence[Commit], generation: int) -> None:
        error = self._client.commit({partition.place: offset for partition, offset, _ in commits}, generation)
        with self._lock:
            now = time.monotonic()
            before, self._guard.commit_error = self._guard.commit_error, error
            if error is None:
                self.group.commit_succeeded(commits, now)
            else:
                self._guard.check_membership(now)
                self.group.commit_failed(commits, now)
            self._guard.carry_out()
        if error is not None and before is None:
            log.warning("group %s: commit failed, the offsets stay pending: %r", self.group_id, error)
        elif error is None and before is not None:
            log.info("group %s: commits work again", self.group_id)

    # -- what the client tells (Rebalance), on its IO thread

    def on_assigned(self, places: Collection[TopicPartition]) -> None:
        with self._lock:
            self.group.assigned(places, time.monotonic())
            self._guard.carry_out()

    def on_revoke(self, places: Collection[TopicPartition]) -> Callable[[], float | None]:
        began = time.monotonic()
        with self._lock:
            leaving = self.group.revoke(places, began)
            self._guard.handing_over = True
            self._guard.carry_out()

        def ask() -> float | None:
            with self._lock:
                now = time.monotonic()
                self._guard.check_membership(now)
                self.group.advance(now)
                self._failures.slow(leaving, now)
                self._guard.handing_over = not self.group.released(leaving)
                self._guard.carry_out()
                if self._guard.handing_over:
                    return min(LOOK_AGAIN_S, max(0.001, self.group.wake_at(now) - now))
            if leaving:
                told = ", ".join(f"{partition}@{partition.committed}" for partition in leaving)
                log.info("group %s: handed over %s in %.3f s", self.group_id, told, time.monotonic() - began)
            return None

        return ask

    def on_lost(self) -> None:
        with self._lock:
            self._guard.lose(join_anew=False)
            self._guard.carry_out()

    def _say(self, text: str, *arguments: object) -> None:
        """A warning, but the same one not again and again."""
        message = text % arguments
        if time.monotonic() - self._said.get(message, float("-inf")) > SAY_AGAIN_S:
            self._said[message] = time.monotonic()
            log.warning("%s", message)


def _told(starts: Mapping[TopicPartition, Start]) -> str:
    return ", ".join(f"{where(*place, start.offset)} ({start.reason})" for place, start in sorted(starts.items()))
