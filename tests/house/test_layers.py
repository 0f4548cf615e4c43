"""The table of the house: who may import whom, and how big things may get.

A new file enters ``LAYERS`` first, or goes into a folder that is in it. Imports go to the same layer or down, never in
a circle; imports inside functions and under TYPE_CHECKING count, because a file knows what it names.
"""

from __future__ import annotations

import ast
import functools
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "karafka_lite"

LAYERS = {
    "errors.py": 0,
    "functions.py": 0,
    "serializer.py": 0,
    "version.py": 0,
    "ending.py": 0,
    "exits.py": 0,
    "forks.py": 0,
    "futures.py": 0,
    "signals.py": 0,
    "messages.py": 0,
    "events.py": 0,
    "core/": 1,
    "addressing.py": 1,
    "async_context.py": 2,
    "context.py": 2,
    "coroutines.py": 1,
    "settings.py": 2,
    "checks.py": 2,
    "lifespan.py": 2,
    "route.py": 2,
    "routing.py": 2,
    "twins.py": 3,
    "client/": 3,
    "observers/": 4,
    "loops.py": 4,
    "posts.py": 4,
    "staff.py": 4,
    "workers.py": 4,
    "awaiting.py": 5,
    "runner.py": 5,
    "sender.py": 5,
    "sending.py": 4,
    "draining.py": 6,
    "watching.py": 6,
    "app.py": 7,
    "testing/": 8,
    "broker/": 8,
    "cli/": 8,
    "__main__.py": 9,
    "__init__.py": 9,
}

# What knows Kafka; client/protocol.py only says what the runner needs of it.
KAFKA = {
    f"client/{name}.py" for name in ("admin", "browser", "causes", "connection", "consumer", "fetching", "network")
}
KAFKA |= {f"client/{name}.py" for name in ("codecs", "leaving", "offsets", "producer", "reader")}
KAFKA |= {f"client/{name}.py" for name in ("refusals", "stalls", "static", "transactions", "transports", "trouble")}

# Where the layers alone would permit too much: these rows import none of the files, rows and packages on the right.
MUST_NOT_IMPORT = {
    "errors.py": {"events.py", "messages.py", "version.py"},
    "client/": {"context.py", "routing.py"},
    "observers/": {"context.py", "routing.py", *KAFKA},  # they hear of events, and ask nobody
    "testing/": {"broker/", "cli/"},
    "broker/": {"app.py", "cli/", "runner.py", "testing/"},
}

# Packages that only these rows may touch, so that a change of theirs is a change in one place.
ONLY_IN = {
    "kafka": {"client/", "broker/"},
    "aiokafka": {"client/"},
    "docker": {"broker/"},
    "rich": {"cli/", "observers/"},
    "argparse": {"cli/"},
}

# Pure: what happened, and when, is passed in; what to do comes out.
PURE = {"core/", "messages.py", "events.py", "errors.py"}
IMPURE_MODULES = {
    *("threading", "_thread", "queue", "concurrent", "multiprocessing", "asyncio", "contextvars"),
    *("time", "sched", "random", "secrets"),
    *("os", "io", "pathlib", "socket", "select", "selectors", "signal", "subprocess", "logging", "kafka"),
}

# All threads of the package are in the runner, where they can be read in one place. A Future is no thread: it is what
# ``ctx.produce`` returns.
THREAD_MODULES = ("threading", "_thread", "queue", "multiprocessing", "concurrent.futures")
MAY_HAVE_THREADS = {
    "runner.py",
    "observers/",  # a function of @app.observe has a thread of its own
    "broker/",  # the embedded broker is a thread of the process that tests with it
    "futures.py",  # any thread looks at the answer to what was sent
    "exits.py",  # it asks which threads keep the program running
    "cli/",  # the command's own, around an app that runs
    "client/fetching.py",  # the poller waits there for what kafka-python's own thread brings
    "client/outbox.py",  # one thread of those that send makes the producer
    "client/producer.py",  # any thread sends, and waits there for what kafka-python's own thread acknowledges
    "client/transactions.py",  # the committer waits there for what kafka-python's own thread acknowledges
}

CORE = {
    *("core/", "client/", "runner.py"),
    *(
        "addressing.py",
        "app.py",
        "async_context.py",
        "awaiting.py",
        "checks.py",
        "context.py",
        "coroutines.py",
        "ending.py",
        "events.py",
        "functions.py",
        "futures.py",
        "loops.py",
        "messages.py",
        "posts.py",
        "route.py",
        "routing.py",
        "sender.py",
        "sending.py",
        "serializer.py",
        "settings.py",
        "staff.py",
        "twins.py",
        "watching.py",
        "workers.py",
    ),
}
MAX_LINES_OF_THE_CORE = 9_000
MAX_LINES_OF_A_FILE = 500
MAX_LINES_OF_THE_RUNNER = 700  # all threads, all waiting and the lock, in one place: worth a long file

TOP_LEVEL = {"pyproject.toml", "karafka_lite", "examples", "tests", "README.md", "CHANGELOG.md", "LICENSE"}


