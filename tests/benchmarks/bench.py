"""How fast karafka-lite is on a real Kafka, beside a hand-written kafka-python loop.

    python tests/benchmarks/bench.py                            starts a Kafka of its own
    python tests/benchmarks/bench.py --broker localhost:9092    uses this one; its topics are deleted again
    python tests/benchmarks/bench.py --quick                    a few seconds: does the program still work?

Each figure comes from a fresh process (``probes.py``), so that none disturbs another. The probes take turns, run after
run, so that a noisy minute of the machine falls on all of them; the table shows medians, with the lowest and the
highest run. CPU time is preferred to the wall clock. The time to the first message contains the broker's
``group.initial.rebalance.delay.ms``: 0 on the Kafka that is started here, 3 s by Kafka's own default.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from kafka_server import kafka_source  # noqa: E402
from observer import Observer  # noqa: E402
from probes import READY  # noqa: E402

PARTITIONS = 12
VALUE = b"sixteen bytes .."
TICK_S = 0.020
PROBE_TIMEOUT_S = 600  # a hang, not a slow machine

Figures = dict[str, Any]
Round = dict[str, Figures]  # probe -> what it measured


@dataclass(frozen=True)
class Size:
    """How much is measured in each run."""

    runs: int = 3
    messages: int = 1_000_000
    marks: int = 20_000
    commits: int = 500
    idle_s: float = 10
    ticks: int = 500


QUICK = Size(runs=1, messages=24_000, marks=1_000, commits=20, idle_s=0.5, ticks=20)


# -- the table --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One line: how its figure follows from the measurements of one run; ``at_most`` is the target."""

    name: str
    unit: str
    figure: Callable[[Round], float]
    at_most: float | None = None


ROWS = [
    Row("hand-written loop", "µs CPU/message", lambda run: run["loop"]["cpu_us"]),
    Row("no-op handler", "µs CPU/message", lambda run: run["noop"]["cpu_us"]),
    Row("no-op handler / loop", "x CPU", lambda run: run["noop"]["cpu_us"] / run["loop"]["cpu_us"], 1.3),
    Row("handler that marks each", "µs CPU/message", lambda run: run["mark_each"]["cpu_us"]),
    Row("handler that marks each / loop", "x CPU", lambda run: run["mark_each"]["cpu_us"] / run["loop"]["cpu_us"]),
    Row("hand-written loop", "messages/s", lambda run: run["loop"]["per_s"]),
    Row("no-op handler", "messages/s", lambda run: run["noop"]["per_s"]),
    Row("handler that marks each", "messages/s", lambda run: run["mark_each"]["per_s"]),
    Row("mark_as_consumed", "ns CPU/call", lambda run: run["mark"]["ns"], 1000),
    Row("an empty call, for scale", "ns CPU/call", lambda run: run["mark"]["empty_call_ns"]),
    Row("mark_as_consumed(sync=True) p50", "ms", lambda run: percentile(run["sync_mark"]["ms"], 50)),
    Row("mark_as_consumed(sync=True) p99", "ms", lambda run: percentile(run["sync_mark"]["ms"], 99)),
    Row("consumer.commit of kafka-python p50", "ms", lambda run: percentile(run["bare_commit"]["ms"], 50)),
    Row("consumer.commit of kafka-python p99", "ms", lambda run: percentile(run["bare_commit"]["ms"], 99)),
    Row("idle app", "% of a core", lambda run: run["idle"]["percent"], 3),
    Row("idle hand-written loop", "% of a core", lambda run: run["idle_loop"]["percent"]),
    Row("karafka-lite run to first message", "s", lambda run: run["first_message_run"]["s"]),
    Row("app.start() to first message", "s", lambda run: run["first_message"]["s"]),
    Row("KafkaConsumer() to first message", "s", lambda run: run["first_message_loop"]["s"]),
    Row("produce to handler p50", "ms", lambda run: percentile(run["latency"]["ms"], 50)),
    Row("produce to handler p99", "ms", lambda run: percentile(run["latency"]["ms"], 99)),
    Row("produce to hand-written loop p50", "ms", lambda run: percentile(run["latency_loop"]["ms"], 50)),
    Row("produce to hand-written loop p99", "ms", lambda run: percentile(run["latency_loop"]["ms"], 99)),
]


