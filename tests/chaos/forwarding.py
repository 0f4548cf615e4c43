"""What a handler sends is never missing where its input is committed, whatever happens to brokers and members.

    python tests/chaos/forwarding.py --messages 10000 --nodes 3 --seed 7
    python tests/chaos/forwarding.py --exactly-once --messages 19200    # 240 s: each output once, and none too early

Members (forwarder.py) turn each message of one topic into one to three of another, in all the ways that people may
write it. Brokers are killed and frozen, one, several or all at once; members are killed, stopped and frozen, and one is
killed right behind each broker, when something waits for its acknowledgement. An auditor (auditor.py) in a
process of its own looks for holes all the time; at the end everything is committed and both topics are read anew.

With ``--exactly-once`` the routes are of that kind, and a duplicate is a crime. The control is a run without it, with
the same seed: its duplicates show that the chaos is no tame one.

Prints one table and ends with 1 where the promise does not hold; everything is left in a folder for the post-mortem.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from chaos import HERE, PARTITIONS, SETTLE_S, Member, _read
from confluent_kafka import KafkaError, Message, Producer
from forwarder import KINDS, LARGEST
from judge import Verdict
from kafka.admin import KafkaAdminClient, TransactionListing, TransactionState
from kafka.errors import KafkaError as KafkaPythonError
from outputs import Outputs, complaints
from support.kafka_server import JavaKafka
from support.observer import Observer, Server, wait_until

PER_SECOND = 80  # inputs: in 10,000 of them there is room for a dozen disasters
MOST_MEMBERS = 4
SESSION_S = 6.0  # a killed coordinator is replaced within, mostly
DRAIN_S = 10.0
STOP_S = DRAIN_S + 20  # its last commit, its consumer and its producer have 5 s each to end
MOST_THREADS = 20  # of a member, which has half of them: who leaves one behind at each death of a producer has more
ALL_BUT_TRUSTING = [kind for kind in KINDS if kind != "trusting"]
MARKERS_S = 20.0  # an outage and what follows: by then readers see what a transaction has committed
EXIT_CODES = (0, 2)  # 2: what it stored or sent had no answer when the time was over


class Forwarding:
    """One run against the ``nodes`` of ``server``."""

    def __init__(
        self,
        kafka: Observer,
        server: Server,
        nodes: Sequence[int],
        folder: Path,
        seed: int,
        kinds: Sequence[str] = ALL_BUT_TRUSTING,
        *,
        exactly_once: bool = False,
    ) -> None:
        self.exactly_once = exactly_once
        self._environment = {"EXACTLY_ONCE": "1"} if exactly_once else {}
        self.kafka, self.server, self.nodes, self.folder, self.seed = kafka, server, nodes, folder, seed
        self.kinds = kinds
        self.group = kafka.group()
        self.source = kafka.topic(PARTITIONS)
        self.target = kafka.topic(PARTITIONS, max_message_bytes=LARGEST)
        self.verdict = Verdict()
        self.figures: Counter[str] = self.verdict.figures
        self._dice = random.Random(seed)
        self._members: list[Member] = []
        self._leaving: dict[Member, float] = {}  # since when
        self._all: list[Member] = []
        self._ends: Counter[int] = Counter()  # of each partition of inputs
        self._strike_at = float("inf")  # when a member dies that waits for its acknowledgements
        self._over = threading.Event()

    def run(self, messages: int) -> Verdict:
        began = time.time()
        try:
            with self._auditing():
                with self._producing(messages) as is_produced, self._breaking():
                    self._rage(is_produced)
                for member in self._members:
                    member.resume()
                self._settle(messages)
                self._measure()
                self._end()
                self._last_audit()
        finally:
            for member in self._all:
                if member.ended() is None:
                    member.kill()
        self._judge()
        self.figures["seconds"] = round(time.time() - began)
        return self.verdict

    # -- the members

    def _rage(self, is_produced: Callable[[], bool]) -> None:
        self._join()
        self._join()
        next_act = time.time() + 2
        while not is_produced():
            now = time.time()
            for member in self._members:
                if member.paused_at is not None and now >= member.resume_at:
                    member.resume()
            self._reap()
            if now >= self._strike_at:
                self._strike_at = float("inf")
                if len(self._awake()) > 1:
                    self._do("kill")
            elif now >= next_act:
                self._act()
                next_act = now + self._dice.uniform(0.7, 3.5)
            time.sleep(0.05)

    def _act(self) -> None:
        acts = {"join": 4.0 * (len(self._members) < MOST_MEMBERS)}
        if len(self._awake()) > 1:
            acts.update(kill=0.5, leave=1.5, freeze=0.4)
        if sum(acts.values()):
            self._do(self._dice.choices(list(acts), list(acts.values()))[0])

    def _awake(self) -> list[Member]:
        return [member for member in self._members if member.paused_at is None and member.at_work()]

    def _do(self, act: str) -> None:
        victim = self._join() if act == "join" else self._dice.choice(self._awake())
        if act == "kill":
            self._members.remove(victim)
            victim.kill()
        elif act == "leave":
            self._members.remove(victim)
            self._leaving[victim] = time.time()
            victim.leave()
        elif act == "freeze":
            victim.pause(self._dice.choice([1.5, SESSION_S + 2]))
        self.figures[f"member {act}s"] += 1
        self._say(f"{act} {victim.name}")

    def _join(self) -> Member:
        number = len(self._all) + 1
        kind = self.kinds[number % len(self.kinds)]
        name = f"s{self.seed}-m{number}-{kind}"
        environment = {
            "BROKERS": self.kafka.bootstrap_servers,
            "SESSION_MS": f"{SESSION_S * 1000:.0f}",
            "DRAIN_MS": f"{DRAIN_S * 1000:.0f}",
            **self._environment,
        }
        arguments = [kind, self.group, str(self.folder), self.source, self.target]
        member = Member(name, arguments, environment, self.folder, "forwarder.py")
        self._all.append(member)
        self._members.append(member)
        return member

    def _reap(self) -> None:
        now = time.time()
        for member, since in list(self._leaving.items()):
            code = member.ended()
            if code is not None:
                del self._leaving[member]
                self.figures["longest stop in s"] = max(self.figures["longest stop in s"], round(now - since))
                self.figures[f"exit code {code}"] += 1
                self._say(f"{member.name} left with exit code {code} in {now - since:.1f} s")
                if code not in EXIT_CODES:
                    self.verdict.crimes["exit codes"].append(f"{member.name}: {code}")
                if now - since > STOP_S:
                    self.verdict.crimes["slow stops"].append(f"{member.name}: {now - since:.1f} s")
        for member in [*self._members]:
            code = member.ended()
            if code is not None:
                self._members.remove(member)
                self.verdict.crimes["ended by themselves"].append(f"{member.name}: {code}")

    # -- the brokers

    @contextmanager
    def _breaking(self) -> Iterator[None]:
        with ThreadPoolExecutor(1) as pool:
            breaker = pool.submit(self._break_brokers, random.Random(self._dice.random()))
            try:
                yield
            finally:
                self._over.set()
                breaker.result()

    def _break_brokers(self, dice: random.Random) -> None:
        """One disaster after the other; after the last one all brokers are back.

        With exactly_once each third one strikes the node that coordinates most of the members' open transactions.
        """
        calm_s, disasters = dice.uniform(1, 3), 0
        while not self._over.wait(calm_s):
            calm_s = dice.uniform(3, 7)
            how = dice.choice(["kill", "kill", "freeze"])
            count = dice.choices([1, 2, len(self.nodes)], [6, 2, 2])[0] if len(self.nodes) > 1 else 1
            disasters += 1
            if self.exactly_once and len(self.nodes) > 1 and disasters % 3 == 0 and (node := self._coordinator()):
                victims, count = [node], 1
                self.figures["transaction coordinators struck"] += 1
            else:
                victims = dice.sample(list(self.nodes), count)
            seconds = dice.uniform(0.5, 5) if how == "kill" else dice.uniform(1, 7)
            self._say(f"brokers {victims}: {how} for {seconds:.1f} s")
            for node in victims:
                (self.server.kill if how == "kill" else self.server.pause)(node)
                self.figures[f"broker {how}s"] += 1
            self.figures["outages"] += count == len(self.nodes)
            self._strike_at = time.time() + dice.uniform(0.3, 2)
            self._over.wait(seconds)
            if how == "freeze":
                for node in victims:
                    self.server.resume(node)
            elif isinstance(self.server, JavaKafka):
                self.server.heal()  # all at once: alone, the first of several would wait for its quorum
            else:
                self.server.restart(victims[0])
            self.server.wait_until_ready()
            self._say(f"brokers {victims} are back")

    def _coordinator(self) -> int | None:
        """The node that coordinates most of the members' open transactions, else of all that there were."""
        try:
            admin = KafkaAdminClient(bootstrap_servers=self.kafka.bootstrap_servers)
            try:
                known = admin.list_transactions()
            finally:
                admin.close()
        except KafkaPythonError as error:  # a broker is not ready yet
            self._say(f"no coordinator was found: {error!r}")
            return None
        ours = [(node, one) for node, all_of_it in known.items() for one in all_of_it if self._is_ours(one)]
        is_open = [node for node, one in ours if one.state == TransactionState.ONGOING]
        return next((node for node, _ in Counter(is_open or [node for node, _ in ours]).most_common(1)), None)

    def _is_ours(self, transaction: TransactionListing) -> bool:
        return bool(transaction.transactional_id.startswith(self.group))

    # -- the end of it

    def _settle(self, messages: int) -> None:
        """Nobody joins, leaves or breaks any more: a partition that stands still now, stands still for good."""
        began = time.time()
        for partition in range(PARTITIONS):  # not by the answers: where one got lost, the next one knows no offset
            self._ends[partition] = self.kafka.end_offset(self.source, partition)
        if self._ends.total() < messages:  # librdkafka was seen to write some twice when all brokers had been away
            self.verdict.crimes["inputs"].append(f"{self._ends.total()} instead of {messages}")

        def all_committed() -> bool:
            self._reap()
            return self._committed() == self._ends

        with suppress(AssertionError):
            wait_until(all_committed, SETTLE_S, "everything is committed")
        committed = self._committed()
        for partition, end in self._ends.items():
            if committed.get(partition) != end:
                told = f"{partition}: {committed.get(partition)} is committed, it ends at {end}"
                self.verdict.crimes["stalls"].append(told)
        self.figures["settled in s"] = round(time.time() - began)
        self._say(f"settled in {time.time() - began:.1f} s with {len(self._members)} members")

    def _committed(self) -> dict[int, int]:
        """As the auditor saw it last: this process never asks, see watcher.py."""
        audits = _read(self.folder / "audits.jsonl")[-1:]
        return {int(partition): offset for audit in audits for partition, offset in audit["committed"].items()}

    def _measure(self) -> None:
        for member in self._members:
            process = Path("/proc", str(member.pid))
            threads, files = len(list((process / "task").iterdir())), len(list((process / "fd").iterdir()))
            self.figures["most threads"] = max(self.figures["most threads"], threads)
            self.figures["most files"] = max(self.figures["most files"], files)
            if threads > MOST_THREADS:
                self.verdict.crimes["leaks"].append(f"{member.name}: {threads} threads")

    def _end(self) -> None:
        for member in self._members:
            self._leaving[member] = time.time()
            member.leave()
        self._members = []

        def all_left() -> bool:
            self._reap()
            return not self._leaving

        with suppress(AssertionError):
            wait_until(all_left, 2 * STOP_S, "all have left")
        self.verdict.crimes["did not end"].extend(member.name for member in self._leaving)

    def _last_audit(self) -> None:
        """The auditor sees the end as well: a round that began behind it."""
        rounds = len(_read(self.folder / "audits.jsonl")) + 2
        with suppress(AssertionError):
            wait_until(lambda: len(_read(self.folder / "audits.jsonl")) >= rounds, 30)

    def _judge(self) -> None:
        holes: dict[str, str] = {}  # place -> how it was seen first
        audits = _read(self.folder / "audits.jsonl")
        first: dict[str, float] = {}
        for audit in audits:
            for hole in audit["holes"]:
                place, at = hole.split()[0], audit["at"]
                # The brokers end a transaction in each partition by itself, and those that are down once they are back.
                if not self.exactly_once or at - first.setdefault(place, at) > MARKERS_S:
                    holes.setdefault(place, f"{hole}, at {at:.3f}")
        inputs = {(m.partition(), m.offset()): int(m.value()) for m in self.kafka.records(self.source)}
        outputs = Outputs(PARTITIONS)
        for message in self.kafka.records(self.target):
            outputs.read(message.value())
        for hole in outputs.holes(self._committed()):
            holes[hole.split()[0]] = f"{hole}, for ever"
        facts = [fact for member in self._all for fact in _read(self.folder / f"{member.name}.jsonl")]
        crimes = self.verdict.crimes
        crimes["holes"].extend(holes.values())
        crimes["strangers"].extend(outputs.strangers(inputs))
        for member in self._all:
            with (self.folder / f"{member.name}.log").open() as log:
                crimes["complaints"].extend(f"{member.name}: {complaint}" for complaint in complaints(log))
        if not audits:
            crimes["auditor"].append((self.folder / "auditor.log").read_text() or "it never came to an end")
        self.figures.update(outputs.figures())
        if self.exactly_once and (duplicates := outputs.figures()["duplicates"]):
            crimes["duplicates"].append(f"{duplicates} outputs stand more than once")
        for member in self._all:
            log_text = (self.folder / f"{member.name}.log").read_text()
            self.figures["undecided"] += log_text.count("the end of a transaction")
            self.figures["transactions that failed"] += log_text.count("commit of")
        self.figures["inputs"] = len(inputs)
        self.figures["holes"] = len(holes)
        self.figures["audits"] = len(audits)
        self.figures["members"] = len(self._all)
        self.figures["sends that failed"] = sum(fact["kind"] == "refused" for fact in facts)

    # -- beside it

    @contextmanager
    def _producing(self, messages: int) -> Iterator[Callable[[], bool]]:
        dice = random.Random(self._dice.random())
        stop = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            produced = pool.submit(self._produce, messages, dice, stop)
            try:
                yield produced.done
            finally:
                stop.set()
                produced.result()

    def _produce(self, messages: int, dice: random.Random, stop: threading.Event) -> None:
        producer = Producer(
            {
                "bootstrap.servers": self.kafka.bootstrap_servers,
                "enable.idempotence": True,
                "message.timeout.ms": 0,  # never
                "linger.ms": 5,
                "log_level": 0,
            }
        )

        def acknowledged(error: KafkaError | None, message: Message) -> None:
            if error:
                self.verdict.crimes["inputs"].append(f"{message.value()} was refused: {error}")

        began, number = time.time(), 0
        while number < messages and not stop.wait(0.01):
            while number < min(messages, (time.time() - began) * PER_SECOND):
                partition = dice.randrange(PARTITIONS)
                producer.produce(self.source, str(number).encode(), partition=partition, on_delivery=acknowledged)
                number += 1
            producer.poll(0)
        if producer.flush(60):
            self.verdict.crimes["inputs"].append("not acknowledged in 60 s")

    @contextmanager
    def _auditing(self) -> Iterator[None]:
        environment = {**os.environ, "BROKERS": self.kafka.bootstrap_servers, **self._environment}
        arguments = [self.group, str(self.folder), self.source, self.target, str(PARTITIONS)]
        with (self.folder / "auditor.log").open("wb") as log:
            auditor = subprocess.Popen(
                [sys.executable, str(HERE / "auditor.py"), *arguments], env=environment, stderr=log
            )
            try:
                yield
                if auditor.poll() is not None:
                    self.verdict.crimes["auditor"].append((self.folder / "auditor.log").read_text())
            finally:
                auditor.kill()
                auditor.wait()

    def _say(self, text: str) -> None:
        with (self.folder / "driver.log").open("a") as log:
            log.write(f"{time.time():.3f} {text}\n")


