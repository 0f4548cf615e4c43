"""What is shown on standard error, with a terminal there and without."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path

import pytest
from support.command import Stream

import karafka_lite
from karafka_lite.app import App
from karafka_lite.cli import console, lines
from karafka_lite.client.reader import choose_reader, reader_in_words
from karafka_lite.observers.progress import Snapshot, Totals


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Stream:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Stream(terminal=True)


@pytest.fixture
def pipe() -> Stream:
    return Stream(terminal=False)


@pytest.fixture(autouse=True)
def _root_logger_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> App:
    monkeypatch.delenv("KARAFKA_LITE_BOOTSTRAP_SERVERS", raising=False)
    app = App("event-store", bootstrap_servers=["kafka-1:9092", "kafka-2:9092"], concurrency=7)

    @app.topic("user_events", manual_offsets=True)
    def store(batch: object, ctx: object) -> None: ...

    @app.topic("clicks", group_id="[red]statistics[/red]")
    def count(batch: object, ctx: object) -> None: ...

    return app


def test_without_a_terminal_the_banner_is_plain_lines_that_are_each_complete(app: App, pipe: Stream) -> None:
    with redirect_stderr(pipe):
        console.banner(app)
    version, store, count, reader, calls, end = pipe.getvalue().splitlines()
    assert version == f"karafka-lite {karafka_lite.__version__}, brokers: kafka-1:9092, kafka-2:9092"
    assert calls == "up to 7 calls of a handler at a time, each for another partition"
    assert re.fullmatch(r"group event-store: user_events -> \S*store \(manual offsets\)", store)
    assert re.fullmatch(r"group \[red]statistics\[/red]: clicks -> \S*count \(automatic offsets\)", count)
    assert reader == f"record decoder: {reader_in_words()}"
    assert end == "stop with Ctrl-C or SIGTERM"


def test_as_json_the_banner_is_one_object_with_its_facts_and_with_quiet_it_is_nothing(
    app: App, pipe: Stream, terminal: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines._Style, "format", "json")
    with redirect_stderr(pipe):
        console.banner(app, "embedded")
    (line,) = pipe.getvalue().splitlines()
    told = json.loads(line)
    assert told["version"] == karafka_lite.__version__
    assert (told["brokers"], told["broker"]) == (["kafka-1:9092", "kafka-2:9092"], "embedded")
    assert [(route["group"], route["topic"], route["offsets"]) for route in told["routes"]] == [
        ("event-store", "user_events", "manual"),
        ("[red]statistics[/red]", "clicks", "automatic"),
    ]
    monkeypatch.setattr(lines._Style, "format", "auto")
    monkeypatch.setattr(lines._Style, "quiet", True)
    with redirect_stderr(terminal):
        console.banner(app)
    assert terminal.getvalue() == ""


def test_the_plain_banner_has_neither_colour_nor_boxes(app: App, pipe: Stream) -> None:
    with redirect_stderr(pipe):
        console.banner(app)
    assert "event-store" in pipe.getvalue()
    assert pipe.getvalue().isascii()
    assert "\x1b" not in pipe.getvalue()


def test_on_a_terminal_the_banner_is_a_coloured_box_with_the_same_facts(app: App, terminal: Stream) -> None:
    with redirect_stderr(terminal):
        console.banner(app)
    assert "\x1b[" in terminal.getvalue()
    assert terminal.text.startswith("╭")
    facts = (karafka_lite.__version__, "event-store", "user_events", "manual", "store", "clicks", "automatic", "count")
    for fact in (*facts, "kafka-1:9092, kafka-2:9092", "up to 7 calls", "Ctrl-C", choose_reader().name):
        assert fact in terminal.text


def test_a_group_named_like_markup_is_shown_as_it_is(app: App, terminal: Stream) -> None:
    with redirect_stderr(terminal):
        console.banner(app)
    assert "[red]statistics[/red]" in terminal.text


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_a_terminal_that_can_only_print_lines_gets_plain_ones(
    app: App, terminal: Stream, monkeypatch: pytest.MonkeyPatch, term: str
) -> None:
    monkeypatch.setenv("TERM", term)
    with redirect_stderr(terminal):
        console.banner(app)
    assert terminal.getvalue() == terminal.text
    assert "╭" not in terminal.text


def test_a_name_longer_than_the_terminal_is_wide_is_folded_and_not_cut(
    app: App, terminal: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    app.topic("z" * 200)(lambda batch, ctx: None)
    with redirect_stderr(terminal):
        console.banner(app)
    assert terminal.text.count("z") == 200


def feed_two_messages(total: int | None, typed: bool = False) -> None:
    with console.feeding("[red]clicks[/red]", total, typed) as update:
        update(5, 0)
        update(10, 2)


def test_without_a_terminal_a_feed_is_one_line_at_its_end(pipe: Stream) -> None:
    with redirect_stderr(pipe):
        feed_two_messages(10)
    assert re.fullmatch(r"produced 2 messages to \[red]clicks\[/red] in \d+\.\d s\n", pipe.getvalue())


def test_one_message_is_one_message(pipe: Stream) -> None:
    with redirect_stderr(pipe), console.feeding("clicks", 10, False) as update:
        update(10, 1)
    assert pipe.getvalue().startswith("produced 1 message to clicks in ")


@pytest.mark.parametrize(("total", "seen"), [(10, " 50%"), (None, "0 messages")])
def test_on_a_terminal_a_feed_has_a_bar_of_bytes_or_else_a_counter_and_the_same_line_at_its_end(
    terminal: Stream, total: int | None, seen: str
) -> None:
    with redirect_stderr(terminal):
        feed_two_messages(total)
    assert "[red]clicks[/red] ━" in terminal.text
    assert seen in terminal.text
    assert ("%" in terminal.text) == (total is not None)
    assert re.search(r"produced 2 messages to \[red]clicks\[/red] in \d+\.\d s\n$", terminal.text)


def test_a_log_line_does_not_break_the_progress_bar(terminal: Stream) -> None:
    with redirect_stderr(terminal):
        console.configure_logging("info")
        with console.feeding("clicks", 10, False):
            logging.getLogger("shop").warning("a broker is slow")
    (line,) = [line for line in terminal.text.splitlines() if "a broker is slow" in line]
    assert "━" not in line.partition("a broker is slow")[0].rpartition("\r")[2]


def test_what_a_human_types_is_not_painted_over(terminal: Stream) -> None:
    with redirect_stderr(terminal):
        feed_two_messages(None, typed=True)
    first, last = terminal.getvalue().splitlines()
    assert first == "enter one message per line; Ctrl-D ends the input"
    assert last.startswith("produced 2 messages to ")


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_feed_that_fails_has_no_line_about_its_success(terminal: Stream, is_terminal: bool) -> None:
    terminal.terminal = is_terminal
    with redirect_stderr(terminal), pytest.raises(ValueError, match="bad line"), console.feeding("clicks", 10, False):
        raise ValueError("bad line")
    assert "produced" not in terminal.text


def test_without_a_terminal_a_log_line_has_time_level_and_logger(pipe: Stream) -> None:
    with redirect_stderr(pipe):
        console.configure_logging("info")
        logging.getLogger("karafka_lite.runner").info("started %s", "[bold]x[/bold]")
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO karafka_lite.runner: started \[bold]x\[/bold]\n", pipe.getvalue()
    )


def test_on_a_terminal_a_log_line_is_coloured_and_its_markup_is_shown_as_it_is(terminal: Stream) -> None:
    with redirect_stderr(terminal):
        console.configure_logging("info")
        logging.getLogger("shop").warning("started %s", "[bold]x[/bold]")
    assert "\x1b[" in terminal.getvalue()
    assert "WARNING" in terminal.text
    assert "shop: started [bold]x[/bold]" in terminal.text


@pytest.mark.parametrize("is_terminal", [True, False])
def test_an_exception_is_logged_with_its_traceback(terminal: Stream, is_terminal: bool) -> None:
    terminal.terminal = is_terminal
    with redirect_stderr(terminal):
        console.configure_logging("info")
        try:
            raise KeyError("[red]nope")
        except KeyError:
            logging.getLogger("shop").exception("a batch failed")
    assert "a batch failed" in terminal.text
    assert "KeyError: '[red]nope'" in terminal.text


@pytest.mark.parametrize("level", ["warning", "WARNING", "Warning"])
def test_the_level_is_understood_in_any_case(pipe: Stream, level: str) -> None:
    with redirect_stderr(pipe):
        console.configure_logging(level)
    logging.getLogger("karafka_lite").info("too quiet")
    logging.getLogger("shop").warning("loud enough")
    assert "too quiet" not in pipe.getvalue()
    assert "loud enough" in pipe.getvalue()


def test_configuring_twice_logs_once(pipe: Stream) -> None:
    with redirect_stderr(pipe):
        console.configure_logging("info")
        console.configure_logging("info")
    logging.getLogger("shop").info("hello")
    assert pipe.getvalue().count("hello") == 1


def test_the_handler_of_an_agent_stays(pipe: Stream) -> None:
    agent = logging.NullHandler()
    logging.getLogger().addHandler(agent)
    console.configure_logging("info")
    assert agent in logging.getLogger().handlers


def test_without_a_terminal_rich_is_never_loaded() -> None:
    program = (
        "import sys; from karafka_lite.cli import console; from karafka_lite.app import App\n"
        "app = App('g'); app.topic('t')(lambda batch, ctx: None)\n"
        "console.configure_logging('info'); console.banner(app)\n"
        "with console.feeding('t', 10, False) as update: update(10, 1)\n"
        "sys.exit('rich' in sys.modules)"
    )
    root = Path(karafka_lite.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


# -- a drained run ----------------------------------------------------------------------------------------------------


def snapshots() -> list[Snapshot]:
    totals = Totals(messages=1707, batches=4, failures=1, seconds=0.25, unmarked=3)
    return [Snapshot("counter", {}, {}, {}, {}, {"[red]quakes": totals}, False)]


def test_a_drained_run_is_summed_up_in_lines_of_their_own(pipe: Stream) -> None:
    with redirect_stderr(pipe):
        with console.draining(10) as update:
            update(5)
        console.drained(snapshots(), 0.52, "")
    assert pipe.text.splitlines() == [
        "group counter: [red]quakes: 1707 messages, 4 batches, 1 failure, 0 given up, 0.2 seconds, 3 unmarked",
        "drained: 1707 messages in 0.5 s",
    ]


def test_a_drained_run_is_summed_up_in_a_table_on_a_terminal(terminal: Stream) -> None:
    with redirect_stderr(terminal):
        with console.draining(10) as update:
            update(5)
        console.drained(snapshots(), 0.52, "")
    assert re.search(r"group +topic +messages +batches +failures +given up +seconds +unmarked", terminal.text)
    assert re.search(r"counter +\[red\]quakes +1707 +4 +1 +0 +0\.2 +3", terminal.text)
    assert "drained: 1707 messages in 0.5 s" in terminal.text


def test_a_run_that_did_not_reach_the_end_says_why(pipe: Stream) -> None:
    with redirect_stderr(pipe):
        console.drained(snapshots(), 0.52, "stopped before the end")
    assert pipe.text.splitlines()[-1] == "not drained: stopped before the end"


def test_the_banner_says_that_the_data_of_a_broker_of_this_run_is_discarded(
    app: App, terminal: Stream, pipe: Stream
) -> None:
    for stream in (terminal, pipe):
        with redirect_stderr(stream):
            console.banner(app, "embedded")
        assert "the embedded broker is for development and tests; its data is discarded on exit" in stream.text


def test_on_a_terminal_a_broker_for_other_terminals_says_how_to_use_it_there(terminal: Stream) -> None:
    with redirect_stderr(terminal):
        console.serving("docker", "127.0.0.1:9092", {"[red]clicks": 1})
    assert terminal.text.startswith("╭")
    assert "[red]clicks (1 partition)" in terminal.text
    assert "karafka-lite run module:app --broker 127.0.0.1:9092" in terminal.text
