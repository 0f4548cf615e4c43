"""``karafka-lite run --until-end`` as processes of their own; librdkafka judges what is committed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from kafka.errors import CoordinatorNotAvailableError, LeaderNotAvailableError, NotCoordinatorError
from support.observer import Observer, wait_until

from karafka_lite.broker.embedded import EmbeddedBroker

COMMAND = [sys.executable, "-m", "karafka_lite"]
ROOT = Path(__file__).parents[2]


class Drained:
    """``karafka-lite run consumers:app --until-end`` of a module of this text; ``TOPIC`` and ``GROUP`` are names."""

    def __init__(
        self, kafka: Observer, folder: Path, topic: str, group: str, handlers: str, *arguments: str, settings: str = ""
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        head = f"""
            import os, time
            from karafka_lite import App
            TOPIC, GROUP = {topic!r}, {group!r}
            app = App(GROUP, heartbeat_interval_ms=300, session_timeout_ms=6000, {settings})
        """
        (folder / "consumers.py").write_text(textwrap.dedent(head) + textwrap.dedent(handlers))
        self._stdout, self._stderr = folder / "stdout.txt", folder / "stderr.txt"
        with self._stdout.open("wb") as stdout, self._stderr.open("wb") as stderr:
            command = [*COMMAND, "run", "consumers:app", "--broker", kafka.bootstrap_servers, "--until-end", *arguments]
            environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
            self.process = subprocess.Popen(command, cwd=folder, stdout=stdout, stderr=stderr, env=environment)

    @property
    def said(self) -> str:
        return self._stderr.read_text()

    @property
    def printed(self) -> list[str]:
        return self._stdout.read_text().splitlines()

    def end(self, code: int = 0) -> str:
        """Wait for the end, which must have this exit code; return what was written to standard error."""
        try:
            assert self.process.wait(60) == code, self.said
        finally:
            self.process.kill()
            self.process.wait()
        return self.said


SAVE = """
    @app.topic(TOPIC)
    def save(batch, ctx):
        for message in batch:
            print(ctx.partition, message.offset)
