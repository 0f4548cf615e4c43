"""The examples, as the README has them typed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from observer import Observer, wait_until

ROOT = Path(__file__).parents[2]


def test_the_quickstart_counts_all_earthquakes_and_reports_them_at_the_stop(kafka: Observer, tmp_path: Path) -> None:
    environment = {**os.environ, "KARAFKA_LITE_BOOTSTRAP_SERVERS": kafka.bootstrap_servers}
    command = [sys.executable, "-m", "karafka_lite"]
    feed = [*command, "produce", "earthquakes", "examples/earthquakes.jsonl"]
    fed = subprocess.run(feed, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    kafka.topics.append("earthquakes")
    assert "produced 1707 messages to earthquakes in " in fed.stderr
    told = tmp_path / "told.txt"
    with told.open("wb") as output:
        run = [*command, "run", "examples.quickstart:app"]
        process = subprocess.Popen(run, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            wait_until(lambda: "1707 earthquakes so far" in told.read_text(), 30, "all earthquakes are counted")
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0
        finally:
            process.kill()
            process.wait()
    assert "747 CA" in told.read_text(), "the report of on_shutdown"
    assert kafka.committed("earthquake-counter", "earthquakes") == 1707


def karafka_lite(arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "karafka_lite", *arguments.split()]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_the_first_command_of_the_readme_ends_with_a_summary_of_all_earthquakes() -> None:
    (command,) = re.findall(
        r"^pip install -e \. && karafka-lite (.*--drain)$", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    done = karafka_lite(command)
    assert done.returncode == 0, done.stderr
    assert "747 CA" in done.stdout
    assert "earthquakes: 1707 messages, " in done.stderr
    assert "drained: 1707 messages in " in done.stderr


def test_the_buffer_writes_by_size_and_the_rest_at_the_end() -> None:
    done = karafka_lite(
        "run examples.buffer:app --broker embedded --feed earthquakes=examples/earthquakes.jsonl --drain"
    )
    assert done.returncode == 0, done.stderr
    sizes = [int(size) for size in re.findall(r"writing (\d+) earthquakes", done.stdout)]
    assert sum(sizes) == 1707
    assert max(sizes) == 200
    assert " 0 unmarked" in done.stderr
