"""User code as users write it: it marks some messages or none, fails, returns early, hangs, and waits for commits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steps import Steps

from karafka_lite.core.options import Hook
from karafka_lite.core.ownership import Partition, Run, State
from karafka_lite.messages import next_offset_after

if TYPE_CHECKING:
    from simulated_member import SimulatedMember


class Handlers:
    """The user code of one member."""

    def __init__(self, member: SimulatedMember) -> None:
        self._member = member
        self._rng = member.rng
        self._settings = member.world.settings

    def call(self, run: Run) -> Steps:
        """Returns whether the batch failed (what a hook raises is only logged)."""
        if run.hook:
            yield from self._hook(run.partition, run.hook)
            return False
        self._touch_state(run.partition)
        if self._member.world.calm:
            yield None
            if run.partition.policy.manual_offsets:
                self._member.mark(run.partition, next_offset_after(run.records[-1].offset))
            return False
        failed = yield from self._batch(run)
        return failed

    def _touch_state(self, partition: Partition) -> None:
        """The state holds a token that the ledger knows: it has to come back with the next batch."""
        o = self._member.ledger[partition]
        if o.token is None:
            o.token = partition.user_state["token"] = object()

    def _batch(self, run: Run) -> Steps:
        rng, settings, partition = self._rng, self._settings, run.partition
        size = len(run.records)
        fails_at = rng.randrange(size + 1) if rng.random() < settings.failing else self._poison(run)
        returns_at = rng.randrange(size) if rng.random() < 0.05 else None
        leaves_at = rng.randrange(size) if rng.random() < 0.05 else None  # a loop over ``each`` by ``break``
        hangs_at = rng.randrange(size) if rng.random() < settings.hanging else None
        careful = rng.random() < 0.7  # stops at the first mark that is refused, and wraps up when asked to
        o = self._member.ledger[partition]
        o.marking = rng.choice(["never", "as it comes"]) if o.marking is None else o.marking
        marking = rng.choice([0.0, 0.3, 1.0]) if partition.policy.manual_offsets else rng.choice([0.0, 0.0, 0.3])
        marking = 0.0 if o.marking == "never" else marking
        for index, record in enumerate(run.records):
            yield from self._work(hangs=index == hangs_at)
            if index == fails_at:
                if rng.random() < 0.3:
                    run.in_hand = record.offset  # in a loop over ``each``
                return True
            if index == leaves_at:
                run.in_hand = record.offset
                return False
            if rng.random() < settings.sending:
                self._member.send(partition)
                if rng.random() < 0.3:
                    yield from self._member.answers(partition)  # and goes on, whatever it is
            if rng.random() < 0.01:
                self._member.rest(partition, rng.choice([0.0, 0.3, 20.0]))
            if settings.backward_marks and rng.random() < 0.08:
                self._seek(partition, record.offset)
            if index == returns_at or (careful and partition.state is State.DRAINING and rng.random() < 0.3):
                return False
            if rng.random() < marking:
                marked = self._member.mark(partition, next_offset_after(record.offset))
                if not marked and careful:
                    return False
                if rng.random() < settings.failing / 4:
                    return True
                if marked and (yield from self._commit(partition)) is None and rng.random() < 0.5:
                    return True  # CommitError
            if settings.backward_marks and rng.random() < 0.03:
                self._mark_older(partition, record.offset)
                if rng.random() < 0.3:
                    yield from self._member.commit(partition, 3.0)
        if fails_at == size:
            return True
        if partition.policy.manual_offsets and o.marking != "never" and rng.random() < 0.5:
            self._member.mark(partition, next_offset_after(run.records[-1].offset))
        return False

    def _poison(self, run: Run) -> int | None:
        """The first message that no try can process, but for some luck."""
        limit = 1000 * self._settings.poison
        poisonous = (i for i, record in enumerate(run.records) if record.offset * 7919 % 1000 < limit)
        return next(poisonous, None) if self._rng.random() < 0.9 else None

    def _seek(self, partition: Partition, before: int) -> None:
        """Backward: forward would be the user's own wish to skip."""
        begin = partition.start or 0
        target = self._rng.choice(["earliest", self._rng.randint(min(begin, before), before)])
        self._member.redirect(partition, target)

    def _mark_older(self, partition: Partition, before: int) -> None:
        """Any message that this ownership was handed."""
        member = self._member
        records = member.world.broker.logs[partition.place].read(min(partition.start or 0, before), 1000)
        older = [record.offset for record in records if record.offset <= before]
        member.mark(partition, next_offset_after(self._rng.choice(older[-20:])))

    def _work(self, *, hangs: bool) -> Steps:
        """Take some time."""
        rng, member = self._rng, self._member
        if hangs:
            member.say("hangs")
            yield member.now + member.drain * rng.uniform(0.5, 5.0)
        elif rng.random() < 0.2:
            yield member.now + rng.choice([0.0, 0.01, 0.2, 2.0])

    def _commit(self, partition: Partition) -> Steps:
        """Now and then: ask for a commit, or wait for one. Returns None when the wait timed out."""
        chance = self._rng.random() / (3 if partition.unanswered else 1)
        if chance < 0.05:
            self._member.request_commit(partition)
        elif chance < 0.12:
            return (yield from self._member.commit(partition, self._rng.choice([0.2, 3.0, 30.0])))
        return True

    def _hook(self, partition: Partition, hook: Hook) -> Steps:
        """Mark what was processed but not marked; on_revoked tries to, in vain."""
        o = self._member.ledger[partition]
        calm = self._member.world.calm
        yield from self._work(hangs=not calm and self._rng.random() < 3 * self._settings.hanging)
        if not calm and self._rng.random() < self._settings.sending:
            self._member.send(partition)
        flushes = hook is Hook.ON_REVOKED or (partition.policy.manual_offsets and self._rng.random() < 0.7)
        if flushes and o.done not in (o.start, o.stored):
            self._member.mark(partition, o.done)
            if hook is not Hook.ON_REVOKED and self._rng.random() < 0.2:
                yield from self._member.commit(partition, 1.0)
