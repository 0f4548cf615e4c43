"""Test a handler without a broker: with its app in a TestClient, and as a plain function.

    pytest examples/e12_testing.py

The client's clock moves only with advance, so the tests neither wait nor depend on timing.
"""

from karafka_lite import App, Batch, Context, Message
from karafka_lite.testing import TestClient, context

app = App("earthquake-feed")


@app.topic("earthquakes", manual_offsets=True)
def publish(batch: Batch, ctx: Context) -> None:
    for message in batch:
        if message.payload["magnitude"] >= 5:
            ctx.produce("earthquakes.strong", message.value, key=message.key)
        if not ctx.mark_as_consumed(message):
            return


def test_strong_ones_are_sent_and_a_failure_repeats_from_the_last_mark() -> None:
    with TestClient(app) as client:
        client.send_many("earthquakes", [{"magnitude": 4.9}, {"magnitude": 5}, {"id": "without a magnitude"}])
        (run,) = client.run()
        assert (run.outcome, run.marks, type(run.exception)) == ("failed", [1, 2], KeyError)
        assert [message.payload for message in client.produced("earthquakes.strong")] == [{"magnitude": 5}]
        client.advance(ms=1000)  # the back-off
        assert [run.offsets for run in client.run()] == [[2]]
    assert client.committed("earthquakes", 0) == 2


def test_it_stops_when_a_mark_returns_false() -> None:
    ctx = context("earthquakes", revoked=True)
    publish(Batch([Message("earthquakes", 0, n, value=b'{"magnitude": 5}') for n in (7, 8)]), ctx)
    assert len(ctx.produced) == 1
