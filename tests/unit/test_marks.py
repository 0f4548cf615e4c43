"""What is stored, what may be committed, and what is committed: every order of what can happen to an offset."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from karafka_lite.core.marks import Marks
from karafka_lite.core.sends import Send
from karafka_lite.errors import ProduceError

STEPS = 7


def begun(start: int = 0) -> Marks:
    marks = Marks()
    marks.begin_at(start, committed=False, commit_start=False)
    return marks


# -- every order of operations, against a journal


@dataclass
class Journal:
    """The promise in its plainest form: what happened in one ownership, in its order, and what follows from it.

    A send is its number, a mark is a list of its offset, so that two marks of one offset differ.
    """

    entries: list[int | list[int]] = field(default_factory=list)
    refused: set[int] = field(default_factory=set)
    waiting: list[int] = field(default_factory=list)  # sends without an answer

    def valid(self) -> Iterator[list[int]]:
        """The marks that count: those before the first send that was refused."""
        for entry in self.entries:
            if isinstance(entry, list):
                yield entry
            elif entry in self.refused:
                return

    def safe(self) -> Iterator[list[int]]:
        """The marks that may be committed: those that count, before the first send without an answer."""
        sends = [self.entries.index(send) for send in self.waiting]
        valid = list(self.valid())
        before = self.entries[: min(sends, default=None)]
        return (entry for entry in before if any(entry is mark for mark in valid))  # type: ignore[misc]

    def end(self) -> None:
        self.entries = list(self.valid())
        self.refused.clear()


class Both:
    """The marks under test, and the journal of what was done to them."""

    def __init__(self) -> None:
        self.marks = begun()
        self.journal = Journal()
        self.sends: list[Send] = []
        self.offset = 0
        self.on_its_way: tuple[int, int, list[int]] | None = None
        self.broker_has: list[int] | None = None
        self.offset_of_version: dict[int, int | None] = {}

    def possible(self) -> list[str]:
        names = ["send", "mark"]
        if self.journal.waiting:
            names += ["the oldest is acknowledged", "the oldest is refused"]
        if len(self.journal.waiting) > 1:
            names += ["the newest is acknowledged", "the newest is refused"]
        if not self.journal.waiting:
            names.append("the run ends")  # it waits for all answers
        if self.on_its_way:
            names.append("the commit is acknowledged")
        elif self.marks.committable:
            names.append("commit")
        return names

    def do(self, name: str) -> None:
        match name.split():
            case ["the", "commit", *_]:
                self.acknowledge()
            case ["the", "run", *_]:
                self.end()
            case ["the", which, *_, how]:
                self.answer(0 if which == "oldest" else -1, refused=how == "refused")
            case _:
                {"send": self.send, "mark": self.mark, "commit": self.commit}[name]()
        self.compare()

    def send(self) -> None:
        self.journal.entries.append(len(self.sends))
        self.journal.waiting.append(len(self.sends))
        self.sends.append(self.marks.sending())

    def answer(self, index: int, *, refused: bool) -> None:
        number = self.journal.waiting.pop(index)
        if refused:
            self.journal.refused.add(number)
        self.marks.answered(self.sends[number], ProduceError("refused") if refused else None)

    def mark(self) -> None:
        self.offset += 1
        self.journal.entries.append([self.offset])
        assert self.marks.mark(self.offset), "the partition is ours, whatever a broker has refused"

    def commit(self) -> None:
        offset, version = self.marks.commit_point
        assert offset is not None
        self.on_its_way = offset, version, list(self.journal.safe())[-1]

    def acknowledge(self) -> None:
        assert self.on_its_way
        offset, version, self.broker_has = self.on_its_way
        self.marks.acknowledged(offset, version)
        self.on_its_way = None

    def end(self) -> None:
        self.journal.end()
        self.marks.failure = None

    def compare(self) -> None:
        marks = self.marks
        valid, safe = list(self.journal.valid()), list(self.journal.safe())
        assert marks.stored == (valid[-1][0] if valid else None)
        assert marks.retry_position == (valid[-1][0] if valid else 0)
        assert marks.commit_point[0] == (safe[-1][0] if safe else None)
        assert marks.pending is ((valid[-1] if valid else None) is not self.broker_has)
        assert marks.committable is ((safe[-1] if safe else None) is not self.broker_has)
        assert marks.committed == (self.broker_has[0] if self.broker_has else None)
        assert marks.in_flight == len(self.journal.waiting)
        assert (marks.failure is not None) is bool(self.journal.refused)
        seen = self.offset_of_version.setdefault(marks.version, marks.stored)
        assert seen == marks.stored, "a version was used twice"


def after(order: tuple[str, ...]) -> Both:
    both = Both()
    try:
        for name in order:
            both.do(name)
    except AssertionError as error:
        raise AssertionError(f"{error}, after: {', '.join(order)}") from error
    return both


def orders(done: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every order of ``STEPS`` operations that can happen."""
    both = after(done)
    if len(done) == STEPS:
        yield done
        return
    for name in both.possible():
        yield from orders((*done, name))


