"""Log lines: what each event says, how often, and whose lines a traceback shows."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from karafka_lite import events
from karafka_lite.errors import DeserializationError, FetchError, PollError, ProduceError, describe
from karafka_lite.messages import Message
from karafka_lite.observers import report
from karafka_lite.observers.progress import Progress
from karafka_lite.observers.report import Report

CALL = ("group", "t", 0, "store", None, 120, 124)  # and the attempt
HOOK = ("group", "t", 0, "flush", "every", -1, -1, 1)


class Log(Report):
    """A Report whose clock is set by hand; ``say`` returns the lines of some events."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.clock = 100.0
        self.caplog = caplog
        super().__init__(lambda: self.clock)

    def say(self, *said: events.Event) -> list[tuple[str, str]]:
        self.caplog.clear()
        for event in said:
            if self.wants(event):
                self.observe(event)
        return [(record.levelname, record.getMessage()) for record in self.caplog.records]

    @property
    def text(self) -> str:
        """What was logged last, with tracebacks."""
        return self.caplog.text


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Log:
    caplog.set_level(logging.INFO, logger="karafka_lite")
    return Log(caplog)


def ended(error: BaseException | None, attempt: int = 1, **more: Any) -> events.CallEnded:
    return events.CallEnded(*CALL, attempt, 0.5, error=error, reason=reason_of(error), **more)


def given_up(
    error: BaseException | None, dead_letter: tuple[str, int, int] | None, *left_out: str
) -> events.DeadLettered:
    reason = reason_of(error) or "no id"
    return events.DeadLettered("group", "t", 0, 122, "store", 4, reason, dead_letter, left_out, error)


def of_hook(error: BaseException) -> events.CallEnded:
    return events.CallEnded(*HOOK, 0.5, error=error, reason=reason_of(error))


def of_assigned(error: BaseException, **more: Any) -> events.CallEnded:
    call = "group", "t", 0, "open_file", "on_assigned", -1, -1, 2
    return events.CallEnded(*call, 0.5, error=error, reason=reason_of(error), **more)


def reason_of(error: BaseException | None) -> str:
    return "" if error is None else describe(error)


def raised(error: BaseException) -> BaseException:
    """``error``, as user code raises it."""
    try:
        raise error
    except type(error) as caught:
        return caught


# -- what each event says

