"""The examples, as the README and their own first lines have them typed."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from support.embedded_kafka import EmbeddedKafka
from support.kafka_server import free_ports
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
    text = (ROOT / "README.md").read_text()
    (command,) = re.findall(r"^pip install -e \. && karafka-lite (run .*--until-end)$", text, re.MULTILINE)
    done = karafka_lite(command)
    assert done.returncode == 0, done.stderr
    assert "magnitude 6:    5" in done.stdout
    assert "earthquakes: 1707 messages, " in done.stderr
    assert "drained: 1707 messages in " in done.stderr


def test_the_first_screen_of_the_readme_runs_as_it_is_typed(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    file, module = re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)[0]
    (command,) = re.findall(r"^(echo .*--until-end)$", text, re.MULTILINE)
    (tmp_path / file).write_text(module)
    command = command.replace("karafka-lite", f"{sys.executable} -m karafka_lite")
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "({'id': 1},)\n"), done.stderr


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
INSIDE = sorted((ROOT / "examples").glob("e1[678]_*.py"))  # another program
ASYNC_WEB = ROOT / "examples" / "e25_async_web.py"
PROGRAMS = {
    "karafka-lite": ["-m", "karafka_lite"],
    "pytest": ["-m", "pytest"],
    "uvicorn": ["-m", "uvicorn"],
    "python": [],
}

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
        " earthquakes are in earthquakes-0.db",
        " 28 given up",
        " 0 unmarked",
    ],
    "e14": ["1 passed"],
    "e15": ["1 passed"],
    "e19": ['"name": "process earthquakes"', '"name": "handler_seconds"', r'"value": 1707\b', " 0 unmarked"],
    "e20": [r"reported: ValueError\('explosion, not an earthquake'\) \{'message': 'earthquakes-\d@\d+", " 0 unmarked"],
    "e21": ["500 earthquakes", " 0 unmarked"],
    "e22": [r"\d+ earthquakes of earthquakes-\d, each counted once", " 0 unmarked"],
    "e24": [r"1707 calls for \d+ towns: \d+ s of work in \d+ s"],
    "e23": [
        r"alert \d+ of partition \d: 22km NNE of Hualian",
        r"partition \d is committed: True; 5 alerts so far",
        " 0 unmarked",
    ],
}


@pytest.mark.parametrize(
    "path", [path for path in EXAMPLES if path not in [*INSIDE, ASYNC_WEB]], ids=lambda path: path.stem
)
def test_the_command_of_its_docstring_runs_it_to_its_end_and_shows_what_it_promises(path: Path, tmp_path: Path) -> None:
    done = typed(path, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [text for text in SHOWS[path.name[:3]] if not re.search(text, done.stdout + done.stderr)] == []


def typed(path: Path, folder: Path, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the only command in the docstring of an example, with a temp folder of its own."""
    environment = {**os.environ, "TMPDIR": str(folder), "PYTEST_XDIST_AUTO_NUM_WORKERS": "0", **environment}
    command = [*command_of(path), *more]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)


def command_of(path: Path) -> list[str]:
    said = ast.get_docstring(ast.parse(path.read_text())) or ""
    (command,) = re.findall(r"^ {4}(\S.*)$", said, re.MULTILINE)
    program, *arguments = shlex.split(command)
    return [sys.executable, *PROGRAMS[program], *arguments]


def test_the_archive_holds_each_earthquake_once_also_after_a_second_run(tmp_path: Path) -> None:
    (path,) = (ROOT / "examples").glob("e04_*.py")
    for _ in range(2):
        assert typed(path, tmp_path, "--partitions", "1").returncode == 0  # else the feed chooses others each time
        with closing(sqlite3.connect(tmp_path / "earthquakes.db")) as database:
            found = database.execute("select count(*), max(magnitude), max(offset) from earthquakes").fetchall()
        assert found == [(1707, 6.4, 1706)]


# -- inside another program --------------------------------------------------------------------------------------------


@pytest.fixture
def broker() -> Iterator[Observer]:
    """The examples share names of topics."""
    with EmbeddedKafka() as server:
        observer = Observer(server.bootstrap_servers)
        yield observer
        observer.forget_clients()


