"""What happens to brokers, to the network and to topics while members work. Each kind in a thread of its own."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

from network import FAULTS, ProxiedKafka
from support.kafka_server import JavaKafka

if TYPE_CHECKING:
    from chaos import Chaos

# One thing at a time for brokers and topics: what a cluster makes of an order that it has half heard is not asked here.
CALM = threading.Lock()


class Disaster:
    """Strikes again and again, until the run is over."""

    every_s: ClassVar[tuple[float, float]]

    def __init__(self, chaos: Chaos, dice: random.Random) -> None:
        self.chaos, self.dice = chaos, dice
        self.over = threading.Event()
        self.count = 0
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"chaos-{type(self).__name__}")

    @contextmanager
    def raging(self) -> Iterator[None]:
        """After the block everything is whole again."""
        self._thread.start()
        try:
            yield
        finally:
            self.over.set()
            self._thread.join()
        if self.error:
            raise self.error

    def _run(self) -> None:
        try:
            while not self.over.wait(self.dice.uniform(*self.every_s)):
                self.count += 1
                self.strike()
        except BaseException as error:  # noqa: BLE001 - raised by ``raging``
            self.error = error

    def strike(self) -> None:
        raise NotImplementedError


class Brokers(Disaster):
    """A broker is killed, hangs or is stopped; each third time the coordinator's, each seventh time all of them."""

    every_s = (2, 7)
    outage_s = 20.0

    def strike(self) -> None:
        with CALM:
            server, dice = self.chaos.server, self.dice
            nodes = list(server.nodes) if isinstance(server, JavaKafka) else [1]
            how = dice.choice(["kill", "kill", "pause", "stop"])
            victims, seconds = [dice.choice(nodes)], dice.uniform(1, 7)
            if len(nodes) > 1 and self.count % 7 == 0:
                victims, seconds = nodes, self.outage_s
                how = "kill"  # in good order the last ones would wait for their quorum
            elif len(nodes) > 1 and self.count % 3 == 0:
                victims = [self.chaos.kafka.coordinator(self.chaos.group)]
            with self.chaos.broken(f"broker {how}s", len(victims), f"brokers {victims}: {how} for {seconds:.1f} s"):
                for node in victims:
                    getattr(server, how)(node)
                self.over.wait(seconds)
                if isinstance(server, JavaKafka):
                    server.heal()
                elif how == "pause":
                    server.resume()
                else:
                    server.restart()


class Weather(Disaster):
    """The way between the members and one broker, or all of them, is spoilt for a while."""

    every_s = (0.5, 2)

    def strike(self) -> None:
        server = self.chaos.server
        assert isinstance(server, ProxiedKafka)
        fault, nodes = list(FAULTS)[self.count % len(FAULTS)], list(server.nodes)
        if len(nodes) > 1 and self.dice.random() < 0.7:
            nodes = [self.dice.choice(nodes)]
        session_s = self.chaos.script.session_s
        seconds = 0.0 if fault == "cut" else self.dice.choice([1, 1, 3, session_s + 2])
        with self.chaos.broken(f"network: {fault}", 1, f"network to {nodes}: {fault} for {seconds:.1f} s"):
            for node in nodes:
                server.network.spoil(node, fault)
            self.over.wait(seconds)
            for node in nodes:
                server.network.heal(node)


class TopicLife(Disaster):
    """A topic is deleted and made anew, grows, or its oldest messages are deleted faster than they are read."""

    every_s = (4, 8)

    def strike(self) -> None:
        with CALM:
            act = self.dice.choice(["anew", "anew", "grow", "truncate"])
            if act == "grow":
                self.chaos.grow()
            elif act == "truncate":
                self.chaos.truncate()
            else:
                self.chaos.make_anew(after_s=self.dice.choice([0.0, 0.5, 3.0]), over=self.over)
