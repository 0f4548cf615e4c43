"""The Kafka client of a member: positions, fetches, the join with its listener, heartbeats, commits that get lost.

It behaves as kafka-python behind ``client.py`` does: rebalances happen inside ``poll``, the client moves its
position as soon as records are polled, and what it knows of its membership may be old, and may turn back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from steps import Steps

from karafka_lite.core.group import PollPlan
from karafka_lite.messages import TopicPartition

if TYPE_CHECKING:
    from ledger import Ownership
    from simulation import World

Sent = list[tuple["Ownership", int, int]]  # the owner, the offset, and which of the owner's stores it is

NO_GENERATION = -1
SESSION_S = 6.0  # after which a member thinks that it is lost
REQUEST_S = 5.0
FINE = "fine"


class Listener(Protocol):
    """What the client tells at a rebalance."""

    def on_assigned(self, places: Sequence[TopicPartition]) -> None: ...
    def on_revoke(self, places: Sequence[TopicPartition]) -> Steps:
        """Goes on until the places may be given away."""

    def on_lost(self) -> None: ...


class Fetch:
    """The client's memory of an assigned partition; a new one for each assignment."""

    __slots__ = ("paused", "position")

    def __init__(self) -> None:
        self.position: int | None = None
        self.paused = False


class SimulatedClient:
    """One client, from its first join to its leaving."""

    def __init__(self, world: World, name: str, listener: Listener) -> None:
        self._world, self._broker, self._rng, self._reached = world, world.broker, world.rng, world.reached
        self._name = name
        self._listener = listener
        self.session: int | None = None
        self.generation = NO_GENERATION
        self.joining = False  # waits for the answer to a JoinGroup
        self.link_down_until = 0.0
        self.broken = False
        self._closed = False
        self._assignment: dict[TopicPartition, Fetch] = {}
        self._rejoin_needed = True
        self._given_back = False  # for the join that is under way
        self._heard_at = float("-inf")
        self._late_commits: list[Callable[[], bool]] = []  # sent, not yet read by the broker; in order

    @property
    def now(self) -> float:
        return self._world.now

    @property
    def link_down(self) -> bool:
        return self.now < self.link_down_until

    def lost(self) -> bool:
        """What the client knows of its membership."""
        return self.generation == NO_GENERATION or self.now - self._heard_at > SESSION_S

    # -- the poller's

    def starts(self, places: Sequence[TopicPartition]) -> dict[TopicPartition, tuple[int, bool]]:
        """Where ``places`` begin, and whether that is committed; the cluster may not be able to say it now."""
        starts = {}
        for place in places:
            if self.link_down or (not self._world.calm and self._rng.random() < 0.1):
                continue
            log = self._broker.logs[place]
            reset = log.end if self._world.settings.reset == "latest" else log.start
            committed = self._broker.committed.get(place)
            starts[place] = (reset, False) if committed is None else (committed, True)
        return starts

    def apply(self, plan: PollPlan) -> None:
        if plan.join_anew:
            self._reached["the client was told to join anew"] += self.generation != NO_GENERATION
            self._rejoin_needed = True
        for place, offset in plan.seeks.items():
            if place in self._assignment:
                self._assignment[place].position = offset
        for places, paused in ((plan.pause, True), (plan.resume, False)):
            for place in places:
                if place in self._assignment:
                    self._assignment[place].paused = paused
                    self._reached["a partition was paused" if paused else "a partition was resumed"] += 1

    def poll(self, timeout: float) -> Steps:
        """Join if need be, then wait for records. Returns what was polled, or the place that cannot be read."""
        until = self.now + timeout
        while True:
            if self._rejoin_needed or self.generation == NO_GENERATION:
                yield from self._join()
            if not self._given_back and (polled := self._take_records()):
                break
            if self.now >= until:
                return []
            self._world.listen(self._world.data_come)
            yield min(until, self.now + 0.5)
        if not self._world.calm and self._rng.random() < 0.02:
            self._reached["a fetch failed"] += 1
            return self._rng.choice(polled)[0]
        for place, records, _ in polled:  # whatever comes before they are delivered
            self._assignment[place].position = records[-1].offset + 1
        return polled

    def _take_records(self) -> list[tuple[TopicPartition, list[Any], int]]:
        if self.link_down:
            return []
        polled = []
        for place, fetch in self._assignment.items():
            if fetch.paused or self._rng.random() < 0.2:
                continue
            log = self._broker.logs[place]
            if fetch.position is None:  # nobody has told it where: it finds a position by itself
                fetch.position = self._broker.committed.get(place, log.end if self._rng.random() < 0.5 else log.start)
            if records := log.read(fetch.position, self._rng.randint(1, self._world.settings.poll_records)):
                polled.append((place, records, log.end))
        self._rng.shuffle(polled)
        return polled

    def close(self, until: float) -> Steps:
        """Leave the group; LeaveGroup would wait behind a join that is under way."""
        while self.joining and not self.link_down and self.now < until:
            yield self.now + 0.1
            self._take_answer()
        self._closed = True
        if not self.link_down:
            self._broker.leave(self.session, self.now)

    # -- the rebalance, inside a poll

    def _join(self) -> Steps:
        """Give back everything, join, take what comes; the answer may come in a later poll."""
        if not self._given_back:
            if self.generation == NO_GENERATION and self._assignment:
                self._listener.on_lost()
            else:
                yield from self._listener.on_revoke(list(self._assignment))
            self._assignment = {}  # the cure: else the client keeps positions and pauses
            self._given_back = True
            yield None
        until = self.now + 1.0
        while self._given_back and self.now < until:
            if self.link_down:
                yield until
                continue
            if not self.joining:
                self.session = self._broker.join(self.session, self.now)
                self.joining = True
                self._world.say(self._name, "joins as", self.session)
            yield self.now + self._rng.choice([0.0, 0.1, 0.5])
            self._take_answer()

    def _take_answer(self) -> None:
        answer = self._broker.sync(self.session or 0)
        self.joining = answer == "wait"
        if answer == "unknown":
            self.generation, self.session = NO_GENERATION, None
        if isinstance(answer, tuple):
            self.generation, places = answer
            self._given_back = self._rejoin_needed = False
            self._heard_at = self.now
            self._assignment = {place: Fetch() for place in places}
            self._listener.on_assigned(places)

    # -- its own threads

    def heartbeat(self) -> Steps:
        while not self._closed:
            yield self.now + self._rng.uniform(0.5, 2.0)
            if self.link_down or self.joining or self.generation == NO_GENERATION:
                continue
            lost = self.lost()
            answer = self._broker.heartbeat(self.session, self.generation, self.now)
            if answer == "unknown":
                self.generation, self.session, self._rejoin_needed = NO_GENERATION, None, True
                self._world.say(self._name, "learns that it was evicted")
                continue
            self._reached["a loss that turned back"] += lost
            self._heard_at = self.now
            self._rejoin_needed |= answer == "rebalance"

    # -- the committer's

    def commit(self, sent: Sent) -> Steps:
        """The request and its answer: whether the broker has said yes. Else it may have happened all the same."""
        session, generation = self.session, self.generation
        yield None
        if not self._world.settings.commits_keep_their_generation:
            yield self.now + self._rng.choice([0.0, 0.0, 4.0])  # it looks for the coordinator, or tries again,
            session, generation = self.session, self.generation  # and takes the generation that it has when it sends
        if generation == NO_GENERATION or self.joining:
            return False
        outcomes = [FINE, "refused", "timeout", "happened", "late"]
        outcome = FINE if self._world.calm else self._rng.choices(outcomes, [80, 6, 4, 5, 5])[0]
        if self.link_down or outcome == "timeout":
            yield self.now + REQUEST_S
            return False
        yield self.now + self._rng.choice([0.0, 0.005, 0.3])
        counts = [entry for entry in sent if self.now >= self._world.refused_until.get(entry[0].place[0], 0.0)]
        if outcome == "refused" or len(counts) < len(sent):
            self._reached["a topic refused its commits"] += len(counts) < len(sent)
            if outcome != "refused":
                self._arrives(counts, session, generation)  # the others count all the same
            return False
        if outcome == "late":
            self._late_commits.append(lambda: self._arrives(sent, session, generation))
            self._world.spawn(None, "late commit", self._arrives_late(self._late_commits[-1]))
            yield self.now + REQUEST_S
            return False
        while self._late_commits:  # one connection: what was sent before is read before
            self._late_commits.pop(0)()
        accepted = self._arrives(sent, session, generation)
        if outcome == "happened":
            self._reached["a commit timed out but happened"] += accepted
            yield self.now + REQUEST_S
            return False
        yield self.now + self._rng.choice([0.0, 0.005, 0.3])
        return accepted

    def _arrives(self, sent: Sent, session: int | None, generation: int) -> bool:
        accepted = self._broker.accepts(session, generation)
        self._world.say("broker", "accepts" if accepted else "refuses", self._name, generation)
        if accepted:
            self._world.ledger.applied(sent, generation)
        self._reached["a stale commit was refused by the broker"] += not accepted
        self._reached["a commit arrived when its ownership was over"] += accepted and any(o.ended for o, _, _ in sent)
        return accepted

    def _arrives_late(self, arrive: Callable[[], bool]) -> Steps:
        yield self.now + self._rng.uniform(REQUEST_S, 3 * REQUEST_S)
        while arrive in self._late_commits:
            self._reached["a commit arrived late"] += self._late_commits.pop(0)()
