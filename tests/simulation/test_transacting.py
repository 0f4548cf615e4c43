"""Random programs with ``exactly_once``, on the runner's own member: what is visible is what was committed, always.

Handlers mark, fail, leave loops, give messages up, or leave what they have made to their hooks, and are functions or
coroutines; transactions are committed, fail, are refused at any message, or end so that nobody knows; partitions are
lost and handed over amid all this, inside of handlers and of transactions, too.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from karafka_lite import App, Batch, CommitError, Context, ProduceError
from karafka_lite.core.answers import Commit, Committed, Ended, Refused, Undecided
from karafka_lite.core.exact import ExactOwnership
from karafka_lite.core.group import Group
from karafka_lite.core.marks import Marks, Refusal
from karafka_lite.core.ownership import Ownership, Run
from karafka_lite.core.parts import KeyOwnership
from karafka_lite.core.sends import Sends
from karafka_lite.core.units import UnitOwnership
from karafka_lite.coroutines import drive
from karafka_lite.testing import TestClient

PROGRAMS, LONG_PROGRAMS = 100, 5000
ENDLESS = 20_000  # steps of the committer
TOPIC, OUT, DEAD, PARTITIONS = "t", "out", "dead", 2
FATES = "committed", "failed", "refused", "undecided", "undecided but committed", "lost before", "lost after"
SITUATIONS = (
    "a dead letter at once",
    "a hand-over inside of a handler",
    "a hook has sent and marked",
    "a loss inside of a handler",
    "a seek",
    "a sync mark",
    "a sync mark has timed out",
    "a unit of several parts",
)


class Failed(Exception):
    """A handler fails."""


class Program:
    """One app, its handlers, and what happens to it: all by the dice of ``seed``."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.manual, self.dead = rng.random() < 0.5, rng.random() < 0.4
        self.leaves_it_to_hooks = self.manual and rng.random() < 0.4
        self.calm, self.steps = False, 0
        self.reached: Counter[str] = Counter()
        letters: dict[str, Any] = {"dead_letter": DEAD, "max_retries": 1} if self.dead else {}
        self.drain_ms = rng.choice([150, 2000])
        app = self.app = App(
            "g", concurrency=3, auto_commit_interval_ms=rng.choice([100, 5000]), drain_timeout_ms=self.drain_ms
        )
        options = {"manual_offsets": self.manual, "max_messages": rng.choice([1, 3, 10]), **letters}
        threads = rng.random() < 0.7
        self.by_key = not self.manual and rng.random() < 0.4
        if self.by_key:
            options |= {"order": "key"}
        handler = self._handle_in_a_thread if threads else self._handle
        flush = self._flush_in_a_thread if threads else self._flush
        app.topic(TOPIC, exactly_once=True, backoff_ms=100, backoff_max_ms=200, **options)(handler)
        app.every(handler, ms=150)(flush)
        app.before_revoke(handler)(flush)
        app.on_shutdown(handler)(flush)
        self.client = TestClient(app, partitions={TOPIC: PARTITIONS})
        self.sent = Counter[int]()

    def play(self) -> None:
        with self.client as client:
            self.member = client._members[0]
            self.at_once: Counter[str] = Counter()
            self._send = self.member._shared.outbox.send
            self.member._shared.outbox.send = self._send_at_once  # type: ignore[method-assign]
            self._commit = self.member._transactions.commit
            self.member._transactions.commit = self._transact  # type: ignore[method-assign]
            self._commit_step = self.member.commit_step
            self.member.commit_step = self._commit_in_time  # type: ignore[method-assign]
            for _ in range(self.rng.randrange(5, 25)):
                self._step(client)
                self.check()
            self.calm = True
            for number in range(PARTITIONS):
                client.send(TOPIC, self.sent[number], key=self.rng.choice("abc"), partition=number)
                self.sent[number] += 1
            for _ in range(60):
                for run in client.run():
                    done = run.outcome == "done" and not self.manual and self.drain_ms > 1000
                    at = (client.committed(TOPIC, run.partition) or 0) - 1
                    assert not done or at >= run.offsets[-1], ("a run ends when it is committed", run, at)
                client.advance(ms=100)
                self._assign_again(client)
                self.check()
        self.check()
        if not self.manual:
            done = {n: client.committed(TOPIC, n) or 0 for n in range(PARTITIONS)}
            assert done == {n: self.sent[n] for n in range(PARTITIONS)}, "at the end everything is done"

    def _step(self, client: TestClient) -> None:
        rng, number = self.rng, self.rng.randrange(PARTITIONS)
        for _ in range(rng.randrange(4)):
            client.send(TOPIC, self.sent[number], key=rng.choice("abc"), partition=number)
            self.sent[number] += 1
        owned = (TOPIC, number) in self.member.group.owned
        chance = rng.random()
        if chance < 0.07 and owned:
            client.lose(TOPIC, number)
        elif chance < 0.14 and owned:
            client.revoke(TOPIC, number)
        elif chance < 0.5:
            self._assign_again(client)
        client.run()
        client.advance(ms=rng.choice([0, 50, 300]))

    def _assign_again(self, client: TestClient) -> None:
        for number in range(PARTITIONS):
            if (TOPIC, number) not in self.member.group.owned and (TOPIC, number) not in self.member.group.leftovers:
                client.assign(TOPIC, number)

    # -- user code

    def _handle_in_a_thread(self, batch: Batch, ctx: Context) -> None:
        drive(self._handle(batch, ctx))

    async def _handle(self, batch: Batch, ctx: Any) -> None:
        rng = self.rng
        if self.by_key and len(ctx._ownership.calls) + len(ctx._ownership.waiting) > 1:
            self.reached["a unit of several parts"] += 1
        if self.leaves_it_to_hooks:
            ctx.state.setdefault("made", []).extend(batch)
            if not self.calm and rng.random() < 0.2:
                raise Failed
            return
        fails_at = None if self.calm or rng.random() < 0.6 else rng.randrange(len(batch) + 1)
        leaves_at = None if self.calm or rng.random() < 0.8 else rng.randrange(len(batch))
        marks = rng.choice([0.0, 0.3, 1.0]) if self.manual or rng.random() < 0.3 else 0.0
        each, last = rng.random() < 0.4, None
        for index, message in enumerate(ctx.each(batch) if each else batch):
            if index == fails_at:
                raise Failed
            self._trouble(ctx)
            if self.dead and not self.manual and rng.random() < 0.1:
                ctx.dead_letter(message, "by hand")
            else:
                self._produce(ctx, message.offset)
            if not self.calm and not self.by_key and rng.random() < 0.05:
                await self._commit_amid(ctx)
            last = message
            if each and index == leaves_at:
                return
            if rng.random() < marks and not await self._mark(ctx, message):
                return
        if fails_at == len(batch):
            raise Failed
        if last != batch.last:  # a loop over each ends early at a hand-over
            return
        if not each and not self.calm and not self.by_key and rng.random() < 0.1:
            self.reached["a seek"] += ctx.seek(batch.last.next_offset)
            return
        if self.manual and rng.random() < (1.0 if self.calm else 0.5):
            await self._mark(ctx, batch.last)

    def _trouble(self, ctx: Context) -> None:
        """The partition is taken away while it is worked on."""
        if self.calm or (TOPIC, ctx.partition) not in self.member.group.owned:
            return
        chance = self.rng.random()
        if chance < 0.01:
            self.reached["a loss inside of a handler"] += 1
            self.client.lose(TOPIC, ctx.partition)
        elif chance < 0.02:
            self.reached["a hand-over inside of a handler"] += 1
            self.client.revoke(TOPIC, ctx.partition)

    def _produce(self, ctx: Context, offset: int) -> None:
        text = f"{ctx.partition}.{offset}"
        if self.rng.random() < 0.7:
            ctx.produce(OUT, text)
        else:
            ctx.produce_many(OUT, [text])

    async def _mark(self, ctx: Any, message: Any) -> bool:
        if self.calm or self.by_key or self.rng.random() < 0.8:
            return bool(ctx.mark_as_consumed(message))
        try:
            marked = ctx.mark_as_consumed(message, sync=True, timeout_ms=self.rng.choice([1, 1000]))
            marked = marked if isinstance(marked, bool) else await marked
        except CommitError:
            self.reached["a sync mark has timed out"] += 1
            return True
        self.reached["a sync mark"] += 1
        return marked

    async def _commit_amid(self, ctx: Any) -> None:
        try:
            committed = ctx.commit_offsets(sync=True, timeout_ms=1000)
            if not isinstance(committed, bool):
                await committed
        except CommitError:
            self.reached["a sync commit has timed out"] += 1

    def _flush_in_a_thread(self, ctx: Context) -> None:
        drive(self._flush(ctx))

    async def _flush(self, ctx: Any) -> None:
        """A hook: it sends what handlers have made, and marks that."""
        made = ctx.state.get("made", [])
        fails_at = None if self.calm or self.rng.random() < 0.7 else self.rng.randrange(len(made) + 1)
        for index, message in enumerate(made):
            if index == fails_at:
                raise Failed
            self._produce(ctx, message.offset)
        if fails_at is not None:
            raise Failed
        if made:
            self.reached["a hook has sent and marked"] += ctx.mark_as_consumed(made[-1])
            made.clear()

    # -- transactions

    def _commit_in_time(self, now: float) -> float | None:
        """Each wait comes by here."""
        self.steps += 1
        assert self.steps < ENDLESS, "nothing waits for ever"
        return self._commit_step(now)

    def _transact(self, client: Any, commits: Sequence[Commit], generation: int) -> Ended:
        fate = "committed" if self.calm else self.rng.choices(FATES, [60, 15, 15, 5, 5, 3, 3])[0]
        if any(one.ownership.run and one.ownership.run.redirect is not None for one in commits):
            fate = "committed"  # a run that fails after a seek goes elsewhere all the same: its user's own wish
        self.reached[fate] += 1
        if fate == "failed":
            return Committed({}, {one.ownership.tp: Refusal(OSError("no broker")) for one in commits})
        if fate == "refused":
            refused = self.rng.choice([held for commit in commits for held in commit.sends])
            return Refused(refused, ProduceError("refused"))
        if fate == "undecided":
            return Undecided(OSError("no answer"))
        if fate == "lost before":  # the broker refuses it: it is of an earlier generation
            self._lose_one_of(commits)
            return Committed({}, {one.ownership.tp: Refusal(OSError("fenced")) for one in commits})
        ended = self._commit(client, commits, generation)
        self.check()
        if fate == "lost after":
            self._lose_one_of(commits)
        return Undecided(OSError("no answer")) if fate == "undecided but committed" else ended

    def _lose_one_of(self, commits: Sequence[Commit]) -> None:
        tp = self.rng.choice(commits).ownership.tp
        if tp in self.member.group.owned:
            self.client.lose(*tp)

    def _send_at_once(self, message: Any, told: Any = None) -> Any:
        """A dead letter of a message that has something unmarked before it: by itself, and perhaps again."""
        self.reached["a dead letter at once"] += 1
        future = self._send(message, told)
        if future.exception() is None:
            self.at_once[_source(message.headers)] += 1
        return future

    def check(self) -> None:
        """What is visible is what was made of the messages before the committed offsets, each once."""
        out = Counter[str](message.payload for message in self.client.produced(OUT))
        dead = Counter[str](_source(letter.headers) for letter in self.client.produced(DEAD))
        committed = [(number, self.client.committed(TOPIC, number) or 0) for number in range(PARTITIONS)]
        expected = Counter[str](f"{number}.{offset}" for number, end in committed for offset in range(end))
        visible = out + dead - self.at_once
        assert visible <= expected, ("too early, or twice", visible - expected)
        assert expected <= out + dead, ("missing", expected - out - dead)


