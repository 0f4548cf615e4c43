"""The ledger's books of partitions with ``exactly_once``, which are simpler, and stricter.

A handler makes one output of each message, or sends it to the dead letters. When messages become visible, and when an
offset is committed, the log of the partition is looked at: what was made of each message below the committed offset is
visible, once, and nothing else is. From that follows what is stored, marked, void and repeated; only when things happen
is checked as for all partitions.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import Future
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from greenlet import getcurrent

from karafka_lite.core.ownership import Run, State
from karafka_lite.errors import CRITICAL, ProduceError
from karafka_lite.messages import Addressed, TopicPartition
from karafka_lite.sending import Waiting

if TYPE_CHECKING:
    from ledger import Book, Sent
    from simulated_broker import Log
    from simulated_runner import Life
    from simulation import World

RESTS_S = 15.0  # how late it may be seen that a rest is over: at the next look of the poller or the committer


class Output(NamedTuple):
    """What user code has made of the message at ``offset``; None: something else."""

    log: Log
    offset: int | None


class Visible:
    """What readers of what was made of one log see."""

    def __init__(self, base: int) -> None:
        self.base = base  # nothing is made of what was before it
        self.committed = base
        self.once: set[int] = set()  # offsets of which there is something, as they should be: once


class Promise(NamedTuple):
    """A future that user code was given, of these outputs."""

    life: Life
    future: Future[Any]
    numbers: tuple[int, ...]
    called: list[object]


class Calls(dict[Run, Any]):
    """What is known of calls: whether they have raised."""

    def __missing__(self, run: Run) -> Any:
        self[run] = made = SimpleNamespace(raised=False, own_fault=False, waits_since=None, released=False)
        return made


class ExactLedger:
    """What ``Ledger`` does for such partitions."""

    reached: Counter[str]
    logs: dict[TopicPartition, Log]
    committed: dict[TopicPartition, int]
    _broker: Any

    def __init__(self) -> None:
        self.outputs: list[Output] = []
        self.visible: dict[Log, Visible] = {}
        self.seen: set[int] = set()  # numbers of outputs that are visible
        self.promises: list[Promise] = []
        # Messages that were given up, and whose dead letters have left by themselves, or are none.
        self.in_other_ways: dict[Log, Counter[int]] = defaultdict(Counter)
        self.skipped: dict[Log, set[int]] = defaultdict(set)  # user code wanted to go on elsewhere, and failed
        self.repeated: set[Log] = set()  # user code has gone back there, and so makes again what is visible

    # -- what user code makes

    def makes(self, o: Book, offset: int | None) -> bytes:
        """The value of a message that it sends."""
        self.outputs.append(Output(o.log, offset))
        return b"%d" % (len(self.outputs) - 1)

    def receipt(self, message: Addressed) -> tuple[int, int]:
        """Where the brokers have put it."""
        return (0, -1 if message.topic == "dead" else int(message.value or b""))

    def promised(self, o: Book, future: Future[Any], values: Sequence[bytes], *, looks: bool) -> None:
        from ledger import require

        life, called = o.life, list[object]()
        if not isinstance(future, Waiting):
            return
        self.promises.append(Promise(life, future, tuple(map(int, values)), called))
        if looks:

            def call(done: object) -> None:
                called.append(done)
                free = life.member.lock.owner is not life.world.current or life.world.over
                require(free, "no callback is called under the lock", o)

            future.add_done_callback(call)
        else:
            called.append(None)

    def check_promises(self, lives: set[Life]) -> None:
        """``lives`` are over, in good order."""
        from ledger import require

        for life, future, numbers, called in self.promises:
            if life in lives:
                require(future.done() and len(called) == 1, "each future has its answer at the end", life, numbers)
            if not future.done():
                continue
            error, seen = future.exception(), [number in self.seen for number in numbers]
            if error is None:
                self.reached["a future knew where its message is"] += 1
                places = future.result()
                places = places if isinstance(places, list) else [places]
                right = all(seen) and places == [(0, number) for number in numbers]
                require(right, "who is told of a message finds it", life, numbers, places)
            else:
                unsure = "unless" in str(error)
                require(isinstance(error, ProduceError), "a message that never left has a reason", life, error)
                require(unsure or not any(seen), "what never left is not there", life, numbers, error)

    # -- what becomes visible

    def transacted(
        self: Any, sent: Sequence[Sent], messages: Sequence[tuple[Sent, Addressed]], generation: int
    ) -> None:
        """The brokers have committed a transaction."""
        for one in sent:
            self.exact_committed(one, [message for of, message in messages if of is one], generation)
        self.reached["a transaction was committed when its generation was over"] += (
            generation != self._broker.generation
        )
        self.reached["a transaction was committed when its ownership was over"] += any(o.book.ended for o in sent)

    def exact_committed(self: Any, sent: Sent, messages: Sequence[Addressed], generation: int) -> None:
        """With ``messages`` the next offset of one partition."""
        from ledger import require

        o, offset, _ = sent
        require(generation == o.generation, "nothing is committed for an earlier ownership", o, generation)
        made = [self._source(o, message) for message in messages]
        known, before = o.log is self.logs[o.tp], self.committed.get(o.tp)
        self._broker.committed[o.tp], self._broker.notes[o.tp] = offset, o.ownership.note
        if not known:  # nobody knew of the new topic
            return
        if o.log not in self.visible:
            require(before is None, "who commits first is the first", o, before)
            self.visible[o.log] = Visible(o.start)
        log, seen, repeated = o.log, self.visible[o.log], o.log in self.repeated
        back = offset < seen.committed
        require(repeated or not back, "what is committed never goes back", o, offset, seen.committed)
        self.reached["user code went back, and what is committed did, too"] += back
        for at in [at for at in made if at is not None]:
            require(repeated or at < offset, "nothing is visible before its message is committed", o, at, offset)
            require(repeated or at not in seen.once, "nothing is visible twice", o, at, offset)
            seen.once.add(at)
        for record in log.read(seen.committed, 1 << 30):
            if record.offset >= offset:
                break
            there = leaves_out(record.offset) or record.offset in seen.once or self.in_other_ways[log][record.offset]
            excused = record.offset < log.start or record.offset in self.skipped[log]
            require(there or excused, "what is committed is visible", o, record.offset, offset)
        self.reached["an offset was committed without a message"] += not messages
        seen.committed = offset

    def _source(self, o: Book, message: Addressed) -> int | None:
        if message.topic == "dead":
            self.reached["a dead letter left with its mark"] += 1
            return _letter_of(message)[1]
        number = int(message.value or b"")
        self.seen.add(number)
        log, offset = self.outputs[number]
        assert log is o.log
        return offset

    def left_at_once(self, world: World, message: Addressed) -> None:
        """A message that leaves by itself was acknowledged."""
        from ledger import require

        if message.topic == "dead":
            tp, offset = _letter_of(message)
            policy = world.policies[tp[0]]
            late = policy.exactly_once and not policy.manual_offsets
            require(not late, "in automatic mode each dead letter leaves with a mark", tp, offset)
            self.reached["a dead letter of exactly_once left at once"] += policy.exactly_once
            self.in_other_ways[self.logs[tp]][offset] += 1

    # -- calls

    def exact_batch_begun(self, o: Book, run: Run, now: float) -> None:
        from ledger import require

        offsets = [record.offset for record in run.records]
        require(offsets == sorted(set(offsets)), "a batch is in the order of its offsets", o, run)
        require(now >= o.rests_until - 1e-6, "a paused partition rests", o, now, o.rests_until)
        self.reached["a batch of exactly_once came again"] += run.attempt > 1

    def exact_returned(self, o: Book, run: Run, now: float) -> None:
        """User code has returned: the run may have to wait for its commit."""
        marks = o.ownership.marks
        if marks.released:
            o.calls[run].waits_since = o.claimed_at = now
            o.calls[run].released = any(map(marks.sends.is_of_run, marks.released))
            self.reached["a run waited for its commit"] += 1

    def exact_gives_up(self, o: Book, run: Run, result: bool) -> None:
        from ledger import _culprit, require

        call = o.calls[run]
        call.raised |= o.ownership.marks.failure is not None  # which a dead letter forgets
        if call.waits_since is not None:
            call.waits_since = o.life.world.now  # it may wait for its dead letter
        if run.hook or o.options.budget is None or run.excused or isinstance(run.error, CRITICAL):
            require(not result, "only what has a budget, and has failed by its own fault, is given up", o)
            return
        culprit = _culprit(run)
        for record in run.records:
            if culprit in (None, record.offset):
                o.tries[record.offset] = o.tries.get(record.offset, 0) + 1
        spent = culprit is not None and (run.pointless or o.tries[culprit] >= o.options.budget)
        require(spent or not result, "a message is given up when its budget is spent, and not before", o, run, o.tries)

    def exact_ended(self: Any, o: Book, run: Run, *, failed: bool, given_up: bool = False, now: float) -> None:
        """Before the group does it."""
        from ledger import require

        call = o.calls[run]
        if given_up and not o.life.world.policies[o.tp[0]].dead_letter:
            self.in_other_ways[o.log][run.culprit] += 1  # it is dropped, as its route says
        reason = call.raised or o.ownership.marks.failure is not None
        right = reason if failed else not call.raised  # what is refused after it has looked is no fault of its own
        require(right, "a call fails when it raises or cannot send, and only then", o, run, failed)
        rested = call.waits_since
        over, late = o.ownership.over, rested is not None and now >= rested + o.life.drain_s
        self.reached["a run ended before its commit, as that took too long"] += late and not failed
        self.reached["a run that waited for its commit was lost"] += over and rested is not None
        done = not failed and not given_up and run.hook is None and run.in_hand is None and not late and not over
        redirect = None if o.running is None else o.running.redirect
        if failed and isinstance(redirect, int):
            since = self.visible[o.log].committed if o.log in self.visible else o.start
            self.skipped[o.log].update(one.offset for one in o.log.read(since, 1 << 30) if one.offset < redirect)
        if run.is_part:
            unit = o.ownership
            done &= unit._is_good and len(unit.inside) == 1 and not unit.waiting
        offsets = [] if o.running is None else [record.offset for record in o.running.records]
        last = max((offset for offset in offsets if not leaves_out(offset)), default=-1)
        if done and call.released and redirect is None and not o.options.manual_offsets:
            right = o.log is not self.logs[o.tp] or self.visible[o.log].committed > last
            require(right, "a run ends when it is committed", o, run, last)
        if run.is_part:
            self.reached["a part of a unit failed"] += failed
            self.reached["a unit of several parts was committed"] += (
                done and rested is not None and len(o.begun_parts) > 1
            )
        del o.calls[run]

    def exact_out(self, o: Book) -> None:
        """All parts of a batch are over, or those that nobody had begun were dropped."""
        if o.exact and o.running is not None and o.ownership.run is not o.running:
            o.running = None
            del o.life.process.inside[o.tp]

    def exact_marked(self, o: Book, offset: int, result: bool) -> None:
        from ledger import require

        require(result is o.ours, "a mark counts while the partition is ours", o, offset, result, o.seen)
        o.last_mark[getcurrent()] = result, offset

    def exact_synced(self, o: Book) -> None:
        """A sync mark has returned True."""
        from ledger import require

        _, offset = o.last_mark[getcurrent()]
        there = o.log is not self.logs[o.tp] or self.visible[o.log].committed >= offset
        require(there, "a sync commit is on the broker when the call returns", o, offset)
        self.reached["a sync mark was committed with what it released"] += 1

    # -- each time the lock is released

    def exact_compare(self, o: Book, now: float) -> None:
        from ledger import require

        marks = o.ownership.marks
        if marks.committable is not o.had_to_commit:
            o.had_to_commit, o.unacked_since = marks.committable, now
        if o.options.parts:
            self.exact_out(o)
        if o.seen >= State.REVOKED:
            require(not marks.sends.held, "what an ownership that is over has sent never leaves", o)

    def check_rests(self, life: Life, now: float) -> None:
        from ledger import require

        for run in life.member._resting:
            since = self[run.ownership].calls[run].waits_since or now  # type: ignore[index]
            long = now > since + life.drain_s + RESTS_S and life.process.frozen_until < since
            require(not long, "a run rests no longer than it may", life, run, since)


def leaves_out(offset: int) -> bool:
    """Of some messages nothing is made."""
    return offset % 7 > 4


def _letter_of(message: Addressed) -> tuple[TopicPartition, int]:
    source = {name: (value or b"").decode() for name, value in message.headers or ()}
    return (source["source-topic"], int(source["source-partition"])), int(source["source-offset"])
