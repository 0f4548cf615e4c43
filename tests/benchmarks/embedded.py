"""How quick the embedded broker is, beside a real Kafka in the same run.

    python tests/benchmarks/embedded.py            with a Kafka of its own to compare with, where one can be started
    python tests/benchmarks/embedded.py --quick    a few seconds: does the program still work?

Start to ready is that of a broker in a thread, with its topics. The rebalance is from the start of a third member until
all three have a partition, with the heartbeats of the tests (every 300 ms); the latency is that of ``bench.py``, at
kafka-python's own fetch settings.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import QUICK, Bench, Size, machine
from support.harness import make_app
from support.kafka_server import kafka_source
from support.observer import Observer, wait_until
from tables import percentile, short

from karafka_lite import App
from karafka_lite.broker.embedded import EmbeddedBroker

ROUNDS = 5


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="everything small and once; such figures say nothing")
    size = QUICK if options.parse_args().quick else Size()
    rounds = 1 if size is QUICK else ROUNDS
    for name, value in machine().items():
        print(f"{name}: {value}")
    tell("start to ready, a thread with 3 topics", "s", [start_to_ready() for _ in range(rounds)])
    with EmbeddedBroker(min_session_timeout_ms=1000) as broker:
        measure("embedded", broker.bootstrap_servers, size, rounds)
    source = kafka_source()
    if source.kind == "none":
        print(f"no Kafka to compare with: {source.reason}")
        return
    with source.server() as server:
        measure("Apache Kafka", server.bootstrap_servers, size, rounds)


def measure(name: str, bootstrap_servers: str, size: Size, rounds: int) -> None:
    observer = Observer(bootstrap_servers)
    try:
        tell(f"{name}: rebalance of 3 members", "s", [rebalance(observer) for _ in range(rounds)])
        bench = Bench(observer, size, pythons=[])
        latencies = [bench.latency("latency")["ms"] for _ in range(rounds)]
        for percent in (50, 99):
            tell(f"{name}: produce to handler p{percent}", "ms", [percentile(run, percent) for run in latencies])
    finally:
        observer.delete_topics()
        observer.forget_clients()


def start_to_ready() -> float:
    began = time.monotonic()
    with EmbeddedBroker({"a": 1, "b": 3, "c": 12}):
        return time.monotonic() - began


def rebalance(observer: Observer) -> float:
    """Two members share three partitions; a third one comes."""
    topic, group = observer.topic(3), observer.group()
    observer.produce(topic, range(3))
    apps = [make_app(observer, group) for _ in range(3)]
    for app in apps:
        app.topic(topic)(nothing)
    with running(apps[:2]):
        wait_until(lambda: shares(apps[:2]) == [1, 2])
        began = time.monotonic()
        with running(apps[2:]):
            wait_until(lambda: shares(apps) == [1, 1, 1])
            return time.monotonic() - began


def nothing(batch: object, ctx: object) -> None: ...


def shares(apps: list[App]) -> list[int]:
    return sorted(len(snapshot.processed) for app in apps for snapshot in app.snapshots())


@contextlib.contextmanager
def running(apps: list[App]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for app in apps:
            app.start()
            stack.callback(app.stop)
        yield


def tell(name: str, unit: str, figures: list[float]) -> None:
    low, high = short(min(figures)), short(max(figures))
    print(f"{name}: {short(statistics.median(figures))} {unit} ({low} to {high})", flush=True)


if __name__ == "__main__":
    main()
