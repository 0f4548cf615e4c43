"""One member of a consumer group, by kafka-python's consumer.

Threads: ``commit`` belongs to the committer; ``lost``, ``generation``, ``rejoin``, ``wake`` and ``wake_rebalance`` may
be called from any thread and never block; the rest belongs to the poller. The rebalance listener runs on kafka-python's
own IO thread, inside ``poll`` or ``close``, and must not block: heartbeats are sent by the same thread.

Private touch points in kafka-python 3.0 (pinned below 3.1), each with a test in tests/kafka (most in test_cures.py).
``connection.py``, ``network.py``, ``fetching.py``, ``offsets.py`` and ``reader.py`` have more of them:

    consumer._subscription.assign_from_subscribed([])   eager assignors keep the positions of what was revoked
    consumer._subscription.assignment                   positions, without asking the network
    consumer._fetcher.PartitionRecords                  slow (see reader.py); after a corrupt batch ``poll`` hangs
    consumer._cluster.config                            allow_auto_create_topics is not passed on: always True
    consumer._cluster.add_topic                         asks for a topic by name (and so creates it, where allowed)
    consumer._coordinator._generation                   a lost membership shows here before ``poll`` notices
    consumer._coordinator.heartbeat                     when the last heartbeat was answered
    consumer._coordinator.poll                          returns when the group is joined; ``poll`` would go on and fetch
    consumer._coordinator.request_rejoin                a loss that we found out, or a join that the client forgets
    consumer._coordinator._send_offset_commit_request   ``commit`` tries again under a later generation
    consumer._coordinator.coordinator_id                leaving while our join is pending needs another connection
    consumer._refresh_committed_offsets                 kafka-python would choose positions by itself
    consumer._cluster._topic_ids                        replaced as a whole by new metadata
    consumer._cluster._last_successful_refresh_ms       how old the metadata are
    consumer._cluster._last_refresh_ms                  a start would rest twice for retry_backoff_ms before it asks
    consumer._net, consumer._manager                    a notifier that the listener can await; commits of our own
    consumer._client                                    a close that fails leaves its sockets open
"""

from __future__ import annotations

import functools
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar, cast

import kafka.errors
from kafka import KafkaConsumer
from kafka import TopicPartition as KafkaTP
from kafka.consumer.subscription_state import AsyncConsumerRebalanceListener
from kafka.net.wakeup_notifier import WakeupNotifier
from kafka.structs import MemberState

from karafka_lite.client.admin import Admin
from karafka_lite.client.codecs import MAX_DECOMPRESSED_BYTES
from karafka_lite.client.connection import RECONNECT_MAX_MS, Connection, Emit
from karafka_lite.client.fetching import Fetching
from karafka_lite.client.leaving import Leaving
from karafka_lite.client.offsets import Offsets, RefusedError, Stamped, stamped, strays_of, topic_id_of
from karafka_lite.client.protocol import Fetched, Rebalance
from karafka_lite.client.reader import POLL_BYTES, PollIsFullError, choose_reader
from karafka_lite.client.refusals import explained, refused_topics, topics_refused
from karafka_lite.client.stalls import Stalls
from karafka_lite.client.static import keep_place
from karafka_lite.core.marks import Refusal
from karafka_lite.core.options import SeekTarget
from karafka_lite.core.starts import Place, Stray
from karafka_lite.errors import (
    AccessError,
    BrokerUnavailableError,
    ClientBrokenError,
    ConfigurationError,
    FetchError,
    KarafkaLiteError,
    PollError,
    StrayedError,
    describe,
)
from karafka_lite.messages import TopicPartition, where

if TYPE_CHECKING:
    from karafka_lite.core.answers import Commit, PollPlan

MethodT = TypeVar("MethodT", bound=Callable[..., Any])

POLL_RECORDS = 2000  # a poll costs about as much as reading a hundred of them
JOINING_POLL_MS = 1000  # a join that ends between two polls is thrown away by the client: leave little time between two
IDLE_POLL_MS = 200  # a rebalance that the broker asks for waits so long for the poller, and so do new metadata
FETCH_BYTES = 8 << 20  # of one answer, which kafka-python copies a few times; its own 50 MiB are no faster
REQUEST_MS = 5000  # bound of one blocking request; what failed is asked again
CLOSE_MS = 5000
METADATA_S = 5.0  # how old the metadata of a member may be that works
NO_GENERATION, MAX_OFFSET = -1, (1 << 63) - 1
MAX_POLL_INTERVAL_MS: int = KafkaConsumer.DEFAULT_CONFIG["max_poll_interval_ms"]

