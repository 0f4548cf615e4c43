"""Offsets of a group that are committed together with messages, by kafka-python's transactional producer.

One producer, and one transaction at a time, which is open for milliseconds: the messages are there before it begins.
Its transactional id is of this process alone. A member that was evicted is refused by its generation of the group
(KIP-447).

Its traps, each with a test in tests/kafka/test_transactions.py, with the cure and without:

    offsets and messages of a dead transaction leave with the next one
                                        a producer that has seen anything but a clean commit is thrown away; the next
                                        one of the same id has the brokers abort what is open
    a message that expires fails alone, and the transaction is committed without it
                                        no commit before each message has its receipt
    its calls wait for ever for a coordinator that has died, and ``flush`` for nothing
                                        none of them is used: the transaction manager is asked, and waits have bounds
    an error of EndTxn may hide a commit
                                        ``Undecided``: the brokers are asked, by a new join
    ``close`` leaves a transaction open for all its time
                                        as above: the next producer of the same id ends it

Private touch points in kafka-python 3.0 (pinned below 3.1), beside those of ``accumulator``:

    producer._transaction_manager.begin_transaction, begin_commit, send_offsets_to_transaction
                                        the public ones wait without a bound
    producer._transaction_manager.maybe_add_partition_to_transaction
                                        what ``send`` does for its batches
    producer._sender.force_close, wakeup, is_alive
    producer._metadata                  whether a topic does not exist, or nobody answers

Threads: ``check`` and ``close`` are the poller's, ``commit`` the committer's. Answers come on kafka-python's thread.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast, overload

import kafka.errors
from kafka import KafkaProducer

from karafka_lite import forks
from karafka_lite.client.accumulator import Accumulator, Partition, Plain
from karafka_lite.client.batches import Batch, Errors
from karafka_lite.client.connection import Connection, Emit
from karafka_lite.client.encoding import Unencoded, size_of
from karafka_lite.client.producer import DEFAULTS, FORCED, TOO_LARGE, why_refused
from karafka_lite.client.refusals import ids_refused
from karafka_lite.core.answers import Commit, Committed, Ended, Refused, Undecided
from karafka_lite.core.marks import Refusal
from karafka_lite.core.sends import Held, Receipt
from karafka_lite.errors import AccessError, ConfigurationError, KarafkaLiteError, ProduceError, describe
from karafka_lite.messages import Addressed, TopicPartition

if TYPE_CHECKING:
    from kafka.structs import ConsumerGroupMetadata

    from karafka_lite.client import protocol

log = logging.getLogger("karafka_lite")

OPEN_MS = 10_000  # how long a transaction may be open; the brokers abort it then, or up to 10 s later
END_S = 10.0  # how long the answer to EndTxn may take
TOPIC_MS = 5_000  # how long a topic that is not known may take to appear: all transactions of the group wait
RETRY_MS = 5  # its thread rests so long between two requests of a transaction of which the first came too early
SMALL = 1000  # bytes of a message of any size that is allowed
CLOSE_S = 5.0
LEAST_VERSION = (2, 5)
OWN: dict[str, Any] = {
    **FORCED,
    "enable_idempotence": True,
    "max_in_flight_requests_per_connection": 5,
    "linger_ms": 0,
    "retry_backoff_ms": RETRY_MS,
    "request_timeout_ms": OPEN_MS // 2,
    "delivery_timeout_ms": OPEN_MS,
    "transaction_timeout_ms": OPEN_MS,
    "max_block_ms": TOPIC_MS,
}

OF_A_MESSAGE = (
    *TOO_LARGE,
    kafka.errors.InvalidRecordError,
    kafka.errors.InvalidTimestampError,
    kafka.errors.InvalidTopicError,
    kafka.errors.PolicyViolationError,
    kafka.errors.TopicAuthorizationFailedError,
    kafka.errors.UnsupportedForMessageFormatError,
)
"""What a broker refuses a message for. All else is no fault of a message: the same transaction is tried again."""


class Transactions:
    """The transactions of one group in this process. Raises this package's errors only."""

    def __init__(
        self, group_id: str, bootstrap_servers: Sequence[str], settings: Mapping[str, Any], emit: Emit
    ) -> None:
        self.transactional_id = f"{group_id}-{uuid.uuid4().hex}"
        self._new = partial(Writer, group_id, self.transactional_id, bootstrap_servers, settings, emit)
        self._writer: Writer | None = None

    def check(self) -> None:
        """Reach a broker.

        Where none answers, the first commit tries again.

        Raises:
            AccessError: no transactional id that begins with the group's may be used.
            ConfigurationError: the brokers are older than 2.5.
        """
        try:
            self._connect()
        except (AccessError, ConfigurationError):
            raise
        except Exception as error:  # noqa: BLE001 - brokers that do not answer now: the first commit tries again
            log.debug("group's transactions: %s", describe(error))

    def commit(self, client: protocol.Client, commits: Collection[Commit], generation: int) -> Ended:
        """Send the messages of ``commits`` and commit, if the group is still in ``generation``; one attempt."""
        refusals: Mapping[TopicPartition, Refusal] = {}
        try:
            member, offsets, refusals = client.stamped(commits, generation)
            sends = [held for commit in commits if commit.ownership.tp not in refusals for held in commit.sends]
            if not offsets:
                return Committed({}, refusals)
            receipts = (self._writer or self._connect()).write(sends, offsets, member)
        except RefusedError as error:
            self._replace()
            return Refused(error.held, error.failure)
        except UndecidedError as error:
            self._replace()
            return Undecided(error)
        except Exception as error:  # noqa: BLE001 - whatever it is: nothing is committed
            self._replace()
            denied = isinstance(error, kafka.errors.GroupAuthorizationFailedError)
            refusal = Refusal(error, "denied" if denied else None)
            return Committed({}, {**{commit.ownership.tp: refusal for commit in commits}, **refusals})
        return Committed(receipts, refusals)

    def close(self) -> None:
        """Nothing is left; what is open was ended before."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def _connect(self) -> Writer:
        self.close()
        writer = self._new()
        writer.connect()
        self._writer = writer
        return writer

    def _replace(self) -> None:
        """What is open ends now: readers wait for it, and so does the next owner."""
        if self._writer is None:
            return  # nothing was begun
        with suppress(Exception):
            self._connect()


class RefusedError(Exception):
    """A message of ``held`` was refused."""

    def __init__(self, held: Held, failure: ProduceError) -> None:
        super().__init__(failure)
        self.held, self.failure = held, failure


class UndecidedError(KarafkaLiteError):
    """The end of a transaction has no answer, or an error for one."""


class Blamed(NamedTuple):
    """Of the first bad answer: whose message it was, of which topic and how many bytes, and the error."""

    held: Held | None
    topic: str
    size: int
    error: Exception


Ready = tuple[Partition, Unencoded, int]
"""A message with its place and its size."""


class Writer:
    """One transactional producer, as long as each of its transactions is committed cleanly."""

    def __init__(
        self,
        group_id: str,
        transactional_id: str,
        bootstrap_servers: Sequence[str],
        settings: Mapping[str, Any],
        emit: Emit,
    ) -> None:
        known = {name: value for name, value in settings.items() if name in KafkaProducer.DEFAULT_CONFIG}
        self._settings = {**DEFAULTS, **known, **OWN, "transactional_id": transactional_id}
        self._group_id, self._servers = group_id, bootstrap_servers
        self._connection = Connection(f"the transactions of group {group_id}", emit)
        self._producer: Any = None
        self._manager: Any = None
        self._accumulator: Any = None
        self.lock = threading.Lock()
        forks.watch(self)
        self._settled = threading.Event()  # the first bad answer has come, or the last good one
        self._unanswered: set[Batch] = set()
        self._blamed: Blamed | None = None
        self._any: dict[str, Partition] = {}  # by topic: where messages without a key go in this transaction

    def connect(self) -> None:
        """Reach a broker, and have the brokers end what an earlier producer of this id has left open."""
        producer = self._producer = self._connection.open(KafkaProducer, self._servers, self._settings)
        self._connection.thread = producer._sender
        if tuple(producer.config["api_version"]) < LEAST_VERSION:
            self.close()
            raise ConfigurationError("exactly_once needs brokers from version 2.5 on")
        try:
            producer.init_transactions()  # for up to ``max_block_ms``
        except kafka.errors.TransactionalIdAuthorizationFailedError as error:
            self.close()
            raise AccessError(ids_refused(self._group_id)) from error
        except Exception:
            self.close()
            raise
        self._manager = producer._transaction_manager
        try:
            self._accumulator = Accumulator(producer, self)
        except AttributeError:
            self._accumulator = Plain(producer, self)

    def write(
        self, sends: Sequence[Held], offsets: Mapping[Any, Any], member: ConsumerGroupMetadata
    ) -> Mapping[Held, Sequence[Receipt]]:
        """One transaction, from its begin to its end. After anything but a clean commit this is of no use any more.

        Raises:
            RefusedError: it is not committed, because of a message.
            UndecidedError: it is committed, or not.
            Exception: it is not committed.
        """
        self._any = {}
        ready = {held: self._made_ready(held) for held in sends}
        deadline = time.monotonic() + OPEN_MS / 1000
        self._manager.begin_transaction()
        for partition in {partition for messages in ready.values() for partition, _, _ in messages}:
            self._manager.maybe_add_partition_to_transaction(partition.tp)
        committed = self._manager.send_offsets_to_transaction(offsets, member)
        self._producer._sender.wakeup()  # partitions and offsets are on their way while batches are filled
        places = self._put(ready)
        self.hand_over()
        self._await(lambda seconds: not places or self._settled.wait(seconds), deadline)
        if self._blamed is not None:
            raise self._failure(sends, self._blamed)
        self._await(lambda seconds: committed.wait(seconds * 1000), deadline)
        end = self._manager.begin_commit()
        self._producer._sender.wakeup()
        try:
            if not end.wait(END_S * 1000):
                raise UndecidedError("the end of a transaction has no answer")
        except kafka.errors.KafkaError as error:
            raise UndecidedError(f"the end of a transaction has failed ({describe(error)})") from error
        receipts, begin = dict[Held, Sequence[Receipt]](), 0
        for held in sends:
            end = begin + len(held.messages)
            receipts[held] = Receipts(places[begin:end])
            begin = end
        return receipts

    def _await(self, wait: Any, deadline: float) -> None:
        if not wait(max(0.0, deadline - time.monotonic())):
            raise kafka.errors.KafkaTimeoutError(f"a transaction was not ready within {OPEN_MS} ms")

    def close(self) -> None:
        """At once. What is open stays so until another producer of the same id is there."""
        producer, self._producer = self._producer, None
        if producer is not None:
            producer._sender.force_close()
            try:
                producer.close(timeout=CLOSE_S)
            except Exception:  # noqa: BLE001 - what it dies of may also keep it from ending in good order
                producer._closed = True  # else its __del__ would try it once more
            if not producer._sender.is_alive():
                producer._sender._client.close()
        self._connection.close()

    # -- messages

    def _made_ready(self, held: Held) -> list[Ready]:
        now_ms, known, ready = time.time_ns() // 1_000_000, self._accumulator.topics, list[Ready]()
        for message in held.messages:
            topic, value, key, headers, number, timestamp_ms = message
            size, partition = size_of(key, value, headers), None
            if number is None and size <= SMALL:
                if key is None:
                    partition = self._any.get(topic)
                elif topic in known:
                    partition = known[topic].by_known_key.get(key)
            if partition is None:
                partition = self._partition_of(held, message, size)
            ready.append((partition, (now_ms if timestamp_ms is None else timestamp_ms, key, value, headers), size))
        return ready

    def _partition_of(self, held: Held, message: Addressed, size: int) -> Partition:
        topic, _, key, _, number, _ = message
        asked_at = time.monotonic()
        try:
            if size > self._settings["max_request_size"]:
                raise kafka.errors.MessageSizeTooLargeError()
            partition: Partition | None = self._accumulator.partition_of(topic, key, number)
        except kafka.errors.KafkaTimeoutError as error:
            if self._producer._metadata._last_successful_refresh_ms < asked_at * 1000:
                raise  # nobody answers
            raise RefusedError(held, _refusal(topic, size, error)) from error
        except kafka.errors.KafkaError as error:
            raise RefusedError(held, _refusal(topic, size, error)) from error
        if partition is None:
            raise RefusedError(held, ProduceError(f"topic {topic} has no partition {number}"))
        return self._any.setdefault(topic, partition) if key is None and number is None else partition

    def _put(self, ready: Mapping[Held, Sequence[Ready]]) -> list[tuple[Batch, int]]:
        places = list[tuple[Batch, int]]()
        self._settled.clear()
        most, add = self._accumulator.batch_size, self._accumulator.add
        with self.lock:  # once for all
            for held, messages in ready.items():
                owned = Owned(held)
                for partition, message, size in messages:
                    batch = partition.batch
                    if batch is None or batch.records.size + size > most:
                        if batch is not None:
                            self._accumulator.hand_over(batch)
                        batch, index = add(partition, message, size, owned)
                        self._unanswered.add(batch)
                    else:
                        index = batch.add(message, size, owned)
                    places.append((batch, index))
        for batch in {batch for batch, _ in places}:
            self._accumulator.added(batch)
        return places

    def _failure(self, sends: Sequence[Held], blamed: Blamed) -> Exception:
        """Of the first bad answer. Others that come with it are the same error, of messages that cannot help it."""
        held, topic, size, error = blamed
        if isinstance(error, kafka.errors.TopicAuthorizationFailedError):  # it may have come with any batch
            denied = ((each, message.topic) for each in sends for message in each.messages)
            held, topic = next((one for one in denied if one[1] in str(error.args)), (held, topic))
        if held is None or not isinstance(error, OF_A_MESSAGE):
            return error
        return RefusedError(held, _refusal(topic, size, error))

    # -- ``batches.Owner``, on kafka-python's thread

    def answered(self, batch: Batch, base_offset: int, errors: Errors | None) -> None:
        """All messages of ``batch`` have their answer."""
        with self.lock:
            self._accumulator.drop(batch)
        bad = [] if errors is None else [errors(index) for index in range(batch.records.count)]
        if not batch.answer(base_offset, [ProduceError(describe(error)) for error in bad]):
            return
        if bad and self._blamed is None:
            # Beside a message that is invalid, others have a KafkaError and nothing more.
            index = next((index for index, error in enumerate(bad) if type(error) is not kafka.errors.KafkaError), 0)
            _, key, value, _ = batch.records.messages[index]
            size = len(value or b"") + len(key or b"")
            self._blamed = Blamed(_owner_of(batch, index), batch.topic_partition.topic, size, bad[index])
        with self.lock:
            self._unanswered.discard(batch)
            if self._blamed is not None or not self._unanswered:
                self._settled.set()

    def split(self, batch: Batch, halves: Sequence[Batch]) -> None:
        """As ``batches.Owner`` has it."""
        self._unanswered.discard(batch)
        self._unanswered.update(halves)

    def hand_over(self) -> None:
        """What was put into batches leaves now."""
        with self.lock:
            self._accumulator.hand_over()

    def check(self) -> None: ...


class Receipts(Sequence[Receipt]):
    """Where messages are, looked up when somebody asks: mostly nobody does."""

    def __init__(self, places: Sequence[tuple[Batch, int]]) -> None:
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Receipt: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Receipt]: ...
    def __getitem__(self, index: int | slice) -> Receipt | Sequence[Receipt]:
        if isinstance(index, slice):
            return Receipts(self._places[index])
        batch, number = self._places[index]
        return cast("Receipt", batch.answer_to(number))


class Owned:
    """Takes the place of who is told: whose messages these are, also in the halves of a batch that is split."""

    def __init__(self, held: Held) -> None:
        self.held = held

    def __call__(self, _count: int, _failure: BaseException | None) -> None: ...


def _refusal(topic: str, size: int, error: Exception) -> ProduceError:
    failure = ProduceError(why_refused(topic, size, error))
    failure.too_large = isinstance(error, TOO_LARGE)
    return failure


def _owner_of(batch: Batch, index: int) -> Held | None:
    owned = (told for told, begin, end in batch.tellings if begin <= index < end)
    return next((told.held for told in owned if isinstance(told, Owned)), None)
