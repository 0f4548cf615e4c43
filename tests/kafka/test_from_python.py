"""An app inside another program: what it sends beside its handlers, how it is started, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.harness import Gate, make_app, opened
from support.observer import Observer, wait_until

from karafka_lite import Batch, Context, Outgoing, ProduceError

ROOT = Path(__file__).parents[2]


def values(kafka: Observer, topic: str) -> list[bytes | None]:
    return sorted((record.value() for record in kafka.records(topic)), key=lambda value: value or b"")


def test_it_sends_from_any_thread_before_it_starts_while_it_runs_and_after_the_stop(kafka: Observer) -> None:
    topic, out = kafka.topic(), kafka.topic(2)
    app = make_app(kafka, concurrency=1)
    places: list[tuple[int, int]] = []

    @app.topic(topic)
    def handle(batch: Batch, ctx: Context) -> None:
        helper = threading.Thread(target=lambda: places.append(app.produce(out, "from a helper").result(20)))
        helper.start()
        helper.join()

    before = set(threading.enumerate())
    sent = app.produce(out, {"ü": 1}, key="k", headers=[("h", b"\x00")], partition=1, timestamp_ms=1234)
    assert sent.result(20) == (1, 0)
    (record,) = kafka.records(out)
    assert (record.value(), record.key(), record.headers()) == ('{"ü": 1}'.encode(), b"k", [("h", b"\x00")])
    assert record.timestamp()[1] == 1234
    with app:
        kafka.produce(topic, [1])
        wait_until(lambda: places, message="the handler's thread has sent")
        with ThreadPoolExecutor(4) as pool:
            futures = list(pool.map(lambda number: app.produce(out, number), range(100)))
    assert set(threading.enumerate()) == before, "no thread of ours is left after the stop"
    assert all(future.done() for future in futures), "flushed"
    assert app.produce(out, "after the stop").result(20)
    app.stop()
    assert set(threading.enumerate()) == before
    expected = [str(number) for number in range(100)] + ['"after the stop"', '"from a helper"', '{"ü": 1}']
    assert values(kafka, out) == sorted(text.encode() for text in expected)


def test_a_stop_that_a_handler_asks_for_flushes_what_was_sent_on_stop_included(kafka: Observer) -> None:
    topic, out = kafka.topic(), kafka.topic()
    app = make_app(kafka)
    sent: list[Any] = []

    @app.topic(topic)
    def handle(batch: Batch, ctx: Context) -> None:
        sent.extend(app.produce(out, number) for number in range(1000))
        app.stop()

    @app.on_stop
    def say_goodbye() -> None:
        sent.append(app.produce(out, 1000))

    kafka.produce(topic, [1])
    before = set(threading.enumerate())
    assert app.run() == 0
    assert set(threading.enumerate()) == before
    assert [future.result(0) for future in sent] == [(0, number) for number in range(1001)]


def test_a_message_that_is_refused_fails_alone(kafka: Observer) -> None:
    topic, small = kafka.topic(), kafka.topic(max_message_bytes=1000)
    app = make_app(kafka)
    app.produce(topic, 0).result(20)
    futures = [app.produce(small, "x" * 5000), *(app.produce(topic, number) for number in range(1, 50))]
    refused = futures.pop(0).exception(20)
    assert isinstance(refused, ProduceError)
    assert f"a message of 5002 bytes is too large for topic {small}" in str(refused)
    assert [future.result(20) for future in futures] == [(0, number) for number in range(1, 50)]
    app.stop()


def test_it_sends_many_in_their_order_or_none(kafka: Observer) -> None:
    out, small = kafka.topic(2), kafka.topic(max_message_bytes=1000)
    app = make_app(kafka)
    assert app.produce_many(out, []).result(0) == []
    assert not app._sender.is_open
    with pytest.raises(TypeError, match="got str; for one message: produce"):
        app.produce_many(out, "text")
    with pytest.raises(ValueError, match=rf"^messages\[1\]: partition must be between 0 and 1 in topic {out}, got 2"):
        app.produce_many(out, [0, Outgoing(1, partition=2)])
    sent = app.produce_many(out, (Outgoing(n, partition=n % 2) for n in range(2000)))
    refused = app.produce_many(small, ["x" * 5000, 1])
    assert sent.result(20) == [(n % 2, n // 2) for n in range(2000)]
    assert f"a message of 5002 bytes is too large for topic {small}" in str(refused.exception(20))
    flushed = app.produce_many(small, range(100))
    app.stop()
    assert [offset for _, offset in flushed.result(0)] == sorted(offset for _, offset in flushed.result(0))
    assert values(kafka, out) == sorted(b"%d" % n for n in range(2000))
    assert values(kafka, small) == sorted([b"1", *(b"%d" % n for n in range(100))])


def test_a_thread_that_the_handler_waits_for_asks_for_the_stop_without_waiting(kafka: Observer) -> None:
    topic, group = kafka.topic(), kafka.group()
    app = make_app(kafka, group)
    told: list[bool] = []

    @app.topic(topic)
    def handle(batch: Batch, ctx: Context) -> None:
        helper = threading.Thread(target=lambda: told.append(app.stop(wait=False)))
        helper.start()
        helper.join()

    kafka.produce(topic, [1])
    assert app.run() == 0
    assert told == [True]
    assert kafka.committed(group, topic) == 1
    assert app.stop(wait=False) is True, "nothing runs"


def test_with_app_stops_in_good_order_also_when_the_block_raises(kafka: Observer) -> None:
    topic, group, gate = kafka.topic(), kafka.group(), Gate()
    app = make_app(kafka, group)

    @app.topic(topic)
    def handle(batch: Batch, ctx: Context) -> None:
        gate.wait()

    kafka.produce(topic, [1])
    with opened(gate), suppress(ZeroDivisionError), app as entered:
        assert entered is app
        gate.reached()
        gate.open()
        raise ZeroDivisionError
    assert kafka.committed(group, topic) == 1
    assert kafka.members(group) == []


def test_what_a_signal_handler_of_the_program_raises_ends_the_run_in_good_order(kafka: Observer) -> None:
    topic, group = kafka.topic(), kafka.group()
    app = make_app(kafka, group)

    @app.topic(topic)
    def handle(batch: Batch, ctx: Context) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        wait_until(lambda: ctx.stopping, message="it stops")

    def interrupt(*_: object) -> None:
        raise RuntimeError("by the program")

    kafka.produce(topic, [1])
    before, others = signal.signal(signal.SIGUSR1, interrupt), set(threading.enumerate())
    try:
        with pytest.raises(RuntimeError, match="by the program"):
            app.run()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert set(threading.enumerate()) == others
    assert kafka.committed(group, topic) == 1
    assert kafka.members(group) == []


FORGETFUL = """
import logging, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from karafka_lite import App

