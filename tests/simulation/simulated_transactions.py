"""Transactions of one member, and the brokers that they end at.

What the brokers do: offsets are refused unless they come from a member of the generation that is, and wait until the
transaction has ended; nobody is told where to begin as long as they wait. A producer that is replaced ends what the one
before it has left open; what nobody ends, the brokers abort after a while. Messages can be read, and offsets count,
from one and the same moment on.

What the member does is as in ``client.transactions``; a thread may be interrupted before and after each request.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from steps import Signal

from karafka_lite import errors
from karafka_lite.core.answers import Commit, Committed, Ended, Refused, Undecided
from karafka_lite.core.marks import Refusal
from karafka_lite.core.sends import Held, Receipt
from karafka_lite.errors import ProduceError
from karafka_lite.messages import Addressed, TopicPartition

if TYPE_CHECKING:
    from ledger import Sent
    from simulated_runner import Life
    from simulation import World

OPEN_S = 10.0  # after that, and up to as long again, the brokers abort a transaction
END_S = 10.0  # how long the answer to its end is waited for
REQUEST_S = 5.0


class Transaction:
    """What the brokers know of one."""

    def __init__(self, producer: object, now: float, patience: float) -> None:
        self.producer, self.expires = producer, now + OPEN_S + patience
        self.offsets: Sequence[Sent] = ()
        self.generation = -1
        self.messages: list[tuple[Sent, Addressed]] = []


class Producers:
    """The brokers' part: which producer of a member is the valid one, and what is open."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._valid: dict[object, object] = {}  # by transactional id
        self.open: list[Transaction] = []

    def init(self, transactional_id: object, producer: object) -> None:
        """Another producer of this id: what the one before it has left open is aborted."""
        before, self._valid[transactional_id] = self._valid.get(transactional_id), producer
        self.open = [one for one in self.open if one.producer is not before or before is None]

    def begin(self, producer: object) -> Transaction:
        transaction = Transaction(producer, self._world.now, self._world.rng.uniform(0.0, OPEN_S))
        self.open.append(transaction)
        return transaction

    def expire(self, now: float) -> None:
        for transaction in [one for one in self.open if now >= one.expires]:
            self._world.reached["brokers aborted a transaction that nobody ended"] += 1
            self._world.say("broker", "aborts a transaction of", *(one.book for one in transaction.offsets))
            self.open.remove(transaction)

    def waits(self, tp: TopicPartition) -> bool:
        """Whether nobody can say what is committed."""
        waits = any(one.book.tp == tp for transaction in self.open for one in transaction.offsets)
        self._world.reached["a start waited for a transaction"] += waits
        return waits

    def end(self, transaction: Transaction) -> bool:
        """Commit; False when it is not open any more."""
        if transaction not in self.open:
            return False
        self.open.remove(transaction)
        self._world.ledger.transacted(transaction.offsets, transaction.messages, transaction.generation)
        return True


class NotCommittedError(Exception):
    """For sure. ``lasting``: as in a ``Refusal``."""

    lasting: Literal["denied"] | None = None


class RefusedError(Exception):
    """A message of ``held`` was refused."""

    def __init__(self, held: Held) -> None:
        super().__init__("refused")
        self.held = held


class UndecidedError(errors.KarafkaLiteError):
    """The end of a transaction has no answer."""


class Trouble(NamedTuple):
    """Where a transaction breaks down: at its n-th step; how many steps it has is not known before."""

    refused_at: int | None = None
    fails_at: int | None = None
    end_is_lost: bool = False
    answer_is_lost: bool = False
    end_takes: float = 0.0


