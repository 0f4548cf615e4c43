"""One group under test: the runner's own member, with a log of lists for a broker, and steps instead of threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from karafka_lite.app import App
from karafka_lite.client.protocol import Client, Fetched
from karafka_lite.core.answers import Commit, Committed, Ended, PollPlan, Refused
from karafka_lite.core.marks import Marks, Refusal
from karafka_lite.core.options import SeekTarget, Timestamp
from karafka_lite.core.ownership import Ownership, Run
from karafka_lite.core.sends import Told
from karafka_lite.core.starts import Note, Stray
from karafka_lite.core.starts import Place as Start
from karafka_lite.coroutines import drive
from karafka_lite.ending import ExitRequest
from karafka_lite.errors import StrayedError
from karafka_lite.events import CallEnded, Event
from karafka_lite.messages import Addressed, TopicPartition
from karafka_lite.observers.delivery import deliver
from karafka_lite.observers.frames import Place
from karafka_lite.observers.report import Report
from karafka_lite.route import Route
from karafka_lite.runner import Member, Shared, System
from karafka_lite.testing.cluster import Cluster
from karafka_lite.testing.loop import TestLoop

POLL_RECORDS = 2000  # as App's max_poll_records
THREAD = 0  # the id of the only one


OnEnded = Callable[["TestMember", Run, CallEnded, list[int]], None]
"""A batch was handled: by whom, which, how it ended, and the offsets that were marked."""


class TestMember(Member):
    """``step`` does one thing that is due, in the thread of the test."""

    __test__ = False

    def __init__(
        self,
        cluster: Cluster,
        app: App,
        group_id: str,
        routes: Mapping[str, Route],
        ended: OnEnded,
        loop: TestLoop,
    ) -> None:
        config = app.config
        self._loop = loop
        self.cluster: Cluster = cluster
        self.memory: MemoryClient = MemoryClient(
            cluster, group_id, str(config.settings.get("auto_offset_reset", "earliest"))
        )
        self._app = app
        self._on_ended = ended
        self.newest: dict[TopicPartition, Ownership] = {}  # ownership of each
        self._calls: list[Run] = []  # of which nothing has been told yet
        self._marked: dict[Marks, list[int]] = {}
        self._hand_overs: list[Callable[[], float | None]] = []  # rebalances that wait for us
        self._report = Report(lambda: cluster.now)
        self._jobs = Jobs()
        jobs: Any = self._jobs  # what works without threads takes the places of them
        requests: Any = Requests(app)
        client: Any = self.memory
        system = StepSystem(self)
        inside, sent = self._jobs.inside, Sent(cluster)
        made = sent, lambda _: client, lambda _: MemoryTransactions(cluster)
        shared = Shared(config, system, lambda _: jobs, inside, *made, self._observe, requests)
        super().__init__(shared, group_id, routes)

    # -- what happens to it

    def assign(self, tps: Collection[TopicPartition]) -> None:
        """The broker gives it ``tps``."""
        self.memory.assign(tps)
        self.on_assigned(self.memory, tps)
        self.newest.update({tp: self.group.owned[tp] for tp in tps if tp in self.group.owned})

    def revoke(self, tp: TopicPartition) -> None:
        """A rebalance asks for ``tp``."""
        self._hand_overs.append(self.on_revoke(self.memory, [tp]))

    def step(self, *, batches: bool, stopping: bool) -> bool:
        """One thing that is due; False when there is none. Without ``batches`` only hooks and commits are."""
        now = self.cluster.now
        if stopping:
            self.begin_stop()
            self.wind_down_step(now)
        self.poll_step(now)
        while self.group.unplaced() and not self.group.stopping:  # a poll has just found that it reads past the end
            self.poll_step(now)
        self._hand_overs = [hand_over for hand_over in self._hand_overs if hand_over() is not None]
        ownership = self._jobs.take(lambda job: batches or _is_a_hooks_turn(job, now))
        if ownership is None:
            return self.commit_what_is_due()
        with _hooks_first(ownership, batches):
            if self._routes[ownership.tp[0]].is_async:
                self._loop.run(lambda call: self.run(ownership, call, self._jobs.inside))
            else:
                drive(self.run(ownership, THREAD, self._jobs.inside))
        return True

    def commit_what_is_due(self) -> bool:
        """Commit what is due; False when nothing is."""
        return self.commit_step(self.cluster.now) == 0.0

    def moments(self) -> Iterator[float]:
        """When something falls due."""
        yield self.group.wake_at(self.cluster.now)
        for ownership in self.group.owned.values():
            yield from ownership.every_at.values()

    # -- what it does

    def mark(self, ownership: Ownership, marks: Marks, offset: int) -> bool:
        ours = super().mark(ownership, marks, offset)
        if ours:
            self._marked.setdefault(marks, []).append(offset)
        return ours

    def _observe(self, event: Event) -> None:
        if isinstance(event, CallEnded):
            run = self._call_of(event)
            marks = self._marked.pop(run.marks, [])
            if not run.hooks:
                stored = run.marks.stored
                if run.marks.version != run.version and stored is not None and marks[-1:] != [stored]:
                    marks.append(stored)  # automatically
                self._on_ended(self, run, event, marks)
        if self._report.wants(event):
            self._report.observe(event)
        if self._app._runner is not None:
            self._app._runner.observed.keep(event)
        deliver(event, self._app._observers)

    async def _run(self, run: Run, place: Place) -> None:
        if not run.hooks:
            self._calls.append(run)
        await super()._run(run, place)

    async def rest(self, run: Run, deadline: float) -> None:
        with self.lock:
            await self.wait(run.ownership, deadline - self._now())

    def _call_of(self, event: CallEnded) -> Run:
        if event.hook is not None:
            (run,) = self._jobs.inside.values()
            return run
        ended = (
            run for run in self._calls if (run.ownership.tp, run.records[0].offset) == (event.tp, event.first_offset)
        )
        self._calls.remove(run := next(ended))
        return run


def _is_a_hooks_turn(job: Ownership, now: float) -> bool:
    every_is_due = any(moment <= now for moment in job.every_at.values())
    return job.hook_due is not None or bool(job.opening) or every_is_due or job.run is not None


@contextmanager
def _hooks_first(ownership: Ownership, batches: bool) -> Iterator[None]:
    """Without ``batches`` the turn is a hook's, however long a batch has been waiting."""
    since = ownership.intake.queued_since
    if batches:
        yield
        return
    ownership.intake.queued_since = float("inf")
    yield
    if ownership.intake.queued_since == float("inf"):
        ownership.intake.queued_since = since


