"""What waits for the next mark: when it is released, dropped, kept, void."""

from __future__ import annotations

from karafka_lite.core.marks import Marks
from karafka_lite.core.sends import DROPPED, OVER, VOID, Held
from karafka_lite.errors import ProduceError
from karafka_lite.messages import Addressed


def begun() -> Marks:
    marks = Marks()
    marks.begin_at(0, committed=True, commit_start=False)
    return marks


def sent(marks: Marks, name: str) -> Held:
    held = marks.sends.hold(marks.last)
    held.messages.append(Addressed("out", name.encode()))
    held.watchers.append(name)
    return held


def waiting(marks: Marks) -> list[str]:
    return [held.watchers[0] for held in marks.sends.held]


def released(marks: Marks) -> list[str]:
    return [held.watchers[0] for held in marks.released]


def answers(marks: Marks) -> dict[str, str]:
    return {held.watchers[0]: str(held.answer) for held in marks.sends.settled}


def test_a_mark_releases_what_was_sent_before_it_and_only_that() -> None:
    marks = begun()
    sent(marks, "a")
    assert (released(marks), marks.owes) == ([], False)
    marks.mark(1)
    sent(marks, "b")
    assert (released(marks), marks.owes) == (["a"], True)
    marks.mark(2)
    assert released(marks) == ["a", "b"]


def test_what_a_transaction_has_committed_is_gone_and_what_was_sent_after_its_mark_stays() -> None:
    marks = begun()
    sent(marks, "a")
    marks.mark(1)
    offset, version = marks.commit_point
    sent(marks, "b")
    marks.mark(2)
    marks.acknowledged(offset or 0, version)
    assert (waiting(marks), released(marks), marks.pending) == (["b"], ["b"], True)


def test_a_mark_at_the_same_place_releases_what_was_sent_since() -> None:
    marks = begun()
    marks.mark(1)
    before = marks.version
    marks.mark(1)
    assert marks.version == before
    sent(marks, "a")
    marks.mark(1)
    assert (released(marks), marks.pending) == (["a"], True)


def test_a_failure_drops_what_was_sent_after_the_last_mark() -> None:
    marks = begun()
    sent(marks, "a")
    marks.mark(1)
    sent(marks, "b")
    marks.drop(of_run=False)
    assert (waiting(marks), released(marks), answers(marks)) == (["a"], ["a"], {"b": DROPPED})


def test_over_runs_without_a_mark_all_waits_and_a_failure_drops_all_but_a_hook_its_own_alone() -> None:
    marks = begun()
    sent(marks, "a")
    marks.sends.begin()
    sent(marks, "b")
    marks.drop(of_run=True)
    assert waiting(marks) == ["a"]
    marks.sends.begin()
    sent(marks, "c")
    marks.drop(of_run=False)
    assert waiting(marks) == []


def test_what_was_sent_before_a_seek_is_kept_over_a_failure() -> None:
    marks = begun()
    sent(marks, "a")
    marks.sends.keep()
    sent(marks, "b")
    marks.drop(of_run=False)
    assert waiting(marks) == ["a"]
    marks.mark(1)
    assert released(marks) == ["a"]


def test_a_refused_message_makes_marks_void_and_what_they_have_released_is_taken_back() -> None:
    marks = begun()
    sent(marks, "a")
    marks.mark(1)
    sent(marks, "b")
    refused = sent(marks, "c")
    marks.mark(2)
    sent(marks, "d")
    marks.mark(3)
    marks.refused_with(refused, ProduceError("no"))
    assert (marks.stored, marks.retry_position, released(marks)) == (1, 1, ["a"])
    assert answers(marks) == {"b": VOID, "c": "no", "d": VOID}
    assert str(marks.failure) == "no"


def test_what_was_sent_before_a_seek_stays_where_a_later_one_is_refused() -> None:
    marks = begun()
    sent(marks, "a")
    marks.sends.keep()
    marks.retry_position = 7
    refused = sent(marks, "b")
    marks.mark(8)
    marks.refused_with(refused, ProduceError("no"))
    assert (waiting(marks), marks.stored, marks.retry_position) == (["a"], 0, 7)
    assert released(marks) == []


def test_a_refusal_of_what_an_earlier_run_has_sent_is_not_the_fault_of_this_one() -> None:
    for own in (False, True):
        marks = begun()
        refused = sent(marks, "a")
        if not own:
            marks.sends.begin()
        marks.refused_with(refused, ProduceError("no"))
        assert isinstance(marks.failure, ProduceError)
        assert marks.failure.collateral is not own


def test_a_refusal_of_what_was_dropped_changes_nothing() -> None:
    marks = begun()
    refused = sent(marks, "a")
    marks.drop(of_run=False)
    marks.mark(1)
    marks.refused_with(refused, ProduceError("late"))
    assert (marks.failure, marks.stored) == (None, 1)


def test_after_marks_were_void_new_ones_release_again() -> None:
    marks = begun()
    refused = sent(marks, "a")
    marks.mark(1)
    marks.refused_with(refused, ProduceError("no"))
    marks.failure = None
    sent(marks, "b")
    assert released(marks) == []
    marks.mark(1)
    assert released(marks) == ["b"]


def test_what_counts_as_given_up_because_of_a_letter_comes_again_when_the_letter_is_dropped() -> None:
    marks = begun()
    marks.add_done((9, 10))
    marks.sends.hold(marks.last, (3, 5))
    marks.add_done((3, 5))
    assert [marks.is_done(offset) for offset in (3, 4, 9)] == [True, True, True]
    marks.drop(of_run=False)
    assert [marks.is_done(offset) for offset in (3, 4, 9)] == [False, False, True]


def test_what_has_left_at_once_after_a_mark_that_is_void_does_not_have_it_committed() -> None:
    """A dead letter by hand that is refused, and another one behind an unmarked message, which has no answer yet."""
    marks = begun()
    letter = sent(marks, "letter")
    marks.mark(1)
    at_once = marks.sending()
    marks.refused_with(letter, ProduceError("no"))
    assert (marks.commit_point, marks.committable) == ((0, 0), False)
    marks.answered(at_once, None)
    assert (marks.stored, marks.committable) == (0, False)


def test_at_the_end_of_the_ownership_nothing_is_left() -> None:
    marks = begun()
    sent(marks, "a")
    marks.mark(1)
    sent(marks, "b")
    marks.sends.end()
    assert (waiting(marks), answers(marks)) == ([], {"a": OVER, "b": OVER})


def test_what_one_run_sends_between_two_marks_is_one() -> None:
    marks = begun()
    first = marks.hold()
    assert marks.hold() is first
    marks.mark(1)
    second = marks.hold()
    assert second is not first
    marks.sends.begin()
    third = marks.hold()
    assert third is not second, "of another run"
    marks.sends.keep()
    fourth = marks.hold()
    assert fourth is not third, "after a seek"
    assert marks.sends.held == [first, second, third, fourth]