def _source(headers: Any) -> str:
    source = {name: (value or b"").decode() for name, value in headers}
    return f"{source['source-partition']}.{source['source-offset']}"


def play(programs: int, first: int = 0) -> Counter[str]:
    reached: Counter[str] = Counter()
    for seed in range(first, first + programs):
        program = Program(seed)
        try:
            program.play()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        reached += program.reached
    return reached


def test_whatever_happens_what_is_visible_is_what_was_committed(request: pytest.FixtureRequest) -> None:
    reached = play(LONG_PROGRAMS if request.config.getoption("--long") else PROGRAMS)
    assert set(FATES) <= set(reached), reached
    assert all(reached[what] for what in SITUATIONS), reached


Patch = pytest.MonkeyPatch


def instead(patch: Patch, owner: type, name: str, function: Callable[..., Any]) -> None:
    original = getattr(owner, name)
    patch.setattr(owner, name, lambda self, *values, **options: function(original, self, *values, **options))


def released_too_early(patch: Patch) -> None:
    instead(
        patch, Sends, "released", lambda _, sends, version: [one for one in sends.held if one.mark.version <= version]
    )


def nothing_comes_again(patch: Patch) -> None:
    patch.setattr(Ownership, "_come_again", lambda ownership: None)


def nothing_is_kept(patch: Patch) -> None:
    patch.setattr(Sends, "keep", lambda sends: None)


