"""What ``bench.py`` measures of ours beside the throughput (``consumer.py``), one function for each fresh process.

    python tests/benchmarks/probes.py idle '{"broker": "localhost:9092", "group": "g", "topic": "t", …}'

prints one line of JSON. A hand-written loop stands beside each app; both have the same settings, so that what they
differ by is the framework. The apps use nothing of the package that is not public: ``bench.py --base`` has them measure
another checkout, too.
"""

from __future__ import annotations

import asyncio
import collections
import gc
import importlib
import itertools
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition
from meter import Meter

from karafka_lite import App, Batch, Context

READY = "ready"  # printed where a probe waits for messages that are yet to come
COMMIT_EVERY_S = 5
BATCH = 500
SLEEP_S = 0.050
SLEEPY_BATCH = 10  # messages
SLEEPERS = 8  # threads
BACKOFF_MS = 10


class Where(NamedTuple):
    """What every probe is told."""

    broker: str
    group: str
    topic: str

    def app(self, **settings: Any) -> App:
        return App(self.group, bootstrap_servers=self.broker, **settings)

    def consumer(self, **others: Any) -> Any:
        from karafka_lite.client.consumer import DEFAULTS, FORCED

        settings = {**DEFAULTS, **FORCED, **others}
        return KafkaConsumer(self.topic, group_id=self.group, bootstrap_servers=self.broker, **settings)


def main(name: str, arguments: str) -> None:
    told = json.loads(arguments)
    where = Where(*(told.pop(field) for field in Where._fields))
    print(json.dumps(PROBES[name](where, **told)), flush=True)


# -- the messages -----------------------------------------------------------------------------------------------------


def small(number: int) -> bytes:
    """JSON of 16 bytes."""
    return b'{"n":%010d}' % (number + 1_000_000_000)


def large(number: int) -> bytes:
    """JSON of 200 bytes."""
    head = (
        b'{"id": %d, "user": "user-%06d", "event": "page_view", "at": "2026-01-01T12:00:00.%06dZ", '
        b'"amount": %d.25, "tags": ["web", "eu"], "seen": true, "note": "'
    ) % (number + 1_000_000_000, number % 1_000_000, number % 1_000_000, number % 1_000)
    return head + b"." * (200 - 2 - len(head)) + b'"}'


# -- throughput -------------------------------------------------------------------------------------------------------


def loop(where: Where, messages: int) -> dict[str, float]:
    """What one would write by hand without looking at the messages."""
    figures: dict[str, float] = {}
    meter = Meter(messages, figures.update)
    consumer = where.consumer(max_poll_records=BATCH)  # kafka-python's own default
    commit_at = time.monotonic() + COMMIT_EVERY_S
    while not figures:
        for records in consumer.poll(timeout_ms=1000).values():
            meter.count(len(records))
        if time.monotonic() >= commit_at:
            consumer.commit()
            commit_at += COMMIT_EVERY_S
    consumer.close()
    return figures


def parser(where: Where, module: str, messages: int) -> dict[str, float]:
    """What ``payloads`` cannot do without, and nothing else: batches of values are decoded and thrown away."""
    loads = importlib.import_module(module).loads
    gc.disable()  # which looks at what is decoded, and how often is a setting of the process, not the parser's
    spent = 0.0
    for first in range(0, messages, BATCH):
        values = [large(number) for number in range(first, min(first + BATCH, messages))]
        begin = time.process_time()
        payloads = [loads(value) for value in values]
        spent += time.process_time() - begin
        assert len(payloads) == len(values)
    return {"cpu_us": spent / messages * 1e6, "per_s": messages / spent}


def alone(where: Where, messages: int, *, asynchronous: bool) -> dict[str, float]:
    """One message a batch, and a handler that does nothing: the CPU time of the process for each."""
    app, done, begun = where.app(), threading.Event(), list[float]()
    left = messages + 1  # the first one begins

    def count() -> None:
        nonlocal left
        left -= 1
        if not begun:
            begun.append(time.process_time())
        elif not left:
            begun.append(time.process_time())
            done.set()

    def plain(batch: Batch, ctx: Context) -> None:
        count()

    async def coroutine(batch: Batch, ctx: Context) -> None:
        count()

    app.topic(where.topic, max_messages=1)(coroutine if asynchronous else plain)
    app.start()
    done.wait()
    app.stop()
    return {"cpu_us": (begun[1] - begun[0]) / messages * 1e6}


