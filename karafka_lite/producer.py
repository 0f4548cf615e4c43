"""Messages on their way to the brokers: the only file that touches kafka-python's producer.

Threads: every method may be called from anywhere; futures are resolved on kafka-python's sender thread.

Not idempotent: such a producer of kafka-python is dead after one refused message, whosever it was. One request at a
time keeps the order; a message whose answer got lost is sent again, and may arrive twice.

Private touch point in kafka-python 3.0 (pinned below 3.1), with a test in tests/kafka/test_produce.py:

    producer._sender.force_close   ``close`` raises while something is unanswered, and leaves its thread behind
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import kafka.errors
from kafka import KafkaProducer

from karafka_lite.client import connecting
from karafka_lite.errors import ProduceError

WINDOW_BYTES = 32 << 20  # of unanswered messages: kafka-python itself takes any number into its memory
MESSAGE_BYTES = 2048  # what the objects around one message weigh
CLOSE_S = 5.0
DEFAULTS: dict[str, Any] = {
    "client_id": "karafka-lite",
    "batch_size": 256 << 10,
    "max_block_ms": 15_000,  # how long a new topic may take to appear
    "max_request_size": 64 << 20,  # how much is too much, the broker says
}
FORCED: dict[str, Any] = {
    "acks": "all",
    "enable_idempotence": False,
    "max_in_flight_requests_per_connection": 1,
    "allow_auto_create_topics": True,
    "metrics_enabled": False,
}


class Producer:
    """A KafkaProducer with ``concurrent.futures.Future`` and a bound on what is unanswered.

    ``settings`` are those of an App, or of kafka-python's producer; what only a consumer knows is left out.
    """

    def __init__(self, bootstrap_servers: Sequence[str], settings: Mapping[str, Any]) -> None:
        self.bootstrap_servers = list(bootstrap_servers)
        known = {name: value for name, value in settings.items() if name in KafkaProducer.DEFAULT_CONFIG}
        self.settings = {**DEFAULTS, **known, **FORCED}
        self._producer: Any = None
        self._answered = threading.Condition()
        self._unanswered = 0  # bytes

    def connect(self) -> None:
        """Reach a broker, for up to ``bootstrap_timeout_ms``. Raises BrokerUnavailableError, ConfigurationError."""
        with connecting("the producer", self.bootstrap_servers, self.settings):
            self._producer = KafkaProducer(bootstrap_servers=self.bootstrap_servers, **self.settings)

    def send(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        headers: list[tuple[str, bytes]] | None = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
    ) -> Future[tuple[int, int]]:
        """Send one message; the future holds (partition, offset) once all in-sync replicas have it, or a ProduceError.

        Blocks while 32 MB are unanswered, and for up to ``max_block_ms`` until an unknown topic is there. Raises
        TypeError or ValueError where this cannot be a message, or not one of that partition.
        """
        future: Future[tuple[int, int]] = Future()
        future.set_running_or_notify_cancel()  # what is on its way cannot be called back
        size = len(value or b"") + len(key or b"")

        def acknowledged(place: Any) -> None:
            future.set_result((place.partition, place.offset))
            self._note(-size - MESSAGE_BYTES)

        def refused(error: Exception) -> None:
            future.set_exception(ProduceError(_explained(topic, size, error)))
            self._note(-size - MESSAGE_BYTES)

        self._note(size + MESSAGE_BYTES)
        try:
            receipt = self._producer.send(topic, value, key, headers, partition, timestamp_ms)
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