def test_in_every_order_only_what_is_safe_is_committed() -> None:
    assert sum(1 for _ in orders()) > 10_000


# -- marking


@pytest.mark.parametrize(
    ("committed", "commit_start", "stored", "pending"),
    [(True, False, 5, False), (False, False, None, False), (False, True, 5, True)],
    ids=["committed", "not committed", "to be committed"],
)
def test_where_an_ownership_begins(committed: bool, commit_start: bool, stored: int | None, pending: bool) -> None:
    marks = Marks()
    marks.begin_at(5, committed=committed, commit_start=commit_start)
    assert (marks.stored, marks.pending, marks.retry_position) == (stored, pending, 5)
    assert marks.committed == (5 if committed else None)


def test_closed_marks_store_nothing_and_say_so() -> None:
    marks = begun()
    assert marks.mark(1) is True
    marks.closed = True
    assert marks.mark(2) is False
    assert (marks.stored, marks.retry_position) == (1, 1)


def test_every_change_is_pending_until_it_is_acknowledged() -> None:
    marks = begun()
    marks.mark(3)
    first = marks.version
    marks.mark(1)
    marks.acknowledged(3, first)
    assert (marks.committed, marks.pending) == (3, True), "the older mark came later and has yet to be committed"
    marks.acknowledged(1, marks.version)
    assert (marks.committed, marks.pending) == (1, False)


def test_a_second_mark_of_the_same_offset_changes_nothing() -> None:
    marks = begun()
    marks.mark(1)
    marks.acknowledged(1, marks.version)
    assert marks.mark(1)
    assert not marks.pending


def test_only_what_was_handed_over_counts_as_handed_over() -> None:
    marks = begun(5)
    assert not any(map(marks.was_handed, range(12)))
    marks.handed_over(5, 7)
    marks.handed_over(9, 10)
    assert [offset for offset in range(12) if marks.was_handed(offset)] == [5, 6, 7, 8, 9]
    marks.handed_over(3, 5)
    assert marks.was_handed(3), "an older mark brings back what was before the start"


# -- sends


def test_a_second_answer_to_a_send_is_none() -> None:
    marks = begun()
    send = marks.sending()
    marks.answered(send, None)
    marks.mark(1)
    marks.answered(send, ProduceError("late"))
    assert (marks.failure, marks.stored) == (None, 1)


def test_the_first_failure_of_a_run_is_its_reason() -> None:
    marks = begun()
    first, second = marks.sending(), marks.sending()
    reasons = ProduceError("second"), ProduceError("first")
    marks.answered(second, reasons[0])
    marks.answered(first, reasons[1])
    assert marks.failure is reasons[0]
    assert marks.last_failure is reasons[1]


def test_answers_that_nobody_waits_for_any_longer_are_failures() -> None:
    marks = begun()
    marks.mark(1)
    sends = [marks.sending() for _ in range(3)]
    marks.mark(2)
    assert marks.waits_for == "a message that was sent before it has no answer yet"
    marks.answered(sends[1], None)
    late = ProduceError("late")
    marks.give_up_answers(late)
    assert (marks.in_flight, marks.failure, marks.stored) == (0, late, 1)
    marks.answered(sends[0], None)
    assert marks.failure is late, "an answer that comes after all changes nothing"
    assert marks.waits_for == "no answer yet"