LINES = [
    (events.Assigned("group", {("t", 1): (7, "committed"), ("t", 0): (0, "earliest")}),
     "INFO", "group group: assigned t-0@0 (earliest), t-1@7 (committed)"),
    (events.Revoked("group", {("t", 0): 7, ("t", 1): None}, 0.25),
     "INFO", "group group: handed over t-0@7, t-1 (no commit) in 0.250 s"),
    (events.Lost("group", (("t", 1), ("t", 0))),
     "WARNING", "group group: membership lost, nothing more is committed for t-0, t-1"),
    (events.Waiting("group", ("a", "b")),
     "WARNING", "group group: waiting for missing topics: a, b (or no Describe permission). Create them with "
     "karafka-lite run --create-topics, or kafka-topics.sh --create --topic NAME"),
    (events.TopicsCreated("group", ("t.dead",)), "INFO", "group group: created topics for dead letters: t.dead"),
    (ended(ValueError("bad"), retry_offset=122, retry_s=0.01),
     "ERROR", "t-0@120..124: store failed at attempt 1, ValueError: bad; retrying from t-0@122 in 10 ms"),
    (ended(ValueError("bad"), 3, retry_offset=120, retry_s=4.0),
     "ERROR", "t-0@120..124: store failed at attempt 3, ValueError: bad; retrying from t-0@120 in 4.0 s, and for ever; "
     "to set such a message aside after some tries: @app.topic(…, dead_letter=…)"),
    (ended(ValueError("bad"), 3, retry_offset=120, retry_s=4.0, tries=4),
     "ERROR", "t-0@120..124: store failed at attempt 3, ValueError: bad; retrying from t-0@120 in 4.0 s"),
    (ended(ValueError("bad"), 4, retry_offset=122, retry_s=8.0, culprit=122),
     "ERROR", "t-0@122 (of t-0@120..124): store failed at attempt 4, ValueError: bad; retrying from t-0@122 in 8.0 s"),
    (ended(ValueError("bad")),
     "ERROR", "t-0@120..124: store failed at attempt 1, ValueError: bad; the partition is being revoked; the next "
     "owner will retry"),
    (ended(ProduceError("out: too large"), retry_offset=120, retry_s=1.0),
     "ERROR", "t-0@120..124: store failed at attempt 1, ProduceError: out: too large; retrying from t-0@120 in 1.0 s"),
    (ended(SystemExit(3)),
     "CRITICAL", "t-0@120..124: store raised SystemExit: 3; nothing more is marked, the app stops"),
    (given_up(ValueError("bad"), None),
     "ERROR", "t-0@122: store failed 4 times, ValueError: bad; skipped (dead_letter=False)"),
    (given_up(ValueError("bad"), ("t.dead", 2, 9)),
     "ERROR", "t-0@122: store failed 4 times, ValueError: bad; sent to t.dead-2@9"),
    (given_up(ValueError("bad"), ("t.dead", 2, 9), "attempts", "error"),
     "ERROR", "t-0@122: store failed 4 times, ValueError: bad; sent to t.dead-2@9, without the headers attempts, "
     "error: with them it is too large for that topic"),
    (given_up(None, ("t.dead", 2, 9)), "WARNING", "t-0@122: store gave the message up (no id); sent to t.dead-2@9"),
    (of_hook(ValueError("bad")),
     "ERROR", "t-0 every: flush failed, ValueError: bad; everything else goes on"),
    (of_hook(ProduceError("out: too large")),
     "ERROR", "t-0 every: flush failed, ProduceError: out: too large; marks made after that send were discarded"),
    (of_assigned(OSError("no database"), retry_offset=0, retry_s=2.0),
     "ERROR", "t-0 on_assigned: open_file failed at attempt 2, OSError: no database; called again in 2.0 s, no batch "
     "before it has returned"),
    (of_assigned(OSError("no database")),
     "ERROR", "t-0 on_assigned: open_file failed at attempt 2, OSError: no database; the partition is being revoked"),
    (of_assigned(SystemExit(3), retry_offset=0, retry_s=1.0),
     "CRITICAL", "t-0 on_assigned: open_file raised SystemExit: 3; nothing more is marked, the app stops"),
    (events.ProcessHookFailed("", "on_start", "connect", OSError("no database"), "OSError: no database"),
     "CRITICAL", "on_start: connect failed, OSError: no database; the app does not start"),
    (events.ProcessHookFailed("", "on_stop", "close", OSError("gone"), "OSError: gone"),
     "ERROR", "on_stop: close failed, OSError: gone; everything else goes on"),
    (events.TakesLong(*CALL, 1, 240.4, "poll", 300_000),
     "WARNING", "t-0@120..124: store has been running for 240 s; no rebalance waits longer than "
     "max_poll_interval_ms=300000. Make batches smaller (max_messages), or raise max_poll_interval_ms"),
    (events.TakesLong(*CALL, 1, 31.0, "stop", 60_000),
     "WARNING", "t-0@120..124: store has been running for 31 s and holds up a stop, which goes on without it after "
     "drain_timeout_ms=60000. Return when ctx.stopping is True, make batches smaller (max_messages), or raise "
     "drain_timeout_ms"),
    (events.Stalled("", "for topic out to acknowledge messages", 5.2, "no answer"),
     "WARNING", "has been waiting for topic out to acknowledge messages for 5 s (no answer)"),
    (events.Stalled("group", "to join the group", 5.2, "JoinGroup has no answer yet"),
     "WARNING", "group group: has been waiting to join the group for 5 s (JoinGroup has no answer yet)"),
    (events.Resumed("group"), "INFO", "group group: works again"),
    (events.Unmarked("group", "store", 10_000),
     "WARNING", "group group: store has processed 10,000 messages since its last mark; they come again after a "
     "restart. With manual_offsets=True only what it marks is committed: ctx.mark_as_consumed(message)"),
    (events.Idle("group"),
     "INFO", "group group: no partition for this member, the group has more members than partitions"),
    (events.Unreadable("group", "t", 0, FetchError("t-0@7 is corrupt", "t", 0, 7), 2.0),
     "ERROR", "t-0@7 is corrupt; next try in 2.0 s"),
    (events.CommitFailed("group", {("t", 0): 7}, TimeoutError("late")),
     "WARNING", "group group: commit of t-0@7 failed, the offsets stay pending and are retried: TimeoutError: late"),
    (events.Uncommitted("group", {("t", 0): 7}),
     "ERROR", "group group: final commit failed; messages from these offsets will be delivered again: t-0@7"),
    (events.PollFailed("group", PollError("no leader")),
     "WARNING", "group group: polling failed, retrying: no leader"),
    (events.ClientFailed("group", RuntimeError("IO thread")),
     "ERROR", "group group: the Kafka client has broken down; a new one joins"),
    (events.Unreachable("", "no answer from localhost:9092"),
     "WARNING", "cannot reach a broker, retrying: no answer from localhost:9092"),
    (events.Stopping("group", PollError("denied")), "CRITICAL", "stopping: denied"),
    (events.Left("group", {}), "INFO", "group group: left"),
    (events.Left("group", {}, None, "shop-1"),
     "INFO", "group group: ended; the broker keeps the place of shop-1 for session_timeout_ms"),
    (events.Left("group", {}, TimeoutError("late")),
     "WARNING", "group group: could not leave the group cleanly (TimeoutError: late); the broker will notice after "
     "session_timeout_ms"),
]  # fmt: skip