@contextmanager
def served(path: Path, broker: Observer, ready: str) -> Iterator[Callable[[str, str], Any]]:
    """A web service, which can be asked; behind the block it is stopped, and must have ended in good order."""
    (port,) = free_ports(1)
    environment = {**os.environ, "KARAFKA_LITE_BOOTSTRAP_SERVERS": broker.bootstrap_servers}
    command = [*command_of(path), "--port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)

    def ask(method: str, path: str) -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)

    def answers() -> bool:
        with suppress(OSError):
            ask("GET", ready)
            return True
        return False

    try:
        wait_until(answers, 30, "it serves")
        yield ask
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=30)
        assert "Traceback" not in told
        assert "is stopped: use `with app:`" not in told
    finally:
        process.kill()
        process.wait()


def test_the_web_service_sends_reads_and_stops_in_good_order(broker: Observer) -> None:
    with served(INSIDE[0], broker, "/felt") as ask:
        assert ask("POST", "/felt/Lima") == {"offset": 0}
        assert ask("POST", "/felt/Lima") == {"offset": 1}
        wait_until(lambda: ask("GET", "/felt") == ["Lima", "Lima"], message="both are read")
    assert broker.committed("felt-earthquakes", "earthquakes.felt") == 2
    assert broker.members("felt-earthquakes") == []


def test_the_async_web_service_has_endpoints_that_wait_for_its_handlers_and_stops_in_good_order(
    broker: Observer,
) -> None:
    topic = broker.topic(name="earthquakes.felt")
    broker.produce(topic, [{"place": "Lima"}])
    with served(ASYNC_WEB, broker, "/felt/after/0") as ask, ThreadPoolExecutor(1) as pool:
        waits = pool.submit(ask, "GET", "/felt/after/1")
        broker.produce(topic, [{"place": "Cusco"}])
        assert waits.result(20) == ["Cusco"]
    assert broker.committed("felt-earthquakes-live", topic) == 2
    assert broker.members("felt-earthquakes-live") == []


NOTEBOOK = """
import code, re, sys
session = code.InteractiveInterpreter({"__name__": "__main__"})
_, *cells = re.split("^# %%$", open(sys.argv[1]).read(), flags=re.MULTILINE)
assert len(cells) == 4
for cell in cells:
    for run in range(2):
        session.runsource(cell.strip() + "\\n", symbol="exec")
"""


def test_the_cells_of_the_notebook_can_be_run_twice_and_as_a_program(broker: Observer, tmp_path: Path) -> None:
    path = INSIDE[1]
    environment = {"KARAFKA_LITE_BOOTSTRAP_SERVERS": broker.bootstrap_servers}
    notebook = [sys.executable, "-c", NOTEBOOK, str(path)]
    done = subprocess.run(notebook, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "6 new aftershocks; strong ones so far: [6.4, 5.0, 6.4, 5.0]",
        "0 new aftershocks; strong ones so far: [6.4, 5.0, 6.4, 5.0]",
    ]
    done = typed(path, tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "3 new aftershocks; strong ones so far: [6.4, 5.0]\n"


def test_the_task_does_what_is_new_each_time_it_is_called(broker: Observer, tmp_path: Path) -> None:
    path = INSIDE[2]
    topic = broker.topic(name="earthquakes.felt")
    broker.produce(topic, [{"place": "Lima"}, b"bad", {"place": "Cusco"}, {"place": "Lima"}])
    told = []
    for _ in range(2):
        done = typed(path, tmp_path, KARAFKA_LITE_BOOTSTRAP_SERVERS=broker.bootstrap_servers)
        assert done.returncode == 0, done.stderr
        told.append(done.stdout.splitlines())
        broker.produce(topic, [{"place": "Quito"}])
    assert told == [
        ["3 messages, 1 of them unclear", "{'Lima': 2, 'Cusco': 1}"],
        ["1 messages, 0 of them unclear", "{'Quito': 1}"],
    ]
    assert len(broker.records("earthquakes.unclear")) == 1
