"""Members of one group that join, leave, are killed and stopped at random, while a producer writes all the time.

By hand, also longer and against three brokers that are killed as well:

    python tests/chaos/chaos.py --seconds 200 --nodes 3 --seed 7

Members are processes running a real app (member.py); a watcher of its own asks the broker what is committed; judge.py
says at the end what was lost, repeated or handled by two at once. Everything is left in a folder for the post-mortem.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from confluent_kafka import KafkaError, Message, Producer
from judge import Fact, Pause, Script, Sent, Verdict, judge
from support.kafka_server import JavaKafka
from support.observer import Observer, wait_until

HERE = Path(__file__).parent
PARTITIONS = 6
MOST_MEMBERS = 4
BREAK_EVERY_S = 12.0  # how often a broker is killed, when there are several
SETTLE_S = 90.0
SESSION_S, CLUSTER_SESSION_S = 4.0, 12.0  # a cluster needs some seconds to replace a killed coordinator


class Member:
    """One process of the group."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        program: str = "member.py",
    ) -> None:
        self.name = name
        self.paused_at: float | None = None
        self.resume_at = 0.0
        self.pauses: list[Pause] = []
        self._facts = folder / f"{self.name}.jsonl"
        self._log = (folder / f"{self.name}.log").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / program), name, *arguments],
            stdout=self._log,
            stderr=self._log,
            env={**os.environ, **environment},
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def at_work(self) -> bool:
        """Whether it was handed something (before, its signal handlers may not stand)."""
        return self._facts.exists() and self._facts.stat().st_size > 0

    def pause(self, seconds: float) -> None:
        self.paused_at = time.time()
        self.resume_at = self.paused_at + seconds
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        if self.paused_at is not None:
            self._process.send_signal(signal.SIGCONT)
            self.pauses.append(Pause(self.paused_at, time.time()))
            self.paused_at = None

    def leave(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()

    def ended(self) -> int | None:
        """The exit code."""
        if self._process.poll() is not None:
            self._log.close()
        return self._process.poll()


class Chaos:
    """One run; ``figures`` counts what was done."""

    def __init__(self, kafka: Observer, folder: Path, seed: int, server: JavaKafka | None = None) -> None:
        self.kafka, self.folder, self.server = kafka, folder, server
        self.group = kafka.group()
        self.topics = [kafka.topic(PARTITIONS), kafka.topic(PARTITIONS)]  # automatic, manual
        self.late_topic = kafka.name("late-topic")
        self.figures: Counter[str] = Counter()
        self.script = Script(CLUSTER_SESSION_S if server and len(server.nodes) > 1 else SESSION_S)
        self._dice = random.Random(seed)
        self._members: list[Member] = []
        self._leaving: list[Member] = []
        self._all: list[Member] = []
        self._broken: threading.Thread | None = None

    @property
    def places(self) -> list[tuple[str, int]]:
        return [(topic, partition) for topic in self.topics for partition in range(PARTITIONS)]

    def run(self, seconds: float) -> Verdict:
        try:
            with self._watching():
                with self._producing():
                    self._rage(time.time() + seconds)
                self._heal()
                self._settle()
            self._end()
        finally:
            for member in self._all:
                if member.ended() is None:
                    member.kill()
        return self._judged()

    # -- the chaos

    def _rage(self, end: float) -> None:
        self._join()
        self._join()
        next_act, next_break = time.time() + 2, time.time() + BREAK_EVERY_S
        late = time.time() + (end - time.time()) / 3
        while (now := time.time()) < end:
            for member in self._members:
                if member.paused_at is not None and now >= member.resume_at:
                    member.resume()
            self._reap()
            if now >= late and self.late_topic not in self.topics and not self._is_broken():
                self.topics.append(self.kafka.topic(PARTITIONS, name=self.late_topic))
                self._say("one more topic")
            if now >= next_act:
                self._act()
                next_act = now + self._dice.uniform(0.7, 3.5)
            if self.server and len(self.server.nodes) > 1 and now >= next_break:
                self._break_a_broker()
                next_break = now + BREAK_EVERY_S
            time.sleep(0.05)

    def _act(self) -> None:
        session_s = self.script.session_s
        awake = [member for member in self._members if member.paused_at is None and member.at_work()]
        acts = {"join": 4.0 * (len(self._members) < MOST_MEMBERS)}
        if len(awake) > 1:
            acts.update(leave=2.5, kill=1.2, stop=0.8)
        (act,) = self._dice.choices(list(acts), list(acts.values())) if sum(acts.values()) else [None]
        victim = self._dice.choice(awake) if awake else None
        if act == "join":
            self._join()
        elif act is None or victim is None:
            return
        elif act == "leave":
            self._members.remove(victim)
            self._leaving.append(victim)
            victim.leave()
        elif act == "kill":
            self._members.remove(victim)
            self.script.kills[victim.name] = time.time()
            victim.kill()
        elif act == "stop":  # mostly past its session, now and then within
            victim.pause(self._dice.choice([1.5, session_s + 0.3, session_s + 1, session_s + 3]))
        self.figures[f"{act}s"] += 1
        self._say(f"{act} {victim.name if victim and act != 'join' else self._all[-1].name}")

    def _join(self) -> None:
        arguments = [self.group, str(self.folder), *self.topics[:2], self.late_topic]
        environment = {"BROKERS": self.kafka.bootstrap_servers, "SESSION_MS": f"{self.script.session_s * 1000:.0f}"}
        member = Member(f"m{len(self._all) + 1}", arguments, environment, self.folder)
        self._all.append(member)
        self._members.append(member)

    def _reap(self) -> None:
        for member in [*self._leaving]:
            code = member.ended()
            if code is not None:
                self._leaving.remove(member)
                if code:
                    self.figures[f"leaves with exit code {code}"] += 1
                    self._say(f"{member.name} left with exit code {code}")
        for member in [*self._members]:
            if member.ended() is not None:
                self._members.remove(member)
                self.figures["members that ended by themselves"] += 1
                self._say(f"{member.name} ended by itself with {member.ended()}")

    def _break_a_broker(self) -> None:
        if self._is_broken():
            return
        assert self.server
        node = self._dice.choice(list(self.server.nodes))
        down_s = self._dice.uniform(1, 7)
        self.script.broker_kills.append(time.time())
        self.figures["broker kills"] += 1
        self._say(f"broker {node} is killed for {down_s:.1f} s")
        self.server.kill(node)
        self._broken = threading.Thread(target=self._bring_back, args=(node, time.time() + down_s))
        self._broken.start()

    def _is_broken(self) -> bool:
        return self._broken is not None and self._broken.is_alive()

    def _bring_back(self, node: int, when: float) -> None:
        time.sleep(max(0.0, when - time.time()))
        assert self.server
        self.server.restart(node)
        self._say(f"broker {node} is back")

    # -- the end of it

    def _heal(self) -> None:
        if self._broken:
            self._broken.join()
        for member in self._members:
            member.resume()
        self.script.pauses = {member.name: member.pauses for member in self._all}
        self.script.ends = {place: self.kafka.end_offset(*place) for place in self.places}
        self._say(f"healed; {sum(self.script.ends.values())} messages")

    def _settle(self) -> None:
        """Nobody joins or leaves any more, so nothing but the members themselves can bring a dead partition back."""
        began = time.time()

        def all_committed() -> bool:
            self._reap()
            ends = self.script.ends.items()
            return all(self.kafka.committed(self.group, *place) == end for place, end in ends if end)

        def all_there() -> bool:
            self._reap()
            return len(self.kafka.members(self.group)) == len(self._members)

        with suppress(AssertionError):
            wait_until(all_committed, SETTLE_S, "everything is committed")
            wait_until(all_there, 2 * self.script.session_s, "every member is in the group")
        self.figures["members that are not in the group"] += len(self._members) - len(self.kafka.members(self.group))
        self._say(f"settled in {time.time() - began:.1f} s with {len(self._members)} members")

    def _end(self) -> None:
        for member in self._members:
            member.leave()
        self._leaving += self._members
        self._members = []

        def all_left() -> bool:
            self._reap()
            return not self._leaving

        with suppress(AssertionError):
            wait_until(all_left, 60, "all have left")
        self.figures["members that did not end"] += len(self._leaving)
        self.script.committed = {place: self.kafka.committed(self.group, *place) for place in self.places}

    def _judged(self) -> Verdict:
        facts = {member.name: _read(self.folder / f"{member.name}.jsonl") for member in self._all}
        verdict = judge(facts, _read(self.folder / "committed.jsonl"), self.script)
        verdict.figures.update(+self.figures)
        verdict.figures["members"] = len(self._all)
        for kind in ("ended by themselves", "are not in the group", "did not end"):
            kind = f"members that {kind}"
            if self.figures[kind]:
                verdict.crimes[kind].append(str(self.figures[kind]))
        return verdict

    # -- beside it

    @contextmanager
    def _producing(self) -> Iterator[None]:
        stop = threading.Event()
        producer = threading.Thread(target=self._produce, args=(stop, random.Random(self._dice.random())))
        producer.start()
        try:
            yield
        finally:
            stop.set()
            producer.join()

    def _produce(self, stop: threading.Event, dice: random.Random) -> None:
        producer = Producer(
            {
                "bootstrap.servers": self.kafka.bootstrap_servers,
                "acks": "all",
                "linger.ms": 5,
                "log_level": 0,
                "max.in.flight.requests.per.connection": 1,
            }
        )

        def acknowledged(error: KafkaError | None, message: Message, number: int) -> None:
            if error:
                self.figures["messages not produced"] += 1
            else:
                place = (message.topic(), message.partition())
                self.script.produced[place][message.offset()] = Sent(number, time.time())

        number = 0
        while not stop.wait(0.01):
            for _ in range(dice.choice([0, 2, 6, 16])):
                number += 1
                topic, partition = dice.choice(self.places)
                producer.produce(
                    topic,
                    str(number).encode(),
                    partition=partition,
                    on_delivery=lambda error, message, number=number: acknowledged(error, message, number),
                )
            producer.poll(0)
        if producer.flush(60):
            self.figures["messages not produced"] += 1

    @contextmanager
    def _watching(self) -> Iterator[None]:
        environment = {**os.environ, "BROKERS": self.kafka.bootstrap_servers}
        topics = json.dumps(dict.fromkeys([*self.topics, self.late_topic], PARTITIONS))
        command = [sys.executable, str(HERE / "watcher.py"), self.group, str(self.folder), topics]
        with (self.folder / "watcher.log").open("wb") as log:
            watcher = subprocess.Popen(command, env=environment, stderr=log)
            try:
                yield
                assert watcher.poll() is None, (self.folder / "watcher.log").read_text()
            finally:
                watcher.kill()
                watcher.wait()

    def _say(self, text: str) -> None:
        with (self.folder / "driver.log").open("a") as log:
            log.write(f"{time.time():.3f} {text}\n")


def _read(path: Path) -> list[Fact]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]  # the watcher's last line may be half a one


def report(verdict: Verdict, seed: int) -> str:
    """The figures in words, then the crimes."""
    counted = ", ".join(f"{count} {kind}" for kind, count in sorted(verdict.figures.items()))
    lines = [f"seed {seed}: {counted}; longest silence {verdict.longest_silence_s:.1f} s"]
    for kind, cases in verdict.crimes.items():
        lines += [f"  {kind}: {len(cases)}", *(f"    {case}" for case in cases[:5])]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--nodes", type=int, default=1, help="brokers; of several, one is killed now and then")
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = random.randrange(10**6) if options.seed is None else options.seed
    folder = Path(tempfile.mkdtemp(prefix=f"chaos-{seed}-"))
    print(f"seed {seed}, facts in {folder}", flush=True)
    with JavaKafka(nodes=options.nodes) as server:
        verdict = Chaos(Observer(server.bootstrap_servers), folder, seed, server).run(options.seconds)
    print(report(verdict, seed))
    return 1 if verdict.crimes else 0


if __name__ == "__main__":
    sys.exit(main())
