"""How often the handler has failed at a message, and when the next try is."""

from __future__ import annotations

from typing import Any

import pytest
from support.partitions import records

from karafka_lite.core.backoff import Backoff
from karafka_lite.core.retries import Retries

BACKOFF = Backoff(1000, 4000)


def counted(*tries: tuple[list[int], int | None], budget: int | None = 2, position: int = 0) -> Retries:
    """After failed ``tries`` of messages, each with its culprit where that is known."""
    retries = Retries(BACKOFF, budget)
    for offsets, culprit in tries:
        retries.count(offsets if culprit is None else [culprit], known=culprit is not None)
        retries.forget(before=position)
    return retries


def tries_of(retries: Retries, *offsets: int) -> list[int]:
    return [retries.tries_of(offset) for offset in offsets]


def suspects(retries: Retries, *offsets: int) -> list[int]:
    return [record.offset for record in records(offsets) if retries.is_suspect(record)]


# -- the back-off


def test_each_failure_waits_twice_as_long_up_to_the_bound() -> None:
    retries = Retries(BACKOFF, None)
    ends = []
    for _ in range(5):
        retries.failed(100.0, retries.attempt_at(0))
        ends.append(retries.not_before)
    assert ends == [101.0, 102.0, 104.0, 104.0, 104.0]
    assert retries.attempt == 6


def test_a_success_begins_anew() -> None:
    retries = Retries(BACKOFF, None)
    for attempt in (1, 2, 3):
        retries.failed(0.0, attempt)
    retries.succeeded([])
    assert retries.attempt == 1
    retries.failed(10.0, 1)
    assert retries.not_before == 11.0


def test_a_later_and_shorter_back_off_does_not_shorten_one() -> None:
    retries = Retries(BACKOFF, None)
    retries.failed(10.0, 3)
    retries.back_off(now=11.0)
    assert retries.not_before == 14.0


def test_the_back_off_grows_with_the_tries_of_the_culprit_and_not_of_its_neighbours() -> None:
    retries = counted(([0, 1, 2], 0), ([0, 1, 2], 0))
    retries.succeeded(records([0]))
    retries.count([2], known=True)
    retries.failed(10.0, 3, 2)
    assert retries.not_before == 11.0, "its first try"
    assert (retries.attempt_at(2), retries.attempt_at(5)) == (2, 2)


def test_nobody_waits_where_nothing_is_gained_by_it() -> None:
    retries = counted(([0, 1], None))
    retries.failed(10.0, 1, wait=False)
    assert (retries.not_before, retries.attempt) == (0.0, 2)


# -- the budget of a message


def test_without_a_budget_nothing_is_counted() -> None:
    retries = counted(([0, 1], None), ([0], None), budget=None)
    assert not retries.counting
    assert not retries.is_exhausted(0)
    assert suspects(retries, 0, 1) == []
    assert retries.limit(records([0, 1]), 500) == 500


def test_a_batch_that_failed_nobody_knows_where_counts_for_each_of_its_messages() -> None:
    retries = counted(([0, 1, 2], None), ([1], 1))
    assert tries_of(retries, 0, 1, 2, 3) == [1, 2, 1, 0]
    assert suspects(retries, 0, 1, 2, 3) == [0, 1, 2]


def test_of_a_known_culprit_only_its_own_try_counts_and_the_batch_stays_one() -> None:
    retries = counted(([0, 1, 2, 3], 1))
    assert tries_of(retries, 0, 1, 2, 3) == [0, 1, 0, 0]
    assert suspects(retries, 0, 1, 2, 3) == []
    assert retries.limit(records([1, 2, 3]), 500) == 500


def test_what_is_marked_was_not_tried_and_is_forgotten() -> None:
    retries = counted(([0, 1, 2], None))
    retries.count([2], known=False)
    retries.forget(before=2)
    assert tries_of(retries, 0, 1, 2) == [0, 0, 2]
    assert suspects(retries, 0, 1, 2) == [2]


def test_a_message_that_succeeded_is_forgotten() -> None:
    retries = counted(([0, 1], None))
    retries.succeeded(records([0]))
    assert (tries_of(retries, 0, 1), suspects(retries, 0, 1)) == ([0, 1], [1])
    retries.succeeded(records([1]))
    assert not retries.counting


@pytest.mark.parametrize(
    ("tries", "exhausted"),
    [([], False), ([[0, 1]], False), ([[0, 1], [0]], True), ([[0]], False), ([[0], [0]], True)],
)
def test_a_message_has_as_many_tries_as_its_budget_says_alone_or_not(tries: list[list[int]], exhausted: bool) -> None:
    retries = counted(*((offsets, None if len(offsets) > 1 else 0) for offsets in tries), budget=2)
    assert retries.is_exhausted(0) is exhausted


@pytest.mark.parametrize(("budget", "tries", "left"), [(None, 1, False), (3, 0, False), (3, 2, True), (3, 3, False)])
def test_whether_the_end_of_a_message_is_near_is_known(budget: int | None, tries: int, left: bool) -> None:
    assert counted(*[([0], 0)] * tries, budget=budget).has_tries_left is left


@pytest.mark.parametrize(
    ("bad", "limit"),
    [([], 5), ([0], 1), ([1], 1), ([2], 2), ([4], 4), ([0, 1], 1), ([9], 5)],
)
def test_a_suspect_is_alone_in_its_batch(bad: list[int], limit: int) -> None:
    retries = counted((bad, None))
    upcoming: Any = iter(records(range(8)))
    assert retries.limit(upcoming, 5) == limit
