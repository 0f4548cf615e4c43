"""Dead letters that go back."""

from __future__ import annotations

import pytest
from support.partitions import Record

from karafka_lite.cli.letters import ADDED, Letter
from karafka_lite.messages import Addressed

OWN = ("trace", b"1")
SOURCE = {
    "source-topic": b"orders",
    "source-partition": b"2",
    "source-offset": b"7",
    "source-timestamp": b"1000",
    "source-group": b"shop",
    "attempts": b"4",
    "error": b"ValueError: no id",
}


def letter(*own: tuple[str, bytes | None], timestamp: int = 5, **changed: bytes | None) -> Letter:
    names = {name.replace("_", "-"): value for name, value in changed.items()}
    added = [(name, value) for name, value in {**SOURCE, **names}.items() if value is not None]
    return Letter.of(Record(3, timestamp, b"k", b"v", (*own, *added)))  # type: ignore[arg-type]


def test_it_goes_back_as_it_was_into_its_partition() -> None:
    assert letter(OWN).sent_back(None, {"orders": 3}) == Addressed("orders", b"v", b"k", [OWN], 2)


@pytest.mark.parametrize("number", [b"3", b"-1", b"x", None])
def test_where_its_partition_is_not_known_the_key_decides(number: bytes | None) -> None:
    assert letter(source_partition=number).sent_back(None, {"orders": 3}).partition is None


def test_elsewhere_the_key_decides() -> None:
    assert letter().sent_back("late", {"late": 3}) == Addressed("late", b"v", b"k", [], None)


def test_only_what_was_added_last_is_taken_away() -> None:
    """A letter of a letter keeps the headers of the first, and a message its own of the same name."""
    first = tuple(SOURCE.items())
    found = letter(("error", b"mine"), *first, source_topic=b"orders.dead")
    assert found.topic(None) == "orders.dead"
    assert found.sent_back(None, {"orders.dead": 1}).headers == [("error", b"mine"), *first]


def test_without_the_error_which_may_have_been_too_large_it_is_a_letter_as_well() -> None:
    found = letter(OWN, error=None)
    assert (found.topic(None), found.kind, found.own) == ("orders", "-", [OWN])
    assert found.matches(None)
    assert not found.matches("ValueError")


def test_without_a_source_topic_all_headers_are_its_own() -> None:
    found = Letter.of(Record(3, 5, None, None, (("error", b"mine"), ("h", None))))  # type: ignore[arg-type]
    assert found.topic(None) is None
    assert found.sent_back("late", {"late": 1}) == Addressed("late", None, None, [("error", b"mine"), ("h", b"")])


@pytest.mark.parametrize(("error", "fits"), [("ValueError", True), ("no id", True), ("KeyError", False), (None, True)])
def test_an_error_is_found_by_any_part_of_its_text(error: str | None, fits: bool) -> None:
    assert letter().matches(error) is fits
    assert letter().kind == "ValueError"


def test_put_back_it_is_the_same_letter() -> None:
    assert letter(OWN).put_back("orders.dead", 1) == Addressed("orders.dead", b"v", b"k", [OWN, *SOURCE.items()], 1, 5)
    assert letter(timestamp=-1).put_back("orders.dead", 1).timestamp_ms is None


def test_every_header_that_is_added_is_known() -> None:
    assert set(ADDED) == set(SOURCE)
