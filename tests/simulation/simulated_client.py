"""The Kafka client of a member: positions, fetches, the join with its listener, heartbeats, commits that get lost.

It behaves as kafka-python does: rebalances happen inside ``poll``, the client moves its position as soon as records are
polled, and what it knows of its membership may be old, and may turn back. Beyond that it does what nothing forbids: an
answer of ``places`` may come after a rebalance, and a client that was replaced may still report one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from steps import Signal

from karafka_lite import errors
from karafka_lite.client.protocol import Client, Fetched
from karafka_lite.core.answers import Commit, PollPlan
from karafka_lite.core.marks import Refusal
from karafka_lite.core.options import SeekTarget
from karafka_lite.core.starts import Note, Place, Stray
from karafka_lite.errors import StrayedError
from karafka_lite.messages import TopicPartition

if TYPE_CHECKING:
    from ledger import Sent
    from simulated_runner import Life

    from karafka_lite.runner import Member

NO_GENERATION = -1
SESSION_S = 6.0  # after which a member thinks that it is lost
REQUEST_S = 5.0
JOINING_POLL_S = 1.0
CLOSE_S = 5.0
RECORD_BYTES = 7
FINE = "fine"


class Broken(errors.ClientBrokenError):
    """kafka-python itself is broken."""


class Fetch:
    """The client's memory of an assigned partition; a new one for each assignment."""

    __slots__ = ("paused", "position")

    def __init__(self) -> None:
        self.position: int | None = None
        self.paused = False


