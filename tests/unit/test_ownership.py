"""One ownership of one partition: what is handed over, marked, repeated, and when it ends. No Kafka, no clock."""

from __future__ import annotations

from typing import Any

import pytest
from support.partitions import TP, begin, fetch, hook, offsets_of, ownership, process, seek

from karafka_lite.core.backoff import Backoff
from karafka_lite.core.intake import BufferLimits
from karafka_lite.core.options import Hook, Options
from karafka_lite.core.ownership import Ownership, State
from karafka_lite.core.starts import Note, Start
from karafka_lite.errors import ProduceError

NO_WAIT = Backoff(1, 1)
ENDS = [State.RELEASING, State.REVOKED, State.LOST]


def end(given: Ownership, state: State) -> None:
    given.release(0.0) if state is State.RELEASING else given.finish(state)


# -- what is handed over ----------------------------------------------------------------------------------------------


def test_before_the_start_is_known_nothing_is_taken() -> None:
    assert not fetch(Ownership(TP, Options()), 0, 1)


def test_what_came_before_the_seek_is_dropped() -> None:
    made = Ownership(TP, Options())
    made.begin_at(Start(5, "committed"), Note())
    assert not fetch(made, 0, 1)
    assert seek(made) == 5
    assert fetch(made, 5, 6)
    assert process(made) == [5, 6]