class SimulatedTransactions:
    """In the place of ``transactions.Transactions``."""

    def __init__(self, _group_id: str, _servers: object, _settings: object, emit: Any) -> None:
        self._life: Life = emit.__self__.life
        self._world = world = self._life.world
        self._rng, self._point, self._pause, self._reached = world.rng, world.point, world.pause, world.reached
        self._brokers = world.producers
        self._producer: object | None = None

    def check(self) -> None:
        self._point()
        try:
            self._connect()
        except NotCommittedError:
            self._point()

    def close(self) -> None:
        self._producer = None
        self._point()

    def commit(self, client: Any, commits: Collection[Commit], generation: int) -> Ended:
        sent = self._life.books.on_the_way(commits)
        refusals: Mapping[TopicPartition, Refusal] = {}
        self._life.books.transaction = sent
        try:
            self._point()
            stamp = client._stamp(generation)
            if stamp is None:
                raise NotCommittedError("not in this generation any more")
            session, generation = client.session, stamp
            refusals = {one.book.tp: client.of_an_old_topic for one in sent if client.is_of_an_old_topic(one)}
            sent = [one for one in sent if one.book.tp not in refusals]
            sends = {one.book.tp: one for one in sent}
            held = [(sends[tp], h) for tp, h in ((c.ownership.tp, h) for c in commits for h in c.sends) if tp in sends]
            if not sent:
                return Committed({}, refusals)
            self._reached["partitions shared a transaction"] += len(sent) > 1
            receipts = self._write(sent, held, session, generation)
        except RefusedError as refused:
            self._reached["a message of a transaction was refused"] += 1
            self._replace()
            return Refused(refused.held, ProduceError("refused"))
        except UndecidedError as undecided:
            self._replace()
            return Undecided(undecided)
        except NotCommittedError as error:
            self._reached["a transaction failed"] += 1
            self._replace()
            return Committed({}, {**{one.ownership.tp: Refusal(error, error.lasting) for one in commits}, **refusals})
        finally:
            self._life.books.transaction = ()
        self._reached["a transaction was committed"] += 1
        return Committed(receipts, refusals)

    def _connect(self) -> object:
        self._producer = None
        if self._life.client.link_down:
            self._pause(self._world.now + REQUEST_S)
            raise NotCommittedError("the link is down")
        producer = object()
        self._brokers.init(self, producer)
        self._point()
        if not self._world.calm and self._rng.random() < 0.05:
            raise NotCommittedError("the answer of a coordinator is lost")
        self._producer = producer
        return producer

    def _replace(self) -> None:
        if self._producer is None:
            return
        self._producer = None
        self._point()
        if not self._world.calm and self._rng.random() < 0.2:
            self._reached["a transaction was left open"] += 1
            return
        try:
            self._connect()
        except NotCommittedError:
            self._point()

    def _trouble(self, steps: int) -> Trouble:
        rng, world = self._rng, self._world
        if world.calm:
            return Trouble()
        kind = rng.choices(["none", "refused", "failed", "end"], [100, *world.settings.broken])[0]
        if kind == "refused":
            return Trouble(refused_at=rng.randrange(steps + 1))
        if kind == "failed":
            return Trouble(fails_at=rng.randrange(steps + 1))
        if kind == "none":
            return Trouble(end_takes=rng.choice([0.0, 0.0, 0.01, 0.3]))
        lost, unanswered = rng.choice([(True, False), (False, True), (False, False)])
        return Trouble(None, None, lost, unanswered, rng.choice([0.01, 5.0, 9.0, 12.0, 20.0]))

    def _write(
        self,
        sent: Sequence[Sent],
        sends: Sequence[tuple[Sent, Held]],
        session: int | None,
        generation: int,
    ) -> Mapping[Held, Sequence[Receipt]]:
        world, rng, began = self._world, self._rng, self._world.now
        producer = self._producer or self._connect()
        world.say(self._life, "begins a transaction of", *(one.book for one in sent))
        transaction = self._brokers.begin(producer)
        messages = [(one, held, message) for one, held in sends for message in held.messages]
        trouble, offsets_at = self._trouble(len(messages)), rng.randrange(len(messages) + 1)
        for step in range(len(messages) + 1):
            self._request(transaction, began)
            if trouble.fails_at == step:
                raise NotCommittedError("no broker")
            if step == offsets_at:
                if not world.broker.accepts(session, generation):
                    self._reached["a stale transaction was refused by the broker"] += 1
                    raise NotCommittedError("of another generation")
                self._may_be_refused(sent)
                transaction.offsets, transaction.generation = sent, generation
            if step < len(messages):
                one, held, message = messages[step]
                if trouble.refused_at == step:
                    raise RefusedError(held)
                transaction.messages.append((one, message))
        self._request(transaction, began)
        self._end(transaction, trouble)
        return {held: [self._world.ledger.receipt(message) for message in held.messages] for _, held in sends}

    def _may_be_refused(self, sent: Sequence[Sent]) -> None:
        """Because of one partition none is committed."""
        world = self._world
        for topic in {one.book.tp[0] for one in sent}:
            if world.now < world.refused_until.get(topic, 0.0):
                error = NotCommittedError("refused")
                error.lasting = "denied" if world.refused_for_good.get(topic) == "denied" else None
                raise error

    def _request(self, transaction: Transaction, began: float) -> None:
        """One request and its answer."""
        rng, world = self._rng, self._world
        if rng.random() < world.settings.slow:
            self._pause(world.now + (0.0 if world.calm else rng.choice([0.0, 0.01, 0.3, 2.0, 6.0])))
        else:
            self._point()
        if self._life.client.link_down:
            self._pause(world.now + REQUEST_S)
            raise NotCommittedError("the link is down")
        if transaction not in self._brokers.open or world.now > began + OPEN_S:
            raise NotCommittedError("it took too long")

    def _end(self, transaction: Transaction, trouble: Trouble) -> None:
        """The last request: from here on it may be committed, whatever is known of it here."""
        world, until = self._world, self._world.now + END_S
        answer, answered = list[bool](), Signal()

        def arrive() -> None:
            world.pause(world.now + trouble.end_takes)
            ended = not trouble.end_is_lost and self._brokers.end(transaction)
            left = not self._life.books.transaction or world.now >= until
            self._reached["the end of a transaction came when nobody waited for it"] += ended and left
            self._reached["the end of a transaction came too late"] += not ended and not trouble.end_is_lost
            self._reached["a transaction was committed, and nobody knew"] += ended and trouble.answer_is_lost
            if not trouble.end_is_lost and not trouble.answer_is_lost:
                answer.append(ended)
                answered.wake_all(world.now)

        world.spawn(None, "end of a transaction", arrive)
        while not answer and world.now < until:
            self._pause(until, answered)
        if answer != [True]:
            self._reached["a transaction was undecided"] += 1
            raise UndecidedError("the end of a transaction has no answer")
