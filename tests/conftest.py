"""Fixtures and house rules of all tests.

A test that needs Kafka asks for ``kafka`` (shared), ``private_kafka`` (its own, to break) or ``cluster`` (three nodes,
to break). The first two run it twice, on Apache Kafka and on the embedded broker, which may not be any kinder; with
``@pytest.mark.apache_only("why")`` once, with ``@pytest.mark.test_client`` also on ``TestClient``. Where there is no
Apache Kafka, what needs it is skipped with the reason, or fails when CI=true.

With which decoder (``client/reader.py``) records are read is the option ``--decoder``: with each of the two on one of
the brokers, unless it is told otherwise, so that one run tells about both.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import hypothesis
import pytest
from support.kafka_server import JavaKafka, KafkaSource, kafka_source
from support.observer import BreakableKafka, Observer, Server

if TYPE_CHECKING:
    from support.client_kafka import ClientKafka
    from support.secure_kafka import SecureKafka

BROKERS = ["apache", "embedded"]
ON_BOTH = {"kafka", "private_kafka"}
DECODERS = {"apache": "pure", "embedded": "compiled"}  # on Apache Kafka what a plain pip install gives its user

# How long an example takes says nothing on a machine that also runs brokers. Nor how long it takes to make one: in a
# fresh checkout hypothesis first reads all of our code for constants, and blames the first strategy for that second.
hypothesis.settings.register_profile("house", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.register_profile("few", hypothesis.settings.get_profile("house"), max_examples=10)
hypothesis.settings.load_profile("house")


# -- Kafka ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def kafka(request: pytest.FixtureRequest) -> Observer:
    """One broker for the whole session. Not to be broken; topics and groups of a test have names of their own."""
    observer: Observer = request.getfixturevalue(f"{request.param}_kafka")
    return observer


@pytest.fixture
def test_client_kafka() -> ClientKafka:
    from support.client_kafka import ClientKafka  # here, as below

    return ClientKafka()


@pytest.fixture(scope="session")
def embedded_kafka() -> Iterator[Observer]:
    from support.embedded_kafka import EmbeddedKafka  # here, because loading kafka-python takes a while

    with EmbeddedKafka() as server:
        server.thread.name = "pytest's own broker"  # no leak of the test that happens to need it first
        observer = Observer(server.bootstrap_servers)
        yield observer
        observer.forget_clients()


@pytest.fixture(scope="session")
def apache_kafka() -> Iterator[Observer]:
    source = _require_kafka()
    with source.server() as server:
        observer = Observer(server.bootstrap_servers)
        yield observer
        if source.kind == "external":
            observer.delete_topics()
        observer.forget_clients()


@pytest.fixture
def private_kafka(request: pytest.FixtureRequest) -> Iterator[BreakableKafka]:
    """A broker of one node for this test alone: kill, stop, pause, resume, restart."""
    with _private_server(request.param) as server:
        breakable = BreakableKafka(server)
        yield breakable
        breakable.forget_clients()


def _private_server(broker: str) -> AbstractContextManager[Server]:
    if broker == "embedded":
        from support.embedded_kafka import EmbeddedKafka

        return EmbeddedKafka()
    source = _require_kafka()
    if source.kind == "external":
        pytest.skip("this test breaks its broker: not done to an external cluster")
    return source.server()


@pytest.fixture
def cluster(three_nodes: JavaKafka) -> Iterator[BreakableKafka]:
    """Three nodes, shared by the tests that ask for them; what a test breaks is healed behind it."""
    breakable = BreakableKafka(three_nodes)
    yield breakable
    breakable.forget_clients()
    three_nodes.heal()


@pytest.fixture(scope="session")
def three_nodes() -> Iterator[JavaKafka]:
    source = _require_kafka()
    if source.kind != "java":
        pytest.skip(f"three nodes are started with Java only; the Kafka here is {source.kind}")
    with JavaKafka(nodes=3) as server:
        yield server


@pytest.fixture(scope="session")
def secure_kafka() -> Iterator[SecureKafka]:
    """One node with a CA, passwords and ACLs of its own."""
    from support.secure_kafka import SecureKafka

    source = _require_kafka()
    if source.kind != "java":
        pytest.skip(f"a Kafka with listeners of its own is started with Java only; the Kafka here is {source.kind}")
    with SecureKafka() as server:
        yield server


def _require_kafka() -> KafkaSource:
    source = kafka_source()
    if source.kind == "none":
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(source.reason)
    return source


# -- every test -------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_broker_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The developer's own setting, which goes before an App's argument, would point tests at another Kafka."""
    monkeypatch.delenv("KARAFKA_LITE_BOOTSTRAP_SERVERS", raising=False)


