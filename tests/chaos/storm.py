"""Many threads that send through one Outbox in every way, while all around it changes; and a judge of the answers.

    python tests/chaos/storm.py --seconds 60 --broker apache --seed 7

Callers send one by one and many at once, wait for answers or let them go, and some of their messages are refused, which
an idempotent producer dies of. Meanwhile brokers freeze, the sender thread stalls, metadata is thrown away, partitions
are added, others ask ``check``. A seed chooses what happens; when it happens, the machine does. In the end:

    every future has an answer, and each callback was called once
    who is told of answers is told of each message, once
    what is acknowledged is there, once, where its future says, in the order of its caller; nothing is there twice
    no producer has anything on its way
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, as_completed, wait
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from support.observer import BreakableKafka, wait_until

from karafka_lite.client.outbox import Outbox
from karafka_lite.client.producer import Producer
from karafka_lite.errors import ProduceError
from karafka_lite.messages import Addressed

WINDOW_BYTES = 200_000  # small, so that callers wait for room
SMALL_BYTES = 3000  # what the topic of small batches takes
SETTINGS: dict[str, Any] = {"request_timeout_ms": 1000, "delivery_timeout_ms": 3000, "max_block_ms": 5000}


class Caller:
    """One thread that sends; it remembers each message with its future."""

    def __init__(self, storm: Storm, number: int) -> None:
        self.storm, self.number = storm, number
        self.dice = random.Random(f"{storm.seed} {number}")
        self.sent: list[tuple[list[Addressed], Future[Any]]] = []
        self.told: Counter[bool] = Counter()
        self.called: Counter[int] = Counter()
        self.error: BaseException | None = None
        self._number = 0
        self._lock = threading.Lock()
        self.thread = threading.Thread(target=self._live, name=f"caller-{number}")

    def tell(self, count: int, failure: BaseException | None) -> None:
        with self._lock:
            self.told[failure is None] += count

    def _live(self) -> None:
        try:
            while not self.storm.over.is_set():
                self._do(self.dice.random())
        except BaseException as error:  # noqa: BLE001 - a thread's error is for the judge
            self.error = error

    def _do(self, chance: float) -> None:
        dice, outbox = self.dice, self.storm.outbox
        many = [self._message() for _ in range(dice.choice([1, 1, 5, 40]))]
        if chance < 0.2:
            self._remember(many, outbox.send_many(many, self.tell))
        else:
            for message in many:
                self._remember([message], outbox.send(message, self.tell))
        last = [future for _, future in self.sent[-30:]]
        if chance < 0.25:
            dice.choice(last).exception()
        elif chance < 0.3:
            wait(last, 1)
        elif chance < 0.35:
            for future in as_completed(last, 30):
                future.exception(0)
        elif chance < 0.6:
            outbox.hand_over()
        elif chance < 0.65:
            outbox.check()
        elif chance < 0.7:
            self.storm.over.wait(dice.random() / 10)

    def _message(self) -> Addressed:
        dice, storm = self.dice, self.storm
        self._number += 1
        value = f"{self.number} {self._number} ".encode() + b"x" * dice.choice([0, 10, 300, 900])
        topic = dice.choice([storm.plain, storm.plain, storm.small])
        if topic == storm.small and dice.random() < storm.refused:
            value += b"x" * SMALL_BYTES
        key = dice.choice([None, b"%d" % dice.randrange(20)])
        partition = dice.choice([None, None, dice.randrange(2)])
        headers = dice.choice([None, None, [("h", b"1")]])
        return Addressed(topic, value, key, headers, partition)

    def _remember(self, messages: list[Addressed], future: Future[Any]) -> None:
        index = len(self.sent)
        self.sent.append((messages, future))
        if self.dice.random() < 0.1:
            future.add_done_callback(lambda _: self.called.update([index]))
            self.called[index] += 0


class Storm:
    """Callers and disasters for some seconds, and then the verdict."""

    def __init__(self, kafka: BreakableKafka, seed: int, nodes: Sequence[int] = ()) -> None:
        self.kafka, self.seed, self.nodes = kafka, seed, nodes
        self.dice = random.Random(seed)
        self.refused = self.dice.choice([0.0, 0.002])  # part of the messages for the topic of small batches
        self.plain, self.small = kafka.topic(3), kafka.topic(2, max_message_bytes=SMALL_BYTES)
        self.over = threading.Event()
        self.producers: list[Producer] = []
        self.happened: Counter[str] = Counter()
        settings = {
            **SETTINGS,
            "linger_ms": self.dice.choice([1, 5, 50]),
            "batch_size": self.dice.choice([2000, 20_000, 256 << 10]),
            "compression_type": self.dice.choice([None, "gzip"]),
        }
        self.outbox = Outbox(kafka.bootstrap_servers.split(","), settings)
        new = self.outbox._new

        def remembered() -> Producer:
            self.producers.append(new())
            return self.producers[-1]

        self.outbox._new = remembered  # type: ignore[assignment]
        self.callers = [Caller(self, number) for number in range(5)]

    def run(self, seconds: float) -> list[str]:
        """Returns what is wrong."""
        with patch("karafka_lite.client.producer.WINDOW_BYTES", WINDOW_BYTES):
            for caller in self.callers:
                caller.thread.start()
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                self.over.wait(self.dice.random() / 5)
                small = [self._stall, self._forget, self._grow, self._ask, self._ask]
                disaster = self.dice.choice([self._freeze, *small, *[self._restart][: len(self.nodes)]])
                disaster()
                self.happened[disaster.__name__] += 1
            if self.dice.random() < 0.3:
                self.outbox.close()  # in the middle of it all
                self.happened["closed early"] += 1
            self.over.set()
            for caller in self.callers:
                caller.thread.join(60)
            try:
                wait_until(self._has_ended, 30, "every future has an answer")
            except AssertionError as error:
                return [str(error)]
            finally:
                self.outbox.close()
        return list(self._complaints())

    def _has_ended(self) -> bool:
        self.outbox.hand_over()
        self.outbox.check()
        return all(future.done() for caller in self.callers for _, future in caller.sent)

    # -- disasters

    def _freeze(self) -> None:
        self.kafka.pause()
        self.over.wait(self.dice.choice([0.05, 0.2, 0.6] if self.dice.random() < 0.9 else [2.0, 5.0]))
        self.kafka.resume()

    def _restart(self) -> None:
        node = self.dice.choice(self.nodes)
        if self.dice.random() < 0.5:
            self.kafka.stop(node)
        else:
            self.kafka.kill(node)
        self.over.wait(self.dice.random() * 2)
        self.kafka.restart(node)
        self.kafka.server.wait_until_ready()

    def _stall(self) -> None:
        producer = self.outbox._producer
        if producer is None or producer._producer is None:
            return
        sender = producer._producer._sender
        stock, length = sender.run_once, self.dice.choice([0.02, 0.3])

        def slow() -> None:
            sender.run_once = stock
            time.sleep(length)
            stock()

        sender.run_once = slow

    def _forget(self) -> None:
        if (producer := self.outbox._producer) is not None and producer._producer is not None:
            producer._producer._metadata.request_update()

    def _grow(self) -> None:
        if self.happened["_grow"] == 3:
            self.kafka.grow(self.plain, 5)

    def _ask(self) -> None:
        self.outbox.check()
        for _ in range(20):
            caller = self.dice.choice(self.callers)
            if caller.sent:
                repr(self.dice.choice(caller.sent)[1])

    # -- the verdict

    def _complaints(self) -> Iterator[str]:
        records = {topic: self.kafka.records(topic) for topic in (self.plain, self.small)}
        at = {(topic, r.partition(), r.offset()): r.value() for topic, found in records.items() for r in found}
        for value, count in Counter(at.values()).items():
            if count > 1:
                yield f"{value!r:.40} is there {count} times"
        there = set(at.values())
        for producer in self.producers:
            if producer._unanswered or producer._weight:
                yield f"a producer still has {len(producer._unanswered)} batches, {producer._weight} bytes on their way"
        for caller in self.callers:
            yield from self._complaints_of(caller, at, there)

    def _complaints_of(self, caller: Caller, at: dict[Any, Any], there: set[Any]) -> Iterator[str]:
        if caller.error is not None or caller.thread.is_alive():
            yield f"caller {caller.number} ended with {caller.error!r}"
        count = sum(len(messages) for messages, _ in caller.sent)
        if caller.told.total() != count:
            yield f"caller {caller.number} sent {count} and was told of {caller.told}"
        if wrong := [index for index, times in caller.called.items() if times != 1]:
            yield f"callbacks {wrong[:9]} of caller {caller.number} were not called once"
        last: dict[tuple[str, int], int] = {}
        for messages, future in caller.sent:
            error = future.exception(0)
            if error is not None:
                self.happened["failed"] += len(messages)
                if not isinstance(error, ProduceError):
                    yield f"{error!r} is no ProduceError"
                continue
            self.happened["acknowledged"] += len(messages)
            places = future.result(0) if isinstance(future.result(0), list) else [future.result(0)]
            if len(places) != len(messages):
                yield f"{len(messages)} messages have {len(places)} places"
            for message, (partition, offset) in zip(messages, places, strict=False):
                place = message.topic, partition, offset
                if message.value not in there:
                    yield f"{message.value!r:.40} is acknowledged, and is not there"
                elif offset >= 0 and at.get(place) != message.value:
                    yield f"{message.value!r:.40} is not at {place}"
                elif 0 <= offset <= last.get(place[:2], -1):
                    yield f"{message.value!r:.40} is before an earlier one at {place}"
                last[place[:2]] = max(offset, last.get(place[:2], -1))

    def report(self) -> str:
        figures = ", ".join(f"{name.strip('_')} {count}" for name, count in sorted(self.happened.items()))
        return f"seed {self.seed}: {len(self.producers)} producers, {figures}"


@contextmanager
def started(broker: str, nodes: int) -> Iterator[BreakableKafka]:
    from support.embedded_kafka import EmbeddedKafka
    from support.kafka_server import JavaKafka

    make: Callable[[], Any] = EmbeddedKafka if broker == "embedded" else partial(JavaKafka, nodes=nodes)
    with make() as server:
        kafka = BreakableKafka(server)
        yield kafka
        kafka.forget_clients()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rounds", type=int, default=1, help="of so many seconds, each with the next seed")
    parser.add_argument("--broker", choices=["embedded", "apache"], default="embedded")
    parser.add_argument("--nodes", type=int, default=0, help="of Apache Kafka, which are stopped and killed meanwhile")
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    first = random.randrange(10**6) if options.seed is None else options.seed
    logging.disable(logging.CRITICAL)
    guilty = False
    with started(options.broker, options.nodes or 1) as kafka:
        for seed in range(first, first + options.rounds):
            storm = Storm(kafka, seed, range(1, options.nodes + 1))
            complaints = storm.run(options.seconds)
            print(storm.report(), *complaints[:20], sep="\n  ", flush=True)
            guilty |= bool(complaints)
    return 1 if guilty else 0


if __name__ == "__main__":
    sys.exit(main())
