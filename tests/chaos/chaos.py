"""Members of two groups that join, leave, are killed and stopped at random, while a producer writes all the time.

By hand, longer, and with everything that can happen beside them (disasters.py):

    python tests/chaos/chaos.py --seconds 200 --nodes 3 --seed 7 brokers network topics

Members are processes running a real app (member.py); for each group a watcher asks the broker what is committed; at the
end judge.py says what was lost, repeated or handled by two at once. Everything is left in a folder for the post-mortem.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from disasters import CALM, Brokers, Disaster, TopicLife, Weather
from judge import Deletion, Fact, Pause, Script, Sent, Verdict, judge
from network import ProxiedKafka
from support.observer import Observer, Server, wait_until
from topics import Topics

HERE = Path(__file__).parent
PARTITIONS, MOST_PARTITIONS = 6, 12
MOST_MEMBERS = 5
SETTLE_S = 90.0
JOIN_S = 20.0  # member.py: max_poll_interval_ms, and kafka-python's 5 s
DISASTERS: dict[str, type[Disaster]] = {"brokers": Brokers, "network": Weather, "topics": TopicLife}
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

    def __init__(
        self,
        kafka: Observer,
        folder: Path,
        seed: int,
        server: Server | None = None,
        disasters: Sequence[str] = (),
        reset: str = "earliest",
    ) -> None:
        self.kafka, self.folder, self.server, self.reset = kafka, folder, server, reset
        self.group, self.second_group = kafka.group(), kafka.group()
        self.automatic, self.manual = kafka.name("automatic"), kafka.name("manual")
        # Made while members wait for them; with "topics" deleted and made anew.
        self.late = [kafka.name("late-automatic"), kafka.name("late-manual")]
        self.topics = Topics(kafka)
        for topic in (self.automatic, self.manual):
            self.topics.make(topic, PARTITIONS)
        self.figures: Counter[str] = Counter()
        self.script = Script(CLUSTER_SESSION_S if len(kafka.bootstrap_servers.split(",")) > 1 else SESSION_S)
        self._dice = random.Random(seed)
        self._disasters = [DISASTERS[name](self, random.Random(self._dice.random())) for name in disasters]
        self._members: list[Member] = []
        self._leaving: list[Member] = []
        self._all: list[Member] = []

    @property
    def readers(self) -> dict[str, list[str]]:
        """Which topics each group reads."""
        return {self.group: [self.automatic, self.manual, *self.late], self.second_group: [self.manual]}

    def run(self, seconds: float) -> Verdict:
        try:
            with self._watching():
                self._join()
                if self.reset == "latest":  # what was there before the groups is not theirs
                    wait_until(self._all_started, 60, "every partition has a commit")
                with self._producing(), ExitStack() as raging:
                    for disaster in self._disasters:
                        raging.enter_context(disaster.raging())
                    self._rage(time.time() + seconds)
                self._heal()
                self._settle()
            self._end()
        finally:
            for member in self._all:
                if member.ended() is None:
                    member.kill()
        return self._judged()

    def _is_empty(self, place: tuple[str, int]) -> bool:
        """All that was written there is deleted: nobody may have anything to commit."""
        deleted = self.script.deleted.get((self.topics.life(place[0]), place[1]), ())
        return any(deletion.before >= self._ends[place] for deletion in deleted)

    def _all_started(self) -> bool:
        places = [(group, *place) for group in self.readers for place in self.places(group)]
        return all(self.kafka.committed(*place) is not None for place in places)

    def places(self, group: str) -> list[tuple[str, int]]:
        """What there is now of what it reads."""
        return [place for place in self.topics.places if place[0] in self.readers[group]]

    # -- the chaos

    def _rage(self, end: float) -> None:
        self._join()
        next_act = time.time() + 2
        late = time.time() + (end - time.time()) / 4
        while (now := time.time()) < end:
            for member in self._members:
                if member.paused_at is not None and now >= member.resume_at:
                    member.resume()
            self._reap()
            if now >= late and self.reset == "earliest":
                late = float("inf")
                with CALM:
                    for topic in self.late:
                        self.topics.make(topic, PARTITIONS)
                self.say("two more topics")
            if now >= next_act:
                self._act()
                next_act = now + self._dice.uniform(0.5, 2.5)
            time.sleep(0.05)
        acts = sum(self.figures[act] for act in ("joins", "leaves", "kills", "stops"))
        self.figures["rebalances asked for"] = acts * len(self.readers)  # a member is in each group

    def _act(self) -> None:
        session_s = self.script.session_s
        awake = [member for member in self._members if member.paused_at is None and member.at_work()]
        acts = {"join": 4.0 * (len(self._members) < MOST_MEMBERS)}
        if len(awake) > 1:
            acts.update(leave=2.0, kill=2.5, stop=0.8)
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
        self.say(f"{act} {victim.name if victim and act != 'join' else self._all[-1].name}")

    def _join(self) -> None:
        environment = {
            "BROKERS": getattr(self.server, "proxied_servers", self.kafka.bootstrap_servers),
            "SESSION_MS": f"{self.script.session_s * 1000:.0f}",
            "RESET": self.reset,
            "GROUPS": f"{self.group},{self.second_group}",
            "AUTOMATIC": f"{self.automatic},{self.late[0]}",
            "MANUAL": f"{self.manual},{self.late[1]}",
        }
        member = Member(f"m{len(self._all) + 1}", [str(self.folder)], environment, self.folder)
        self._all.append(member)
        self._members.append(member)

    def _reap(self) -> None:
        for member in [*self._leaving]:
            code = member.ended()
            if code is not None:
                self._leaving.remove(member)
                if code:
                    self.figures[f"leaves with exit code {code}"] += 1
                    if code == 2 and self.script.breakages:
                        self.script.forced[member.name] = time.time()
                    else:
                        self.figures["members that left with a mistake"] += 1
                    self.say(f"{member.name} left with exit code {code}")
        for member in [*self._members]:
            code = member.ended()
            if code is not None:
                self._members.remove(member)
                gave_up = code == 3 and self.script.breakages  # nobody was reached in time, at its start
                self.figures["members that " + ("gave up (exit 3)" if gave_up else "ended by themselves")] += 1
                self.say(f"{member.name} ended by itself with {code}")

    # -- what disasters do

    @contextmanager
    def broken(self, kind: str, count: int, told: str) -> Iterator[None]:
        """Brokers or the network, until the end of the block."""
        began = time.time()
        self.figures[kind] += count
        self.say(told)
        yield
        self.script.breakages.append(Pause(began, time.time()))
        self.say(f"whole again: {told}")

    def grow(self) -> None:
        topic = self.automatic
        partitions = min(MOST_PARTITIONS, self.topics.partitions[topic] + self._dice.choice([1, 2]))
        if partitions > self.topics.partitions[topic]:
            self.topics.grow(topic, partitions)
            self.figures["topic growths"] += 1
            self.say(f"{topic} has {partitions} partitions")

    def truncate(self) -> None:
        """Half or all of what waits in one topic is deleted, as by a retention that is too short."""
        topic = self._dice.choice(list(self.topics.partitions))
        for partition in range(self.topics.partitions[topic]):
            end = self.kafka.end_offset(topic, partition)
            begin = min(self.kafka.committed(group, topic, partition) or 0 for group in self._readers_of(topic))
            before = self._dice.choice([(begin + end) // 2, end])
            # Noted before: what was handed over at that moment is processed all the same.
            self.script.deleted[self.topics.life(topic), partition].append(Deletion(time.time(), before))
            self.kafka.truncate(topic, partition, before)
        self.figures["topic truncations"] += 1
        self.say(f"{topic} is truncated")

    def _readers_of(self, topic: str) -> list[str]:
        return [group for group, topics in self.readers.items() if topic in topics]

    def make_anew(self, after_s: float, over: threading.Event) -> None:
        there = [topic for topic in self.late if topic in self.topics.partitions]
        if there:
            topic = self._dice.choice(there)
            life = self.topics.life(topic)
            self.say(f"{life} is deleted, for {after_s} s")
            self.script.ended[life] = time.time()
            self.topics.delete(topic)
            over.wait(after_s)
            self.topics.make(topic, self._dice.choice([PARTITIONS - 3, PARTITIONS, PARTITIONS + 1]))
            self.figures["topic deletions"] += 1
            self.say(f"{self.topics.life(topic)} is there")

    # -- the end of it

    def _heal(self) -> None:
        for member in self._members:
            member.resume()
        self.script.pauses = {member.name: member.pauses for member in self._all}
        self._ends = {place: self.kafka.end_offset(*place) for place in self.topics.places}
        self.say(f"healed; {sum(self._ends.values())} messages")

    def _settle(self) -> None:
        """Nobody joins or leaves any more, so nothing but the members themselves can bring a dead partition back."""
        began = time.time()

        def all_committed() -> bool:
            self._reap()
            return all(
                self.kafka.committed(group, *place) == self._ends[place]
                for group in self.readers
                for place in self.places(group)
                if self._ends[place] and not self._is_empty(place)
            )

        def all_there() -> bool:
            self._reap()
            return all(len(self.kafka.members(group)) == len(self._members) for group in self.readers)

        with suppress(AssertionError):
            wait_until(all_committed, SETTLE_S, "everything is committed")
            # Who asked to join on a connection that carries nothing any more asks again when the request has expired.
            wait_until(all_there, JOIN_S + 2 * self.script.session_s, "every member is in the group")
        missing = sum(len(self._members) - len(self.kafka.members(group)) for group in self.readers)
        self.figures["members that are not in the group"] += missing
        self.say(f"settled in {time.time() - began:.1f} s with {len(self._members)} members")

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

    def _judged(self) -> Verdict:
        verdict = Verdict()
        facts = {
            member.name: self.topics.of_members(_read(self.folder / f"{member.name}.jsonl")) for member in self._all
        }
        for group in self.readers:
            life = {place: (self.topics.life(place[0]), place[1]) for place in self.places(group)}
            self.script.ends = {life[place]: self._ends[place] for place in life}
            self.script.committed = {life[place]: self.kafka.committed(group, *place) for place in life}
            told = {name: [fact for fact in some if fact["group"] == group] for name, some in facts.items()}
            watched = self.topics.of_watcher(_read(self.folder / f"committed-{group}.jsonl"))
            verdict.add(judge(told, watched, self.script))
        verdict.figures.update(+self.figures)
        verdict.figures["members"] = len(self._all)
        for kind in ("ended by themselves", "are not in the group", "did not end", "left with a mistake"):
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
        settings = {
            "bootstrap.servers": self.kafka.bootstrap_servers,
            "acks": "all",
            "linger.ms": 5,
            "log_level": 0,
            "topic.metadata.refresh.interval.ms": 1000,
            "max.in.flight.requests.per.connection": 1,
        }
        # One for each life of a topic: librdkafka was seen to send nothing any more to one that was made anew.
        producers: dict[str, Producer] = defaultdict(lambda: Producer(settings))

        def acknowledged(error: KafkaError | None, message: Message, number: int) -> None:
            if error:
                self.figures["messages not produced"] += 1
            else:
                place = (self.topics.life_of(number), message.partition())
                self.script.produced[place][message.offset()] = Sent(number, time.time())
            self.topics.answered(message.topic())

        number = 0
        while not stop.wait(0.01):
            for _ in range(dice.choice([0, 2, 6, 16])):
                number += 1
                topic, partition = self.topics.choose(number, dice)
                done = functools.partial(acknowledged, number=number)
                try:
                    producers[self.topics.life_of(number)].produce(
                        topic, str(number), partition=partition, on_delivery=done
                    )
                except KafkaException:  # it has not heard of a partition that was added
                    self.topics.answered(topic)
            for producer in producers.values():
                producer.poll(0)
        self.figures["messages not produced"] += sum(producer.flush(60) for producer in producers.values())

    @contextmanager
    def _watching(self) -> Iterator[None]:
        environment = {**os.environ, "BROKERS": self.kafka.bootstrap_servers}
        with (self.folder / "watcher.log").open("wb") as log:
            watchers = []
            for group, topics in self.readers.items():
                arguments = [
                    group,
                    str(self.folder / f"committed-{group}.jsonl"),
                    json.dumps(dict.fromkeys(topics, MOST_PARTITIONS)),
                ]
                watchers.append(
                    subprocess.Popen(
                        [sys.executable, str(HERE / "watcher.py"), *arguments], env=environment, stderr=log
                    )
                )
            try:
                yield
                assert not any(watcher.poll() for watcher in watchers), (self.folder / "watcher.log").read_text()
            finally:
                for watcher in watchers:
                    watcher.kill()
                    watcher.wait()

    def say(self, text: str) -> None:
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
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--reset", choices=["earliest", "latest"], default="earliest", help="latest: no late topics")
    parser.add_argument("disasters", metavar="DISASTER", nargs="*", help=f"of {', '.join(DISASTERS)}; default: none")
    options = parser.parse_args()
    seed = random.randrange(10**6) if options.seed is None else options.seed
    folder = Path(tempfile.mkdtemp(prefix=f"chaos-{seed}-"))
    print(f"seed {seed}, facts in {folder}", flush=True)
    with ProxiedKafka(options.nodes) as server:
        kafka = Observer(server.bootstrap_servers)
        verdict = Chaos(kafka, folder, seed, server, options.disasters, options.reset).run(options.seconds)
    print(report(verdict, seed))
    return 1 if verdict.crimes else 0


if __name__ == "__main__":
    sys.exit(main())
