"""Millions of events in random order against the runner's own code, without a thread or a socket.

    python tests/simulation/simulation.py --events 1000000 --seed 1

A *world* has one seed: a broker, up to three processes with members of one group, some thousand random events, then a
calm phase in which everything must come to its end. An event is that one thread goes on, from one point at which a
thread could be interrupted to another.

    steps.py              greenlets for threads, and the scheduler that chooses who goes on
    simulated_system.py   locks, conditions, queues and the clock, with points at which a thread may be interrupted
    simulated_client.py   in the place of kafka-python; simulated_broker.py: what it talks to
    simulated_runner.py   a process: the runner's own member, workers and ``serve``
    handlers.py           user code
    watch.py, ledger.py   what happened under the lock, and what must be true then
    parts.py              the same for parts of batches
    simulated_transactions.py, exact_handlers.py, exact.py   the same for ``exactly_once``
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal, NamedTuple

from ledger import Ledger, Violation, require
from simulated_broker import Broker
from simulated_client import SESSION_S
from simulated_runner import AppProcess, Life
from simulated_transactions import Producers
from steps import Scheduler, Signal
from watch import WatchedGroup, watched

from karafka_lite.core.backoff import Backoff
from karafka_lite.core.intake import BufferLimits
from karafka_lite.core.options import Hook
from karafka_lite.messages import TopicPartition

EVENTS_PER_WORLD = 3000
BACKLOG = 80  # logs do not grow without end
CALM_EVENTS = 60_000  # more than ever needed
CALM_SECONDS = 300.0
REMEMBERED = 60

# With coroutines, too.
ASYNC_SITUATIONS = ("a coroutine was cancelled", "a coroutine swallowed a cancellation")

# With exactly_once.
EXACT_SITUATIONS = (
    "a batch of exactly_once came again",
    "a dead letter left with its mark",
    "a dead letter of exactly_once left at once",
    "a future knew where its message is",
    "a hook has sent and marked",
    "a member was lost because nobody knew what it had committed",
    "a message of a transaction was refused",
    "a message of exactly_once was given up",
    "a message of exactly_once was given up by hand",
    "a message was refused, and the marks after it were void",
    "a part of a unit failed",
    "a run ended before its commit, as that took too long",
    "a run that waited for its commit was lost",
    "a run waited for its commit",
    "a stale transaction was refused by the broker",
    "a start waited for a transaction",
    "a sync mark was committed with what it released",
    "a transaction failed",
    "a transaction was committed",
    "a transaction was committed when its generation was over",
    "a transaction was committed when its ownership was over",
    "a transaction was committed, and nobody knew",
    "a transaction was left open",
    "a transaction was undecided",
    "a unit of several parts was committed",
    "an offset was committed without a message",
    "brokers aborted a transaction that nobody ended",
    "partitions shared a transaction",
    "parts of a unit ran side by side",
    "the end of a transaction came too late",
    "the end of a transaction came when nobody waited for it",
    "what was refused was not of the run that runs",
    "what was sent before a seek waited for the next mark",
)

# Every one of these has to be reached, else the simulation has gone blind.
SITUATIONS = (
    "a backward mark was committed",
    "a batch was put back",
    "a batch went before an every",
    "a client broke down",
    "a commit arrived late",
    "a commit arrived when its ownership was over",
    "a commit failed",
    "a commit was refused for some of its partitions",
    "a commit timed out but happened",
    "a fetch failed",
    "a hand-over",
    "a handler failed",
    "a handler failed during a drain",
    "a hook ran: before_revoke",
    "a hook ran: on_assigned",
    "a hook ran: on_revoked",
    "a hook ran: on_shutdown",
    "a hook was left out: before_revoke",
    "a hook was left out: on_shutdown",
    "a loop over each was left",
    "a loss during a drain",
    "a loss that turned back",
    "a loss while a handler ran",
    "a mark after a failed send was void",
    "a mark waited for a send",
    "a mark was refused",
    "a mark went backward",
    "a member crashed",
    "a member declared its own loss",
    "a member left with an on_revoked hook waiting",
    "a member started with leftovers",
    "a message that was given up counted as marked",
    "a message was given up",
    "a message was given up with others unmarked before it",
    "a culprit was given up, and the others stayed a batch",
    "a message was given up at once",
    "a failed send undid that a message was given up",
    "a message was given up by hand",
    "a message was tried by itself",
    "suspects were tried without a wait",
    "a batch of parts failed",
    "a hook marked what is not done",
    "a loop over each was left in a part",
    "a message was done out of order",
    "a message was given up in a part",
    "a part began during a drain",
    "a part could not send, and its marks were void",
    "a part failed by the fault of another",
    "a part gave a message up",
    "a part has sought",
    "parts ran one after the other",
    "parts ran side by side",
    "parts that nobody had begun were dropped",
    "several parts of a batch failed",
    "a partition was paused",
    "a partition was resumed",
    "a place that only the cluster knew was found",
    "a plan was dropped and made again",
    "a process was frozen",
    "a queue was full of bytes",
    "a queue was full of messages",
    "a replaced client reported",
    "a run failed by the fault of another",
    "a run waited for answers that did not come",
    "a send failed",
    "a send failed, and the marks after it were void",
    "many were sent at once",
    "messages were counted together",
    "a stale commit was refused by the broker",
    "a start at the end of the log was committed",
    "a start came for an earlier ownership",
    "a stop during a hand-over",
    "a stop during back-off",
    "a stop left a stuck handler behind",
    "a sync commit ended with a send that failed",
    "a sync commit ended with the ownership",
    "a sync commit timed out",
    "a sync commit was acknowledged",
    "a thread found the lock taken",
    "a topic refused its commits",
    "a topic refused its commits for good",
    "a worker came when its job had passed",
    "a worker died of a bug",
    "all topics were missing after the subscription",
    "an answer came after nothing waited for it",
    "an assignment came while stopping",
    "an every went before a batch",
    "an evicted member went on before it knew",
    "an ownership waited for its predecessor's handler",
    "every was called",
    "fetched records were dropped",
    "nobody waited for a commit that was refused for good",
    "on_assigned returned after the end",
    "on_assigned returned after the end had begun",
    "on_assigned was called again",
    "retention was faster",
    "retention was faster at a start",
    "retention was faster than a reader",
    "a topic was made anew",
    "a topic was made anew under a handler",
    "a topic was made anew with marks pending",
    "revoke while already ending by stop",
    "stop while already ending by revoke",
    "the broker evicted a silent member",
    "the client had to join again",
    "the drain bound was over while a handler ran (revoke)",
    "the drain bound was over while a handler ran (stop)",
    "the last commit was given up",
    "user code has paused",
    "user code has sought",
    "user code has sought while no batch ran",
    "what a hook could not send came again",
    "what on_assigned opened was closed without a batch",
)


class Settings(NamedTuple):
    """What one world is like."""

    reset: str
    drain_timeout_ms: int
    commit_interval_ms: int
    concurrency: int
    processes: int
    poll_records: int
    limits: BufferLimits  # of all queues of a member
    backward_marks: bool
    failing: float
    hanging: float
    sending: float
    poison: float  # of all messages: the handler fails at these again and again
    growth: float  # seconds between two times that a log grows
    unrest: float  # seconds between two acts of the world
    jumps: float  # how often time moves on although somebody could go on
    interrupts: float  # at which part of its points a thread is interrupted
    favourite: str  # threads with this in their name often go first
    bugs: float  # of batches: a bug of ours hits the worker
    broken: tuple[int, int, int] = (10, 10, 10)  # of transactions: refused, failed, ended badly; 100 are fine
    slow: float = 0.2  # requests of transactions take their time
    exactly_once: float = 0.0  # of topics: what they send leaves with their commits
    by_key: bool = False  # topics that are not manual may be in the order of their keys
    asynchronous: bool = False  # all handlers are coroutines
    refusing: int = 12  # in how many of a hundred sends
    max_messages: int | None = None  # of all topics

    @classmethod
    def drawn(cls, rng: random.Random) -> Settings:
        return cls(
            reset=rng.choice(["earliest", "earliest", "latest"]),
            drain_timeout_ms=rng.choice([1000, 5000, 20_000]),
            commit_interval_ms=rng.choice([200, 1000, 5000]),
            concurrency=rng.choice([1, 2, 4]),
            processes=rng.choice([1, 2, 2, 3]),
            poll_records=rng.choice([2, 5, 20]),
            limits=BufferLimits(rng.choice([5, 50, 1000]), rng.choice([20, 200, 10_000])),
            backward_marks=rng.random() < 0.35,
            failing=rng.choice([0.0, 0.1, 0.4]),
            hanging=rng.choice([0.0, 0.003, 0.02, 0.1]),
            sending=rng.choice([0.0, 0.1, 0.5]),
            poison=rng.choice([0.0, 0.05, 0.3, 0.6]),
            growth=rng.choice([0.1, 0.3, 1.0]),
            unrest=rng.choice([0.3, 1.0, 2.0, 5.0]),
            jumps=rng.choice([0.01, 0.05, 0.2]),
            interrupts=rng.choice([0.02, 0.1, 0.3, 0.8]),
            favourite=rng.choice(["", "", "answer", "committer", "poller", "worker"]),
            bugs=rng.choice([0.0, 0.0, 0.005]),
        )


class Policy(NamedTuple):
    """What a route is like."""

    manual_offsets: bool
    max_messages: int
    batch_timeout_ms: int
    backoff: Backoff
    hooks: tuple[tuple[Hook, int], ...]  # with the milliseconds of EVERY
    budget: int | None
    dead_letter: str | Literal[False] | None
    order: Literal["partition", "key"] = "partition"
    exactly_once: bool = False

    @property
    def tells_of_parts(self) -> bool:
        """The ledger counts parts that have failed."""
        return self.order == "key" and not self.exactly_once


def draw_policies(rng: random.Random) -> dict[str, Policy]:
    """One automatic topic, one manual, one that waits for full batches."""

    def policy(*, manual: bool, batch_timeout_ms: int = 0) -> Policy:
        backoff = Backoff(rng.choice([100, 1000]), rng.choice([1000, 8000]))
        kinds = [Hook.BEFORE_REVOKE, Hook.ON_REVOKED, Hook.ON_SHUTDOWN, Hook.BEFORE_REVOKE]
        chosen = rng.choice([kinds, kinds[:3], [], [kind for kind in kinds if rng.random() < 0.5]])
        every_ms = rng.choice([(), (), (400,), (50,), (3000, 700)])
        opening = rng.choice([0, 0, 1, 2]) * [Hook.ON_ASSIGNED]
        hooks = (*((kind, 0) for kind in [*opening, *chosen]), *((Hook.EVERY, ms) for ms in every_ms))
        budget = rng.choice([None, 1, 1, 2, 4])
        dead_letter = None if budget is None else rng.choice([False, "dead", "dead"])
        return Policy(manual, rng.choice([1, 3, 10]), batch_timeout_ms, backoff, hooks, budget, dead_letter)

    return {
        "auto": policy(manual=False),
        "manual": policy(manual=True),
        "patient": policy(manual=rng.random() < 0.5, batch_timeout_ms=rng.choice([50, 700, 3000])),
    }


class World(Scheduler):
    """One seed."""

    def __init__(self, seed: int, reached: Counter[str], **fixed: object) -> None:
        self.seed = seed
        self.reached = reached
        self.rng = rng = random.Random(seed)
        settings = Settings.drawn(rng)._replace(by_key=seed % 2 == 0, exactly_once=0.6 if seed % 3 == 0 else 0.0)
        self.settings = settings._replace(**fixed)  # type: ignore[arg-type]
        super().__init__(rng, self.settings.interrupts, self.settings.jumps, self._nobody_sleeps_too_long)
        self.favourite = self.settings.favourite
        self.policies = draw_policies(rng)
        if most := self.settings.max_messages:
            self.policies = {topic: policy._replace(max_messages=most) for topic, policy in self.policies.items()}
        if self.settings.by_key:
            self.policies |= {
                topic: policy._replace(order="key")
                for topic, policy in self.policies.items()
                if not policy.manual_offsets and (topic == "auto" or seed % 4)
            }
        if self.settings.exactly_once:
            dice = random.Random(f"exactly once {seed}")
            self.policies = {
                topic: policy._replace(exactly_once=dice.random() < self.settings.exactly_once)
                for topic, policy in self.policies.items()
            }
            kinds = [(0, 0, 0), (10, 10, 10), (70, 5, 5), (5, 70, 5), (5, 5, 70), (40, 40, 40)]
            drawn = {"broken": dice.choice(kinds), "slow": dice.choice([0.05, 0.2, 0.6])}
            self.settings = self.settings._replace(**{**drawn, **fixed})
        self.producers = Producers(self)
        self.calm = False
        self.group: Callable[..., Any] = WatchedGroup
        self.data_come = Signal()
        self.refused_until: dict[str, float] = {}  # topic -> until when its commits fail
        self.refused_for_good: dict[str, Any] = {}  # topic -> how, while they fail
        self.hidden_until: dict[str, float] = {}  # topic -> until when the metadata lack it
        if rng.random() < 0.3:
            self.hidden_until[rng.choice(list(self.policies))] = self.now + rng.choice([3.0, 60.0])
        tps: list[TopicPartition] = [(topic, n) for topic in self.policies for n in range(rng.choice([1, 2]))]
        self.broker = Broker(
            rng,
            tps,
            session_timeout=SESSION_S + rng.choice([0.0, 10.0]),
            rebalance_timeout=self.settings.drain_timeout_ms / 1000 + rng.choice([3.0, 10.0, 30.0]),
        )
        self.ledger = Ledger(
            self.broker, self.settings.reset, backward_marks=self.settings.backward_marks, reached=reached
        )
        self._said: deque[tuple[float, object, tuple[object, ...]]] = deque(maxlen=REMEMBERED)
        self._numbers = 0
        self.all_lives: list[Life] = []
        self._processes = [AppProcess(self.next_number()) for _ in range(self.settings.processes)]
        for log in self.broker.logs.values():
            log.grow(rng.choice([0, 3, 20]))

    def next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    def say(self, who: object, *words: object) -> None:
        self._said.append((self.now, who, words))

    # -- its course

    def run(self, events: int) -> None:
        """Raises Violation with the seed and the last events."""
        try:
            with watched(), self.ending(), self._nobody_rests():
                self._unrest(events)
                self._calm_down()
                self._stop_all()
        except Violation as violation:
            raise Violation(f"{violation}\n{self._said_last()}") from violation
        except Exception as error:
            raise Violation(f"no thread dies: {error!r}\n{self._said_last()}") from error

    @contextmanager
    def _nobody_rests(self) -> Iterator[None]:
        """At the end calls that rest are closed."""
        try:
            yield
        finally:
            self.over = True
            for life in self.all_lives:
                self.rested.update(coroutine for _, coroutine in life.member._resting.values())
            for coroutine in list(self.rested):
                with suppress(BaseException):
                    coroutine.close()

    def _unrest(self, events: int) -> None:
        self.spawn(None, "coordinator", self._coordinator)
        self.spawn(None, "growth", self._growth)
        acts = self.spawn(None, "acts", self._acts)
        for process in self._processes:
            Life(self, process, ())
        while self.events < events:
            self.step()
        self.threads.remove(acts)

    def _calm_down(self) -> None:
        """Nothing fails any more, nobody hangs, somebody is there: everything has to be processed and committed."""
        self.calm = True
        self.calm_down()
        self.say("world", "is calm")
        self.refused_until.clear()
        self.hidden_until.clear()
        for process in self._processes:
            process.frozen_until = min(process.frozen_until, self.now)
        for life in self._lives():
            life.client.link_down_until = self.now
        for thread in self.threads:
            if thread.name.endswith("answer") or ("worker" in thread.name and thread.signal is None):
                thread.wake = self.now
        for log in self.broker.logs.values():
            log.grow(2)
        self._until("everything is processed and committed", self._all_done, revive=True)

    def _stop_all(self) -> None:
        for life in self._lives():
            life.ask_to_stop()
        self._until("every member stops", lambda: not self._lives())
        self._until("every worker ends", lambda: not any("worker" in thread.name for thread in self.threads))
        for life in [life for process in self._processes for life in process.lives]:
            life.check_bugs()
        self.ledger.check_promises({life for process in self._processes for life in process.lives})
        require(not (waiting := self.ledger.hooks_waiting()), "every hook that was due has run", *waiting)
        require(not (left := self._unprocessed()), "what was committed stays committed", *left)

    def _until(self, goal: str, reached: Callable[[], bool], *, revive: bool = False) -> None:
        events, began = self.events, self.now
        while not reached():
            self.step()
            if revive and not self._lives():
                self._start_one()
            if self.events - events > CALM_EVENTS or self.now - began > CALM_SECONDS:
                require(False, f"nothing is stuck: {goal}", *self._unprocessed(), *map(_possessions, self._lives()))

    def _all_done(self) -> bool:
        return not self.broker.rebalancing and all(life.idle for life in self._lives()) and not self._unprocessed()

    def _unprocessed(self) -> list[str]:
        """Partitions whose last message is not committed."""
        committed = self.ledger.committed
        return [
            f"{place} ends with {log.last}, committed is {committed.get(place)}"
            for place, log in self.broker.logs.items()
            if log.last is not None and committed.get(place, 0) <= log.last
        ]

    def _lives(self) -> list[Life]:
        return [process.life for process in self._processes if process.life and not process.life.is_over]

    def _nobody_sleeps_too_long(self) -> None:
        for life in self._lives():
            if life.process.frozen_until <= self.now and (why := life.sleeps_too_long()):
                require(False, "nothing waits longer than wake_at and changed promise", life, why)

    # -- what happens in the world

    def _coordinator(self) -> None:
        while True:
            self.pause(self.now + 0.5)
            self.reached["the broker evicted a silent member"] += self.broker.tick(self.now)
            self.producers.expire(self.now)

    def _acts(self) -> None:
        """Some kinds of trouble are left out, so that others go on undisturbed."""
        trouble = [
            *(self._evict, self._cut_link, self._freeze, self._refuse, self._break),
            *(self._stop_one, self._crash, self._hide, self._ask_for_positions, self._delete_old, self._remake),
        ]
        acts = [self._start_one, self._rebalance, *trouble]
        weights = [5, self.rng.choice([1, 5, 10]), *(self.rng.choice([0, 0, 1, 3]) for _ in trouble)]
        while True:
            self.pause(self.now + self.rng.expovariate(1 / self.settings.unrest))
            self.rng.choices(acts, weights)[0]()

    def _growth(self) -> None:
        while not self.calm:
            self.pause(self.now + self.rng.expovariate(1 / self.settings.growth))
            if not self.calm:
                self._grow()

    def _grow(self) -> None:
        tp = self.rng.choice(list(self.broker.logs))
        log = self.broker.logs[tp]
        if log.end - self.broker.committed.get(tp, log.start) < BACKLOG:
            log.grow(self.rng.choice([1, 1, 3, 10, 20]))
            self.data_come.wake_all(self.now)

    def _rebalance(self) -> None:
        if self.broker.sessions:
            self.say("world", "rebalance")
            self.broker.rebalance(self.now)

    def _evict(self) -> None:
        if self.broker.sessions:
            session = self.rng.choice(list(self.broker.sessions))
            self.say("world", "evicts", session)
            self.broker.evict(session, self.now)

    def _cut_link(self) -> None:
        if lives := self._lives():
            life = self.rng.choice(lives)
            life.client.link_down_until = self.now + self.rng.choice([0.5, 4.0, 8.0, 15.0])
            self.say(life, "link is down until", life.client.link_down_until)

    def _freeze(self) -> None:
        process = self.rng.choice(self._processes)
        process.frozen_until = self.now + self.rng.choice([1.0, 5.0, 7.0, 20.0])
        self.reached["a process was frozen"] += 1
        self.say(str(process), "frozen until", process.frozen_until)

    def _break(self) -> None:
        if lives := self._lives():
            life = self.rng.choice(lives)
            life.client.broken = True
            self.say(life, "client breaks")

    def _hide(self) -> None:
        """The metadata lack a topic, or all of them, for a while."""
        for topic in self.policies if self.rng.random() < 0.5 else [self.rng.choice(list(self.policies))]:
            until = self.now + self.rng.choice([1.0, 3.0, 10.0])
            self.hidden_until[topic] = max(self.hidden_until.get(topic, 0.0), until)
        self.say("world", "hides", *self.hidden_until)

    def _ask_for_positions(self) -> None:
        for life in self._lives():
            life.member.positions_wanted = True

    def _refuse(self) -> None:
        topic = self.rng.choice(list(self.policies))
        self.refused_until[topic] = self.now + self.rng.choice([1.0, 5.0, 20.0])
        self.refused_for_good[topic] = self.rng.choice([None, "gone", "denied"])
        self.say("world", "refuses commits of", topic, self.refused_for_good[topic])

    def _delete_old(self) -> None:
        """Retention, which does not ask what is processed."""
        tp = self.rng.choice(list(self.broker.logs))
        log = self.broker.logs[tp]
        log.delete_before(self.rng.randint(log.start, log.end))
        self.ledger.deleted(tp)
        self.say("world", "deletes", tp, "before", log.start)

    def _remake(self) -> None:
        topic = self.rng.choice(list(self.policies))
        self.broker.remake(topic, self.next_number())
        self.ledger.remade(topic)
        self.say("world", "makes anew", topic)

    def _stop_one(self) -> None:
        if lives := self._lives():
            life = self.rng.choice(lives)
            life.ask_to_stop()
            if self.rng.random() < 0.5:
                self.spawn(None, "restart", lambda: self._start_again(life.process))

    def _start_again(self, process: AppProcess) -> None:
        while process in self._processes and process.life and not process.life.is_over:
            self.pause(self.now + 0.1)
        if process in self._processes and not self.calm:
            self._start(process)

    def _crash(self) -> None:
        """Without a word; the coordinator waits for its heartbeats."""
        index = self.rng.randrange(len(self._processes))
        process = self._processes[index]
        self.say(str(process), "crashes")
        self.reached["a member crashed"] += process.life is not None
        self.kill(process)
        self.ledger.crashed(process)
        self._processes[index] = AppProcess(self.next_number())

    def _start_one(self) -> None:
        self._start(self.rng.choice(self._processes))

    def _start(self, process: AppProcess) -> None:
        if process.life is None or process.life.is_over:
            leftovers = list(process.life.member.group.leftovers.values()) if process.life else []
            self.reached["a member started with leftovers"] += bool(leftovers)
            Life(self, process, leftovers)

    def _said_last(self) -> str:
        lines = [f"{when:10.3f}  {who!s:6} {' '.join(map(str, words))}" for when, who, words in self._said]
        what = f"seed {self.seed}, {self.events} events, {self.settings}, {self.policies}"
        return "\n".join([what, f"the last {len(lines)} of what was said:", *lines])


def _possessions(life: Life) -> str:
    member, inside = life.member, [str(run) for run in life.process.inside.values()]
    group = member.group
    return f"{life} has {list(group.owned.values())}, {list(group.leftovers.values())} left, runs {inside}"


class Report(NamedTuple):
    """What a simulation did."""

    worlds: int
    events: int
    seconds: float
    reached: Counter[str]

    def __str__(self) -> str:
        rate = self.events / max(self.seconds, 0.001)
        head = f"{self.events:,} events in {self.worlds} worlds, {self.seconds:.1f} s, {rate:,.0f} events/s"
        return "\n".join([head, *(f"{self.reached[name]:>9,}  {name}" for name in SITUATIONS + EXACT_SITUATIONS)])

    @property
    def missed(self) -> list[str]:
        return [name for name in SITUATIONS if not self.reached[name]]


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings, of which each world has hundreds; the tests that come next in this process look for theirs.

    And none of calls that were about to rest when their world ended: they are closed when they are collected.
    """
    log = logging.getLogger("karafka_lite")
    level, hook = log.level, sys.unraisablehook
    log.setLevel(logging.ERROR)
    sys.unraisablehook = lambda _: None
    try:
        yield
    finally:
        log.setLevel(level)
        sys.unraisablehook = hook


def simulate(first_seed: int, events: int, **fixed: object) -> Report:
    """Worlds from ``first_seed`` on until ``events`` have happened; ``fixed`` settings are the same in all of them."""
    began = time.perf_counter()
    reached: Counter[str] = Counter()
    happened = worlds = 0
    with quiet():
        while happened < events:
            world = World(first_seed + worlds, reached, **fixed)
            world.run(EVENTS_PER_WORLD)
            happened += world.events
            worlds += 1
    return Report(worlds, happened, time.perf_counter() - began, reached)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    print(simulate(given.seed, given.events))
