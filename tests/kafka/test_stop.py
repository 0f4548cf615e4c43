"""The promises about the stop, its exit codes, and starting again, on a real Kafka, judged from outside.

A member with the client id "a" takes partition 0 away from "m": see test_rebalance.py.
"""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.harness import Gate, Process, make_app, opened, produce_beside, running, stopped_aside
from support.observer import Observer, wait_until

from karafka_lite import App, BrokerUnavailableError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run_here(app: App) -> int:
    """``app.run()`` in this thread, the main one; a run that does not end by itself is ended, for the test to fail."""
    rescue = threading.Timer(40, app.stop)
    rescue.start()
    try:
        return app.run()
    finally:
        rescue.cancel()
        rescue.join()


# A session of 45 s: who is gone from the group earlier than that has left it.
MEMBER = """
    from karafka_lite import App

    topic, group, gate, drain_timeout_ms = sys.argv[1:]
    app = App(group, bootstrap_servers=BROKERS, concurrency=5, auto_commit_interval_ms=600_000, client_id="m",
              drain_timeout_ms=int(drain_timeout_ms),
              heartbeat_interval_ms=300, session_timeout_ms=45_000, fetch_max_wait_ms=100)

    @app.topic(topic, max_messages=2)
    def work(batch, ctx):
        ctx.mark_as_consumed(batch.first)
        say(batch=[message.offset for message in batch])
        while not ctx.stopping:
            time.sleep(0.01)
        say(stopping=True)
        wait_for_the_gate(gate)
        say(end=ctx.mark_as_consumed(batch.last))

    @app.on_shutdown(work)
    def flush(ctx):
        say(hook="on_shutdown")

    @app.before_revoke(work)
    def hand_over(ctx):
        say(hook="before_revoke")

    @app.on_revoked(work)
    def clean_up(ctx):
        say(hook="on_revoked")

    def wait_for_the_gate(gate):
        while not os.path.exists(gate):
            time.sleep(0.01)

    sys.exit(app.run())
"""


@contextmanager
def member(kafka: Observer, folder: Path, topic: str, group: str, drain_timeout_ms: int = 60_000) -> Iterator[Process]:
    """A member in its first batch of two messages; it ends it when it is ``stopping`` and the file "gate" is there."""
    with Process(kafka, MEMBER, folder, topic, group, str(folder / "gate"), str(drain_timeout_ms)) as process:
        process.until(lambda fact: "batch" in fact)
        yield process


# -- SIGTERM, SIGINT, app.stop() --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_at_a_signal_the_batch_ends_nothing_new_is_handed_over_hooks_run_all_is_committed_and_the_group_is_left_at_once(
    kafka: Observer, tmp_path: Path, number: int
) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(10))
    with member(kafka, tmp_path, topic, group) as process:
        process.signal(number)
        process.until(lambda fact: "stopping" in fact)
        assert len(kafka.members(group)) == 1
        assert kafka.committed(group, topic) is None
        (tmp_path / "gate").touch()
        assert process.wait() == 0
        wait_until(lambda: kafka.members(group) == [], message="the group is left")
    assert process.facts == [{"batch": [0, 1]}, {"stopping": True}, {"end": True}, {"hook": "on_shutdown"}]
    assert kafka.committed(group, topic) == 2


def test_at_app_stop_the_batch_ends_nothing_new_is_handed_over_all_is_committed_and_the_group_is_left_at_once(
    kafka: Observer,
) -> None:
    topic, group, gate = kafka.topic(partitions=2), kafka.group(), Gate()
    for partition in (0, 1):
        kafka.produce(topic, range(10), partition)
    batches: list[int] = []
    contexts: list[Any] = []
    # One worker: the batch of the other partition waits for it, and is dropped.
    app = make_app(kafka, group, concurrency=1, session_timeout_ms=45_000)

    @app.topic(topic, max_messages=2)
    def work(batch: Any, ctx: Any) -> None:
        batches.append(batch.partition)
        contexts.append(ctx)
        gate.wait()

    with running(app), opened(gate):
        gate.reached()
        with stopped_aside(app) as answer:
            wait_until(lambda: contexts[0].stopping, message="stopping")
            gate.open()
            assert answer() is True
        assert kafka.members(group) == []
    assert len(batches) == 1
    committed = {partition: kafka.committed(group, topic, partition) for partition in (0, 1)}
    assert committed == {batches[0]: 2, 1 - batches[0]: None}


