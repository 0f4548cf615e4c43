"""The runner: what dies is noticed, what waits has a bound, no stranger counts, and nothing is said under the lock."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import textwrap
import threading
import traceback
from collections.abc import Callable, Iterator
from inspect import iscoroutine
from pathlib import Path
from typing import Any

import pytest
from support.observer import wait_until
from support.stage import PATIENCE_S, FakeClient, FakeOutbox, Stage, Steps, exits, running

from karafka_lite import (
    App,
    Batch,
    BrokerUnavailableError,
    CommitError,
    ConfigurationError,
    Context,
    ProduceError,
    events,
    runner,
    workers,
)
from karafka_lite.core import group as group_module
from karafka_lite.core.answers import Committed
from karafka_lite.core.exact import ExactOwnership
from karafka_lite.core.group import Group
from karafka_lite.core.marks import Marks, Refusal
from karafka_lite.core.ownership import Run, State
from karafka_lite.core.starts import Place, Stray
from karafka_lite.core.units import UnitOwnership
from karafka_lite.coroutines import drive
from karafka_lite.ending import ExitRequest
from karafka_lite.errors import ClientBrokenError, Exit, FetchError, PollError, StrayedError
from karafka_lite.messages import Addressed
from karafka_lite.observers.observed import Observed
from karafka_lite.sending import ANSWER_SLACK_S

TP = ("t", 0)
BUG = ZeroDivisionError("a bug of ours")


def app_of(handler: Callable[[Batch, Context], object], *topics: str, **options: Any) -> App:
    app = App("group", concurrency=2, drain_timeout_ms=2000, auto_commit_interval_ms=100)
    app.topic(*(topics or ("t",)), **{"backoff_ms": 1, "backoff_max_ms": 1, **options})(handler)
    return app


def nothing(batch: Batch, ctx: Context) -> None: ...


@pytest.fixture(autouse=True)
def short_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is waited for at the end in vain, is waited for shortly."""
    monkeypatch.setattr(group_module, "FINAL_COMMIT_S", 0.2)
    monkeypatch.setattr(workers, "STUCK_END_S", 0.05)


# -- what dies is noticed


def break_down(*arguments: Any, **options: Any) -> Any:
    """As a client does whose IO thread has died."""
    raise ClientBrokenError("the IO thread has died")


def raise_bug(*arguments: Any, **more: Any) -> Any:
    raise BUG


def raise_once(error: Exception, otherwise: Callable[..., Any]) -> Callable[..., Any]:
    errors = [error]

    def call(*arguments: Any, **options: Any) -> Any:
        if errors:
            raise errors.pop()
        return otherwise(*arguments, **options)

    return call


def once(function: Callable[..., Any], *, before: bool = True) -> Callable[..., Any]:
    """``function``, whose first call raises a bug: ``before`` it did anything, or after."""
    calls: list[int] = []

    def call(*arguments: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) > 1:
            return function(*arguments, **more)
        if not before:
            function(*arguments, **more)
        raise BUG

    return call


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("name", ["begin", "end"])
def test_a_worker_that_dies_leaves_no_partition_behind(
    name: str, before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Group, name, once(getattr(Group, name), before=before))
    with running(app_of(nothing)) as stage:
        stage.cluster.send("t")
        wait_until(lambda: stage.crashes, message="the bug is passed on")
        assert stage.crashes == [BUG]
        assert stage.owned("t").run is None
        assert stage.workers.inside == {}
        assert all(thread.is_alive() for thread in stage.workers.threads), "what is due before the end needs them"


def test_a_worker_whose_run_cannot_be_ended_dies_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Group, "end", raise_bug)
    with running(app_of(nothing)) as stage:
        stage.cluster.send("t")
        wait_until(lambda: stage.crashes, message="the bug is passed on")
        assert stage.workers.inside == {}


def test_a_committer_that_dies_stops_the_app_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Group, "commit_batch", raise_bug)
    with running(app_of(nothing)) as stage:
        assert stage.request() == ExitRequest(Exit.ERROR, crashed=True)
        (crash,) = stage.wait_for(events.Crashed)
        assert (crash.thread, crash.error) == ("committer", BUG)