# -- the rules --------------------------------------------------------------------------------------------------------


@functools.cache
def tree_of(source: str) -> ast.Module:
    """CPython 3.11 now and then says so of a good source (gh-106905), where another thread runs in between."""
    with suppress(SystemError):
        return ast.parse(source)
    return ast.parse(source)


def test_every_file_is_in_the_table() -> None:
    strangers = [path for path in sources() if entry(path) not in LAYERS]
    assert not strangers, f"not in LAYERS of {Path(__file__).name}: {strangers}; enter each with its layer"


def test_the_table_names_nothing_that_does_not_exist() -> None:
    rows = {entry(path) for path in sources()}
    assert set(LAYERS) <= rows
    named = {*MUST_NOT_IMPORT, *PURE, *CORE, *MAY_HAVE_THREADS}.union(*MUST_NOT_IMPORT.values(), *ONLY_IN.values())
    assert named <= rows | set(sources())


def test_imports_go_down_or_stay_level() -> None:
    assert_none(upward_imports(sources()))


def test_imports_make_no_circle() -> None:
    assert not circle(sources()), " -> ".join(circle(sources()))


def test_files_do_not_import_what_they_must_not_know() -> None:
    assert_none(
        i for i in imports(sources()) if {i.target, entry(i.target)} & MUST_NOT_IMPORT.get(entry(i.path), set())
    )


@pytest.mark.parametrize("package", ONLY_IN)
def test_what_comes_from_outside_is_touched_in_few_places(package: str) -> None:
    assert_none(i for i in imports(sources()) if i.target == package and entry(i.path) not in ONLY_IN[package])


def test_pure_files_know_no_clocks_no_threads_and_no_io() -> None:
    assert_none(i for i in imports(sources()) if entry(i.path) in PURE and i.target in IMPURE_MODULES)


def test_threads_are_in_the_runner() -> None:
    found = {path: thread_imports(source) for path, source in sources().items()}
    assert_none(
        f"{path}:{line} imports {name}"
        for path, lines in found.items()
        if not {path, entry(path)} & MAY_HAVE_THREADS
        for line, name in lines
    )
    assert found["runner.py"]


def test_no_file_is_longer_than_one_idea() -> None:
    lines = {path: source.count("\n") for path, source in sources().items()}
    limits = {path: MAX_LINES_OF_THE_RUNNER if path == "runner.py" else MAX_LINES_OF_A_FILE for path in lines}
    assert_none(f"{path} has {count} lines" for path, count in lines.items() if count > limits[path])


def test_the_core_stays_small() -> None:
    """Folders are counted whole, so that nothing leaves the count by moving into a file of its own."""
    files = {path: source for path, source in sources().items() if entry(path) in CORE}
    lines = {path: lines_of_code(source) for path, source in files.items()}
    total = sum(lines.values())
    assert total <= MAX_LINES_OF_THE_CORE, f"{total} lines: {lines}"


def lines_of_code(source: str) -> int:
    """Without blank lines, comments and docstrings: a docstring that is left out makes nothing easier to read."""
    docs = {
        line
        for node in ast.walk(tree_of(source))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        for first in node.body[:1]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
        for line in range(first.lineno, (first.end_lineno or first.lineno) + 1)
    }
    lines = enumerate(source.splitlines(), start=1)
    return sum(1 for number, line in lines if line.strip() and not line.strip().startswith("#") and number not in docs)


@pytest.mark.parametrize("heavy", ["rich", "docker"])
def test_importing_the_package_stays_light(heavy: str) -> None:
    program = f"import sys, {PACKAGE}; sys.exit({heavy!r} in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr or f"import {PACKAGE} loads {heavy}"


def test_the_package_can_be_imported_where_warnings_are_errors() -> None:
    program = [sys.executable, "-W", "error", "-c", f"import {PACKAGE}, {PACKAGE}.testing, {PACKAGE}.broker.embedded"]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_top_level_holds_nothing_else() -> None:
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    # The checkout may belong to another user than the tests, as in CI's containers.
    command = ["git", "-c", "safe.directory=*", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    names = {file.split("/")[0] for file in files}
    assert_none({name for name in names if not name.startswith(".")} - TOP_LEVEL)


def assert_none(offences: Iterable[object]) -> None:
    __tracebackhide__ = True
    lines = [str(offence) for offence in offences]
    if lines:
        pytest.fail("\n".join(lines), pytrace=False)


# -- reading imports --------------------------------------------------------------------------------------------------


class Import(NamedTuple):
    """One import; ``target`` is a file of the package ("app.py", "broker/embedded.py"), or another top module."""

    path: str
    line: int
    target: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line} imports {self.target}"


def sources() -> dict[str, str]:
    folder = ROOT / PACKAGE
    return {path.relative_to(folder).as_posix(): path.read_text() for path in sorted(folder.rglob("*.py"))}


def entry(path: str) -> str:
    """The row of the table that a file belongs to."""
    return path.split("/")[0] + "/" if "/" in path else path


