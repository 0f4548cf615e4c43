"""``python -m karafka_lite run`` as a process of its own, on a real Kafka: what it says, and its exit codes."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from support.harness import Process, make_app, running
from support.observer import BreakableKafka, Observer, wait_until

NOWHERE = "127.0.0.1:1"
ENVIRONMENT = "KARAFKA_LITE_BOOTSTRAP_SERVERS"

BECOME_THE_COMMAND = """
    os.execv(sys.executable, [sys.executable, "-m", "karafka_lite", "run", *sys.argv[1:]])
"""

CONSUMERS = """
    from karafka_lite import App

    topic, group, servers = {topic!r}, {group!r}, {servers!r}
    app = App(group, bootstrap_servers=servers, heartbeat_interval_ms=300, session_timeout_ms=45_000,
              fetch_max_wait_ms=100, auto_commit_interval_ms=600_000, bootstrap_timeout_ms=60_000,
              reconnect_backoff_max_ms=500)

    @app.topic(topic)
    def work(batch, ctx):
        say(batch=[message.offset for message in batch])

    @app.on_shutdown(work)
    def flush(ctx):
        say(hook="on_shutdown")
"""


def karafka_lite_run(
    kafka: Observer, folder: Path, topic: str, group: str, servers: str, *options: str, **environment: str
) -> Process:
    """``python -m karafka_lite run consumers.py``, with ``say`` in that file."""
    file = folder / "consumers.py"
    consumers = textwrap.dedent(CONSUMERS).format(topic=topic, group=group, servers=servers)
    file.write_text(textwrap.dedent(Process.PRELUDE) + consumers)
    return Process(kafka, BECOME_THE_COMMAND, folder, str(file), *options, **environment)


def run_once(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``python -m karafka_lite …`` in ``folder``, to its end."""
    command = [sys.executable, "-m", "karafka_lite", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


# -- it runs, and ends with 0 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "option", "variable"),
    [(signal.SIGTERM, "the broker", NOWHERE), (signal.SIGINT, None, "the broker"), (signal.SIGTERM, None, None)],
    ids=["--broker wins", "then the environment", "then the App's argument"],
)
def test_it_consumes_logs_what_it_does_and_exits_with_0_at_a_signal(
    kafka: Observer, tmp_path: Path, number: int, option: str | None, variable: str | None
) -> None:
    topic, group, servers = kafka.topic(), kafka.group(), kafka.bootstrap_servers
    kafka.produce(topic, range(5))
    options = ["--broker", servers] if option else []
    environment = {ENVIRONMENT: variable.replace("the broker", servers)} if variable else {}
    argument = NOWHERE if option or variable else servers

    with karafka_lite_run(kafka, tmp_path, topic, group, argument, *options, **environment) as process:
        process.until(lambda fact: "batch" in fact)
        process.signal(number)
        assert process.wait() == 0
        wait_until(lambda: kafka.members(group) == [], message="the group is left")
    assert process.facts == [{"batch": [0, 1, 2, 3, 4]}, {"hook": "on_shutdown"}]
    assert kafka.committed(group, topic) == 5
    said = process.errors()
    assert f"group {group}: {topic} -> work" in said
    assert f"{topic}-0@0 (earliest)" in said
    assert "Traceback" not in said
    assert foreign_lines(said) == []


def test_the_loggers_of_kafka_python_are_quiet_also_while_the_broker_is_gone(
    private_kafka: BreakableKafka, tmp_path: Path
) -> None:
    kafka = private_kafka
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(5))
    began = time.monotonic()
    with karafka_lite_run(kafka, tmp_path, topic, group, kafka.bootstrap_servers) as process:
        process.until(lambda fact: fact.get("batch") == [0, 1, 2, 3, 4])
        kafka.kill()
        wait_until(lambda: "cannot reach a broker" in process.errors(), timeout=30, message="our own words")
        kafka.restart()
        kafka.produce(topic, range(5))
        process.until(lambda fact: fact.get("batch", [0])[-1] == 9, timeout=60)
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    said = process.errors()
    assert foreign_lines(said) == []
    # Said once, and again every 30 s at most.
    assert said.count("cannot reach a broker") <= 1 + (time.monotonic() - began) // 30
    assert "Traceback" not in said
    assert kafka.committed(group, topic) == 10


def foreign_lines(said: str) -> list[str]:
    """Log lines of others than karafka-lite."""
    lines = re.findall(r"^\d{4}-\S+ \S+ [A-Z]+ .*$", said, re.MULTILINE)
    assert lines, said
    return [line for line in lines if not re.match(r"\S+ \S+ [A-Z]+ karafka_lite", line)]


# -- exit 1 -----------------------------------------------------------------------------------------------------------


# Python 3.10 says of a decorator's call that it is at the def.
DECORATED_AT = f"mine.py:{3 if sys.version_info >= (3, 11) else 4}"


