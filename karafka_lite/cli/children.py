"""Processes that this one starts and stops, and the signals that are meant for all of them."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from karafka_lite.cli.child import ASK, FED, PROGRAM, WORKS
from karafka_lite.forks import HANG_UP, SIGNALS
from karafka_lite.observers.health import Health
from karafka_lite.observers.metrics import Reading

if TYPE_CHECKING:
    from typing_extensions import Self

ROOT = str(Path(__file__).parents[2])


class Child:
    """A process that runs the command line ``argv``, with ``orders``; see ``child.py``.

    Attributes:
        fed, works: what it has said so far: its files are sent, and it has joined its groups.
        answers: to ``ask``, those that nobody has taken yet.
        talks: it may say more.
    """

    def __init__(self, argv: Sequence[str], orders: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> None:
        self.fed = self.works = False
        self.answers: list[tuple[Health, Reading]] = []
        self.talks = True
        self._heard = b""  # of a line that has not ended
        self._channel, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-c", PROGRAM, ROOT, str(theirs.fileno()), *argv]
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environ)
        self._channel.sendall(json.dumps(dict(orders)).encode() + b"\n")
        self._channel.setblocking(False)

    def fileno(self) -> int:
        return self._channel.fileno()

    def ended(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs. Hears what it says."""
        code = self.process.poll()
        with suppress(OSError):
            while said := self._channel.recv(65_536):
                *lines, self._heard = (self._heard + said).split(b"\n")
                for line in lines:
                    self._hear(json.loads(line))
            self.talks = False
        if code is not None:
            self._channel.close()
        return code

    def ask(self) -> None:
        """Have it say how it is, and what it has counted."""
        with suppress(OSError):  # it has just ended
            self._channel.send(ASK)

    def stop(self) -> None:
        """Ask it to stop, in good order."""
        self.process.terminate()

    def _hear(self, told: Any) -> None:
        if told == FED:
            self.fed = True
        elif told == WORKS:
            self.works = True
        else:
            live, ready, reasons = told["health"]
            self.answers.append((Health(live, ready, tuple(reasons)), Reading.of(told["reading"])))


class Bell:
    """Rings for the main thread: at a signal to stop, which is counted in ``stops``, and when a child has ended."""

    def __init__(self) -> None:
        self.stops = 0
        self._before: dict[int, Any] = {}
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)

    def ring(self) -> None:
        """End the wait, or the next one. From any thread, and from a signal handler."""
        with suppress(BlockingIOError):  # it is ringing
            os.write(self._writer, b"!")

    def wait(self, children: Iterable[Child], seconds: float) -> None:
        """Wait until it rings, or one of ``children`` says something, for at most ``seconds``."""
        talking = [child.fileno() for child in children if child.talks]
        if self._reader in select.select([self._reader, *talking], [], [], seconds)[0]:
            os.read(self._reader, 1024)

    def __enter__(self) -> Self:
        for number in (*SIGNALS, signal.SIGCHLD):
            before = signal.getsignal(number)
            if not (number == HANG_UP and before is signal.SIG_IGN):  # by nohup
                self._before[number] = signal.SIG_DFL if before is None else before
                signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._reader)
        os.close(self._writer)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.stops += number != signal.SIGCHLD
        self.ring()


def how_it_ended(code: int) -> str:
    """An exit code in words."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"has ended with exit code {code}"
