"""What was fetched and not yet handed over, and where fetching goes on."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.partitions import RECORD_BYTES, records

from karafka_lite.core.backoff import Backoff
from karafka_lite.core.intake import BufferLimits, Intake
from karafka_lite.core.options import Options, SeekTarget, Timestamp

PLENTY = BufferLimits(messages=1000, size_bytes=10_000)


def begun(start: int = 0, **options: Any) -> Intake:
    """One whose client was moved to the start."""
    intake = Intake(Options(**options))
    intake.begin_at(start)
    intake.sought(start)
    return intake


def accept(intake: Intake, *offsets: int, end: int | None = None, now: float = 0.0) -> None:
    intake.accept(records(offsets), end, RECORD_BYTES * len(offsets), now)


def take(intake: Intake, limit: int, now: float = 0.0) -> list[int]:
    return [record.offset for record in intake.take(limit, now).records]


def queued(intake: Intake) -> list[int]:
    return [record.offset for record in intake.peek(10**6)]


# -- the queue


@given(st.lists(st.integers(1, 9), max_size=12), st.integers(1, 7))
def test_whatever_the_chunks_every_message_comes_once_in_order(sizes: list[int], limit: int) -> None:
    intake, numbers = begun(), iter(range(sum(sizes)))
    for size in sizes:
        accept(intake, *(next(numbers) for _ in range(size)))
    seen: list[int] = []
    while intake.size:
        batch = take(intake, limit)
        assert len(batch) == limit or not intake.size
        seen += batch
    assert seen == list(range(sum(sizes)))


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 100)), max_size=9), st.integers(1, 12))
def test_the_bytes_of_a_queue_go_with_its_messages(chunks: list[tuple[int, int]], limit: int) -> None:
    intake = begun()
    for count, size_bytes in chunks:
        before = intake.size_bytes
        intake.accept(records(range(count)), None, size_bytes, 0.0)
        assert before + size_bytes - count < intake.size_bytes <= before + size_bytes
    while intake.size:
        before = intake.size_bytes
        intake.take(limit, 0.0)
        assert 0 <= intake.size_bytes <= before
    assert intake.size_bytes == 0


def test_a_batch_knows_the_end_when_its_last_message_came() -> None:
    intake = begun()
    accept(intake, 0, 1, end=10)
    accept(intake, 2, 3, end=20)
    assert [intake.take(3, 0.0).end_offset for _ in range(2)] == [20, 20]


def test_an_empty_fetch_changes_no_queue_and_ends_a_bad_streak() -> None:
    intake = begun()
    intake.unreadable(0.0)
    accept(intake)
    assert (intake.size, intake.fetch_failures) == (0, 0)


def test_messages_wait_since_the_first_of_them_came() -> None:
    intake = begun()
    accept(intake, 0, 1, now=7.0)
    accept(intake, 2, now=8.0)
    assert intake.queued_since == 7.0
    take(intake, 2, now=9.0)
    assert intake.queued_since == 9.0, "what stays has its own time"


# -- put back


def test_what_is_put_back_comes_first_in_its_order() -> None:
    intake = begun()
    accept(intake, 0, 1, 2, end=10)
    accept(intake, 3, 4, end=20)
    chunk = intake.take(2, 0.0)
    intake.put_back(chunk, 0)
    assert queued(intake) == [0, 1, 2, 3, 4]
    again = intake.take(2, 0.0)
    assert [record.offset for record in again.records] == [0, 1]
    assert again.end_offset == 10


def test_what_was_marked_is_not_put_back() -> None:
    intake = begun()
    accept(intake, 0, 1, 2, 5)
    intake.put_back(intake.take(3, 0.0), 2)
    assert (queued(intake), intake.next_offset) == ([2, 5], 2)


def test_where_all_was_marked_nothing_is_put_back() -> None:
    intake = begun()
    accept(intake, 0, 1, 2, now=1.0)
    intake.put_back(intake.take(2, 5.0), 2)
    assert (queued(intake), intake.next_offset, intake.queued_since) == ([2], 2, 5.0)


def test_what_is_put_back_need_not_wait_for_more() -> None:
    intake = begun()
    accept(intake, 0, 1, now=7.0)
    intake.put_back(intake.take(2, 8.0), 0)
    assert intake.queued_since == float("-inf")
    accept(intake, 2, now=9.0)
    assert intake.queued_since == float("-inf"), "it is still the first that waits"


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(0, 50)), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), max_size=8),
)
def test_sizes_and_bytes_are_right_after_any_put_back(
    chunks: list[tuple[int, int]], turns: list[tuple[int, int]]
) -> None:
    intake, count = begun(), 0
    for size, size_bytes in chunks:
        intake.accept(records(range(count, count + size)), None, size_bytes, 0.0)
        count += size
    done = 0
    for limit, marked in turns:
        chunk = intake.take(limit, 0.0)
        if not chunk.records:
            break
        done = min(chunk.records[0].offset + marked, chunk.records[-1].offset + 1)
        intake.put_back(chunk, done)
        assert queued(intake) == list(range(done, count))
        assert intake.size == count - done
        assert intake.size_bytes >= 0
    take(intake, count)
    assert (intake.size, intake.size_bytes) == (0, 0)


# -- limits


@pytest.mark.parametrize(
    ("limits", "full"),
    [
        (BufferLimits(messages=1000, size_bytes=10_000), 16),  # eight batches; more would be dropped at a rebalance
        (BufferLimits(messages=10, size_bytes=10_000), 10),
        (BufferLimits(messages=1, size_bytes=10_000), 4),  # two batches, however many partitions there are
        (BufferLimits(messages=1000, size_bytes=6 * RECORD_BYTES), 6),
        (BufferLimits(messages=1000, size_bytes=1), 1),
    ],
)
def test_fetching_pauses_when_full_and_goes_on_when_half_empty(limits: BufferLimits, full: int) -> None:
    intake = begun(max_messages=2)
    while not intake.wants_pause(limits, now=0.0):
        accept(intake, intake.size)
    assert intake.size == full
    intake.paused = True
    while intake.wants_pause(limits, now=0.0):
        take(intake, 1)
    assert intake.size < full / 2 <= intake.size + 1


def test_what_is_put_back_counts_for_the_limits() -> None:
    intake = begun(max_messages=2)
    accept(intake, *range(16))
    chunk = intake.take(2, 0.0)
    assert not intake.wants_pause(PLENTY, 0.0)
    intake.put_back(chunk, 0)
    assert intake.wants_pause(PLENTY, 0.0)


def test_queues_share_the_limits_of_a_group() -> None:
    assert BufferLimits(100, 10).shared_by(3) == (33, 3)
    assert BufferLimits(100, 10).shared_by(1000) == (0, 1), "a byte at least, or nothing would ever be fetched"


def test_what_cannot_be_read_is_waited_for_longer_and_longer() -> None:
    intake = begun(backoff=Backoff(1000, 3000))
    assert [intake.unreadable(now=10.0) for _ in range(3)] == [1.0, 2.0, 3.0]
    assert intake.wants_pause(PLENTY, 12.9)
    assert not intake.wants_pause(PLENTY, 13.0)
    accept(intake, 0)
    assert intake.unreadable(now=20.0) == 1.0


# -- where to read


def test_it_moves_until_the_client_is_where_it_begins() -> None:
    intake = Intake(Options())
    assert intake.moving, "the start is not known"
    intake.begin_at(5)
    assert (intake.moving, intake.seek_to, intake.next_offset) == (True, 5, 5)
    intake.sought(5)
    assert (intake.moving, intake.seek_to, intake.position) == (False, None, 5)


def test_going_elsewhere_drops_what_was_fetched() -> None:
    intake = begun()
    accept(intake, 0, 1, 2)
    intake.go_to(7)
    assert (queued(intake), intake.size_bytes) == ([], 0)
    assert (intake.moving, intake.seek_to, intake.next_offset) == (True, 7, 7)


def test_a_seek_that_was_made_meanwhile_stays() -> None:
    intake = begun()
    intake.go_to(7)
    intake.go_to(9)
    intake.sought(7)
    assert (intake.moving, intake.seek_to) == (True, 9)
    intake.sought(9)
    assert not intake.moving


@pytest.mark.parametrize("target", ["earliest", "latest", Timestamp(5)])
def test_a_target_stands_until_its_offset_is_known_and_sought(target: SeekTarget) -> None:
    intake = begun()
    accept(intake, 0, 1)
    intake.go_to(target)
    assert (intake.moving, intake.target, intake.seek_to, queued(intake)) == (True, target, None, [])
    intake.go_to(3)
    assert (intake.moving, intake.target, intake.seek_to) == (True, None, 3)
    intake.sought(3)
    assert not intake.moving


def test_a_target_takes_the_place_of_a_seek_under_way() -> None:
    intake = begun()
    intake.go_to(7)
    intake.go_to("latest")
    assert (intake.seek_to, intake.target) == (None, "latest")
    intake.sought(7)
    assert (intake.moving, intake.target, intake.seek_to) == (True, "latest", None)


def test_what_is_processed_is_where_the_next_batch_begins_after() -> None:
    intake = begun()
    accept(intake, 0, 1, 4)
    chunk = intake.take(3, 0.0)
    assert intake.next_offset == 0
    intake.done(chunk.records)
    assert intake.next_offset == 5