logging.basicConfig(level="INFO")
servers, topic, out, group = sys.argv[1:]
app, pool, begun = App(group, bootstrap_servers=servers), ThreadPoolExecutor(1), threading.Event()
pool.submit(int).result()

@app.topic(topic)
def handle(batch, ctx):
    begun.set()
    while not ctx.stopping:
        time.sleep(0.01)
    print(pool.submit(lambda: "the executor works").result(), flush=True)

@app.on_shutdown(handle)
def shutdown(ctx):
    app.produce(out, "at the stop")

other = App("other", bootstrap_servers=servers)
other.produce(topic, 1)
app.start()
assert begun.wait(30)
other.produce(out, "sent and forgotten")
"""


def test_a_program_that_ends_stops_its_app_in_good_order_and_flushes_what_was_sent(kafka: Observer) -> None:
    topic, out, group = kafka.topic(), kafka.topic(), kafka.group()
    arguments = [kafka.bootstrap_servers, topic, out, group]
    done = subprocess.run(
        [sys.executable, "-c", FORGETFUL, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "the executor works\n"), done.stderr
    (warning,) = [line for line in done.stderr.splitlines() if "WARNING" in line]
    assert "is stopped: use `with app:`, or app.stop()" in warning
    assert "Traceback" not in done.stderr
    assert kafka.committed(group, topic) == 1
    assert kafka.members(group) == []
    assert values(kafka, out) == [b'"at the stop"', b'"sent and forgotten"']
