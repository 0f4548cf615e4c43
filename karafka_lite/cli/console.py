"""What ``karafka-lite`` writes to standard error: colour on a terminal, plain lines everywhere else.

It never writes to standard output, which belongs to the user's own prints. rich is imported only where it draws, so
that a process without a terminal (a container, a pipe) does not load it. Nothing is interpreted as rich markup: topics,
groups and log messages are wrapped in ``Text`` or logged with ``markup=False``, so ``[red]`` stays ``[red]``.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING

from karafka_lite.cli import lines
from karafka_lite.cli.options import DEFAULT_LEVEL
from karafka_lite.observers.banner import FOR_DEVELOPMENT, rich_panel, show
from karafka_lite.observers.health import Health
from karafka_lite.observers.progress import Snapshot
from karafka_lite.observers.stats import Stats
from karafka_lite.observers.whereabouts import Whereabouts
from karafka_lite.version import __version__

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from karafka_lite.app import App

_HANDLER = "karafka-lite"
_ONE = {"messages": "message", "batches": "batch", "failures": "failure"}
LIVE_PER_S = 2


def configure_logging(level: str | None) -> None:
    """Send the root logger's records from ``level`` (a name, in any case; None: info) up to standard error.

    A second call replaces the handler of the first one. Other handlers stay: an agent such as
    ``opentelemetry-instrument`` adds one before our code runs, and must keep getting its records.
    """
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if handler.name == _HANDLER]:
        root.removeHandler(handler)
    root.addHandler(_handler())
    root.setLevel(_level(level))


@contextmanager
def logging_of_the_users_module(level: str | None) -> Iterator[None]:
    """``configure_logging``, unless what is imported inside the block configures logging itself: then that counts.

    What is logged inside is shown, too. An agent's handler that was there before is no configuration of the user's.
    A ``level`` that was given is in both cases that of our own lines.
    """
    root, last_resort = logging.getLogger(), logging.lastResort
    before, level_before, ours = root.handlers[:], root.level, _Level(_level(level))
    if before:  # logging.basicConfig() would do nothing anyway
        configure_logging(level)
        before = root.handlers[:]
    else:  # so that logging.basicConfig() does something
        logging.lastResort = _handler()
    root.setLevel(ours)
    try:
        yield
    except BaseException:
        root.setLevel(level_before)
        raise
    finally:
        logging.lastResort = last_resort
    if all(handler in before for handler in root.handlers):
        chosen = root.level
        configure_logging(level)
        if level is None and chosen is not ours:
            root.setLevel(chosen)
        return
    for handler in [handler for handler in root.handlers if handler.name == _HANDLER]:
        root.removeHandler(handler)
    if root.level is ours:
        root.setLevel(level_before)
    if level is not None:
        logging.getLogger("karafka_lite").setLevel(ours)


class _Level(int):
    """A level that is known again: the user's module may set the same one."""


def _level(name: str | None) -> int:
    return int(getattr(logging, (name or ("warning" if lines.is_quiet() else DEFAULT_LEVEL)).upper()))


def banner(app: App, broker: str = "") -> None:
    """Print what is about to run: version, groups, topics, brokers, how to stop.

    ``broker``: the kind of the broker that was started for this run; "" if none was.
    """
    told = app.banner(broker=broker, stop="Ctrl-C or SIGTERM", more="--concurrency N")
    if lines.on_terminal():
        show(told)
    else:
        lines.say(told.text, **told.fields)


def serving(broker: str, servers: str, topics: Mapping[str, int]) -> None:
    """Print that a broker of the kind ``broker`` is ready, and how to use it from another terminal."""
    counts = [f"{topic} ({count} partition{'s' if count > 1 else ''})" for topic, count in topics.items()]
    told = [f"{broker} broker at {servers}, {FOR_DEVELOPMENT}"]
    told += [f"topics: {', '.join(counts)}"] if counts else []
    told.append(f"in another terminal: karafka-lite run module:app --broker {servers}")
    told.append("stop with Ctrl-C or SIGTERM")
    if lines.on_terminal():
        from rich.text import Text

        rich_panel(Text("\n".join(told)))
    else:
        text = "\n".join([f"karafka-lite {__version__}, {told[0]}", *told[1:]])
        lines.say(text, broker=broker, bootstrap_servers=servers, topics=dict(topics))


@contextmanager
def feeding(topic: str, total: int | None, typed: bool) -> Iterator[Callable[[int, int], None]]:
    """Show the progress of sending ``total`` bytes (None: unknown) to a topic; print one line if it completes.

    Yields a function to call with the bytes read and the messages acknowledged so far. ``typed``: a human types the
    messages on this terminal, so no progress is drawn on it.
    """
    began, produced = time.monotonic(), 0
    if typed:
        lines.say("enter one message per line; Ctrl-D ends the input")

    def update(read: int, acknowledged: int) -> None:
        nonlocal produced
        produced = acknowledged
        draw(read, acknowledged)

    with _rich_progress(topic, total) if lines.on_terminal() and not typed else nullcontext(lambda *_: None) as draw:
        yield update
    messages = "1 message" if produced == 1 else f"{produced} messages"
    seconds = time.monotonic() - began
    told = {"topic": topic, "messages": produced, "seconds": round(seconds, 3)}
    lines.say(f"produced {messages} to {topic} in {seconds:.1f} s", **told)


