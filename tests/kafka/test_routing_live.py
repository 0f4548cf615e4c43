"""The promises of "App and routing" and "Batch and Message" that only a real Kafka can judge."""

from __future__ import annotations

import datetime
import gc
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from support.harness import QUICK, make_app, running
from support.observer import Observer, wait_until

from karafka_lite import App, Batch, BrokerUnavailableError, Context, DeserializationError
from karafka_lite.client.consumer import Client

NOBODY = "127.0.0.1:1"  # no broker there


def offsets(batch: Batch) -> list[int]:
    return [message.offset for message in batch]


def topics_of(kafka: Observer) -> set[str]:
    """The topics that exist; asking for all of them creates none."""
    return set(AdminClient({"bootstrap.servers": kafka.bootstrap_servers}).list_topics(timeout=30).topics)


# -- routes -----------------------------------------------------------------------------------------------------------


def test_making_an_app_and_decorating_functions_never_touches_the_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        app = App("group", bootstrap_servers=f"127.0.0.1:{server.getsockname()[1]}")

        @app.topic("topic")
        def store(batch: Batch, ctx: Context) -> None: ...

        @app.on_shutdown(store)
        def flush(ctx: Context) -> None: ...

        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_one_handler_consumes_several_topics_and_each_batch_is_of_one_partition_in_offset_order(
    kafka: Observer,
) -> None:
    topics = [kafka.topic(2), kafka.topic()]
    places = [(topics[0], 0), (topics[0], 1), (topics[1], 0)]
    for topic, partition in places:
        kafka.produce(topic, [f"{topic}-{partition}-{number}" for number in range(5)], partition)
    handed: list[Batch] = []
    app = make_app(kafka)

    @app.topic(*topics, deserializer=bytes.decode, max_messages=3)
    def store(batch: Batch, ctx: Context) -> None:
        assert (ctx.topic, ctx.partition, ctx.group_id) == (batch.topic, batch.partition, app.config.group_id)
        handed.append(batch)

    with running(app):
        wait_until(lambda: sum(map(len, handed)) == 15, message="all messages")
    for batch in handed:
        assert {(message.topic, message.partition) for message in batch} == {(batch.topic, batch.partition)}
        assert batch.payloads == tuple(str(message).replace("@", "-") for message in batch)
    for place in places:
        assert [offset for batch in handed if (batch.topic, batch.partition) == place for offset in offsets(batch)] == [
            *range(5)
        ]


def test_the_same_topic_in_two_groups_of_one_app_is_consumed_by_both_and_each_commits_on_its_own(
    kafka: Observer,
) -> None:
    topic, group, audit = kafka.topic(), kafka.group(), kafka.group()
    kafka.produce(topic, range(5))
    handed: dict[str, list[int]] = {}
    app = make_app(kafka, group)

    @app.topic(topic, manual_offsets=True)
    def store(batch: Batch, ctx: Context) -> None:
        handed[ctx.group_id] = offsets(batch)
        ctx.mark_as_consumed(batch[1])

    @app.topic(topic, group_id=audit)
    def check(batch: Batch, ctx: Context) -> None:
        handed[ctx.group_id] = offsets(batch)

    with running(app):
        wait_until(lambda: len(handed) == 2, message="a batch in both groups")
        assert len(kafka.members(group)) == len(kafka.members(audit)) == 1
    assert handed == {group: [0, 1, 2, 3, 4], audit: [0, 1, 2, 3, 4]}
    assert (kafka.committed(group, topic), kafka.committed(audit, topic)) == (2, 5)


def test_partitions_run_side_by_side_and_one_partition_never_beside_itself(kafka: Observer) -> None:
    topic = kafka.topic(2)
    for partition in (0, 1):
        kafka.produce(topic, range(20), partition)
    both = threading.Barrier(2)
    inside: set[int] = set()
    done: list[int] = []
    twice: list[int] = []
    app = make_app(kafka, concurrency=5)

    @app.topic(topic, max_messages=1)
    def store(batch: Batch, ctx: Context) -> None:
        if ctx.partition in inside:
            twice.append(ctx.partition)
        inside.add(ctx.partition)
        both.wait(30)  # goes on only when the other partition is inside as well
        inside.discard(ctx.partition)
        done.append(batch.last_offset)

    with running(app):
        wait_until(lambda: len(done) == 40, message="all messages")
    assert twice == []


