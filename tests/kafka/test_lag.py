"""``karafka-lite lag``: compared with what another client sees, and with where an App begins."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from kafka.errors import CoordinatorLoadInProgressError, GroupAuthorizationFailedError, NotCoordinatorError
from support.command import Terminal, command, process, refused, rows, write_app
from support.harness import make_app, running
from support.observer import Observer, wait_until

from karafka_lite.broker import EmbeddedBroker
from karafka_lite.cli.lag import lag_of
from karafka_lite.core.starts import Note, Place


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    return tmp_path


def test_every_partition_is_named_with_commit_end_lag_and_member_as_another_client_sees_them(
    kafka: Observer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    topic, group = kafka.topic(3), kafka.group()
    for partition, count in enumerate((5, 3, 0)):
        kafka.produce(topic, range(count), partition)
    kafka.commit(group, topic, 2, 0)
    app = write_app(folder, kafka, group, topic)

    def expected(lag_s: list[int]) -> list[dict[str, Any]]:
        owners = {tp: member for member, tps in kafka.assignment(group).items() for tp in tps}
        return [
            {
                "group_id": group,
                "topic": topic,
                "partition": partition,
                "committed": kafka.committed(group, topic, partition),
                "end": kafka.end_offset(topic, partition),
                "lag": lag_s[partition],
                "member": owners.get((topic, partition)),
            }
            for partition in range(3)
        ]

    done = process("-m", "karafka_lite", "lag", app, "--json", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert rows(done.stdout) == expected([3, 3, 0])

    never = write_app(folder, kafka, kafka.group(), topic)
    assert [row["lag"] for row in rows(command(capsys, "lag", never, "--json").out)] == [5, 3, 0], "it never ran"
    worker = make_app(kafka, group)

    @worker.topic(topic)
    def work(batch: Any, ctx: Any) -> None: ...

    with running(worker):
        wait_until(lambda: sum(map(len, kafka.assignment(group).values())) == 3, message="it owns all")
        ended = command(capsys, "lag", "--group", group, "--broker", kafka.bootstrap_servers, "--json")
        assert rows(ended.out) == expected([3, 3, 0])
        assert all(row["member"] for row in rows(ended.out))
    ended = command(capsys, "lag", "--group", group, "--app", app, "--json")
    assert rows(ended.out) == expected([0, 0, 0])


@pytest.mark.parametrize(
    ("place", "reset", "lag"),
    [
        (Place(2, 10, 10, 4), "earliest", 6),
        (Place(2, 10, 10), "earliest", 8),
        (Place(2, 10, 9, partitions=2), "latest", 0),
        (Place(2, 10, 10, siblings=(Note("", 1),)), "latest", 8),  # partition 1 appeared later
        (Place(2, 10, 10), "none", None),
        (Place(5, 10, 10, 4), "earliest", 5),  # what retention has deleted, nobody will process
        (Place(2, 10, 10, 12), "earliest", 0),
        (Place(2, 10, 10, 9, Note("old"), "new"), "latest", 8),  # the commit is of another topic of that name
        (Place(2, 10, 7, 7), "earliest", 0),  # read_committed, with an open transaction
    ],
)
def test_the_lag_is_counted_from_where_a_member_would_begin(place: Place, reset: str, lag: int | None) -> None:
    assert lag_of(place, 1, reset) == lag


def test_past_max_lag_the_exit_code_is_1_and_partitions_are_named(
    embedded_kafka: Observer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kafka = embedded_kafka
    topic, group = kafka.topic(2), kafka.group()
    kafka.produce(topic, range(3), 1)
    app = write_app(folder, kafka, group, topic)
    assert command(capsys, "lag", app, "--max-lag", "3").code == 0
    late = command(capsys, "lag", app, "--max-lag", "2")
    assert late.code == 1
    assert late.err == f"karafka-lite: the lag of {topic}-1 is 3, past --max-lag 2\n"
    assert len(late.out.splitlines()) == 3
    nowhere = write_app(folder, kafka, kafka.group(), topic, auto_offset_reset="none")
    unknown = command(capsys, "lag", nowhere, "--max-lag", "9")
    assert unknown.code == 1
    assert f"the lag of {topic}-0 is not known, past --max-lag 9" in unknown.err


def test_a_mistake_is_one_message(embedded_kafka: Observer, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kafka, broker = embedded_kafka, ["--broker", embedded_kafka.bootstrap_servers]
    for argv, words in [
        ([], "give either module:app or --group GROUP"),
        (["m:app", "--group", "g"], "give either module:app or --group GROUP"),
        (["m:app", "--app", "n:app"], "--app is for --group"),
        (["--group", "g", "--json", "--watch"], "not allowed with argument"),
        (["--group", "g", "--watch", "--max-lag", "3"], "--max-lag cannot be combined with --watch"),
        (["--group", "g", "--watch"], "--watch needs a terminal"),
        (["--group", "g", "--max-lag", "-3"], "must be an integer ≥ 0, got '-3'"),
        (["--group", kafka.group(), *broker], "has no committed offset and no members; is that its name?"),
        (["no_module:app", *broker], "no module named 'no_module'"),
    ]:
        refused(command(capsys, "lag", *argv), words)
    missing = kafka.name("missing")
    topic = kafka.topic()
    ended = command(capsys, "lag", write_app(folder, kafka, kafka.group(), missing, topic), "--json")
    assert (ended.code, [row["topic"] for row in rows(ended.out)]) == (1, [topic])
    assert ended.err == f"karafka-lite: topics do not exist: {missing} (or no Describe permission)\n"


def test_a_coordinator_that_loads_is_asked_again_and_one_that_refuses_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with EmbeddedBroker({"orders": 1}) as broker:
        argv = ["lag", "--group", "shop", "--broker", broker.bootstrap_servers]
        Observer(broker.bootstrap_servers).commit("shop", "orders", 0)
        broker.fail("DescribeGroups", CoordinatorLoadInProgressError)
        broker.fail("OffsetFetch", NotCoordinatorError)
        assert command(capsys, *argv).code == 0
        broker.fail("DescribeGroups", GroupAuthorizationFailedError)
        refused(command(capsys, *argv), "could not describe group shop (", "GroupAuthorizationFailedError")


def test_on_a_terminal_it_is_refreshed_in_place_until_ctrl_c(embedded_kafka: Observer, folder: Path) -> None:
    kafka = embedded_kafka
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(3))
    with Terminal("lag", write_app(folder, kafka, group, topic), "--watch", cwd=folder) as terminal:
        terminal.until("Ctrl-C ends it")
        kafka.produce(topic, range(4))
        terminal.until("7    7")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.process.wait(20) == 0
        terminal.until("\r\n")
    assert "Traceback" not in terminal.shown
