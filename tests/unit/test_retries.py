"""How often the handler has failed at a message, and when the next try is."""

from __future__ import annotations

from typing import Any

import pytest
from support.partitions import records

from karafka_lite.core.backoff import Backoff
from karafka_lite.core.retries import Retries, Tries

BACKOFF = Backoff(1000, 4000)


def counted(*tries: tuple[list[int], int | None], budget: int | None = 2, position: int = 0) -> Retries:
    """After failed ``tries`` of messages, each with its culprit where that is known."""
    retries = Retries(BACKOFF, budget)
    for offsets, culprit in tries:
        retries.count(records(offsets), culprit, position)
    return retries


def tries_of(retries: Retries, *offsets: int) -> list[tuple[int, int]]:
    return [tuple(retries.tries_of(offset)) for offset in offsets]


# -- the back-off


def test_each_failure_waits_twice_as_long_up_to_the_bound() -> None:
    retries = Retries(BACKOFF, None)
    ends = []
    for _ in range(5):
        retries.failed(now=100.0)
        ends.append(retries.not_before)
    assert ends == [101.0, 102.0, 104.0, 104.0, 104.0]
    assert retries.attempt == 6


def test_a_success_begins_anew() -> None:
    retries = Retries(BACKOFF, None)
    for _ in range(3):
        retries.failed(now=0.0)
    retries.succeeded([])
    assert retries.attempt == 1
    retries.failed(now=10.0)
    assert retries.not_before == 11.0


def test_a_later_and_shorter_back_off_does_not_shorten_one() -> None:
    retries = Retries(BACKOFF, None)
    for _ in range(3):
        retries.failed(now=10.0)
    retries.back_off(now=11.0)
    assert retries.not_before == 14.0


# -- the budget of a message


def test_without_a_budget_nothing_is_counted() -> None:
    retries = counted(([0, 1], None), ([0], None), budget=None)
    assert not retries.counting
    assert not retries.is_exhausted(0)
    assert not retries.is_isolated(records([0])[0])
    assert retries.limit(records([0, 1]), 500) == 500


def test_a_failed_batch_counts_for_each_of_its_messages() -> None:
    retries = counted(([0, 1, 2], None), ([1], None))
    assert tries_of(retries, 0, 1, 2, 3) == [(1, 0), (2, 1), (1, 0), (0, 0)]


def test_what_comes_after_a_known_culprit_was_not_tried() -> None:
    retries = counted(([0, 1, 2, 3], 1))
    assert tries_of(retries, 0, 1, 2, 3) == [(1, 0), (1, 0), (0, 0), (0, 0)]


def test_what_is_marked_was_not_tried_and_is_forgotten() -> None:
    retries = counted(([0, 1, 2], None))
    retries.count(records([0, 1, 2]), None, retry_position=2)
    assert tries_of(retries, 0, 1, 2) == [(0, 0), (0, 0), (2, 0)]


def test_a_message_that_succeeded_is_forgotten() -> None:
    retries = counted(([0, 1], None))
    retries.succeeded(records([0]))
    assert tries_of(retries, 0, 1) == [(0, 0), (1, 0)]
    retries.succeeded(records([1]))
    assert not retries.counting


@pytest.mark.parametrize(
    ("tries", "isolated", "exhausted"),
    [
        ([], False, False),
        ([[0, 1]], False, False),
        ([[0, 1], [0, 1]], True, False),
        ([[0, 1], [0, 1], [0]], True, False),
        ([[0, 1], [0]], True, False),
        ([[0, 1], [0, 1], [0], [0]], True, True),
        ([[0], [0]], True, True),
    ],
)
def test_a_message_is_given_up_only_after_it_was_tried_alone(
    tries: list[list[int]], isolated: bool, exhausted: bool
) -> None:
    retries = counted(*((offsets, None) for offsets in tries), budget=2)
    (first,) = records([0])
    assert (retries.is_isolated(first), retries.is_exhausted(0)) == (isolated, exhausted)


@pytest.mark.parametrize(
    ("bad", "limit"),
    [([], 5), ([0], 1), ([1], 1), ([2], 2), ([4], 4), ([0, 1], 1), ([9], 5)],
)
def test_an_isolated_message_is_alone_in_its_batch(bad: list[int], limit: int) -> None:
    retries = counted(*(([offset], None) for offset in bad * 2))
    upcoming: Any = iter(records(range(8)))
    assert retries.limit(upcoming, 5) == limit


def test_the_number_of_tries_has_a_name() -> None:
    assert Tries() == (0, 0)
    assert (Tries(3, 1).all, Tries(3, 1).alone) == (3, 1)
