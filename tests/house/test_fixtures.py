"""The fixtures keep their word: a test of the framework is worth what its judge is worth."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE

import pytest
from confluent_kafka import Consumer
from support import kafka_server
from support.kafka_server import free_ports, kafka_source
from support.observer import BreakableKafka, Observer, wait_until

TESTS = Path(__file__).parents[1]


def test_a_topic_is_created_with_its_partitions_and_configs(kafka: Observer) -> None:
    topic = kafka.topic(3, retention_ms=123_000)

    assert [kafka.end_offset(topic, partition) for partition in range(3)] == [0, 0, 0]
    assert kafka.topic() != kafka.topic()


def test_produce_returns_places_in_order_and_the_records_can_be_read_back(kafka: Observer) -> None:
    topic = kafka.topic(2)

    placed = kafka.produce(topic, [b"raw", "text", {"n": 1}, None], 1, keys=["a", b"b", None, "d"], timestamps=1000)

    assert placed == [(1, 0), (1, 1), (1, 2), (1, 3)]
    assert kafka.end_offset(topic, 1) == 4
    records = kafka.records(topic)
    assert [record.value() for record in records] == [b"raw", b"text", b'{"n": 1}', None]
    assert [record.key() for record in records] == [b"a", b"b", None, b"d"]
    assert {record.timestamp()[1] for record in records} == {1000}


def test_many_messages_keep_their_order(kafka: Observer) -> None:
    topic = kafka.topic()

    assert kafka.produce(topic, map(str, range(20_000))) == [(0, offset) for offset in range(20_000)]
    assert [record.value() for record in kafka.records(topic)] == [b"%d" % n for n in range(20_000)]


def test_committed_is_none_until_somebody_commits(kafka: Observer) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, [b"x"] * 5)
    assert kafka.committed(group, topic) is None
    assert kafka.group_state(group) == "DEAD"
    assert kafka.members(group) == []

    consumer = Consumer(
        {"bootstrap.servers": kafka.bootstrap_servers, "group.id": group, "auto.offset.reset": "earliest"}
    )
    consumer.subscribe([topic])
    message = wait_until(lambda: consumer.poll(0.1), message="a first message")
    assert kafka.group_state(group) == "STABLE"
    assert list(kafka.assignment(group).values()) == [[(topic, 0)]]
    consumer.commit(message, asynchronous=False)
    assert kafka.committed(group, topic) == 1
    consumer.close()

    wait_until(lambda: kafka.group_state(group) == "EMPTY", message="the group is left")


def test_a_private_broker_hangs_while_paused_and_answers_when_resumed(private_kafka: BreakableKafka) -> None:
    topic = private_kafka.topic()
    private_kafka.pause()
    address = private_kafka.bootstrap_servers.split(":")
    with socket.create_connection((address[0], int(address[1])), timeout=5) as connection:
        connection.sendall(b"\0\0\0\x0e" + b"\0\x03\0\x01\0\0\0\x01\xff\xff\0\0\0\0")  # Metadata v1 of no topics
        connection.settimeout(0.5)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        private_kafka.resume()
        connection.settimeout(10)
        assert connection.recv(1)

    assert private_kafka.produce(topic, [b"x"]) == [(0, 0)]


def test_a_private_broker_keeps_its_port_and_its_data_over_a_restart(private_kafka: BreakableKafka) -> None:
    topic = private_kafka.topic()
    address = private_kafka.bootstrap_servers
    private_kafka.produce(topic, [b"x"])

    for offset, end in enumerate([private_kafka.stop, private_kafka.kill], start=1):
        end()
        assert not listens(int(address.split(":")[1]))
        private_kafka.restart()

        assert private_kafka.bootstrap_servers == address
        assert private_kafka.produce(topic, [b"y"]) == [(0, offset)]
        assert len(private_kafka.records(topic)) == offset + 1


def test_a_cluster_goes_on_without_one_of_its_nodes(cluster: BreakableKafka) -> None:
    topic = cluster.topic(3)
    cluster.kill(2)

    for partition in range(3):
        assert cluster.produce(topic, [b"x"], partition) == [(partition, 0)]
    cluster.restart(2)
    assert len(cluster.records(topic)) == 3


@pytest.mark.kafka
def test_brokers_die_with_a_test_process_that_is_killed(tmp_path: Path) -> None:
    if kafka_source().kind != "java":
        pytest.skip("this is about brokers that are child processes")
    program = f"""
import sys; sys.path.insert(0, {str(TESTS)!r})
from support.kafka_server import JavaKafka
with JavaKafka() as server:
    print(server.bootstrap_servers, flush=True)
    input()
