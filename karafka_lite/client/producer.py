"""Messages on their way to the brokers, by kafka-python's producer.

Threads: every method may be called from anywhere. Futures are resolved on kafka-python's sender thread, or where
``check``, ``send``, ``flush`` or ``close`` finds out that this thread will not do it.

Private touch points in kafka-python 3.0 (pinned below 3.1), with tests in tests/kafka/test_produce.py:

    producer._sender.force_close     ``close`` raises while something is unanswered, and leaves its thread running
    producer._sender.is_alive        a sender thread that has died says nothing
    producer._sender.run_once        one that fails at every turn resolves no future, and uses all of a core
    producer._sender._client, producer._accumulator, producer._closed
                                     what a sender thread that has died leaves open
    producer._transaction_manager    an idempotent producer is dead after one refused message: this knows it
    receipt._produce_future          the same for all messages of a batch
    producer._metadata               which partitions a topic has; asked anew for one that it does not know
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

import kafka.errors
from kafka import KafkaProducer
from kafka.partitioner.default import murmur2
from kafka.serializer import Serializer

from karafka_lite.client.connection import RECONNECT_MAX_MS, Connection, Emit
from karafka_lite.errors import KarafkaLiteError, ProduceError, cut
from karafka_lite.messages import TOPIC

if TYPE_CHECKING:
    from karafka_lite.core.marks import Told
    from karafka_lite.messages import Headers, Outgoing

WINDOW_BYTES = 32 << 20  # of unanswered messages: kafka-python itself takes any number into its memory
MESSAGE_BYTES = 2048  # what the objects around one message take
LOOK_AGAIN_S = 0.1  # how late a thread that waits sees that the producer is dead
OVERDUE_S = 5.0  # kafka-python looks for messages that have expired once per turn
FAILING_S = 10.0  # a sender thread that has done nothing but fail for so long is broken
FAILING_REST_S = 0.1  # between two turns that failed
CLOSE_S = 5.0
MAX_PARTITION, MAX_TIMESTAMP_MS = (1 << 31) - 1, (1 << 63) - 1
DEFAULTS: dict[str, Any] = {
    "client_id": "karafka-lite",
    "batch_size": 256 << 10,
    "max_block_ms": 15_000,  # how long a new topic may take to appear
    "max_request_size": 64 << 20,  # the brokers say how large a message may be
    "reconnect_backoff_max_ms": RECONNECT_MAX_MS,
    "delivery_timeout_ms": KafkaProducer.DEFAULT_CONFIG["delivery_timeout_ms"],
}
FORCED: dict[str, Any] = {"acks": "all", "allow_auto_create_topics": True, "metrics_enabled": False}
IN_FLIGHT = {True: 5, False: 1}  # requests at once that keep the order

TOO_LARGE = kafka.errors.MessageSizeTooLargeError, kafka.errors.RecordListTooLargeError
DEAD = "the producer is closed, or has died of an earlier message, or nothing was answered for too long"

NULL: Any = object()
Receipt = tuple[int, int]
"""Partition and offset of a message that was sent."""


class _Values(Serializer):  # type: ignore[misc]
    """kafka-python refuses a message with neither key nor value, which Kafka does not."""

    def serialize(self, _topic: str, _headers: Any, data: Any) -> Any:
        return None if data is NULL else data


class _Sent:
    """One message without an answer."""

    __slots__ = ("batch", "future", "overdue_at", "sent_at", "size", "topic")

    def __init__(self, topic: str, size: int, answer_timeout_s: float) -> None:
        self.future: Future[Receipt] = Future()
        self.future.set_running_or_notify_cancel()  # a message on its way cannot be cancelled
        self.topic = topic
        self.size = size  # of its key and its value
        self.sent_at = time.monotonic()
        self.overdue_at = self.sent_at + answer_timeout_s
        self.batch: Any = None  # what kafka-python sends it in


class Producer:
    """A KafkaProducer with ``concurrent.futures.Future`` and a bound on what is unanswered.

    Every future has a result ``answer_timeout_s`` after ``send`` at the latest, if somebody calls ``check`` meanwhile.

    ``settings`` are those of an App, or of kafka-python's producer; those that only a consumer knows are left out.
    ``idempotent``: a message whose answer got lost is written once; but one refused message, of any topic, makes the
    producer ``dead``, and all that is on its way fails. Otherwise such a message may be written twice, and no other
    message fails. ``emit``: as ``Connection`` has it.
    """

    def __init__(
        self,
        bootstrap_servers: Sequence[str],
        settings: Mapping[str, Any],
        emit: Emit | None = None,
        *,
        idempotent: bool = False,
    ) -> None:
        self.bootstrap_servers = list(bootstrap_servers)
        known = {name: value for name, value in settings.items() if name in KafkaProducer.DEFAULT_CONFIG}
        one_of = {"enable_idempotence": idempotent, "max_in_flight_requests_per_connection": IN_FLIGHT[idempotent]}
        self.settings = {**DEFAULTS, **known, **FORCED, **one_of, "value_serializer": _Values()}
        self._connection = Connection("the producer", emit)
        self._producer: Any = None
        self._manager: Any = None
        self._trouble: Any = None
        self._closing = False
        self._failing_since: float | None = None  # when the sender thread began to fail at every turn
        self._broken: Exception | None = None  # what it fails with
        self._refused: _Sent | None = None  # the message that the producer has died of
        self._changed = threading.Condition()
        self._open: dict[int, _Sent] = {}  # without an answer, the oldest first
        self._numbers = itertools.count()
        self._unanswered = 0  # bytes

    @property
    def answer_timeout_s(self) -> float:
        """How long a message may take: until its topic is known, and then ``delivery_timeout_ms``."""
        return float(self.settings["max_block_ms"] + self.settings["delivery_timeout_ms"]) / 1000 + OVERDUE_S

    def connect(self) -> None:
        """Reach a broker, for up to ``bootstrap_timeout_ms``. Raises BrokerUnavailableError, ConfigurationError."""
        producer = self._connection.open(KafkaProducer, self.bootstrap_servers, self.settings)
        self._connection.thread = producer._sender
        producer._sender.run_once = self._watched(producer._sender.run_once)
        self._producer, self._manager = producer, producer._transaction_manager
        self._trouble = producer._sender._client._manager.trouble

    @property
    def dead(self) -> bool:
        """Whether it will never send anything any more."""
        return self._closing or self._cannot_answer() is not None or self._has_fatal_error()

    def send(self, message: Outgoing) -> Future[Receipt]:
        """Send one message; the future holds (partition, offset) once all in-sync replicas have it, or a ProduceError.

        Blocks while 32 MB are unanswered, and for up to ``max_block_ms`` until an unknown topic is there.

        Raises:
            TypeError, ValueError: as ``check_outgoing``; the topic has no such partition.
        """
        check_outgoing(message)
        return self.send_checked(message)

    def send_checked(self, message: Outgoing, *, anew: bool = False) -> Future[Receipt]:
        """``send`` for what ``check_outgoing`` has seen; ``anew``: after a question which partitions there are now."""
        topic, value, key, headers, partition, timestamp_ms = message
        sent = _Sent(topic, len(value or b"") + len(key or b""), self.answer_timeout_s)
        number = next(self._numbers)
        self._wait_for(lambda: self._enter(number, sent) or self.dead, self.answer_timeout_s)
        producer = self._producer
        if self.dead or number not in self._open:
            self._fail(number, kafka.errors.IllegalStateError(DEAD), sent)
            return sent.future
        try:
            data = NULL if value is None else value
            receipt = producer.send(topic, data, key, _sendable(headers), partition, timestamp_ms)
        except kafka.errors.KafkaError as error:
            self._fail(number, error)
        except BaseException as error:
            self._take(number)
            if not isinstance(error, ValueError):
                raise
            if anew:  # kafka-python does not say how many partitions there are
                check_outgoing(message, len(producer._metadata.partitions_for_topic(topic) or ()) or None)
                raise
            self._ask_for_partitions(producer)  # one may have been added; kafka-python would find out in five minutes
            return self.send_checked(message, anew=True)
        else:
            sent.batch = receipt._produce_future
            receipt.add_callback(lambda found: self._resolve(number, (found.partition, found.offset)))
            receipt.add_errback(lambda error: self._fail(number, error))
        return sent.future

    def _ask_for_partitions(self, producer: Any) -> None:
        answered = threading.Event()
        producer._metadata.request_update().add_both(lambda *_: answered.set())
        producer._sender.wakeup()
        answered.wait(self.settings["max_block_ms"] / 1000)

    def check(self) -> None:
        """Have the futures fail that kafka-python is not going to resolve any more; never blocks.

        These are all, when its sender thread has died or does nothing but fail, and those that are overdue.
        """
        error, now = self._cannot_answer(), time.monotonic()
        with self._changed:
            hopeless = itertools.takewhile(lambda number: error or self._open[number].overdue_at < now, self._open)
            numbers = list(hopeless)
            oldest = next(iter(self._open.values()), None)
        if oldest is not None and self._trouble is not None:
            cause = self._trouble.cause() or "nothing is known to be wrong"
            self._connection.waits(f"topic {oldest.topic} to acknowledge messages", oldest.sent_at, cause)
        for number in numbers:
            self._fail(number, error or kafka.errors.KafkaTimeoutError("kafka-python gave no answer at all"))

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until every message has its answer, good or bad; False: not within ``timeout_s``.

        Without ``timeout_s`` it takes ``answer_timeout_s`` at the most.
        """
        return self._wait_for(lambda: not self._open, self.answer_timeout_s if timeout_s is None else timeout_s)

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Flush for up to ``timeout_s``; what is unanswered then fails with a ProduceError, and may have arrived."""
        producer, self._closing = self._producer, True
        if producer is not None:
            self.flush(timeout_s)
            producer._sender.force_close()
            try:
                if not producer._sender.is_alive():  # what it does last, if it does not die of something else
                    producer._accumulator.abort_incomplete_batches()
                producer.close(timeout=CLOSE_S)
            except Exception:  # noqa: BLE001 - what it dies of may also keep it from ending in good order
                producer._closed = True  # else its __del__ would try it once more
            if not producer._sender.is_alive():
                producer._sender._client.close()
        self._producer = None
        self._connection.close()
        self.check()

    # -- what becomes of the sender thread

    def _watched(self, run_once: Callable[[], None]) -> Callable[[], None]:
        """One turn of the sender thread, which kafka-python starts again at once, whatever it raises."""

        def watched() -> None:
            try:
                run_once()
            except Exception as error:
                now = time.monotonic()
                self._failing_since = since = self._failing_since or now
                if now - since > FAILING_S:
                    self._broken = error
                time.sleep(FAILING_REST_S)
                raise
            self._failing_since = None

        return watched

    def _cannot_answer(self) -> Exception | None:
        """Why no future will be resolved any more; None: they will be."""
        error: Exception | None = self._broken
        if self._producer is None:
            error = kafka.errors.IllegalStateError("the producer is closed")
        elif not self._producer._sender.is_alive():
            error = kafka.errors.IllegalStateError("kafka-python's sender thread has died")
        return error

    def _has_fatal_error(self) -> bool:
        return self._manager is not None and bool(self._manager.has_fatal_error())

    # -- messages without an answer

    def _enter(self, number: int, sent: _Sent) -> bool:
        """Count ``sent`` as unanswered, if there is room for it."""
        size = sent.size + MESSAGE_BYTES
        if self._open and self._unanswered + size > WINDOW_BYTES:
            return False
        self._open[number] = sent
        self._unanswered += size
        return True

    def _wait_for(self, fact: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until ``fact`` holds, and look meanwhile whether kafka-python still answers."""
        deadline = time.monotonic() + timeout_s
        while True:
            with self._changed:
                left = deadline - time.monotonic()
                if self._changed.wait_for(fact, max(0.0, min(LOOK_AGAIN_S, left))):
                    return True
            if left <= 0:
                return False
            self.check()

    def _take(self, number: int) -> _Sent | None:
        """The message as long as it has no answer; the caller that takes it answers."""
        with self._changed:
            sent = self._open.pop(number, None)
            if sent is not None:
                before, self._unanswered = self._unanswered, self._unanswered - sent.size - MESSAGE_BYTES
                # Not each time that one more fits: two threads that take turns at every message cost double.
                if not self._open or self._unanswered <= WINDOW_BYTES // 2 < before:
                    self._changed.notify_all()
        return sent

    def _resolve(self, number: int, receipt: Receipt) -> None:
        if (sent := self._take(number)) is not None:
            sent.future.set_result(receipt)

    def _fail(self, number: int, error: Exception, not_entered: _Sent | None = None) -> None:
        sent = self._take(number) or not_entered
        if sent is None:
            return
        if self._has_fatal_error():  # all that was on its way fails, with the error of the message that was refused
            if self._refused is None and sent.batch is not None:
                self._refused = sent
            if self._refused is None or not self._was_refused(sent, error):
                refused = f"a message for topic {self._refused.topic}" if self._refused else "another message"
                text = f"topic {sent.topic} did not take a message, because {refused} was refused ({error!r})"
                failure = ProduceError(text)
                failure.collateral = True
                sent.future.set_exception(failure)
                return
        failure = ProduceError(_explained(sent.topic, sent.size, self._right_to_write() or error))
        failure.too_large = isinstance(error, TOO_LARGE)
        sent.future.set_exception(failure)

    def _was_refused(self, sent: _Sent, error: Exception) -> bool:
        """Whether this is what the producer has died of. A batch that is too large was split until it had one message,
        and those that were in it before know no other batch."""
        first = self._refused
        return sent is first or (first is not None and sent.batch is first.batch and not isinstance(error, TOO_LARGE))

    def _right_to_write(self) -> Exception | None:
        """Why we may not write to any topic, which kafka-python puts into a text only; None: that is not it."""
        if self._producer is None or not self._has_fatal_error():
            return None
        why = self._trouble.why_not("InitProducerId")
        return why if isinstance(why, kafka.errors.AuthorizationError) else None


