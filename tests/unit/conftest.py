"""The command line in this process, with an App that only notes that it would run."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.command import Ended, Run, Write

from karafka_lite.app import App
from karafka_lite.cli import main as cli
from karafka_lite.cli import produce as produce_command
from karafka_lite.cli import run as run_command


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
    """``karafka-lite run …`` in ``tmp_path``, with an App that only notes which App it was."""
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

    monkeypatch.setattr(App, "serve_here", note)
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


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What ``feed`` was called with, instead of sending anything."""
    calls: list[Any] = []
    for command in (run_command, produce_command):
        monkeypatch.setattr(
            command, "feed", lambda feeds, servers, settings, show: calls.append((feeds, servers, settings))
        )
    return calls