def test_run_returns_zero_when_a_handler_calls_app_stop_which_only_asks_and_returns_true_at_once(
    kafka: Observer,
) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(10))
    told: list[object] = []
    app = make_app(kafka, group)

    @app.topic(topic, max_messages=5)
    def work(batch: Any, ctx: Any) -> None:
        told.append((batch.first_offset, app.stop()))
        wait_until(lambda: ctx.stopping, message="stopping")
        told.append(ctx.mark_as_consumed(batch.first, sync=True))

    before = [signal.getsignal(number) for number in SIGNALS]
    assert run_here(app) == 0
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert told == [(0, True), True]
    assert kafka.committed(group, topic) == 5
    assert kafka.members(group) == []
    assert app.stop() is True


def test_an_app_that_was_stopped_can_be_started_again_and_goes_on_behind_its_last_commit(kafka: Observer) -> None:
    topic, group = kafka.topic(), kafka.group()
    seen: list[int] = []
    app = make_app(kafka, group)

    @app.topic(topic)
    def work(batch: Any, ctx: Any) -> None:
        seen.extend(message.offset for message in batch)

    signals = [signal.getsignal(number) for number in SIGNALS]
    assert app.stop() is True  # nothing ran
    for run in (1, 2, 3):
        kafka.produce(topic, range(3))
        app.start()
        assert [signal.getsignal(number) for number in SIGNALS] == signals  # those are the program's own
        wait_until(lambda run=run: len(seen) >= 3 * run, message="the messages of this run")
        assert app.stop() is True
        assert kafka.committed(group, topic) == 3 * run
        assert kafka.members(group) == []
    assert seen == list(range(9))


def test_several_groups_in_one_app_have_their_own_offsets_and_all_are_left_at_the_stop(kafka: Observer) -> None:
    topic, mine, other = kafka.topic(), kafka.group(), kafka.group()
    kafka.produce(topic, range(6))
    seen: dict[str, list[int]] = {mine: [], other: []}
    app = make_app(kafka, mine)

    @app.topic(topic)
    def automatic(batch: Any, ctx: Any) -> None:
        seen[ctx.group_id].extend(message.offset for message in batch)

    @app.topic(topic, group_id=other, manual_offsets=True)
    def manual(batch: Any, ctx: Any) -> None:
        seen[ctx.group_id].extend(message.offset for message in batch)
        if batch.first_offset == 0:
            ctx.mark_as_consumed(batch[1])

    for run in (1, 2):
        with running(app):
            wait_until(lambda run=run: len(seen[mine]) == 6 * run and len(seen[other]) >= 6 * run, message="both")
        assert (kafka.committed(mine, topic), kafka.committed(other, topic)) == (6 * run, 2)
        assert (kafka.members(mine), kafka.members(other)) == ([], [])
        kafka.produce(topic, range(6))
    assert seen == {mine: list(range(12)), other: [*range(6), *range(2, 12)]}


@pytest.mark.parametrize("error", [SystemExit(0), KeyboardInterrupt(), MemoryError()], ids=repr)
def test_a_critical_exception_marks_nothing_and_stops_the_app_in_good_order_with_exit_1(
    kafka: Observer, error: BaseException
) -> None:
    topic, group = kafka.topic(partitions=2), kafka.group()
    kafka.produce(topic, range(3), 0)
    done: list[str] = []
    app = make_app(kafka, group)

    @app.topic(topic)
    def work(batch: Any, ctx: Any) -> None:
        if batch.partition == 1:
            raise error
        done.append("batch")
        kafka.produce(topic, range(3), 1)

    @app.on_shutdown(work)
    def flush(ctx: Any) -> None:
        done.append(f"on_shutdown {ctx.partition}")

    assert run_here(app) == 1
    assert done[0] == "batch"
    assert sorted(done[1:]) == ["on_shutdown 0", "on_shutdown 1"]
    assert [kafka.committed(group, topic, partition) for partition in (0, 1)] == [3, None]
    assert kafka.members(group) == []


