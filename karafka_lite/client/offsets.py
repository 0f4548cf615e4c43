"""What the cluster says of offsets, each partition by itself: where logs begin and end, what is committed, and what
became of a commit.

kafka-python answers for all partitions or for none: one broker that cannot be reached keeps all from starting, one
error of a partition hides the answers for the others, and the error "unknown" of a commit that was asked for is taken
for "there is none". Here a question waits in the background until each leader has answered, and nobody waits for the
slowest one.

Private touch points in kafka-python 3.0 (pinned below 3.1), with tests in tests/kafka/test_places.py:

    coordinator._handle_offset_commit_response          raises at the first error
    coordinator._handle_offset_fetch_response           what the errors of a whole group mean
    coordinator.ensure_coordinator_ready_async          the coordinator
    consumer._cluster, consumer._manager, consumer._net  leaders, requests, and the loop that they run on
    cluster._last_successful_refresh_ms                 how old the metadata are
"""

from __future__ import annotations

import base64
import re
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from uuid import UUID

import kafka.errors
from kafka import IsolationLevel, OffsetAndMetadata, OffsetSpec
from kafka import TopicPartition as KafkaTP
from kafka.protocol.consumer import ListOffsetsRequest, OffsetFetchRequest
from kafka.structs import ConsumerGroupMetadata

from karafka_lite.client.trouble import error_text
from karafka_lite.core.marks import Refusal
from karafka_lite.core.options import SeekTarget, Timestamp
from karafka_lite.core.starts import Note, Place, Stray
from karafka_lite.errors import ClusterError, describe
from karafka_lite.messages import TopicPartition

if TYPE_CHECKING:
    from karafka_lite.core.answers import Commit

REQUEST_MS = 5000  # bound of one request; what failed is asked again
WAIT_MS = 1000  # how long the poller waits for the answers to a new question; later ones come with a later poll
FRESH_MS = 1000  # metadata that are younger are believed
MAX_TIMESTAMP = (1 << 63) - 1
NO_OFFSET = NO_LEADER = -1
LASTING: dict[int, Literal["gone", "denied"]] = {  # errors of a commit that trying again does not heal
    kafka.errors.UnknownTopicOrPartitionError.errno: "gone",
    kafka.errors.UnknownTopicIdError.errno: "gone",
    kafka.errors.TopicAuthorizationFailedError.errno: "denied",
    kafka.errors.GroupAuthorizationFailedError.errno: "denied",
    kafka.errors.OffsetMetadataTooLargeError.errno: "denied",
    kafka.errors.InvalidCommitOffsetSizeError.errno: "denied",
}
OF_THE_COORDINATOR = {
    kafka.errors.NotCoordinatorError.errno,
    kafka.errors.CoordinatorNotAvailableError.errno,
    kafka.errors.CoordinatorLoadInProgressError.errno,
}
NOTE = re.compile(r"karafka-lite:([\w-]{22})?:(\d{1,9})?")

ListTopic = ListOffsetsRequest.ListOffsetsTopic
ListPartition = ListTopic.ListOffsetsPartition
FetchTopic = OffsetFetchRequest.OffsetFetchRequestTopic
Ask = Callable[["Question", Any], Awaitable[None]]


# -- what goes with a commit -------------------------------------------------------------------------------------------


def encode(note: Note) -> str:
    """``note`` as the metadata of a commit: ``karafka-lite:TOPIC_ID:PARTITIONS``, the id as Kafka's tools print it."""
    return f"karafka-lite:{note.topic_id}:{'' if note.partitions is None else note.partitions}"


def decode(metadata: str | None) -> Note:
    """The note in the metadata of a commit; an empty one where another client has made the commit."""
    found = NOTE.fullmatch(metadata or "")
    if found is None:
        return Note()
    return Note(found[1] or "", None if found[2] is None else int(found[2]))


class Stamped(NamedTuple):
    """``offsets`` as ``member`` commits them; and what is not committed."""

    member: Any
    offsets: dict[Any, OffsetAndMetadata]
    refusals: dict[TopicPartition, Refusal]


def stamped(consumer: Any, coordinator: Any, commits: Collection[Commit], generation: int) -> Stamped:
    """What is sent for ``commits``. Raises IllegalGenerationError: the group is not in ``generation`` any more."""
    known = coordinator._generation
    if known.generation_id != generation:
        raise kafka.errors.IllegalGenerationError("the membership has changed since the offsets were marked")
    offsets, refusals = dict[Any, OffsetAndMetadata](), dict[TopicPartition, Refusal]()
    for ownership, offset, *_ in commits:
        if ownership.note.is_of(topic_id_of(consumer._cluster, ownership.tp[0])):
            offsets[KafkaTP(*ownership.tp)] = OffsetAndMetadata(offset, encode(ownership.note), -1)
        else:
            refusals[ownership.tp] = Refusal(ClusterError("the topic was deleted and made anew"), "gone")
    place = consumer.config["group_instance_id"]
    member = ConsumerGroupMetadata(coordinator.group_id, generation, known.member_id, place)
    return Stamped(member, offsets, refusals)