@pytest.mark.parametrize(("event", "level", "line"), LINES, ids=[type(event).__name__ for event, _, _ in LINES])
def test_each_event_has_its_line(log: Log, event: events.Event, level: str, line: str) -> None:
    assert log.say(event) == [(level, line)]


def test_a_crash_is_said_with_its_traceback(log: Log) -> None:
    ((level, line),) = log.say(events.Crashed("", "worker", raised(ZeroDivisionError("a bug"))))
    assert level == "CRITICAL"
    assert line.startswith("the worker has crashed; ")
    assert "ZeroDivisionError: a bug" in log.text
    ((_, line),) = log.say(events.Crashed("group", "poller", raised(ZeroDivisionError("a bug"))))
    assert line.startswith("group group: the poller has crashed; ")


def test_a_stuck_call_is_said_with_its_stack(log: Log) -> None:
    ((level, line),) = log.say(events.Stuck(*CALL, 1, "  File orders.py, line 3\n", 60_000))
    assert (level, line) == (
        "ERROR",
        "t-0@120..124: store has not returned within drain_timeout_ms=60000; its marks are committed, the rest will be "
        "delivered again. Stack:\n  File orders.py, line 3\n",
    )
    ((_, line),) = log.say(events.Stuck(*CALL, 1, "", 60_000))
    assert line.endswith("(it has ended, and waits for what it sent to be acknowledged)")


def test_every_kind_of_event_has_a_line_or_a_reason() -> None:
    silent = {"Event", "Call", "Joined"}  # no events of their own, and one that Assigned and Idle tell of
    kinds = set(events.__all__) - silent
    assert {kind for kind in kinds if not hasattr(Report, f"_{kind.lower()}")} == set()


def test_a_kind_of_event_that_is_not_known_is_passed_over(log: Log) -> None:
    assert log.say(events.Event("group")) == []


# -- what goes well is quiet


def test_what_goes_well_is_not_said_many_times_a_second(log: Log) -> None:
    assert log.say(ended(None), events.Committed("group", {("t", 0): 7}), events.Stopping("group")) == []
    assert not log.wants(ended(None)), "nor does it take a place in the queue"
    assert not log.wants(events.Committed("group", {}))


def test_at_debug_each_batch_is_said(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="karafka_lite")
    assert log.say(ended(None, 2, lag=7)) == [("DEBUG", "t-0@120..124: store took 500.0 ms, lag 7 (attempt 2)")]
    assert log.say(events.ClientLogged("", "kafka.net", logging.ERROR, "gone"))[0] == ("DEBUG", "kafka.net: gone")


