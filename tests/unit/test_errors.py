"""The exceptions: one tree, and texts that say their cause."""

from __future__ import annotations

import traceback

import pytest

from karafka_lite import errors
from karafka_lite.errors import (
    CommitError,
    ConfigurationError,
    FetchError,
    KarafkaLiteError,
    ProduceError,
    describe,
    is_collateral,
)


@pytest.mark.parametrize("name", errors.__all__)
def test_one_except_clause_catches_them_all(name: str) -> None:
    assert issubclass(getattr(errors, name), KarafkaLiteError)


def test_a_mistake_in_code_or_settings_is_a_value_error_too() -> None:
    assert issubclass(ConfigurationError, ValueError)


def test_the_docstring_draws_the_tree_with_every_exception() -> None:
    drawn = errors.__doc__ or ""
    assert [name for name in errors.__all__ if f" {name} " not in drawn and f" {name}\n" not in drawn] == []


def test_an_error_is_described_by_type_and_text() -> None:
    assert describe(KeyError("id")) == "KeyError: 'id'"


@pytest.mark.parametrize("raised", [ValueError, SystemExit])
def test_an_error_whose_text_cannot_be_made_is_described_by_its_type(raised: type[BaseException]) -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise raised

    assert describe(Odd()) == "Odd"


def test_a_text_that_a_user_chose_is_one_line_of_a_bounded_length_without_control_characters() -> None:
    forged = ValueError("a\n  b\r\nc\u2028d\x1b[31me\x9bf\udc80\u202eg")
    assert describe(forged) == "ValueError: a b c d\\x1b[31me\\x9bf\\udc80\\u202eg"
    assert describe(ValueError("Größe 5 µm ✓")) == "ValueError: Größe 5 µm ✓"
    assert len(describe(ValueError("x" * 1_000_000))) == 2000
    assert len(describe(type("E" * 5000, (Exception,), {})("x"))) == 2000


def test_who_fails_because_of_a_failure_that_is_collateral_fails_by_the_fault_of_another() -> None:
    failure, own = ProduceError("another message was refused"), ProduceError("too large")
    failure.collateral = True
    wrapped = KeyError("not sent")
    wrapped.__context__ = ValueError("because")
    wrapped.__context__.__cause__ = failure
    assert is_collateral(failure)
    assert is_collateral(wrapped)
    assert is_collateral(ProduceError.of_dead_letter(failure, "KeyError: 'id'"))
    own.__cause__ = failure
    assert not is_collateral(own), "the first that failed by itself counts"
    assert not is_collateral(ValueError())
    assert not is_collateral(None)
    wrapped.__context__ = wrapped.__cause__ = wrapped
    assert not is_collateral(wrapped)


def test_a_commit_that_was_not_acknowledged_says_how_long_it_waited_for_what() -> None:
    error = CommitError.after(500, "orders-0@7", "no broker answers")
    assert "orders-0@7" in str(error)
    assert "within 500 ms (no broker answers)" in str(error)


def test_a_failure_is_raised_again_as_a_new_error_with_the_old_one_as_its_cause() -> None:
    failure = ProduceError("orders: refused")
    failure.collateral = True
    again = ProduceError.from_failure(failure)
    assert again is not failure
    assert (str(again), again.collateral, again.__cause__) == ("orders: refused", True, failure)


def test_another_kind_of_failure_is_named_with_its_type() -> None:
    error = ProduceError.from_failure(TimeoutError("late"))
    assert (str(error), error.collateral) == ("TimeoutError: late", False)


def test_however_often_a_failure_is_raised_again_its_traceback_stays_short() -> None:
    failure = ProduceError("refused")
    for _ in range(50):
        with pytest.raises(ProduceError) as caught:
            raise ProduceError.from_failure(failure)
    assert len(traceback.extract_tb(caught.value.__traceback__)) < 5
    assert failure.__traceback__ is None


def test_what_cannot_be_read_says_where_reading_stopped() -> None:
    error = FetchError("corrupt", "orders", 3, 17)
    assert (str(error), error.topic, error.partition, error.offset) == ("corrupt", "orders", 3, 17)
