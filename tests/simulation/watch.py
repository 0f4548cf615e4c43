"""The group, its ownerships and their marks as the runner has them; the ledger hears of all that is done to them.

Everything in here happens under the group's lock.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import ledger as books
from ledger import require
from parts import PartBook
from simulated_runner import make_client
from simulated_transactions import SimulatedTransactions

from karafka_lite.core.answers import Commit, Ended, Outcome, PollPlan, Refused, Undecided
from karafka_lite.core.exact import ExactOwnership
from karafka_lite.core.group import Group
from karafka_lite.core.marks import Marks, Refusal
from karafka_lite.core.options import Options, SeekTarget
from karafka_lite.core.ownership import Ownership, Run, State
from karafka_lite.core.parts import KeyMarks, KeyOwnership, PartMarks
from karafka_lite.core.sends import Held, Send
from karafka_lite.core.starts import Place, Start, Stray
from karafka_lite.core.units import UnitOwnership
from karafka_lite.errors import ProduceError
from karafka_lite.messages import TopicPartition

if TYPE_CHECKING:
    from simulated_runner import Life


class WatchedMarks(Marks):
    """Marks of user code, and sends."""

    __slots__ = ("book",)

    book: books.Book

    def mark(self, offset: int) -> bool:
        before = self.version
        result = super().mark(offset)
        book = self.book
        if self.version != before:
            require(self.version > book.version, "a version is used once", book, self.version)
            book.version = self.version
        if not book.automatic:  # what the group marks by itself the ledger knows by itself
            book.life.world.say(book.life, "mark", book.ownership, offset, result)
            book.ledger.marked(book, offset, result, book.life.world.now)
        return result

    def sending(self, count: int = 1) -> Send:
        send = super().sending(count)
        if not self.book.exact:
            for _ in range(count):
                self.book.ledger.sent(self.book, send)
        return send

    def try_again(self) -> None:
        super().try_again()
        if self.book.refused_seq is not None:
            self.book.refused_seq, self.book.commit_not_before, self.book.commit_retry_at = None, 0.0, 0.0

    def answered(self, send: Send, failure: BaseException | None, count: int = 1) -> None:
        book = self.book
        book.life.world.say(book.life, "refused" if failure else "acknowledged", count, book.ownership)
        if not book.exact:
            for _ in range(count):
                book.ledger.answered(book, send, failure, book.life.world.now)
        super().answered(send, failure, count)

    def give_up_answers(self, failure: BaseException) -> None:
        self.book.waits_no_more = True
        self.book.ledger.reached["a run waited for answers that did not come"] += 1
        super().give_up_answers(failure)


class WatchedKeyMarks(WatchedMarks, KeyMarks):
    """Of a partition whose batches have parts: what these have done is not marked by user code."""

    __slots__ = ()

    def add_done(self, *ranges: tuple[int, int]) -> None:
        book, automatic = self.book, self.book.automatic
        book.automatic = True
        super().add_done(*ranges)
        book.automatic = automatic


class WatchedPartMarks(PartMarks):
    """Marks of user code, and sends, of one part."""

    __slots__ = ("book", "within")

    book: PartBook

    def mark(self, offset: int) -> bool:
        book = self.book
        automatic, within = book.o.automatic, getattr(self, "within", False)
        self.within = True  # what is given up at the position is marked by that
        result = super().mark(offset)
        self.within = within
        if not automatic and not within:
            life = book.o.life
            life.world.say(life, "mark", book.run, offset, result)
            book.o.ledger.part_marked(book, offset, result, life.world.now)
        return result

    def add_done(self, *ranges: tuple[int, int]) -> None:
        self.within = True
        super().add_done(*ranges)
        self.within = False

    def sending(self, count: int = 1) -> Send:
        send = super().sending(count)
        for _ in range(count):
            self.book.o.ledger.part_sent(self.book, send)
        return send

    def answered(self, send: Send, failure: BaseException | None, count: int = 1) -> None:
        book = self.book
        life = book.o.life
        life.world.say(life, "refused" if failure else "acknowledged", count, book.run)
        for _ in range(count):
            book.o.ledger.part_answered(book, send, failure, life.world.now)
        super().answered(send, failure, count)


class WatchedOwnership(Ownership):
    """Whether a message is given up."""

    __slots__ = ()

    def gives_up(self, run: Run) -> bool:
        result = super().gives_up(run)
        self.marks.book.ledger.gives_up(run, result)  # type: ignore[attr-defined]
        return result

    def mark_alone(self, run: Run, offset: int) -> None:
        book = self.marks.book  # type: ignore[attr-defined]
        by_hand = not book.automatic
        if book.exact:
            pass
        elif by_hand and run.is_part:
            book.ledger.part_gave_up(run.marks.book, offset, book.life.world.now)  # type: ignore[attr-defined]
        elif by_hand:
            book.ledger.given_up_by_hand(book, offset, book.life.world.now)
        book.automatic = True
        super().mark_alone(run, offset)
        book.automatic = not by_hand


class WatchedKeyOwnership(WatchedOwnership, KeyOwnership):
    """The same, with parts."""

    __slots__ = ()


class WatchedExactOwnership(WatchedOwnership, ExactOwnership):
    """When user code has returned, and what was refused."""

    __slots__ = ()

    def returned(self, run: Run, *, failed: bool) -> None:
        super().returned(run, failed=failed)
        book = self.marks.book  # type: ignore[attr-defined]
        book.life.world.say(book.life, "has returned from", run, "with sends", len(self.marks.released))
        book.ledger.exact_returned(book, run, book.life.world.now)

    def refused(self, held: Held, error: ProduceError, now: float) -> None:
        reached, before = self.marks.book.ledger.reached, self.marks.last  # type: ignore[attr-defined]
        if held in self.marks.sends.held:
            reached["what was refused was not of the run that runs"] += not self.marks.sends.is_of_run(held)
            reached["what was refused was of a run that is over"] += self.run is None
        super().refused(held, error, now)
        reached["a message was refused, and the marks after it were void"] += self.marks.last != before


class WatchedUnitOwnership(WatchedExactOwnership, UnitOwnership):
    """The same, with parts."""

    __slots__ = ()


def owner(tp: TopicPartition, options: Options, predecessor: Ownership | None) -> Ownership:
    if options.exactly_once:
        return (WatchedUnitOwnership if options.parts else WatchedExactOwnership)(tp, options, predecessor)
    return (WatchedKeyOwnership if options.parts else WatchedOwnership)(tp, options, predecessor)


class WatchedGroup(Group):
    """Everything else."""

    def __init__(self, life: Life, *args: Any, **options: Any) -> None:
        self.life, self.ledger, self.books, self.say = (
            life,
            life.world.ledger,
            life.books,
            partial(life.world.say, life),
        )
        self._placing = False
        super().__init__(*args, **options, limits=life.limits)

    def assigned(self, tps: Collection[TopicPartition], now: float) -> list[Ownership]:
        self.ledger.assigned(self.life, tps)
        return super().assigned(tps, now)

    def _own(self, tp: TopicPartition) -> Ownership:
        self.ledger.replaced(self.life, tp, self.life.world.now)
        ownership = super()._own(tp)
        book = ownership.marks.book = self.ledger.owned(self.life, ownership)  # type: ignore[attr-defined]
        book.automatic = self._placing
        return ownership

    def _settle(self, ownership: Ownership, now: float) -> None:
        super()._settle(ownership, now)
        if ownership.state is State.RELEASING and ownership in self.ledger.books:
            book = self.ledger[ownership]
            book.released_at = book.released_at or now

    @contextmanager
    def _marking(self, ownership: Ownership) -> Iterator[None]:
        """What is marked meanwhile is not user code's."""
        book = self.ledger[ownership]
        book.automatic = True
        yield
        book.automatic = False

    def placed(self, places: Mapping[Ownership, Place], now: float) -> dict[TopicPartition, Start]:
        self.say("knows the places of", *places)
        self._placing = True
        with ExitStack() as stack:
            for ownership in places:
                stack.enter_context(self._marking(ownership))
            starts = super().placed(places, now)
        self._placing = False
        for ownership, place in places.items():
            self.ledger.placed(self.life, self.ledger[ownership], place, starts.get(ownership.tp), now)
        return starts

    def stray(self, strays: Mapping[TopicPartition, Stray], now: float) -> None:
        super().stray(strays, now)
        for tp, stray in strays.items():
            self.ledger.strayed(self.life, tp, stray)

    def found(self, ownership: Ownership, target: SeekTarget, offset: int, now: float) -> None:
        self.ledger.found(self.ledger[ownership], target, offset)
        super().found(ownership, target, offset, now)

    def revoke(self, tps: Iterable[TopicPartition], now: float) -> list[Ownership]:
        tps = list(tps)
        self.ledger.asked(self.life, tps, "revoke", now)
        leaving = super().revoke(tps, now)
        self.ledger.compare(self.life, now)
        require({o.tp for o in leaving} <= set(tps), "only what was asked for is handed over", self.life)
        return leaving

    def lose(self, now: float, *, rejoin: bool) -> list[Ownership]:
        self.ledger.lost(self.life, rejoin, now)
        lost = super().lose(now, rejoin=rejoin)
        if lost:
            self.say("has lost", *lost)
        self.ledger.compare(self.life, now)
        return lost

    def stop(self, now: float) -> None:
        self.say("stops")
        self.ledger.reached["a stop during a hand-over"] += self.life.member._handing_over
        self.ledger.asked(self.life, list(self.owned), "stop", now)
        super().stop(now)
        self.ledger.compare(self.life, now)

    def close(self, now: float) -> None:
        self.ledger.closed(self.life)
        super().close(now)

    def poll_plan(self, now: float) -> PollPlan:
        plan = super().poll_plan(now)
        self.ledger.planned(self.life, plan)
        return plan

    def applied(self, plan: PollPlan, now: float) -> None:
        super().applied(plan, now)
        self.ledger.carried_out(self.life, plan)

    def fetched(
        self, tp: TopicPartition, records: Sequence[Any], end_offset: int | None, size_bytes: int, now: float
    ) -> bool:
        wanted = super().fetched(tp, records, end_offset, size_bytes, now)
        self.say("has fetched" if wanted else "drops", tp, records[0].offset, records[-1].offset)
        self.ledger.fetched(self.life, tp, records, wanted, now)
        return wanted

    def fetch_failed(self, tp: TopicPartition, now: float) -> float | None:
        self.say("cannot read", tp)
        return super().fetch_failed(tp, now)

    def polled(self, positions: Any, ends: Any) -> None:
        super().polled(positions, ends)
        self.ledger.positions(self.life)

    def take_ready(self) -> list[Ownership]:
        ready = super().take_ready()
        for ownership in ready:
            self.ledger.enlisted(ownership)
        return ready

    def begin(self, ownership: Ownership, now: float) -> Run | None:
        run = super().begin(ownership, now)
        if run is not None:
            self.say("begins", run, f"attempt {run.attempt}")
        self.ledger.begun(self.life, ownership, run, now)
        return run

    def end(self, run: Run, *, failed: bool, now: float) -> dict[Run, Outcome]:
        self.say("has failed" if failed else "has ended", run)
        self.ledger.run_ended(run, failed=failed, now=now)
        with self._marking(run.ownership):
            outcomes = super().end(run, failed=failed, now=now)
        self.ledger.exact_out(self.ledger[run.ownership])
        if run.comes_again:
            for one, outcome in outcomes.items():
                self.ledger.ended(self.ledger[run.ownership], one, outcome, failed or one is not run, now)
        if run.is_part:
            told = [one for one in outcomes if one is not run or failed]
            require(not told or [one.beside for one in told].count(False) == 1, "one part tells of a failure", run)
        return outcomes

    def give_up(self, run: Run, *, now: float) -> dict[Run, Outcome]:
        self.say("gives up", run, run.culprit)
        tries = self.ledger.given_up(run, now)
        with self._marking(run.ownership):
            outcomes = super().give_up(run, now=now)
        self.ledger.exact_out(self.ledger[run.ownership])
        require(outcomes[run].given_up == tries, "the culprit is given up, and nobody else", run, outcomes)
        return outcomes

    def redirect(self, ownership: Ownership, target: SeekTarget, now: float) -> bool:
        running = ownership.run
        result = super().redirect(ownership, target, now)
        self.say("seek", ownership, target, result)
        require(ownership.run is running, "a running batch goes on", ownership)
        self.ledger.redirected(ownership, target, result)
        return result

    def pause(self, ownership: Ownership, until: float, now: float) -> bool:
        result = super().pause(ownership, until, now)
        self.say("pause", ownership, until - now, result)
        self.ledger.rested(ownership, until, result)
        return result

    def request_commit(self) -> None:
        self.books.requested(self.life.world.now)
        super().request_commit()

    def commit_batch(self, now: float) -> list[Commit]:
        commits = super().commit_batch(now)
        self.books.batched(commits, now)
        if commits:
            self.say("commits", *(f"{o}:{offset}" for o, offset, *_ in commits))
        return commits

    def wake_at(self, now: float) -> float:
        moment = super().wake_at(now)
        if self.life.world.current is self.life.member._committer:
            require(not self.books.found_nothing or moment > now, "no committer spins", self.life)
            self.books.wake_at = moment
        return moment

    def committed(self, commits: Iterable[Commit], refusals: Mapping[TopicPartition, Refusal], now: float) -> None:
        if refusals:
            self.say("is refused", *refusals)
        self.ledger.reached["a commit failed"] += bool(refusals)
        commits = list(commits)
        self.ledger.acknowledged(self.books.answered(commits, refusals, now), now)
        super().committed(commits, refusals, now)

    def transacted(self, commits: Collection[Commit], ended: Ended, now: float) -> list[Ownership]:
        self.say("transaction", type(ended).__name__, *(one.ownership for one in commits))
        self.books.undecided = isinstance(ended, Undecided)
        blamed = ended.held if isinstance(ended, Refused) else None
        others = {one.ownership: one.ownership.marks.last for one in commits if blamed and blamed not in one.sends}
        lost = super().transacted(commits, ended, now)
        hurt = [str(other) for other, last in others.items() if other.marks.last != last]
        require(not hurt, "who has sent nothing that was refused loses nothing", self.life, *hurt)
        self.books.undecided = False
        for one in self.books.ended(commits):  # it was refused, or is undecided
            one.book.refused = False
        return lost

    def advance(self, now: float) -> None:
        super().advance(now)
        self.ledger.compare(self.life, now)
        self.ledger.settled(self.life, now)

    def released(self, ownerships: Collection[Ownership]) -> bool:
        result = super().released(ownerships)
        over = all(self.ledger[o].ended or self.ledger[o].lost for o in ownerships)
        require(result is over, "partitions are handed over when they are over", self.life, result)
        return result


@contextmanager
def watched() -> Iterator[None]:
    """Have the runner's groups make ownerships and marks that are watched, and its members simulated clients."""
    with (
        patch("karafka_lite.client.consumer.Client", make_client),
        patch("karafka_lite.client.transactions.Transactions", SimulatedTransactions),
        patch("karafka_lite.core.group.owner", owner),
        patch("karafka_lite.core.parts.KeyMarks", WatchedKeyMarks),
        patch("karafka_lite.core.parts.PartMarks", WatchedPartMarks),
        patch("karafka_lite.core.ownership.Marks", WatchedMarks),
    ):
        yield
