"""Lines of a file as messages of a topic.

A line ends at ``\\n`` or ``\\r\\n``, the last also without. The bytes before it are the value: JSON that was checked
(blank lines are left out), or with ``text`` anything (an empty line is an empty value). Lines are read one by one and
only so many are on their way, so that a file of any size fits into a little memory.

The first line that cannot be sent ends it, with a count of what the broker has acknowledged until then. Ctrl-C and
SIGTERM do, too: a signal breaks a wait or a reading, never a message on its way, which would be missing in the count.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import shlex
import signal
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any, BinaryIO, NamedTuple

from karafka_lite.client.producer import Producer
from karafka_lite.errors import KarafkaLiteError
from karafka_lite.messages import Outgoing
from karafka_lite.routing import check_topic

MAX_LINE_BYTES = 32 << 20  # a file without line ends must not fill the memory
SETTLE_S = 5.0  # how long a stop waits for answers


@dataclass(frozen=True)
class Feed:
    """What goes where. ``file``: a path, or ``-`` for standard input. ``key``: the JSON field that makes the key."""

    topic: str
    file: str = "-"
    key: str | None = None
    text: bool = False

    @property
    def name(self) -> str:
        """How messages call the file."""
        return "<stdin>" if self.file == "-" else self.file


class Line(NamedTuple):
    """One line that can be sent; ``end`` is how many bytes of the file were read up to its end."""

    number: int
    value: bytes
    key: bytes | None
    end: int


class FeedError(KarafkaLiteError):
    """A file that cannot be read, or not be sent to its end; the text says where, why, and how much was sent."""


class BadLine(FeedError):
    """The line ``number`` cannot be a message."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


Update = Callable[[int, int], None]
"""Is told, at each line, how many bytes were read and how many messages acknowledged."""

Show = Callable[[str, "int | None", bool], AbstractContextManager[Update]]
"""Shows the way of one file to a topic; of how many bytes (None: nobody knows), and whether a human types them."""


def feed(feeds: Sequence[Feed], bootstrap_servers: Sequence[str], settings: Mapping[str, Any], show: Show) -> None:
    """Send all ``feeds``, one after the other; returns when the brokers have acknowledged every message.

    Raises:
        FeedError: a file cannot be opened (then nothing was sent), or one could not be sent to its end.
        BrokerUnavailableError, ConfigurationError: before anything was sent.
    """
    for one in feeds:
        check_topic(one.topic)
    with ExitStack() as stack, _Interrupt() as interrupt:
        files = [stack.enter_context(_opened(one)) for one in feeds]
        producer = Producer(bootstrap_servers, settings)
        stack.callback(producer.close)
        try:
            producer.connect()
        except KeyboardInterrupt:
            raise FeedError(f"stopped by {interrupt.name}, nothing was sent") from None
        for one, file in zip(feeds, files, strict=True):
            with show(one.topic, _size(file), file.isatty()) as update:
                _send(one, file, producer, interrupt, update)


