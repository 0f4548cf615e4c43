"""``karafka-lite run --processes N`` on a real Kafka: who dies is replaced, a signal is for all, nobody is left."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.harness import Process
from support.observer import Observer, wait_until

from karafka_lite import Health
from karafka_lite.cli.child import FED, WORKS
from karafka_lite.cli.children import Child
from karafka_lite.observers.metrics import Reading

BECOME_THE_COMMAND = """
    os.execv(sys.executable, [sys.executable, "-m", "karafka_lite", "run", *sys.argv[1:]])
"""

CONSUMERS = """
    from karafka_lite import App

    app = App({group!r}, bootstrap_servers={servers!r}, heartbeat_interval_ms=300, session_timeout_ms=2000,
              fetch_max_wait_ms=100, auto_commit_interval_ms=300, bootstrap_timeout_ms=10_000)

    @app.topic({topic!r}, max_messages=2)
    def work(batch, ctx):
        say(pid=os.getpid(), parent=os.getppid(), partition=batch.partition, offsets=[m.offset for m in batch])

    @app.on_assigned(work)
    def begin(ctx):
        say(pid=os.getpid(), assigned=ctx.partition)

    {more}
"""


def run(kafka: Observer, folder: Path, topic: str, group: str, *options: str, more: str = "") -> Process:
    """``karafka-lite run consumers.py …``, with ``say`` in that file."""
    file = folder / "consumers.py"
    text = textwrap.dedent(CONSUMERS).format(group=group, servers=kafka.bootstrap_servers, topic=topic, more=more)
    file.write_text(textwrap.dedent(Process.PRELUDE) + text)
    return Process(kafka, BECOME_THE_COMMAND, folder, str(file), *options)


def pids(process: Process) -> set[int]:
    return {fact["pid"] for fact in process.facts if "pid" in fact}


def handled(process: Process) -> list[tuple[int, int]]:
    return [(fact["partition"], offset) for fact in process.facts if "offsets" in fact for offset in fact["offsets"]]


def is_alive(pid: int) -> bool:
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return bool(done.stdout.strip()) and not done.stdout.startswith("Z")  # nobody may care for an orphan that has ended


def test_a_child_that_is_killed_is_replaced_within_2_s_and_loses_nothing_and_a_signal_stops_all_without_a_rebalance(
    kafka: Observer, tmp_path: Path
) -> None:
    topic, group = kafka.topic(4), kafka.group()

    def produce() -> None:
        for partition in range(4):
            kafka.produce(topic, range(10), partition=partition)

    produce()
    with run(kafka, tmp_path, topic, group, "--processes", "2") as process:
        wait_until(lambda: len(set(handled(process))) == 40 and len(pids(process)) == 2, message="two share the work")
        (victim, other), began = sorted(pids(process)), time.monotonic()
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: process.errors().count(" started, pid ") == 3, timeout=2, message="the other one started")
        assert time.monotonic() - began < 2
        produce()
        wait_until(lambda: len(set(handled(process))) == 80, message="nothing is lost")
        wait_until(lambda: len(pids(process)) == 3, message="the new one is given partitions")
        wait_until(lambda: all(kafka.committed(group, topic, n) == 20 for n in range(4)), message="all is committed")
        produce()
        wait_until(lambda: len(set(handled(process))) == 120, message="the last ones")
        assigned = process.errors().count("assigned")
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    said = process.errors()
    assert said.count("assigned") == assigned, "no rebalance comes to its end while all leave"
    assert said.count(": left") == 2
    assert kafka.members(group) == []
    assert [kafka.committed(group, topic, n) for n in range(4)] == [30] * 4
    last = [place for place in handled(process) if place[1] >= 20]
    assert len(last) == len(set(last)), "nothing is repeated"
    assert re.search(r"ERROR karafka_lite: \[\d\] was killed by SIGKILL; it is started again in 0\.5 s", said)
    assert {int(number) for number in re.findall(r"karafka_lite: \[(\d)\] group .*: left", said)} == {1, 2}
    assert said.count(f"group {group}: {topic} -> work") == 1, "one banner"
    assert not is_alive(other)


def test_nobody_survives_a_supervisor_that_is_killed(kafka: Observer, tmp_path: Path) -> None:
    topic, group = kafka.topic(2), kafka.group()
    with run(kafka, tmp_path, topic, group, "--processes", "2") as process:
        wait_until(lambda: len(pids(process)) == 2, message="both are assigned")
        process.signal(signal.SIGKILL)
        process.process.wait(10)
        try:
            wait_until(lambda: not any(map(is_alive, pids(process))), message="both have ended")
        finally:
            for pid in filter(is_alive, pids(process)):
                os.kill(pid, signal.SIGKILL)
    assert kafka.members(group) == [], "in good order"


@pytest.mark.parametrize(
    ("broker", "more", "code", "says"),
    [
        ("127.0.0.1:1", "", 3, "no broker could be reached"),
        (
            "",
            "if os.getppid() != int(os.environ['TEST']): os._exit(9)",
            1,
            "the fifth process that has died within 60 s",
        ),
    ],
    ids=["no broker", "five deaths"],
)
def test_a_start_that_cannot_work_ends_all_with_its_exit_code(
    embedded_kafka: Observer, tmp_path: Path, broker: str, more: str, code: int, says: str
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        f"import os\nfrom karafka_lite import App\napp = App('g', bootstrap_timeout_ms=300)\n{more}\n"
        f"@app.topic('t')\ndef work(batch, ctx): ...\n"
    )
    servers = broker or embedded_kafka.bootstrap_servers
    options = [str(file), "--processes", "3", "--broker", servers]
    with Process(embedded_kafka, BECOME_THE_COMMAND, tmp_path, *options, TEST=str(os.getpid())) as process:
        assert process.wait(30) == code
    assert says in process.errors()
    assert "Traceback" not in process.errors()


def test_what_a_child_says_is_heard_whole_in_whatever_pieces_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = list[socket.socket]()

    def popen(command: object, pass_fds: list[int], env: object) -> Any:
        ends.append(socket.socket(fileno=os.dup(pass_fds[0])))
        return SimpleNamespace(poll=lambda: None if child_runs else 0)

    child_runs = True
    monkeypatch.setattr("karafka_lite.cli.children.subprocess.Popen", popen)
    child = Child([], {})
    reading = Reading(lags={("shop", "orders", partition): partition for partition in range(10_000)})
    answer = {"health": [True, False, ["is starting"]], "reading": reading.plain()}
    said = "".join(json.dumps(one) + "\n" for one in (FED, answer, WORKS)).encode()
    assert len(said) > 200_000
    (theirs,) = ends
    with theirs:
        assert json.loads(theirs.recv(100)) == {}, "its orders"
        for begin in range(0, len(said), 50_000):
            assert child.ended() is None
            theirs.sendall(said[begin : begin + 50_000])
        child.ended()
    assert (child.fed, child.works, child.talks) == (True, True, True)
    assert child.answers == [(Health(live=True, ready=False, reasons=("is starting",)), reading)]
    child_runs = False
    assert (child.ended(), child.talks) == (0, False)
