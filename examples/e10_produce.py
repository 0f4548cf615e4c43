"""Send messages to another topic: no input is committed before its output is acknowledged.

    karafka-lite run examples.e10_produce:app --broker embedded --feed earthquakes=examples/earthquakes.jsonl --until-end

The handler need not wait for the futures: the run ends when all messages are acknowledged, and fails if one is refused.
A repeated batch sends its messages again; consumers recognise them by their id. The key keeps a region's earthquakes in
order.
"""

from karafka_lite import App, Batch, Context

app = App("earthquake-router")


@app.topic("earthquakes")
def route(batch: Batch, ctx: Context) -> None:
    strong = [message for message in batch if message.payload["magnitude"] >= 5]
    for message in strong:
        quake = message.payload
        value = {name: quake[name] for name in ("id", "time_ms", "magnitude", "place")}
        ctx.produce("earthquakes.strong", value, key=quake["region"])
    print(f"sent {len(strong)} of {len(batch)} to earthquakes.strong", flush=True)