def lines(file: BinaryIO, feed: Feed) -> Iterator[Line]:
    """The messages in ``file``.

    Raises:
        BadLine: behind all lines before it.
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
                raise _Bad(f"longer than {MAX_LINE_BYTES} bytes", "split it: no message is that long")
            if feed.text:
                yield Line(number, value, None, end)
            elif value.strip():
                yield Line(number, value, _checked(value, feed.key), end)
        except _Bad as bad:
            raise BadLine(f"{feed.name}:{number}: {bad.wrong}; {bad.instead}", number) from None


class _Bad(Exception):
    def __init__(self, wrong: str, instead: str) -> None:
        self.wrong = wrong
        self.instead = instead


def _checked(value: bytes, field: str | None) -> bytes | None:
    """The key of a message with this JSON value."""
    try:
        found: object = json.loads(value.decode())
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        if isinstance(error, json.JSONDecodeError):
            wrong = f"not JSON ({error.msg} at column {error.colno})"
        else:
            wrong = f"not readable as JSON in UTF-8 ({error})"
        raise _Bad(wrong, "correct the line, or send lines as they are: karafka-lite produce --text") from None
    if field is None:
        return None
    instead = "correct the line, or type another field behind --key"
    if not isinstance(found, dict):
        raise _Bad(f"no JSON object, so it has no field {field!r} for the key", instead)
    if found.get(field) is None:
        raise _Bad(f"the field {field!r} for the key is {'null' if field in found else 'missing'}", instead)
    key = found[field]
    text = key if isinstance(key, str) else json.dumps(key, ensure_ascii=False, separators=(",", ":"))
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise _Bad(f"the field {field!r} for the key is no text ({error})", instead) from None


# Reading


@contextmanager
def _opened(feed: Feed) -> Iterator[BinaryIO]:
    if feed.file == "-":
        if sys.stdin is None:
            raise FeedError("standard input is closed; type the name of a file instead of -")
        yield sys.stdin.buffer
        return
    try:
        file = open(feed.file, "rb")  # noqa: SIM115 - an error in the block is not one of opening
    except (OSError, ValueError) as error:  # ValueError: a null character
        raise FeedError(_unreadable(feed, error)) from None
    with file:
        yield file


def _unreadable(feed: Feed, error: OSError | ValueError) -> str:
    why = getattr(error, "strerror", None) or str(error)
    return f"{feed.name} cannot be read: {why} (seen from {os.getcwd()}); type a file, or - for standard input"


def _size(file: BinaryIO) -> int | None:
    """Bytes that are to be read, where somebody knows."""
    try:
        status = os.fstat(file.fileno())
        return status.st_size - file.tell() if stat.S_ISREG(status.st_mode) else None
    except OSError:
        return None


# Sending


def _send(feed: Feed, file: BinaryIO, producer: Producer, interrupt: _Interrupt, update: Update) -> None:
    tally = _Tally()
    why = more = ""
    try:
        for line in lines(file, feed):
            interrupt.hold()
            tally.expect(line, producer.send(Outgoing(feed.topic, line.value, line.key)))
            update(line.end, tally.acknowledged)
            interrupt.release()
            if tally.refused:
                break
    except BadLine as bad:
        why, more = str(bad), _rest(feed, bad.number)
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
        why, more = f"{feed.name}:{tally.refused[0]}: {tally.refused[1]}", ""
    if why:
        raise FeedError(f"{why}; {tally.describe(feed.topic)}{more}")
    update(tally.end, tally.acknowledged)


def _rest(feed: Feed, number: int) -> str:
    if feed.file == "-":
        return ""
    key = f" --key {shlex.quote(feed.key)}" if feed.key is not None else ""
    return f"; the rest: tail -n +{number} {shlex.quote(feed.file)} | karafka-lite produce {feed.topic} -{key}"


class _Tally:
    """What became of the messages of one file. Answers come in on the producer's thread, in any order."""

    def __init__(self) -> None:
        self.sent = self.acknowledged = self.failed = self.last = self.end = 0
        self.refused: tuple[int, BaseException] | None = None  # the first of them, by its line

    def expect(self, line: Line, answer: Future[tuple[int, int]]) -> None:
        self.sent += 1
        self.end = line.end
        answer.add_done_callback(functools.partial(self._note, line.number))

    def describe(self, topic: str) -> str:
        """How many messages the brokers have, as far as anybody knows."""
        told = f"sent to {topic} and acknowledged: {self.acknowledged}"
        if self.refused and self.last > self.refused[0]:
            told += f", the last of them line {self.last}"
        if unanswered := self.sent - self.acknowledged - self.failed:
            told += f"; sent and not answered: {unanswered}, which may have arrived"
        return told

    def _note(self, number: int, answer: Future[tuple[int, int]]) -> None:
        if not (error := answer.exception()):
            self.acknowledged += 1
            self.last = max(self.last, number)
            return
        self.failed += 1
        if self.refused is None or number < self.refused[0]:
            self.refused = number, error


class _Interrupt:
    """SIGINT and SIGTERM, as KeyboardInterrupt, but not between ``hold`` and ``release``: then at the release.

    A second one does not wait.
    """

    def __init__(self) -> None:
        self.number = 0
        self._held = False
        self._before: dict[int, Any] = {}

    @property
    def name(self) -> str:
        return signal.Signals(self.number).name if self.number else "Ctrl-C"

    def hold(self) -> None:
        self._held = True

    def release(self) -> None:
        self._held = False
        if self.number:
            raise KeyboardInterrupt

    def __enter__(self) -> _Interrupt:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):  # nohup stays nohup
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        again, self.number = bool(self.number), number
        if again or not self._held:
            raise KeyboardInterrupt
