"""A task of a scheduler: it processes what is new, says what it did, and ends.

    python examples/e18_task.py

For Airflow decorate report with @task. Where it raises, the task has failed; its next try goes on at the last commit.
"""

from collections import Counter

from karafka_lite import App, Batch, Context, DrainError

app = App("daily-report", max_poll_interval_ms=600_000)
felt: Counter[str] = Counter()


@app.topic("earthquakes.felt", dead_letter="earthquakes.unclear")
def count(batch: Batch, ctx: Context) -> None:
    for message in ctx.each(batch):
        felt[message.payload["place"]] += 1


def report() -> dict[str, int]:
    try:
        drained = app.drain(idle_timeout_ms=60_000)
    except DrainError as error:
        print(f"{error.drained.messages} messages are done; not at the end: {error.errors}")
        raise
    print(f"{drained.messages} messages, {drained.dead_letters} of them unclear", flush=True)
    return dict(felt)


if __name__ == "__main__":
    print(report())