def imports(files: Mapping[str, str]) -> list[Import]:
    return [
        Import(path, node.lineno, target)
        for path, source in files.items()
        for node in ast.walk(tree_of(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for target in sorted(set(targets(node, path, files)))
    ]


def targets(node: ast.Import | ast.ImportFrom, path: str, files: Mapping[str, str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield target_file(alias.name, files)
        return
    module = node.module or ""
    if node.level:
        parents = [PACKAGE, *path.split("/")[:-1]]
        module = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [module])])
    for alias in node.names:  # "from karafka_lite import client" names a file, "… import App" what a file holds
        named = target_file(f"{module}.{alias.name}", files)
        yield named if named in files or named in LAYERS else target_file(module, files)


def target_file(module: str, files: Mapping[str, str]) -> str:
    top, _, rest = module.partition(".")
    if top != PACKAGE:
        return top
    folder = rest.replace(".", "/")
    init = f"{folder}/__init__.py".lstrip("/")
    return init if not rest or init in files else f"{folder}.py"


def thread_imports(source: str) -> list[tuple[int, str]]:
    """Line and name of what is imported of ``THREAD_MODULES``; a Future is not counted."""
    imported: list[tuple[int, str]] = []
    for node in ast.walk(tree_of(source)):
        if isinstance(node, ast.Import):
            imported += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            imported += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    threads = tuple(f"{module}." for module in THREAD_MODULES)
    return [(n, name) for n, name in imported if f"{name}.".startswith(threads) and name != "concurrent.futures.Future"]


def upward_imports(files: Mapping[str, str]) -> list[str]:
    return [
        f"{i}, from layer {LAYERS[entry(i.path)]} up to layer {LAYERS[entry(i.target)]}"
        for i in imports(files)
        if entry(i.path) in LAYERS and entry(i.target) in LAYERS and LAYERS[entry(i.target)] > LAYERS[entry(i.path)]
    ]


def circle(files: Mapping[str, str]) -> list[str]:
    """The files of one circle of imports, in its order; [] when there is none."""
    graph: dict[str, set[str]] = {path: set() for path in files}
    for i in imports(files):
        if i.target in files:
            graph[i.path].add(i.target)

    cleared: set[str] = set()

    def search(path: str, trail: list[str]) -> list[str]:
        if path in trail:
            return [*trail[trail.index(path) :], path]
        if path in cleared:
            return []
        for target in sorted(graph[path]):
            if found := search(target, [*trail, path]):
                return found
        cleared.add(path)
        return []

    return next((found for path in graph if (found := search(path, []))), [])


# -- the reader itself, on a house that breaks the rules ---------------------------------------------------------------


def test_the_reader_finds_every_way_to_import() -> None:
    files = {
        "app.py": "from .runner import Runner\ndef late():\n    from . import cli\n    import kafka.errors\n",
        "runner.py": "if TYPE_CHECKING:\n    from karafka_lite import App, errors\nimport karafka_lite.cli.main\n",
        "errors.py": "",
        "cli/__init__.py": "",
        "cli/main.py": "from ..broker.embedded import Broker\n",
        "broker/__init__.py": "",
        "broker/embedded.py": "from ..app import App\nfrom . import wire\nfrom .. import messages\n",
        "broker/wire.py": "",
    }
    found = [(i.path, i.target) for i in imports(files)]

    assert found == [
        ("app.py", "runner.py"),
        ("app.py", "cli/__init__.py"),
        ("app.py", "kafka"),
        ("runner.py", "cli/main.py"),
        ("runner.py", "__init__.py"),
        ("runner.py", "errors.py"),
        ("cli/main.py", "broker/embedded.py"),
        ("broker/embedded.py", "app.py"),
        ("broker/embedded.py", "broker/wire.py"),
        ("broker/embedded.py", "messages.py"),
    ]
    assert [line.split(" ")[0] for line in upward_imports(files)] == ["app.py:3", "runner.py:3", "runner.py:2"]
    assert circle(files) == ["app.py", "runner.py", "cli/main.py", "broker/embedded.py", "app.py"]
    assert circle({"errors.py": "from . import messages\n", "messages.py": ""}) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import threading as t", [(1, "threading")]),
        ("def late():\n    from threading import Lock", [(2, "threading.Lock")]),
        ("import os, queue", [(1, "queue")]),
        ("from queue import Queue, Empty", [(1, "queue.Queue"), (1, "queue.Empty")]),
        ("from concurrent.futures import Future", []),
        ("from concurrent.futures import Future, wait", [(1, "concurrent.futures.wait")]),
        ("from concurrent import futures", [(1, "concurrent.futures")]),
        ("import concurrent.futures", [(1, "concurrent.futures")]),
        ("import multiprocessing.pool", [(1, "multiprocessing.pool")]),
        ("import threadings, time", []),
    ],
)
def test_the_reader_finds_every_way_to_a_thread(source: str, found: list[tuple[int, str]]) -> None:
    assert thread_imports(source) == found
