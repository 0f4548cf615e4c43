"""A service as those see it that watch it from outside: probes, a file's age, a scrape, a signal, a terminal."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families as parsed
from support.command import Terminal, process
from support.harness import Process, make_app, running
from support.observer import BreakableKafka, Observer, wait_until

from karafka_lite import Health
from karafka_lite.broker import EmbeddedBroker

TOLD_S = 10.0  # within which the three are told apart
SERVICE = """
    from karafka_lite import App
    from karafka_lite.cli import probes, pulse
    from karafka_lite.observers import health

    health.STEP_S = 1.5  # of a thread without progress: 30 s would be a long test
    probes.EVERY_S, pulse.ASK_S, pulse.SILENT_S = 0.2, 0.1, 0.6
    app = App(os.environ["GROUP"], bootstrap_servers=BROKERS, drain_timeout_ms=1500, auto_commit_interval_ms=60_000,
              concurrency=2, heartbeat_interval_ms=300, session_timeout_ms=6000, fetch_max_wait_ms=100,
              reconnect_backoff_max_ms=200, bootstrap_timeout_ms=2000)

    @app.topic(os.environ["TOPIC"], dead_letter=False, max_retries=0)
    def work(batch, ctx):
        for message in ctx.each(batch):
            word = message.value.decode()
            say(work=word)
            if word == "hang":
                wait_here_for(os.environ["RELEASE"])
            if word == "wedge":
                app.members[0].lock.acquire()
            if word == "die":
                app.members[0].group.poll_plan = lambda now: 1 / 0
            if word == "bad":
                raise ValueError("bad")
        ctx.commit_offsets()

    def wait_here_for(file):
        while not os.path.exists(file):
            time.sleep(0.02)
"""
RUN = """
    os.execv(sys.executable, [sys.executable, "-m", "karafka_lite", "run", *sys.argv[1:]])
"""


@pytest.fixture
def embedded() -> Iterator[Observer]:
    """For what no broker matters to."""
    with EmbeddedBroker() as broker:
        observer = Observer(broker.bootstrap_servers)
        yield observer
        observer.forget_clients()


class Service(Process):
    """``karafka-lite run`` with a port and a file for its health."""

    def __init__(self, kafka: Observer, folder: Path, topic: str, group: str, *options: str, text: str = RUN) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        module, self.file, self.release = folder / "service.py", folder / "alive", folder / "release"
        module.write_text(textwrap.dedent(Process.PRELUDE) + textwrap.dedent(SERVICE))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        probes = ["--health-port", f"{self.port}", "--health-file", f"{self.file}"]
        names = {"TOPIC": topic, "GROUP": group, "RELEASE": f"{self.release}", "FOLDER": f"{folder}"}
        super().__init__(kafka, text, folder, f"{module}", *probes, *options, **names)

    def get(self, path: str) -> tuple[int, str]:
        """Status and text; 0 where nobody listens."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as found:
                return found.status, found.read().decode()
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, refused.read().decode()
        except OSError:
            return 0, ""

    def becomes(self, live: int, ready: int, *words: str) -> str:
        """Wait until both answer so, with these words. Returns all that is said."""

        def looked() -> str | None:
            one, other = self.get("/live"), self.get("/ready")
            right = (one[0], other[0]) == (live, ready) and all(word in other[1] for word in words)
            return (other[1] or "nobody") if right else None

        try:
            return wait_until(looked, TOLD_S, f"/live {live}, /ready {ready}, {words}")  # type: ignore[return-value]
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.get('/live')}, {self.get('/ready')}\n{self.errors()}") from None

    def file_moves(self) -> bool:
        """Whether its time moves in the next moment, in which it is looked at several times."""
        os.utime(self.file, (0, 0))
        with suppress(AssertionError):
            wait_until(lambda: self.file.stat().st_mtime > 0, 1.0)
        return self.file.stat().st_mtime > 0

    def whereabouts(self, words: str) -> str:
        """What it answers to SIGUSR1, up to ``words`` in the stack of somebody."""
        before = len(self.errors())
        self.signal(signal.SIGUSR1)
        wait_until(lambda: words in self.errors()[before:], TOLD_S, "SIGUSR1 is answered")
        return self.errors()[before:]


def samples(text: str) -> dict[str, float]:
    """By name, the sum over all labels."""
    sums: dict[str, float] = {}
    for family in parsed(text):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0) + sample.value
    return sums