def partitions(
    where: Where, partitions: int, batches: int, concurrency: int = SLEEPERS, *, asynchronous: bool = False
) -> dict[str, float]:
    """A handler that waits for something else, on one partition or on many: the rate while all of them are at work."""
    app = where.app(concurrency=concurrency)
    runs: dict[int, list[tuple[float, float, int]]] = collections.defaultdict(list)  # begin, end, messages
    done = threading.Event()

    def ended(batch: Batch, begin: float) -> None:
        runs[batch.partition].append((begin, time.perf_counter(), len(batch)))
        if len(runs[batch.partition]) == batches:
            done.set()

    def plain(batch: Batch, ctx: Context) -> None:
        begin = time.perf_counter()
        time.sleep(SLEEP_S)
        ended(batch, begin)

    async def coroutine(batch: Batch, ctx: Context) -> None:
        begin = time.perf_counter()
        await asyncio.sleep(SLEEP_S)
        ended(batch, begin)

    app.topic(where.topic, max_messages=SLEEPY_BATCH)(coroutine if asynchronous else plain)
    app.start()
    done.wait()
    app.stop()
    assert len(runs) == partitions, f"{len(runs)} of {partitions} partitions had begun when the first one was through"
    begin = max(its[0][0] for its in runs.values())
    end = min(its[batches - 1][1] for its in runs.values() if len(its) >= batches)
    messages = sum(  # of a run that is partly outside as much as lies inside
        max(0.0, min(end, its_end) - max(begin, its_begin)) / (its_end - its_begin) * messages
        for its in runs.values()
        for its_begin, its_end, messages in its
    )
    return {"per_s": messages / (end - begin), "ideal_per_s": partitions * SLEEPY_BATCH / SLEEP_S}


def parts(where: Where, parts: int, messages: int) -> dict[str, float]:
    """A handler that waits for something else, message by message, in one partition whose order is by key."""
    app = where.app(concurrency=parts)
    times: list[float] = []

    @app.topic(where.topic, order="key", max_messages=messages, batch_timeout_ms=2000)
    def handle(batch: Batch, ctx: Context) -> None:
        times.append(time.perf_counter())
        for _ in ctx.each(batch):
            time.sleep(SLEEP_S)
        times.append(time.perf_counter())

    app.drain()
    assert len(times) == 2 * parts, f"{len(times) // 2} parts"
    return {"per_s": messages / (max(times) - min(times))}


# -- marks ------------------------------------------------------------------------------------------------------------


def mark(where: Where, messages: int) -> dict[str, float]:
    """One mark without waiting, and an empty call for scale: the median batch of each.

    The CPU of the worker only: the poller beside it is not the mark's.
    """
    app = where.app()
    marks: list[float] = []
    calls: list[float] = []
    left = messages
    done = threading.Event()

    @app.topic(where.topic, manual_offsets=True)
    def handle(batch: Batch, ctx: Context) -> None:
        nonlocal left
        built = list(batch)
        times = [time.thread_time_ns()]
        for _ in built:
            pass
        times.append(time.thread_time_ns())
        for message in built:
            _nothing(message)
        times.append(time.thread_time_ns())
        for message in built:
            ctx.mark_as_consumed(message)
        times.append(time.thread_time_ns())
        bare, called, marked = (after - before for before, after in itertools.pairwise(times))
        calls.append((called - bare) / len(built))
        marks.append((marked - bare) / len(built))
        left -= len(built)
        if left <= 0:
            done.set()

    app.start()
    done.wait()
    app.stop()
    return {"ns": statistics.median(marks), "empty_call_ns": statistics.median(calls)}


def _nothing(message: object) -> None:
    pass


def sync_mark(where: Where, times: int) -> dict[str, list[float]]:
    """One mark after the other, each acknowledged by the broker."""
    app = where.app()
    taken: list[float] = []
    done = threading.Event()

    @app.topic(where.topic, manual_offsets=True)
    def handle(batch: Batch, ctx: Context) -> None:
        for message in batch:
            begin = time.perf_counter()
            ctx.mark_as_consumed(message, sync=True)
            taken.append((time.perf_counter() - begin) * 1000)
        if len(taken) >= times:
            done.set()

    app.start()
    done.wait()
    app.stop()
    return {"ms": taken}


def bare_commit(where: Where, times: int) -> dict[str, list[float]]:
    """The same commits without a framework."""
    consumer = where.consumer()
    next(_batches(consumer))  # joined
    taken = []
    for offset in range(1, times + 1):
        begin = time.perf_counter()
        consumer.commit({TopicPartition(where.topic, 0): OffsetAndMetadata(offset, "", -1)})
        taken.append((time.perf_counter() - begin) * 1000)
    consumer.close()
    return {"ms": taken}


# -- a retry ----------------------------------------------------------------------------------------------------------