def topic_id_of(cluster: Any, topic: str) -> str:
    """As Kafka's tools print it; "" where it is not known, as before Kafka 2.8 or for a topic that does not exist."""
    return id_as_text(cluster.topic_id(topic))


def id_as_text(topic_id: UUID | None) -> str:
    """As Kafka's tools print it; "" where it is not known."""
    if topic_id is None or topic_id == UUID(int=0):
        return ""
    return base64.urlsafe_b64encode(topic_id.bytes).decode().rstrip("=")


def spec_of(target: SeekTarget) -> int:
    """What a broker is asked for ``target``, which is no offset."""
    if not isinstance(target, Timestamp):
        return int(OffsetSpec.EARLIEST if target == "earliest" else OffsetSpec.LATEST)
    if target.ms < 0:  # before 1970, and so before any message; kafka-python would raise
        return int(OffsetSpec.EARLIEST)
    return target.ms if target.ms <= MAX_TIMESTAMP else int(OffsetSpec.LATEST)


# -- questions ---------------------------------------------------------------------------------------------------------


class Question:
    """One that is on its way. Answers come on the client's IO thread, one by one; a str says why there is none."""

    def __init__(self, generation: int) -> None:
        self.generation = generation
        self.answers: dict[Any, Any] = {}
        self.leaders: dict[TopicPartition, int] = {}  # who was asked

    def cause(self, key: Any) -> str:
        """Why there is no answer yet."""
        leader = self.leaders.get(key)
        return "no answer from " + ("the group's coordinator" if leader is None else _leader(leader))


