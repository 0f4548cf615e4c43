"""Sends the lines of a file to a topic.

A line ends with ``\\n`` or ``\\r\\n``; the last one may end without. Its bytes are the value: validated JSON (blank
lines are skipped) or, with ``text``, any bytes (an empty line is an empty value). Lines are read one by one and the
number of messages in flight is bounded, so that a file of any size needs little memory.

Sending stops at the first line that cannot be sent, with a count of the messages that the broker has acknowledged. It
also stops at Ctrl-C and SIGTERM: a signal interrupts waiting and reading, but never the sending of a message, which
would then be missing from the count.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import shlex
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from karafka_lite.checks import check_topic
from karafka_lite.cli.interrupt import Interrupt
from karafka_lite.errors import KarafkaLiteError
from karafka_lite.messages import Addressed

if TYPE_CHECKING:
    from karafka_lite.client.producer import Producer

MAX_LINE_BYTES = 32 << 20  # a file without line ends must not fill the memory
SETTLE_S = 5.0  # how long a stop waits for acknowledgements


@dataclass(frozen=True)
class Feed:
    """One file for one topic. ``file``: a path, or ``-`` for standard input. ``key``: JSON field used as the key."""

    topic: str
    file: str = "-"
    key: str | None = None
    text: bool = False

    @property
    def name(self) -> str:
        """The name of the file in messages."""
        return "<stdin>" if self.file == "-" else self.file


class Line(NamedTuple):
    """One line that can be sent; ``end``: bytes of the file up to the end of this line."""

    number: int
    value: bytes
    key: bytes | None
    end: int


class FeedError(KarafkaLiteError):
    """A file could not be read, or not be sent to its end; the text says where, why, and how much was sent."""


class BadLine(FeedError):
    """The line ``number`` cannot be a message."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


Update = Callable[[int, int], None]
"""Called after each line with the bytes read and the messages acknowledged so far."""

Show = Callable[[str, "int | None", bool], AbstractContextManager[Update]]
"""Shows the progress of one file: topic, total bytes (None: unknown), whether a human types the messages."""


def feed(feeds: Sequence[Feed], bootstrap_servers: Sequence[str], settings: Mapping[str, Any], show: Show) -> None:
    """Send all ``feeds``, one after the other; returns when the brokers have acknowledged every message.

    Raises:
        FeedError: a file could not be opened (then nothing was sent), or one could not be sent to its end.
        BrokerUnavailableError, ConfigurationError: nothing was sent.
    """
    from karafka_lite.client import producer as client

    for one in feeds:
        check_topic(one.topic)
    with ExitStack() as stack, Interrupt() as interrupt:
        files = [stack.enter_context(_opened(one)) for one in feeds]
        producer = client.Producer(bootstrap_servers, settings)
        stack.callback(producer.close)
        try:
            producer.connect()
        except KeyboardInterrupt:
            raise FeedError(f"stopped by {interrupt.name}; nothing was sent") from None
        for one, file in zip(feeds, files, strict=True):
            with show(one.topic, _size(file), file.isatty()) as update:
                _send(one, file, producer, interrupt, update)


def lines(file: BinaryIO, feed: Feed) -> Iterator[Line]:
    """The messages in ``file``.

    Raises:
        BadLine: a line cannot be a message; raised after the lines before it were yielded.
    """
    end = 0
    for number in itertools.count(1):
        raw = file.readline(MAX_LINE_BYTES + 2)
        if not raw:
            return
        end += len(raw)
        value = raw[:-2] if raw.endswith(b"\r\n") else raw.removesuffix(b"\n")
        try:
            if len(value) > MAX_LINE_BYTES:
                raise _InvalidLine(f"longer than {MAX_LINE_BYTES} bytes, the maximum", "split the line")
            if feed.text:
                yield Line(number, value, None, end)
            elif value.strip():
                yield Line(number, value, _key_of(value, feed.key), end)
        except _InvalidLine as invalid:
            raise BadLine(f"{feed.name}:{number}: {invalid.reason}; {invalid.fix}", number) from None


class _InvalidLine(Exception):
    def __init__(self, reason: str, fix: str) -> None:
        self.reason = reason
        self.fix = fix


