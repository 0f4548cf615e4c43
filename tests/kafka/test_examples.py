"""The examples, as the README and their own first lines have them typed."""

from __future__ import annotations

import ast
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from support.observer import Observer, wait_until

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
    assert "magnitude 6:    5" in told.read_text(), "the report at the exit"
    assert kafka.committed("earthquake-counter", "earthquakes") == 1707


def karafka_lite(arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "karafka_lite", *arguments.split()]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_the_first_command_of_the_readme_ends_with_a_summary_of_all_earthquakes() -> None:
    (command,) = re.findall(
        r"^pip install -e \. && karafka-lite (.*--until-end)$", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    done = karafka_lite(command)
    assert done.returncode == 0, done.stderr
    assert "magnitude 6:    5" in done.stdout
    assert "earthquakes: 1707 messages, " in done.stderr
    assert "drained: 1707 messages in " in done.stderr


def test_the_buffer_writes_by_size_and_the_rest_at_the_end() -> None:
    done = karafka_lite(
        "run examples.e11_every:app --broker embedded --feed earthquakes=examples/earthquakes.jsonl --until-end"
    )
    assert done.returncode == 0, done.stderr
    sizes = [int(size) for size in re.findall(r"writing (\d+) earthquakes", done.stdout)]
    assert sum(sizes) == 1707
    assert max(sizes) == 200
    assert " 0 unmarked" in done.stderr


# -- the numbered ones, as their docstrings have them typed ------------------------------------------------------------

EXAMPLES = sorted((ROOT / "examples").glob("e*_*.py"))
PROGRAMS = {"karafka-lite": "karafka_lite", "pytest": "pytest"}

# What each shows of a week of earthquakes, all of it there when it has ended, from whatever partition.
SHOWS = {
    "e01": [r"the strongest of \d+ earthquakes: 6\.4 22km NNE of Hualian, Taiwan", " 0 unmarked"],
    "e02": [r"earthquakes-\d@\d+: magnitude 6\.4, 22km NNE of Hualian, Taiwan", " 0 unmarked"],
    "e03": [r"done and marked, up to earthquakes-\d@\d+", " 0 unmarked"],
    "e04": [r"\d+ rows are in ", r", up to earthquakes-\d@\d+", " 0 unmarked"],
    "e05": [r"earthquakes-\d@\d+: 573\.76 km deep", " 0 unmarked"],
    "e06": [r"wake up: magnitude 6\.4, 22km NNE", r"the broker has everything up to earthquakes-\d@\d+", " 0 unmarked"],
    "e07": [
        r"earthquake-summaries: \d+ of \d+ in CA",
        r"earthquake-tsunamis: 6\.4, 22km NNE",
        "drained: 3414 messages",
    ],
    "e08": [r"earthquakes-\d@\d+: magnitude 4\.3, 7km NNE of Bela, Pakistan", " 40 given up", " 0 unmarked"],
    "e09": ["a human should look at ", r"(\d+) of \1 are reviewed", " 0 unmarked"],
    "e10": [r" to earthquakes\.strong", " 0 unmarked"],
    "e11": [r"the last one at offset \d+", " 0 unmarked"],
    "e12": ["2 passed"],
    "e13": [
        "alarm: 6.4, 22km NNE of Hualian",
        "1707 earthquakes are in earthquakes-0.db",
        " 28 given up",
        " 0 unmarked",
    ],
    "e14": ["1 passed"],
    "e15": ["1 passed"],
}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_command_of_its_docstring_runs_it_to_its_end_and_shows_what_it_promises(path: Path, tmp_path: Path) -> None:
    done = typed(path, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [text for text in SHOWS[path.name[:3]] if not re.search(text, done.stdout + done.stderr)] == []


def typed(path: Path, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Run the only command in the docstring of an example, with a temp folder of its own."""
    said = ast.get_docstring(ast.parse(path.read_text())) or ""
    (command,) = re.findall(r"^ {4}(\S.*)$", said, re.MULTILINE)
    program, *arguments = shlex.split(command)
    environment = {**os.environ, "TMPDIR": str(folder), "PYTEST_XDIST_AUTO_NUM_WORKERS": "0"}
    return subprocess.run(
        [sys.executable, "-m", PROGRAMS[program], *arguments, *more],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100,
    )  # fmt: skip


def test_the_archive_holds_each_earthquake_once_also_after_a_second_run(tmp_path: Path) -> None:
    (path,) = (ROOT / "examples").glob("e04_*.py")
    for _ in range(2):
        assert typed(path, tmp_path, "--partitions", "1").returncode == 0  # else the feed chooses others each time
        with closing(sqlite3.connect(tmp_path / "earthquakes.db")) as database:
            found = database.execute("select count(*), max(magnitude), max(offset) from earthquakes").fetchall()
        assert found == [(1707, 6.4, 1706)]