class Offsets:
    """Questions about offsets, of one consumer with ``auto_offset_reset``. All but the coroutines is the poller's."""

    def __init__(self, consumer: Any, reset: str) -> None:
        self._cluster, self._manager, self._net = consumer._cluster, consumer._manager, consumer._net
        self._coordinator = coordinator = consumer._coordinator
        self._reset = reset
        self._committed_only = coordinator._isolation_level == IsolationLevel.READ_COMMITTED
        self._open: dict[Any, Question] = {}
        self._stale = False  # the metadata
        stock = coordinator._handle_offset_commit_response
        coordinator._handle_offset_commit_response = lambda *answer: _read_commit(stock, *answer)

    def distrust_metadata(self) -> None:
        """A topic may have been made anew."""
        self._stale = True

    def places(self, tps: Collection[TopicPartition]) -> dict[TopicPartition, Place | str]:
        """What the cluster says of ``tps``; or why it does not say it yet."""
        answers: dict[TopicPartition, Place | str] = self._answers(tps, self._ask_places)
        self._open = {key: question for key, question in self._open.items() if key in tps or _is_target(key)}
        return answers

    def offset_of(self, tp: TopicPartition, target: SeekTarget) -> int | None:
        """Where ``target`` is; None while the cluster cannot say it. A time past the last message is the end."""
        found = self._answers([(tp, target)], self._ask_target)[tp, target]
        return found if isinstance(found, int) else None

    def _answers(self, keys: Collection[Any], ask: Ask) -> dict[Any, Any]:
        generation = int(self._coordinator._generation.generation_id)
        self._open = {key: question for key, question in self._open.items() if question.generation == generation}
        if new := [key for key in keys if key not in self._open]:
            question = Question(generation)
            self._open.update(dict.fromkeys(new, question))
            asked = self._manager.call_soon(self._ask, question, new, ask)
            with suppress(kafka.errors.KafkaTimeoutError):
                self._net.run(self._manager.wait_for, asked, WAIT_MS)
        answers = {}
        for key in keys:
            question = self._open[key]
            answers[key] = question.answers.get(key, question.cause(key))
            if key in question.answers:
                del self._open[key]
        return answers

    # -- on the IO thread

    async def _ask(self, question: Question, keys: Collection[Any], ask: Ask) -> None:
        try:
            await ask(question, keys)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is no answer, and asked again
            question.answers = {**dict.fromkeys(keys, describe(error)), **question.answers}

    async def _ask_places(self, question: Question, tps: Collection[TopicPartition]) -> None:
        await self._refresh_metadata()
        committed = await self._fetch_committed(tps)
        question.answers.update(self._unknown(tps, committed))
        by_leader = self._by_leader(question, [tp for tp in tps if tp not in question.answers])
        asked = [self._manager.call_soon(self._ask_leader, question, *one, committed) for one in by_leader.items()]
        for one in asked:
            await one

    def _unknown(self, tps: Collection[TopicPartition], committed: Mapping[TopicPartition, Any]) -> dict[Any, str]:
        """Why it is not known yet what is committed; with "latest" all commits of a topic count for each partition."""
        of_topic = {topic: why for (topic, _), why in committed.items() if isinstance(why, str)}
        found = {tp: of_topic.get(tp[0]) if self._reset == "latest" else committed[tp] for tp in tps}
        return {tp: why for tp, why in found.items() if isinstance(why, str)}

    async def _ask_leader(
        self, question: Question, leader: int, tps: Collection[TopicPartition], committed: Mapping[TopicPartition, Any]
    ) -> None:
        """Commits were asked for before: nothing that was committed then is past the ends that are found now."""
        everything = IsolationLevel.READ_UNCOMMITTED
        ends = [(OffsetSpec.EARLIEST, everything), (OffsetSpec.LATEST, everything)]
        if self._committed_only:
            ends.append((OffsetSpec.LATEST, IsolationLevel.READ_COMMITTED))
        try:
            asked = [self._manager.call_soon(self._list_offsets, leader, tps, *end) for end in ends]
            found = [await one for one in asked]
        except Exception as error:  # noqa: BLE001 - of this leader alone
            question.answers.update(dict.fromkeys(tps, f"{_leader(leader)}: {describe(error)}"))
            return
        for tp in tps:
            offsets = [answer.get(tp, "no answer") for answer in found]
            refused = [offset for offset in offsets if isinstance(offset, str)]
            if refused:
                question.answers[tp] = f"{_leader(leader)}: {refused[0]}"
                continue
            offset, note = committed[tp] or (None, Note())
            question.answers[tp] = Place(
                start=offsets[0],
                end=offsets[1],
                latest=offsets[-1],
                committed=offset,
                note=note,
                topic_id=topic_id_of(self._cluster, tp[0]),
                partitions=len(self._cluster.partitions_for_topic(tp[0]) or ()),
                siblings=tuple({one[1] for (topic, _), one in committed.items() if topic == tp[0] and _is_commit(one)}),
            )

    async def _ask_target(self, question: Question, keys: Sequence[tuple[TopicPartition, SeekTarget]]) -> None:
        ((tp, target),) = keys
        isolation = IsolationLevel.READ_COMMITTED if self._committed_only else IsolationLevel.READ_UNCOMMITTED
        spec = spec_of(target)
        for leader in self._by_leader(question, [tp]):
            found = await self._list_offsets(leader, [tp], spec, isolation)
            if found.get(tp) == NO_OFFSET:  # no message is so young
                found = await self._list_offsets(leader, [tp], OffsetSpec.LATEST, isolation)
            question.answers[tp, target] = found.get(tp)
        question.answers.setdefault((tp, target), "no leader")

    async def _refresh_metadata(self) -> None:
        """For the ids of topics, and for leaders."""
        age_ms = time.monotonic() * 1000 - self._cluster._last_successful_refresh_ms
        if self._stale or age_ms > FRESH_MS:
            self._stale = False
            with suppress(kafka.errors.KafkaError):  # of one topic that is missing, perhaps; what is known is used
                await self._manager.wait_for(self._cluster.request_update(), REQUEST_MS)

    def _by_leader(self, question: Question, tps: Iterable[TopicPartition]) -> dict[int, list[TopicPartition]]:
        by_leader: dict[int, list[TopicPartition]] = defaultdict(list)
        for tp in tps:
            leader = self._cluster.leader_for_partition(KafkaTP(*tp))
            if leader is None or leader == NO_LEADER:
                self._stale = True
                question.answers[tp] = "it has no leader" if leader == NO_LEADER else "it does not exist"
            else:
                question.leaders[tp] = leader
                by_leader[leader].append(tp)
        return by_leader

    async def _list_offsets(
        self, leader: int, tps: Iterable[TopicPartition], spec: int, isolation: int
    ) -> dict[TopicPartition, int | str]:
        """By partition; NO_OFFSET where no message is so young, and a str where it cannot be said."""
        topics = defaultdict(list)
        for topic, partition in tps:
            topics[topic].append(ListPartition(partition_index=partition, current_leader_epoch=-1, timestamp=int(spec)))
        request = ListOffsetsRequest(
            isolation_level=isolation,
            topics=[ListTopic(name=topic, partitions=some) for topic, some in topics.items()],
            min_version=max(1, ListOffsetsRequest.min_version_for_isolation_level(isolation)),
        )
        response = await self._manager.wait_for(self._manager.send(request, node_id=leader), REQUEST_MS)
        found: dict[TopicPartition, int | str] = {}
        for topic in response.topics:
            for one in topic.partitions:
                error = kafka.errors.for_code(one.error_code)
                self._stale |= issubclass(error, kafka.errors.InvalidMetadataError)
                found[topic.name, one.partition_index] = error.__name__ if one.error_code else int(one.offset)
        return found

    async def _fetch_committed(self, tps: Collection[TopicPartition]) -> dict[TopicPartition, Any]:
        """By partition (offset, note), None without a commit, a str where it cannot be said; all of a topic where a
        partition without a commit begins according to what is committed for the others."""
        coordinator = self._coordinator
        if not await coordinator.ensure_coordinator_ready_async(timeout_ms=REQUEST_MS):
            raise kafka.errors.CoordinatorNotAvailableError("the group's coordinator is not known")
        partitions: dict[str, set[int]] = defaultdict(set)
        for topic, partition in tps:
            partitions[topic].add(partition)
        if self._reset == "latest":
            for topic, some in partitions.items():
                some.update(self._cluster.partitions_for_topic(topic) or ())
        request = OffsetFetchRequest(
            group_id=coordinator.group_id,
            topics=[FetchTopic(name=topic, partition_indexes=sorted(some)) for topic, some in partitions.items()],
            require_stable=self._committed_only,
            max_version=7,  # of the later ones, which are for several groups, nothing is needed
        )
        response = await self._manager.wait_for(
            self._manager.send(request, node_id=coordinator.coordinator()), REQUEST_MS
        )
        found: dict[TopicPartition, Any] = dict.fromkeys(tps, "no answer")
        for topic in response.topics:
            for one in topic.partitions:
                offset, note = one.committed_offset, decode(one.metadata)
                answer = error_text("OffsetFetch", one.error_code) if one.error_code else (offset, note)
                found[topic.name, one.partition_index] = answer if one.error_code or offset >= 0 else None
        codes = {one.error_code for topic in response.topics for one in topic.partitions}
        if response.error_code or codes & OF_THE_COORDINATOR:  # all others are of one partition
            coordinator._handle_offset_fetch_response(response)  # raises, and looks for a new coordinator
        return found


