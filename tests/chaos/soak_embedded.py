"""Three members that join and leave at random on an embedded broker, while a producer sends.

    python tests/chaos/soak_embedded.py --minutes 10

All leave in good order, so nothing may be lost, repeated or out of order; the memory of the broker, which has a process
of its own, has to stay flat once its partitions are full. Ends with 1 where one of these does not hold.
"""

from __future__ import annotations

import argparse
import logging
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from confluent_kafka import KafkaError, Message, Producer
from support.harness import make_app, running
from support.observer import Observer, wait_until

PARTITIONS = 6
MEMBERS = 3
PER_SECOND = 1000
RETENTION_BYTES = 1 << 20  # of each partition: soon full, and far more than the members ever lag behind
TOPIC, GROUP = "soak", "soakers"
BROKER = f"""
import sys
from karafka_lite.broker.embedded import EmbeddedBroker
with EmbeddedBroker({{"{TOPIC}": {PARTITIONS}}}, retention_bytes={RETENTION_BYTES}) as broker:
    print(broker.bootstrap_servers, flush=True)
    sys.stdin.read()
"""


class Ledger:
    """What the handlers were given: the next offset that is due of each partition, whoever owns it."""

    def __init__(self) -> None:
        self.figures: Counter[str] = Counter()
        self.due: Counter[int] = Counter()
        self._lock = threading.Lock()

    def handle(self, batch: Any, ctx: Any) -> None:
        with self._lock:
            for message in batch:
                due = self.due[batch.partition]
                self.figures["messages"] += 1
                self.figures["lost"] += max(0, message.offset - due)
                self.figures["repeated"] += message.offset < due
                self.figures["order breaks"] += message.offset < ctx.state.get("due", 0)
                self.due[batch.partition] = max(due, message.next_offset)
                ctx.state["due"] = message.next_offset


def soak(seconds: float, seed: int) -> dict[str, Any]:
    """The figures of one run."""
    dice, ledger, errors = random.Random(seed), Ledger(), Errors()
    logging.getLogger("karafka_lite").addHandler(errors)
    with embedded() as (kafka, process), ExitStack() as members:
        memory = [rss_mib(process.pid)]
        with producing(kafka.bootstrap_servers) as sent:
            up: list[ExitStack] = []
            end = time.monotonic() + seconds
            while (now := time.monotonic()) < end:
                if len(memory) == 1 and now > end - seconds / 2:
                    memory.append(rss_mib(process.pid))
                if len(up) < MEMBERS and (not up or dice.random() < 0.5):
                    app = make_app(kafka, GROUP, auto_commit_interval_ms=1000)
                    app.topic(TOPIC)(ledger.handle)
                    up.append(members.enter_context(ExitStack()))
                    up[-1].enter_context(running(app))
                    ledger.figures["joins"] += 1
                elif up:
                    up.pop(dice.randrange(len(up))).close()
                    ledger.figures["leaves"] += 1
                time.sleep(dice.uniform(0.2, 2.0))
        if not up:
            app = make_app(kafka, GROUP)
            app.topic(TOPIC)(ledger.handle)
            members.enter_context(running(app))
        ends = {index: kafka.end_offset(TOPIC, index) for index in range(PARTITIONS)}
        wait_until(lambda: sum(ledger.due.values()) >= sum(ends.values()), 60, "everything is consumed")
        members.close()
        memory.append(rss_mib(process.pid))
        uncommitted = [index for index, end in ends.items() if kafka.committed(GROUP, TOPIC, index) != end]
        kafka.forget_clients()
    ledger.figures["lost"] += sum(ends.values()) - sum(ledger.due.values())
    figures = {
        name: ledger.figures[name] for name in ("messages", "joins", "leaves", "lost", "repeated", "order breaks")
    }
    return {
        **figures, "sent": sent["acknowledged"], "refused": sent["refused"], "not committed": uncommitted,
        "errors": errors.seen, "broker's memory in MiB": memory,
    }  # fmt: skip


@contextmanager
def embedded() -> Iterator[tuple[Observer, subprocess.Popen[str]]]:
    """The broker in its own process, which ends with its standard input."""
    command = [sys.executable, "-c", BROKER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        yield Observer(process.stdout.readline().strip()), process
        process.stdin.close()


@contextmanager
def producing(bootstrap_servers: str) -> Iterator[Counter[str]]:
    counts: Counter[str] = Counter()
    over = threading.Event()

    def delivered(error: KafkaError | None, message: Message) -> None:
        counts["refused" if error else "acknowledged"] += 1

    def produce() -> None:
        producer = Producer({"bootstrap.servers": bootstrap_servers, "linger.ms": 20})
        number = 0
        while not over.wait(0.05):
            for _ in range(PER_SECOND // 20):
                producer.produce(
                    TOPIC, b'{"text": "%s"}' % (b"x" * 200), partition=number % PARTITIONS, on_delivery=delivered
                )
                number += 1
            producer.poll(0)
        assert producer.flush(30) == 0, "the producer's last messages were not acknowledged"

    thread = threading.Thread(target=produce, name="soak-producer")
    thread.start()
    try:
        yield counts
    finally:
        over.set()
        thread.join()


class Errors(logging.Handler):
    """Errors that the members or their client told of."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(record.getMessage())


def rss_mib(pid: int) -> int:
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) >> 10


def crimes(figures: dict[str, Any]) -> list[str]:
    never = ("lost", "repeated", "order breaks", "refused", "not committed", "errors")
    found = [f"{name}: {figures[name]}" for name in never if figures[name]]
    return found + (["sent and consumed differ"] if figures["sent"] != figures["messages"] else [])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    given = parser.parse_args()
    figures = soak(given.minutes * 60, given.seed)
    print(f"{given.minutes:g} minutes, seed {given.seed}")
    for name, value in figures.items():
        print(f"  {name:24} {value}")
    print("  crimes: " + ("; ".join(crimes(figures)) or "none"))
    return 1 if crimes(figures) else 0


if __name__ == "__main__":
    sys.exit(main())
