"""Quix Streams' side of ``exactly_once.py``; run by it, in an environment of its own.

    python tests/benchmarks/quix_forward.py BROKER GROUP SOURCE TARGET MESSAGES EVERY GUARANTEE

Sends each message on, commits after EVERY messages, and prints the messages per second after the first sixth.
"""

from __future__ import annotations

import sys
import tempfile
import time


def main(broker: str, group: str, source: str, target: str, messages: str, every: str, guarantee: str) -> None:
    from quixstreams import Application

    folder = tempfile.TemporaryDirectory()
    app = Application(
        state_dir=folder.name,
        broker_address=broker,
        consumer_group=group,
        auto_offset_reset="earliest",
        loglevel="ERROR",
        processing_guarantee=guarantee,
        commit_every=int(every),
    )
    raw = {"value_deserializer": "bytes", "key_deserializer": "bytes"}
    to = app.topic(target, value_serializer="bytes", key_serializer="bytes")
    count, began = 0, 0.0
    first = int(messages) // 6

    def came(_value: object) -> None:
        nonlocal count, began
        count += 1
        if count == first:
            began = time.perf_counter()

    app.dataframe(app.topic(source, **raw)).update(came).to_topic(to)
    app.run(count=int(messages), timeout=60)
    print((count - first) / (time.perf_counter() - began))


if __name__ == "__main__":
    main(*sys.argv[1:])