def test_commits_that_fail_are_said_once_and_so_is_their_end(log: Log) -> None:
    failed = events.CommitFailed("group", {("t", 0): 7}, TimeoutError("late"))
    other = events.CommitFailed("other", {("t", 0): 7}, TimeoutError("late"))
    assert len(log.say(failed, failed, failed)) == 1
    assert len(log.say(other)) == 1
    worked = events.Committed("group", {("t", 0): 7})
    assert log.say(worked, worked) == [("INFO", "group group: commits of topic t work again")]
    assert len(log.say(failed, other)) == 1


# -- many partitions


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda tps: events.Assigned("group", dict.fromkeys(tps, (7, "committed"))), "group group: assigned "),
        (lambda tps: events.Revoked("group", dict.fromkeys(tps, 7), 0.5), "group group: handed over "),
        (lambda tps: events.Lost("group", tuple(tps)), "group group: membership lost, nothing more is committed for "),
        (lambda tps: events.CommitFailed("group", dict.fromkeys(tps, 7), OSError("no")), "group group: commit of "),
        (lambda tps: events.Uncommitted("group", dict.fromkeys(tps, 7)), "group group: final commit failed; "),
    ],
)
def test_many_partitions_are_one_short_line_and_a_list_at_debug(
    log: Log, caplog: pytest.LogCaptureFixture, make: Any, line: str
) -> None:
    tps = [("t", number) for number in range(500)]
    ((level, text),) = Log(caplog).say(make(tps))
    assert text.startswith(line)
    assert "500 partitions (listed at debug)" in text
    assert len(text) < 200
    caplog.set_level(logging.DEBUG, logger="karafka_lite")
    (_, (debug, every)) = Log(caplog).say(make(tps))
    assert (debug, level != "DEBUG") == ("DEBUG", True)
    assert all(f"t-{number}" in every for number in range(500))
    (short,) = Log(caplog).say(make(tps[:10]))
    assert "t-9" in short[1]


# -- not again and again


@pytest.mark.parametrize(
    "event",
    [
        events.Waiting("group", ("a",)),
        events.PollFailed("group", PollError("no leader")),
        events.Unreachable("", "no answer"),
        events.Unreadable("group", "t", 0, FetchError("topic t may not be read", "t", 0, 7), 2.0),
    ],
    ids=lambda event: type(event).__name__,
)
def test_a_warning_comes_again_after_30_seconds_only(log: Log, event: events.Event) -> None:
    said = []
    for _ in range(610):
        said += [log.clock] * len(log.say(event))
        log.clock += 0.1
    assert said == pytest.approx([100.0, 130.1, 160.2], abs=0.11)


def test_a_broker_that_several_groups_cannot_reach_is_one_line(log: Log) -> None:
    assert len(log.say(events.Unreachable("one", "no answer"), events.Unreachable("two", "no answer"))) == 1


def test_another_reason_is_said_at_once(log: Log) -> None:
    for kind in (
        lambda why: events.Unreachable("", why),
        lambda why: events.PollFailed("group", PollError(why)),
        lambda why: events.Unreadable("group", "t", 0, FetchError(why, "t", 0, 7), 2.0),
    ):
        assert len(log.say(kind("one"), kind("one"), kind("another"))) == 2


def test_a_member_without_a_partition_says_so_once_until_it_has_one(log: Log) -> None:
    idle, assigned = events.Idle("group"), events.Assigned("group", {("t", 0): (0, "earliest")})
    assert len(log.say(idle, idle, events.Idle("other"))) == 2
    assert [level for level, _ in log.say(assigned, idle, idle)] == ["INFO", "INFO"]


def test_what_was_said_is_not_remembered_for_ever(log: Log) -> None:
    for number in range(2000):
        error = type(f"Error{number % 500}", (Exception,), {})(f"text {number}")
        log.say(
            events.PollFailed("group", error),
            events.Unreachable("", f"reason {number}"),
            events.Waiting("group", (f"topic-{number}",)),
            ended(ValueError(f"text {number}"), retry_offset=120, retry_s=1.0),
        )
        log.clock += 1.0
    assert len(log._silent_until) < 100


