"""A process of the app: the runner's own threads and steps, with a simulated system, client and outbox."""

from __future__ import annotations

import traceback
from collections.abc import Collection, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from exact_handlers import ExactHandlers
from handlers import EXPECTED, Bug
from ledger import EPSILON, Books, require, violated
from simulated_client import SimulatedClient
from simulated_loop import SimulatedStaff
from simulated_system import SimulatedQueue, SimulatedSystem
from steps import Process

from karafka_lite import events
from karafka_lite.core.options import Hook
from karafka_lite.core.ownership import Ownership, Run
from karafka_lite.core.sends import Told
from karafka_lite.errors import ClientBrokenError, Exit, ProduceError
from karafka_lite.messages import Addressed, TopicPartition
from karafka_lite.runner import Member, Runner
from karafka_lite.settings import Config
from karafka_lite.testing.cluster import together

if TYPE_CHECKING:
    from simulation import World

    from karafka_lite.core.intake import BufferLimits

GROUP = "g"
ANSWER_TIMEOUT_S = 2.0
MAX_POLL_INTERVAL_MS = 30_000


class AppProcess(Process):
    """What outlives a run of the app in its process: the handlers that it left behind."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.inside: dict[TopicPartition, Run] = {}  # the user code that runs, of any ownership
        self.lives: list[Life] = []

    @property
    def life(self) -> Life | None:
        """The one that goes on, or the last one."""
        return self.lives[-1] if self.lives else None

    def __str__(self) -> str:
        return f"p{self.number}"


class Life(Runner):
    """One run of the app: the runner's own, but for what it is made of."""

    def __init__(self, world: World, process: AppProcess, leftovers: Collection[Ownership]) -> None:
        settings = world.settings
        self.world, self.process = world, process
        self.name = f"{process}.{world.next_number()}"
        self.drain_s = settings.drain_timeout_ms / 1000
        self.commit_interval_s = settings.commit_interval_ms / 1000
        self.limits: BufferLimits = settings.limits
        self.books = Books(self)
        self.handlers = ExactHandlers(self)
        self.bugs_met = False
        self.bugs = 0  # that the world has put into our code
        self.untold = 0  # parts that have failed, of which no event has told
        config = Config(
            GROUP,
            ["simulated:9092"],
            settings.concurrency,
            settings.commit_interval_ms,
            settings.drain_timeout_ms,
            {"max_poll_interval_ms": MAX_POLL_INTERVAL_MS},
        )
        system = SimulatedSystem(world, process, self._compare)
        with ExitStack() as stack:
            for name, made in {
                "runner.System": lambda: system,
                "runner.Group": partial(world.group, self),
                "client.outbox.Outbox": lambda *_: SimulatedOutbox(self),
                "runner.queue.SimpleQueue": lambda: SimulatedQueue(world),
                "runner.threading.Event": system.event,
            }.items():
                stack.enter_context(patch(f"karafka_lite.{name}", made))
            if settings.asynchronous:
                stack.enter_context(patch("karafka_lite.runner.Staff", partial(SimulatedStaff, self)))
            router: Any = SimpleNamespace(groups={GROUP: self.handlers.routes}, process_hooks=())
            observed: Any = Observed(self)
            left = {GROUP: list(leftovers)}
            super().__init__(config, config.bootstrap_servers, router, observed, left, lambda end: None)
        process.lives.append(self)
        world.all_lives.append(self)
        self.start()
        self._main.start()

    @property
    def member(self) -> Member:
        return self.members[0]

    @property
    def client(self) -> SimulatedClient:
        client: SimulatedClient = self.member._client  # type: ignore[assignment]
        return client

    @property
    def is_over(self) -> bool:
        return not self._main.is_alive()

    @property
    def idle(self) -> bool:
        """No user code runs or waits, and all that was stored is on the broker."""
        acked = all(o.acked and not o.opening for o in self.books.open.values())
        runs = any(run.hook is not Hook.EVERY for run in self.process.inside.values())
        return acked and not runs and not self.member.group.leftovers and not self.client.joining

    def sleeps_too_long(self) -> str | None:
        """Why the committer, which is the group's clock, should get up earlier."""
        thread = self.member._committer
        if thread.signal is not self.member._changed.signal or thread.wake <= self.world.now:
            return None
        due, why = self.books.due()
        wake = self.books.wake_at  # it sleeps longer by as much as it was interrupted before it slept
        if wake > max(due, self.world.now) + EPSILON:
            return f"{why} is due at {due:.3f}, the committer sleeps until {wake:.3f}"
        return None

    def __str__(self) -> str:
        return self.name

    def _compare(self) -> None:
        self.books.found_nothing = False
        self.world.ledger.compare(self, self.world.now)

    # -- events

    def observe(self, event: events.Event) -> None:
        world = self.world
        if world.over:
            return
        world.reached[f"event: {type(event).__name__}"] += 1
        if isinstance(event, events.Crashed):
            self._died(event)
        elif isinstance(event, events.ClientFailed):
            self.world.reached["a client broke down"] += 1
            if not isinstance(event.error, ClientBrokenError):
                violated("a client fails of what the world did to it", _trace(event.error))
        elif isinstance(event, events.Lost):
            lost = self.books.lost_partitions
            for tp in event.partitions:
                require(lost[tp] > 0, "a loss is reported once", self, tp)
                lost[tp] -= 1
        elif isinstance(event, events.CallEnded) and not isinstance(event.error, EXPECTED):
            violated("user code fails of what it did", _trace(event.error))
        elif isinstance(event, events.CallEnded) and world.policies[event.topic].tells_of_parts:
            self.untold -= event.hook is None and event.error is not None and event.given_up is None

    def _died(self, event: events.Crashed) -> None:
        if self.bugs and isinstance(event.error, Bug):
            self.bugs -= 1
            self.bugs_met = True
            self.world.reached["a worker died of a bug"] += 1
        else:
            violated("no thread dies", self, event.thread, _trace(event.error))

    def check_bugs(self) -> None:
        """When its threads have ended."""
        require(not self.bugs, "a bug in a worker ends the app", self)

    def serve(self) -> Exit:
        code = super().serve()
        self.world.say(self, "ends with", code)
        missed = {tp: count for tp, count in self.books.lost_partitions.items() if count}
        require(not missed, "a loss is reported", self, missed)
        told = not self.untold or bool(self.member.group.leftovers) or self.bugs_met
        require(told, "of each part that failed is told", self, self.untold)
        return code


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


