"""With ``order="key"`` parts of a batch side by side, each key in order, and no commit past what is not done."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from support.harness import Gate, Process, make_app, opened, running, stopped_aside
from support.observer import Observer, wait_until

from karafka_lite import App, Batch, Context
from karafka_lite.core.ownership import State

KEYS = [f"k{number % 6}" for number in range(60)]


class Done:
    """What handlers have come to, in order, and what is inside them."""

    def __init__(self) -> None:
        self.offsets: dict[int, list[int]] = defaultdict(list)  # by partition, in the order of their ends
        self.keys: dict[bytes | None, list[int]] = defaultdict(list)
        self.inside: Counter[bytes | None] = Counter()
        self.most = self.beside_itself = 0
        self._lock = threading.Lock()

    @contextmanager
    def working(self, message: Any) -> Iterator[None]:
        with self._lock:
            self.inside[message.key] += 1
            self.most = max(self.most, self.inside.total())
            self.beside_itself += message.key is not None and self.inside[message.key] > 1
        try:
            yield
        finally:
            with self._lock:
                self.inside[message.key] -= 1
        with self._lock:
            self.offsets[message.partition].append(message.offset)
            self.keys[message.key].append(message.offset)

    def first_undone(self, offsets: Sequence[int], partition: int = 0) -> int:
        done = set(self.offsets[partition])
        return next((offset for offset in offsets if offset not in done), offsets[-1] + 1)

    def is_in_order_and_once(self, count: int) -> None:
        assert sum(map(len, self.offsets.values())) == len(
            {(p, o) for p, all_of in self.offsets.items() for o in all_of}
        )
        assert sum(map(len, self.offsets.values())) == count
        for key, offsets in self.keys.items():
            assert key is None or offsets == sorted(offsets), "the order of a key"
        assert not self.beside_itself, "never two messages of a key at the same time"


@contextmanager
def watching(kafka: Observer, group: str, topic: str, done: Done, offsets: Sequence[int]) -> Iterator[list[int]]:
    """Another client looks at what is committed, all the time: all of it is done."""
    seen, over = list[int](), threading.Event()
    wrong = list[tuple[int, int]]()

    def look() -> None:
        while not over.is_set():
            committed = kafka.committed(group, topic)
            undone = done.first_undone(offsets)
            if committed is not None:
                seen.append(committed)
                if committed > undone:
                    wrong.append((committed, undone))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()
    assert not wrong, "a commit passed what was not done"


def test_parts_run_side_by_side_each_key_in_order_each_message_once_and_no_commit_passes_what_is_not_done(
    kafka: Observer,
) -> None:
    topic, group, done = kafka.topic(), kafka.group(), Done()
    keys = [None if number % 7 == 0 else key for number, key in enumerate(KEYS)]
    offsets = [offset for _, offset in kafka.produce(topic, range(len(keys)), 0, keys=keys)]
    app, pace = make_app(kafka, group, auto_commit_interval_ms=20), threading.Event()

    @app.topic(topic, order="key", concurrency=4, max_messages=25)
    def store(batch: Batch, ctx: Context) -> None:
        for message in ctx.each(batch):
            with done.working(message):
                pace.wait(0.002 * (message.offset % 5))

    with watching(kafka, group, topic, done, offsets) as seen, running(app):
        wait_until(lambda: len(done.offsets[0]) == len(keys), message="all")
        wait_until(lambda: kafka.committed(group, topic) == len(keys), message="the last commit")
    done.is_in_order_and_once(len(keys))
    assert done.most == 4
    assert len(set(seen)) > 1, "commits came while it worked"


def test_fewer_threads_than_parts_take_them_one_after_the_other(kafka: Observer) -> None:
    topic, group, done = kafka.topic(3), kafka.group(), Done()
    for partition in range(3):
        kafka.produce(topic, range(8), partition, keys=[f"{partition}.{number % 4}" for number in range(8)])
    app, gate = make_app(kafka, group), Gate()

    @app.topic(topic, order="key", concurrency=2)
    def store(batch: Batch, ctx: Context) -> None:
        for message in batch:
            with done.working(message):
                gate.wait()

    with opened(gate), running(app):
        gate.reached()
        wait_until(lambda: done.inside.total() == 2, message="two calls")
        gate.open()
        wait_until(lambda: sum(map(len, done.offsets.values())) == 24, message="all parts of all partitions")
    done.is_in_order_and_once(24)
    assert done.most == 2
    assert [kafka.committed(group, topic, partition) for partition in range(3)] == [8, 8, 8]


def test_one_key_with_most_of_a_batch_holds_up_no_other_key_of_it(kafka: Observer) -> None:
    topic, group, done = kafka.topic(), kafka.group(), Done()
    keys = ["cold" if number % 10 == 9 else "hot" for number in range(20)]
    kafka.produce(topic, range(20), 0, keys=keys)
    app, gate = make_app(kafka, group, auto_commit_interval_ms=20), Gate()

    @app.topic(topic, order="key", concurrency=8)
    def store(batch: Batch, ctx: Context) -> None:
        for message in ctx.each(batch):
            if message.offset == 2:
                gate.wait()
            with done.working(message):
                pass

    with opened(gate), running(app):
        gate.reached()
        wait_until(lambda: done.keys[b"cold"] == [9, 19], message="the others")
        wait_until(lambda: kafka.committed(group, topic) == 2, message="the interval")
        gate.open()
        wait_until(lambda: kafka.committed(group, topic) == 20, message="all")
    done.is_in_order_and_once(20)


def test_offsets_without_a_message_are_nothing_undone(kafka: Observer) -> None:
    topic, group, done = kafka.topic(), kafka.group(), Done()
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": kafka.name("id")})
    producer.init_transactions(30)
    for number in range(6):  # each leaves a marker behind its message
        producer.begin_transaction()
        producer.produce(topic, f"{number}".encode(), key=f"k{number % 3}".encode())
        producer.commit_transaction(30)
    app, gate = make_app(kafka, group, auto_commit_interval_ms=20), Gate()

    @app.topic(topic, order="key", concurrency=3)
    def store(batch: Batch, ctx: Context) -> None:
        if batch.first.key == b"k1":
            gate.wait()
        for message in batch:
            with done.working(message):
                pass

    with opened(gate), running(app):
        gate.reached()
        wait_until(lambda: kafka.committed(group, topic) == 1, message="up to the first that is not done")
        gate.open()
        wait_until(lambda: kafka.committed(group, topic) == 11, message="all")
    done.is_in_order_and_once(6)


@pytest.mark.test_client
def test_where_a_part_raises_the_others_end_one_line_says_it_and_what_is_done_does_not_come_again(
    kafka: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    topic, group, calls, fails = kafka.topic(), kafka.group(), list[tuple[list[int], int, dict[Any, Any]]](), [2, 3]
    kafka.produce(topic, range(9), keys=list("abc") * 3)
    app = make_app(kafka, group)

    @app.topic(topic, order="key", concurrency=3, backoff_ms=50)
    def store(batch: Batch, ctx: Context) -> None:
        calls.append(([message.offset for message in batch], ctx.attempt, dict(ctx.state)))
        for message in ctx.each(batch):
            if message.offset == 4 and fails:
                fails.pop()
                raise ValueError("no")
        ctx.state["done"] = True

    caplog.set_level(logging.ERROR, "karafka_lite")
    with running(app):
        wait_until(lambda: len(calls) == 5, message="three parts, and two more tries")
    assert sorted(offsets for offsets, attempt, _ in calls if attempt == 1) == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
    assert [call for call in calls if call[1] > 1] == [([4, 7], 2, {}), ([4, 7], 3, {})]
    lines = [record.getMessage().splitlines()[0] for record in caplog.records]
    assert [line.partition(",")[0] for line in lines] == [
        f"{topic}-0@4 (of {topic}-0@1..7): {store.__qualname__} failed at attempt 1",
        f"{topic}-0@4 (of {topic}-0@4..7): {store.__qualname__} failed at attempt 2",
    ]
    assert f"retrying from {topic}-0@4 in 50 ms" in lines[0]
    assert kafka.committed(group, topic) == 9


@pytest.mark.test_client
@pytest.mark.parametrize("each", [False, True])
def test_the_message_that_keeps_failing_becomes_a_dead_letter_and_no_other_is_tried_as_often(
    kafka: Observer, each: bool
) -> None:
    topic, dead, group, calls = kafka.topic(), kafka.topic(), kafka.group(), list[list[int]]()
    kafka.produce(topic, range(9), keys=list("abc") * 3)
    app = make_app(kafka, group)

    @app.topic(topic, order="key", concurrency=3, backoff_ms=1, dead_letter=dead, max_retries=1)
    def store(batch: Batch, ctx: Context) -> None:
        calls.append([message.offset for message in batch])
        for message in ctx.each(batch) if each else batch:
            if message.offset == 4:
                raise ValueError("no")

    with running(app):
        wait_until(lambda: len(kafka.records(dead)) == 1, message="the dead letter")
        wait_until(lambda: calls[-1:] == [[7]], message="what came after it")
    assert sorted(calls[:3]) == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
    assert calls[3:] == ([[4, 7], [7]] if each else [[1], [4], [7]])
    (letter,) = kafka.records(dead)
    assert dict(letter.headers())["source-offset"] == b"4"
    assert kafka.committed(group, topic) == 9


@pytest.mark.test_client
def test_in_a_part_sync_is_a_runtime_error_and_a_message_of_another_part_cannot_be_marked(kafka: Observer) -> None:
    topic, group, said, batches = kafka.topic(), kafka.group(), list[str](), dict[int, Batch]()
    kafka.produce(topic, range(4), keys=list("abab"))
    app = make_app(kafka, group)

    @app.topic(topic, order="key", concurrency=2)
    def store(batch: Batch, ctx: Context) -> None:
        batches[batch.first_offset] = batch
        for ask in (lambda: ctx.mark_as_consumed(batch.first, sync=True), lambda: ctx.commit_offsets(sync=True)):
            with pytest.raises(RuntimeError, match='sync=True is not for a handler with order="key"'):
                ask()
        if len(batches) == 2:  # it is the second one
            with pytest.raises(ValueError, match="is not of the batch of this call"):
                ctx.mark_as_consumed(batches[1 - batch.first_offset].first)
        said.append("done")

    with running(app):
        wait_until(lambda: len(said) == 2, message="both parts")
    assert kafka.committed(group, topic) == 4


def test_a_rebalance_waits_for_all_parts_of_the_batch_and_nothing_comes_twice(kafka: Observer) -> None:
    topic, group, done = kafka.topic(), kafka.group(), Done()
    kafka.produce(topic, range(12), 0, keys=[f"k{number % 4}" for number in range(12)])
    app, gate, hooks = make_app(kafka, group), Gate(), list[tuple[str, int]]()

    @app.topic(topic, order="key", concurrency=2, max_messages=6)
    def store(batch: Batch, ctx: Context) -> None:
        for message in batch:
            with done.working(message):
                gate.wait()

    @app.before_revoke(store)
    def before(ctx: Context) -> None:
        hooks.append(("before_revoke", done.inside.total()))

    with opened(gate), running(app):
        gate.reached()
        (member,) = app.members
        first = member.group.owned[topic, 0]
        member._client.rejoin()
        wait_until(lambda: first.state is State.DRAINING, message="the rebalance")
        gate.open()
        wait_until(lambda: len(done.offsets[0]) == 12, 30, "the rest")
        assert hooks == [("before_revoke", 0)]
        assert first.marks.committed == 6, "the whole batch, and no more"
    done.is_in_order_and_once(12)


def test_a_stop_waits_for_all_parts_that_of_a_busy_handler_wait_for_a_thread_too(kafka: Observer) -> None:
    topic, group, done = kafka.topic(2), kafka.group(), Done()
    for partition in range(2):
        kafka.produce(topic, range(4), partition, keys=[f"{partition}.{number}" for number in range(4)])
    app, gate = make_app(kafka, group), Gate()

    @app.topic(topic, order="key", concurrency=2, max_messages=4)
    def store(batch: Batch, ctx: Context) -> None:
        for message in batch:
            with done.working(message):
                gate.wait()

    with opened(gate):
        app.start()
        gate.reached()
        wait_until(lambda: done.inside.total() == 2, message="two calls")
        begun = {tp for tp, one in app.members[0].group.owned.items() if one.run is not None}
        with stopped_aside(app) as answer:
            wait_until(lambda: all(one.state is not State.ASSIGNED for one in app.members[0].group.owned.values()))
            gate.open()
            assert answer()
    for partition in range(2):
        was_begun = (topic, partition) in begun
        assert len(done.offsets[partition]) == (4 if was_begun else 0)
        assert kafka.committed(group, topic, partition) == (4 if was_begun else None)


KILLED = """
    import signal
    from karafka_lite import App
    topic, group, last = sys.argv[1], sys.argv[2], int(sys.argv[3])
    app = App(group, bootstrap_servers=BROKERS, auto_commit_interval_ms=5, session_timeout_ms=2000,
              heartbeat_interval_ms=300, fetch_max_wait_ms=50)

    @app.topic(topic, order="key", concurrency=4, max_messages=20)
    def store(batch, ctx):
        for message in ctx.each(batch):
            if message.offset == last:
                time.sleep(0.1)  # the others go on, and commit
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.002)
            say(done=message.offset, key=message.key.decode())

    app.run()
