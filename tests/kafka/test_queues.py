"""What is fetched ahead: never more than there is room for, and never a reason to wait."""

from __future__ import annotations

from typing import Any

import pytest
from support.harness import Gate, make_app, opened, running
from support.observer import Observer, wait_until

from karafka_lite.core.group import Group
from karafka_lite.core.intake import BufferLimits

KB = 1 << 10
FETCH_BYTES = 1024 * KB  # at once, and what a producer puts into one batch


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> BufferLimits:
    """Less than an app has by itself."""
    room = BufferLimits(messages=100_000, size_bytes=2048 * KB)
    monkeypatch.setitem(Group.__init__.__kwdefaults__, "limits", room)  # type: ignore[arg-type]
    return room


def test_what_waits_behind_a_slow_handler_is_bounded_in_bytes(kafka: Observer, room: BufferLimits) -> None:
    topic, seen = kafka.topic(3), dict[int, list[int]]()
    for partition in range(3):
        kafka.produce(topic, [b"%50d" % number * 2 * KB for number in range(60)], partition)  # 100 KB each
    app = make_app(kafka, max_partition_fetch_bytes=FETCH_BYTES)
    gate = Gate()

    @app.topic(topic)
    def work(batch: Any, ctx: Any) -> None:
        gate.wait()
        seen.setdefault(batch.partition, []).extend(message.offset for message in batch)

    with running(app), opened(gate):
        owned = app.members[0].group.owned
        wait_until(lambda: len(owned) == 3 and all(p.run and p.intake.paused and p.intake.size for p in owned.values()))
        queued = [partition.intake.size_bytes for partition in owned.values()]
        assert min(queued) >= room.size_bytes // 3
        assert max(queued) < room.size_bytes // 3 + 2 * FETCH_BYTES  # a fetch may be on its way when another comes
        gate.open()
        wait_until(lambda: sum(map(len, seen.values())) == 180)
    assert seen == {partition: list(range(60)) for partition in range(3)}


def test_a_batch_does_not_wait_for_messages_for_which_there_is_no_room(kafka: Observer, room: BufferLimits) -> None:
    topic, seen = kafka.topic(), list[int]()
    kafka.produce(topic, [b"%50d" % number * 2 * KB for number in range(60)])
    app = make_app(kafka, max_partition_fetch_bytes=FETCH_BYTES)

    @app.topic(topic, max_messages=50, batch_timeout_ms=600_000)
    def work(batch: Any, ctx: Any) -> None:
        seen.extend(message.offset for message in batch)

    with running(app):
        wait_until(lambda: len(seen) >= 20)  # 2 MB of 5 MB
    assert seen == list(range(len(seen)))