# -- how much at once -------------------------------------------------------------------------------------------------


def test_max_messages_bounds_a_batch_and_nothing_is_left_out(kafka: Observer) -> None:
    topic, sizes = kafka.topic(), []
    kafka.produce(topic, range(1200))
    seen: list[int] = []
    app = make_app(kafka)

    @app.topic(topic, max_messages=7)
    def store(batch: Batch, ctx: Context) -> None:
        sizes.append(len(batch))
        seen.extend(offsets(batch))

    with running(app):
        wait_until(lambda: seen[-1:] == [1199], message="the last message")
    assert seen == list(range(1200))
    assert max(sizes) == 7


def test_batch_timeout_waits_for_more_messages_before_it_hands_over_what_is_there(kafka: Observer) -> None:
    topic, group = kafka.topic(), kafka.group()
    handed: list[tuple[float, list[int]]] = []
    app = make_app(kafka, group)

    @app.topic(topic, batch_timeout_ms=700, max_messages=100)
    def store(batch: Batch, ctx: Context) -> None:
        handed.append((time.monotonic(), offsets(batch)))

    with running(app):
        wait_until(lambda: any(kafka.assignment(group).values()), message="the assignment")
        began = time.monotonic()
        kafka.produce(topic, ["x"])
        wait_until(lambda: handed, message="the batch")
    assert handed[0][0] - began >= 0.7
    assert handed[0][1] == [0]


def test_batch_timeout_gathers_messages_that_come_one_by_one_and_hands_over_early_when_full(kafka: Observer) -> None:
    topic, group = kafka.topic(), kafka.group()
    handed: list[list[int]] = []
    app = make_app(kafka, group)

    @app.topic(topic, batch_timeout_ms=600_000, max_messages=3)
    def store(batch: Batch, ctx: Context) -> None:
        handed.append(offsets(batch))

    with running(app):
        wait_until(lambda: any(kafka.assignment(group).values()), message="the assignment")
        for _ in range(7):
            kafka.produce(topic, ["x"])
        wait_until(lambda: len(handed) == 2, message="two full batches")
    assert handed == [[0, 1, 2], [3, 4, 5]], "the seventh waits for company, and is left to the next start"
    assert kafka.committed(group, topic) == 6


def test_without_batch_timeout_what_is_there_is_handed_over_at_once(kafka: Observer) -> None:
    topic, handed = kafka.topic(), []
    app = make_app(kafka)

    @app.topic(topic, max_messages=500)
    def store(batch: Batch, ctx: Context) -> None:
        handed.extend(offsets(batch))

    with running(app):
        for number in range(3):
            kafka.produce(topic, ["x"])
            wait_until(lambda number=number: handed == [*range(number + 1)], message=f"message {number} alone")


def test_lag_is_what_lies_between_the_batch_and_the_end_of_the_partition_when_it_was_fetched(kafka: Observer) -> None:
    topic = kafka.topic()
    kafka.produce(topic, range(10))
    lags: list[tuple[int, int]] = []
    app = make_app(kafka)

    @app.topic(topic, max_messages=4)
    def store(batch: Batch, ctx: Context) -> None:
        lags.append((batch.last_offset, batch.lag))

    with running(app):
        wait_until(lambda: len(lags) == 3, message="three batches")
        kafka.produce(topic, range(2))
        wait_until(lambda: lags[-1][0] == 11, message="the new ones")
    assert lags[:3] == [(3, 6), (7, 2), (9, 0)]
    assert lags[-1] == (11, 0)


# -- what a message carries -------------------------------------------------------------------------------------------