"""


def ends(kafka: Observer, topic: str, partitions: int) -> list[int]:
    return [kafka.end_offset(topic, partition) for partition in range(partitions)]


def committed(kafka: Observer, group: str, topic: str, partitions: int) -> list[int | None]:
    return [kafka.committed(group, topic, partition) for partition in range(partitions)]


def test_all_partitions_are_processed_to_their_end_committed_and_counted(kafka: Observer, tmp_path: Path) -> None:
    topic, group = kafka.topic(3), kafka.group()
    kafka.produce(topic, range(700))

    said = Drained(kafka, tmp_path, topic, group, SAVE, settings="auto_commit_interval_ms=600_000").end()

    assert committed(kafka, group, topic, 3) == ends(kafka, topic, 3)
    assert re.search(rf"{topic}: 700 messages, \d+ batches, 0 failures, 0 given up, [\d.]+ seconds, 0 unmarked", said)
    assert re.search(r"^drained: 700 messages in [\d.]+ s$", said, re.MULTILINE)


def test_a_second_run_finds_nothing_to_do_and_ends_at_once(kafka: Observer, tmp_path: Path) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(10))
    Drained(kafka, tmp_path / "1", topic, group, SAVE).end()

    second = Drained(kafka, tmp_path / "2", topic, group, SAVE)

    assert "drained: 0 messages" in second.end()
    assert second.printed == []


def test_an_empty_topic_is_at_its_end(kafka: Observer, tmp_path: Path) -> None:
    assert "drained: 0 messages" in Drained(kafka, tmp_path, kafka.topic(2), kafka.group(), SAVE).end()


def test_several_groups_and_topics_are_all_drained(kafka: Observer, tmp_path: Path) -> None:
    topic, other, group, audit = kafka.topic(), kafka.topic(2), kafka.group(), kafka.group()
    kafka.produce(topic, range(20))
    kafka.produce(other, range(30))
    handlers = (
        SAVE
        + f"""
    @app.topic({topic!r}, {other!r}, group_id={audit!r})
    def audit(batch, ctx): ...
    """
    )

    said = Drained(kafka, tmp_path, topic, group, handlers).end()

    assert "drained: 70 messages" in said
    assert committed(kafka, group, topic, 1) == committed(kafka, audit, topic, 1) == [20]
    assert committed(kafka, audit, other, 2) == ends(kafka, other, 2)


def test_markers_of_transactions_at_the_end_are_nothing_to_wait_for(kafka: Observer, tmp_path: Path) -> None:
    topic, group = transactional(kafka), kafka.group()

    said = Drained(kafka, tmp_path, topic, group, SAVE, "--idle-timeout", "20").end()

    assert "drained: 4 messages" in said
    assert committed(kafka, group, topic, 2) == [3, 3]
    assert ends(kafka, topic, 2) == [4, 4]


def transactional(kafka: Observer) -> str:
    """A topic of 2 partitions with two messages and the markers of two transactions in each."""
    topic = kafka.topic(2)
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": kafka.name("transaction")})
    producer.init_transactions(30)
    for _ in range(2):
        producer.begin_transaction()
        producer.produce(topic, b"1", partition=0)
        producer.produce(topic, b"1", partition=1)
        producer.commit_transaction(30)
    return topic


def test_a_batch_that_fails_first_is_counted_and_done_again(kafka: Observer, tmp_path: Path) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(5))
    handlers = """
        @app.topic(TOPIC, backoff_ms=100)
        def save(batch, ctx):
            if not ctx.retrying:
                raise OSError("not yet")
    """

    said = Drained(kafka, tmp_path, topic, group, handlers).end()

    assert "5 messages, 1 batch, 1 failure" in said
    assert kafka.committed(group, topic) == 5


def test_a_partition_in_endless_retry_ends_it_with_4_and_is_named_with_its_error(
    kafka: Observer, tmp_path: Path
) -> None:
    topic, group = kafka.topic(2), kafka.group()
    kafka.produce(topic, range(6), 0)
    kafka.produce(topic, range(8), 1)
    handlers = """
        @app.topic(TOPIC, backoff_ms=100, backoff_max_ms=100, max_messages=2)
        def save(batch, ctx):
            if ctx.partition == 1 and batch.last_offset >= 4:
                raise OSError("the disk is full")
    """

    said = Drained(kafka, tmp_path, topic, group, handlers, "--idle-timeout", "1.5").end(4)

    assert "no progress for 1.5 s" in said
    assert f"{topic}-1@4 of 8: OSError: the disk is full" in said
    assert f"{topic}-0@" not in said.split("not drained")[1]
    assert committed(kafka, group, topic, 2) == [6, 4]


def test_a_long_batch_is_not_idle(kafka: Observer, tmp_path: Path) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(2))
    handlers = """
        @app.topic(TOPIC)
        def save(batch, ctx):
            time.sleep(4)
    """

    Drained(kafka, tmp_path, topic, group, handlers, "--idle-timeout", "3").end()

    assert kafka.committed(group, topic) == 2


def test_unmarked_messages_are_counted_at_the_end_and_no_failure(kafka: Observer, tmp_path: Path) -> None:
    topic, group = kafka.topic(2), kafka.group()
    kafka.produce(topic, range(10), 0)
    kafka.produce(topic, range(5), 1)
    handlers = """
        @app.topic(TOPIC, manual_offsets=True)
        def save(batch, ctx):
            ctx.state["last"] = batch.last
            if ctx.partition == 0:
                ctx.mark_as_consumed(batch[3])

        @app.on_shutdown(save)
        def flush(ctx):
            if ctx.partition == 1:
                ctx.mark_as_consumed(ctx.state["last"])
    """

    said = Drained(kafka, tmp_path, topic, group, handlers).end()

    assert "15 messages, 2 batches, 0 failures" in said
    assert "6 unmarked" in said
    assert committed(kafka, group, topic, 2) == [4, 5]


def test_each_of_two_members_stays_until_all_partitions_are_at_their_end(kafka: Observer, tmp_path: Path) -> None:
    topic, group = kafka.topic(2), kafka.group()
    kafka.produce(topic, range(5), 0)
    kafka.produce(topic, range(5), 1)
    handlers = """
        @app.topic(TOPIC)
        def save(batch, ctx):
            print(f"{ctx.partition}\\n", end="", flush=True)  # in one piece
            while ctx.partition == 1 and not os.path.exists("../go"):
                time.sleep(0.01)
    """
    settings = "auto_commit_interval_ms=600_000, drain_timeout_ms=50_000, concurrency=2"
    members = [Drained(kafka, tmp_path / name, topic, group, handlers, settings=settings) for name in "ab"]
    # In the end each has one partition: if one held both, it had to hand one over.
    wait_until(lambda: len(kafka.members(group)) == 2, 30, "two members")
    wait_until(lambda: kafka.committed(group, topic, 0) == 5, 30, "the quick partition is committed")

    assert [member.process.poll() for member in members] == [None, None]
    (tmp_path / "go").touch()

    said = [member.end() for member in members]
    assert all("drained: " in one for one in said)
    assert committed(kafka, group, topic, 2) == [5, 5]
    assert sorted(line for member in members for line in member.printed) == ["0", "1"]


def test_markers_at_the_end_of_another_members_partition_are_nothing_to_wait_for(
    kafka: Observer, tmp_path: Path
) -> None:
    topic, group = transactional(kafka), kafka.group()
    handlers = """
        @app.topic(TOPIC, manual_offsets=True)
        def save(batch, ctx):
            while not ctx.stopping:
                time.sleep(0.01)
                if os.path.exists("../go"):
                    return ctx.mark_as_consumed(batch.last)
    """
    members = [
        Drained(kafka, tmp_path / name, topic, group, handlers, "--idle-timeout", "20",
                settings="auto_commit_interval_ms=600_000")
        for name in "ab"
    ]  # fmt: skip
    wait_until(lambda: sorted(map(len, kafka.assignment(group).values())) == [1, 1], 30, "one partition for each")
    (tmp_path / "go").touch()

    for member in members:
        member.end()
    assert committed(kafka, group, topic, 2) == [3, 3]
    assert ends(kafka, topic, 2) == [4, 4]


def test_a_signal_before_the_end_commits_what_was_processed_and_ends_it_with_4(kafka: Observer, tmp_path: Path) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(100))
    handlers = """
        @app.topic(TOPIC, max_messages=1)
        def save(batch, ctx):
            print(batch.last_offset)
            while batch.last_offset >= 2 and not ctx.stopping:
                time.sleep(0.01)
    """
    member = Drained(kafka, tmp_path, topic, group, handlers)
    wait_until(lambda: "2" in member.printed, 30, "the third message")
    member.process.send_signal(signal.SIGTERM)

    assert "not drained: stopped before the end" in member.end(4)
    assert kafka.committed(group, topic) == 3


def test_a_missing_topic_is_one_message_and_exit_1(kafka: Observer, tmp_path: Path) -> None:
    topic = kafka.name("missing")
    said = Drained(kafka, tmp_path, topic, kafka.group(), SAVE).end(1)
    assert f"missing topics: {topic} (or no Describe permission)" in said
    assert f"karafka-lite produce {topic} FILE" in said
    assert topic not in AdminClient({"bootstrap.servers": kafka.bootstrap_servers}).list_topics(timeout=10).topics


def test_no_broker_is_exit_3(tmp_path: Path) -> None:
    nowhere = Observer("127.0.0.1:1")
    said = Drained(nowhere, tmp_path, "any", "group", SAVE, settings="bootstrap_timeout_ms=300").end(3)
    assert "no broker could be reached" in said
    assert "--broker embedded" in said.splitlines()[-1]


def test_with_latest_the_first_run_commits_where_it_begins_and_the_next_one_skips_nothing(
    kafka: Observer, tmp_path: Path
) -> None:
    topic, group = kafka.topic(2), kafka.group()
    kafka.produce(topic, range(10), 0)
    latest = "auto_offset_reset='latest'"
    assert "drained: 0 messages" in Drained(kafka, tmp_path / "1", topic, group, SAVE, settings=latest).end()
    assert committed(kafka, group, topic, 2) == [10, 0]

    kafka.produce(topic, range(10), 0)
    assert "drained: 10 messages" in Drained(kafka, tmp_path / "2", topic, group, SAVE, settings=latest).end()


def test_messages_that_are_produced_meanwhile_do_not_delay_the_end(kafka: Observer, tmp_path: Path) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(15))
    handlers = """
        @app.topic(TOPIC, max_messages=10)
        def save(batch, ctx):
            time.sleep(0.05)
    """
    member = Drained(kafka, tmp_path, topic, group, handlers)
    with flooded(kafka, topic):
        member.end()
    assert (kafka.committed(group, topic) or 0) >= 15


@contextmanager
def flooded(kafka: Observer, topic: str) -> Iterator[None]:
    """More messages than a handler of 10 in 50 ms can take."""
    enough = threading.Event()

    def produce() -> None:
        while not enough.wait(0.02):
            kafka.produce(topic, range(20))

    thread = threading.Thread(target=produce)
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join()


def test_deleted_records_of_another_members_partition_are_nothing_to_wait_for(kafka: Observer, tmp_path: Path) -> None:
    topic, group = kafka.topic(4), kafka.group()
    commit(kafka, group, topic, dict.fromkeys(range(4), 3))
    for partition in range(4):
        kafka.produce(topic, range(10), partition)
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    deleted = admin.delete_records([TopicPartition(topic, partition, 10) for partition in range(4)])
    assert [future.result(30).low_watermark for future in deleted.values()] == [10] * 4
    for partition in (0, 2):  # one for each member
        kafka.produce(topic, ["new"], partition)
    handlers = """
        BEGAN = time.monotonic()

        @app.topic(TOPIC, manual_offsets=True)
        def save(batch, ctx):
            while not ctx.stopping:
                time.sleep(0.01)
                if time.monotonic() - BEGAN > 4:  # by then the other one has asked for the group's commits
                    return ctx.mark_as_consumed(batch.last)
    """
    members = [Drained(kafka, tmp_path / name, topic, group, handlers, "--idle-timeout", "8") for name in "ab"]
    for member in members:
        member.end()
    assert committed(kafka, group, topic, 4) == [11, 10, 11, 10]


def commit(kafka: Observer, group: str, topic: str, offsets: dict[int, int]) -> None:
    """As kafka-consumer-groups.sh --reset-offsets does, for a group without members."""
    places = [TopicPartition(topic, partition, offset) for partition, offset in offsets.items()]
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    (future,) = admin.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(group, places)]).values()
    future.result(30)


def test_a_commit_past_the_end_begins_at_the_end_and_is_drained(kafka: Observer, tmp_path: Path) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(13))
    commit(kafka, group, topic, {0: 100})

    said = Drained(kafka, tmp_path, topic, group, SAVE).end()
    assert "drained: 0 messages" in said
    assert f"{topic}-0@100: the log ends before, 87 offsets are missing" in said
    assert kafka.committed(group, topic) == 13


def test_a_hook_that_raises_ends_it_with_4(kafka: Observer, tmp_path: Path) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(5))
    handlers = """
        @app.topic(TOPIC, manual_offsets=True)
        def save(batch, ctx): ...

        @app.on_shutdown(save)
        def flush(ctx):
            raise OSError("the disk is full")
    """
    said = Drained(kafka, tmp_path, topic, group, handlers).end(4)
    assert "the disk is full" in said
    assert "not drained: calls of hooks that failed: 1; see the log above" in said


def test_a_critical_exception_is_reported_as_the_end(kafka: Observer, tmp_path: Path) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(5))
    handlers = """
        @app.topic(TOPIC)
        def save(batch, ctx):
            raise MemoryError
    """
    said = Drained(kafka, tmp_path, topic, group, handlers).end(1)
    assert "not drained: the app ended with exit code 1; see the log above" in said


def test_a_batch_that_waits_for_more_is_not_idle(kafka: Observer, tmp_path: Path) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(5))
    handlers = """
        @app.topic(TOPIC, batch_timeout_ms=4500)
        def save(batch, ctx): ...
    """
    Drained(kafka, tmp_path, topic, group, handlers, "--idle-timeout", "3").end()
    assert kafka.committed(group, topic) == 5


def test_marks_are_progress_also_of_runs_that_fail(kafka: Observer, tmp_path: Path) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(12))
    handlers = """
        @app.topic(TOPIC, manual_offsets=True, backoff_ms=400, backoff_max_ms=400)
        def save(batch, ctx):
            ctx.mark_as_consumed(batch.first)
            if len(batch) > 1:
                raise OSError("one at a time")
    """
    Drained(kafka, tmp_path, topic, group, handlers, "--idle-timeout", "3").end()
    assert kafka.committed(group, topic) == 12


@pytest.mark.parametrize(
    ("api", "fault"),
    [
        ("FindCoordinator", CoordinatorNotAvailableError),
        ("OffsetFetch", NotCoordinatorError),
        ("OffsetFetch", "drop"),
        ("ListOffsets", LeaderNotAvailableError),
        ("ListOffsets", "drop"),
    ],
    ids=str,
)
def test_queries_are_repeated_until_the_cluster_is_ready(tmp_path: Path, api: str, fault: Any) -> None:
    with EmbeddedBroker({"t": 1}) as broker:
        observer = Observer(broker.bootstrap_servers)
        observer.produce("t", range(5))
        broker.fail(api, fault, times=3)
        assert "drained: 5 messages" in Drained(observer, tmp_path, "t", "g", SAVE).end()
        assert observer.committed("g", "t") == 5
        observer.forget_clients()


def test_produce_and_drain_are_a_pair_in_a_shell_script(kafka: Observer, tmp_path: Path) -> None:
    topic, group = kafka.topic(), kafka.group()
    (tmp_path / "lines.jsonl").write_text("".join(f'{{"id": {i}}}\n' for i in range(250)))
    (tmp_path / "m.py").write_text(
        f"from karafka_lite import App\napp = App({group!r})\n"
        f"@app.topic({topic!r})\ndef save(batch, ctx):\n    for m in batch: print('saved', m.payload['id'])\n"
    )
    script = f"""
        set -e
        karafka() {{ {sys.executable} -m karafka_lite "$@"; }}
        cat lines.jsonl | karafka produce {topic} - --broker {kafka.bootstrap_servers}
        karafka run m:app --until-end --broker {kafka.bootstrap_servers}
        echo after
    """

    done = subprocess.run(["sh", "-c", textwrap.dedent(script)], cwd=tmp_path, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [*(f"saved {i}" for i in range(250)), "after"]
    assert kafka.committed(group, topic) == 250


@pytest.mark.parametrize("arguments", [["--idle-timeout", "5"], ["--until-end", "--idle-timeout", "0"]])
def test_a_timeout_that_cannot_be_is_a_usage_error(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "m.py").write_text(
        "from karafka_lite import App\napp = App('g')\n@app.topic('t')\ndef f(batch, ctx): ...\n"
    )
    done = subprocess.run([*COMMAND, "run", "m:app", *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "--idle-timeout" in done.stderr.splitlines()[0]
