"""The promises about what is opened and closed: ``on_assigned``, ``on_start`` and ``on_stop``, on a real Kafka."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from support.harness import Gate, evict, make_app, opened, running
from support.observer import Observer, wait_until

from karafka_lite import App, DrainError, Router


class Files:
    """Opens a "file" for each partition, and closes it in all hooks of the end; partition 1 has no messages."""

    def __init__(self, kafka: Observer) -> None:
        self.topic, self.group = kafka.topic(partitions=2), kafka.group()
        kafka.produce(self.topic, range(5), 0)
        self.app = make_app(kafka, self.group, client_id="m")
        self.told: list[tuple[str, int]] = []
        self.open_files: set[int] = set()

        @self.app.topic(self.topic)
        def write(batch: Any, ctx: Any) -> None:
            assert ctx.state["file"] in self.open_files
            self.tell("batch", ctx)

        @self.app.on_assigned(write)
        def open_file(ctx: Any) -> None:
            assert ctx.partition not in self.open_files
            self.open_files.add(ctx.partition)
            ctx.state["file"] = ctx.partition
            self.tell("open", ctx)

        @self.app.on_revoked(write)
        @self.app.on_shutdown(write)
        def close_file(ctx: Any) -> None:
            self.open_files.remove(ctx.state["file"])
            self.tell("close", ctx)

    def tell(self, what: str, ctx: Any) -> None:
        self.told.append((what, ctx.partition))

    def of(self, partition: int) -> list[str]:
        return [what for what, of in self.told if of == partition]


@pytest.mark.test_client
def test_on_assigned_runs_for_each_partition_before_its_first_batch_and_what_it_opened_is_closed_at_the_stop(
    kafka: Observer,
) -> None:
    files = Files(kafka)
    with running(files.app):
        wait_until(lambda: files.of(0) == ["open", "batch"] and files.of(1) == ["open"], message="both are open")
    assert files.of(0) == ["open", "batch", "close"]
    assert files.of(1) == ["open", "close"], "also the one that was handed no batch"


def test_what_on_assigned_opened_is_closed_by_a_hand_over_and_by_a_loss_and_each_ownership_opens_its_own(
    kafka: Observer,
) -> None:
    files = Files(kafka)
    other = make_app(kafka, files.group, client_id="a")
    begins: list[int] = []
    other.topic(files.topic)(lambda batch, ctx: None)
    with running(files.app):
        wait_until(lambda: files.of(0) == ["open", "batch"] and files.of(1) == ["open"], message="both are open")
        with running(other):
            wait_until(lambda: files.of(0) == ["open", "batch", "close"], message="partition 0 is closed")
            wait_until(lambda: files.of(1) == ["open", "close", "open"], message="partition 1 is owned anew")
        wait_until(lambda: files.open_files == {0, 1}, message="both are back")
        evict(kafka, files.group)
        wait_until(lambda: files.of(1)[-2:] == ["close", "open"], message="closed and opened after the loss")
        wait_until(lambda: files.open_files == {0, 1}, message="both are back again")
    assert not files.open_files
    assert begins == []


@pytest.mark.test_client
def test_on_assigned_that_raises_is_called_again_after_the_back_off_alone_and_no_batch_comes_before(
    kafka: Observer,
) -> None:
    topic = kafka.topic(partitions=2)
    for partition in (0, 1):
        kafka.produce(topic, range(3), partition)
    app, told = make_app(kafka), list[tuple[object, ...]]()

    @app.topic(topic, backoff_ms=50)
    def store(batch: Any, ctx: Any) -> None:
        told.append(("batch", ctx.partition, batch.first_offset))

    @app.on_assigned(store)
    def connect(ctx: Any) -> None:
        told.append(("connect", ctx.partition, ctx.attempt))
        if ctx.partition == 0 and ctx.attempt < 3:
            raise OSError("no database")

    @app.on_assigned(store)
    def prepare(ctx: Any) -> None:
        told.append(("prepare", ctx.partition, ctx.attempt))

    with running(app):
        wait_until(lambda: ("batch", 0, 0) in told and ("batch", 1, 0) in told, message="both partitions")
    assert [(what, number) for what, partition, number in told if partition == 0] == [
        *(("connect", 1), ("connect", 2), ("connect", 3)),
        *(("prepare", 1), ("batch", 0)),
    ]
    assert [(what, number) for what, partition, number in told if partition == 1] == [
        *(("connect", 1), ("prepare", 1), ("batch", 0)),
    ]


def test_where_on_assigned_seeks_the_first_batch_begins(kafka: Observer) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(10))
    app, begins = make_app(kafka, group), list[int]()

    @app.topic(topic)
    def store(batch: Any, ctx: Any) -> None:
        begins.append(batch.first_offset)

    app.on_assigned(store)(lambda ctx: ctx.seek(7))
    with running(app):
        wait_until(lambda: begins, message="a batch")
    assert begins == [7]
    assert kafka.committed(group, topic) == 10


def test_a_stop_waits_for_on_assigned_and_closes_what_it_has_opened_meanwhile(kafka: Observer) -> None:
    topic, gate, told = kafka.topic(), Gate(), list[str]()
    app = make_app(kafka)
    app.topic(topic)(store_nothing)

    @app.on_assigned(store_nothing)
    def connect(ctx: Any) -> None:
        gate.wait()
        told.append(f"open stopping={ctx.stopping}")

    app.on_shutdown(store_nothing)(lambda ctx: told.append("close"))
    with opened(gate):
        app.start()
        gate.reached()
        stop = threading.Thread(target=app.stop)
        stop.start()
        wait_until(lambda: app.members[0].group.stopping, message="the stop has begun")
        gate.open()
        stop.join(20)
    assert told == ["open stopping=True", "close"]


def store_nothing(batch: Any, ctx: Any) -> None: ...


def test_a_drain_waits_for_on_assigned_and_names_what_it_raised_if_it_never_returns(kafka: Observer) -> None:
    topic = kafka.topic(partitions=2)
    kafka.produce(topic, range(3), 0)
    app, told = make_app(kafka), list[int]()
    app.topic(topic, backoff_ms=50)(store_nothing)

    @app.on_assigned(store_nothing)
    def connect(ctx: Any) -> None:
        told.append(ctx.attempt)
        if broken:
            raise OSError("no database")

    broken = True
    with pytest.raises(DrainError) as raised:
        app.drain(idle_timeout_ms=300)
    assert raised.value.errors == {(topic, n): "on_assigned: OSError: no database" for n in (0, 1)}
    broken = False
    told.clear()
    drained = app.drain(idle_timeout_ms=20_000)
    assert (drained.messages, told) == (3, [1, 1])


# -- once in a process


def test_on_start_is_called_before_the_group_joins_and_on_stop_after_it_has_left(kafka: Observer) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(3))
    orders, app, told = Router(), make_app(kafka, group), list[object]()
    app.include(orders)
    app.on_start(lambda: told.append(("start", kafka.members(group))))
    orders.on_stop(lambda: told.append(("stop", kafka.members(group))))
    orders.topic(topic)(lambda batch, ctx: told.append(len(batch)))
    with running(app):
        wait_until(lambda: len(told) == 2, message="the batch")
    assert told == [("start", []), 3, ("stop", [])]
    assert kafka.committed(group, topic) == 3


def test_a_drain_calls_both_and_raises_what_on_start_raises(kafka: Observer) -> None:
    topic = kafka.topic()
    kafka.produce(topic, range(3))
    app, told = make_app(kafka), list[str]()
    app.topic(topic)(store_nothing)

    @app.on_start
    def connect() -> None:
        told.append("start")
        if len(told) == 1:
            raise OSError("no database")

    app.on_stop(lambda: told.append("stop"))
    with pytest.raises(OSError, match="no database"):
        app.drain()
    assert app.drain().messages == 3
    assert told == ["start", "start", "stop"]


def test_a_hook_that_asks_for_the_stop_does_not_wait_for_it(kafka: Observer) -> None:
    app = make_app(kafka)
    app.topic(kafka.topic())(store_nothing)
    answers: list[bool] = []
    app.on_start(lambda: answers.append(app.stop()))
    app.on_stop(lambda: answers.append(app.stop()))
    assert app.run() == 0
    assert answers == [True, True]


def test_without_a_broker_what_on_start_opened_is_closed() -> None:
    app, told = App("group", bootstrap_servers="127.0.0.1:9", bootstrap_timeout_ms=100), list[str]()
    app.topic("orders")(store_nothing)
    app.on_start(lambda: told.append("start"))
    app.on_stop(lambda: told.append("stop"))
    assert app.run() == 3
    assert told == ["start", "stop"]