def test_a_message_carries_key_value_headers_timestamp_and_place_as_kafka_has_them(kafka: Observer) -> None:
    topic = kafka.topic(2)
    headers = [("trace", b"\x00\xff"), ("trace", b"again"), ("empty", b"")]
    kafka.produce(topic, [{"id": 1}], 1, keys=[b"\x00key"], timestamps=[1234567890123], headers=headers)
    kafka.produce(topic, [b""], 1, timestamps=[1])
    names = ("topic", "partition", "offset", "key", "value", "headers", "timestamp_ms", "tombstone", "next_offset")
    got: list[dict[str, Any]] = []
    app = make_app(kafka)

    @app.topic(topic)
    def store(batch: Batch, ctx: Context) -> None:
        got.extend({name: getattr(message, name) for name in names} for message in batch)

    with running(app):
        wait_until(lambda: len(got) == 2, message="two messages")
    place = {"topic": topic, "partition": 1, "tombstone": False}
    first = {"offset": 0, "next_offset": 1, "key": b"\x00key", "value": b'{"id": 1}', "timestamp_ms": 1234567890123}
    second = {"offset": 1, "next_offset": 2, "key": None, "value": b"", "timestamp_ms": 1}
    assert got == [{**place, **first, "headers": headers}, {**place, **second, "headers": []}]


def test_a_timestamp_is_the_brokers_time_where_the_topic_says_log_append_time(kafka: Observer) -> None:
    topic, got = kafka.topic(message_timestamp_type="LogAppendTime"), []
    before = int(datetime.datetime.now().timestamp() * 1000)
    kafka.produce(topic, ["x"], timestamps=[1000])
    app = make_app(kafka)

    @app.topic(topic)
    def store(batch: Batch, ctx: Context) -> None:
        got.append(batch.first.timestamp_ms)

    with running(app):
        wait_until(lambda: got, message="a message")
    assert got[0] >= before


def test_a_tombstone_has_no_value_and_no_payload_and_is_no_decoding_failure(kafka: Observer) -> None:
    topic, group, got = kafka.topic(), kafka.group(), []
    kafka.produce(topic, [{"id": 1}, None, b"null"], keys="k")
    app = make_app(kafka, group)

    @app.topic(topic)
    def store(batch: Batch, ctx: Context) -> None:
        got.extend((message.tombstone, message.value, message.payload) for message in batch)

    with running(app):
        wait_until(lambda: len(got) == 3, message="three messages")
    assert got == [(False, b'{"id": 1}', {"id": 1}), (True, None, None), (False, b"null", None)]
    assert kafka.committed(group, topic) == 3


def test_a_payload_that_cannot_be_decoded_raises_at_each_access_in_the_handler_and_its_value_stays_readable(
    kafka: Observer,
) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, [{"id": 1}, b"\xff{", {"id": 2}])
    got: list[object] = []
    app = make_app(kafka, group)

    @app.topic(topic, manual_offsets=True)
    def store(batch: Batch, ctx: Context) -> None:
        bad = batch[1]
        for _ in range(2):
            with pytest.raises(DeserializationError, match=f"{topic}-0@1: ") as caught:
                _ = bad.payload
            got.append(type(caught.value.__cause__))
        got.extend([batch.values, batch[0].payload, batch[2].payload, ctx.mark_as_consumed(bad)])

    with running(app):
        wait_until(lambda: len(got) == 6, message="a handler that was not interrupted")
    assert got == [UnicodeDecodeError] * 2 + [(b'{"id": 1}', b"\xff{", b'{"id": 2}'), {"id": 1}, {"id": 2}, True]
    assert kafka.committed(group, topic) == 2


# -- offsets with holes -----------------------------------------------------------------------------------------------


def transactions(kafka: Observer, topic: str, *commits: bool) -> None:
    """For each of ``commits`` two messages in a transaction, committed or aborted; each leaves a marker behind."""
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": kafka.name("tx")})
    producer.init_transactions(30)
    for number, commit in enumerate(commits, 1):
        producer.begin_transaction()
        for place in range(2):
            producer.produce(topic, f"{number}.{place}".encode(), partition=0)
        producer.flush(30)
        (producer.commit_transaction if commit else producer.abort_transaction)(30)
        wait_until(lambda end=number * 3: kafka.end_offset(topic) == end, message="the marker, which is written later")