def test_a_client_whose_commit_raises_is_a_bug_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeClient, "commit", raise_bug)
    with running(app_of(nothing)) as stage:
        stage.cluster.send("t")
        assert stage.request() == ExitRequest(Exit.ERROR, crashed=True)
        assert [crash.thread for crash in stage.wait_for(events.Crashed)] == ["committer"]


def test_a_poller_that_dies_drains_commits_and_leaves_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(app_of(nothing)) as stage:
        stage.cluster.send("t")
        stage.wait_for(events.CallEnded)
        monkeypatch.setattr(stage.member, "_find_offsets", lambda: os_error())
        request = stage.request(left=True)
        assert (request.exit, request.left) == (Exit.ERROR, stage.member)
        assert [crash.thread for crash in stage.of(events.Crashed)] == ["poller"]
        assert stage.cluster.committed == {TP: 1}
        assert stage.client.closed


def os_error() -> None:
    """What is no Exception passes the replacement of a client by."""
    raise GeneratorExit


def test_a_worker_that_dies_ends_the_run_with_1_and_a_traceback(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The whole Runner, with a client of lists."""
    monkeypatch.setattr(Group, "begin", raise_bug)
    app = app_of(nothing)
    started = runner.Runner(app.config, ["nowhere:1"], app, Observed([]), {}, lambda end: None)
    stage = Stage(app, Steps())
    member = started.members[0]
    stage.cluster.send("t")
    member._client = FakeClient(member, stage.cluster)
    started.start()
    assert started.serve() is Exit.ERROR
    assert "the worker has crashed" in caplog.text
    assert "ZeroDivisionError: a bug of ours" in caplog.text
    assert started.ended.is_set()


@pytest.mark.parametrize("thread", [(runner.Member, "_live"), (runner.Runner, "serve")], ids=["poller", "main"])
def test_after_a_run_no_thread_of_it_is_left_however_slowly_it_ends(
    monkeypatch: pytest.MonkeyPatch, thread: tuple[type, str]
) -> None:
    function, late = getattr(*thread), threading.Event()

    def slow(owner: Any) -> None:
        function(owner)
        late.wait(0.1)

    monkeypatch.setattr(*thread, slow)
    app = app_of(nothing)
    started = runner.Runner(app.config, ["nowhere:1"], app, Observed([]), {}, lambda end: None)
    stage = Stage(app, Steps())
    member = started.members[0]
    member._client = FakeClient(member, stage.cluster)
    before = set(threading.enumerate())
    started.start_in_background()
    assert started.stop() is Exit.CLEAN
    assert set(threading.enumerate()) == before


# -- what a handler raises


class Unsayable(Exception):
    """Its text cannot be made."""

    def __str__(self) -> str:
        raise KeyboardInterrupt


class Strange(BaseException):
    pass


@pytest.mark.parametrize("error", [Unsayable(), Strange(), GeneratorExit()], ids=lambda error: type(error).__name__)
def test_whatever_a_handler_raises_workers_live(error: BaseException) -> None:
    failures = [error] * 3

    def store(batch: Batch, ctx: Context) -> None:
        if failures:
            raise failures.pop()

    with running(app_of(store)) as stage:
        stage.cluster.send("t", 3)
        ended = stage.wait_for(events.CallEnded, 4)
        assert [(call.attempt, call.error) for call in ended[:4]] == [(1, error), (2, error), (3, error), (4, None)]
        assert all(thread.is_alive() for thread in stage.workers.threads)
    assert stage.crashes == []
    assert stage.cluster.committed == {TP: 3}


def test_a_message_whose_error_has_no_text_is_given_up_like_any(monkeypatch: pytest.MonkeyPatch) -> None:
    def store(batch: Batch, ctx: Context) -> None:
        raise Unsayable

    with running(app_of(store, dead_letter="t.dead", max_retries=0)) as stage:
        stage.cluster.send("t")
        wait_until(lambda: stage.outbox.sent, message="the dead letter")
        assert dict(stage.outbox.sent[0][0].headers or ())["error"] == b"Unsayable"
        stage.outbox.answer()
        (given_up,) = stage.wait_for(events.DeadLettered)
        assert given_up.dead_letter == ("t.dead", 0, 0)
    assert stage.cluster.committed == {TP: 1}


def test_a_text_that_takes_long_is_made_once_and_holds_nobody_up() -> None:
    inside, release, asked = threading.Event(), threading.Event(), []

    class Slow(Exception):
        def __str__(self) -> str:
            asked.append(threading.current_thread().name)
            inside.set()
            assert release.wait(20)
            return "slow"

    def store(batch: Batch, ctx: Context) -> None:
        if not asked:
            raise Slow

    with running(app_of(store)) as stage:
        stage.cluster.send("t")
        try:
            assert inside.wait(20)
            assert stage.lock.acquire(timeout=5), "not under the lock"
            stage.lock.release()
        finally:
            release.set()
        failed = stage.wait_for(events.CallEnded, 1)[0]
        assert failed.reason == "Slow: slow"
    assert len(asked) == 1


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), MemoryError()], ids=repr)
def test_a_critical_error_asks_for_a_stop_with_1(error: BaseException) -> None:
    def store(batch: Batch, ctx: Context) -> None:
        raise error

    with running(app_of(store, backoff_ms=60_000, backoff_max_ms=60_000)) as stage:
        stage.cluster.send("t")
        assert stage.request() == ExitRequest(Exit.ERROR)
    assert stage.cluster.committed == {}


# -- runs that rest until their transaction has ended


def test_all_parts_that_rest_for_one_commit_go_on_after_it() -> None:
    """One that comes to its rest after the last one has made the mark waits, too."""
    went_on = list[int]()
    stage = Stage(app_of(lambda batch, ctx: None, exactly_once=True, order="key", concurrency=2), Steps())
    stage.cluster.send("t", 2)
    stage.poll(6)
    ownership, member = stage.owned("t"), stage.member
    assert isinstance(ownership, UnitOwnership)
    runs = [run for _ in range(2) if (run := member.group.begin(ownership, 0.0)) is not None]

    def workers_go_on() -> None:
        while not stage.workers.jobs.empty():
            _, job = stage.workers.jobs.get()
            if iscoroutine(job):
                drive(job)

    async def go_on(number: int) -> None:
        went_on.append(number)

    ownership.marks.hold().messages.append(Addressed("out", b"1"))
    for run in runs:
        ownership.returned(run, failed=False)
    member.group.claim(ownership, 0.0)
    for number, run in enumerate(runs):
        member._keep(run, float("inf"), go_on(number))
    workers_go_on()
    assert went_on == [], "it is not committed"
    assert member.commit_step(stage.system.now()) == 0.0
    workers_go_on()
    assert went_on == [0, 1]


def test_a_dead_letter_of_a_partition_that_was_lost_meanwhile_never_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given up, and before its letter is sent it is somebody else's, who tries it again."""
    stage = stepped(app_of(break_down, exactly_once=True, dead_letter="dead", max_retries=0))
    gives_up = ExactOwnership.gives_up

    def lose(ownership: ExactOwnership, run: Run) -> bool:
        result = gives_up(ownership, run)
        stage.member.group.lose(0.0, rejoin=False)
        return result

    monkeypatch.setattr(ExactOwnership, "gives_up", lose)
    stage.cluster.send("t")
    stage.poll()
    stage.work()
    assert stage.outbox.sent == []
    assert [event.given_up for event in stage.of(events.CallEnded)] == [None]


def test_a_run_whose_handler_has_returned_is_known_to_wait() -> None:
    with running(app_of(lambda batch, ctx: ctx.produce("out", 1))) as stage:
        stage.cluster.send("t")
        wait_until(lambda: stage.outbox.sent and stage.owned("t").calls, message="it is sent")
        wait_until(lambda: stage.owned("t").calls[0].returned, message="it waits for the answer")
        stage.outbox.answer()


# -- many messages at once


def test_many_are_counted_once_and_marks_wait_for_the_last_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = list[int]()
    plain = Marks.sending
    monkeypatch.setattr(Marks, "sending", lambda marks, count=1: (counts.append(count), plain(marks, count))[1])

    def forward(batch: Batch, ctx: Context) -> None:
        ctx.produce_many("out", range(3))
        ctx.mark_as_consumed(batch.last)

    with running(app_of(forward, manual_offsets=True)) as stage:
        stage.cluster.send("t")
        for answered in range(3):
            wait_until(lambda: len(stage.outbox.sent) == 3, message="they are sent")
            assert stage.owned("t").marks.in_flight == 3 - answered
            assert stage.cluster.committed == {}
            stage.outbox.answer(answered)
        wait_until(lambda: stage.cluster.committed == {TP: 1}, message="the commit")
    assert counts == [3]


def test_of_many_with_a_mistake_none_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(outbox: FakeOutbox, messages: Any, told: Any = None) -> Any:
        raise ValueError("messages[1]: no such partition")

    def forward(batch: Batch, ctx: Context) -> None:
        with pytest.raises(ValueError, match="no such partition"):
            ctx.produce_many("out", range(3))

    monkeypatch.setattr(FakeOutbox, "send_many", refuse)
    with running(app_of(forward)) as stage:
        stage.cluster.send("t")
        wait_until(lambda: stage.cluster.committed == {TP: 1}, message="the commit")


# -- a client that is replaced, and strangers


def test_the_committer_survives_that_its_client_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """It commits on the old one, which is closed meanwhile; what was lost is not acknowledged by that."""
    committing, replaced = threading.Event(), threading.Event()

    def slow_commit(client: FakeClient, commits: Any, generation: int) -> Any:
        if client is first:
            committing.set()
            assert replaced.wait(PATIENCE_S)
            return {} if client.closed else {TP: Refusal(OSError("closed"))}
        return commit(client, commits, generation)

    commit = FakeClient.commit
    monkeypatch.setattr(FakeClient, "commit", slow_commit)
    with running(app_of(nothing)) as stage:
        first = stage.client
        stage.cluster.send("t", 2)
        assert committing.wait(PATIENCE_S)
        monkeypatch.setattr(first, "poll", break_down)
        stage.wait_for(events.ClientFailed)
        wait_until(lambda: first.closed, message="the old client is closed")
        replaced.set()
        wait_until(lambda: stage.cluster.committed == {TP: 2}, message="the new client commits")
        assert len(stage.clients) == 2
        assert exits(stage) == []
    assert stage.of(events.Crashed) == []
    assert [lost.partitions for lost in stage.of(events.Lost)] == [(TP,)]


def stepped(app: App, *topics: str) -> Stage:
    """A member without threads whose partitions are assigned and started."""
    stage = Stage(app, Steps(), *topics)
    stage.poll(4)
    assert stage.member.group.owned
    return stage


def test_a_poll_is_woken_for_what_else_the_poller_has_to_do() -> None:
    stage = stepped(app_of(nothing))
    stage.client.poll_woken = 0
    stage.member.redirect(stage.owned("t"), 3)
    assert (stage.client.poll_woken, stage.member.group.poll_wanted) == (1, False)
    with stage.member.locked():
        pass
    assert stage.client.poll_woken == 1


def test_a_client_that_was_replaced_changes_nothing() -> None:
    stage = stepped(app_of(nothing))
    stranger, ours = FakeClient(stage.member, stage.cluster), stage.owned("t")
    stage.events.clear()
    stage.member.on_assigned(stranger, [TP])
    stage.member.on_lost(stranger)
    ask = stage.member.on_revoke(stranger, [TP])
    assert ask() is None, "it may give away what it likes"
    assert stage.owned("t") is ours
    assert ours.state is State.ASSIGNED
    assert stage.events == []
    stage.poll()
    assert stage.client.joins == 1


def test_a_hand_over_of_a_client_that_is_replaced_meanwhile_ends() -> None:
    stage = stepped(app_of(nothing))
    stage.cluster.send("t")
    stage.poll()
    run = stage.member.group.begin(stage.owned("t"), stage.system.now())
    ask = stage.member.on_revoke(stage.client, [TP])
    assert (ask() or 0) > 0, "its batch runs"
    stage.client.poll = break_down  # type: ignore[method-assign]
    stage.poll()
    assert ask() is None
    assert stage.of(events.Revoked) == [], "it was lost, and not handed over"
    assert run is not None
    assert run.ownership.state is State.LOST


def test_where_a_partition_begins_is_no_matter_of_its_successor() -> None:
    """Asked for one ownership, answered to the next: it would begin where others have gone on since."""
    stage = Stage(app_of(nothing), Steps())
    stage.poll()  # it joins
    first = stage.owned("t")

    def places(tps: Any) -> Any:
        stage.cluster.committed[TP] = 5
        answer = FakeClient.places(stage.client, tps)
        stage.member.on_lost(stage.client)
        stage.member.on_assigned(stage.client, [TP])
        stage.cluster.committed[TP] = 9
        del stage.client.places  # type: ignore[method-assign]
        return answer

    stage.client.places = places  # type: ignore[method-assign]
    stage.poll()
    assert stage.owned("t") is not first
    assert stage.of(events.Assigned) == []
    stage.poll()
    assert stage.owned("t").intake.start == 9


# -- the poll step


def test_a_plan_is_applied_though_an_answer_lacks_all_topics() -> None:
    """The app waits for a topic, so it asks for topics each second; a broker that is just starting knows none."""
    failures = [ValueError("bad")]

    def store(batch: Batch, ctx: Context) -> None:
        if batch.first_offset == 1 and failures:
            raise failures.pop()

    stage = stepped(app_of(store, "t", "ghost", manual_offsets=True, max_messages=1), "t")
    stage.cluster.send("t", 2)
    stage.poll()
    stage.work()
    assert len(stage.work() + stage.of(events.CallEnded)) == 2
    stage.client.seeks.clear()
    stage.client.missing_topics = lambda topics: set(topics)  # type: ignore[method-assign]
    stage.system.clock += 5.0  # type: ignore[attr-defined]
    assert stage.poll() == 0.0
    assert stage.client.seeks == [(TP, 0)], "what has no mark comes again"
    assert stage.client.subscribed == {"t"}
    assert [event.topics for event in stage.of(events.Waiting)][-1] == ("ghost",)


def test_a_plan_that_the_client_could_not_apply_stands() -> None:
    stage = Stage(app_of(nothing), Steps())
    stage.poll()
    apply = stage.client.apply

    def fail_once(plan: Any) -> None:
        stage.client.apply = apply  # type: ignore[method-assign]
        raise PollError("later")

    stage.client.apply = fail_once  # type: ignore[method-assign]
    stage.cluster.send("t")
    assert stage.poll() == runner.LOOK_AGAIN_S
    assert stage.client.seeks == []
    stage.poll()
    assert stage.client.seeks == [(TP, 0)]


@pytest.mark.parametrize(
    ("error", "kind", "rest"),
    [
        (BrokerUnavailableError("none"), events.Unreachable, runner.TOPICS_CHECK_S),
        (PollError("no leader"), events.PollFailed, runner.LOOK_AGAIN_S),
        (FetchError("corrupt", "t", 0, 7), events.Unreadable, 0.0),
        (ClientBrokenError("the IO thread has died"), events.ClientFailed, 0.0),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_what_a_poll_raises_is_said_and_tried_again(error: Exception, kind: Any, rest: float) -> None:
    stage = stepped(app_of(nothing))
    raised: list[Exception] = [error]

    def poll() -> Any:
        if raised:
            raise raised.pop()
        return FakeClient.poll(stage.clients[0])

    stage.client.poll = poll  # type: ignore[method-assign]
    assert stage.poll() == rest
    assert len(stage.of(kind)) == 1
    assert stage.poll() == 0.0


@pytest.mark.parametrize(
    ("error", "code"),
    [(BrokerUnavailableError("none"), Exit.NO_BROKER), (ConfigurationError("denied"), Exit.ERROR)],
    ids=["no broker", "denied"],
)
def test_who_cannot_connect_leaves_with_its_code(error: Exception, code: Exit, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(client: FakeClient) -> None:
        raise error

    monkeypatch.setattr(FakeClient, "connect", connect)
    with running(app_of(nothing)) as stage:
        assert stage.request(left=True).exit is code
        assert stage.member.error is error
        assert stage.member.connected.is_set()


def test_nobody_works_for_a_member_that_was_lost_meanwhile() -> None:
    stage = stepped(app_of(nothing))
    stage.cluster.send("t")
    stage.poll()
    stage.client.is_lost = True
    assert stage.work() == []
    assert [lost.partitions for lost in stage.of(events.Lost)] == [(TP,)]
    assert stage.poll() == 0.0
    assert stage.client.joins == 1, "it has joined anew"


# -- a rebalance


def test_a_hand_over_waits_for_the_batch_and_its_commit() -> None:
    inside, release = threading.Event(), threading.Event()

    def store(batch: Batch, ctx: Context) -> None:
        inside.set()
        release.wait()

    with running(app_of(store)) as stage:
        try:
            stage.cluster.send("t")
            assert inside.wait(PATIENCE_S)
            ask = stage.member.on_revoke(stage.client, [TP])
            assert (ask() or 0) > 0
        finally:
            release.set()
        wait_until(lambda: stage.client.woken, message="the rebalance is woken")
        wait_until(lambda: ask() is None, message="the hand-over")
        assert stage.cluster.committed == {TP: 1}
        (revoked,) = stage.wait_for(events.Revoked)
        assert revoked.committed == {TP: 1}


# -- commits


def test_a_commit_that_fails_is_said_and_tried_again() -> None:
    stage = stepped(app_of(nothing))
    stage.cluster.send("t")
    stage.poll()
    stage.work()
    refusal = OSError("late")
    stage.client.commit = lambda commits, generation: {TP: Refusal(refusal)}  # type: ignore[method-assign]
    stage.system.clock += 10.0  # type: ignore[attr-defined]
    assert stage.member.commit_step(stage.system.now()) == 0.0
    assert [(event.offsets, event.error) for event in stage.of(events.CommitFailed)] == [({TP: 1}, refusal)]
    del stage.client.commit  # type: ignore[method-assign]
    stage.system.clock += 10.0  # type: ignore[attr-defined]
    assert stage.member.commit_step(stage.system.now()) == 0.0
    assert [event.offsets for event in stage.of(events.Committed)] == [{TP: 1}]
    assert (stage.member.commit_step(stage.system.now()) or 0) > 0


def test_with_exactly_once_all_commits_are_transactions_also_without_messages() -> None:
    """A plain one has another connection: one without an answer may be carried out after the next transaction."""
    stage, commits = stepped(app_of(nothing, exactly_once=True)), list[Any]()
    stage.cluster.send("t")
    stage.poll()
    stage.work()
    stage.member._transactions.commit = lambda *given: commits.append(given[1]) or Committed({}, {})  # type: ignore[method-assign]
    stage.system.clock += 10.0  # type: ignore[attr-defined]
    assert stage.member.commit_step(stage.system.now()) == 0.0
    assert [[(one.offset, one.sends) for one in batch] for batch in commits] == [[(1, [])]]
    assert [event.offsets for event in stage.of(events.Committed)] == [{TP: 1}]


def test_a_blocking_mark_raises_in_time_when_no_commit_succeeds() -> None:
    caught: list[CommitError] = []

    def store(batch: Batch, ctx: Context) -> None:
        began = stage.system.now()
        with pytest.raises(CommitError) as error:
            ctx.mark_as_consumed(batch.last, sync=True, timeout_ms=1500)
        assert stage.system.now() - began == pytest.approx(1.5)
        caught.append(error.value)

    stage = stepped(app_of(store, manual_offsets=True))
    refused = {TP: Refusal(OSError("no answer"))}
    stage.client.commit = lambda commits, generation: refused  # type: ignore[method-assign]
    stage.system.while_waiting = lambda: stage.member.commit_step(stage.system.now())  # type: ignore[attr-defined]
    stage.cluster.send("t")
    stage.poll()
    stage.work()
    assert "within 1500 ms (OSError: no answer)" in str(caught[0])


@pytest.mark.parametrize(
    ("lasting", "code"), [("gone", Exit.CLEAN), ("denied", Exit.FORCED)], ids=["a topic that has gone", "no right"]
)
def test_a_stop_does_not_wait_for_a_commit_that_can_never_succeed(lasting: Any, code: Exit) -> None:
    stage = stepped(app_of(nothing))
    stage.cluster.send("t")
    stage.poll()
    stage.work()
    refused = {TP: Refusal(OSError("no"), lasting)}
    stage.client.commit = lambda commits, generation: refused  # type: ignore[method-assign]
    began = stage.system.now()
    stage.system.while_waiting = lambda: stage.member.commit_step(stage.system.now())  # type: ignore[attr-defined]
    assert stage.member._wind_down() is code
    assert stage.system.now() - began < 1.0
    assert [event.lasting for event in stage.of(events.CommitFailed)] == [lasting]
    uncommitted = [event.offsets for event in stage.of(events.Uncommitted)]
    assert uncommitted == ([{TP: 1}] if lasting == "denied" else []), "of a topic that has gone nothing comes again"


def test_a_blocking_mark_of_what_can_never_be_committed_raises_at_once_and_says_why() -> None:
    caught: list[CommitError] = []

    def store(batch: Batch, ctx: Context) -> None:
        began = stage.system.now()
        for _ in range(2):  # each is tried
            with pytest.raises(CommitError) as error:
                ctx.mark_as_consumed(batch.last, sync=True)
            caught.append(error.value)
        assert stage.system.now() - began < 1.0

    tried: list[Any] = []
    stage = stepped(app_of(store, manual_offsets=True))
    refused = {TP: Refusal(OSError("no right"), "denied")}
    stage.client.commit = lambda commits, generation: tried.append(commits) or refused  # type: ignore[method-assign,func-returns-value]
    stage.system.while_waiting = lambda: stage.member.commit_step(stage.system.now())  # type: ignore[attr-defined]
    stage.cluster.send("t")
    stage.poll()
    stage.work()
    assert ["t-0@1 was refused (OSError: no right)" in str(error) for error in caught] == [True, True]
    assert len(tried) == 2


def test_a_position_that_the_log_does_not_have_is_asked_for_and_the_move_is_said() -> None:
    stage = stepped(app_of(nothing))
    stage.cluster.send("t", 3)
    stage.client.places = lambda tps: dict.fromkeys(tps, Place(2, 3, 3, None))  # type: ignore[method-assign]
    poll = stage.client.poll
    stage.client.poll = raise_once(StrayedError({TP: Stray(0)}), poll)  # type: ignore[method-assign]
    stage.poll(3)
    assert stage.client.seeks[-1] == (TP, 2)
    ((moved,),) = [stage.of(events.Moved)]
    assert (moved.expected, moved.offset, moved.reason, moved.missing) == (0, 2, "deleted", 2)
    assert len(stage.of(events.Assigned)) == 1, "it goes on, and does not begin"


# -- waits have a bound


def test_a_message_without_an_answer_fails_its_run_in_time() -> None:
    def store(batch: Batch, ctx: Context) -> None:
        ctx.produce("out", b"1")

    stage = stepped(app_of(store, backoff_ms=60_000, backoff_max_ms=60_000))
    stage.cluster.send("t")
    stage.poll()
    began = stage.system.now()
    stage.work()
    limit = stage.outbox.answer_timeout_s + ANSWER_SLACK_S
    assert limit <= stage.system.now() - began <= limit + 1.0
    (ended,) = stage.of(events.CallEnded)
    assert isinstance(ended.error, ProduceError)
    assert f"was not acknowledged within {limit:.0f} s; it may have arrived" in str(ended.error)
    assert stage.outbox.checks > 100, "a dead sender is looked for"
    stage.outbox.answer()  # too late: it changes nothing
    assert (stage.owned("t").marks.stored, stage.owned("t").marks.failure) == (None, None)


def test_a_dead_letter_without_an_answer_fails_its_run_in_time() -> None:
    def store(batch: Batch, ctx: Context) -> None:
        raise ValueError("bad")

    stage = stepped(app_of(store, dead_letter="t.dead", max_retries=0, backoff_ms=60_000, backoff_max_ms=60_000))
    stage.cluster.send("t")
    stage.poll()
    stage.work()
    (ended,) = stage.of(events.CallEnded)
    assert "could not send to the dead-letter topic (" in str(ended.error)
    assert "handler error was ValueError: bad" in str(ended.error)
    assert stage.owned("t").marks.stored is None


def test_a_handler_that_is_stuck_is_named_and_the_exit_is_2() -> None:
    release, inside = threading.Event(), threading.Event()

    def store(batch: Batch, ctx: Context) -> None:
        inside.set()
        release.wait()

    app = App("group", drain_timeout_ms=200, auto_commit_interval_ms=100)
    app.topic("t")(store)
    with running(app) as stage:
        stage.cluster.send("t")
        assert inside.wait(PATIENCE_S)
        stage.member.begin_stop()
        assert stage.request(left=True).exit is Exit.FORCED
        (stuck,) = stage.of(events.Stuck)
        assert "release.wait()" in stuck.stack
        assert stuck.limit_ms == 200
        release.set()


# -- nothing is emitted, logged or called under the lock


class LockWatch(logging.Handler):
    """What was logged by a thread that had ``lock``."""

    def __init__(self) -> None:
        super().__init__()
        self.lock_: Any = None
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if self.lock_ is not None and self.lock_.is_mine:
            self.found.append(record.getMessage())


@pytest.fixture
def watch() -> Iterator[LockWatch]:
    watch, log = LockWatch(), logging.getLogger("karafka_lite")
    log.addHandler(watch)
    yield watch
    log.removeHandler(watch)


def test_events_and_log_lines_wait_until_the_lock_is_free(watch: LockWatch) -> None:
    """All that can happen in one life: ``running`` fails where an event was emitted under the lock."""
    failures = iter([ValueError("bad"), ValueError("bad")])

    def store(batch: Batch, ctx: Context) -> None:
        for message in batch:
            ctx.mark_as_consumed(message)
            ctx.mark_as_consumed(batch.first)  # an older one, with a warning
        if batch.first_offset < 3 and (failure := next(failures, None)):
            raise failure

    with running(app_of(store, "t", "ghost", manual_offsets=True, max_messages=2, dead_letter=False), "t") as stage:
        watch.lock_ = stage.lock
        stage.cluster.send("t", 4)
        stage.wait_for(events.Committed)
        stage.client.is_lost = True
        stage.wait_for(events.Lost)
        stage.wait_for(events.Assigned, 2)
        ask = stage.member.on_revoke(stage.client, [TP])
        wait_until(lambda: ask() is None, message="the hand-over")
        stage.client.join()
        stage.wait_for(events.Assigned, 3)
        stage.client.poll = break_down  # type: ignore[method-assign]
        stage.wait_for(events.Assigned, 4)
    kinds = {type(event).__name__ for event in stage.events}
    assert {"Assigned", "CallEnded", "ClientFailed", "Committed", "Left", "Lost", "Revoked", "Waiting"} <= kinds
    assert watch.found == []


# -- an exception is raised once


def test_each_mark_after_a_failed_send_raises_its_own_error() -> None:
    depths: list[int] = []
    causes: set[int] = set()

    def store(batch: Batch, ctx: Context) -> None:
        ctx.produce("out", b"1")
        stage.outbox.answer(error=ProduceError("out: refused"))
        for _ in range(500):
            with pytest.raises(ProduceError, match="out: refused") as caught:
                ctx.mark_as_consumed(batch.last)
            depths.append(len(traceback.extract_tb(caught.value.__traceback__)))
            assert caught.value.__cause__ is not None
            causes.add(len(traceback.extract_tb(caught.value.__cause__.__traceback__)))

    stage = stepped(app_of(store))
    stage.cluster.send("t")
    stage.poll()
    stage.work()
    assert len(depths) == 500
    assert len(set(depths)) == 1
    assert causes == {0}


# -- a forked child

FORK = """
    import os, sys, threading
    sys.path[:0] = [{tests!r}]
    from support.stage import running
    from karafka_lite import App, ConfigurationError

    app = App("group", concurrency=2)
    done, results = threading.Event(), []

    @app.topic("t", manual_offsets=True)
    def store(batch, ctx):
        with stage.member.lock:  # as another thread may have it at the moment of the fork
            child = os.fork()
            if not child:
                refused = []
                uses = [
                    lambda: ctx.mark_as_consumed(batch.last), lambda: ctx.commit_offsets(), lambda: ctx.pause(1),
                    lambda: ctx.seek(0), lambda: ctx.produce("out", b"1"),
                ]
                for use in uses:
                    try:
                        use()
                    except ConfigurationError as error:
                        refused.append("belongs to the process that started it" in str(error))
                os._exit(0 if refused == [True] * 5 else 1)
        results.append(os.waitpid(child, 0)[1])
        ctx.mark_as_consumed(batch.last)
        done.set()

    with running(app) as stage:
        stage.cluster.send("t")
        assert done.wait(20)
    assert stage.cluster.committed == {{("t", 0): 1}}, stage.cluster.committed
    print(results)
"""


def test_in_a_forked_child_a_context_refuses_at_once() -> None:
    """A lock that was held at the fork stays held there: whoever waited for it would wait for ever."""
    tests = str(Path(__file__).parents[1])
    program = textwrap.dedent(FORK.format(tests=tests))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env=environment)
    assert (done.returncode, done.stdout) == (0, "[0]\n"), done.stderr
