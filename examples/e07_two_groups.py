"""Two groups read one topic in one process, each with its own offsets, mode and pace.

    karafka-lite run examples.e07_two_groups:app --broker embedded --feed earthquakes=examples/earthquakes.jsonl --until-end

A failure in one does not delay the other. Each can be reset by its group's name, or moved to a process of its own.
"""

from collections import Counter

from karafka_lite import App, Batch, Context

app = App("earthquake-summaries")


@app.topic("earthquakes")
def summarise(batch: Batch, ctx: Context) -> None:
    region, count = Counter(quake["region"] for quake in batch.payloads).most_common(1)[0]
    print(f"{ctx.group_id}: {count} of {len(batch)} in {region}", flush=True)


@app.topic("earthquakes", group_id="earthquake-tsunamis", manual_offsets=True, max_messages=100)
def warn(batch: Batch, ctx: Context) -> None:
    for message in batch:
        quake = message.payload
        if quake["magnitude"] >= 6 and quake["depth_km"] < 70:
            print(f"{ctx.group_id}: {quake['magnitude']}, {quake['place']}", flush=True)
        if not ctx.mark_as_consumed(message):
            return
