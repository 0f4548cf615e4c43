"""Apps under test, in this process or in one of their own that can be killed, and what tests do to them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from kafka.admin import KafkaAdminClient, MemberToRemove

from karafka_lite import App
from support.client_kafka import ClientKafka
from support.observer import Observer, wait_until

_ON_TEST_CLIENT: WeakKeyDictionary[App, ClientKafka] = WeakKeyDictionary()
QUICK = {"heartbeat_interval_ms": 300, "session_timeout_ms": 6000, "fetch_max_wait_ms": 100}


def make_app(kafka: Observer, group: str | None = None, **settings: Any) -> App:
    """An app on the test's broker with quick heartbeats; commits only when asked unless an interval is given.

    Its partitions run side by side: most tests with several of them have one wait while another goes on.
    """
    given = {"auto_commit_interval_ms": 600_000, "concurrency": 5, **QUICK, **settings}
    app = App(group or kafka.group(), bootstrap_servers=kafka.bootstrap_servers, **given)
    if isinstance(kafka, ClientKafka):
        _ON_TEST_CLIENT[app] = kafka
    return app


@contextmanager
def running(app: App) -> Iterator[App]:
    """``app`` started; stopped behind the block, also when a test fails."""
    if (client := _ON_TEST_CLIENT.get(app)) is not None:
        with client.running(app):
            yield app
        return
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


@contextmanager
def opened(*gates: Gate) -> Iterator[None]:
    """The gates are open behind the block, also when a test fails: else the stop would wait for the handlers there."""
    try:
        yield
    finally:
        for gate in gates:
            gate.open()


@contextmanager
def stopped_aside(app: App) -> Iterator[Callable[[], bool]]:
    """``app.stop()`` in a thread beside the block; the value waits for its answer."""
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(app.stop()))
    thread.start()

    def answer() -> bool:
        thread.join(60)
        assert answers, "stop() did not return"
        return answers[0]

    try:
        yield answer
    finally:
        thread.join(60)


def evict(kafka: Observer, group: str, client_id: str = "") -> None:
    """Throws members out, as an operator can; they learn of it with their next heartbeat or commit."""
    members = [member for member in kafka.members(group) if member.startswith(client_id)]
    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap_servers)
    try:
        admin.remove_group_members(group, [MemberToRemove(member_id=member) for member in members])
    finally:
        admin.close()


def owner_of(kafka: Observer, group: str, topic: str, partition: int = 0) -> str | None:
    """The client id, which member ids begin with, of the member that has the partition now."""
    owners = [member for member, places in kafka.assignment(group).items() if (topic, partition) in places]
    return owners[0].partition("-")[0] if owners else None


def produce_beside(kafka: Observer, topic: str, events: Sequence[object]) -> None:
    """Five messages in partition 1, one by one, each of which comes to be an event.

    They are fetched together with what waits in partition 0: who could run by now, would.
    """
    for _ in range(5):
        count = len(events)
        kafka.produce(topic, [0], 1)
        wait_until(lambda count=count: len(events) > count, message="partition 1 goes on")


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
