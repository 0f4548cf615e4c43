"""Log lines: what happened, where, and what to do about it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from karafka_lite import events
from karafka_lite.errors import ProduceError, describe
from karafka_lite.messages import where
from karafka_lite.observers.activity import EVERY_S, Activity
from karafka_lite.observers.delivery import Delivery
from karafka_lite.observers.failures import log_failure, raised_at
from karafka_lite.observers.frames import line_that_called_us
from karafka_lite.observers.growth import Growth
from karafka_lite.observers.progress import Progress
from karafka_lite.version import please_report

log = logging.getLogger("karafka_lite")

SAY_AGAIN_S = 30.0  # the same warning, while its reason lasts
TRACEBACK_AGAIN_S = 600.0  # of the same type of error in the same line: 20,000 bad messages are 20,000 lines
TELL_AT = 3  # the attempt whose failure comes with advice
GIVE_UP = "to set such a message aside after some tries: @app.topic(…, dead_letter=…)"
NAMED = 10  # partitions that a line names; of more it says how many, and names all at debug


def report_delivery(progress: Progress) -> Delivery:
    """Log lines on a thread of their own: a full pipe does not hold up anything else."""
    report, activity, growth = Report(), Activity(progress), Growth(progress)

    def each_minute(seconds: float) -> None:
        activity.log(seconds)
        growth.look(seconds)

    return Delivery("karafka-log", [report.observe], report.wants, each_minute, EVERY_S)


class Report:
    """Logs the events of one run."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._silent_until: dict[tuple[object, ...], float] = {}  # by kind of what was said
        self._commits_fail: dict[tuple[str, str], str] = {}  # by group and topic, how
        self._idle_groups: set[str] = set()

    def wants(self, event: events.Event) -> bool:
        """Whether there is something to log: not for what goes well many times a second."""
        if isinstance(event, events.CallEnded):
            return event.error is not None or log.isEnabledFor(logging.DEBUG)
        return not isinstance(event, events.Committed) or bool(self._commits_fail)

    def observe(self, event: events.Event) -> None:
        """Log ``event``."""
        log.disabled = False  # dictConfig has turned it off unless it was told not to: a failure must not be silent
        log_it = getattr(self, f"_{type(event).__name__.lower()}", None)
        if log_it is not None:
            log_it(event)

    # -- partitions

    def _assigned(self, event: events.Assigned) -> None:
        self._idle_groups.discard(event.group_id)
        names = [f"{where(*tp, offset)} ({why})" for tp, (offset, why) in sorted(event.starts.items())]
        _list(logging.INFO, "group %(group)s: assigned %(names)s", names, group=event.group_id)

    def _moved(self, event: events.Moved) -> None:
        expected, goes_on = where(event.topic, event.partition, event.expected), f"goes on at {event.offset}"
        if event.reason == "recreated":
            text = (
                "the topic was deleted and made anew; it begins at its start, %s, and marks of the old one are dropped"
            )
            log.error("group %s: %s: " + text, event.group_id, expected, event.offset)
        elif event.reason == "truncated":
            text = (
                "the log ends before, %s offsets are missing: it was cut (an unclean election of a leader), or nobody "
            )
            text += "has written so much; %s"
            log.error("group %s: %s: " + text, event.group_id, expected, event.missing, goes_on)
        else:
            text = "%s offsets were deleted before they were read (retention.ms, retention.bytes); %s, the log's start"
            log.error("group %s: %s: " + text, event.group_id, expected, event.missing, goes_on)

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
        text = "group %s: waiting for missing topics: %s (or no Describe permission). Create them with "
        text += "karafka-lite run --create-topics, or %s"
        self._warn((event.group_id, "topics", names), text, event.group_id, names, command)

    def _stalled(self, event: events.Stalled) -> None:
        whose = f"group {event.group_id}: " if event.group_id else ""
        log.warning("%shas been waiting %s for %.0f s (%s)", whose, event.for_, event.seconds, event.cause)

    def _resumed(self, event: events.Resumed) -> None:
        log.info("group %s: works again", event.group_id)

    def _idle(self, event: events.Idle) -> None:
        if event.group_id not in self._idle_groups:
            self._idle_groups.add(event.group_id)
            log.info(
                "group %s: no partition for this member, the group has more members than partitions", event.group_id
            )

    def _topicscreated(self, event: events.TopicsCreated) -> None:
        log.info("group %s: created topics for dead letters: %s", event.group_id, ", ".join(event.topics))

    # -- calls of user code

    def _callended(self, event: events.CallEnded) -> None:
        if event.error is None:
            lag = "" if event.lag is None else f", lag {event.lag}"
            ended = event, event.function, event.seconds * 1000, lag, event.attempt
            log.debug("%s: %s took %.1f ms%s (attempt %d)", *ended)
        elif event.hook and event.hook != "on_assigned":
            unsent = isinstance(event.error, ProduceError)
            then = "marks made after that send were discarded" if unsent else "everything else goes on"
            self._failed(event, "failed", then)
        elif event.given_up is not None or event.beside:
            pass  # DeadLettered says it, or the event of another part
        elif event.critical:
            text = "%s: %s raised %s; nothing more is marked, the app stops"
            log.critical(text, event, event.function, event.reason)
        else:
            then = "the partition is being revoked; the next owner will retry"
            if event.hook:
                again = f"called again in {_duration(event.retry_s)}, no batch before it has returned"
                then = "the partition is being revoked" if event.retry_offset is None else again
            elif event.retry_offset is not None:
                then = f"retrying from {where(*event.tp, event.retry_offset)} in {_duration(event.retry_s)}"
                if event.attempt == TELL_AT and event.tries is None:
                    then += f", and for ever; {GIVE_UP}"
            self._failed(event, f"failed at attempt {event.attempt}", then)

    def _deadlettered(self, event: events.DeadLettered) -> None:
        then = f"sent to {where(*event.dead_letter)}" if event.dead_letter else "skipped (dead_letter=False)"
        if event.left_out:
            then += f", without the headers {', '.join(event.left_out)}: with them it is too large for that topic"
        if event.error is None:
            log.warning("%s: %s gave the message up (%s); %s", event, event.function, event.reason, then)
        else:
            self._failed(event, f"failed {event.attempts} time{'s' * (event.attempts > 1)}", then)

    def _failed(self, event: events.CallEnded | events.DeadLettered, how: str, then: str) -> None:
        """One line; below the first one of its kind the traceback, if the error is the user's own."""
        error = event.error
        assert error is not None
        line = line_that_called_us(error)
        at = str(event)
        if isinstance(event, events.CallEnded) and event.culprit is not None and event.first_offset < event.last_offset:
            at = f"{where(*event.tp, event.culprit)} (of {event})"
        text = f"{at}: {event.function} {how}, {event.reason}{f' ({line})' if line else ''}; {then}"
        ours = line is not None or isinstance(error, ProduceError)
        if ours or self._is_said((event.function, type(error), raised_at(error)), TRACEBACK_AGAIN_S):
            log.error("%s", text)
        else:
            log_failure(logging.ERROR, text, error, event.reason)

    def _takeslong(self, event: events.TakesLong) -> None:
        what = f"{event}: {event.function} has been running for {event.seconds:.0f} s"
        if event.what == "poll":
            text = "no rebalance waits longer than max_poll_interval_ms=%.0f. Make batches smaller (max_messages), or "
            log.warning("%s; " + text + "raise max_poll_interval_ms", what, event.limit_ms)
        else:
            text = "and holds up a %s, which goes on without it after drain_timeout_ms=%.0f. Return when ctx.stopping "
            text += "is True, make batches smaller (max_messages), or raise drain_timeout_ms"
            log.warning("%s " + text, what, event.what, event.limit_ms)

    def _loopblocked(self, event: events.LoopBlocked) -> None:
        text = "%s does not await, and the event loop has been blocked for %.0f s: no other coroutine goes on. Call it "
        text += "with await asyncio.to_thread(...), or make the handler a plain def. It is here:\n%s"
        log.warning(text, event.call or "a coroutine", event.seconds, event.stack)

    def _unmarked(self, event: events.Unmarked) -> None:
        text = "group %s: %s has processed %s messages since its last mark; they come again after a restart. With "
        text += "manual_offsets=True only what it marks is committed: ctx.mark_as_consumed(message)"
        log.warning(text, event.group_id, event.function, f"{event.messages:,}")

    def _unreadable(self, event: events.Unreadable) -> None:
        text, why, again = "%s; next try in %s", str(event.error), _duration(event.retry_s)
        if where(event.topic, event.partition) in why:
            log.error(text, why, again)
        else:  # a right that is missing: one line for all partitions of the topic
            self._warn((event.group_id, why), text, why, again, level=logging.ERROR)

    # -- commits

    def _commitfailed(self, event: events.CommitFailed) -> None:
        """Once for each topic, as long as it fails in the same way."""
        how = event.lasting or describe(event.error)
        topics = {topic for topic, _ in event.offsets}
        fresh = {topic for topic in topics if self._commits_fail.get((event.group_id, topic)) != how}
        self._commits_fail.update({(event.group_id, topic): how for topic in topics})
        if not (names := [where(*tp, offset) for tp, offset in sorted(event.offsets.items()) if tp[0] in fresh]):
            return
        if event.lasting == "gone":
            text = "group %(group)s: topic %(topics)s does not exist any more (%(error)s): marks are dropped: %(names)s"
        elif event.lasting == "denied":
            text = "group %(group)s: commits of topic %(topics)s are refused (%(error)s), nothing waits for them: "
            text += "%(names)s. Give the right with kafka-acls.sh --add --consumer; without it messages come again"
        else:
            text = "group %(group)s: commit of %(names)s failed, the offsets stay pending and are retried: %(error)s"
        values = {"group": event.group_id, "topics": ", ".join(sorted(fresh)), "error": describe(event.error)}
        _list(logging.WARNING, text, names, **values)

    def _committed(self, event: events.Committed) -> None:
        topics = {topic for topic, _ in event.offsets if (event.group_id, topic) in self._commits_fail}
        for topic in sorted(topics):
            del self._commits_fail[event.group_id, topic]
            log.info("group %s: commits of topic %s work again", event.group_id, topic)

    def _uncommitted(self, event: events.Uncommitted) -> None:
        text = "group %(group)s: final commit failed; messages from these offsets will be delivered again: %(names)s"
        _list(logging.ERROR, text, _offsets(event), group=event.group_id)

    # -- the client and its threads

    def _pollfailed(self, event: events.PollFailed) -> None:
        text = "group %s: polling failed, retrying: %s"
        self._warn((event.group_id, "poll", str(event.error)), text, event.group_id, event.error)

    def _clientfailed(self, event: events.ClientFailed) -> None:
        text = f"group {event.group_id}: the Kafka client has broken down; a new one joins"
        log_failure(logging.ERROR, text, event.error)

    def _unreachable(self, event: events.Unreachable) -> None:
        self._warn(("broker", event.reason), "cannot reach a broker, retrying: %s", event.reason)

    def _clientlogged(self, event: events.ClientLogged) -> None:
        logging.getLogger("karafka_lite.kafka").debug("%s: %s", event.logger, event.message)

    def _processhookfailed(self, event: events.ProcessHookFailed) -> None:
        starts = event.hook == "on_start"
        then = "the app does not start" if starts else "everything else goes on"
        text = f"{event.hook}: {event.function} failed, {event.reason}; {then}"
        log_failure(logging.CRITICAL if starts else logging.ERROR, text, event.error, event.reason)

    def _crashed(self, event: events.Crashed) -> None:
        of = f"group {event.group_id}: " if event.group_id else ""
        log_failure(logging.CRITICAL, f"{of}the {event.thread} has crashed; {please_report()}", event.error)

    # -- the end

    def _stopping(self, event: events.Stopping) -> None:
        if event.error is not None:
            log.critical("stopping: %s", event.error)

    def _stuck(self, event: events.Stuck) -> None:
        text = "%s: %s has not returned within drain_timeout_ms=%.0f; its marks are committed, the rest will be "
        stack = event.stack or "  (it has ended, and waits for what it sent to be acknowledged)"
        log.error(text + "delivered again. Stack:\n%s", event, event.function, event.limit_ms, stack)

    def _left(self, event: events.Left) -> None:
        if event.error is None and event.instance_id is not None:
            text = "group %s: ended; the broker keeps the place of %s for session_timeout_ms"
            log.info(text, event.group_id, event.instance_id)
        elif event.error is None:
            log.info("group %s: left", event.group_id)
        else:
            text = "group %s: could not leave the group cleanly (%s); the broker will notice after session_timeout_ms"
            log.warning(text, event.group_id, describe(event.error))

    def _warn(self, kind: tuple[object, ...], text: str, *arguments: object, level: int = logging.WARNING) -> None:
        """A warning, but not the same one again and again."""
        if not self._is_said(kind, SAY_AGAIN_S):
            log.log(level, text, *arguments)

    def _is_said(self, kind: tuple[object, ...], again_s: float) -> bool:
        """Whether something of this kind was said in the last ``again_s`` seconds; else it is said now."""
        now = self._now()
        if self._silent_until.get(kind, float("-inf")) >= now:
            return True
        self._silent_until = {kind: until for kind, until in self._silent_until.items() if until >= now}
        self._silent_until[kind] = now + again_s
        return False


def _list(level: int, text: str, names: list[str], **values: object) -> None:
    """Log a line about ``names``; where these are many, how many, and a second line at debug that has them all."""
    all_names, many = ", ".join(names), len(names) > NAMED
    log.log(level, text, {"names": f"{len(names)} partitions (listed at debug)" if many else all_names, **values})
    if many:
        log.debug(text, {"names": all_names, **values})


def _offsets(event: events.Uncommitted) -> list[str]:
    return [where(*tp, offset) for tp, offset in sorted(event.offsets.items())]


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
