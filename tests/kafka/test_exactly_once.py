"""The promises of ``exactly_once``: what is sent and the offset of what it was made from, together or not at all."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaProducer, OffsetAndMetadata
from kafka import TopicPartition as KafkaTP
from support.harness import Gate, Process, evict, make_app, opened, running, stopped_aside
from support.observer import Observer, wait_until

from karafka_lite import App, Batch, CommitError, ConfigurationError, Context, Outgoing, ProduceError
from karafka_lite.client.transactions import Transactions
from karafka_lite.core.answers import Commit, Committed, Ended, Undecided
from karafka_lite.core.marks import Refusal
from karafka_lite.events import CallEnded

QUICKLY: dict[str, Any] = {"backoff_ms": 20, "backoff_max_ms": 20}
ONCE: dict[str, Any] = {"exactly_once": True, **QUICKLY}


def values(kafka: Observer, topic: str) -> list[str]:
    """What a reader with ``read_committed`` sees, as librdkafka is one by default."""
    return [(record.value() or b"").decode().strip('"') for record in kafka.records(topic)]


def numbers(kafka: Observer, topic: str) -> list[int]:
    return [int(value) for value in values(kafka, topic)]


def group_of(app: App) -> str:
    return app.config.group_id


def transactions_of(app: App) -> Transactions:
    assert app._runner is not None
    return app._runner.members[0]._transactions  # type: ignore[return-value]


class Failing:
    """The next transactions of an app, seen and failed by a test. ``how``: called in the place of a commit."""

    def __init__(self, app: App, how: Callable[[Any, Any, Any], Any], times: int = 1) -> None:
        self.tried: list[list[tuple[str, int]]] = []  # partitions of each
        self.left, transactions = times, transactions_of(app)
        commit = transactions.commit

        def failing(client: Any, commits: Any, generation: int) -> Any:
            self.tried.append([commit.ownership.tp for commit in commits])
            if self.left:
                self.left -= 1
                return how(client, commits, generation)
            return commit(client, commits, generation)

        transactions.commit = failing  # type: ignore[method-assign]


# -- together or not at all --------------------------------------------------------------------------------------------


def test_what_is_sent_and_the_offset_become_visible_together(kafka: Observer) -> None:
    topic, out = kafka.topic(), kafka.topic()
    kafka.produce(topic, range(60))
    app = make_app(kafka)

    @app.topic(topic, max_messages=1, **ONCE)
    def forward(batch: Batch, ctx: Context) -> None:
        for message in batch:
            ctx.produce(out, message.payload)

    group, looks = group_of(app), 0
    with running(app):
        while True:
            committed = kafka.committed(group, topic) or 0
            seen = numbers(kafka, out)
            count = len(seen)
            assert seen == list(range(count)), "in order, each once"
            # The brokers end a transaction in each partition by itself, milliseconds after one another.
            wait_until(lambda n=committed: len(numbers(kafka, out)) >= n, timeout=10, message="no offset comes alone")
            wait_until(lambda n=count: (kafka.committed(group, topic) or 0) >= n, timeout=10, message="nor output")
            looks += 1
            if committed == 60:
                break
    assert looks >= 2
    wait_until(lambda: numbers(kafka, out) == list(range(60)))


@pytest.mark.test_client
def test_an_exception_drops_what_was_sent_after_the_last_mark_and_only_that(kafka: Observer) -> None:
    topic, out, tries = kafka.topic(), kafka.topic(), list[int]()
    kafka.produce(topic, range(6))
    app = make_app(kafka)

    @app.topic(topic, manual_offsets=True, **ONCE)
    def forward(batch: Batch, ctx: Context) -> None:
        tries.append(batch.first.payload)
        for message in batch:
            ctx.produce(out, f"{message.payload} of try {len(tries)}")
            if message.payload == 3:
                ctx.mark_as_consumed(message)
            if message.payload == 4 and len(tries) == 1:
                raise RuntimeError("after a mark")
        ctx.mark_as_consumed(batch.last)

    with running(app):
        wait_until(lambda: kafka.committed(group_of(app), topic) == 6)
    wait_until(lambda: values(kafka, out) == [*(f"{n} of try 1" for n in range(4)), *(f"{n} of try 2" for n in (4, 5))])
    assert tries == [0, 4]


@pytest.mark.test_client
def test_without_a_mark_what_was_sent_waits_over_batches_and_leaves_with_a_later_one(kafka: Observer) -> None:
    topic, out, batches = kafka.topic(), kafka.topic(), list[list[int]]()
    app = make_app(kafka)

    @app.topic(topic, manual_offsets=True, **ONCE)
    def collect(batch: Batch, ctx: Context) -> None:
        batches.append([message.payload for message in batch])
        ctx.produce_many(out, [Outgoing(payload) for payload in batch.payloads])
        if batch.last.payload == 5:
            ctx.mark_as_consumed(batch.last)

    with running(app):
        for number in range(5):
            kafka.produce(topic, [number])
            wait_until(lambda number=number: [number] in batches)
        wait_until(lambda: (values(kafka, out), kafka.committed(group_of(app), topic)) == ([], None))
        kafka.produce(topic, [5])
        wait_until(lambda: kafka.committed(group_of(app), topic) == 6)
        wait_until(lambda: numbers(kafka, out) == list(range(6)))


@pytest.mark.test_client
def test_what_waits_unmarked_over_batches_is_dropped_by_a_failure_and_comes_again(kafka: Observer) -> None:
    topic, out, tries = kafka.topic(), kafka.topic(), list[list[int]]()
    app = make_app(kafka)

    @app.topic(topic, manual_offsets=True, **ONCE)
    def collect(batch: Batch, ctx: Context) -> None:
        tries.append(list(batch.payloads))
        for payload in batch.payloads:
            ctx.produce(out, payload)
        if tries == [[0], [1]]:
            raise RuntimeError("the first try")
        if batch.last.payload == 1:
            ctx.mark_as_consumed(batch.last)

    with running(app):
        kafka.produce(topic, [0])
        wait_until(lambda: tries == [[0]])
        kafka.produce(topic, [1])
        wait_until(lambda: kafka.committed(group_of(app), topic) == 2)
    wait_until(lambda: numbers(kafka, out) == [0, 1])


@pytest.mark.test_client
@pytest.mark.parametrize("fails", [False, True])
def test_a_loop_over_each_that_is_left_sends_what_it_has_marked(kafka: Observer, fails: bool) -> None:
    topic, out, first = kafka.topic(), kafka.topic(), [True]
    kafka.produce(topic, range(5))
    app = make_app(kafka)

    @app.topic(topic, **ONCE)
    def forward(batch: Batch, ctx: Context) -> None:
        for message in ctx.each(batch):
            ctx.produce(out, message.payload)
            if message.payload == 3 and first:
                first.clear()
                if fails:
                    raise RuntimeError("at 3")
                break

    with running(app):
        wait_until(lambda: kafka.committed(group_of(app), topic) == 5)
    wait_until(lambda: numbers(kafka, out) == list(range(5)))


@pytest.mark.test_client
def test_what_a_run_that_seeks_has_sent_leaves_with_the_next_mark_also_over_a_failure(kafka: Observer) -> None:
    topic, out, tries = kafka.topic(), kafka.topic(), list[int]()
    kafka.produce(topic, range(4))
    app = make_app(kafka)

    @app.topic(topic, **ONCE)
    def forward(batch: Batch, ctx: Context) -> None:
        tries.append(batch.first.payload)
        ctx.produce(out, f"{batch.first.payload} in try {len(tries)}")
        if len(tries) == 1:
            ctx.seek(2)
        if len(tries) == 2:
            raise RuntimeError("the batch after the seek")

    with running(app):
        wait_until(lambda: kafka.committed(group_of(app), topic) == 4)
    assert tries == [0, 2, 2]
    wait_until(lambda: values(kafka, out) == ["0 in try 1", "2 in try 3"])


@pytest.mark.test_client
def test_a_future_cannot_be_waited_for_in_its_run_and_has_its_answer_after_the_commit(kafka: Observer) -> None:
    topic, out, futures, refused = kafka.topic(), kafka.topic(), list[Future[Any]](), list[str]()
    kafka.produce(topic, ["x"])
    app = make_app(kafka)

    @app.topic(topic, manual_offsets=True, **ONCE)
    def forward(batch: Batch, ctx: Context) -> None:
        futures.extend([ctx.produce(out, b"one"), ctx.produce_many(out, [b"two", b"three"])])
        for future in futures:
            for ask in (future.result, future.exception):
                with pytest.raises(RuntimeError, match=r"ctx\.mark_as_consumed\(message, sync=True\)") as caught:
                    ask(timeout=0)
                refused.append(str(caught.value))
        with pytest.raises(TypeError):
            ctx.produce(out, object())
        with pytest.raises(ValueError, match="partition"):
            ctx.produce(out, b"", partition=-1)
        ctx.mark_as_consumed(batch.last, sync=True)
        futures.append(ctx.produce(out, b"never"))
        raise RuntimeError("after it") if len(futures) == 3 else SystemExit

    with running(app):
        wait_until(lambda: len(futures) >= 3 and futures[2].done())
    assert len(refused) == 4
    assert futures[0].result(0) == (0, 0)
    assert futures[1].result(0) == [(0, 1), (0, 2)]
    assert isinstance(futures[2].exception(0), ProduceError)
    wait_until(lambda: values(kafka, out) == ["one", "two", "three"])


@pytest.mark.test_client
def test_a_blocking_mark_is_on_the_broker_with_what_was_sent_before_it(kafka: Observer) -> None:
    topic, out, seen = kafka.topic(), kafka.topic(), list[Any]()
    kafka.produce(topic, range(2))
    app = make_app(kafka)

    @app.topic(topic, manual_offsets=True, **ONCE)
    def forward(batch: Batch, ctx: Context) -> None:
        for message in batch:
            ctx.produce(out, message.payload)
            assert ctx.mark_as_consumed(message, sync=True)
            there = message.next_offset, list(range(message.next_offset))
            # The answer is there milliseconds before the end is in all partitions.
            wait_until(lambda t=there: (kafka.committed(group_of(app), topic), numbers(kafka, out)) == t, timeout=2)
            seen.append(message.payload)

    with running(app):
        wait_until(lambda: seen == [0, 1])


# -- hooks, the hand-over, the stop ------------------------------------------------------------------------------------


@pytest.mark.test_client
def test_hooks_send_with_their_marks_and_a_hook_that_raises_sends_nothing(kafka: Observer) -> None:
    topic, out, calls = kafka.topic(), kafka.topic(), list[str]()
    kafka.produce(topic, [0, 1])
    app = make_app(kafka)

    @app.topic(topic, manual_offsets=True, max_messages=2, **ONCE)
    def collect(batch: Batch, ctx: Context) -> None:
        ctx.state["last"] = batch.last
        ctx.produce(out, "of the handler")

    @app.every(collect, ms=50)
    def flush(ctx: Context) -> None:
        calls.append("every")
        ctx.produce(out, f"of every {len(calls)}")
        if len(calls) == 1:
            raise RuntimeError("the first call")
        if len(calls) == 2:
            ctx.mark_as_consumed(ctx.state["last"])

    @app.on_shutdown(collect)
    def say(ctx: Context) -> None:
        ctx.produce(out, "of one before it")

    @app.on_shutdown(collect)
    def fail(ctx: Context) -> None:
        ctx.produce(out, "of one that raises before another one marks")
        raise RuntimeError("at the stop")

    @app.on_shutdown(collect)
    def close(ctx: Context) -> None:
        ctx.produce(out, "of the stop")
        ctx.mark_as_consumed(ctx.state["last"])

    with running(app):
        wait_until(lambda: kafka.committed(group_of(app), topic) == 2)
        wait_until(lambda: values(kafka, out) == ["of the handler", "of every 2"])
    wait_until(lambda: values(kafka, out)[-2:] == ["of one before it", "of the stop"])


@contextmanager
def another_member(kafka: Observer, app: App, topic: str) -> Iterator[None]:
    """It takes the only partition: the assignor goes by the names of members."""
    other = make_app(kafka, group_of(app), client_id="000-first")
    other.topic(topic)(lambda batch, ctx: None)
    with running(other):
        yield


def test_a_hand_over_commits_the_last_transaction_and_on_revoked_sends_nothing(kafka: Observer) -> None:
    topic, out, gate, late = kafka.topic(), kafka.topic(), Gate(), list[Any]()
    kafka.produce(topic, range(3))
    app = make_app(kafka)

    @app.topic(topic, manual_offsets=True, **ONCE)
    def forward(batch: Batch, ctx: Context) -> None:
        ctx.state["last"] = batch.last
        for message in batch:
            ctx.produce(out, message.payload)
        gate.wait()

    @app.before_revoke(forward)
    def flush(ctx: Context) -> None:
        ctx.produce(out, 3)
        ctx.mark_as_consumed(ctx.state["last"])

    @app.on_revoked(forward)
    def gone(ctx: Context) -> None:
        late.append(ctx.produce(out, "never"))

    with opened(gate), running(app):
        gate.reached()
        with another_member(kafka, app, topic):
            gate.open()
            wait_until(lambda: late and late[0].done(), message="the partition is taken")
            assert isinstance(late[0].exception(), ProduceError)
            assert kafka.committed(group_of(app), topic) == 3
            wait_until(lambda: numbers(kafka, out) == [0, 1, 2, 3])


def test_past_the_bound_what_is_marked_is_committed_and_what_comes_later_never_leaves(kafka: Observer) -> None:
    topic, out, gate, late = kafka.topic(), kafka.topic(), Gate(), list[Any]()
    kafka.produce(topic, range(2))
    app = make_app(kafka, drain_timeout_ms=300)

    @app.topic(topic, manual_offsets=True, **ONCE)
    def forward(batch: Batch, ctx: Context) -> None:
        ctx.produce(out, 0)
        ctx.mark_as_consumed(batch.first)
        ctx.produce(out, 1)
        gate.wait()
        late.append(ctx.mark_as_consumed(batch.last))
        late.append(ctx.produce(out, 2))

    app.start()
    with opened(gate):
        gate.reached()
        with stopped_aside(app) as answer:
            assert not answer(), "the handler is stuck"
            wait_until(lambda: (kafka.committed(group_of(app), topic), numbers(kafka, out)) == (1, [0]))
            gate.open()
            wait_until(lambda: len(late) == 2)
    assert late[0] is False
    assert isinstance(wait_until(lambda: late[1].done() and late[1].exception()), ProduceError)
    wait_until(lambda: numbers(kafka, out) == [0])


# -- refused messages --------------------------------------------------------------------------------------------------


def test_a_refused_message_fails_its_own_run_and_the_partition_beside_it_does_not_run_again(kafka: Observer) -> None:
    topic, out, small = kafka.topic(2), kafka.topic(), kafka.topic(max_message_bytes=1500)
    calls, errors = list[tuple[int, int]](), list[Any]()
    kafka.produce(topic, range(2), 0)
    kafka.produce(topic, range(3), 1)
    app = make_app(kafka)

    @app.topic(topic, max_messages=3, **ONCE)
    def forward(batch: Batch, ctx: Context) -> None:
        calls.append((ctx.partition, ctx.attempt))
        for message in batch:
            ctx.produce(out, f"{ctx.partition}.{message.payload}")
        if ctx.partition == 1 and ctx.attempt < 3:
            ctx.produce(small, b"x" * 5000)
        if (ctx.partition, ctx.attempt) == (0, 1):  # both are in one transaction
            wait_until(lambda: (1, 1) in calls)

    @app.observe
    def note(event: Any) -> None:
        if isinstance(event, CallEnded) and event.error is not None:
            errors.append((event.partition, event.error))

    with running(app):
        wait_until(lambda: [kafka.committed(group_of(app), topic, n) for n in (0, 1)] == [2, 3])
    assert [attempt for partition, attempt in calls if partition == 0] == [1]
    assert [attempt for partition, attempt in calls if partition == 1] == [1, 2, 3]
    assert [(partition, type(error)) for partition, error in errors] == [(1, ProduceError)] * 2
    wait_until(lambda: sorted(values(kafka, out)) == ["0.0", "0.1", "1.0", "1.1", "1.2"])
    wait_until(lambda: values(kafka, small) == [])


def test_marks_behind_a_refused_message_are_void_and_those_before_it_count(kafka: Observer) -> None:
    topic, out, small = kafka.topic(), kafka.topic(), kafka.topic(max_message_bytes=1500)
    kafka.produce(topic, range(4))
    app, tries, after = make_app(kafka), list[int](), list[str]()

    @app.topic(topic, manual_offsets=True, **ONCE)
    def forward(batch: Batch, ctx: Context) -> None:
        tries.append(batch.first.payload)
        for message in batch:
            ctx.produce(out, f"{message.payload} of try {len(tries)}")
            if len(tries) == 1 and message.payload == 2:
                ctx.produce(small, b"x" * 5000)
            ctx.mark_as_consumed(message)
        if len(tries) == 1:
            with pytest.raises(ProduceError, match="too large"):
                ctx.commit_offsets(sync=True)
            with pytest.raises(ProduceError, match="too large"):
                ctx.mark_as_consumed(batch.last)
            with pytest.raises(ProduceError, match="too large"):
                ctx.produce(out, "after it")
            after.append("raised")

    with running(app):
        wait_until(lambda: kafka.committed(group_of(app), topic) == 4)
    assert (tries, after) == ([0, 2], ["raised"])
    wait_until(lambda: values(kafka, out) == ["0 of try 1", "1 of try 1", "2 of try 2", "3 of try 2"])


@pytest.mark.parametrize("kind", ["split", "no topic", "no partition"])
def test_each_way_to_be_refused_names_its_message_and_holds_up_nothing(kafka: Observer, kind: str) -> None:
    topic, out, small = kafka.topic(2), kafka.topic(), kafka.topic(max_message_bytes=1500)
    calls, errors = Counter[int](), list[str]()
    for partition in (0, 1):
        kafka.produce(topic, range(20), partition)
    app = make_app(kafka)

    @app.topic(topic, **ONCE)
    def forward(batch: Batch, ctx: Context) -> None:
        calls[ctx.partition] += 1
        bad = ctx.partition == 1 and calls[1] == 1
        for message in batch:
            ctx.produce(small, f"{ctx.partition}.{message.payload}")
            if bad and message.payload == 10:
                if kind == "split":
                    ctx.produce(small, b"x" * 5000)
                else:
                    ctx.produce(out if kind == "no partition" else f"{out}-missing", b"", partition=7)

    @app.observe
    def note(event: Any) -> None:
        if isinstance(event, CallEnded) and event.error is not None:
            errors.append(str(event.error))

    with running(app):
        wait_until(lambda: [kafka.committed(group_of(app), topic, n) for n in (0, 1)] == [20, 20], timeout=30)
    assert calls == {0: 1, 1: 2}
    assert len(errors) == 1
    assert {"split": f"too large for topic {small}", "no topic": "missing", "no partition": "no partition 7"}[
        kind
    ] in errors[0]
    wait_until(lambda: sorted(values(kafka, small)) == sorted(f"{p}.{n}" for p in (0, 1) for n in range(20)))


# -- dead letters ------------------------------------------------------------------------------------------------------


@pytest.mark.test_client
@pytest.mark.parametrize("manual", [False, True])
def test_a_dead_letter_leaves_with_the_mark_that_passes_its_message_without_what_the_failed_try_sent(
    kafka: Observer, manual: bool
) -> None:
    topic, out, dead = kafka.topic(), kafka.topic(), kafka.topic()
    kafka.produce(topic, range(5))
    app = make_app(kafka)

    @app.topic(topic, manual_offsets=manual, dead_letter=dead, max_retries=1, **ONCE)
    def forward(batch: Batch, ctx: Context) -> None:
        for message in ctx.each(batch):
            ctx.produce(out, message.payload)
            if message.payload == 2:
                raise RuntimeError("bad")

    with running(app):
        wait_until(lambda: kafka.committed(group_of(app), topic) == 5)
    wait_until(lambda: (numbers(kafka, out), numbers(kafka, dead)) == ([0, 1, 3, 4], [2]))


@pytest.mark.test_client
def test_by_hand_a_dead_letter_leaves_with_its_batch_and_is_dropped_with_it(kafka: Observer) -> None:
    topic, out, dead, tries = kafka.topic(), kafka.topic(), kafka.topic(), list[int]()
    kafka.produce(topic, range(5))
    app = make_app(kafka)

    @app.topic(topic, dead_letter=dead, **ONCE)
    def forward(batch: Batch, ctx: Context) -> None:
        tries.append(len(batch))
        for message in batch:
            if message.payload == 3:
                ctx.dead_letter(message, f"in try {len(tries)}")
            else:
                ctx.produce(out, message.payload)
        if len(tries) == 1:
            raise RuntimeError("the first try")

    with running(app):
        wait_until(lambda: kafka.committed(group_of(app), topic) == 5)
    wait_until(lambda: (numbers(kafka, out), numbers(kafka, dead)) == ([0, 1, 2, 4], [3]))
    assert tries[0] == 5 < sum(tries), "what was sent for it was dropped, so it comes again"


def test_manual_a_dead_letter_after_an_unmarked_message_leaves_at_once_by_itself(kafka: Observer) -> None:
    topic, out, dead, gate = kafka.topic(), kafka.topic(), kafka.topic(), Gate()
    kafka.produce(topic, range(3))
    app = make_app(kafka)

    @app.topic(topic, manual_offsets=True, dead_letter=dead, **ONCE)
    def forward(batch: Batch, ctx: Context) -> None:
        ctx.produce(out, 0)
        ctx.dead_letter(batch[1], "in the middle").result(20)
        gate.wait()
        ctx.mark_as_consumed(batch.first)

    with opened(gate), running(app):
        gate.reached()
        wait_until(lambda: (numbers(kafka, out), numbers(kafka, dead)) == ([], [1]))
        gate.open()
        wait_until(lambda: kafka.committed(group_of(app), topic) == 2)
        wait_until(lambda: numbers(kafka, out) == [0])


def test_a_dead_letter_that_is_refused_loses_and_marks_nothing(kafka: Observer) -> None:
    topic, out, dead = kafka.topic(), kafka.topic(), kafka.topic(max_message_bytes=100)
    kafka.produce(topic, ["good", "x" * 300, "good"])
    app, errors = make_app(kafka), list[str]()

    @app.topic(topic, dead_letter=dead, max_retries=0, deserializer=None, **ONCE)
    def forward(batch: Batch, ctx: Context) -> None:
        for message in ctx.each(batch):
            ctx.produce(out, message.value)
            if len(message.value or b"") > 10:
                raise RuntimeError("bad")

    @app.observe
    def note(event: Any) -> None:
        if isinstance(event, CallEnded) and event.error is not None:
            errors.append(str(event.error))

    with running(app):
        wait_until(lambda: sum("could not send to the dead-letter topic" in error for error in errors) > 1)
        assert kafka.committed(group_of(app), topic) == 1
        wait_until(lambda: (values(kafka, out), values(kafka, dead)) == (["good"], []))
    assert kafka.committed(group_of(app), topic) == 1


# -- brokers and members that fail -------------------------------------------------------------------------------------


def fails(client: Any, commits: Sequence[Commit], generation: int) -> Ended:
    return Committed({}, {commit.ownership.tp: Refusal(OSError("no broker")) for commit in commits})


def test_a_transaction_that_fails_is_tried_again_without_calling_handlers_and_holds_up_no_plain_route(
    kafka: Observer,
) -> None:
    topic, plain, out, calls = kafka.topic(), kafka.topic(), kafka.topic(), list[int]()
    app = make_app(kafka, auto_commit_interval_ms=20)

    @app.topic(topic, **ONCE)
    def forward(batch: Batch, ctx: Context) -> None:
        calls.append(len(batch))
        ctx.produce(out, "once")

    @app.topic(plain)
    def beside(batch: Batch, ctx: Context) -> None: ...

    with running(app):
        failing = Failing(app, fails, times=5)
        kafka.produce(topic, [0])
        wait_until(lambda: failing.tried)
        kafka.produce(plain, [0])
        wait_until(lambda: kafka.committed(group_of(app), plain) == 1)
        assert kafka.committed(group_of(app), topic) is None, "it is tried again after a back-off"
        wait_until(lambda: kafka.committed(group_of(app), topic) == 1)
    wait_until(lambda: values(kafka, out) == ["once"])
    assert (calls, len(failing.tried)) == ([1], 6)


@pytest.mark.parametrize("committed", [False, True])
def test_where_nobody_knows_whether_it_was_committed_the_member_joins_anew_and_the_brokers_say_where_to_begin(
    kafka: Observer, committed: bool
) -> None:
    topic, out, calls, revoked = kafka.topic(), kafka.topic(), list[int](), list[str]()
    app = make_app(kafka)

    @app.topic(topic, **ONCE)
    def forward(batch: Batch, ctx: Context) -> None:
        calls.append(batch.first.payload)
        ctx.produce_many(out, batch.payloads)

    @app.on_revoked(forward)
    def gone(ctx: Context) -> None:
        revoked.append("revoked")

    with running(app):
        transactions = transactions_of(app)
        commit = transactions.commit

        def undecided(client: Any, commits: Any, generation: int) -> Ended:
            if committed:
                commit(client, commits, generation)
            return Undecided(OSError("no answer"))

        failing = Failing(app, undecided)
        kafka.produce(topic, [7])
        wait_until(lambda: failing.tried)
        wait_until(lambda: kafka.committed(group_of(app), topic) == 1)
        kafka.produce(topic, [8])
        wait_until(lambda: kafka.committed(group_of(app), topic) == 2)
    wait_until(lambda: numbers(kafka, out) == [7, 8])
    assert (calls, revoked) == ([7, 8] if committed else [7, 7, 8], ["revoked"])


def test_a_member_that_was_thrown_out_amid_a_transaction_commits_nothing_of_it(kafka: Observer) -> None:
    topic, out, calls = kafka.topic(), kafka.topic(), list[int]()
    app = make_app(kafka)

    @app.topic(topic, **ONCE)
    def forward(batch: Batch, ctx: Context) -> None:
        calls.append(batch.first.payload)
        ctx.produce_many(out, batch.payloads)

    with running(app):
        transactions, seen = transactions_of(app), list[Any]()
        commit = transactions.commit

        def evicted(client: Any, commits: Any, generation: int) -> Ended:
            evict(kafka, group_of(app))
            seen.append(commit(client, commits, generation))
            return seen[0]

        Failing(app, evicted)
        kafka.produce(topic, [7])
        wait_until(lambda: kafka.committed(group_of(app), topic) == 1)
    assert seen[0].refusals, "the generation is over"
    wait_until(lambda: numbers(kafka, out) == [7])
    assert calls == [7, 7]


def test_a_blocking_mark_that_is_not_committed_in_time_raises_and_is_committed_later_once(kafka: Observer) -> None:
    topic, out, gate, told = kafka.topic(), kafka.topic(), Gate(), list[Any]()
    app = make_app(kafka)

    @app.topic(topic, manual_offsets=True, **ONCE)
    def forward(batch: Batch, ctx: Context) -> None:
        future = ctx.produce(out, "once")
        with pytest.raises(
            CommitError, match=r"within 200 ms .*a timeout does not mean that it did not happen"
        ) as late:
            ctx.mark_as_consumed(batch.first, sync=True, timeout_ms=200)
        told.extend([str(late.value), ctx.revoked, future.done()])
        gate.wait()
        told.extend([ctx.commit_offsets(sync=True), future.result(0)])

    with running(app), opened(gate):
        failing = Failing(app, fails, times=1000)
        kafka.produce(topic, [0])
        gate.reached()
        assert f"{topic}-0@1 " in told[0]
        assert told[1:] == [False, False]
        assert failing.tried
        assert (kafka.committed(group_of(app), topic), values(kafka, out)) == (None, [])
        failing.left = 0  # and nobody asks again
        wait_until(lambda: kafka.committed(group_of(app), topic) == 1)
        gate.open()
        wait_until(lambda: told[3:] == [True, (0, 0)])
    wait_until(lambda: values(kafka, out) == ["once"])


def test_a_blocking_mark_is_false_when_ownership_is_lost_meanwhile_and_what_was_sent_never_leaves(
    kafka: Observer,
) -> None:
    topic, out, told = kafka.topic(), kafka.topic(), list[Any]()
    app = make_app(kafka)

    @app.topic(topic, manual_offsets=True, **ONCE)
    def forward(batch: Batch, ctx: Context) -> None:
        future = ctx.produce(out, f"of ownership {len(told) + 1}")
        told.append((ctx.mark_as_consumed(batch.last, sync=True), ctx.revoked, future))

    with running(app):

        def lost(client: Any, commits: Sequence[Commit], generation: int) -> Ended:
            evict(kafka, group_of(app))
            return fails(client, commits, generation)

        Failing(app, lost)
        kafka.produce(topic, [0])
        wait_until(lambda: len(told) == 2)
    assert [(mark, revoked) for mark, revoked, _ in told] == [(False, True), (True, False)]
    assert isinstance(told[0][2].exception(0), ProduceError)
    wait_until(lambda: values(kafka, out) == ["of ownership 2"])
    assert kafka.committed(group_of(app), topic) == 1


ZOMBIE = """
    import signal
    from karafka_lite import App, ProduceError
    from karafka_lite.client.transactions import Writer

    topic, out, group = sys.argv[1:]
    app = App(group, bootstrap_servers=BROKERS, auto_commit_interval_ms=600_000, client_id="m",
              heartbeat_interval_ms=300, session_timeout_ms=2000, fetch_max_wait_ms=100)
    write, runs = Writer.write, []

    def frozen(self, *what):
        Writer.write = write
        say(frozen=True)
        os.kill(os.getpid(), signal.SIGSTOP)
        try:
            write(self, *what)
        except Exception as error:
            say(refused=type(error).__name__)
            raise
        say(refused=None)

    @app.topic(topic, manual_offsets=True, exactly_once=True)
    def forward(batch, ctx):
        runs.append(ctx)
        if len(runs) > 1:
            return
        ctx.produce(out, "of the zombie, marked")
        ctx.mark_as_consumed(batch[0])
        ctx.produce(out, "of the zombie, not marked")
        Writer.write = frozen
        answer = ctx.commit_offsets(sync=True)
        future = ctx.produce(out, "of the zombie, later")
        say(marks=[answer, ctx.mark_as_consumed(batch[1])], produced=type(future.exception(10)).__name__)

    sys.exit(app.run())