def test_transaction_markers_are_holes_in_a_batch_that_marks_and_commits_step_over(kafka: Observer) -> None:
    topic, group = kafka.topic(), kafka.group()
    transactions(kafka, topic, True, True)
    handed: list[list[int]] = []
    lags: list[int] = []
    app = make_app(kafka, group)

    @app.topic(topic)
    def store(batch: Batch, ctx: Context) -> None:
        handed.append(offsets(batch))
        lags.append(batch.lag)

    with running(app):
        wait_until(
            lambda: [offset for batch in handed for offset in batch] == [0, 1, 3, 4],
            message="the messages of both transactions",
        )
    assert kafka.committed(group, topic) == 5, "behind the last message, or behind the marker that follows it"

    with running(app):
        kafka.produce(topic, ["x"])
        wait_until(lambda: handed[-1] == [6], message="the message behind the marker")
    assert [offset for batch in handed for offset in batch] == [0, 1, 3, 4, 6]
    assert kafka.committed(group, topic) == 7


def test_a_mark_before_a_transaction_marker_is_where_the_next_start_goes_on(kafka: Observer) -> None:
    topic, group = kafka.topic(), kafka.group()
    transactions(kafka, topic, True, True)
    handed: list[list[int]] = []
    app = make_app(kafka, group)

    @app.topic(topic, manual_offsets=True)
    def store(batch: Batch, ctx: Context) -> None:
        handed.append(offsets(batch))
        assert ctx.mark_as_consumed(batch[1 if len(handed) == 1 else 0])

    with running(app):
        wait_until(lambda: len(handed) == 1, message="the first start")
    assert kafka.committed(group, topic) == 2
    with running(app):
        wait_until(lambda: len(handed) == 2, message="the second start")
    assert handed == [[0, 1, 3, 4], [3, 4]]
    assert kafka.committed(group, topic) == 4


def test_read_committed_never_hands_over_what_was_aborted(kafka: Observer) -> None:
    topic, group, handed = kafka.topic(), kafka.group(), []
    transactions(kafka, topic, True, False, True)
    app = make_app(kafka, group, isolation_level="read_committed")

    @app.topic(topic, deserializer=bytes.decode)
    def store(batch: Batch, ctx: Context) -> None:
        handed.extend(batch.payloads)

    with running(app):
        wait_until(lambda: handed[-1:] == ["3.1"], message="the last message")
    assert handed == ["1.0", "1.1", "3.0", "3.1"]
    assert kafka.committed(group, topic) == 8


def test_an_ownership_begins_at_the_first_message_that_still_exists(kafka: Observer) -> None:
    topic, group, handed = kafka.topic(), kafka.group(), []
    kafka.produce(topic, range(5))
    admin, place = AdminClient({"bootstrap.servers": kafka.bootstrap_servers}), TopicPartition(topic, 0, 3)
    admin.delete_records([place])[place].result(30)
    app = make_app(kafka, group)

    @app.topic(topic)
    def store(batch: Batch, ctx: Context) -> None:
        handed.extend(offsets(batch))

    with running(app):
        wait_until(lambda: handed == [3, 4], message="what is left")
    assert kafka.committed(group, topic) == 5


# -- topics that do not exist -----------------------------------------------------------------------------------------