def check_outgoing(message: Outgoing, partitions: int | None = None) -> None:
    """Whether this can be a message. kafka-python takes some things that break its sender thread or are sent wrong.

    ``partitions``: how many the topic has; None: that is not known.

    Raises:
        TypeError, ValueError: it cannot; the text names the argument.
    """
    topic, value, key, headers, partition, timestamp_ms = message
    if not isinstance(topic, str):
        raise TypeError(f"topic must be a string, got {type(topic).__name__}")
    if not TOPIC.fullmatch(topic) or topic in (".", ".."):
        raise ValueError(f"topic must be 1 to 249 of a-z A-Z 0-9 . _ - (but not . or .. alone), got {cut(repr(topic))}")
    for name, data in (("value", value), ("key", key)):
        if data is not None and not isinstance(data, bytes):
            also = "bytes, a string" if name == "key" else "bytes"
            raise TypeError(f"{name} must be {also} or None, got {type(data).__name__}")
    if headers is not None:
        _check_headers(headers)
    for name, number, most in (
        ("partition", partition, MAX_PARTITION),
        ("timestamp_ms", timestamp_ms, MAX_TIMESTAMP_MS),
    ):
        if number is None:
            continue
        if isinstance(number, bool) or not isinstance(number, int):
            hint = "; for the time now: int(time.time() * 1000)" if name == "timestamp_ms" else ""
            raise TypeError(f"{name} must be an integer, got {cut(repr(number))}{hint}")
        if not 0 <= number <= most:
            raise ValueError(f"{name} must be between 0 and {most}, got {cut(repr(number))}")
    if partitions is not None and partition is not None and partition >= partitions:
        raise ValueError(f"partition must be between 0 and {partitions - 1} in topic {topic}, got {partition}")


