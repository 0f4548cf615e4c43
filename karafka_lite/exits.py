"""What has to end before the interpreter does: threads of ours are daemons, for which Python does not wait.

Python first waits for the threads that are no daemons, then calls what ``atexit`` has. Its executors refuse work before
both, as soon as the main thread has ended, and a handler that uses one could not finish its batch. So we act at that
moment, before them; but while another thread keeps the program running, we go on until ``atexit``.

Private touch points in CPython, each used only where it is there, with tests in tests/unit/test_exits.py:

    threading._register_atexit                                             called when the main thread has ended
    concurrent.futures.thread._threads_queues, process._threads_wakeups    which threads are those of executors
"""

from __future__ import annotations

import atexit
import logging
import sys
import threading
import weakref
from contextlib import suppress
from functools import cache
from typing import Protocol

log = logging.getLogger("karafka_lite")


class Ends(Protocol):
    """What may have to end."""

    def end_at_exit(self) -> None:
        """End now; where nothing is to be ended, nothing is done."""


_known: dict[int, weakref.ref[Ends]] = {}


def end_before_exit(owner: Ends) -> None:
    """End ``owner``, if it is still there, before the interpreter exits."""
    _watch()
    number = id(owner)
    _known[number] = weakref.ref(owner, lambda _: _known.pop(number, None))


def known() -> list[Ends]:
    """Those that may have to end, the newest first."""
    return [owner for known in reversed(list(_known.values())) if (owner := known()) is not None]


@cache
def _watch() -> None:
    import concurrent.futures.thread  # noqa: F401 - what is registered last is called first

    atexit.register(_end)
    with suppress(AttributeError, RuntimeError):  # a Python without it, or one that is at its end
        threading._register_atexit(_end_unless_others_run)  # type: ignore[attr-defined]


def _end_unless_others_run() -> None:
    others = set(threading.enumerate()) - {threading.main_thread()} - _of_executors()
    if all(thread.daemon for thread in others):
        _end()


def _of_executors() -> set[threading.Thread]:
    names = {"thread": "_threads_queues", "process": "_threads_wakeups"}
    modules = {sys.modules.get(f"concurrent.futures.{module}"): name for module, name in names.items()}
    return {thread for module, name in modules.items() for thread in list(getattr(module, name, ()))}


def _end() -> None:
    for owner in known():
        try:
            owner.end_at_exit()
        except Exception:  # the others end, too, and so does the interpreter
            log.exception("%r could not be ended before the program", owner)
