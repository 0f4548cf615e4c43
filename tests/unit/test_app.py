"""An App as an object: what it says of itself, and what it refuses before it touches a network."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path
from typing import Any

import pytest
from support.command import Stream
from support.observer import wait_until

from karafka_lite import App, BrokerUnavailableError, ConfigurationError, ProduceError, exits
from karafka_lite.client.outbox import Outbox
from karafka_lite.runner import Runner


def handle(batch: object, ctx: object) -> None: ...


def app_of(*topics: str, group: str = "event-store", **settings: Any) -> App:
    app = App(group, bootstrap_servers="127.0.0.1:1", bootstrap_timeout_ms=200, **settings)
    if topics:
        app.topic(*topics)(handle)
    return app


@contextmanager
def claimed(app: App) -> Iterator[App]:
    """As if it ran."""
    runner = app._claim()
    yield app
    runner.ended.set()


# -- its repr


def test_its_repr_says_groups_topics_and_whether_it_runs_and_nothing_secret() -> None:
    app = app_of("orders", "clicks", security_protocol="SSL", ssl_password="hush")
    app.topic("orders", group_id="audit")(handle)
    assert repr(app) == "<App event-store: orders, clicks; audit: orders (not running)>"
    with claimed(app):
        assert repr(app) == "<App event-store: orders, clicks; audit: orders (running)>"


def test_its_repr_is_short_whatever_it_has() -> None:
    assert repr(App("event-store")) == "<App event-store (not running)>"
    app = app_of(*(f"topic-{number}" for number in range(50)))
    assert repr(app) == "<App event-store: topic-0, topic-1, topic-2, 47 more (not running)>"


# -- two in one process


def test_a_second_app_with_the_group_and_a_topic_of_one_that_runs_is_warned_about_with_both_places(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def other(batch: object, ctx: object) -> None: ...

    first, second = app_of("orders", "clicks"), app_of("clicks")
    third = App("event-store")
    third.topic("orders", "clicks")(other)
    with claimed(first):
        with claimed(app_of("orders", group="audit")), claimed(app_of("payments")):
            assert caplog.messages == [], "another group, or another topic"
        with claimed(third):
            (line,) = caplog.messages
    there = f"handle ({__file__}:{handle.__code__.co_firstlineno})"
    here = f"{other.__qualname__} ({__file__}:{other.__code__.co_firstlineno})"
    assert line == (
        f"group event-store: another App of this process already reads orders, clicks: {there} there, {here} here; "
        f"they share the partitions. Stop the other one, or use one App"
    )
    caplog.clear()
    with claimed(second):
        assert caplog.messages == [], "the other one has stopped"


# -- the banner


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Stream:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    return Stream(terminal=True)


@pytest.mark.parametrize(("verb", "stop"), [("run", "Ctrl-C or SIGTERM"), ("start", "app.stop()")])
def test_on_a_terminal_it_says_what_runs_once_and_how_to_stop_it(terminal: Stream, verb: str, stop: str) -> None:
    app = app_of("orders")
    with redirect_stderr(terminal), suppress(BrokerUnavailableError):
        getattr(app, verb)()
    assert terminal.text.count("event-store") == terminal.text.count("127.0.0.1:1") == 1
    for fact in ("orders", "automatic", "handle", f"stop with {stop}", "concurrency=N runs partitions side by side"):
        assert fact in terminal.text


@pytest.mark.parametrize("verb", ["run", "start"])
def test_without_a_terminal_it_says_nothing(verb: str) -> None:
    pipe = Stream(terminal=False)
    with redirect_stderr(pipe), suppress(BrokerUnavailableError):
        getattr(app_of("orders"), verb)()
    assert pipe.text == ""


def test_on_a_terminal_a_mistake_comes_without_a_banner(terminal: Stream) -> None:
    with redirect_stderr(terminal), pytest.raises(ConfigurationError):
        app_of().run()
    assert terminal.text == ""


# -- what is sent beside handlers


def test_what_cannot_be_a_message_is_a_mistake_at_the_call_and_nothing_is_opened() -> None:
    app = app_of()
    with pytest.raises(TypeError, match="value: to_json cannot make bytes of object"):
        app.produce("orders", object())
    with pytest.raises(ValueError, match="key cannot be encoded"):
        app.produce("orders", 1, key="\ud800")
    assert not app._sender.is_open
    with pytest.raises(TypeError, match="headers must be a list of"):
        app.produce("orders", 1, headers={"a": b"1"})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="topic must be"):
        app.produce("no topic", 1)
    app.stop()


def test_without_a_broker_the_future_says_so_and_nothing_is_left_after_the_stop() -> None:
    app, before = app_of(), set(threading.enumerate())
    failure = app.produce("orders", 1).exception(20)
    assert isinstance(failure, ProduceError)
    assert "no broker could be reached at 127.0.0.1:1 within 200 ms" in str(failure)
    assert app.stop() is True
    assert set(threading.enumerate()) == before


def test_what_was_sent_is_flushed_when_the_program_ends_without_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app, before = app_of(), set(threading.enumerate())
    assert app not in exits.known()
    app.produce("orders", 1)
    assert app in exits.known()
    caplog.clear()
    app.end_at_exit()
    assert (app._sender.is_open, set(threading.enumerate()), caplog.messages) == (False, before, [])


def test_it_sends_to_the_brokers_that_count_at_the_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    servers: list[str] = []
    plain = Outbox.__init__

    def note(self: Outbox, bootstrap_servers: list[str], *rest: Any, **more: Any) -> None:
        servers.extend(bootstrap_servers)
        plain(self, bootstrap_servers, *rest, **more)

    monkeypatch.setattr(Outbox, "__init__", note)
    app = app_of()
    monkeypatch.setenv("KARAFKA_LITE_BOOTSTRAP_SERVERS", "127.0.0.1:2")
    app.produce("orders", 1)
    app.stop()
    app.override(bootstrap_servers="127.0.0.1:3")
    app.produce("orders", 1)
    app.produce("orders", 1)
    app.stop()
    assert servers == ["127.0.0.1:2", "127.0.0.1:3"]


# -- a start that is interrupted


def test_what_a_signal_handler_raises_in_the_middle_of_a_start_ends_the_run_and_is_raised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, before = Runner.start, set(threading.enumerate())

    def interrupted(runner: Runner) -> None:
        plain(runner)
        raise InterruptedError("by a signal handler of the program")

    monkeypatch.setattr(Runner, "start", interrupted)
    app = app_of("orders")
    with pytest.raises(InterruptedError):
        app.run()
    assert repr(app).endswith("(not running)>")
    wait_until(lambda: set(threading.enumerate()) <= before, message="no thread is left")


# -- sessions: notebooks, and what is typed into a REPL

SESSION = """
import code, sys
assert not hasattr(sys.modules["__main__"], "__file__")
from karafka_lite import App, ConfigurationError
from karafka_lite.testing import TestClient

