"""The promises about a membership, a broker or a process that is lost, on a real Kafka, judged from outside."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kafka.coordinator.base import Generation
from support.harness import Gate, Process, evict, make_app, opened, owner_of, produce_beside, running, stopped_aside
from support.observer import BreakableKafka, Observer, wait_until

from karafka_lite.client.consumer import Client

# -- membership lost --------------------------------------------------------------------------------------------------

SLEEPER = """
    from karafka_lite import App

    topic, group = sys.argv[1:]
    app = App(group, bootstrap_servers=BROKERS, concurrency=5, auto_commit_interval_ms=600_000, client_id="m",
              heartbeat_interval_ms=300, session_timeout_ms=2000, fetch_max_wait_ms=100)
    old = []

    @app.topic(topic, manual_offsets=True, max_messages=5)
    def work(batch, ctx):
        if not old:
            old.append((ctx, batch))
            ctx.mark_as_consumed(batch[0], sync=True)
            ctx.mark_as_consumed(batch[1])  # stored, and nobody commits it
            say(ready=True)
            while not ctx.revoked:
                time.sleep(0.01)
            say(marks=[ctx.mark_as_consumed(batch[2]), ctx.mark_as_consumed(batch[3], sync=True),
                       ctx.commit_offsets(), ctx.commit_offsets(sync=True)])
            return
        ctx.mark_as_consumed(batch.last, sync=True)
        first, messages = old[0]
        say(batch=[message.offset for message in batch], revoked=ctx.revoked, old_revoked=first.revoked,
            old_mark=first.mark_as_consumed(messages.last))

    sys.exit(app.run())
