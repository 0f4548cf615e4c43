"""The messages of the docker broker, and what it removes, when Docker fails; with a stand-in for Docker's client.

A real daemon is asked in tests/broker/test_docker.py.
"""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Iterator
from typing import Any

import docker
import pytest
import requests
from support.kafka_server import free_ports

from karafka_lite.broker import docker as broker_module
from karafka_lite.broker.docker import DockerBroker
from karafka_lite.errors import BrokerUnavailableError, ConfigurationError

INSTEAD = "--broker embedded"


class Client:
    """A daemon that has the image and starts the container; ``fails`` names what it refuses, and how."""

    def __init__(self, **fails: BaseException) -> None:
        self.fails = fails
        self.pulls: list[dict[str, Any]] = []
        self.status = "running"
        self.lines = b"one\ntwo\n"
        self.created: dict[str, Any] = {}
        self.removed: list[str] = []
        self.images = self.containers = self.api = self

    def get(self, name: str) -> Client:
        if name == self.created.get("name"):
            self.ask("get")
            return self
        self.ask("image")
        return self

    def pull(self, repository: str, *, tag: str, stream: bool, decode: bool) -> Iterator[dict[str, Any]]:
        self.ask("pull")
        self.pulled = f"{repository}:{tag}"
        return iter(self.pulls)

    def run(self, image: str, **options: Any) -> Client:
        self.created = {"image": image, **options}
        self.ask("run")
        return self

    def reload(self) -> None:
        self.ask("reload")

    def logs(self, tail: int) -> bytes:
        return self.lines

    def remove(self, *, force: bool, v: bool) -> None:
        assert force
        assert v
        self.ask("remove")
        self.removed.append(self.created["name"])

    def close(self) -> None: ...

    def ask(self, what: str) -> None:
        if what in self.fails:
            raise self.fails[what]


def answer(status: int, text: str) -> docker.errors.APIError:
    response = requests.Response()
    response.status_code = status
    kind = docker.errors.ImageNotFound if status == 404 else docker.errors.APIError
    return kind("failed", response=response, explanation=text)


NO_CONTAINER = docker.errors.NotFound("no such container")
NO_IMAGE = answer(404, "No such image: apache/kafka:4.3.1")


def start(monkeypatch: pytest.MonkeyPatch, client: Client, **settings: Any) -> DockerBroker:
    monkeypatch.setattr(docker, "from_env", lambda: client)
    broker = DockerBroker(**{"timeout_ms": 1, **settings})
    broker.start()
    return broker


def without_docker(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def from_env() -> None:
        raise error

    monkeypatch.setattr(docker, "from_env", from_env)


def test_without_the_package_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "docker", None)
    with pytest.raises(ConfigurationError) as said:
        DockerBroker().start()
    assert "pip install 'karafka-lite[docker]'" in str(said.value)
    assert INSTEAD in str(said.value)


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        ("('Connection aborted.', FileNotFoundError(2, 'No such file or directory'))", "no Docker daemon answers"),
        ("('Connection aborted.', ConnectionRefusedError(111, 'Connection refused'))", "no Docker daemon answers"),
        ("('Connection aborted.', PermissionError(13, 'Permission denied'))", "add the user to the group docker"),
    ],
)
def test_without_a_daemon_it_is_no_broker_and_names_the_embedded_one(
    monkeypatch: pytest.MonkeyPatch, cause: str, words: str
) -> None:
    without_docker(monkeypatch, docker.errors.DockerException(f"Error while fetching server API version: {cause}"))
    with pytest.raises(BrokerUnavailableError) as said:
        DockerBroker().start()
    assert words in str(said.value)
    assert INSTEAD in str(said.value)


@pytest.mark.parametrize(
    ("fails", "kind", "words"),
    [
        ({"pull": answer(404, "pull access denied")}, ConfigurationError, "cannot be pulled: pull access denied"),
        (
            {"pull": answer(500, "dial tcp: no such host")},
            BrokerUnavailableError,
            "cannot be pulled: dial tcp: no such",
        ),
        ({"image": answer(400, "invalid reference format")}, ConfigurationError, "cannot use the image apache/kafka"),
        ({"image": requests.ConnectionError("gone")}, BrokerUnavailableError, "cannot use the image apache/kafka"),
    ],
)
def test_an_image_that_cannot_be_had_is_one_message(
    monkeypatch: pytest.MonkeyPatch, fails: dict[str, Exception], kind: type[Exception], words: str
) -> None:
    client = Client(**{"image": NO_IMAGE, **fails})
    with pytest.raises(kind) as said:
        start(monkeypatch, client)
    assert type(said.value) is kind
    assert words in str(said.value)
    assert INSTEAD in str(said.value)
    assert not client.created


