"""A batch that is one unit: its parts run side by side, and what they send leaves together or not at all."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.partitions import TP, Partitions, Record, offsets_of

from karafka_lite.core.answers import Committed, Refused
from karafka_lite.core.backoff import Backoff
from karafka_lite.core.exact import ExactOwnership
from karafka_lite.core.group import Group
from karafka_lite.core.options import Hook, Options, RegisteredHook
from karafka_lite.core.ownership import Run, State
from karafka_lite.core.units import UnitOwnership
from karafka_lite.errors import ProduceError
from karafka_lite.messages import Addressed


class Scene(Partitions):
    """One partition, workers that take parts when they are told to, and what has been committed of what they sent."""

    def __init__(self, keys: str, parts: int = 4, **options: Any) -> None:
        options = {"parts": parts, "exactly_once": True, "backoff": Backoff(1, 1), **options}
        super().__init__(1, group=Group({"topic": Options(**options)}))
        self.visible: list[int] = []  # the offset of the input of each
        self.letters: list[int] = []
        self.records: Any = [Record(offset, key=key.encode()) for offset, key in enumerate(keys)]
        self.group.fetched(TP, self.records, None, 0, self.now)

    @property
    def one(self) -> UnitOwnership:
        ownership = self[0]
        assert isinstance(ownership, UnitOwnership)
        return ownership

    @property
    def exact(self) -> ExactOwnership:
        ownership = self[0]
        assert isinstance(ownership, ExactOwnership)
        return ownership

    def begin_all(self) -> list[Run]:
        for offset in self.plan().values():  # what is void by now is fetched again
            self.group.fetched(TP, self.records[offset:], None, 0, self.now)
        parts = list[Run]()
        while self.group.take_ready():
            part = self.group.begin(self[0], self.now)
            assert part is not None
            parts.append(part)
        return parts

    def again(self) -> list[Run]:
        self.now += 99.0
        self.group.advance(self.now)
        return self.begin_all()

    def send(self, part: Run, *, letter: bool = False) -> None:
        """For each of its messages one; for the first one a dead letter, by hand."""
        if letter:
            name = b"%d" % part.records[0].offset
            assert self.one.hold_letter(part, Addressed("dead", name), part.records[0].offset) is not None
            self.one.mark_alone(part, part.records[0].offset)
        for record in part.records[letter:]:
            held = self.exact.marks.hold()
            held.messages.append(Addressed("out", b"%d" % record.offset))

    def returns(self, part: Run, *, failed: bool = False) -> None:
        """Its user code; what it has released is not committed yet."""
        ownership = part.ownership
        assert isinstance(ownership, ExactOwnership)
        ownership.returned(part, failed=failed)
        self.group.claim(ownership, self.now)

    def ends(self, part: Run, error: BaseException | None = None) -> None:
        error = error or part.marks.failure
        part.failed_with(error)
        if error is not None and part.ownership.gives_up(part):
            held = self.exact.hold_letter(part, Addressed("dead", b"%d" % (part.culprit or 0)), part.culprit or 0)
            assert held is not None, "the message is alone"
            self.group.claim(self.exact, self.now)
            while self.exact.marks.released:  # the runner waits for it
                self.commit()
                self.now += 0.1
            self.group.give_up(part, now=self.now)
        else:
            self.group.end(part, failed=error is not None, now=self.now)

    def commit(self, refuse: bool = False) -> bool:
        commits = [commit for commit in self.group.commit_batch(self.now) if commit.sends]
        if not commits:
            return False
        held = commits[0].sends[0]
        if refuse:
            self.group.transacted(commits, Refused(held, ProduceError("no")), self.now)
            return True
        for commit in commits:
            for held in commit.sends:
                for message in held.messages:
                    (self.letters if message.topic == "dead" else self.visible).append(int(message.value or b""))
        receipts = {held: [(0, 0)] * len(held.messages) for commit in commits for held in commit.sends}
        self.group.transacted(commits, Committed(receipts, {}), self.now)
        return True


def test_nothing_leaves_before_the_last_part_has_returned_and_then_all_does() -> None:
    scene = Scene("abab")
    first, second = scene.begin_all()
    assert (offsets_of(first), offsets_of(second)) == ([0, 2], [1, 3])
    for part in (first, second):
        scene.send(part)
        assert part.marks.mark(4), "it is ours"
    scene.returns(first)
    assert (scene.one.marks.stored, scene.commit()) == (None, False)
    scene.ends(first)
    scene.returns(second)
    assert scene.one.marks.stored == 4
    assert scene.one.marks.owes, "the last part waits for the commit"
    assert scene.commit()
    scene.ends(second)
    assert (sorted(scene.visible), scene.one.marks.committed) == ([0, 1, 2, 3], 4)


def test_where_a_part_fails_all_come_again_and_nothing_has_left() -> None:
    scene = Scene("abab")
    first, second = scene.begin_all()
    for part in (first, second):
        scene.send(part)
    scene.returns(first, failed=True)
    scene.ends(first, OSError("no"))
    scene.returns(second)
    scene.ends(second)
    assert (scene.commit(), scene.one.marks.stored, scene.one.marks.sends.held) == (False, None, [])
    assert [(offsets_of(part), part.attempt) for part in scene.again()] == [([0, 2], 2), ([1, 3], 2)]


def test_a_loop_over_each_that_is_left_repeats_the_unit() -> None:
    scene = Scene("ab")
    first, second = scene.begin_all()
    scene.send(first)
    first.in_hand = 0
    for part in (first, second):
        scene.returns(part)
        scene.ends(part)
    assert (scene.one.marks.stored, scene.one.marks.sends.held) == (None, [])
    assert [offsets_of(part) for part in scene.again()] == [[0], [1]]


def test_a_refused_message_of_any_part_fails_the_last_and_the_unit_comes_again() -> None:
    scene = Scene("ab")
    first, second = scene.begin_all()
    for part in (first, second):
        scene.send(part)
        scene.returns(part)
        if part is first:
            scene.ends(part)
    assert scene.commit(refuse=True)
    assert second.marks.failure is not None
    scene.ends(second)
    assert (scene.one.marks.stored, scene.visible) == (None, [])
    assert [offsets_of(part) for part in scene.again()] == [[0], [1]]


def test_a_unit_that_runs_while_one_before_it_is_refused_is_not_done() -> None:
    scene = Scene("abcd", max_messages=2)
    for part in [*scene.begin_all()]:
        scene.send(part)
        scene.returns(part)
        scene.ends(part)  # the commit took too long
    first, second = scene.begin_all()
    for part in (first, second):
        scene.send(part)
    scene.returns(first)
    assert scene.commit(refuse=True)
    scene.returns(second)
    for part in (first, second):
        scene.ends(part)
    for _ in range(2):
        parts = scene.again()
        for part in parts:
            scene.send(part)
            scene.returns(part)
        assert scene.commit()
        for part in parts:
            scene.ends(part)
    assert (sorted(scene.visible), scene.one.marks.committed) == ([0, 1, 2, 3], 4)


def test_after_a_seek_the_unit_is_not_marked_and_what_it_sent_leaves_with_the_next_mark() -> None:
    scene = Scene("ab")
    first, second = scene.begin_all()
    scene.send(first)
    scene.group.redirect(scene.one, 1, scene.now)
    for part in (first, second):
        scene.returns(part)
        scene.ends(part)
    assert (scene.one.marks.stored, scene.commit()) == (None, False)
    assert len(scene.one.marks.sends.held) == 1


def test_a_message_that_always_fails_is_tried_alone_and_its_letter_leaves_with_its_mark() -> None:
    scene, tries = Scene("abc", budget=3), list[list[int]]()
    parts = scene.begin_all()
    while parts:
        for part in parts:
            tries.append(offsets_of(part))
            scene.send(part)
        for part in parts:
            error = OSError("no") if 1 in offsets_of(part) else None
            scene.returns(part, failed=error is not None)
            if error is None:
                scene.commit()
            scene.ends(part, error)
        parts = scene.again()
    assert tries.count([1]) == 3, "1 + max_retries, the first with others beside it"
    assert (sorted(scene.visible), scene.letters, scene.one.marks.committed) == ([0, 2], [1], 3)


@pytest.mark.parametrize("parts", [0, 1])
def test_a_message_is_not_given_up_while_one_before_it_comes_again(parts: int) -> None:
    """Its dead letter would leave by itself, and perhaps twice."""
    scene = Scene("ab", parts, budget=1, max_messages=1)
    (first,) = scene.begin_all()
    scene.returns(first, failed=True)
    first.failed_with(OSError("no"))
    assert scene.exact.gives_up(first)
    assert scene.exact.hold_letter(first, Addressed("dead", b"0"), 0) is not None
    scene.group.give_up(first, now=scene.now)  # the runner has waited for its commit, and in vain
    (second,) = scene.again()
    scene.group.claim(scene.exact, scene.now)
    assert scene.commit(refuse=True)
    scene.returns(second, failed=True)
    scene.ends(second, OSError("no"))
    assert (scene.letters, scene.exact.marks.stored) == ([], None)
    for offset in (0, 1):
        (run,) = scene.again()
        assert offsets_of(run) == [offset]
        scene.returns(run, failed=True)
        scene.ends(run, OSError("no"))
    assert (scene.letters, scene.exact.marks.committed) == ([0, 1], 2)


def test_a_message_that_is_refused_right_before_its_run_ends_comes_again() -> None:
    """The run has waited long enough for its commit, and has looked for a refusal for the last time."""
    scene = Scene("a", parts=0)
    (run,) = scene.begin_all()
    scene.send(run)
    scene.returns(run)
    assert scene.commit(refuse=True)
    scene.group.end(run, failed=False, now=scene.now)
    assert (scene.exact.marks.stored, scene.commit()) == (None, False)
    (run,) = scene.again()
    assert offsets_of(run) == [0]


def test_what_waits_unmarked_is_dropped_where_a_hook_could_not_send_and_its_messages_come_again() -> None:
    """The hook has sent a dead letter by hand, which left at once, as there is something unmarked before it."""
    every = RegisteredHook(Hook.EVERY, lambda ctx: None, 1000)
    scene = Scene("ab", parts=0, manual_offsets=True, hooks=(every,))
    (run,) = scene.begin_all()
    scene.send(run)
    scene.returns(run)
    scene.ends(run)
    scene.now += 2.0
    scene.group.advance(scene.now)
    (hook,) = scene.begin_all()
    assert hook.hook is Hook.EVERY
    hook.marks.answered(hook.marks.sending(), ProduceError("no"))
    scene.returns(hook)
    scene.ends(hook)
    scene.now += 0.5
    scene.group.advance(scene.now)
    (run,) = scene.begin_all()
    assert offsets_of(run) == [0, 1]
    scene.send(run)
    run.marks.mark(2)
    scene.returns(run)
    assert scene.commit()
    assert (scene.visible, scene.exact.marks.committed) == ([0, 1], 2)


def test_a_letter_by_hand_leaves_with_the_unit_and_is_dropped_with_it() -> None:
    for fails in (True, False):
        scene = Scene("ab")
        first, second = scene.begin_all()
        assert scene.one.hold_letter(first, Addressed("dead", b"0"), 0) is not None
        scene.returns(first)
        scene.ends(first)
        scene.returns(second, failed=fails)
        assert scene.commit() is not fails
        scene.ends(second, OSError("no") if fails else None)
        assert scene.letters == ([] if fails else [0])


def test_parts_that_were_dropped_at_the_end_mark_nothing() -> None:
    scene = Scene("abc", parts=3)
    scene.group.take_ready()
    part = scene.group.begin(scene.one, scene.now)
    assert part is not None
    ownership = scene.one
    scene.send(part)
    scene.group.revoke([TP], scene.now)
    scene.now += 1000.0
    scene.group.advance(scene.now)
    assert ownership.state >= State.RELEASING
    ownership.returned(part, failed=False)
    scene.group.end(part, failed=False, now=scene.now)
    assert (ownership.marks.stored, ownership.marks.released) == (None, [])


@settings(max_examples=300)
@given(st.text("abcd", min_size=1, max_size=12), st.integers(1, 4), st.integers(0, 10_000))
def test_in_any_order_what_is_visible_is_what_is_below_the_committed_offset(keys: str, parts: int, seed: int) -> None:
    dice = random.Random(seed)
    scene = Scene(keys, parts, max_messages=5, budget=dice.choice([None, 2]))
    running: list[tuple[Run, str]] = []

    def look() -> None:
        committed = scene.one.marks.committed or 0
        assert sorted(scene.visible + scene.letters) == list(range(committed)), "each once, and none too early"

    for _ in range(200):
        running += [(part, "inside") for part in scene.begin_all()]
        if running and dice.random() < 0.7:
            place = dice.randrange(len(running))
            part, state = running.pop(place)
            if state == "inside":
                if dice.random() < 0.9:
                    scene.send(part, letter=dice.random() < 0.2)
                    part.marks.mark(dice.choice(part.records).offset + 1)
                    look()
                    state = "failed" if dice.random() < 0.2 else "returned"
                else:
                    state = "failed"
                scene.returns(part, failed=state == "failed")
                running.append((part, state))
            elif state == "failed" or part.marks.failure or not scene.one.marks.released:
                scene.ends(part, OSError("no") if state == "failed" else None)
            else:
                running.append((part, state))
        elif dice.random() < 0.5:
            scene.commit(refuse=dice.random() < 0.3)
        else:
            scene.now += 1.0
            scene.group.advance(scene.now)
        look()


@pytest.mark.parametrize(("parts", "exactly_once", "kind"), [(0, True, "ExactOwnership"), (2, True, "UnitOwnership")])
def test_the_options_choose_the_class(parts: int, exactly_once: bool, kind: str) -> None:
    group = Group({"topic": Options(parts=parts, exactly_once=exactly_once)})
    (ownership,) = group.assigned([TP], 0.0)
    assert type(ownership).__name__ == kind
