"""``karafka-lite redrive``: dead letters come back, each at least once, and none is lost."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.command import command, process, refused, rows
from support.harness import make_app, running
from support.observer import Observer, wait_until

from karafka_lite.cli import redrive
from karafka_lite.cli.redrive import Redrive


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    return tmp_path


def bury(
    kafka: Observer,
    dead: str,
    source: str,
    values: Sequence[object],
    partition: int = 0,
    *,
    error: str = "ValueError: no",
) -> None:
    """Dead letters of partition 1 of ``source``, as an App sends them, with a header of their own."""
    headers = [
        *[("trace", b"t"), ("source-topic", source.encode()), ("source-partition", b"1"), ("source-offset", b"7")],
        *[("source-timestamp", b"5"), ("source-group", b"g"), ("attempts", b"4"), ("error", error.encode())],
    ]
    kafka.produce(dead, values, partition, keys=b"k", headers=headers)


def values(kafka: Observer, topic: str, partition: int | None = None) -> list[int]:
    found = [record for record in kafka.records(topic) if partition in (None, record.partition())]
    return [int(record.value()) for record in found]


def committed(kafka: Observer, dead: str, partition: int = 0) -> int | None:
    return kafka.committed(f"{dead}.redrive", dead, partition)


KILLED = """\
import os, signal, sys
from karafka_lite.cli import main, redrive

redrive.AT_ONCE, pieces, settle = 100, 0, redrive.Redrive._settle

def dying(self, sent):
    global pieces
    pieces += 1
    if pieces == int(sys.argv[1]):  # it is acknowledged
        sys.argv[2] == "after the commit" and settle(self, sent)
        os.kill(os.getpid(), signal.SIGKILL)
    return settle(self, sent)

