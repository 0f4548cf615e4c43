"""Kafka in a container, with a real daemon: what comes up, and that nothing stays. Judged from outside.

On a Debian machine, as root: install Docker and iptables with apt-get, then ``dockerd --storage-driver=vfs``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
import pytest
from support.docker_kafka import DockerKafka, why_no_docker
from support.kafka_image import kafka_image
from support.kafka_server import free_ports
from support.observer import BreakableKafka, Observer, wait_until

from karafka_lite.broker.docker import DockerBroker
from karafka_lite.errors import BrokerUnavailableError, ConfigurationError

pytestmark = [
    pytest.mark.docker,
    pytest.mark.slow,
    pytest.mark.xdist_group("docker"),
]  # one image, one look at the daemon

APP = """\
from karafka_lite import App

app = App("event-store", bootstrap_servers="nowhere.invalid:9092", auto_commit_interval_ms=100)

@app.topic("user_events")
def store(batch, ctx):
    for message in batch:
        print("stored", message.payload, flush=True)
"""


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    if reason := why_no_docker():
        pytest.skip(reason)
    with kafka_image() as name:
        yield name


@pytest.fixture
def containers(image: str) -> Iterator[Callable[[], list[Any]]]:
    """Asks the daemon which containers the test has, in any state. Afterwards there must be none."""
    client = docker.from_env()

    def ours() -> list[Any]:
        there = client.containers.list(all=True, filters={"label": "karafka-lite=broker"}, ignore_removed=True)
        return [container for container in there if container.id not in before]

    before: set[str] = set()
    before = {container.id for container in ours()}
    try:
        yield ours
        assert not ours()
    finally:
        for container in ours():
            container.remove(force=True, v=True)
        client.close()


@contextmanager
def command(folder: Path, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """``karafka-lite …`` as a process of its own, that writes into ``folder``."""
    (folder / "events.py").write_text(APP)
    with (folder / "written").open("w") as written:
        process = subprocess.Popen(
            [sys.executable, "-m", "karafka_lite", *arguments],
            cwd=folder,
            env={**os.environ, **environment},
            stdout=written,
            stderr=written,
        )
    with process:
        try:
            yield process
        finally:
            process.kill()


def said(folder: Path, text: str) -> str:
    """What the command wrote, once ``text`` is in it."""

    def found() -> str:
        written = (folder / "written").read_text()
        return written if text in written else ""

    return wait_until(found, 60, f"{text!r} from the command")


def address(written: str) -> str:
    return next(word for word in written.replace(",", " ").split() if word.startswith("127.0.0.1:"))


def test_after_the_start_topics_take_messages_and_after_the_block_nothing_is_left(
    image: str, containers: Callable[[], list[Any]]
) -> None:
    with DockerBroker({"user_events": 3, "clicks": 1}, image=image) as broker:
        observer = Observer(broker.bootstrap_servers)
        placed = observer.produce("user_events", [1, 2, 3], partition=2)
        observer.produce("clicks", [4])
        (container,) = containers()
        observer.forget_clients()

    assert placed == [(2, 0), (2, 1), (2, 2)]
    assert not containers()
    (published,) = container.attrs["HostConfig"]["PortBindings"]["9092/tcp"]
    assert published == {"HostIp": "127.0.0.1", "HostPort": str(broker.port)}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_run_with_the_docker_broker_consumes_and_a_signal_commits_and_removes_the_container(
    image: str, containers: Callable[[], list[Any]], tmp_path: Path, number: int
) -> None:
    elsewhere = {"KARAFKA_LITE_BOOTSTRAP_SERVERS": "127.0.0.1:1"}
    with command(tmp_path, "run", "events", "--broker", "docker", "--image", image, **elsewhere) as process:
        observer = Observer(address(said(tmp_path, "data is discarded on exit")))
        observer.produce("user_events", [{"id": 7}])
        said(tmp_path, "stored {'id': 7}")
        wait_until(lambda: observer.committed("event-store", "user_events") == 1, 30, "a commit of the message")
        observer.forget_clients()
        process.send_signal(number)

        assert process.wait(60) == 0
    assert not containers()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("arguments", [("run", "events", "--broker", "docker"), ("broker", "--docker", "--port", "0")])
def test_a_signal_while_kafka_starts_removes_the_container(
    image: str, containers: Callable[[], list[Any]], tmp_path: Path, arguments: tuple[str, ...], number: int
) -> None:
    port = [str(free_ports(1)[0]) if word == "0" else word for word in arguments]
    with command(tmp_path, *port, "--image", image) as process:
        wait_until(containers, 60, "a container")
        process.send_signal(number)

        assert process.wait(60) == 1
    assert "Traceback" not in (tmp_path / "written").read_text()
    assert not containers()


def test_a_process_that_is_killed_leaves_no_container(
    image: str, containers: Callable[[], list[Any]], tmp_path: Path
) -> None:
    with command(tmp_path, "run", "events", "--broker", "docker", "--image", image) as process:
        said(tmp_path, "data is discarded on exit")
        process.kill()
    wait_until(lambda: not containers(), 60, "the removal of the container")


def test_a_second_ctrl_c_which_ends_the_app_at_once_leaves_no_container(
    image: str, containers: Callable[[], list[Any]], tmp_path: Path
) -> None:
    with command(tmp_path, "run", "events", "--broker", "docker", "--image", image) as process:
        said(tmp_path, "data is discarded on exit")
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)

        assert process.wait(60) in (0, 2)
    wait_until(lambda: not containers(), 60, "the removal of the container")


def test_the_broker_command_serves_other_terminals_until_sigterm(
    image: str, containers: Callable[[], list[Any]], tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    arguments = ("--docker", "--image", image, "--port", str(port), "--topic", "user_events:2")
    with command(tmp_path, "broker", *arguments) as process:
        written = said(tmp_path, "stop with Ctrl-C")
        observer = Observer(f"127.0.0.1:{port}")
        assert observer.produce("user_events", ["hello"], partition=1) == [(1, 0)]
        observer.forget_clients()
        process.send_signal(signal.SIGTERM)

        assert process.wait(60) == 0
    assert f"karafka-lite run module:app --broker 127.0.0.1:{port}" in written
    assert not containers()


def test_the_broker_command_ends_when_its_container_does(
    image: str, containers: Callable[[], list[Any]], tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    with command(tmp_path, "broker", "--docker", "--image", image, "--port", str(port)) as process:
        said(tmp_path, "stop with Ctrl-C")
        (container,) = containers()
        container.kill()

        assert process.wait(60) == 3
    assert "has exited" in (tmp_path / "written").read_text()
    assert not containers()


def test_a_container_that_exits_at_its_start_shows_its_last_lines(
    image: str, containers: Callable[[], list[Any]]
) -> None:
    with pytest.raises(BrokerUnavailableError, match=r"(?s)has exited.*unheard-of"):
        DockerBroker(image=image, settings={"process.roles": "unheard-of"}).start()
    assert not containers()


def test_a_port_that_is_in_use_is_refused_before_anything_is_started(
    image: str, containers: Callable[[], list[Any]]
) -> None:
    with DockerBroker(image=image) as broker:
        running = containers()
        with pytest.raises(ConfigurationError, match=rf"port {broker.port} on 127\.0\.0\.1 cannot be used"):
            DockerBroker(image=image, port=broker.port).start()
        assert containers() == running


def test_the_tests_own_broker_keeps_its_data_when_it_is_killed_stopped_paused_and_restarted(
    image: str, containers: Callable[[], list[Any]]
) -> None:
    with DockerKafka(image=image) as server:
        kafka = BreakableKafka(server)
        topic = kafka.topic()
        for number, harm in enumerate((kafka.kill, kafka.stop, kafka.pause)):
            kafka.produce(topic, [number])
            harm()
            (kafka.resume if harm == kafka.pause else kafka.restart)()
        assert [message.value() for message in kafka.records(topic)] == [b"0", b"1", b"2"]
        kafka.forget_clients()
