"""Manual mode: each message is marked when it is done, so that after a failure only the rest is repeated.

    karafka-lite run examples.e02_manual:app --broker embedded --feed earthquakes=examples/earthquakes.jsonl --until-end

A mark costs less than a microsecond and stores the offset in memory. Stored offsets are committed every 5 s (App's
``auto_commit_interval_ms``), before another member gets the partition, and at the stop.
"""

from karafka_lite import App, Batch, Context

app = App("earthquake-log")


@app.topic("earthquakes", manual_offsets=True)
def log_strong(batch: Batch, ctx: Context) -> None:
    for message in batch:
        quake = message.payload
        if quake["magnitude"] >= 6:
            print(f"{message}: magnitude {quake['magnitude']}, {quake['place']}", flush=True)
        ctx.mark_as_consumed(message)  # after the work: a message that fails is not marked, and is delivered again