"""
    command = [sys.executable, "-W", "ignore", "-c", program]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True, env=environment) as process:
        assert process.stdout
        port = int(process.stdout.readline().split(":")[1])
        assert listens(port)
        assert list(tmp_path.iterdir())
        process.kill()

    wait_until(lambda: not listens(port), message="the broker is gone")
    wait_until(lambda: not list(tmp_path.iterdir()), message="its data is gone")


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


def test_wait_until_says_what_it_waited_for_and_what_it_saw() -> None:
    with pytest.raises(AssertionError, match=r"a commit: not within 0.05 s; the last value was None"):
        wait_until(lambda: None, timeout=0.05, message="a commit")
    assert wait_until(lambda: 7) == 7


# -- the rules of conftest.py, tried on small suites of their own -----------------------------------------------------


def run_pytest(folder: Path, tests: str, *options: str, **environment: str) -> str:
    """What pytest prints about a file with these tests, under this suite's conftest and settings."""
    (folder / "test_small.py").write_text(tests)
    house = ["-p", "conftest", "-c", str(TESTS.parent / "pyproject.toml"), "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *house, *options, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "CI": "", **environment}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, timeout=60).stdout


def test_a_leaked_thread_fails_the_test_and_is_named_with_its_stack(tmp_path: Path) -> None:
    tests = """
import threading
def forgotten_loop(): threading.Event().wait()
def test_leaks(): threading.Thread(target=forgotten_loop, name="leaky", daemon=True).start()
def test_does_not(): pass
def test_ends_in_time():
    threading.Thread(target=threading.Event().wait, args=(0.2,)).start()
"""
    printed = run_pytest(tmp_path, tests)

    assert "threads left behind:\nleaky (daemon):" in printed
    assert "in forgotten_loop" in printed
    assert "3 passed, 1 error" in printed


NOWHERE = {"PATH": "", "DOCKER_HOST": "unix:///nowhere", "KARAFKA_LITE_TEST_BOOTSTRAP_SERVERS": ""}
NEEDS_KAFKA = "def test_needs(kafka): pass\ndef test_fast(): pass\n"


def test_without_kafka_its_tests_are_skipped_with_the_reason(tmp_path: Path) -> None:
    printed = run_pytest(tmp_path, NEEDS_KAFKA, **NOWHERE)

    assert "2 passed, 1 skipped" in printed  # the embedded broker is always there
    assert "java is not installed; no Docker daemon answers" in printed


def test_without_kafka_its_tests_fail_in_ci(tmp_path: Path) -> None:
    printed = run_pytest(tmp_path, NEEDS_KAFKA, **NOWHERE, CI="true")

    assert "2 passed, 1 error" in printed
    assert "java is not installed; no Docker daemon answers" in printed


def test_users_of_kafka_are_marked_by_themselves_and_run_after_the_fast_ones(tmp_path: Path) -> None:
    tests = "import pytest\n@pytest.mark.slow\ndef test_slow(): pass\n" + NEEDS_KAFKA
    assert "3 passed, 1 deselected" in run_pytest(tmp_path, tests, "-m", "not kafka")

    order = run_pytest(tmp_path, tests, "--collect-only", "-q")
    wanted = ["test_fast", "test_needs[embedded]", "test_needs[apache]", "test_slow"]
    assert sorted(wanted, key=order.index) == wanted


def test_a_test_runs_on_both_brokers_or_on_apache_only(tmp_path: Path) -> None:
    tests = """
import pytest
def test_both(kafka): pass
def test_private(private_kafka): pass
@pytest.mark.apache_only("it asks for a disk")
def test_once(kafka): pass
"""
    collected = run_pytest(tmp_path, tests, "--collect-only", "-q")
    found = {line.partition("::")[2] for line in collected.splitlines() if "::" in line}
    both = {f"{test}[{broker}]" for test in ("test_both", "test_private") for broker in ("apache", "embedded")}
    assert found == {*both, "test_once[apache]"}


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ([], ["pure", "compiled", None]),
        (["--decoder", "pure"], ["pure"] * 3),
        (["--decoder", "compiled"], ["compiled"] * 3),
    ],
    ids=["both", "pure", "compiled"],
)
def test_each_test_and_its_processes_read_with_the_decoder_of_the_option(
    tmp_path: Path, option: list[str], expected: list[str | None]
) -> None:
    pytest.importorskip("aiokafka")
    tests = f"""
import os, pytest, subprocess, sys
EXPECTED = {expected}
NAMES = {{"pure": "pure Python", "compiled": "compiled (aiokafka ", None: ""}}
PROGRAM = "from karafka_lite.client.reader import choose_reader; print(choose_reader().name)"
def reads_with(expected):
    from karafka_lite.client.reader import choose_reader
    said = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stdout
    assert choose_reader().name.startswith(NAMES[expected])
    assert said == choose_reader().name + "\\n"
@pytest.mark.kafka
def test_on_apache(): reads_with(EXPECTED[0])
def test_on_embedded(kafka): reads_with(EXPECTED[1])
def test_again(): reads_with(EXPECTED[2])
"""
    printed = run_pytest(tmp_path, tests, *option, "-k", "not test_on_embedded[apache]")
    assert "3 passed" in printed, printed


