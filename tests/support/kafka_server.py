"""A real Apache Kafka for a test session.

``kafka_source()`` says where it comes from; its ``server()`` is a context manager around it. Nodes are numbered from 1:

    with JavaKafka(nodes=3) as server:
        KafkaConsumer("t", bootstrap_servers=server.bootstrap_servers)
        server.kill(2)
        server.restart(2)

No wait here is a fixed sleep: each one ends with a fact, or fails at its deadline and shows what the broker wrote.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import functools
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import Self

if TYPE_CHECKING:  # it loads kafka-python, which warns of its own deprecated call: pytest reads its filters first
    from support.docker_kafka import DockerKafka

KAFKA_VERSION = "4.3.1"
CACHE = Path.home() / ".cache" / "karafka-lite" / f"kafka-{KAFKA_VERSION}"
CLASSES = "classes.jsa"  # what a broker loads, as Java keeps it for the next: a start takes 1 s instead of 2

# What makes a test broker quick and small; Kafka's own default stands behind.
QUICK: Mapping[str, object] = {
    "group.initial.rebalance.delay.ms": 0,  # 3000
    "group.min.session.timeout.ms": 1000,  # 6000; shorter sessions would be refused
    "offsets.topic.num.partitions": 1,  # 50
    "transaction.state.log.num.partitions": 1,  # 50
    "share.coordinator.state.topic.num.partitions": 1,  # 50
    "log.cleaner.dedupe.buffer.size": 4 << 20,  # 128 MB
    "log.segment.delete.delay.ms": 1000,  # 60000
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": 500,  # 10000; how late a timeout may be
    "num.network.threads": 2,  # 3
    "num.io.threads": 2,  # 8
    "background.threads": 2,  # 10
    "broker.heartbeat.interval.ms": 500,  # 2000
    "broker.session.timeout.ms": 3000,  # 9000; how long a killed broker keeps its partitions
    "replica.lag.time.max.ms": 2000,  # 30000
    "metadata.max.idle.interval.ms": 0,  # 500; records that say nothing were a third of what an idle broker costs
}


# -- where Kafka comes from -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KafkaSource:
    """Where this machine gets a Kafka from; ``reason`` says why there is "none"."""

    kind: Literal["external", "java", "docker", "none"]
    reason: str = ""

    def server(self) -> ExternalKafka | JavaKafka | DockerKafka:
        """One node, as a context manager that was not entered yet."""
        if self.kind == "docker":
            from support.docker_kafka import DockerKafka

            return DockerKafka()
        return {"external": ExternalKafka, "java": JavaKafka}[self.kind]()


@functools.cache
def kafka_source() -> KafkaSource:
    """An existing cluster, else Java with Kafka's jars (fetched now if need be), else Docker, else none."""
    if os.environ.get("KARAFKA_LITE_TEST_BOOTSTRAP_SERVERS"):
        return KafkaSource("external")
    no_java = _why_no_java()
    if not no_java:
        return KafkaSource("java")
    from support.docker_kafka import why_no_docker

    no_docker = why_no_docker()
    if not no_docker:
        return KafkaSource("docker")
    return KafkaSource(
        "none",
        f"no Kafka: KARAFKA_LITE_TEST_BOOTSTRAP_SERVERS is not set; {no_java}; {no_docker}",
    )


def _why_no_java() -> str:
    if not shutil.which("java"):
        return "java is not installed"
    answer = subprocess.run(["java", "-version"], capture_output=True, text=True, timeout=30)
    version = re.search(r'version "(\d+)', answer.stderr)
    if not version or int(version[1]) < 17:
        return f"Kafka {KAFKA_VERSION} needs Java 17, here is: {(answer.stderr.splitlines() or ['nothing'])[0]}"
    try:
        kafka_home()
    except (OSError, subprocess.SubprocessError, RuntimeError) as error:
        return f"Kafka's jars could not be fetched: {error}"
    return ""


# -- the three kinds --------------------------------------------------------------------------------------------------


class ExternalKafka:
    """A cluster that somebody else runs: never stopped, never paused."""

    bootstrap_servers: str

    def __enter__(self) -> Self:
        self.bootstrap_servers = os.environ["KARAFKA_LITE_TEST_BOOTSTRAP_SERVERS"]
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass


