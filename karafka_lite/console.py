"""What ``karafka-lite`` shows on standard error: colour on a terminal, plain lines everywhere else.

Standard output is never written to: it belongs to the user's own prints. rich is imported where it draws, so that a
process without a terminal (a container, a pipe) does not pay for loading it. Nothing here is read as rich markup:
topics, groups and log messages are wrapped in ``Text`` or logged with ``markup=False``, so ``[red]`` stays ``[red]``.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from karafka_lite.version import __version__

if TYPE_CHECKING:
    from karafka_lite.app import App

_HANDLER = "karafka-lite"


def configure_logging(level: str) -> None:
    """Send the root logger's records of ``level`` (a name in any case) upwards to standard error.

    Called a second time, it replaces its own handler. Handlers of others stay: an agent such as
    ``opentelemetry-instrument`` adds one before our code runs, and its records must not get lost.
    """
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if handler.name == _HANDLER]:
        root.removeHandler(handler)
    handler = _rich_handler() if on_terminal() else _plain_handler()
    handler.name = _HANDLER
    root.addHandler(handler)
    root.setLevel(level.upper())


def banner(app: App) -> None:
    """Say what is about to run: version, groups, topics, brokers, how to stop."""
    if on_terminal():
        _rich_banner(app)
    else:
        _plain_banner(app)


def on_terminal() -> bool:
    """True when standard error is a terminal that can do more than print lines."""
    return sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


class _Row(NamedTuple):
    group: str
    topic: str
    offsets: str
    function: str


def _rows(app: App) -> Iterator[_Row]:
    for group, topics in app.groups.items():
        for topic, route in topics.items():
            yield _Row(group, topic, "manual" if route.manual_offsets else "automatic", route.name)


def _plain_handler() -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    return handler


def _plain_banner(app: App) -> None:
    # Every line stands for itself: a log collector takes lines apart.
    lines = [f"karafka-lite {__version__}, {app.config.concurrency} workers, brokers: {', '.join(app.brokers())}"]
    lines += [f"group {row.group}: {row.topic} -> {row.function} ({row.offsets} offsets)" for row in _rows(app)]
    lines.append("stop with Ctrl-C or SIGTERM")
    print("\n".join(lines), file=sys.stderr, flush=True)


def _rich_handler() -> logging.Handler:
    from rich.console import Console
    from rich.logging import RichHandler

    # keywords: RichHandler paints GET, POST … otherwise, which mean nothing here.
    handler = RichHandler(
        console=Console(stderr=True), show_path=False, omit_repeated_times=False, log_time_format="%X", keywords=[]
    )
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    return handler


def _rich_banner(app: App) -> None:
    from rich.console import Console, Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    for column in _Row._fields:
        table.add_column(column, overflow="fold")
    for row in _rows(app):
        table.add_row(*map(Text, row))
    brokers = Text.assemble(("brokers ", "dim"), ", ".join(app.brokers()))
    end = Text.assemble((f"{app.config.concurrency} workers, stop with ", "dim"), ("Ctrl-C", "bold"))
    panel = Panel(
        Group(table, Text(), brokers, end), title=f"karafka-lite {__version__}", border_style="cyan", expand=False
    )
    Console(stderr=True).print(panel)