def test_a_pull_is_logged_with_its_size_and_an_error_after_the_status_counts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(broker_module, "PROGRESS_INTERVAL_S", 0)
    client = Client(image=NO_IMAGE)
    client.pulls = [
        {"status": "Pulling from apache/kafka", "id": "4.3.1"},
        {"status": "Downloading", "id": "a", "progressDetail": {"current": 40_000_000, "total": 90_000_000}},
        {"status": "Downloading", "id": "b", "progressDetail": {"current": 2_000_000, "total": 2_000_000}},
        {"error": "unexpected EOF"},
    ]
    with caplog.at_level(logging.INFO), pytest.raises(BrokerUnavailableError, match="cannot be pulled: unexpected EOF"):
        start(monkeypatch, client)
    assert client.pulled == "apache/kafka:4.3.1"
    assert "pulling apache/kafka:4.3.1: 42 MB so far" in caplog.text


def test_a_container_that_cannot_start_is_removed_and_dockers_reason_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(run=answer(500, "port is already allocated"))
    with pytest.raises(BrokerUnavailableError, match=r"could not start apache/kafka:\S+ port is already allocated"):
        start(monkeypatch, client)
    assert client.removed == [client.created["name"]]


def test_a_container_that_ends_shows_its_last_lines_and_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client()
    client.status = "exited"
    with pytest.raises(BrokerUnavailableError) as said:
        start(monkeypatch, client)
    assert "has exited" in str(said.value)
    assert str(said.value).endswith("the end of its log:\none\ntwo")
    assert INSTEAD in str(said.value)
    assert client.removed


def test_kafka_that_does_not_answer_in_time_shows_its_last_lines_and_is_removed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = Client()
    with pytest.raises(BrokerUnavailableError) as said:
        start(monkeypatch, client)
    assert "Kafka did not answer at 127.0.0.1:" in str(said.value)
    assert "within 1 ms" in str(said.value)
    assert str(said.value).endswith("one\ntwo")
    assert client.removed


def test_a_port_that_is_in_use_is_refused_before_a_container_is_created(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client()
    with socket.create_server(("127.0.0.1", free_ports(1)[0])) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"port {port} on 127.0.0.1 cannot be used.*--port {port + 1}"):
            start(monkeypatch, client, port=port)
    assert not client.created


def test_a_ctrl_c_while_kafka_starts_removes_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(reload=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        start(monkeypatch, client)
    assert client.removed == [client.created["name"]]


@pytest.mark.parametrize(
    ("ends", "is_gone"), [(KeyboardInterrupt(), False), (answer(500, "no space left"), True)], ids=["Ctrl-C", "refused"]
)
def test_a_container_that_the_daemon_may_still_be_creating_is_left_to_the_watchdog(
    monkeypatch: pytest.MonkeyPatch, ends: BaseException, is_gone: bool
) -> None:
    stopped: list[bool] = []

    class Watchdog:
        def __init__(self, container: str) -> None: ...

        def stop(self, *, removed: bool) -> None:
            stopped.append(removed)

    monkeypatch.setattr(broker_module, "_Watchdog", Watchdog)
    with pytest.raises((KeyboardInterrupt, BrokerUnavailableError)):
        start(monkeypatch, Client(get=NO_CONTAINER, run=ends))
    assert stopped == [is_gone]


def test_a_container_that_cannot_be_removed_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere")  # for the watchdog, which also tries
    client = Client(reload=KeyboardInterrupt(), remove=requests.ConnectionError("gone"))
    with pytest.raises(KeyboardInterrupt):
        start(monkeypatch, client)
    assert f"remove it with: docker rm -f -v {client.created['name']}" in caplog.text


def test_the_container_is_configured_by_the_variables_of_apaches_image(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client()
    with pytest.raises(BrokerUnavailableError):
        start(monkeypatch, client, port=free_ports(1)[0], settings={"log.dirs": "/data", "a-b_c": 1})
    variables = client.created["environment"]
    (port,) = client.created["ports"].values()
    assert port[0] == "127.0.0.1"
    assert variables["KAFKA_ADVERTISED_LISTENERS"].startswith(f"HOST://127.0.0.1:{port[1]},")
    assert variables["KAFKA_PROCESS_ROLES"] == "broker,controller"
    assert variables["KAFKA_LOG_DIRS"] == "/data"
    assert variables["KAFKA_A___B__C"] == "1"
    assert client.created["labels"] == {"karafka-lite": "broker"}
