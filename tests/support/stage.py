"""The runner's own member with a client, an outbox and a cluster of lists: with real threads, or step by step."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from karafka_lite.app import App
from karafka_lite.client.protocol import Client, Fetched, Outbox
from karafka_lite.core.answers import Commit, Committed, Ended, PollPlan
from karafka_lite.core.marks import Refusal
from karafka_lite.core.options import SeekTarget
from karafka_lite.core.ownership import Ownership, Run
from karafka_lite.core.sends import Told
from karafka_lite.core.starts import Place
from karafka_lite.coroutines import drive
from karafka_lite.ending import ExitRequest
from karafka_lite.errors import Exit
from karafka_lite.events import Crashed, Event
from karafka_lite.messages import Addressed, PlainRecord, TopicPartition
from karafka_lite.runner import Member, Shared, System
from karafka_lite.testing.cluster import together
from karafka_lite.workers import Workers
from support.observer import wait_until

PATIENCE_S = 20


class FakeCluster:
    """Topics that are lists, and what is committed. A topic has one partition."""

    def __init__(self, *topics: str) -> None:
        self.logs: dict[TopicPartition, list[PlainRecord]] = {(topic, 0): [] for topic in topics}
        self.committed: dict[TopicPartition, int] = {}

    def send(self, topic: str, count: int = 1) -> None:
        log = self.logs[topic, 0]
        for _ in range(count):
            log.append(PlainRecord(len(log), -1, None, b"%d" % len(log), []))


class FakeClient:
    """A client of a FakeCluster that is assigned all it subscribes to. A test replaces any of its methods."""

    reset = "earliest"

    def __init__(self, member: Member, cluster: FakeCluster) -> None:
        self.member, self.cluster = member, cluster
        self.subscribed: set[str] = set()
        self.positions_: dict[TopicPartition, int | None] = {}
        self.paused: set[TopicPartition] = set()
        self.seeks: list[tuple[TopicPartition, int]] = []
        self.is_lost = self.closed = False
        self.joins = self.woken = self.poll_woken = 0
        self._something = threading.Event()  # nobody sets it: a poll without records takes its time

    def connect(self) -> None: ...

    def ensure_topics(self, topics: Collection[str]) -> Collection[str]:
        return ()

    def missing_topics(self, topics: Collection[str]) -> set[str]:
        return {topic for topic in topics if (topic, 0) not in self.cluster.logs}

    def subscribe(self, topics: Collection[str]) -> None:
        self.subscribed = set(topics)
        self.joins = 0

    def places(self, tps: Collection[TopicPartition]) -> Mapping[TopicPartition, Place]:
        committed = {tp: self.cluster.committed.get(tp) for tp in tps}
        ends = {tp: max(len(self.cluster.logs[tp]), offset or 0) for tp, offset in committed.items()}
        return {tp: Place(0, end, end, committed[tp]) for tp, end in ends.items()}

    def offset_of(self, tp: TopicPartition, target: SeekTarget) -> int | None:
        return 0 if target == "earliest" else len(self.cluster.logs[tp])

    def apply(self, plan: PollPlan) -> None:
        if plan.rejoin:
            self.joins = 0
        for ownership, offset in plan.seeks.items():
            self.seeks.append((ownership.tp, offset))
            self.positions_[ownership.tp] = offset
        self.paused.update(ownership.tp for ownership in plan.pause)
        self.paused.difference_update(ownership.tp for ownership in plan.resume)

    def join(self) -> None:
        self.joins += 1
        self.is_lost = False
        self.paused.clear()
        self.positions_ = dict.fromkeys((topic, 0) for topic in sorted(self.subscribed))
        self.member.on_assigned(self, list(self.positions_))

    def poll(self) -> Sequence[Fetched]:
        if not self.joins:
            self.join()
            return []
        fetched = []
        for tp, position in self.positions_.items():
            records = [] if position is None or tp in self.paused else self.cluster.logs[tp][position:]
            if records:
                self.positions_[tp] = records[-1].offset + 1
                fetched.append(Fetched(tp, records, len(self.cluster.logs[tp]), len(records)))
        if not fetched:
            self._something.wait(0.002)
        return fetched

    def positions(self) -> Mapping[TopicPartition, int]:
        return {tp: position for tp, position in self.positions_.items() if position is not None}

    def ends(self) -> Mapping[TopicPartition, int]:
        return {tp: len(self.cluster.logs[tp]) for tp in self.positions_}

    def commit(self, commits: Collection[Commit], generation: int) -> Mapping[TopicPartition, Refusal]:
        self.cluster.committed.update((ownership.tp, offset) for ownership, offset, *_ in commits)
        return {}

    def generation(self) -> int:
        return self.joins

    def lost(self, now: float) -> bool:
        return self.is_lost

    def wake(self) -> None:
        self.poll_woken += 1

    def wake_rebalance(self) -> None:
        self.woken += 1

    def close(self) -> Exception | None:
        self.closed = True
        return None


_client: type[Client] = FakeClient


class FakeOutbox:
    """Where messages are kept until a test answers them."""

    answer_timeout_s = 30.0

    def __init__(self) -> None:
        self.sent: list[tuple[Addressed, Future[tuple[int, int]]]] = []
        self.checks = 0

    def send(self, message: Addressed, told: Told | None = None) -> Future[tuple[int, int]]:
        future: Future[tuple[int, int]] = Future()
        future.set_running_or_notify_cancel()
        self.sent.append((message, future))
        if told is not None:
            future.add_done_callback(lambda done: told(1, done.exception()))
        return future

    send_soon = send

    def send_many(self, messages: Sequence[Addressed], told: Told | None = None) -> Future[list[tuple[int, int]]]:
        return together([self.send(message, told) for message in messages])

    def hand_over(self) -> None: ...

    def answer(self, index: int = -1, error: Exception | None = None) -> None:
        future = self.sent[index][1]
        future.set_exception(error) if error else future.set_result((0, 0))

    def check(self) -> None:
        self.checks += 1

    def close(self) -> None: ...


_outbox: type[Outbox] = FakeOutbox


class OwnedLock:
    """A lock that knows which thread has it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.owner: int | None = None

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        got = self._lock.acquire(blocking, timeout)
        if got:
            self.owner = threading.get_ident()
        return got

    def release(self) -> None:
        self.owner = None
        self._lock.release()

    __enter__ = acquire

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    @property
    def is_mine(self) -> bool:
        return self.owner == threading.get_ident()


