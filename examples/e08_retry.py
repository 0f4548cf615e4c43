"""Retries, then dead letters: a message that cannot be processed is sent away, and the others go on.

    karafka-lite run examples.e08_retry:app --broker embedded --feed earthquakes=examples/earthquakes.jsonl --until-end

A message that is known to be wrong is sent to the dead-letter topic by the handler. A message that raises is retried,
in its batch and then alone, and is then sent to the same topic, with the exception in its headers. As each message is
marked, a retry does not repeat finished work.
"""

from karafka_lite import App, Batch, Context

app = App("earthquake-distances")


# Waits of 10, 20, 40 … ms let the example end soon; the default of 1, 2, 4 … s gives a database time to recover.
@app.topic("earthquakes", dead_letter="earthquakes.dead", max_retries=1, backoff_ms=10)
def log_near(batch: Batch, ctx: Context) -> None:
    for message in ctx.each(batch):
        quake = message.payload
        if quake["type"] != "earthquake":
            ctx.dead_letter(message, f"{quake['type']}, not an earthquake")
            continue
        km = int(quake["place"].split("km ")[0])  # ValueError: out at sea the place names no town
        if km <= 10 and quake["magnitude"] >= 4:
            print(f"{message}: magnitude {quake['magnitude']}, {quake['place']}", flush=True)
