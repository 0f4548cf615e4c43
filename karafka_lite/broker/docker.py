"""One Apache Kafka in a Docker container, for development and tests.

    with DockerBroker({"user_events": 3}) as broker:
        KafkaConsumer("user_events", bootstrap_servers=broker.bootstrap_servers)

The container is removed with everything in it: behind the block, after an exception, after Ctrl-C, and when the process
ends without a word (SIGKILL, ``os._exit`` of a second Ctrl-C), for which a second process watches: see ``_Guard``.
Docker's own auto-remove is not used: a Kafka that ends at its start would take along the lines that say why.

The docker package (``pip install 'karafka-lite[docker]'``) is imported when a broker starts.
"""

from __future__ import annotations

import logging
import random
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from kafka.protocol.admin import CreateTopicsRequest
from kafka.protocol.api_header import ResponseClassRegistry
from kafka.protocol.metadata import MetadataRequest
from typing_extensions import Self

from karafka_lite.errors import BrokerUnavailableError, ConfigurationError, KarafkaLiteError

log = logging.getLogger("karafka_lite")

IMAGE = "apache/kafka:4.3.1"
PROGRESS_INTERVAL_S = 5
LABEL = {"karafka-lite": "broker"}  # docker ps --filter label=karafka-lite

_INSTEAD = "or take the broker that needs no Docker: --broker embedded (karafka-lite broker without --docker)"


