"""A member of the chaos groups: ``python member.py NAME FOLDER``.

Brokers, session, groups and topics are in its environment: ``BROKERS``, ``SESSION_MS``, ``RESET``, ``GROUPS`` (the
second one reads what is in ``MANUAL``, too), ``AUTOMATIC`` and ``MANUAL`` (how their handlers commit). What it does it
tells in ``FOLDER/NAME.jsonl``, one ``os.write`` a fact, so that a SIGKILL takes nothing with it. Its handlers tell it;
the framework under test is not asked for its opinion:

    handed     a batch arrived: ownership, topic, partition, first and last offset
    done       a message was processed; told *before* it is marked, so that no commit can come before it
    marked     what its mark returned
    returned   the handler returns (automatic: now the framework marks the batch)
    hook       ``before_revoke``, ``on_revoked`` or ``on_shutdown`` runs
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

from karafka_lite import App


def main(name: str, folder: str) -> int:
    logging.basicConfig(level=logging.INFO, format="%(created).3f %(levelname)s %(name)s %(threadName)s: %(message)s")
    group, second_group = os.environ["GROUPS"].split(",")
    facts = os.open(Path(folder, f"{name}.jsonl"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    numbers = itertools.count(1)
    dice = random.Random(name)

    def tell(kind: str, ctx: Any, **more: Any) -> None:
        # The state lives as long as the ownership does: a number in it names the ownership.
        own = ctx.state.setdefault("own", next(numbers))
        where = {"group": ctx.group_id, "topic": ctx.topic, "partition": ctx.partition}
        fact = {"kind": kind, "at": time.time(), "own": own, **where, **more}
        os.write(facts, (json.dumps(fact) + "\n").encode())

    app = App(
        group,
        bootstrap_servers=os.environ["BROKERS"],
        concurrency=4,
        auto_commit_interval_ms=1000,
        drain_timeout_ms=10_000,
        max_poll_interval_ms=15_000,  # a join without an answer is given up after it
        request_timeout_ms=15_000,
        session_timeout_ms=int(os.environ["SESSION_MS"]),
        heartbeat_interval_ms=300,
        fetch_max_wait_ms=100,
        metadata_max_age_ms=3000,  # how soon it sees partitions that were added
        auto_offset_reset=os.environ["RESET"],
    )
    automatic_topics, manual_topics = os.environ["AUTOMATIC"].split(","), os.environ["MANUAL"].split(",")

    @app.topic(*automatic_topics, max_messages=20)
    @app.topic(manual_topics[0], group_id=second_group, max_messages=50)
    def automatic(batch: Any, ctx: Any) -> None:
        tell("handed", ctx, first=batch.first_offset, last=batch.last_offset, number=batch.first.payload)
        for message in batch:
            work(dice)
            tell("done", ctx, offset=message.offset, number=message.payload)
        tell("returned", ctx)

    @app.topic(*manual_topics, manual_offsets=True, max_messages=10)
    def manual(batch: Any, ctx: Any) -> None:
        tell("handed", ctx, first=batch.first_offset, last=batch.last_offset, number=batch.first.payload)
        polite = dice.random() < 0.3  # leaves the rest of the batch to the next owner
        for message in batch:
            if polite and ctx.stopping:
                break
            work(dice)
            tell("done", ctx, offset=message.offset, number=message.payload)
            sync = dice.random() < 0.03
            marked = ctx.mark_as_consumed(message, sync=sync)
            tell("marked", ctx, offset=message.offset, ok=marked, sync=sync, number=message.payload)
            if not marked:
                break
        if dice.random() < 0.003:  # what waits for it may be deleted meanwhile
            ctx.pause(4000)
        tell("returned", ctx)

    for handler in (automatic, manual):
        app.before_revoke(handler)(lambda ctx: tell("hook", ctx, hook="before_revoke"))
        app.on_revoked(handler)(lambda ctx: tell("hook", ctx, hook="on_revoked"))
        app.on_shutdown(handler)(lambda ctx: tell("hook", ctx, hook="on_shutdown"))
    return app.run()


def work(dice: random.Random) -> None:
    """Mostly next to nothing, now and then long enough for a rebalance to wait for it."""
    chance = dice.random()
    time.sleep(1.5 if chance < 0.0005 else 0.1 if chance < 0.02 else 0.001)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
