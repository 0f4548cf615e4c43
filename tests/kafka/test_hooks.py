"""The promises of the hooks, on a real Kafka, judged from outside.

A member with the client id "a" takes partition 0 away from "m": see test_rebalance.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from support.harness import Gate, evict, make_app, opened, produce_beside, running
from support.observer import Observer, wait_until

from karafka_lite import App

KINDS = ("on_shutdown", "before_revoke", "on_revoked")


def hang_hooks(app: App, handler: Any, tell: Callable[[str, Any], None]) -> None:
    """All three kinds on ``handler``; each calls ``tell`` with its kind and its context."""
    for kind in KINDS:

        def hook(ctx: Any, kind: str = kind) -> None:
            tell(kind, ctx)

        getattr(app, kind)(handler)(hook)


def second_member(kafka: Observer, group: str, topic: str, begins: list[int]) -> App:
    """A member that takes partition 0, notes where its batches begin, and marks nothing."""
    app = make_app(kafka, group, client_id="a")

    @app.topic(topic, manual_offsets=True)
    def take(batch: Any, ctx: Any) -> None:
        begins.append(batch.first_offset)

    return app


# -- which hooks run when, and what their marks do --------------------------------------------------------------------


class Story:
    """A member of two partitions, of which only number 0 has messages; what its handler and hooks did, in order.

    The handler marks nothing, each hook (with ``marks``) tries to mark the third message of the last batch.
    """

    def __init__(self, kafka: Observer, *, marks: bool = True) -> None:
        self.kafka = kafka
        self.marks = marks
        self.topic, self.group = kafka.topic(partitions=2), kafka.group()
        kafka.produce(self.topic, range(5), 0)
        self.events: list[tuple[object, ...]] = []
        self.threads: set[str] = set()
        self.app = make_app(kafka, self.group, client_id="m")

        @self.app.topic(self.topic, manual_offsets=True)
        def keep(batch: Any, ctx: Any) -> None:
            ctx.state["message"] = batch[2]
            self.tell("batch", batch.partition)

        hang_hooks(self.app, keep, self.mark)

    def mark(self, kind: str, ctx: Any) -> None:
        self.threads.add(threading.current_thread().name)
        committed = self.kafka.committed(self.group, self.topic)
        still_member = any("m-" in member for member in self.kafka.members(self.group))
        message = ctx.state.get("message")  # None: this partition should have no hook at all
        marked = ctx.mark_as_consumed(message) if self.marks and message else None
        member = "a member" if still_member else "no member"
        self.tell(kind, ctx.partition, ctx.stopping, ctx.revoked, marked, f"committed {committed}", member)

    def tell(self, *event: object) -> None:
        self.events.append(event)

    def batches(self) -> int:
        return sum(event[0] == "batch" for event in self.events)


def test_a_stop_runs_on_shutdown_only_before_the_final_commit_and_the_leaving_and_its_marks_count(
    kafka: Observer,
) -> None:
    story = Story(kafka)
    with running(story.app):
        wait_until(story.batches, message="the batch")
    # One line for partition 0, none for partition 1, which was never handed a batch.
    assert story.events == [
        ("batch", 0),
        ("on_shutdown", 0, True, False, True, "committed None", "a member"),
    ]
    assert kafka.committed(story.group, story.topic) == 3
    assert all("worker" in name for name in story.threads)


def test_a_hand_over_runs_before_revoke_whose_marks_count_then_on_revoked_whose_marks_return_false(
    kafka: Observer,
) -> None:
    story = Story(kafka)
    begins: list[int] = []
    with running(story.app):
        wait_until(story.batches, message="the batch")
        with running(second_member(kafka, story.group, story.topic, begins)):
            wait_until(lambda: begins, message="the new owner")
            wait_until(lambda: len(story.events) >= 3, message="on_revoked")
            told = [event[:6] for event in story.events]
            assert kafka.committed(story.group, story.topic) == 3
    assert told == [
        ("batch", 0),
        ("before_revoke", 0, True, False, True, "committed None"),
        ("on_revoked", 0, False, True, False, "committed 3"),
    ]
    assert begins[0] == 3
    assert all("worker" in name for name in story.threads)


def test_a_loss_runs_on_revoked_only_and_its_marks_return_false(kafka: Observer) -> None:
    story = Story(kafka)
    with running(story.app):
        wait_until(story.batches, message="the batch")
        evict(kafka, story.group)
        wait_until(lambda: story.batches() == 2, message="the member has joined anew")
        wait_until(lambda: len(story.events) >= 3, message="on_revoked")
        assert kafka.committed(story.group, story.topic) is None
    assert sorted(event[:5] for event in story.events[:3]) == [
        ("batch", 0),
        ("batch", 0),
        ("on_revoked", 0, False, True, False),
    ]
    # Once per ownership: the second one has hooks of its own.
    assert [event[:5] for event in story.events[3:]] == [("on_shutdown", 0, True, False, True)]


def test_each_ownership_of_a_partition_has_its_hooks_once(kafka: Observer) -> None:
    story = Story(kafka, marks=False)
    begins: list[int] = []
    with running(story.app):
        for number in (1, 2):
            wait_until(lambda number=number: story.batches() == number, message="the batch")
            begins.clear()
            with running(second_member(kafka, story.group, story.topic, begins)):
                wait_until(lambda: begins, message="the new owner")
        wait_until(lambda: story.batches() == 3, message="the partition is back")
    kinds = [event[0] for event in story.events]
    ownership = ["batch", "before_revoke", "on_revoked"]
    assert kinds == [*ownership, *ownership, "batch", "on_shutdown"]


# -- never beside a batch ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "hooks"),
    [
        ("stop", ["on_shutdown"]),
        ("hand-over", ["before_revoke", "on_revoked"]),
        ("hand-over past its bound", ["on_revoked"]),
        ("loss", ["on_revoked"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_hook_never_runs_beside_a_batch_and_past_the_bound_before_revoke_is_left_out(
    kafka: Observer, ending: str, hooks: list[str]
) -> None:
    topic, group, gate = kafka.topic(), kafka.group(), Gate()
    kafka.produce(topic, range(5))
    events: list[str] = []
    contexts: list[Any] = []
    begins: list[int] = []
    app = make_app(kafka, group, client_id="m", drain_timeout_ms=500 if "bound" in ending else 60_000)
    second = second_member(kafka, group, topic, begins)

    @app.topic(topic, max_messages=2)
    def hold(batch: Any, ctx: Any) -> None:
        contexts.append(ctx)
        events.append("begin")
        if len(contexts) == 1:
            gate.wait()
            for _ in range(20):  # time for a hook that does not wait
                kafka.members(group)
        events.append("end")

    hang_hooks(app, hold, lambda kind, ctx: events.append(kind))

    with running(app), opened(gate):
        gate.reached()
        if ending == "stop":
            stopping = threading.Thread(target=app.stop)
            stopping.start()
            wait_until(lambda: contexts[0].stopping, message="stopping")
            gate.open()
            stopping.join()
        elif ending == "loss":
            evict(kafka, group)
            wait_until(lambda: contexts[0].revoked, message="the loss")
            gate.open()
            wait_until(lambda: "on_revoked" in events, message="on_revoked")
        else:
            with running(second):
                wait_until(lambda: contexts[0].stopping, message="stopping")
                if "bound" in ending:
                    wait_until(lambda: begins, message="the hand-over past the bound")
                gate.open()
                wait_until(lambda: "on_revoked" in events, message="on_revoked")
    assert events[: 2 + len(hooks)] == ["begin", "end", *hooks]


def test_a_before_revoke_that_takes_longer_than_the_bound_does_not_hold_up_the_hand_over(kafka: Observer) -> None:
    topic, group, gate = kafka.topic(), kafka.group(), Gate()
    kafka.produce(topic, range(5))
    events: list[object] = []
    begins: list[int] = []
    app = make_app(kafka, group, client_id="m", drain_timeout_ms=500)

    @app.topic(topic, manual_offsets=True)
    def keep(batch: Any, ctx: Any) -> None:
        ctx.state["batch"] = batch
        events.append("batch")

    @app.before_revoke(keep)
    def overstay(ctx: Any) -> None:
        batch = ctx.state["batch"]
        events.append((ctx.revoked, ctx.mark_as_consumed(batch[1])))
        gate.wait()
        events.append((ctx.revoked, ctx.mark_as_consumed(batch[4])))

    @app.on_revoked(keep)
    def clean_up(ctx: Any) -> None:
        events.append("on_revoked")

    with running(app), opened(gate):
        wait_until(lambda: events, message="the batch")
        with running(second_member(kafka, group, topic, begins)):
            wait_until(lambda: begins, message="the new owner")
            gate.open()
            wait_until(lambda: "on_revoked" in events, message="on_revoked")
    assert events == ["batch", (False, True), (True, False), "on_revoked"]
    assert begins[0] == 2
    assert kafka.committed(group, topic) == 2


def test_an_on_revoked_that_takes_long_holds_up_the_next_ownership_here_but_not_the_hand_over(kafka: Observer) -> None:
    topic, group, gate = kafka.topic(partitions=2), kafka.group(), Gate()
    kafka.produce(topic, range(5), 0)
    events: list[str] = []
    begins: list[int] = []
    app = make_app(kafka, group, client_id="m", drain_timeout_ms=200_000)

    @app.topic(topic, manual_offsets=True)
    def work(batch: Any, ctx: Any) -> None:
        events.append("beside it" if batch.partition == 1 else "batch")

    @app.on_revoked(work)
    def clean_up(ctx: Any) -> None:
        if ctx.partition == 0:
            gate.wait()
            events.append("cleaned up")

    with running(app), opened(gate):
        wait_until(lambda: events, message="the batch")
        with running(second_member(kafka, group, topic, begins)):
            wait_until(lambda: begins, message="the new owner, although the hook hangs")
        wait_until(lambda: len(kafka.assignment(group)) == 1, message="the partition is back")
        produce_beside(kafka, topic, events)
        assert events.count("batch") == 1
        gate.open()
        wait_until(lambda: events.count("batch") == 2, message="the waiting ownership")
    assert [event for event in events if event != "beside it"] == ["batch", "cleaned up", "batch"]


# -- failures, several hooks, back-off --------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError("no"), SystemExit(5)], ids=repr)
@pytest.mark.parametrize("ending", ["stop", "hand-over"])
def test_an_exception_in_a_hook_is_logged_and_the_others_the_commit_and_the_leaving_still_happen(
    kafka: Observer, caplog: pytest.LogCaptureFixture, ending: str, error: BaseException
) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(5))
    events: list[str] = []
    begins: list[int] = []
    app = make_app(kafka, group, client_id="m")

    @app.topic(topic, manual_offsets=True)
    def work(batch: Any, ctx: Any) -> None:
        ctx.mark_as_consumed(batch[2])
        events.append("batch")

    for kind in KINDS:

        def break_down(ctx: Any) -> None:
            raise error

        getattr(app, kind)(work)(break_down)
    hang_hooks(app, work, lambda kind, ctx: events.append(kind))

    with running(app):
        wait_until(lambda: events, message="the batch")
        if ending == "stop":
            assert app.stop()
            assert kafka.members(group) == []
        else:
            with running(second_member(kafka, group, topic, begins)):
                wait_until(lambda: begins, message="the new owner")
                wait_until(lambda: "on_revoked" in events, message="on_revoked")
                assert begins[0] == 3
    expected = {"stop": ["on_shutdown"], "hand-over": ["before_revoke", "on_revoked"]}[ending]
    assert events[: 1 + len(expected)] == ["batch", *expected]
    assert kafka.committed(group, topic) == 3
    logged = [record for record in caplog.records if "break_down" in record.getMessage()]
    assert len(logged) >= len(expected)
    assert logged[0].exc_info
    assert logged[0].exc_info[1] is error
    assert f"{topic}-0" in logged[0].getMessage()


def test_hooks_stack_several_of_a_kind_and_one_function_for_several_kinds(kafka: Observer) -> None:
    topics, group = [kafka.topic(), kafka.topic()], kafka.group()
    for topic in topics:
        kafka.produce(topic, range(3))
    events: list[tuple[str, str]] = []
    app = make_app(kafka, group)

    @app.topic(*topics)
    def work(batch: Any, ctx: Any) -> None:
        events.append(("batch", ctx.topic))

    @app.on_shutdown(work)
    @app.before_revoke(work)
    @app.on_revoked(work)
    def first(ctx: Any) -> None:
        events.append(("first", ctx.topic))

    @app.on_shutdown(work)
    def second(ctx: Any) -> None:
        events.append(("second", ctx.topic))

    with running(app):
        wait_until(lambda: len(events) == 2, message="a batch of each topic")
        evict(kafka, group)
        wait_until(lambda: len([name for name, _ in events if name == "batch"]) >= 4, message="joined anew")
        wait_until(lambda: len([name for name, _ in events if name == "first"]) == 2, message="on_revoked")
        events.clear()
    for topic in topics:
        assert [name for name, of_topic in events if of_topic == topic] == ["first", "second"]


def test_on_shutdown_also_runs_for_a_partition_that_waits_in_back_off(kafka: Observer) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(5))
    events: list[object] = []
    kept: list[Any] = []
    app = make_app(kafka, group)

    @app.topic(topic, manual_offsets=True, backoff_ms=600_000, backoff_max_ms=600_000)
    def fail(batch: Any, ctx: Any) -> None:
        kept.append(batch[1])
        ctx.mark_as_consumed(batch[0])
        events.append("failed")
        raise RuntimeError("not today")

    @app.on_shutdown(fail)
    def flush(ctx: Any) -> None:
        events.append(("on_shutdown", dict(ctx.state), ctx.mark_as_consumed(kept[0])))

    app.start()
    wait_until(lambda: events, message="the failure")
    assert app.stop()
    assert events == ["failed", ("on_shutdown", {}, True)]
    assert kafka.committed(group, topic) == 2