redrive.Redrive._settle = dying
main.main(["redrive", *sys.argv[3:]])
"""


def test_killed_twice_each_of_1000_letters_comes_back_at_least_once_and_a_second_whole_run_sends_none(
    kafka: Observer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dead, source = kafka.topic(2), kafka.topic(3)
    bury(kafka, dead, source, range(600), 0)
    bury(kafka, dead, source, range(600, 1000), 1)
    (folder / "killed.py").write_text(KILLED)
    argv = [dead, "--broker", kafka.bootstrap_servers]
    for piece, when in (("3", "before the commit"), ("2", "after the commit")):
        assert process("killed.py", piece, when, *argv, cwd=folder).returncode == -signal.SIGKILL
    done = process("-m", "karafka_lite", "redrive", *argv, "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert rows(done.stdout) == [{"topic": source, "error": "ValueError", "messages": 600}]
    assert done.stderr == f"sent back from {dead}: 600\n"
    again = command(capsys, "redrive", *argv)
    assert (again.code, again.out, again.err) == (0, "", f"sent back from {dead}: 0\n")

    came = Counter(values(kafka, source))
    assert set(came) == set(range(1000))
    assert came.total() == 1100, "what was sent and not committed came twice"
    assert [committed(kafka, dead, partition) for partition in (0, 1)] == [600, 400]
    back = kafka.records(source)
    assert {(record.partition(), record.key(), tuple(record.headers() or ())) for record in back} == {
        (1, b"k", (("trace", b"t"),))
    }


def test_the_letters_of_an_app_go_back_to_it_as_they_were(kafka: Observer, capsys: pytest.CaptureFixture[str]) -> None:
    dead, topic = kafka.topic(), kafka.topic(3)
    app, is_cured, done = make_app(kafka), False, list[int]()

    @app.topic(topic, dead_letter=dead, max_retries=0)
    def work(batch: Any, ctx: Any) -> None:
        for message in ctx.each(batch):
            if message.payload % 2 and not is_cured:
                raise ValueError("odd")
            done.append(message.payload)

    kafka.produce(topic, range(6), 2, keys=b"key", headers=[("h", b"1")])
    with running(app):
        wait_until(lambda: kafka.end_offset(dead) == 3 and len(done) == 3, message="three letters")
        is_cured = True
        ended = command(capsys, "redrive", dead, "--broker", kafka.bootstrap_servers, "--json")
        assert (ended.code, rows(ended.out)) == (0, [{"topic": topic, "error": "ValueError", "messages": 3}])
        wait_until(lambda: len(done) == 6, message="they are processed")
    assert sorted(done) == list(range(6))
    odd = [record for record in kafka.records(topic) if int(record.value()) % 2]
    assert [(record.partition(), record.key(), record.headers()) for record in odd] == [(2, b"key", [("h", b"1")])] * 6


def test_where_leaves_the_others_at_the_end_of_the_topic_and_ends(
    kafka: Observer, capsys: pytest.CaptureFixture[str]
) -> None:
    dead, source = kafka.topic(), kafka.topic(2)
    argv = ["redrive", dead, "--broker", kafka.bootstrap_servers, "--where", "KeyError"]
    for value in range(6):
        bury(kafka, dead, source, [value], error="KeyError: 'id'" if value in (1, 3) else "ValueError: no")
    before = {int(record.value()): (record.headers(), record.timestamp()) for record in kafka.records(dead)}
    dry = command(capsys, *argv, "--dry-run", "--json")
    assert rows(dry.out) == [{"topic": source, "error": "KeyError", "messages": 2}]
    assert dry.err == f"would be sent back from {dead}: 2\n"
    assert (values(kafka, source), committed(kafka, dead)) == ([], None)

    ended = command(capsys, *argv)
    assert (ended.code, ended.err) == (0, f"sent back from {dead}: 2; put back at its end: 2\n")
    assert values(kafka, source) == [1, 3]
    assert committed(kafka, dead) == 4
    assert values(kafka, dead)[4:] == [4, 5, 0, 2], "4 and 5 stay where they are: nothing behind them was sent"
    for record in kafka.records(dead)[6:]:
        assert (record.headers(), record.timestamp()) == before[int(record.value())]
    for _ in range(2):
        again = command(capsys, *argv)
        assert (again.code, again.err) == (0, f"sent back from {dead}: 0\n")
    assert kafka.end_offset(dead) == 8
    assert command(capsys, *argv[:-2]).err == f"sent back from {dead}: 4\n"
    assert values(kafka, source) == [1, 3, 4, 5, 0, 2]
    assert committed(kafka, dead) == 8


def test_count_and_to_choose(embedded_kafka: Observer, capsys: pytest.CaptureFixture[str]) -> None:
    kafka = embedded_kafka
    dead, source, late = kafka.topic(2), kafka.topic(2), kafka.topic()
    bury(kafka, dead, source, range(5), 0)
    bury(kafka, dead, source, range(5, 10), 1)
    argv = ["redrive", dead, "--broker", kafka.bootstrap_servers, "--to", late]
    assert command(capsys, *argv, "--count", "7").err == f"sent back from {dead}: 7\n"
    assert command(capsys, *argv, "--count", "7").err == f"sent back from {dead}: 3\n"
    assert command(capsys, *argv, "--quiet").err == ""
    assert sorted(values(kafka, late)) == list(range(10))
    assert values(kafka, source) == []


def test_a_letter_that_says_of_no_topic_stays_and_is_counted(
    embedded_kafka: Observer, capsys: pytest.CaptureFixture[str]
) -> None:
    kafka = embedded_kafka
    dead, source = kafka.topic(), kafka.topic(2)
    kafka.produce(dead, [0], headers=[("error", b"mine")])
    bury(kafka, dead, source, [1])
    argv = ["redrive", dead, "--broker", kafka.bootstrap_servers]
    for sent in ("1; put back at its end: 1", "0"):
        ended = command(capsys, *argv)
        assert ended.code == 1
        assert ended.err == (
            f"sent back from {dead}: {sent}\n"
            f"karafka-lite: letters without a header source-topic, which stay in {dead}: 1; send them with --to TOPIC\n"
        )
    assert command(capsys, *argv, "--to", source).code == 0
    assert sorted(values(kafka, source)) == [0, 1]


def test_what_is_refused_is_named_and_nothing_behind_it_is_committed(
    embedded_kafka: Observer, capsys: pytest.CaptureFixture[str]
) -> None:
    kafka = embedded_kafka
    dead, small, source = kafka.topic(), kafka.topic(max_message_bytes=300), kafka.topic(2)
    kafka.produce(dead, ["1", "2" * 400, "3"])
    argv = ["redrive", dead, "--broker", kafka.bootstrap_servers]
    ended = command(capsys, *argv, "--to", small)
    assert ended.code == 1
    assert f"karafka-lite: {dead}-0@1 was not sent: a message of 400 bytes is too large for topic {small}" in ended.err
    assert committed(kafka, dead) == 1
    assert command(capsys, *argv, "--to", source).err == f"sent back from {dead}: 2\n"


def test_a_signal_ends_it_behind_a_commit(
    embedded_kafka: Observer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kafka = embedded_kafka
    dead, source = kafka.topic(), kafka.topic(2)
    bury(kafka, dead, source, range(30))
    settle = Redrive._settle

    def signalled(self: Redrive, sent: Any) -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        return settle(self, sent)

    argv = ["redrive", dead, "--broker", kafka.bootstrap_servers]
    with monkeypatch.context() as patch:
        patch.setattr(redrive, "AT_ONCE", 10)
        patch.setattr(Redrive, "_settle", signalled)
        ended = command(capsys, *argv)
    assert ended.code == 1
    assert ended.err == f"sent back from {dead}: 10\nkarafka-lite: stopped by SIGTERM; run it again to go on\n"
    assert committed(kafka, dead) == 10
    assert command(capsys, *argv).err == f"sent back from {dead}: 20\n"
    assert values(kafka, source) == list(range(30))


def test_a_mistake_is_one_message_and_sends_nothing(
    embedded_kafka: Observer, capsys: pytest.CaptureFixture[str]
) -> None:
    kafka = embedded_kafka
    dead, broker = kafka.topic(), ["--broker", kafka.bootstrap_servers]
    bury(kafka, dead, "gone", [1])
    for argv, words in [
        ([], "required: TOPIC"),
        (["missing.dead", *broker], "topic missing.dead does not exist"),
        ([dead, *broker, "--to", dead], f"--to {dead} is the dead-letter topic itself"),
        ([dead, *broker, "--to", "a b"], "'a b' is not a valid topic name"),
        ([dead, *broker, "--count", "-1"], "must be an integer ≥ 1, got '-1'"),
        ([dead, *broker], "topics of dead letters do not exist: gone (or no Describe permission); create them, or"),
    ]:
        refused(command(capsys, "redrive", *argv), words)
    assert committed(kafka, dead) is None
