"""Exactly once, order by key and coroutines, each with the others."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from typing import Any

import pytest
from support.harness import make_app, running
from support.observer import Observer, wait_until

from karafka_lite import AsyncContext, Batch, Context
from karafka_lite.core.units import UnitOwnership

KEYS = "abcdefgh"
MESSAGES = 80
OPTIONS: dict[str, Any] = {"order": "key", "concurrency": 4, "backoff_ms": 20, "backoff_max_ms": 20}


def fill(kafka: Observer) -> str:
    topic = kafka.topic()
    kafka.produce(topic, range(MESSAGES), keys=[KEYS[number % 8] for number in range(MESSAGES)])
    return topic


def values(kafka: Observer, topic: str) -> list[int]:
    """What a reader with ``read_committed`` sees."""
    return [int(record.value() or b"") for record in kafka.records(topic)]


def by_key(numbers: list[int]) -> dict[int, list[int]]:
    return {key: [number for number in numbers if number % 8 == key] for key in range(8)}


IN_ORDER = {key: list(range(key, MESSAGES, 8)) for key in range(8)}


def test_with_exactly_once_the_parts_of_a_batch_are_one_unit(kafka: Observer) -> None:
    topic, out, beside, most = fill(kafka), kafka.topic(), Counter[str](), list[int]()
    app, lock, tries = make_app(kafka), threading.Lock(), Counter[int]()
    together = threading.Barrier(2)

    @app.topic(topic, max_messages=20, exactly_once=True, **OPTIONS)
    def forward(batch: Batch, ctx: Context) -> None:
        with lock:
            beside["now"] += 1
            most.append(beside["now"])
        if batch.first.payload < 20:
            together.wait(20)
        for message in ctx.each(batch):
            ctx.produce(out, message.payload, key=message.key)
            tries[message.payload] += 1
            if message.payload == 25 and tries[25] == 1:
                with lock:
                    beside["now"] -= 1
                raise RuntimeError("once")
        with lock:
            beside["now"] -= 1

    with running(app):
        wait_until(lambda: kafka.committed(app.config.group_id, topic) == MESSAGES)
        (ownership,) = app._runner.members[0].group.owned.values() if app._runner else ()
        assert isinstance(ownership, UnitOwnership)
    assert max(most) > 1, "side by side"
    assert by_key(values(kafka, out)) == IN_ORDER, "each once, each key in order"
    assert tries[20] == 2, "all of the batch came again"
    assert tries[0] == tries[79] == 1


def test_with_exactly_once_a_bad_message_of_a_part_leaves_alone_with_its_mark(kafka: Observer) -> None:
    topic, out, dead = fill(kafka), kafka.topic(), kafka.topic()
    app, tries = make_app(kafka), Counter[int]()

    @app.topic(topic, exactly_once=True, dead_letter=dead, max_retries=1, **OPTIONS)
    def forward(batch: Batch, ctx: Context) -> None:
        for message in batch:
            tries[message.payload] += 1
            ctx.produce(out, message.payload, key=message.key)
        if any(message.payload == 33 for message in batch):
            raise RuntimeError("bad")

    with running(app):
        wait_until(lambda: kafka.committed(app.config.group_id, topic) == MESSAGES)
    seen = values(kafka, out)
    assert values(kafka, dead) == [33]
    assert sorted(seen) == [number for number in range(MESSAGES) if number != 33]
    assert tries[33] == 2, "1 + max_retries"


@pytest.mark.parametrize("order", ["partition", "key"])
def test_coroutines_send_exactly_once_and_cannot_await_what_leaves_with_their_mark(kafka: Observer, order: str) -> None:
    topic, out, refusals = fill(kafka), kafka.topic(), list[str]()
    app, options = make_app(kafka), {**OPTIONS, "order": order}

    @app.topic(topic, max_messages=20, exactly_once=True, **options)
    async def forward(batch: Batch, ctx: AsyncContext) -> None:
        sent = [ctx.produce(out, message.payload, key=message.key) for message in batch]
        await asyncio.sleep(0)
        for wait in (lambda: asyncio.gather(*sent), lambda: sent[0]):
            try:
                await wait()
            except RuntimeError as refused:
                refusals.append(str(refused))
        if batch.first.payload == 0 and len(refusals) < 9:
            raise RuntimeError("its messages are dropped")

    with running(app):
        wait_until(lambda: kafka.committed(app.config.group_id, topic) == MESSAGES)
    assert by_key(values(kafka, out)) == IN_ORDER
    assert len(refusals) % 2 == 0
    assert all("leaves with the next mark" in refusal for refusal in refusals)


def test_coroutines_of_the_parts_of_a_batch_wait_side_by_side(kafka: Observer) -> None:
    topic, done, met = fill(kafka), list[int](), list[int]()
    app = make_app(kafka)
    inside = 0

    @app.topic(topic, max_messages=20, **OPTIONS)
    async def work(batch: Batch, ctx: AsyncContext) -> None:
        nonlocal inside
        inside += 1
        for message in ctx.each(batch):
            await asyncio.sleep(0.001)
            met.append(inside)
            done.append(message.payload)
        inside -= 1

    with running(app):
        wait_until(lambda: len(done) == MESSAGES)
    assert kafka.committed(app.config.group_id, topic) == MESSAGES
    assert max(met) == 4
    assert by_key(done) == IN_ORDER
