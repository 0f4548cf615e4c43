"""Standard error as one JSON object a line, and with ``--quiet`` without what is not wrong."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
from support.command import process

from karafka_lite.cli import console, lines

CALLS = [
    ("run", "--log-format=json"),
    ("run", "nope:app", "--log-format", "json"),
    ("run", "nope:app", "--concurency", "3", "--log-format", "json"),
    ("produce", "t", "nope.jsonl", "--log-format", "json"),
]


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    lines.choose("auto", False)
    lines.of_process("")


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("argv", CALLS, ids=" ".join)
def test_a_mistake_is_one_object(argv: tuple[str, ...], tmp_path: Path) -> None:
    done = process("-m", "karafka_lite", *argv, cwd=tmp_path)
    (said,) = objects(done.stderr)
    assert (done.returncode, said["level"], said["logger"]) == (1, "ERROR", "karafka_lite.cli")
    assert said["message"].startswith("karafka-lite")
    assert said["time"].endswith("+00:00")


def test_a_log_record_has_its_exception_its_extra_and_whatever_text_on_one_line() -> None:
    stream = io.StringIO()
    lines.choose("json", False)
    with redirect_stderr(stream):
        console.configure_logging("info")
        try:
            raise ValueError("first\nsecond")
        except ValueError:
            logging.getLogger("shop").exception("order %s\nis\u2028bad", 7, extra={"order": 7, "at": Path("x")})
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("old", DeprecationWarning, stacklevel=1)
    order, warning = objects(stream.getvalue())
    assert stream.getvalue().isascii()
    assert (order["level"], order["logger"], order["message"]) == ("ERROR", "shop", "order 7\nis\u2028bad")
    assert (order["order"], order["at"]) == (7, "x")
    assert order["exception"].endswith("ValueError: first\nsecond")
    assert (warning["logger"], "DeprecationWarning: old" in warning["message"]) == ("py.warnings", True)


def test_a_text_that_is_no_utf_8_is_an_object_too() -> None:  # by itself: pytest cannot pass it on between processes
    line = lines.JsonFormatter().format(logging.LogRecord("shop", logging.INFO, "x.py", 1, "bad \udcff", (), None))
    assert line.isascii()
    assert json.loads(line)["message"] == "bad \udcff"


def test_what_nobody_caught_is_an_object_too(capsys: pytest.CaptureFixture[str]) -> None:
    lines.choose("json", False)
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    (said,) = objects(capsys.readouterr().err)
    assert said["message"] == "uncaught ZeroDivisionError: division by zero"
    assert said["exception"].startswith("Traceback")


def test_so_is_what_ends_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    lines.choose("json", False)
    try:
        raise ValueError("at the end")
    except ValueError:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    (said,) = objects(capsys.readouterr().err)
    assert said["message"] == "uncaught ValueError: at the end"


@pytest.mark.parametrize("log_format", ["auto", "text", "json"])
def test_quiet_leaves_complaints_and_warnings(log_format: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines.choose(log_format, True)
    console.configure_logging(None)
    console.serving("embedded", "127.0.0.1:9092", {"clicks": 1})
    with console.feeding("clicks", 10, False) as update:
        update(10, 1)
    console.drained([], 0.5, "")
    logging.getLogger("shop").info("hello")
    assert capsys.readouterr().err == ""
    lines.complain("karafka-lite: bad")
    console.drained([], 0.5, "stopped")
    logging.getLogger("shop").warning("careful")
    err = capsys.readouterr().err
    assert [word in err for word in ("karafka-lite: bad", "not drained: stopped", "careful")] == [True] * 3


def test_text_is_text_also_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with redirect_stderr(stream):
        lines.choose("auto", False)
        assert lines.on_terminal()
        lines.choose("text", False)
        console.serving("embedded", "127.0.0.1:9092", {"clicks": 1})
    assert "\x1b" not in stream.getvalue()
    assert stream.getvalue().startswith("karafka-lite ")


def test_each_line_says_of_which_process_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    lines.of_process("2")
    for log_format in ("text", "json"):
        lines.choose(log_format, False)
        console.configure_logging("info")
        lines.say("said")
        logging.getLogger("shop").info("logged")
    said, logged, *as_json = capsys.readouterr().err.splitlines()
    assert said == "[2] said"
    assert logged.endswith(" INFO shop: [2] logged")
    assert [(one["process"], one["message"]) for one in map(json.loads, as_json)] == [("2", "said"), ("2", "logged")]