def nothing_is_cleared(patch: Patch) -> None:
    patch.setattr(Sends, "committed", lambda sends, version: None)


def marked_after_the_wait(patch: Patch) -> None:
    patch.setattr(ExactOwnership, "returned", lambda ownership, run, failed: None)


def undecided_is_taken_for_failed(patch: Patch) -> None:
    def transacted(original: Any, group: Group, commits: Sequence[Commit], ended: Ended, now: float) -> Any:
        if isinstance(ended, Undecided):
            ended = Committed({}, {one.ownership.tp: Refusal(ended.error) for one in commits})
        return original(group, commits, ended, now)

    instead(patch, Group, "transacted", transacted)


def a_failure_drops_nothing(patch: Patch) -> None:
    patch.setattr(Marks, "drop", lambda marks, of_run: None)


def a_failure_drops_its_run_alone(patch: Patch) -> None:
    instead(patch, Marks, "drop", lambda original, marks, of_run: original(marks, of_run=True))


def void_marks_stay(patch: Patch) -> None:
    def refused_with(original: Any, marks: Marks, held: Any, error: Any) -> None:
        before = marks.last
        original(marks, held, error)
        marks.stored, marks.version, marks.retry_position, marks._done = before

    instead(patch, Marks, "refused_with", refused_with)


def what_was_given_up_stays_so(patch: Patch) -> None:
    patch.setattr(Marks, "_take_back", lambda marks, dropped: None)


def parts_are_marked_one_by_one(patch: Patch) -> None:
    patch.setattr(UnitOwnership, "_ledger", KeyOwnership._ledger)


def a_unit_is_marked_although_a_part_has_failed(patch: Patch) -> None:
    def returned(original: Any, unit: UnitOwnership, run: Run, *, failed: bool) -> None:
        original(unit, run, failed=failed and not run.is_part)

    instead(patch, UnitOwnership, "returned", returned)


@pytest.mark.parametrize(
    "wrong",
    [
        released_too_early, nothing_comes_again, nothing_is_kept, nothing_is_cleared, marked_after_the_wait,
        undecided_is_taken_for_failed, a_failure_drops_nothing, a_failure_drops_its_run_alone, void_marks_stay,
        what_was_given_up_stays_so, parts_are_marked_one_by_one, a_unit_is_marked_although_a_part_has_failed,
    ],
)  # fmt: skip
def test_what_is_wrong_is_found(wrong: Callable[[Patch], None], monkeypatch: Patch) -> None:
    wrong(monkeypatch)
    with pytest.raises(AssertionError, match="seed"):
        play(1000)