# -- what a fetch has found --------------------------------------------------------------------------------------------


def strays_of(error: Exception, positions: Mapping[TopicPartition, int]) -> dict[Any, Stray]:
    """Positions that the logs do not have, of what ``poll`` has raised.

    A join, or a question for offsets, may be answered with the same code, which means nothing there.
    """
    if isinstance(error, kafka.errors.OffsetOutOfRangeError) and error.args and isinstance(error.args[0], dict):
        return {tp: Stray(offset) for tp, offset in error.args[0].items()}
    if isinstance(error, kafka.errors.LogTruncationError):
        ends = error.divergent_offsets.items()
        return {tp: Stray(positions.get(tuple(tp)), end and end.offset) for tp, end in ends}
    return {}


# -- what became of a commit -------------------------------------------------------------------------------------------


class RefusedError(Exception):
    """What a commit was answered for some of its partitions."""

    def __init__(self, refusals: Mapping[TopicPartition, Refusal]) -> None:
        super().__init__(refusals)
        self.refusals = refusals


def _read_commit(stock: Callable[..., None], offsets: Any, send_time: float, response: Any) -> None:
    """In place of kafka-python's own ``stock``, which raises at the first error."""
    refusals: dict[TopicPartition, Refusal] = {}
    for topic, partitions in response.topics:
        for partition, code in partitions:
            if code:
                lasting = LASTING.get(code)
                refusals[topic, partition] = Refusal(kafka.errors.for_code(code)(), lasting)
                if lasting is None:  # of the group: a new coordinator is looked for, the member joins again
                    one = SimpleNamespace(topics=[(topic, [(partition, code)])])
                    with suppress(kafka.errors.KafkaError):
                        stock(offsets, send_time, one)
    if refusals:
        raise RefusedError(refusals)


def _leader(node: int) -> str:
    return f"its leader, broker {node}"


def _is_target(key: Any) -> bool:
    return isinstance(key[0], tuple)


def _is_commit(found: Any) -> bool:
    return isinstance(found, tuple)
