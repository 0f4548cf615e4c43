"""Ctrl-C and SIGTERM for a command that sends: never between a message and its count."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

from karafka_lite.forks import SIGNALS


class Interrupt:
    """Raises KeyboardInterrupt at a signal to stop; between ``hold`` and ``release`` it waits for the release.

    A second signal does not wait.
    """

    def __init__(self) -> None:
        self.number = 0
        self._held = False
        self._before: dict[int, Any] = {}

    @property
    def name(self) -> str:
        return signal.Signals(self.number).name if self.number else "Ctrl-C"

    def hold(self) -> None:
        self._held = True

    def release(self) -> None:
        self._held = False
        if self.number:
            raise KeyboardInterrupt

    def __enter__(self) -> Interrupt:
        for number in SIGNALS:
            # Ignored signals (nohup) stay ignored. None: not installed from Python, so it could not be restored.
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        again, self.number = bool(self.number), number
        if again or not self._held:
            raise KeyboardInterrupt