FORCED: dict[str, Any] = {"enable_auto_commit": False, "metrics_enabled": False}
DEFAULTS: dict[str, Any] = {
    "client_id": "karafka-lite",
    "auto_offset_reset": "earliest",
    "allow_auto_create_topics": False,
    "reconnect_backoff_max_ms": RECONNECT_MAX_MS,
    "max_poll_records": POLL_RECORDS,
    "fetch_max_bytes": FETCH_BYTES,
}


def _or_broken(method: MethodT) -> MethodT:
    """What ``method`` raises beside this package's errors means that kafka-python is broken: its IO thread has died."""

    @functools.wraps(method)
    def checked(*arguments: Any, **options: Any) -> Any:
        try:
            return method(*arguments, **options)
        except KarafkaLiteError:
            raise
        except Exception as error:
            raise ClientBrokenError(describe(error)) from error

    return cast("MethodT", checked)


class Client:
    """A KafkaConsumer with its traps taken care of, for one connection: ``connect`` once, ``close``, and that is all.

    Raises this package's errors only. After a ClientBrokenError ``close`` this client and make a new one. Without a
    connection only ``poll`` and what asks the cluster raise (a PollError): the membership is ``lost``, and a commit
    returns an error.
    """

    def __init__(
        self,
        group_id: str,
        bootstrap_servers: Sequence[str],
        settings: Mapping[str, Any],
        rebalance: Rebalance,
        emit: Emit,
    ) -> None:
        self.group_id = group_id
        self.bootstrap_servers = list(bootstrap_servers)
        self.settings = {**DEFAULTS, **settings, **FORCED}
        self._most = self.settings.pop("max_decompressed_bytes", MAX_DECOMPRESSED_BYTES)
        self._given = settings
        self._rebalance = rebalance
        self._emit = emit
        self._connection = Connection(f"group {group_id}", emit, group_id)
        self._consumer: Any = _NotConnected()
        self._coordinator: Any = self._consumer
        self._notifier: Any = self._consumer
        self._fetching: Any = self._consumer
        self._offsets: Any = self._consumer
        self._works = False  # something was fetched or committed since the metadata were asked for
        self._ends, self._topic_ids = dict[Any, int](), dict[str, str]()  # the last that was known of each
        self._seen_metadata: Any = None
        self._session_s = 0.0
        self._sizes: Counter[Any] = Counter()  # of what the current poll has read, in bytes
        self._joined_at = self._alive_until = float("-inf")
        self._stalls: Any = self._consumer

    @property
    def reset(self) -> str:
        """Where a partition without a commit begins."""
        return str(self.settings["auto_offset_reset"])

    # -- the poller's

    def connect(self) -> None:
        """Reach a broker. Blocks for up to ``bootstrap_timeout_ms``.

        Raises:
            BrokerUnavailableError: none answered; or one refuses us, and has not done so before.
            AccessError: one refuses us, and has never done anything else.
            ConfigurationError: a setting that kafka-python refuses.
        """
        new = partial(KafkaConsumer, group_id=self.group_id)
        # Of a position that does not exist kafka-python has to say so: by itself it would move on without a word.
        settings = {**self.settings, "auto_offset_reset": "none"}
        try:
            consumer = self._connection.open(new, self.bootstrap_servers, settings)
        except ConfigurationError as error:  # which has been right before
            raise (BrokerUnavailableError(str(error)) if self._rebalance.begun else error) from error
        consumer._refresh_committed_offsets = lambda timeout_ms=None: True  # nor does it look for one by itself
        consumer._cluster.config["allow_auto_create_topics"] = self.settings["allow_auto_create_topics"]
        bounds = {"sizes": self._sizes, "poll_bytes": POLL_BYTES, "most": self._most, "group_id": self.group_id}
        consumer._fetcher.PartitionRecords = partial(choose_reader(), **bounds)
        self._fetching = Fetching(consumer)
        self._offsets = Offsets(consumer, self.reset)
        self._notifier = WakeupNotifier(consumer._net)
        self._session_s = consumer._coordinator.heartbeat.config["session_timeout_ms"] / 1000
        self._stalls = Stalls(consumer, self.group_id, self._rebalance, self._emit)
        self._consumer, self._coordinator = consumer, keep_place(consumer._coordinator)

    @_or_broken
    def ensure_topics(self, topics: Collection[str]) -> set[str]:
        """Create those of ``topics`` that do not exist; returns them.

        Raises BrokerUnavailableError, ClusterError, and ConfigurationError where one cannot be created.
        """
        admin = Admin(self.bootstrap_servers, self._given, self._emit)
        admin.connect()
        try:
            return admin.ensure_topics(topics)
        finally:
            admin.close()

    @_or_broken
    def missing_topics(self, topics: Collection[str]) -> set[str]:
        """Those of ``topics`` that do not exist, or that we may not see. Raises PollError."""
        try:
            if self.settings["allow_auto_create_topics"]:
                for topic in topics:
                    with suppress(kafka.errors.UnknownTopicOrPartitionError):  # while the broker creates it
                        asked = self._consumer._cluster.add_topic(topic)
                        self._consumer._net.run(self._consumer._manager.wait_for, asked, REQUEST_MS)
            missing = set(topics) - self._topics()
            undecided = bool(missing) and not self._rebalance.begun
            refused = refused_topics(self._consumer, missing, REQUEST_MS) if undecided else ()
        except kafka.errors.KafkaError as error:
            raise PollError(str(error)) from error
        if refused:
            raise AccessError(topics_refused(refused, self.group_id))
        return missing

    def _topics(self) -> set[str]:
        self._consumer._cluster._last_refresh_ms = 0.0
        try:
            return set(self._consumer.topics())
        except kafka.errors.UnknownTopicOrPartitionError:  # of a refresh for a topic of ours that has gone
            return set(self._consumer.topics())

    @_or_broken
    def subscribe(self, topics: Collection[str]) -> None:
        """Join the group with the next poll.

        All of ``topics`` exist: a member that asks for one that does not may be left without any partition for ever.
        """
        self._consumer.subscribe(sorted(topics), listener=_Listener(self))
        self.missing_topics(topics)  # else metadata with the new topics would come after the join, and cause another

    @_or_broken
    def places(self, tps: Collection[TopicPartition]) -> dict[TopicPartition, Place]:
        """What the cluster says of ``tps``, without those of which it says nothing now. Does not wait long."""
        answers = self._offsets.places(tps)
        self._stalls.unstarted = {tp: why for tp, why in answers.items() if isinstance(why, str)}
        return {tp: place for tp, place in answers.items() if isinstance(place, Place)}

    @_or_broken
    def offset_of(self, tp: TopicPartition, target: SeekTarget) -> int | None:
        """Where ``target`` is; None while the cluster cannot say it. A time past the last message is the end."""
        return cast("int | None", self._offsets.offset_of(tp, target))

    @_or_broken
    def apply(self, plan: PollPlan) -> None:
        """Carry out what the group wants before the next poll.

        A partition that is not assigned any more is left alone, which is safe: nothing is fetched from it, and when it
        is assigned again it has a new owner, which knows no position of it and seeks it to its start.
        """
        if plan.rejoin:
            self.rejoin()
        for ownership, offset in plan.seeks.items():
            self._apply(self._consumer.seek, ownership.tp, min(offset, MAX_OFFSET))
        for ownership in plan.pause:
            self._apply(self._consumer.pause, ownership.tp)
        for ownership in plan.resume:
            self._apply(self._consumer.resume, ownership.tp)
        if plan.pause or plan.resume:
            self._fetching.moved()

    def _apply(self, action: Callable[..., None], tp: TopicPartition, *offset: int) -> None:
        kafka_tp = KafkaTP(*tp)
        try:
            action(kafka_tp, *offset)
        except (KeyError, ValueError):  # what seek, pause and resume raise for a partition that is not assigned
            if kafka_tp in self._consumer._subscription.assignment:
                raise
            self._debug(f"group {self.group_id}: {where(*tp)} is not assigned any more")

    @_or_broken
    def poll(self) -> list[Fetched]:
        """Wait for records, or for ``wake``. Rebalances happen in here.

        Raises:
            FetchError: what one partition holds next cannot be read.
            StrayedError: logs do not have the positions of some partitions, or their topic may be another one.
            ConfigurationError: the broker refuses a setting for good.
            AccessError: a right is missing, and the member has never fetched anything.
            PollError: whatever else kafka-python has to say; the next poll may work.
        """
        self._sizes.clear()
        joining = self._consumer.group_metadata().state != MemberState.STABLE or self._coordinator.need_rejoin()
        self._stalls.say(joining)
        try:
            if joining:  # only that: the consumer's poll would go on to fetch from where we do not want to begin
                self.rejoin()  # a join for a new subscription that outlives its poll is forgotten
                self._coordinator.poll(timeout_ms=JOINING_POLL_MS)
                return []
            self._stalls.look_for_leaders()
            self._look_for_new_topics()
            polled = self._fetching.poll(IDLE_POLL_MS)
        except PollIsFullError:  # all that it has read was before where we want to begin
            return []
        except kafka.errors.KafkaError as error:
            if strays := strays_of(error, self.positions()):
                raise self._strayed(strays) from error
            raise self._refused(error) from error
        self._works |= bool(polled)
        return [Fetched(tuple(tp), records, self._end_offset(tp), self._sizes[tp]) for tp, records in polled.items()]

    def _refused(self, error: kafka.errors.KafkaError) -> Exception:
        """At the start a refusal ends the app. Who has worked before waits; for a topic only its partitions do."""
        refusal = explained(error, self.group_id, self.settings)
        if not (isinstance(refusal, AccessError) and self._rebalance.begun):
            return refusal
        if isinstance(error, kafka.errors.TopicAuthorizationFailedError):
            for tp, state in self._consumer._subscription.assignment.copy().items():
                if tp.topic in error.args[0] and not state.paused:
                    return FetchError(
                        str(refusal), tp.topic, tp.partition, state.position.offset if state.position else 0
                    )
        return PollError(str(refusal))

    def _look_for_new_topics(self) -> None:
        """See in the metadata, where there are new ones, whether a topic has another id.

        A topic that is made anew while nothing is fetched from it shows nowhere else: who works asks from time to time.
        """
        cluster, before = self._consumer._cluster, self._topic_ids
        if self._works and time.monotonic() - cluster._last_successful_refresh_ms / 1000 > METADATA_S:
            self._works = False
            cluster.request_update()
        if cluster._topic_ids is self._seen_metadata:
            return
        self._seen_metadata = cluster._topic_ids
        ids = {topic: topic_id_of(cluster, topic) for topic in cluster._topic_ids}
        self._topic_ids = before | {topic: known for topic, known in ids.items() if known}
        remade = {topic for topic, known in before.items() if self._topic_ids[topic] != known}
        strays = [tp for tp in self._consumer._subscription.assignment if tp.topic in remade]
        if strays:
            raise self._strayed(dict.fromkeys(strays, Stray(None)))

    def _strayed(self, strays: Mapping[Any, Stray]) -> StrayedError:
        self._offsets.distrust_metadata()
        return StrayedError({tuple(tp): stray for tp, stray in strays.items()})

    @_or_broken
    def positions(self) -> dict[TopicPartition, int]:
        """Where fetching goes on: past what ``poll`` has returned, and past offsets that hold no message."""
        states = list(self._consumer._subscription.assignment.items())
        # Read once: the IO thread may set it to None meanwhile.
        return {tuple(tp): position.offset for tp, state in states if (position := state.position) is not None}

    def ends(self) -> dict[TopicPartition, int]:
        """Where partitions ended at their last fetch, also where it has brought nothing."""
        assignment = self._consumer._subscription.assignment.copy()
        return {tuple(tp): end for tp in assignment if (end := self._end_offset(tp)) is not None}

    def close(self) -> Exception | None:
        """Leave the group at once; calls the listener. Returns why the broker could not be informed, and waits."""
        consumer, coordinator = self._consumer, self._coordinator
        if isinstance(coordinator, _NotConnected):  # never connected, or closed
            return None
        try:
            if consumer.group_metadata().state == MemberState.REBALANCING and coordinator.coordinator_id is not None:
                # LeaveGroup would wait on the broker for the end of our pending JoinGroup, which waits for the batches
                # of the other members: it takes another connection.
                coordinator.coordinator_id = int(str(coordinator.coordinator_id).rpartition("-")[2])
            leaving = Leaving(coordinator, consumer._manager.trouble)
            consumer.close(autocommit=False, timeout_ms=CLOSE_MS)
        except Exception as error:  # noqa: BLE001 - whatever it is, this client is over
            with suppress(Exception):
                consumer._client.close()  # its sockets would stay open
            return error
        finally:
            self._coordinator = _NotConnected()
            self._connection.close()
        return leaving.error

    # -- the committer's

    def commit(self, commits: Collection[Commit], generation: int) -> Mapping[TopicPartition, Refusal]:
        """Commit, if the group is still in ``generation``; one attempt.

        The public ``commit`` tries again for as long as it may, with whatever generation there is by then: what we had
        lost meanwhile would be committed in the name of our next membership.

        Returns what the broker has not acknowledged, and why (``lost`` says what it means). What was marked in a topic
        that was made anew is not sent.
        """
        consumer, coordinator = self._consumer, self._coordinator
        refusals: dict[TopicPartition, Refusal] = {}

        async def send() -> None:  # the checks and the stamp on the request are one step of the IO thread
            _, wanted, refused = self.stamped(commits, generation)
            refusals.update(refused)
            await coordinator._send_offset_commit_request(wanted)

        async def attempt() -> None:
            if not await coordinator.ensure_coordinator_ready_async(timeout_ms=REQUEST_MS):
                raise kafka.errors.CoordinatorNotAvailableError()
            await consumer._manager.wait_for(consumer._manager.call_soon(send), REQUEST_MS)

        try:
            consumer._net.run(attempt)
            self._works = True
        except RefusedError as answer:
            return {**refusals, **answer.refusals}
        except Exception as error:  # noqa: BLE001 - also what a dying IO thread throws: nothing is committed
            return {**dict.fromkeys((ownership.tp for ownership, *_ in commits), Refusal(error)), **refusals}
        return refusals

    def stamped(self, commits: Collection[Commit], generation: int) -> Stamped:
        """As ``offsets.stamped``; of memory only."""
        return stamped(self._consumer, self._coordinator, commits, generation)

    # -- from any thread

    def generation(self) -> int:
        """Of the group, as we know it: what is owned now is owned in it."""
        return int(self._coordinator._generation.generation_id)

    def lost(self, now: float) -> bool:
        """Whether our membership is known to be gone: evicted, or no heartbeat answered for ``session_timeout_ms``.

        It looks into the client's memory, without the network: 0.1 µs, part of every mark. It can turn back to False
        (the client joins again, or the coordinator still knows us), so the caller has to remember it.
        """
        coordinator = self._coordinator
        if coordinator._generation.generation_id == NO_GENERATION:
            return True
        if now < self._alive_until:  # as far as we knew when we looked last
            return False
        self._alive_until = max(coordinator.heartbeat.last_receive, self._joined_at) + self._session_s
        return now > self._alive_until

    def rejoin(self) -> None:
        """Make the member join again at its next poll, with the id that it has."""
        self._coordinator.request_rejoin()

    def wake(self) -> None:
        """Have ``poll`` return, if it waits for records."""
        with suppress(KarafkaLiteError):  # not connected
            self._fetching.wake()

    def wake_rebalance(self) -> None:
        """Have the listener ask again whether the partitions may be given away."""
        with suppress(KarafkaLiteError, RuntimeError):  # not connected, or closed
            self._notifier.notify()

    def _end_offset(self, tp: Any) -> int | None:
        with suppress(KeyError, AssertionError, kafka.errors.IllegalStateError):  # not assigned any more
            if (end := self._consumer.highwater(tp)) is not None:
                self._ends[tp] = end
        return self._ends.get(tp)  # a fetch session that outlives a rebalance tells only what has changed

    def _debug(self, message: str) -> None:
        self._connection.debug(__name__, logging.DEBUG, message)


