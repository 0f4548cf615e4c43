"""``karafka-lite read``: what is in a topic, as JSON lines."""

from __future__ import annotations

import argparse
import base64
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from kafka import KafkaProducer
from support.command import command, process, refused, rows, write_app
from support.observer import Observer, wait_until
from support.partitions import Record

from karafka_lite.broker import EmbeddedBroker
from karafka_lite.cli.cluster import Cluster, connected
from karafka_lite.cli.read import _spans, line
from karafka_lite.client.browser import Browser
from karafka_lite.errors import ClusterError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    return tmp_path


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def start(folder: Path, *argv: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "karafka_lite", "read", *argv]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_it_prints_everything_from_the_start_to_where_the_end_is_now(kafka: Observer, folder: Path) -> None:
    topic = kafka.topic(2)
    kafka.produce(topic, [{"id": 1}, "é", b"\xff", None], 0, keys=[b"a", "é", b"\xfe", None], timestamps=1000)
    kafka.produce(topic, [7], 1, headers=[("h", b"1"), ("h", b"\xff")], timestamps=2000)
    done = process("-m", "karafka_lite", "read", topic, "--broker", kafka.bootstrap_servers, cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    place = {"topic": topic, "partition": 0, "timestamp_ms": 1000, "headers": []}
    found = sorted(rows(done.stdout), key=lambda row: (row["partition"], row["offset"]))
    assert found == [
        {**place, "offset": 0, "key": "a", "payload": {"id": 1}},
        {**place, "offset": 1, "key": "é", "payload": None, "value_base64": base64_of("é".encode())},
        {**place, "offset": 2, "key": {"base64": base64_of(b"\xfe")}, "payload": None, "value_base64": "/w=="},
        {**place, "offset": 3, "key": None, "payload": None, "value_base64": None},
        {
            **place,
            "partition": 1,
            "offset": 0,
            "timestamp_ms": 2000,
            "key": None,
            "payload": 7,
            "headers": [["h", "1"], ["h", {"base64": "/w=="}]],
        },
    ]
    assert list(rows(done.stdout)[0]) == ["topic", "partition", "offset", "timestamp_ms", "key", "headers", "payload"]


@pytest.mark.parametrize(
    ("value", "payload"),
    [
        (b'{"a": [1.5, null]}', {"a": [1.5, None]}),
        (b' "text" ', "text"),
        (b"0", 0),
        (b"[]", []),
        (b"false", False),
        (b'"\\ud800"', "\ud800"),
        (b"null", None),  # and so with value_base64: it is no tombstone
        (b"NaN", None),
        (b"1e999", None),
        (b"", None),
        (b"[" * 100_000, None),
        (b"9" * 5000, None),
        (b'{"a": 1}\n{"a": 2}', None),
    ],
    ids=repr,
)
def test_a_value_is_json_or_base64(value: bytes, payload: Any) -> None:
    text = line("t", 0, Record(0, 1, None, value))  # type: ignore[arg-type]
    assert text.count(b"\n") == 1
    found = json.loads(text)
    expected = {} if payload is not None else {"value_base64": base64_of(value)}
    assert {name: found[name] for name in found if name in ("payload", "value_base64")} == {
        "payload": payload,
        **expected,
    }


def test_a_header_with_a_name_that_is_no_text_is_json_too() -> None:
    found = json.loads(line("t", 0, Record(0, 1, None, b"1", (("h\udce9", b"v"), ("n", None)))))  # type: ignore[arg-type]
    assert found["headers"] == [["h\udce9", "v"], ["n", None]]


def test_from_count_partition_and_value_choose(kafka: Observer, capsys: pytest.CaptureFixture[str]) -> None:
    topic, now = kafka.topic(2), int(time.time() * 1000)
    kafka.produce(topic, range(5), 0, timestamps=[now - hours * 3_600_000 for hours in (9, 7, 5, 3, 1)])
    kafka.produce(topic, range(10, 13), 1, timestamps=now)
    kafka.truncate(topic, 1, 1)

    def read(*argv: str) -> list[int]:
        ended = command(capsys, "read", topic, "--broker", kafka.bootstrap_servers, *argv)
        assert (ended.code, ended.err) == (0, "")
        return sorted(row["payload"] for row in rows(ended.out))

    assert read() == [0, 1, 2, 3, 4, 11, 12]
    assert read("--from", "-4h") == [3, 4, 11, 12]
    assert read("--from", "latest") == []
    assert read("--from", "2", "--partition", "0") == [2, 3, 4]
    assert read("--from", "0", "--partition", "1") == [11, 12], "what retention has deleted is not there"
    assert read("--from", "4") == [4]
    assert read("--partition", "0", "--count", "2") == [0, 1]
    assert len(read("--count", "6")) == 6
    ended = command(capsys, "read", topic, "--broker", kafka.bootstrap_servers, "--partition", "1", "--value")
    assert ended.out == "11\n12\n"


def test_where_retention_has_overtaken_it_reading_goes_on(embedded_kafka: Observer) -> None:
    topic = embedded_kafka.topic()
    embedded_kafka.produce(topic, range(5))
    embedded_kafka.truncate(topic, 0, 3)
    with closing(Browser([embedded_kafka.bootstrap_servers], {})) as browser:
        browser.connect()
        polls = browser.read({(topic, 0): (0, 5)})
        assert [one.offset for polled in polls for _, records in polled for one in records] == [3, 4]


def test_who_follows_waits_at_the_end_of_a_partition_that_does_not_come_so_far(embedded_kafka: Observer) -> None:
    """An offset that a log does not have would be read from the start."""
    topic = embedded_kafka.topic(2)
    embedded_kafka.produce(topic, range(5), 0)
    arguments = argparse.Namespace(topic=topic, partition=None, start=4, follow=True)
    with connected(Cluster([embedded_kafka.bootstrap_servers], {})) as admin:
        assert _spans(admin, arguments) == {(topic, 0): (4, None), (topic, 1): (0, None)}


def test_it_ends_also_where_no_message_is_at_the_end(kafka: Observer, capsys: pytest.CaptureFixture[str]) -> None:
    """The marker of a transaction takes an offset, too."""
    topic = kafka.topic()
    settings = {"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": kafka.name("writer"), "log_level": 0}
    writer = Producer(settings)
    writer.init_transactions(10)
    writer.begin_transaction()
    writer.produce(topic, b"1")
    writer.commit_transaction(10)
    wait_until(lambda: kafka.end_offset(topic) == 2, message="the marker is written")
    ended = command(capsys, "read", topic, "--broker", kafka.bootstrap_servers, "--value")
    assert (ended.code, ended.out) == (0, "1\n")


def test_it_joins_no_group_follows_and_ends_with_0_at_a_signal(embedded_kafka: Observer, folder: Path) -> None:
    kafka = embedded_kafka
    topic = kafka.topic()
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})

    def groups() -> set[str]:
        return {group.group_id for group in admin.list_consumer_groups().result(10).valid}

    before = groups()
    kafka.produce(topic, ["first"])
    for number in (signal.SIGINT, signal.SIGTERM):
        reader = start(folder, topic, "--broker", kafka.bootstrap_servers, "--follow", "--value", "--from", "-1m")
        with reader:
            assert reader.stdout is not None
            assert reader.stderr is not None
            assert reader.stdout.readline() == b"first\n"
            kafka.produce(topic, ["second"])
            wait_until(lambda reader=reader: reader.stdout.readline() == b"second\n", message="what comes is printed")
            reader.send_signal(number)
            assert reader.wait(20) == 0
            assert reader.stderr.read() == b""
    assert groups() == before


