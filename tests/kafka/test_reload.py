"""``karafka-lite run --reload`` with an embedded broker: a saved file runs soon, and the broker keeps what it has."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import pytest
from support.command import process
from support.harness import Process
from support.observer import Observer, wait_until

APP = """
import json, os
from karafka_lite import App

app = App("g", auto_commit_interval_ms=100)

@app.topic("numbers"{more})
def work(batch, ctx):
    os.write(1, (json.dumps(dict(version={version}, seen=batch.payloads)) + "\\n").encode())
"""
BECOME_THE_COMMAND = """
    os.execv(sys.executable, [sys.executable, "-m", "karafka_lite", "run", *sys.argv[1:]])
"""


def test_a_saved_file_runs_soon_on_the_same_broker_and_a_syntax_error_waits_for_the_next(
    embedded_kafka: Observer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file, numbers = tmp_path / "mine.py", tmp_path / "numbers"
    numbers.write_text("1\n2\n3\n")
    file.write_text(APP.format(version=1, more=""))
    options = ["mine:app", "--broker", "embedded", "--reload", "--feed", f"numbers={numbers}"]
    with Process(embedded_kafka, BECOME_THE_COMMAND, tmp_path / "program", *options) as running:

        def seen(version: int) -> list[int]:
            facts = [fact for fact in list(running.facts) if fact.get("version") == version]
            return sorted(number for fact in facts for number in fact["seen"])

        wait_until(lambda: seen(1) == [1, 2, 3], message="the first code")
        address = re.search(r"brokers: (\S+)", running.errors())
        assert address
        file.write_text("def broken(:\n")
        wait_until(lambda: "waiting for a change" in running.errors(), message="the mistake is said")
        assert "mine.py:1: SyntaxError" in running.errors()
        numbers.write_text("4\n")
        sent = process("-m", "karafka_lite", "produce", "numbers", "numbers", "--broker", address[1], cwd=tmp_path)
        assert sent.returncode == 0, sent.stderr
        began = time.monotonic()
        file.write_text(APP.format(version=2, more=""))
        wait_until(lambda: seen(2) == [4], message="what the broker has goes on where it was, and nothing is fed again")
        print(f"saved to first message, after a mistake: {time.monotonic() - began:.2f} s")
        began = time.monotonic()
        file.write_text(APP.format(version=3, more=", 'letters'"))
        wait_until(lambda: "created topics: letters" in running.errors(), message="a new topic")
        wait_until(lambda: "letters-0@0" in running.errors(), message="it runs")
        print(f"saved to assigned, with the old code to stop: {time.monotonic() - began:.2f} s")
        running.signal(signal.SIGTERM)
        assert running.wait() == 0
    assert running.errors().count("group g: numbers -> work") == 1, "one banner"
    assert not list(tmp_path.glob("__pycache__/mine*")), "a .pyc may be as old as the file"
