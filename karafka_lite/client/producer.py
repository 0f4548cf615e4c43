"""Messages on their way to the brokers: the only file that touches kafka-python's producer.

Threads: every method may be called from anywhere; futures are resolved on kafka-python's sender thread.

Private touch points in kafka-python 3.0 (pinned below 3.1), with tests in tests/kafka/test_produce.py:

    producer._sender.force_close    ``close`` raises while something is unanswered, and leaves its thread behind
    producer._sender.is_alive       a sender that has died says nothing
    producer._transaction_manager   an idempotent producer is dead after one refused message: this knows it
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import kafka.errors
from kafka import KafkaProducer
from kafka.partitioner.default import murmur2
from kafka.serializer import Serializer

from karafka_lite.client.consumer import RECONNECT_MOST_MS, connecting
from karafka_lite.errors import KarafkaLiteError, ProduceError
from karafka_lite.messages import Outgoing

WINDOW_BYTES = 32 << 20  # of unanswered messages: kafka-python itself takes any number into its memory
MESSAGE_BYTES = 2048  # what the objects around one message weigh
CLOSE_S = 5.0
DEFAULTS: dict[str, Any] = {
    "client_id": "karafka-lite",
    "batch_size": 256 << 10,
    "max_block_ms": 15_000,  # how long a new topic may take to appear
    "max_request_size": 64 << 20,  # how much is too much, the broker says
    "reconnect_backoff_max_ms": RECONNECT_MOST_MS,
}
FORCED: dict[str, Any] = {"acks": "all", "allow_auto_create_topics": True, "metrics_enabled": False}
IN_FLIGHT = {True: 5, False: 1}  # requests at once that keep the order


NULL: Any = object()


class _Values(Serializer):  # type: ignore[misc]
    """kafka-python refuses a message with neither key nor value, which Kafka does not."""

    def serialize(self, topic: str, headers: Any, data: Any) -> Any:
        return None if data is NULL else data


class Producer:
    """A KafkaProducer with ``concurrent.futures.Future`` and a bound on what is unanswered.

    ``settings`` are those of an App, or of kafka-python's producer; what only a consumer knows is left out.
    ``idempotent``: a message whose answer got lost is written once; but one refused message, whosever it is, makes the
    producer ``dead``, and all that is on its way fails. Without, such a message may stand twice, and nobody else fails.
    """

    def __init__(
        self, bootstrap_servers: Sequence[str], settings: Mapping[str, Any], *, idempotent: bool = False
    ) -> None:
        self.bootstrap_servers = list(bootstrap_servers)
        known = {name: value for name, value in settings.items() if name in KafkaProducer.DEFAULT_CONFIG}
        one_of = {"enable_idempotence": idempotent, "max_in_flight_requests_per_connection": IN_FLIGHT[idempotent]}
        self.settings = {**DEFAULTS, **known, **FORCED, **one_of, "value_serializer": _Values()}
        self._producer: Any = None
        self._died_of = ""  # the topic whose message was refused
        self._answered = threading.Condition()
        self._unanswered = 0  # bytes

    def connect(self) -> None:
        """Reach a broker, for up to ``bootstrap_timeout_ms``. Raises BrokerUnavailableError, ConfigurationError."""
        with connecting("the producer", self.bootstrap_servers, self.settings):
            self._producer = KafkaProducer(bootstrap_servers=self.bootstrap_servers, **self.settings)

    @property
    def dead(self) -> bool:
        """Whether it will never send anything any more."""
        producer = self._producer
        if producer is None:
            return True
        manager = producer._transaction_manager
        return not producer._sender.is_alive() or (manager is not None and manager.has_fatal_error())

    def send(self, message: Outgoing) -> Future[tuple[int, int]]:
        """Send one message; the future holds (partition, offset) once all in-sync replicas have it, or a ProduceError.

        Blocks while 32 MB are unanswered, and for up to ``max_block_ms`` until an unknown topic is there. Raises
        TypeError or ValueError where this cannot be a message, or not one of that partition.
        """
        future: Future[tuple[int, int]] = Future()
        future.set_running_or_notify_cancel()  # what is on its way cannot be called back
        topic, value, key, headers, partition, timestamp_ms = message
        size = len(value or b"") + len(key or b"")

        def acknowledged(place: Any) -> None:
            future.set_result((place.partition, place.offset))
            self._note(-size - MESSAGE_BYTES)

        def refused(error: Exception) -> None:
            told = _explained(topic, size, error)
            if self.dead:  # all that was on its way fails with the error of the one that was refused
                self._died_of = self._died_of or topic
                if self._died_of != topic:
                    told = f"topic {topic} did not take a message: one for {self._died_of} was refused ({error!r})"
            future.set_exception(ProduceError(told))
            self._note(-size - MESSAGE_BYTES)

        self._note(size + MESSAGE_BYTES)
        producer = self._producer
        try:
            if self.dead:
                raise kafka.errors.IllegalStateError("the producer is closed, or has died of an earlier message")
            receipt = producer.send(topic, NULL if value is None else value, key, headers, partition, timestamp_ms)
        except kafka.errors.KafkaError as error:
            refused(error)
        except BaseException:
            self._note(-size - MESSAGE_BYTES)
            raise
        else:
            receipt.add_callback(acknowledged).add_errback(refused)
        return future

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until every message has its answer, good or bad; False: not within ``timeout_s``."""
        with self._answered:
            return self._answered.wait_for(lambda: self._unanswered == 0, timeout_s)

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Flush for up to ``timeout_s``; what is unanswered then fails with a ProduceError, and may have arrived."""
        producer, self._producer = self._producer, None
        if producer is not None:
            self.flush(timeout_s)
            producer._sender.force_close()
            producer.close(timeout=CLOSE_S)

    def _note(self, size: int) -> None:
        """More that is unanswered, once there is room for it; or less."""
        with self._answered:
            if size > 0:
                self._answered.wait_for(lambda: self._unanswered == 0 or self._unanswered + size <= WINDOW_BYTES)
            before, self._unanswered = self._unanswered, self._unanswered + size
            # Not each time that one more fits: two threads that take turns at every message cost double.
            if self._unanswered == 0 or self._unanswered <= WINDOW_BYTES // 2 < before:
                self._answered.notify_all()


def partition_of(key: bytes, partitions: int) -> int:
    """Where a message with this key goes, in a topic with so many partitions, unless its sender says otherwise."""
    hashed: int = murmur2(key)
    return (hashed & 0x7FFFFFFF) % partitions


class Outbox:
    """The idempotent producer of a process: made when something is sent first, and anew behind its death."""

    def __init__(self, bootstrap_servers: Sequence[str], settings: Mapping[str, Any]) -> None:
        self._bootstrap_servers = bootstrap_servers
        self._settings = settings
        self._making = threading.Lock()
        self._tries = 0  # to make one
        self._error: KarafkaLiteError | None = None  # of the last
        self._producer: Producer | None = None
        self._closed = False

    def send(self, message: Outgoing) -> Future[tuple[int, int]]:
        """As ``Producer.send``. No broker within ``bootstrap_timeout_ms`` is a ProduceError in the future, too."""
        try:
            producer = self._living()
        except KarafkaLiteError as error:
            future: Future[tuple[int, int]] = Future()
            future.set_exception(ProduceError(f"topic {message.topic} did not take a message ({error})"))
            return future
        return producer.send(message)

    def close(self) -> None:
        """What is unanswered fails, and may have arrived: nobody waits for it any more, nor for a broker."""
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
            if self._tries == tries:  # else somebody has tried meanwhile: that counts for all who waited
                self._make()
            if self._error is not None or self._producer is None:
                raise self._error or ProduceError("the app has stopped")
            return self._producer

    def _make(self) -> None:
        dead, self._producer = self._producer, None
        if dead is not None:
            dead.close(0)
        producer, self._error = Producer(self._bootstrap_servers, self._settings, idempotent=True), None
        try:
            producer.connect()
            self._producer = producer
        except KarafkaLiteError as error:
            self._error = error
        self._tries += 1
        if self._closed:  # meanwhile
            producer.close(0)


def _explained(topic: str, size: int, error: Exception) -> str:
    said = f"{type(error).__name__}: {error}"
    if isinstance(error, kafka.errors.MessageSizeTooLargeError | kafka.errors.RecordListTooLargeError):
        return f"a message of {size} bytes is too large for topic {topic}; raise its max.message.bytes, or send less"
    if isinstance(error, kafka.errors.AuthorizationError):
        return f"topic {topic} may not be written to ({said}); type: kafka-acls.sh --add --producer --topic {topic}"
    if isinstance(error, kafka.errors.UnknownTopicOrPartitionError | kafka.errors.KafkaTimeoutError):
        missing = f"is missing and they create none; then type: kafka-topics.sh --create --topic {topic}"
        return f"topic {topic} acknowledged nothing in time ({said}): its brokers do not answer, or it {missing}"
    return f"topic {topic} did not take a message ({said})"