class JavaKafka:
    """Brokers as child processes, each broker and controller at once. They never outlive this process: see _Guard."""

    def __init__(
        self,
        nodes: int = 1,
        settings: Mapping[str, object] | None = None,
        *,
        heap: str = "256m",
        timeout: float = 60,
        archive: Path | None = None,  # see _make_classes
    ) -> None:
        self.nodes = range(1, nodes + 1)
        self._archive = archive
        self.settings = dict(settings or {})
        self.heap = heap
        self.timeout = timeout
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._paused: set[int] = set()

    def __enter__(self) -> Self:
        self._home = CACHE if self._archive else kafka_home()
        self._folder = Path(tempfile.mkdtemp(prefix="karafka-lite-kafka-"))
        self._guard = _Guard('kill -9 $(cat "$1"/*/pid); rm -rf "$1" || { sleep 1; rm -rf "$1"; }', self._folder)
        try:
            self._format()
            for node in self.nodes:  # all at once: a quorum needs its majority before any of them is ready
                self._start(node)
            self.wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._guard.let_go()  # kills; nothing is kept, so there is nothing to end in good order
        for process in self._running.values():
            process.wait()
        self._running.clear()
        self._guard.wait()

    @property
    def bootstrap_servers(self) -> str:
        return ",".join(map(self._address, self.nodes))

    def kill(self, node: int = 1) -> None:
        """As a crash: the cluster learns of it when ``broker.session.timeout.ms`` is over."""
        self._running[node].kill()
        self._reap(node)

    def stop(self, node: int = 1) -> None:
        """In good order: leadership moves away first, where it can."""
        self.resume(node)
        self._running[node].terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._running[node].wait(20)
        self._running[node].kill()
        self._reap(node)

    def pause(self, node: int = 1) -> None:
        """The broker hangs: connections stay open (new ones open, too) and nobody answers."""
        self._running[node].send_signal(signal.SIGSTOP)
        # On a busy machine it answers on until all its threads have come to hear of it.
        os.waitid(os.P_PID, self._running[node].pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        self._paused.add(node)

    def resume(self, node: int = 1) -> None:
        self._running[node].send_signal(signal.SIGCONT)
        self._paused.discard(node)

    def restart(self, node: int = 1) -> None:
        """Starts a node again (after stopping it if it runs) with its data and its port; returns when it is ready."""
        if node in self._running:
            self.stop(node)
        self._start(node)
        self.wait_until_ready()

    def heal(self) -> None:
        """Every node runs and answers again, whatever was done to them."""
        for node in list(self._paused):
            self.resume(node)
        for node in self.nodes:
            if node not in self._running or self._running[node].poll() is not None:
                self._start(node)
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Until every node that runs and is not paused serves clients and knows all the others."""
        nodes = set(self._running) - self._paused
        wait_until_serving({node: self._address(node) for node in nodes}, self.timeout, self._check_alive)

    def _address(self, node: int) -> str:
        return f"127.0.0.1:{self._ports[node][0]}"

    def _format(self) -> None:
        """What ``kafka-storage.sh format`` writes, without a second JVM of 0.9 s for each node."""
        ports = free_ports(2 * len(self.nodes))
        self._ports = {node: (ports.pop(), ports.pop()) for node in self.nodes}
        cluster_id = new_cluster_id()
        for node in self.nodes:
            data = self._folder / str(node) / "data"
            data.mkdir(parents=True)
            (data / "meta.properties").write_text(f"version=1\ncluster.id={cluster_id}\nnode.id={node}\n")
            shutil.copy(self._home / "bootstrap.checkpoint", data)
            (data.parent / "server.properties").write_text(_as_properties(self._properties(node)))

    def _properties(self, node: int) -> dict[str, object]:
        broker_port, controller_port = self._ports[node]
        voters = (f"{other}@127.0.0.1:{ports[1]}" for other, ports in self._ports.items())
        return {
            "process.roles": "broker,controller",
            "node.id": node,
            "controller.quorum.voters": ",".join(voters),
            "listeners": f"PLAINTEXT://127.0.0.1:{broker_port},CONTROLLER://127.0.0.1:{controller_port}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{broker_port}",
            "inter.broker.listener.name": "PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
            "log.dirs": self._folder / str(node) / "data",
            **_replication(len(self.nodes)),
            **QUICK,
            **self.settings,
        }

    def _start(self, node: int) -> None:
        folder = self._folder / str(node)
        with (folder / "server.log").open("ab") as log:
            self._running[node] = subprocess.Popen(
                [*_broker(self._home, self.heap, self._archive), "kafka.Kafka", str(folder / "server.properties")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for pytest, which still has brokers to ask while it tears down
            )
        (folder / "pid").write_text(f"{self._running[node].pid}\n")

    def _reap(self, node: int) -> None:
        self._running.pop(node).wait()
        self._paused.discard(node)
        (self._folder / str(node) / "pid").unlink()  # the number may be given to a stranger now

    def _check_alive(self) -> None:
        for node, process in self._running.items():
            if process.poll() is not None:
                log = (self._folder / str(node) / "server.log").read_text(errors="replace")
                raise RuntimeError(f"Kafka node {node} ended with {process.returncode}:\n{log[-4000:]}")


def _replication(nodes: int) -> dict[str, object]:
    copies, in_sync = min(3, nodes), min(2, nodes)
    return {
        "default.replication.factor": copies,
        "min.insync.replicas": in_sync,
        "offsets.topic.replication.factor": copies,
        "transaction.state.log.replication.factor": copies,
        "transaction.state.log.min.isr": in_sync,
        "share.coordinator.state.topic.replication.factor": copies,
        "share.coordinator.state.topic.min.isr": in_sync,
    }


# -- readiness --------------------------------------------------------------------------------------------------------


def wait_until_serving(nodes: Mapping[int, str], timeout: float, check_alive: Callable[[], None]) -> None:
    """Until each node answers at its address, knows all the others, and the group coordinator has loaded.

    Asking for the coordinator creates ``__consumer_offsets``, so that the first test does not pay for it.
    """
    deadline = time.monotonic() + timeout
    while problem := _why_not_serving(nodes):
        check_alive()
        if time.monotonic() > deadline:
            raise TimeoutError(f"Kafka is not ready after {timeout} s: {problem}")
        time.sleep(0.05)


def _why_not_serving(nodes: Mapping[int, str]) -> str:
    # Bare requests, because a client would go to the node that it likes best; each one is to speak for itself.
    # Imported here, because kafka-python warns of its own deprecated call: pytest must have read its filters first.
    from kafka.protocol.consumer.group import OffsetFetchRequest
    from kafka.protocol.metadata import FindCoordinatorRequest, MetadataRequest

    try:
        for node, address in nodes.items():
            metadata = _ask(address, MetadataRequest(topics=[], version=8))
            if unknown := nodes.keys() - {broker.node_id for broker in metadata.brokers}:
                return f"node {node} does not know of {unknown}"
        coordinator = _ask(address, FindCoordinatorRequest(key="ready", key_type=0, version=2))
        if coordinator.node_id not in nodes:
            return f"the group coordinator is node {coordinator.node_id} (error {coordinator.error_code})"
        offsets = _ask(nodes[coordinator.node_id], OffsetFetchRequest(group_id="ready", topics=[], version=5))
        return f"the group coordinator answers with error {offsets.error_code}" if offsets.error_code else ""
    except OSError as error:
        return f"{error!r}, asking the nodes at {', '.join(nodes.values())}"


def _ask(address: str, request: Any) -> Any:
    """The answer of exactly this node. In the request's version neither of the two headers has tagged fields."""
    from kafka.protocol.api_header import ResponseClassRegistry

    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=5) as connection, connection.makefile("rb") as answers:
        request.with_header(correlation_id=1, client_id="readiness")
        connection.sendall(request.encode(header=True, framed=True))
        size = int.from_bytes(answers.read(4), "big")
        if not size:
            raise ConnectionError("connection closed")
        body = answers.read(size)[4:]  # behind the correlation id
    return ResponseClassRegistry.get_response_class(request.header).decode(body)