def test_acknowledged_sends_are_forgotten() -> None:
    marks = begun()
    for offset in range(1000):
        marks.answered(marks.sending(), None)
        marks.mark(offset)
    assert (len(marks.sends._sends), marks.in_flight) == (0, 0)


# -- messages that are done out of order


def test_ranges_that_touch_become_one() -> None:
    marks = begun()
    for offset in (4, 2, 3, 9):
        marks.add_done((offset, offset + 1))
    assert marks._done == [(2, 5), (9, 10)]
    assert [marks.past_done(offset) for offset in (1, 2, 4, 5, 9)] == [1, 5, 5, 5, 10]


def test_what_is_done_counts_as_marked_once_all_before_it_is() -> None:
    marks = begun()
    marks.add_done((2, 3))
    assert marks.stored is None
    marks.add_done((0, 2))
    assert (marks.stored, marks.retry_position) == (3, 3)


def test_what_is_done_together_is_one_mark() -> None:
    marks = begun()
    marks.mark(5)
    version, marks.retry_position = marks.version, 0  # as after a seek
    marks.add_done((2, 3))
    marks.add_done((0, 2), (3, 5))
    assert (marks.stored, marks.version, marks.retry_position) == (5, version, 5)


def test_where_the_position_is_done_already_anything_done_moves_it_past_that() -> None:
    marks = begun()
    marks.add_done((0, 4))
    marks.retry_position = 1  # as at the begin of an automatic batch, whose first messages were given up before
    marks.add_done((7, 8))
    assert (marks.stored, marks.retry_position, marks._done) == (4, 4, [(0, 4), (7, 8)])


def test_a_mark_just_before_what_was_done_goes_past_it() -> None:
    marks = begun()
    marks.add_done((2, 3))
    marks.mark(1)
    assert marks.stored == 1
    marks.mark(2)
    assert (marks.stored, marks.retry_position) == (3, 3)


def test_what_cannot_come_again_is_forgotten_what_is_sought_too() -> None:
    marks = begun()
    marks.add_done((2, 5))
    marks.add_done((8, 10))
    marks.forget_done(before=3)
    assert marks._done == [(3, 5), (8, 10)]
    marks.forget_done(from_offset=9)
    assert marks._done == [(3, 5), (8, 9)]
    marks.forget_done(from_offset=0)
    assert not marks.has_done


@given(st.lists(st.tuples(st.sampled_from(["done", "before", "from"]), st.integers(0, 20), st.integers(1, 4))))
def test_ranges_are_what_a_set_of_offsets_would_be(steps: list[tuple[str, int, int]]) -> None:
    marks, model = begun(), set[int]()
    for name, offset, length in steps:
        if name == "done":
            marks.add_done((offset, offset + length))
            model |= set(range(offset, offset + length))
        elif name == "before":
            marks.forget_done(before=offset)
            model = {one for one in model if one >= offset}
        else:
            marks.forget_done(from_offset=offset)
            model = {one for one in model if one < offset}
        assert {one for one in range(30) if marks.is_done(one)} == model
        for one in range(30):
            assert marks.past_done(one) == next(n for n in range(one, 99) if n not in model)
    assert marks.has_done is bool(model)


def test_a_send_that_was_refused_counts_before_one_that_failed_with_another_message() -> None:
    """Else a run that kills the producer again and again would be excused again and again."""
    own, collateral = ProduceError("too large"), ProduceError("another message was refused")
    collateral.collateral = True
    for order in ([own, collateral], [collateral, own]):
        marks = Marks()
        marks.begin_at(0, committed=False, commit_start=False)
        sends = [marks.sending() for _ in order]
        for send, failure in zip(sends, order, strict=True):
            marks.answered(send, failure)
        assert marks.failure is own
