"""Stop when a mark says False: the partition is somebody else's, and so is the rest of the batch.

    karafka-lite run examples.e03_revoked:app --broker embedded --feed earthquakes=examples/earthquakes.jsonl --drain

False means that nothing was stored. The new owner begins at the last commit, does this message again, and then all that
follow it: whoever goes on nevertheless does that work a second time.
"""

from karafka_lite import App, Batch, Context

app = App("earthquake-alerts")


@app.topic("earthquakes", manual_offsets=True)
def alert(batch: Batch, ctx: Context) -> None:
    for done, message in enumerate(batch, start=1):
        quake = message.payload
        if quake["magnitude"] >= 5:
            print(f"alert: magnitude {quake['magnitude']}, {quake['place']}", flush=True)
        if not ctx.mark_as_consumed(message):
            print(f"{message}: no longer ours, {len(batch) - done} more are left to the new owner", flush=True)
            return
    print(f"{len(batch)} messages are done and marked, up to {batch.last}", flush=True)
