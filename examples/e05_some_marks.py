"""Automatic mode with a mark after every tenth message: a failure repeats at most nine finished messages.

    karafka-lite run examples.e05_some_marks:app --broker embedded --feed earthquakes=examples/earthquakes.jsonl --until-end

The end of the batch is marked automatically when the handler returns, if the partition is still ours.
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
            return  # no longer ours; otherwise an early return would mark the whole batch
    print(f"{len(batch)} messages, {len(batch) // 10} marks in between, try {ctx.attempt}", flush=True)
