"""``karafka-lite reset``: another client sees what was committed, and an App begins there."""

from __future__ import annotations

import re
import shlex
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaProducer
from support.command import Terminal, command, process, refused, rows, write_app
from support.harness import make_app, running
from support.observer import Observer, wait_until


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    return tmp_path


def commits(kafka: Observer, group: str, topic: str, partitions: int) -> list[int | None]:
    return [kafka.committed(group, topic, partition) for partition in range(partitions)]


def test_an_app_begins_where_it_was_reset_to_and_another_client_sees_that_commit(
    kafka: Observer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    topic, group, now = kafka.topic(2), kafka.group(), int(time.time() * 1000)
    for partition, ages in enumerate(([9, 5, 3, 1], [9, 1])):  # in hours
        kafka.produce(topic, range(len(ages)), partition, timestamps=[now - age * 3_600_000 for age in ages])
    app = write_app(folder, kafka, group, topic)
    began: list[tuple[int, int]] = []
    worker = make_app(kafka, group)

    @worker.topic(topic)
    def work(batch: Any, ctx: Any) -> None:
        began.append((batch.partition, batch.first_offset))

    worker.drain()
    assert commits(kafka, group, topic, 2) == [4, 2]
    of_a_member = kafka.commit_metadata(group, topic)

    done = process("-m", "karafka_lite", "reset", app, "--to", "-4h", "--yes", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"committed for group {group}: 2 partitions\n"
    assert [(row["partition"], row["committed"], row["to"], row["end"]) for row in rows(done.stdout)] == [
        (0, 4, 2, 4),
        (1, 2, 1, 2),
    ]
    assert commits(kafka, group, topic, 2) == [2, 1]
    assert kafka.commit_metadata(group, topic) == of_a_member, "it says of which topic it is, and since when"
    began.clear()
    worker.drain()
    assert sorted(began) == [(0, 2), (1, 1)]

    when = datetime.fromtimestamp((now - 6 * 3_600_000) / 1000, timezone.utc).isoformat()
    for to, expected in [
        (["earliest"], [0, 0]),
        (["latest"], [4, 2]),
        ([when, "--topic", topic], [1, 1]),
        (["3", "--partition", "0"], [3, 1]),
        (["2099-01-01T00:00Z"], [4, 2]),
        (["1900-01-01T00:00Z", "--partition", "1"], [4, 0]),
    ]:
        assert command(capsys, "reset", app, "--yes", "--to", *to).code == 0
        assert commits(kafka, group, topic, 2) == expected, to

    began.clear()
    with running(worker):
        wait_until(lambda: (1, 0) in began, message="it has joined, and works")
        ended = command(capsys, "reset", app, "--to", "earliest", "--yes")
        refused(ended, f"group {group} has members: karafka-lite-", "Stop them first; nothing was changed")
    assert commits(kafka, group, topic, 2) == [4, 2]


def test_a_group_without_an_app_keeps_what_its_commits_say_of_the_topic(
    kafka: Observer, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a commit of a topic that was deleted becomes one of the topic that was made anew, inside its log."""
    topic, group = kafka.topic(3), kafka.group()
    kafka.produce(topic, range(4), 0)
    argv = ["--group", group, "--broker", kafka.bootstrap_servers, "--yes"]
    started_with, old = "karafka-lite::2", f"karafka-lite:{'A' * 22}:2"
    kafka.commit(group, topic, 1, 0, metadata=started_with)
    assert command(capsys, "reset", *argv, "--to", "latest").code == 0
    assert commits(kafka, group, topic, 3) == [4, 0, 0]
    topic_id = kafka.commit_metadata(group, topic).split(":")[1]
    assert len(topic_id) == 22
    for partition in range(3):
        assert kafka.commit_metadata(group, topic, partition) == f"karafka-lite:{topic_id}:2", "partition 2 is younger"

    kafka.commit(group, topic, 1, 0, metadata=old)
    assert command(capsys, "reset", *argv, "--to", "3", "--topic", topic, "--partition", "0").code == 0
    assert kafka.commit_metadata(group, topic) == f"karafka-lite:{topic_id}:0"
    worker = make_app(kafka, group)
    begun: list[int] = []

    @worker.topic(topic)
    def work(batch: Any, ctx: Any) -> None:
        begun.append(batch.first_offset)

    worker.drain()
    assert begun == [3]


def test_what_cannot_be_read_is_skipped_by_the_command_that_the_log_names(
    kafka: Observer, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, [1])
    bomb = KafkaProducer(bootstrap_servers=kafka.bootstrap_servers, compression_type="gzip")
    bomb.send(topic, b"x" * 100_000).get(10)
    bomb.close()
    kafka.produce(topic, [2])
    app, done = make_app(kafka, group, max_decompressed_bytes=1000), list[int]()

    @app.topic(topic)
    def work(batch: Any, ctx: Any) -> None:
        done.extend(batch.payloads)

    with running(app):
        wait_until(lambda: "cannot be read" in caplog.text and done, message="it says what it cannot read")
    said = re.search(r"To skip it: stop the group, then karafka-lite (.*?--to \d+)", caplog.text)
    assert said is not None
    argv = shlex.split(said[1])
    assert argv[:3] == ["reset", "--group", group]
    assert command(capsys, *argv, "--yes", "--broker", kafka.bootstrap_servers).code == 0
    app.drain()
    assert done == [1, 2]


def test_on_a_terminal_it_asks(embedded_kafka: Observer, folder: Path) -> None:
    kafka = embedded_kafka
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(3))
    app = write_app(folder, kafka, group, topic)
    for answer, code, committed in [("", 1, None), ("y", 0, 3)]:
        with Terminal("reset", app, "--to", "latest", cwd=folder) as terminal:
            terminal.until(f"{group}  {topic}          0  -           3    3")
            terminal.until("commit these offsets of 1 partition? [y/N] ")
            terminal.type(f"{answer}\n")
            assert terminal.process.wait(20) == code
        assert kafka.committed(group, topic) == committed
    done = process("-m", "karafka_lite", "reset", app, "--to", "earliest", cwd=folder)
    assert (done.returncode, done.stdout.count("\n")) == (1, 2)
    assert done.stderr == "karafka-lite: nothing was changed: there is no terminal to ask on; add --yes\n"
    assert kafka.committed(group, topic) == 3


def test_a_mistake_is_one_message_and_changes_nothing(
    embedded_kafka: Observer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kafka = embedded_kafka
    topic, group = kafka.topic(2), kafka.group()
    kafka.produce(topic, range(9), 0)
    kafka.truncate(topic, 0, 4)
    kafka.commit(group, topic, 5)
    app = write_app(folder, kafka, group, topic)
    of_group = ["--group", group, "--broker", kafka.bootstrap_servers]
    for argv, words in [
        ([app], "required: --to"),
        (["--to", "latest"], "give either module:app or --group GROUP"),
        ([app, "--to", "2026-01-31T12:00"], "has no time zone"),
        ([app, "--to", "tomorrow"], "must be earliest, latest, an offset, or a time"),
        ([app, "--to", "5"], "--to OFFSET is of one partition, and this would move 2"),
        ([app, "--to", "10", "--partition", "0"], f"{topic}-0@10 is not in the log, which has 4 to 9 (the end)"),
        ([app, "--to", "3", "--partition", "0"], f"{topic}-0@3 is not in the log, which has 4 to 9 (the end)"),
        ([app, "--to", "latest", "--partition", "2"], f"topic {topic} has no partition 2; it has 0 to 1"),
        ([app, "--to", "latest", "--topic", "other"], "no group of the App has topic other"),
        ([*of_group, "--to", "latest", "--topic", "other"], "topics do not exist: other"),
        (["--group", kafka.group(), *of_group[2:], "--to", "latest"], "has no committed offset and no members"),
    ]:
        refused(command(capsys, "reset", "--yes", *argv), words)
    several = write_app(folder, kafka, kafka.group(), topic, kafka.topic())
    refused(command(capsys, "reset", several, "--to", "1", "--partition", "0"), "--partition requires --topic: one of ")
    assert commits(kafka, group, topic, 2) == [5, None]


def test_members_that_join_after_the_question_are_not_overruled(
    embedded_kafka: Observer, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kafka = embedded_kafka
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(3))
    worker = make_app(kafka, group)

    @worker.topic(topic)
    def work(batch: Any, ctx: Any) -> None: ...

    monkeypatch.setattr("karafka_lite.client.admin.Admin.members", lambda *_: [])
    with running(worker):
        wait_until(lambda: kafka.members(group), message="it has joined")
        ended = command(capsys, "reset", write_app(folder, kafka, group, topic), "--to", "0", "--yes")
    assert (ended.code, ended.err) == (1, f"karafka-lite: group {group} has members now; stop them first\n")
    assert kafka.committed(group, topic) == 3