def test_a_wedged_handler_is_not_live_until_it_returns_and_the_file_stands_still_meanwhile(
    kafka: Observer, tmp_path: Path
) -> None:
    topic, group = kafka.topic(2), kafka.group()
    with Service(kafka, tmp_path, topic, group) as service:
        service.becomes(200, 200)
        assert service.file_moves()
        kafka.produce(topic, ["hang"], 0)
        said = service.becomes(503, 503, "longer than drain_timeout_ms=1500")
        assert re.search(rf"{topic}-0@0: work has been running for \d+ s", said)
        assert not service.file_moves()
        where = service.whereabouts("in wait_here_for")
        assert re.search(rf"thread karafka-worker-work-\d: {topic}-0@0: in work for \d+\.\d s", where)
        assert "while not os.path.exists(file)" in where or "time.sleep(0.02)" in where
        assert f"group {group}: {topic}-1: waiting for " in where
        kafka.produce(topic, ["fine"], 1)
        service.until(lambda fact: fact.get("work") == "fine", message="the other partition goes on")
        service.release.touch()
        service.becomes(200, 200)
        assert service.file_moves()
        service.signal(signal.SIGTERM)
        assert service.wait() == 0
    assert kafka.committed(group, topic) == 1


@pytest.mark.apache_only("a broker of its own takes two seconds to start")
def test_without_its_broker_it_is_live_and_not_ready_and_the_file_moves(
    private_kafka: BreakableKafka, tmp_path: Path
) -> None:
    kafka = private_kafka
    topic, group = kafka.topic(), kafka.group()
    with Service(kafka, tmp_path, topic, group) as service:
        service.becomes(200, 200)
        kafka.kill()
        service.becomes(200, 503, f"group {group}: ")
        assert service.file_moves()
        kafka.restart()
        wait_until(lambda: service.get("/ready")[0] == 200, 30, "it is ready again")
        service.signal(signal.SIGTERM)
        assert service.wait() == 0


def test_a_wedged_thread_is_not_live_and_named_and_says_where_it_is(embedded: Observer, tmp_path: Path) -> None:
    topic, group = embedded.topic(), embedded.group()
    with Service(embedded, tmp_path, topic, group) as service:
        service.becomes(200, 200)
        embedded.produce(topic, ["wedge"])
        service.becomes(503, 503, f"group {group}: the poller has made no progress for ")
        assert not service.file_moves()
        assert "lock" in service.whereabouts(f"thread karafka-poller-{group}: in its step for ")
        service.signal(signal.SIGKILL)


def test_a_dead_thread_ends_the_process_with_1(embedded: Observer, tmp_path: Path) -> None:
    topic = embedded.topic()
    with Service(embedded, tmp_path, topic, embedded.group()) as service:
        service.becomes(200, 200)
        embedded.produce(topic, ["die"])
        assert service.wait() == 1
    assert service.get("/live")[0] == 0
    assert "the poller has crashed" in service.errors()


def test_a_scrape_has_every_metric_and_a_missing_topic_a_join_and_a_hand_over_show(
    kafka: Observer, tmp_path: Path
) -> None:
    topic, group = kafka.name("topic"), kafka.group()
    with Service(kafka, tmp_path / "first", topic, group) as service:
        service.becomes(200, 503, f"group {group}: waiting for missing topics: {topic}")
        kafka.topic(name=topic)
        kafka.produce(topic, ["fine", "bad", "fine"])
        wait_until(lambda: kafka.committed(group, topic) == 3, message="all of them are done")
        service.becomes(200, 200)
        with Service(kafka, tmp_path / "second", topic, group) as second:
            second.becomes(200, 200)
            wait_until(lambda: len(kafka.members(group)) == 2, message="both have joined")
            service.becomes(200, 200)

            def scraped() -> dict[str, float] | None:
                found = [samples(one.get("/metrics")[1]) for one in (service, second)]
                sums = {name: sum(one.get(name, 0) for one in found) for name in {*found[0], *found[1]}}
                return sums if sums.get("karafka_lite_lag") == 0 else None

            sums = wait_until(scraped, message="the lag is known")
            assert sums is not None
            second.signal(signal.SIGTERM)
            assert second.wait() == 0
        service.signal(signal.SIGTERM)
        assert service.wait() == 0
    counted = {name: sums[f"karafka_lite_{name}_total"] for name in ("messages", "failures", "dead_letters")}
    assert counted == {"messages": 2, "failures": 1, "dead_letters": 1}
    assert sums["karafka_lite_batches_total"] == 1
    assert sums["karafka_lite_commits_total"] >= 1
    assert sums["karafka_lite_commit_failures_total"] == 0
    assert sums["karafka_lite_handler_seconds_count"] == 2
    assert sums["karafka_lite_rebalances_total"] >= 3, "one join, and one of both"
    assert sums["karafka_lite_drain_seconds_count"] == 1


