"""Count a week of real earthquakes by magnitude, after: karafka-lite produce earthquakes examples/earthquakes.jsonl.

    karafka-lite run examples.quickstart:app

Data: earthquakes.jsonl, 1,707 events of February 2018. Credit: U.S. Geological Survey.
"""

import atexit
from collections import Counter

from karafka_lite import App

app = App("earthquake-counter")
magnitudes: Counter[int] = Counter()  # one call at a time, whatever the partition


@app.topic("earthquakes")
def count(batch, ctx):
    magnitudes.update(int(quake["magnitude"]) for quake in batch.payloads)
    print(f"{magnitudes.total()} earthquakes so far, {magnitudes[6]} of magnitude 6", flush=True)


@atexit.register
def report():
    for magnitude, earthquakes in sorted(magnitudes.items()):
        print(f"magnitude {magnitude}: {earthquakes:4} {'█' * (earthquakes // 20)}")
