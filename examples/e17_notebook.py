"""The cells of a notebook, in which a handler takes shape; each may run again and again.

    python examples/e17_notebook.py

Editors show what begins with # %% as a cell. A handler takes the place of the one of the same name that the cell
defined before, and of its hooks. In a program, or while the app runs, that is a mistake.
"""

# %%
from karafka_lite import App, Batch, Context

app = App("notebook")

# %%
for magnitude in (4.1, 6.4, 5.0):
    app.produce("aftershocks", {"magnitude": magnitude}).result(timeout=10)

# %%
strong: list[float] = []


@app.topic("aftershocks")
def collect(batch: Batch, ctx: Context) -> None:
    strong.extend(quake["magnitude"] for quake in batch.payloads if quake["magnitude"] >= 5)


# %%
drained = app.drain()
print(f"{drained.messages} new aftershocks; strong ones so far: {strong}", flush=True)
