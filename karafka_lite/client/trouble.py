"""What keeps a member from working, as the brokers' answers have it: kafka-python itself asks again without a word.

It is one rule for every kind of request and every error: the last answer was an error, or there is none yet.

Relied on of kafka-python 3.0 (pinned below 3.1), with tests in tests/kafka/test_silence.py: the names of the classes of
requests, and the fields of their answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import kafka.errors

OF_INTEREST = {"FindCoordinator", "JoinGroup", "SyncGroup", "OffsetFetch", "ListOffsets", "Fetch", "LeaveGroup"}
OF_INTEREST |= {"InitProducerId", "Produce"}
RECENT_S = 15.0  # an error that did not come again for so long is over
PENDING_S = 3.0  # before that an answer is only on its way
DENIED = kafka.errors.TopicAuthorizationFailedError.errno
NO_ERRORS = (0, kafka.errors.MemberIdRequiredError.errno)  # the second is how a join begins
HINTS = {
    ("FindCoordinator", 15): "; is the brokers' offsets.topic.replication.factor more than there are brokers?",
    ("OffsetFetch", kafka.errors.UnstableOffsetCommitError.errno): ": a transaction with its next offset is open; the "
    "brokers end it up to 20 s after its member has died; where they do not: kafka-transactions.sh find-hanging, abort",
}

Key = tuple[str, Any, Any]  # kind of request; topic and partition where it is about one


class Seen(NamedTuple):
    """An error, and when it came first and last, without an answer that was none in between."""

    first: float
    last: float
    code: int


class Trouble:
    """The errors of one client that last.

    ``watch`` and what it calls run on kafka-python's thread, the rest anywhere: what is read is replaced, not changed.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._errors: dict[Key, Seen] = {}
        self._pending: dict[str, float] = {}  # kind of request -> when one was sent that has no answer
        self._codes: dict[str, int] = {}  # kind of request -> the error of the last answer, 0 where there was none
        self._failed: tuple[float, str] = (float("-inf"), "")  # the last connection that was not made
        self.fetched = False  # whether a fetch was answered, and allowed

    def watch(self, request: Any, answer: Any) -> Any:
        """Look at ``answer``, a future, when it is there."""
        api = type(request).__name__.removesuffix("Request")
        if api in OF_INTEREST:
            self._pending = {api: self._now(), **self._pending}
            self._codes.pop(api, None)
            answer.add_callback(partial(self._answered, api))
            answer.add_errback(lambda _: self._not_pending(api))
        return answer

    def not_connected(self, text: str) -> None:
        """A connection was not made."""
        self._failed = (self._now(), text)

    def forget(self) -> None:
        """There is a new assignment: what was may be of partitions that are not ours any more."""
        self._errors = {}

    def why_not(self, api: str) -> Exception | None:
        """Why the last request of this kind had no success; None: it had."""
        code = self._codes.get(api)
        if code == 0:
            return None
        error: Exception = (
            kafka.errors.KafkaTimeoutError("no answer") if code is None else kafka.errors.for_code(code)()
        )
        return error

    def cause(self) -> str:
        """The last of what is going wrong; "": nothing is known to."""
        now, pending = self._now(), self._pending
        (at, text), errors = self._failed, self._errors
        if errors:
            (api, topic, partition), seen = max(errors.items(), key=lambda item: item[1].last)
            if seen.last > at:
                at, of = seen.last, f" for {topic}-{partition}" if topic is not None else ""
                text = f"{api}{of} is answered with {error_text(api, seen.code)}"
        if at > now - RECENT_S:
            return text
        waits = [(since, api) for api, since in pending.items() if since < now - PENDING_S and api != "Fetch"]
        return f"{min(waits)[1]} has no answer yet" if waits else ""

    def unfetched(self) -> dict[tuple[str, int], tuple[float, str]]:
        """Partitions of which each fetch fails, since when, and with which error; without those that are denied.

        These are kafka-python's own to say.
        """
        recent = self._now() - RECENT_S
        return {
            (topic, partition): (seen.first, named(seen.code))
            for (api, topic, partition), seen in self._errors.items()
            if api == "Fetch" and topic is not None and seen.last > recent and seen.code != DENIED
        }

    def _answered(self, api: str, answer: Any) -> None:
        self._not_pending(api)
        found = dict(_errors(answer))
        self._codes[api] = found.get((None, None), 0)
        if api == "Fetch" and DENIED not in found.values():
            self.fetched = True
        if not (found or self._errors):
            return
        now, fine = self._now(), {(None, None), *_partitions(answer)} - found.keys()
        errors = {key: seen for key, seen in self._errors.items() if key[0] != api or key[1:] not in fine}
        for (topic, partition), code in found.items():
            seen = errors.get((api, topic, partition))
            lasts = seen is not None and seen.last > now - RECENT_S
            errors[api, topic, partition] = Seen(seen.first if seen is not None and lasts else now, now, code)
        self._errors = errors

    def _not_pending(self, api: str) -> None:
        self._pending = {other: since for other, since in self._pending.items() if other != api}


def named(code: int) -> str:
    """An error code with its name."""
    return f"{kafka.errors.for_code(code).__name__} ({code})"


def error_text(api: str, code: int) -> str:
    """The error of an answer to this kind of request, with what may be done."""
    return f"{named(code)}{HINTS.get((api, code), '')}"


def _errors(answer: Any) -> Iterator[tuple[tuple[Any, Any], int]]:
    """Each error in an answer, by topic and partition; by (None, None) those of the whole request."""
    for part in (answer, *_list(answer, "groups"), *_list(answer, "coordinators"), *_list(answer, "members")):
        if (code := getattr(part, "error_code", 0)) not in NO_ERRORS:
            yield (None, None), code
        for topic in (*_list(part, "topics"), *_list(part, "responses")):
            for index, partition in _by_index(topic):
                if partition.error_code:
                    yield (_name(topic), index), partition.error_code


def _partitions(answer: Any) -> Iterator[tuple[Any, Any]]:
    for part in (answer, *_list(answer, "groups")):
        for topic in (*_list(part, "topics"), *_list(part, "responses")):
            for index, _ in _by_index(topic):
                yield _name(topic), index


def _by_index(topic: Any) -> Iterator[tuple[int, Any]]:
    for partition in _list(topic, "partitions"):
        yield partition.partition_index, partition
    for partition in _list(topic, "partition_responses"):  # so a Produce has it
        yield partition.index, partition


def _list(part: Any, name: str) -> Any:
    return getattr(part, name, None) or ()


def _name(topic: Any) -> Any:
    return getattr(topic, "topic", None) or getattr(topic, "name", None)