def _key_of(value: bytes, field: str | None) -> bytes | None:
    """Validate a JSON value; returns the message's key."""
    try:
        document: object = json.loads(value.decode())
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        if isinstance(error, json.JSONDecodeError):
            reason = f"not valid JSON ({error.msg} at column {error.colno})"
        else:
            reason = f"not readable as JSON in UTF-8 ({error})"
        raise _InvalidLine(reason, "fix the line, or send lines unparsed with karafka-lite produce --text") from None
    if field is None:
        return None
    fix = "fix the line, or pass another field to --key"
    if not isinstance(document, dict):
        raise _InvalidLine(f"not a JSON object, so it has no key field {field!r}", fix)
    if document.get(field) is None:
        raise _InvalidLine(f"the key field {field!r} is {'null' if field in document else 'missing'}", fix)
    key = document[field]
    text = key if isinstance(key, str) else json.dumps(key, ensure_ascii=False, separators=(",", ":"))
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise _InvalidLine(f"the key field {field!r} cannot be encoded as UTF-8 ({error})", fix) from None


# Reading


@contextmanager
def _opened(feed: Feed) -> Iterator[BinaryIO]:
    if feed.file == "-":
        if sys.stdin is None:
            raise FeedError("standard input is closed; pass the name of a file instead of -")
        yield sys.stdin.buffer
        return
    try:
        file = open(feed.file, "rb")  # noqa: SIM115 - errors of the block must not be taken for errors of opening
    except (OSError, ValueError) as error:  # ValueError: a null character
        raise FeedError(_unreadable(feed, error)) from None
    with file:
        yield file


def _unreadable(feed: Feed, error: OSError | ValueError) -> str:
    why = getattr(error, "strerror", None) or str(error)
    return f"cannot read {feed.name}: {why} (current directory: {os.getcwd()}); pass a file, or - for standard input"


def _size(file: BinaryIO) -> int | None:
    """Bytes left to read; None if unknown."""
    try:
        status = os.fstat(file.fileno())
        return status.st_size - file.tell() if stat.S_ISREG(status.st_mode) else None
    except OSError:
        return None


# Sending


def _send(feed: Feed, file: BinaryIO, producer: Producer, interrupt: Interrupt, update: Update) -> None:
    tally = _Tally()
    why = hint = ""
    try:
        for line in lines(file, feed):
            interrupt.hold()
            tally.sent_line(line, producer.send(Addressed(feed.topic, line.value, line.key)))
            update(line.end, tally.acknowledged)
            interrupt.release()
            if tally.refused:
                break
    except BadLine as bad:
        why, hint = str(bad), _how_to_continue(feed, bad.number)
    except OSError as error:
        why = _unreadable(feed, error)
    except KeyboardInterrupt:
        why = f"stopped by {interrupt.name}"
    try:
        producer.flush(SETTLE_S if interrupt.number else None)
    except KeyboardInterrupt:
        why = why or f"stopped by {interrupt.name}"
        with suppress(KeyboardInterrupt):
            producer.flush(SETTLE_S)
    if tally.refused:
        why, hint = f"{feed.name}:{tally.refused[0]}: {tally.refused[1]}", ""
    if why:
        raise FeedError(f"{why}; {tally.describe(feed.topic)}{hint}")
    update(tally.end, tally.acknowledged)


def _how_to_continue(feed: Feed, number: int) -> str:
    if feed.file == "-":
        return ""
    key = f" --key {shlex.quote(feed.key)}" if feed.key is not None else ""
    return f"; to send the rest: tail -n +{number} {shlex.quote(feed.file)} | karafka-lite produce {feed.topic} -{key}"


class _Tally:
    """What happened to the messages of one file. Acknowledgements arrive on the producer's thread, in any order."""

    def __init__(self) -> None:
        self.sent = self.acknowledged = self.failed = self.last = self.end = 0
        self.refused: tuple[int, BaseException] | None = None  # the first refused line, with its error

    def sent_line(self, line: Line, receipt: Future[tuple[int, int]]) -> None:
        self.sent += 1
        self.end = line.end
        receipt.add_done_callback(functools.partial(self._count, line.number))

    def describe(self, topic: str) -> str:
        """How many messages the brokers are known to have."""
        text = f"messages sent to {topic} and acknowledged: {self.acknowledged}"
        if self.refused and self.last > self.refused[0]:
            text += f" (the last one from line {self.last})"
        if in_flight := self.sent - self.acknowledged - self.failed:
            text += f"; sent but not acknowledged, may have arrived: {in_flight}"
        return text

    def _count(self, number: int, receipt: Future[tuple[int, int]]) -> None:
        if not (error := receipt.exception()):
            self.acknowledged += 1
            self.last = max(self.last, number)
            return
        self.failed += 1
        if self.refused is None or number < self.refused[0]:
            self.refused = number, error
