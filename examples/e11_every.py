"""Writes earthquakes in chunks: when 200 have come together, once a second, and at the end.

    karafka-lite run examples.e11_every:app --broker embedded --feed earthquakes=examples/earthquakes.jsonl --drain

What is in the buffer is not marked, so it is not committed: whatever happens, it comes again. ctx.state belongs to one
partition, goes with it, and is emptied when a failed batch is to be repeated. An exception of write, when every calls
it, is only logged: the buffer is emptied last, so that the next call finds it as it was.
"""

from karafka_lite import App, Batch, Context

app = App("earthquake-writer")
SIZE, WAIT_MS = 200, 1000


@app.topic("earthquakes", manual_offsets=True)
def collect(batch: Batch, ctx: Context) -> None:
    buffer = ctx.state.setdefault("buffer", [])
    for message in batch:
        buffer.append(message)
        if len(buffer) >= SIZE:
            write(ctx)


@app.every(collect, ms=WAIT_MS)
@app.before_revoke(collect)
@app.on_shutdown(collect)
def write(ctx: Context) -> None:
    buffer = ctx.state.get("buffer")
    if buffer:
        print(f"writing {len(buffer)} earthquakes, the last one at offset {buffer[-1].offset}", flush=True)
        ctx.mark_as_consumed(buffer[-1])
        buffer.clear()