def report(verdict: Verdict, seed: int) -> str:
    """One table, then the crimes."""
    lines = [f"seed {seed}"]
    lines += [f"  {name:24}{count:>8}" for name, count in sorted(verdict.figures.items())]
    for kind, cases in verdict.crimes.items():
        if cases:
            lines += [f"  {kind}: {len(cases)}", *(f"    {case}" for case in cases[:5])]
    return "\n".join(lines)


def guilty(verdict: Verdict) -> bool:
    return any(verdict.crimes.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=10_000)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=ALL_BUT_TRUSTING, help="ways to write a member")
    parser.add_argument("--exactly-once", action="store_true", help="and judged by what is committed")
    options = parser.parse_args()
    seed = random.randrange(10**6) if options.seed is None else options.seed
    folder = Path(tempfile.mkdtemp(prefix=f"forwarding-{seed}-"))
    print(f"seed {seed}, facts in {folder}", flush=True)
    with JavaKafka(nodes=options.nodes) as server:
        kafka = Observer(server.bootstrap_servers)
        run = Forwarding(
            kafka, server, list(server.nodes), folder, seed, options.kinds, exactly_once=options.exactly_once
        )
        verdict = run.run(options.messages)
        kafka.forget_clients()
    print(report(verdict, seed))
    return 1 if guilty(verdict) else 0


if __name__ == "__main__":
    sys.exit(main())