# -- handlers that do not return --------------------------------------------------------------------------------------


def test_a_handler_that_hangs_at_the_stop_is_named_with_its_stack_what_is_stored_is_committed_and_the_exit_is_2(
    kafka: Observer, tmp_path: Path
) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(10))
    with member(kafka, tmp_path, topic, group, drain_timeout_ms=500) as process:
        process.signal(signal.SIGTERM)
        assert process.wait() == 2
        wait_until(lambda: kafka.members(group) == [], message="the group is left")
    assert process.facts == [{"batch": [0, 1]}, {"stopping": True}]
    assert kafka.committed(group, topic) == 1
    said = process.errors()
    assert f"{topic}-0" in said
    assert "work" in said
    assert "in wait_for_the_gate" in said  # a line of the stack


def test_a_hook_that_hangs_at_the_stop_is_named_and_the_other_partitions_end_in_good_order(
    kafka: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    topic, group, gate = kafka.topic(partitions=2), kafka.group(), Gate()
    for partition in (0, 1):
        kafka.produce(topic, range(3), partition)
    seen: list[int] = []
    told: list[bool] = []
    app = make_app(kafka, group, drain_timeout_ms=1500)

    @app.topic(topic, manual_offsets=True)
    def work(batch: Any, ctx: Any) -> None:
        ctx.state["batch"] = batch
        ctx.mark_as_consumed(batch[0])
        seen.append(batch.partition)

    @app.on_shutdown(work)
    def flush(ctx: Any) -> None:
        if ctx.partition == 0:
            gate.wait()
        told.append(ctx.mark_as_consumed(ctx.state["batch"][1], sync=True))

    with running(app), opened(gate):
        wait_until(lambda: sorted(seen) == [0, 1], message="both partitions")
        assert app.stop() is False
        assert told == [True]
        assert [kafka.committed(group, topic, partition) for partition in (0, 1)] == [1, 2]
        (named,) = [line for line in caplog.messages if "has not returned" in line]
        assert f"{topic}-0" in named
        assert "flush" in named
        gate.open()
        wait_until(lambda: told == [True, False], message="the hook that is too late")
    assert kafka.committed(group, topic) == 1


def test_a_handler_left_over_from_a_hand_over_is_waited_for_and_named_at_the_stop(
    kafka: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    topic, group, gate = kafka.topic(), kafka.group(), Gate()
    kafka.produce(topic, range(3))
    begins: list[int] = []
    app = make_app(kafka, group, client_id="m", drain_timeout_ms=500)
    heir = make_app(kafka, group, client_id="a")

    @app.topic(topic)
    def overstay(batch: Any, ctx: Any) -> None:
        gate.wait()

    @heir.topic(topic)
    def take(batch: Any, ctx: Any) -> None:
        begins.append(batch.first_offset)

    with running(app), opened(gate):
        gate.reached()
        with running(heir):
            wait_until(lambda: begins, message="the heir")
            assert app.stop() is False
    assert [line for line in caplog.messages if f"{topic}-0" in line and "overstay" in line]


def test_stop_returns_false_when_a_handler_hangs_and_the_app_can_be_started_again_but_waits_for_that_handler(
    kafka: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    topic, group, gate = kafka.topic(partitions=2), kafka.group(), Gate()
    kafka.produce(topic, range(4), 0)
    events: list[str] = []
    told: list[object] = []
    app = make_app(kafka, group, drain_timeout_ms=500)

    @app.topic(topic)
    def work(batch: Any, ctx: Any) -> None:
        if batch.partition == 1:
            events.append("beside it")
            return
        events.append(f"begin {batch.first_offset}")
        if not told:
            told.append(ctx.mark_as_consumed(batch[1]))
            gate.wait()
            told.append((ctx.revoked, ctx.mark_as_consumed(batch[2]), ctx.mark_as_consumed(batch[3], sync=True)))
        events.append("end")

    with running(app), opened(gate):
        gate.reached()
        assert app.stop() is False
        assert kafka.members(group) == []
        assert kafka.committed(group, topic) == 2
        (named,) = [line for line in caplog.messages if "has not returned" in line]
        assert f"{topic}-0" in named
        assert "work" in named
        assert "gate.wait()" in named

        app.start()
        produce_beside(kafka, topic, events)
        assert [event for event in events if event != "beside it"] == ["begin 0"]
        gate.open()
        wait_until(lambda: events.count("end") == 2, message="the waiting ownership")
        assert app.stop() is True
    assert [event for event in events if event != "beside it"] == ["begin 0", "end", "begin 2", "end"]
    assert told == [True, (True, False, False)]
    assert kafka.committed(group, topic) == 4


@pytest.mark.parametrize(
    ("first", "second"),
    [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGTERM)],
    ids=lambda number: number.name,
)
def test_a_second_signal_ends_the_process_at_once_with_exit_2(
    kafka: Observer, tmp_path: Path, first: int, second: int
) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(10))
    with member(kafka, tmp_path, topic, group, drain_timeout_ms=200_000) as process:
        process.signal(first)
        process.until(lambda fact: "stopping" in fact)

        def ended() -> bool:
            process.signal(second)  # within a second it is the same one
            return process.process.poll() is not None

        wait_until(ended, message="a signal after more than a second")
        assert process.wait() == 2
    assert "second signal" in process.errors()
    assert kafka.committed(group, topic) is None


# -- a stop at a bad moment -------------------------------------------------------------------------------------------


def test_a_sigterm_while_a_hand_over_drains_ends_both_in_good_order(kafka: Observer, tmp_path: Path) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(10))
    begins: list[int] = []
    heir = make_app(kafka, group, client_id="a")

    @heir.topic(topic)
    def take(batch: Any, ctx: Any) -> None:
        begins.append(batch.first_offset)

    with member(kafka, tmp_path, topic, group) as process, running(heir):
        process.until(lambda fact: "stopping" in fact)  # the heir's join asks for the partition
        process.signal(signal.SIGTERM)
        (tmp_path / "gate").touch()
        assert process.wait() == 0
        wait_until(lambda: begins, message="the heir")
        wait_until(lambda: len(kafka.members(group)) == 1, message="the group is left")
    # It was a hand-over: those are its hooks, each once.
    hand_over = [{"hook": "before_revoke"}, {"hook": "on_revoked"}]
    assert process.facts == [{"batch": [0, 1]}, {"stopping": True}, {"end": True}, *hand_over]
    assert begins[0] == 2
    assert kafka.committed(group, topic) == 10