def test_batches_are_cut_and_joined_to_max_messages() -> None:
    made = ownership(max_messages=3)
    for chunk in ([0], [1, 2, 3, 4, 5, 6, 7], [8, 9]):
        fetch(made, *chunk)
    assert [process(made) for _ in range(4)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert (made.intake.size, made.ready_at()) == (0, None)


def test_zero_batch_timeout_hands_over_at_once_what_is_there() -> None:
    made = ownership(max_messages=500)
    fetch(made, 0, now=7.0)
    assert made.ready_at() == 0.0
    assert offsets_of(begin(made, 7.0)) == [0]


def test_a_batch_timeout_counts_from_the_first_message() -> None:
    made = ownership(max_messages=3, batch_timeout_ms=500)
    fetch(made, 0, now=7.0)
    fetch(made, 1, now=7.4)
    assert made.ready_at() == 7.5
    assert made.begin(7.49) is None
    fetch(made, 2, now=7.45)
    assert made.ready_at() == 0.0, "it is full"
    assert offsets_of(begin(made, 7.45)) == [0, 1, 2]


def test_what_stays_in_the_queue_has_its_own_batch_timeout() -> None:
    made = ownership(max_messages=2, batch_timeout_ms=500)
    fetch(made, 0, 1, 2, now=1.0)
    assert process(made, now=5.0) == [0, 1]
    assert made.ready_at() == 5.5


def test_no_batch_waits_for_more_when_no_more_is_fetched() -> None:
    made = ownership(max_messages=10, batch_timeout_ms=60_000)
    fetch(made, 0, 1)
    assert made.ready_at() == 60.0
    made.intake.paused = made.intake.wants_pause(BufferLimits(messages=1000, size_bytes=14), now=0.0)
    assert made.ready_at() == 0.0


def test_a_retry_does_not_wait_for_a_full_batch() -> None:
    made = ownership(max_messages=10, batch_timeout_ms=60_000, backoff=Backoff(1000, 1000))
    fetch(made, 0, 1)
    process(made, now=60.0, failed=True)
    assert made.ready_at() == 61.0


def test_a_partition_never_runs_beside_itself() -> None:
    made = ownership(max_messages=1)
    fetch(made, 0, 1)
    run = begin(made)
    assert made.ready_at() is None
    assert made.begin(99.0) is None
    made.end(run, failed=False, now=0.0)
    assert process(made) == [1]


def test_an_ownership_waits_for_user_code_of_the_one_before() -> None:
    before = ownership(max_messages=1)
    fetch(before, 0)
    run = begin(before)
    before.finish(State.LOST)
    made = Ownership(TP, Options(), predecessor=before)
    made.begin_at(Start(0, "earliest"), Note())
    seek(made)
    fetch(made, 0)
    assert made.ready_at() is None
    before.end(run, failed=False, now=0.0)
    assert made.ready_at() == 0.0


def test_the_start_is_committed_before_anything_is_handed_over() -> None:
    made = Ownership(TP, Options())
    made.begin_at(Start(9, "latest"), Note())
    seek(made)
    fetch(made, 9)
    assert (made.marks.stored, made.marks.pending) == (9, True)
    assert made.ready_at() is None
    made.marks.acknowledged(9, made.marks.version)
    assert made.ready_at() == 0.0


def test_a_pause_of_the_user_holds_batches_back_and_nothing_else() -> None:
    every = hook(Hook.EVERY, 1000)
    made = ownership(max_messages=1, hooks=(every,))
    fetch(made, 0, 1)
    process(made)
    made.intake.paused_until = 60.0
    assert made.ready_at() == 1.0
    assert begin(made, 1.0).hooks == (every,)


# -- marks ------------------------------------------------------------------------------------------------------------


def test_automatic_a_batch_is_marked_at_its_end_and_not_before() -> None:
    made = ownership()
    fetch(made, 0, 1, 4)
    run = begin(made)
    assert (made.marks.stored, made.marks.pending) == (None, False)
    made.end(run, failed=False, now=0.0)
    assert (made.marks.stored, made.marks.pending, made.marks.retry_position) == (5, True, 5)


def test_automatic_the_end_of_a_batch_wins_over_marks_inside_it() -> None:
    made = ownership()
    fetch(made, 0, 1, 2)
    run = begin(made)
    assert made.marks.mark(1)
    made.end(run, failed=False, now=0.0)
    assert made.marks.stored == 3


@pytest.mark.parametrize("state", ENDS)
def test_automatic_a_batch_that_ends_too_late_is_not_marked(state: State) -> None:
    made = ownership()
    fetch(made, 0, 1)
    run = begin(made)
    made.drain(60.0, stopping_app=False)
    end(made, state)
    made.end(run, failed=False, now=99.0)
    assert (made.marks.stored, made.marks.pending) == (None, False)


def test_manual_only_marks_are_stored() -> None:
    made = ownership(manual_offsets=True, max_messages=1)
    fetch(made, 0, 1, 2)
    process(made)
    assert made.marks.stored is None
    run = begin(made)
    assert made.marks.mark(2)
    made.end(run, failed=False, now=0.0)
    process(made)
    assert made.marks.stored == 2


@pytest.mark.parametrize("state", ENDS)
def test_marks_are_refused_when_the_ownership_is_over(state: State) -> None:
    made = ownership(manual_offsets=True)
    fetch(made, 0, 1)
    begin(made)
    made.marks.mark(1)
    end(made, state)
    assert made.over
    assert made.marks.mark(2) is False
    assert (made.marks.stored, made.marks.retry_position) == (1, 1)


def test_marks_count_while_draining() -> None:
    made = ownership(manual_offsets=True)
    fetch(made, 0, 1)
    begin(made)
    made.drain(60.0, stopping_app=True)
    assert made.marks.mark(2) is True
    assert made.marks.stored == 2


def test_only_what_was_handed_over_counts_as_handed() -> None:
    made = ownership(5, max_messages=2)
    fetch(made, 5, 6, 7, 8)
    assert not any(made.marks.was_handed(offset) for offset in range(12))
    process(made)
    assert [offset for offset in range(12) if made.marks.was_handed(offset)] == [5, 6]
    process(made)
    assert [offset for offset in range(12) if made.marks.was_handed(offset)] == [5, 6, 7, 8]


def test_what_was_handed_before_a_failure_still_counts() -> None:
    made = ownership(manual_offsets=True, max_messages=2)
    fetch(made, 0, 1, 2, 3)
    process(made)
    process(made, failed=True)
    seek(made)
    fetch(made, 0, 1)
    begin(made, now=99.0)
    assert [offset for offset in range(6) if made.marks.was_handed(offset)] == [0, 1, 2, 3]


def test_a_message_before_the_start_counts_when_it_comes() -> None:
    made = ownership(5, committed=True, manual_offsets=True)
    fetch(made, 5, 6)
    run = begin(made)
    made.marks.mark(3)
    made.end(run, failed=True, now=0.0)
    assert seek(made) == 3
    fetch(made, 3, 4)
    begin(made, now=99.0)
    assert made.marks.was_handed(3)


# -- failure ----------------------------------------------------------------------------------------------------------


def test_a_failed_run_marks_nothing() -> None:
    made = ownership()
    fetch(made, 0, 1)
    process(made, failed=True)
    assert (made.marks.stored, made.marks.pending) == (None, False)


def test_the_back_off_begins_at_the_runs_end_and_never_gives_up() -> None:
    made = ownership(backoff=Backoff(1000, 30_000))
    fetch(made, 0)
    waits = []
    now = 100.0
    for _ in range(200):
        run = begin(made, now)
        now += 3  # as long as the handler took
        made.end(run, failed=True, now=now)
        ready = made.ready_at()
        assert ready is not None
        assert made.begin(ready - 0.001) is None
        waits.append(ready - now)
        now = ready
    assert waits[:7] == [1, 2, 4, 8, 16, 30, 30]
    assert set(waits[5:]) == {30}


def test_attempt_counts_failures_in_a_row() -> None:
    made = ownership(max_messages=1)
    fetch(made, *range(10))
    attempts = []
    for failed in (True, True, False, True, False, False):
        run = begin(made, 1e9)
        attempts.append(run.attempt)
        made.end(run, failed=failed, now=0.0)
    assert attempts == [1, 2, 3, 1, 2, 1]


def test_what_failed_is_put_back_in_front_and_not_fetched_again() -> None:
    made = ownership(max_messages=2, backoff=NO_WAIT)
    fetch(made, 0, 1, 2, 3, 4)
    process(made)
    assert process(made, failed=True) == [2, 3]
    assert seek(made) is None
    assert made.marks.stored == 2
    assert fetch(made, 5), "fetching goes on where it was"
    assert [process(made, now=9.0) for _ in range(2)] == [[2, 3], [4, 5]]


def test_automatic_a_retry_starts_at_a_mark_in_the_failed_batch() -> None:
    made = ownership(max_messages=3)
    fetch(made, 0, 1, 2)
    run = begin(made)
    made.marks.mark(2)
    made.end(run, failed=True, now=0.0)
    assert (seek(made), made.marks.stored) == (None, 2)
    assert process(made, now=9.0) == [2]


def test_automatic_a_retry_ignores_marks_of_earlier_batches() -> None:
    made = ownership(max_messages=2)
    fetch(made, 0, 1, 2, 3)
    run = begin(made)
    made.marks.mark(1)
    made.end(run, failed=False, now=0.0)
    process(made, failed=True)
    assert seek(made) is None
    assert process(made, now=9.0) == [2, 3]


def test_manual_a_retry_starts_at_the_last_mark_of_any_batch() -> None:
    made = ownership(5, committed=True, manual_offsets=True, max_messages=2)
    fetch(made, 5, 6, 7, 8, 9, 10)
    run = begin(made)
    made.marks.mark(6)
    made.end(run, failed=False, now=0.0)
    process(made)
    process(made, failed=True)
    assert seek(made) == 6


def test_manual_without_a_mark_a_retry_starts_at_the_beginning() -> None:
    made = ownership(5, committed=True, manual_offsets=True, max_messages=2)
    fetch(made, 5, 6, 7, 8, 9, 10)
    process(made)
    process(made)
    process(made, failed=True)
    assert seek(made) == 5


def test_manual_the_first_batch_is_put_back_from_its_mark_on() -> None:
    made = ownership(5, committed=True, manual_offsets=True, max_messages=3)
    fetch(made, 5, 6, 7, 8)
    run = begin(made)
    made.marks.mark(6)
    made.end(run, failed=True, now=0.0)
    assert seek(made) is None
    assert process(made, now=9.0) == [6, 7, 8]


def test_going_further_back_drops_what_came_before_the_seek() -> None:
    made = ownership(manual_offsets=True, max_messages=2)
    fetch(made, 0, 1, 2, 3, 4, 5)
    process(made)
    process(made, failed=True)
    assert made.intake.size == 0
    assert not fetch(made, 6, 7), "fetched before the poller has gone back"
    assert seek(made) == 0
    assert fetch(made, 0, 1)
    assert process(made, now=99.0) == [0, 1]


@pytest.mark.parametrize("manual", [False, True])
def test_after_a_mark_past_the_batch_nothing_older_is_put_back(manual: bool) -> None:
    """It was handed over before, in a batch that failed; what is queued after this batch is older than the mark."""
    made = ownership(manual_offsets=manual, max_messages=6, backoff=NO_WAIT)
    fetch(made, *range(8))
    process(made, failed=True)
    made.options = made.options._replace(max_messages=2)
    run = begin(made, 9.0)
    made.marks.mark(5)
    made.end(run, failed=True, now=9.0)
    assert seek(made) == 5
    fetch(made, 5, 6, 7)
    assert process(made, now=99.0) == [5, 6]


def test_a_batch_after_a_gap_is_put_back_whole() -> None:
    """Offsets 3 to 6 hold no message: the batch begins at 3, before its first message."""
    made = ownership(max_messages=3, manual_offsets=True)
    fetch(made, 0, 1, 2, 7, 8)
    run = begin(made)
    made.marks.mark(3)
    made.end(run, failed=False, now=0.0)
    assert process(made, failed=True) == [7, 8]
    assert seek(made) is None
    assert process(made, now=9.0) == [7, 8]


def test_state_is_emptied_by_a_failure_as_the_same_dict() -> None:
    made = ownership(max_messages=1)
    state = made.user_state
    state["rows"] = [1]
    fetch(made, 0, 1)
    process(made)
    assert made.user_state == {"rows": [1]}
    process(made, failed=True)
    assert made.user_state is state, "whoever kept the dict must not go on with the old rows"
    assert state == {}


def test_a_run_of_hooks_counts_no_attempt_and_marks_nothing() -> None:
    made = ownership(hooks=(hook(Hook.ON_SHUTDOWN),))
    fetch(made, 0, 1)
    process(made, failed=True)
    made.user_state["rows"] = [1]
    made.drain(60.0, stopping_app=True)
    run = begin(made)
    assert (run.hook, offsets_of(run), str(run)) == (Hook.ON_SHUTDOWN, [], "topic-0 on_shutdown")
    made.end(run, failed=False, now=0.0)
    assert (made.retries.attempt, made.marks.stored, made.user_state) == (2, None, {"rows": [1]})


# -- a loop over each that was left -----------------------------------------------------------------------------------


@pytest.mark.parametrize("manual", [False, True])
def test_a_loop_that_was_left_goes_on_with_the_message_in_hand(manual: bool) -> None:
    made = ownership(manual_offsets=manual, max_messages=3)
    fetch(made, 0, 1, 2, 3, 4)
    run = begin(made)
    made.marks.mark(1)
    run.in_hand = 1
    made.end(run, failed=False, now=5.0)
    assert (made.marks.stored, seek(made), made.retries.attempt) == (1, None, 1)
    assert made.ready_at() == 0.0, "it made progress"
    assert process(made, now=5.0) == [1, 2, 3]


def test_a_loop_that_was_left_at_once_waits_its_back_off() -> None:
    made = ownership(backoff=Backoff(1000, 1000))
    fetch(made, 0, 1)
    run = begin(made)
    run.in_hand = 0
    made.end(run, failed=False, now=5.0)
    assert (made.marks.stored, made.ready_at()) == (None, 6.0), "else it might spin"
    assert process(made, now=6.0) == [0, 1]


@pytest.mark.parametrize(
    ("failed", "marked", "in_hand", "done"),
    [(False, None, None, 4), (False, None, 2, 2), (True, None, None, 0), (True, 3, None, 3), (True, 2, 2, 2)],
)
def test_messages_are_done_when_the_batch_is_or_when_marked(
    failed: bool, marked: int | None, in_hand: int | None, done: int
) -> None:
    made = ownership(manual_offsets=True)
    fetch(made, 0, 1, 2, 3)
    run = begin(made)
    if marked is not None:
        made.marks.mark(marked)
    run.in_hand = in_hand
    assert made.processed(run, failed=failed) == done


# -- where user code wants to go --------------------------------------------------------------------------------------


@pytest.mark.parametrize("failed", [False, True])
@pytest.mark.parametrize("manual", [False, True])
def test_a_seek_of_the_run_wins_over_its_mark_and_its_repetition(manual: bool, failed: bool) -> None:
    made = ownership(manual_offsets=manual)
    fetch(made, 0, 1, 2)
    run = begin(made)
    run.redirect = 40
    made.end(run, failed=failed, now=0.0)
    assert (made.marks.stored, seek(made), made.marks.retry_position) == (None, 40, 40)
    fetch(made, 40)
    assert process(made, now=99.0) == [40]


def test_a_seek_to_a_word_waits_for_its_offset() -> None:
    made = ownership()
    fetch(made, 0, 1, 2)
    run = begin(made)
    run.redirect = "earliest"
    made.end(run, failed=False, now=0.0)
    assert (made.intake.target, made.intake.moving) == ("earliest", True)
    made.redirect(0)
    assert seek(made) == 0


# -- messages that are given up ---------------------------------------------------------------------------------------


def give_up(given: Ownership, now: float = 99.0) -> list[int]:
    """The next message fails for the last time."""
    run = begin(given, now)
    assert given.gives_up(run)
    assert given.give_up(run) == (run,)
    return offsets_of(run)


def test_a_message_is_given_up_after_its_last_try() -> None:
    made = ownership(budget=2, max_messages=1, backoff=NO_WAIT)
    fetch(made, 0, 1)
    run = begin(made)
    assert not made.gives_up(run)
    made.end(run, failed=True, now=0.0)
    assert give_up(made) == [0]
    assert (made.marks.stored, made.retries.attempt) == (1, 1)
    assert process(made, now=99.0) == [1]


def test_of_a_batch_only_what_failed_alone_is_given_up() -> None:
    made = ownership(budget=1, backoff=NO_WAIT)
    fetch(made, 0, 1, 2)
    run = begin(made)
    assert not made.gives_up(run)
    made.end(run, failed=True, now=0.0)
    assert process(made, now=9.0) == [0]
    assert give_up(made) == [1]
    assert process(made, now=99.0) == [2]
    assert made.marks.stored == 3


def test_the_known_culprit_leaves_alone_and_the_rest_stays_a_batch() -> None:
    made = ownership(budget=2, backoff=NO_WAIT)
    fetch(made, 0, 1, 2, 3)
    for last in (False, True):
        run = begin(made, 99.0)
        assert offsets_of(run) == ([1, 2, 3] if last else [0, 1, 2, 3])
        made.marks.mark(1)
        run.in_hand = 1  # as ``each`` leaves it
        assert made.gives_up(run) is last
        if not last:
            made.end(run, failed=True, now=0.0)
    assert (run.culprit, made.retries.tries_of(1)) == (1, 2)
    made.give_up(run)
    assert made.marks.stored == 2
    assert process(made, now=99.0) == [2, 3]


def test_a_culprit_with_unmarked_messages_before_it_leaves_and_they_come_again() -> None:
    made = ownership(budget=1, backoff=NO_WAIT)
    fetch(made, 0, 1, 2, 3)
    run = begin(made)
    run.in_hand = 2  # a loop over ``each(batch[2:])``
    assert made.gives_up(run)
    made.give_up(run)
    assert made.marks.stored is None
    assert process(made, now=99.0) == [0, 1, 3]
    assert made.marks.stored == 4


def test_offsets_that_are_missing_before_a_culprit_are_nothing_unmarked() -> None:
    made = ownership(budget=1, max_messages=1)
    fetch(made, 5, 9)
    process(made)
    assert give_up(made) == [9]
    assert made.marks.stored == 10


def test_where_a_retry_is_pointless_a_known_culprit_is_given_up_and_an_unknown_one_is_found_without_a_wait() -> None:
    made = ownership(budget=4)
    fetch(made, 0, 1)
    run = begin(made)
    run.pointless = True
    assert not made.gives_up(run), "nobody knows who it was"
    made.end(run, failed=True, now=5.0)
    assert process(made, now=5.0) == [0]
    run = begin(made, 5.0)
    assert (offsets_of(run), run.attempt) == ([1], 2)
    run.pointless = True
    assert made.gives_up(run)


def test_pointless_or_not_a_batch_that_has_no_suspects_waits() -> None:
    made = ownership()
    fetch(made, 0, 1)
    run = begin(made)
    run.pointless = True
    made.end(run, failed=True, now=5.0)
    assert made.ready_at() == 6.0


def test_one_bad_message_of_an_unknown_culprit_costs_its_back_offs_and_no_more() -> None:
    made = ownership(budget=4)
    fetch(made, 0, 1, 2)
    now, seen = 0.0, []
    while made.marks.stored != 3:
        now = max(now, made.ready_at() or now)
        run = begin(made, now)
        seen.append((now, offsets_of(run), run.attempt))
        if 1 not in offsets_of(run):
            made.end(run, failed=False, now=now)
        elif made.gives_up(run):
            made.give_up(run)
        else:
            made.end(run, failed=True, now=now)
    assert seen == [
        (0.0, [0, 1, 2], 1), (1.0, [0], 2), (1.0, [1], 2), (3.0, [1], 3), (7.0, [1], 4), (7.0, [2], 2)
    ]  # fmt: skip


def test_by_hand_a_message_counts_as_marked_once_all_before_it_is() -> None:
    made = ownership(manual_offsets=True)
    fetch(made, 0, 1, 2)
    run = begin(made)
    made.mark_alone(run, 1)
    assert made.marks.stored is None
    made.marks.mark(1)
    assert made.marks.stored == 2
    made.mark_alone(run, 0)
    assert made.marks.stored == 2, "an older one changes nothing"
    made.mark_alone(run, 2)
    assert made.marks.stored == 3


def test_by_hand_a_message_whose_dead_letter_fails_comes_again() -> None:
    made = ownership(manual_offsets=True)
    fetch(made, 0, 1)
    run = begin(made)
    send = made.marks.sending()
    made.mark_alone(run, 0)
    assert made.marks.stored == 1
    made.marks.answered(send, OSError())
    made.mark_alone(run, 1)  # void, as a mark would be
    made.end(run, failed=True, now=0.0)
    assert made.marks.stored is None
    assert process(made, now=99.0) == [0, 1]


def test_a_run_that_seeks_gives_nothing_up() -> None:
    made = ownership(budget=1)
    fetch(made, 0)
    run = begin(made)
    run.redirect = 7
    assert not made.gives_up(run)


def test_without_a_budget_nothing_is_given_up_and_no_hook_is() -> None:
    endless = ownership()
    fetch(endless, 0)
    assert not endless.gives_up(begin(endless))
    made = ownership(budget=1, hooks=(hook(Hook.EVERY, 1),))
    fetch(made, 0)
    process(made)
    assert not made.gives_up(begin(made, 9.0))


def test_manual_what_was_given_up_is_marked_after_all_before_it() -> None:
    made = ownership(manual_offsets=True, budget=1, max_messages=1, backoff=NO_WAIT)
    fetch(made, 0, 1, 2)
    process(made)  # and not marked
    assert give_up(made) == [1]
    assert made.marks.stored is None
    assert seek(made) == 0, "what has no mark comes again"
    fetch(made, 0, 1, 2)
    run = begin(made, 99.0)
    assert offsets_of(run) == [0]
    made.marks.mark(1)
    assert made.marks.stored == 2, "past the one that was given up"
    made.end(run, failed=False, now=99.0)
    assert process(made, now=99.0) == [2], "which is not handed over again"


def test_manual_the_first_message_given_up_is_marked_at_once() -> None:
    made = ownership(manual_offsets=True, budget=1, max_messages=1)
    fetch(made, 0, 1)
    assert give_up(made) == [0]
    assert (made.marks.stored, seek(made)) == (1, None)
    assert process(made) == [1]


def test_manual_two_given_up_in_a_row_are_marked_as_one() -> None:
    made = ownership(manual_offsets=True, budget=1, max_messages=1, backoff=NO_WAIT)
    fetch(made, 0, 1, 2, 3)
    process(made)
    give_up(made)
    seek(made)
    fetch(made, 0, 1, 2, 3)
    run = begin(made, 99.0)
    made.marks.mark(1)
    made.end(run, failed=False, now=99.0)
    assert give_up(made) == [2]
    assert (made.marks.stored, seek(made)) == (3, None)
    assert process(made, now=99.0) == [3]


def test_what_is_sought_is_handed_over_again_although_given_up() -> None:
    made = ownership(manual_offsets=True, budget=1, max_messages=1)
    fetch(made, 0, 1)
    give_up(made)
    made.redirect(0)
    seek(made)
    fetch(made, 0, 1)
    assert process(made, now=99.0) == [0]


def test_what_was_given_up_is_forgotten_once_it_cannot_come() -> None:
    made = ownership(manual_offsets=True, budget=1, max_messages=1, backoff=NO_WAIT)
    for offset in range(0, 200, 2):
        fetch(made, offset, offset + 1)
        give_up(made)
        run = begin(made, 99.0)
        made.marks.mark(offset + 2)
        made.marks.acknowledged(offset + 2, made.marks.version)
        made.end(run, failed=False, now=99.0)
    assert len(made.marks._done) <= 1


# -- every and batches take turns -------------------------------------------------------------------------------------


def test_every_counts_from_the_first_batch_and_from_its_own_end() -> None:
    every = hook(Hook.EVERY, 1000)
    made = ownership(hooks=(every,))
    assert made.ready_at() is None, "not for a partition that was handed no batch"
    fetch(made, 0)
    process(made, now=5.0)
    assert made.ready_at() == 6.0
    run = begin(made, 7.0)
    made.end(run, failed=False, now=7.5)
    assert made.ready_at() == 8.5


def test_who_waits_longer_goes_first_so_that_neither_starves() -> None:
    made = ownership(max_messages=1, hooks=(hook(Hook.EVERY, 1),))
    fetch(made, *range(10))
    process(made)
    now, kinds = 100.0, []
    for _ in range(6):
        run = begin(made, now)
        kinds.append(run.hook)
        now += 10.0  # all are overdue again when it ends
        made.end(run, failed=False, now=now - 5.0)
    assert kinds in ([None, Hook.EVERY] * 3, [Hook.EVERY, None] * 3)


def test_of_several_the_most_overdue_goes_first() -> None:
    slow, quick = hook(Hook.EVERY, 2000), hook(Hook.EVERY, 1500)
    made = ownership(hooks=(slow, quick))
    fetch(made, 0)
    process(made)
    order = []
    for _ in range(2):
        run = begin(made, 10.0)
        order += run.hooks
        made.end(run, failed=False, now=10.0)
    assert order == [quick, slow]


def test_a_retry_waits_since_the_end_of_its_back_off() -> None:
    """Put back in front of the queue, it does not push every aside for having waited before."""
    every = hook(Hook.EVERY, 1000)
    made = ownership(hooks=(every,), backoff=Backoff(3000, 3000))
    fetch(made, 0)
    process(made, failed=True)
    assert begin(made, 10.0).hooks == (every,)


# -- a hook whose message was refused ---------------------------------------------------------------------------------


def test_a_hook_that_could_not_send_repeats_what_is_not_marked() -> None:
    made = ownership(manual_offsets=True, max_messages=1, hooks=(hook(Hook.EVERY, 1),), backoff=Backoff(1000, 1000))
    fetch(made, 0)
    process(made)
    made.user_state["rows"] = [0]
    run = begin(made, 5.0)
    assert run.hook is Hook.EVERY
    made.marks.answered(made.marks.sending(), ProduceError("refused"))
    made.end(run, failed=True, now=5.0)
    assert (made.user_state, seek(made), made.retries.not_before) == ({}, 0, 6.0)


def test_a_hook_that_raises_repeats_nothing() -> None:
    made = ownership(manual_offsets=True, max_messages=1, hooks=(hook(Hook.EVERY, 1),))
    fetch(made, 0)
    process(made)
    made.user_state["rows"] = [0]
    made.end(begin(made, 5.0), failed=True, now=5.0)
    assert (made.user_state, seek(made), made.retries.not_before) == ({"rows": [0]}, None, 0.0)


# -- the end ----------------------------------------------------------------------------------------------------------

ALL_HOOKS = tuple(hook(kind, 10**9) for kind in Hook if kind is not Hook.ON_ASSIGNED)


def hooks_of(made: Ownership, *steps: str) -> list[Hook | None]:
    """Which hook is due after each step."""
    due = []
    for step in steps:
        {
            "stop": lambda: made.drain(60.0, stopping_app=True),
            "revoke": lambda: made.drain(60.0, stopping_app=False),
            "release": lambda: made.release(65.0),
            "revoked": lambda: made.finish(State.REVOKED),
            "lost": lambda: made.finish(State.LOST),
        }[step]()
        due.append(made.hook_due)
        if made.hook_due and step != "release":
            made.end(begin(made), failed=False, now=0.0)
    return due


def after_a_batch(**options: Any) -> Ownership:
    made = ownership(hooks=ALL_HOOKS, **options)
    fetch(made, 0)
    process(made)
    return made


def test_a_stop_runs_on_shutdown_only() -> None:
    assert hooks_of(after_a_batch(), "stop", "release", "revoked") == [Hook.ON_SHUTDOWN, None, None]


def test_a_hand_over_runs_before_revoke_then_on_revoked() -> None:
    assert hooks_of(after_a_batch(), "revoke", "release", "revoked") == [Hook.BEFORE_REVOKE, None, Hook.ON_REVOKED]


def test_a_loss_runs_on_revoked() -> None:
    assert hooks_of(after_a_batch(), "lost") == [Hook.ON_REVOKED]
    assert hooks_of(after_a_batch(), "stop", "lost") == [Hook.ON_SHUTDOWN, Hook.ON_REVOKED]


def test_a_partition_that_was_handed_no_batch_runs_no_hooks() -> None:
    assert hooks_of(ownership(hooks=ALL_HOOKS), "revoke", "release", "revoked") == [None] * 3
    assert hooks_of(ownership(hooks=ALL_HOOKS), "stop", "release", "lost") == [None] * 3


def test_a_kind_without_a_function_is_never_due() -> None:
    made = ownership(hooks=(hook(Hook.ON_REVOKED),))
    fetch(made, 0)
    process(made)
    assert hooks_of(made, "revoke", "release", "revoked") == [None, None, Hook.ON_REVOKED]


def test_all_hooks_of_a_kind_are_one_run_in_their_order() -> None:
    hooks = hook(Hook.ON_SHUTDOWN), hook(Hook.ON_REVOKED), hook(Hook.ON_SHUTDOWN)
    made = ownership(hooks=hooks)
    fetch(made, 0)
    process(made)
    made.drain(60.0, stopping_app=True)
    assert begin(made).hooks == (hooks[0], hooks[2])


def test_a_hook_that_had_no_time_before_the_bound_is_left_out() -> None:
    made = ownership(hooks=ALL_HOOKS)
    fetch(made, 0)
    run = begin(made)
    made.drain(60.0, stopping_app=False)
    assert made.hook_due is Hook.BEFORE_REVOKE
    made.release(65.0)
    assert made.hook_due is None
    made.end(run, failed=False, now=61.0)
    assert made.begin(61.0) is None


def test_a_last_hook_waits_for_the_batch_but_for_no_back_off() -> None:
    made = ownership(hooks=ALL_HOOKS, backoff=Backoff(10**6, 10**6))
    fetch(made, 0)
    run = begin(made)
    made.drain(60.0, stopping_app=True)
    assert made.begin(1.0) is None
    made.end(run, failed=True, now=1.0)
    assert begin(made, 1.0).hook is Hook.ON_SHUTDOWN


@pytest.mark.parametrize("stopping_app", [False, True])
def test_from_the_drain_on_nothing_more_is_handed_over_or_queued(stopping_app: bool) -> None:
    made = ownership(max_messages=1)
    fetch(made, 0, 1)
    run = begin(made)
    made.drain(60.0, stopping_app=stopping_app)
    made.end(run, failed=False, now=0.0)
    assert not fetch(made, 2)
    assert made.begin(99.0) is None
    assert made.marks.stored == 1, "the running batch is finished and marked"


@pytest.mark.parametrize("failed", [False, True])
def test_what_ends_while_draining_puts_nothing_back(failed: bool) -> None:
    made = ownership(max_messages=1)
    fetch(made, 0, 1)
    run = begin(made)
    made.drain(60.0, stopping_app=False)
    run.in_hand = 0
    made.end(run, failed=failed, now=0.0)
    assert (made.intake.size, made.ready_at()) == (0, None)


# -- how far it has come ----------------------------------------------------------------------------------------------


def test_what_is_processed_and_not_marked_is_counted() -> None:
    made = ownership(5, manual_offsets=True)
    assert made.unmarked == 0
    fetch(made, 5, 6, 7)
    process(made)
    assert made.unmarked == 3
    made.marks.mark(7)
    assert made.unmarked == 1


def test_a_first_try_that_waits_for_more_collects() -> None:
    made = ownership(batch_timeout_ms=500)
    assert not made.collects
    fetch(made, 0)
    assert made.collects
    process(made, now=9.0, failed=True)
    assert not made.collects, "a retry does not wait for more"


def test_the_texts_name_the_partition() -> None:
    made = ownership(5, committed=True)
    fetch(made, 5, 6)
    assert str(made) == "topic-0"
    assert repr(made) == "<Ownership topic-0 ASSIGNED stored=5 committed=5>"
    run = begin(made)
    assert str(run) == "topic-0@5..6"
    assert run.as_call("group", "store") == ("group", "topic", 0, "store", None, 5, 6, 1)


# -- whose fault it is


@pytest.mark.parametrize(("own", "excused"), [(None, True), (ProduceError("too large"), False)])
def test_who_fails_by_the_fault_of_another_has_no_back_off_and_no_try_less_unless_it_has_a_fault_of_its_own(
    own: ProduceError | None, excused: bool
) -> None:
    collateral = ProduceError("another message was refused")
    collateral.collateral = True
    given = ownership(backoff=Backoff(1000, 1000), budget=1)
    fetch(given, 0)
    run = begin(given)
    for failure in filter(None, (collateral, own)):
        given.marks.answered(given.marks.sending(), failure)
    run.failed_with(collateral)
    assert run.excused is excused
    assert given.gives_up(run) is not excused, "it had one try"
    given.end(run, failed=True, now=5.0)
    assert given.ready_at() == (0.0 if excused else 6.0)
    assert given.retries.attempt == (1 if excused else 2)


# -- on_assigned ------------------------------------------------------------------------------------------------------

FIRST, SECOND = hook(Hook.ON_ASSIGNED), hook(Hook.ON_ASSIGNED)


def opening(*hooks: Any, **options: Any) -> Ownership:
    made = ownership(hooks=hooks or (FIRST,), **options)
    fetch(made, 0, 1)
    return made


def test_on_assigned_waits_for_the_start_and_for_nothing_else() -> None:
    made = Ownership(TP, Options(hooks=(FIRST,)))
    assert made.ready_at() is None
    made.begin_at(Start(5, "latest"), Note())
    assert made.marks.pending, "its start is not committed yet"
    assert begin(made).hooks == (FIRST,)


def test_each_function_of_on_assigned_is_a_run_of_its_own_and_no_batch_comes_before_the_last_has_returned() -> None:
    made = opening(FIRST, SECOND)
    for function in (FIRST, SECOND):
        run = begin(made)
        assert run.hooks == (function,)
        assert made.begin(0.0) is None, "one run at a time"
        made.end(run, failed=False, now=0.0)
    assert offsets_of(begin(made)) == [0, 1]


def test_a_function_of_on_assigned_that_raised_is_called_again_after_its_back_off_and_only_it() -> None:
    made = opening(FIRST, SECOND, backoff=Backoff(1000, 30_000))
    made.end(begin(made), failed=False, now=0.0)
    now = 0.0
    for attempt, wait in ((1, 1.0), (2, 2.0), (3, 4.0)):
        run = begin(made, now)
        assert (run.hooks, run.attempt) == ((SECOND,), attempt)
        made.end(run, failed=True, now=now)
        now += wait
        assert made.ready_at() == now
        assert made.begin(now - 0.01) is None
    made.end(begin(made, now), failed=False, now=now)
    run = begin(made, now)
    assert (offsets_of(run), run.attempt) == ([0, 1], 1)


def test_on_assigned_that_failed_by_the_fault_of_another_is_called_again_at_once() -> None:
    made = opening()
    run = begin(made)
    run.excused = True
    made.end(run, failed=True, now=0.0)
    assert begin(made).attempt == 1


def test_where_a_send_of_on_assigned_was_refused_it_begins_where_it_would_have_without_it() -> None:
    made = opening()
    run = begin(made)
    send = made.marks.sending()
    made.redirect(7)
    made.marks.answered(send, ProduceError("refused"))
    made.end(run, failed=True, now=0.0)
    assert (seek(made), made.marks.retry_position) == (0, 0)
    assert begin(made, 1000.0).hooks == (FIRST,)


def test_where_on_assigned_has_sought_the_first_batch_begins_and_failures_repeat_from_there() -> None:
    made = opening()
    run = begin(made)
    made.redirect(7)
    made.end(run, failed=False, now=0.0)
    assert seek(made) == 7
    fetch(made, 7)
    assert offsets_of(begin(made)) == [7]
    assert made.marks.retry_position == 7


def test_what_on_assigned_has_left_in_the_state_outlives_failed_batches() -> None:
    made = opening(FIRST, SECOND, backoff=NO_WAIT)
    for key in ("file", "table"):
        run = begin(made)
        made.user_state[key] = key
        made.end(run, failed=False, now=0.0)
    run = begin(made)
    made.user_state["buffer"] = [0]
    del made.user_state["file"]
    made.end(run, failed=True, now=0.0)
    assert made.user_state == {"file": "file", "table": "table"}


def test_what_on_assigned_had_done_to_the_state_before_it_raised_is_undone() -> None:
    made = opening(FIRST, SECOND)
    run = begin(made)
    made.user_state["file"] = 1
    made.end(run, failed=False, now=0.0)
    run = begin(made)
    made.user_state["half"] = 1
    made.end(run, failed=True, now=0.0)
    assert made.user_state == {"file": 1}


def test_what_on_assigned_has_opened_is_closed_also_without_a_batch() -> None:
    for steps, due in (
        (("revoke", "release", "revoked"), [Hook.BEFORE_REVOKE, None, Hook.ON_REVOKED]),
        (("stop", "release", "revoked"), [Hook.ON_SHUTDOWN, None, None]),
        (("lost",), [Hook.ON_REVOKED]),
    ):
        made = opening(FIRST, SECOND, *ALL_HOOKS)
        made.end(begin(made), failed=False, now=0.0)
        assert hooks_of(made, *steps) == due


def test_where_no_function_of_on_assigned_has_returned_there_is_nothing_to_close() -> None:
    made = opening(FIRST, *ALL_HOOKS)
    made.end(begin(made), failed=True, now=0.0)
    assert hooks_of(made, "revoke", "release", "revoked") == [None] * 3
    assert hooks_of(opening(FIRST, *ALL_HOOKS), "stop", "release", "lost") == [None] * 3


def test_what_is_opened_while_the_end_has_begun_is_closed() -> None:
    made = opening(FIRST, SECOND, *ALL_HOOKS)
    run = begin(made)
    made.drain(60.0, stopping_app=False)
    assert made.hook_due is None
    made.end(run, failed=False, now=0.0)
    assert made.hook_due is Hook.BEFORE_REVOKE
    assert begin(made).hook is Hook.BEFORE_REVOKE, "and the second function is not called any more"


@pytest.mark.parametrize("state", [State.REVOKED, State.LOST])
def test_what_is_opened_when_all_is_over_is_closed(state: State) -> None:
    made = opening(FIRST, *ALL_HOOKS)
    run = begin(made)
    made.drain(60.0, stopping_app=False)
    made.release(65.0)
    made.finish(state)
    assert not made.hook_due
    made.end(run, failed=False, now=70.0)
    assert made.hook_due is Hook.ON_REVOKED


def test_where_no_worker_will_come_nothing_is_due_any_more() -> None:
    made = opening(FIRST, *ALL_HOOKS)
    run = begin(made)
    made.finish(State.LOST)
    made.call_no_more()
    made.end(run, failed=False, now=0.0)
    assert not made.busy


def test_on_assigned_that_waits_its_back_off_does_not_hold_up_the_end() -> None:
    made = opening(FIRST, *ALL_HOOKS)
    made.end(begin(made), failed=True, now=0.0)
    made.drain(60.0, stopping_app=False)
    assert not made.busy
    assert made.begin(1000.0) is None


def test_nothing_is_done_before_on_assigned_has_returned() -> None:
    made = opening()
    made.intake.clear()
    assert made.done is None
    made.end(begin(made), failed=False, now=0.0)
    assert made.done == 0
