"""Apps under test: in this process, or as processes of their own that can be stopped and killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from observer import Observer, wait_until

from karafka_lite import App

QUICK = {"heartbeat_interval_ms": 300, "session_timeout_ms": 6000, "fetch_max_wait_ms": 100}


def make_app(kafka: Observer, group: str | None = None, **settings: Any) -> App:
    """An app on the test's broker with quick heartbeats; commits only when asked unless an interval is given."""
    given = {"auto_commit_interval_ms": 600_000, **QUICK, **settings}
    return App(group or kafka.group(), bootstrap_servers=kafka.bootstrap_servers, **given)


@contextmanager
def running(app: App) -> Iterator[App]:
    """``app`` started; stopped behind the block, also when a test fails."""
    app.start()
    try:
        yield app
    finally:
        app.stop()


class Gate:
    """Holds a handler at a place until the test opens it: ``wait`` there, ``reached`` and ``open`` here."""

    def __init__(self) -> None:
        self._reached = threading.Event()
        self._open = threading.Event()

    def wait(self, timeout: float = 60) -> None:
        self._reached.set()
        assert self._open.wait(timeout), "nobody opened the gate"

    def reached(self, timeout: float = 20) -> None:
        assert self._reached.wait(timeout), "the handler did not come to the gate"

    def open(self) -> None:
        self._open.set()


class Process:
    """A Python program of its own (a member of a group, say): its text, its output lines, its signals.

    The program gets ``say(**fact)`` (a JSON line on standard output, seen in ``facts``) and ``BROKERS``.
    """

    PRELUDE = """
        import json, os, sys, threading, time
        BROKERS = os.environ["BROKERS"]
        _say = threading.Lock()
        def say(**fact):
            with _say:
                os.write(1, (json.dumps(fact) + "\\n").encode())
    """

    def __init__(self, kafka: Observer, text: str, folder: Path, *arguments: str, **environment: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        program = folder / "program.py"
        program.write_text(textwrap.dedent(self.PRELUDE) + textwrap.dedent(text))
        self._errors = (folder / "stderr.txt").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, str(program), *arguments],
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "BROKERS": kafka.bootstrap_servers, "PYTHONUNBUFFERED": "1", **environment},
        )
        self.facts: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read, name="process-reader")
        self._reader.start()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.process.poll() is None:
            self.signal(signal.SIGKILL)
        self.wait()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, timeout: float = 60) -> int:
        """The exit code, negative for a signal."""
        code = self.process.wait(timeout)
        self._reader.join()
        self._errors.close()
        return code

    def until(self, fact: Callable[[dict[str, Any]], bool], timeout: float = 30, message: str = "") -> dict[str, Any]:
        """The first fact for which ``fact`` holds; waits for it until a deadline."""

        def found() -> dict[str, Any] | None:
            return next((one for one in list(self.facts) if fact(one)), None)

        try:
            return wait_until(found, timeout, message or "a fact from the process")  # type: ignore[return-value]
        except AssertionError as error:
            raise AssertionError(f"{error}\nfacts: {self.facts[-20:]}\n{self.errors()}") from None

    def errors(self) -> str:
        """What it wrote to standard error so far."""
        return Path(self._errors.name).read_text()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.facts.append(json.loads(line) if line.startswith(b"{") else {"line": line.decode()})
