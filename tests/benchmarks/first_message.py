"""The app that ``karafka-lite run`` is timed with: says when its first message came, and stops."""

from __future__ import annotations

import json
import os
import time

from karafka_lite import App, Batch, Context

app = App(os.environ["BENCH_GROUP"])


@app.topic(os.environ["BENCH_TOPIC"])
def say_when(batch: Batch, ctx: Context) -> None:
    print(json.dumps({"at": time.monotonic()}), flush=True)
    app.stop()
