"""``karafka-lite produce`` and ``run --feed`` as processes of their own, on a real Kafka; librdkafka is the judge.

The producer itself is at the end: what becomes of its futures, whatever happens to kafka-python's sender thread.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AclBinding, AclOperation, AclPermissionType, ResourcePatternType, ResourceType
from kafka.producer.sender import Sender
from support.kafka_server import JavaKafka, kafka_source
from support.observer import BreakableKafka, Observer, wait_until

from karafka_lite.client.encoding import RECORD_BYTES
from karafka_lite.client.outbox import Outbox
from karafka_lite.client.producer import MESSAGE_BYTES, Producer
from karafka_lite.errors import ProduceError
from karafka_lite.messages import Addressed

COMMAND = [sys.executable, "-m", "karafka_lite"]
ROOT = Path(__file__).parents[2]
EARTHQUAKES = ROOT / "examples" / "earthquakes.jsonl"


def produce(
    kafka: Observer,
    *arguments: str | Path,
    stdin: bytes | None = None,
    cwd: Path | None = None,
    program: Sequence[str] = COMMAND,
) -> subprocess.CompletedProcess[str]:
    """``karafka-lite produce …`` to its end."""
    command = [*program, "produce", *map(str, arguments), "--broker", kafka.bootstrap_servers]
    done = subprocess.run(command, input=stdin or b"", capture_output=True, cwd=cwd, timeout=90)
    return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())


@contextmanager
def process_of(command: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process with text pipes that is killed behind the block, also when a test fails."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    with subprocess.Popen(command, text=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def stopped(done: subprocess.CompletedProcess[str], *words: str) -> int:
    """It ended with 1 and one message without traceback that holds ``words``; returns the count it tells."""
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("karafka-lite: ")]
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in line
    (count,) = re.findall(r"acknowledged: (\d+)", line)
    return int(count)


def values(kafka: Observer, topic: str) -> list[bytes | None]:
    return [record.value() for record in kafka.records(topic)]


# -- what arrives -----------------------------------------------------------------------------------------------------


def test_every_line_of_a_file_arrives_in_order_and_the_last_word_is_how_many(kafka: Observer) -> None:
    topic = kafka.topic()
    done = produce(kafka, topic, EARTHQUAKES)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(rf"produced 1707 messages to {topic} in \d+\.\d s\n", done.stderr)
    assert done.stdout == ""
    assert values(kafka, topic) == EARTHQUAKES.read_bytes().splitlines()


def test_a_pipe_in_a_shell_script_that_stops_at_errors(kafka: Observer, tmp_path: Path) -> None:
    topic = kafka.topic()
    (tmp_path / "bad.jsonl").write_text('{"n": 1}\nno\n')
    script = f"""
