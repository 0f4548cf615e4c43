"""Where each partition is, and what was done in all: a snapshot for people and for a program of one's own.

It takes no lock: each figure is right by itself, and a call that hangs does not matter.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from karafka_lite.core.ownership import Ownership, State
from karafka_lite.messages import TopicPartition
from karafka_lite.observers.health import Watched
from karafka_lite.observers.metrics import Counts, Reading
from karafka_lite.observers.progress import Progress

PartitionState = Literal["starting", "waiting", "working", "back-off", "paused", "draining"]


@dataclass(frozen=True)
class PartitionStats:
    """One partition of ours. Offsets are *next* offsets.

    Attributes:
        state: ``"starting"``, where it begins is looked for, or ``on_assigned`` has not returned; ``"waiting"``, for
            messages, or for a thread of its handler; ``"working"``; ``"back-off"``, a failure is tried again after it;
            ``"paused"`` by ``ctx.pause``; ``"draining"``, a rebalance wants it, or the app stops.
        position: where the next batch begins; None while that is looked for.
        stored: the last mark; None without one.
        committed: what the broker has, as far as this ownership knows; None without a commit.
        lag: how many offsets the partition has after what is processed, as far as its last fetch knows; None: there
            was none.
        since_ms: for how long it has been in this state, in milliseconds.
        until_ms: in so many milliseconds a back-off, a pause or a drain is over; None for another state.
        doing: the function that runs, and the offsets of its batch, with ``order="key"`` in how many parts; "" where
            none runs.
        error: of the last call or fetch, if it failed; else "".
    """

    group_id: str
    topic: str
    partition: int
    state: PartitionState
    position: int | None
    stored: int | None
    committed: int | None
    lag: int | None
    since_ms: int
    until_ms: int | None
    doing: str
    error: str


@dataclass(frozen=True)
class Stats:
    """What an app has done since its start, and where its partitions are now.

    Attributes:
        messages: that handlers have processed.
        batches: that they have processed; with ``order="key"`` each part of one counts.
        failures: calls of handlers that raised.
        dead_letters: messages that were given up.
        commits: that the broker has acknowledged.
        commit_failures: that it has refused, or not answered.
        rebalances: how often a member has joined its group, the first time included.
        partitions: those that are ours, sorted by group, topic and number.
    """

    messages: int = 0
    batches: int = 0
    failures: int = 0
    dead_letters: int = 0
    commits: int = 0
    commit_failures: int = 0
    rebalances: int = 0
    partitions: tuple[PartitionStats, ...] = ()


class _Moment(NamedTuple):
    state: PartitionState
    since: float | None = None  # None: since the last call ended
    until: float | None = None


def stats(members: Collection[Watched], progress: Progress, counts: Counts, drain_s: float, now: float) -> Stats:
    """What the run of ``members`` has done, and where it is at the moment ``now``."""
    reading = counts.read({})
    topics, groups = reading.topics.values(), reading.groups.values()
    return Stats(
        sum(one.messages for one in topics),
        sum(one.batches for one in topics),
        sum(one.failures for one in topics),
        sum(one.dead_letters for one in topics),
        sum(one.commits for one in groups),
        sum(one.commit_failures for one in groups),
        sum(one.rebalances for one in groups),
        tuple(one for member in members for one in _partitions(member, progress, counts, drain_s, now)),
    )


def _partitions(
    member: Watched, progress: Progress, counts: Counts, drain_s: float, now: float
) -> Iterator[PartitionStats]:
    errors = progress.errors_of(member.group_id)
    for tp, ownership in sorted(member.group.owned.items()):
        yield _partition(member, ownership, errors, counts.since.get((member.group_id, *tp), now), drain_s, now)


def _partition(
    member: Watched,
    ownership: Ownership,
    errors: Mapping[TopicPartition, str],
    rests: float,
    drain_s: float,
    now: float,
) -> PartitionStats:
    intake, marks, run = ownership.intake, ownership.marks, ownership.run
    moment = _moment(ownership, drain_s, now)
    since = rests if moment.since is None else moment.since
    until = None if moment.until is None else max(0, round((moment.until - now) * 1000))
    return PartitionStats(
        member.group_id,
        *ownership.tp,
        moment.state,
        None if intake.start is None else intake.next_offset,
        marks.stored,
        marks.committed,
        lag_of(ownership),
        max(0, round((now - since) * 1000)),
        until,
        "" if run is None else f"{member.name_of(run)} {_offsets(ownership)}".rstrip(),
        errors.get(ownership.tp, ""),
    )


def _moment(ownership: Ownership, drain_s: float, now: float) -> _Moment:
    intake, run = ownership.intake, ownership.run
    if ownership.state is not State.ASSIGNED:
        since = ownership.deadline - drain_s if ownership.state is State.DRAINING else None
        return _Moment("draining", since, ownership.deadline)
    if intake.start is None:
        return _Moment("starting")
    if run is not None:
        return _Moment("starting" if ownership.opening else "working", run.began)
    if (until := max(ownership.retries.not_before, intake.fetch_at)) > now:
        return _Moment("back-off", until=until)
    if intake.paused_until > now:
        return _Moment("paused", until=intake.paused_until)
    return _Moment("starting" if ownership.opening else "waiting")


def _offsets(ownership: Ownership) -> str:
    run = ownership.run
    if run is None or not run.records:
        return ""
    count = len(ownership.calls)
    parts = f" in {count} part{'s' * (count > 1)}" if ownership.options.parts else ""
    return f"{run.records[0].offset}..{run.records[-1].offset}{parts}"


def lag_of(ownership: Ownership) -> int | None:
    """How many offsets the partition has after what is processed; None where that is not known."""
    intake, done = ownership.intake, ownership.done
    return None if intake.end_offset is None else max(0, intake.end_offset - max(done or 0, intake.next_offset))


def reading(members: Collection[Watched], counts: Counts) -> Reading:
    """The counts, and the lags of the partitions that are ours."""
    owned = [(member.group_id, one) for member in members for one in list(member.group.owned.values())]
    lags = {(group_id, *one.tp): lag for group_id, one in owned if (lag := lag_of(one)) is not None}
    return counts.read(lags)
