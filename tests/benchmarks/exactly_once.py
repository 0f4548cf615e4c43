"""What ``exactly_once`` costs beside ``ctx.produce`` alone, in one run.

    python tests/benchmarks/exactly_once.py
    python tests/benchmarks/exactly_once.py --partitions 4 --concurrency 4 --broker localhost:9092
    python tests/benchmarks/exactly_once.py --quix PATH     # an interpreter that has quixstreams: beside it, in turns

A handler sends one message of 100 bytes for each that it reads. Each figure is the best of three, taken in turns; the
first sixth is not counted, in which producers are made.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.kafka_server import JavaKafka
from support.observer import Observer

from karafka_lite import App, Batch, Context

SIZES = {500: 240_000, 10: 12_000, 1: 1_800}  # messages in a batch -> in all
ROUNDS = 3


class Row(NamedTuple):
    """Messages per second."""

    batch: int
    plain: float
    exactly_once: float
    name: str = "karafka-lite"

    def __str__(self) -> str:
        ratio = self.exactly_once / self.plain
        speeds = f"{self.plain:>12,.0f}/s {self.exactly_once:>14,.0f}/s"
        return f"{self.name:<14} {self.batch:>7} {speeds} {ratio:>8.2f}"


def filled(kafka: Observer, messages: int, partitions: int) -> str:
    """A topic with so many messages altogether."""
    topic = kafka.topic(partitions)
    for partition in range(partitions):
        kafka.produce(topic, [b"x" * 100] * (messages // partitions), partition)
    return topic


def forward(
    kafka: Observer, batch: int, messages: int, *, exactly_once: bool, partitions: int, concurrency: int
) -> float:
    """Messages per second, after the first sixth, to the end of the app: by then all is committed."""
    topic, out = filled(kafka, messages, partitions), kafka.topic(partitions)
    each = messages // partitions
    app = App(kafka.group(), bootstrap_servers=kafka.bootstrap_servers, concurrency=concurrency)
    began, done, counted, lock = list[float](), threading.Event(), [0], threading.Lock()

    @app.topic(topic, max_messages=batch, exactly_once=exactly_once)
    def send(batch: Batch, ctx: Context) -> None:
        for message in batch:
            ctx.produce(out, message.value)
        with lock:
            counted[0] += len(batch)
            if not began and counted[0] >= each * partitions // 6:
                began.append(time.perf_counter())
                counted.append(counted[0])
            if counted[0] == each * partitions:
                done.set()

    with app:
        assert done.wait(300), f"{counted[0]} of {messages} messages in 300 s"
    return (counted[0] - counted[1]) / (time.perf_counter() - began[0])


def forward_by_quix(kafka: Observer, python: str, batch: int, messages: int, guarantee: str, partitions: int) -> float:
    """As ``forward``, committed after each ``batch`` messages."""
    topic, out = filled(kafka, messages, partitions), kafka.topic(partitions)
    count = messages // partitions * partitions
    arguments = kafka.bootstrap_servers, kafka.group(), topic, out, str(count), str(batch), guarantee
    script = str(Path(__file__).with_name("quix_forward.py"))
    told = subprocess.run([python, script, *arguments], check=True, text=True, stdout=subprocess.PIPE)
    return float(told.stdout)


def measure(
    kafka: Observer, sizes: dict[int, int], rounds: int = ROUNDS, quix: str | None = None, **how: Any
) -> Iterator[Row]:
    for batch, messages in sizes.items():
        ours: dict[bool, list[float]] = {False: [], True: []}
        theirs: dict[str, list[float]] = {"at-least-once": [], "exactly-once": []}
        for _ in range(rounds):
            for exactly_once, speeds in ours.items():
                speeds.append(forward(kafka, batch, messages, exactly_once=exactly_once, **how))
            for guarantee, speeds in theirs.items() if quix else ():
                speeds.append(forward_by_quix(kafka, quix or "", batch, messages, guarantee, how["partitions"]))
        yield Row(batch, max(ours[False]), max(ours[True]))
        if quix:
            yield Row(batch, max(theirs["at-least-once"]), max(theirs["exactly-once"]), "Quix Streams")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--partitions", type=int, default=1)
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--batch", type=int, choices=SIZES, nargs="+", default=list(SIZES))
    parser.add_argument("--quix", metavar="PATH", help="an interpreter that has quixstreams")
    parser.add_argument("--broker", help="HOST:PORT; else one is started")
    options = parser.parse_args()
    with JavaKafka() if options.broker is None else nullcontext() as server:
        kafka = Observer(options.broker or server.bootstrap_servers)  # type: ignore[union-attr]
        print(f"{'':<14} {'batch':>7} {'plain':>14} {'exactly once':>16} {'ratio':>8}")
        how = {"partitions": options.partitions, "concurrency": options.concurrency, "quix": options.quix}
        for row in measure(kafka, {batch: SIZES[batch] for batch in options.batch}, **how):
            print(row, flush=True)
        kafka.forget_clients()


if __name__ == "__main__":
    main()