"""


def test_a_member_that_slept_past_its_session_is_told_revoked_commits_nothing_joins_anew_and_works_again(
    kafka: Observer, tmp_path: Path
) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(10))
    heir_saw: list[int] = []
    heir = make_app(kafka, group, client_id="z")  # gives the partition back when "m" joins anew

    @heir.topic(topic, manual_offsets=True)
    def take(batch: Any, ctx: Any) -> None:
        heir_saw.extend(message.offset for message in batch)
        ctx.mark_as_consumed(batch.last, sync=True)

    with Process(kafka, SLEEPER, tmp_path, topic, group) as sleeper:
        sleeper.until(lambda fact: "ready" in fact)
        sleeper.signal(signal.SIGSTOP)
        with running(heir):
            wait_until(lambda: kafka.committed(group, topic) == 10, message="the heir's commit")
            assert heir_saw == list(range(1, 10))
            sleeper.signal(signal.SIGCONT)
            told = sleeper.until(lambda fact: "marks" in fact)
            assert told["marks"] == [False, False, False, False]
            assert kafka.committed(group, topic) == 10
            wait_until(lambda: owner_of(kafka, group, topic) == "m", message="the sleeper joins anew")
            kafka.produce(topic, range(2))
            back = sleeper.until(lambda fact: "batch" in fact)
            sleeper.until(lambda fact: "batch" in fact and fact["batch"][-1] == 11)
        # The context of the lost ownership does not come back to life with the new one.
        assert (back["batch"][0], back["revoked"], back["old_revoked"], back["old_mark"]) == (10, False, True, False)
        assert kafka.committed(group, topic) == 12
        sleeper.signal(signal.SIGTERM)
        assert sleeper.wait() == 0
    assert heir_saw == list(range(1, 10))


def test_an_evicted_member_is_told_revoked_commits_nothing_and_goes_on_from_the_last_commit(kafka: Observer) -> None:
    topic, group, gate = kafka.topic(), kafka.group(), Gate()
    kafka.produce(topic, range(50))
    told: list[object] = []
    contexts: list[Any] = []
    seen: list[int] = []
    app = make_app(kafka, group)

    # The queue is full and the partition paused when it is lost.
    @app.topic(topic, max_messages=5)
    def work(batch: Any, ctx: Any) -> None:
        contexts.append((ctx, batch))
        if len(contexts) == 1:
            ctx.mark_as_consumed(batch[1], sync=True)
            ctx.mark_as_consumed(batch[3])
            gate.wait()
            wait_until(lambda: ctx.revoked, message="revoked")
            told.append((ctx.mark_as_consumed(batch[4]), ctx.mark_as_consumed(batch[4], sync=True)))
            told.append((ctx.commit_offsets(), ctx.commit_offsets(sync=True), ctx.stopping))
        else:
            seen.extend(message.offset for message in batch)

    with running(app), opened(gate):
        gate.reached()
        (member,) = kafka.members(group)
        evict(kafka, group)
        gate.open()
        wait_until(lambda: len(seen) >= 48, message="the new ownership")
        assert kafka.members(group) != [member]
        old, batch = contexts[0]
        assert (old.revoked, old.mark_as_consumed(batch.last)) == (True, False)
        assert kafka.committed(group, topic) == 2
    assert told == [(False, False), (False, False, False)]
    assert seen == list(range(2, 50))
    assert kafka.committed(group, topic) == 50


def test_after_a_loss_the_next_ownership_does_not_start_before_the_handler_of_the_lost_one_returned(
    kafka: Observer,
) -> None:
    topic, group, gate = kafka.topic(partitions=2), kafka.group(), Gate()
    kafka.produce(topic, range(3), 0)
    events: list[str] = []
    app = make_app(kafka, group)

    @app.topic(topic)
    def work(batch: Any, ctx: Any) -> None:
        if batch.partition == 1:
            events.append("beside it")
            return
        events.append("begin")
        if "end" not in events:
            gate.wait()
        events.append("end")

    with running(app), opened(gate):
        gate.reached()
        lost = kafka.members(group)
        evict(kafka, group)
        wait_until(lambda: list(kafka.assignment(group).values()) == [[(topic, 0), (topic, 1)]], message="joined anew")
        assert kafka.members(group) != lost
        produce_beside(kafka, topic, events)
        assert events.count("begin") == 1
        gate.open()
        wait_until(lambda: events.count("end") == 2, message="the waiting ownership")
    assert [event for event in events if event != "beside it"] == ["begin", "end", "begin", "end"]
    assert kafka.committed(group, topic) == 3


def test_a_commit_that_is_refused_because_the_membership_is_gone_is_dropped_and_marks_return_false(
    kafka: Observer,
) -> None:
    topic, group, gate = kafka.topic(), kafka.group(), Gate()
    kafka.produce(topic, range(5))
    told: list[object] = []
    seen: list[int] = []
    # The next heartbeat is far away: it is the commit that hears of the eviction.
    app = make_app(kafka, group, heartbeat_interval_ms=19_000, session_timeout_ms=60_000)

    @app.topic(topic, manual_offsets=True)
    def work(batch: Any, ctx: Any) -> None:
        seen.append(batch.first_offset)
        if len(seen) == 1:
            gate.wait()
            told.append((ctx.revoked, ctx.mark_as_consumed(batch[1])))
            told.append(ctx.mark_as_consumed(batch[2], sync=True))
            told.append((ctx.revoked, ctx.mark_as_consumed(batch[3])))

    with running(app), opened(gate):
        gate.reached()
        evict(kafka, group)
        gate.open()
        wait_until(lambda: len(seen) == 2, message="joined anew")
    assert told == [(False, True), False, (True, False)]
    assert seen == [0, 0]
    assert kafka.committed(group, topic) is None


@pytest.mark.parametrize("drain", ["hand-over", "stop"])
def test_a_membership_lost_during_a_drain_is_known_at_once_and_nothing_is_committed(
    kafka: Observer, drain: str
) -> None:
    topic, group, gate = kafka.topic(), kafka.group(), Gate()
    kafka.produce(topic, range(5))
    told: list[object] = []
    contexts: list[Any] = []
    begins: list[int] = []
    # The session is long: it does not end while the test waits.
    app, heir = make_app(kafka, group, client_id="m", session_timeout_ms=45_000), make_app(kafka, group, client_id="a")

    @app.topic(topic, manual_offsets=True)
    def work(batch: Any, ctx: Any) -> None:
        contexts.append(ctx)
        ctx.mark_as_consumed(batch[2])
        wait_until(lambda: ctx.stopping, timeout=30, message="the drain")
        gate.wait()
        wait_until(lambda: ctx.revoked, message="revoked")  # nobody polls while a drain waits
        told.append((ctx.mark_as_consumed(batch[3]), ctx.mark_as_consumed(batch[4], sync=True)))

    @heir.topic(topic, manual_offsets=True)
    def take(batch: Any, ctx: Any) -> None:
        begins.append(batch.first_offset)

    with running(app), opened(gate):
        wait_until(lambda: contexts, message="the batch")
        with running(heir) if drain == "hand-over" else stopped_aside(app):
            gate.reached()
            evict(kafka, group, "m")
            gate.open()
            wait_until(lambda: told, timeout=30, message="the loss")
            if drain == "hand-over":
                wait_until(lambda: begins, message="the heir")
    assert told == [(False, False)]
    assert begins[:1] == ([0] if drain == "hand-over" else [])
    assert kafka.committed(group, topic) is None


# -- the broker is gone -----------------------------------------------------------------------------------------------


def test_no_heartbeat_answered_for_the_session_means_revoked_and_after_it_the_member_joins_anew_from_the_last_commit(
    private_kafka: BreakableKafka,
) -> None:
    kafka = private_kafka
    topic, group, gate = kafka.topic(), kafka.group(), Gate()
    kafka.produce(topic, range(50))
    told: list[object] = []
    seen: list[int] = []
    contexts: list[Any] = []
    app = make_app(kafka, group, session_timeout_ms=3000)

    @app.topic(topic, max_messages=5)
    def work(batch: Any, ctx: Any) -> None:
        contexts.append((ctx, batch))
        if len(contexts) == 1:
            ctx.mark_as_consumed(batch[1], sync=True)
            ctx.mark_as_consumed(batch[3])
            gate.wait()
            wait_until(lambda: ctx.revoked, timeout=30, message="revoked")
            told.append((ctx.mark_as_consumed(batch[4]), ctx.mark_as_consumed(batch[4], sync=True)))
        else:
            seen.extend(message.offset for message in batch)

    with running(app), opened(gate):
        gate.reached()
        kafka.pause()
        gate.open()
        try:
            wait_until(lambda: told, timeout=30, message="revoked while the broker is silent")
        finally:
            kafka.resume()
        wait_until(lambda: len(seen) >= 48, timeout=40, message="the new ownership")
        old, batch = contexts[0]
        assert (old.revoked, old.mark_as_consumed(batch.last)) == (True, False)
        assert kafka.committed(group, topic) == 2
    assert told == [(False, False)]
    assert seen == list(range(2, 50))
    assert kafka.committed(group, topic) == 50


@pytest.mark.usefixtures("impatient")
def test_a_commit_that_fails_stays_pending_is_tried_again_and_never_ends_the_app(
    private_kafka: BreakableKafka, caplog: pytest.LogCaptureFixture
) -> None:
    kafka = private_kafka
    topic, group, gate = kafka.topic(), kafka.group(), Gate()
    kafka.produce(topic, range(5))
    told: list[object] = []
    app = make_app(kafka, group, auto_commit_interval_ms=100, session_timeout_ms=60_000)

    @app.topic(topic, manual_offsets=True)
    def work(batch: Any, ctx: Any) -> None:
        if batch.first_offset == 0:
            gate.wait()
            told.append(ctx.mark_as_consumed(batch[2]))
            wait_until(lambda: "the offsets stay pending" in caplog.text, timeout=30, message="the failed commit")
            told.append((ctx.revoked, ctx.mark_as_consumed(batch[3])))
        else:
            ctx.mark_as_consumed(batch.last)

    with running(app), opened(gate):
        gate.reached()
        kafka.pause()
        gate.open()
        try:
            wait_until(lambda: len(told) == 2, timeout=40, message="the failed commit")
        finally:
            kafka.resume()
        wait_until(lambda: kafka.committed(group, topic) == 4, timeout=30, message="the pending commit")
        kafka.produce(topic, range(5))
        wait_until(lambda: kafka.committed(group, topic) == 10, message="the app works as before")
    assert told == [True, (False, True)]


@pytest.mark.usefixtures("impatient")
def test_a_stop_while_the_broker_is_silent_ends_and_says_which_offsets_are_not_committed(
    private_kafka: BreakableKafka, caplog: pytest.LogCaptureFixture
) -> None:
    kafka = private_kafka
    topic, group, gate = kafka.topic(), kafka.group(), Gate()
    kafka.produce(topic, range(5))
    app = make_app(kafka, group, session_timeout_ms=60_000, drain_timeout_ms=1000)

    @app.topic(topic, manual_offsets=True)
    def work(batch: Any, ctx: Any) -> None:
        ctx.mark_as_consumed(batch[1], sync=True)
        gate.wait()
        ctx.mark_as_consumed(batch[3])

    with running(app), opened(gate):
        gate.reached()
        kafka.pause()
        gate.open()
        try:
            assert app.stop() is False
        finally:
            kafka.resume()
    assert f"{topic}-0@4" in caplog.text
    assert kafka.committed(group, topic) in (2, 4)  # that no answer came does not mean that it did not happen


# -- where the next owner begins --------------------------------------------------------------------------------------

LATECOMER = """
    from karafka_lite import App

    topic, group = sys.argv[1:]
    app = App(group, bootstrap_servers=BROKERS, auto_commit_interval_ms=600_000, auto_offset_reset="latest",
              heartbeat_interval_ms=300, session_timeout_ms=2000, fetch_max_wait_ms=100)

    @app.topic(topic, manual_offsets=True)
    def work(batch, ctx):
        say(batch=[message.offset for message in batch])

    sys.exit(app.run())
