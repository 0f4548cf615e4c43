"""What karafka-lite costs on a real Kafka, beside a hand-written loop and every peer that is installed.

    python tests/benchmarks/bench.py                            starts a Kafka of its own; half an hour with all peers
    python tests/benchmarks/bench.py --broker localhost:9092    uses this one; its topics are deleted again
    python tests/benchmarks/bench.py --python venv/bin/python   looks for peers there, too; may be repeated
    python tests/benchmarks/bench.py --only loop,16/run-*       some lines; names as they stand in the --json file
    python tests/benchmarks/bench.py --base ../before           another checkout, too: what has become dearer since?
    python tests/benchmarks/bench.py --quick                    a minute: does the program still work?

Each figure comes from a fresh process (``consumer.py``, ``probes.py``, and ``peers.py``, which says what environments
the peers need), so that none disturbs another. The probes take turns, run after run, so that a noisy minute of the
machine falls on all of them; the tables show medians, with the lowest and the highest run. CPU time is that of the
consumer's process, with all its threads, from the first batch to the last; there are more messages than are measured,
because at the end of a topic a fetch waits. The time to the first message contains the broker's
``group.initial.rebalance.delay.ms``: 0 on the Kafka that is started here, 3 s by Kafka's own default.

Machines differ by a factor of five: targets are ratios within a run. With ``--base`` each of our own probes runs twice
in each round, once with the package of that checkout; the probes are those of this checkout for both.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import functools
import importlib.metadata
import itertools
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from confluent_kafka import Producer
from peers import PEERS
from probes import READY, SLEEP_S, SLEEPY_BATCH, large, small
from senders import FORWARDERS, IN_ROUNDS, ONE_BY_ONE, SENDERS
from support.kafka_server import KAFKA_VERSION, kafka_source
from support.observer import Observer
from tables import ERROR, HANDLERS, MARKS, PARTITIONS, Figures, Round, comparable, compared, rows, throughput

HERE = Path(__file__).parent
CHECKOUT = Path(__file__).absolute().parents[2]
MANY = 12  # partitions
KEYS = 64
SPARE = 5  # every so many messages of the throughput there is one more, which nobody waits for
TICK_S = 0.020
PROBE_TIMEOUT_S = 600  # a hang, not a slow machine
ERROR_TAIL = 1500  # characters
PRODUCER = {
    "enable.idempotence": True,
    "linger.ms": 50,
    "batch.size": 16_384,  # as Java's and kafka-python's producers have it; librdkafka's own would be 1 MB
    "queue.buffering.max.messages": 1_000_000,
}

Probe = Callable[[], Figures]
Ready = Callable[[], None]


@dataclass(frozen=True)
class Size:
    """How much is measured in each run."""

    runs: int = 3
    small: int = 5_000_000  # messages of 16 B
    large: int = 1_000_000  # of 200 B
    marks: int = 20_000
    commits: int = 500
    idle_s: float = 10
    settle_s: float = 6  # before: longer than auto_commit_interval_ms
    retries: int = 20
    sent: int = 100_000  # in rounds of 500
    sent_alone: int = 3_000
    forwarded: int = 200_000
    ticks: int = 500
    sleeps: int = 60  # batches of each partition
    starts: int = 10  # processes of each kind
    very_many: int = 500  # partitions
    many_asleep: int = 100  # partitions whose handlers all wait for something else
    alone: int = 20_000  # batches of one message
    crossed: bool = True  # each handler with each decoder and each start; or each of them once


QUICK = Size(
    runs=1, small=24_000, large=12_000, marks=1_000, commits=20, idle_s=0.5, settle_s=0.5, retries=3, ticks=20,
    sleeps=5, starts=1, very_many=60, many_asleep=10, alone=500, sent=2_000, sent_alone=600, forwarded=4_000,
    crossed=False,
)  # fmt: skip

# How our app is started, with which decoder, and what its handler does, by data set.
OURS = {
    "16": [
        *itertools.product(["run"], ["pure", "speed"], ["noop", "values", "iterate", "read", "mark_each"]),
        *itertools.product(["library"], ["pure", "speed"], ["noop"]),
    ],
    "200": [*itertools.product(["run"], ["pure", "speed"], ["noop", "read", "payloads"])],
}
# What is sent: the size of a value, and its keys.
SENT = [(size, keys) for size in (100, 1000) for keys in ("distinct", "none")]
FORWARDED = [(100, "distinct"), (1000, "none")]
STARTS = {"run": "`karafka-lite run`", "library": "`app.start()`"}


def main() -> None:
    arguments = parser().parse_args()
    size = QUICK if arguments.quick else Size()
    if arguments.runs:
        size = replace(size, runs=arguments.runs)
    if arguments.messages:
        size = replace(size, small=arguments.messages, large=max(1, arguments.messages // 5))
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(f"ended by signal {number}"))  # through each finally
    about = machine()
    with broker(arguments.broker) as (address, kafka):
        about["kafka"] = kafka
        observer = Observer(address)
        try:
            bench = Bench(observer, size, [sys.executable, *map(os.path.abspath, arguments.python)], arguments.base)
            probes = chosen(bench.probes(), arguments.only)
            for number in range(1, size.runs + 1):
                bench.round(number, probes)
        finally:
            observer.delete_topics()  # the broker may not be ours
            observer.forget_clients()
    about["load"] += f" before, {load()} after"
    print("\n".join(report(bench, probes, about)))
    if arguments.json:
        raw = {"machine": about, "size": asdict(size), "rounds": bench.rounds, "base": bench.base_rounds}
        arguments.json.write_text(json.dumps(raw, indent=1) + "\n")
    runs = [*bench.rounds, *bench.base_rounds]
    peers = {*PEERS, *(name for name in (*SENDERS, *FORWARDERS) if not is_ours(f"send-/{name}"))}
    sys.exit(any(ERROR in run[name] for run in runs for name in run if name.rpartition("/")[2] not in peers))


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--broker", metavar="HOST:PORT", help="measure on this Kafka instead of starting one")
    options.add_argument("--python", metavar="PATH", action="append", default=[], help="an interpreter with peers")
    options.add_argument("--base", type=Path, metavar="PATH", help="a checkout to compare with, line by line")
    options.add_argument("--runs", type=int, help=f"default: {Size.runs}")
    options.add_argument("--messages", type=int, help=f"of 16 B, default {Size.small}; of 200 B there are a fifth")
    options.add_argument("--only", metavar="NAME[,NAME]", help="these probes; * stands for anything")
    options.add_argument("--quick", action="store_true", help="everything small and once; such figures say nothing")
    options.add_argument("--json", type=Path, metavar="FILE", help="write every single measurement there")
    return options


@contextlib.contextmanager
def broker(address: str | None) -> Iterator[tuple[str, str]]:
    """The address of a Kafka that runs for as long as it is needed, and what it is."""
    if address:
        yield address, f"at {address}"
        return
    source = kafka_source()
    if source.kind == "none":
        sys.exit(source.reason)
    with source.server() as server:
        at = server.bootstrap_servers
        yield at, f"at {at}" if source.kind == "external" else f"{KAFKA_VERSION}, on the same machine"


def chosen(probes: dict[str, Probe], only: str | None) -> dict[str, Probe]:
    if not only:
        return probes
    patterns = only.split(",")
    found = {
        name: probe
        for name, probe in probes.items()
        if any(fnmatch.fnmatch(name, wish) or fnmatch.fnmatch(name.rpartition("/")[2], wish) for wish in patterns)
    }
    return found or sys.exit(f"no such probe: {only}. There are: {', '.join(probes)}")


def checkout(path: Path) -> Path:
    if not (path / "karafka_lite" / "__init__.py").is_file():
        sys.exit(f"{path} is no checkout of karafka-lite")
    return path.absolute()


def each_once(lines: Iterable[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    """Those lines which have something that none before them had."""
    had: set[str] = set()
    for line in lines:
        if not had.issuperset(line):
            yield line
        had.update(line)


@functools.cache
def values_of(size: int) -> Callable[[int], bytes]:
    """Values of so many bytes."""
    return lambda number: b"%d " % number + b"x" * (size - 1 - len(str(number)))


def is_ours(probe: str) -> bool:
    """Whether it measures the package."""
    name = probe.rpartition("/")[2]
    if probe.startswith(("send-", "forward-")):
        return name.startswith(("produce", "forward"))
    return not (name in PEERS or name.endswith("loop") or name.startswith("parser") or name == "bare-commit")


# -- the measuring ----------------------------------------------------------------------------------------------------


class Bench:
    """The topics that are measured on, each made when it is needed first, and the rounds over the probes."""

    def __init__(self, observer: Observer, size: Size, pythons: list[str], base: Path | None = None) -> None:
        self.observer = observer
        self.size = size
        self.rounds: list[Round] = []
        self.base_rounds: list[Round] = []  # of our own probes, with the package of ``base``
        self.base = base and checkout(base)
        self._measured = CHECKOUT  # whose package a probe imports
        self.installed = {python: _installed(python) for python in pythons}
        self.names: dict[str, dict[str, str]] = {}  # data set -> probe -> what its line says
        self.missing: dict[str, str] = {}  # probe -> what would have to be installed

    def round(self, number: int, probes: dict[str, Probe]) -> None:
        """Every probe once; those of ours also for the base, which goes first in every other round."""
        here: Round = {}
        base: Round = {}
        for name, probe in probes.items():
            turns = [(CHECKOUT, here)]
            if self.base and is_ours(name):
                turns.insert(number % 2, (self.base, base))
            for self._measured, measured in turns:
                of = f" of {self.base}" if measured is base else ""
                print(f"run {number} of {self.size.runs}: {name}{of}", file=sys.stderr, flush=True)
                measured[name] = probe()
        self.rounds.append(here)
        if self.base:
            self.base_rounds.append(base)

    def probes(self) -> dict[str, Probe]:
        """By name; those of the throughput are named ``16/…`` and ``200/…``."""
        size = self.size
        probes: dict[str, Probe] = {}
        for dataset in OURS:
            probes |= {f"{dataset}/{name}": probe for name, probe in self._throughput(dataset)}
        for told, kinds in (("send", SENT), ("forward", FORWARDED)):
            for value_bytes, keys in kinds if size.crossed else kinds[:1]:
                dataset = f"{told}-{value_bytes}-{keys}"
                probes |= {f"{dataset}/{name}": probe for name, probe in self._sending(dataset, value_bytes, keys)}
        probes |= {
            "mark": lambda: self._probe("mark", self.topic(1, size.marks), messages=size.marks),
            "sync-mark": lambda: self._probe("sync_mark", self.topic(1, size.commits), times=size.commits),
            "bare-commit": lambda: self._probe("bare_commit", self.topic(1, size.commits), times=size.commits),
            "retry": lambda: self._probe("retry", self.topic(1, 1), times=size.retries),
            "latency": lambda: self.latency("latency"),
            "latency-loop": lambda: self.latency("latency_loop"),
            "idle": lambda: self._idle("idle", MANY),
            "idle-500": lambda: self._idle("idle", size.very_many),
            "idle-loop": lambda: self._idle("idle_loop", MANY),
            "start": self._start,
            "first-message-run": self._first_message_run,
            "first-message": lambda: self._probe("first_message", self.topic(1, 1)),
            "first-message-loop": lambda: self._probe("first_message_loop", self.topic(1, 1)),
        }
        for count in (1, 2, 4, 8):
            probes[f"partitions-{count}"] = functools.partial(self._partitions, count)
        for count in (1, 8):
            probes[f"parts-{count}"] = functools.partial(self._parts, count)
        many = size.many_asleep
        for name, asynchronous in (("threads", False), ("async", True)):
            options: dict[str, object] = {"concurrency": many, "asynchronous": asynchronous}
            probes[f"partitions-many-{name}"] = functools.partial(self._partitions, many, **options)
            alone = {"messages": size.alone, "asynchronous": asynchronous}
            probes[f"alone-{name}"] = functools.partial(self._alone, **alone)
        return probes

    def _throughput(self, dataset: str) -> Iterator[tuple[str, Probe]]:
        """Also says what each one's line in the table is, and which are missing."""
        names = self.names[dataset] = {}
        names["loop"] = f"hand-written loop, kafka-python {_version('kafka-python')}"
        messages = {"messages": self._messages(dataset)}
        yield "loop", lambda: self._probe("loop", self._dataset(dataset), **messages)
        for start, decoder, handler in OURS[dataset] if self.size.crossed else each_once(OURS[dataset]):
            name = f"{start}-{decoder}-{handler.replace('_', '-')}"
            if decoder == "speed" and not (_version("aiokafka") and _version("orjson")):
                self.missing[name] = "karafka-lite[speed]"
                continue
            names[name] = f"{STARTS[start]}, {decoder}: {HANDLERS[handler]}"
            module = "orjson" if decoder == "speed" else "json"
            if handler == "payloads":
                names[name] += f" by {module}"
            yield name, functools.partial(self._consumer, dataset, start, decoder, handler)
            if handler == "payloads":
                names[f"parser-{module}"] = f"{module}.loads alone, on the same values"
                yield f"parser-{module}", functools.partial(self._probe, "parser", "", module=module, **messages)
        for name, peer in PEERS.items():
            python = next((path for path, found in self.installed.items() if found.keys() >= {*peer.packages}), None)
            if python is None:
                self.missing[name] = " with ".join(peer.packages)
                continue
            number = min(self._messages(dataset), peer.most or sys.maxsize)
            names[name] = peer.told.format_map(self.installed[python])
            if self.installed[python]["python"] != platform.python_version():
                names[name] += f", Python {self.installed[python]['python']}"
            if number < self._messages(dataset):
                names[name] += f" (the first {number:,})"
            yield name, functools.partial(self._peer, dataset, name, python, number)

    def _sending(self, dataset: str, value_bytes: int, keys: str) -> Iterator[tuple[str, Probe]]:
        """As ``_throughput``."""
        names = self.names[dataset] = {}
        forwards = dataset.startswith("forward")
        senders = FORWARDERS if forwards else SENDERS if dataset == "send-100-distinct" else IN_ROUNDS
        for name, sender in senders.items():
            python = next((path for path, found in self.installed.items() if found.keys() >= {*sender.packages}), None)
            if python is None:
                self.missing[f"{dataset}/{name}"] = " with ".join(sender.packages)
                continue
            names[name] = sender.told.format_map(self.installed[python])
            number = self.size.forwarded if forwards else self.size.sent_alone if name in ONE_BY_ONE else self.size.sent
            told = {"messages": number, "size": value_bytes, "keys": keys}
            yield name, functools.partial(self._sender, name, python, forwards, told)

    def _messages(self, dataset: str) -> int:
        return {"16": self.size.small, "200": self.size.large}[dataset]

    def _dataset(self, dataset: str) -> str:
        messages = self._messages(dataset)
        return self.topic(MANY, messages + messages // SPARE, {"16": small, "200": large}[dataset])

    @functools.cache  # noqa: B019 - there is one Bench
    def topic(self, partitions: int, messages: int, value: Callable[[int], bytes] = small, *, keys: int = 0) -> str:
        """With as many messages on each partition, in batches as a busy producer fills them."""
        topic = self.observer.topic(partitions)
        for number in range(messages):
            while True:
                try:
                    key = b"%d" % (number % keys) if keys else None
                    self._producer.produce(topic, value(number), key, partition=number % partitions)
                    break
                except BufferError:
                    self._producer.poll(0.1)
        self._producer.flush()
        there = sum(self.observer.end_offset(topic, partition) for partition in range(partitions))
        assert there == messages, f"{there} of {messages} messages were acknowledged"
        return topic

    @functools.cached_property
    def _producer(self) -> Producer:
        return Producer({"bootstrap.servers": self.observer.bootstrap_servers, **PRODUCER})

    # -- one probe each

    def _consumer(self, dataset: str, start: str, decoder: str, handler: str) -> Figures:
        told = {"handler": handler, "messages": self._messages(dataset)}
        if decoder == "speed":
            told["deserializer"] = "orjson"
        return self._app(start, self._dataset(dataset), told, "pure" if decoder == "pure" else "compiled")

    def _app(self, start: str, topic: str, told: Figures, decoder: str = "") -> Figures:
        command = ["-m", "karafka_lite", "run"] if start == "run" else []
        bench = json.dumps({"group": self.observer.group(), "topic": topic, **told})
        command = [sys.executable, *command, str(HERE.absolute() / "consumer.py")]
        return self._child(command, BENCH=bench, KARAFKA_LITE_DECODER=decoder)

    def _peer(self, dataset: str, name: str, python: str, messages: int) -> Figures:
        where = {"broker": self.observer.bootstrap_servers, "group": self.observer.group()}
        told = json.dumps({**where, "topic": self._dataset(dataset), "messages": messages})
        return self._child([python, str(HERE.absolute() / "peers.py"), name, told])

    def _sender(self, name: str, python: str, forwards: bool, told: Figures) -> Figures:
        messages = told["messages"]
        source = self.topic(1, 1)
        if forwards:
            keys = sys.maxsize if told["keys"] == "distinct" else 0
            source = self.topic(MANY, messages + messages // SPARE, values_of(told["size"]), keys=keys)
        topic = self.observer.topic(MANY)
        where = {"broker": self.observer.bootstrap_servers, "group": self.observer.group()}
        command = [python, str(HERE.absolute() / "senders.py"), name]
        return self._child([*command, json.dumps({**where, "source": source, "topic": topic, **told})])

    def _first_message_run(self) -> Figures:
        """From the start of the process; its clock is ours, because CLOCK_MONOTONIC is the machine's.

        As ``_start`` has it, the quickest of some; without the extra ``speed``, which takes 40 ms to import.
        """
        topic, took = self.topic(1, 1), list[float]()
        for _ in range(self.size.starts):
            started = time.monotonic()
            said = self._app("run", topic, {"handler": "first_message"}, "pure")
            if ERROR in said:
                return said
            took.append(said["at"] - started)
        return {"s": min(took)}

    def _start(self) -> Figures:
        """Processes that end as soon as they have started: the quickest of some of each, in turns."""
        commands = {"python": ["-c", "pass"], "kafka": ["-c", "import kafka"], "help": ["-m", "karafka_lite", "--help"]}
        took: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(self.size.starts):
            for name, command in commands.items():
                began = time.monotonic()
                done = subprocess.run([sys.executable, *command], env=self._environment(), stdout=subprocess.DEVNULL)
                took[name].append(time.monotonic() - began)
                if done.returncode:
                    return {ERROR: f"{command} ended with {done.returncode}"}
        return {name: min(seconds) for name, seconds in took.items()}

    def latency(self, name: str) -> Figures:
        """One message every 20 ms; each carries the time at which it was produced."""
        topic = self.observer.topic(MANY)
        self.observer.produce(topic, ["0"])

        def tick() -> None:
            due = time.monotonic()
            for number in range(self.size.ticks):
                due += TICK_S
                time.sleep(max(0.0, due - time.monotonic()))
                self.observer.produce(topic, [str(time.monotonic_ns())], number % MANY)

        return self._probe(name, topic, tick, messages=self.size.ticks)

    def _idle(self, name: str, partitions: int) -> Figures:
        """One message each: when all have come, everything is joined."""
        seconds = {"settle": self.size.settle_s, "seconds": self.size.idle_s}
        return self._probe(name, self.topic(partitions, partitions), partitions=partitions, **seconds)

    def _partitions(self, count: int, **options: object) -> Figures:
        topic = self.topic(count, count * (self.size.sleeps + 2) * SLEEPY_BATCH)
        return self._probe("partitions", topic, partitions=count, batches=self.size.sleeps, **options)

    def _alone(self, *, messages: int, asynchronous: bool) -> Figures:
        topic = self.topic(1, messages + messages // SPARE)
        return self._probe("alone", topic, messages=messages, asynchronous=asynchronous)

    def _parts(self, count: int) -> Figures:
        messages = self.size.sleeps * count
        return self._probe("parts", self.topic(1, messages, keys=KEYS), parts=count, messages=messages)

    def _probe(self, name: str, topic: str, when_ready: Ready | None = None, **arguments: object) -> Figures:
        where = {"broker": self.observer.bootstrap_servers, "group": self.observer.group(), "topic": topic}
        command = [sys.executable, str(HERE.absolute() / "probes.py"), name, json.dumps({**where, **arguments})]
        return self._child(command, when_ready)

    def _child(self, command: list[str], when_ready: Ready | None = None, **environment: str) -> Figures:
        """Run ``command``; the last line that it prints is its figures. What it failed with is one of them.

        In a folder of its own: some peers keep state where they are started, and ``python -m`` would import from there.
        """
        figures: Figures | None = None
        with tempfile.TemporaryFile("w+") as errors, tempfile.TemporaryDirectory() as folder:
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=folder,
                env={**self._environment(), **environment},
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
                told = errors.read()[-ERROR_TAIL:].strip() or f"nothing measured within {PROBE_TIMEOUT_S} s"
                return {ERROR: f"{' '.join(command)}\nended with {process.returncode}:\n{told}"}
        return figures

    def _environment(self) -> dict[str, str]:
        """With the package that is measured; without what would compile it anew in each process."""
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment["KARAFKA_LITE_BOOTSTRAP_SERVERS"] = self.observer.bootstrap_servers
        return {**environment, "PYTHONPATH": str(self._measured)}


# -- what is printed --------------------------------------------------------------------------------------------------


def report(bench: Bench, probes: dict[str, Probe], about: Figures) -> list[str]:
    size, rounds = bench.size, bench.rounds
    lines = [f"{name}: {value}" for name, value in about.items()]
    lines += [
        f"runs: {size.runs}, interleaved; median, minimum, maximum",
        f"size: {size.small:,} x 16 B and {size.large:,} x 200 B of JSON on {MANY} partitions, {size.marks:,} marks, "
        f"{size.commits:,} commits, {size.retries:,} retries, {size.idle_s:g} s idle, {size.ticks:,} messages "
        "for the latency",
        "each consumer takes up to 500 messages at a time and commits every 5 s (Faust, by its default, every 2.8 s)",
    ]
    if bench.missing:
        told = (f"{name} ({packages})" for name, packages in bench.missing.items())
        lines.append(f"left out, because it is not installed: {', '.join(told)}")
    for dataset, names in bench.names.items():
        names = {probe: name for probe, name in names.items() if f"{dataset}/{probe}" in probes}
        if names:
            title, beside = title_of(dataset)
            lines += ["", f"### {title}", "", *throughput(dataset, names, rounds, beside)]
    if table := rows(MARKS, rounds):
        lines += ["", "### Marks, latency, idling, start", "", *table]
    if table := rows(PARTITIONS, rounds):
        title = f"### Side by side: {SLEEP_S * 1000:g} ms for each batch of {SLEEPY_BATCH}; for each message by key"
        lines += ["", title, "", *table]
    if bench.base and (table := compared(comparable(bench.names), bench.base_rounds, rounds)):
        lines += ["", f"### Beside {bench.base}: what of ours costs how much", "", *table]
    errors = {name: figures[ERROR] for run in rounds for name, figures in run.items() if ERROR in figures}
    errors |= {
        f"{name} of {bench.base}": figures[ERROR]
        for run in bench.base_rounds
        for name, figures in run.items()
        if ERROR in figures
    }
    for name, error in errors.items():
        lines += ["", f"### {name} failed", "", *(f"    {line}" for line in error.splitlines())]
    return lines


def title_of(dataset: str) -> tuple[str, str]:
    """What its table is called, and whom the others are compared with."""
    kind, _, rest = dataset.partition("-")
    if not rest:
        return f"Throughput, messages of {dataset} B", "loop"
    size, _, keys = rest.partition("-")
    told = {"distinct": "each with another key", "none": "without keys"}[keys]
    if kind == "send":
        return f"Sending {size} B, {told}, in rounds of 500 whose answers are awaited", "aiokafka"
    return f"Whole apps that read 500 messages of {size} B, {told}, and send 500", "aiokafka-forward"


def machine() -> Figures:
    packages = ("karafka-lite", "kafka-python", "crc32c", "aiokafka", "orjson")
    return {
        "machine": f"{os.cpu_count()} cores, {cpu_model()}, {platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": ", ".join(f"{name} {version}" for name in packages if (version := _version(name))),
        "load": load(),
    }


def _version(package: str) -> str:
    """ "" where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _installed(python: str) -> dict[str, str]:
    command = [python, str(HERE / "peers.py"), "installed"]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


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
