"""How many calls of a handler run at the same time: one, unless more are asked for, whatever other handlers do."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from support.harness import make_app, running
from support.observer import Observer, wait_until

from karafka_lite import App, Batch, Context


class Beside:
    """A handler that waits inside until the test lets it go, and knows how many of it were inside at once."""

    def __init__(self) -> None:
        self.inside = self.most = self.calls = 0
        self.release = threading.Event()
        self._lock = threading.Lock()

    def __call__(self, batch: Batch, ctx: Context) -> None:
        with self._lock:
            self.inside += 1
            self.calls += 1
            self.most = max(self.most, self.inside)
        self.release.wait(30)
        with self._lock:
            self.inside -= 1


def spread(kafka: Observer, partitions: int) -> str:
    """A topic with one message in each partition."""
    topic = kafka.topic(partitions)
    for partition in range(partitions):
        kafka.produce(topic, [partition], partition)
    return topic


@pytest.mark.parametrize(
    ("of_app", "of_topic", "most"),
    [({"concurrency": 1}, {}, 1), ({"concurrency": 3}, {}, 3), ({"concurrency": 3}, {"concurrency": 2}, 2)],
)
def test_a_handler_runs_as_often_at_the_same_time_as_was_asked_for(
    kafka: Observer, of_app: Any, of_topic: Any, most: int
) -> None:
    app, store = make_app(kafka, **of_app), Beside()
    app.topic(spread(kafka, 4), **of_topic)(store)
    with running(app):
        wait_until(lambda: store.inside == most, message=f"{most} calls at a time")
        store.release.set()
        wait_until(lambda: store.calls == 4, message="all partitions")
    assert store.most == most


def test_a_slow_handler_holds_up_no_other_and_two_topics_of_one_handler_share_its_threads(kafka: Observer) -> None:
    app, slow, quick = make_app(kafka, concurrency=1), Beside(), Beside()
    quick.release.set()
    app.topic(spread(kafka, 1), spread(kafka, 1))(slow)
    app.topic(spread(kafka, 1), group_id=kafka.group())(slow)
    app.topic(spread(kafka, 2))(quick)
    with running(app):
        wait_until(lambda: slow.inside == 1 and quick.calls == 2, message="the quick one is done beside the slow one")
        slow.release.set()
        wait_until(lambda: slow.calls == 3, message="all topics")
    assert (slow.most, quick.most) == (1, 1)


def test_threads_are_made_when_they_are_needed(kafka: Observer) -> None:
    app, seen = make_app(kafka, concurrency=50), []

    @app.topic(spread(kafka, 1))
    def store(batch: Batch, ctx: Context) -> None:
        seen.extend(thread.name for thread in threading.enumerate() if "worker-" in thread.name)

    with running(app):
        wait_until(lambda: seen)
    assert len(seen) == 1
    assert seen[0].startswith("karafka-worker-")


@pytest.mark.parametrize("runs", [1, pytest.param(100, marks=pytest.mark.long)])
def test_a_script_that_writes_a_csv_file_at_module_level_writes_exactly_its_lines(
    kafka: Observer, tmp_path: Path, runs: int
) -> None:
    topic, lines = kafka.topic(6), 3000
    for partition in range(6):
        kafka.produce(topic, [{"n": n, "text": "x" * 200} for n in range(partition, lines, 6)], partition)
    (tmp_path / "script.py").write_text(
        "import csv, os\n"
        "from karafka_lite import App\n"
        "app = App(os.environ['GROUP'])\n"
        "file = open('out.csv', 'w', newline='')\n"
        "writer = csv.writer(file)\n"
        f"@app.topic({topic!r}, max_messages=7)\n"
        "def store(batch, ctx):\n"
        "    for message in batch:\n"
        "        writer.writerow([message.partition, message.payload['n'], message.payload['text']])\n"
    )
    run = [sys.executable, "-m", "karafka_lite", "run", "script", "--broker", kafka.bootstrap_servers, "--until-end"]
    for _ in range(runs):
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "GROUP": kafka.group()}
        done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        with (tmp_path / "out.csv").open(newline="") as file:
            rows = list(csv.reader(file))
        assert sorted(rows) == sorted([str(n % 6), str(n), "x" * 200] for n in range(lines))


def test_topics_of_one_handler_have_the_same_concurrency() -> None:
    app = App("group")

    def store(batch: Batch, ctx: Context) -> None: ...

    app.topic("orders", concurrency=2)(store)
    with pytest.raises(
        ValueError, match="store has concurrency=2 for orders: all topics of a handler share its threads"
    ):
        app.topic("refunds")(store)