@pytest.fixture(autouse=True)
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """What a test reads with, in its own processes as well; None: it has no broker, and it is as the package has it."""
    wanted: str | None = request.config.getoption("decoder")
    if wanted == "both":
        apache = request.node.get_closest_marker("kafka") is not None
        wanted = DECODERS.get("apache" if apache else "embedded" if "embedded" in _brokers(request.node) else "")
    if wanted:
        monkeypatch.setenv("KARAFKA_LITE_DECODER", wanted)
    if reader := sys.modules.get("karafka_lite.client.reader"):  # else nobody has chosen yet
        reader.choose_reader.cache_clear()
    return wanted


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client gives up a request that nobody answers after 1 s instead of 5, and a group its last commit."""
    for name in ("REQUEST_MS", "CLOSE_MS"):
        monkeypatch.setattr(f"karafka_lite.client.consumer.{name}", 1000)
    monkeypatch.setattr("karafka_lite.core.group.FINAL_COMMIT_S", 1.0)


@pytest.fixture(autouse=True)
def no_leaked_threads() -> Iterator[None]:
    """A thread that a test started and left behind fails it: it would poll, commit and log into the next tests."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 3  # a thread that was told to end may need a moment
    while (leaked := _own_threads() - before) and time.monotonic() < deadline:
        time.sleep(0.01)
    if leaked:
        pytest.fail("threads left behind:\n" + "\n".join(map(_describe_thread, leaked)), pytrace=False)


def _own_threads() -> set[threading.Thread]:
    # A dummy is Python's name for a thread of librdkafka that called back; it is not ours to end.
    return {
        thread
        for thread in threading.enumerate()
        if not isinstance(thread, threading._DummyThread) and not thread.name.startswith(("pytest", "hypothesis"))
    }


def _describe_thread(thread: threading.Thread) -> str:
    frame = sys._current_frames().get(thread.ident or 0)
    stack = "".join(traceback.format_stack(frame)) if frame else "  (it has just ended)\n"
    return f"{thread.name}{' (daemon)' if thread.daemon else ''}:\n{stack}"


# -- the session ------------------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    told = "what records are read with; both: pure on Apache Kafka, compiled on the embedded broker (default)"
    parser.addoption("--decoder", choices=["both", *DECODERS.values()], default="both", help=told)
    parser.addoption("--long", action="store_true", help="the long form of what has one: minutes instead of seconds")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "kafka: needs a real Kafka; set by itself for users of the Kafka fixtures")
    # Not required in CI: its machines run in containers themselves, most without the right to run others.
    config.addinivalue_line("markers", "docker: needs a Docker daemon; skipped without one, with CI=true as well")
    config.addinivalue_line("markers", "slow: takes many seconds; runs last")
    config.addinivalue_line("markers", "long: with --long only")
    config.addinivalue_line("markers", "apache_only(why): not on the embedded broker")
    config.addinivalue_line("markers", "test_client: on TestClient, too; what it promises needs no network")
    config.stash[_STDERR] = os.dup(2)  # before pytest captures it
    # A run starts hundreds of processes, which load the same modules: compiled once, each of them takes 1 s less.
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    # As in the background of a shell, and after nohup; children inherit it.
    for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, default)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    once = metafunc.definition.get_closest_marker("apache_only")
    beside = ["test_client"] if metafunc.definition.get_closest_marker("test_client") else []
    for fixture in ON_BOTH.intersection(metafunc.fixturenames):
        assert fixture == "kafka" or not beside, "TestClient has no broker of its own to break: use the fixture kafka"
        metafunc.parametrize(fixture, BROKERS[:1] if once else [*BROKERS, *beside], indirect=True)


