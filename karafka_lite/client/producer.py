"""Messages on their way to the brokers, by kafka-python's producer and batches of our own.

Threads: every method may be called from anywhere. Futures are resolved on kafka-python's sender thread, or where
``check``, ``send``, ``flush`` or ``close`` finds out that this thread will not do it.

Private touch points in kafka-python 3.0 (pinned below 3.1), with tests in tests/kafka/test_produce.py, beside those of
``accumulator``:

    producer._sender.force_close     ``close`` raises while something is unanswered, and leaves its thread running
    producer._sender.is_alive        a sender thread that has died says nothing
    producer._sender.run_once        one that fails at every turn resolves no future, and uses all of a core
    producer._sender._client, producer._accumulator, producer._closed
                                     what a sender thread that has died leaves open
    producer._transaction_manager    an idempotent producer is dead after one refused message: this knows it;
                                     ``reset_producer_id`` leaves one that sends nothing any more, and does not know it
    producer._metadata               which partitions a topic has; asked anew for one that it does not know
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from itertools import islice
from time import time_ns
from typing import TYPE_CHECKING, Any

import kafka.errors
from kafka import KafkaProducer
from kafka.structs import TopicPartition

from karafka_lite import forks
from karafka_lite.client.accumulator import Accumulator, Partition, Plain
from karafka_lite.client.batches import Batch, DeadError, Errors, Many, Receipt, Sent, first_own
from karafka_lite.client.connection import RECONNECT_MAX_MS, Connection, Emit
from karafka_lite.client.encoding import RECORD_BYTES, Unencoded, size_of
from karafka_lite.client.outgoing import check_outgoing
from karafka_lite.errors import ProduceError, in_message

if TYPE_CHECKING:
    from karafka_lite.core.sends import Told
    from karafka_lite.messages import Addressed

log = logging.getLogger("karafka_lite")

WINDOW_BYTES = 32 << 20  # of unanswered messages: kafka-python itself takes any number into its memory
MESSAGE_BYTES = 400  # what the objects around one message take
LOOK_AGAIN_S = 0.1  # how late a thread that waits sees that the producer is dead
OVERDUE_S = 5.0  # kafka-python looks for messages that have expired once per turn
FAILING_S = 10.0  # a sender thread that has done nothing but fail for so long is broken
FAILING_REST_S = 0.1  # between two turns that failed
CLOSE_S = 5.0
DEFAULTS: dict[str, Any] = {
    "client_id": "karafka-lite",
    "batch_size": 256 << 10,
    "linger_ms": 50,  # for who neither waits for an answer nor goes on sending; all else leaves before
    "max_block_ms": 15_000,  # how long a new topic may take to appear
    "max_request_size": 64 << 20,  # the brokers say how large a message may be
    "reconnect_backoff_max_ms": RECONNECT_MAX_MS,
    "delivery_timeout_ms": KafkaProducer.DEFAULT_CONFIG["delivery_timeout_ms"],
}
FORCED: dict[str, Any] = {"acks": "all", "allow_auto_create_topics": True, "metrics_enabled": False}
IN_FLIGHT = {True: 5, False: 1}  # requests at once that keep the order

TOO_LARGE = kafka.errors.MessageSizeTooLargeError, kafka.errors.RecordListTooLargeError


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
        self.settings = {**DEFAULTS, **known, **FORCED, **one_of}
        self._most_bytes: int = self.settings["max_request_size"]
        self._connection = Connection("the producer", emit)
        self._producer: Any = None
        self._accumulator: Any = None
        self._manager: Any = None
        self._trouble: Any = None
        self._closing = False
        self._failing_since: float | None = None  # when the sender thread began to fail at every turn
        self._broken: Exception | None = None  # what it fails with
        self._refused: Batch | None = None  # with the message that the producer has died of
        self._failed: Batch | None = None  # the last one before that
        self.lock = threading.Lock()
        forks.watch(self)
        self._changed = threading.Condition(self.lock)
        self._unanswered: dict[Batch, float] = {}  # and when their answers are overdue
        self._weight = 0  # of these, in bytes

    @property
    def answer_timeout_s(self) -> float:
        """How long a message may take: until its topic is known, and then ``delivery_timeout_ms``."""
        return float(self.settings["max_block_ms"] + self.settings["delivery_timeout_ms"]) / 1000 + OVERDUE_S

    def connect(self) -> None:
        """Reach a broker, for up to ``bootstrap_timeout_ms``. Raises BrokerUnavailableError, ConfigurationError."""
        producer = self._connection.open(KafkaProducer, self.bootstrap_servers, self.settings)
        self._connection.thread = producer._sender
        producer._sender.run_once = self._watched(producer._sender.run_once)
        try:
            self._accumulator = Accumulator(producer, self)
        except AttributeError as error:
            log.warning(
                "messages are sent one by one, at several times the cost: this kafka-python has changed (%s)", error
            )
            self._accumulator = Plain(producer, self)
        self._producer, self._manager = producer, producer._transaction_manager
        if self._manager is not None:
            self._manager.reset_producer_id = self._lost_count
        self._trouble = producer._sender._client._manager.trouble

    @property
    def dead(self) -> bool:
        """Whether it will never send anything any more."""
        return self._closing or self._cannot_answer() is not None or self._has_fatal_error()

    # -- sending

    def send(self, message: Addressed) -> Future[Receipt]:
        """Send one message; the future holds (partition, offset) once all in-sync replicas have it, or a ProduceError.

        It leaves when somebody waits for the answer, in ``hand_over``, with others, or after ``linger_ms``. Blocks
        while 32 MB are unanswered, and for up to ``max_block_ms`` until an unknown topic is there.

        Raises:
            TypeError, ValueError: as ``check_outgoing``; the topic has no such partition.
        """
        check_outgoing(message)
        try:
            return self.send_checked(message)
        except DeadError as error:
            return Sent(*self._unsent(message, error, None))

    def send_soon(self, message: Addressed, told: Told | None) -> Future[Receipt] | None:
        """``send`` for most messages, in one function: calls would double the price. None: it has to be looked at."""
        topic, value, key, headers, number, timestamp_ms = message
        if headers is not None or number is not None or timestamp_ms is not None or type(topic) is not str:
            return None
        known = self._accumulator.topics.get(topic)
        if known is None or type(value) is not bytes:
            return None
        size = RECORD_BYTES + len(value)
        if key is None:
            partition = known.any()
        elif type(key) is bytes:
            partition = known.by_known_key.get(key) or known.by_key(key)
            size += len(key)
        else:
            return None
        with self.lock:
            batch = partition.batch
            if batch is None or self._weight + size + MESSAGE_BYTES > WINDOW_BYTES:
                return None
            if batch.records.size + size > self._accumulator.batch_size:
                return None
            self._weight += size + MESSAGE_BYTES
            return Sent(batch, batch.add((time_ns() // 1_000_000, key, value, None), size, told))

    def send_checked(self, message: Addressed, told: Told | None = None) -> Future[Receipt]:
        """``send`` for what ``check_outgoing`` has seen; ``told`` as ``protocol.Outbox`` has it. Raises DeadError."""
        try:
            batch, index = self._put(message, told)
        except DeadError:
            raise
        except kafka.errors.KafkaError as error:
            batch, index = self._unsent(message, error, told)
        return Sent(batch, index)

    def send_many(self, messages: Sequence[Addressed], told: Told | None = None) -> Future[list[Receipt]]:
        """All of these, which ``check_outgoing`` has seen; or none where one cannot be sent. Raises DeadError."""
        places, ready = list[tuple[Batch, int]](), list[tuple[str, Partition | None, Unencoded, int]]()
        try:
            for message in messages:
                ready.append(self._made_ready(message))
        except ValueError as mistake:
            raise in_message(len(ready), mistake) from None
        except DeadError:
            raise
        except kafka.errors.KafkaError as error:
            return Many([self._unsent(message, error, told) for message in messages])
        while (done := len(places)) < len(messages):
            self._put_soon(islice(ready, done, None), places, told)
            if len(places) > done:
                continue
            try:  # a batch has to be opened, or to be waited for
                places.append(self._put(messages[done], told))
            except kafka.errors.KafkaError as error:
                if not places and isinstance(error, DeadError):
                    raise
                places.append(self._unsent(messages[done], error, told))
        return Many(places)

    def _made_ready(self, message: Addressed) -> tuple[str, Partition | None, Unencoded, int]:
        """Its topic, its partition (None: any will do), what is put into a batch, and the size of that."""
        topic, value, key, headers, number, timestamp_ms = message
        size = size_of(key, value, headers)
        self._check_size(size)
        time_ms = time_ns() // 1_000_000 if timestamp_ms is None else timestamp_ms
        any_will_do = key is None and number is None
        if any_will_do and self._accumulator is not None and topic in self._accumulator.topics:
            return topic, None, (time_ms, key, value, headers), size
        partition = self._partition_of(message)
        return topic, None if any_will_do else partition, (time_ms, key, value, headers), size

    def _put_soon(
        self,
        ready: Iterable[tuple[str, Partition | None, Unencoded, int]],
        places: list[tuple[Batch, int]],
        told: Told | None,
    ) -> None:
        """Put messages into batches that are open and have room, up to the first one without."""
        most, topics = self._accumulator.batch_size, self._accumulator.topics
        with self.lock:
            for topic, partition, message, size in ready:
                if partition is None:
                    if (known := topics.get(topic)) is None:
                        return
                    partition = known.any()
                batch, weight = partition.batch, self._weight + size + MESSAGE_BYTES
                if batch is None or batch.records.size + size > most or weight > WINDOW_BYTES:
                    return
                self._weight = weight
                places.append((batch, batch.add(message, size, told)))

    def hand_over(self) -> None:
        """Somebody waits for answers: what was sent leaves now."""
        if self._unanswered:
            with self.lock:
                self._accumulator.hand_over()

    def _partition_of(self, message: Addressed) -> Partition:
        try:
            return self._found_partition(message)
        except Exception as error:
            if self.dead:  # a closed one knows nothing of topics, and says so in many ways
                raise DeadError from error
            raise

    def _found_partition(self, message: Addressed) -> Partition:
        accumulator, (topic, _, key, _, number, _) = self._accumulator, message
        partition: Partition | None = accumulator.partition_of(topic, key, number)
        if partition is None:  # one may have been added; kafka-python would find out in five minutes
            self._ask_for_partitions()
            partition = accumulator.partition_of(topic, key, number)
        if partition is None:
            check_outgoing(message, accumulator.partitions(topic))
            raise ValueError(f"topic {topic} has no partition {number}")
        return partition

    def _ask_for_partitions(self) -> None:
        answered = threading.Event()
        self._producer._metadata.request_update().add_both(lambda *_: answered.set())
        self._producer._sender.wakeup()
        answered.wait(self.settings["max_block_ms"] / 1000)

    def _put(self, message: Addressed, told: Told | None) -> tuple[Batch, int]:
        """Put it into a batch when there is room; raises KafkaError."""
        _, value, key, headers, _, timestamp_ms = message
        size = size_of(key, value, headers)
        self._check_size(size)
        weight = size + MESSAGE_BYTES
        while True:
            partition = self._partition_of(message)
            if timestamp_ms is None:
                timestamp_ms = time_ns() // 1_000_000
            with self.lock:
                batch = partition.batch
                if batch is not None and batch.records.size + size > self._accumulator.batch_size:
                    self._accumulator.hand_over(batch)
                    continue  # without a key the next batch is one of another partition
                if not self._unanswered or self._weight + weight <= WINDOW_BYTES:
                    if batch is None and self.dead:  # looked at for each batch, not for each message
                        raise DeadError
                    batch, index = self._accumulator.add(partition, (timestamp_ms, key, value, headers), size, told)
                    self._unanswered.setdefault(batch, batch.created + self.answer_timeout_s)
                    self._weight += weight
                    break
            self.hand_over()
            if not self._wait_for(lambda: self._has_room(weight), self.answer_timeout_s):
                raise kafka.errors.KafkaTimeoutError("too much is unanswered, for too long")
            if self.dead:
                raise DeadError
        self._accumulator.added(batch)
        return batch, index

    def _check_size(self, size: int) -> None:
        if size > self._most_bytes:
            raise kafka.errors.MessageSizeTooLargeError(f"more than max_request_size={self._most_bytes}")

    def _has_room(self, weight: int) -> bool:
        return not self._unanswered or self._weight + weight <= WINDOW_BYTES or self.dead

    def _unsent(self, message: Addressed, error: Exception, told: Told | None) -> tuple[Batch, int]:
        """A message that could not be put into a batch."""
        batch = Batch(TopicPartition(message.topic, -1), 0, self)
        batch.add((0, message.key, message.value, None), 0, told)
        failure = self.failure_of(message, error)
        batch.answer(-1, [failure])
        if told is not None:
            told(1, failure)
        return batch, 0

    def failure_of(self, message: Addressed, error: Exception) -> ProduceError:
        """What a message that was never sent fails with."""
        collateral = self._has_fatal_error() and self._right_to_write() is None
        return self._failure(message.topic, message.key, message.value, error, collateral=collateral)

    def check(self) -> None:
        """Have the futures fail that kafka-python is not going to resolve any more; never blocks.

        These are all, when its sender thread has died or does nothing but fail, and those that are overdue.
        """
        error, now = self._cannot_answer(), time.monotonic()
        with self.lock:
            hopeless = [batch for batch, overdue_at in self._unanswered.items() if error or overdue_at < now]
            oldest = next(iter(self._unanswered), None)
        if oldest is not None and self._trouble is not None:
            cause = self._trouble.cause() or "nothing is known to be wrong"
            what = f"topic {oldest.topic_partition.topic} to acknowledge messages"
            self._connection.waits(what, oldest.created, cause)
        reason = error or kafka.errors.KafkaTimeoutError("kafka-python gave no answer at all")
        for batch in hopeless:
            self.answered(batch, -1, lambda _: reason)

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until every message has its answer, good or bad; False: not within ``timeout_s``.

        Without ``timeout_s`` it takes ``answer_timeout_s`` at the most.
        """
        self.hand_over()
        return self._wait_for(lambda: not self._unanswered, self.answer_timeout_s if timeout_s is None else timeout_s)

    def count_unanswered(self) -> int:
        """How many messages have no answer."""
        with self.lock:
            return sum(batch.records.count for batch in self._unanswered)

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

    def _lost_count(self) -> None:
        """A batch has expired that may have arrived: kafka-python would give up its id, and ask for no other."""
        self._refused = self._failed
        self._manager.transition_to_fatal_error(kafka.errors.KafkaTimeoutError("it may have arrived, or not"))

    def _has_fatal_error(self) -> bool:
        return self._manager is not None and bool(self._manager.has_fatal_error())

    # -- answers

    def answered(self, batch: Batch, base_offset: int, errors: Errors | None) -> None:
        """All messages of ``batch`` have their answer; a second one changes nothing."""
        if self._accumulator is not None:
            with self.lock:
                self._accumulator.drop(batch)  # nothing is put into it any more
        failures = [] if errors is None else self._failures(batch, errors)
        if not batch.answer(base_offset, failures):
            return
        for told, begin, end in batch.tellings:
            told(end - begin, first_own(failures[begin:end]))
        batch.told = []  # who is told knows much: a future that is kept does not keep that
        with self.lock:
            if self._unanswered.pop(batch, None) is not None:
                self._weigh(-batch.records.size - batch.records.count * MESSAGE_BYTES)

    def split(self, batch: Batch, halves: Sequence[Batch]) -> None:
        """As ``accumulator.Owner`` has it."""
        if (overdue_at := self._unanswered.pop(batch, None)) is not None:
            self._unanswered.update(dict.fromkeys(halves, overdue_at))

    def _weigh(self, change: int) -> None:
        before, self._weight = self._weight, self._weight + change
        # Not each time that one more fits: two threads that take turns at every message cost double.
        if not self._unanswered or self._weight <= WINDOW_BYTES // 2 < before:
            self._changed.notify_all()

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

    def _failures(self, batch: Batch, errors: Errors) -> list[ProduceError]:
        """What each message of a batch that was refused failed with.

        After a fatal error all that was on its way fails, with the error of the message that was refused.
        """
        topic, fatal = batch.topic_partition.topic, self._has_fatal_error()
        if not fatal:
            self._failed = batch
        elif self._refused is None:
            self._refused = batch
        failures = []
        for index, (_, key, value, _) in enumerate(batch.records.messages):
            error = errors(index)
            beside = type(error) is kafka.errors.KafkaError  # kafka-python's, where another one of the batch is invalid
            collateral = beside or (fatal and batch is not self._refused)
            failures.append(self._failure(topic, key, value, error, collateral=collateral))
        return failures

    def _failure(
        self, topic: str, key: bytes | None, value: bytes | None, error: Exception, *, collateral: bool
    ) -> ProduceError:
        if collateral:
            first = f"a message for topic {self._refused.topic_partition.topic}" if self._refused else "another message"
            failure = ProduceError(f"topic {topic} did not take a message, because {first} was refused ({error!r})")
            failure.collateral = True
            return failure
        size = len(value or b"") + len(key or b"")
        failure = ProduceError(why_refused(topic, size, self._right_to_write() or error))
        failure.too_large = isinstance(error, TOO_LARGE)
        return failure

    def _right_to_write(self) -> Exception | None:
        """Why we may not write to any topic, which kafka-python puts into a text only; None: that is not it."""
        if self._producer is None or not self._has_fatal_error():
            return None
        why = self._trouble.why_not("InitProducerId")
        return why if isinstance(why, kafka.errors.AuthorizationError) else None


def why_refused(topic: str, size: int, error: Exception) -> str:
    reason = f"{type(error).__name__}: {error}"
    if isinstance(error, TOO_LARGE):
        return f"a message of {size} bytes is too large for topic {topic}; raise its max.message.bytes, or send less"
    if isinstance(error, kafka.errors.AuthorizationError):
        return f"topic {topic} may not be written to ({reason}); use kafka-acls.sh --add --producer --topic {topic}"
    if isinstance(error, kafka.errors.UnknownTopicOrPartitionError | kafka.errors.KafkaTimeoutError):
        missing = f"is missing and they create none; then use kafka-topics.sh --create --topic {topic}"
        return f"topic {topic} acknowledged nothing in time ({reason}): its brokers do not answer, or it {missing}"
    return f"topic {topic} did not take a message ({reason})"