def test_a_missing_topic_is_said_once_and_waited_for_and_consumed_once_it_is_created(
    kafka: Observer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing, topic, group = kafka.name("missing"), kafka.topic(), kafka.group()
    looks: list[set[str]] = []
    missing_topics = Client.missing_topics
    monkeypatch.setattr(
        Client,
        "missing_topics",
        lambda *given: looks.append(missing_topics(*given)) or looks[-1],  # type: ignore[func-returns-value]
    )
    app = make_app(kafka, group, auto_commit_interval_ms=50)

    @app.topic(missing, topic)
    def store(batch: Batch, ctx: Context) -> None: ...

    with running(app):
        kafka.produce(topic, range(3))
        wait_until(lambda: kafka.committed(group, topic) == 3, message="the topic that exists is consumed meanwhile")
        wait_until(lambda: len(looks) >= 4, message="it is looked for again and again")
        assert missing not in topics_of(kafka), "subscribing creates nothing, although the broker would allow it"
        said = [record.getMessage() for record in caplog.records if missing in record.getMessage()]
        assert len(said) == 1
        assert "waiting for missing topics" in said[0]
        kafka.topic(name=missing)
        kafka.produce(missing, range(2))
        wait_until(lambda: kafka.committed(group, missing) == 2, message="the created topic is consumed")
        kafka.produce(topic, range(3))
        wait_until(lambda: kafka.committed(group, topic) == 6, message="the other one still is")


def test_an_app_all_of_whose_topics_are_missing_waits_for_them_and_can_be_stopped(
    kafka: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    missing, group = kafka.name("missing"), kafka.group()
    app = make_app(kafka, group, auto_commit_interval_ms=50)

    @app.topic(missing)
    def store(batch: Batch, ctx: Context) -> None: ...

    with running(app):
        wait_until(lambda: missing in caplog.text, message="the warning")
        assert app.stop() is True
    assert missing not in topics_of(kafka)

    with running(app):
        kafka.topic(name=missing)
        kafka.produce(missing, range(2))
        wait_until(lambda: kafka.committed(group, missing) == 2, message="the created topic is consumed")


def test_a_missing_topic_is_created_where_the_app_allows_it(kafka: Observer) -> None:
    missing, group = kafka.name("missing"), kafka.group()
    app = make_app(kafka, group, allow_auto_create_topics=True, auto_commit_interval_ms=50)

    @app.topic(missing)
    def store(batch: Batch, ctx: Context) -> None: ...

    with running(app):
        wait_until(lambda: missing in topics_of(kafka), message="the topic")
        kafka.topics.append(missing)
        kafka.produce(missing, range(2), 0)
        wait_until(lambda: kafka.committed(group, missing) == 2, message="its messages are consumed")


# -- which brokers ----------------------------------------------------------------------------------------------------


@pytest.fixture
def leaky_sockets(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """kafka-python leaves the socket of a refused connection to the garbage collector: it comes here, not later."""
    yield
    caplog.get_records("call").clear()  # they hold errors, and these the sockets
    gc.collect()


@pytest.mark.usefixtures("leaky_sockets")
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.parametrize(
    "shape",
    [
        str,
        lambda servers: [servers],
        lambda servers: f"{NOBODY}, {servers}",
        lambda servers: [NOBODY, servers],
    ],
    ids=["str", "list", "two in a str", "list of two"],
)
def test_bootstrap_servers_are_a_str_or_a_list_and_one_that_answers_is_enough(kafka: Observer, shape: Any) -> None:
    topic, handed = kafka.topic(), []
    kafka.produce(topic, ["x"])
    app = App(kafka.group(), bootstrap_servers=shape(kafka.bootstrap_servers), **QUICK)

    @app.topic(topic)
    def store(batch: Batch, ctx: Context) -> None:
        handed.append(batch.last_offset)

    with running(app):
        wait_until(lambda: handed, message="a message")


@pytest.mark.usefixtures("leaky_sockets")
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_the_environment_wins_over_the_argument_and_the_broker_option_over_both(
    kafka: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic, handed = kafka.topic(), []
    kafka.produce(topic, ["x"])
    app = App(kafka.group(), bootstrap_servers=NOBODY, bootstrap_timeout_ms=300, **QUICK)

    @app.topic(topic)
    def store(batch: Batch, ctx: Context) -> None:
        handed.append(batch.last_offset)

    def starts() -> None:
        handed.clear()
        kafka.produce(topic, ["x"])
        with running(app):
            wait_until(lambda: handed, message="a message")

    def finds_nobody() -> None:
        with pytest.raises(BrokerUnavailableError, match=NOBODY):
            app.start()

    finds_nobody()
    monkeypatch.setenv("KARAFKA_LITE_BOOTSTRAP_SERVERS", kafka.bootstrap_servers)
    starts()
    app.override(bootstrap_servers=NOBODY)
    finds_nobody()
    monkeypatch.setenv("KARAFKA_LITE_BOOTSTRAP_SERVERS", NOBODY)
    app.override(bootstrap_servers=kafka.bootstrap_servers)
    starts()
