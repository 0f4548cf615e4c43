"""The examples, as the README has them typed."""

from __future__ import annotations

import os
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