class SimulatedClient:
    """One client, from its first join to its leaving."""

    def __init__(self, life: Life, member: Member) -> None:
        self._life, self._world, self._member = life, life.world, member
        world = self._world
        self._broker, self._rng, self._reached = world.broker, world.rng, world.reached
        self._point, self._pause = world.point, world.pause
        self.reset = world.settings.reset
        self.session: int | None = None
        self.joining = False  # waits for the answer to a JoinGroup
        self.link_down_until = 0.0
        self.broken = False  # the next call of the poller's shows it
        self.reporting = False  # it is calling its member
        self.assignment: dict[TopicPartition, Fetch] = {}
        self._generation = NO_GENERATION
        self._topics: set[str] = set()  # that are subscribed
        self._joined_for: set[str] = set()  # those of the last JoinGroup
        self._closed = False
        self._rejoin_needed = True
        self._given_back = False  # for the join that is under way
        self._heard_at = float("-inf")
        self._rebalance_wakes = Signal()
        self._woken = False  # the poll has to end
        self._late_commits: list[Callable[[], bool]] = []  # sent, not yet read by the broker; in order
        self._topic_ids = dict(self._broker.topic_ids)  # as the metadata have them
        self._strays: dict[TopicPartition, Stray] = {}  # of the last fetch
        self.asked_for: dict[TopicPartition, object] = {}  # whose start was asked for last

    @property
    def link_down(self) -> bool:
        return self._world.now < self.link_down_until

    # -- never blocks

    def lost(self, now: float) -> bool:
        return self._generation == NO_GENERATION or now - self._heard_at > SESSION_S

    def generation(self) -> int:
        return self._generation

    def wake(self) -> None:
        self._woken = True
        self._world.data_come.wake_all(self._world.now)

    def wake_rebalance(self) -> None:
        self._rebalance_wakes.wake_all(self._world.now)

    # -- the poller's

    def connect(self) -> None:
        self._point()
        if self.link_down and self._rng.random() < 0.5:
            self._pause(self._world.now + 2.0)
            raise errors.BrokerUnavailableError("the link is down")
        self._world.spawn(self._life.process, f"{self._life} heartbeat", self._heartbeat)
        self._point()

    def ensure_topics(self, topics: Collection[str]) -> Collection[str]:
        self._point()
        return ()

    def missing_topics(self, topics: Collection[str]) -> set[str]:
        self._begin()
        if self.link_down:
            self._pause(self._world.now + REQUEST_S)
            raise errors.PollError("no answer")
        missing = {topic for topic in topics if self._world.now < self._world.hidden_until.get(topic, 0.0)}
        self._reached["all topics were missing after the subscription"] += bool(self._topics) and missing == set(topics)
        self._point()
        return missing

    def subscribe(self, topics: Collection[str]) -> None:
        self._begin()
        self._topics = set(topics)
        self._rejoin_needed = True
        self._world.say(self._life, "subscribes to", *sorted(topics))
        self._point()

    def places(self, tps: Collection[TopicPartition]) -> dict[TopicPartition, Place]:
        """The cluster may not be able to say it now, or late."""
        self._begin()
        places: dict[TopicPartition, Place] = {}
        broker = self._broker
        for tp in tps:
            if self.link_down or (not self._world.calm and self._rng.random() < 0.1) or self._world.producers.waits(tp):
                continue
            log, committed = broker.logs[tp], broker.committed.get(tp)
            of_topic = [other for other in broker.logs if other[0] == tp[0]]
            places[tp] = Place(
                *(log.start, log.end, log.end, committed, broker.notes.get(tp, Note()), log.topic_id, len(of_topic)),
                siblings=[broker.notes[other] for other in of_topic if other in broker.notes],
            )
        self.asked_for = {tp: self._life.books.open.get(tp) for tp in tps}
        if not self._world.calm and self._rng.random() < 0.05:
            self._answer_late()
        self._point()
        return places

    def _answer_late(self) -> None:
        """Rebalances come first."""
        until = self._world.now + self._rng.choice([0.1, 3.0, 15.0])
        if self._rng.random() < 0.5:
            self._broker.rebalance(self._world.now)
            self._rejoin_needed = True
        while self._world.now < until and not self.broken and not self._member.group.stopping:
            if self._rejoin_needed or self._generation == NO_GENERATION:
                self._join()
            self._pause(self._world.now + 0.2)

    def offset_of(self, tp: TopicPartition, target: SeekTarget) -> int | None:
        self._begin()
        if self.link_down or (not self._world.calm and self._rng.random() < 0.1):
            return None
        assert target == "earliest"
        start = self._broker.logs[tp].start
        self._point()
        return start

    def apply(self, plan: PollPlan) -> None:
        self._begin()
        if not self._world.calm and self._rng.random() < 0.03:
            raise errors.PollError("nothing was done")
        if plan.rejoin:
            self._reached["the client had to join again"] += self._generation != NO_GENERATION
            self._rejoin_needed = True
        for ownership, offset in plan.seeks.items():
            if ownership.tp in self.assignment:
                self.assignment[ownership.tp].position = offset
        for ownerships, paused in ((plan.pause, True), (plan.resume, False)):
            for ownership in ownerships:
                if ownership.tp in self.assignment:
                    self.assignment[ownership.tp].paused = paused
                    self._reached["a partition was paused" if paused else "a partition was resumed"] += 1
        self._point()

    def poll(self) -> Sequence[Fetched]:
        """Join if need be, then wait for records."""
        self._begin()
        world, rng = self._world, self._rng
        if not world.calm and rng.random() < 0.02:
            raise errors.PollError("this poll failed")
        until = world.now + rng.choice([0.1, 0.2, 0.5, 1.0, 3.0])
        while True:
            if self.broken:
                raise Broken
            if self._rejoin_needed or self._generation == NO_GENERATION:
                self._join()
                if rng.random() < 0.5:
                    return []
            if not self._given_back:
                self._look_for_new_topics()
            if not self._given_back and (fetched := self._take_records()):
                break
            if self._strays:
                self._reached["retention was faster"] += 1
                raise StrayedError(self._strays)
            if self._woken or world.now >= until:
                self._woken = False
                return []
            self._pause(min(until, world.now + 0.5), world.data_come)
        if not world.calm and rng.random() < 0.02:
            self._reached["a fetch failed"] += 1
            (topic, partition), *_ = rng.choice(fetched)
            raise errors.FetchError("corrupt", topic, partition, 0)
        for tp, records, *_ in fetched:  # whatever comes before they are queued
            self.assignment[tp].position = records[-1].offset + 1
        self._point()
        return fetched

    def _begin(self) -> None:
        self._point()
        if self.broken:
            raise Broken

    def _look_for_new_topics(self) -> None:
        if self.link_down:
            return
        before, self._topic_ids = self._topic_ids, dict(self._broker.topic_ids)
        strays = {tp: Stray(None) for tp in self.assignment if before[tp[0]] != self._topic_ids[tp[0]]}
        if strays:
            raise StrayedError(strays)

    def _take_records(self) -> list[Fetched]:
        if self.link_down:
            return []
        fetched = []
        self._strays = {}
        for tp, fetch in self.assignment.items():
            if fetch.paused or self._rng.random() < 0.2:
                continue
            log = self._broker.logs[tp]
            if fetch.position is None:  # it was not moved yet
                continue
            if fetch.position < log.start:
                self._strays[tp] = Stray(fetch.position)
                continue
            if records := log.read(fetch.position, self._rng.randint(1, self._world.settings.poll_records)):
                fetched.append(Fetched(tp, records, log.end, RECORD_BYTES * len(records)))
        self._rng.shuffle(fetched)
        return fetched

    def positions(self) -> dict[TopicPartition, int]:
        return {tp: fetch.position for tp, fetch in self.assignment.items() if fetch.position is not None}

    def ends(self) -> dict[TopicPartition, int]:
        return {}

    def close(self) -> Exception | None:
        """Leave the group, and call the listener for what is still assigned."""
        self._point()
        world, until = self._world, self._world.now + CLOSE_S
        while self.joining and not self.link_down and world.now < until:
            self._pause(world.now + 0.1)
            self._take_answer()
        self._closed = True
        before = list(self.assignment)
        self._end_assignment(until)
        if not self.link_down:
            self._broker.leave(self.session, world.now)
        self._generation, self.session = NO_GENERATION, None
        if self.broken and not world.calm and self._rng.random() < 0.7:
            world.spawn(self._life.process, f"{self._life} stranger", lambda: self._report_late(before))
        self._point()
        return None

    def _report_late(self, tps: Sequence[TopicPartition]) -> None:
        """Its IO thread lives a little longer than it should."""
        self._pause(self._world.now + self._rng.choice([0.0, 0.1, 3.0, 10.0]))
        if self._life.member._client is self:  # nothing has taken its place
            return
        self._reached["a replaced client reported"] += 1
        report = self._rng.choice(["lost", "revoke", "assigned"])
        self._world.say(self._life, "a replaced client reports", report)
        if report == "lost":
            self._member.on_lost(self)
        elif report == "assigned":
            self._member.on_assigned(self, tps)
        else:
            self._wait_for(self._member.on_revoke(self, tps), self._world.now + CLOSE_S)

    # -- the rebalance, inside a poll

    def _join(self) -> None:
        """Give back everything, join, take what comes; the answer may come in a later poll."""
        if not self._given_back:
            self._end_assignment()
            self._given_back = True
            self._point()
        world, until = self._world, self._world.now + JOINING_POLL_S
        while self._given_back and world.now < until and not self.broken:
            if self.link_down:
                self._pause(until)
                continue
            if not self.joining:
                self.session = self._broker.join(self.session, self._topics, world.now)
                self.joining, self._joined_for = True, self._topics
                world.say(self._life, "joins as", self.session)
            self._pause(world.now + self._rng.choice([0.0, 0.1, 0.5]))
            self._take_answer()

    def _end_assignment(self, until: float = float("inf")) -> None:
        """Call the listener; then the client forgets positions and pauses."""
        if self._generation == NO_GENERATION and self.assignment:
            self._report(self._member.on_lost)
        else:
            tps = sorted(self.assignment)
            self._world.say(self._life, "is asked to give back", *tps)
            began = self._world.now
            self._wait_for(self._report(self._member.on_revoke, tps), until)
            if not self._closed:
                self._life.books.handed_over(tps, began)
        self.assignment = {}

    def _wait_for(self, question: Callable[[], float | None], until: float) -> None:
        while self._world.now < until:
            self._point()
            seconds = question()
            if seconds is None:
                return
            self._pause(self._world.now + seconds, self._rebalance_wakes)

    def _report(self, call: Callable[..., Any], *values: object) -> Any:
        self.reporting = True
        try:
            return call(self, *values)
        finally:
            self.reporting = False

    def _take_answer(self) -> None:
        answer = self._broker.sync(self.session or 0)
        self.joining = answer == "wait"
        if answer == "unknown":
            self._generation, self.session = NO_GENERATION, None
        if isinstance(answer, tuple):
            self._generation, tps = answer
            self._heard_at = self._world.now
            self._point()  # the generation is known before the listener is called
            self._given_back = False
            self._rejoin_needed = self._joined_for != self._topics  # by now
            self.assignment = {tp: Fetch() for tp in tps}
            self._world.say(self._life, "is assigned in generation", self._generation, *tps)
            self._report(self._member.on_assigned, tps)

    # -- a thread of its own

    def _heartbeat(self) -> None:
        world = self._world
        while not self._closed:
            self._pause(world.now + self._rng.uniform(0.5, 2.0))
            if self._closed or self.link_down or self.joining or self._generation == NO_GENERATION:
                continue
            lost = self.lost(world.now)
            answer = self._broker.heartbeat(self.session, self._generation, world.now)
            if answer == "unknown":
                self._generation, self.session, self._rejoin_needed = NO_GENERATION, None, True
                world.say(self._life, "learns that it was evicted")
                continue
            self._reached["a loss that turned back"] += lost
            self._heard_at = world.now
            self._rejoin_needed |= answer == "rebalance"

    # -- the committer's

    def commit(self, commits: Collection[Commit], generation: int) -> dict[TopicPartition, Refusal]:
        """The request and its answer. Without one it may have happened all the same."""
        sent = self._life.books.on_the_way(commits)
        failed = self._commit(sent, generation)
        return (
            dict.fromkeys((one.book.tp for one in sent), Refusal(failed)) if isinstance(failed, Exception) else failed
        )

    def _commit(self, sent: Sequence[Sent], generation: int) -> dict[TopicPartition, Refusal] | Exception:
        self._point()
        if self._rng.random() < 0.3:
            self._pause(self._world.now + self._rng.choice([0.01, 4.0]))  # it looks for the coordinator
        stamp = self._stamp(generation)
        if stamp is None or self.joining or self._closed:
            return errors.CommitError("not in this generation any more")
        session, generation = self.session, stamp
        outcomes = [FINE, "refused", "timeout", "happened", "late"]
        outcome = FINE if self._world.calm else self._rng.choices(outcomes, [77, 6, 4, 5, 8])[0]
        if self.link_down or outcome == "timeout":
            self._pause(self._world.now + REQUEST_S)
            return errors.CommitError("no answer")
        self._pause(self._world.now + self._rng.choice([0.0, 0.005, 0.3]))
        refusals = {one.book.tp: self._refusal_of(one) for one in sent}
        refused = {tp: refusal for tp, refusal in refusals.items() if refusal is not None}
        sent = [one for one in sent if one.book.tp not in refused]
        if outcome == "refused":
            return errors.CommitError("refused")
        if outcome == "late":
            self._late_commits.append(lambda: self._arrives(sent, session, generation))
            self._world.spawn(None, "late commit", lambda arrive=self._late_commits[-1]: self._arrives_late(arrive))
            self._pause(self._world.now + REQUEST_S)
            return errors.CommitError("no answer")
        while self._late_commits:  # one connection: what was sent before is read before
            self._late_commits.pop(0)()
        accepted = self._arrives(sent, session, generation)
        if outcome == "happened":
            self._reached["a commit timed out but happened"] += accepted
            self._pause(self._world.now + REQUEST_S)
            return errors.CommitError("no answer")
        self._pause(self._world.now + self._rng.choice([0.0, 0.005, 0.3]))
        self._reached["a commit was refused for some of its partitions"] += accepted and bool(sent and refused)
        return refused if accepted else errors.CommitError("refused")

    def _refusal_of(self, sent: Sent) -> Refusal | None:
        """Of that partition alone."""
        topic = sent.book.tp[0]
        if self.is_of_an_old_topic(sent):
            return self.of_an_old_topic
        if self._world.now >= self._world.refused_until.get(topic, 0.0):
            return None
        lasting = self._world.refused_for_good.get(topic)
        self._reached["a topic refused its commits" + (" for good" if lasting else "")] += 1
        return Refusal(errors.CommitError("refused"), lasting)

    of_an_old_topic = Refusal(errors.CommitError("of a topic that was made anew"), "gone")

    def is_of_an_old_topic(self, sent: Sent) -> bool:
        """As far as it knows."""
        return sent.book.ownership.note.topic_id != self._topic_ids[sent.book.tp[0]]

    def _stamp(self, generation: int) -> int | None:
        """The generation that the request carries: in one step with the sending. None: it is not sent."""
        return generation if self._generation == generation else None

    def _arrives(self, sent: Sequence[Sent], session: int | None, generation: int) -> bool:
        accepted = self._broker.accepts(session, generation)
        self._world.say("broker", "accepts" if accepted else "refuses", self._life, generation)
        if accepted:
            self._world.ledger.applied(sent, generation)
        self._reached["a stale commit was refused by the broker"] += not accepted
        ended = any(one.book.ended for one in sent)
        self._reached["a commit arrived when its ownership was over"] += accepted and ended
        return accepted

    def _arrives_late(self, arrive: Callable[[], bool]) -> None:
        self._pause(self._world.now + self._rng.uniform(REQUEST_S, REQUEST_S * self._rng.choice([1.2, 3.0])))
        while arrive in self._late_commits:
            self._reached["a commit arrived late"] += self._late_commits.pop(0)()


_: type[Client] = SimulatedClient
