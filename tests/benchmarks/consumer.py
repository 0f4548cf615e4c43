"""The app that is measured at full speed, and whose start is timed.

    BENCH='{"group": "g", "topic": "t", "handler": "noop", "messages": 9}' karafka-lite run tests/benchmarks/consumer.py
    BENCH=… python tests/benchmarks/consumer.py

The second one is how a program of one's own uses it, as a library. Both print one line of JSON.
"""

from __future__ import annotations

import collections
import importlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from meter import Figures, Meter

from karafka_lite import App, Batch, Context

told = json.loads(os.environ["BENCH"])
app = App(told["group"])
ended = threading.Event()


def say(figures: Figures) -> None:
    print(json.dumps(figures), flush=True)
    ended.set()
    app.stop()


meter = Meter(told.get("messages", 1), say)


def noop(batch: Batch, ctx: Context) -> None:
    meter.count(len(batch))


def values(batch: Batch, ctx: Context) -> None:
    assert len(batch.values) == len(batch)
    meter.count(len(batch))


def iterate(batch: Batch, ctx: Context) -> None:
    for _ in batch:
        pass
    meter.count(len(batch))


def read(batch: Batch, ctx: Context) -> None:
    for message in batch:
        message.value  # noqa: B018 - reading it is what is measured
    meter.count(len(batch))


def payloads(batch: Batch, ctx: Context) -> None:
    assert len(batch.payloads) == len(batch)
    meter.count(len(batch))


def mark_each(batch: Batch, ctx: Context) -> None:
    for message in batch:
        ctx.mark_as_consumed(message)
    meter.count(len(batch))


def first_message(batch: Batch, ctx: Context) -> None:
    say({"at": time.monotonic()})


settings: dict[str, Any] = collections.defaultdict(dict, mark_each={"manual_offsets": True})
handler = told["handler"]
deserializer = importlib.import_module(told.get("deserializer", "json"))
app.topic(told["topic"], deserializer=deserializer, **settings[handler])(globals()[handler])

if __name__ == "__main__":
    app.start()
    ended.wait()
    app.stop()
