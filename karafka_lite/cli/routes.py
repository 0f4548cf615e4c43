"""``karafka-lite routes``: what an App consumes, and with which functions."""

from __future__ import annotations

import argparse
import functools
import inspect
import os
from collections.abc import Callable, Iterator
from typing import Any

from karafka_lite.app import App
from karafka_lite.cli import answer, cluster, console
from karafka_lite.cli.options import Parser, add_log_level
from karafka_lite.functions import name_of

_EPILOG = """\
examples:
  karafka-lite routes orders:app          the App named app in orders.py
  karafka-lite routes orders:app --json   one JSON object a line, for each topic

It connects to no broker. With --json a line has the keys group_id, topic, mode
(automatic or manual), dead_letter, function, file, line, and hooks: a list of
kind, function, file and line.

exit codes:
  0  done
  1  usage or import error
"""


def add_to(parser: Parser) -> None:
    parser.describe(
        routes,
        description="List the topics of an App, with their groups, modes, functions and hooks.",
        epilog=_EPILOG,
        example="karafka-lite routes module:app",
    )
    parser.add_argument("target", metavar="module:app", help="where the App is; ':app' may be omitted")
    parser.add_argument("--json", action="store_true", help="print JSON, one object a line")
    add_log_level(parser, "warning")


def routes(arguments: argparse.Namespace) -> int:
    console.configure_logging(arguments.log_level)
    app = cluster.load(arguments.target)
    rows = list(_routes(app))
    if not arguments.json:
        rows = [_in_short(row) for row in rows]
    with answer.until_nobody_reads():
        answer.show(rows, as_json=arguments.json)
    return 0


def _routes(app: App) -> Iterator[dict[str, Any]]:
    for group_id, topics in app.groups.items():
        for topic, route in topics.items():
            hooks = [{"kind": hook.kind.value, **_place(hook.function)} for hook in route.hooks]
            mode = "manual" if route.options.manual_offsets else "automatic"
            of_topic = {"group_id": group_id, "topic": topic, "mode": mode, "order": route.order}
            yield {**of_topic, "dead_letter": route.dead_letter or None, **_place(route.handler), "hooks": hooks}


def _in_short(row: dict[str, Any]) -> dict[str, Any]:
    hooks = ", ".join(f"{hook['kind']}={hook['function']}" for hook in row["hooks"])
    place = "-" if row["file"] is None else f"{_relative(row['file'])}:{row['line']}"
    short = {name: row[name] for name in ("group_id", "topic", "mode", "function")}
    if row["order"] == "key":
        short["mode"] = "by key"
    return {**short, "place": place, "hooks": hooks or None}


def _place(function: Callable[..., object]) -> dict[str, Any]:
    """The name of a function, and where its code begins, as far as it is written in Python."""
    inner: Any = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    inner = inspect.unwrap(inner)
    code = getattr(inner, "__code__", None) or getattr(type(inner).__call__, "__code__", None)
    file, line = (os.path.abspath(code.co_filename), code.co_firstlineno) if code else (None, None)
    return {"function": name_of(function), "file": file, "line": line}


def _relative(file: str) -> str:
    """Relative to the current directory if the file is inside it."""
    path = os.path.relpath(file)
    return file if path.startswith("..") else path