# -- Kafka's jars -----------------------------------------------------------------------------------------------------

# One slf4j binding, of the same line as the API: Kafka's artifact brings none, and would be silent without.
POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
<modelVersion>4.0.0</modelVersion>
<groupId>karafka-lite</groupId><artifactId>kafka-for-tests</artifactId><version>1</version>
<dependencies>
<dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{KAFKA_VERSION}</version></dependency>
<dependency><groupId>org.slf4j</groupId><artifactId>slf4j-api</artifactId><version>2.0.17</version></dependency>
<dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>2.0.17</version></dependency>
</dependencies>
</project>
"""


def kafka_home() -> Path:
    """The folder with ``libs/`` and ``bootstrap.checkpoint``, made at the first call on a machine (46 MB, 8 s).

    It is made beside its place and renamed as a whole: an interrupted run leaves no half of it. Of several workers or
    runs at the same time one makes it, and the others wait.
    """
    if (CACHE / CLASSES).exists():
        return CACHE
    if not CACHE.is_dir() and not shutil.which("mvn"):
        raise RuntimeError("mvn (Maven) is not installed")
    CACHE.parent.mkdir(parents=True, exist_ok=True)
    with CACHE.with_name(f"{CACHE.name}.lock").open("w") as lock:  # given back by the kernel, however this process ends
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not CACHE.is_dir():
            _make_home()
        if not (CACHE / CLASSES).exists():
            _make_classes(CACHE / CLASSES)
    return CACHE


def _make_home() -> None:
    with tempfile.TemporaryDirectory(prefix=f"{CACHE.name}-unfinished-", dir=CACHE.parent) as unfinished:
        home = Path(unfinished, "home")
        home.mkdir()
        _fetch_jars(home, Path(unfinished))
        _make_checkpoint(home, Path(unfinished))
        home.rename(CACHE)


def _fetch_jars(home: Path, scratch: Path) -> None:
    pom = scratch / "pom.xml"
    pom.write_text(POM)
    arguments = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={home / 'libs'}"]
    _run(["mvn", "--quiet", "--batch-mode", f"--file={pom}", *arguments])


def _make_checkpoint(home: Path, scratch: Path) -> None:
    """The features a new cluster starts with, as Kafka's own tool writes them; the same file for every node."""
    settings = scratch / "server.properties"
    properties = {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": "1@127.0.0.1:9093",
        "listeners": "PLAINTEXT://127.0.0.1:9092,CONTROLLER://127.0.0.1:9093",
        "controller.listener.names": "CONTROLLER",
        "log.dirs": scratch / "data",
    }
    settings.write_text(_as_properties(properties))
    tool = ["kafka.tools.StorageTool", "format", f"--cluster-id={new_cluster_id()}", f"--config={settings}"]
    _run([*_java(home), *tool])
    shutil.copy(scratch / "data" / "bootstrap.checkpoint", home)


