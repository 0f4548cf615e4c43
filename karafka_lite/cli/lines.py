"""What the command line says on standard error beside log records: lines of text, or one JSON object each.

``--log-format`` and ``--quiet`` choose, once for the process.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
import traceback
from datetime import datetime, timezone
from types import TracebackType
from typing import Any

from karafka_lite.observers import banner

LOGGER = "karafka_lite.cli"
_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime"}  # of a record: all else is somebody's ``extra``


class _Style:
    """How lines look, and whether there are any but complaints."""

    format = "auto"
    quiet = False
    process = ""  # of several that write to the same stream


def choose(log_format: str, quiet: bool) -> None:
    """``log_format``: auto, text or json. JSON also takes warnings and the tracebacks of what nobody caught."""
    _Style.format, _Style.quiet = log_format, quiet
    if log_format == "json":
        logging.captureWarnings(True)
        sys.excepthook = _uncaught
        threading.excepthook = lambda hook: _uncaught(hook.exc_type, hook.exc_value, hook.exc_traceback)


def of_process(number: str) -> None:
    """Begin each line with ``[number]``; JSON has it as ``process``."""
    _Style.process = number


def process() -> str:
    """What a line begins with; "" where no other process writes to the same stream."""
    return f"[{_Style.process}] " if _Style.process else ""


def is_json() -> bool:
    """Whether each line is a JSON object."""
    return _Style.format == "json"


def is_quiet() -> bool:
    """Whether only what is wrong is said."""
    return _Style.quiet


def on_terminal(*, quiet: bool = False) -> bool:
    """True when standard error is a terminal that can do more than print lines, and may; ``quiet``: whatever else."""
    if _Style.format != "auto" or (_Style.quiet and not quiet):
        return False
    return banner.on_terminal()


def say(text: str, **fields: object) -> None:
    """One line or more about what goes on. ``fields``: what JSON says beside the text."""
    if not is_quiet():
        _print("INFO", text, fields)


def answer(text: str, **fields: object) -> None:
    """What somebody has asked for; also with ``--quiet``."""
    _print("INFO", text, fields)


def complain(text: str, **fields: object) -> None:
    """What is wrong; also with ``--quiet``."""
    _print("ERROR", text, fields)


def _print(level: str, text: str, fields: dict[str, object]) -> None:
    line = encoded(time.time(), level, LOGGER, text, fields) if is_json() else process() + text
    print(line, file=sys.stderr, flush=True)


def encoded(at: float, level: str, logger: str, message: str, more: dict[str, Any]) -> str:
    """One object on one line, in ASCII: no text of a user's can break it."""
    when = datetime.fromtimestamp(at, timezone.utc).isoformat(timespec="milliseconds")
    said = {"time": when, "level": level, "logger": logger, "message": message}
    whose = {"process": _Style.process} if _Style.process else {}
    return json.dumps({**said, **whose, **more}, default=str)


class JsonFormatter(logging.Formatter):
    """A record as one JSON object: ``time``, ``level``, ``logger``, ``message``, ``exception``, and its ``extra``."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        more = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_text or record.exc_info:
            more["exception"] = record.exc_text or self.formatException(record.exc_info or (None, None, None))
        if record.stack_info:
            more["stack"] = record.stack_info
        return encoded(record.created, record.levelname, record.name, record.getMessage(), more)


def _uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt | SystemExit):
        text = "".join(traceback.format_exception(kind, error, trace))
        complain(f"uncaught {kind.__name__}: {error}", exception=text)
