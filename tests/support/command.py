"""What a test of the command line types, and what it sees."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import karafka_lite
from karafka_lite.app import App

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