def main() -> None:
    arguments = parser().parse_args()
    wished = {name: value for name in ("runs", "messages") if (value := getattr(arguments, name)) is not None}
    size = replace(QUICK if arguments.quick else Size(), **wished)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(f"ended by signal {number}"))  # through each finally
    about = machine()
    with broker(arguments.broker) as address:
        observer = Observer(address)
        try:
            bench = Bench(observer, size)
            rounds = [bench.round(number) for number in range(1, size.runs + 1)]
        finally:
            observer.delete_topics()  # the broker may not be ours
            observer.forget_clients()
    about["load"] += f" before, {load()} after"
    print(render(rounds, about, size))
    if arguments.json:
        raw = {"machine": about, "size": asdict(size), "rounds": rounds}
        arguments.json.write_text(json.dumps(raw, indent=1) + "\n")


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--broker", metavar="HOST:PORT", help="measure on this Kafka instead of starting one")
    options.add_argument("--runs", type=int, help=f"default: {Size.runs}")
    options.add_argument("--messages", type=int, help=f"for the throughput; default: {Size.messages}")
    options.add_argument("--quick", action="store_true", help="everything small and once; such figures say nothing")
    options.add_argument("--json", type=Path, metavar="FILE", help="write every single measurement there")
    return options


@contextlib.contextmanager
def broker(address: str | None) -> Iterator[str]:
    """The address of a Kafka that runs for as long as it is needed."""
    if address:
        yield address
        return
    source = kafka_source()
    if source.kind == "none":
        sys.exit(source.reason)
    with source.server() as server:
        yield server.bootstrap_servers


def render(rounds: list[Round], about: Figures, size: Size) -> str:
    """A Markdown table, with what it was measured on above it."""
    cells = [("", "median", "min", "max", "unit", "target"), ("-", "-:", "-:", "-:", "-", "-")]
    for row in ROWS:
        figures = [row.figure(run) for run in rounds]
        median = statistics.median(figures)
        target = "" if row.at_most is None else f"<= {row.at_most:g}{'' if median <= row.at_most else ' MISSED'}"
        cells.append((row.name, *map(short, (median, min(figures), max(figures))), row.unit, target))
    columns = [_padded(column) for column in zip(*cells, strict=True)]
    told = [f"{name}: {value}" for name, value in about.items()]
    told += [
        f"runs: {size.runs}, interleaved",
        f"size: {size.messages:,} x {len(VALUE)} B on {PARTITIONS} partitions, {size.marks:,} marks, "
        f"{size.commits:,} commits, {size.idle_s:g} s idle, {size.ticks:,} messages for the latency",
    ]
    return "\n".join([*told, "", *(f"| {' | '.join(line)} |" for line in zip(*columns, strict=True))])


def _padded(column: Sequence[str]) -> list[str]:
    """As wide as the widest cell; to the right where the rule ends with a colon, as Markdown has it."""
    header, rule, *cells = column
    width = max(map(len, column))
    pad = str.rjust if rule.endswith(":") else str.ljust
    return [pad(header, width), rule.rjust(width, "-"), *(pad(cell, width) for cell in cells)]


def short(figure: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.3g}"


def percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


# -- the measuring ----------------------------------------------------------------------------------------------------