class DockerBroker:
    """One Kafka node in a container, at 127.0.0.1 only. Nothing is kept when it ends.

    Args:
        topics: names, or names with their number of partitions (1 otherwise); they are there when ``start`` returns.
        port: of 127.0.0.1; 0 takes a free one.
        image: of Apache Kafka, or another that makes Kafka's settings of the same ``KAFKA_…`` variables. It is pulled
            when this machine does not have it.
        settings: of the Kafka server, by their names in ``server.properties``.
        timeout_ms: how long the container may take until Kafka answers. Pulling does not count.

    Raises:
        BrokerUnavailableError: no Docker daemon answers, the image cannot be pulled, or Kafka did not come up; the
            message holds what the container wrote last.
        ConfigurationError: the docker package is not installed, there is no such image, or the port is taken.
    """

    def __init__(
        self,
        topics: Mapping[str, int] | Iterable[str] = (),
        *,
        port: int = 0,
        image: str = IMAGE,
        settings: Mapping[str, object] | None = None,
        timeout_ms: int = 120_000,
    ) -> None:
        self.topics: dict[str, int] = dict(topics) if isinstance(topics, Mapping) else dict.fromkeys(topics, 1)
        self.port: int = port or _free_port()  # before the start: the broker has to know its published port by then
        self.image: str = image
        self.settings: dict[str, object] = dict(settings or {})
        self.timeout_ms: int = timeout_ms
        self.name: str = f"karafka-lite-{uuid.uuid4().hex[:12]}"
        self.container: Any = None  # of the docker package
        self._guard: _Guard | None = None
        self._creating = False

    @property
    def bootstrap_servers(self) -> str:
        """Where a client finds it."""
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def start(self) -> None:
        """Returns when Kafka answers and the topics are there; after an exception no container is left."""
        self._client = connect()
        try:
            self._fetch_image()
            _refuse_taken(self.port)
            self._guard = _Guard(self.name)
            self._run_container()
            self.wait_until_ready()
            self._create_topics()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Remove the container and what it holds. Where none runs, nothing happens."""
        if self._guard:
            self._guard.let_go(removed=self._remove_container())
            self._guard = None
            self._client.close()

    def wait(self) -> None:
        """Until the container ends by itself, which is a BrokerUnavailableError."""
        with _one_message(f"the container of {self.image} is out of reach"):
            self.container.wait(timeout=None)
        self._check_alive()

    def wait_until_ready(self) -> None:
        """Until Kafka answers and counts itself among the brokers; before that it creates no topic."""
        self._wait_for("Kafka did not answer", lambda: self._ask(MetadataRequest(topics=[], version=8)).brokers)

    def _fetch_image(self) -> None:
        from docker.errors import ImageNotFound

        with _one_message(f"Docker cannot use the image {self.image}"):
            try:
                self._client.images.get(self.image)
            except ImageNotFound:
                _pull(self._client, self.image)

    def _run_container(self) -> None:
        self._creating = True
        try:
            with _one_message(f"Docker could not start {self.image}"):
                self.container = self._client.containers.run(
                    self.image,
                    name=self.name,
                    labels=LABEL,
                    ports={"9092/tcp": ("127.0.0.1", self.port)},
                    environment=self._environment(),
                    detach=True,
                )
        except KarafkaLiteError:
            self._creating = False
            raise
        self._creating = False

    def _environment(self) -> dict[str, str]:
        properties: dict[str, object] = {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": "1@localhost:9093",
            # INTERNAL: the broker calls itself as well, and the host's port does not exist inside the container.
            "listeners": "HOST://:9092,INTERNAL://:19092,CONTROLLER://:9093",
            "advertised.listeners": f"HOST://{self.bootstrap_servers},INTERNAL://localhost:19092",
            "inter.broker.listener.name": "INTERNAL",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "HOST:PLAINTEXT,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT",
            # One node cannot hold the three copies that are Kafka's default.
            "offsets.topic.replication.factor": 1,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            "group.initial.rebalance.delay.ms": 0,  # 3000, which every start of a consumer would wait
            **self.settings,
        }
        return {_variable(name): str(value) for name, value in properties.items()}

    def _create_topics(self) -> None:
        if not self.topics:
            return
        wanted = [
            CreateTopicsRequest.CreatableTopic(
                name=name, num_partitions=partitions, replication_factor=1, assignments=[], configs=[]
            )
            for name, partitions in self.topics.items()
        ]
        for topic in self._ask(CreateTopicsRequest(topics=wanted, timeout_ms=self.timeout_ms, version=4)).topics:
            if topic.error_code:
                raise ConfigurationError(f"topic {topic.name!r} is refused by Kafka: {topic.error_message}")
        named = [MetadataRequest.MetadataRequestTopic(name=name) for name in self.topics]
        request = MetadataRequest(topics=named, allow_auto_topic_creation=False, version=8)

        def have_leaders() -> bool:
            partitions = [partition for topic in self._ask(request).topics for partition in topic.partitions]
            return len(partitions) == sum(self.topics.values()) and all(one.leader_id >= 0 for one in partitions)

        self._wait_for("the topics had no leaders", have_leaders)

    def _wait_for(self, otherwise: str, fact: Callable[[], object]) -> None:
        deadline = time.monotonic() + self.timeout_ms / 1000
        while True:
            with suppress(OSError):  # Docker accepts connections, and drops them, for a Kafka that does not listen yet
                if fact():
                    return
            self._check_alive()
            if time.monotonic() > deadline:
                raise BrokerUnavailableError(
                    f"{otherwise} at {self.bootstrap_servers} within {self.timeout_ms} ms, in a container of "
                    f"{self.image}; {_INSTEAD}\n{self._last_lines()}"
                )
            time.sleep(0.05)

    def _ask(self, request: Any) -> Any:
        """The answer to one request. Clients would log every try; in these versions no header has tagged fields."""
        request.with_header(correlation_id=1, client_id="karafka-lite")
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall(request.encode(header=True, framed=True))
            with connection.makefile("rb") as answers:
                size = int.from_bytes(answers.read(4), "big")
                body = answers.read(size)[4:]  # behind the correlation id
        if not body:
            raise ConnectionError("connection closed")
        return ResponseClassRegistry.get_response_class(request.header).decode(body)

    def _check_alive(self) -> None:
        with _one_message(f"the container of {self.image} is out of reach"):
            self.container.reload()
        if self.container.status not in ("running", "paused"):
            raise BrokerUnavailableError(
                f"the container of {self.image} ended by itself; {_INSTEAD}\n{self._last_lines()}"
            )

    def _last_lines(self) -> str:
        with _one_message(f"the container of {self.image} is out of reach"):
            lines: str = self.container.logs(tail=20).decode(errors="replace").strip()
        return f"the last it wrote:\n{lines}" if lines else "it wrote nothing"

    def _remove_container(self) -> bool:
        """Whether there is none any more."""
        from docker.errors import DockerException, NotFound

        try:
            self._client.containers.get(self.name).remove(force=True, v=True)
        except NotFound:
            return not self._creating  # the daemon finishes what it began before a Ctrl-C: the guard waits for that
        except (DockerException, OSError) as error:
            log.warning("container %s may be left (%s); type: docker rm -f -v %s", self.name, _said(error), self.name)
            return False
        return True


def connect() -> Any:
    """A client whose daemon has answered."""
    try:
        from docker import from_env
        from docker.errors import DockerException
    except ImportError as error:
        raise ConfigurationError(
            f"a broker in a container needs the docker package ({error}); "
            f"type: pip install 'karafka-lite[docker]', {_INSTEAD}"
        ) from None
    try:
        return from_env()
    except (DockerException, OSError) as error:
        if "Permission denied" in str(error):
            cause = "this user may not use Docker's socket (permission denied): add the user to the group docker"
        else:
            cause = f"no Docker daemon answers ({error}): start Docker, or set DOCKER_HOST if it listens elsewhere"
        raise BrokerUnavailableError(f"{cause}; {_INSTEAD}") from error


def _pull(client: Any, image: str) -> None:
    from docker.utils import parse_repository_tag

    repository, tag = parse_repository_tag(image)
    log.info("pulling %s; Docker keeps it for the next time", image)
    with _one_message(f"{image} is not on this machine and cannot be pulled"):
        for megabytes in _now_and_then(_pulled(client, repository, tag or "latest")):
            log.info("pulling %s: %d MB so far", image, megabytes)


def _pulled(client: Any, repository: str, tag: str) -> Iterator[float]:
    """Megabytes so far, as often as the daemon says something."""
    layers: dict[str, float] = {}
    for event in client.api.pull(repository, tag=tag, stream=True, decode=True):
        if "error" in event:  # found out behind the answer's 200
            raise OSError(event["error"])
        if event.get("status") == "Downloading":
            layers[event["id"]] = event.get("progressDetail", {}).get("current", 0) / 1e6
        yield sum(layers.values())


def _now_and_then(values: Iterator[float]) -> Iterator[float]:
    said = time.monotonic()
    for value in values:
        if time.monotonic() - said >= PROGRESS_INTERVAL_S:
            said = time.monotonic()
            yield value


@contextmanager
def _one_message(what: str) -> Iterator[None]:
    """Whatever Docker, or the way to it, says inside is one error of ours; ConfigurationError where it blames us."""
    from docker.errors import DockerException

    try:
        yield
    except (DockerException, OSError) as error:
        kind = ConfigurationError if getattr(error, "status_code", None) in (400, 404) else BrokerUnavailableError
        raise kind(f"{what}: {_said(error)}; {_INSTEAD}") from error


def _said(error: Exception) -> str:
    """The daemon's own words, without the address of its API."""
    return str(getattr(error, "explanation", None) or error)


