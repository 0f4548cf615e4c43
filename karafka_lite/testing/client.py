"""An app under test: the second shell around ``Group``.

The calls, the contexts and the failures are the runner's own; only the log of each topic, the committed offsets and the
clock are ours.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Literal, NamedTuple

from typing_extensions import Self

from karafka_lite.app import App
from karafka_lite.calls import Calls
from karafka_lite.client.producer import partition_of
from karafka_lite.context import encoded
from karafka_lite.core import ownership as rules
from karafka_lite.core.group import Group
from karafka_lite.core.options import Target, Time
from karafka_lite.core.ownership import Partition
from karafka_lite.errors import ConfigurationError
from karafka_lite.guard import Guard
from karafka_lite.messages import Message, Outgoing, TopicPartition, where
from karafka_lite.observers.progress import Score
from karafka_lite.observers.report import Failures
from karafka_lite.routing import Route
from karafka_lite.testing.record import Record
from karafka_lite.workers import Workers

EPOCH_MS = 1_577_836_800_000  # the clock of a client begins with 2020
POLL_RECORDS = 2000  # as App's max_poll_records
ROUNDING_S = 1e-9  # sums of milliseconds as seconds
RESTLESS = 100_000  # runs without an end: a handler that always seeks back, say


class Run(NamedTuple):
    """One batch that was handed over.

    Attributes:
        offsets: of its messages.
        outcome: ``failed`` also where the message became a dead letter.
        exception: what made it fail; a ProduceError where a message that it sent was refused.
        marks: what was stored by it, as next offsets, in order; the automatic mark is the last.
    """

    topic: str
    partition: int
    group_id: str
    offsets: list[int]
    attempt: int
    outcome: Literal["done", "failed"]
    exception: BaseException | None
    marks: list[int]


class TestClient:
    """Runs an app's handlers in the thread of the test, with a clock that stands still until ``advance``.

    All partitions are assigned at the start of the block; its end stops the app: ``on_shutdown`` hooks, final commit.
    ``partitions``: how many each topic has; a number, or ``{topic: number}`` (1 for the others).

    Example::

        with TestClient(app) as client:
            client.send("user_events", {"id": 1}, key="a")
            (run,) = client.run()
            assert run.outcome == "done"
            assert client.stored("user_events", 0) == 1
            assert client.committed("user_events", 0) is None
            client.advance(ms=5000)
            assert client.committed("user_events", 0) == 1
    """

    __test__ = False  # pytest takes what begins with Test for its own

    def __init__(self, app: App, partitions: int | Mapping[str, int] = 1) -> None:
        self._app = app
        self._partitions = partitions
        self._now = 0.0
        self._logs: dict[TopicPartition, list[Record]] = {}
        self._commits: dict[str, dict[TopicPartition, int]] = {}  # by group
        self._members: list[_Member] = []
        self._runs: list[Run] = []
        self._sent: dict[str, list[Message]] = {}
        self._refusing: dict[str, list[Exception]] = {}
        self._working = self._stopping = False

    def __enter__(self) -> Self:
        groups = self._app.groups
        if not groups:
            raise ConfigurationError('no topic is registered: decorate a function with @app.topic("name")')
        for topic in (topic for topics in groups.values() for topic in topics):
            for number in range(self._count(topic)):
                self._logs.setdefault((topic, number), [])
        if self._app._runner is not None and not self._app._runner.ended:
            raise ConfigurationError("this app runs already; stop() it first")
        self._app._runner = _Runner(self)  # type: ignore[assignment]
        self._members = [_Member(self, group_id, topics) for group_id, topics in groups.items()]
        for member in self._members:
            member.assign([place for place in self._logs if place[0] in member.routes])
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()
        self._app._runner = None

    # -- messages

    def send(
        self,
        topic: str,
        value: Any,
        *,
        key: bytes | str | None = None,
        partition: int | None = None,
        headers: Iterable[tuple[str, bytes]] = (),
        timestamp_ms: int | None = None,
    ) -> tuple[int, int]:
        """Put a message into a topic that the app reads; handed over by the next ``run``.

        ``value``: ``str`` and ``bytes`` as they are, None is a tombstone, anything else JSON. Without a ``partition``
        the ``key`` chooses it, as Kafka's own partitioner does; without both it is 0. ``timestamp_ms``: else the
        client's clock.

        Returns:
            (partition, offset).

        Raises:
            ValueError: nobody reads the topic, or it has no such partition. TypeError: the value is no JSON.
        """
        data = value.encode() if isinstance(value, str) else encoded(value)
        raw = key.encode() if isinstance(key, str) else key
        if (topic, 0) not in self._logs:
            topics = ", ".join(sorted({name for name, _ in self._logs}))
            raise ValueError(f"the app reads no topic {topic!r}; it reads {topics}")
        if partition is not None and (topic, partition) not in self._logs:
            raise ValueError(
                f"{where(topic, partition)}: type TestClient(app, partitions={{{topic!r}: {partition + 1}}})"
            )
        return self._append(Outgoing(topic, data, raw, list(headers), partition, timestamp_ms))

    def send_many(self, topic: str, values: Iterable[Any], **same: Any) -> list[tuple[int, int]]:
        """``send`` for each of ``values``; ``same``: ``key``, ``partition``, ``headers``, ``timestamp_ms`` of all."""
        return [self.send(topic, value, **same) for value in values]

    def produced(self, topic: str) -> list[Message]:
        """What the app has sent to ``topic``, in order."""
        return list(self._sent.get(topic, ()))

    def dead_letters(self, topic: str) -> list[Message]:
        """What became dead letters in ``topic``, in order. ValueError where no route has it as its ``dead_letter``."""
        known = {route.dead_letter for member in self._members for route in member.routes.values() if route.dead_letter}
        if topic not in known:
            raise ValueError(f"no dead letter goes to {topic!r}; they go to {', '.join(map(str, known)) or 'no topic'}")
        return self.produced(topic)

    def refuse(self, topic: str, error: Exception, times: int = 1) -> None:
        """Let the next ``times`` messages that the app sends to ``topic`` fail with ``error``."""
        self._refusing.setdefault(topic, []).extend([error] * times)

    # -- what happens

    def run(self, *, raise_errors: bool = False) -> list[Run]:
        """Hand over what is ready until nothing is; what waits for the clock waits.

        Returns:
            The runs, in order. Their exceptions are kept in them; ``raise_errors`` raises the first.
        """
        if self._working:
            raise RuntimeError("a handler cannot run others: call run() in the test")
        begun = len(self._runs)
        self._work(batches=True)
        runs = self._runs[begun:]
        if raise_errors:
            for run in runs:
                if run.exception is not None:
                    raise run.exception
        return runs

    def advance(self, *, ms: float) -> None:
        """Move the clock, and carry out what falls due: commits of the interval, ``every``, bounds of a drain.

        A partition whose back-off or pause has ended is handed over by the next ``run``.
        """
        if not 0 <= ms < float("inf"):
            raise ValueError(f"the clock goes forwards, by milliseconds; not by {ms!r}")
        until = self._now + ms / 1000
        while True:
            self._work(batches=False)
            moments = (moment for member in self._members for moment in member.moments())
            due = [moment for moment in moments if self._now < moment <= until + ROUNDING_S]
            if not due:
                break
            self._now = min(due)
        self._now = max(self._now, until)
        self._work(batches=False)

    def revoke(self, topic: str, partition: int) -> None:
        """A rebalance takes the partition in good order: ``before_revoke``, the commit, ``on_revoked``.

        Inside a handler of the partition ``ctx.stopping`` is True from now on, and the rest follows when it returns.
        """
        for member in self._owners(topic, partition):
            member.guard.group.revoke([(topic, partition)], self._now)
            member.guard.carry_out()
        self._work(batches=False)

    def lose(self, topic: str, partition: int) -> None:
        """The member is evicted, and this partition goes to somebody else: marks return False, nothing is committed.

        An eviction takes all partitions of the group; those that are not named come back at once, at what is committed,
        as when the member joins anew. Holds at once, also inside a handler.
        """
        for member in self._owners(topic, partition):
            others = [place for place in member.guard.group.owned if place != (topic, partition)]
            member.guard.group.lose(self._now, join_anew=False)
            member.guard.carry_out()
            member.assign(others)
        self._work(batches=False)

    def assign(self, topic: str, partition: int) -> None:
        """The partition comes back, with a new ownership, at what is committed."""
        for member in self._readers(topic, None):
            if (topic, partition) in member.guard.group.owned:
                raise ValueError(f"{where(topic, partition)} is assigned; revoke it or lose it first")
            member.assign([(topic, partition)])
        self._work(batches=False)

    def stop(self) -> None:
        """What the end of the block does; a second one does nothing. Inside a handler it only asks for it."""
        self._stopping = True
        self._work(batches=False)

    # -- what is so

    def stored(self, topic: str, partition: int, *, group_id: str | None = None) -> int | None:
        """The next offset to read that this ownership, or the last one, has stored. ``group_id``: where two read it."""
        return self._reader(topic, group_id).partitions[topic, partition].stored

    def committed(self, topic: str, partition: int, *, group_id: str | None = None) -> int | None:
        """The committed offset; None without a commit. ``group_id``: where two groups read the topic."""
        return self._reader(topic, group_id).committed.get((topic, partition))

    # -- inside

    @property
    def now(self) -> float:
        """The clock: seconds since the block began."""
        return self._now

    def _work(self, *, batches: bool) -> None:
        """All that is to be done at this moment."""
        if self._working:
            return  # who works already will see it
        self._working = True
        try:
            for _ in range(RESTLESS):
                if self._stopping:
                    for member in self._members:
                        member.guard.group.stop(self._now)
                stepped = [member.step(batches=batches) for member in self._members]
                if not any(stepped):
                    return
            raise RuntimeError(f"{RESTLESS} steps, and no end: does a handler always seek back?")
        finally:
            self._working = False

    def _count(self, topic: str) -> int:
        count = self._partitions if isinstance(self._partitions, int) else self._partitions.get(topic, 1)
        if count < 1:
            raise ValueError(f"topic {topic!r} cannot have {count} partitions")
        return count

    def _append(self, message: Outgoing) -> tuple[int, int]:
        topic, value, key, headers, partition, timestamp_ms = message
        if partition is None:
            partition = partition_of(key, self._count(topic)) if key is not None else 0
        log = self._logs.setdefault((topic, partition), [])
        now_ms = EPOCH_MS + int(self._now * 1000)
        record = Record(len(log), now_ms if timestamp_ms is None else timestamp_ms, key, value, list(headers or ()))
        log.append(record)
        return partition, record.offset

    def _leave(self, message: Outgoing) -> Future[tuple[int, int]]:
        """The app sends a message."""
        future: Future[tuple[int, int]] = Future()
        if refusing := self._refusing.get(message.topic):
            future.set_exception(refusing.pop(0))
            return future
        partition, offset = self._append(message)
        record = self._logs[message.topic, partition][offset]
        self._sent.setdefault(message.topic, []).append(record.message(message.topic, partition))
        future.set_result((partition, offset))
        return future

    def _readers(self, topic: str, group_id: str | None) -> list[_Member]:
        readers = [m for m in self._members if topic in m.routes and group_id in (None, m.guard.group_id)]
        if not readers:
            of = f" in group {group_id!r}" if group_id else ""
            raise ValueError(f"the app reads no topic {topic!r}{of}")
        return readers

    def _reader(self, topic: str, group_id: str | None) -> _Member:
        readers = self._readers(topic, group_id)
        if len(readers) > 1:
            groups = " or ".join(f"group_id={member.guard.group_id!r}" for member in readers)
            raise ValueError(f"several groups read {topic!r}: type {groups}")
        return readers[0]

    def _owners(self, topic: str, partition: int) -> list[_Member]:
        owners = [m for m in self._readers(topic, None) if (topic, partition) in m.guard.group.owned]
        if not owners:
            raise ValueError(f"{where(topic, partition)} is not assigned")
        return owners


class _Runner:
    """What ``app.stop()`` in a handler finds."""

    ended = False
    members = ()

    def __init__(self, client: TestClient) -> None:
        self.stop = client.stop


class _Member:
    """One group: what ``member.py`` does with threads and a client, step by step."""

    def __init__(self, client: TestClient, group_id: str, routes: Mapping[str, Route]) -> None:
        config = client._app.config
        self.client, self.routes = client, routes
        self.reset = config.settings.get("auto_offset_reset", "earliest")
        self.committed = client._commits.setdefault(group_id, {})
        self.partitions: dict[TopicPartition, Partition] = {}  # the newest ownership of each
        self._positions: dict[TopicPartition, int] = {}
        self._jobs: deque[Partition] = deque()
        group = Group(
            {topic: route.policy for topic, route in routes.items()},
            commit_interval_ms=config.auto_commit_interval_ms,
            drain_timeout_ms=config.drain_timeout_ms,
            reset=self.reset,
        )
        self.guard = _Guard(group_id, group, self)
        failures = Failures(lambda run: routes[run.partition.place[0]].called(run), config)
        self.calls = _Calls(self.guard, Workers(0), routes, self, failures, _Score(self), client.stop)

    def assign(self, places: Sequence[TopicPartition]) -> None:
        now = self.client.now
        for partition in self.guard.group.assigned(places, now):
            place = partition.place
            self.partitions[place] = partition
            start = self.committed.get(place)
            if start is None:
                start = len(self.client._logs[place]) if self.reset == "latest" else 0
            self.guard.group.started(place, start, committed=place in self.committed, now=now)
        self.guard.carry_out()

    def step(self, *, batches: bool) -> bool:
        """One thing that is due; False when there is none."""
        self._fetch()
        self.guard.group.advance(self.client.now)
        self.guard.carry_out()
        now = self.client.now
        ready = next((job for job in self._jobs if batches or job.hook_due or _every_is_due(job, now)), None)
        if ready is not None:
            self._jobs.remove(ready)
            self.calls.run(ready)
            return True
        return self.commit()

    def commit(self) -> bool:
        commits = self.guard.group.commit_batch(self.client.now)
        self.committed.update({commit.partition.place: commit.offset for commit in commits})
        self.guard.group.commit_succeeded(commits, self.client.now)
        return bool(commits)

    def moments(self) -> Iterator[float]:
        """When something falls due."""
        yield self.guard.group.wake_at(self.client.now)
        for partition in self.guard.group.owned.values():
            yield from partition.every_at

    def _fetch(self) -> None:
        group, now = self.guard.group, self.client.now
        for place, target in group.sought().items():
            group.found(place, target, self._offset_of(place, target))
        self._positions.update(group.poll_plan(now).seeks)
        for place, partition in group.owned.items():
            log, position = self.client._logs[place], self._positions[place]
            if position > len(log):  # out of range, as after a seek to an offset that does not exist yet
                position = self._positions[place] = len(log) if self.reset == "latest" else 0
            records = log[position : position + POLL_RECORDS]
            size_bytes = sum(len(record.value or b"") for record in records)
            if records and not partition.paused and group.fetched(place, records, len(log), size_bytes, now):
                self._positions[place] = position + len(records)
        group.polled(self._positions)

    def _offset_of(self, place: TopicPartition, target: Target) -> int:
        log = self.client._logs[place]
        if isinstance(target, Time):
            return next((record.offset for record in log if record.timestamp >= target.ms), len(log))
        return target if isinstance(target, int) else 0 if target == "earliest" else len(log)

    # -- what the parts of the runner ask of a client and an outbox

    def lost(self, now: float) -> bool:
        return False  # ``TestClient.lose`` tells the group itself

    def wake_rebalance(self) -> None: ...

    def enlist(self, partition: Partition) -> None:
        self._jobs.append(partition)

    def send(self, message: Outgoing) -> Future[tuple[int, int]]:
        return self.client._leave(message)


def _every_is_due(partition: Partition, now: float) -> bool:
    return any(moment <= now for moment in partition.every_at)


class _Guard(Guard):
    def __init__(self, group_id: str, group: Group, member: _Member) -> None:
        super().__init__(group_id, group, member, member.enlist)
        self._member = member
        self.changed = _Changed(member)

    def now(self) -> float:
        return self._member.client.now


class _Changed(threading.Condition):
    """Who waits for a commit makes it happen; who waits for something else waits for the clock, which is told so."""

    def __init__(self, member: _Member) -> None:
        super().__init__()
        self._member = member

    def wait(self, timeout: float | None = None) -> bool:
        if not self._member.commit():
            self._member.client._now += timeout or 0.0
        return True

    def notify_all(self) -> None: ...


class _Calls(Calls):
    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.marks: list[int] = []

    def mark(self, partition: Partition, offset: int) -> bool:
        ours = super().mark(partition, offset)
        if ours:
            self.marks.append(offset)
        return ours


class _Score(Score):
    """Keeps the runs of batches."""

    def __init__(self, member: _Member) -> None:
        super().__init__(member.routes)
        self._member = member

    def ran(self, run: rules.Run, error: BaseException | None, seconds: float, *, set_aside: bool = False) -> None:
        super().ran(run, error, seconds, set_aside=set_aside)
        calls, (topic, number) = self._member.calls, run.partition.place
        marks, calls.marks = calls.marks, []
        if run.hook:
            return
        stored = run.partition.stored
        if run.partition.version != run.version and stored is not None and marks[-1:] != [stored]:
            marks.append(stored)  # by itself
        offsets = [record.offset for record in run.records]
        outcome: Literal["done", "failed"] = "done" if error is None else "failed"
        group_id = self._member.guard.group_id
        self._member.client._runs.append(Run(topic, number, group_id, offsets, run.attempt, outcome, error, marks))
