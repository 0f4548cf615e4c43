"""Static members, ``run --instance-id``: a restart within the session is no rebalance."""

from __future__ import annotations

import os
import signal
import textwrap
from pathlib import Path

from support.harness import Process
from support.observer import Observer, wait_until

BECOME_THE_COMMAND = """
    os.execv(sys.executable, [sys.executable, "-m", "karafka_lite", "run", *sys.argv[1:]])
"""

CONSUMERS = """
    from karafka_lite import App

    app = App({group!r}, bootstrap_servers={servers!r}, heartbeat_interval_ms=300, session_timeout_ms=20_000,
              fetch_max_wait_ms=100, auto_commit_interval_ms=200, metadata_max_age_ms=1000)

    @app.topic({topic!r})
    def work(batch, ctx):
        say(pid=os.getpid(), partition=batch.partition, offsets=[m.offset for m in batch])
        while b"hold" in batch.values and not ctx.revoked:
            time.sleep(0.01)
        if ctx.revoked:
            say(revoked=True, mark=ctx.mark_as_consumed(batch.last))

    @app.on_assigned(work)
    def begin(ctx):
        say(pid=os.getpid(), assigned=ctx.partition)
"""


class Scene:
    """A group of static members of one topic with two partitions."""

    def __init__(self, kafka: Observer, folder: Path) -> None:
        self.kafka, self.folder, self.topic, self.group = kafka, folder, kafka.topic(2), kafka.group()
        text = textwrap.dedent(CONSUMERS).format(group=self.group, servers=kafka.bootstrap_servers, topic=self.topic)
        self.file = folder / "consumers.py"
        self.file.write_text(textwrap.dedent(Process.PRELUDE) + text)
        self.started: list[Process] = []
        self.sent = 0

    def start(self, *options: str) -> Process:
        folder = self.folder / str(len(self.started))
        self.started.append(Process(self.kafka, BECOME_THE_COMMAND, folder, str(self.file), *options))
        return self.started[-1]

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for process in self.started:
            process.__exit__()

    def handled(self) -> list[tuple[int, int]]:
        facts = [fact for process in self.started for fact in list(process.facts) if "offsets" in fact]
        return [(fact["partition"], offset) for fact in facts for offset in fact["offsets"]]

    def produce_and_wait(self) -> None:
        """Five more messages of each partition are handled and committed, each once."""
        self.sent += 5
        for partition in range(2):
            self.kafka.produce(self.topic, range(5), partition=partition)
        expected = [(partition, offset) for partition in range(2) for offset in range(self.sent)]
        wait_until(lambda: sorted(self.handled()) == expected, message="all once")
        wait_until(lambda: self.committed() == [self.sent] * 2, message="all is committed")

    def committed(self) -> list[int | None]:
        return [self.kafka.committed(self.group, self.topic, partition) for partition in range(2)]


def assigned(process: Process) -> dict[int, list[int]]:
    """What each process of the command was given, in that order."""
    found: dict[int, list[int]] = {}
    for fact in list(process.facts):
        if "assigned" in fact:
            found.setdefault(fact["pid"], []).append(fact["assigned"])
    return found


def test_a_restart_and_a_replaced_child_cause_no_rebalance_and_lose_and_repeat_nothing(
    kafka: Observer, tmp_path: Path
) -> None:
    with Scene(kafka, tmp_path) as scene:
        first = scene.start("--processes", "2", "--instance-id", "shop")
        wait_until(lambda: len(assigned(first)) == 2, message="both have a partition")
        scene.produce_and_wait()
        members = {name[:6] for name in kafka.assignment(scene.group)}
        assert members == {"shop-1", "shop-2"}
        before = first.errors().count("handed over")
        victim = next(iter(assigned(first)))
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: len(assigned(first)) == 3, message="the new one is given what the dead one had, at once")
        scene.produce_and_wait()
        first.signal(signal.SIGTERM)
        assert first.wait() == 0
        assert first.errors().count("handed over") == before
        assert first.errors().count(": ended; the broker keeps the place of shop-") == 2

        second = scene.start("--processes", "2", "--instance-id", "shop")
        scene.produce_and_wait()
        second.signal(signal.SIGTERM)
        assert second.wait() == 0
        assert [len(partitions) for partitions in assigned(second).values()] == [1, 1], "its own and no other"


def test_who_takes_the_place_of_another_process_ends_it_and_new_partitions_are_seen_after_a_restart_of_the_leader(
    kafka: Observer, tmp_path: Path
) -> None:
    with Scene(kafka, tmp_path) as scene:
        old = scene.start("--instance-id", "shop")
        scene.produce_and_wait()
        old.signal(signal.SIGTERM)
        assert old.wait() == 0
        old = scene.start("--instance-id", "shop")
        old.until(lambda fact: "assigned" in fact)
        kafka.grow(scene.topic, 3)
        kafka.forget_clients()  # they know of two partitions
        kafka.produce(scene.topic, ["hold"], partition=2)
        old.until(lambda fact: fact.get("partition") == 2, message="it leads, although no join has told it so")

        new = scene.start("--instance-id", "shop")
        assert old.until(lambda fact: "revoked" in fact, timeout=10)["mark"] is False, "long before its session is over"
        assert old.wait() == 1
        (said,) = [line for line in old.errors().splitlines() if "CRITICAL" in line]
        assert "another process has taken the place of group_instance_id='shop'; give each process one" in said
        assert "Traceback" not in old.errors()
        assert new.until(lambda fact: fact.get("partition") == 2)["offsets"] == [0], "it comes again"
        assert new.process.poll() is None, "and is not thrown out again"
        new.signal(signal.SIGKILL)
