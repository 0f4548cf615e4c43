"""Topics, groups and offsets of a cluster, without being a member of any group."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

import kafka.errors
from kafka import IsolationLevel, KafkaConsumer, OffsetAndMetadata, OffsetSpec
from kafka import TopicPartition as KafkaTP
from kafka.admin import KafkaAdminClient

from karafka_lite.client.connection import Connection, Emit
from karafka_lite.client.offsets import NO_OFFSET, decode, encode, id_as_text, spec_of
from karafka_lite.client.refusals import ACL, writes_refused
from karafka_lite.core.options import SeekTarget
from karafka_lite.core.starts import Note, Place
from karafka_lite.errors import AccessError, ClusterError, ConfigurationError, describe
from karafka_lite.messages import TopicPartition

ASK_AGAIN_S = 0.2
READ_S = 5.0  # how long ``without_messages`` waits for messages, which may not exist
POLL_MS = 100
MISSING = {  # the brokers' answers for a topic that does not exist, or that we may not see
    kafka.errors.UnknownTopicOrPartitionError.errno,
    kafka.errors.TopicAuthorizationFailedError.errno,
    kafka.errors.InvalidTopicError.errno,
}

NOT_REACHED = (kafka.errors.NodeNotReadyError, kafka.errors.KafkaConnectionError, kafka.errors.KafkaTimeoutError)

JOINED = (  # the brokers' answers to a commit from outside, when the group has members
    kafka.errors.UnknownMemberIdError,
    kafka.errors.IllegalGenerationError,
    kafka.errors.RebalanceInProgressError,
)
NO_ID = UUID(int=0)  # before Kafka 2.8
NO_GROUP = "Dead"  # its state
ERROR = re.compile(r"\[Error (\d+)\]")
ALL = IsolationLevel.READ_UNCOMMITTED

T = TypeVar("T")
Offsets = dict[TopicPartition, int]


class GroupMember(NamedTuple):
    """A member of a consumer group as its coordinator sees it."""

    id: str
    client_id: str
    host: str
    partitions: frozenset[TopicPartition]


class Admin:
    """kafka-python's admin client. ``settings`` are those of an App; those that only a consumer knows are left out.

    ``connect``, and ``close``. Every question raises ClusterError when it gets no answer within ``patience_s``: a
    cluster that has just started knows no coordinators and no leaders for a while. ``emit``: as ``Connection`` has it.
    """

    def __init__(self, bootstrap_servers: Sequence[str], settings: Mapping[str, Any], emit: Emit | None = None) -> None:
        self.bootstrap_servers = list(bootstrap_servers)
        self._given = settings
        self.settings = {name: value for name, value in settings.items() if name in KafkaAdminClient.DEFAULT_CONFIG}
        committed_only = settings.get("isolation_level") == "read_committed"
        self._isolation = IsolationLevel.READ_COMMITTED if committed_only else IsolationLevel.READ_UNCOMMITTED
        self._emit = emit
        self._connection = Connection("the admin client", emit)
        self._admin: Any = None
        bootstrap_ms = KafkaAdminClient.DEFAULT_CONFIG["bootstrap_timeout_ms"]
        self.patience_s: float = settings.get("bootstrap_timeout_ms", bootstrap_ms) / 1000

    def connect(self) -> None:
        """Reach a broker, for up to ``bootstrap_timeout_ms``. Raises BrokerUnavailableError, ConfigurationError."""
        settings = {"client_id": "karafka-lite", **self.settings}
        self._admin = self._connection.open(KafkaAdminClient, self.bootstrap_servers, settings)

    def close(self) -> None:
        """Close the connections."""
        admin, self._admin = self._admin, None
        if admin is not None:
            admin.close()
        self._connection.close()

    def partitions(self, topics: Collection[str]) -> list[TopicPartition]:
        """All partitions of those of ``topics`` that exist. Asking creates none."""

        found = self._topics(topics)
        return [(topic["name"], part["partition_index"]) for topic in found for part in topic["partitions"]]

    def _topics(self, topics: Collection[str]) -> list[Any]:
        def ask() -> list[Any]:
            known = [topic for topic in self._admin.describe_topics() if topic["name"] in topics]
            for topic in known:
                if topic["error_code"] and topic["error_code"] not in MISSING:
                    raise kafka.errors.for_code(topic["error_code"])()
            return [topic for topic in known if not topic["error_code"]]

        return self._ask("fetch the list of topics", ask)

    def ensure_topics(self, topics: Collection[str], partitions: int = -1, replicas: int = -1) -> set[str]:
        """Create those of ``topics`` that do not exist; returns them. -1: as the brokers have it by default.

        Raises:
            ConfigurationError: some do not exist and cannot be created; it names all of them.
            AccessError: we may not see or create some; whether they exist, Kafka does not say then.
        """
        missing = sorted(set(topics) - {topic for topic, _ in self.partitions(topics)})
        shape = {"num_partitions": partitions, "replication_factor": replicas}
        refused = {topic: reason for topic in missing if (reason := self._create(topic, shape))}
        denied = [topic for topic, (error, _) in refused.items() if issubclass(error, kafka.errors.AuthorizationError)]
        if denied:
            raise AccessError(writes_refused(denied))
        if refused:
            reasons = ", ".join(f"{topic} ({error.__name__}: {why})" for topic, (error, why) in refused.items())
            command = " --topic ".join(["kafka-topics.sh --create", *refused])
            raise ConfigurationError(
                f"topics do not exist and cannot be created: {reasons}; create them with {command}"
            )
        return set(missing)

    def _create(self, topic: str, shape: Mapping[str, int]) -> tuple[type[Exception], str] | None:
        """Why it cannot be created; None: it exists now."""

        def ask() -> tuple[type[Exception], str] | None:
            answer = self._admin.create_topics({topic: shape}, raise_errors=False)["topics"][0]
            error = kafka.errors.for_code(answer["error_code"])
            if error.retriable:
                raise error(answer["error_message"])
            exists = error in (kafka.errors.NoError, kafka.errors.TopicAlreadyExistsError)
            return None if exists else (error, answer["error_message"])

        return self._ask(f"create topic {topic}", ask)

    def earliest_offsets(self, tps: Iterable[TopicPartition]) -> Offsets:
        """Where each partition begins."""
        return self._list_offsets(tps, OffsetSpec.EARLIEST)

    def end_offsets(self, tps: Iterable[TopicPartition]) -> Offsets:
        """Where each partition ends; with ``isolation_level="read_committed"``, before transactions that are open."""
        return self._list_offsets(tps, OffsetSpec.LATEST)

    def offsets_at(self, targets: Mapping[TopicPartition, SeekTarget]) -> Offsets:
        """Where each of ``targets`` is; a time past the last message is the end."""
        known = {tp: target for tp, target in targets.items() if isinstance(target, int)}
        found = self._offsets_of({tp: spec_of(target) for tp, target in targets.items() if tp not in known})
        too_late = [tp for tp, offset in found.items() if offset == NO_OFFSET]  # no message is so young
        return {**known, **found, **self.end_offsets(too_late)}

    def committed(self, group_id: str) -> Offsets:
        """What the group has committed."""
        return {tp: offset for tp, (offset, _) in self.commits(group_id).items()}

    def commits(self, group_id: str) -> dict[TopicPartition, tuple[int, Note]]:
        """What the group has committed, and what goes with it."""
        ask = partial(self._admin.list_group_offsets, group_id)
        offsets = self._ask(f"fetch the offsets of group {group_id}", ask).get(group_id, {})
        return {tuple(tp): (at.offset, decode(at.metadata)) for tp, at in offsets.items() if at.offset >= 0}

    def places(self, group_id: str, topics: Collection[str]) -> dict[TopicPartition, Place]:
        """What the cluster says of all partitions of those of ``topics`` that exist, as a member of the group is told.

        Commits are asked for first: nothing that was committed then is past the ends that are found later.
        """
        commits = self.commits(group_id)
        notes: dict[str, set[Note]] = defaultdict(set)
        for (topic, _), (_, note) in commits.items():
            notes[topic].add(note)
        known = {topic["name"]: topic for topic in self._topics(topics)}
        tps = [(name, part["partition_index"]) for name, topic in known.items() for part in topic["partitions"]]
        starts, latest = self.earliest_offsets(tps), self.end_offsets(tps)
        ends = latest if self._isolation is ALL else self._list_offsets(tps, OffsetSpec.LATEST, ALL)
        places = {}
        for tp in sorted(tps):
            committed, note = commits.get(tp, (None, Note()))
            topic = known[tp[0]]
            topic_id = id_as_text(UUID(str(topic.get("topic_id", NO_ID))))  # it is a text
            count, siblings = len(topic["partitions"]), tuple(notes[tp[0]])
            places[tp] = Place(starts[tp], ends[tp], latest[tp], committed, note, topic_id, count, siblings)
        return places

    def members(self, group_id: str) -> list[GroupMember]:
        """Who is in the group now; nobody in a group that does not exist."""

        def ask() -> list[Any]:
            group = self._admin.describe_groups([group_id])[group_id]
            if group["error"] and group["group_state"] != NO_GROUP:
                code = ERROR.match(group["error"])  # kafka-python keeps the text only
                raise kafka.errors.for_code(int(code[1]) if code else -1)(group["error"])
            return list(group["members"])

        return [_member(found) for found in self._ask(f"describe group {group_id}", ask)]

    def commit(self, group_id: str, commits: Mapping[TopicPartition, tuple[int, Note]]) -> None:
        """Commit for a group that has no members.

        Raises:
            ConfigurationError: it has members, whose commits count.
            ClusterError: the broker did not take a commit, or not all of them.
        """
        offsets = {KafkaTP(*tp): OffsetAndMetadata(offset, encode(note), -1) for tp, (offset, note) in commits.items()}

        def ask() -> None:
            for tp, error in self._admin.alter_group_offsets(group_id, offsets).items():
                if error in JOINED:
                    raise ConfigurationError(f"group {group_id} has members now; stop them first")
                if error is not kafka.errors.NoError:
                    raise error(f"{tp.topic}-{tp.partition}")

        self._ask(f"commit offsets of group {group_id}", ask)

    def finished(self, spans: Mapping[TopicPartition, tuple[int, int]]) -> set[TopicPartition]:
        """Those of ``spans`` (from, to) in which no message can be read: markers of transactions take offsets, too.

        Without those for which it cannot be found out within seconds.
        """
        known = {name: value for name, value in self._given.items() if name in KafkaConsumer.DEFAULT_CONFIG}
        fixed = {"group_id": None, "group_instance_id": None, "enable_auto_commit": False, "metrics_enabled": False}
        settings = {**known, **fixed, "auto_offset_reset": "earliest"}  # where the first messages were deleted
        connection = Connection("a consumer", self._emit)
        consumer = connection.open(KafkaConsumer, self.bootstrap_servers, settings)
        try:
            return self._ask("read messages", partial(_finished, consumer, spans))
        finally:
            consumer.close(autocommit=False)
            connection.close()

    def _list_offsets(self, tps: Iterable[TopicPartition], spec: int, isolation: Any = None) -> Offsets:
        return self._offsets_of(dict.fromkeys(tps, spec), isolation)

    def _offsets_of(self, specs: Mapping[TopicPartition, int], isolation: Any = None) -> Offsets:
        wanted = {KafkaTP(*tp): spec for tp, spec in specs.items()}
        isolation = self._isolation if isolation is None else isolation
        ask = partial(self._admin.list_partition_offsets, wanted, isolation)
        found = self._ask("fetch the offsets of topics", ask) if wanted else {}
        return {tuple(tp): at.offset for tp, at in found.items()}

    def _ask(self, what: str, question: Callable[[], T]) -> T:
        deadline = (began := time.monotonic()) + self.patience_s
        while True:
            try:
                return question()
            except (kafka.errors.KafkaError, RuntimeError) as error:
                # kafka-python has a RuntimeError for "no controller now", say.
                if not getattr(error, "retriable", True) or time.monotonic() > deadline:
                    why = self._admin._manager.trouble.cause() if isinstance(error, NOT_REACHED) else ""
                    right = (
                        f"; a right is missing, see {ACL}" if isinstance(error, kafka.errors.AuthorizationError) else ""
                    )
                    raise ClusterError(f"could not {what} ({why or describe(error)}){right}") from error
                self._connection.waits(f"the brokers to {what}", began, describe(error))
            time.sleep(ASK_AGAIN_S)


def _member(found: Any) -> GroupMember:
    # Empty until the group has assigned something; bytes where the members are no consumers.
    assignment = found["member_assignment"]
    topics = assignment["assigned_partitions"] if isinstance(assignment, dict) else ()
    partitions = frozenset((topic["topic"], number) for topic in topics for number in topic["partitions"])
    return GroupMember(found["member_id"], found["client_id"], found["client_host"], partitions)


def _finished(consumer: Any, spans: Mapping[TopicPartition, tuple[int, int]]) -> set[TopicPartition]:
    unknown = {KafkaTP(*tp): end for tp, (_, end) in spans.items()}
    consumer.assign(unknown)
    for tp, (start, _) in spans.items():
        consumer.seek(KafkaTP(*tp), start)
    finished: set[TopicPartition] = set()
    deadline = time.monotonic() + READ_S
    while unknown and time.monotonic() < deadline:
        found = consumer.poll(POLL_MS)
        for tp, end in list(unknown.items()):
            read = found.get(tp)
            if read and read[0].offset < end:
                del unknown[tp]
            elif read or (consumer.position(tp, timeout_ms=POLL_MS) or 0) >= end:
                finished.add(tuple(tp))
                del unknown[tp]
        consumer.pause(*(tp for tp in consumer.assignment() if tp not in unknown))
    return finished
