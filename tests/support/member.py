"""A member of a group without the runner: the client, and a notebook in place of who decides."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any, NamedTuple

from karafka_lite.client.consumer import Client
from karafka_lite.core.answers import Commit, PollPlan
from karafka_lite.core.starts import Note
from karafka_lite.errors import PollError
from karafka_lite.events import Event
from support.harness import QUICK
from support.observer import Observer

PATIENCE_S = 30  # for what must happen
SETTINGS = {**QUICK, "retry_backoff_ms": 50}


class Member:
    """A Client, and in place of the runner a notebook of what it is told and what it emits."""

    def __init__(self, kafka: Observer, *topics: str, group: str = "", **settings: Any) -> None:
        self.group = group or kafka.group()
        self.assigned: list[list[tuple[str, int]]] = []
        self.begun = False
        self.asked = 0  # how often its partitions were wanted back
        self.losses = 0
        self.events: list[Event] = []
        self._unread: list[tuple[int, int]] = []
        self.may_go = threading.Event()
        self.may_go.set()
        self.ask_again_s = 0.05
        servers = kafka.bootstrap_servers.split(",")
        self.client = Client(self.group, servers, {**SETTINGS, **settings}, self, self.events.append)
        self.size_bytes = 0  # of all that our own polls have brought
        self.client.connect()
        if topics:
            self.client.subscribe(topics)

    @cached_property
    def bugs(self) -> list[Exception]:
        """Of the listener."""
        return []

    def __enter__(self) -> Member:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.may_go.set()
        self.client.close()

    def on_assigned(self, client: Client, tps: Collection[tuple[str, int]]) -> None:
        assert client is self.client
        self.assigned.append(list(tps))

    def on_revoke(self, client: Client, tps: Collection[tuple[str, int]]) -> Callable[[], float | None]:
        assert client is self.client
        self.asked += 1
        return lambda: None if self.may_go.is_set() else self.ask_again_s

    def crash(self, thread: str, bug: Exception) -> None:
        self.bugs.append(bug)

    def on_lost(self, client: Client) -> None:
        assert client is self.client
        self.losses += 1

    @property
    def consumer(self) -> Any:
        return self.client._consumer

    @property
    def coordinator(self) -> Any:
        return self.client._consumer._coordinator

    @property
    def generation(self) -> int:
        return int(self.consumer.group_metadata().generation_id)

    @property
    def owns(self) -> list[tuple[str, int]]:
        return self.assigned[-1] if self.assigned else []

    def poll(self) -> None:
        """One poll of ours; what it brings is for ``read``."""
        self._find_starts()
        for tp, records, _, size_bytes in self.client.poll():
            self._unread += [(tp[1], record.offset) for record in records]
            self.size_bytes += size_bytes

    def stock_poll(self, timeout_ms: int = 200) -> None:
        """One poll of kafka-python's, without what ours does before it."""
        self._find_starts()
        for tp, records in self.consumer.poll(timeout_ms).items():
            self._unread += [(tp.partition, record.offset) for record in records]

    def _find_starts(self) -> None:
        """As the runner would: kafka-python has no positions of its own."""
        assigned = {tuple(tp) for tp in self.consumer._subscription.assignment}
        if missing := sorted(assigned - self.client.positions().keys()):
            places = self.client.places(missing)
            begins = {tp: place.start if place.committed is None else place.committed for tp, place in places.items()}
            self.client.apply(plan(seeks=begins))

    def until(self, fact: Callable[[], Any], poll: Callable[[], object] | None = None) -> None:
        """Polls until ``fact`` holds."""
        deadline = time.monotonic() + PATIENCE_S
        while not fact():
            assert time.monotonic() < deadline, f"not within {PATIENCE_S} s; assigned {self.assigned}"
            (poll or self.poll)()

    def until_assigned(self) -> None:
        self.until(lambda: self.owns)

    def read(
        self, count: int, poll: Callable[[], object] | None = None, timeout: float = PATIENCE_S
    ) -> list[tuple[int, int]]:
        """Polls until there are ``count`` messages: partition and offset of each; fewer when ``timeout`` is over."""
        deadline = time.monotonic() + timeout
        while len(self._unread) < count and time.monotonic() < deadline:
            (poll or self.poll)()
        read, self._unread = self._unread, []
        return read

    def commit(self, offsets: dict[tuple[str, int], int], generation: int | None = None) -> Exception | None:
        """Why the first of them was refused."""
        given = self.generation if generation is None else generation
        refusals = self.client.commit(commits(offsets), given)
        return next((refusal.error for refusal in refusals.values()), None)

    def joining(self) -> bool:
        """Whether a JoinGroup waits for its answer."""
        task = self.coordinator._join_task
        return task is not None and not task.is_done


class Owned(NamedTuple):
    """What a plan asks of an ownership: which partition it is of."""

    tp: tuple[str, int]
    note: Note = Note()


def commits(offsets: dict[tuple[str, int], int], note: Note = Note()) -> list[Any]:  # noqa: B008 - a NamedTuple
    """What a commit asks of a client."""
    owned: Any = Owned
    return [Commit(owned(tp, note), offset, 0) for tp, offset in offsets.items()]


def plan(
    *,
    seeks: dict[tuple[str, int], int] | None = None,
    pause: Sequence[tuple[str, int]] = (),
    resume: Sequence[tuple[str, int]] = (),
    rejoin: bool = False,
) -> PollPlan:
    """A plan as the group makes it, by partitions."""
    moves: Any = {Owned(tp): offset for tp, offset in (seeks or {}).items()}
    stops: Any = [Owned(tp) for tp in pause]
    goes: Any = [Owned(tp) for tp in resume]
    return PollPlan(seeks=moves, pause=stops, resume=goes, rejoin=rejoin)


@contextmanager
def polling(*members: Member) -> Iterator[None]:
    """Each member polls in a thread of its own, as the runner would."""
    end = threading.Event()

    def poll(member: Member) -> None:
        while not end.is_set():
            with suppress(PollError):
                member.poll()

    threads = [threading.Thread(target=poll, args=(member,)) for member in members]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        end.set()
        for member in members:
            member.may_go.set()
        for thread in threads:
            thread.join()
