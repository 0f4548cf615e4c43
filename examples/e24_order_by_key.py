"""Slow calls side by side in one partition, with the earthquakes near each town in their order.

    python examples/e24_order_by_key.py

With order="key" each batch is split by key into up to ``concurrency`` parts, and the handler is called once for each.
"""

import json
import sys
import time
from pathlib import Path

from karafka_lite import App, Batch, Context, Outgoing
from karafka_lite.broker import EmbeddedBroker

broker = EmbeddedBroker({"earthquakes": 1})
broker.start()
app = App("earthquake-calls", bootstrap_servers=broker.bootstrap_servers)
last: dict[bytes | None, int] = {}  # offset by town: no other call has earthquakes of the same one


@app.topic("earthquakes", order="key", concurrency=8)
def call(batch: Batch, ctx: Context) -> None:
    for message in ctx.each(batch):
        time.sleep(0.005)  # a request to a service
        if message.offset < last.get(message.key, 0):
            sys.exit(f"{message} is not in the order of its town")
        last[message.key] = message.offset


if __name__ == "__main__":
    with Path(__file__).with_name("earthquakes.jsonl").open() as lines:
        quakes = [json.loads(line) for line in lines]
    quakes_by_town = [Outgoing(quake, key=quake["place"].rpartition(" of ")[2]) for quake in quakes]
    app.produce_many("earthquakes", quakes_by_town).result()
    began = time.monotonic()
    drained = app.drain()
    broker.stop()
    took = time.monotonic() - began
    print(f"{drained.messages} calls for {len(last)} towns: {drained.handler_seconds:.0f} s of work in {took:.0f} s")