def test_a_member_that_joins_while_another_one_stops_begins_right_behind_its_last_commit(
    kafka: Observer, tmp_path: Path
) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(10))
    begins: list[int] = []
    heir = make_app(kafka, group, client_id="a")

    @heir.topic(topic)
    def take(batch: Any, ctx: Any) -> None:
        begins.append(batch.first_offset)

    with member(kafka, tmp_path, topic, group) as process:
        process.signal(signal.SIGTERM)
        process.until(lambda fact: "stopping" in fact)
        with running(heir):
            wait_until(lambda: len(kafka.members(group)) == 2, message="the heir's join")
            (tmp_path / "gate").touch()
            assert process.wait() == 0
            wait_until(lambda: begins, message="the heir")
    assert process.facts == [{"batch": [0, 1]}, {"stopping": True}, {"end": True}, {"hook": "on_shutdown"}]
    assert begins[0] == 2


def test_a_member_that_stops_while_its_join_waits_for_the_batches_of_others_leaves_at_once(kafka: Observer) -> None:
    topic, group, gate = kafka.topic(partitions=2), kafka.group(), Gate()
    kafka.produce(topic, range(3), 0)
    contexts: list[Any] = []
    seen: list[int] = []
    long_session = {"session_timeout_ms": 45_000}
    owner = make_app(kafka, group, client_id="m", **long_session)
    guest = make_app(kafka, group, client_id="a", **long_session)
    guest.topic(topic)(lambda batch, ctx: None)

    @owner.topic(topic)
    def work(batch: Any, ctx: Any) -> None:
        contexts.append(ctx)
        if len(contexts) == 1:
            gate.wait()
        seen.append(batch.partition)

    with running(owner), opened(gate):
        gate.reached()
        guest.start()
        wait_until(lambda: contexts[0].stopping, message="the guest's join waits for the owner's batch")
        with stopped_aside(guest) as answer, opened(gate):
            wait_until(lambda: len(kafka.members(group)) == 1, timeout=4, message="the group is left at once")
            assert answer() is True
            gate.open()
        kafka.produce(topic, [0], 0)
        kafka.produce(topic, [0], 1)
        wait_until(lambda: seen[1:].count(0) >= 1 and 1 in seen, message="both partitions are the owner's")
        assert len(kafka.members(group)) == 1