class _NotConnected:
    """In place of a consumer and of its coordinator: a member of nothing, whatever it is asked."""

    _generation = SimpleNamespace(generation_id=NO_GENERATION)

    def __getattr__(self, name: str) -> Any:
        raise PollError("the client is not connected")


class _Listener(AsyncConsumerRebalanceListener):  # type: ignore[misc]
    """Awaits the hand-over without blocking: heartbeats go on. A listener that raises would be called for ever."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def on_partitions_assigned(self, assigned: set[Any]) -> None:
        try:
            self._client._joined_at = time.monotonic()
            self._client._stalls.assigned(assigned)
            self._client._rebalance.on_assigned(self._client, sorted(tuple(tp) for tp in assigned))
        except Exception as bug:  # noqa: BLE001 - a listener that raises is called for ever
            self._report(bug)

    async def on_partitions_revoked(self, revoked: set[Any]) -> None:
        try:
            wait = self._client._rebalance.on_revoke(self._client, sorted(tuple(tp) for tp in revoked))
            while (seconds := wait()) is not None:
                await self._client._notifier(seconds)
        except Exception as bug:  # noqa: BLE001 - a listener that raises is called for ever
            self._report(bug)
        # Forget the assignment, as Java does. Else a partition that comes back keeps its position and its paused flag,
        # and what we have just dropped from its queue is skipped.
        self._client._consumer._subscription.assign_from_subscribed([])

    async def on_partitions_lost(self, _lost: set[Any]) -> None:
        try:
            self._client._rebalance.on_lost(self._client)
        except Exception as bug:  # noqa: BLE001 - a listener that raises is called for ever
            self._report(bug)

    def _report(self, bug: Exception) -> None:
        self._client._rebalance.crash("rebalance listener", bug)
