"""Blocking mark, and blocking commit: go on when the offset is on the broker, not when it will be.

    karafka-lite run examples.e06_blocking:app --broker embedded --feed earthquakes=examples/earthquakes.jsonl --drain

It costs a round trip, so it is for what must not be done twice without need, as waking somebody, and for telling others
that something is done. A crash between the work and the answer still repeats the message.
"""

from karafka_lite import App, Batch, Context

app = App("earthquake-pager")


@app.topic("earthquakes", manual_offsets=True)
def page(batch: Batch, ctx: Context) -> None:
    for message in batch:
        quake = message.payload
        strong = quake["magnitude"] >= 6
        if strong:
            print(f"wake up: magnitude {quake['magnitude']}, {quake['place']}", flush=True)
        # False: no longer ours. A CommitError (no answer for 30 s) is a failed try like others; the mark stays stored.
        if not ctx.mark_as_consumed(message, sync=strong):
            return
    if ctx.commit_offsets(sync=True):
        print(f"the broker has everything up to {batch.last}", flush=True)
