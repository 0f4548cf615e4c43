"""How a failure of user code is logged: one line, and below it the user's frames.

logging would ask the exception for its text, each handler by itself: which may raise, take long, be of any length, and
hold lines of its own. So the text is made here, once, and goes along with the record.
"""

from __future__ import annotations

import logging
import sys
import textwrap
import traceback

from karafka_lite.errors import CHAIN, cut, describe, one_line
from karafka_lite.observers.frames import users_traceback

log = logging.getLogger("karafka_lite")

PARTS = 5  # of an ExceptionGroup


def log_failure(level: int, line: str, error: BaseException, reason: str = "") -> None:
    """Log ``line`` with the traceback of ``error``; ``reason``: its description, where it is known."""
    if not log.isEnabledFor(level):
        return
    caller = sys._getframe(1)
    info = type(error), error, users_traceback(error)
    at = caller.f_code.co_filename, caller.f_lineno
    record = log.makeRecord(log.name, level, *at, "%s", (line,), info, caller.f_code.co_name)
    record.exc_text = story(error, reason)
    log.handle(record)


def story(error: BaseException, reason: str = "") -> str:
    """The traceback of ``error`` and of its causes, as Python shows them, from the user's function on."""
    parts: list[str] = []
    now: BaseException | None = error
    link = ""
    for _ in range(CHAIN):
        if now is None:
            break
        parts.insert(0, _one(now, reason if now is error else "") + link)
        cause, context = now.__cause__, None if now.__suppress_context__ else now.__context__
        of = "was the direct cause of the following exception" if cause else "another exception occurred"
        link = f"\n\n{'The above exception ' if cause else 'During handling of the above exception, '}{of}:\n\n"
        now = cause or context
    return "".join(parts)


def _one(error: BaseException, reason: str) -> str:
    frames = "".join(traceback.format_tb(users_traceback(error)))
    lines = [f"Traceback (most recent call last):\n{frames}" if frames else "", reason or describe(error)]
    notes = getattr(error, "__notes__", ())
    lines += [f"\n{cut(one_line(str(note)))}" for note in notes if isinstance(note, str)]
    parts = getattr(error, "exceptions", ())
    if isinstance(parts, tuple):  # of an ExceptionGroup
        lines += ["\n" + textwrap.indent(story(part), "  | ") for part in parts[:PARTS] if part is not error]
        lines += [f"\n  | and {len(parts) - PARTS} more"] if len(parts) > PARTS else []
    return "".join(lines)


def raised_at(error: BaseException) -> tuple[str, int]:
    """File and line that raised ``error``; it is the same for all messages that fail there."""
    step, at = error.__traceback__, ("", 0)
    while step is not None:
        at = step.tb_frame.f_code.co_filename, step.tb_lineno
        step = step.tb_next
    return at