def _make_classes(archive: Path) -> None:
    """The archive of what a broker loads until it is ready; one that is of no use to this Java is left aside by it.

    It holds for these jars at this place, so it is made where they stay.
    """
    with tempfile.TemporaryDirectory(prefix="karafka-lite-classes-") as scratch:
        unfinished = Path(scratch, CLASSES)
        with JavaKafka(archive=unfinished) as server:
            server.stop()
        unfinished.touch()  # none was written: then not again at each start
        shutil.copy(unfinished, archive.with_suffix(".unfinished"))
        archive.with_suffix(".unfinished").rename(archive)


def _broker(home: Path, heap: str, archive: Path | None = None) -> list[str]:
    """``archive``: the classes that it has loaded go there at its end."""
    classes = f"-XX:ArchiveClassesAtExit={archive}" if archive else f"-XX:SharedArchiveFile={home / CLASSES}"
    return _java(home, f"-Xms{heap}", f"-Xmx{heap}", "-XX:+UseSerialGC", classes)


def _java(home: Path, *options: str) -> list[str]:
    return [
        "java",
        *options,
        "-XX:TieredStopAtLevel=1",  # a test broker never lives long enough for the second compiler to pay
        "-Djava.awt.headless=true",
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
        "-Dorg.slf4j.simpleLogger.showDateTime=true",
        "-cp",
        str(home / "libs" / "*"),
    ]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600)
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}:\n{done.stdout[-2000:]}")


# -- small things -----------------------------------------------------------------------------------------------------


class _Guard:
    """A shell that runs one command when this process lets go of it, or is gone for whatever reason.

    It waits for the end of a pipe that only this process holds: that comes at ``os._exit`` (how pytest-timeout ends a
    hang) and at SIGKILL as well, where no ``finally`` and no ``atexit`` runs.
    """

    def __init__(self, command: str, *arguments: object) -> None:
        self._shell = subprocess.Popen(
            ["sh", "-c", f"read -r _; {command}", "guard", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # else Ctrl-C would take the guard with it
        )

    def let_go(self) -> None:
        assert self._shell.stdin
        self._shell.stdin.close()

    def wait(self) -> None:
        self._shell.wait()


def free_ports(count: int) -> list[int]:
    """Ports below the range that the kernel gives to outgoing connections.

    Within it, a client that keeps knocking at a stopped broker may be given the broker's own port as its own, connect
    to itself, and the restarted broker finds its port taken. Each of pytest-xdist's workers has ports of its own: it
    would else be given what a broker of another one is about to take, or will take again when it restarts.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 8
    first = 20_000 + worker * 1_500
    sockets: list[socket.socket] = []
    with contextlib.ExitStack() as stack:
        while len(sockets) < count:
            candidate = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                candidate.bind(("127.0.0.1", random.randrange(first, first + 1_500)))
                sockets.append(candidate)
        return [sock.getsockname()[1] for sock in sockets]


def new_cluster_id() -> str:
    """22 characters of URL-safe base64, the first never a "-", which Kafka's tools would take for an option."""
    return "k" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode()[1:22]


def _as_properties(values: Mapping[str, object]) -> str:
    return "".join(f"{name}={value}\n" for name, value in values.items())
