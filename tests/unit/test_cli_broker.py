"""``karafka-lite broker`` and ``run --broker embedded|docker``: what is started, printed and stopped."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import pytest
from kafka import KafkaProducer

from karafka_lite.app import App
from karafka_lite.broker import EmbeddedBroker, docker
from karafka_lite.cli import broker as broker_command
from karafka_lite.cli import console, importer
from karafka_lite.cli import main as cli
from karafka_lite.errors import BrokerUnavailableError, ConfigurationError


class Started(NamedTuple):
    kind: str
    topics: Mapping[str, int]
    port: int
    image: str | None


class Ended(NamedTuple):
    code: object
    err: str


class Brokers:
    """Stands in for both brokers: records what was started, how the App ran, and whether the broker was stopped."""

    def __init__(self) -> None:
        self.started: list[Started] = []
        self.ended = 0
        self.ran_at: list[list[str]] = []
        self.bootstrap_servers = "127.0.0.1:29999"
        self.fails: Exception | None = None
        self.while_it_serves: Callable[[], object] = lambda: None

    def new(self, kind: str, topics: Mapping[str, int], port: int, image: str | None) -> Brokers:
        self.started.append(Started(kind, topics, port, image))
        return self

    def __enter__(self) -> Brokers:
        if self.fails:
            raise self.fails
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.ended += 1

    def wait(self) -> None:
        self.while_it_serves()
        pytest.fail("nobody ended it")

    def run(self, app: App) -> int:
        self.ran_at.append(app.brokers())
        self.while_it_serves()
        return 0


@pytest.fixture
def brokers(monkeypatch: pytest.MonkeyPatch) -> Brokers:
    brokers = Brokers()
    app = App("event-store", bootstrap_servers="kafka:9092")
    app.topic("user_events")(lambda batch, ctx: None)
    app.topic("user_events", "clicks", group_id="statistics")(lambda batch, ctx: None)
    monkeypatch.setattr(broker_command, "development_broker", brokers.new)
    monkeypatch.setattr(importer, "load_app", lambda target: app)
    monkeypatch.setattr(console, "configure_logging", lambda level: None)
    monkeypatch.setattr(console, "logging_of_the_users_module", lambda level: nullcontext())
    monkeypatch.setattr(App, "serve_here", lambda app: brokers.run(app))
    return brokers


@pytest.fixture
def call(brokers: Brokers, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Ended]]:
    before = signal.getsignal(signal.SIGTERM)

    def call(*argv: str) -> Ended:
        try:
            code: object = cli.main(argv)
        except SystemExit as end:
            code = end.code
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "Traceback" not in captured.err
        return Ended(code, captured.err)

    yield call
    assert signal.getsignal(signal.SIGTERM) is before


Call = Callable[..., Ended]


@pytest.mark.parametrize("kind", ["embedded", "docker"])
def test_run_starts_a_broker_with_the_apps_topics_for_the_app_alone(
    call: Call, brokers: Brokers, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("KARAFKA_LITE_BOOTSTRAP_SERVERS", "elsewhere:9092")
    brokers.while_it_serves = lambda: brokers.ended and pytest.fail("the broker ended before the app")
    ended = call("run", "orders", "--broker", kind)
    assert ended.code == 0
    assert brokers.started == [Started(kind, {"user_events": 3, "clicks": 3}, 0, None)]
    assert brokers.ran_at == [["127.0.0.1:29999"]]
    assert brokers.ended == 1
    assert f"the {kind} broker is for development and tests; its data is discarded on exit" in ended.err


@pytest.mark.parametrize("kind", ["embedded", "docker"])
def test_run_with_partitions_gives_each_topic_of_the_app_so_many(call: Call, brokers: Brokers, kind: str) -> None:
    assert call("run", "orders", "--broker", kind, "--partitions", "6").code == 0
    assert brokers.started[0].topics == {"user_events": 6, "clicks": 6}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--partitions", "6"], "--partitions requires --create-topics, --broker embedded or --broker docker"),
        (["--broker", "embedded", "--partitions", "0"], "must be an integer from 1 to 10000, got '0'"),
    ],
)
def test_partitions_of_a_broker_that_is_not_ours_or_too_few_are_a_usage_error(
    call: Call, brokers: Brokers, argv: list[str], words: str
) -> None:
    ended = call("run", "orders", *argv)
    assert (ended.code, brokers.started) == (1, [])
    assert words in ended.err


def test_a_topic_without_a_number_has_three_partitions_in_every_broker_for_development() -> None:
    with EmbeddedBroker(["named"]) as broker:
        broker.create_topic("made")
        producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers)
        try:
            found = {topic: len(producer.partitions_for(topic)) for topic in ("named", "made", "asked_for")}
        finally:
            producer.close()
    assert found == {"named": 3, "made": 3, "asked_for": 3}
    started = docker.DockerBroker(["named"])
    assert (started.topics, started._environment()["KAFKA_NUM_PARTITIONS"]) == ({"named": 3}, "3")


def test_run_with_a_kafka_elsewhere_starts_none(call: Call, brokers: Brokers) -> None:
    ended = call("run", "orders", "--broker", "docker:9092")
    assert ended.code == 0
    assert not brokers.started
    assert brokers.ran_at == [["docker:9092"]]
    assert "discarded" not in ended.err


def test_the_image_is_passed_on(call: Call, brokers: Brokers) -> None:
    call("run", "orders", "--broker", "docker", "--image", "mine:1")
    brokers.while_it_serves = lambda: os.kill(os.getpid(), signal.SIGINT)
    call("broker", "--docker", "--image", "mine:2")
    assert [started.image for started in brokers.started] == ["mine:1", "mine:2"]


def test_without_docker_run_ends_with_3_and_nothing_ran(call: Call, brokers: Brokers) -> None:
    brokers.fails = BrokerUnavailableError("no Docker daemon answers; type: --broker embedded")
    ended = call("run", "orders", "--broker", "docker")
    assert ended == Ended(3, "karafka-lite: no Docker daemon answers; type: --broker embedded\n")
    assert not brokers.ran_at


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_after_the_app_still_stops_the_broker(call: Call, brokers: Brokers, number: int) -> None:
    brokers.while_it_serves = lambda: os.kill(
        os.getpid(), number
    )  # the stand-in for App.serve leaves the signals alone
    assert call("run", "orders", "--broker", "embedded").code == 1
    assert brokers.ended == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_the_broker_serves_until_a_signal_and_says_how_to_use_it(call: Call, brokers: Brokers, number: int) -> None:
    brokers.while_it_serves = lambda: os.kill(os.getpid(), number)
    ended = call("broker", "--topic", "user_events:1", "--topic", "clicks", "--port", "29999")
    assert ended.code == 0
    assert brokers.started == [Started("embedded", {"user_events": 1, "clicks": 3}, 29999, None)]
    assert brokers.ended == 1
    first, topics, next_terminal, end = ended.err.splitlines()
    assert "embedded broker at 127.0.0.1:29999" in first
    assert "its data is discarded on exit" in first
    assert topics == "topics: user_events (1 partition), clicks (3 partitions)"
    assert next_terminal == "in another terminal: karafka-lite run module:app --broker 127.0.0.1:29999"
    assert end == "stop with Ctrl-C or SIGTERM"


def test_the_broker_is_at_9092_by_default(call: Call, brokers: Brokers) -> None:
    brokers.while_it_serves = lambda: os.kill(os.getpid(), signal.SIGINT)
    ended = call("broker", "--docker")
    assert brokers.started == [Started("docker", {}, 9092, None)]
    assert "topics" not in ended.err


def test_a_container_that_exits_ends_the_command_with_3(call: Call, brokers: Brokers) -> None:
    def end() -> None:
        raise BrokerUnavailableError("the container ended by itself")

    brokers.while_it_serves = end
    assert call("broker", "--docker").code == 3
    assert brokers.ended == 1


def test_a_taken_port_ends_with_1(call: Call, brokers: Brokers) -> None:
    brokers.fails = ConfigurationError("127.0.0.1:9092 is taken; type: --port 9093")
    assert call("broker") == Ended(1, "karafka-lite: 127.0.0.1:9092 is taken; type: --port 9093\n")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--topic", "a b"], "'a b' is not a valid topic name"),
        (["--topic", ""], "'' is not a valid topic name"),
        (["--topic", ".."], "'..' is not a valid topic name"),
        (["--topic", "a" * 250], "is not a valid topic name"),
        (["--topic", "orders:"], "partitions must be an integer ≥ 1, as in orders:3, got 'orders:'"),
        (["--topic", "orders:0"], "partitions must be an integer ≥ 1, as in orders:3"),
        (["--topic", "orders:-1"], "partitions must be an integer ≥ 1, as in orders:3"),
        (["--topic", "orders", "--topic", "orders:3"], "--topic orders is given more than once"),
        (["--port", "0"], "--port: must be a port from 1 to 65535, got '0'"),
        (["--port", "65536"], "--port: must be a port from 1 to 65535, got '65536'"),
        (["--port", "kafka"], "--port: must be a port from 1 to 65535, got 'kafka'"),
        (["--image", "mine"], "--image requires --docker"),
    ],
)
def test_a_usage_error_of_broker_shows_its_usage(call: Call, brokers: Brokers, argv: list[str], words: str) -> None:
    ended = call("broker", *argv)
    assert ended.code == 1
    assert words in ended.err
    assert "for example: karafka-lite broker --port 9092 --topic user_events:3 --topic clicks" in ended.err
    assert not brokers.started


@pytest.mark.parametrize("broker", [[], ["--broker", "embedded"], ["--broker", "kafka:9092"]])
def test_an_image_without_docker_is_a_usage_error_of_run(call: Call, brokers: Brokers, broker: list[str]) -> None:
    ended = call("run", "orders", *broker, "--image", "mine")
    assert ended.code == 1
    assert "--image requires --broker docker" in ended.err
    assert not brokers.started
    assert not brokers.ran_at


def test_the_commands_help_names_what_production_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["broker", "--help"])
    text = capsys.readouterr().out
    assert re.search(r"In production,\s+use Apache Kafka", text)
    assert f"default: {docker.IMAGE}" in text


def test_a_handler_of_sigterm_that_c_code_has_installed_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    installed: list[object] = []
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    monkeypatch.setattr(signal, "signal", lambda number, handler: installed.append(handler))
    with broker_command.sigterm_as_ctrl_c():
        pass
    assert installed == []


def test_run_embedded_runs_without_a_kafka(tmp_path: Path) -> None:

    (tmp_path / "f").write_text('{"id": 7}\n')
    (tmp_path / "mine.py").write_text(
        "import os, signal\n"
        "from karafka_lite import App\n"
        'app = App("mine", bootstrap_servers="nowhere.invalid:9092")\n'
        '@app.topic("user_events")\n'
        "def store(batch, ctx):\n"
        "    print(*batch.payloads)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    command = [sys.executable, "-m", "karafka_lite", "run", "mine", "--broker", "embedded", "--feed", "user_events=f"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "{'id': 7}\n"), done.stderr