"""


def test_killed_amid_parts_nothing_is_lost_nothing_committed_comes_again_and_each_key_goes_on_in_order(
    kafka: Observer, tmp_path: Path
) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(60), 0, keys=KEYS)
    with Process(kafka, KILLED, tmp_path / "first", topic, group, "33") as first:
        assert first.wait() == -signal.SIGKILL
    before = [fact["done"] for fact in first.facts if "done" in fact]
    committed = kafka.committed(group, topic)
    assert committed is not None
    assert 20 <= committed <= 33, "the first batch, and no more than what was done"
    assert set(range(committed)) <= set(before)
    assert any(offset > 33 for offset in before), "others were ahead"
    with Process(kafka, KILLED, tmp_path / "second", topic, group, "-1") as second:
        wait_until(lambda: kafka.committed(group, topic) == 60, 30, "everything")
        second.signal(signal.SIGTERM)
        assert second.wait() == os.EX_OK
    after = [fact["done"] for fact in second.facts if "done" in fact]
    assert sorted(after) == list(range(committed, 60)), "from the commit on, each once"
    for key in set(KEYS):
        mine = [fact["done"] for fact in second.facts if fact.get("key") == key]
        assert mine == sorted(mine)


def test_a_handler_without_end_is_named_with_its_part(kafka: Observer, caplog: pytest.LogCaptureFixture) -> None:
    topic, gate = kafka.topic(), Gate()
    kafka.produce(topic, range(4), keys=list("abab"))
    app: App = make_app(kafka, drain_timeout_ms=100)

    @app.topic(topic, order="key", concurrency=2)
    def store(batch: Batch, ctx: Context) -> None:
        if batch.first_offset == 1:
            gate.wait()

    with opened(gate):
        app.start()
        gate.reached()
        wait_until(lambda: not app.health().live, message="beyond drain_timeout_ms")
        (why,) = app.health().reasons
        assert why.startswith(f"{topic}-0@1..3: {store.__qualname__} has been running")
        (one,) = app.stats().partitions
        assert one.doing == f"{store.__qualname__} 0..3 in 1 part"
        assert not app.stop()
    assert f"{topic}-0@1..3" in caplog.text
