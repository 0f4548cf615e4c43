"""The parts of a batch that run side by side. No Kafka, no clock, no threads."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.partitions import TP, Partitions, Record, hook, offsets_of

from karafka_lite.core.backoff import Backoff
from karafka_lite.core.group import Group
from karafka_lite.core.options import Hook, Options
from karafka_lite.core.ownership import Run, State
from karafka_lite.core.parts import KeyOwnership, Part, deal
from karafka_lite.errors import ProduceError

NO_WAIT = Backoff(1, 1)


def keyed(keys: str, first: int = 0, step: int = 1) -> list[Any]:
    """A message for each letter; "-" has no key."""
    return [Record(first + step * i, key=None if letter == "-" else letter.encode()) for i, letter in enumerate(keys)]


class Scene(Partitions):
    """One partition, and workers that take parts when they are told to."""

    def __init__(self, keys: str = "", parts: int = 4, *, step: int = 1, **options: Any) -> None:
        super().__init__(1, group=Group({"topic": Options(parts=parts, **{"backoff": NO_WAIT, **options})}))
        if keys:
            self.arrive(keyed(keys, step=step))

    @property
    def one(self) -> KeyOwnership:
        ownership = self[0]
        assert isinstance(ownership, KeyOwnership)
        return ownership

    def arrive(self, records: list[Any]) -> bool:
        return self.group.fetched(TP, records, None, 0, self.now)

    def begin_all(self) -> list[Part]:
        """As many workers as there are parts."""
        parts = []
        while self.group.take_ready():
            part = self.group.begin(self.one, self.now)
            assert isinstance(part, Part)
            parts.append(part)
        return parts

    def end(self, run: Run, *, failed: bool = False, error: BaseException | None = None) -> list[Run]:  # type: ignore[override]
        run.failed_with(error or (OSError("no") if failed else None))
        return list(self.group.end(run, failed=failed, now=self.now))

    def fails(self, part: Run) -> list[Run]:
        """As the runner does: it counts the try before it ends the call."""
        part.failed_with(OSError("no"))
        if part.ownership.gives_up(part):
            return list(self.group.give_up(part, now=self.now))
        return list(self.group.end(part, failed=True, now=self.now))

    def again(self) -> list[Part]:
        """After the back-off."""
        self.now += 99.0
        self.group.advance(self.now)
        return self.begin_all()


# -- dealing


@pytest.mark.parametrize(
    ("keys", "most", "parts"),
    [
        ("abcabc", 3, ["aa", "bb", "cc"]),
        ("abcabc", 8, ["aa", "bb", "cc"]),
        ("aaaaab--c", 2, ["aaaaa", "b--c"]),
        ("----", 3, ["--", "-", "-"]),
        ("aaaa", 4, ["aaaa"]),
        ("ab", 1, ["ab"]),
    ],
)
def test_the_longest_keys_are_dealt_first_to_the_emptiest_part(keys: str, most: int, parts: list[str]) -> None:
    dealt = deal(keyed(keys), most)
    assert ["".join((record.key or b"-").decode() for record in part) for part in dealt] == parts


@given(st.text("abcdefgh-", min_size=1, max_size=60), st.integers(1, 9))
def test_what_is_dealt_is_all_in_order_and_no_key_is_in_two_parts(keys: str, most: int) -> None:
    records = keyed(keys)
    parts = deal(records, most)
    assert sorted(record.offset for part in parts for record in part) == [record.offset for record in records]
    assert 1 <= len(parts) <= most
    assert all(part and part == sorted(part, key=lambda record: record.offset) for part in parts)
    homes = Counter(key for part in parts for key in {record.key for record in part if record.key})
    assert set(homes.values()) <= {1}
    longest = Counter(keys.replace("-", "")).most_common(1)
    even = -(-len(records) // most)
    assert max(map(len, parts)) <= max(even, longest[0][1] if longest else 1) * 4 / 3 + 1, "Graham's bound"


# -- what is done, and what is stored


def test_each_part_is_a_call_of_its_own_and_the_next_batch_waits_for_all() -> None:
    scene = Scene("abab", max_messages=4)
    scene.arrive(keyed("cc", first=4))
    first, second = scene.begin_all()
    assert (offsets_of(first), offsets_of(second)) == ([0, 2], [1, 3])
    assert scene.one.calls == [first, second]
    assert scene.end(second) == [second]
    assert scene.one.marks.stored is None, "the first one is not done"
    assert not scene.group.take_ready()
    assert scene.end(first) == [first]
    assert scene.one.marks.stored == 4
    assert [offsets_of(part) for part in scene.begin_all()] == [[4, 5]]


def test_fewer_workers_than_parts_take_one_after_the_other() -> None:
    scene = Scene("abc")
    stored = []
    while scene.group.take_ready():
        run = scene.begin()
        assert scene.one.calls == [run]
        scene.end(run)
        stored.append(scene.one.marks.stored)
    assert stored == [1, 2, 3]


def test_a_mark_says_done_up_to_here_of_its_part_and_an_older_one_changes_nothing() -> None:
    scene = Scene("ababab")
    first, second = scene.begin_all()
    assert second.marks.mark(4)
    assert scene.one.marks.stored is None
    assert first.marks.mark(3)
    assert scene.one.marks.stored == 4, "0 and 2, 1 and 3; 4 is not"
    assert first.marks.mark(1)
    assert scene.one.marks.stored == 4
    assert [first.marks.was_handed(offset) for offset in range(7)] == [True, False, True, False, True, False, False]


def test_offsets_that_are_missing_are_nothing_undone() -> None:
    scene = Scene("abc", step=10)
    parts = scene.begin_all()
    for part in parts:
        scene.end(part)
    assert (scene.one.marks.stored, scene.one.intake.next_offset) == (21, 21)


def test_a_part_that_raises_lets_the_others_end_and_what_is_done_does_not_come_again() -> None:
    scene = Scene("abcabc", backoff=Backoff(1000, 9000))
    a, b, c = scene.begin_all()
    assert b.marks.mark(2)
    assert scene.end(b, failed=True) == [], "it is told with the last one"
    assert scene.end(a) == [a]
    assert scene.one.ready_at() is None
    assert scene.end(c) == [c, b]
    assert (scene.one.marks.stored, scene.one.intake.next_offset, scene.one.ready_at()) == (4, 4, 1.0)
    (again,) = scene.again()
    assert (offsets_of(again), again.attempt) == ([4], 2)
    scene.end(again)
    assert (scene.one.marks.stored, scene.one.retries.attempt) == (6, 1)


def test_of_parts_that_fail_one_tells_and_one_that_stops_the_app_comes_before_all() -> None:
    scene = Scene("abc")
    a, b, c = scene.begin_all()
    scene.end(a, failed=True)
    scene.end(b, failed=True)
    outcomes = scene.end(c, failed=True)
    assert [(one, one.beside) for one in outcomes] == [(c, True), (b, True), (a, False)]
    a, b, c = scene.again()
    scene.end(a, failed=True)
    scene.end(b, failed=True, error=SystemExit())
    assert scene.end(c)[-1] is b


def test_the_state_is_emptied_when_the_last_part_of_a_batch_that_failed_has_ended() -> None:
    scene = Scene("ab")
    a, b = scene.begin_all()
    scene.one.user_state["rows"] = 7
    scene.end(a, failed=True)
    assert scene.one.user_state == {"rows": 7}
    scene.end(b)
    assert scene.one.user_state == {}


def test_a_loop_that_was_left_comes_again_from_there_and_waits_where_its_part_did_nothing() -> None:
    scene = Scene("abab", backoff=Backoff(1000, 9000))
    a, b = scene.begin_all()
    a.in_hand = 0
    b.marks.mark(2)
    b.in_hand = 3
    scene.end(a)
    scene.end(b)
    assert (scene.one.marks.stored, scene.one.ready_at()) == (None, 1.0)
    assert [offsets_of(part) for part in scene.again()] == [[0, 2], [3]]


@pytest.mark.parametrize("keys", ["aaa", "aba"])
def test_what_was_committed_and_is_done_again_after_a_seek_is_not_pending_again(keys: str) -> None:
    scene = Scene(keys)
    for part in scene.begin_all():
        scene.end(part)
    marks = scene.one.marks
    marks.acknowledged(3, marks.version)
    scene.group.redirect(scene.one, 0, scene.now)
    assert scene.plan() == {0: 0}
    scene.arrive(keyed(keys))
    for part in reversed(scene.begin_all()):
        scene.end(part)
    assert (marks.stored, marks.retry_position, marks.pending) == (3, 3, False)


# -- what is sent


def test_a_refused_send_voids_the_marks_of_its_own_part_alone() -> None:
    scene = Scene("abab")
    a, b = scene.begin_all()
    send = a.marks.sending()
    a.marks.mark(1)
    assert scene.one.marks.stored is None, "it waits for the answer"
    b.marks.mark(4)
    scene.group.answered(a, send, ProduceError("no"), scene.now, 1)
    assert (scene.one.marks.stored, a.marks.failure is None, b.marks.failure) == (None, False, None)
    scene.end(a, failed=True)
    scene.end(b)
    assert [offsets_of(part) for part in scene.again()] == [[0, 2]]


def test_what_was_marked_after_a_send_counts_when_it_is_acknowledged() -> None:
    scene = Scene("aab")
    a, _ = scene.begin_all()
    send = a.marks.sending()
    a.marks.mark(1)
    assert scene.one.marks.stored is None
    scene.group.answered(a, send, None, scene.now, 1)
    assert scene.one.marks.stored == 1


# -- tries and dead letters


def test_tries_are_counted_for_the_part_that_raised_and_then_its_messages_come_one_by_one() -> None:
    scene = Scene("abab", budget=2)
    a, b = scene.begin_all()
    scene.fails(a)
    scene.end(b)
    tries = [scene.one.retries.tries_of(offset) for offset in range(4)]
    assert tries == [1, 0, 1, 0]
    assert [offsets_of(part) for part in scene.again()] == [[0]]
    (alone,) = scene.one.inside
    assert scene.fails(alone) == [alone]
    assert (scene.one.marks.stored, scene.one.retries.tries_of(2)) == (2, 1), "given up: and what is done after it"
    (last,) = scene.begin_all()
    assert (offsets_of(last), last.attempt) == ([2], 2)
    scene.end(last)
    assert scene.one.marks.stored == 4


def test_with_each_only_the_one_in_hand_is_counted_and_given_up_and_the_others_stay_a_batch() -> None:
    scene = Scene("abab", budget=1)
    a, b = scene.begin_all()
    a.in_hand = 0
    outcomes = scene.fails(a)
    assert (outcomes, scene.one.marks.stored) == ([a], 1)
    scene.end(b)
    assert [offsets_of(part) for part in scene.begin_all()] == [[2]], "at once, it has not failed"


def test_a_dead_letter_by_hand_is_done_out_of_order_in_its_part_too() -> None:
    scene = Scene("aab")
    a, b = scene.begin_all()
    scene.one.mark_alone(a, 1)
    scene.end(a, failed=True)
    scene.end(b)
    assert [offsets_of(part) for part in scene.again()] == [[0]]
    scene.end(scene.one.inside[0])
    assert scene.one.marks.stored == 3


# -- the partition as a whole


def test_a_seek_is_for_the_partition_and_no_part_is_marked_by_itself_after_it() -> None:
    scene = Scene("abc")
    a, b, c = scene.begin_all()
    scene.end(a)
    scene.group.redirect(scene.one, 1, scene.now)
    scene.end(b)
    scene.end(c)
    assert (scene.one.marks.stored, scene.plan()) == (1, {0: 1})


def test_what_was_done_after_the_target_of_a_seek_is_wanted_again() -> None:
    scene = Scene("abc")
    a, b, c = scene.begin_all()
    scene.end(c)
    scene.end(b)
    scene.group.redirect(scene.one, 0, scene.now)
    scene.end(a)
    assert scene.plan() == {0: 0}
    scene.arrive(keyed("abc"))
    assert [offsets_of(part) for part in scene.begin_all()] == [[0], [1], [2]]


def test_no_hook_is_beside_a_batch_and_a_drain_lets_all_parts_end() -> None:
    scene = Scene("abc", hooks=(hook(Hook.BEFORE_REVOKE), hook(Hook.EVERY, 1)))
    scene.group.take_ready()
    a = scene.begin()
    scene.now = 5.0
    scene.group.revoke([TP], scene.now)
    assert scene.one.state is State.DRAINING
    b, c = scene.begin_all()
    scene.end(a)
    scene.end(b)
    assert not scene.group.take_ready()
    scene.end(c)
    assert scene.one.marks.stored == 3
    assert scene.group.take_ready() == [scene.one]
    assert scene.begin().hook is Hook.BEFORE_REVOKE


@pytest.mark.parametrize("inside", [0, 1])
@pytest.mark.parametrize("lost", [False, True])
def test_at_the_end_parts_that_nobody_has_begun_are_dropped(inside: int, lost: bool) -> None:
    scene = Scene("abc", hooks=(hook(Hook.ON_REVOKED),))
    one = scene.one
    scene.group.take_ready()
    a = scene.begin()
    if not inside:
        scene.end(a)
    scene.group.take_ready()
    if lost:
        scene.group.lose(scene.now, rejoin=True)
    else:
        scene.group.revoke([TP], scene.now)
        scene.now = 100.0
        scene.group.advance(scene.now)
    assert one.over
    assert not one.waiting
    if inside:
        assert scene.group.begin(one, scene.now) is None
        assert not a.marks.mark(1)
        scene.end(a)
    scene.now += 99.0
    scene.group.advance(scene.now)
    assert one.state is (State.LOST if lost else State.REVOKED)
    run = scene.group.begin(one, scene.now)
    assert run is not None
    assert run.hook is Hook.ON_REVOKED


@pytest.mark.parametrize("lost", [False, True])
def test_of_a_part_that_failed_is_told_although_the_end_comes_before_the_others(lost: bool) -> None:
    scene = Scene("ab")
    scene.group.take_ready()
    a = scene.begin()
    assert scene.end(a, failed=True) == []
    if lost:
        scene.group.lose(scene.now, rejoin=True)
    else:
        scene.group.stop(scene.now)
        scene.now = 100.0
        scene.group.advance(scene.now)
    assert {run: outcome.retry_offset for run, outcome in scene.group.untold.items()} == {a: None}


def test_a_hook_marks_as_far_as_all_is_done() -> None:
    scene = Scene("ab", hooks=(hook(Hook.EVERY, 1),), backoff=Backoff(99_000, 99_000))
    a, b = scene.begin_all()
    scene.end(a, failed=True)
    scene.end(b)
    scene.now = 5.0
    every = scene.begin()
    assert every.hook is Hook.EVERY
    assert every.marks.mark(2)
    assert scene.one.marks.stored == 0
    scene.end(every)


# -- any order


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 1 << 32))
def test_in_any_order_what_is_stored_never_passes_what_is_not_done(seed: int) -> None:
    """Ends, marks, sends, failures and dead letters of parts, with few workers or many, over several batches."""
    rng = random.Random(seed)
    scene = Scene(parts=rng.choice([1, 2, 3, 8]), max_messages=rng.choice([3, 10]), budget=rng.choice([None, 1, 2]))
    log = keyed("".join(rng.choice("aaaabc-") for _ in range(30)), step=rng.choice([1, 3]))
    keys = {record.offset: record.key for record in log}
    done, handed, sends = set[int](), Counter[int](), dict[Part, list[Any]]()
    newest = dict[bytes, int]()
    running: list[Part] = []
    scene.arrive(log)

    def has_done(part: Part, before: int) -> None:
        done.update(record.offset for record in part.records if record.offset < before)

    def check() -> None:
        undone = min((offset for offset in keys if offset not in done), default=log[-1].offset + 1)
        stored = scene.one.marks.stored
        assert stored is None or stored <= undone
        busy = [key for part in running for key in {record.key for record in part.records if record.key}]
        assert len(busy) == len(set(busy)), "a key is in one call at a time"

    for _ in range(3000):
        if len(done) == len(keys) and not running:
            break
        if rng.random() < 0.5:
            scene.now += 1.0
            scene.group.advance(scene.now)
            for ownership in scene.group.take_ready():
                part = scene.group.begin(ownership, scene.now)
                assert isinstance(part, Part)
                running.append(part)
                for record in part.records:
                    assert record.offset not in done, "what is done does not come again"
                    handed[record.offset] += 1
                    if record.key:
                        assert newest.get(record.key, -1) <= record.offset or handed[record.offset] > 1
                        newest[record.key] = record.offset
        elif running:
            part = rng.choice(running)
            waits, what = sends.setdefault(part, []), rng.random()
            offsets = offsets_of(part)
            if what < 0.3 and part.marks.failure is None and not waits:
                at = rng.choice(offsets)
                part.marks.mark(at + 1)
                has_done(part, at + 1)
            elif what < 0.4 and part.marks.failure is None:
                waits.append(part.marks.sending())
            elif what < 0.6 and waits:
                failure = ProduceError("no") if rng.random() < 0.3 else None
                scene.group.answered(part, waits.pop(), failure, scene.now, 1)
            elif what > 0.7 and not waits:
                running.remove(part)
                if part.marks.failure is not None or rng.random() < 0.3:
                    part.in_hand = rng.choice([None, *(offset for offset in offsets if offset not in done)])
                    culprit = part.culprit
                    if part.ownership.gives_up(part):
                        done.add(culprit or 0)
                        scene.group.give_up(part, now=scene.now)
                    else:
                        scene.end(part, failed=True)
                else:
                    has_done(part, offsets[-1] + 1)
                    scene.end(part)
        check()
    assert len(done) == len(keys), "it comes to its end"
    assert scene.one.marks.stored == log[-1].offset + 1
    assert not scene.one.marks.has_done
