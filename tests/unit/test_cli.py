"""``karafka-lite run module:app``: what is found, and what each mistake says."""

from __future__ import annotations

import gc
import importlib
import logging
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import karafka_lite
from karafka_lite.app import App
from karafka_lite.cli import main as cli
from karafka_lite.cli import produce as produce_command
from karafka_lite.cli import run as run_command
from karafka_lite.cli.feed import Feed, FeedError
from karafka_lite.client import producer
from karafka_lite.errors import BrokerUnavailableError, ConfigurationError

ORDERS = """\
from karafka_lite import App

app = App("event-store")

@app.topic("user_events")
def store(batch, ctx): ...
"""


class Ended(NamedTuple):
    code: object
    err: str
    out: str
    app: App | None


Run = Callable[..., Ended]
Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, text: str) -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        return file

    return write


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """``karafka-lite run …`` in ``tmp_path``, with an App.run that only notes which App it was."""
    started: list[App] = []

    def note(app: App) -> int:
        started.append(app)
        return 0

    def run(*argv: str) -> Ended:
        importlib.invalidate_caches()  # files written a moment ago
        try:
            code: object = cli.main(["run", *argv])
        except SystemExit as end:
            code = end.code
        captured = capsys.readouterr()
        return Ended(code, captured.err, captured.out, started[-1] if started else None)

    monkeypatch.setattr(App, "run", note)
    monkeypatch.delenv("KARAFKA_LITE_BOOTSTRAP_SERVERS", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield run
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, module in list(sys.modules.items()):
        places = [getattr(module, "__file__", None), *getattr(module, "__path__", [])]
        if any(place and str(place).startswith(str(tmp_path)) for place in places):
            del sys.modules[name]


def refused(ended: Ended, *words: str) -> None:
    """It ended as a mistake: exit code 1, nothing ran, the words are on standard error, no traceback."""
    assert ended.code == 1
    assert ended.app is None
    assert ended.out == ""
    assert "Traceback" not in ended.err
    for word in words:
        assert word in ended.err


def refused_with_the_users_traceback(ended: Ended, *words: str) -> None:
    assert ended.code == 1
    assert ended.app is None
    assert ended.err.count("Traceback") == 1
    assert "karafka_lite" + os.sep not in ended.err
    assert "importlib" not in ended.err
    for word in words:
        assert word in ended.err


# What is found


@pytest.mark.parametrize("target", ["orders:app", "orders", "orders:", "orders.py", "orders.py:app", "./orders.py"])
def test_the_app_is_found_however_it_is_typed(run: Run, write: Write, target: str) -> None:
    write("orders.py", ORDERS)
    ended = run(target)
    assert ended.code == 0, ended.err
    assert ended.app is not None
    assert ended.app.config.group_id == "event-store"


def test_standard_output_stays_free_for_the_users_prints(run: Run, write: Write) -> None:
    write("orders.py", ORDERS + "print('mine')\n")
    ended = run("orders")
    assert ended.out == "mine\n"
    assert "group event-store: user_events -> store (automatic offsets)" in ended.err


def test_the_current_directory_comes_first(run: Run, write: Write) -> None:
    write("colorsys.py", ORDERS)  # a module of the standard library that nobody has imported
    sys.modules.pop("colorsys", None)
    assert run("colorsys:app").app is not None


def test_without_an_attribute_the_only_app_is_taken_whatever_its_name(run: Run, write: Write) -> None:
    write("orders.py", ORDERS.replace("app", "consumers"))
    assert run("orders").app is not None


def test_one_app_under_two_names_is_one_app(run: Run, write: Write) -> None:
    write("orders.py", ORDERS.replace("app =", "app = second =") + "first = app\ndel app\n")
    assert run("orders").app is not None


def test_without_an_attribute_app_wins_over_other_apps(run: Run, write: Write) -> None:
    write("orders.py", ORDERS + "another = App('other')\n")
    ended = run("orders")
    assert ended.app is not None
    assert ended.app.config.group_id == "event-store"


def test_an_app_of_another_framework_named_app_does_not_hide_the_only_one(run: Run, write: Write) -> None:
    write("orders.py", ORDERS + "consumers, app = app, object()\n")
    assert run("orders").app is not None


def test_a_factory_is_called(run: Run, write: Write) -> None:
    write("orders.py", ORDERS + "def make():\n    return app\n")
    assert run("orders:make()").app is not None


def test_dotted_attributes_work(run: Run, write: Write) -> None:
    write("orders.py", ORDERS + "class Box:\n    app = app\n    make = staticmethod(lambda: Box.app)\n")
    assert run("orders:Box.app").app is not None
    assert run("orders:Box.make()").code == 0


def test_a_module_of_a_package_works(run: Run, write: Write) -> None:
    write("shop/__init__.py", "")
    write("shop/orders.py", ORDERS)
    assert run("shop.orders:app").app is not None


@pytest.mark.parametrize("target", ["examples/quickstart.py", "examples/quickstart.py:app", "examples/quickstart:app"])
def test_a_file_in_a_folder_works_with_its_neighbours(run: Run, write: Write, target: str) -> None:
    write("examples/quickstart.py", "import neighbour\n" + ORDERS)
    write("examples/neighbour.py", "")
    ended = run(target)
    assert ended.app is not None, ended.err


def test_a_file_outside_of_the_current_directory_works(
    run: Run, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write("examples/quickstart.py", ORDERS)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run(str(file)).app is not None


def test_a_file_of_a_package_is_imported_under_its_full_name(run: Run, write: Write) -> None:
    write("shop/__init__.py", "")
    write("shop/orders.py", ORDERS + "from . import handlers\nassert __name__ == 'shop.orders'\n")
    write("shop/handlers.py", "from shop.orders import app\n")
    ended = run("shop/orders.py")
    assert ended.app is not None, ended.err
    assert "orders" not in sys.modules  # a second copy would hold a second App


# What the options do


def test_the_options_win_and_the_banner_shows_them(run: Run, write: Write) -> None:
    write("orders.py", ORDERS)
    ended = run("orders", "--broker", "kafka-1:9092,kafka-2:9092", "--concurrency", "9")
    assert ended.app is not None
    assert ended.app.brokers() == ["kafka-1:9092", "kafka-2:9092"]
    assert "9 workers, brokers: kafka-1:9092, kafka-2:9092" in ended.err


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
def test_the_collector_runs_less_often_unless_somebody_knows_better(
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
    monkeypatch.setattr(App, "run", lambda self: code)
    assert run("orders").code == code


@pytest.mark.parametrize(
    ("error", "code"), [(ConfigurationError("no such file"), 1), (BrokerUnavailableError("none"), 3)]
)
def test_what_is_only_known_at_run_time_is_said_without_a_traceback(
    run: Run, write: Write, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    def fail(app: App) -> int:
        raise error

    write("orders.py", ORDERS)
    monkeypatch.setattr(App, "run", fail)
    ended = run("orders")
    assert ended.code == code
    assert f"karafka-lite: {error}\n" in ended.err
    assert ended.err.endswith("to try it without Kafka, add --broker embedded\n") is (code == 3)
    assert "Traceback" not in ended.err


def test_an_option_that_the_app_refuses_is_said(run: Run, write: Write) -> None:
    write("orders.py", ORDERS)
    refused(run("orders", "--concurrency", "0"), "karafka-lite: ", "concurrency")


# What each mistake says


def test_a_module_that_does_not_exist_is_said_with_the_place_and_the_nearest(
    run: Run, write: Write, tmp_path: Path
) -> None:
    write("orders.py", ORDERS)
    refused(run("ordrs:app"), "no module named 'ordrs'", str(tmp_path), "did you mean orders?", "use: karafka-lite run")


def test_a_missing_module_of_a_package_that_exists_is_named_in_full(run: Run, write: Write) -> None:
    write("shop/__init__.py", "")
    write("shop/orders.py", ORDERS)
    refused(run("shop.ordrs:app"), "no module named 'shop.ordrs'")


@pytest.mark.parametrize("target", ["exmples/quickstart.py", "examples/quickstrt.py", "examples/", "quickstart.py"])
def test_a_file_that_does_not_exist_is_said(run: Run, write: Write, target: str, tmp_path: Path) -> None:
    write("examples/quickstart.py", ORDERS)
    refused(run(target), "no such file: ", str(tmp_path), "use: karafka-lite run path/to/file.py")


def test_the_nearest_file_is_named_with_its_folder(run: Run, write: Write) -> None:
    write("examples/quickstart.py", ORDERS)
    refused(run("examples/quickstrt.py"), "did you mean examples/quickstart.py?")


@pytest.mark.parametrize("target", ["", ":app", ".orders:app"])
def test_a_target_without_a_module_is_said(run: Run, target: str) -> None:
    refused(run(target), "does not name a module", "use: karafka-lite run module:app")


def test_an_import_of_the_users_that_is_not_installed_is_shown_from_the_users_file_on(run: Run, write: Write) -> None:
    write("orders.py", "import database\n" + ORDERS)
    write("database.py", "\nimport psycopg_of_nobody\n")
    refused_with_the_users_traceback(
        run("orders:app"), 'orders.py", line 1', 'database.py", line 2', "'psycopg_of_nobody' is not installed for "
    )


def test_an_exception_of_the_users_module_is_shown_from_the_users_file_on(run: Run, write: Write) -> None:
    write("orders.py", ORDERS + "{}['nope']\n")
    refused_with_the_users_traceback(
        run("orders"), 'orders.py", line 7', "KeyError: 'nope'", "run the same command again"
    )


def test_a_factory_that_raises_is_shown_from_the_factory_on(run: Run, write: Write) -> None:
    write("orders.py", ORDERS + "def make():\n    return 1 / 0\n")
    refused_with_the_users_traceback(run("orders:make()"), "in make", "ZeroDivisionError", "orders:make()")


def test_a_cause_is_shown_as_well(run: Run, write: Write) -> None:
    write("orders.py", "try:\n    {}['nope']\nexcept KeyError as e:\n    raise OSError('settings') from e\n")
    ended = run("orders")
    assert ended.code == 1
    assert ended.err.index("KeyError: 'nope'") < ended.err.index("OSError: settings")
    assert "main.py" not in ended.err
    assert "importer.py" not in ended.err


def test_a_module_that_ends_the_process_does_not_look_like_a_clean_end(run: Run, write: Write) -> None:
    write("orders.py", ORDERS + "import sys\nsys.exit(0)\n")
    refused_with_the_users_traceback(run("orders"), 'orders.py", line 8', 'if __name__ == "__main__":')


def test_an_attribute_that_is_missing_is_said_with_the_apps_that_are_there(run: Run, write: Write) -> None:
    write("orders.py", ORDERS + "second = App('other')\n")
    refused(
        run("orders:ap"),
        "orders.py has no attribute 'ap'",
        "karafka-lite run orders:app or karafka-lite run orders:second",
    )


@pytest.mark.parametrize("target", ["orders:app", "orders"])
def test_a_module_without_any_app_is_told_how_to_make_one(run: Run, write: Write, target: str) -> None:
    write("orders.py", "x = 1\n")
    refused(run(target), "orders.py has no attribute 'app'", 'app = App("my-group")', "karafka-lite run orders:app")


def test_several_apps_and_none_named_app_are_listed(run: Run, write: Write) -> None:
    write("orders.py", "from karafka_lite import App\nfirst, second = App('a'), App('b')\n")
    refused(run("orders"), "several Apps", "karafka-lite run orders:first or karafka-lite run orders:second")


@pytest.mark.parametrize("package", [True, False])
def test_for_a_folder_its_modules_are_listed(run: Run, write: Write, package: bool) -> None:
    write("shop/orders.py", ORDERS)
    if package:
        write("shop/__init__.py", "")
    refused(run("shop"), "use: karafka-lite run shop.orders")


@pytest.mark.parametrize(
    ("text", "kind"),
    [("app = 3", "an object of type int"), ("app = None", "None"), ("class app: ...", "the class app")],
)
def test_an_attribute_that_is_not_an_app_is_said_with_its_type(run: Run, write: Write, text: str, kind: str) -> None:
    write("orders.py", f"{text}\n")
    refused(run("orders:app"), f"orders:app is {kind}, not an App")
    refused(run("orders"), f"orders:app is {kind}, not an App")


def test_for_a_function_in_a_module_without_an_app_calling_it_is_suggested(run: Run, write: Write) -> None:
    write("orders.py", "def make(): ...\n")
    refused(run("orders:make"), "orders:make is a function", "karafka-lite run 'orders:make()'")


def test_for_a_handler_the_app_beside_it_is_suggested(run: Run, write: Write) -> None:
    write("orders.py", ORDERS)
    refused(run("orders:store"), "orders:store is a function", "use: karafka-lite run orders:app")


def test_a_factory_that_returns_something_else_is_said_with_its_type(run: Run, write: Write) -> None:
    write("orders.py", "def make(): ...\n")
    refused(run("orders:make()"), "orders:make() returned None, not an App", "return app")


def test_a_factory_that_needs_arguments_is_said(run: Run, write: Write) -> None:
    write("orders.py", "def make(settings): ...\n")
    refused(run("orders:make()"), "make() missing 1 required positional argument", "called without arguments")


def test_calling_an_app_is_said(run: Run, write: Write) -> None:
    write("orders.py", ORDERS)
    refused(run("orders:app()"), "orders:app is an object of type App", "remove the ()")


@pytest.mark.parametrize("target", ["orders", "jobs"])
def test_a_wrong_decorator_is_said_with_the_users_line(run: Run, write: Write, target: str) -> None:
    write("orders.py", ORDERS + "@app.topic('clicks')\ndef count(batch): ...\n")
    write("jobs.py", "import orders\n")
    ended = run(target)
    refused(ended, "count")
    line = 7 if sys.version_info >= (3, 11) else 8  # Python 3.10 calls a decorator from the line of the def
    assert ended.err.startswith(f"orders.py:{line}: ")


def test_a_wrong_call_in_a_factory_is_said_with_the_users_line(run: Run, write: Write) -> None:
    write("orders.py", ORDERS + "def make():\n    app.topic('user_events')(store)\n")
    ended = run("orders:make()")
    refused(ended, "user_events")
    assert ended.err.startswith("orders.py:8: ")


def test_a_wrong_app_is_said_with_the_users_line(run: Run, write: Write) -> None:
    write("orders.py", "from karafka_lite import App\n\napp = App('')\n")
    ended = run("orders")
    refused(ended, "group_id")
    assert ended.err.startswith("orders.py:3: ")


@pytest.mark.parametrize("target", ["orders", "jobs"])
def test_a_syntax_error_is_said_with_its_line_and_text(run: Run, write: Write, target: str) -> None:
    write("orders.py", "x = 1\ndef f(:\n    pass\n")
    write("jobs.py", "import orders\n")
    ended = run(target)
    refused(ended, "SyntaxError: ", "def f(:")
    assert ended.err.startswith("orders.py:2: ")


def test_a_syntax_error_that_no_file_has_is_shown_from_the_users_file_on(run: Run, write: Write) -> None:
    write("orders.py", "eval('1 +')\n")
    ended = run("orders")
    assert ended.code == 1
    assert 'orders.py", line 1' in ended.err
    assert "SyntaxError" in ended.err
    assert "main.py" not in ended.err
    assert "importer.py" not in ended.err


def test_a_file_that_is_no_text_is_said(run: Run, tmp_path: Path) -> None:
    (tmp_path / "orders.py").write_bytes(b"x = 1\n\x00\xff")
    refused(run("orders"), "orders")


def test_an_app_without_topics_is_told_to_decorate_a_function(run: Run, write: Write) -> None:
    write("orders.py", "from karafka_lite import App\napp = App('event-store')\n")
    refused(run("orders:app"), "the App in orders:app has no topics", "@app.topic(", "def handle(batch, ctx)")


@pytest.mark.parametrize("target", ["argparse:app", "argparse.py"])
def test_a_file_whose_name_is_taken_is_said(run: Run, write: Write, target: str) -> None:
    write("argparse.py", ORDERS)
    refused(run(target), "cannot import argparse.py", "already taken by", "rename it, for example to my_argparse")


def test_ctrl_c_during_the_import_ends_quietly(run: Run, write: Write) -> None:
    write("orders.py", "raise KeyboardInterrupt\n")
    ended = run("orders")
    assert ended.code == 1
    assert ended.err == ""


# run --feed


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What ``feed`` was called with, instead of sending anything."""
    calls: list[Any] = []
    for command in (run_command, produce_command):
        monkeypatch.setattr(
            command, "feed", lambda feeds, servers, settings, show: calls.append((feeds, servers, settings))
        )
    return calls


def test_feeds_are_sent_to_the_apps_brokers_with_its_settings_before_it_runs(
    run: Run, write: Write, fed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write("orders.py", ORDERS.replace('"event-store"', '"event-store", security_protocol="SSL"'))
    monkeypatch.setattr(App, "run", lambda app: len(fed) + 40)
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
    assert ended.err.endswith("to try it without Kafka, add --broker embedded\n") is (code == 3)


@pytest.mark.parametrize(
    ("feed", "words"),
    [
        ("usr_events=f", "the App does not consume 'usr_events'; its topics: user_events, clicks"),
        ("user_events", "--feed expects TOPIC=FILE, got 'user_events'"),
        ("user_events=", "--feed expects TOPIC=FILE, got 'user_events='"),
        ("=f", "--feed expects TOPIC=FILE, got '=f'"),
    ],
)
def test_a_feed_that_reaches_nobody_is_a_usage_error_with_the_apps_topics(
    run: Run, write: Write, fed: list[Any], feed: str, words: str
) -> None:
    write("orders.py", ORDERS + "@app.topic('clicks', 'user_events', group_id='other')\ndef two(batch, ctx): ...\n")
    refused(run("orders", "--feed", feed), words, "usage: karafka-lite run")
    assert fed == []


# produce


@pytest.fixture
def produce(run: Run, capsys: pytest.CaptureFixture[str]) -> Run:
    def produce(*argv: str) -> Ended:
        try:
            code: object = cli.main(["produce", *argv])
        except SystemExit as end:
            code = end.code
        captured = capsys.readouterr()
        return Ended(code, captured.err, captured.out, None)

    return produce


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["t"], Feed("t", "-")),
        (["t", "-"], Feed("t", "-")),
        (["t", "f", "--key", "id"], Feed("t", "f", "id")),
        (["--text", "t", "f"], Feed("t", "f", None, True)),
    ],
)
def test_produce_sends_one_feed(produce: Run, fed: list[Any], argv: list[str], expected: Feed) -> None:
    assert produce(*argv).code == 0
    assert fed == [([expected], ["localhost:9092"], {})]


def test_the_brokers_of_produce_are_the_option_then_the_environment(
    produce: Run, fed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KARAFKA_LITE_BOOTSTRAP_SERVERS", "kafka-1:9092,kafka-2:9092")
    produce("t")
    produce("t", "--broker", "kafka-3:9092")
    assert [servers for _, servers, _ in fed] == [["kafka-1:9092", "kafka-2:9092"], ["kafka-3:9092"]]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "required: TOPIC"),
        (["t", "f", "--key", "id", "--text"], "--key cannot be combined with --text"),
        (["t", "f", "g"], "unrecognized arguments: g"),
        (["t", "--keys", "id"], "unrecognized arguments: --keys id"),
    ],
)
def test_a_usage_error_of_produce_shows_how_it_is_typed(
    produce: Run, fed: list[Any], argv: list[str], words: str
) -> None:
    example = "for example: karafka-lite produce my_topic my_file.jsonl"
    refused(produce(*argv), words, "usage: karafka-lite produce", example, "karafka-lite produce --help")
    assert fed == []


@pytest.mark.parametrize("file", ["missing", ".", "secret", "nul\0"])
def test_a_file_that_cannot_be_read_is_one_message(produce: Run, tmp_path: Path, file: str) -> None:
    (tmp_path / "secret").touch(0o000)
    if file == "secret" and os.access("secret", os.R_OK):
        pytest.skip("root may read everything")
    ended = produce("t", file)
    refused(ended, f"karafka-lite: cannot read {file}: ", str(tmp_path), "pass a file, or - for standard input")
    assert ended.err.count("\n") == 1


def test_a_closed_standard_input_is_one_message(produce: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    refused(produce("t"), "karafka-lite: standard input is closed; pass the name of a file")


@pytest.mark.parametrize("option", ["--broker", "the environment"])
def test_brokers_that_are_none_are_refused_with_their_source(
    produce: Run, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setenv("KARAFKA_LITE_BOOTSTRAP_SERVERS", "http://x")
    words = "the environment variable KARAFKA_LITE_BOOTSTRAP_SERVERS" if option != "--broker" else "--broker"
    refused(
        produce("t", *(["--broker", "http://x"] if option == "--broker" else [])), words, "'http://x' is not an address"
    )


@pytest.mark.parametrize("listens", [False, True], ids=["nobody listens", "nobody answers"])
def test_without_a_broker_produce_ends_with_3_and_leaves_nothing_behind(
    produce: Run, write: Write, monkeypatch: pytest.MonkeyPatch, listens: bool
) -> None:
    monkeypatch.setitem(producer.DEFAULTS, "bootstrap_timeout_ms", 500)
    write("f", "1\n")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if listens:
            silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        ended = produce("t", "f", "--broker", address)
    assert ended.code == 3
    (line,) = [line for line in ended.err.splitlines() if line.startswith("karafka-lite: ")]
    assert line.startswith(f"karafka-lite: no broker could be reached at {address} within 500 ms (")
    assert ("ECONNREFUSED" in line) == (not listens), "the reason of this time, where there is one"
    assert "--broker HOST:PORT, or KARAFKA_LITE_BOOTSTRAP_SERVERS=HOST:PORT" in line
    assert "Traceback" not in ended.err


# Usage


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "required: module:app"),
        (["orders", "--concurrency", "five"], "invalid int value: 'five'"),
        (["orders", "--log-level", "loud"], "invalid choice: 'loud'"),
        (["orders", "--brokr", "kafka:9092"], "unrecognized arguments: --brokr"),
        (["orders", "--brok", "kafka:9092"], "unrecognized arguments: --brok"),
    ],
)
def test_a_usage_error_exits_1_and_says_what_to_type(run: Run, argv: list[str], words: str) -> None:
    refused(run(*argv), words, "usage: karafka-lite run", "karafka-lite run module:app", "karafka-lite run --help")


@pytest.mark.parametrize("argv", [["orders:app"], ["--nope"]])
def test_without_a_known_command_run_is_suggested(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(argv)
    assert end.value.code == 1
    assert "for example: karafka-lite run module:app" in capsys.readouterr().err


def test_without_any_argument_it_prints_its_help_and_exits_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    alone = capsys.readouterr()
    assert alone == (help_of(capsys), "")
    for command in ("run", "produce", "broker"):
        assert re.search(rf"^ +{command} +\w", alone.out, re.MULTILINE)


@pytest.mark.parametrize("command", [[], ["run"], ["produce"], ["broker"]], ids=" ".join)
def test_a_help_fits_a_terminal_of_80_columns(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert [line for line in help_of(capsys, *command).splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("command", ["run", "produce", "broker"])
def test_the_help_of_a_command_has_examples_exit_codes_and_groups_of_options(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = help_of(capsys, command)
    assert re.search(rf"^examples:\n  karafka-lite {command} ?", text, re.MULTILINE)
    assert re.search(r"^exit codes:\n  0  \w", text, re.MULTILINE)
    assert re.search(r"^logging:\n  --log-level LEVEL ", text, re.MULTILINE)


def test_the_examples_in_a_help_are_commands_that_parse(capsys: pytest.CaptureFixture[str]) -> None:
    texts = "".join(help_of(capsys, command) for command in ("run", "produce", "broker"))
    examples = re.findall(r"^  (?:.*\| )?karafka-lite (.+?)(?:  .*)?$", texts, re.MULTILINE)
    assert len(examples) >= 16
    for example in examples:
        cli._parser().parse_args(shlex.split(example))


def test_help_of_produce_says_what_a_line_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert "A line ends with \\n or \\r\\n. Blank lines are skipped; with --text" in help_of(capsys, "produce")


def help_of(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    with pytest.raises(SystemExit) as end:
        cli.main([*command, "--help"])
    assert end.value.code == 0
    return capsys.readouterr().out


# As a process


def process(*argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(karafka_lite.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environ = {**os.environ, "PYTHONPATH": path.rstrip(os.pathsep)}
    return subprocess.run([sys.executable, *argv], cwd=cwd, env=environ, capture_output=True, text=True, timeout=60)


def test_the_version_is_said_on_standard_output(tmp_path: Path) -> None:
    done = process("-m", "karafka_lite", "--version", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"karafka-lite {karafka_lite.__version__}\n", "")


def test_the_version_loads_no_rich(tmp_path: Path) -> None:
    program = (
        "import sys, karafka_lite.cli.main\n"
        "try: karafka_lite.cli.main.main(['--version'])\n"
        "finally: assert 'rich' not in sys.modules\n"
    )
    done = process("-c", program, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_mistake_in_a_process_exits_1_without_a_traceback(tmp_path: Path) -> None:
    done = process("-m", "karafka_lite", "run", "ordrs:app", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("karafka-lite: no module named 'ordrs'")
    assert "Traceback" not in done.stderr


QUICK = "='quick' is no decoder: type pure or compiled, or unset it"


@pytest.mark.parametrize(
    ("decoder", "options", "told"),
    [
        ("compiled", [], "=compiled: gone; type pip install 'karafka-lite[speed]'"),
        ("quick", ["--drain", "--feed", "user_events=events.jsonl"], QUICK),
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


def test_a_usage_error_in_a_process_exits_1(tmp_path: Path) -> None:
    done = process("-m", "karafka_lite", "run", cwd=tmp_path)
    assert done.returncode == 1
    assert "karafka-lite run module:app" in done.stderr
