"""How much more work ``run --processes N`` does than one process, with handlers that need the CPU.

    python tests/benchmarks/processes.py                 1 and 4 processes, in turns
    python tests/benchmarks/processes.py --quick         a few seconds: does the program still work?

On the embedded broker, in one run: the processes join, then all messages are sent at once. The time is from there to
the end of the last one. What others use of the same cores is missing in both figures.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import machine
from support.harness import Process
from support.observer import Observer, wait_until

from karafka_lite.broker.embedded import EmbeddedBroker

PARTITIONS = 8
COMMAND = """
    os.execv(sys.executable, [sys.executable, "-m", "karafka_lite", "run", *sys.argv[1:]])
"""
APP = """
import os
from karafka_lite import App

app = App({group!r}, heartbeat_interval_ms=300)

@app.topic({topic!r}, max_messages=10)
def work(batch, ctx):
    for message in batch:
        sum(range({effort}))
    os.write(1, b'{{"handled": %d}}\\n' % len(batch))
"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="everything small and once; such figures say nothing")
    quick = options.parse_args().quick
    rounds, messages = (1, 16) if quick else (3, 1600)
    for name, value in machine().items():
        print(f"{name}: {value}")
    with EmbeddedBroker({}) as broker:
        observer = Observer(broker.bootstrap_servers)
        rates: dict[int, list[float]] = {1: [], 4: []}
        for _ in range(rounds):
            for processes, found in rates.items():
                found.append(messages / seconds(observer, processes, messages))
            tell(*(found[-1] for found in rates.values()))
        observer.forget_clients()
    print("medians, ", end="")
    tell(*(statistics.median(found) for found in rates.values()))


def tell(one: float, four: float) -> None:
    print(f"1 process: {one:,.0f} messages/s; 4 processes: {four:,.0f} messages/s, {four / one:.2f} times as many")


def seconds(observer: Observer, processes: int, messages: int) -> float:
    """How long it takes until all ``messages`` are handled."""
    topic, group = observer.topic(PARTITIONS), observer.group()
    with tempfile.TemporaryDirectory() as folder:
        app = Path(folder) / "mine.py"
        app.write_text(APP.format(group=group, topic=topic, effort=200_000))
        arguments = [str(app), "--broker", observer.bootstrap_servers, "--processes", str(processes)]
        with Process(observer, COMMAND, Path(folder) / "program", *arguments) as running:
            wait_until(lambda: len([owned for owned in observer.assignment(group).values() if owned]) == processes, 60)
            wait_until(lambda: observer.group_state(group).lower() == "stable", 60)
            began = time.monotonic()
            for partition in range(PARTITIONS):
                observer.produce(topic, range(messages // PARTITIONS), partition=partition)
            wait_until(lambda: sum(fact.get("handled", 0) for fact in list(running.facts)) >= messages, 300)
            took = time.monotonic() - began
            running.process.terminate()
            assert running.wait() == 0, running.errors()
    return took


if __name__ == "__main__":
    main()
