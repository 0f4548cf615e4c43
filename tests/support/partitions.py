"""Partitions of a group without Kafka, threads or a clock: what the tests of ``core/`` begin with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from karafka_lite.core.answers import Commit
from karafka_lite.core.group import Group
from karafka_lite.core.marks import Refusal
from karafka_lite.core.options import Hook, Options, RegisteredHook
from karafka_lite.core.ownership import Ownership, Run
from karafka_lite.core.starts import Note, Place, Start

TP = ("topic", 0)
RECORD_BYTES = 7


class Record(NamedTuple):
    """A fetched record: the rules know its offset only."""

    offset: int
    timestamp: int = -1
    key: bytes | None = None
    value: bytes | None = b"{}"
    headers: tuple[tuple[str, bytes], ...] = ()


def records(offsets: Iterable[int]) -> list[Any]:
    return [Record(offset) for offset in offsets]


def offsets_of(run: Run) -> list[int]:
    """What was handed over."""
    return [record.offset for record in run.records]


def hook(kind: Hook, every_ms: int = 0) -> RegisteredHook:
    """A hook that does nothing."""
    return RegisteredHook(kind, lambda ctx: None, every_ms)


# -- one ownership


def ownership(start: int = 0, *, committed: bool = False, tp: tuple[str, int] = TP, **options: Any) -> Ownership:
    """One that begins at ``start``, and whose client was moved there."""
    made = Ownership(tp, Options(**options))
    made.begin_at(Start(start, "committed" if committed else "earliest"), Note())
    seek(made)
    return made


def seek(given: Ownership) -> int | None:
    """What the poller does before each poll: where it seeks to, None when it need not."""
    offset = given.intake.seek_to
    if offset is not None:
        given.intake.sought(offset)
    return offset


def fetch(given: Ownership, *offsets: int, end: int | None = None, now: float = 0.0) -> bool:
    return given.fetched(records(offsets), end, RECORD_BYTES * len(offsets), now)


def begin(given: Ownership, now: float = 0.0) -> Run:
    run = given.begin(now)
    assert run, "nothing was due"
    return run


def process(given: Ownership, now: float = 0.0, *, failed: bool = False) -> list[int]:
    """One run of user code that does nothing."""
    run = begin(given, now)
    given.end(run, failed=failed, now=now)
    return offsets_of(run)


# -- one group


class Partitions:
    """A group of one topic with its clock, and what its client would do. All partitions are assigned and started."""

    def __init__(self, count: int = 1, *, started: bool = True, group: Group | None = None, **options: Any) -> None:
        self.now = 0.0
        self.group = group or Group({"topic": Options(**options)})
        self.tps = [("topic", number) for number in range(count)]
        self.group.assigned(self.tps, self.now)
        if started:
            self.start()
            self.plan()

    def __getitem__(self, number: int) -> Ownership:
        return self.group.owned["topic", number]

    def start(self, offset: int = 0, *, committed: bool = False) -> None:
        """In logs that begin at ``offset``, and end there, too, where nothing is ``committed``."""
        place = Place(offset, offset, offset) if not committed else Place(0, 1 << 60, 1 << 60, offset)
        self.place(dict.fromkeys(self.group.unplaced(), place))

    def place(self, places: dict[Ownership, Place]) -> dict[tuple[str, int], Start]:
        return self.group.placed(places, self.now)

    def plan(self) -> dict[int, int]:
        """What the poller does before each poll; where partitions were moved to."""
        self.group.advance(self.now)
        plan = self.group.poll_plan(self.now)
        self.group.applied(plan, self.now)
        return {one.tp[1]: offset for one, offset in plan.seeks.items()}

    def fetch(self, number: int, *offsets: int, size_bytes: int = 0) -> bool:
        return self.group.fetched(("topic", number), records(offsets), None, size_bytes, self.now)

    def begin(self, number: int = 0) -> Run:
        run = self.group.begin(self[number], self.now)
        assert run is not None, "nothing was due"
        return run

    def end(self, run: Run, *, failed: bool = False) -> None:
        self.group.end(run, failed=failed, now=self.now)

    def process(self, number: int = 0, *, failed: bool = False) -> list[int]:
        run = self.begin(number)
        self.end(run, failed=failed)
        return offsets_of(run)

    def commit(self) -> dict[tuple[str, int], int]:
        """One turn of the committer, whose broker takes everything."""
        commits: list[Commit] = self.group.commit_batch(self.now)
        if commits:
            self.group.committed(commits, {}, self.now)
        return {one.tp: offset for one, offset, *_ in commits}

    def refuse(self, *, lasting: Literal["gone", "denied"] | None = None) -> dict[tuple[str, int], int]:
        """One turn of the committer, whose broker takes nothing."""
        commits: list[Commit] = self.group.commit_batch(self.now)
        self.group.committed(commits, {one.tp: Refusal(OSError("no"), lasting) for one, *_ in commits}, self.now)
        return {one.tp: offset for one, offset, *_ in commits}