def _check_headers(headers: object) -> None:
    pairs = "headers must be a list of (str, bytes) pairs"
    if not isinstance(headers, list):
        hint = "; for a dict: list(headers.items())" if isinstance(headers, Mapping) else ""
        raise TypeError(f"{pairs}, got {type(headers).__name__}{hint}")
    for header in headers:
        if not (isinstance(header, tuple) and len(header) == 2):
            raise TypeError(f"{pairs}, got {cut(repr(header))} in it")
        name, value = header
        if not (isinstance(name, str) and isinstance(value, bytes)):
            raise TypeError(f"{pairs}, got {cut(repr(header))} in it")
        try:
            name.encode(errors="surrogateescape")
        except UnicodeEncodeError:
            raise ValueError(f"{pairs}; the name {cut(ascii(name))} cannot be encoded: it has surrogates") from None


class _RawName(str):
    """The name of a header that is not UTF-8, as it was read: it leaves as the bytes that it was."""

    __slots__ = ()

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return super().encode(encoding, "surrogateescape" if errors == "strict" else errors)


def _sendable(headers: Headers | None) -> Headers | None:
    """``headers`` with names that kafka-python can encode."""
    if not headers or all(name.isascii() for name, _ in headers):
        return headers
    return [(_RawName(name), value) for name, value in headers]


