"""Where what kafka-python logs goes, and what is left of a client that could not connect."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kafka.errors
import pytest

from karafka_lite.client import connection
from karafka_lite.client.causes import Cause
from karafka_lite.client.connection import REPEAT_S, Connection
from karafka_lite.errors import AccessError, BrokerUnavailableError, ConfigurationError
from karafka_lite.events import ClientLogged, Event, Unreachable

SAID = "Connection failed: [Errno 111] refused"
REASON = "localhost:1 cannot be reached (111 ECONNREFUSED)"


class Net:
    """The loop of one client, run by this thread, or by ``runs_on``."""

    def __init__(self, runs_on: threading.Thread | None = None) -> None:
        self._io_thread = runs_on
        self._poll_owner = None if runs_on else threading.current_thread()


class Opened:
    """Connections that are open, each with the events that it emitted."""

    def __init__(self) -> None:
        self.connections: list[Connection] = []

    def __call__(
        self, group_id: str = "", *, emits: bool = True, runs_on: threading.Thread | None = None
    ) -> tuple[Connection, list[Event]]:
        events: list[Event] = []
        made = Connection("a client", events.append if emits else None, group_id)
        made.open(lambda **settings: None, ["localhost:1"], {})
        made._client = SimpleNamespace(_net=Net(runs_on))
        self.connections.append(made)
        return made, events


@pytest.fixture
def opened() -> Iterator[Opened]:
    opened = Opened()
    yield opened
    for made in opened.connections:
        made.close()


@pytest.fixture
def debug(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, "karafka_lite")
    return caplog


def say(message: str, *arguments: object, level: int = logging.ERROR, **more: Any) -> None:
    """As kafka-python does it, on this thread."""
    logging.getLogger("kafka.net.manager").log(level, message, *arguments, **more)


def say_elsewhere(message: str) -> threading.Thread:
    """The same on another thread; returns it, ended."""
    thread = threading.Thread(target=say, args=(message,))
    thread.start()
    thread.join()
    return thread


def ours(log: pytest.LogCaptureFixture) -> list[tuple[str, str, str]]:
    """What we have logged. (pytest also listens at loggers that do not propagate, as kafka-python's does not.)"""
    records = [(record.name, record.levelname, record.getMessage()) for record in log.records]
    return [record for record in records if record[0].startswith("karafka_lite")]


# -- with an app -------------------------------------------------------------------------------------------------------


def test_a_connection_that_is_not_made_is_an_event_and_nothing_is_logged(
    opened: Opened, debug: pytest.LogCaptureFixture
) -> None:
    made, events = opened("g")
    made.failed(REASON, "localhost:1")
    assert events == [Unreachable("g", REASON)]
    assert ours(debug) == []


def test_the_same_is_said_again_from_time_to_time_only_and_another_reason_at_once(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, events = opened("g")
    now = [100.0]
    monkeypatch.setattr(connection.time, "monotonic", lambda: now[0])
    for passed in (0.0, 1.0, REPEAT_S - 2, 2.0):
        now[0] += passed
        made.failed(REASON, "localhost:1")
    made.failed("localhost:1 hangs up", "localhost:1")  # the same trouble
    made.failed("localhost:2 hangs up", "localhost:2")
    assert [event.reason for event in events if isinstance(event, Unreachable)] == [
        REASON,
        REASON,
        "localhost:2 hangs up",
    ]


def test_what_kafka_python_logs_is_an_event_where_the_debug_log_is_wanted(
    opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    _, events = opened("g")
    say("a disconnect")
    say("for a debugger of kafka-python", level=logging.INFO)
    assert events == []
    caplog.set_level(logging.DEBUG, "karafka_lite")
    say("a disconnect")
    say("for a debugger of kafka-python", level=logging.INFO)
    assert events == [ClientLogged("g", "kafka.net.manager", logging.ERROR, "a disconnect")]


def test_an_error_goes_with_its_record(opened: Opened, debug: pytest.LogCaptureFixture) -> None:
    _, events = opened("g")
    say("Uncaught error", exc_info=ZeroDivisionError("n"))
    assert [event.message for event in events if isinstance(event, ClientLogged)] == [
        "Uncaught error (ZeroDivisionError('n'))"
    ]


def test_a_record_that_cannot_be_formatted_harms_nobody(opened: Opened, debug: pytest.LogCaptureFixture) -> None:
    _, events = opened("g")
    record = logging.LogRecord("kafka.cluster", logging.ERROR, "cluster.py", 1, "%d failed", ("many",), None)
    connection._KAFKA_LOG.handle(record)
    assert [event.message for event in events if isinstance(event, ClientLogged)] == ["%d failed"]


# -- several clients ---------------------------------------------------------------------------------------------------


def test_each_client_gets_what_is_logged_on_its_own_threads(opened: Opened, debug: pytest.LogCaptureFixture) -> None:
    thread = threading.Thread(target=say, args=(SAID,))
    _, first = opened("first")
    _, second = opened("second", runs_on=thread)
    thread.start()
    thread.join()
    assert ([event.group_id for event in first], [event.group_id for event in second]) == ([], ["second"])
    say(SAID)
    assert [event.group_id for event in first] == ["first"]


def test_a_thread_that_is_named_belongs_to_its_client_too(opened: Opened, debug: pytest.LogCaptureFixture) -> None:
    """A producer's sender thread is not the one of its loop."""
    opened("first", runs_on=threading.Thread())
    second, events = opened("second", runs_on=threading.Thread())
    thread = threading.Thread(target=say, args=(SAID,))
    second.thread = thread
    thread.start()
    thread.join()
    assert [event.group_id for event in events] == ["second"]


def test_in_a_process_with_an_app_nothing_is_logged_on_threads_that_belong_to_nobody(
    opened: Opened, debug: pytest.LogCaptureFixture
) -> None:
    opened(emits=False, runs_on=threading.Thread())
    _, events = opened("g", runs_on=threading.Thread())
    say_elsewhere(SAID)
    assert [type(event) for event in events] == [ClientLogged]
    assert ours(debug) == []


def test_a_client_that_logs_into_a_full_pipe_does_not_hold_up_another_one(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, debug: pytest.LogCaptureFixture
) -> None:
    class FullPipe(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            reached.set()
            read.wait()

    reached, read = threading.Event(), threading.Event()
    monkeypatch.setattr(logging.getLogger("karafka_lite"), "handlers", [FullPipe()])
    writer = threading.Thread(target=say, args=(SAID,))
    opened(emits=False, runs_on=writer)
    _, events = opened("g")
    writer.start()
    assert reached.wait(10)
    other = threading.Thread(target=say, args=(SAID,))
    other.start()
    other.join(5)
    held_up = other.is_alive()
    read.set()
    for thread in (writer, other):
        thread.join()
    assert not held_up
    assert [event.group_id for event in events] == ["g"]


def test_a_closed_connection_gets_nothing_any_more(opened: Opened, caplog: pytest.LogCaptureFixture) -> None:
    made, events = opened("g")
    made.close()
    made.close()
    say(SAID)
    assert events == []


# -- without an app ----------------------------------------------------------------------------------------------------


def test_without_an_app_it_is_logged(opened: Opened, debug: pytest.LogCaptureFixture) -> None:
    made, _ = opened(emits=False)
    say(SAID)
    made.failed(REASON, "localhost:1")
    made.failed(REASON, "localhost:1")
    assert ours(debug) == [
        ("karafka_lite.kafka", "DEBUG", f"kafka.net.manager: {SAID}"),
        ("karafka_lite", "WARNING", f"a broker cannot be reached, retrying: {REASON}"),
    ]


def test_a_program_that_has_set_up_the_log_of_kafka_python_keeps_it(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("kafka")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(logger, "level", logging.ERROR)
    logger.manager._clear_cache()  # type: ignore[attr-defined]  # of levels
    _, events = opened("g")
    say(SAID)
    assert events == []
    assert [record.name for record in caplog.records] == ["kafka.net.manager"]
    monkeypatch.undo()
    logger.manager._clear_cache()  # type: ignore[attr-defined]


# -- a connection that is not made -------------------------------------------------------------------------------------


class Refusing:
    """A constructor of kafka-python that raises after it has made its network."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.network: Any = None

    def __call__(self, *, bootstrap_servers: list[str], kafka_client: Any, **settings: Any) -> Any:
        self.network = kafka_client(bootstrap_servers=bootstrap_servers, client_id="refusing")
        raise self.error


@pytest.mark.parametrize(
    ("error", "raised", "text"),
    [
        (
            kafka.errors.KafkaTimeoutError("bootstrap"),
            BrokerUnavailableError,
            "no broker could be reached at a:1,b:2 within 700 ms",
        ),
        (
            kafka.errors.KafkaConnectionError("no"),
            BrokerUnavailableError,
            r"700 ms \(KafkaConnectionError: no\)",
        ),
        (
            kafka.errors.KafkaConfigurationError("odd"),
            ConfigurationError,
            "refuses the settings of group g: KafkaConfigurationError: odd",
        ),
        (AssertionError("odd"), ConfigurationError, "odd"),
        (ValueError("odd"), ConfigurationError, "odd"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_a_constructor_that_raises_is_explained_and_cleaned_up(
    error: BaseException, raised: type[BaseException], text: str | None
) -> None:
    refusing = Refusing(error)
    made = Connection("group g", lambda event: None, "g")
    with pytest.raises(raised, match=text):
        made.open(refusing, ["a:1", "b:2"], {"bootstrap_timeout_ms": 700})
    assert refusing.network._net._closed
    assert made not in connection._KAFKA_LOG.connections


def test_why_each_host_did_not_answer_is_the_reason_for_a_timeout() -> None:
    def constructor(**settings: Any) -> Any:
        manager = settings["kafka_client"](client_id="c")._manager
        manager.causes = {"bootstrap-0": Cause("a:1 hangs up"), "bootstrap-1": Cause("b:2 cannot be reached")}
        raise kafka.errors.KafkaTimeoutError("bootstrap")

    made = Connection("group g", lambda event: None, "g")
    with pytest.raises(BrokerUnavailableError, match=r"within 30000 ms \(a:1 hangs up; b:2 cannot be reached\)"):
        made.open(constructor, ["a:1", "b:2"], {})


def test_a_broker_that_refuses_us_is_no_broker_that_cannot_be_reached() -> None:
    refusing = Refusing(AccessError("a:1 refuses the credentials"))
    with pytest.raises(AccessError, match=r"^a:1 refuses the credentials$"):
        Connection("group g").open(refusing, ["a:1"], {})
    assert refusing.network._net._closed


def test_python_without_its_assertions_is_refused() -> None:
    program = "from karafka_lite.client.connection import Connection; Connection('c').open(dict, ['a:1'], {})"
    ended = subprocess.run([sys.executable, "-O", "-c", program], capture_output=True, text=True)
    assert "ConfigurationError: kafka-python does not work under python -O" in ended.stderr


def test_a_file_of_tls_that_cannot_be_read_is_named_with_its_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"^ssl_cafile='.*ca\.pem' cannot be read: No such file or directory$"):
        Connection("c").open(dict, ["a:1"], {"security_protocol": "SSL", "ssl_cafile": tmp_path / "ca.pem"})


def test_a_file_of_tls_that_holds_something_else_is_named(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("no certificate")
    with pytest.raises(ConfigurationError, match=r"^no TLS connection can be made with ssl_cafile='.*ca\.pem' \("):
        Connection("c").open(dict, ["a:1"], {"security_protocol": "SSL", "ssl_cafile": str(file)})


# -- secrets -----------------------------------------------------------------------------------------------------------


def test_what_kafka_python_logs_of_its_settings_and_its_bytes_holds_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    """Wherever the program sends it: the filter is on the loggers themselves."""
    Opened()()[0].close()
    caplog.set_level(logging.DEBUG, "kafka")
    logging.getLogger("kafka.admin.client").debug("with %s", {"client_id": "mine", "ssl_password": "s3cret"})
    logging.getLogger("kafka.protocol.parser").debug("%s Send: %r", "node=1", b"\0me\0s3cret")
    logging.getLogger("kafka.net.connection").debug("nothing to replace")
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "with {'client_id': 'mine', 'ssl_password': '...'}",
        "node=1 Send: '10 bytes'",
        "nothing to replace",
    ]
