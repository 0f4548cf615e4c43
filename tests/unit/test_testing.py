"""``karafka_lite.testing``: what a user's own tests do with it."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import unittest
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import pytest

from karafka_lite import (
    App,
    AsyncContext,
    Batch,
    CommitError,
    ConfigurationError,
    Context,
    Health,
    Message,
    Outgoing,
    ProduceError,
    Router,
)
from karafka_lite.testing import Run, TestClient, context
from karafka_lite.testing.cluster import EPOCH_MS

TOPIC = "user_events"


class Flaky(Exception):
    """What handlers of these tests raise."""


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "karafka_lite")


def given(handler: Callable[[Batch, Context], object], **options: Any) -> App:
    """An app with one handler of one topic."""
    app = App("group")
    app.topic(TOPIC, **options)(handler)
    return app


def describe(runs: list[Run]) -> list[tuple[list[int], int, str]]:
    return [(run.offsets, run.attempt, run.outcome) for run in runs]


def nothing(batch: Batch, ctx: Context) -> None: ...


# -- messages ---------------------------------------------------------------------------------------------------------


def test_the_example_of_its_docstring() -> None:
    with TestClient(given(nothing)) as client:
        client.send(TOPIC, {"id": 1}, key="a")
        (run,) = client.run()
        assert run == Run(TOPIC, 0, "group", [0], 1, "done", None, [1])
        assert client.stored(TOPIC, 0) == 1
        assert client.committed(TOPIC, 0) is None
        client.advance(ms=4999)
        assert client.committed(TOPIC, 0) is None
        client.advance(ms=1)
        assert client.committed(TOPIC, 0) == 1


def test_what_is_sent_is_what_the_handler_gets() -> None:
    seen: list[Message] = []
    with TestClient(given(lambda batch, ctx: seen.extend(batch))) as client:
        client.send(TOPIC, {"ü": 1}, key="k", headers=[("h", b"\x00")], timestamp_ms=5)
        client.send(TOPIC, "text", key=b"k")
        client.send(TOPIC, b"\xff")
        client.advance(ms=1500)
        client.send(TOPIC, None)
        client.run()
    assert [message.value for message in seen] == ['{"ü": 1}'.encode(), b"text", b"\xff", None]
    assert [message.key for message in seen] == [b"k", b"k", None, None]
    assert [message.timestamp_ms for message in seen] == [5, EPOCH_MS, EPOCH_MS, EPOCH_MS + 1500]
    assert seen[0].headers == [("h", b"\x00")]
    assert seen[0].payload == {"ü": 1}
    assert seen[3].tombstone


def test_the_key_chooses_the_partition_as_in_kafka() -> None:
    with TestClient(given(nothing), partitions={TOPIC: 7}) as client:
        # As Java's murmur2 has them.
        placed = [client.send(TOPIC, 1, key=key)[0] for key in ("a", "b", "user-17", "", "ä")]
        assert placed == [client.send(TOPIC, 1, key=key)[0] for key in (b"a", b"b", b"user-17", b"", "ä".encode())]
        assert len(set(placed)) > 1
        assert client.send(TOPIC, 1) == (0, placed.count(0) * 2)
        assert client.send(TOPIC, 1, key="a", partition=6)[0] == 6


def test_what_cannot_be_sent_is_refused_with_what_to_type() -> None:
    with TestClient(given(nothing)) as client:
        with pytest.raises(ValueError, match="the app reads no topic 'other'; it reads user_events"):
            client.send("other", 1)
        with pytest.raises(ValueError, match=r"user_events-3 does not exist; pass partitions={'user_events': 4}"):
            client.send(TOPIC, 1, partition=3)
        with pytest.raises(TypeError, match="set is not"):
            client.send(TOPIC, {1})
    with pytest.raises(ConfigurationError, match="no topic is registered"), TestClient(App("group")):
        pass
    with pytest.raises(ValueError, match="cannot have 0 partitions"), TestClient(given(nothing), partitions=0):
        pass


def test_send_many_sends_each_in_batches_as_the_route_says() -> None:
    with TestClient(given(nothing, max_messages=4)) as client:
        assert client.send_many(TOPIC, range(10), key="same") == [(0, n) for n in range(10)]
        assert [run.offsets for run in client.run()] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


# -- failures ---------------------------------------------------------------------------------------------------------


def test_a_failure_is_an_outcome_and_a_retry_waits_for_the_clock() -> None:
    def fail_twice(batch: Batch, ctx: Context) -> None:
        if ctx.attempt < 3:
            raise Flaky(ctx.attempt)

    with TestClient(given(fail_twice)) as client:
        client.send_many(TOPIC, range(2))
        (first,) = client.run()
        assert (first.outcome, type(first.exception), first.marks) == ("failed", Flaky, [])
        assert client.run() == []
        client.advance(ms=999)
        assert client.run() == []
        client.advance(ms=1)
        assert describe(client.run()) == [([0, 1], 2, "failed")]
        client.advance(ms=2000)
        assert describe(client.run()) == [([0, 1], 3, "done")]


def test_raise_errors_raises_the_first() -> None:
    def fail(batch: Batch, ctx: Context) -> None:
        raise Flaky(batch.first_offset)

    with TestClient(given(fail, max_messages=1), partitions=2) as client:
        client.send(TOPIC, 1, partition=1)
        client.send(TOPIC, 1, partition=0)
        with pytest.raises(Flaky):
            client.run(raise_errors=True)


def test_a_bad_message_is_found_by_trying_each_alone() -> None:
    def fail(batch: Batch, ctx: Context) -> None:
        for message in batch:
            if message.payload == "bad":
                raise Flaky("no good")

    app = given(fail, dead_letter="dead", max_retries=1)
    with TestClient(app) as client:
        client.send_many(TOPIC, ['"good"', '"bad"', '"good"'], headers=[("own", b"1")])
        runs = client.run()
        for _ in range(9):
            client.advance(ms=30_000)
            runs += client.run()
        assert describe(runs) == [
            ([0, 1, 2], 1, "failed"), ([0], 2, "done"), ([1], 2, "failed"), ([2], 2, "done"),
        ]  # fmt: skip
        (dead,) = client.dead_letters("dead")
        assert dict(dead.headers)["source-offset"] == b"1"
        assert dict(dead.headers)["error"] == b"Flaky: no good"
        assert dict(dead.headers)["own"] == b"1"
        assert dead.payload == "bad"
        assert client.stored(TOPIC, 0) == 3
        with pytest.raises(ValueError, match="no dead letter goes to 'else'; they go to dead"):
            client.dead_letters("else")


@pytest.mark.parametrize("each", [True, False], ids=["each", "batch"])
def test_one_bad_message_costs_7_seconds_by_default_in_whichever_loop(each: bool) -> None:
    def fail(batch: Batch, ctx: Context) -> None:
        for message in ctx.each(batch) if each else batch:
            if message.payload == "bad":
                raise Flaky("no good")

    with TestClient(given(fail, dead_letter="dead", backoff_ms=1000, backoff_max_ms=30_000)) as client:
        client.send_many(TOPIC, ['"good"', '"good"', '"bad"', '"good"'])
        client.run()
        seconds = 0.0
        while not client.dead_letters("dead"):
            client.advance(ms=100)
            client.run()
            seconds += 0.1
        assert seconds == pytest.approx(7, abs=0.2)
        assert client.stored(TOPIC, 0) == 4


def test_a_dead_letter_that_is_refused_is_a_failed_run() -> None:
    def fail(batch: Batch, ctx: Context) -> None:
        raise Flaky

    with TestClient(given(fail, dead_letter="dead", max_retries=0)) as client:
        client.refuse("dead", ProduceError("too large"), times=2)
        client.send(TOPIC, 1)
        for expected in (0, 0, 1):
            (run,) = client.run()
            assert isinstance(run.exception, Flaky if expected else ProduceError)
            assert len(client.dead_letters("dead")) == expected
            client.advance(ms=30_000)
        assert client.committed(TOPIC, 0) == 1


def test_a_critical_exception_stops_the_app() -> None:
    def leave(batch: Batch, ctx: Context) -> None:
        raise SystemExit

    app, hooks = given(leave, max_messages=1), []
    app.on_shutdown(leave)(lambda ctx: hooks.append(ctx.stopping))
    with TestClient(app) as client:
        client.send_many(TOPIC, range(3))
        assert describe(client.run()) == [([0], 1, "failed")]
        assert hooks == [True]
        client.send(TOPIC, 1)
        assert client.run() == []


# -- marks and commits ------------------------------------------------------------------------------------------------


def test_manual_marks_are_told_and_committed() -> None:
    def mark(batch: Batch, ctx: Context) -> None:
        assert ctx.mark_as_consumed(batch[0])
        assert ctx.mark_as_consumed(batch[1])

    with TestClient(given(mark, manual_offsets=True)) as client:
        client.send_many(TOPIC, range(3))
        (run,) = client.run()
        assert run.marks == [1, 2]
        assert (client.stored(TOPIC, 0), client.committed(TOPIC, 0)) == (2, None)
    assert client.committed(TOPIC, 0) == 2, "the end of the block stops the app"


def test_a_requested_and_a_blocking_commit_are_there_in_time() -> None:
    seen: list[object] = []

    def mark(batch: Batch, ctx: Context) -> None:
        if batch.last_offset == 0:
            ctx.mark_as_consumed(batch.last)
            seen.extend([ctx.commit_offsets(), client.committed(TOPIC, 0)])
        else:
            seen.extend([ctx.mark_as_consumed(batch.last, sync=True), client.committed(TOPIC, 0)])

    with TestClient(given(mark, manual_offsets=True)) as client:
        client.send(TOPIC, 1)
        client.run()
        assert seen == [True, None]
        assert client.committed(TOPIC, 0) == 1
        client.send(TOPIC, 1)
        client.run()
        assert seen[2:] == [True, 2]


def test_two_groups_have_offsets_of_their_own() -> None:
    app = App("one")
    app.topic(TOPIC)(nothing)

    @app.topic(TOPIC, group_id="two", manual_offsets=True)
    def mark(batch: Batch, ctx: Context) -> None: ...

    with TestClient(app) as client:
        client.send(TOPIC, 1)
        assert [run.group_id for run in client.run()] == ["one", "two"]
        assert client.stored(TOPIC, 0, group_id="one") == 1
        assert client.stored(TOPIC, 0, group_id="two") is None
        with pytest.raises(ValueError, match="pass group_id='one' or group_id='two'"):
            client.committed(TOPIC, 0)
        with pytest.raises(ValueError, match="reads no topic 'user_events' in group 'three'"):
            client.stored(TOPIC, 0, group_id="three")


# -- ownership --------------------------------------------------------------------------------------------------------


class Owned:
    """An app that says which of its functions were called."""

    def __init__(self, **options: Any) -> None:
        self.calls: list[str] = []
        self.inside: Callable[[Batch, Context], object] = lambda batch, ctx: None
        self.app = given(self.store, **options)
        self.app.before_revoke(self.store)(lambda ctx: self.note("before_revoke", ctx))
        self.app.on_revoked(self.store)(lambda ctx: self.note("on_revoked", ctx))
        self.app.on_shutdown(self.store)(lambda ctx: self.note("on_shutdown", ctx))

    def store(self, batch: Batch, ctx: Context) -> None:
        self.inside(batch, ctx)

    def note(self, what: str, ctx: Context) -> None:
        self.calls.append(f"{what} {ctx.partition} revoked={ctx.revoked}")


def test_revoke_runs_the_hooks_commits_and_assign_begins_there() -> None:
    owned = Owned()
    with TestClient(owned.app) as client:
        client.send_many(TOPIC, range(2))
        client.run()
        client.revoke(TOPIC, 0)
        assert owned.calls == ["before_revoke 0 revoked=False", "on_revoked 0 revoked=True"]
        assert client.committed(TOPIC, 0) == 2
        client.send(TOPIC, 1)
        assert client.run() == []
        with pytest.raises(ValueError, match="user_events-0 is not assigned"):
            client.revoke(TOPIC, 0)
        client.assign(TOPIC, 0)
        with pytest.raises(ValueError, match="user_events-0 is assigned"):
            client.assign(TOPIC, 0)
        assert describe(client.run()) == [([2], 1, "done")]


def test_revoke_inside_a_handler_asks_it_to_wrap_up_and_waits() -> None:
    owned, seen = Owned(), []

    def inside(batch: Batch, ctx: Context) -> None:
        for message in ctx.each(batch):
            seen.append(message.offset)
            if message.offset == 1:
                client.revoke(TOPIC, 0)
                seen.extend([ctx.stopping, ctx.revoked])

    owned.inside = inside
    with TestClient(owned.app) as client:
        client.send_many(TOPIC, range(5))
        client.run()
        assert seen == [0, 1, True, False]
        assert client.committed(TOPIC, 0) == 2
        assert owned.calls == ["before_revoke 0 revoked=False", "on_revoked 0 revoked=True"]


def test_lose_inside_a_handler_holds_at_once() -> None:
    owned, answers = Owned(manual_offsets=True), []

    def inside(batch: Batch, ctx: Context) -> None:
        answers.append(ctx.mark_as_consumed(batch.first))
        client.lose(TOPIC, 0)
        answers.extend([ctx.revoked, ctx.mark_as_consumed(batch.last), ctx.commit_offsets(sync=True)])

    owned.inside = inside
    with TestClient(owned.app) as client:
        client.send_many(TOPIC, range(3))
        (run,) = client.run()
        assert answers == [True, True, False, False]
        assert run.marks == [1]
        client.advance(ms=60_000)
        assert client.committed(TOPIC, 0) is None
        assert owned.calls == ["on_revoked 0 revoked=True"]
        owned.inside = lambda batch, ctx: answers.append(ctx.revoked)
        client.assign(TOPIC, 0)
        assert describe(client.run()) == [([0, 1, 2], 1, "done")], "a fresh ownership, at what is committed"
        assert answers[4:] == [False]
    assert owned.calls[1:] == ["on_shutdown 0 revoked=False"]


def test_an_eviction_takes_all_and_gives_back_the_others() -> None:
    owned = Owned(manual_offsets=True)
    with TestClient(owned.app, partitions=2) as client:
        for partition in (0, 1):
            client.send(TOPIC, 1, partition=partition)
        assert len(client.run()) == 2
        client.lose(TOPIC, 0)
        assert sorted(owned.calls) == ["on_revoked 0 revoked=True", "on_revoked 1 revoked=True"]
        assert [(run.partition, run.offsets) for run in client.run()] == [(1, [0])], "not marked, so again"


def test_the_end_of_the_block_runs_on_shutdown_and_commits() -> None:
    def collect(batch: Batch, ctx: Context) -> None:
        ctx.state["last"] = batch.last

    app = given(collect, manual_offsets=True)
    app.on_shutdown(collect)(lambda ctx: ctx.mark_as_consumed(ctx.state["last"]))
    with TestClient(app) as client:
        client.send_many(TOPIC, range(3))
        client.run()
        assert client.stored(TOPIC, 0) is None
    assert client.committed(TOPIC, 0) == 3
    with TestClient(app) as again:
        assert again.committed(TOPIC, 0) is None, "another client, another world"


def test_app_stop_in_a_handler_stops_behind_it() -> None:
    def stop(batch: Batch, ctx: Context) -> None:
        assert app.stop()
        assert not ctx.stopping, "it is only asked for"

    app = given(stop, max_messages=1)
    with TestClient(app) as client:
        client.send_many(TOPIC, range(2))
        assert describe(client.run()) == [([0], 1, "done")]
        assert client.committed(TOPIC, 0) == 1


# -- the flow ---------------------------------------------------------------------------------------------------------


def test_every_is_called_by_the_clock_only_and_its_marks_count() -> None:
    def collect(batch: Batch, ctx: Context) -> None:
        ctx.state["last"] = batch.last

    app, calls = given(collect, manual_offsets=True), []

    @app.every(collect, ms=100)
    def flush(ctx: Context) -> None:
        calls.append(client.now)
        ctx.mark_as_consumed(ctx.state["last"])

    with TestClient(app) as client:
        client.advance(ms=1000)
        assert calls == [], "not before the first batch"
        client.send(TOPIC, 1)
        client.run()
        client.advance(ms=350)
        assert [round(moment, 3) for moment in calls] == [1.1, 1.2, 1.3]
        assert client.stored(TOPIC, 0) == 1


@pytest.mark.parametrize("back", [1, "earliest", datetime.fromtimestamp(EPOCH_MS / 1000 + 1, tz=timezone.utc)])
def test_a_seek_goes_there_in_the_next_run(back: Any) -> None:
    runs_left = [back]

    def seek(batch: Batch, ctx: Context) -> None:
        if runs_left:
            ctx.seek(runs_left.pop())

    with TestClient(given(seek)) as client:
        for second in range(3):
            client.send(TOPIC, second, timestamp_ms=EPOCH_MS + 1000 * second)
        begins = [run.offsets[0] for run in client.run()]
        assert begins == [0, 0 if back == "earliest" else 1]


@pytest.mark.parametrize("reset", ["earliest", "latest", "none"])
def test_a_seek_past_the_end_goes_to_the_end_whatever_auto_offset_reset_says(reset: Any) -> None:
    wanted: list[Any] = ["latest", 99]

    def seek(batch: Batch, ctx: Context) -> None:
        if wanted:
            ctx.seek(wanted.pop(0))

    app = App("group", auto_offset_reset=reset)
    app.topic(TOPIC)(seek)
    client = TestClient(app)
    client._cluster.commits["group"] = {(TOPIC, 0): 0}
    with client:
        client.send_many(TOPIC, range(3))
        assert describe(client.run()) == [([0, 1, 2], 1, "done")]
        client.send(TOPIC, 3)
        assert [run.offsets for run in client.run()] == [[3]]
        client.send(TOPIC, 4)
        assert [run.offsets for run in client.run()] == [[4]]


def test_a_pause_waits_for_the_clock_and_other_partitions_go_on() -> None:
    def pause(batch: Batch, ctx: Context) -> None:
        if ctx.partition == 0:
            ctx.pause(3000)

    with TestClient(given(pause), partitions=2) as client:
        for partition in (0, 1, 0, 1):
            client.send(TOPIC, 1, partition=partition)
        client.run()
        for partition in (0, 1):
            client.send(TOPIC, 1, partition=partition)
        assert [run.partition for run in client.run()] == [1]
        client.advance(ms=3000)
        assert [run.partition for run in client.run()] == [0]


def test_a_batch_waits_for_its_timeout() -> None:
    with TestClient(given(nothing, batch_timeout_ms=1000, max_messages=5)) as client:
        client.send_many(TOPIC, range(3))
        assert client.run() == []
        client.advance(ms=1000)
        assert [run.offsets for run in client.run()] == [[0, 1, 2]]
        client.send_many(TOPIC, range(5))
        assert [run.offsets for run in client.run()] == [[3, 4, 5, 6, 7]]


def test_what_is_produced_is_kept_and_read_by_the_app_itself() -> None:
    app, seen = App("group"), []

    @app.topic(TOPIC)
    def forward(batch: Batch, ctx: Context) -> None:
        for message in batch:
            assert ctx.produce("out", {"n": message.payload}, key="k").result() == (0, message.offset)

    @app.topic("out")
    def read(batch: Batch, ctx: Context) -> None:
        seen.extend(batch.payloads)

    with TestClient(app) as client:
        client.send_many(TOPIC, range(2))
        client.run()
        assert [message.payload for message in client.produced("out")] == [{"n": 0}, {"n": 1}]
        assert client.produced("else") == []
    assert seen == [{"n": 0}, {"n": 1}]


def test_what_the_app_sends_beside_its_handlers_goes_into_the_same_topics_from_any_thread() -> None:
    def forward(batch: Batch, ctx: Context) -> None:
        threads = [threading.Thread(target=app.produce, args=("helpers", number)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        app.produce(TOPIC, "again") if batch.first_offset == 0 else app.stop(wait=False)

    app = given(forward)
    sender = app._sender
    with TestClient(app) as client:
        client.refuse("helpers", ProduceError("full"))
        assert isinstance(app.produce("helpers", 0).exception(), ProduceError)
        assert app.produce(TOPIC, {"id": 1}, key="k", timestamp_ms=5).result() == (0, 0)
        with pytest.raises(ValueError, match="partition must be between 0 and 0"):
            app.produce(TOPIC, 1, partition=1)
        assert [run.offsets for run in client.run()] == [[0], [1]]
        assert client.committed(TOPIC, 0) == 2, "stopped"
        assert [message.payload for message in client.produced(TOPIC)] == [{"id": 1}, "again"]
        assert [message.offset for message in client.produced("helpers")] == list(range(16))
    assert app._sender is sender


def test_many_are_sent_or_none_and_a_refused_one_fails_the_run() -> None:
    def forward(batch: Batch, ctx: Context) -> None:
        with pytest.raises(ValueError, match=r"^messages\[1\]: partition must be between 0 and 1 in topic out, got 2"):
            ctx.produce_many("out", [0, Outgoing(1, partition=2)])
        sent.append(ctx.produce_many("out", [Outgoing(n, partition=n % 2) for n in range(3)]))
        ctx.mark_as_consumed(batch.last)

    app, sent = given(forward, manual_offsets=True), list[Any]()
    with TestClient(app, partitions={"out": 2}) as client:
        client.send(TOPIC, 1)
        client.refuse("out", ProduceError("refused"))
        assert describe(client.run()) == [([0], 1, "failed")]
        assert isinstance(sent[0].exception(0), ProduceError)
        assert client.stored(TOPIC, 0) is None
        client.advance(ms=1000)
        assert describe(client.run()) == [([0], 2, "done")]
        assert sent[1].result(0) == [(0, 1), (1, 1), (0, 2)]
        assert client.stored(TOPIC, 0) == 1
        assert app.produce_many("beside", ["a", "b"]).result(0) == [(0, 0), (0, 1)]
        assert [message.payload for message in client.produced("beside")] == ["a", "b"]


def test_a_refused_message_fails_the_run() -> None:
    def forward(batch: Batch, ctx: Context) -> None:
        ctx.produce("out", 1)
        ctx.mark_as_consumed(batch.last)

    with TestClient(given(forward, manual_offsets=True)) as client:
        client.refuse("out", ProduceError("refused"))
        client.send(TOPIC, 1)
        (run,) = client.run()
        assert isinstance(run.exception, ProduceError)
        assert client.stored(TOPIC, 0) is None
        client.advance(ms=1000)
        assert describe(client.run()) == [([0], 2, "done")]


# -- mistakes in tests ------------------------------------------------------------------------------------------------


def test_what_makes_no_sense_is_refused() -> None:
    def nested(batch: Batch, ctx: Context) -> None:
        client.run()

    with TestClient(given(nested)) as client:
        client.send(TOPIC, 1)
        with pytest.raises(RuntimeError, match=r"call run\(\) in the test"):
            client.run(raise_errors=True)
        with pytest.raises(ValueError, match="the clock goes forwards"):
            client.advance(ms=-1)
        with pytest.raises(ConfigurationError, match="runs already"), TestClient(client._app):
            pass


def test_a_handler_without_an_end_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("karafka_lite.testing.client.MOST_STEPS", 1000)

    def again(batch: Batch, ctx: Context) -> None:
        ctx.seek(0)

    with TestClient(given(again)) as client:
        client.send(TOPIC, 1)
        with pytest.raises(RuntimeError, match="does a handler always seek back"):
            client.run()


def test_a_thousand_messages_take_no_time() -> None:
    app = given(lambda batch, ctx: [ctx.mark_as_consumed(message) for message in batch], manual_offsets=True)
    took = []
    for _ in range(5):
        with TestClient(app) as client:
            client.send_many(TOPIC, [b"{}"] * 1000)
            began = time.process_time()
            client.run()
            took.append(time.process_time() - began)
            assert client.stored(TOPIC, 0) == 1000
    print(f"1,000 messages: {min(took) * 1000:.1f} ms")


# -- other ways to test -----------------------------------------------------------------------------------------------


class WithUnittest(unittest.TestCase):
    def setUp(self) -> None:
        self.client = self.enterContext(TestClient(given(nothing))) if hasattr(self, "enterContext") else None

    def test_it_works_in_a_plain_test_case(self) -> None:
        if self.client is not None:  # Python 3.11
            self.client.send(TOPIC, 1)
            assert [run.outcome for run in self.client.run()] == ["done"]


def test_it_works_beside_an_event_loop() -> None:
    async def main() -> list[Run]:
        with TestClient(given(nothing)) as client:
            await asyncio.sleep(0)
            client.send(TOPIC, 1)
            return client.run()

    assert describe(asyncio.run(main())) == [([0], 1, "done")]


# -- a plain function -------------------------------------------------------------------------------------------------


def batch_of(count: int) -> Batch:
    return Batch([Message(TOPIC, 0, offset, value=b"{}") for offset in range(5, 5 + count)])


def test_a_context_records_what_a_handler_does() -> None:
    ctx = context(TOPIC, attempt=3, dead_letter="dead", state={"n": 1})
    batch = batch_of(3)
    assert ctx.mark_as_consumed(batch[1])
    assert ctx.mark_as_consumed(batch.last, sync=True)
    assert ctx.commit_offsets(sync=True)
    assert ctx.produce("out", {"a": 1}, key="k").result() == (0, 0)
    ctx.dead_letter(batch.first, "no good")
    assert ctx.produce_many("many", [1, Outgoing(2, partition=3)]).result() == [(0, 0), (3, 1)]
    with pytest.raises(TypeError, match=r"^messages\[1\]: key must be bytes"):
        ctx.produce_many("many", [1, Outgoing(2, key=3)])  # type: ignore[arg-type]
    ctx.seek("earliest")
    ctx.pause(500, offset=6)
    ctx.state["n"] += 1
    assert ctx.marks == [7, 8]
    produced = [(one.topic, one.payload, one.key) for one in ctx.produced]
    assert produced == [("out", {"a": 1}, b"k"), ("dead", {}, None), ("many", 1, None), ("many", 2, None)]
    assert dict(ctx.produced[1].headers)["error"] == b"no good"
    assert (ctx.sought, ctx.paused_ms) == (6, 500)
    assert (ctx.attempt, ctx.retrying, ctx.revoked, ctx.stopping) == (3, True, False, False)
    assert ctx.state == {"n": 2}


def test_a_context_that_is_revoked_refuses_marks() -> None:
    ctx = context(TOPIC, revoked=True)
    batch = batch_of(2)
    assert ctx.revoked
    assert not ctx.mark_as_consumed(batch.first)
    assert not ctx.commit_offsets()
    assert list(ctx.each(batch)) == []
    assert ctx.marks == []
    with pytest.raises(ValueError, match="does not belong to user_events-0"):
        ctx.mark_as_consumed(Message("other", 0, 5))


def test_a_context_that_stops_ends_each_early() -> None:
    ctx = context(TOPIC, stopping=True)
    assert ctx.stopping
    assert list(ctx.each(batch_of(2))) == []
    assert ctx.mark_as_consumed(batch_of(1).last)


def test_the_clock_of_a_blocking_commit_goes_on_without_one() -> None:
    """Nothing refuses a commit here; but who waits for one must not wait for ever if it did."""
    errors: list[CommitError] = []

    def mark(batch: Batch, ctx: Context) -> None:
        client._members[0].group.owned[TOPIC, 0].marks.commit_at = client.now + 60  # as after a refusal
        try:
            ctx.mark_as_consumed(batch.last, sync=True, timeout_ms=1000)
        except CommitError as error:
            errors.append(error)

    with TestClient(given(mark, manual_offsets=True)) as client:
        client.send(TOPIC, 1)
        client.run()
        assert client.now == pytest.approx(1.0)
    assert len(errors) == 1


# -- on_assigned, on_start and on_stop, routers, the serializer --------------------------------------------------------


class Opening(Owned):
    """``on_assigned`` raises as often as ``failing`` says, and puts a list into the state."""

    def __init__(self, failing: int = 0, **options: Any) -> None:
        super().__init__(**options)
        self.failing = failing
        self.app.on_assigned(self.store)(self.open)

    def open(self, ctx: Context) -> None:
        self.calls.append(f"on_assigned {ctx.partition} attempt={ctx.attempt}")
        if self.failing:
            self.failing -= 1
            raise Flaky
        ctx.state["opened"] = True


def test_on_assigned_is_called_at_the_start_of_the_block_for_every_partition_and_what_it_opened_is_closed() -> None:
    opening = Opening()
    with TestClient(opening.app, partitions=2) as client:
        assert opening.calls == ["on_assigned 0 attempt=1", "on_assigned 1 attempt=1"]
        opening.calls.clear()
        client.revoke(TOPIC, 0)
        assert opening.calls == ["before_revoke 0 revoked=False", "on_revoked 0 revoked=True"]
        opening.calls.clear()
        client.assign(TOPIC, 0)
        client.lose(TOPIC, 1)
        assert opening.calls[0] == "on_assigned 0 attempt=1"
        assert sorted(opening.calls[1:]) == [  # the other partition comes back
            "on_assigned 0 attempt=1",
            "on_revoked 0 revoked=True",
            "on_revoked 1 revoked=True",
        ]
        opening.calls.clear()
    assert opening.calls == ["on_shutdown 0 revoked=False"]


def test_on_assigned_that_raises_is_called_again_by_the_clock_and_no_batch_comes_before() -> None:
    opening = Opening(failing=2, backoff_ms=1000)
    with TestClient(opening.app) as client:
        client.send(TOPIC, 1)
        assert client.run() == []
        client.advance(ms=999)
        assert client.run() == []
        assert len(opening.calls) == 1
        client.advance(ms=1)
        client.advance(ms=1999)
        assert client.run() == []
        assert len(opening.calls) == 2
        client.advance(ms=1)
        assert opening.calls[2:] == ["on_assigned 0 attempt=3"]
        assert describe(client.run()) == [([0], 1, "done")]


def test_on_assigned_that_never_returns_well_leaves_nothing_to_close() -> None:
    opening = Opening(failing=100)
    with TestClient(opening.app) as client:
        client.revoke(TOPIC, 0)
    assert opening.calls == ["on_assigned 0 attempt=1"]


def test_nothing_can_be_marked_in_on_assigned_and_it_may_choose_where_to_begin() -> None:
    app, refused = given(nothing), []

    @app.on_assigned(nothing)
    def open_(ctx: Context) -> None:
        for ask in (ctx.mark_as_consumed, lambda message: list(ctx.each([message]))):
            with pytest.raises(ValueError, match="handed to this") as raised:
                ask(Message(TOPIC, 0, 0))
            refused.append(raised.value)
        ctx.seek(2)

    with TestClient(app) as client:
        client.send_many(TOPIC, range(4))
        client.revoke(TOPIC, 0)
        client.assign(TOPIC, 0)
        assert describe(client.run()) == [([2, 3], 1, "done")]
        assert client.stored(TOPIC, 0) == 4
    assert len(refused) == 4


def test_what_on_assigned_left_in_the_state_is_there_after_a_failed_batch() -> None:
    """Emptied with the rest, it could neither be used by the next try nor be closed: the hook is called once."""
    opening, seen = Opening(), list[Any]()

    def inside(batch: Batch, ctx: Context) -> None:
        seen.append(dict(ctx.state))
        ctx.state["buffer"] = batch.payloads
        if ctx.attempt == 1:
            raise Flaky

    opening.inside = inside
    with TestClient(opening.app) as client:
        client.send(TOPIC, 1)
        client.run()
        client.advance(ms=1000)
        client.run()
    assert seen == [{"opened": True}, {"opened": True}]


def test_what_on_assigned_sends_is_sent_again_where_it_was_refused() -> None:
    app = given(nothing, backoff_ms=1000)
    app.on_assigned(nothing)(lambda ctx: ctx.produce("news", "assigned"))
    client = TestClient(app)
    client.refuse("news", ProduceError("no"))
    with client:
        assert client.produced("news") == []
        client.send(TOPIC, 1)
        assert client.run() == []
        client.advance(ms=1000)
        assert [message.payload for message in client.produced("news")] == ["assigned"]
        assert describe(client.run()) == [([0], 1, "done")]


def test_a_critical_exception_of_on_assigned_stops_the_app() -> None:
    opening = Opening()

    @opening.app.on_assigned(opening.store)
    def exit_(ctx: Context) -> None:
        raise SystemExit("no table")

    with TestClient(opening.app, partitions=2) as client:
        client.send(TOPIC, 1, partition=0)
        assert client.run() == []
        assert opening.calls[:1] == ["on_assigned 0 attempt=1"]
        assert "on_shutdown 0 revoked=False" in opening.calls, "at once, and not at the end of the block"


def test_on_start_and_on_stop_are_called_once_around_the_block() -> None:
    app, told = given(lambda batch, ctx: told.append("batch")), list[str]()
    app.on_start(lambda: told.append("start"))
    app.on_stop(lambda: told.append("stop"))
    with TestClient(app, partitions=2) as client:
        assert told == ["start"]
        client.send(TOPIC, 1)
        client.run()
        client.stop()
        assert told == ["start", "batch", "stop"]
    assert told == ["start", "batch", "stop"]


def test_what_on_start_and_on_stop_send_is_kept_also_where_the_start_fails() -> None:
    app, sent = App("group", serializer=lambda value: repr(value).encode()), list[object]()
    app.topic(TOPIC)(nothing)
    sender = app._sender
    app.on_start(lambda: sent.append(app.produce("log", {1}).result()))
    app.on_stop(lambda: sent.append(app.produce("log", {2}).result()))
    with TestClient(app) as client:
        assert sent == [(0, 0)]
    assert sent == [(0, 0), (0, 1)]
    assert [message.value for message in client.produced("log")] == [b"{1}", b"{2}"]
    app.on_start(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError), TestClient(app):
        pytest.fail("it has not started")
    assert sent == [(0, 0), (0, 1), (0, 0), (0, 1)]
    assert app._sender is sender


def test_what_on_start_raises_is_raised_by_the_block_and_what_on_stop_raises_is_not() -> None:
    app = given(nothing)

    @app.on_start
    def connect() -> None:
        if not told:
            raise Flaky("no database")

    told: list[str] = []
    with pytest.raises(Flaky, match="no database"), TestClient(app):
        pytest.fail("it has not started")
    told.append("now")

    @app.on_stop
    def close() -> None:
        raise Flaky("gone")

    with TestClient(app):
        pass


def test_a_stop_that_on_stop_asks_for_is_none() -> None:
    app = given(nothing)
    app.on_stop(lambda: app.stop())
    with TestClient(app):
        pass


def test_a_router_of_another_module_is_tested_with_the_app_that_includes_it() -> None:
    router, app = Router(), App("group")
    router.topic(TOPIC)(nothing)
    app.include(router)
    with TestClient(app) as client:
        client.send(TOPIC, 1)
        assert describe(client.run()) == [([0], 1, "done")]


def test_the_apps_serializer_makes_bytes_of_what_is_sent_by_handlers_and_by_the_test() -> None:
    app = App("group", serializer=lambda value: repr(value).encode())

    @app.topic(TOPIC, deserializer=None)
    def copy(batch: Batch, ctx: Context) -> None:
        ctx.produce("out", batch[0].value)
        ctx.produce("out", {1})

    with TestClient(app) as client:
        client.send(TOPIC, [None])
        (run,) = client.run()
        assert run.outcome == "done"
        assert [message.value for message in client.produced("out")] == [b"[None]", b"{1}"]
        client.send(TOPIC, "text")
        client.run()
        assert client.produced("out")[2].value == b"text", "a test writes what is on the wire"


def test_what_the_serializer_refuses_names_topic_and_type() -> None:
    app = given(lambda batch, ctx: ctx.produce("out", {1}))
    with TestClient(app) as client:
        with pytest.raises(TypeError, match="to_json cannot make bytes of object for topic 'user_events'"):
            client.send(TOPIC, object())
        client.send(TOPIC, 1)
        (run,) = client.run()
        assert "value: to_json cannot make bytes of set for topic 'out'" in str(run.exception)


def test_a_context_has_the_serializer_that_it_is_given() -> None:
    ctx = context(TOPIC, serializer=lambda value: b"made")
    ctx.produce("out", 1)
    assert ctx.produced[0].value == b"made"


def test_a_handler_and_a_web_app_under_test_may_ask_how_the_app_is_and_what_it_has_done() -> None:
    app, healths = App("group"), list[Health]()

    @app.topic("t")
    def work(batch: Batch, ctx: Context) -> None:
        healths.append(app.health())

    with TestClient(app) as client:
        client.send("t", 1)
        client.run()
        assert healths == [Health(live=True, ready=True)]
        assert (app.stats().messages, app.stats().batches) == (1, 1)
    assert app.health() == Health(live=True, ready=False, reasons=("not started",))


# -- parts of batches -------------------------------------------------------------------------------------------------


def test_with_order_by_key_each_part_is_a_run_with_marks_of_its_own() -> None:
    with TestClient(given(nothing, order="key", concurrency=2)) as client:
        for key in "abab":
            client.send(TOPIC, key, key=key)
        runs = client.run()
        assert describe(runs) == [([0, 2], 1, "done"), ([1, 3], 1, "done")]
        assert [run.marks for run in runs] == [[3], [4]]
        assert client.stored(TOPIC, 0) == 4


def test_where_parts_fail_each_is_a_run_and_what_is_done_does_not_come_again() -> None:
    def fail_but_for_c(batch: Batch, ctx: Context) -> None:
        for message in ctx.each(batch):
            if message.key != b"c" and message.offset > 2 and not ctx.retrying:
                raise Flaky(message.offset)

    with TestClient(given(fail_but_for_c, order="key", concurrency=3)) as client:
        for key in "abcabc":
            client.send(TOPIC, key, key=key)
        runs = client.run()
        assert describe(runs) == [([2, 5], 1, "done"), ([1, 4], 1, "failed"), ([0, 3], 1, "failed")]
        assert [run.marks for run in runs] == [[3, 6], [2], [1]]
        assert client.stored(TOPIC, 0) == 3
        client.advance(ms=1000)
        assert describe(client.run()) == [([3], 2, "done"), ([4], 2, "done")]
        assert client.stored(TOPIC, 0) == 6


def test_a_stop_inside_a_part_lets_the_others_run() -> None:
    def stop(batch: Batch, ctx: Context) -> None:
        if batch.first_offset == 0:
            app.stop()
        stopping.append(ctx.stopping)

    stopping: list[bool] = []
    app = given(stop, order="key", concurrency=3)
    with TestClient(app) as client:
        for key in "abc":
            client.send(TOPIC, key, key=key)
        assert [run.offsets for run in client.run()] == [[0], [1], [2]]
    assert stopping == [False, True, True], "it only asks"
    assert client.committed(TOPIC, 0) == 3


# -- async handlers


def test_a_coroutine_runs_to_its_end_with_its_hooks_its_sends_and_its_marks() -> None:
    app, said, loops = App("group"), list[Any](), set[Any]()

    @app.topic(TOPIC, manual_offsets=True, dead_letter="dead", max_retries=0)
    async def store(batch: Batch, ctx: AsyncContext) -> None:
        loops.add(asyncio.get_running_loop())
        for message in ctx.each(batch):
            await asyncio.sleep(0)
            if message.payload == "bad":
                raise Flaky
            said.append(await ctx.produce("out", message.payload))
        said.append(await ctx.mark_as_consumed(batch.last, sync=True))

    @app.every(store, ms=1000)
    async def flush(ctx: AsyncContext) -> None:
        said.append(await ctx.commit_offsets(sync=True))

    @app.on_shutdown(store)
    async def last(ctx: AsyncContext) -> None:
        await asyncio.sleep(0)
        said.append("last")

    @app.on_start
    async def connect() -> None:
        loops.add(asyncio.get_running_loop())
        said.append("start")

    @app.on_stop
    async def disconnect() -> None:
        said.append("stop")

    with TestClient(app) as client:
        client.send_many(TOPIC, [1, "bad", 2])
        assert [(run.offsets, run.outcome) for run in client.run()] == [([0, 1, 2], "failed"), ([2], "done")]
        assert client.committed(TOPIC, 0) == 3
        assert [message.payload for message in client.produced("out")] == [1, 2]
        assert len(client.dead_letters("dead")) == 1
        client.advance(ms=1000)
    assert said == ["start", (0, 0), (0, 1), True, True, "last", "stop"]
    (loop,) = loops
    assert loop.is_closed()


def test_inside_a_coroutine_the_partition_may_be_lost_and_the_app_be_stopped() -> None:
    said: list[Any] = []

    async def store(batch: Batch, ctx: AsyncContext) -> None:
        if not said:
            client.lose(TOPIC, 0)
            said.append((ctx.revoked, ctx.mark_as_consumed(batch.first), await ctx.commit_offsets(sync=True)))
            client.assign(TOPIC, 0)
        elif batch.first_offset == 1:
            assert app.stop(), "it asks, and does not wait for itself"
        said.append(batch.first_offset)

    app = given(store, max_messages=1)
    with TestClient(app) as client:
        client.send_many(TOPIC, range(3))
        client.run()
    assert said == [(True, False, False), 0, 0, 1]
    assert client.committed(TOPIC, 0) == 2


def test_where_a_loop_runs_already_the_sentence_says_how_to_write_the_test() -> None:
    async def store(batch: Batch, ctx: AsyncContext) -> None: ...

    async def main() -> None:
        with TestClient(given(store)) as client:
            client.send(TOPIC, 1)
            with pytest.raises(ConfigurationError, match="make the test a plain function"):
                client.run()

    asyncio.run(main())


def test_what_a_coroutine_leaves_on_the_loop_is_cancelled_at_the_end() -> None:
    said: list[str] = []

    async def for_ever() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            said.append("cancelled")

    async def store(batch: Batch, ctx: AsyncContext) -> None:
        tasks.append(asyncio.create_task(for_ever()))
        await asyncio.sleep(0)

    tasks: list[Any] = []
    with TestClient(given(store)) as client:
        client.send(TOPIC, 1)
        client.run(raise_errors=True)
    assert said == ["cancelled"]


def test_a_plain_handler_that_returns_a_coroutine_has_failed() -> None:
    """Nobody would run it, and the batch would be marked."""

    async def store(batch: Batch, ctx: Context) -> None: ...

    with TestClient(given(lambda batch, ctx: store(batch, ctx))) as client:
        client.send(TOPIC, 1)
        (run,) = client.run()
        assert "has returned a coroutine, which nobody runs" in str(run.exception)
        assert client.stored(TOPIC, 0) is None


def test_a_context_for_an_async_handler_as_a_plain_function() -> None:
    async def store(batch: Batch, ctx: AsyncContext) -> None:
        for message in batch:
            await ctx.produce("out", message.value)
            if not await ctx.mark_as_consumed(message, sync=True):
                return

    for revoked, marks in ((False, [6, 7]), (True, [])):
        ctx = context(TOPIC, asynchronous=True, revoked=revoked)
        asyncio.run(store(Batch([Message(TOPIC, 0, offset, value=b"{}") for offset in (5, 6)]), ctx))
        assert ctx.marks == marks


# -- exactly once ------------------------------------------------------------------------------------------------------


def test_with_exactly_once_nothing_is_visible_before_the_commit_and_then_all_of_it() -> None:
    app, seen = App("g", auto_commit_interval_ms=600_000), list[tuple[int, int | None]]()

    @app.topic(TOPIC, exactly_once=True, manual_offsets=True, backoff_ms=1)
    def forward(batch: Batch, ctx: Context) -> None:
        for message in batch:
            ctx.produce("out", message.payload)
            seen.append((len(client.produced("out")), client.committed(TOPIC, 0)))
        ctx.mark_as_consumed(batch.last)

    with TestClient(app) as client:
        client.refuse("out", RuntimeError("full"))
        client.send_many(TOPIC, range(3))
        (failed,) = client.run()
        assert isinstance(failed.exception, ProduceError)
        assert (client.produced("out"), client.committed(TOPIC, 0)) == ([], None)
        client.advance(ms=10)
        (done,) = client.run()
        assert (done.outcome, done.attempt) == ("done", 2)
        assert ([m.payload for m in client.produced("out")], client.committed(TOPIC, 0)) == ([0, 1, 2], 3)
    assert seen == [(0, None)] * 6
