"""Stop when a mark returns False: the partition, and the rest of the batch, belong to another member now.

    karafka-lite run examples.e03_revoked:app --broker embedded --feed earthquakes=examples/earthquakes.jsonl --until-end

False means that nothing was stored. The new owner starts at the last commit and processes this message and all messages
after it. A handler that continues does work that is done twice.
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
            print(f"{message}: no longer ours, the new owner processes the other {len(batch) - done}", flush=True)
            return
    print(f"{len(batch)} messages are done and marked, up to {batch.last}", flush=True)
