"""One Apache Kafka in a Docker container, for development and tests.

    with DockerBroker({"user_events": 3}) as broker:
        KafkaConsumer("user_events", bootstrap_servers=broker.bootstrap_servers)

The container and its data are removed at the end of the block, after an exception, after Ctrl-C, and even if the
process is killed (SIGKILL, ``os._exit`` at a second Ctrl-C): a second process watches for that, see ``_Watchdog``.
Docker's own auto-remove is not used, because it would also remove the logs of a Kafka that fails to start.

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
from karafka_lite.settings import PARTITIONS

log = logging.getLogger("karafka_lite")

IMAGE = "apache/kafka:4.3.1"
PROGRESS_INTERVAL_S = 5
LABEL = {"karafka-lite": "broker"}  # docker ps --filter label=karafka-lite

_INSTEAD = "or use the broker that needs no Docker: --broker embedded (or karafka-lite broker without --docker)"


class DockerBroker:
    """One Kafka node in a container, on 127.0.0.1 only. Its data is discarded when it stops.

    Args:
        topics: names (of topics with 3 partitions), or ``{name: partitions}``; they exist when ``start`` returns.
        port: port on 127.0.0.1; 0 chooses a free one.
        image: image of Apache Kafka, or another one that reads Kafka's settings from the same ``KAFKA_…`` variables.
            It is pulled if this machine does not have it.
        settings: settings of the Kafka server, by their names in ``server.properties``.
        timeout_ms: how long the container may take until Kafka answers, not counting the pull.

    Raises:
        BrokerUnavailableError: no Docker daemon answers, the image cannot be pulled, or Kafka did not start; the
            message ends with the last lines of the container's log.
        ConfigurationError: the docker package is not installed, the image does not exist, or the port is in use.
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
        self.topics: dict[str, int] = dict(topics) if isinstance(topics, Mapping) else dict.fromkeys(topics, PARTITIONS)
        self.port: int = port or _free_port()  # chosen before the start: the broker has to advertise it
        self.image: str = image
        self.settings: dict[str, object] = dict(settings or {})
        self.timeout_ms: int = timeout_ms
        self.name: str = f"karafka-lite-{uuid.uuid4().hex[:12]}"
        self.container: Any = None  # of the docker package
        self._watchdog: _Watchdog | None = None
        self._creating = False

    @property
    def bootstrap_servers(self) -> str:
        """``host:port``."""
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def start(self) -> None:
        """Returns when Kafka answers and the topics exist; after an exception no container is left."""
        self._client = connect()
        try:
            self._fetch_image()
            _check_free(self.port)
            self._watchdog = _Watchdog(self.name)
            self._run_container()
            self.wait_until_ready()
            self._create_topics()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Remove the container and its data. Does nothing if none runs."""
        if self._watchdog:
            self._watchdog.stop(removed=self._remove_container())
            self._watchdog = None
            self._client.close()

    def wait(self) -> None:
        """Block until the container exits, which raises BrokerUnavailableError."""
        with _one_error(f"the container of {self.image} cannot be reached"):
            self.container.wait(timeout=None)
        self._check_alive()

    def wait_until_ready(self) -> None:
        """Block until Kafka answers and lists itself as a broker; before that it creates no topic."""
        self._wait_for("Kafka did not answer", lambda: self._ask(MetadataRequest(topics=[], version=8)).brokers)

    def _fetch_image(self) -> None:
        from docker.errors import ImageNotFound

        with _one_error(f"Docker cannot use the image {self.image}"):
            try:
                self._client.images.get(self.image)
            except ImageNotFound:
                _pull(self._client, self.image)

    def _run_container(self) -> None:
        self._creating = True
        try:
            with _one_error(f"Docker could not start {self.image}"):
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
            # INTERNAL: the broker also connects to itself, and the host's port does not exist inside the container.
            "listeners": "HOST://:9092,INTERNAL://:19092,CONTROLLER://:9093",
            "advertised.listeners": f"HOST://{self.bootstrap_servers},INTERNAL://localhost:19092",
            "inter.broker.listener.name": "INTERNAL",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "HOST:PLAINTEXT,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT",
            # One node cannot hold three replicas, Kafka's default.
            "offsets.topic.replication.factor": 1,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            "num.partitions": PARTITIONS,
            "group.initial.rebalance.delay.ms": 0,  # by default every first consumer of a group waits 3 s
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
                raise ConfigurationError(f"Kafka refused the topic {topic.name!r}: {topic.error_message}")
        named = [MetadataRequest.MetadataRequestTopic(name=name) for name in self.topics]
        request = MetadataRequest(topics=named, allow_auto_topic_creation=False, version=8)

        def have_leaders() -> bool:
            partitions = [partition for topic in self._ask(request).topics for partition in topic.partitions]
            return len(partitions) == sum(self.topics.values()) and all(one.leader_id >= 0 for one in partitions)

        self._wait_for("the topics had no leaders", have_leaders)

    def _wait_for(self, otherwise: str, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + self.timeout_ms / 1000
        while True:
            with suppress(OSError):  # until Kafka listens, Docker accepts connections and drops them
                if condition():
                    return
            self._check_alive()
            if time.monotonic() > deadline:
                raise BrokerUnavailableError(
                    f"{otherwise} at {self.bootstrap_servers} within {self.timeout_ms} ms, in a container of "
                    f"{self.image}; {_INSTEAD}\n{self._last_lines()}"
                )
            time.sleep(0.05)

    def _ask(self, request: Any) -> Any:
        """Send one request and return the response. A client would log every attempt.

        In the versions used here no header has tagged fields.
        """
        request.with_header(correlation_id=1, client_id="karafka-lite")
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall(request.encode(header=True, framed=True))
            with connection.makefile("rb") as responses:
                size = int.from_bytes(responses.read(4), "big")
                body = responses.read(size)[4:]  # after the correlation id
        if not body:
            raise ConnectionError("connection closed")
        return ResponseClassRegistry.get_response_class(request.header).decode(body)

    def _check_alive(self) -> None:
        with _one_error(f"the container of {self.image} cannot be reached"):
            self.container.reload()
        if self.container.status not in ("running", "paused"):
            raise BrokerUnavailableError(f"the container of {self.image} has exited; {_INSTEAD}\n{self._last_lines()}")

    def _last_lines(self) -> str:
        with _one_error(f"the container of {self.image} cannot be reached"):
            lines: str = self.container.logs(tail=20).decode(errors="replace").strip()
        return f"the end of its log:\n{lines}" if lines else "its log is empty"

    def _remove_container(self) -> bool:
        """Returns whether the container is certainly gone."""
        from docker.errors import DockerException, NotFound

        try:
            self._client.containers.get(self.name).remove(force=True, v=True)
        except NotFound:
            # After a Ctrl-C the daemon may still be creating it: the watchdog waits for that.
            return not self._creating
        except (DockerException, OSError) as error:
            reason = _explanation(error)
            log.warning(
                "container %s may be left (%s); remove it with: docker rm -f -v %s", self.name, reason, self.name
            )
            return False
        return True


def connect() -> Any:
    """A client of a Docker daemon that has answered."""
    try:
        from docker import from_env
        from docker.errors import DockerException
    except ImportError as error:
        raise ConfigurationError(
            f"a broker in a container requires the docker package ({error}): "
            f"pip install 'karafka-lite[docker]', {_INSTEAD}"
        ) from None
    try:
        return from_env()
    except (DockerException, OSError) as error:
        if "Permission denied" in str(error):
            cause = "this user may not use Docker's socket (permission denied): add the user to the group docker"
        else:
            cause = f"no Docker daemon answers ({error}): start Docker, or set DOCKER_HOST to where it listens"
        raise BrokerUnavailableError(f"{cause}; {_INSTEAD}") from error


def _pull(client: Any, image: str) -> None:
    from docker.utils import parse_repository_tag

    repository, tag = parse_repository_tag(image)
    log.info("pulling %s, which Docker keeps for the next time", image)
    with _one_error(f"{image} is not on this machine and cannot be pulled"):
        for megabytes in _throttled(_pulled(client, repository, tag or "latest")):
            log.info("pulling %s: %d MB so far", image, megabytes)


def _pulled(client: Any, repository: str, tag: str) -> Iterator[float]:
    """Megabytes so far, at each event of the daemon."""
    layers: dict[str, float] = {}
    for event in client.api.pull(repository, tag=tag, stream=True, decode=True):
        if "error" in event:  # an error that came after the HTTP status 200
            raise OSError(event["error"])
        if event.get("status") == "Downloading":
            layers[event["id"]] = event.get("progressDetail", {}).get("current", 0) / 1e6
        yield sum(layers.values())


def _throttled(values: Iterator[float]) -> Iterator[float]:
    """At most one of ``values`` per interval."""
    last = time.monotonic()
    for value in values:
        if time.monotonic() - last >= PROGRESS_INTERVAL_S:
            last = time.monotonic()
            yield value


@contextmanager
def _one_error(what: str) -> Iterator[None]:
    """Turn errors of Docker and of the connection to it into ours; a ConfigurationError if the request was wrong."""
    from docker.errors import DockerException

    try:
        yield
    except (DockerException, OSError) as error:
        kind = ConfigurationError if getattr(error, "status_code", None) in (400, 404) else BrokerUnavailableError
        raise kind(f"{what}: {_explanation(error)}; {_INSTEAD}") from error


def _explanation(error: Exception) -> str:
    """The daemon's explanation, without the address of its API."""
    return str(getattr(error, "explanation", None) or error)


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT counts as free
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigurationError(
                f"port {port} on 127.0.0.1 cannot be used ({error}); use another one, for example --port {port + 1}"
            ) from None


def _variable(name: str) -> str:
    """The environment variable from which the image sets the property ``name``."""
    return "KAFKA_" + name.replace("_", "__").replace("-", "___").replace(".", "_").upper()


def _free_port() -> int:
    """A free port outside the kernel's range for outgoing connections, which could take it before Docker does."""
    while True:
        with socket.socket() as candidate, suppress(OSError):
            candidate.bind(("127.0.0.1", random.randrange(20_000, 32_000)))
            number: int = candidate.getsockname()[1]
            return number


class _Watchdog:
    """A process that removes the container if this one ends without doing so.

    It waits for the end of a pipe that only this process holds open. That also comes after SIGKILL and ``os._exit``,
    when no ``finally`` runs. It does not start in the user's working directory, where it could import a docker.py.
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
        except docker.errors.NotFound:  # the daemon may still be creating it
            time.sleep(0.1)
"""

    def __init__(self, container: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", self.PROGRAM, container],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,  # Ctrl-C must only reach the process that it watches
        )

    def stop(self, *, removed: bool) -> None:
        """Returns when the watchdog has ended: immediately if the container was ``removed``."""
        self._process.communicate(b"removed" if removed else b"")
