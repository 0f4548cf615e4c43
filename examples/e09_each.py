"""ctx.each marks each message when the loop asks for the next one, and ends early at a stop or a rebalance.

    karafka-lite run examples.e09_each:app --broker embedded --feed earthquakes=examples/earthquakes.jsonl --until-end

So a stop or a rebalance waits for one message, not for the batch. Messages that were not yielded are not marked, not
even in automatic mode, nor is the message at which the loop raises or is left by break or return.
"""

from karafka_lite import App, Batch, Context

app = App("earthquake-reviews")


@app.topic("earthquakes")
def review(batch: Batch, ctx: Context) -> None:
    reviewed = 0
    for message in ctx.each(batch):
        quake = message.payload
        if quake["status"] == "automatic" and quake["magnitude"] >= 3:
            print(f"a human should look at {quake['id']}: {quake['magnitude']}, {quake['place']}", flush=True)
        reviewed += 1
    print(f"{reviewed} of {len(batch)} are reviewed and marked", flush=True)
