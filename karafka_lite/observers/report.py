"""Log lines: what happened, where, and what to do about it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from karafka_lite import events
from karafka_lite.errors import ProduceError, describe
from karafka_lite.messages import TopicPartition, where
from karafka_lite.observers.delivery import Delivery
from karafka_lite.observers.frames import line_that_called_us, users_traceback
from karafka_lite.version import please_report

log = logging.getLogger("karafka_lite")

SAY_AGAIN_S = 30.0  # the same warning, while its reason lasts
NAMED = 10  # partitions that a line names; of more it says how many, and names all at debug


def report_delivery() -> Delivery:
    """Log lines on a thread of their own: a full pipe does not hold up anything else."""
    report = Report()
    return Delivery("karafka-log", [report.observe], report.wants)


class Report:
    """Logs the events of one run."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._last_errors: dict[tuple[str, TopicPartition], str] = {}  # by group and partition
        self._said: dict[tuple[object, ...], float] = {}  # when a warning was logged last, by kind
        self._commits_fail: set[str] = set()  # groups

    def wants(self, event: events.Event) -> bool:
        """Whether there is something to log: not for what goes well many times a second."""
        if isinstance(event, events.CallEnded):
            return event.error is not None or log.isEnabledFor(logging.DEBUG)
        return not isinstance(event, events.Committed) or event.group_id in self._commits_fail

    def observe(self, event: events.Event) -> None:
        """Log ``event``."""
        log_it = getattr(self, f"_{type(event).__name__.lower()}", None)
        if log_it is not None:
            log_it(event)

    # -- partitions

    def _assigned(self, event: events.Assigned) -> None:
        names = [f"{where(*tp, offset)} ({why})" for tp, (offset, why) in sorted(event.starts.items())]
        _list(logging.INFO, "group %(group)s: assigned %(names)s", names, group=event.group_id)

    def _revoked(self, event: events.Revoked) -> None:
        committed = sorted(event.committed.items())
        names = [where(*tp, offset) if offset is not None else f"{where(*tp)} (no commit)" for tp, offset in committed]
        text = "group %(group)s: handed over %(names)s in %(seconds).3f s"
        _list(logging.INFO, text, names, group=event.group_id, seconds=event.seconds)

    def _lost(self, event: events.Lost) -> None:
        text = "group %(group)s: membership lost, nothing more is committed for %(names)s"
        _list(logging.WARNING, text, [where(*tp) for tp in sorted(event.partitions)], group=event.group_id)

    def _waiting(self, event: events.Waiting) -> None:
        names, command = ", ".join(event.topics), "kafka-topics.sh --create --topic NAME"
        text = "group %s: waiting for missing topics: %s (or no Describe permission). Create them with %s"
        self._warn((event.group_id, "topics", names), text, event.group_id, names, command)

    def _topicscreated(self, event: events.TopicsCreated) -> None:
        log.info("group %s: created topics for dead letters: %s", event.group_id, ", ".join(event.topics))

    # -- calls of user code

    def _callended(self, event: events.CallEnded) -> None:
        error = event.error
        if error is None:
            log.debug("%s: %s took %.3f s (attempt %d)", event, event.function, event.seconds, event.attempt)
        elif event.hook:
            unsent = isinstance(error, ProduceError)
            text = "marks made after that send were discarded" if unsent else "everything else goes on"
            trace = None if unsent else _info(error)
            log.error("%s: %s failed, %s; %s", event, event.function, describe(error), text, exc_info=trace)
        elif event.given_up is not None:
            pass  # DeadLettered says it
        elif event.critical:
            log.critical(
                "%s: %s raised %s; nothing more is marked, the app stops", event, event.function, describe(error)
            )
        else:
            again = "the partition is being revoked; the next owner will retry"
            if event.retry_offset is not None:
                again = f"retrying from {where(*event.tp, event.retry_offset)} in {_duration(event.retry_s)}"
            self._failed(event, error, f"failed at attempt {event.attempt}", again)

    def _deadlettered(self, event: events.DeadLettered) -> None:
        message, tries = where(event.topic, event.partition, event.offset), event.attempts
        then = f"sent to {where(*event.dead_letter)}" if event.dead_letter else "skipped (dead_letter=False)"
        if event.error is None:
            log.warning("%s: %s gave the message up (%s); %s", message, event.function, event.reason, then)
        else:
            failed = f"{event.function} failed {tries} time{'s' * (tries > 1)}"
            log.error("%s: %s, %s; %s", message, failed, event.reason, then)

    def _failed(self, event: events.CallEnded, error: BaseException, how: str, then: str) -> None:
        """A traceback is logged for an error of the user's own, and once while it repeats."""
        key, text = (event.group_id, event.tp), describe(error)
        repeats = event.attempt > 1 and self._last_errors.get(key) == text
        self._last_errors[key] = text
        what = f"{event}: {event.function} {how}"
        if (line := line_that_called_us(error)) is not None:
            log.error("%s, %s (%s); %s", what, text, line, then)
        elif isinstance(error, ProduceError):
            log.error("%s, %s; %s", what, text, then)
        elif repeats:
            log.error("%s as before, %s; %s", what, text, then)
        else:
            log.error("%s; %s", what, then, exc_info=_users(error))

    def _takeslong(self, event: events.TakesLong) -> None:
        what = f"{event}: {event.function} has been running for {event.seconds:.0f} s"
        if event.what == "poll":
            text = "no rebalance waits longer than max_poll_interval_ms=%.0f. Make batches smaller (max_messages), or "
            log.warning("%s; " + text + "raise max_poll_interval_ms", what, event.limit_ms)
        else:
            text = "and holds up a %s, which goes on without it after drain_timeout_ms=%.0f. Return when ctx.stopping "
            text += "is True, make batches smaller (max_messages), or raise drain_timeout_ms"
            log.warning("%s " + text, what, event.what, event.limit_ms)

    def _unreadable(self, event: events.Unreadable) -> None:
        log.error("%s; next try in %s", event.error, _duration(event.retry_s))

    # -- commits

    def _commitfailed(self, event: events.CommitFailed) -> None:
        if event.group_id not in self._commits_fail:
            self._commits_fail.add(event.group_id)
            text = "group %(group)s: commit of %(names)s failed, the offsets stay pending and are retried: %(error)s"
            _list(logging.WARNING, text, _offsets(event), group=event.group_id, error=describe(event.error))

    def _committed(self, event: events.Committed) -> None:
        if event.group_id in self._commits_fail:
            self._commits_fail.discard(event.group_id)
            log.info("group %s: commits work again", event.group_id)

    def _uncommitted(self, event: events.Uncommitted) -> None:
        text = "group %(group)s: final commit failed; messages from these offsets will be delivered again: %(names)s"
        _list(logging.ERROR, text, _offsets(event), group=event.group_id)

    # -- the client and its threads

    def _pollfailed(self, event: events.PollFailed) -> None:
        text = "group %s: polling failed, retrying: %s"
        self._warn((event.group_id, "poll", type(event.error)), text, event.group_id, event.error)

    def _clientfailed(self, event: events.ClientFailed) -> None:
        text = "group %s: the Kafka client has broken down; a new one joins"
        log.error(text, event.group_id, exc_info=_info(event.error))

    def _unreachable(self, event: events.Unreachable) -> None:
        self._warn((event.group_id, "broker"), "cannot reach a broker, retrying: %s", event.reason)

    def _clientlogged(self, event: events.ClientLogged) -> None:
        logging.getLogger("karafka_lite.kafka").debug("%s: %s", event.logger, event.message)

    def _crashed(self, event: events.Crashed) -> None:
        of = f"group {event.group_id}: " if event.group_id else ""
        log.critical("%sthe %s has crashed; %s", of, event.thread, please_report(), exc_info=_info(event.error))

    # -- the end

    def _stopping(self, event: events.Stopping) -> None:
        if event.error is not None:
            log.critical("stopping: %s", event.error)

    def _stuck(self, event: events.Stuck) -> None:
        text = "%s: %s has not returned within drain_timeout_ms=%.0f; its marks are committed, the rest will be "
        stack = event.stack or "  (it has ended, and waits for what it sent to be acknowledged)"
        log.error(text + "delivered again. Stack:\n%s", event, event.function, event.limit_ms, stack)

    def _left(self, event: events.Left) -> None:
        if event.error is None:
            log.info("group %s: left", event.group_id)
        else:
            text = "group %s: could not leave the group cleanly (%s); the broker will notice after session_timeout_ms"
            log.warning(text, event.group_id, describe(event.error))

    def _warn(self, kind: tuple[object, ...], text: str, *arguments: object) -> None:
        """A warning, but not the same one again and again."""
        now = self._now()
        if now - self._said.get(kind, float("-inf")) > SAY_AGAIN_S:
            self._said = {kind: at for kind, at in self._said.items() if now - at <= SAY_AGAIN_S}
            self._said[kind] = now
            log.warning(text, *arguments)


def _list(level: int, text: str, names: list[str], **values: object) -> None:
    """Log a line about ``names``; where these are many, how many, and a second line at debug that has them all."""
    all_names, many = ", ".join(names), len(names) > NAMED
    log.log(level, text, {"names": f"{len(names)} partitions (listed at debug)" if many else all_names, **values})
    if many:
        log.debug(text, {"names": all_names, **values})


def _offsets(event: events.CommitFailed | events.Uncommitted) -> list[str]:
    return [where(*tp, offset) for tp, offset in sorted(event.offsets.items())]


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def _users(error: BaseException) -> Any:
    return type(error), error, users_traceback(error)


def _info(error: BaseException) -> Any:
    return type(error), error, error.__traceback__
