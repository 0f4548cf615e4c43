"""Failures for a service such as Sentry: once for each message that is given up, with where it is.

    karafka-lite run examples.e20_errors:app --broker embedded --feed earthquakes=examples/earthquakes.jsonl --until-end

``capture`` stands in for ``sentry_sdk.capture_exception``, which takes the same arguments.
"""

from typing import Any

from karafka_lite import App, Batch, Context
from karafka_lite.events import CallEnded, DeadLettered, Event

app = App("earthquake-errors")


def capture(error: BaseException | str, **scope: Any) -> None:
    print(f"reported: {error!r} {scope['tags']}")


@app.topic("earthquakes", dead_letter="earthquakes.dead", max_retries=1, backoff_ms=10)
def check(batch: Batch, ctx: Context) -> None:
    for message in ctx.each(batch):
        if message.payload["type"] != "earthquake":
            raise ValueError(f"{message.payload['type']}, not an earthquake")


@app.observe
def report(event: Event) -> None:
    if isinstance(event, DeadLettered):
        capture(event.error or event.reason, tags={"message": str(event), "function": event.function})
    elif isinstance(event, CallEnded) and event.error and event.tries is None:  # for ever: each try is news
        capture(event.error, tags={"call": str(event), "function": event.function, "attempt": event.attempt})