class Bench:
    """The topics that are measured on, made once, and the rounds over all probes."""

    def __init__(self, observer: Observer, size: Size) -> None:
        self.observer = observer
        self.size = size
        self.many = self._topic(PARTITIONS, size.messages)
        self.marks = self._topic(1, size.marks)
        self.commits = self._topic(1, size.commits)
        self.idle = self._topic(PARTITIONS, PARTITIONS)  # one message each: when all have come, everything is joined
        self.one = self._topic(1, 1)

    def round(self, number: int) -> Round:
        """Every probe once."""
        size = self.size
        throughput = {"topic": self.many, "messages": size.messages}
        idle = {"topic": self.idle, "partitions": PARTITIONS, "seconds": size.idle_s}
        probes: dict[str, Callable[[str], Figures]] = {
            "loop": lambda name: self._probe(name, **throughput),
            "noop": lambda name: self._probe(name, **throughput),
            "mark_each": lambda name: self._probe(name, **throughput),
            "mark": lambda name: self._probe(name, topic=self.marks, messages=size.marks),
            "sync_mark": lambda name: self._probe(name, topic=self.commits, times=size.commits),
            "bare_commit": lambda name: self._probe(name, topic=self.commits, times=size.commits),
            "idle": lambda name: self._probe(name, **idle),
            "idle_loop": lambda name: self._probe(name, **idle),
            "first_message_run": self._first_message_run,
            "first_message": lambda name: self._probe(name, topic=self.one),
            "first_message_loop": lambda name: self._probe(name, topic=self.one),
            "latency": self._latency,
            "latency_loop": self._latency,
        }
        measured = {}
        for name, probe in probes.items():
            if sys.stderr.isatty():
                print(f"run {number} of {size.runs}: {name:<20}", end="\r", file=sys.stderr, flush=True)
            measured[name] = probe(name)
        return measured

    def _topic(self, partitions: int, messages: int) -> str:
        topic = self.observer.topic(partitions)
        for partition in range(partitions):
            self.observer.produce(topic, [VALUE] * len(range(partition, messages, partitions)), partition)
        return topic

    def _first_message_run(self, name: str) -> Figures:
        """From the start of the process; its clock is ours, because CLOCK_MONOTONIC is the machine's."""
        started = time.monotonic()
        said = self._child(
            [sys.executable, "-m", "karafka_lite", "run", str(HERE / "first_message.py")],
            BENCH_GROUP=self.observer.group(),
            BENCH_TOPIC=self.one,
        )
        return {"s": said["at"] - started}

    def _latency(self, name: str) -> Figures:
        """One message every 20 ms; each carries the time at which it was produced."""
        topic = self._topic(PARTITIONS, 1)

        def tick() -> None:
            due = time.monotonic()
            for number in range(self.size.ticks):
                due += TICK_S
                time.sleep(max(0.0, due - time.monotonic()))
                self.observer.produce(topic, [str(time.monotonic_ns())], number % PARTITIONS)

        return self._probe(name, tick, topic=topic, messages=self.size.ticks)

    def _probe(self, name: str, when_ready: Callable[[], None] | None = None, **arguments: object) -> Figures:
        group = self.observer.group()
        told = json.dumps({"broker": self.observer.bootstrap_servers, "group": group, **arguments})
        return self._child([sys.executable, str(HERE / "probes.py"), name, told], when_ready)

    def _child(self, command: list[str], when_ready: Callable[[], None] | None = None, **environment: str) -> Figures:
        """Run ``command``; the last line that it prints is its figures."""
        environment["KARAFKA_LITE_BOOTSTRAP_SERVERS"] = self.observer.bootstrap_servers
        figures: Figures | None = None
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, **environment}
            )
            too_long = threading.Timer(PROBE_TIMEOUT_S, process.kill)
            too_long.start()
            try:
                for line in process.stdout or ():
                    if line.strip() != READY:
                        figures = json.loads(line)
                    elif when_ready:
                        when_ready()
                process.wait()
            finally:
                too_long.cancel()
                process.kill()  # where we are being ended ourselves
                process.communicate()
            if figures is None or process.returncode:
                errors.seek(0)
                sys.exit(f"{' '.join(command)}\nended with {process.returncode}:\n{errors.read()[-4000:]}")
        return figures


# -- what it was measured on ------------------------------------------------------------------------------------------


def machine() -> Figures:
    packages = ("karafka-lite", "kafka-python", "crc32c")
    return {
        "machine": f"{os.cpu_count()} cores, {cpu_model()}, {platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages),
        "load": load(),
    }


def cpu_model() -> str:
    with contextlib.suppress(OSError):  # Linux only
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def load() -> str:
    """How many processes wanted a core over the last minute; above the number of cores the figures are doubtful."""
    return f"{os.getloadavg()[0]:.1f}"


if __name__ == "__main__":
    main()