def retry(where: Where, times: int) -> dict[str, list[float]]:
    """From the end of a failed run to the begin of the next one, after a short back-off; no other message is there."""
    app = where.app()
    taken: list[float] = []
    failed_at = 0.0
    done = threading.Event()

    @app.topic(where.topic, backoff_ms=BACKOFF_MS, backoff_max_ms=BACKOFF_MS)
    def handle(batch: Batch, ctx: Context) -> None:
        nonlocal failed_at
        if ctx.retrying:
            taken.append((time.perf_counter() - failed_at) * 1000)
        if len(taken) == times:
            done.set()
            return
        failed_at = time.perf_counter()
        raise ValueError("once more")

    app.start()
    done.wait()
    app.stop()
    return {"ms": taken}


# -- idle -------------------------------------------------------------------------------------------------------------


def idle(where: Where, partitions: int, settle: float, seconds: float) -> dict[str, float]:
    """Joined, and nothing comes; ``settle``: seconds until what came with the join is committed."""
    app = where.app()
    seen: set[int] = set()
    joined = threading.Event()

    @app.topic(where.topic)
    def handle(batch: Batch, ctx: Context) -> None:
        seen.add(batch.partition)
        if len(seen) == partitions:
            joined.set()

    app.start()
    joined.wait()
    time.sleep(settle)
    begin = time.process_time()
    time.sleep(seconds)
    spent = time.process_time() - begin
    app.stop()
    return {"percent": spent / seconds * 100}


def idle_loop(where: Where, partitions: int, settle: float, seconds: float) -> dict[str, float]:
    """The same with a bare consumer that waits in ``poll``."""
    consumer = where.consumer()
    seen: set[int] = set()
    while len(seen) < partitions:
        seen.update(place.partition for place in consumer.poll(timeout_ms=1000))
    consumer.commit()
    _poll_for(consumer, settle)
    begin = time.process_time(), time.perf_counter()
    _poll_for(consumer, seconds)
    spent, elapsed = time.process_time() - begin[0], time.perf_counter() - begin[1]
    consumer.close()
    return {"percent": spent / elapsed * 100}


def _poll_for(consumer: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        consumer.poll(timeout_ms=min(1000, left * 1000))


# -- first message, latency -------------------------------------------------------------------------------------------


def first_message(where: Where) -> dict[str, float]:
    """From ``app.start()``, everything imported."""
    app = where.app()
    came_at = 0.0
    came = threading.Event()

    @app.topic(where.topic)
    def handle(batch: Batch, ctx: Context) -> None:
        nonlocal came_at
        came_at = time.perf_counter()
        came.set()

    begin = time.perf_counter()
    app.start()
    came.wait()
    app.stop()
    return {"s": came_at - begin}


def first_message_loop(where: Where) -> dict[str, float]:
    """The same with a bare consumer."""
    begin = time.perf_counter()
    consumer = where.consumer()
    next(_batches(consumer))
    took = time.perf_counter() - begin
    consumer.close()
    return {"s": took}


class Stopwatch:
    """How old messages are that carry their time of birth; the first one only says that everything is joined."""

    def __init__(self, messages: int) -> None:
        self.ms: list[float] = []
        self.done = threading.Event()
        self._messages = messages
        self._ready = False
        self._lock = threading.Lock()

    def saw(self, values: Sequence[bytes | None]) -> None:
        now = time.monotonic_ns()
        with self._lock:
            if not self._ready:
                self._ready = True
                print(READY, flush=True)
                return
            self.ms += [(now - int(value)) / 1e6 for value in values if value is not None]
            if len(self.ms) >= self._messages:
                self.done.set()


def latency(where: Where, messages: int) -> dict[str, list[float]]:
    """From just before ``produce`` to the first line of the handler."""
    stopwatch = Stopwatch(messages)
    app = where.app()

    @app.topic(where.topic)
    def handle(batch: Batch, ctx: Context) -> None:
        stopwatch.saw(batch.values)

    app.start()
    stopwatch.done.wait()
    app.stop()
    return {"ms": stopwatch.ms}


def latency_loop(where: Where, messages: int) -> dict[str, list[float]]:
    """From just before ``produce`` to the line behind ``poll``."""
    stopwatch = Stopwatch(messages)
    consumer = where.consumer()
    batches = _batches(consumer)
    while not stopwatch.done.is_set():
        stopwatch.saw([record.value for record in next(batches)])
    consumer.close()
    return {"ms": stopwatch.ms}


def _batches(consumer: Any) -> Iterator[list[Any]]:
    while True:
        yield from consumer.poll(timeout_ms=1000).values()


PROBES: dict[str, Callable[..., dict[str, Any]]] = {
    probe.__name__: probe
    for probe in (
        *(loop, parser, alone, partitions, parts),
        *(mark, sync_mark, bare_commit, retry),
        *(idle, idle_loop),
        *(first_message, first_message_loop),
        *(latency, latency_loop),
    )
}


if __name__ == "__main__":
    main(*sys.argv[1:])
