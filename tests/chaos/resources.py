"""What a member holds stays the same, however often it joins and reconnects, and however much it reads.

    python tests/chaos/resources.py                                 everything, on Apache Kafka: a few minutes
    python tests/chaos/resources.py rebalances reconnects           some of it
    python tests/chaos/resources.py --tenth                         a tenth of everything: does the program work?

The member is a process of its own (``python resources.py member``), told by lines on its standard input what to do. Its
memory, threads, files and log lines are compared between a tenth of the way, when everything has its size, and the end.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from confluent_kafka import Producer
from network import ProxiedKafka
from support.observer import Observer, wait_until

REBALANCES, RECONNECTS, PARTITIONS, GIGABYTE = 1000, 300, 1000, 10**9
VALUE = b"x" * 1000
MOST_MIB_READING = 150
MOST_GROWTH_MIB, MOST_GROWTH_FILES = 6, 2


class Held(NamedTuple):
    """By a process, now."""

    mib: float
    peak_mib: float
    threads: int
    files: int
    lines: int  # in its log
    cpu_s: float


class Member:
    def __init__(self, servers: str, folder: Path, topic: str, group: str) -> None:
        self._log = folder / "member.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, __file__, "member", topic, group],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "BROKERS": servers},
            )

    def ask(self, order: str) -> Any:
        """The answer; nothing else is under way then."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{order}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, f"the member is gone: {self._log.read_text()[-2000:]}"
        return json.loads(answer)

    def held(self) -> Held:
        process = Path("/proc", str(self.process.pid))
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        times = (process / "stat").read_text().rpartition(")")[2].split()
        return Held(
            int(status["VmRSS"].split()[0]) / 1024,
            int(status["VmHWM"].split()[0]) / 1024,
            int(status["Threads"]),
            len(list((process / "fd").iterdir())),
            self._log.read_bytes().count(b"\n"),
            (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK"),
        )


@contextmanager
def member(kafka: Observer, servers: str, topic: str) -> Iterator[Member]:
    with tempfile.TemporaryDirectory() as folder:
        one = Member(servers, Path(folder), topic, kafka.group())
        try:
            yield one
        finally:
            one.process.terminate()
            one.process.wait(30)
            one.process.communicate()


def flat(name: str, times: int, one: Member, step: Callable[[int], None]) -> list[str]:
    """Prints what is held at a tenth of the way and at the end; what has grown is a complaint."""
    began, at = time.monotonic(), {}
    for number in range(1, times + 1):
        step(number)
        if number in (max(1, times // 10), times):
            at[number] = one.held()
    early, late = at.values()
    lines = (late.lines - early.lines) / (times - times // 10)
    print(
        f"{times} {name} in {time.monotonic() - began:.0f} s: {early.mib:.0f} -> {late.mib:.0f} MiB, threads "
        f"{early.threads} -> {late.threads}, files {early.files} -> {late.files}, {lines:.1f} log lines each",
        flush=True,
    )
    grown = {
        "memory": late.mib - early.mib > MOST_GROWTH_MIB,
        "threads": late.threads > early.threads,
        "files": late.files > early.files + MOST_GROWTH_FILES,
        "log lines": lines > 4,
    }
    return [f"{name}: more {what}" for what, is_more in grown.items() if is_more]


# -- what is tried ----------------------------------------------------------------------------------------------------


def rebalances(kafka: Observer, server: ProxiedKafka, share: float) -> list[str]:
    topic = kafka.topic(6)
    with member(kafka, server.bootstrap_servers, topic) as one:

        def step(number: int) -> None:
            kafka.produce(topic, [number], number % 6)
            assert one.ask("rejoin") == "assigned"

        return flat("rebalances", int(REBALANCES * share), one, step)


def reconnects(kafka: Observer, server: ProxiedKafka, share: float) -> list[str]:
    topic = kafka.topic(6)
    with member(kafka, server.proxied_servers, topic) as one:

        def step(number: int) -> None:
            server.network.spoil(1, "cut")
            server.network.heal(1)
            kafka.produce(topic, [number], number % 6)
            assert one.ask(f"count {number}") == number

        return flat("reconnects", int(RECONNECTS * share), one, step)


def partitions(kafka: Observer, server: ProxiedKafka, share: float) -> list[str]:
    count = int(PARTITIONS * share)
    topic = kafka.topic(count)
    fill(kafka, topic, count, count, b"1")
    began = time.monotonic()
    with member(kafka, server.bootstrap_servers, topic) as one:
        assert one.ask(f"count {count}") == count
        started = time.monotonic() - began
        before = one.held()
        time.sleep(10)
        after = one.held()
        assert one.ask("rejoin") == "assigned"
        cpu = 100 * (after.cpu_s - before.cpu_s) / 10
        print(f"{count} partitions: all at work after {started:.1f} s, idle {cpu:.0f} % of a core, {after.mib:.0f} MiB")
    return [f"partitions: {after.mib:.0f} MiB"] if after.mib > MOST_MIB_READING else []


def gigabyte(kafka: Observer, server: ProxiedKafka, share: float) -> list[str]:
    topic, count = kafka.topic(12), int(GIGABYTE * share) // len(VALUE)
    fill(kafka, topic, 12, count, VALUE)
    began = time.monotonic()
    with member(kafka, server.bootstrap_servers, topic) as one:
        assert one.ask(f"count {count}") == count
        held, seconds = one.held(), time.monotonic() - began
    print(
        f"{count * len(VALUE) / 1e9:.1f} GB read in {seconds:.0f} s, with {held.peak_mib:.0f} MiB at most", flush=True
    )
    return [f"a gigabyte: {held.peak_mib:.0f} MiB"] if held.peak_mib > MOST_MIB_READING else []


def fill(kafka: Observer, topic: str, partitions: int, count: int, value: bytes) -> None:
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "linger.ms": 20, "log_level": 0})
    for number in range(count):
        while True:
            try:
                producer.produce(topic, value, partition=number % partitions)
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
    assert producer.flush(60) == 0


TRIALS = {trial.__name__: trial for trial in (rebalances, reconnects, partitions, gigabyte)}


def tried(names: list[str], share: float) -> list[str]:
    """The complaints."""
    with ProxiedKafka() as server:
        kafka = Observer(server.bootstrap_servers)
        complaints = [complaint for name in names for complaint in TRIALS[name](kafka, server, share)]
        kafka.forget_clients()
    return complaints


# -- the member -------------------------------------------------------------------------------------------------------


def be_member(topic: str, group: str) -> None:
    from karafka_lite import App
    from karafka_lite.events import Assigned

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    app = App(group, bootstrap_servers=os.environ["BROKERS"], heartbeat_interval_ms=300, fetch_max_wait_ms=100)
    count, joins, lock = 0, 0, threading.Lock()

    @app.topic(topic, deserializer=None)
    def handle(batch: Any, ctx: Any) -> None:
        nonlocal count
        with lock:
            count += len(batch)

    @app.observe
    def joined(event: Any) -> None:
        nonlocal joins
        joins += isinstance(event, Assigned)

    with started(app):
        for line in sys.stdin:
            order, *number = line.split()
            if order == "rejoin":
                wait_until(lambda: joins, 60, "assigned")
                before = joins
                app.members[0]._client.rejoin()
                wait_until(lambda before=before: joins > before, 60, "assigned anew")
                answer: Any = "assigned"
            else:
                wait_until(lambda wanted=int(number[0]): count >= wanted, 300, f"{number} messages")
                answer = count
            print(json.dumps(answer), flush=True)


@contextmanager
def started(app: Any) -> Iterator[None]:
    app.start()
    try:
        yield
    finally:
        app.stop()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trials", metavar="TRIAL", nargs="*", help=f"of {', '.join(TRIALS)}; default: all")
    parser.add_argument("--tenth", action="store_true")
    options = parser.parse_args()
    complaints = tried(options.trials or list(TRIALS), 0.1 if options.tenth else 1.0)
    print("complaints: " + ("; ".join(complaints) or "none"))
    return 1 if complaints else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["member"]:
        be_member(*sys.argv[2:])
    else:
        sys.exit(main())