"""


@pytest.mark.parametrize("ending", ["killed", "handed over"])
def test_with_latest_the_starting_position_is_committed_at_once_so_that_nothing_behind_it_is_skipped(
    kafka: Observer, tmp_path: Path, ending: str
) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(3))
    begins: list[int] = []
    heir = make_app(kafka, group, client_id="a", auto_offset_reset="latest")

    @heir.topic(topic, manual_offsets=True)
    def take(batch: Any, ctx: Any) -> None:
        begins.append(batch.first_offset)

    with Process(kafka, LATECOMER, tmp_path, topic, group) as first:
        wait_until(lambda: kafka.committed(group, topic) == 3, message="the starting position is committed")
        assert not any("batch" in fact for fact in first.facts)
        kafka.produce(topic, range(2))
        first.until(lambda fact: "batch" in fact)
        if ending == "killed":
            first.signal(signal.SIGKILL)
            first.wait()
        kafka.produce(topic, range(2))
        with running(heir):
            wait_until(lambda: begins, message="the next owner")
    assert begins[0] == 3


def test_with_latest_no_batch_is_handed_over_before_the_starting_position_is_committed(kafka: Observer) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(3))
    found: list[object] = []
    app = make_app(kafka, group, auto_offset_reset="latest")

    @app.topic(topic, manual_offsets=True)
    def work(batch: Any, ctx: Any) -> None:
        found.append((kafka.committed(group, topic), batch.first_offset))

    def produce_all_the_time() -> None:
        while not found:
            kafka.produce(topic, [0])

    producing = threading.Thread(target=produce_all_the_time)
    producing.start()
    with running(app):
        wait_until(lambda: found, message="the first batch")
        producing.join()
    committed, first_offset = found[0]
    assert committed == first_offset >= 3


def test_with_earliest_nothing_is_committed_until_something_is_marked(kafka: Observer) -> None:
    topic, group, gate = kafka.topic(), kafka.group(), Gate()
    kafka.produce(topic, range(5))
    told: list[bool] = []
    app = make_app(kafka, group, auto_commit_interval_ms=50)

    @app.topic(topic, manual_offsets=True)
    def work(batch: Any, ctx: Any) -> None:
        if not told:
            told.append(ctx.commit_offsets(sync=True))
            told.append(ctx.commit_offsets())
        if len(told) == 2:
            gate.wait()

    with running(app), opened(gate):
        gate.reached()
        assert kafka.committed(group, topic) is None
    assert told == [True, True]
    assert kafka.committed(group, topic) is None
    # Everything is still there for whoever comes next.
    seen: list[int] = []
    again = make_app(kafka, group)
    again.topic(topic)(lambda batch, ctx: seen.extend(message.offset for message in batch))
    with running(again):
        wait_until(lambda: len(seen) == 5, message="all messages again")
    assert kafka.committed(group, topic) == 5


def test_a_loss_is_logged_once_with_the_partitions(kafka: Observer, caplog: pytest.LogCaptureFixture) -> None:
    topic, group = kafka.topic(partitions=2), kafka.group()
    for partition in (0, 1):
        kafka.produce(topic, range(3), partition)
    seen: list[int] = []
    caplog.set_level(logging.WARNING, "karafka_lite")
    app = make_app(kafka, group)

    @app.topic(topic, manual_offsets=True)
    def work(batch: Any, ctx: Any) -> None:
        seen.append(batch.partition)

    with running(app):
        wait_until(lambda: sorted(seen) == [0, 1], message="both partitions")
        evict(kafka, group)
        wait_until(lambda: sorted(seen) == [0, 0, 1, 1], message="both partitions again")
    lines = [line for line in caplog.messages if "lost" in line]
    assert len(lines) == 1
    assert f"{topic}-0" in lines[0]
    assert f"{topic}-1" in lines[0]


# -- asked live -------------------------------------------------------------------------------------------------------


def forget_the_generation(client: Client) -> None:
    """As the client does when it hears of an eviction."""
    client._coordinator._generation = Generation.NO_GENERATION


def let_the_session_pass(client: Client) -> None:
    """As if the process had been stopped for longer than its session."""
    passed = client._session_s + 1
    client._coordinator.heartbeat.last_receive -= passed
    client._joined_at -= passed
    client._alive_until -= passed


@pytest.mark.parametrize("lose", [forget_the_generation, let_the_session_pass])
@pytest.mark.parametrize("ask", ["mark", "revoked"])
def test_the_first_question_behind_a_loss_is_answered_rightly_before_any_other_thread_has_looked(
    kafka: Observer, lose: Callable[[Client], None], ask: str
) -> None:
    topic, app, answers = kafka.topic(), make_app(kafka, session_timeout_ms=3000), list[bool]()
    kafka.produce(topic, range(2))

    @app.topic(topic, manual_offsets=True, max_messages=1)
    def work(batch: Any, ctx: Any) -> None:
        if not answers:
            lose(app.members[0]._client)  # and no other thread runs before the next line
        answers.append(ctx.mark_as_consumed(batch.last) if ask == "mark" else not ctx.revoked)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1)
    try:
        with running(app):
            wait_until(lambda: len(answers) >= 2)
    finally:
        sys.setswitchinterval(interval)
    assert answers[:2] == [False, True]
