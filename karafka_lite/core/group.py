"""All partitions of one consumer group in this process: takes what happened, answers what to do.

Pure: no I/O, no clock, no threads, no user code. The caller holds one lock around every call and passes the time in
(``now``, monotonic seconds). One shell carries out the answers, ``runner.py``.

    what happened                                          what to do                      who asks
    -----------------------------------------------------  ------------------------------  ------------
    assigned, placed, found, fetched, fetch_failed, stray  unplaced, sought, poll_plan     poller
    begin, end, give_up, redirect, pause, answered         take_ready                      all: for workers
    request_commit, committed, transacted                  commit_batch                    committer
    revoke, lose, stop, close, advance (time has passed)   wake_at, changed                who waits

An answer is given again until its result is reported: ``poll_plan`` until ``applied``, ``unplaced`` until ``placed``,
``sought`` until ``found``. Nothing is given away before it is done. A call costs what has changed, not what is owned.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from karafka_lite.core.answers import Outcome, PollPlan, Slow, slow_of
from karafka_lite.core.commits import Commits
from karafka_lite.core.intake import BufferLimits
from karafka_lite.core.options import Options, SeekTarget
from karafka_lite.core.ownership import Ownership, Run, State
from karafka_lite.core.sends import Held, Send
from karafka_lite.core.starts import Note, NowhereError, Place, Start, Stray, begin, note_of, nowhere
from karafka_lite.core.strays import go_on, is_void
from karafka_lite.core.timers import NEVER, Timers
from karafka_lite.core.units import owner
from karafka_lite.messages import Record, TopicPartition, where

BUFFER_LIMITS = BufferLimits(messages=100_000, size_bytes=64 << 20)  # shared by the queues of all partitions
FINAL_COMMIT_S = 5.0  # a last commit is tried at least so long, also when the handlers used up the whole drain
FOREIGN_S = 0.2  # how late it is noticed that a handler of an earlier run of the app has returned


class Group(Commits):
    """The rules about offsets and ownership.

    ``options`` by topic; ``reset`` is ``auto_offset_reset``; ``leftovers`` are ownerships of an earlier start of
    the app whose user code still runs: their successors wait for it. ``name`` is for messages.
    """

    def __init__(
        self,
        options: Mapping[str, Options],
        *,
        commit_interval_ms: int = 5000,
        drain_timeout_ms: int = 60_000,
        max_poll_interval_ms: int = 300_000,
        reset: str = "earliest",
        leftovers: Iterable[Ownership] = (),
        limits: BufferLimits = BUFFER_LIMITS,
        now: float = 0.0,
        name: str = "",
    ) -> None:
        self._name = name
        self._options = options
        super().__init__(commit_interval_ms / 1000, now)
        self._drain = drain_timeout_ms / 1000
        self._max_poll = max_poll_interval_ms / 1000
        self._reset = reset
        self._limits = limits
        self.leftovers: dict[TopicPartition, Ownership] = {o.tp: o for o in leftovers}
        self.stopping = False
        self.poll_wanted = False  # the poller has something else to do than to wait for messages
        self._rejoin = False
        self._losses = 0
        self._ready: list[Ownership] = []
        self._unknown: dict[Ownership, None] = {}  # only the cluster knows where they go on
        self._to_plan: dict[Ownership, None] = {}  # may need a seek, a pause or a resume
        self._running: dict[Run, None] = {}
        self._timers = Timers()
        self.untold: dict[Run, Outcome] = {}  # calls that have failed, of which is to be told
        self.settled: list[Held] = []  # messages that have an answer, for whoever sent them
        self._notes: dict[str, Note] = {}  # by topic: what commits say of it

    # -- assignment

    def assigned(self, tps: Collection[TopicPartition], now: float) -> list[Ownership]:
        """The broker gave us ``tps``. Returns the new ownerships (none while stopping: nothing would be done)."""
        if self.stopping:
            return []
        for tp in self.owned.keys() & set(tps):  # never seen; but two ownerships of one partition must not exist
            self._finish(self.owned[tp], State.LOST, now)
        fresh = [self._own(tp) for tp in tps]
        self._to_plan.update(dict.fromkeys(self.owned.values()))  # they share the limits
        self._rejoin = False  # it has just joined
        self.changed = True
        return fresh

    def missing(self, topics: Iterable[str]) -> None:
        """The group waits for ``topics``, which do not exist: nothing that they will hold is older than it."""
        for topic in topics:
            self._notes.setdefault(topic, Note("", 0))

    def unplaced(self) -> list[Ownership]:
        """Ownerships of which only the cluster knows where they begin, or go on: ask it, then call ``placed``."""
        return [o for o in self._unknown if o.intake.needs_place]

    def placed(self, places: Mapping[Ownership, Place], now: float) -> dict[TopicPartition, Start]:
        """What the cluster says of ``unplaced`` ownerships. Returns where they begin, or go on elsewhere than expected.

        Raises:
            ConfigurationError: some have nowhere to begin, because ``auto_offset_reset`` is "none".
        """
        starts: dict[TopicPartition, Start] = {}
        refused = []
        for ownership, place in places.items():
            if not (ownership.intake.needs_place and self._is_ours(ownership)):
                continue  # it is over, or has begun already, or user code wants to go elsewhere by now
            try:
                if (start := self._place(ownership, place, now)) is not None:
                    starts[ownership.tp] = start
            except NowhereError as unusable:
                refused.append(where(*ownership.tp, unusable.position))
        if refused:
            raise nowhere(self._name, refused)
        return starts

    def _place(self, ownership: Ownership, place: Place, now: float) -> Start | None:
        stray, note = ownership.intake.stray, ownership.note
        place = place.cut(stray)
        if stray is not None and not is_void(ownership, place):
            start = go_on(ownership, place, self._reset, now)
        else:
            if stray is not None:  # nothing of it counts any more: another one takes its place, or nobody
                stays, intake = ownership.state is State.ASSIGNED, ownership.intake
                place = place.after(intake.start or 0, intake.next_offset, note)
                self._finish(ownership, State.LOST, now)
                if not stays:
                    return None
                ownership = self._own(ownership.tp)
                ownership.intake.paused = intake.paused  # the client pauses partitions
            topic, partition = ownership.tp
            note = self._notes[topic] = note_of(place, self._notes.get(topic), self._reset)
            start = begin(place, partition, self._reset, note.partitions or 0)
            ownership.begin_at(start, note)
            if ownership.marks.pending:
                self.request_commit()
            if stray is not None:
                start = start.after(stray, place.end)
        self._note_unknown(ownership)
        self._settle(ownership, now)
        return start

    def _own(self, tp: TopicPartition) -> Ownership:
        ownership = self.owned[tp] = owner(tp, self._options[tp[0]], self.leftovers.get(tp))
        self._note_unknown(ownership)
        return ownership

    def stray(self, strays: Mapping[TopicPartition, Stray], now: float) -> None:
        """The logs do not have these positions, or may not have them."""
        for tp, stray in strays.items():
            ownership = self.owned.get(tp)
            if ownership is not None and ownership.intake.strays(stray):
                self._note_unknown(ownership)
                self._settle(ownership, now)

    def revoke(self, tps: Iterable[TopicPartition], now: float) -> list[Ownership]:
        """A rebalance asks for ``tps``. Returns the ownerships that end now; ``released`` says when they have."""
        leaving = [o for tp in tps if (o := self.owned.get(tp))]
        for ownership in leaving:
            self._drain_one(ownership, now, stopping_app=False)
        self.changed = True
        return leaving

    def released(self, ownerships: Collection[Ownership]) -> bool:
        """Whether all ``ownerships`` are over, so that their partitions can be given to another member."""
        return all(o.state >= State.REVOKED for o in ownerships)

    def lose(self, now: float, *, rejoin: bool) -> list[Ownership]:
        """The membership is gone: every ownership ends at once, nothing more is committed.

        ``rejoin``: we found out by ourselves, so the client has to join again. Returns the ownerships that were lost.
        """
        lost = list(self.owned.values())
        for ownership in lost:
            self._finish(ownership, State.LOST, now)
        if lost:
            self._rejoin = rejoin
            self._losses += 1
            self.changed = True
        return lost

    def stop(self, now: float) -> None:
        """The app stops: nothing new is handed over; done when nothing is ``owned`` and there are no ``leftovers``."""
        self.stopping = True
        for ownership in list(self.owned.values()):
            self._drain_one(ownership, now, stopping_app=True)
        self.changed = self.poll_wanted = True

    def close(self, now: float) -> None:
        """No worker will come any more: hooks that had no time are left out, so that no successor waits for them."""
        for ownership in list(self.leftovers.values()):
            ownership.call_no_more()
            self._settle(ownership, now)
        self.changed = True

    def _drain_one(self, ownership: Ownership, now: float, *, stopping_app: bool) -> None:
        if ownership.state is State.ASSIGNED:
            ownership.drain(now + self._drain, stopping_app=stopping_app)
            self._leaving[ownership] = None
        self._settle(ownership, now)

    # -- messages

    def sought(self) -> dict[Ownership, SeekTarget]:
        """Where user code wants to begin, and only the cluster knows the offset: ask it, then call ``found``."""
        return {o: o.intake.target for o in self._unknown if o.intake.target is not None and o.intake.start is not None}

    def found(self, ownership: Ownership, target: SeekTarget, offset: int, now: float) -> None:
        """``target`` is at ``offset``; changes nothing where user code wants to go elsewhere by now."""
        if self._is_ours(ownership) and ownership.intake.target == target:
            ownership.redirect(offset)
            self._note_unknown(ownership)
            self._settle(ownership, now)

    def poll_plan(self, now: float) -> PollPlan:
        """What has to be done before the next poll. It is the same until it is ``applied``."""
        plan = PollPlan(rejoin=self._rejoin, losses=self._losses)
        limits = self._limits.shared_by(len(self.owned))
        for ownership in list(self._to_plan):
            intake = ownership.intake
            pause = intake.wants_pause(limits, now)
            if ownership.state is not State.ASSIGNED or (intake.seek_to is None and pause is intake.paused):
                del self._to_plan[ownership]
                continue
            if intake.seek_to is not None:
                plan.seeks[ownership] = intake.seek_to
            if pause is not intake.paused:
                (plan.pause if pause else plan.resume).append(ownership)
        return plan

    def _plan(self, ownership: Ownership, now: float) -> None:
        self._to_plan[ownership], intake = None, ownership.intake
        full = intake.paused and intake.wants_pause(self._limits.shared_by(len(self.owned)), now)
        self.poll_wanted |= intake.moving or intake.paused is not full

    def applied(self, plan: PollPlan, now: float) -> None:
        """The client has done what ``plan`` says. What has changed since then is in the next plan."""
        if plan.losses == self._losses:
            self._rejoin = False
        for ownership, offset in plan.seeks.items():
            ownership.intake.sought(offset)
        for tp in [ownership.tp for ownership in plan.pause]:
            if (owner := self.owned.get(tp)) is not None:  # a new one by now, perhaps: the client pauses partitions
                owner.intake.paused = True
                self._settle(owner, now)
        for ownership in plan.resume:
            ownership.intake.paused = False

    def fetched(
        self, tp: TopicPartition, records: Sequence[Record], end_offset: int | None, size_bytes: int, now: float
    ) -> bool:
        """Records arrived; ``end_offset`` is the partition's end. False where they are not wanted (any more)."""
        ownership = self.owned.get(tp)
        if ownership is None or not ownership.fetched(records, end_offset, size_bytes, now):
            return False
        self._settle(ownership, now)
        return True

    def polled(self, positions: Mapping[TopicPartition, int], ends: Mapping[TopicPartition, int]) -> None:
        """Where fetching goes on, past what was ``fetched`` and offsets without a message; and where partitions end."""
        for tp in positions.keys() & self.owned.keys():
            if not (intake := self.owned[tp].intake).moving:
                intake.position, intake.end_offset = positions[tp], ends.get(tp, intake.end_offset)

    def fetch_failed(self, tp: TopicPartition, now: float) -> float | None:
        """What comes next in ``tp`` cannot be read. Returns the seconds until it is tried again."""
        if (ownership := self.owned.get(tp)) is None:
            return None
        wait = ownership.intake.unreadable(now)
        self._settle(ownership, now)
        return wait

    # -- user code

    def take_ready(self) -> list[Ownership]:
        """Ownerships for which a worker is needed; each is named once until ``begin`` was called for it."""
        ready, self._ready = self._ready, []
        return ready

    def begin(self, ownership: Ownership, now: float) -> Run | None:
        """A worker has time for ``ownership``: what it has to run; None when that has passed."""
        run = ownership.begin(now)
        if run is not None:
            self._running[run] = None
        if run is None or run.is_part:
            self._settle(ownership, now)  # other parts may wait for workers
        else:
            self._plan(ownership, now)  # its queue has room
        return run

    def end(self, run: Run, *, failed: bool, now: float) -> dict[Run, Outcome]:
        """The user code of ``run`` has ended; ``failed``: it raised, or a message that it sent was refused.

        Returns what is to be told: of parts that have failed with the last of their batch, else of ``run``.
        """
        self._ending(run, now, failed=failed)
        told = run.ownership.end(run, failed=failed, now=now)
        self.changed |= failed
        self._ended(run, now)
        return {one: self._outcome(one, now, failed=failed or one is not run) for one in told}

    def give_up(self, run: Run, *, now: float) -> dict[Run, Outcome]:
        """The culprit, at which ``run`` failed once too often, is given up: go on without it. Returns as ``end``."""
        self._ending(run, now, failed=True)
        given_up = run.culprit or 0, run.ownership.retries.tries_of(run.culprit or 0)
        told = run.ownership.give_up(run)
        self.changed = True
        self._ended(run, now)
        outcomes = {one: self._outcome(one, now, failed=one is not run) for one in told}
        outcomes[run] = outcomes[run]._replace(given_up=given_up)
        return outcomes

    def _ending(self, run: Run, now: float, *, failed: bool) -> None:
        run.seconds, run.messages = now - run.began, run.ownership.processed(run, failed=failed)

    def _outcome(self, run: Run, now: float, *, failed: bool) -> Outcome:
        ownership = run.ownership
        if not failed or ownership.state is not State.ASSIGNED:
            return Outcome(run.seconds, run.messages)
        again_s = max(0.0, ownership.retries.not_before - now)
        return Outcome(run.seconds, run.messages, ownership.intake.next_offset, again_s)

    def _ended(self, run: Run, now: float) -> None:
        self._running.pop(run, None)
        self._note_unknown(run.ownership)
        self._settle(run.ownership, now)
        successor = self.owned.get(run.ownership.tp)
        if successor is not None and successor is not run.ownership:
            self._settle(successor, now)

    def redirect(self, ownership: Ownership, target: SeekTarget, now: float) -> bool:
        """User code wants the next batch to start at ``target``; a running one goes on. False when not the owner."""
        if ownership.over:
            return False
        if ownership.run and not ownership.run.hook:
            ownership.run.redirect = target
        else:
            ownership.redirect(target)
            self._note_unknown(ownership)
        self._settle(ownership, now)
        self.changed = True
        return True

    def pause(self, ownership: Ownership, until: float, now: float) -> bool:
        """User code wants no batch before ``until``. False when not the owner."""
        if ownership.over:
            return False
        ownership.intake.paused_until = until
        self._settle(ownership, now)
        self.changed = True
        return True

    def slow(self, now: float) -> list[Slow]:
        """Runs that take so long that they get in the way; each once."""
        return [slow for run in self._running if (slow := slow_of(run, now, self._drain, self._max_poll))]

    def _note_unknown(self, ownership: Ownership) -> None:
        intake = ownership.intake
        if intake.is_unknown and self._is_ours(ownership):
            self._unknown[ownership] = None
        else:
            self._unknown.pop(ownership, None)

    # -- offsets

    def answered(self, run: Run, send: Send, failure: BaseException | None, now: float, count: int) -> None:
        """Messages that ``run`` has sent are acknowledged, or have failed."""
        ownership = run.ownership
        run.marks.answered(send, failure, count)
        waited_for = ownership.state is State.RELEASING or self._commit_requested
        self.changed |= waited_for or failure is not None or not run.marks.in_flight
        self._settle(ownership, now)

    # -- time

    def advance(self, now: float) -> None:
        """Time has passed: bounds that are over, back-offs that ended."""
        for ownership in [o for o in self.leftovers.values() if not o.busy]:
            self._forget_leftover(ownership)  # of an earlier run of the app: only that run's group has seen it end
        while (due := self._timers.due(now)) is not None:
            self._settle(due, now)

    def wake_at(self, now: float) -> float:
        """When ``advance`` and ``commit_batch`` may have something to do, if nothing happens before."""
        times = [self._commit_at, self._timers.next()]
        times += [o.marks.commit_at for o in self._to_commit(self._commit_requested)]
        return max(now, min(times))

    def _settle(self, ownership: Ownership, now: float) -> None:
        """Move a draining or releasing ownership on, call for a worker where one is needed, and set the timer."""
        if ownership.marks.sends.settled:
            self._pass_on(ownership)
        if ownership.predecessor is not None and not ownership.predecessor.busy:
            ownership.predecessor = None
        if ownership.state is State.DRAINING and (not ownership.busy or now >= ownership.deadline):
            ownership.release(max(ownership.deadline, now + FINAL_COMMIT_S))
            self._close(ownership, now)
            self.changed = True
        if ownership.state is State.RELEASING and (not ownership.marks.awaited or now >= ownership.deadline):
            self._finish(ownership, State.REVOKED, now)
        if ownership.state >= State.REVOKED and not ownership.busy:
            self._forget_leftover(ownership)
        self._plan(ownership, now)
        ready_at = NEVER if (moment := ownership.ready_at()) is None or ownership.scheduled else moment
        if ready_at <= now:
            ownership.scheduled = True
            self._ready.append(ownership)
            ready_at = NEVER
        # Who sleeps until ``wake_at`` may have to get up earlier.
        self.changed |= self._timers.set(ownership, min(ready_at, self._bound_of(ownership, now)))

    def _bound_of(self, ownership: Ownership, now: float) -> float:
        """When an ownership moves on although nothing happens to it."""
        if ownership in self._leaving:
            return ownership.deadline
        if ownership.state is not State.ASSIGNED:
            return NEVER
        if ownership.predecessor is not None:
            return now + FOREIGN_S  # of an earlier start of the app, perhaps: its Group does not know of us
        return ownership.intake.fetch_at if ownership.intake.fetch_at > now else NEVER

    def _finish(self, ownership: Ownership, state: State, now: float) -> None:
        ownership.finish(state)
        self._close(ownership, now)
        self._pass_on(ownership)
        del self.owned[ownership.tp]
        for waiting in (self._unknown, self._leaving, self._soon):
            waiting.pop(ownership, None)
        if ownership.busy:
            self.leftovers[ownership.tp] = ownership
            self._settle(ownership, now)
        self.changed = True

    def _close(self, ownership: Ownership, now: float) -> None:
        self.untold |= {run: self._outcome(run, now, failed=True) for run in ownership.untold}
        ownership.untold = ()

    def _pass_on(self, ownership: Ownership) -> None:
        self.settled, ownership.marks.sends.settled = [*self.settled, *ownership.marks.sends.settled], []
        self.changed = True

    def _forget_leftover(self, ownership: Ownership) -> None:
        if self.leftovers.get(ownership.tp) is ownership:
            del self.leftovers[ownership.tp]
            self.changed = True