set -eu
karafka_lite() {{ "{sys.executable}" -m karafka_lite "$@"; }}
cat "{EARTHQUAKES}" | karafka_lite produce {topic} - --broker {kafka.bootstrap_servers}
echo all sent
cat bad.jsonl | karafka_lite produce {topic} --broker {kafka.bootstrap_servers}
echo never said
"""
    done = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stdout == "all sent\n"
    assert "<stdin>:2: not valid JSON" in done.stderr
    assert values(kafka, topic) == [*EARTHQUAKES.read_bytes().splitlines(), b'{"n": 1}']


def test_a_line_is_sent_when_it_is_typed_and_not_when_the_input_ends(kafka: Observer) -> None:
    topic = kafka.topic()
    command = [*COMMAND, "produce", topic, "--broker", kafka.bootstrap_servers]
    with process_of(command) as process:
        assert process.stdin
        print('{"n": 1}', file=process.stdin, flush=True)
        wait_until(lambda: kafka.end_offset(topic) == 1, message="the first line")
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(20) == 0


def test_keys_of_a_field_decide_the_partition_as_they_do_everywhere(kafka: Observer, tmp_path: Path) -> None:
    topic, other = kafka.topic(5), kafka.topic(5)
    keys = [f"customer-{n}" for n in range(30)]
    (tmp_path / "f").write_text("".join(json.dumps({"n": n, "id": key}) + "\n" for n, key in enumerate(keys)))
    assert produce(kafka, topic, "f", "--key", "id", cwd=tmp_path).returncode == 0
    judged = kafka.produce(other, range(30), keys=keys)
    placed = {record.key().decode(): record.partition() for record in kafka.records(topic)}
    assert placed == {key: partition for key, (partition, _) in zip(keys, judged, strict=True)}


def test_text_is_sent_as_it_is(kafka: Observer) -> None:
    topic = kafka.topic()
    done = produce(kafka, topic, "--text", stdin=b"no json\n\n\xff\x00 \r\nlast")
    assert done.returncode == 0, done.stderr
    assert values(kafka, topic) == [b"no json", b"", b"\xff\x00 ", b"last"]
    assert {record.key() for record in kafka.records(topic)} == {None}


def test_a_missing_topic_is_created_by_a_broker_that_permits_it(kafka: Observer) -> None:
    topic = kafka.name("topic")
    done = produce(kafka, topic, stdin=b"1\n")
    kafka.topics.append(topic)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(rf"produced 1 message to {topic} in .* s\n", done.stderr)
    assert values(kafka, topic) == [b"1"]


def test_messages_of_one_line_come_through_a_topic_that_takes_small_batches_only(kafka: Observer) -> None:
    topic = kafka.topic(max_message_bytes=2000)
    done = produce(kafka, topic, EARTHQUAKES)
    assert done.returncode == 0, done.stderr
    assert values(kafka, topic) == EARTHQUAKES.read_bytes().splitlines()


def test_how_large_a_message_may_be_is_for_the_topic_to_say(kafka: Observer) -> None:
    topic = kafka.topic(max_message_bytes=5_000_000)
    assert produce(kafka, topic, "--text", stdin=b"x" * 4_000_000).returncode == 0
    assert values(kafka, topic) == [b"x" * 4_000_000]


# -- what is said when it does not arrive ------------------------------------------------------------------------------


def test_the_count_before_a_bad_line_is_what_the_topic_holds_and_the_hint_sends_the_rest(
    kafka: Observer, tmp_path: Path
) -> None:
    topic = kafka.topic(3)
    good = [json.dumps({"n": n}) for n in range(3000)]
    lines = [*good, "no", '{"n": 3000}']
    (tmp_path / "f").write_text("\n".join(lines))
    done = produce(kafka, topic, "f", "--key", "n", cwd=tmp_path)
    assert stopped(done, "f:3001: not valid JSON (Expecting value at column 1)") == 3000
    assert len(kafka.records(topic)) == 3000

    lines[3000] = '{"n": -1}'
    (tmp_path / "f").write_text("\n".join(lines))
    hint = done.stderr.strip().partition("; to send the rest: ")[2]
    hint = hint.replace("karafka-lite", f"{sys.executable} -m karafka_lite")
    subprocess.run(f"{hint} --broker {kafka.bootstrap_servers}", shell=True, cwd=tmp_path, check=True, timeout=60)
    assert sorted(record.key() for record in kafka.records(topic)) == sorted(b"%d" % n for n in range(-1, 3001))


@pytest.mark.parametrize("partitions", [1, 3])
def test_a_message_that_is_too_large_is_named_and_all_that_were_acknowledged_are_counted(
    kafka: Observer, tmp_path: Path, partitions: int
) -> None:
    topic = kafka.topic(partitions, max_message_bytes=10_000)
    (tmp_path / "f").write_text("".join(f'"{n} {"x" * (20_000 if n == 1500 else 20)}"\n' for n in range(3000)))
    count = stopped(produce(kafka, topic, "f", cwd=tmp_path), "f:1501: ", "too large", topic, "max.message.bytes")
    arrived = values(kafka, topic)
    assert len(arrived) == count >= 1500
    assert len(set(arrived)) == count


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_1_and_the_count_that_the_topic_holds(kafka: Observer, number: signal.Signals) -> None:
    topic = kafka.topic(3)
    command = [*COMMAND, "produce", topic, "--text", "--broker", kafka.bootstrap_servers]
    with (
        process_of(["yes"]) as endless,
        process_of(command, stdin=endless.stdout) as process,
    ):
        wait_until(lambda: kafka.end_offset(topic, 0) > 1000, message="it sends")
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
    done = subprocess.CompletedProcess(command, process.returncode, "", said)
    count = stopped(done, f"stopped by {number.name}; ")
    assert "not answered" not in said
    assert sum(kafka.end_offset(topic, partition) for partition in range(3)) == count


def test_a_signal_breaks_the_wait_for_more_input(kafka: Observer) -> None:
    topic = kafka.topic()
    command = [*COMMAND, "produce", topic, "--broker", kafka.bootstrap_servers]
    with process_of(command) as process:
        assert process.stdin
        assert process.stderr
        print("1", file=process.stdin, flush=True)
        wait_until(lambda: kafka.end_offset(topic) == 1, message="the first line")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 1
        said = process.stderr.read()
        assert said == f"karafka-lite: stopped by SIGINT; messages sent to {topic} and acknowledged: 1\n"


@pytest.fixture(scope="module")
def strict() -> Iterator[Observer]:
    """A broker that creates no topics, and lets nobody write to the topic "secret"."""
    if kafka_source().kind != "java":
        pytest.skip("a broker with settings of its own is started with Java only")
    acls = {
        "auto.create.topics.enable": "false",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found": "true",
    }
    with JavaKafka(settings=acls) as server:
        observer = Observer(server.bootstrap_servers)
        yield observer
        observer.forget_clients()


@pytest.mark.kafka
@pytest.mark.xdist_group("strict")
def test_a_topic_that_is_missing_and_not_created_is_said(strict: Observer) -> None:
    impatient = "from karafka_lite.client import producer; producer.DEFAULTS['max_block_ms'] = 2000\n"
    impatient += "import sys; from karafka_lite.cli.main import main; sys.exit(main())"
    done = produce(strict, "nowhere", stdin=b"1\n", program=[sys.executable, "-c", impatient])
    assert stopped(done, "<stdin>:1: ", "topic nowhere", "kafka-topics.sh --create --topic nowhere") == 0


@pytest.mark.kafka
@pytest.mark.xdist_group("strict")
def test_a_topic_that_we_may_not_write_to_is_said(strict: Observer) -> None:
    topic = strict.topic()
    somebody = ("User:somebody", "*", AclOperation.WRITE, AclPermissionType.ALLOW)
    everybody = ("User:*", "*", AclOperation.DESCRIBE, AclPermissionType.ALLOW)
    acls = [AclBinding(ResourceType.TOPIC, topic, ResourcePatternType.LITERAL, *acl) for acl in (somebody, everybody)]
    for acl in acls:
        strict._ask(lambda admin, acl=acl: admin.create_acls([acl])[acl])  # type: ignore[misc]
    assert stopped(produce(strict, topic, stdin=b"1\n2\n"), "<stdin>:1: ", topic, "kafka-acls.sh") == 0


def test_a_broker_that_dies_on_the_way_is_waited_for_and_nothing_is_lost(
    private_kafka: BreakableKafka, tmp_path: Path
) -> None:
    kafka = private_kafka
    topic = kafka.topic()
    command = [*COMMAND, "produce", topic, "--broker", kafka.bootstrap_servers]
    with process_of(command) as process:
        assert process.stdin
        for n in range(1000):
            print(n, file=process.stdin, flush=True)
        wait_until(lambda: kafka.end_offset(topic) > 0, message="it sends")
        kafka.kill()
        for n in range(1000, 2000):
            print(n, file=process.stdin, flush=True)
        kafka.restart()
        _, said = process.communicate(timeout=90)
    assert process.returncode == 0, said
    assert said.splitlines()[-1].startswith(f"produced 2000 messages to {topic} in ")
    assert "Traceback" not in said
    arrived = [int(value or b"") for value in values(kafka, topic)]
    assert sorted(set(arrived)) == list(range(2000))
    assert list(dict.fromkeys(arrived)) == list(range(2000)), "in order, but for repeats"


# -- run --feed -------------------------------------------------------------------------------------------------------

CONSUMERS = r"""
from karafka_lite import App
app = App({group!r}, fetch_max_wait_ms=100)