# -- in the places of threads and of a cluster -------------------------------------------------------------------------


class StepSystem(System):
    """The clock of the test; a wait makes happen what it waits for."""

    def __init__(self, member: TestMember) -> None:
        self._member = member

    def now(self) -> float:
        return self._member.cluster.now

    def condition(self, lock: Any) -> _Changed:  # type: ignore[override]
        return _Changed(lock, self._member)

    def thread(self, name: str, function: Callable[[], object]) -> None: ...


class _Changed:
    """Who waits for a commit makes it happen; who waits for something else waits for the clock."""

    def __init__(self, lock: Any, member: TestMember) -> None:
        self._lock = lock
        self._member = member

    def wait(self, timeout: float) -> None:
        self._lock.release()
        try:
            if not self._member.commit_what_is_due():
                self._member.cluster.now += timeout
        finally:
            self._lock.acquire()

    def notify_all(self) -> None: ...


class Jobs:
    """In the place of workers: ownerships with something to run."""

    posts = None

    def __init__(self) -> None:
        self.inside: dict[Place, Run] = {}
        self._waiting: deque[Ownership] = deque()

    def put(self, member: Member, ownership: Ownership) -> None:
        """There is something to run."""
        self._waiting.append(ownership)

    def take(self, is_due: Callable[[Ownership], bool]) -> Ownership | None:
        """The first that is due."""
        ownership = next(filter(is_due, self._waiting), None)
        if ownership is not None:
            self._waiting.remove(ownership)
        return ownership


class Sent:
    """In the place of an outbox: there is an answer at once."""

    answer_timeout_s: float = 0.0

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def send(self, message: Addressed, told: Told | None = None) -> Future[tuple[int, int]]:
        """The answer is there at once."""
        future = self._cluster.accept(message)
        if told is not None:
            told(1, future.exception())
        return future

    send_soon = send

    def send_many(self, messages: Sequence[Addressed], told: Told | None = None) -> Future[list[tuple[int, int]]]:
        """The answers are there at once."""
        future = self._cluster.accept_many(messages)
        if told is not None:
            told(len(messages), future.exception())
        return future

    def hand_over(self) -> None: ...

    def check(self) -> None: ...
    def close(self) -> None: ...