seen = []
session = code.InteractiveInterpreter({"__name__": "__main__", "seen": seen, "App": App})

def cell(source):
    session.runsource(source, symbol="exec")

def call(*expected):
    seen.clear()
    app = session.locals["app"]
    with TestClient(app) as client:
        client.send("t", 1)
        client.run(raise_errors=True)
        client.advance(ms=1000)
    assert seen == list(expected), seen

STORE = '''
@app.topic("t")
def store(batch, ctx):
    seen.append("store %d")
'''
HOOK = '''
@app.every(store, ms=600)
def flush(ctx):
    seen.append("flush %d")
'''
START = '''
@app.on_start
def open():
    seen.append("open %d")
@app.on_stop
def close():
    seen.append("close %d")
'''
cell("app = App('g')")
cell(STORE % 1)
cell(HOOK % 1)
call("store 1", "flush 1")
cell(HOOK % 2)
call("store 1", "flush 2")
cell(STORE % 2)
call("store 2")
cell(HOOK % 3)
call("store 2", "flush 3")
cell('''
@app.observe
def watch(event):
    ...
''' * 2)
assert len(session.locals["app"]._observers) == 1

def refused(source):
    try:
        exec(source, session.locals)
    except ConfigurationError as error:
        return str(error)

# another name is a mistake, as everywhere
assert "already has the handler store" in refused(STORE.replace("def store", "def other") % 3)
# so is the same name in another module
session.locals["__name__"] = "module"
assert "already has the handler store" in refused(STORE % 3)
session.locals["__name__"] = "__main__"
# in another group it is another handler
cell(STORE.replace('"t"', '"t", group_id="other"') % 3)
call("store 2", "store 3", "flush 3")
# a handler of several topics, with two decorators
cell("app = App('g')")
cell(('@app.topic("a")' + STORE) % 4)
cell(('@app.topic("a")' + STORE) % 5)
assert len(session.locals["app"]._parts) == 2
call("store 5")
# while it runs
app = session.locals["app"]
with TestClient(app):
    assert refused(STORE % 6).startswith("store is at work: app.stop() first")
    cell(STORE % 6)  # the cell shows the same
call("store 5")
# of a router that the app includes, and in another one that it includes
cell('''
from karafka_lite import Router
app, orders, others = App('g'), Router(), Router()
app.include(orders)
orders.include(others)
''')
cell(STORE.replace("@app", "@others") % 7)
cell(HOOK.replace("@app", "@orders") % 7)
call("store 7", "flush 7")
cell(HOOK.replace("@app", "@others") % 8)
call("store 7", "flush 8")
cell(STORE.replace("@app", "@orders") % 8)
call("store 8")
with TestClient(session.locals["app"]):
    assert refused(STORE.replace("@app", "@orders") % 9).startswith("store is at work: app.stop() first")
# and so are the functions of the start and the end
for n in (1, 2):
    for router in ("app", "others", "others"):
        cell(START.replace("@app", "@" + router) % (n, n))
        call("open %d" % n, "store 8", "close %d" % n)
with TestClient(session.locals["app"]):
    assert refused(START % (3, 3)).startswith("open is at work: app.stop() first")
"""


def in_a_process(program: str, *, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, timeout=60)


def test_in_a_session_a_function_of_the_same_name_replaces_the_handler_and_its_hooks_unless_it_runs(
    tmp_path: Path,
) -> None:
    done = in_a_process(SESSION, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("ConfigurationError: store is at work: app.stop() first") == 1, done.stderr


def test_elsewhere_a_second_handler_of_the_same_name_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "program.py", raising=False)
    app, again = app_of("orders"), lambda batch, ctx: None
    monkeypatch.setattr(handle, "__module__", "__main__")
    again.__module__, again.__qualname__ = "__main__", handle.__qualname__
    with pytest.raises(ConfigurationError, match="topic 'orders' already has the handler handle"):
        app.topic("orders")(again)
