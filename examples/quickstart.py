"""Count a week of real earthquakes, after: karafka-lite produce earthquakes examples/earthquakes.jsonl.

    karafka-lite run examples.quickstart:app

Data: earthquakes.jsonl, 1,707 events of February 2018. Credit: U.S. Geological Survey.
"""

from collections import Counter

from karafka_lite import App

app = App("earthquake-counter")


@app.topic("earthquakes", manual_offsets=True)
def count(batch, ctx):
    regions = ctx.state.setdefault("regions", Counter())
    for message in batch:
        regions[message.payload["region"]] += 1
        if not ctx.mark_as_consumed(message):  # the partition is no longer ours: its new owner continues
            return
    print(f"{regions.total()} earthquakes so far, most of them in {regions.most_common(1)[0][0]}", flush=True)


@app.on_shutdown(count)
def report(ctx):
    for region, earthquakes in ctx.state.get("regions", Counter()).most_common(10):
        print(f"{earthquakes:6} {region}")
