"""One consumer-group member: the only file that touches kafka-python's consumer.

Threads: ``commit`` belongs to the committer; ``lost``, ``join_anew`` and ``wake_rebalance`` may be called from anywhere
and never block; all else is the poller's. The rebalance listener runs on kafka-python's own IO thread, inside ``poll``
or ``close``.

Private touch points in kafka-python 3.0 (pinned below 3.1), each with a test in tests/kafka (most in test_cures.py):

    consumer._subscription.assign_from_subscribed([])   eager assignors keep the positions of what was revoked
    consumer._subscription.assignment                   positions, without asking the network
    consumer._fetcher._next_partition_records           a pause amid a fetched chunk blocks the partition for good
    consumer._fetcher.PartitionRecords                  slow (see reader.py); after a corrupt batch ``poll`` hangs
    consumer._fetcher._create_fetch_requests            a fetch for idle partitions keeps a busy one waiting
    consumer._manager._build_transport                  its connections read 4,096 bytes at a time
    consumer._cluster.config                            allow_auto_create_topics is not passed on: always True
    consumer._cluster.add_topic                         asks for a topic by name (and so creates it, where allowed)
    consumer._coordinator._generation                   a lost membership shows here before ``poll`` notices
    consumer._coordinator.heartbeat                     when the last heartbeat was answered
    consumer._coordinator.poll                          returns when the group is joined; ``poll`` would go on and fetch
    consumer._coordinator.request_rejoin                a loss that we found out, or a join that the client forgets
    consumer._coordinator._send_offset_commit_request   ``commit`` tries again under a later generation
    consumer._coordinator.coordinator_id                leaving while our join is pending needs another connection
    consumer._coordinator.fetch_committed_offsets       all partitions in one request (the public call takes one)
    consumer._net, consumer._manager                    a notifier that the listener can await; commits of our own
    consumer._client                                    a constructor that raises leaves its IO thread behind
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple, Protocol, cast

import kafka.errors
from kafka import KafkaConsumer, OffsetAndMetadata
from kafka import TopicPartition as Place
from kafka.consumer.subscription_state import AsyncConsumerRebalanceListener
from kafka.net.wakeup_notifier import WakeupNotifier
from kafka.structs import MemberState

from karafka_lite.client.reader import choose_reader
from karafka_lite.core.group import PollPlan
from karafka_lite.core.options import Target, Time
from karafka_lite.errors import BrokerUnavailableError, ConfigurationError, KarafkaLiteError
from karafka_lite.messages import Record, TopicPartition, where

log = logging.getLogger("karafka_lite")
kafka_log = logging.getLogger("karafka_lite.kafka")

RECEIVE_BYTES = 256 << 10
POLL_RECORDS = 2000  # a poll costs about as much as reading a hundred of them
JOINING_POLL_MS = 1000  # a join that ends between two polls is thrown away by the client: hardly ever be between two
RECONNECT_MOST_MS = 1000  # as in Java; kafka-python's 30 s outlast bootstrap_timeout_ms: 10 s of outage end a start
PAUSED_POLL_MS = 20  # there is no wakeup(): how late a partition may be resumed, or be asked for again
IDLE_POLL_MS = 200
REQUEST_MS = 5000  # bound of one blocking request; what failed is asked again
CLOSE_MS = 5000
SAY_AGAIN_S = 30.0
NO_GENERATION = -1
MAX_POLL_INTERVAL_MS: int = KafkaConsumer.DEFAULT_CONFIG["max_poll_interval_ms"]

FORCED: dict[str, Any] = {"enable_auto_commit": False, "metrics_enabled": False}
DEFAULTS: dict[str, Any] = {
    "client_id": "karafka-lite",
    "auto_offset_reset": "earliest",
    "allow_auto_create_topics": False,
    "reconnect_backoff_max_ms": RECONNECT_MOST_MS,
    "max_poll_records": POLL_RECORDS,
}


class Fetched(NamedTuple):
    """Records of one partition from one poll, some ``size_bytes``; ``end_offset``: where the partition ended then."""

    place: TopicPartition
    records: Sequence[Record]
    end_offset: int | None
    size_bytes: int


class Start(NamedTuple):
    """Where a new ownership begins, and why: ``committed``, ``earliest`` or ``latest``."""

    offset: int
    reason: str


class Rebalance(Protocol):
    """What the client tells its owner; called on the IO thread: must neither block nor raise."""

    def on_assigned(self, places: Collection[TopicPartition]) -> None: ...
    def on_revoke(self, places: Collection[TopicPartition]) -> Callable[[], float | None]:
        """Returns a question: seconds to wait before it is asked again, or None when ``places`` may be given away."""

    def on_lost(self) -> None: ...


class PollError(KarafkaLiteError):
    """A poll failed in a way that the next one may not."""


class Client:
    """A KafkaConsumer with its traps taken care of.

    Raises this package's errors only. Anything else means that kafka-python itself is broken (its IO thread has died,
    say): ``close`` and ``connect`` make a new one.
    """

    def __init__(
        self, group_id: str, bootstrap_servers: Sequence[str], settings: Mapping[str, Any], rebalance: Rebalance
    ) -> None:
        self.group_id = group_id
        self.bootstrap_servers = list(bootstrap_servers)
        self.settings = {**DEFAULTS, **settings, **FORCED}
        self._rebalance = rebalance
        self._consumer: Any = None
        self._coordinator: Any = None
        self._session_s = 0.0
        self._sizes: Counter[Any] = Counter()  # of what the poll in hand has read, in bytes
        self._notifier: Any = None
        self._joined_at = self._alive_until = float("-inf")

    @property
    def reset(self) -> str:
        """Where a partition without a commit begins."""
        return str(self.settings["auto_offset_reset"])

    # -- the poller's

    def connect(self) -> None:
        """Reach a broker. Blocks for up to ``bootstrap_timeout_ms``.

        Raises:
            BrokerUnavailableError: none answered.
            ConfigurationError: a setting that kafka-python refuses.
        """
        with connecting(f"group {self.group_id}", self.bootstrap_servers, self.settings):
            consumer = _new_consumer(bootstrap_servers=self.bootstrap_servers, group_id=self.group_id, **self.settings)
        _receive_more(consumer._manager)
        _fetch_soon(consumer._fetcher)
        consumer._cluster.config["allow_auto_create_topics"] = self.settings["allow_auto_create_topics"]
        consumer._fetcher.PartitionRecords = partial(choose_reader(), sizes=self._sizes)
        self._notifier = WakeupNotifier(consumer._net)
        self._coordinator = consumer._coordinator
        self._session_s = self._coordinator.heartbeat.config["session_timeout_ms"] / 1000
        self._consumer = consumer

    def missing_topics(self, topics: Collection[str]) -> set[str]:
        """Those of ``topics`` that do not exist, or that we may not see. Raises PollError."""
        try:
            if self.settings["allow_auto_create_topics"]:
                for topic in topics:
                    with suppress(kafka.errors.UnknownTopicOrPartitionError):  # while the broker creates it
                        asked = self._consumer._cluster.add_topic(topic)
                        self._consumer._net.run(self._consumer._manager.wait_for, asked, REQUEST_MS)
            return set(topics) - self._topics()
        except kafka.errors.KafkaError as error:
            raise PollError(str(error)) from error

    def _topics(self) -> set[str]:
        try:
            return set(self._consumer.topics())
        except kafka.errors.UnknownTopicOrPartitionError:  # of a refresh for a topic of ours that has gone
            return set(self._consumer.topics())

    def subscribe(self, topics: Collection[str]) -> None:
        """Join the group with the next poll. ``topics`` exist: one that does not may leave the member idle for good."""
        self._consumer.subscribe(sorted(topics), listener=_Listener(self, self._consumer, self._rebalance))
        self.missing_topics(topics)  # else the first metadata that know of the subscription come after the join: twice

    def starts(self, places: Collection[TopicPartition]) -> dict[TopicPartition, Start]:
        """Where ``places`` begin; without those of which the cluster cannot say it now. Raises as ``poll`` does."""
        wanted = [Place(*place) for place in places]
        starts: dict[TopicPartition, Start] = {}
        try:
            committed = self._coordinator.fetch_committed_offsets(wanted, timeout_ms=REQUEST_MS)
            starts.update({tuple(place): Start(offset.offset, "committed") for place, offset in committed.items()})
            if missing := [place for place in wanted if place not in committed]:
                if self.reset == "none":
                    raise ConfigurationError(self._no_start(", ".join(where(*place) for place in missing)))
                ask = self._consumer.end_offsets if self.reset == "latest" else self._consumer.beginning_offsets
                offsets = ask(missing, timeout_ms=REQUEST_MS)
                starts.update({tuple(place): Start(offset, self.reset) for place, offset in offsets.items()})
        except kafka.errors.KafkaError as error:
            log.debug("group %s: not all starting offsets are known yet: %s", self.group_id, error)
        return starts

    def offset_of(self, place: TopicPartition, target: Target) -> int | None:
        """Where ``target`` is; None while the cluster cannot say it. Behind the end there is the end."""
        wanted, consumer = Place(*place), self._consumer
        try:
            if isinstance(target, Time):
                found = consumer.offsets_for_times({wanted: target.ms}, timeout_ms=REQUEST_MS)[wanted]
                if found is not None:
                    return int(found.offset)
            ask = consumer.beginning_offsets if target == "earliest" else consumer.end_offsets
            return int(ask([wanted], timeout_ms=REQUEST_MS)[wanted])
        except kafka.errors.KafkaError as error:
            log.debug("group %s: %s: %s is not known yet: %s", self.group_id, where(*place), target, error)
            return None

    def apply(self, plan: PollPlan) -> None:
        """Carry out what the group wants before the next poll; a partition that has just gone is left alone."""
        if plan.join_anew:
            self.join_anew()
        actions: list[tuple[Callable[..., None], tuple[Any, ...]]] = [
            *((self._consumer.seek, (Place(*place), offset)) for place, offset in plan.seeks.items()),
            *((self._consumer.pause, (Place(*place),)) for place in plan.pause),
            *((self._consumer.resume, (Place(*place),)) for place in plan.resume),
        ]
        for action, arguments in actions:
            try:
                action(*arguments)
            except (KeyError, ValueError, AssertionError, kafka.errors.IllegalStateError):
                log.debug("group %s: %s%s came too late", self.group_id, action.__name__, arguments)

    def poll(self, *, paused: bool) -> Iterator[Fetched]:
        """Wait for records. Rebalances happen in here.

        Raises:
            FetchError: what one partition holds next cannot be read.
            ConfigurationError: a partition has no committed offset, or none that still exists, and
                ``auto_offset_reset="none"`` forbids to choose another one.
            PollError: whatever else kafka-python has to say; the next poll may work.
        """
        fetcher = self._consumer._fetcher
        if fetcher._next_partition_records is not None and not fetcher._next_partition_records:
            fetcher._next_partition_records = None
        self._sizes.clear()
        joining = self._consumer.group_metadata().state != MemberState.STABLE or self._coordinator.need_rejoin()
        try:
            if joining:  # only that: the consumer's poll would go on to fetch from where we do not want to begin
                self.join_anew()  # a join for a new subscription that outlives its poll is forgotten
                self._coordinator.poll(timeout_ms=JOINING_POLL_MS)
                return
            polled = self._consumer.poll(PAUSED_POLL_MS if paused else IDLE_POLL_MS)
        except (kafka.errors.NoOffsetForPartitionError, kafka.errors.OffsetOutOfRangeError) as error:
            raise ConfigurationError(self._no_start(str(error))) from error
        except kafka.errors.KafkaError as error:
            raise PollError(str(error)) from error
        for place, records in polled.items():
            yield Fetched(tuple(place), records, self._end_offset(place), self._sizes[place])

    def positions(self) -> dict[TopicPartition, int]:
        """Where fetching goes on: behind what ``poll`` has returned, and behind markers and what was compacted away."""
        states = list(self._consumer._subscription.assignment.items())
        return {tuple(place): state.position.offset for place, state in states if state.position is not None}

    def close(self) -> None:
        """Leave the group at once; calls the listener for what is still assigned."""
        consumer, self._consumer = self._consumer, None
        if consumer is None:
            return
        if consumer.group_metadata().state == MemberState.REBALANCING and self._coordinator.coordinator_id is not None:
            # LeaveGroup would wait behind our pending JoinGroup, for the others' batches: it takes another connection.
            self._coordinator.coordinator_id = int(str(self._coordinator.coordinator_id).rpartition("-")[2])
        try:
            consumer.close(autocommit=False, timeout_ms=CLOSE_MS)
        except Exception as error:
            log.warning("group %s: left without a goodbye (%r); noticed after session_timeout_ms", self.group_id, error)
            with suppress(Exception):
                consumer._client.close()  # its sockets would stay open

    # -- the committer's

    def generation(self) -> int:
        """Of the group, as we know it; what is owned now is owned in it."""
        return int(self._coordinator._generation.generation_id)

    def commit(self, offsets: Mapping[TopicPartition, int], generation: int) -> Exception | None:
        """Commit, if the group is still in ``generation``; one attempt.

        The public ``commit`` tries again for as long as it may, with whatever generation there is by then: what we had
        lost meanwhile would be committed in the name of our next membership.

        Returns None when the broker has acknowledged, else what went wrong (ask ``lost`` what it means).
        """
        wanted = {Place(*place): OffsetAndMetadata(offset, "", -1) for place, offset in offsets.items()}
        coordinator, manager = self._coordinator, self._consumer._manager

        async def send() -> None:  # the check and the stamp on the request are one step of the IO thread
            if coordinator._generation.generation_id != generation:
                raise kafka.errors.IllegalGenerationError("the membership has changed since the offsets were marked")
            await coordinator._send_offset_commit_request(wanted)

        async def attempt() -> None:
            if not await coordinator.ensure_coordinator_ready_async(timeout_ms=REQUEST_MS):
                raise kafka.errors.CoordinatorNotAvailableError()
            await manager.wait_for(manager.call_soon(send), REQUEST_MS)

        try:
            self._consumer._net.run(attempt)
        except Exception as error:  # also what a dying IO thread throws: nothing is committed then
            return error
        return None

    # -- anybody's

    def lost(self, now: float) -> bool:
        """Whether our membership is known to be gone: evicted, or no heartbeat answered for ``session_timeout_ms``.

        Asked of the client's memory, without the network: 0.1 µs, part of every mark. It can turn back to False (the
        client joins again, or the coordinator still knows us), so whoever acts on it has to remember.
        """
        coordinator = self._coordinator
        if coordinator._generation.generation_id == NO_GENERATION:
            return True
        if now < self._alive_until:  # as far as we knew when we looked last
            return False
        self._alive_until = max(coordinator.heartbeat.last_receive, self._joined_at) + self._session_s
        return now > self._alive_until

    def join_anew(self) -> None:
        """Make the member join again at its next poll, with the id that it has."""
        self._coordinator.request_rejoin()

    def wake_rebalance(self) -> None:
        """Have the listener ask again whether the partitions may be given away."""
        self._notifier.notify()

    def _end_offset(self, place: Any) -> int | None:
        with suppress(KeyError, AssertionError, kafka.errors.IllegalStateError):
            return cast("int | None", self._consumer.highwater(place))
        return None

    def _no_start(self, where: str) -> str:
        return (
            f"group {self.group_id} has no usable committed offset ({where}), and auto_offset_reset='none' forbids to "
            f"choose one; commit one with kafka-consumer-groups.sh --reset-offsets, or set 'earliest' or 'latest'"
        )


@contextmanager
def connecting(who: str, bootstrap_servers: Sequence[str], settings: Mapping[str, Any]) -> Iterator[None]:
    """Quiet kafka-python's loggers, and turn what a constructor of its clients raises into our errors.

    Raises:
        BrokerUnavailableError: no broker answered.
        ConfigurationError: a setting that kafka-python refuses.
    """
    last_words = _quiet_kafka_loggers()
    last_words.text = ""  # of an earlier connection
    try:
        yield
    except (kafka.errors.KafkaConnectionError, kafka.errors.KafkaTimeoutError) as error:
        waited = settings.get("bootstrap_timeout_ms", KafkaConsumer.DEFAULT_CONFIG["bootstrap_timeout_ms"])
        timed_out = isinstance(error, kafka.errors.KafkaTimeoutError)
        raise BrokerUnavailableError(
            f"no broker could be reached at {','.join(bootstrap_servers)} within {waited} ms "
            f"({(timed_out and last_words.text) or error}); is Kafka running there? "
            f"Another address: --broker HOST:PORT, or KARAFKA_LITE_BOOTSTRAP_SERVERS=HOST:PORT"
        ) from error
    except (kafka.errors.KafkaError, AssertionError, OSError, TypeError, ValueError) as error:
        raise ConfigurationError(f"kafka-python refuses the settings of {who}: {error}") from error


def _new_consumer(**settings: Any) -> Any:
    """A KafkaConsumer; when its constructor raises, its IO thread is ended, which nobody else could do."""
    consumer = KafkaConsumer.__new__(KafkaConsumer)
    try:
        consumer.__init__(**settings)
    except BaseException:
        if hasattr(consumer, "_client"):
            consumer._client.close()
        raise
    return consumer


def _fetch_soon(fetcher: Any) -> None:
    """Have no busy partition wait for news from idle ones.

    There is one fetch at a time for each broker, and it leaves out partitions that are paused, or have something left
    from the fetch before. Those would wait ``fetch_max_wait_ms`` for every few thousand records.
    """
    stock, settings, most = fetcher._create_fetch_requests, fetcher.config, fetcher.config["fetch_max_wait_ms"]
    subscriptions = fetcher._subscriptions

    def create() -> Any:
        left, asked_for = fetcher._next_partition_records, fetcher._fetchable_partitions()
        if left and all(map(at_end, asked_for)):
            return {}  # the next polls take what is left (it is not paused, or it was parked); then all are asked for
        all_of_them = len(asked_for) == len(subscriptions.assignment)
        settings["fetch_max_wait_ms"] = most if all_of_them else min(most, PAUSED_POLL_MS)
        return stock()

    def at_end(place: Any) -> bool:
        return bool(subscriptions.assignment[place].highwater == subscriptions.assignment[place].position.offset)

    fetcher._create_fetch_requests = create


def _receive_more(manager: Any) -> None:
    """Have the connections that ``manager`` is going to make read more than 4,096 bytes at a time."""
    stock = manager._build_transport

    async def build(*args: Any, **settings: Any) -> Any:
        transport = await stock(*args, **settings)
        transport._sock_recv = partial(_received, transport, transport._sock_recv)
        return transport

    manager._build_transport = build


def _received(transport: Any, stock: Callable[[], tuple[bytes, Any]]) -> tuple[bytes, Any]:
    """All that has come; where nothing has, the stock method says why."""
    pieces = []
    with suppress(Exception):  # what is wrong now is wrong at the next call, too
        while piece := transport._sock.recv(RECEIVE_BYTES):
            pieces.append(piece)
    return (b"".join(pieces), None) if pieces else stock()


class _Listener(AsyncConsumerRebalanceListener):  # type: ignore[misc]
    """Awaits the hand-over without blocking: heartbeats go on. A listener that raises is called for ever."""

    def __init__(self, client: Client, consumer: Any, rebalance: Rebalance) -> None:
        self._client = client
        self._consumer = consumer
        self._rebalance = rebalance

    async def on_partitions_assigned(self, assigned: set[Any]) -> None:
        try:
            self._client._joined_at = time.monotonic()
            self._rebalance.on_assigned(sorted(tuple(place) for place in assigned))
        except Exception:
            log.exception("group %s: assignment failed; please report this", self._client.group_id)

    async def on_partitions_revoked(self, revoked: set[Any]) -> None:
        try:
            wait = self._rebalance.on_revoke(sorted(tuple(place) for place in revoked))
            while (seconds := wait()) is not None:
                await self._client._notifier(seconds)
        except Exception:
            log.exception("group %s: hand-over failed; please report this", self._client.group_id)
        # As Java does. Else a partition that comes back keeps its position and its paused flag, and what we have just
        # dropped from its queue is skipped.
        self._consumer._subscription.assign_from_subscribed([])

    async def on_partitions_lost(self, lost: set[Any]) -> None:
        try:
            self._rebalance.on_lost()
        except Exception:
            log.exception("group %s: loss not handled; please report this", self._client.group_id)


class _LastWords(logging.Handler):
    """Takes what kafka-python logs to our own debug log; says once, and remembers, that a broker cannot be reached."""

    text = ""
    said_at = float("-inf")

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        kafka_log.debug("%s: %s", record.name, message)
        if message.startswith("Connection failed: "):
            self.text = message.removeprefix("Connection failed: ")
            if time.monotonic() - self.said_at > SAY_AGAIN_S:
                self.said_at = time.monotonic()
                log.warning("a broker cannot be reached, it is tried again: %s", self.text)


def _quiet_kafka_loggers() -> _LastWords:
    """kafka-python logs an ERROR for each ordinary disconnect: keep that to our debug log.

    Left alone where the program has set up the logger ``kafka`` by itself (a level or a handler).
    """
    logger = logging.getLogger("kafka")
    for handler in logger.handlers:
        if isinstance(handler, _LastWords):
            return handler
    last_words = _LastWords()
    if logger.level == logging.NOTSET and all(isinstance(handler, logging.NullHandler) for handler in logger.handlers):
        logger.addHandler(last_words)
        logger.setLevel(logging.WARNING)
        logger.propagate = False
    return last_words
