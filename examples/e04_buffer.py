"""Write earthquakes to SQLite in chunks, and the rest before the partition is revoked or the app stops.

    karafka-lite run examples.e04_buffer:app --broker embedded --feed earthquakes=examples/earthquakes.jsonl --until-end

EARTHQUAKES_DB names the file; by default it is in the temp folder. Messages are marked after SQLite's commit: if the
process is killed in between, the rows are written again and replace those with the same key. After a failure the
buffer is emptied, and its messages are delivered again.
"""

import os
import sqlite3
import tempfile
from contextlib import closing

from karafka_lite import App, Batch, Context

app = App("earthquake-archive")
DATABASE = os.environ.get("EARTHQUAKES_DB") or os.path.join(tempfile.gettempdir(), "earthquakes.db")
TABLE = "earthquakes (topic, partition, offset, magnitude, place, primary key (topic, partition, offset))"


@app.topic("earthquakes", manual_offsets=True)
def collect(batch: Batch, ctx: Context) -> None:
    for message in batch:
        ctx.state.setdefault("buffer", []).append(message)
        if len(ctx.state["buffer"]) >= 200:
            flush(ctx)


@app.before_revoke(collect)
@app.on_shutdown(collect)
def flush(ctx: Context) -> None:
    if buffer := ctx.state.get("buffer"):
        rows = [(m.topic, m.partition, m.offset, m.payload["magnitude"], m.payload["place"]) for m in buffer]
        with closing(sqlite3.connect(DATABASE, timeout=30)) as database, database:  # the second: commit or roll back
            database.execute(f"create table if not exists {TABLE}")
            database.executemany("insert or replace into earthquakes values (?, ?, ?, ?, ?)", rows)
        ctx.mark_as_consumed(buffer[-1])
        print(f"{len(rows)} rows are in {DATABASE}, up to {buffer[-1]}", flush=True)
        buffer.clear()
