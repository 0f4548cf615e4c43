"""Exactly once: what is sent and the offset of what it was made from are committed together, or neither is.

    karafka-lite run examples.e22_exactly_once:app --broker embedded --feed earthquakes=examples/earthquakes.jsonl --until-end

Who reads ``earthquakes.energy`` has to read it with ``isolation_level="read_committed"``: else it sees what is undone,
too.
"""

from karafka_lite import App, Batch, Context

app = App("earthquake-energy")


@app.topic("earthquakes", exactly_once=True)
def measure(batch: Batch, ctx: Context) -> None:
    for message in batch:
        joules = 10 ** (1.5 * message.payload["magnitude"] + 4.8)
        ctx.produce("earthquakes.energy", {"id": message.payload["id"], "joules": joules}, key=message.key)
    print(f"{len(batch)} earthquakes of {ctx.topic}-{ctx.partition}, each counted once")