"""


@pytest.mark.apache_only("a process costs seconds; members that are thrown out show the fence of the embedded broker")
def test_a_member_that_was_frozen_past_its_session_as_its_transaction_began_commits_nothing_of_it(
    kafka: Observer, tmp_path: Path
) -> None:
    topic, out, group = kafka.topic(), kafka.topic(), kafka.group()
    kafka.produce(topic, range(3))
    heir = make_app(kafka, group, client_id="z")

    @heir.topic(topic, **ONCE)
    def take(batch: Batch, ctx: Context) -> None:
        ctx.produce_many(out, batch.payloads)

    with Process(kafka, ZOMBIE, tmp_path, topic, out, group) as zombie:
        zombie.until(lambda fact: "frozen" in fact)
        with running(heir):
            wait_until(lambda: kafka.committed(group, topic) == 3, message="the heir's commit")
            zombie.signal(signal.SIGCONT)
            assert zombie.until(lambda fact: "refused" in fact)["refused"]
            told = zombie.until(lambda fact: "marks" in fact)
            assert (told["marks"], told["produced"]) == ([False, False], "ProduceError")
            zombie.signal(signal.SIGTERM)
            assert zombie.wait() == 0
    assert kafka.committed(group, topic) == 3
    wait_until(lambda: numbers(kafka, out) == [0, 1, 2])


@contextmanager
def open_transaction(kafka: Observer, app: App, topic: str, offset: int) -> Iterator[Any]:
    """Of a producer of somebody else: with the next offset of partition 0, in the name of the app's group."""
    producer = KafkaProducer(bootstrap_servers=kafka.bootstrap_servers, transactional_id=kafka.name("id"))
    try:
        producer.init_transactions()
        producer.begin_transaction()
        producer.send_offsets_to_transaction({KafkaTP(topic, 0): OffsetAndMetadata(offset, "", -1)}, group_of(app))
        yield producer
    finally:
        producer.close()