class Observed:
    """Events are delivered where they are emitted."""

    def __init__(self, life: Life) -> None:
        self.life = life

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def emit(self, event: events.Event) -> None:
        self.life.observe(event)


def make_client(_group_id: str, _servers: object, _settings: object, member: Member, emit: Any) -> SimulatedClient:
    """In the place of ``consumer.Client``."""
    return SimulatedClient(emit.__self__.life, member)


class SimulatedBatch:
    """Messages that get their answers together."""

    def __init__(self, told: Told | None) -> None:
        self.told, self.answered = told, False
        self.futures: list[Future[tuple[int, int]]] = []

    def answer(self, failure: ProduceError | None) -> None:
        if self.answered:
            return
        self.answered = True
        for future in self.futures:
            future.set_exception(failure) if failure else future.set_result((0, 0))
        if self.told is not None:
            self.told(len(self.futures), failure)


class SimulatedOutbox:
    """Messages leave, and answers come some time, or never."""

    answer_timeout_s = ANSWER_TIMEOUT_S

    def __init__(self, life: Life) -> None:
        self._life = life
        self._world = life.world
        self._is_blind = self._world.rng.random() < 0.5  # ``check`` sees nothing
        self._silence = self._world.rng.choice([0, 3, 20])  # in how many of a hundred sends
        self._batch: SimulatedBatch | None = None  # the last one
        self._silent: list[tuple[float, SimulatedBatch]] = []  # the moment of sending

    def send(self, message: Addressed, told: Told | None = None) -> Future[tuple[int, int]]:
        self._begin_to_send(1)
        return self._put(told, message)

    send_soon = send

    def send_many(self, messages: Sequence[Addressed], told: Told | None = None) -> Future[list[tuple[int, int]]]:
        self._begin_to_send(len(messages))
        return together([self._put(told, message) for message in messages])

    def _begin_to_send(self, count: int) -> None:
        self._world.point()
        self._world.say(self._life, "sends", count)
        if not self._world.calm and self._world.rng.random() < 0.02:
            raise TypeError("this cannot be a message")

    def _put(self, told: Told | None, message: Addressed) -> Future[tuple[int, int]]:
        world, rng, batch = self._world, self._world.rng, self._batch
        if batch is None or batch.answered or batch.told is not told or rng.random() < 0.5:
            batch = self._batch = SimulatedBatch(told)
            self._leave(batch)
        future: Future[tuple[int, int]] = Future()
        future.add_done_callback(lambda done: done.exception() or world.ledger.left_at_once(world, message))
        batch.futures.append(future)
        world.point()
        return future

    def _leave(self, batch: SimulatedBatch) -> None:
        world, rng = self._world, self._world.rng
        refusing = world.settings.refusing
        weights = [100 - refusing, refusing, self._silence]
        fate = "fine" if world.calm else rng.choices(["fine", "refused", "silent"], weights)[0]
        delay = 0.0 if world.calm else rng.choice([0.0, 0.0, 0.01, 0.3, 6.0])
        if fate == "silent":
            self._silent.append((world.now, batch))
            delay = ANSWER_TIMEOUT_S + rng.choice([0.0, 5.1, 6.0, 9.0])  # if nobody asks, it comes late
        refused = fate == "refused" or (fate == "silent" and rng.random() < 0.5)
        failure = ProduceError("refused") if refused else None
        if failure is not None and rng.random() < 0.3:
            failure.collateral = True  # it was another message that was refused
        world.spawn(self._life.process, f"{self._life} answer", lambda: self._answer(batch, delay, failure))

    def _answer(self, batch: SimulatedBatch, delay: float, failure: ProduceError | None) -> None:
        self._world.pause(self._world.now + delay)
        batch.answer(failure)

    def hand_over(self) -> None:
        """What waits leaves; answers may come meanwhile."""
        self._batch = None
        if self._world.rng.random() < self._world.settings.sending / 2:
            self._world.pause(self._world.now + 0.01)
        else:
            self._world.point()

    def check(self) -> None:
        if self._silent and not self._is_blind:
            overdue = [one for one in self._silent if one[0] + ANSWER_TIMEOUT_S <= self._world.now]
            self._silent = [one for one in self._silent if one not in overdue]
            for _, batch in overdue:
                batch.answer(ProduceError("no answer"))
        self._world.point()

    def close(self) -> None:
        self._world.point()
