"""One ownership of one partition: what is handed over, stored, repeated, and when it ends. No Kafka, no clock."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from karafka_lite.core.backoff import Backoff
from karafka_lite.core.intake import Backlog, Room
from karafka_lite.core.options import Hook, Policy
from karafka_lite.core.ownership import Partition, Run, State

PLACE = ("topic", 0)
RECORD_BYTES = 7


class Record(NamedTuple):
    offset: int


def records(offsets: Iterable[int]) -> list[Any]:
    return [Record(offset) for offset in offsets]


def partition(start: int = 0, *, committed: bool = False, **policy: Any) -> Partition:
    """An ownership that begins at ``start`` and whose poller has carried out the first seek."""
    made = Partition(PLACE, Policy(**policy))
    made.begin_at(start, committed=committed, commit_start=False)
    seek(made)
    return made


def seek(given: Partition) -> int | None:
    """What the poller does before each poll: where it seeks to, None when it need not."""
    place, given.seek_to = given.seek_to, None
    return place


def fetch(given: Partition, *offsets: int, end: int | None = None, now: float = 0.0) -> bool:
    return given.fetched(records(offsets), end, RECORD_BYTES * len(offsets), now)


def begin(given: Partition, now: float = 0.0) -> Run:
    run = given.begin(now)
    assert run, "nothing was due"
    return run


def handed(run: Run) -> list[int]:
    return [record.offset for record in run.records]


def process(given: Partition, now: float = 0.0, *, failed: bool = False) -> list[int]:
    """One run of a handler that does nothing."""
    run = begin(given, now)
    given.end(run, failed=failed, now=now)
    return handed(run)


# -- the queue --------------------------------------------------------------------------------------------------------


def test_before_the_start_is_known_nothing_that_was_fetched_is_taken() -> None:
    assert not fetch(Partition(PLACE, Policy()), 0, 1)


def test_the_first_fetch_begins_where_the_ownership_does_and_what_came_before_the_seek_is_dropped() -> None:
    made = Partition(PLACE, Policy())
    made.begin_at(5, committed=True, commit_start=False)
    assert not fetch(made, 0, 1)
    assert seek(made) == 5
    assert fetch(made, 5, 6)
    assert process(made) == [5, 6]


def test_batches_are_cut_and_joined_to_max_messages_in_order() -> None:
    made = partition(max_messages=3)
    for chunk in ([0], [1, 2, 3, 4, 5, 6, 7], [8, 9]):
        fetch(made, *chunk)
    assert [process(made) for _ in range(4)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert (made.backlog.size, made.ready_at()) == (0, None)


@given(st.lists(st.integers(1, 9), max_size=12), st.integers(1, 7))
def test_whatever_the_chunks_nothing_is_left_out_twice_or_out_of_order(sizes: list[int], limit: int) -> None:
    made = partition(max_messages=limit)
    numbers = iter(range(sum(sizes)))
    for size in sizes:
        fetch(made, *(next(numbers) for _ in range(size)))
    seen: list[int] = []
    while made.backlog.size:
        batch = process(made)
        assert len(batch) == limit or not made.backlog.size
        seen += batch
    assert seen == list(range(sum(sizes)))


def test_a_batch_knows_the_end_of_the_partition_when_its_last_message_was_fetched() -> None:
    made = partition(max_messages=3)
    fetch(made, 0, 1, end=10)
    fetch(made, 2, 3, end=20)
    fetch(made, 4, 5, 6, end=30)
    ends = []
    for _ in range(3):
        run = begin(made)
        ends.append((handed(run)[-1], run.end_offset))
        made.end(run, failed=False, now=0.0)
    assert ends == [(2, 20), (5, 30), (6, 30)]


@pytest.mark.parametrize(
    ("room", "full"),
    [
        (Room(messages=1000, size_bytes=10_000), 16),  # eight batches; more would be dropped at the next rebalance
        (Room(messages=10, size_bytes=10_000), 10),
        (Room(messages=1, size_bytes=10_000), 4),  # two batches, however many partitions there are
        (Room(messages=1000, size_bytes=6 * RECORD_BYTES), 6),
        (Room(messages=1000, size_bytes=1), 1),
    ],
)
def test_fetching_rests_when_the_room_is_full_and_goes_on_when_it_is_half_empty(room: Room, full: int) -> None:
    made = partition(max_messages=2)
    while not made.wants_pause(room, now=0.0):
        fetch(made, made.backlog.size)
    assert made.backlog.size == full
    made.paused = True
    while made.wants_pause(room, now=0.0):
        process(made)
    assert made.backlog.size < full / 2 <= made.backlog.size + 2


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 100)), max_size=9), st.integers(1, 12))
def test_the_bytes_of_a_queue_go_with_its_messages(chunks: list[tuple[int, int]], limit: int) -> None:
    backlog = Backlog()
    for count, size_bytes in chunks:
        before = backlog.size_bytes
        backlog.add(records(range(count)), None, size_bytes)
        assert before + size_bytes - count < backlog.size_bytes <= before + size_bytes
    while backlog.size:
        before = backlog.size_bytes
        backlog.take(limit)
        assert 0 <= backlog.size_bytes <= before
    assert backlog.size_bytes == 0


def test_what_waits_for_a_full_batch_is_handed_over_when_no_more_is_fetched() -> None:
    made = partition(max_messages=10, batch_timeout_ms=60_000)
    fetch(made, 0, 1)
    assert made.ready_at() == 60.0
    made.paused = made.wants_pause(Room(messages=1000, size_bytes=2 * RECORD_BYTES), now=0.0)
    assert made.ready_at() == 0.0


def test_what_cannot_be_read_is_waited_for_longer_and_longer_until_it_can() -> None:
    made = partition(backoff=Backoff(1000, 3000))
    assert [made.fetch_failed(now=10.0) for _ in range(3)] == [1.0, 2.0, 3.0]
    room = Room(messages=1000, size_bytes=1000)
    assert made.wants_pause(room, 12.9)
    assert not made.wants_pause(room, 13.0)
    fetch(made, 0)
    assert made.fetch_failed(now=20.0) == 1.0


# -- when a batch is due ----------------------------------------------------------------------------------------------


def test_zero_batch_timeout_hands_over_at_once_what_is_there() -> None:
    made = partition(max_messages=500)
    fetch(made, 0, now=7.0)
    assert made.ready_at() == 0.0
    assert handed(begin(made, 7.0)) == [0]


def test_batch_timeout_waits_from_the_first_message_and_hands_over_early_when_full() -> None:
    made = partition(max_messages=3, batch_timeout_ms=500)
    fetch(made, 0, now=7.0)
    fetch(made, 1, now=7.4)
    assert made.ready_at() == 7.5
    assert made.begin(7.49) is None
    fetch(made, 2, now=7.45)
    assert made.ready_at() == 0.0
    assert handed(begin(made, 7.45)) == [0, 1, 2]


def test_what_stays_behind_when_a_batch_is_taken_waits_for_its_own_batch_timeout() -> None:
    made = partition(max_messages=2, batch_timeout_ms=500)
    fetch(made, 0, 1, 2, now=1.0)
    assert process(made, now=5.0) == [0, 1]
    assert made.ready_at() == 5.5


def test_a_partition_never_runs_beside_itself() -> None:
    made = partition(max_messages=1)
    fetch(made, 0, 1)
    run = begin(made)
    assert made.ready_at() is None
    assert made.begin(99.0) is None
    made.end(run, failed=False, now=0.0)
    assert process(made) == [1]


def test_an_ownership_waits_for_user_code_of_the_one_before() -> None:
    before = partition(max_messages=1)
    fetch(before, 0)
    run = begin(before)
    before.finish(State.LOST)
    made = Partition(PLACE, Policy(), predecessor=before)
    made.begin_at(0, committed=False, commit_start=False)
    seek(made)
    fetch(made, 0)
    assert made.ready_at() is None
    before.end(run, failed=False, now=0.0)
    assert made.ready_at() == 0.0


# -- marks ------------------------------------------------------------------------------------------------------------


def test_automatic_a_batch_that_did_not_raise_is_marked_at_its_end_and_not_before() -> None:
    made = partition()
    fetch(made, 0, 1, 4)
    run = begin(made)
    assert (made.stored, made.pending) == (None, False)
    made.end(run, failed=False, now=0.0)
    assert (made.stored, made.pending, made.retry_position) == (5, True, 5)


def test_automatic_the_end_of_the_batch_wins_over_marks_inside_it() -> None:
    made = partition()
    fetch(made, 0, 1, 2)
    run = begin(made)
    assert made.mark(1)
    made.end(run, failed=False, now=0.0)
    assert made.stored == 3


@pytest.mark.parametrize("end", [State.RELEASING, State.REVOKED, State.LOST])
def test_automatic_a_batch_that_ends_behind_its_ownership_is_not_marked(end: State) -> None:
    made = partition()
    fetch(made, 0, 1)
    run = begin(made)
    made.drain(60.0, stopping_app=False)
    made.release(65.0) if end is State.RELEASING else made.finish(end)
    made.end(run, failed=False, now=99.0)
    assert (made.stored, made.pending) == (None, False)


def test_manual_only_marks_are_stored() -> None:
    made = partition(manual_offsets=True, max_messages=1)
    fetch(made, 0, 1, 2)
    process(made)
    assert made.stored is None
    run = begin(made)
    assert made.mark(2)
    made.end(run, failed=False, now=0.0)
    process(made)
    assert made.stored == 2


def test_every_change_of_what_is_stored_is_pending_until_that_change_is_committed() -> None:
    made = partition(manual_offsets=True)
    fetch(made, 0, 1, 2, 3)
    begin(made)
    made.mark(3)
    first = made.version
    made.mark(1)
    made.commit_succeeded(3, first)
    assert (made.committed, made.pending) == (3, True), "the older mark came later and has yet to be committed"
    made.commit_succeeded(1, made.version)
    assert (made.committed, made.pending) == (1, False)


def test_a_second_mark_of_the_same_offset_changes_nothing() -> None:
    made = partition(manual_offsets=True)
    fetch(made, 0, 1)
    begin(made)
    assert made.mark(1)
    made.commit_succeeded(1, made.version)
    assert made.mark(1)
    assert not made.pending


def test_a_mark_of_where_the_ownership_began_is_not_pending_when_the_broker_has_it() -> None:
    made = partition(5, committed=True, manual_offsets=True)
    assert (made.stored, made.committed, made.pending) == (5, 5, False)


def test_the_start_at_the_end_of_the_log_is_committed_before_anything_is_handed_over() -> None:
    made = Partition(PLACE, Policy())
    made.begin_at(9, committed=False, commit_start=True)
    seek(made)
    fetch(made, 9)
    assert (made.stored, made.pending) == (9, True)
    assert made.ready_at() is None
    made.commit_succeeded(9, made.version)
    assert made.ready_at() == 0.0


@pytest.mark.parametrize("end", [State.RELEASING, State.REVOKED, State.LOST])
def test_marks_are_refused_and_nothing_is_stored_when_the_ownership_is_over(end: State) -> None:
    made = partition(manual_offsets=True)
    fetch(made, 0, 1)
    begin(made)
    made.mark(1)
    made.release(0.0) if end is State.RELEASING else made.finish(end)
    assert made.mark(2) is False
    assert (made.stored, made.retry_position) == (1, 1)


def test_marks_count_while_draining() -> None:
    made = partition(manual_offsets=True)
    fetch(made, 0, 1)
    begin(made)
    made.drain(60.0, stopping_app=True)
    assert made.mark(2) is True
    assert made.stored == 2


def test_only_what_this_ownership_was_handed_counts_as_handed() -> None:
    made = partition(5, max_messages=2)
    fetch(made, 5, 6, 7, 8)
    assert not any(made.was_handed(offset) for offset in range(12))
    process(made)
    assert [offset for offset in range(12) if made.was_handed(offset)] == [5, 6]
    process(made)
    assert [offset for offset in range(12) if made.was_handed(offset)] == [5, 6, 7, 8]


def test_what_was_handed_before_a_failure_still_counts_as_handed() -> None:
    made = partition(manual_offsets=True, max_messages=2)
    fetch(made, 0, 1, 2, 3)
    process(made)
    process(made, failed=True)
    seek(made)
    fetch(made, 0, 1)
    begin(made, now=99.0)
    assert [offset for offset in range(6) if made.was_handed(offset)] == [0, 1, 2, 3]


def test_a_message_before_the_start_that_an_older_mark_brings_back_counts_as_handed_when_it_comes() -> None:
    made = partition(5, committed=True, manual_offsets=True)
    fetch(made, 5, 6)
    run = begin(made)
    made.mark(3)
    made.end(run, failed=True, now=0.0)
    assert seek(made) == 3
    fetch(made, 3, 4)
    begin(made, now=99.0)
    assert made.was_handed(3)


# -- failure ----------------------------------------------------------------------------------------------------------


def test_a_failed_run_marks_nothing() -> None:
    made = partition()
    fetch(made, 0, 1)
    process(made, failed=True)
    assert (made.stored, made.pending) == (None, False)


def test_the_back_off_doubles_up_to_its_bound_begins_when_the_run_ended_and_it_never_gives_up() -> None:
    made = partition(backoff=Backoff(1000, 30_000))
    waits = []
    now = 100.0
    for _ in range(200):
        fetch(made, 0, now=now)
        run = begin(made, now)
        now += 3  # as long as the handler took
        made.end(run, failed=True, now=now)
        seek(made)
        fetch(made, 0, now=now)
        ready = made.ready_at()
        assert ready is not None
        assert made.begin(ready - 0.001) is None
        waits.append(ready - now)
        now = ready
    assert waits[:7] == [1, 2, 4, 8, 16, 30, 30]
    assert set(waits[5:]) == {30}


def test_attempt_counts_failures_in_a_row_and_is_one_again_after_a_run_that_did_not_raise() -> None:
    made = partition(max_messages=1)
    attempts = []
    for failed in (True, True, False, True, False, False):
        fetch(made, len(attempts))
        run = begin(made, 1e9)
        attempts.append(run.attempt)
        made.end(run, failed=failed, now=0.0)
        seek(made)
    assert attempts == [1, 2, 3, 1, 2, 1]


def test_the_back_off_begins_at_the_first_wait_again_after_a_success() -> None:
    made = partition(max_messages=1, backoff=Backoff(1000, 30_000))
    for now, failed in ((0.0, True), (10.0, True), (20.0, False), (30.0, True)):
        fetch(made, 0)
        process(made, now, failed=failed)
        seek(made)
    assert made.not_before == 31.0


def test_automatic_the_next_batch_starts_at_the_failed_batchs_first_message() -> None:
    made = partition(max_messages=2)
    fetch(made, 0, 1, 2, 3, 4, 5)
    process(made)
    assert process(made, failed=True) == [2, 3]
    assert seek(made) == 2
    assert made.stored == 2


def test_automatic_the_next_batch_starts_at_a_mark_made_inside_the_failed_batch() -> None:
    made = partition(max_messages=3)
    fetch(made, 0, 1, 2)
    run = begin(made)
    made.mark(2)
    made.end(run, failed=True, now=0.0)
    assert (seek(made), made.stored) == (2, 2)


def test_automatic_an_older_mark_made_inside_an_earlier_batch_does_not_move_a_later_failure_back() -> None:
    made = partition(max_messages=2)
    fetch(made, 0, 1, 2, 3)
    run = begin(made)
    made.mark(1)
    made.end(run, failed=False, now=0.0)
    process(made, failed=True)
    assert seek(made) == 2


def test_manual_the_next_batch_starts_at_the_last_mark_however_many_batches_ago() -> None:
    made = partition(5, committed=True, manual_offsets=True, max_messages=2)
    fetch(made, 5, 6, 7, 8, 9, 10)
    run = begin(made)
    made.mark(6)
    made.end(run, failed=False, now=0.0)
    process(made)
    process(made, failed=True)
    assert seek(made) == 6


def test_manual_without_a_mark_the_next_batch_starts_where_this_ownership_began() -> None:
    made = partition(5, committed=True, manual_offsets=True, max_messages=2)
    fetch(made, 5, 6, 7, 8, 9, 10)
    process(made)
    process(made)
    process(made, failed=True)
    assert seek(made) == 5


@pytest.mark.parametrize("manual", [False, True])
def test_a_failure_drops_what_was_fetched_and_what_comes_before_the_seek_so_that_nothing_is_skipped(
    manual: bool,
) -> None:
    made = partition(manual_offsets=manual, max_messages=2)
    fetch(made, 0, 1, 2, 3)
    process(made, failed=True)
    assert made.backlog.size == 0
    assert not fetch(made, 4, 5), "fetched before the poller has gone back"
    assert seek(made) == 0
    assert fetch(made, 0, 1)
    assert process(made, now=99.0) == [0, 1]


def test_state_is_kept_over_batches_and_emptied_by_a_failure_as_the_same_dict() -> None:
    made = partition(max_messages=1)
    state = made.user_state
    state["rows"] = [1]
    fetch(made, 0, 1)
    process(made)
    assert made.user_state == {"rows": [1]}
    process(made, failed=True)
    assert made.user_state is state, "whoever kept the dict must not go on with the old rows"
    assert state == {}


def test_a_run_of_a_hook_counts_no_attempt_marks_nothing_and_leaves_the_state_alone() -> None:
    made = partition(hooks=frozenset([Hook.ON_SHUTDOWN]))
    fetch(made, 0, 1)
    process(made, failed=True)
    made.user_state["rows"] = [1]
    made.drain(60.0, stopping_app=True)
    run = begin(made)
    assert (run.hook, handed(run), str(run)) == (Hook.ON_SHUTDOWN, [], "topic-0 on_shutdown")
    made.end(run, failed=False, now=0.0)
    assert (made.attempt, made.stored, made.user_state) == (2, None, {"rows": [1]})


# -- the end ----------------------------------------------------------------------------------------------------------

ALL_HOOKS = frozenset(Hook)


def hooks_of(made: Partition, *steps: str) -> list[Hook | None]:
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


def after_a_batch(**policy: Any) -> Partition:
    made = partition(hooks=ALL_HOOKS, **policy)
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
    assert hooks_of(partition(hooks=ALL_HOOKS), "revoke", "release", "revoked") == [None] * 3
    assert hooks_of(partition(hooks=ALL_HOOKS), "stop", "release", "lost") == [None] * 3


def test_a_hook_that_had_no_time_before_the_bound_is_left_out() -> None:
    made = partition(hooks=ALL_HOOKS)
    fetch(made, 0)
    run = begin(made)
    made.drain(60.0, stopping_app=False)
    assert made.hook_due is Hook.BEFORE_REVOKE
    made.release(65.0)
    assert made.hook_due is None
    made.end(run, failed=False, now=61.0)
    assert made.begin(61.0) is None


def test_a_hook_runs_never_beside_a_batch_and_need_not_wait_for_the_back_off() -> None:
    made = partition(hooks=ALL_HOOKS, backoff=Backoff(10**6, 10**6))
    fetch(made, 0)
    run = begin(made)
    made.drain(60.0, stopping_app=True)
    assert made.begin(1.0) is None
    made.end(run, failed=True, now=1.0)
    assert begin(made, 1.0).hook is Hook.ON_SHUTDOWN


@pytest.mark.parametrize("stopping_app", [False, True])
def test_nothing_more_is_handed_over_or_queued_from_the_drain_on(stopping_app: bool) -> None:
    made = partition(max_messages=1)
    fetch(made, 0, 1)
    run = begin(made)
    made.drain(60.0, stopping_app=stopping_app)
    made.end(run, failed=False, now=0.0)
    assert not fetch(made, 2)
    assert made.begin(99.0) is None
    assert made.stored == 1, "the running batch is finished and marked"


def test_the_texts_name_the_place() -> None:
    made = partition(5, committed=True)
    fetch(made, 5, 6)
    assert str(made) == "topic-0"
    assert repr(made) == "<Partition topic-0 ASSIGNED stored=5 committed=5>"
    assert str(begin(made)) == "topic-0@5..6"