def test_a_closed_pipe_ends_it_quietly(embedded_kafka: Observer, folder: Path) -> None:
    topic = embedded_kafka.topic()
    embedded_kafka.produce(topic, [1])
    with start(folder, topic, "--broker", embedded_kafka.bootstrap_servers, "--follow") as reader:
        assert reader.stdout is not None
        assert reader.stderr is not None
        assert reader.stdout.readline().startswith(b'{"topic"')
        reader.stdout.close()
        embedded_kafka.produce(topic, [2])
        assert reader.wait(20) == 0
        assert reader.stderr.read() == b""


def test_what_cannot_be_read_is_named_with_how_to_go_on(
    embedded_kafka: Observer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kafka = embedded_kafka
    topic = kafka.topic()
    kafka.produce(topic, [1])
    bomb = KafkaProducer(bootstrap_servers=kafka.bootstrap_servers, compression_type="gzip")
    bomb.send(topic, b"x" * 100_000).get(10)
    bomb.close()
    kafka.produce(topic, [2])
    small = write_app(folder, kafka, kafka.group(), topic, max_decompressed_bytes=1000)
    ended = command(capsys, "read", topic, "--app", small, "--value")
    assert (ended.code, ended.out) == (1, "1\n")
    assert ended.err.startswith(f"karafka-lite: {topic}-0@1 cannot be read: a batch of ")
    go_on = f"karafka-lite read {topic} --partition 0 --from 2"
    assert ended.err.endswith(f"To skip it: {go_on}\n")
    assert command(capsys, *go_on.split()[1:], "--app", small, "--value").out == "2\n"


def test_a_broker_that_goes_away_ends_it_in_time_but_not_who_follows() -> None:
    def some(polls: Any) -> list[bytes]:
        return next(found for polled in polls if (found := [one.value for _, records in polled for one in records]))

    with EmbeddedBroker({"orders": 1}) as broker:
        observer, tp = Observer(broker.bootstrap_servers), ("orders", 0)
        observer.produce("orders", ["first"])
        with closing(Browser([broker.bootstrap_servers], {"bootstrap_timeout_ms": 500})) as browser:
            browser.connect()
            following = browser.read({tp: (0, None)})
            assert some(following) == [b"first"]
            broker.down()
            observer.forget_clients()
            down_since = time.monotonic()
            while time.monotonic() < down_since + 1:
                assert next(following) == []
            broker.up()
            observer.produce("orders", ["second"])
            assert some(following) == [b"second"]
            broker.down()
            observer.forget_clients()
            with pytest.raises(ClusterError, match="could not read messages"):
                some(browser.read({tp: (2, 3)}))
            broker.up()


def test_a_mistake_is_one_message(embedded_kafka: Observer, capsys: pytest.CaptureFixture[str]) -> None:
    topic = embedded_kafka.topic(2)
    embedded_kafka.produce(topic, range(3), 0)
    broker = ["--broker", embedded_kafka.bootstrap_servers]
    for argv, words in [
        ([], "required: TOPIC"),
        (["a b", *broker], "'a b' is not a valid topic name"),
        (["missing-topic", *broker], "topic missing-topic does not exist"),
        ([topic, *broker, "--partition", "2"], f"topic {topic} has no partition 2; it has 0 to 1"),
        ([topic, *broker, "--from", "4"], f"--from 4 is past the end of {topic}: 3"),
        ([topic, "--count", "0"], "must be an integer ≥ 1, got '0'"),
        ([topic, "--from", "2026-01-31"], "has no time zone"),
    ]:
        refused(command(capsys, "read", *argv), words)


def test_no_broker_is_exit_3(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "kafka.toml").write_text("bootstrap_timeout_ms = 300\n")
    ended = command(capsys, "read", "orders", "--broker", "127.0.0.1:1", "--config", "kafka.toml")
    assert ended.code == 3
    assert "no broker could be reached at 127.0.0.1:1" in ended.err
    assert os.listdir(folder) == ["kafka.toml"]
