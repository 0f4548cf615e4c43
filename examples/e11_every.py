"""Write earthquakes in chunks: when there are 200 of them, once a second, and at the end.

    karafka-lite run examples.e11_every:app --broker embedded --feed earthquakes=examples/earthquakes.jsonl --until-end

Messages in the buffer are not marked, so they are not committed: whatever happens, they are delivered again. ctx.state
belongs to one partition, ends with its ownership, and is emptied before a failed batch is retried. If write raises when
it is called by every, the exception is only logged. The buffer is cleared last, so the next call finds it unchanged.
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
