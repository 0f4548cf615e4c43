"""What the examples of ``@app.observe`` tell others: a tracer, a service for errors, statsd."""

from __future__ import annotations

import importlib
import json
import logging
import re
import socket
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from karafka_lite.testing import TestClient

ROOT = Path(__file__).parents[2]
TOPIC = "earthquakes"
QUAKE = json.loads((ROOT / "examples" / "earthquakes.jsonl").read_text().partition("\n")[0])


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.CRITICAL, "karafka_lite")
    monkeypatch.syspath_prepend(str(ROOT))


def example(name: str) -> Any:
    return importlib.import_module(f"examples.{name}")


def to_the_end(client: TestClient) -> None:
    while (runs := client.run()) and runs[-1].outcome == "failed":
        client.advance(ms=30_000)


def test_each_batch_is_a_span_and_counts_and_a_failure_is_recorded_in_its_own() -> None:
    module = example("e19_opentelemetry")
    spans = InMemorySpanExporter()
    module.traces.add_span_processor(SimpleSpanProcessor(spans))
    failures = [OSError("no space left")]

    def printed(_: str) -> None:
        if failures:
            raise failures.pop()

    module.print = printed
    with TestClient(module.app) as client:
        client.send_many(TOPIC, [QUAKE, QUAKE])
        to_the_end(client)
    module.metrics.shutdown()
    failed, done = spans.get_finished_spans()
    assert [event.name for event in failed.events] == ["exception"]
    assert (done.name, list(done.events)) == (f"process {TOPIC}", [])
    assert dict(done.attributes or {})["messaging.destination.name"] == TOPIC
    assert (done.end_time or 0) >= (done.start_time or 0)


def test_what_is_given_up_is_reported_once_and_with_where_it_is() -> None:
    module = example("e20_errors")
    printed: list[str] = []
    module.print = printed.append
    with TestClient(module.app) as client:
        client.send_many(TOPIC, [QUAKE, {**QUAKE, "type": "explosion"}, QUAKE])
        to_the_end(client)
    (reported,) = printed
    assert "ValueError('explosion, not an earthquake')" in reported
    assert f"'message': '{TOPIC}-0@1', 'function': 'check'" in reported


def test_counters_and_timings_arrive_in_the_format_of_statsd() -> None:
    module = example("e21_statsd")
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.settimeout(10)
        module.statsd.connect(listener.getsockname())
        with TestClient(module.app) as client:
            client.send_many(TOPIC, [QUAKE, QUAKE])
            client.run()
        count, timing = listener.recv(1000).decode(), listener.recv(1000).decode()
    module.statsd.close()
    assert count == f"karafka_lite.messages.{TOPIC}:2|c"
    assert re.fullmatch(rf"karafka_lite\.handler\.{TOPIC}:\d+\.\d\d\d\|ms", timing)
