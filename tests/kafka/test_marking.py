"""The promises of "Marking", on a real Kafka, judged from outside.

Unless a test gives an interval, nothing but the asked-for commit, the hand-over and the stop can commit.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import pytest
from kafka.errors import TopicAuthorizationFailedError
from support.harness import Gate, make_app, running
from support.observer import BreakableKafka, Observer, wait_until

from karafka_lite import Batch, CommitError, Context, Message
from karafka_lite.client.consumer import Client
from karafka_lite.core.answers import Commit
from karafka_lite.core.marks import Refusal


def offsets(batch: Batch) -> list[int]:
    return [message.offset for message in batch]


# -- what may be marked -----------------------------------------------------------------------------------------------


@pytest.mark.test_client
def test_a_payload_is_a_type_error_and_nothing_is_stored(kafka: Observer) -> None:
    topic, group, refused = kafka.topic(), kafka.group(), []
    kafka.produce(topic, [{"id": 1}])
    app = make_app(kafka, group)

    @app.topic(topic, manual_offsets=True)
    def store(batch: Batch, ctx: Context) -> None:
        with pytest.raises(TypeError, match="takes a Message, not dict") as caught:
            ctx.mark_as_consumed(batch[0].payload)
        refused.append(caught.value)

    with running(app):
        wait_until(lambda: refused, message="the refusal")
    assert kafka.committed(group, topic) is None


@pytest.mark.test_client
def test_a_message_of_another_partition_is_a_value_error_that_names_both_and_nothing_is_stored(kafka: Observer) -> None:
    topic, other, group = kafka.topic(2), kafka.topic(), kafka.group()
    kafka.produce(topic, ["x"], 0)
    refused: list[str] = []
    app = make_app(kafka, group)

    @app.topic(topic, manual_offsets=True)
    def store(batch: Batch, ctx: Context) -> None:
        for foreign in (Message(topic, 1, 0), Message(other, 0, 0)):
            with pytest.raises(ValueError, match=f"{foreign} does not belong to {topic}-0") as caught:
                ctx.mark_as_consumed(foreign, sync=True)
            refused.append(str(caught.value))

    with running(app):
        wait_until(lambda: len(refused) == 2, message="two refusals")
    assert [kafka.committed(group, *place) for place in ((topic, 0), (topic, 1), (other, 0))] == [None] * 3


def test_a_message_that_this_ownership_was_never_handed_is_a_value_error_and_nothing_is_skipped(
    kafka: Observer,
) -> None:
    topic, group, gate = kafka.topic(), kafka.group(), Gate()
    kafka.produce(topic, range(6))
    refused: list[str] = []
    before = make_app(kafka, group)

    @before.topic(topic, manual_offsets=True)
    def begin(batch: Batch, ctx: Context) -> None:
        ctx.mark_as_consumed(batch[1])
        gate.wait()

    with running(before):
        gate.reached()
        gate.open()
    assert kafka.committed(group, topic) == 2

    app = make_app(kafka, group)

    @app.topic(topic, manual_offsets=True, max_messages=2)
    def store(batch: Batch, ctx: Context) -> None:
        if refused:
            return
        assert offsets(batch) == [2, 3]
        # In the log, but handed to the ownership before this one; not yet handed over; beyond the end of the log.
        for never_handed in (1, 4, 99):
            with pytest.raises(
                ValueError, match=f"{topic}-0@{never_handed} was never handed to this ownership"
            ) as caught:
                ctx.mark_as_consumed(Message(topic, 0, never_handed))
            refused.append(str(caught.value))

    with running(app):
        wait_until(lambda: len(refused) == 3, message="three refusals")
    assert kafka.committed(group, topic) == 2


@pytest.mark.test_client
def test_a_message_of_an_earlier_batch_of_this_ownership_may_be_marked(kafka: Observer) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(4))
    marked: list[bool] = []
    app = make_app(kafka, group)

    @app.topic(topic, manual_offsets=True, max_messages=1)
    def store(batch: Batch, ctx: Context) -> None:
        held: list[Message] = ctx.state.setdefault("held", [])
        held.append(batch.last)
        if len(held) == 4:
            marked.append(ctx.mark_as_consumed(held[2]))

    with running(app):
        wait_until(lambda: marked, message="a mark of the third message while the fourth is in hand")
    assert marked == [True]
    assert kafka.committed(group, topic) == 3


# -- not the owner ----------------------------------------------------------------------------------------------------


def test_a_mark_without_ownership_is_false_and_stores_nothing(kafka: Observer) -> None:
    topic, group, gate = kafka.topic(), kafka.group(), Gate()
    kafka.produce(topic, range(4))
    answers: dict[str, object] = {}
    app = make_app(kafka, group, drain_timeout_ms=200)

    @app.topic(topic, manual_offsets=True)
    def store(batch: Batch, ctx: Context) -> None:
        answers["owned"] = (ctx.mark_as_consumed(batch[0]), ctx.revoked)
        gate.wait()
        answers["revoked"] = ctx.revoked
        answers["mark"] = ctx.mark_as_consumed(batch[1])
        answers["sync mark"] = ctx.mark_as_consumed(batch[2], sync=True)
        answers["commit"] = ctx.commit_offsets()
        answers["sync commit"] = ctx.commit_offsets(sync=True)

    app.start()
    try:
        gate.reached()
        assert app.stop() is False, "the handler is stuck"
    finally:
        gate.open()
    wait_until(lambda: "sync commit" in answers, message="the handler's end")

    assert answers == {
        "owned": (True, False),
        "revoked": True,
        "mark": False,
        "sync mark": False,
        "commit": False,
        "sync commit": False,
    }
    assert kafka.committed(group, topic) == 1


def test_a_blocking_mark_or_commit_is_false_when_the_ownership_ends_first(private_kafka: BreakableKafka) -> None:
    topic, group, gate = private_kafka.topic(2), private_kafka.group(), [Gate(), Gate()]
    for partition in (0, 1):
        private_kafka.produce(topic, range(3), partition)
    answers: dict[int, bool] = {}
    app = make_app(private_kafka, group, session_timeout_ms=1500)

    @app.topic(topic, manual_offsets=True)
    def store(batch: Batch, ctx: Context) -> None:
        if ctx.partition in answers:
            return
        gate[ctx.partition].wait()
        if ctx.partition == 0:
            answers[0] = ctx.mark_as_consumed(batch.last, sync=True, timeout_ms=60_000)
        else:
            ctx.mark_as_consumed(batch.last)
            answers[1] = ctx.commit_offsets(sync=True, timeout_ms=60_000)

    with running(app):
        for one in gate:
            one.reached()
        private_kafka.pause()  # no heartbeat is answered for longer than the session
        for one in gate:
            one.open()
        wait_until(lambda: len(answers) == 2, 30, "both return when the session has expired")
        private_kafka.resume()
    assert answers == {0: False, 1: False}


# -- stored, committed ------------------------------------------------------------------------------------------------


def test_a_mark_is_true_and_stored_but_not_committed_before_something_commits(kafka: Observer) -> None:
    topic, group, gate = kafka.topic(), kafka.group(), Gate()
    kafka.produce(topic, range(4))
    marked: list[bool] = []
    app = make_app(kafka, group)

    @app.topic(topic, manual_offsets=True, max_messages=2)
    def store(batch: Batch, ctx: Context) -> None:
        marked.append(ctx.mark_as_consumed(batch.last))
        if batch.last_offset == 3:
            gate.wait()

    with running(app):
        gate.reached()
        assert marked == [True, True]
        assert kafka.committed(group, topic) is None
        gate.open()
    assert kafka.committed(group, topic) == 4


@pytest.mark.test_client
def test_marks_are_committed_with_the_interval_again_and_again(kafka: Observer) -> None:
    topic, group = kafka.topic(), kafka.group()
    app = make_app(kafka, group, auto_commit_interval_ms=100)

    @app.topic(topic, manual_offsets=True)
    def store(batch: Batch, ctx: Context) -> None:
        ctx.mark_as_consumed(batch.last)

    with running(app):
        for number in range(1, 4):
            kafka.produce(topic, ["x"])
            wait_until(lambda number=number: kafka.committed(group, topic) == number, message=f"commit {number}")


def test_commits_never_pass_the_marks_also_while_a_batch_is_half_done(kafka: Observer) -> None:
    topic, group, gate = kafka.topic(), kafka.group(), Gate()
    kafka.produce(topic, range(10))
    app = make_app(kafka, group, auto_commit_interval_ms=100)

    @app.topic(topic, manual_offsets=True)
    def store(batch: Any, ctx: Any) -> None:
        ctx.mark_as_consumed(batch[3])
        gate.wait()

    with running(app):
        gate.reached()
        wait_until(
            lambda: kafka.committed(group, topic) == 4, message="the mark in the middle of the batch is committed"
        )
        gate.open()
    assert kafka.committed(group, topic) == 4


@pytest.mark.test_client
def test_marks_are_committed_at_the_stop(kafka: Observer) -> None:
    topic, group, marked = kafka.topic(), kafka.group(), []
    kafka.produce(topic, range(5))
    app = make_app(kafka, group)

    @app.topic(topic, manual_offsets=True)
    def store(batch: Batch, ctx: Context) -> None:
        marked.append(ctx.mark_as_consumed(batch[2]))

    with running(app):
        wait_until(lambda: marked, message="a mark")
        assert kafka.committed(group, topic) is None
    assert kafka.committed(group, topic) == 3


@pytest.mark.test_client
def test_marks_are_committed_at_a_hand_over(kafka: Observer) -> None:
    topic, group = kafka.topic(2), kafka.group()
    for partition in (0, 1):
        kafka.produce(topic, range(5), partition)
    marked: set[int] = set()
    app, second = make_app(kafka, group), make_app(kafka, group)

    @app.topic(topic, manual_offsets=True)
    def store(batch: Batch, ctx: Context) -> None:
        ctx.mark_as_consumed(batch[1 + ctx.partition])
        marked.add(ctx.partition)

    @second.topic(topic, manual_offsets=True)
    def look_on(batch: Batch, ctx: Context) -> None: ...

    with running(app):
        wait_until(lambda: marked == {0, 1}, message="a mark in both partitions")
        assert [kafka.committed(group, topic, partition) for partition in (0, 1)] == [None, None]
        with running(second):
            wait_until(
                lambda: [kafka.committed(group, topic, partition) for partition in (0, 1)] == [2, 3],
                message="the commit before the hand-over",
            )


@pytest.mark.test_client
def test_what_is_committed_is_the_next_offset_to_read_so_a_restart_begins_behind_the_mark(kafka: Observer) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(5))
    handed: list[list[int]] = []
    app = make_app(kafka, group)

    @app.topic(topic, manual_offsets=True)
    def store(batch: Batch, ctx: Context) -> None:
        if not handed:
            ctx.mark_as_consumed(batch[2])
        handed.append(offsets(batch))

    for times in (1, 2):
        with running(app):
            wait_until(lambda times=times: len(handed) == times, message=f"start {times}")
    assert handed == [[0, 1, 2, 3, 4], [3, 4]]


# -- older, and again -------------------------------------------------------------------------------------------------


@pytest.mark.test_client
def test_an_older_mark_is_stored_too_with_a_warning_and_its_followers_are_repeated_never_skipped(
    kafka: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(8))
    marked: list[bool] = []
    handed: list[list[int]] = []
    app = make_app(kafka, group)

    @app.topic(topic, manual_offsets=True)
    def store(batch: Batch, ctx: Context) -> None:
        handed.append(offsets(batch))
        if len(handed) == 1:
            marked.append(ctx.mark_as_consumed(batch[6], sync=True))
            marked.append(ctx.mark_as_consumed(batch[2]))

    with running(app):
        wait_until(lambda: len(marked) == 2, message="two marks")
        assert kafka.committed(group, topic) == 7
    assert marked == [True, True]
    assert kafka.committed(group, topic) == 3
    warnings = warnings_of_ours(caplog)
    assert warnings
    assert all(f"{topic}-0@2" in text and "older than the last mark" in text for text in warnings)

    with running(app):
        wait_until(lambda: len(handed) == 2, message="the restart")
    assert handed[1] == [3, 4, 5, 6, 7]


def warnings_of_ours(caplog: pytest.LogCaptureFixture) -> list[str]:
    """kafka-python has some of its own while the machine is busy."""
    ours = [record for record in caplog.records if record.name.startswith("karafka_lite")]
    return [record.getMessage() for record in ours if record.levelno >= logging.WARNING]


def test_marks_forwards_are_not_warned_about(kafka: Observer, caplog: pytest.LogCaptureFixture) -> None:
    topic, done = kafka.topic(), Gate()
    kafka.produce(topic, range(3))
    app = make_app(kafka)

    @app.topic(topic, manual_offsets=True)
    def store(batch: Batch, ctx: Context) -> None:
        for message in [*batch, batch.last]:
            ctx.mark_as_consumed(message)
        done.open()
        done.wait()

    with running(app):
        done.reached()
    assert warnings_of_ours(caplog) == []


@pytest.mark.test_client
def test_a_second_mark_of_the_same_message_is_true(kafka: Observer) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(3))
    marked: list[bool] = []
    app = make_app(kafka, group)

    @app.topic(topic, manual_offsets=True)
    def store(batch: Batch, ctx: Context) -> None:
        marked.extend(ctx.mark_as_consumed(batch[1], sync=sync) for sync in (False, False, True, True, False))

    with running(app):
        wait_until(lambda: len(marked) == 5, message="five marks of one message")
    assert marked == [True] * 5
    assert kafka.committed(group, topic) == 2


# -- sync -------------------------------------------------------------------------------------------------------------


@pytest.mark.test_client
def test_a_blocking_mark_is_on_the_broker_when_the_call_returns(kafka: Observer) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(4))
    seen: list[tuple[bool, int | None]] = []
    app = make_app(kafka, group)

    @app.topic(topic, manual_offsets=True)
    def store(batch: Batch, ctx: Context) -> None:
        for message in batch:
            seen.append((ctx.mark_as_consumed(message, sync=True), kafka.committed(group, topic)))

    with running(app):
        wait_until(lambda: len(seen) == 4, message="four blocking marks")
    assert seen == [(True, 1), (True, 2), (True, 3), (True, 4)]


@pytest.mark.test_client
def test_a_blocking_mark_is_on_the_broker_also_when_the_message_had_been_marked_before(kafka: Observer) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(4))
    seen: list[tuple[bool, int | None]] = []
    app = make_app(kafka, group)

    @app.topic(topic, manual_offsets=True)
    def store(batch: Batch, ctx: Context) -> None:
        seen.append((ctx.mark_as_consumed(batch[1]), kafka.committed(group, topic)))
        seen.append((ctx.mark_as_consumed(batch[1], sync=True), kafka.committed(group, topic)))

    with running(app):
        wait_until(lambda: len(seen) == 2, message="two marks")
    assert seen == [(True, None), (True, 2)]


@pytest.mark.test_client
def test_a_blocking_mark_behind_a_newer_one_leaves_the_older_on_the_broker(kafka: Observer) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(4))
    seen: list[int | None] = []
    app = make_app(kafka, group)

    @app.topic(topic, manual_offsets=True)
    def store(batch: Batch, ctx: Context) -> None:
        for place in (3, 1, 3):
            ctx.mark_as_consumed(batch[place], sync=True)
            seen.append(kafka.committed(group, topic))

    with running(app):
        wait_until(lambda: len(seen) == 3, message="three blocking marks")
    assert seen == [4, 2, 4]


def test_a_mark_made_while_a_commit_is_on_its_way_is_committed_too(
    kafka: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic, group, on_its_way = kafka.topic(), kafka.group(), Gate()
    kafka.produce(topic, range(3))
    seen: list[tuple[bool, int | None]] = []
    commit = Client.commit

    def slow_commit(*given: Any) -> Exception | None:
        on_its_way.wait()
        return commit(*given)

    monkeypatch.setattr(Client, "commit", slow_commit)
    app = make_app(kafka, group)

    @app.topic(topic, manual_offsets=True)
    def store(batch: Batch, ctx: Context) -> None:
        ctx.mark_as_consumed(batch[0])
        ctx.commit_offsets()
        on_its_way.reached()
        ctx.mark_as_consumed(batch[2])
        on_its_way.open()
        seen.append((ctx.commit_offsets(sync=True), kafka.committed(group, topic)))

    with running(app):
        wait_until(lambda: seen, message="the blocking commit")
    assert seen == [(True, 3)]


# -- commit_offsets ---------------------------------------------------------------------------------------------------


def test_commit_offsets_asks_for_a_commit_of_everything_stored(kafka: Observer) -> None:
    topic, group, gate = kafka.topic(2), kafka.group(), [Gate(), Gate()]
    for partition in (0, 1):
        kafka.produce(topic, range(5), partition)
    asked: list[bool] = []
    app = make_app(kafka, group)

    @app.topic(topic, manual_offsets=True)
    def store(batch: Batch, ctx: Context) -> None:
        ctx.mark_as_consumed(batch[1 + ctx.partition])
        gate[ctx.partition].wait()
        if ctx.partition == 0:
            asked.append(ctx.commit_offsets())

    with running(app):
        for one in gate:
            one.reached()
        assert kafka.committed(group, topic, 0) is kafka.committed(group, topic, 1) is None
        gate[0].open()
        wait_until(lambda: [kafka.committed(group, topic, partition) for partition in (0, 1)] == [2, 3])
        gate[1].open()
    assert asked == [True]


@pytest.mark.test_client
def test_a_blocking_commit_is_true_once_everything_stored_is_on_the_broker(kafka: Observer) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(5))
    seen: list[tuple[bool, int | None]] = []
    app = make_app(kafka, group)

    @app.topic(topic, manual_offsets=True)
    def store(batch: Batch, ctx: Context) -> None:
        for message in batch[:3]:
            ctx.mark_as_consumed(message)
        seen.append((ctx.commit_offsets(sync=True), kafka.committed(group, topic)))
        seen.append((ctx.commit_offsets(sync=True), kafka.committed(group, topic)))

    with running(app):
        wait_until(lambda: len(seen) == 2, message="two blocking commits")
    assert seen == [(True, 3), (True, 3)]


@pytest.mark.test_client
def test_a_commit_of_nothing_is_true_and_commits_nothing(kafka: Observer) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(5))
    answers: list[bool] = []
    app = make_app(kafka, group)

    @app.topic(topic, manual_offsets=True)
    def store(batch: Batch, ctx: Context) -> None:
        answers.extend([ctx.commit_offsets(), ctx.commit_offsets(sync=True, timeout_ms=1)])

    with running(app):
        wait_until(lambda: len(answers) == 2, message="two commits of nothing")
    assert answers == [True, True]
    assert kafka.committed(group, topic) is None


# -- the broker is away -----------------------------------------------------------------------------------------------


@pytest.fixture
def leaky_sockets(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """kafka-python leaves the socket of a refused connection to the garbage collector: it comes here, not later."""
    yield
    caplog.get_records("call").clear()  # they hold errors, and these the sockets
    gc.collect()


@pytest.mark.usefixtures("leaky_sockets", "impatient")
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_without_a_broker_a_blocking_mark_or_commit_waits_or_raises_but_is_never_false(
    private_kafka: BreakableKafka,
) -> None:
    topic, group = private_kafka.topic(4), private_kafka.group()
    gate = [Gate() for _ in range(4)]
    answers: dict[str, object] = {}
    runs: list[int] = []
    app = make_app(private_kafka, group, session_timeout_ms=300_000)

    @app.topic(topic, manual_offsets=True)
    def store(batch: Batch, ctx: Context) -> None:
        runs.append(ctx.partition)
        gate[ctx.partition].wait()
        if ctx.partition == 0:
            answers["mark"] = ctx.mark_as_consumed(batch.last, sync=True, timeout_ms=100_000)
        elif ctx.partition == 1:
            ctx.mark_as_consumed(batch.last)
            answers["commit"] = ctx.commit_offsets(sync=True, timeout_ms=100_000)
        elif ctx.partition == 2:
            ctx.mark_as_consumed(batch.last)
            answers["asked"] = ctx.commit_offsets()
        else:
            with pytest.raises(CommitError) as short:
                ctx.mark_as_consumed(batch.last, sync=True, timeout_ms=300)
            with pytest.raises(CommitError) as long:
                ctx.commit_offsets(sync=True, timeout_ms=2500)
            answers["raised"] = [str(short.value), str(long.value)]

    def lose_the_broker(outage: Callable[[], None], healing: Callable[[], None], before: int) -> None:
        gate[:] = [Gate() for _ in range(4)]
        for partition in range(4):
            private_kafka.produce(topic, ["x"], partition)
        for one in gate:
            one.reached()
        outage()
        for one in gate:
            one.open()
        wait_until(lambda: "raised" in answers, 30, "the CommitErrors after 3 s without a broker")
        assert answers.keys() == {"asked", "raised"}, "commit_offsets() returns at once, the blocking ones still wait"
        healing()
        wait_until(lambda: len(answers) == 4, 60, "the blocking mark and commit return when the broker is back")
        assert [private_kafka.committed(group, topic, partition) for partition in (0, 1)] == [before + 1] * 2
        for text in cast("list[str]", answers.pop("raised")):
            assert f"{topic}-3@{before + 1} " in text
            assert "a timeout does not mean that it did not happen" in text
        assert answers == {"mark": True, "commit": True, "asked": True}
        answers.clear()

    with running(app):
        lose_the_broker(private_kafka.pause, private_kafka.resume, before=0)
        lose_the_broker(private_kafka.kill, private_kafka.restart, before=1)
    assert [private_kafka.committed(group, topic, partition) for partition in range(4)] == [2, 2, 2, 2]
    assert sorted(runs) == [0, 0, 1, 1, 2, 2, 3, 3], "nobody lost a partition"


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Topics whose commits are refused; take one out to allow it."""
    topics: set[str] = set()
    commit = Client.commit

    def refusing(client: Client, commits: Sequence[Commit], generation: int) -> Mapping[tuple[str, int], Refusal]:
        allowed = [one for one in commits if one.ownership.tp[0] not in topics]
        refusal = Refusal(TopicAuthorizationFailedError("not yours"))
        refusals = {one.ownership.tp: refusal for one in commits if one not in allowed}
        return {**refusals, **commit(client, allowed, generation)} if allowed else refusals

    monkeypatch.setattr(Client, "commit", refusing)
    return topics


