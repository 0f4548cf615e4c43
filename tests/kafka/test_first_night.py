"""What ``karafka-lite run`` says when something is about to go wrong, before a person has to ask.

A lag that grows for ten minutes is in tests/unit/test_growth.py, with a clock.
"""

from __future__ import annotations

import signal
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.harness import Process
from support.observer import Observer, wait_until

BECOME_THE_COMMAND = """
    os.execv(sys.executable, [sys.executable, "-m", "karafka_lite", "run", *sys.argv[1:]])
"""

WORRIES = """
    from karafka_lite import App

    app = App({group!r}, bootstrap_servers={servers!r}, heartbeat_interval_ms=300, session_timeout_ms=2000,
              fetch_max_wait_ms=100, drain_timeout_ms=1500, max_poll_interval_ms=2000)

    @app.topic({topics[0]!r}, manual_offsets=True)
    def forget(batch, ctx):
        say(forgot=batch.last_offset)

    @app.topic(*{topics!r}[1:])
    def wait(batch, ctx):
        say(waits=batch.topic)
        while not os.path.exists(batch.topic):
            time.sleep(0.01)
"""


def run(kafka: Observer, folder: Path, topics: Sequence[str], *options: str) -> Process:
    file = folder / "worries.py"
    text = textwrap.dedent(WORRIES).format(group=kafka.group(), servers=kafka.bootstrap_servers, topics=topics)
    file.write_text(textwrap.dedent(Process.PRELUDE) + text)
    return Process(kafka, BECOME_THE_COMMAND, folder, str(file), *options)


def test_a_handler_that_forgets_to_mark_or_takes_too_long_is_named(
    kafka: Observer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    topics = [kafka.topic() for _ in range(3)]
    kafka.produce(topics[0], range(12_000))
    kafka.produce(topics[1], [0])
    with run(kafka, tmp_path, topics) as process:
        process.until(lambda fact: fact.get("forgot") == 11_999)
        wait_until(lambda: ": forget has processed 10," in process.errors(), message="who does not mark")
        slow = f"{topics[1]}-0@0: wait has been running for 2 s; no rebalance waits longer than max_poll_interval_ms"
        wait_until(lambda: slow in process.errors(), message="who is slower than a rebalance waits")
        (tmp_path / topics[1]).touch()
        kafka.produce(topics[2], [0])
        process.until(lambda fact: fact.get("waits") == topics[2])
        process.signal(signal.SIGTERM)
        waits = f"{topics[2]}-0@0: wait has been running for 1 s and holds up a stop, which goes on without it after"
        wait_until(lambda: waits in process.errors(), message="whom the stop waits for")
        (tmp_path / topics[2]).touch()
        assert process.wait() == 0
    assert process.errors().count("since its last mark") == 1


def test_a_member_without_a_partition_says_so_once(kafka: Observer, tmp_path: Path) -> None:
    topics = [kafka.topic(), kafka.topic()]
    with run(kafka, tmp_path, topics, "--processes", "2") as process:
        idle = "no partition for this member, the group has more members than partitions"
        wait_until(lambda: idle in process.errors(), message="who has nothing to do")
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    assert process.errors().count(idle) == 1