def test_with_processes_one_port_and_one_file_answer_for_all(embedded: Observer, tmp_path: Path) -> None:
    topic, group = embedded.topic(2), embedded.group()
    with Service(embedded, tmp_path, topic, group, "--processes", "2") as service:

        def total() -> float:
            return samples(service.get("/metrics")[1]).get("karafka_lite_messages_total", 0)

        wait_until(lambda: len(embedded.members(group)) == 2, message="both have joined")
        service.becomes(200, 200)
        for partition in (0, 1):
            embedded.produce(topic, ["fine"] * (3 + partition), partition)
        wait_until(lambda: total() == 7, message="the messages of both are counted")
        assert service.file_moves()
        pids = re.findall(r"started, pid (\d+)", service.errors())
        victim = int(pids[1])
        os.kill(victim, signal.SIGSTOP)
        try:
            service.becomes(503, 503, "[2] has not answered for ")
            assert not service.file_moves()
            assert total() == 7
        finally:
            os.kill(victim, signal.SIGCONT)
        service.becomes(200, 200)
        assert service.file_moves()
        os.kill(victim, signal.SIGKILL)
        service.becomes(200, 503, "[2] ")
        assert total() == 7, "what the dead one has counted stays"
        service.signal(signal.SIGTERM)
        assert service.wait() == 0
    assert "Traceback" not in service.errors()


@pytest.mark.parametrize("how", ["the command", "app.run()"])
def test_sigusr1_is_answered_on_standard_error_and_as_one_object_where_lines_are_json(
    embedded: Observer, tmp_path: Path, how: str
) -> None:
    topic = embedded.topic()
    text = RUN if how == "the command" else "import runpy; runpy.run_path(sys.argv[1])['app'].run()"
    with Service(embedded, tmp_path, topic, embedded.group(), "--log-format", "json", "--quiet", text=text) as service:
        embedded.produce(topic, ["hang"])
        service.until(lambda fact: fact.get("work") == "hang")
        where = service.whereabouts("in wait_here_for")
        if how == "the command":
            (told,) = [json.loads(line) for line in where.splitlines()]
            (handler,) = [thread for thread in told["threads"] if "wait_here_for" in thread["stack"]]
            assert handler["doing"].startswith(f"{topic}-0@0: in work for ")
            assert told["partitions"][0]["state"] == "working"
            assert told["health"]["live"] is True
        else:
            assert re.search(rf"thread karafka-worker-work-0: {topic}-0@0: in work for ", where)
        service.release.touch()
        service.signal(signal.SIGTERM)
        assert service.wait() == 0


def test_the_live_view_shows_what_a_partition_does_and_leaves_the_totals(embedded: Observer, tmp_path: Path) -> None:
    topic, group = embedded.topic(name=embedded.name("t")[-12:]), embedded.group()
    (tmp_path / "service.py").write_text(
        f"from karafka_lite import App\n"
        f"app = App({group!r}, bootstrap_servers={embedded.bootstrap_servers!r}, auto_commit_interval_ms=100)\n"
        f"@app.topic({topic!r}, backoff_ms=60_000, backoff_max_ms=60_000)\n"
        f"def work(batch, ctx):\n    for message in ctx.each(batch):\n        print('at', message.payload)\n"
        f"        assert message.payload != 2, 'no two'\n"
    )
    embedded.produce(topic, [1, 2])
    with Terminal("run", "service:app", "--live", cwd=tmp_path) as terminal:
        terminal.until("back-off")
        terminal.until(" for another ")
        terminal.until("AssertionError: no two")
        terminal.until("1 messages (")
        terminal.process.send_signal(signal.SIGTERM)
        terminal.until("left")
        terminal.until("lag unknown")
        assert terminal.process.wait(20) == 0


def test_the_live_view_is_for_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(
        "from karafka_lite import App\napp = App('g')\napp.topic('t')(lambda b, c: 0)\n"
    )
    done = process("-m", "karafka_lite", "run", "service:app", "--live", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "--live needs standard error to be a terminal" in done.stderr


def test_a_web_app_of_ones_own_asks_the_app(kafka: Observer) -> None:
    topic, app = kafka.topic(), make_app(kafka)
    app.topic(topic)(lambda batch, ctx: ctx.mark_as_consumed(batch.last) and ctx.commit_offsets())
    kafka.produce(topic, [1, 2, 3])
    with running(app):
        wait_until(lambda: app.health() == Health(live=True, ready=True), message="it is ready")
        wait_until(lambda: app.stats().commits, message="a commit")
        wait_until(lambda: app.stats().partitions[0].lag == 0, message="the end is known")
        due = app.members[0].due
        wait_until(lambda: due["committer"] > time.monotonic() + 60, message="it rests, and is not overdue meanwhile")
        stats = app.stats()
        (one,) = stats.partitions
        assert (one.topic, one.state, one.position, one.stored, one.committed) == (topic, "waiting", 3, 3, 3)
        assert (stats.messages, stats.batches, stats.failures, stats.rebalances) == (3, 1, 0, 1)
    assert app.health() == Health(live=False, ready=False, reasons=("it has ended",))
    assert app.stats().messages == 3