def test_a_refused_commit_is_retried_while_the_partition_is_ours_and_the_call_raises_but_is_never_false(
    kafka: Observer, refused: set[str]
) -> None:
    topic, group, gate = kafka.topic(), kafka.group(), Gate()
    kafka.produce(topic, range(3))
    refused.add(topic)
    answers: list[object] = []
    app = make_app(kafka, group)

    @app.topic(topic, manual_offsets=True)
    def store(batch: Batch, ctx: Context) -> None:
        with pytest.raises(CommitError) as caught:
            ctx.mark_as_consumed(batch[1], sync=True, timeout_ms=400)
        answers.append(str(caught.value))
        gate.wait()
        answers.append(ctx.mark_as_consumed(batch[1], sync=True))

    with running(app):
        gate.reached()
        assert kafka.committed(group, topic) is None
        refused.remove(topic)
        gate.open()
        wait_until(lambda: len(answers) == 2, message="the second call")
        assert kafka.committed(group, topic) == 2
    assert f"{topic}-0@2 was not acknowledged within 400 ms" in str(answers[0])
    assert "not yours" in str(answers[0]), "the cause is told"
    assert answers[1] is True


def test_a_commit_that_fails_is_kept_pending_and_tried_again_and_said_once(
    kafka: Observer, refused: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    topic, group, marked = kafka.topic(), kafka.group(), []
    kafka.produce(topic, range(3))
    refused.add(topic)
    caplog.set_level(logging.INFO, "karafka_lite")
    app = make_app(kafka, group, auto_commit_interval_ms=50)

    @app.topic(topic, manual_offsets=True)
    def store(batch: Batch, ctx: Context) -> None:
        marked.append(ctx.mark_as_consumed(batch.last))

    def said(text: str) -> int:
        return sum(text in record.getMessage() for record in caplog.records)

    with running(app):
        wait_until(lambda: said("failed, the offsets stay pending"), message="a failed commit")
        refused.remove(topic)
        wait_until(lambda: kafka.committed(group, topic) == 3, message="the retried commit")
        wait_until(lambda: said(f"commits of topic {topic} work again"), message="the good news")
        kafka.produce(topic, range(3))
        wait_until(lambda: kafka.committed(group, topic) == 6, message="the app goes on")
    assert all(marked)
    assert said("failed, the offsets stay pending") == 1


def test_a_topic_whose_commits_are_refused_does_not_hold_up_the_others(kafka: Observer, refused: set[str]) -> None:
    doomed, topic, group = kafka.topic(), kafka.topic(), kafka.group()
    for one in (doomed, topic):
        kafka.produce(one, range(3))
    refused.add(doomed)
    app = make_app(kafka, group, auto_commit_interval_ms=50)

    @app.topic(doomed, topic, manual_offsets=True)
    def store(batch: Batch, ctx: Context) -> None:
        ctx.mark_as_consumed(batch.last)

    with running(app):
        for number in (3, 6, 9):
            wait_until(lambda number=number: kafka.committed(group, topic) == number, message=f"commit of {number}")
            kafka.produce(topic, range(3))
        assert kafka.committed(group, doomed) is None
        refused.clear()
        wait_until(lambda: kafka.committed(group, doomed) == 3, message="the commit that is allowed again")