def _refuse_taken(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what a client closed a moment ago is not taken
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigurationError(
                f"127.0.0.1:{port} cannot be used ({error}); type another: --port {port + 1}"
            ) from None


def _variable(name: str) -> str:
    """The variable that the image makes the property ``name`` of."""
    return "KAFKA_" + name.replace("_", "__").replace("-", "___").replace(".", "_").upper()


def _free_port() -> int:
    """Below the ports that the kernel gives to outgoing connections: one of those could take it before Docker does."""
    while True:
        with socket.socket() as candidate, suppress(OSError):
            candidate.bind(("127.0.0.1", random.randrange(20_000, 32_000)))
            number: int = candidate.getsockname()[1]
            return number


class _Guard:
    """A process that removes the container when this one is gone without having done it.

    It waits for the end of a pipe that only this process holds: that comes at SIGKILL and ``os._exit`` as well, where
    no ``finally`` runs. Its working directory is not the user's, whose docker.py would be imported instead.
    """

    PROGRAM = """
import sys, time
if not sys.stdin.read():
    import docker
    client = docker.from_env()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            client.containers.get(sys.argv[1]).remove(force=True, v=True)
            break
        except docker.errors.NotFound:  # the daemon may still be making it
            time.sleep(0.1)
"""

    def __init__(self, container: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", self.PROGRAM, container],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,  # Ctrl-C is for the process that it guards
        )

    def let_go(self, *, removed: bool) -> None:
        """Returns when the guard has ended, which it does at once when the container was ``removed``."""
        self._process.communicate(b"removed" if removed else b"")
