"""``karafka-lite run module:app``: what its options do."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.command import ORDERS, Run, Write, process, refused

from karafka_lite.app import App
from karafka_lite.cli import run as run_command
from karafka_lite.cli.feed import Feed, FeedError
from karafka_lite.errors import BrokerUnavailableError, ConfigurationError


def test_standard_output_stays_free_for_the_users_prints(run: Run, write: Write) -> None:
    write("orders.py", ORDERS + "print('mine')\n")
    ended = run("orders")
    assert ended.out == "mine\n"
    assert "group event-store: user_events -> store (automatic offsets)" in ended.err


def test_on_a_terminal_the_banner_comes_once(run: Run, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("karafka_lite.app.on_terminal", lambda: True)
    write("orders.py", ORDERS)
    assert run("orders").err.count("user_events") == 1


def test_the_options_win_and_the_banner_shows_them(run: Run, write: Write) -> None:
    write("orders.py", ORDERS)
    ended = run("orders", "--broker", "kafka-1:9092,kafka-2:9092", "--concurrency", "9")
    assert ended.app is not None
    assert ended.app.brokers() == ["kafka-1:9092", "kafka-2:9092"]
    assert "brokers: kafka-1:9092, kafka-2:9092" in ended.err
    assert "up to 9 calls of a handler at a time" in ended.err


def test_settings_of_a_file_go_before_those_of_the_app_and_the_brokers_of_an_option_before_both(
    run: Run, write: Write
) -> None:
    write("orders.py", ORDERS)
    file = str(write("kafka.toml", "bootstrap_servers = 'kafka-1:9092'\nclient_id = 'its'\n"))
    for options, brokers in (([], ["kafka-1:9092"]), (["--broker", "kafka-2:9092"], ["kafka-2:9092"])):
        app = run("orders", "--config", file, *options).app
        assert app is not None
        assert (app.brokers(), app.config.settings) == (brokers, {"client_id": "its"})


def test_another_group_takes_the_place_of_the_apps_own_and_of_no_other(run: Run, write: Write) -> None:
    more = "@app.topic('clicks', group_id='clicks')\ndef count(batch, ctx): ...\n"
    write("orders.py", f"{ORDERS}\n{more}")
    ended = run("orders", "--group", "tests")
    assert ended.app is not None
    assert {group: list(topics) for group, topics in ended.app.groups.items()} == {
        "tests": ["user_events"],
        "clicks": ["clicks"],
    }
    assert "group tests: user_events -> store" in ended.err
    write("twice.py", ORDERS + "@app.topic('user_events', group_id='twice')\ndef also(batch, ctx): ...\n")
    refused(run("twice", "--group", "twice")._replace(app=None), "'user_events' already has the handler also in group")
    refused(run("orders", "--group", " ")._replace(app=None), "group_id must be a non-empty string")


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ([], {"info", "error"}),
        (["--log-level", "debug"], {"debug", "info", "error"}),
        (["--log-level", "DEBUG"], {"debug", "info", "error"}),
        (["--log-level", "Error"], {"error"}),
    ],
)
def test_the_log_level_counts_from_the_import_on(run: Run, write: Write, options: list[str], seen: set[str]) -> None:
    log = "import logging\nlog = logging.getLogger('shop')\nfor f in (log.debug, log.info, log.error): f(f.__name__)\n"
    write("orders.py", log + ORDERS)
    err = run("orders", *options).err
    assert {level for level in ("debug", "info", "error") if f"shop: {level}\n" in err} == seen


LOGGING = {
    "nothing": ("", "INFO shop: hello"),
    "basicConfig": ("logging.basicConfig(level='INFO', format='mine: %(message)s')", "mine: hello"),
    "basicConfig of warnings": ("logging.basicConfig(format='mine: %(message)s')", None),
    "a handler of the root": (
        "logging.getLogger().addHandler(logging.StreamHandler())\nlogging.getLogger().setLevel('DEBUG')", "hello"
    ),
    "a handler of a logger": ("log.addHandler(logging.StreamHandler())", "hello"),
    "a file for a logger": ("log.addHandler(logging.FileHandler('shop.log'))", "INFO shop: hello"),
    "dictConfig": (
        "import logging.config\nlogging.config.dictConfig({'version': 1, 'root': {'level': 'INFO', 'handlers': ['h']},"
        " 'formatters': {'f': {'format': 'mine: %(message)s'}},"
        " 'handlers': {'h': {'class': 'logging.StreamHandler', 'formatter': 'f'}}})\nlog.disabled = False",
        "mine: hello",
    ),
    "a level": ("logging.getLogger().setLevel('WARNING')", None),
}  # fmt: skip


@pytest.fixture
def _loggers_as_they_were() -> Iterator[None]:
    manager = logging.getLogger().manager
    before = {name: one.disabled for name, one in manager.loggerDict.items() if isinstance(one, logging.Logger)}
    yield
    for name, disabled in before.items():
        logging.getLogger(name).disabled = disabled
    shop = logging.getLogger("shop")
    for handler in shop.handlers[:]:
        handler.close()
        shop.removeHandler(handler)
    logging.getLogger("karafka_lite").setLevel(logging.NOTSET)


def as_python_begins() -> None:
    root = logging.getLogger()  # the fixture ``run`` puts back pytest's handlers
    root.handlers.clear()
    root.setLevel(logging.WARNING)


@pytest.mark.usefixtures("run", "_loggers_as_they_were")
@pytest.mark.parametrize(("module", "shown"), LOGGING.values(), ids=LOGGING)
def test_logging_that_the_users_module_configures_counts_and_no_line_comes_twice(
    run: Run, write: Write, capsys: pytest.CaptureFixture[str], module: str, shown: str | None
) -> None:
    as_python_begins()
    write("orders.py", f"import logging\nlog = logging.getLogger('shop')\n{module}\n{ORDERS}")
    assert run("orders").code == 0
    logging.getLogger("shop").info("hello")
    lines = [line for line in capsys.readouterr().err.splitlines() if "hello" in line]
    assert [line[-len(shown or "") :] for line in lines] == ([] if shown is None else [shown])


@pytest.mark.usefixtures("run", "_loggers_as_they_were")
def test_a_log_level_that_was_given_is_that_of_our_lines_whatever_the_module_configures(run: Run, write: Write) -> None:
    as_python_begins()
    write("orders.py", f"import logging\nlogging.basicConfig(format='mine: %(message)s')\n{ORDERS}")
    run("orders", "--log-level", "debug")
    assert logging.getLogger("karafka_lite").isEnabledFor(logging.DEBUG)
    assert not logging.getLogger("shop").isEnabledFor(logging.INFO), "the module's own"


@pytest.fixture
def _collector_as_it_was() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)


@pytest.mark.usefixtures("_collector_as_it_was")
@pytest.mark.parametrize(
    ("before", "options", "module", "seen"),
    [
        (700, [], "", 10_000),
        (700, ["--no-gc-tuning"], "", 700),
        (0, [], "", 0),  # turned off
        (50_000, [], "", 50_000),
        (700, [], "import gc; gc.set_threshold(900)\n", 900),  # the user's module has the last word
    ],
)
def test_the_collector_runs_less_often_unless_the_user_has_set_it(
    run: Run, write: Write, before: int, options: list[str], module: str, seen: int
) -> None:
    write("orders.py", module + ORDERS)
    gc.set_threshold(before)
    assert run("orders", *options).app is not None
    assert gc.get_threshold()[0] == seen


@pytest.mark.usefixtures("_collector_as_it_was")
def test_a_library_call_leaves_the_collector_alone() -> None:
    gc.set_threshold(700, 10, 10)
    app = App("event-store", bootstrap_servers="127.0.0.1:1", bootstrap_timeout_ms=1)
    app.topic("user_events")(lambda batch, ctx: None)
    with pytest.raises(BrokerUnavailableError):
        app.start()
    assert gc.get_threshold() == (700, 10, 10)


@pytest.mark.parametrize("code", [0, 1, 2, 3])
def test_the_exit_code_is_that_of_the_run(run: Run, write: Write, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    write("orders.py", ORDERS)
    monkeypatch.setattr(App, "serve_here", lambda self: code)
    assert run("orders").code == code


@pytest.mark.parametrize(
    ("error", "code"), [(ConfigurationError("no such file"), 1), (BrokerUnavailableError("none"), 3)]
)
def test_a_mistake_that_shows_at_run_time_is_one_message_without_a_traceback(
    run: Run, write: Write, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    def fail(app: App) -> int:
        raise error

    write("orders.py", ORDERS)
    monkeypatch.setattr(App, "serve_here", fail)
    ended = run("orders")
    assert ended.code == code
    assert f"karafka-lite: {error}\n" in ended.err
    assert "Traceback" not in ended.err


def test_an_option_that_the_app_refuses_is_reported(run: Run, write: Write) -> None:
    write("orders.py", ORDERS)
    refused(run("orders", "--concurrency", "0"), "karafka-lite: ", "concurrency")


QUICK = "='quick' must be pure or compiled, or unset"


@pytest.mark.parametrize(
    ("decoder", "options", "told"),
    [
        ("compiled", [], "=compiled: gone; install it with pip install 'karafka-lite[speed]'"),
        ("quick", ["--until-end", "--feed", "user_events=events.jsonl"], QUICK),
        ("quick", ["--broker", "embedded"], QUICK),
    ],
    ids=["missing", "unknown, with a file to send", "unknown, with a broker to start"],
)
def test_a_decoder_that_cannot_be_had_exits_1_before_any_broker_is_asked(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoder: str, options: list[str], told: str
) -> None:
    write("orders.py", ORDERS)
    write("events.jsonl", "{}")
    write("aiokafka.py", "raise ImportError('gone')")
    monkeypatch.setenv("KARAFKA_LITE_DECODER", decoder)
    monkeypatch.setenv("KARAFKA_LITE_BOOTSTRAP_SERVERS", "localhost:1")
    done = process("-m", "karafka_lite", "run", "orders:app", *options, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, f"karafka-lite: KARAFKA_LITE_DECODER{told}\n")


# -- run --feed -------------------------------------------------------------------------------------------------------


def test_feeds_are_sent_to_the_apps_brokers_with_its_settings_before_it_runs(
    run: Run, write: Write, fed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write("orders.py", ORDERS.replace('"event-store"', '"event-store", security_protocol="SSL"'))
    monkeypatch.setattr(App, "serve_here", lambda app: len(fed) + 40)
    ended = run("orders", "--feed", "user_events=a=b", "--broker", "kafka-1:9092", "--feed", "user_events=-")
    assert ended.code == 41, ended.err
    feeds = [Feed("user_events", "a=b"), Feed("user_events", "-")]
    assert fed == [(feeds, ["kafka-1:9092"], {"security_protocol": "SSL"})]


def test_without_feed_nothing_is_sent(run: Run, write: Write, fed: list[Any]) -> None:
    write("orders.py", ORDERS)
    assert run("orders").code == 0
    assert fed == []


@pytest.mark.parametrize(
    ("error", "code"), [(FeedError("f:3: no"), 1), (BrokerUnavailableError("none"), 3), (ConfigurationError("no"), 1)]
)
def test_a_feed_that_fails_ends_with_its_code_and_the_app_does_not_run(
    run: Run, write: Write, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(run_command, "feed", fail)
    write("orders.py", ORDERS)
    ended = run("orders", "--feed", "user_events=f")
    assert (ended.code, ended.app) == (code, None)
    assert f"karafka-lite: {error}\n" in ended.err


@pytest.mark.parametrize(
    ("feed", "words"),
    [
        ("usr_events=f", "the App does not consume 'usr_events'; its topics: user_events, clicks"),
        ("user_events", "--feed expects TOPIC=FILE, got 'user_events'"),
        ("user_events=", "--feed expects TOPIC=FILE, got 'user_events='"),
        ("=f", "--feed expects TOPIC=FILE, got '=f'"),
    ],
)
def test_a_feed_for_another_topic_is_a_usage_error_with_the_apps_topics(
    run: Run, write: Write, fed: list[Any], feed: str, words: str
) -> None:
    write("orders.py", ORDERS + "@app.topic('clicks', 'user_events', group_id='other')\ndef two(batch, ctx): ...\n")
    refused(run("orders", "--feed", feed), words, "help: karafka-lite run --help")
    assert fed == []


@pytest.mark.parametrize(("given", "kind"), [("embeded", "embedded"), ("embed", "embedded"), ("Docker", "docker")])
def test_a_broker_that_is_nearly_embedded_or_docker_is_a_typo_and_no_host(
    run: Run, write: Write, given: str, kind: str
) -> None:
    write("orders.py", ORDERS)
    ended = run("orders", "--broker", given)
    refused(ended, f"--broker {given}: did you mean {kind}?", f"give its port: --broker {given}:9092")


@pytest.mark.parametrize("host", ["kafka", "embeded:9092", "localhost"])
def test_other_hosts_are_hosts(run: Run, write: Write, host: str) -> None:
    write("orders.py", ORDERS)
    ended = run("orders", "--broker", host)
    assert ended.app is not None
    assert ended.app.brokers() == [host]
