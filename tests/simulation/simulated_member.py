"""A process with a member in it: the shell around ``Group``, step by step as ``member.py`` and ``workers.py`` are."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from handlers import Handlers
from ledger import EPSILON, NUMBERS, RECORD_BYTES, require
from simulated_client import SimulatedClient
from steps import FOREVER, Condition, Process, Steps

from karafka_lite.core.group import FINAL_COMMIT_S, Commit, Group
from karafka_lite.core.ownership import Partition, Run, Send, State
from karafka_lite.messages import TopicPartition

if TYPE_CHECKING:
    from simulation import World

LOOK_AGAIN_S = 0.1
COMMIT_RETRY_S = 0.1, 1.0  # the shortest and the longest wait between two tries of a commit
SLACK_S = 5.0  # how late threads may be scheduled, all together, when something has a bound


class MemberProcess(Process):
    """What outlives a member in its process: the handlers that it left behind."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.inside: dict[TopicPartition, Run] = {}  # the user code that runs, of any ownership
        self.member: SimulatedMember | None = None

    def __str__(self) -> str:
        return f"p{self.number}"


class SimulatedMember:
    """One life of a member: its group, its client, its poller, its committer and its workers."""

    def __init__(self, world: World, process: MemberProcess, leftovers: Sequence[Partition]) -> None:
        self.world, self.process = world, process
        self.ledger, self.rng, self.reached = world.ledger, world.rng, world.reached
        settings = world.settings
        self.drain = settings.drain_timeout_ms / 1000
        self.commit_interval = settings.commit_interval_ms / 1000
        self.poll_records, self.room = settings.poll_records, settings.room
        self.group = Group(
            world.policies,
            commit_interval_ms=settings.commit_interval_ms,
            drain_timeout_ms=settings.drain_timeout_ms,
            reset=settings.reset,
            leftovers=leftovers,
            room=self.room,
            now=world.now,
        )
        self.name = f"{process}.{world.next_number()}"
        self.client = SimulatedClient(world, self.name, self)
        self.ended = False
        self._handlers = Handlers(self)
        self._changed, self._jobs_come, self._rebalance_wakes = Condition(), Condition(), Condition()
        self._jobs: deque[Partition | None] = deque()
        self._handing_over = self._closed = False
        self._has_to_rejoin = False  # because it said by itself that it is lost

        self.committing = False
        self.commit_requested_at: float | None = None
        self.commit_requested_number = 0
        self.commit_retry_at = self._commit_not_before = 0.0
        self._committed_at = 0.0
        self._unasked = 0  # commits in a row for which there was no reason
        self._failed_topics: set[str] | None = None  # of the last commit
        self._passed_over: set[str] = set()  # topics that it left for later

        process.member = self
        world.spawn(process, f"{self.name} poller", self._poller())
        world.spawn(process, f"{self.name} heartbeat", self.client.heartbeat())
        self._committer_thread = world.spawn(process, f"{self.name} committer", self._committer())
        for number in range(settings.concurrency):
            world.spawn(process, f"{self.name} worker {number}", self._worker())

    @property
    def now(self) -> float:
        return self.world.now

    @property
    def idle(self) -> bool:
        """No user code runs or waits, and all that was stored is on the broker."""
        acked = all(o.acked for o in self.ledger.open[self].values())
        return acked and not self.process.inside and not self.group.leftovers and not self.client.joining

    def __str__(self) -> str:
        return self.name

    # -- what the world does to it

    def ask_to_stop(self) -> None:
        self.world.spawn(self.process, f"{self.name} stop", self._begin_stop())

    def _begin_stop(self) -> Steps:
        yield None
        if not self.group.stopping:
            self.say("stop")
            self.reached["a stop during a hand-over"] += self._handing_over
            self.ledger.asked(self, list(self.group.owned), "stop", self.now, self.drain)
            self.group.stop(self.now)
            self._carry_out()

    def say(self, text: str, *details: object) -> None:
        self.world.say(self.name, text, *details)

    def sleeps_too_long(self) -> str | None:
        """Why the committer, which is the group's clock, should get up earlier than it was told to."""
        wake = self._committer_thread.wake
        if self.committing or self._closed or wake <= self.now:
            return None
        due, why = self.ledger.due(self)
        if wake > max(due, self.now) + EPSILON:
            return f"{why} is due at {due:.3f}, the committer sleeps until {wake:.3f}"
        return None

    # -- under the lock

    def check_membership(self) -> None:
        if self.group.owned and self.client.lost():
            self.reached["a member declared its own loss"] += 1
            self._has_to_rejoin = True
            self._lose(join_anew=True)

    def _lose(self, *, join_anew: bool) -> None:
        self.ledger.lost(self)
        self.say("lost", *self.group.lose(self.now, join_anew=join_anew))
        self.ledger.compare(self, self.now)

    def _carry_out(self) -> None:
        for partition in self.group.take_ready():
            self.ledger.enlisted(partition)
            self._jobs.append(partition)
            self._jobs_come.notify_all(self.now)
        if self.group.news:
            self.group.news = False
            self._changed.notify_all(self.now)
            if self._handing_over:
                self._rebalance_wakes.notify_all(self.now)
        self.ledger.compare(self, self.now)

    def _advance(self) -> None:
        self.group.advance(self.now)
        self._carry_out()
        self.ledger.settled(self, self.now)

    def _wait(self, condition: Condition, until: float) -> float:
        self.world.listen(condition)
        return until

    # -- the poller

    def _poller(self) -> Steps:
        yield None
        while not self.group.stopping:
            yield from self._poll_once()
            yield None
        yield from self._wind_down()
        yield from self._leave()

    def _poll_once(self) -> Steps:
        if places := self.group.unstarted():
            yield from self._find_starts(places)
        for place, target in self.group.sought().items():
            yield None
            offset = self.world.broker.logs[place].start
            self.ledger.found(self, place, target, offset)
            self.group.found(place, target, offset)
            self._carry_out()
        self.check_membership()
        self._advance()
        plan = self.group.poll_plan(self.now)
        require(plan.join_anew or not self._has_to_rejoin, "a member that declares its own loss joins anew", self)
        needless = plan.join_anew and self.group.owned
        require(not needless, "who has joined again stays", self)
        self._has_to_rejoin = False
        room = self.room.shared_by(len(self.group.owned) or 1)
        for backlog in (self.group.owned[place].backlog for place in plan.pause):
            full_of_bytes = backlog.size_bytes >= room.size_bytes
            self.reached["a queue was full of bytes" if full_of_bytes else "a queue was full of messages"] += 1
        paused = any(partition.paused for partition in self.group.owned.values())
        self._carry_out()
        yield None
        self.client.apply(plan)
        if self.client.broken:
            yield from self._start_over()
            return
        polled = yield from self.client.poll(self.rng.choice([0.1, 0.5] if paused else [0.2, 1.0, 3.0]))
        if isinstance(polled, tuple):
            self.say("cannot read", polled)
            self.group.fetch_failed(polled, self.now)
            return
        for place, records, end_offset in polled:
            yield None
            wanted = self.group.fetched(place, records, end_offset, RECORD_BYTES * len(records), self.now)
            self.ledger.fetched(self, place, records, wanted, self.now)
            self.say("fetched" if wanted else "dropped", place, records[0].offset, records[-1].offset)
            self._carry_out()

    def _start_over(self) -> Steps:
        """With a new client, which joins as somebody new."""
        self.reached["a client broke down"] += 1
        self._lose(join_anew=False)
        self._carry_out()
        yield from self.client.close(self.now + 5.0)
        self.client = SimulatedClient(self.world, self.name, self)
        self.world.spawn(self.process, f"{self.name} heartbeat", self.client.heartbeat())

    def _find_starts(self, places: Sequence[TopicPartition]) -> Steps:
        yield None
        starts = self.client.starts(places)
        yield None
        for place, (offset, committed) in starts.items():
            self.ledger.started(self, place, offset, committed, self.now)
            self.group.started(place, offset, committed=committed, now=self.now)
            self.say("starts", place, offset, "committed" if committed else "reset")
            if not committed and self.world.settings.reset == "latest" and place in self.group.owned:
                self._requested()
        self._carry_out()
        yield None

    # -- what the client tells, inside a poll

    def on_assigned(self, places: Sequence[TopicPartition]) -> None:
        self._has_to_rejoin = False
        self.ledger.assigned(self, self.group.assigned(places, self.now))
        self.reached["an assignment came while stopping"] += self.group.stopping and bool(places)
        self.say("assigned in generation", self.client.generation, *places)
        self._carry_out()

    def on_lost(self) -> None:
        self._lose(join_anew=False)
        self._carry_out()

    def on_revoke(self, places: Sequence[TopicPartition]) -> Steps:
        began = self.now
        self.say("asked to give back", *places)
        self.ledger.asked(self, places, "revoke", self.now, self.drain)
        leaving = self.group.revoke(places, self.now)
        require({p.place for p in leaving} <= set(places), "only what was asked for is handed over", self)
        self._handing_over = True
        self._carry_out()
        while True:
            yield None
            self.check_membership()
            self._advance()
            self._handing_over = not self.group.released(leaving)
            if not self._handing_over:
                break
            pause = min(LOOK_AGAIN_S, max(0.001, self.group.wake_at(self.now) - self.now))
            yield self._wait(self._rebalance_wakes, self.now + pause)
        self._within_bounds(began, "a hand-over")
        require(all(p.state >= State.REVOKED for p in leaving), "what is handed over is over", self)
        self.reached["a hand-over"] += bool(leaving)

    # -- the end

    def _wind_down(self) -> Steps:
        began = self.now
        while self.group.owned or (self.group.leftovers and self.now < began + self.drain):
            self.check_membership()
            self._advance()
            if self.group.owned or self.group.leftovers:
                yield self._wait(self._changed, self.now + LOOK_AGAIN_S)
        self._within_bounds(began, "a stop")
        self.reached["a stop left a stuck handler behind"] += bool(self.process.inside)

    def _leave(self) -> Steps:
        self._closed = True
        self.ledger.closed(self)
        self.group.close()
        self._changed.notify_all(self.now)
        self._carry_out()
        until = self.now + self.drain
        while self._committer_thread in self.world.threads and self.now < until:
            yield min(until, self.now + 0.05)
        yield from self.client.close(self.now + 5.0)
        self.say("left")
        self.ended = True
        self._jobs.extend([None] * self.world.settings.concurrency)
        self._jobs_come.notify_all(self.now)

    def _within_bounds(self, began: float, what: str) -> None:
        took = self.now - began
        bound = self.drain + FINAL_COMMIT_S + SLACK_S
        require(took <= bound or self.process.frozen_until >= began, f"{what} ends within its bound", self, took)

    # -- the workers

    def _worker(self) -> Steps:
        while True:
            while not self._jobs:
                yield self._wait(self._jobs_come, FOREVER)
            partition = self._jobs.popleft()
            if partition is None:
                return
            late = not self.world.calm and self.rng.random() < 0.05
            yield self.now + self.rng.uniform(0.1, 3.0) if late else None  # much may happen meanwhile
            self.check_membership()
            run = self.group.begin(partition, self.now)
            self.ledger.begun(self, partition, run, self.now)
            self._carry_out()
            if run is None:
                continue
            self.say("begins", run, f"attempt {run.attempt}")
            yield None
            failed = yield from self._handlers.call(run)
            yield from self.answers(partition)
            failed = failed or partition.failure is not None
            if failed and self._gives_up(run):
                self.send(partition)
                yield from self.answers(partition)
                if partition.failure is None:
                    self.say("sets aside", run)
                    self.ledger.set_aside(run, self.now)
                    self.group.set_aside(run, self.now)
                    self._carry_out()
                    yield None
                    continue
            self.ledger.run_ended(run, failed=failed, now=self.now)
            self.say("has failed" if failed else "has ended", run)
            self.group.end(run, failed=failed, now=self.now)
            self._carry_out()
            yield None

    def answers(self, partition: Partition) -> Steps:
        """Wait for what the run has sent."""
        while partition.unanswered:
            yield self._wait(self._changed, self.now + 1000.0)

    def _gives_up(self, run: Run) -> bool:
        gives_up = run.partition.gives_up(run)
        self.ledger.gives_up(run, gives_up)
        return gives_up

    def send(self, partition: Partition) -> None:
        """A message leaves; its answer comes some time."""
        send = partition.sending()
        self.say("sends", partition)
        self.ledger.sent(partition, send)
        delay = 0.0 if self.world.calm else self.rng.choice([0.0, 0.0, 0.01, 0.3, 6.0])
        failure = None if self.world.calm or self.rng.random() < 0.85 else Exception("refused")
        self.world.spawn(self.process, f"{self.name} answer", self._answer(partition, send, delay, failure))

    def _answer(self, partition: Partition, send: Send, delay: float, failure: Exception | None) -> Steps:
        yield self.now + delay
        self.say("refused" if failure else "acknowledged", partition)
        self.ledger.answered(partition, send, failure is not None, self.now)
        self.group.answered(partition, send, failure, self.now)
        self._carry_out()

    # -- what contexts ask

    def mark(self, partition: Partition, offset: int) -> bool:
        if not partition.over:
            self.check_membership()
        result = partition.mark(offset)
        self.say("mark", partition, offset, result)
        self.ledger.marked(partition, offset, result, self.now)
        self._carry_out()
        return result

    def redirect(self, partition: Partition, target: Any) -> None:
        self.check_membership()
        result = self.group.redirect(partition, target, self.now)
        self.say("seek", partition, target, result)
        self.ledger.redirected(partition, target, result)
        self._carry_out()

    def rest(self, partition: Partition, seconds: float) -> None:
        self.check_membership()
        result = self.group.rest(partition, self.now + seconds, self.now)
        self.say("pause", partition, seconds, result)
        self.ledger.rested(partition, self.now + seconds, result)
        self._carry_out()

    def request_commit(self, partition: Partition) -> None:
        if not partition.over:
            self.check_membership()
        if not partition.over:
            self._requested()
            self.group.request_commit()
        self._carry_out()

    def commit(self, partition: Partition, timeout: float) -> Steps:
        """Wait until everything stored is on the broker: True, False (not the owner) or None (timed out)."""
        o, until = self.ledger[partition], self.now + timeout
        wanted, seq = partition.version, o.seq
        if partition.committed_version < wanted:
            self._requested()
            self.group.request_commit()
        while partition.committed_version < wanted:
            self.check_membership()
            self._carry_out()
            if partition.state >= State.REVOKED:
                self.reached["a sync commit ended with the ownership"] += 1
                return False
            if partition.failure is not None:
                self.reached["a sync commit ended with a send that failed"] += 1
                return None
            if self.now >= until:
                self.reached["a sync commit timed out"] += 1
                return None
            yield self._wait(self._changed, min(self.now + LOOK_AGAIN_S, until))
        require(o.applied_seq >= seq, "a sync commit is on the broker when the call returns", partition)
        self.reached["a sync commit was acknowledged"] += 1
        return True

    def _requested(self) -> None:
        self.commit_requested_number = next(NUMBERS)
        if self.commit_requested_at is None:
            self.commit_requested_at = self.now

    # -- the committer

    def _committer(self) -> Steps:
        while True:
            while True:
                self._advance()
                commits = self.group.commit_batch(self.now)
                if all(o.acked for o in self.ledger.open[self].values()):
                    self.commit_requested_at = None
                if commits or self._closed:
                    break
                wake = self.group.wake_at(self.now)
                require(wake > self.now, "no committer spins", self)
                yield self._wait(self._changed, wake)
            if not commits:
                return
            self._is_asked_for(commits)
            if all(o.seq == o.backed.seq for o in self.ledger.open[self].values()):
                self.commit_requested_at = None  # else it waits for what was sent
            self.committing = True
            yield from self._commit(commits)
            self.committing = False
            self._carry_out()

    def _commit(self, commits: Sequence[Commit]) -> Steps:
        sent = self.ledger.batched(self.group, commits)
        topics = {o.place[0] for o, _, _ in sent}
        self._is_fair(topics)
        self.say("commits", *(f"{o.place[0]}-{o.place[1]}:{offset}" for o, offset, _ in sent))
        accepted = yield from self.client.commit(sent)
        self.ledger.count_tries(self, topics, accepted)
        if accepted:
            self._failed_topics = None
            self.ledger.acknowledged(sent, self.now)
            self.group.commit_succeeded(commits, self.now)
            return
        self.say("commit failed")
        self.reached["a commit failed"] += 1
        self._failed_topics = topics
        self._commit_not_before, self.commit_retry_at = (self.now + wait for wait in COMMIT_RETRY_S)
        self.check_membership()
        self.group.commit_failed(commits, self.now)

    def _is_asked_for(self, commits: Sequence[Commit]) -> None:
        """By the interval, somebody who waits, a hand-over, or a failure before; now and then once more."""
        releasing = any(commit.partition.state is State.RELEASING for commit in commits)
        interval = self.now >= self._committed_at + self.commit_interval - EPSILON
        asked = releasing or interval or self.commit_requested_at is not None or self._failed_topics is not None
        self._committed_at = self.now
        self._unasked = 0 if asked else self._unasked + 1
        # A topic that once refused makes each topic go by itself until it has had its turn, and once more.
        require(self._unasked <= 8, "commits keep to their interval", self, self._unasked)

    def _is_fair(self, topics: set[str]) -> None:
        """After a failure each topic goes by itself and in turn: one that refuses does not hold up the others."""
        pending = {o.place[0] for o in self.ledger.open[self].values() if o.committable}
        if self._failed_topics is not None:
            again = topics == self._failed_topics
            require(self.now >= self._commit_not_before - EPSILON, "a failed commit is tried again after a pause", self)
            alone = len(topics) == 1 or not self._failed_topics & pending
            require(alone, "after a failed commit each topic goes by itself", self, *topics)
            require(not (again and self._passed_over & pending), "after a failed commit topics take turns", *topics)
        self._passed_over = pending - topics