class Requests:
    """In the place of the main thread."""

    def __init__(self, app: App) -> None:
        self._app = app

    def put(self, request: ExitRequest) -> None:
        """A handler has raised a critical exception."""
        self._app.stop()


class MemoryClient:
    """A client whose cluster is ``cluster.logs``; ``assign`` gives it partitions."""

    def __init__(self, cluster: Cluster, group_id: str, reset: str) -> None:
        self.reset = reset
        self.committed: dict[TopicPartition, int] = cluster.commits.setdefault(group_id, {})
        self._cluster = cluster
        self._positions: dict[TopicPartition, int | None] = {}  # of what is assigned
        self._paused: set[TopicPartition] = set()

    def assign(self, tps: Collection[TopicPartition]) -> None:
        self._positions.update(dict.fromkeys(tps))
        self._paused.difference_update(tps)

    def connect(self) -> None: ...
    def subscribe(self, topics: Collection[str]) -> None: ...
    def wake(self) -> None: ...
    def wake_rebalance(self) -> None: ...
    def close(self) -> None: ...

    def ensure_topics(self, topics: Collection[str]) -> Collection[str]:
        return ()

    def missing_topics(self, topics: Collection[str]) -> set[str]:
        return set()

    def places(self, tps: Collection[TopicPartition]) -> Mapping[TopicPartition, Start]:
        return {tp: self._place(*tp) for tp in tps}

    def _place(self, topic: str, partition: int) -> Start:
        end, count = len(self._cluster.logs[topic, partition]), self._cluster.count(topic)
        committed = {tp: Note("", count) for tp in self.committed if tp[0] == topic}
        return Start(
            *(0, end, end, self.committed.get((topic, partition)), Note("", count), "", count),
            siblings=tuple(committed.values()),
        )

    def offset_of(self, tp: TopicPartition, target: SeekTarget) -> int:
        log = self._cluster.logs[tp]
        if isinstance(target, Timestamp):
            return next((record.offset for record in log if record.timestamp >= target.ms), len(log))
        return target if isinstance(target, int) else 0 if target == "earliest" else len(log)

    def apply(self, plan: PollPlan) -> None:
        self._positions.update((ownership.tp, offset) for ownership, offset in plan.seeks.items())
        self._paused.update(ownership.tp for ownership in plan.pause)
        self._paused.difference_update(ownership.tp for ownership in plan.resume)

    def poll(self) -> list[Fetched]:
        fetched = []
        for tp, position in self._positions.items():
            log = self._cluster.logs[tp]
            if position is None or tp in self._paused:
                continue
            if position > len(log):  # as after a seek to an offset that does not exist yet
                raise StrayedError({tp: Stray(position)})
            records = log[position : position + POLL_RECORDS]
            self._positions[tp] = position + len(records)
            if records:
                fetched.append(Fetched(tp, records, len(log), sum(len(record.value or b"") for record in records)))
        return fetched

    def positions(self) -> dict[TopicPartition, int]:
        return {tp: position for tp, position in self._positions.items() if position is not None}

    def ends(self) -> dict[TopicPartition, int]:
        return {}  # nobody asks

    def commit(self, commits: Collection[Commit], generation: int) -> Mapping[TopicPartition, Refusal]:
        self.committed.update((ownership.tp, offset) for ownership, offset, *_ in commits)
        return {}

    def generation(self) -> int:
        return 1

    def lost(self, now: float) -> bool:
        return False  # ``TestClient.lose`` says so itself

    def stamped(self, commits: Collection[Commit], generation: int) -> None: ...


class MemoryTransactions:
    """Transactions of ``cluster.logs``: all of one at once."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def check(self) -> None: ...
    def close(self) -> None: ...

    def commit(self, client: Client, commits: Collection[Commit], generation: int) -> Ended:
        """Refused where one of the messages is, and then none is written."""
        for held in [held for commit in commits for held in commit.sends]:
            for message in held.messages:
                if (refusal := self._cluster.refusal_of(message)) is not None:
                    return Refused(held, refusal)
        receipts = {held: list(map(self._cluster.write, held.messages)) for commit in commits for held in commit.sends}
        client.commit(commits, generation)
        return Committed(receipts, {})


_: type[Client] = MemoryClient
