"""Blocking marks and commits: continue when the offset is on the broker.

    karafka-lite run examples.e06_blocking:app --broker embedded --feed earthquakes=examples/earthquakes.jsonl --until-end

Each costs a round trip, so use them for work that should rarely be done twice, such as waking somebody up, or before
telling others that something is done. A crash between the work and the acknowledgement still repeats the message.
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
        # False: no longer ours. A CommitError (no acknowledgement for 30 s) is a failed try; the mark stays stored.
        if not ctx.mark_as_consumed(message, sync=strong):
            return
    if ctx.commit_offsets(sync=True):
        print(f"the broker has everything up to {batch.last}", flush=True)