class Threads(System):
    """The operating system's, with locks that know who has them."""

    lock: Any = staticmethod(OwnedLock)


class Idle:
    """In the place of a thread: a test takes the steps itself."""

    ident = None

    def start(self) -> None: ...
    def join(self, timeout: float | None = None) -> None: ...


class Steps(Threads):
    """No threads, and a clock that moves while somebody waits. ``while_waiting`` is what happens meanwhile."""

    def __init__(self) -> None:
        self.clock = 1000.0
        self.while_waiting: Callable[[], None] = lambda: None

    def now(self) -> float:  # type: ignore[override]
        return self.clock

    def thread(self, name: str, function: Callable[[], object]) -> Any:
        return Idle()

    def condition(self, lock: Any) -> Any:  # type: ignore[override]
        changed = threading.Condition(lock)

        def wait(timeout: float | None = None) -> bool:
            assert timeout is not None, "a wait without a bound"
            lock.release()
            self.clock += timeout
            self.while_waiting()
            lock.acquire()
            return True

        changed.wait = wait  # type: ignore[method-assign]
        return changed


class FakeTransactions:
    """Each is committed; a test replaces ``commit``."""

    def __init__(self) -> None:
        self.sent: list[Addressed] = []
        self.closed = self.checked = False

    def check(self) -> None:
        self.checked = True

    def commit(self, client: Any, commits: Collection[Commit], generation: int) -> Ended:
        client.commit(commits, generation)
        sends = [held for commit in commits for held in commit.sends]
        self.sent += [message for held in sends for message in held.messages]
        return Committed({held: [(0, 0)] * len(held.messages) for held in sends}, {})

    def close(self) -> None:
        self.closed = True


