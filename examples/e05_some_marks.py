"""Automatic mode with a mark at every tenth message: a failure repeats nine that were done at most, not a batch.

    karafka-lite run examples.e05_some_marks:app --broker embedded --feed earthquakes=examples/earthquakes.jsonl --drain

The end of the batch is marked by itself, when the handler returns and the partition is still ours.
"""

from karafka_lite import App, Batch, Context

app = App("earthquake-depths")


@app.topic("earthquakes")
def log_deep(batch: Batch, ctx: Context) -> None:
    for done, message in enumerate(batch, start=1):
        quake = message.payload
        if quake["depth_km"] >= 300:
            print(f"{message}: {quake['depth_km']} km deep, {quake['place']}", flush=True)
        if done % 10 == 0 and not ctx.mark_as_consumed(message):
            return  # no longer ours; an early return while it is ours would mark the whole batch
    print(f"{len(batch)} messages, {len(batch) // 10} marks on the way, try {ctx.attempt}", flush=True)