@pytest.hookimpl(tryfirst=True)  # before -m looks at the markers
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if {"apache_kafka", "three_nodes", "secure_kafka"} & set(
            getattr(item, "fixturenames", ())
        ) or "apache" in _brokers(item):
            item.add_marker("kafka")
        if item.get_closest_marker("long") and not config.getoption("long"):
            item.add_marker(pytest.mark.skip(reason="takes minutes: --long"))
        if "three_nodes" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("three nodes"))  # one worker starts them for all
        if "secure_kafka" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("secure Kafka"))
    if hasattr(config, "workerinput"):
        items[:] = _side_by_side(sorted(items, key=_cost, reverse=True))
    else:
        items.sort(key=_cost)  # the cheap ones tell of a mistake soon


def _brokers(item: pytest.Item) -> set[object]:
    """Those of BROKERS that a test runs on."""
    callspec = getattr(item, "callspec", None)
    return {callspec.params.get(fixture) for fixture in ON_BOTH} if callspec else set()


def _side_by_side(items: list[pytest.Item]) -> list[pytest.Item]:
    """The slow ones first, which must not be the tail; then who waits for brokers evenly among who works by itself."""
    slow = [item for item in items if item.get_closest_marker("slow")]
    waits = [item for item in items if any(_cost(item)) and item not in slow]
    works = [item for item in items if not any(_cost(item))]
    places = {item: number / len(part) for part in (waits, works) for number, item in enumerate(part)}
    return [*slow, *sorted(places, key=places.__getitem__)]


def _cost(item: pytest.Item) -> tuple[bool, bool, bool, bool]:
    """Sooner is cheaper: no Kafka, embedded, one node, three nodes; whatever is marked slow is dearest."""
    slow, apache = (item.get_closest_marker(name) is not None for name in ("slow", "kafka"))
    return slow, "three_nodes" in getattr(item, "fixturenames", ()), apache, "embedded" in _brokers(item)


@pytest.hookimpl(wrapper=True)  # before pytest-xdist, which chooses "load" where nothing is chosen
def pytest_cmdline_main(config: pytest.Config) -> Iterator[None]:
    """What goes along with ``-n``: groups stay together, the dearest test first, and a dead worker ends the run."""
    if config.option.numprocesses and config.option.dist == "no":
        config.option.dist = "loadgroup"
        config.option.loadscopereorder = False
        config.option.maxworkerrestart = "0"
    if hasattr(config, "workerinput"):  # a worker reads the command line itself, where nothing of this is said
        config.option.loadgroup = True
    return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_xdist_auto_num_workers() -> int:
    """What ``-n auto`` means here: who waits for a broker leaves the core to two others."""
    return min(6, 3 * (os.cpu_count() or 1))


def pytest_collection_finish(session: pytest.Session) -> None:
    # Here, because a first download of Kafka would count as the first test's own time and run into its timeout.
    if not session.config.option.collectonly and any(item.get_closest_marker("kafka") for item in session.items):
        kafka_source()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    # The signal of pytest-timeout comes once, and only to Python: not into librdkafka, not to a teardown behind it.
    marker = item.get_closest_marker("timeout")
    limit = float(marker.args[0] if marker else item.config.getini("timeout"))
    faulthandler.dump_traceback_later(limit + 60, exit=True, file=item.config.stash[_STDERR])
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


def pytest_unconfigure(config: pytest.Config) -> None:
    # Nobody watches over the end; a thread that keeps Python from ending would hang the run for good.
    if not hasattr(config, "workerinput"):  # whom pytest-xdist keeps until the others have ended, too, and then ends
        faulthandler.dump_traceback_later(30, exit=True, file=config.stash.get(_STDERR, 2))


_STDERR = pytest.StashKey[int]()