@pytest.mark.parametrize("exactly_once", [True, False])
def test_a_start_waits_for_a_transaction_that_is_open_and_a_plain_one_would_not(
    kafka: Observer, exactly_once: bool
) -> None:
    topic, seen = kafka.topic(), list[int]()
    kafka.produce(topic, range(4))
    app = make_app(kafka)
    app.topic(topic, exactly_once=exactly_once)(lambda batch, ctx: seen.extend(batch.payloads))
    with open_transaction(kafka, app, topic, 3) as producer, running(app):
        wait_until(lambda: kafka.members(group_of(app)))
        if exactly_once:
            assert not seen
            producer.commit_transaction()
        wait_until(lambda: 3 in seen)
    assert seen == ([3] if exactly_once else [0, 1, 2, 3])


def test_a_partition_whose_transaction_is_open_holds_up_no_other_one(
    kafka: Observer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Brokers may take long to end it: Apache Kafka 4.3 with one node, which was killed at the wrong moment, never."""
    monkeypatch.setattr("karafka_lite.core.watch.AFTER_S", 0.2)
    topic, out, seen = kafka.topic(2), kafka.topic(), list[tuple[int, int]]()
    for partition in range(2):
        kafka.produce(topic, range(3), partition)
    app = make_app(kafka)

    @app.topic(topic, **ONCE)
    def forward(batch: Batch, ctx: Context) -> None:
        ctx.produce_many(out, batch.payloads)
        seen.extend((ctx.partition, payload) for payload in batch.payloads)

    with open_transaction(kafka, app, topic, 2) as producer, running(app):
        wait_until(lambda: kafka.committed(group_of(app), topic, 1) == 3, message="the other one is committed")
        assert all(partition == 1 for partition, _ in seen)
        wait_until(lambda: "kafka-transactions.sh find-hanging" in caplog.text, message="it is said")
        assert f"the starting offsets of {topic}-0 " in caplog.text
        producer.commit_transaction()
        wait_until(lambda: kafka.committed(group_of(app), topic, 0) == 3)
    assert sorted(seen) == [(0, 2), (1, 0), (1, 1), (1, 2)]


def test_with_latest_all_of_a_topic_wait_where_what_is_committed_for_one_is_not_known(
    kafka: Observer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a partition without a commit begins depends on all commits for its topic."""
    monkeypatch.setattr("karafka_lite.core.watch.AFTER_S", 0.2)
    topic, seen = kafka.topic(2), list[int]()
    kafka.produce(topic, range(3), 0)
    app = make_app(kafka, auto_offset_reset="latest")
    app.topic(topic, exactly_once=True)(lambda batch, ctx: seen.extend(batch.payloads))
    with open_transaction(kafka, app, topic, 2) as producer, running(app):
        wait_until(lambda: f"the starting offsets of {topic}-0, {topic}-1 " in caplog.text)
        producer.commit_transaction()
        wait_until(lambda: 2 in seen)
    assert seen == [2]


def test_two_groups_of_an_app_have_their_own_transactions_and_none_is_left_behind(kafka: Observer) -> None:
    topic, out, other = kafka.topic(), kafka.topic(), kafka.group()
    kafka.produce(topic, range(3))
    app = make_app(kafka)
    before = {thread.name for thread in threading.enumerate()}
    for group in (None, other):

        def forward(batch: Batch, ctx: Context) -> None:
            ctx.produce_many(out, [f"{ctx.group_id} {payload}" for payload in batch.payloads])

        app.topic(topic, group_id=group, **ONCE)(forward)
    with running(app):
        ids = {member._transactions.transactional_id for member in app._runner.members}  # type: ignore[union-attr]
        assert len(ids) == 2
        wait_until(lambda: [kafka.committed(group, topic) for group in (group_of(app), other)] == [3, 3])
    wait_until(
        lambda: (
            sorted(values(kafka, out)) == sorted(f"{group} {n}" for group in (group_of(app), other) for n in range(3))
        )
    )
    assert {thread.name for thread in threading.enumerate()} <= before


def test_after_8_transactions_that_have_failed_no_thread_and_no_producer_is_left(kafka: Observer) -> None:
    topic, out, small = kafka.topic(), kafka.topic(), kafka.topic(max_message_bytes=100)
    kafka.produce(topic, [0])
    app, tries, most = make_app(kafka), list[int](), list[int]()

    @app.topic(topic, exactly_once=True, backoff_ms=1, backoff_max_ms=1)
    def forward(batch: Batch, ctx: Context) -> None:
        tries.append(threading.active_count())
        ctx.produce(out, "once")
        if len(tries) <= 8:
            ctx.produce(small, b"x" * 500)

    with running(app):
        wait_until(lambda: kafka.committed(group_of(app), topic) == 1, timeout=30)
        most.append(threading.active_count())
    assert len(tries) == 9
    assert max(tries[4:]) <= max(tries[:4]) + 2, tries
    wait_until(lambda: values(kafka, out) == ["once"])


# -- at the start ------------------------------------------------------------------------------------------------------


def test_read_uncommitted_is_refused_with_such_a_route(kafka: Observer) -> None:
    app = make_app(kafka, isolation_level="read_uncommitted")
    app.topic("plain")(lambda batch, ctx: None)
    app._check_that_it_can_run()
    app.topic("orders", exactly_once=True)(lambda batch, ctx: None)
    with pytest.raises(ConfigurationError, match=r"isolation_level='read_uncommitted' .*exactly_once \(of orders\)"):
        app.start()


def test_the_whole_group_reads_what_is_committed_and_another_group_as_it_says(kafka: Observer) -> None:
    app = make_app(kafka)
    app.topic(kafka.topic(), exactly_once=True)(lambda batch, ctx: None)
    app.topic(kafka.topic())(lambda batch, ctx: None)
    app.topic(kafka.topic(), group_id=kafka.group())(lambda batch, ctx: None)
    with running(app):
        clients: list[Any] = [member._client for member in app._runner.members]  # type: ignore[union-attr]
        assert [one.settings.get("isolation_level") for one in clients] == ["read_committed", None]
