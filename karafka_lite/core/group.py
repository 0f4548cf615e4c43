"""All partitions of one consumer group in this process: takes what happened, answers what to do.

Pure: no I/O, no clock, no threads, no user code. The caller holds one lock around every call and passes the time in
(``now``, monotonic seconds). Two shells carry out the answers: the runner with its threads, and tests without any.

    what happened                                     what to do
    ------------------------------------------------  ----------------------------------------------------
    assigned, started, fetched, fetch_failed          unstarted, poll_plan  start, seek, pause, join anew (poller)
    begin, end, mark                                  take_ready            partitions that need a worker
    request_commit, commit_succeeded, commit_failed   commit_batch          offsets to commit (committer)
    revoke, lose, stop, advance (time has passed)     wake_at               when to call ``advance`` next
                                                      news                  somebody who waits should look again
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from karafka_lite.core.backoff import Backoff
from karafka_lite.core.intake import Room
from karafka_lite.core.options import Policy, Target
from karafka_lite.core.ownership import Partition, Run, Send, State
from karafka_lite.messages import Record, TopicPartition

ROOM = Room(messages=100_000, size_bytes=64 << 20)  # shared by the queues of all partitions
FINAL_COMMIT_S = 5.0  # a last commit is tried at least so long, also when the handlers used up the whole drain
COMMIT_RETRY = Backoff(100, 1000)


class Commit(NamedTuple):
    """One offset on its way to the broker."""

    partition: Partition
    offset: int
    version: int


@dataclass
class PollPlan:
    """What the poller does before its next poll."""

    seeks: dict[TopicPartition, int] = field(default_factory=dict)
    pause: list[TopicPartition] = field(default_factory=list)
    resume: list[TopicPartition] = field(default_factory=list)
    join_anew: bool = False


class Group:
    """The rules about offsets and ownership.

    ``policies`` by topic; ``reset`` is ``auto_offset_reset``; ``leftovers`` are ownerships of an earlier run of this
    process whose handlers have not returned yet: their successors wait for them.
    """

    def __init__(
        self,
        policies: Mapping[str, Policy],
        *,
        commit_interval_ms: int = 5000,
        drain_timeout_ms: int = 60_000,
        reset: str = "earliest",
        leftovers: Iterable[Partition] = (),
        room: Room = ROOM,
        now: float = 0.0,
    ) -> None:
        self._policies = policies
        self._interval = commit_interval_ms / 1000
        self._drain = drain_timeout_ms / 1000
        self._reset = reset
        self._room = room
        self.owned: dict[TopicPartition, Partition] = {}
        self.leftovers: dict[TopicPartition, Partition] = {p.place: p for p in leftovers}
        self.stopping = False
        self.news = False
        self._ready: list[Partition] = []
        self._join_anew = False
        self._commit_at = now + self._interval
        self._commit_requested = False
        self._commit_failures = 0
        self._commit_retry_at = 0.0
        self._refusing: set[str] = set()  # topics whose last commit failed
        self._commit_turns: dict[str, int] = {}  # topic -> its last turn to be committed by itself

    # -- assignment

    def assigned(self, places: Iterable[TopicPartition], now: float) -> list[Partition]:
        """The broker gave us ``places``. Returns the new ownerships (none while stopping: nothing would be done)."""
        if self.stopping:
            return []
        fresh = []
        for place in places:
            if place in self.owned:  # never seen; but two ownerships of one partition must not exist
                self._finish(self.owned[place], State.LOST)
            predecessor = self.leftovers.get(place)
            self.owned[place] = Partition(place, self._policies[place[0]], predecessor)
            fresh.append(self.owned[place])
        self._join_anew = False  # it has just joined
        self.news = True
        return fresh

    def started(self, place: TopicPartition, offset: int, *, committed: bool, now: float) -> None:
        """``place`` begins at ``offset``: ``committed``, or where ``auto_offset_reset`` points to.

        A start at the end of the log is committed before anything is handed over: whoever owns the partition next would
        else start at the *new* end, and what lay between would be skipped.
        """
        partition = self.owned.get(place)
        if partition and partition.start is None:
            partition.begin_at(offset, committed=committed, commit_start=self._reset == "latest")
            if partition.pending:
                self.request_commit()

    def revoke(self, places: Iterable[TopicPartition], now: float) -> list[Partition]:
        """A rebalance asks for ``places``. Returns the ownerships that end now; ``released`` says when they have."""
        leaving = [p for place in places if (p := self.owned.get(place))]
        for partition in leaving:
            if partition.state is State.ASSIGNED:
                partition.drain(now + self._drain, stopping_app=False)
            self._settle(partition, now)
        self.news = True
        return leaving

    def released(self, partitions: Collection[Partition]) -> bool:
        """Whether all ``partitions`` are over, so that they can be given to somebody else."""
        return all(p.state >= State.REVOKED for p in partitions)

    def lose(self, now: float, *, join_anew: bool) -> list[Partition]:
        """The membership is gone: every ownership ends at once, nothing more is committed.

        ``join_anew``: we found out by ourselves, so the client must be told. Returns the ownerships that were lost.
        """
        lost = list(self.owned.values())
        for partition in lost:
            self._finish(partition, State.LOST)
        if lost:
            self._join_anew = join_anew
            self.news = True
        return lost

    def stop(self, now: float) -> None:
        """The app stops: nothing new is handed over; done when nothing is ``owned`` and there are no ``leftovers``."""
        self.stopping = True
        for partition in list(self.owned.values()):
            if partition.state is State.ASSIGNED:
                partition.drain(now + self._drain, stopping_app=True)
            self._settle(partition, now)
        self.news = True

    def close(self) -> None:
        """No worker will come any more: hooks that had no time are left out, so that no successor waits for them."""
        for partition in list(self.leftovers.values()):
            partition.hook_due = None
            self._settle(partition, 0.0)

    # -- messages

    def fetched(
        self, place: TopicPartition, records: Sequence[Record], end_offset: int | None, size_bytes: int, now: float
    ) -> bool:
        """Records arrived; ``end_offset`` is the partition's end. False where they are not wanted (any more)."""
        partition = self.owned.get(place)
        if partition is None or not partition.fetched(records, end_offset, size_bytes, now):
            return False
        self._settle(partition, now)
        return True

    def polled(self, positions: Mapping[TopicPartition, int]) -> None:
        """Where fetching goes on behind what ``fetched`` was told: also behind messages that nobody will ever see."""
        for place, position in positions.items():
            partition = self.owned.get(place)
            if partition and partition.start is not None and partition.seek_to is None:
                partition.position = position

    def fetch_failed(self, place: TopicPartition, now: float) -> float | None:
        """What stands next in ``place`` cannot be read. Returns the seconds until it is tried again."""
        partition = self.owned.get(place)
        return partition.fetch_failed(now) if partition else None

    def unstarted(self) -> list[TopicPartition]:
        """Ownerships whose starting position is not known: ask the cluster, then call ``started``."""
        return [place for place, partition in self.owned.items() if partition.start is None]

    def sought(self) -> dict[TopicPartition, Target]:
        """Where the user wants to begin, and only the cluster knows the offset: ask it, then call ``found``."""
        return {place: p.target for place, p in self.owned.items() if p.target is not None and p.start is not None}

    def found(self, place: TopicPartition, target: Target, offset: int) -> None:
        """``target`` in ``place`` is ``offset``."""
        partition = self.owned.get(place)
        if partition and partition.target == target:
            partition.redirect(offset)

    def poll_plan(self, now: float) -> PollPlan:
        """What has to be done before the next poll; each answer is given once."""
        plan = PollPlan(join_anew=self._join_anew)
        self._join_anew = False
        room = self._room.shared_by(len(self.owned) or 1)
        for place, partition in self.owned.items():
            if partition.state is not State.ASSIGNED:
                continue
            if partition.seek_to is not None:
                plan.seeks[place] = partition.position = partition.seek_to
                partition.seek_to = None
            pause = partition.wants_pause(room, now)
            if pause != partition.paused:
                partition.paused = pause
                (plan.pause if pause else plan.resume).append(place)
        return plan

    # -- user code

    def take_ready(self) -> list[Partition]:
        """Partitions for which a worker is needed; each is named once until ``begin`` was called for it."""
        ready, self._ready = self._ready, []
        return ready

    def begin(self, partition: Partition, now: float) -> Run | None:
        """A worker has time for ``partition``: what it has to run; None when that has passed."""
        run = partition.begin(now)
        if run is None:
            self._settle(partition, now)
        return run

    def end(self, run: Run, *, failed: bool, now: float) -> None:
        """The user code of ``run`` has ended; ``failed``: it raised."""
        run.partition.end(run, failed=failed, now=now)
        self._ended(run, now)
        self.news |= failed

    def set_aside(self, run: Run, now: float) -> None:
        """The message at which ``run`` failed once too often is in safety: go on without it."""
        run.partition.set_aside(run)
        self._ended(run, now)
        self.news = True

    def _ended(self, run: Run, now: float) -> None:
        self._settle(run.partition, now)
        successor = self.owned.get(run.partition.place)
        if successor is not None and successor is not run.partition:
            self._settle(successor, now)

    def redirect(self, partition: Partition, target: Target, now: float) -> bool:
        """User code wants the next batch to start at ``target``; a running one goes on. False when not the owner."""
        if partition.over:
            return False
        if partition.run and not partition.run.hook:
            partition.run.redirect = target
        else:
            partition.redirect(target)
        self._settle(partition, now)
        self.news = True
        return True

    def rest(self, partition: Partition, until: float, now: float) -> bool:
        """User code wants no batch before ``until``. False when not the owner."""
        if partition.over:
            return False
        partition.rests_until = until
        self._settle(partition, now)
        self.news = True
        return True

    # -- offsets

    def request_commit(self) -> None:
        """Commit what is stored without waiting for the interval."""
        self._commit_requested = True
        self.news = True

    def answered(self, partition: Partition, send: Send, failure: BaseException | None, now: float) -> None:
        """A message that user code of ``partition`` has sent is acknowledged, or has failed."""
        partition.answered(send, failure)
        waited_for = partition.state is State.RELEASING or self._commit_requested
        self.news |= waited_for or failure is not None or not partition.unanswered
        self._settle(partition, now)

    def commit_batch(self, now: float) -> list[Commit]:
        """What has to be committed now; empty when nothing has to."""
        if now < self._commit_retry_at:
            return []
        ready = [p for p in self.owned.values() if p.committable]
        if now >= self._commit_at:
            self._commit_at = now + self._interval
        elif not self._commit_requested and not any(p.state is State.RELEASING for p in ready):
            return []
        # A request waits for what has yet to be acknowledged.
        self._commit_requested &= any(p.version != p.backed[1] for p in self.owned.values())
        if self._refusing.intersection(p.place[0] for p in ready):
            # One topic that refuses (deleted, not authorized) must not hold up the others: each goes by itself.
            topic = min((p.place[0] for p in ready), key=lambda name: self._commit_turns.get(name, 0))
            self._commit_turns[topic] = max(self._commit_turns.values(), default=0) + 1
            self._commit_requested = True
            ready = [p for p in ready if p.place[0] == topic]
        return [Commit(p, offset, version) for p in ready for offset, version in [p.backed] if offset is not None]

    def commit_succeeded(self, commits: Iterable[Commit], now: float) -> None:
        """The broker has acknowledged ``commits``."""
        for partition, offset, version in commits:
            self._refusing.discard(partition.place[0])
            if partition.state is not State.LOST:
                partition.commit_succeeded(offset, version)
                self._settle(partition, now)
        if not self._refusing:
            self._commit_failures = 0
            self._commit_turns.clear()
        self.news = True

    def commit_failed(self, commits: Iterable[Commit], now: float) -> None:
        """The broker refused or did not answer: everything stays pending and is tried again soon."""
        self._commit_failures += 1
        self._commit_retry_at = now + COMMIT_RETRY.delay_ms(self._commit_failures) / 1000
        self._commit_requested = True
        for partition, _, _ in commits:
            self._refusing.add(partition.place[0])
            self._settle(partition, now)
        self.news = True

    # -- time

    def advance(self, now: float) -> None:
        """Time has passed: bounds that are over, back-offs that ended."""
        for partition in [*self.owned.values(), *self.leftovers.values()]:
            self._settle(partition, now)

    def wake_at(self, now: float) -> float:
        """When ``advance`` and ``commit_batch`` may have something to do, if nothing happens before."""
        times = [max(self._commit_at, self._commit_retry_at)]
        for partition in self.owned.values():
            if partition.state in (State.DRAINING, State.RELEASING):
                times.append(partition.deadline)
            ready_at = partition.ready_at()
            if ready_at is not None and not partition.enlisted:
                times.append(ready_at)
            if partition.committable and (partition.state is State.RELEASING or self._commit_requested):
                times.append(self._commit_retry_at)
        return max(now, min(times))

    def _settle(self, partition: Partition, now: float) -> None:
        """Bring one ownership to where it belongs now: the only place where time and facts move states on."""
        if partition.predecessor is not None and not partition.predecessor.busy:
            partition.predecessor = None
        if partition.state is State.DRAINING and (not partition.busy or now >= partition.deadline):
            partition.release(max(partition.deadline, now + FINAL_COMMIT_S))
            self.news = True
        if partition.state is State.RELEASING and (not partition.pending or now >= partition.deadline):
            self._finish(partition, State.REVOKED)
        if partition.state >= State.REVOKED and not partition.busy:
            self._forget_leftover(partition)
        ready_at = partition.ready_at()
        if ready_at is None or partition.enlisted:
            return
        if ready_at <= now:
            partition.enlisted = True
            self._ready.append(partition)
        else:
            self.news = True  # who sleeps until ``wake_at`` may have to get up earlier

    def _finish(self, partition: Partition, state: State) -> None:
        partition.finish(state)
        del self.owned[partition.place]
        if partition.busy:
            self.leftovers[partition.place] = partition
            self._settle(partition, 0.0)
        self.news = True

    def _forget_leftover(self, partition: Partition) -> None:
        if self.leftovers.get(partition.place) is partition:
            del self.leftovers[partition.place]
            self.news = True