@app.topic({topic!r}, {other!r})
def count(batch, ctx):
    print(f"{{ctx.topic}} {{len(batch)}}\n", end="", flush=True)  # in one piece
"""


def run_with_feed(
    kafka: Observer, folder: Path, topic: str, other: str, *options: str
) -> AbstractContextManager[subprocess.Popen[str]]:
    (folder / "mine.py").write_text(CONSUMERS.format(group=kafka.group(), topic=topic, other=other))
    command = [*COMMAND, "run", "mine:app", *options]
    environment = {**os.environ, "KARAFKA_LITE_BOOTSTRAP_SERVERS": kafka.bootstrap_servers}
    return process_of(command, cwd=folder, env=environment)


def test_run_sends_its_feeds_before_the_app_starts_and_then_consumes_them(kafka: Observer, tmp_path: Path) -> None:
    topic, other = kafka.topic(), kafka.name("topic")
    kafka.topics.append(other)
    (tmp_path / "f").write_text("1\n2\n3\n")
    (tmp_path / "g").write_text("4\n")
    feeds = [f"--feed={topic}=f", "--feed", f"{other}=g", f"--feed={topic}=g"]
    with run_with_feed(kafka, tmp_path, topic, other, *feeds) as process:
        assert process.stdout
        seen: dict[str, int] = {}
        for line in process.stdout:
            name, count = line.split()
            seen[name] = seen.get(name, 0) + int(count)
            if sum(seen.values()) == 5:
                process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 0, said
    assert seen == {topic: 4, other: 1}
    told = [line for line in said.splitlines() if line.startswith("produced ")]
    assert [line.partition(" in ")[0] for line in told] == [
        f"produced 3 messages to {topic}",
        f"produced 1 message to {other}",
        f"produced 1 message to {topic}",
    ]
    assert said.index(told[-1]) < said.index("(earliest)")


@pytest.mark.parametrize("file", ["f", "missing"])
def test_a_feed_that_fails_ends_with_its_exit_code_and_the_app_does_not_start(
    kafka: Observer, tmp_path: Path, file: str
) -> None:
    topic = kafka.topic()
    (tmp_path / "f").write_text("1\nno\n")
    with run_with_feed(kafka, tmp_path, topic, topic + "-2", f"--feed={topic}={file}") as process:
        printed, said = process.communicate(timeout=30)
    assert process.returncode == 1
    assert printed == ""
    assert ("f:2: not valid JSON" if file == "f" else "cannot read missing") in said
    assert "Traceback" not in said
    assert kafka.end_offset(topic) == (1 if file == "f" else 0)


# -- the producer itself ----------------------------------------------------------------------------------------------


@pytest.fixture
def producer(kafka: Observer) -> Iterator[Producer]:
    producer = Producer([kafka.bootstrap_servers], {"group_id": "ignored", "fetch_min_bytes": 1})
    producer.connect()
    yield producer
    producer.close()


def test_the_future_holds_the_place_and_all_that_a_message_has_arrives(kafka: Observer, producer: Producer) -> None:
    topic = kafka.topic(2)
    sent = [producer.send(Addressed(topic, b"v", b"k", [("h", b"\x00")], 1, 1234)) for _ in range(2)]
    assert [future.result(20) for future in sent] == [(1, 0), (1, 1)]
    assert producer.send(Addressed(topic, None, b"k", partition=0)).result(20) == (0, 0)
    tombstone, first, _ = kafka.records(topic)
    assert tombstone.value() is None
    assert (first.value(), first.key(), first.headers(), first.timestamp()[1]) == (b"v", b"k", [("h", b"\x00")], 1234)


def test_one_refused_message_does_not_harm_the_others(kafka: Observer, producer: Producer) -> None:
    topic, small = kafka.topic(), kafka.topic(max_message_bytes=1000)
    messages = [Addressed(topic, b"1"), Addressed(small, b"x" * 5000), Addressed(topic, b"2")]
    sent = [producer.send(message) for message in messages]
    assert producer.flush(20)
    assert isinstance(sent[1].exception(0), ProduceError)
    assert producer.send(Addressed(topic, b"3")).result(20) == (0, 2)
    assert producer.send(Addressed(small, b"4")).result(20) == (0, 0)
    assert values(kafka, topic) == [b"1", b"2", b"3"]


def test_what_cannot_be_a_message_is_raised_at_once_and_does_not_count_as_on_its_way(
    kafka: Observer, producer: Producer
) -> None:
    topic = kafka.topic()
    with pytest.raises(TypeError, match="value must be bytes"):
        producer.send(Addressed(topic, "text"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="partition"):
        producer.send(Addressed(topic, b"1", partition=7))
    assert producer.flush(0)
    assert producer._weight == 0


def test_sending_waits_while_too_much_is_unanswered(
    private_kafka: BreakableKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    kafka = private_kafka
    monkeypatch.setattr("karafka_lite.client.producer.WINDOW_BYTES", 100_000)
    topic = kafka.topic()
    producer = Producer([kafka.bootstrap_servers], {})
    producer.connect()
    producer.send(Addressed(topic, b"first")).result(20)
    kafka.pause()
    futures = []
    large = Addressed(topic, b"x" * (10_000 - MESSAGE_BYTES - RECORD_BYTES))
    sender = threading.Thread(target=lambda: futures.extend(producer.send(large) for _ in range(50)))
    sender.start()
    wait_until(lambda: producer._weight == 100_000, message="the window is full")
    sender.join(0.3)
    assert sender.is_alive()
    assert producer._weight == 100_000
    assert not producer.flush(0.1)
    kafka.resume()
    sender.join(30)
    assert producer.flush(30)
    assert [future.result(0) for future in futures] == [(0, offset) for offset in range(1, 51)]
    producer.close()


def test_closing_while_nobody_answers_fails_what_is_unanswered_and_leaves_no_thread(
    private_kafka: BreakableKafka,
) -> None:
    kafka = private_kafka
    topic = kafka.topic()
    producer = Producer([kafka.bootstrap_servers], {})
    producer.connect()
    producer.send(Addressed(topic, b"first")).result(20)
    kafka.pause()
    lost = producer.send(Addressed(topic, b"second"))
    producer.close(0.2)
    assert isinstance(lost.exception(0), ProduceError)
    kafka.resume()


# -- no future waits for ever -----------------------------------------------------------------------------------------


@contextmanager
def connected(kafka: Observer, **settings: Any) -> Iterator[tuple[Producer, str]]:
    """An idempotent producer, and a topic that it knows; closed after the block."""
    producer, topic = Producer([kafka.bootstrap_servers], settings, idempotent=True), kafka.topic()
    producer.connect()
    try:
        send_first(producer, topic)
        yield producer, topic
    finally:
        producer.close(0)


def send_first(sender: Producer | Outbox, topic: str) -> None:
    """Send until it is acknowledged: on a busy machine a new topic is not known as soon as ``sender`` wants it."""

    def is_sent() -> bool:
        sent = sender.send(Addressed(topic, b"first", partition=0))
        error = sent.exception(20)
        assert error is None or "Failed to update metadata" in str(error), error
        return error is None

    wait_until(is_sent, message=f"{topic} is known")


def failure_of(checks: Producer | Outbox, future: Future[tuple[int, int]], timeout_s: float = 20) -> ProduceError:
    """The error of a future, while somebody asks ``check`` as the runner does."""
    wait_until(lambda: (checks.check(), future.done())[1], timeout_s, "the future has a result")
    error = future.exception(0)
    assert isinstance(error, ProduceError)
    return error


@contextmanager
def hung(producer: Producer, *, dies: bool = False) -> Iterator[None]:
    """The sender thread waits within a turn; then it goes on, or dies of what is no Exception."""
    sender, reached, go_on = producer._producer._sender, threading.Event(), threading.Event()
    stock = sender.run_once

    def hang() -> None:
        reached.set()
        go_on.wait()
        if dies:
            raise SystemExit
        stock()

    sender.run_once = hang
    sender.wakeup()
    assert reached.wait(10)
    try:
        yield
    finally:
        if not dies:
            sender.run_once = stock
        go_on.set()
    if dies:
        sender.join(10)
        assert not sender.is_alive()


thread_dies = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@thread_dies
def test_what_a_dead_sender_thread_has_left_fails_as_soon_as_somebody_asks(kafka: Observer) -> None:
    with connected(kafka) as (producer, topic):
        with hung(producer, dies=True):
            left = [producer.send(Addressed(topic, b"1")) for _ in range(3)]
        assert producer.dead
        for future in left:
            error = failure_of(producer, future, 1)
            assert "sender thread has died" in str(error)
            assert not error.collateral
        assert producer.flush(0)


@thread_dies
def test_a_producer_whose_sender_thread_has_died_takes_nothing_and_can_be_closed(kafka: Observer) -> None:
    with connected(kafka) as (producer, topic):
        sender = producer._producer._sender
        with hung(producer, dies=True):
            left = producer.send(Addressed(topic, b"1"))
        failure_of(producer, producer.send(Addressed(topic, b"2")), 1)
        assert isinstance(producer.send(Addressed(topic, b"3")).exception(0), ProduceError)
        began = time.monotonic()
        producer.close(0.1)
        assert time.monotonic() - began < 3
        assert isinstance(left.exception(0), ProduceError)
        assert sender._client._net._closed, "its sockets"


@thread_dies
def test_a_producer_whose_sender_thread_dies_of_being_closed_can_be_closed(
    kafka: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("karafka_lite.client.producer.CLOSE_S", 0.5)

    def fail(error: Exception) -> None:
        raise ValueError("a batch that cannot be built")

    with connected(kafka) as (producer, topic):
        sender, accumulator = producer._producer._sender, producer._producer._accumulator
        with hung(producer):
            left = producer.send(Addressed(topic, b"1"))
            accumulator.abort_batches = fail
            sender.initiate_close()
            sender._force_close = True
        sender.join(10)
        producer.close(0)
        assert isinstance(left.exception(0), ProduceError) or left.result(0) == (0, 1)
        assert sender._client._net._closed, "its sockets"
        assert producer.dead


def test_who_looks_up_a_topic_while_the_producer_is_replaced_has_it_from_the_next(kafka: Observer) -> None:
    topic, other, outbox = kafka.topic(), kafka.topic(), Outbox([kafka.bootstrap_servers], {})
    try:
        for message in (
            Addressed(other, b"1"),
            Addressed(topic, b"1", partition=0),
            Addressed(topic, b"2", partition=0),
        ):
            assert outbox.send(Addressed(topic, b"1")).result(20)
            assert outbox._producer is not None
            outbox._producer.close(0)  # as another thread does
            assert outbox.send(message).result(20)
        outbox._producer.close(0)
        with pytest.raises(ValueError, match="partition must be between 0 and 0"):
            outbox.send(Addressed(topic, b"1", partition=1))
    finally:
        outbox.close()


@thread_dies
def test_an_outbox_replaces_a_producer_whose_sender_thread_has_died(kafka: Observer) -> None:
    topic = kafka.topic()
    outbox = Outbox([kafka.bootstrap_servers], {})
    try:
        assert outbox.send(Addressed(topic, b"1")).result(20) == (0, 0)
        assert outbox._producer is not None
        with hung(outbox._producer, dies=True):
            left = outbox.send(Addressed(topic, b"left"))
        failure_of(outbox, left, 1)
        assert outbox.send(Addressed(topic, b"2")).result(20) == (0, 1)
    finally:
        outbox.close()


def test_a_sender_thread_that_does_nothing_but_fail_is_dead_after_a_while_and_takes_no_core_meanwhile(
    kafka: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("karafka_lite.client.producer.FAILING_S", 0.5)
    turns: list[None] = []

    def fail(sender: Any, now: Any = None) -> None:
        turns.append(None)
        raise RuntimeError("a bug in kafka-python")

    topic = kafka.topic()
    outbox = Outbox([kafka.bootstrap_servers], {})
    try:
        assert outbox.send(Addressed(topic, b"1")).result(20) == (0, 0)
        first = outbox._producer
        assert first is not None
        with monkeypatch.context() as context:
            context.setattr(Sender, "_send_producer_data", fail)
            error = failure_of(outbox, outbox.send(Addressed(topic, b"2")))
            assert "RuntimeError: a bug in kafka-python" in str(error)
            assert not error.collateral
            assert first.dead
            assert len(turns) < 30
            assert isinstance(first.send(Addressed(topic, b"2")).exception(0), ProduceError)
        assert outbox.send(Addressed(topic, b"3")).result(20)[0] == 0, "by a new producer"
    finally:
        outbox.close()


def test_a_sender_thread_that_fails_once_goes_on(kafka: Observer, monkeypatch: pytest.MonkeyPatch) -> None:
    stock, failed = Sender._send_producer_data, []

    def fail_once(sender: Any, now: Any = None) -> Any:
        if not failed:
            failed.append(True)
            raise RuntimeError("once")
        return stock(sender, now)

    with connected(kafka) as (producer, topic):
        monkeypatch.setattr(Sender, "_send_producer_data", fail_once)
        assert producer.send(Addressed(topic, b"1")).result(20) == (0, 1)
        assert failed
        wait_until(lambda: producer._failing_since is None)
        assert not producer.dead


QUICKLY: dict[str, Any] = {"delivery_timeout_ms": 600, "request_timeout_ms": 300, "max_block_ms": 200}


@pytest.fixture
def overdue_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("karafka_lite.client.producer.OVERDUE_S", 0.2)


@pytest.fixture
def small_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("karafka_lite.client.producer.WINDOW_BYTES", 10_000)


@pytest.mark.usefixtures("overdue_soon")
def test_what_a_hanging_sender_thread_does_not_send_is_overdue_after_its_time(kafka: Observer) -> None:
    with connected(kafka, **QUICKLY) as (producer, topic):
        assert producer.answer_timeout_s == pytest.approx(1.0)
        with hung(producer):
            began = time.monotonic()
            error = failure_of(producer, producer.send(Addressed(topic, b"1")))
            assert 0.9 < time.monotonic() - began < 5
            assert "no answer at all" in str(error)


@pytest.mark.usefixtures("overdue_soon", "small_window")
def test_waiting_for_room_ends_with_the_time_of_what_takes_it(kafka: Observer) -> None:
    with connected(kafka, **QUICKLY) as (producer, topic):
        with hung(producer):
            first = producer.send(Addressed(topic, b"x" * 7000))
            second = producer.send(Addressed(topic, b"x" * 7000))  # waits for the first one
            assert isinstance(first.exception(0), ProduceError)
            failure_of(producer, second)


@pytest.mark.usefixtures("small_window")
def test_waiting_for_room_ends_when_the_producer_dies(kafka: Observer) -> None:
    with connected(kafka) as (producer, topic):
        futures: list[Future[tuple[int, int]]] = []
        with hung(producer):
            futures.append(producer.send(Addressed(topic, b"x" * 7000)))
            waiting = threading.Thread(target=lambda: futures.append(producer.send(Addressed(topic, b"x" * 7000))))
            waiting.start()
            waiting.join(0.3)
            assert waiting.is_alive()
            producer._broken = RuntimeError("a bug in kafka-python")
            waiting.join(5)
            assert not waiting.is_alive()
        for future in futures:
            failure_of(producer, future, 1)


@pytest.mark.usefixtures("small_window")
def test_waiting_for_room_ends_with_a_fatal_error_before_kafka_python_has_looked_after_the_others(
    kafka: Observer,
) -> None:
    with connected(kafka) as (producer, topic):
        futures: list[Future[tuple[int, int]]] = []
        with hung(producer):
            producer.send(Addressed(topic, b"x" * 7000))
            waiting = threading.Thread(target=lambda: futures.append(producer.send(Addressed(topic, b"x" * 7000))))
            waiting.start()
            waiting.join(0.3)
            assert waiting.is_alive()
            producer._manager.transition_to_fatal_error(RuntimeError("of another message"))
            waiting.join(5)
            assert not waiting.is_alive()
        assert failure_of(producer, futures[0], 0).collateral


@pytest.mark.usefixtures("overdue_soon")
def test_a_flush_without_a_bound_of_its_own_has_that_of_the_answers(kafka: Observer) -> None:
    with connected(kafka, **QUICKLY) as (producer, topic):
        with hung(producer):
            left = producer.send(Addressed(topic, b"1"))
            producer.flush()
            failure_of(producer, left, 1)


def test_an_answer_that_comes_after_all_is_forgotten(kafka: Observer) -> None:
    with connected(kafka) as (producer, topic):
        with hung(producer):
            future = producer.send(Addressed(topic, b"1"))
            producer.hand_over()
            producer._broken = RuntimeError("so it seems")
            failure_of(producer, future, 1)
        wait_until(lambda: kafka.end_offset(topic) == 2, 20, "it arrives")
        assert isinstance(future.exception(0), ProduceError)
        assert producer._weight == 0
        assert not producer._unanswered


def test_a_partition_that_was_added_a_moment_ago_is_sent_to(kafka: Observer) -> None:
    with connected(kafka) as (producer, topic):
        with pytest.raises(ValueError, match=f"partition must be between 0 and 0 in topic {topic}, got 1"):
            producer.send(Addressed(topic, b"1", partition=1))
        kafka.grow(topic, 2)

        def is_known() -> bool:  # also to the broker that is asked
            with suppress(ValueError):
                return producer.send(Addressed(topic, b"1", partition=1)).result(20)[0] == 1
            return False

        wait_until(is_known, message="kafka-python would ask after five minutes")
        assert producer._weight == 0
        assert not producer._unanswered


def test_behind_an_outage_of_more_than_delivery_timeout_ms_messages_leave_again(
    private_kafka: BreakableKafka,
) -> None:
    """kafka-python gives its producer id up for a batch that may have arrived, and asks for no other."""
    kafka = private_kafka
    outbox, topic = Outbox([kafka.bootstrap_servers], QUICKLY), kafka.topic(2)
    try:
        send_first(outbox, topic)
        producer = outbox._producer
        assert producer is not None
        kafka.pause()
        expired = outbox.send(Addressed(topic, b"2", partition=0))
        wait_until(lambda: vars(expired)["_batch"].in_retry())
        beside = outbox.send(Addressed(topic, b"3", partition=1))
        error = failure_of(outbox, expired)
        assert failure_of(outbox, beside).collateral, "it has done nothing"
        kafka.resume()
        wait_until(lambda: producer.dead, message="which is known")
        assert not error.collateral
        place = outbox.send(Addressed(topic, b"4", partition=0)).result(20)
        assert place in ((0, 1), (0, 2)), "the one that has expired may have arrived"
        assert outbox._producer is not producer
    finally:
        kafka.resume()
        outbox.close()


def test_what_expires_in_the_turn_that_it_leaves_in_harms_no_other_of_its_request(kafka: Observer) -> None:
    """As behind a SIGCONT. kafka-python sends it all the same; without its bytes, brokers refuse the whole request."""
    with connected(kafka, **QUICKLY) as (producer, topic):
        other = kafka.topic()
        assert producer.send(Addressed(other, b"1")).result(20) == (0, 0)
        with hung(producer):
            old = producer.send(Addressed(topic, b"old"))
            producer.hand_over()
            batch: Any = vars(old)["_batch"]
            wait_until(lambda: batch.has_reached_delivery_timeout(QUICKLY["delivery_timeout_ms"]))
            new = producer.send(Addressed(other, b"2"))
            producer.hand_over()
        assert new.result(20) == (0, 1)
        error = old.exception(20)
        assert isinstance(error, ProduceError)
        assert not error.collateral
        assert not producer.dead
        wait_until(lambda: kafka.end_offset(topic) == 2, 20, "it may have arrived, as each that has expired")
        wait_until(lambda: not batch.records.messages, message="and is forgotten then")
        assert producer.send(Addressed(topic, b"next")).result(20) == (0, 2)


def test_what_is_answered_does_not_keep_who_was_told(kafka: Observer) -> None:
    with connected(kafka) as (producer, topic):
        counts: list[int] = []
        kept = producer.send_checked(Addressed(topic, b"1"), lambda count, _: counts.append(count))
        assert producer.flush(20)
        assert counts == [1]
        assert not vars(kept)["_batch"].told


@thread_dies
@pytest.mark.parametrize("many", [False, True])
def test_who_waits_for_an_answer_need_not_have_anybody_check(kafka: Observer, many: bool) -> None:
    """A handler that waits is itself the only thread that would look."""
    with connected(kafka) as (producer, topic):
        messages = [Addressed(topic, b"1")]
        with hung(producer, dies=True):
            left: Future[Any] = producer.send_many(messages) if many else producer.send(messages[0])
        with pytest.raises(ProduceError, match="sender thread has died"):
            left.result()
        assert isinstance(left.exception(), ProduceError)


# -- who else fails with a refused message ----------------------------------------------------------------------------


def test_what_fails_with_the_refused_message_of_another_topic_or_partition_is_collateral(kafka: Observer) -> None:
    small = kafka.topic(2, max_message_bytes=2000)
    with connected(kafka) as (producer, other):
        producer.send(Addressed(small, b"known", partition=0)).result(10)
        with hung(producer):
            refused = producer.send(Addressed(small, b"x" * 5000, partition=0))
            same_topic = [producer.send(Addressed(small, b"1", partition=1)) for _ in range(3)]
            others = [producer.send(Addressed(other, b"1")) for _ in range(3)]
        error = failure_of(producer, refused)
        assert "a message of 5000 bytes is too large" in str(error)
        assert not error.collateral
        wait_until(lambda: producer.dead)
        late = producer.send(Addressed(other, b"2"))
        failed = [future for future in (*same_topic, *others, late) if future.exception(20) is not None]
        assert late in failed
        for future in failed:
            error = failure_of(producer, future)
            assert error.collateral
            assert f"because a message for topic {small} was refused" in str(error)


def test_what_was_in_one_batch_with_a_message_that_is_too_large_is_collateral_too(kafka: Observer) -> None:
    small = kafka.topic(max_message_bytes=2000)
    with connected(kafka) as (producer, _):
        producer.send(Addressed(small, b"known")).result(10)
        with hung(producer):
            sent = [producer.send(Addressed(small, b"1" * size)) for size in (1, 5000, 1, 1)]
            assert len(producer._unanswered) == 1
        errors = [future.exception(20) for future in sent]
        assert not getattr(errors[1], "collateral", True)
        assert getattr(errors[1], "too_large", False)
        for error in errors[:1] + errors[2:]:  # kafka-python splits the batch: what comes before may have arrived
            assert error is None or (getattr(error, "collateral", False) and not getattr(error, "too_large", True))


def test_what_is_still_open_when_a_dead_producer_is_closed_is_collateral_too(kafka: Observer) -> None:
    small = kafka.topic(max_message_bytes=2000)
    with connected(kafka) as (producer, other):
        failure_of(producer, producer.send(Addressed(small, b"x" * 5000)))
        wait_until(lambda: producer.dead)
        late = producer.send(Addressed(other, b"1"))
        producer.close(0)
        error = late.exception(0)
        assert isinstance(error, ProduceError)
        assert error.collateral


def test_a_message_that_nobody_acknowledges_in_time_is_not_collateral(private_kafka: BreakableKafka) -> None:
    kafka = private_kafka
    with connected(kafka, **QUICKLY) as (producer, topic):
        kafka.pause()
        error = failure_of(producer, producer.send(Addressed(topic, b"1")))
        kafka.resume()
    assert "acknowledged nothing in time" in str(error)
    assert not error.collateral