@pytest.mark.parametrize(
    ("text", "arguments", "words"),
    [
        ('app = App("g", drain_timeout_ms=0)', ["run", "mine:app"], ["mine.py:2", "drain_timeout_ms"]),
        ('app = App("g", fetch_min_byte=1)', ["run", "mine:app"], ["mine.py:2", "fetch_min_byte", "fetch_min_bytes"]),
        (
            'app = App("g")\n@app.topic("t")\ndef work(batch): ...',
            ["run", "mine:app"],
            [DECORATED_AT, "work", "(batch, ctx)"],
        ),
        ('app = App("g")\napp.topic("t")(print)', ["run", "mime:app"], ["mime", "did you mean mine"]),
        ('app = App("g")', ["run", "mine:app", "--concurrency", "many"], ["--concurrency", "karafka-lite run"]),
    ],
    ids=["ConfigurationError", "unknown setting", "wrong signature", "missing module", "usage"],
)
def test_a_mistake_ends_with_exit_1_and_a_message_without_traceback(
    tmp_path: Path, text: str, arguments: list[str], words: list[str]
) -> None:
    (tmp_path / "mine.py").write_text(f"from karafka_lite import App\n{text}\n")
    done = run_once(tmp_path, *arguments)
    assert done.returncode == 1, done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_auto_offset_reset_none_without_a_commit_exits_with_1_and_names_the_partition(
    kafka: Observer, tmp_path: Path
) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(5))
    (tmp_path / "mine.py").write_text(
        f"from karafka_lite import App\n"
        f"app = App({group!r}, bootstrap_servers={kafka.bootstrap_servers!r}, auto_offset_reset='none')\n"
        f"@app.topic({topic!r})\n"
        f"def work(batch, ctx): print('never')\n"
    )
    done = run_once(tmp_path, "run", "mine:app")
    assert done.returncode == 1, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "no usable committed offset" in line]
    assert f"{topic}-0" in line or (topic in line and "partition=0" in line)
    assert group in line
    assert "auto_offset_reset='none'" in line
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert kafka.committed(group, topic) is None
    wait_until(lambda: kafka.members(group) == [], message="the group is left")


def test_auto_offset_reset_none_with_a_commit_begins_there(kafka: Observer) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(5))
    seen: list[int] = []
    for reset, first in (("earliest", 0), ("none", 5)):
        app = make_app(kafka, group, auto_offset_reset=reset)
        app.topic(topic)(lambda batch, ctx: seen.extend(message.offset for message in batch))
        with running(app):
            wait_until(lambda first=first: len(seen) == first + 5, message="the messages")
        kafka.produce(topic, range(5))
    assert seen == list(range(10))


# -- exit 3 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("listens", [False, True], ids=["nobody listens", "nobody answers"])
def test_no_broker_within_bootstrap_timeout_ms_ends_with_exit_3_and_one_readable_message(
    tmp_path: Path, listens: bool
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if listens:
            silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        (tmp_path / "mine.py").write_text(
            f"from karafka_lite import App\n"
            f"app = App('group', bootstrap_servers={address!r}, bootstrap_timeout_ms=1000)\n"
            f"@app.topic('topic')\n"
            f"def work(batch, ctx): ...\n"
        )
        done = run_once(tmp_path, "run", "mine:app")
    assert done.returncode == 3, done.stderr
    said, *_ = [line for line in done.stderr.splitlines() if "WARNING" in line]
    assert f"{address} cannot be reached" in said
    assert said.endswith("; without Kafka: karafka-lite run module:app --broker embedded")
    (line,) = [line for line in done.stderr.splitlines() if "no broker could be reached" in line]
    assert address in line
    assert "1000 ms" in line
    assert "--broker" in line
    assert "Traceback" not in done.stderr
    assert foreign_lines(done.stderr) == []
    assert done.stdout == ""


# -- standard error as JSON -------------------------------------------------------------------------------------------

NOISY = """
    import logging, threading, warnings
    from karafka_lite import App

    app = App("noisy")

    @app.topic("clicks", dead_letter=False, max_retries=1, backoff_ms=1)
    def work(batch, ctx):
        warnings.warn("old")
        logging.getLogger("shop").warning("a batch of %d", len(batch), extra={"size": len(batch)})
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()
        for message in ctx.each(batch):
            assert message.payload["good"]
"""


def test_with_json_every_line_of_standard_error_is_an_object(tmp_path: Path) -> None:
    (tmp_path / "noisy.py").write_text(textwrap.dedent(NOISY))
    (tmp_path / "clicks.jsonl").write_text('{"good": true}\n{"good": false}\n')
    feed = ["--broker", "embedded", "--partitions", "1", "--feed", "clicks=clicks.jsonl"]
    done = run_once(tmp_path, "run", "noisy.py", *feed, "--until-end", "--log-format", "json")
    said = [json.loads(line) for line in done.stderr.splitlines()]
    assert done.returncode == 0, done.stderr
    assert said[0]["routes"] == [{"group": "noisy", "topic": "clicks", "offsets": "automatic", "function": "work"}]
    assert next(line["size"] for line in said if line["logger"] == "shop") == 2
    (failed,) = [line for line in said if "failed 2 times" in line["message"]]
    assert failed["message"].startswith("clicks-0@1: work failed 2 times, AssertionError")
    assert "Traceback" in next(line for line in said if "failed at attempt 1" in line["message"])["exception"]
    assert {"py.warnings", "karafka_lite", "karafka_lite.cli"} <= {line["logger"] for line in said}
    assert any(line["message"].startswith("uncaught ZeroDivisionError") for line in said)
    *_, topic, end = said
    assert (topic["topic"], topic["messages"], topic["given_up"]) == ("clicks", 1, 1)
    assert end["message"].startswith("drained: 1 message in ")


def test_quiet_says_nothing_where_nothing_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "calm.py").write_text(textwrap.dedent(NOISY).partition("    warnings.warn")[0] + "    pass\n")
    (tmp_path / "clicks.jsonl").write_text('{"good": true}\n')
    arguments = ["--broker", "embedded", "--feed", "clicks=clicks.jsonl", "--until-end", "--quiet"]
    done = run_once(tmp_path, "run", "calm.py", *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
