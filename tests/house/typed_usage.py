"""User code that uses every feature, for ``mypy --strict`` only: nothing here is run."""

from __future__ import annotations

import asyncio
import functools
import json
import pickle
from concurrent.futures import Future
from datetime import datetime, timezone
from typing import Any, Generic, TypeVar

from typing_extensions import Self

from karafka_lite import (
    App,
    AsyncContext,
    Batch,
    BrokerUnavailableError,
    CommitError,
    ConfigurationError,
    Context,
    DeserializationError,
    FetchError,
    KarafkaLiteError,
    Message,
    Outgoing,
    ProduceError,
    Router,
    __version__,
    to_json,
)
from karafka_lite.broker.embedded import EmbeddedBroker
from karafka_lite.testing import AsyncRecordingContext, RecordingContext, Run, TestClient, context

T = TypeVar("T")
version: str = __version__

# -- apps and routes ---------------------------------------------------------------------------------------------------

app = App(
    "event-store",
    bootstrap_servers=["kafka1:9092", "kafka2:9092"],
    concurrency=3,
    auto_commit_interval_ms=1000,
    drain_timeout_ms=30_000,
    serializer=to_json,
    auto_offset_reset="latest",
    isolation_level="read_committed",
    security_protocol="SASL_SSL",
    sasl_mechanism="PLAIN",
    sasl_plain_username="me",
    sasl_plain_password="secret",
    max_poll_records=1000,
)


@app.topic("user_events")
def automatic(batch: Batch, ctx: Context) -> None: ...


@app.topic(
    "orders",
    "refunds",
    manual_offsets=True,
    group_id="payments",
    max_messages=100,
    batch_timeout_ms=500,
    deserializer=json,
    backoff_ms=100,
    backoff_max_ms=10_000,
    max_retries=5,
    dead_letter="orders.dead",
)
def manual(batch: Batch, ctx: Context) -> bool:
    """What a handler returns is its own affair."""
    return all(ctx.mark_as_consumed(message) for message in batch)


def decode(data: bytes) -> dict[str, int]:
    return dict.fromkeys(data.decode(), 1)


@app.topic("functions", deserializer=decode, dead_letter=False)
@app.topic("modules", deserializer=pickle)
@app.topic("bytes", deserializer=None)
def several(batch: Batch, ctx: Context) -> None: ...


class Store:
    def write(self, batch: Batch, ctx: Context, table: str = "events") -> None: ...

    def close(self, ctx: Context) -> None: ...


store = Store()
app.topic("methods")(store.write)
app.on_shutdown(store.write)(store.close)
partial = functools.partial(store.write, table="partials")
app.topic("partials")(partial)
app.topic("lambdas")(lambda batch, ctx: print(len(batch), ctx.partition))


@app.on_assigned(manual)
@app.on_shutdown(manual)
@app.before_revoke(manual)
@app.on_revoked(manual)
@app.every(manual, ms=1000)
def hook(ctx: Context) -> int:
    return len(ctx.state)


@app.on_start
@app.on_stop
def connect() -> int:
    return 1


router = Router()
app.include(router)


@router.on_assigned(store.write)
def assigned(ctx: Context) -> None:
    ctx.state["rows"] = []


router.on_start(connect)
pickling = App("pickling", serializer=pickle.dumps)
started: int = connect()

# A decorator returns the function as it was.
unchanged: bool = manual(Batch([Message("orders", 0, 5)]), context("orders"))
unchanged_hook: int = hook(context("orders"))


# -- batches and messages ----------------------------------------------------------------------------------------------


@app.topic("reads")
def read(batch: Batch, ctx: Context) -> None:
    place: tuple[str, int] = (batch.topic, batch.partition)
    ends: list[Message] = [batch.first, batch.last, batch[0], *batch[1:]]
    numbers: list[int] = [batch.first_offset, batch.last_offset, batch.lag, len(batch)]
    payloads: tuple[Any, ...] = batch.payloads
    values: tuple[bytes | None, ...] = batch.values
    for number, message in enumerate(reversed(batch)):
        raw: bytes | None = message.value
        key: bytes | None = message.key
        headers: dict[str, bytes] = dict(message.headers)
        traced: tuple[bytes | None, bytes | int] = (message.header("trace"), message.header("trace", 0))
        when: datetime = datetime.fromtimestamp(message.timestamp_ms / 1000, tz=timezone.utc)
        following: int = message.next_offset
        print(
            number,
            place,
            ends,
            numbers,
            payloads,
            values,
            raw,
            key,
            headers,
            traced,
            when,
            following,
            message.tombstone,
        )
        try:
            print(message.payload["id"])
        except DeserializationError as error:
            print(message.topic, message.partition, message.offset, error)