@contextmanager
def draining(total: int) -> Iterator[Callable[[int], None]]:
    """Show how many of ``total`` offsets are processed; yields a function to call with their number."""
    if not lines.on_terminal():
        yield lambda done: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    with Progress(*columns, console=_rich_console(), transient=True) as progress:
        task = progress.add_task("draining", total=total)
        yield lambda done: progress.update(task, completed=done)


@contextmanager
def live(stats: Callable[[], Stats], health: Callable[[], Health]) -> Iterator[None]:
    """Show, inside the block, what each partition does; log lines and what is printed come above it."""
    from rich.live import Live

    from karafka_lite.observers.live import View

    console, view, over = _rich_console(), View(), list[bool]()

    def draw() -> RenderableType:
        return view.draw(stats(), None if over else health(), time.monotonic(), console.height)

    # The user's prints stay on standard output; where that is the same terminal, they are drawn above.
    aside = sys.stdout is not None and sys.stdout.isatty()
    with Live(get_renderable=draw, console=console, refresh_per_second=LIVE_PER_S, redirect_stdout=aside):
        try:
            yield
        finally:
            over.append(True)


def whereabouts(where: Whereabouts) -> None:
    """Print where every thread and handler is; also with ``--quiet``, for somebody has asked."""
    lines.answer(
        str(where),
        health=asdict(where.health),
        partitions=[asdict(one) for one in where.partitions],
        threads=[asdict(one) for one in where.threads],
    )


def drained(snapshots: Sequence[Snapshot], seconds: float, complaint: str) -> None:
    """Print what a drained run has done, by topic; ``complaint``: why it did not reach the end."""
    rows = [(s.group_id, topic, totals) for s in snapshots for topic, totals in s.totals.items()]
    messages = sum(totals.messages for _, _, totals in rows)
    end = f"not drained: {complaint}" if complaint else f"drained: {_many(messages, 'messages')} in {seconds:.1f} s"
    cells = [
        (group, topic, *map(str, (t.messages, t.batches, t.failures, t.given_up)), f"{t.seconds:.1f}", f"{t.unmarked}")
        for group, topic, t in rows
    ]
    names = ("group", "topic", "messages", "batches", "failures", "given up", "seconds", "unmarked")
    if lines.on_terminal():
        _rich_table(names, cells, end)
        return
    for (group, topic, *numbers), (_, _, t) in zip(cells, rows, strict=True):
        totals = ", ".join(_many(number, name) for name, number in zip(names[2:], numbers, strict=True))
        lines.say(f"group {group}: {topic}: {totals}", group=group, topic=topic, **asdict(t))
    (lines.complain if complaint else lines.say)(end, messages=messages, seconds=round(seconds, 3))


def _many(number: object, name: str) -> str:
    return f"{number} {_ONE.get(name, name) if str(number) == '1' else name}"


def _handler() -> logging.Handler:
    handler = _rich_handler() if lines.on_terminal(quiet=True) else _plain_handler()
    handler.name = _HANDLER
    handler.addFilter(_is_not_shown_yet)
    return handler


def _is_not_shown_yet(record: logging.LogRecord) -> bool:
    """False where the user's module has given one of the record's loggers a handler for the same terminal."""
    logger: logging.Logger | None = logging.getLogger(record.name)
    while logger is not None and logger.parent is not None:
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream in (sys.stderr, sys.stdout):
                return False
        logger = logger.parent
    return True


def _plain_handler() -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter(f"%(asctime)s %(levelname)s %(name)s: {lines.process()}%(message)s")
    handler.setFormatter(lines.JsonFormatter() if lines.is_json() else text)
    return handler


def _rich_handler() -> logging.Handler:
    from rich.console import Console
    from rich.logging import RichHandler

    # keywords: by default RichHandler highlights GET, POST …, which mean nothing here.
    handler = RichHandler(
        console=Console(stderr=True), show_path=False, omit_repeated_times=False, log_time_format="%X", keywords=[]
    )
    handler.setFormatter(logging.Formatter(f"%(name)s: {lines.process()}%(message)s"))
    return handler


def _rich_table(names: Sequence[str], rows: Sequence[Sequence[str]], end: str) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    for index, name in enumerate(names):
        table.add_column(name, overflow="fold", justify="left" if index < 2 else "right")
    for row in rows:
        table.add_row(*map(Text, row))
    console = _rich_console()
    console.print(table)
    console.print(Text(end))


@contextmanager
def _rich_progress(topic: str, total: int | None) -> Iterator[Callable[[int, int], None]]:
    from rich.progress import BarColumn, Progress, ProgressColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

    counter = TextColumn("{task.fields[messages]:,} messages", markup=False)
    columns: list[ProgressColumn] = [TextColumn("{task.description}", markup=False), BarColumn(), counter]
    if total is not None:
        columns.insert(2, TaskProgressColumn())
    with Progress(*columns, TimeElapsedColumn(), console=_rich_console(), transient=True) as progress:
        task = progress.add_task(topic, total=total, messages=0)
        drawn = 0.0

        def draw(read: int, acknowledged: int) -> None:
            nonlocal drawn
            if (now := time.monotonic()) - drawn > 0.05:  # it is called for every line
                drawn = now
                progress.update(task, completed=read, messages=acknowledged)

        yield draw


def _rich_console() -> Console:
    """The log handler's console if there is one, so that a log line does not break the progress bar."""
    from rich.console import Console
    from rich.logging import RichHandler

    handlers = [handler for handler in logging.getLogger().handlers if handler.name == _HANDLER]
    return next((handler.console for handler in handlers if isinstance(handler, RichHandler)), Console(stderr=True))