def test_plain_pytest_runs_in_one_process_so_that_a_debugger_and_prints_work(tmp_path: Path) -> None:
    tests = """
def test_fails(pytestconfig):
    print("in", "a worker" if hasattr(pytestconfig, "workerinput") else "this process")
    assert False
"""
    printed = run_pytest(tmp_path, tests, "-x", "--pdb", "-s")
    assert "in this process" in printed
    assert "(Pdb) " in printed


def test_side_by_side_the_tests_of_a_group_share_a_worker(tmp_path: Path) -> None:
    tests = """
import os, pathlib, pytest
@pytest.mark.parametrize("number", range(6))
@pytest.mark.xdist_group("one")
def test_of_a_group(number): pathlib.Path(f"ran-{number}").write_text(os.environ["PYTEST_XDIST_WORKER"])
"""
    assert "6 passed" in run_pytest(tmp_path, tests, "-n", "3")
    assert len({path.read_text() for path in tmp_path.glob("ran-*")}) == 1


def test_side_by_side_a_worker_that_dies_ends_the_run(tmp_path: Path) -> None:
    tests = "import os\ndef test_dies(): os._exit(1)\n"
    assert "worker gw0 crashed and worker restarting disabled" in run_pytest(tmp_path, tests, "-n", "1")


def test_side_by_side_what_takes_long_starts_first(tmp_path: Path) -> None:
    tests = "import pytest\ndef test_fast(): pass\n@pytest.mark.slow\ndef test_slow(): pass\n"
    order = run_pytest(tmp_path, tests, "-n", "1", "-v")
    assert order.index("::test_slow") < order.index("::test_fast")


def test_side_by_side_who_waits_for_a_broker_runs_among_who_works_by_itself(tmp_path: Path) -> None:
    tests = """
import pytest
@pytest.mark.parametrize("n", range(9))
def test_works(n): pass
@pytest.mark.apache_only("skipped here")
@pytest.mark.parametrize("n", range(3))
def test_waits(kafka, n): pass
"""
    order = run_pytest(tmp_path, tests, "-n", "1", "-v", **NOWHERE)
    ran = re.findall(r"SKIPPED|PASSED", order)[:12]
    assert ran == ["SKIPPED", "PASSED", "PASSED", "PASSED"] * 3


def test_a_test_that_hangs_fails_with_its_stack_and_the_others_go_on(tmp_path: Path) -> None:
    tests = """
import pytest, threading
@pytest.mark.timeout(1)
def test_hangs(): threading.Event().wait()
def test_does_not(): pass
"""
    printed = run_pytest(tmp_path, tests, "-n", "2")
    assert "1 failed, 1 passed" in printed
    assert "def test_hangs(): threading.Event().wait()" in printed
    assert "Timeout (>1.0s)" in printed


def test_the_signal_of_ctrl_c_works_also_in_a_run_that_a_shell_started_in_the_background(tmp_path: Path) -> None:
    tests = """
import signal, subprocess, sys
def test_here(): assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
def test_below():
    program = "import signal; assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    subprocess.run([sys.executable, "-c", program], check=True)
"""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # what such a shell does, and what children inherit
    try:
        printed = run_pytest(tmp_path, tests, "-n", "1")
    finally:
        signal.signal(signal.SIGINT, before)
    assert "2 passed" in printed


def test_the_brokers_of_two_workers_have_different_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    ports = []
    for worker in ("gw0", "gw1"):
        monkeypatch.setenv("PYTEST_XDIST_WORKER", worker)
        ports.append(set(free_ports(1000)))
    assert len(ports[0]) == len(ports[1]) == 1000
    assert not ports[0] & ports[1]


def test_of_two_workers_without_kafka_one_fetches_it_and_the_other_waits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home, both, fetched = tmp_path / "kafka", threading.Barrier(2), []

    def fetch() -> None:
        fetched.append(1)
        with suppress(threading.BrokenBarrierError):
            both.wait(0.5)  # long enough for the other one to come here as well, if it may
        home.mkdir(exist_ok=True)

    monkeypatch.setattr(kafka_server, "CACHE", home)
    monkeypatch.setattr(kafka_server, "_make_home", fetch)
    monkeypatch.setattr(kafka_server, "_make_classes", Path.touch)
    monkeypatch.setattr(kafka_server.shutil, "which", lambda name: name)
    with ThreadPoolExecutor(2) as workers:
        assert list(workers.map(lambda _: kafka_server.kafka_home(), range(2))) == [home, home]
    assert fetched == [1]


def test_hypothesis_gets_along_with_the_fixtures_of_every_test(tmp_path: Path) -> None:
    tests = """
from hypothesis import given, strategies as st
@given(st.integers())
def test_property(n): assert n == n
"""
    assert "1 passed" in run_pytest(tmp_path, tests)
