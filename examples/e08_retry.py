"""Retries, then dead letters: a message that cannot be processed leaves, and those around it do not suffer.

    karafka-lite run examples.e08_retry:app --broker embedded --feed earthquakes=examples/earthquakes.jsonl --drain

What is known to be wrong is sent away by hand. What raises is tried again, in its batch and then by itself, and goes to
the same topic, with the exception in its headers. As each message is marked, a try repeats nothing that is done.
"""

from karafka_lite import App, Batch, Context

app = App("earthquake-distances")


# Waits of 10, 20, 40 … ms, so that the example ends soon; the default of 1, 2, 4 … s lets a database come back.
@app.topic("earthquakes", dead_letter="earthquakes.dead", max_retries=1, backoff_ms=10)
def log_near(batch: Batch, ctx: Context) -> None:
    for message in ctx.each(batch):
        quake = message.payload
        if quake["type"] != "earthquake":
            ctx.dead_letter(message, f"{quake['type']}, no earthquake")
            continue
        km = int(quake["place"].split("km ")[0])  # ValueError: far out at sea there is no town to measure from
        if km <= 10 and quake["magnitude"] >= 4:
            print(f"{message}: magnitude {quake['magnitude']}, {quake['place']}", flush=True)