class Stage:
    """One member, its client and its cluster."""

    def __init__(self, app: App, system: System, *topics: str, concurrency: int | None = None) -> None:
        ((self.group_id, routes),) = app.groups.items()
        self.system = system
        self.cluster = FakeCluster(*(topics or routes))
        self.clients: list[FakeClient] = []
        self.outbox = FakeOutbox()
        self.events: list[Event] = []
        self.under_lock: list[Event] = []  # what was emitted under the lock
        self.requests: queue.SimpleQueue[ExitRequest] = queue.SimpleQueue()
        self.seen_requests: list[ExitRequest] = []
        self.workers = Workers(system, "worker", concurrency or app.config.concurrency, {})
        places = (lambda _: self.workers), self.workers.inside, self.outbox
        shared = Shared(app.config, system, *places, self._make_client, self._transact, self._emit, self.requests)
        self.member = Member(shared, self.group_id, routes)
        self.lock: Any = self.member.lock

    def _transact(self, _group_id: str) -> FakeTransactions:
        self.transactions = FakeTransactions()
        return self.transactions

    def _make_client(self, member: Member) -> FakeClient:
        self.clients.append(FakeClient(member, self.cluster))
        return self.clients[-1]

    def _emit(self, event: Event) -> None:
        if self.lock.is_mine:
            self.under_lock.append(event)
        self.events.append(event)

    @property
    def client(self) -> FakeClient:
        return self.clients[-1]

    def owned(self, topic: str) -> Ownership:
        return self.member.group.owned[topic, 0]

    @property
    def crashes(self) -> list[BaseException]:
        """The bugs that threads have met."""
        return [event.error for event in self.of(Crashed)]

    def of(self, kind: type[Event]) -> list[Any]:
        """The events of ``kind`` so far."""
        return [event for event in list(self.events) if isinstance(event, kind)]

    def wait_for(self, kind: type[Event], count: int = 1) -> list[Any]:
        wait_until(lambda: len(self.of(kind)) >= count, timeout=PATIENCE_S, message=f"{count} {kind.__name__}")
        return self.of(kind)

    def request(self, *, left: bool = False) -> ExitRequest:
        """The next one; ``left``: the member's last."""
        while True:
            request = self.requests.get(timeout=PATIENCE_S)
            self.seen_requests.append(request)
            if not left or request.left is self.member:
                return request

    # -- step by step

    def poll(self, times: int = 1) -> float | None:
        rest: float | None = 0.0
        for _ in range(times):
            rest = self.member.poll_step(self.system.now())
        return rest

    def work(self) -> list[Run]:
        """What a worker would do now, in the test's own thread."""
        runs: list[Run] = []
        inside: Any = Noted(runs)
        while not self.workers.jobs.empty():
            member, ownership = self.workers.jobs.get()
            drive(member.run(ownership, threading.get_ident(), inside))
        return runs


class Noted(dict[int, Run]):
    """``inside``, with a memory."""

    def __init__(self, runs: list[Run]) -> None:
        super().__init__()
        self._runs = runs

    def __setitem__(self, thread: int, run: Run) -> None:
        self._runs.append(run)
        super().__setitem__(thread, run)


@contextmanager
def running(app: App, *topics: str, concurrency: int | None = None) -> Iterator[Stage]:
    """A member with its own threads, which are stopped after the block."""
    stage = Stage(app, Threads(), *topics, concurrency=concurrency)
    stage.member.poller.start()
    try:
        yield stage
    finally:
        stage.member.begin_stop()
        if not any(request.left for request in stage.seen_requests):
            stage.request(left=True)
        stage.workers.stop()
    assert stage.under_lock == []


def exits(stage: Stage) -> list[Exit]:
    """With which codes a stop was asked for, so far."""
    while not stage.requests.empty():
        stage.seen_requests.append(stage.requests.get())
    return [request.exit for request in stage.seen_requests]
