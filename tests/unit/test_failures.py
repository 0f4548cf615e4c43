"""A failure of user code in the log: its text is made once, cut, and cannot pass for lines or colours of its own."""

from __future__ import annotations

import logging
import sys
import time

import pytest

from karafka_lite.errors import describe
from karafka_lite.observers import failures
from karafka_lite.observers.failures import log_failure, raised_at, story


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except type(error) as caught:
        return caught


FORGED = "bad\n2026-11-26 12:00:00,000 ERROR karafka_lite: all is lost\x1b[2J\x9b2J\u2028next"


def test_what_a_handler_logs_is_a_line_and_the_traceback_with_the_text_made_safe(
    caplog: pytest.LogCaptureFixture,
) -> None:
    error = raised(ValueError(FORGED))
    log_failure(logging.ERROR, "t-0@5: store failed", error)
    (record,) = caplog.records
    text = logging.Formatter("%(message)s").format(record)
    lines = text.splitlines()
    assert lines[:2] == ["t-0@5: store failed", "Traceback (most recent call last):"]
    assert lines[-1].startswith("ValueError: bad 2026-11-26 12:00:00,000 ERROR karafka_lite: all is lost")
    assert text.isascii()
    assert "\x1b" not in text
    assert record.exc_info
    assert record.exc_info[1] is error, "for collectors of errors"
    assert record.pathname == __file__


def test_below_the_level_nothing_is_made(caplog: pytest.LogCaptureFixture) -> None:
    class Dear(Exception):
        def __str__(self) -> str:
            raise AssertionError("nobody wants to know")

    caplog.set_level(logging.CRITICAL, logger="karafka_lite")
    log_failure(logging.ERROR, "line", Dear())
    assert caplog.records == []


def test_a_text_is_asked_for_once_and_cut() -> None:
    asked: list[float] = []

    class Long(Exception):
        def __str__(self) -> str:
            asked.append(time.monotonic())
            return "x" * 1_000_000

    error = raised(Long())
    reason = describe(error)
    assert len(reason) == 2000
    assert len(story(error, reason)) < 3000
    assert len(asked) == 1


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, ValueError], ids=lambda kind: kind.__name__)
def test_an_error_whose_text_raises_is_told_by_its_type(kind: type[BaseException]) -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise kind

    assert story(raised(Odd(), raised(Odd()))).count("\nOdd") == 2


def test_causes_are_shown_as_python_shows_them() -> None:
    cause = raised(KeyError("id"))
    told = story(raised(ValueError("no order"), cause))
    assert told.index("KeyError: 'id'") < told.index("was the direct cause of") < told.index("ValueError: no order")
    other = ValueError("while it was handled")
    other.__context__ = cause
    assert "During handling of the above exception, another exception occurred" in story(other)
    error = ValueError("round")
    error.__cause__ = KeyError("and round")
    error.__cause__.__cause__ = error
    assert story(error).count("ValueError: round") <= failures.CHAIN


@pytest.mark.skipif(sys.version_info < (3, 11), reason="ExceptionGroup and notes are of Python 3.11")
def test_groups_and_notes_are_shown() -> None:
    error = ExceptionGroup("two tasks", [raised(ValueError("a")), *(KeyError(n) for n in range(9))])  # noqa: F821 - not in 3.10
    error.add_note("in shop 7\nforged")
    lines = story(raised(error)).splitlines()
    assert "in shop 7 forged" in lines
    assert "  | ValueError: a" in lines
    assert lines[-1] == "  | and 5 more"


def test_where_it_was_raised_is_the_innermost_line() -> None:
    def inner() -> None:
        raise ValueError

    with pytest.raises(ValueError) as caught:  # noqa: PT011 - it is its place that counts
        inner()
    assert raised_at(caught.value) == (__file__, inner.__code__.co_firstlineno + 1)
    assert raised_at(ValueError()) == ("", 0)
