"""Counters and timings in the format of statsd, sent by UDP: what nobody listens to is lost, and nobody waits.

    karafka-lite run examples.e21_statsd:app --broker embedded --feed earthquakes=examples/earthquakes.jsonl --until-end

STATSD_PORT names another port than 8125.
"""

import os
import socket

from karafka_lite import App, Batch, Context
from karafka_lite.events import CallEnded, CommitFailed, DeadLettered, Event

app = App("earthquake-statsd")
statsd = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
statsd.connect(("127.0.0.1", int(os.environ.get("STATSD_PORT", "8125"))))


def send(metric: str) -> None:
    try:
        statsd.send(f"karafka_lite.{metric}".encode())
    except ConnectionRefusedError:  # of the one before: nobody listens
        return


@app.topic("earthquakes")
def count(batch: Batch, ctx: Context) -> None:
    print(f"{len(batch)} earthquakes")


@app.observe
def measure(event: Event) -> None:
    if isinstance(event, CallEnded) and event.hook is None:
        send(f"messages.{event.topic}:{event.messages}|c")
        send(f"handler.{event.topic}:{event.seconds * 1000:.3f}|ms")
    elif isinstance(event, DeadLettered):
        send(f"dead_letters.{event.topic}:1|c")
    elif isinstance(event, CommitFailed):
        send("commit_failures:1|c")