# -- payloads with a type ----------------------------------------------------------------------------------------------


class Order:
    """As pydantic has it: ``model_validate_json`` of a model."""

    total: int

    @classmethod
    def model_validate_json(cls, data: str | bytes | bytearray, *, strict: bool | None = None) -> Self: ...  # type: ignore[empty-body]


class Decoder(Generic[T]):
    """As msgspec has it: ``msgspec.json.Decoder(T).decode``."""

    def __init__(self, kind: type[T]) -> None: ...
    def decode(self, data: bytes | str, /) -> T: ...  # type: ignore[empty-body]


@app.topic("orders.typed", deserializer=Order.model_validate_json, dead_letter="orders.dead", no_retry=(KeyError,))
def typed(batch: Batch[Order], ctx: Context) -> None:
    orders: tuple[Order, ...] = batch.payloads
    first: Message[Order] = batch.first
    print(sum(message.payload.total for message in ctx.each(batch)), orders[0].total, first.payload.total)


@app.topic("orders.by.key", deserializer=Order.model_validate_json, order="key", concurrency=8)
def by_key(batch: Batch[Order], ctx: Context) -> None:
    print(sum(message.payload.total for message in ctx.each(batch)))


app.topic("orders.in.order", order="partition")(by_key)


@app.topic("orders.decoded", deserializer=Decoder(Order).decode)
def decoded(batch: Batch[Order], ctx: Context) -> None:
    for message in batch:
        print(message.payload.total)


def of_message(message: Message) -> Order: ...  # type: ignore[empty-body]


class Registry:
    def decode(self, message: Message) -> Order: ...  # type: ignore[empty-body]


@router.topic("orders.messages", deserializer=Registry().decode)
@app.topic("orders.headers", deserializer=of_message, dead_letter="orders.dead", exactly_once=True)
def from_messages(batch: Batch[Order], ctx: Context) -> None:
    totals: list[int] = [order.total for order in batch.payloads]
    print(totals)


def plain(batch: Batch, ctx: Context) -> None: ...
def with_schemas(message: Message, schemas: dict[int, str]) -> Order: ...  # type: ignore[empty-body]


app.topic("orders.partial", deserializer=functools.partial(with_schemas, schemas={}))(from_messages)
app.topic("orders.traces", deserializer=lambda message: message.header("trace"))(plain)
app.topic("orders.text", deserializer=lambda value: value.decode())(plain)
made: Order = Message("orders", 0, 5, deserializer=of_message).payload


@app.topic("orders.raw", deserializer=None)
def raw_bytes(batch: Batch[bytes], ctx: Context) -> bytes:
    return b"".join(batch.payloads)


@app.topic("orders.untyped", deserializer=Order.model_validate_json)
def untyped(batch: Batch, ctx: Context) -> None: ...


joined: bytes = raw_bytes(Batch([Message("orders.raw", 0, 5, deserializer=bytes)]), context("orders.raw"))


# -- the context -------------------------------------------------------------------------------------------------------


@app.topic("asks", dead_letter="asks.dead")
def ask(batch: Batch, ctx: Context) -> None:
    where: tuple[str, int, str] = (ctx.topic, ctx.partition, ctx.group_id)
    asked: list[bool] = [ctx.revoked, ctx.stopping, ctx.retrying]
    tries: int = ctx.attempt
    total: int = ctx.state.setdefault("total", 0)
    print(where, asked, tries, total)
    try:
        ours: bool = ctx.mark_as_consumed(batch.last, sync=True, timeout_ms=1000)
        ours = ours and ctx.commit_offsets() and ctx.commit_offsets(sync=True, timeout_ms=1000)
    except CommitError:
        raise
    for message in ctx.each(batch):
        at: Future[tuple[int, int]] = ctx.produce(
            "answers", {"id": 1}, key="me", headers=[("h", b"1")], partition=0, timestamp_ms=1
        )
        ctx.produce("answers", message.value, key=message.key)
        ctx.produce("answers", None, key=b"me")
        many: Future[list[tuple[int, int]]] = ctx.produce_many("answers", [{"id": 1}, Outgoing(None, key="me")])
        print(many.result(timeout=1))
        partition, offset = at.result(timeout=1.5)
        print(partition + offset, ctx.dead_letter(message, "no id").done())
    targets: list[bool] = [ctx.seek(0), ctx.seek("earliest"), ctx.seek("latest"), ctx.seek(datetime.now(timezone.utc))]
    rests: list[bool] = [ctx.pause(500), ctx.pause(0.5, offset=batch.first_offset), ctx.resume()]
    print(targets, rests)


