"""A member of the forwarding group: ``python forwarder.py NAME KIND GROUP FOLDER SOURCE TARGET``.

With EXACTLY_ONCE=1 its routes are of that kind; who waits for answers does not then.

It sends one to three messages to TARGET for each one of SOURCE, in one of the ways that people may write it
(``KINDS``), and says in each which message it was made from, so that nobody but the two topics and the committed
offsets is needed to tell what is missing. On purpose it stumbles now and then, in the middle of a message as well, and
sends what TARGET refuses: that ends the process's idempotent producer, with everything that was on its way.

``FOLDER/NAME.jsonl`` holds what only a member knows: when it was handed its first batch, and how many sends failed.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import random
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

from karafka_lite import App
from karafka_lite.errors import ProduceError

LARGEST = 20_000  # what TARGET takes, in bytes
HELD_MS, MOST_HELD = 150, 30  # how long, and about how many, messages are held back by a buffering member
ANSWER_S = 150  # longer than a producer tries
EXACTLY_ONCE = bool(os.environ.get("EXACTLY_ONCE"))
COMMON: dict[str, Any] = {"max_messages": 20, "backoff_ms": 200, "exactly_once": EXACTLY_ONCE}


class Stumble(Exception):
    """What a handler raises on purpose."""


class Sender:
    """What all kinds do with a message."""

    def __init__(self, name: str, target: str, tell: Callable[..., None]) -> None:
        self.name, self.target = name, target
        self._tell = tell
        self._dice = random.Random(name)
        self._numbers = itertools.count(1)
        self._ready = False

    def forward(self, message: Any, ctx: Any) -> list[Future[Any]]:
        """Send what comes of ``message``."""
        if not self._ready:
            self._ready = True
            self._tell("ready")
        time.sleep(1.0 if self._chance(0.0005) else 0.05 if self._chance(0.01) else 0.001)  # its work
        self._stumble(0.001)
        number = message.payload
        count = 1 + number % 3
        futures = []
        if self._chance(0.003):  # refused, and what follows with it
            futures.append(self._send(ctx, b"x" * 2 * LARGEST, key=str(number)))
        for part in range(count):
            futures.append(
                self._send(
                    ctx,
                    {
                        "from": [message.partition, message.offset],
                        "number": number,
                        "part": part,
                        "of": count,
                        "send": f"{self.name}.{next(self._numbers)}",
                    },
                    key=str(number),
                )
            )
            self._stumble(0.0003)
        return futures

    def _send(self, ctx: Any, value: object, key: str) -> Future[Any]:
        future: Future[Any] = ctx.produce(self.target, value, key=key)
        future.add_done_callback(lambda done: self._tell("refused") if done.exception() else None)
        return future

    def sync(self) -> bool:
        return self._chance(0.1)

    def _chance(self, chance: float) -> bool:
        return self._dice.random() < chance

    def _stumble(self, chance: float) -> None:
        if self._chance(chance):
            raise Stumble(f"{self.name} stumbles")


# -- the ways to write it ---------------------------------------------------------------------------------------------


def automatic(app: App, source: str, sender: Sender) -> None:
    @app.topic(source, **COMMON)
    def handle(batch: Any, ctx: Any) -> None:
        for message in batch:
            sender.forward(message, ctx)


def each(app: App, source: str, sender: Sender) -> None:
    @app.topic(source, **COMMON)
    def handle(batch: Any, ctx: Any) -> None:
        for message in ctx.each(batch):
            sender.forward(message, ctx)


def manual(app: App, source: str, sender: Sender) -> None:
    """A mark behind each message, now and then one that waits."""

    @app.topic(source, manual_offsets=True, **COMMON)
    def handle(batch: Any, ctx: Any) -> None:
        for message in batch:
            sender.forward(message, ctx)
            if not ctx.mark_as_consumed(message, sync=sender.sync(), timeout_ms=5000):
                return


def careless(app: App, source: str, sender: Sender) -> None:
    """Takes no notice of failed sends."""

    @app.topic(source, manual_offsets=True, **COMMON)
    def handle(batch: Any, ctx: Any) -> None:
        for message in batch:
            with suppress(ProduceError):
                sender.forward(message, ctx)
            with suppress(ProduceError):
                ctx.mark_as_consumed(message)


def buffering(app: App, source: str, sender: Sender, *, waits: bool = True) -> None:
    """Holds messages back, sends and marks them by size or by time; forgets them when they are acknowledged."""

    @app.topic(source, manual_offsets=True, **COMMON)
    def handle(batch: Any, ctx: Any) -> None:
        held = ctx.state.setdefault("held", [])
        held.extend(batch)
        if len(held) > MOST_HELD:
            flush(ctx)

    @app.every(handle, ms=HELD_MS)
    @app.before_revoke(handle)
    @app.on_shutdown(handle)
    def flush(ctx: Any) -> None:
        held = ctx.state.get("held")
        if held:
            futures = [future for message in held for future in sender.forward(message, ctx)]
            for future in futures if waits and not EXACTLY_ONCE else ():
                future.result(ANSWER_S)
            ctx.mark_as_consumed(held[-1])
            held.clear()


def trusting(app: App, source: str, sender: Sender) -> None:
    """As ``buffering``, but forgets what it has sent and marked without a look at the answers."""
    buffering(app, source, sender, waits=False)


KINDS = {kind.__name__: kind for kind in (automatic, manual, buffering, each, careless, trusting)}


def main(name: str, kind: str, group: str, folder: str, source: str, target: str) -> int:
    logging.basicConfig(level=logging.INFO, format="%(created).3f %(levelname)s %(name)s %(threadName)s: %(message)s")
    facts = os.open(Path(folder, f"{name}.jsonl"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def tell(fact: str) -> None:
        os.write(facts, (json.dumps({"kind": fact, "at": time.time()}) + "\n").encode())

    app = App(
        group,
        bootstrap_servers=os.environ["BROKERS"],
        concurrency=4,
        auto_commit_interval_ms=200,
        drain_timeout_ms=int(os.environ["DRAIN_MS"]),
        session_timeout_ms=int(os.environ["SESSION_MS"]),
        heartbeat_interval_ms=300,
        fetch_max_wait_ms=100,
    )
    KINDS[kind](app, source, Sender(name, target, tell))
    return app.run()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
