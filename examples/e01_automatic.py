"""Automatic mode: a batch is marked when its handler returns, and delivered again when it raises.

    karafka-lite run examples.e01_automatic:app --broker embedded --feed earthquakes=examples/earthquakes.jsonl --until-end

The handler does not deal with offsets. If it ends early, by an exception or a crash, the whole batch is delivered
again, so it must be safe to process a message twice.
"""

from karafka_lite import App, Batch, Context

app = App("earthquake-news")


@app.topic("earthquakes")
def strongest(batch: Batch, ctx: Context) -> None:
    quake = max(batch.payloads, key=lambda quake: quake["magnitude"])
    print(f"the strongest of {len(batch)} earthquakes: {quake['magnitude']} {quake['place']}", flush=True)
