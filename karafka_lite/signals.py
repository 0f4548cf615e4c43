"""SIGINT, SIGTERM and SIGHUP as a wish to stop, SIGUSR1 as a question, while an app runs in the main thread."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

from karafka_lite import forks
from karafka_lite.errors import ConfigurationError, Exit
from karafka_lite.forks import HANG_UP, SIGNALS

if TYPE_CHECKING:
    from typing_extensions import Self

DUMP: int | None = getattr(signal, "SIGUSR1", None)  # not on Windows
SHOW_CURSOR = b"\x1b[?25h"  # a progress bar may have hidden it
SAME_S = 1.0  # so long a further signal is the same one: a wrapper passes on what the terminal has sent as well


class _Stoppable(Protocol):
    def ask_to_stop(self) -> None: ...


class Signals:
    """The first signal asks for the stop; a SIGINT or SIGTERM after more than a second ends the process with 2.

    The previous handlers are restored on exit, and in a forked child, which dies of a signal as any process does.
    """

    def __init__(self, *, required: bool = True) -> None:
        self._required = required
        self._stoppable: _Stoppable | None = None
        self._first: float | None = None  # when the first signal came
        self._before: dict[int, Callable[[int, FrameType | None], Any] | int] = {}

    def __enter__(self) -> Self:
        """Raises ConfigurationError: this is not the main thread, and signals are required."""
        for number in SIGNALS:
            if number == HANG_UP and signal.getsignal(number) is signal.SIG_IGN:  # by nohup
                continue
            try:
                before = signal.signal(number, self._on_signal)
            except ValueError:
                if not self._required:
                    return self
                raise ConfigurationError("app.run() is for the main thread; in another one use app.start()") from None
            self._before[number] = signal.SIG_DFL if before is None else before  # None: one that C code installed
        forks.in_child(self, Signals._restore)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._restore()

    def ask_to_stop(self, stoppable: _Stoppable) -> None:
        """Have the first signal ask this to stop; also where it has come already."""
        self._stoppable = stoppable
        if self._first is not None:
            stoppable.ask_to_stop()

    def at_dump(self, tell: Callable[[], None]) -> None:
        """Have SIGUSR1 call ``tell``, which must not wait, unless the user's program has a use for it."""
        if self._before and DUMP is not None and signal.getsignal(DUMP) is signal.SIG_DFL:
            self._before[DUMP] = signal.signal(DUMP, lambda number, frame: tell()) or signal.SIG_DFL

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = now
            if self._stoppable is not None:
                self._stoppable.ask_to_stop()
        elif number != HANG_UP and now - self._first > SAME_S:
            if os.isatty(2):
                os.write(2, SHOW_CURSOR)
            os.write(2, b"karafka-lite: stopped by a second signal; what was not committed will come again\n")
            os._exit(Exit.FORCED.value)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