def partition_of(key: bytes, partitions: int) -> int:
    """Where a message with this key goes, in a topic with so many partitions, unless its sender says otherwise."""
    hashed: int = murmur2(key)
    return (hashed & 0x7FFFFFFF) % partitions


class Outbox:
    """The idempotent producer of a process: created on first use, replaced after a fatal error."""

    def __init__(self, bootstrap_servers: Sequence[str], settings: Mapping[str, Any], emit: Emit | None = None) -> None:
        self._new = partial(Producer, bootstrap_servers, settings, emit, idempotent=True)
        self._making = threading.Lock()
        self._tries = 0  # to make one
        self._error: KarafkaLiteError | None = None  # of the last
        self._producer: Producer | None = None
        self._closed = False
        self.answer_timeout_s = self._new().answer_timeout_s

    def send(self, message: Outgoing, told: Told | None = None) -> Future[Receipt]:
        """As ``Producer.send``. No broker within ``bootstrap_timeout_ms`` is a ProduceError in the future, too."""
        future = self._send(message)
        if told is not None:
            future.add_done_callback(lambda done: told(1, done.exception()))
        return future

    def hand_over(self) -> None:
        """Messages leave at once."""

    def _send(self, message: Outgoing) -> Future[Receipt]:
        check_outgoing(message)  # at the call, also while no broker can be reached
        try:
            producer = self._living()
        except KarafkaLiteError as error:
            future: Future[Receipt] = Future()
            future.set_exception(ProduceError(f"topic {message.topic} did not take a message ({error})"))
            return future
        return producer.send_checked(message)

    def check(self) -> None:
        """As ``Producer.check``; to be called every 100 ms by a thread that waits for answers."""
        if (producer := self._producer) is not None:
            producer.check()

    def close(self) -> None:
        """Have fail what is unanswered, which may have arrived, and what waits for a broker."""
        self._closed = True
        if (producer := self._producer) is not None:
            producer.close(0)

    def _living(self) -> Producer:
        producer, tries = self._producer, self._tries
        if self._closed:
            raise ProduceError("the app has stopped")
        if producer is not None and not producer.dead:
            return producer
        with self._making:
            if self._tries == tries:  # else another thread has tried meanwhile: that counts for all who waited
                self._make()
            if self._error is not None or self._producer is None:
                raise self._error or ProduceError("the app has stopped")
            return self._producer

    def _make(self) -> None:
        dead, self._producer = self._producer, None
        if dead is not None:
            dead.close(0)
        producer, self._error = self._new(), None
        try:
            producer.connect()
            self._producer = producer
        except KarafkaLiteError as error:
            self._error = error
        self._tries += 1
        if self._closed:  # meanwhile
            producer.close(0)


def _explained(topic: str, size: int, error: Exception) -> str:
    reason = f"{type(error).__name__}: {error}"
    if isinstance(error, TOO_LARGE):
        return f"a message of {size} bytes is too large for topic {topic}; raise its max.message.bytes, or send less"
    if isinstance(error, kafka.errors.AuthorizationError):
        return f"topic {topic} may not be written to ({reason}); use kafka-acls.sh --add --producer --topic {topic}"
    if isinstance(error, kafka.errors.UnknownTopicOrPartitionError | kafka.errors.KafkaTimeoutError):
        missing = f"is missing and they create none; then use kafka-topics.sh --create --topic {topic}"
        return f"topic {topic} acknowledged nothing in time ({reason}): its brokers do not answer, or it {missing}"
    return f"topic {topic} did not take a message ({reason})"