# -- async handlers ----------------------------------------------------------------------------------------------------


@app.topic("async", deserializer=Order.model_validate_json, manual_offsets=True, concurrency=100)
async def awaited(batch: Batch[Order], ctx: AsyncContext) -> None:
    for message in ctx.each(batch):
        total: int = message.payload.total
        ours: bool = ctx.mark_as_consumed(message)
        ours = await ctx.mark_as_consumed(message, sync=True, timeout_ms=1000) and ours
        ours = ours and ctx.commit_offsets() and await ctx.commit_offsets(sync=True)
        sent: asyncio.Future[tuple[int, int]] = ctx.produce("answers", total, key="me")
        partition, offset = await sent
        many: list[tuple[int, int]] = await ctx.produce_many("answers", [1, Outgoing(2, key="me")])
        print(partition + offset, many, await ctx.dead_letter(message, "no id"), ctx.revoked, ctx.state)


@router.topic("async.plain")
async def takes_a_context(batch: Batch, ctx: Context) -> int:
    return len(batch)


@app.every(awaited, ms=1000)
@app.on_assigned(awaited)
@app.on_shutdown(awaited)
async def awaited_hook(ctx: AsyncContext) -> None:
    await ctx.commit_offsets(sync=True)


@app.on_start
async def open_pool() -> None: ...


async def on_a_loop() -> int:
    async with app as entered:
        print(entered.health(), app.stop(wait=False))
    await awaited(Batch([Message("async", 0, 5)]), context("async", asynchronous=True))
    made: AsyncRecordingContext = context("async", 1, asynchronous=True, revoked=True)
    print(made.marks)
    return await app.serve()


# -- running and testing -----------------------------------------------------------------------------------------------


def program() -> int:
    try:
        app.start()
    except (BrokerUnavailableError, ConfigurationError, FetchError, ProduceError, KarafkaLiteError) as error:
        print(error)
    print(app.stop(), app.stop(wait=False), repr(app))
    with app as entered:
        sent: Future[tuple[int, int]] = entered.produce("orders", {"id": 1}, key="a", headers=[("h", b"1")])
        partition, offset = sent.result(timeout=10)
        print(partition + offset, app.produce("orders", None, key=b"a", partition=2, timestamp_ms=1).done())
        rows = (Outgoing(n, b"a", [("h", b"1")], partition=2, timestamp_ms=n) for n in range(3))
        (partition, offset), *_ = app.produce_many("orders", rows).result(timeout=10)
    with EmbeddedBroker({"orders": 3}) as broker:
        other = App("other", bootstrap_servers=broker.bootstrap_servers)
        return other.run()


def test_with_a_client() -> None:
    with TestClient(app, partitions={"orders": 3}) as client:
        placed: tuple[int, int] = client.send("orders", {"id": 1}, key="a", headers=[("h", b"1")], timestamp_ms=1)
        places: list[tuple[int, int]] = client.send_many("orders", [1, "two", b"three", None], partition=2)
        runs: list[Run] = client.run(raise_errors=True)
        run = runs[0]
        told: tuple[list[int], int, str, list[int]] = (run.offsets, run.attempt, run.outcome, run.marks)
        client.advance(ms=1000)
        client.refuse("answers", ProduceError("no"), times=2)
        client.revoke("orders", 0)
        client.assign("orders", 0)
        client.lose("orders", 0)
        offsets: list[int | None] = [client.stored("orders", 0), client.committed("orders", 0, group_id="payments")]
        messages: list[Message] = client.produced("answers") + client.dead_letters("orders.dead")
        client.stop()
        print(placed, places, told, offsets, messages)


def test_as_a_plain_function() -> None:
    ctx: RecordingContext = context("asks", 1, attempt=2, stopping=True, dead_letter="asks.dead", state={"total": 1})
    message = Message("asks", 1, 5, key=b"k", value=b"{}", headers=[("h", b"1")], timestamp_ms=1, deserializer=json)
    ask(Batch([message], end_offset=9), ctx)
    marks: list[int] = ctx.marks
    print(marks, ctx.produced[0].payload, ctx.sought, ctx.paused_ms)
