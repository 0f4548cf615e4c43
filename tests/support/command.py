"""What a test of the command line types, and what it sees."""

from __future__ import annotations

import importlib
import io
import json
import logging
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

import karafka_lite
from karafka_lite.app import App

if TYPE_CHECKING:
    from support.observer import Observer

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


class Stream(io.StringIO):
    """Standard error within ``with redirect_stderr(…)``: a fixture cannot set it, pytest puts its own back."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    @property
    def text(self) -> str:
        """What a reader sees: without colours."""
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.getvalue())


def process(*argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(karafka_lite.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environ = {**os.environ, "PYTHONPATH": path.rstrip(os.pathsep)}
    return subprocess.run([sys.executable, *argv], cwd=cwd, env=environ, capture_output=True, text=True, timeout=60)


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


def command(capsys: pytest.CaptureFixture[str], *argv: str) -> Ended:
    """``karafka-lite …`` in this process, to its end; logging is afterwards as it was."""
    from karafka_lite.cli import main as cli

    importlib.invalidate_caches()  # files written a moment ago
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        code: object = cli.main(argv)
    except SystemExit as end:
        code = end.code
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    captured = capsys.readouterr()
    return Ended(code, captured.err, captured.out, None)


def write_app(folder: Path, kafka: Observer, group: str, *topics: str, **settings: Any) -> str:
    """``module:app`` of a module with a name of its own, in ``folder``, whose handler of ``topics`` does nothing."""
    name = re.sub(r"\W", "_", group)
    (folder / f"{name}.py").write_text(
        f"from karafka_lite import App\n"
        f"app = App({group!r}, bootstrap_servers={kafka.bootstrap_servers!r}, **{settings})\n"
        f"@app.topic(*{topics})\n"
        f"def work(batch, ctx): ...\n"
    )
    return f"{name}:app"


def rows(out: str) -> list[dict[str, Any]]:
    """What was printed with ``--json``."""
    return [json.loads(line) for line in out.splitlines()]


class Terminal:
    """``python -m karafka_lite …`` on a terminal of its own."""

    def __init__(self, *argv: str, cwd: Path) -> None:
        self._master, slave = pty.openpty()
        path = os.pathsep.join([str(Path(karafka_lite.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        environ = {**os.environ, "PYTHONPATH": path.rstrip(os.pathsep), "TERM": "xterm", "COLUMNS": "120"}
        command = [sys.executable, "-m", "karafka_lite", *argv]
        self.process = subprocess.Popen(
            command, cwd=cwd, env=environ, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        os.close(slave)
        self.shown = ""

    def until(self, words: str, timeout: float = 30) -> None:
        """Wait until ``words`` are shown; they count once."""
        deadline = time.monotonic() + timeout
        while words not in self.shown:
            left = deadline - time.monotonic()
            assert left > 0, f"{words!r} was not shown:\n{self.shown}"
            if select.select([self._master], [], [], left)[0]:
                with suppress(OSError):  # it has ended
                    self.shown += os.read(self._master, 65_536).decode(errors="replace")
        self.shown = self.shown.partition(words)[2]

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)
