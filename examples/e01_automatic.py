"""Automatic mode: a batch is marked when its handler has returned, and comes again when it raised.

    karafka-lite run examples.e01_automatic:app --broker embedded --feed earthquakes=examples/earthquakes.jsonl --drain

The handler says nothing about offsets. Whatever ends it early, be it an exception or a crash, the whole batch is handed
over again: what it does must bear being done twice.
"""

from karafka_lite import App, Batch, Context

app = App("earthquake-news")


@app.topic("earthquakes")
def strongest(batch: Batch, ctx: Context) -> None:
    quake = max(batch.payloads, key=lambda quake: quake["magnitude"])
    print(f"the strongest of {len(batch)} earthquakes: {quake['magnitude']} {quake['place']}", flush=True)
