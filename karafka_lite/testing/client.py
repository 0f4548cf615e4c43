"""An app under test: in the thread of the test, with a clock that the test moves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from typing_extensions import Self

from karafka_lite.addressing import outgoing
from karafka_lite.app import App
from karafka_lite.client.outgoing import check_outgoing
from karafka_lite.core import ownership
from karafka_lite.errors import ConfigurationError
from karafka_lite.events import CallEnded, Event
from karafka_lite.lifespan import Lifespan
from karafka_lite.messages import Message, where
from karafka_lite.observers.delivery import deliver
from karafka_lite.observers.observed import Observed
from karafka_lite.observers.report import Report
from karafka_lite.runner import System
from karafka_lite.testing.cluster import Cluster
from karafka_lite.testing.loop import TestLoop
from karafka_lite.testing.member import Sent, TestMember

ROUNDING_S = 1e-9  # sums of milliseconds as seconds
MOST_STEPS = 100_000  # at one moment; a handler that always seeks back takes more


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
    """Runs an app's handlers in the thread of the test. Its clock moves only with ``advance``.

    A coroutine of an async handler runs to its end, on an event loop of the client's own: the test is a plain function.

    All partitions are assigned at the start of the block; its end stops the app: ``on_shutdown`` hooks, final commit.
    ``on_start`` is called before (and may raise), ``on_stop`` after it.
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
        self._cluster = Cluster(partitions)
        self._members: list[TestMember] = []
        self._runs: list[Run] = []
        self._working = self._stopping = False
        self._loop = TestLoop()

    def __enter__(self) -> Self:
        groups = self._app.groups
        if not groups:
            raise ConfigurationError('no topic is registered: decorate a function with @app.topic("name")')
        for topic in (topic for topics in groups.values() for topic in topics):
            self._cluster.create(topic)
        if self._app._runner is not None and not self._app._runner.ended.is_set():
            raise ConfigurationError("this app runs already; stop() it first")
        self._app._runner = _Runner(self)  # type: ignore[assignment]
        self._sender, self._app._sender = self._app._sender, Sent(self._cluster)  # type: ignore[assignment]
        self._lifespan = Lifespan(self._app.process_hooks, self._report, System.thread_id, self._loop.call)
        try:
            self._lifespan.start()
        except BaseException:
            self._app._runner, self._app._sender = None, self._sender
            raise
        self._members = [
            TestMember(self._cluster, self._app, group_id, topics, self._keep, self._loop)
            for group_id, topics in groups.items()
        ]
        for member in self._members:
            member.assign([tp for tp in self._cluster.logs if tp[0] in member.topics])
        self._work(batches=False)
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            self.stop()
        finally:
            self._loop.close()
        self._app._runner, self._app._sender = None, self._sender

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

        ``value``: ``str`` and ``bytes`` as they are, None is a tombstone; of anything else the App's ``serializer``
        makes bytes. Without a ``partition``
        the ``key`` chooses it, as Kafka's own partitioner does; without both it is 0. ``timestamp_ms``: else the
        client's clock.

        Returns:
            (partition, offset).

        Raises:
            TypeError, ValueError: the app does not read the topic, it has no such partition, no bytes can be made of
                the value, or Kafka would not take it: as for ``ctx.produce``.
        """
        payload = value.encode() if isinstance(value, str) else value
        message = outgoing(topic, payload, key, headers, partition, timestamp_ms, self._app.config.serializer)
        check_outgoing(message)  # where there is such a partition, is said below with what to type
        if (topic, 0) not in self._cluster.logs:
            topics = ", ".join(sorted({name for name, _ in self._cluster.logs}))
            raise ValueError(f"the app reads no topic {topic!r}; it reads {topics}")
        if partition is not None and (topic, partition) not in self._cluster.logs:
            raise ValueError(
                f"{where(topic, partition)} does not exist; pass partitions={{{topic!r}: {partition + 1}}}"
            )
        return self._cluster.append(message)

    def send_many(self, topic: str, values: Iterable[Any], **same: Any) -> list[tuple[int, int]]:
        """``send`` for each of ``values``; ``same``: ``key``, ``partition``, ``headers``, ``timestamp_ms`` of all."""
        return [self.send(topic, value, **same) for value in values]

    def produced(self, topic: str) -> list[Message]:
        """What the app has sent to ``topic``, in order."""
        return list(self._cluster.sent.get(topic, ()))

    def dead_letters(self, topic: str) -> list[Message]:
        """What became dead letters in ``topic``, in order. ValueError where no route has it as its ``dead_letter``."""
        routes = [route for topics in self._app.groups.values() for route in topics.values()]
        known = {route.dead_letter for route in routes if route.dead_letter}
        if topic not in known:
            raise ValueError(f"no dead letter goes to {topic!r}; they go to {', '.join(map(str, known)) or 'no topic'}")
        return self.produced(topic)

    def refuse(self, topic: str, error: Exception, times: int = 1) -> None:
        """Let the next ``times`` messages that the app sends to ``topic`` fail with ``error``."""
        self._cluster.refusing.setdefault(topic, []).extend([error] * times)

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
        until = self._cluster.now + ms / 1000
        while True:
            self._work(batches=False)
            moments = (moment for member in self._members for moment in member.moments())
            due = [moment for moment in moments if self._cluster.now < moment <= until + ROUNDING_S]
            if not due:
                break
            self._cluster.now = min(due)
        self._cluster.now = max(self._cluster.now, until)
        self._work(batches=False)

    def revoke(self, topic: str, partition: int) -> None:
        """A rebalance takes the partition in good order: ``before_revoke``, the commit, ``on_revoked``.

        Inside a handler of the partition ``ctx.stopping`` is True from now on, and the rest follows when it returns.
        """
        for member in self._owners(topic, partition):
            member.revoke((topic, partition))
        self._work(batches=False)

    def lose(self, topic: str, partition: int) -> None:
        """The member is evicted, and this partition goes to somebody else: marks return False, nothing is committed.

        An eviction takes all partitions of the group; those that are not named come back at once, at what is committed,
        as when the member joins again. It takes effect at once, also inside a handler.
        """
        for member in self._owners(topic, partition):
            others = [tp for tp in member.group.owned if tp != (topic, partition)]
            member.on_lost(member.memory)
            member.assign(others)
        self._work(batches=False)

    def assign(self, topic: str, partition: int) -> None:
        """The partition comes back, with a new ownership, at what is committed."""
        for member in self._readers(topic, None):
            if (topic, partition) in member.group.owned:
                raise ValueError(f"{where(topic, partition)} is assigned; revoke it or lose it first")
            member.assign([(topic, partition)])
        self._work(batches=False)

    def stop(self) -> None:
        """What the end of the block does; a second one does nothing. Inside a handler it only asks for it."""
        self._stopping = True
        self._work(batches=False)
        if not self._working:
            self._lifespan.stop()

    # -- what is so

    def stored(self, topic: str, partition: int, *, group_id: str | None = None) -> int | None:
        """The next offset to read that this ownership, or the last one, has stored. ``group_id``: where two read it."""
        return self._reader(topic, group_id).newest[topic, partition].marks.stored

    def committed(self, topic: str, partition: int, *, group_id: str | None = None) -> int | None:
        """The committed offset; None without a commit. ``group_id``: where two groups read the topic."""
        return self._reader(topic, group_id).memory.committed.get((topic, partition))

    # -- inside

    @property
    def now(self) -> float:
        """The clock: seconds since the block began."""
        return self._cluster.now

    def _work(self, *, batches: bool) -> None:
        """All that is to be done at this moment."""
        if self._working:
            return  # who works already will see it
        self._working = True
        try:
            for _ in range(MOST_STEPS):
                stepped = [member.step(batches=batches, stopping=self._stopping) for member in self._members]
                if not any(stepped):
                    return
            raise RuntimeError(f"{MOST_STEPS} steps, and no end: does a handler always seek back?")
        finally:
            self._working = False

    def _report(self, event: Event) -> None:
        """Not of a group."""
        Report().observe(event)
        deliver(event, self._app._observers)

    def _keep(self, member: TestMember, run: ownership.Run, call: CallEnded, marks: list[int]) -> None:
        """A batch was handled."""
        offsets = [record.offset for record in run.records]
        outcome: Literal["done", "failed"] = "done" if call.error is None else "failed"
        kept = Run(call.topic, call.partition, member.group_id, offsets, call.attempt, outcome, call.error, marks)
        self._runs.append(kept)

    def _readers(self, topic: str, group_id: str | None) -> list[TestMember]:
        readers = [m for m in self._members if topic in m.topics and group_id in (None, m.group_id)]
        if not readers:
            of = f" in group {group_id!r}" if group_id else ""
            raise ValueError(f"the app reads no topic {topic!r}{of}")
        return readers

    def _reader(self, topic: str, group_id: str | None) -> TestMember:
        readers = self._readers(topic, group_id)
        if len(readers) > 1:
            groups = " or ".join(f"group_id={member.group_id!r}" for member in readers)
            raise ValueError(f"several groups read {topic!r}: pass {groups}")
        return readers[0]

    def _owners(self, topic: str, partition: int) -> list[TestMember]:
        owners = [m for m in self._readers(topic, None) if (topic, partition) in m.group.owned]
        if not owners:
            raise ValueError(f"{where(topic, partition)} is not assigned")
        return owners


class _Runner:
    """What ``app.stop()`` in a handler finds, and ``app.health()`` and ``app.stats()``, which know of totals only."""

    members = ()
    inside: Mapping[int, ownership.Run] = {}

    def __init__(self, client: TestClient) -> None:
        self.stop = self.ask_to_stop = client.stop
        self.ended = System.event()
        self.observed = Observed(())
