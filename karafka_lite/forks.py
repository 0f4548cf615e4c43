"""What a fork of the process may not do: it has the parent's locks and sockets, and none of its threads.

An App belongs to the process that started it. In a child every lock of a group refuses with the reason, so that nobody
waits for one that no thread would release; and what began in the parent as a call of user code ends with the child.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
import weakref
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, NoReturn, TypeVar

from karafka_lite.errors import ConfigurationError

HANG_UP: int | None = getattr(signal, "SIGHUP", None)  # not on Windows
SIGNALS: tuple[int, ...] = tuple(number for number in (signal.SIGINT, signal.SIGTERM, HANG_UP) if number is not None)
FOREIGN = "this App belongs to the process that started it, and this is a fork of it: make and start an App in here"

T = TypeVar("T")


class ForeignLock:
    """Takes the place of a lock of the parent, and refuses with the reason."""

    def acquire(self, *args: object) -> NoReturn:
        """Raises ConfigurationError."""
        raise ConfigurationError(FOREIGN)

    __enter__ = acquire

    def __exit__(self, *exc_info: object) -> None: ...


_in_child: weakref.WeakKeyDictionary[Any, Callable[[Any], object]] = weakref.WeakKeyDictionary()


def in_child(owner: T, act: Callable[[T], object]) -> None:
    """Call ``act(owner)`` in each forked child, as long as there is an ``owner``."""
    _in_child[owner] = act


def watch(owner: Any) -> None:
    """Replace ``owner.lock`` in each forked child."""
    in_child(owner, _replace_lock)


def _replace_lock(owner: Any) -> None:
    owner.lock = ForeignLock()


def call(function: Callable[..., T], *arguments: object) -> T:
    """Call user code, which may fork: a child that returns or raises ends here, as a program does.

    Else it would go on as a second copy of the app: ``sys.exit()`` after ``os.fork()`` is an exception for a worker.
    """
    process = os.getpid()
    try:
        result = function(*arguments)
    except BaseException as raised:
        if os.getpid() == process:
            raise
        end(raised)
    if os.getpid() != process:
        end(None)
    return result


def end(error: BaseException | None) -> NoReturn:
    """End a child at once: its exit handlers and its threads are the parent's. ``error``: what its code has raised."""
    code: object = 0
    if isinstance(error, SystemExit):
        code = 0 if error.code is None else error.code
    elif error is not None:
        trace = error.__traceback__
        traceback.print_exception(type(error), error, trace and trace.tb_next)  # without our own frame
        code = 1
    if not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):  # none, or closed
            stream.flush()
    os._exit(code & 0xFF)


# A signal for a child that is a moment old would meet the parent's handlers, and be forgotten: it waits.
_before: ContextVar[set[Any] | None] = ContextVar("signals blocked before the fork", default=None)


def _hold_signals() -> None:
    _before.set(signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS) if _in_child else None)


def _release_signals() -> None:
    if (mask := _before.get()) is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _begin_child() -> None:
    for owner, act in reversed(list(_in_child.items())):  # what was put in the place of something goes before that
        act(owner)
    _release_signals()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no forks
    os.register_at_fork(before=_hold_signals, after_in_parent=_release_signals, after_in_child=_begin_child)