def test_errors_of_one_type_in_one_line_have_one_traceback_however_many_messages_fail(log: Log) -> None:
    def fails(error: Exception, attempt: int = 1) -> bool:
        log.say(ended(raised(error), attempt, retry_offset=120, retry_s=1.0))
        assert f"failed at attempt {attempt}, {describe(error)}; retrying" in log.text
        return "Traceback" in log.text

    assert [fails(ValueError("bad"), attempt) for attempt in (1, 2, 3)] == [True, False, False]
    assert not fails(ValueError("another text")), "it is in the line"
    assert fails(KeyError("another type"))
    log.say(given_up(raised(ValueError("bad")), ("t.dead", 0, 0)))
    assert "Traceback" not in log.text, "a dead letter is one line"
    log.say(of_hook(raised(ValueError("bad"))))
    assert "Traceback" in log.text, "another function"
    log.say(of_hook(raised(ValueError("bad"))))
    assert "Traceback" not in log.text
    log.clock += report.TRACEBACK_AGAIN_S + 1
    assert fails(ValueError("bad")), "the log may have been rotated"


def test_a_logger_that_dictconfig_has_turned_off_says_what_fails_all_the_same(log: Log) -> None:
    logger = logging.getLogger("karafka_lite")
    logger.disabled = True  # as logging.config.dictConfig does with loggers that exist and that it does not name
    try:
        assert len(log.say(ended(ValueError("bad"), retry_offset=120, retry_s=1.0))) == 1
    finally:
        logger.disabled = False


# -- whose lines are shown


def test_what_we_raise_is_said_with_the_users_line(log: Log) -> None:
    message = Message("t", 0, 120, value=b"{", deserializer=json)
    with pytest.raises(DeserializationError) as caught:
        _ = message.payload
    ((_, line),) = log.say(ended(caught.value, retry_offset=120, retry_s=1.0))
    here = caught.value.__traceback__
    assert here is not None
    assert f"({__file__}:{here.tb_lineno}); retrying from t-0@120" in line
    assert "Traceback" not in log.text


def test_a_traceback_of_the_users_own_error_begins_in_user_code(log: Log) -> None:
    from karafka_lite import App
    from karafka_lite.testing import TestClient

    app = App("group")

    @app.topic("t")
    def store(batch: Any, ctx: Any) -> None:
        raise LookupError("no such table")

    with TestClient(app) as client:
        client.send("t", 1)
        (run,) = client.run()
    assert run.exception is not None
    log.say(ended(run.exception, retry_offset=0, retry_s=1.0))
    assert "LookupError: no such table" in log.text
    assert __file__ in log.text
    assert "runner.py" not in log.text


class Unsayable(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt


@pytest.mark.parametrize("error", [ValueError("first\n  second\r\nthird"), Unsayable()], ids=["lines", "no text"])
@pytest.mark.parametrize("hook", [False, True])
def test_whatever_its_text_an_error_is_one_line(log: Log, error: Exception, hook: bool) -> None:
    event = of_hook(error) if hook else ended(error, 2, retry_offset=120, retry_s=1.0)
    log.say(event)
    ((level, line),) = log.say(event)
    assert level == "ERROR"
    assert "\n" not in line
    assert ("ValueError: first second third" if isinstance(error, ValueError) else "Unsayable") in line


def test_an_error_without_a_text_is_its_type(log: Log) -> None:
    event = of_hook(TimeoutError())
    assert log.say(event)[0][1] == "t-0 every: flush failed, TimeoutError; everything else goes on"


def test_log_lines_have_a_thread_of_their_own(caplog: pytest.LogCaptureFixture) -> None:
    delivery = report.report_delivery(Progress())
    delivery.start()
    delivery.emit(events.TopicsCreated("group", ("t.dead",)))
    delivery.emit(events.Committed("group", {}))
    delivery.emit(ended(ValueError("bad")))
    delivery.stop()
    assert [record.threadName for record in caplog.records] == ["karafka-log"]


def test_of_parts_of_a_batch_that_failed_one_is_told_of(log: Log) -> None:
    error = raised(ValueError("bad"))
    beside = ended(error, retry_offset=5, retry_s=1.0, beside=True)
    told = ended(error, retry_offset=5, retry_s=1.0)
    assert len(log.say(beside, told)) == 1
