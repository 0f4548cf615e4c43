"""A service of two modules: what the App includes, has a group of its own, and pydantic models in and out.

    karafka-lite run examples.e13_service:app --broker embedded --feed earthquakes=examples/earthquakes.jsonl --until-end

alarms.py has the other half, with a dead letter by hand. on_assigned is called for each partition before its first
batch; what it opens is closed when the partition goes, and at the stop.
"""

import sqlite3
import tempfile
from pathlib import Path

from examples import alarms
from karafka_lite import App, Batch, Context

app = App("earthquake-service")
app.include(alarms.router)
folder = Path(tempfile.gettempdir())


@app.topic("earthquakes", deserializer=alarms.Quake.model_validate_json)
def keep(batch: Batch[alarms.Quake], ctx: Context) -> None:
    rows = [(quake.id, quake.magnitude) for quake in batch.payloads]
    with ctx.state["database"] as database:
        database.executemany("insert or replace into quakes values (?, ?)", rows)


@app.on_assigned(keep)
def connect(ctx: Context) -> None:
    database = sqlite3.connect(folder / f"{ctx.topic}-{ctx.partition}.db", check_same_thread=False)
    database.execute("create table if not exists quakes (id primary key, magnitude)")
    ctx.state["database"] = database


@app.on_revoked(keep)
@app.on_shutdown(keep)
def close(ctx: Context) -> None:
    (count,) = ctx.state["database"].execute("select count(*) from quakes").fetchone()
    ctx.state["database"].close()
    print(f"{count} earthquakes are in {ctx.topic}-{ctx.partition}.db", flush=True)