SIGNAL_TO_ANOTHER_THREAD = """
    import signal
    from karafka_lite import App

    app = App(os.environ["GROUP"], bootstrap_servers=BROKERS)

    @app.topic(os.environ["TOPIC"])
    def work(batch, ctx):
        say(batch=batch.last_offset)

    threading.Thread(target=threading.Event().wait, daemon=True).start()  # the only one that takes the signal
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    sys.exit(app.run())
"""


def test_a_signal_that_does_not_interrupt_the_main_threads_wait_is_seen_all_the_same(
    kafka: Observer, tmp_path: Path
) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(3))
    with Process(kafka, SIGNAL_TO_ANOTHER_THREAD, tmp_path, TOPIC=topic, GROUP=group) as process:
        process.until(lambda fact: fact.get("batch") == 2)
        process.signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert kafka.committed(group, topic) == 3


WITHOUT_BROKER = """
    import signal
    from karafka_lite import App

    app = App("group", bootstrap_servers=BROKERS, bootstrap_timeout_ms=120_000)
    app.topic("topic")(lambda batch, ctx: None)

    def tell_when_it_runs():
        while signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            time.sleep(0.01)
        say(running=True)

    threading.Thread(target=tell_when_it_runs).start()
    sys.exit(app.run())
"""


@pytest.mark.parametrize("listens", [False, True], ids=["nobody listens", "nobody answers"])
def test_a_sigterm_before_any_broker_was_reached_ends_at_once(tmp_path: Path, listens: bool) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if listens:
            silent.listen()
        nowhere = Observer(f"127.0.0.1:{silent.getsockname()[1]}")
        with Process(nowhere, WITHOUT_BROKER, tmp_path) as process:
            process.until(lambda fact: "running" in fact)
            process.signal(signal.SIGTERM)
            assert process.wait(timeout=30) == 0  # bootstrap_timeout_ms is two minutes


def test_start_without_a_broker_raises_and_the_app_can_be_started_again(
    kafka: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic, seen = kafka.topic(), list[int]()
    kafka.produce(topic, range(3))
    # It takes connections and never answers: of those that are refused, kafka-python 3.0.12 leaves the sockets open.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        app = App(kafka.group(), bootstrap_servers=address, bootstrap_timeout_ms=1000, fetch_max_wait_ms=100)
        app.topic(topic)(lambda batch, ctx: seen.extend(message.offset for message in batch))
        with pytest.raises(BrokerUnavailableError, match=address):
            app.start()
    assert app.stop() is True
    monkeypatch.setenv("KARAFKA_LITE_BOOTSTRAP_SERVERS", kafka.bootstrap_servers)
    with running(app):
        wait_until(lambda: len(seen) == 3, message="the messages")


def test_the_stop_is_quiet_nothing_is_logged_above_info(kafka: Observer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    topic, seen = kafka.topic(), list[int]()
    kafka.produce(topic, range(3))
    app = make_app(kafka)
    app.topic(topic)(lambda batch, ctx: seen.extend(message.offset for message in batch))
    with running(app):
        wait_until(lambda: len(seen) == 3, message="the messages")
    loud = [record.getMessage() for record in caplog.records if record.levelno > logging.INFO]
    # kafka-python 3.0.12 on a busy machine; and where one turn of its loop closes a connection before it reads from it,
    # or closes one with a question for metadata on its way.
    noise = ("blocking the event loop", "(closed)>: Error receiving network data", "Metadata refresh: failed Cancelled")
    assert [line for line in loud if not any(text in line for text in noise)] == []
