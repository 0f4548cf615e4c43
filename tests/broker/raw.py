"""A client that speaks Kafka's protocol word by word, to ask a broker what no real client would.

It tells embedded from real brokers in nothing: what is compared with it, is compared fairly.
"""

from __future__ import annotations

import itertools
import select
import socket
import struct
import time
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from kafka.protocol import admin, consumer, metadata, producer
from kafka.record.memory_records import MemoryRecordsBuilder
from support.observer import wait_until

from karafka_lite.broker.embedded import EmbeddedBroker

# The highest versions that the embedded broker knows: every question is put in these unless a test says otherwise.
APIS = {api.name: api for api in EmbeddedBroker()._server.apis.values()}
NOT_READY = {5, 6, 14, 15, 16, 51}  # leaders and coordinators that load, a transaction that is being ended


def message(name: str) -> Any:
    return next(getattr(module, name) for module in (producer, consumer, metadata, admin) if hasattr(module, name))


def filled(kind: Any, values: dict[str, Any]) -> Any:
    """An object of Kafka's protocol, with dicts for what is nested in it."""

    def convert(name: str, value: Any) -> Any:
        nested = isinstance(value, list) and kind.fields[name].is_struct_array()
        return [filled(kind.fields[name].data_class, one) for one in value] if nested else value

    return kind(**{name: convert(name, value) for name, value in values.items()})


def encoded(name: str, version: int | None = None, *, client_id: str = "raw", number: int = 1, **fields: Any) -> bytes:
    """A whole frame."""
    request = filled(message(f"{name}Request"), fields)
    request.API_VERSION = APIS[name].top if version is None else version
    request.with_header(correlation_id=number, client_id=client_id)
    return bytes(request.encode(header=True, framed=True))


class Wire:
    """One connection. ``ask`` is ``send`` and ``receive``; answers come in the order of the questions."""

    def __init__(self, bootstrap_servers: str, timeout: float = 15) -> None:
        self.host, _, port = bootstrap_servers.rpartition(":")
        self.socket = socket.create_connection((self.host, int(port)), timeout)
        self._numbers = itertools.count(1)
        self._asked: deque[tuple[str, int, int]] = deque()

    def close(self) -> None:
        self.socket.close()

    def ask(self, name: str, version: int | None = None, **fields: Any) -> Any:
        self.send(name, version, **fields)
        return self.receive()

    def send(self, name: str, version: int | None = None, **fields: Any) -> None:
        number = next(self._numbers)
        self._asked.append((name, APIS[name].top if version is None else version, number))
        self.socket.sendall(encoded(name, version, number=number, **fields))

    def receive(self) -> Any:
        name, version, number = self._asked.popleft()
        (size,) = struct.unpack(">i", self._exactly(4))
        answer = message(f"{name}Response").decode(self._exactly(size), version=version, header=True)
        assert answer.header.correlation_id == number
        return answer

    def answered(self) -> bool:
        """Whether there is something to receive now."""
        return bool(select.select([self.socket], [], [], 0)[0])

    def is_cut(self) -> bool:
        """Waits for the end of the connection; False when an answer came instead."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.socket.recv(size - len(data))
            if not more:
                raise ConnectionResetError("the broker closed the connection")
            data += more
        return data


def codes(answer: Any) -> list[int]:
    """Every error code in the answer, from the outside to the inside."""

    def walk(value: Any) -> Iterator[int]:
        if isinstance(value, dict):
            yield from (one for name, one in value.items() if name.endswith("error_code"))
            for one in value.values():
                yield from walk(one)
        elif isinstance(value, list):
            for one in value:
                yield from walk(one)

    return list(walk(answer.to_dict()))


def settled(wire: Wire, name: str, version: int | None = None, **fields: Any) -> Any:
    """The answer, once nothing in it says that a leader or a coordinator is still loading."""
    answers: list[Any] = []

    def ready() -> bool:
        answers.append(wire.ask(name, version, **fields))
        return not NOT_READY & set(codes(answers[-1]))

    wait_until(ready, message=f"{name} is answered")
    return answers[-1]


def unique(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex[:12]}"


# -- topics and messages ----------------------------------------------------------------------------------------------


def make_topic(wire: Wire, partitions: int = 1, name: str | None = None, **configs: object) -> str:
    """A topic that is ready for use; ``configs`` with underscores for dots."""
    name = name or unique("topic")
    given = [{"name": key.replace("_", "."), "value": str(value)} for key, value in configs.items()]
    topic = {"name": name, "num_partitions": partitions, "replication_factor": 1, "assignments": [], "configs": given}
    assert set(codes(wire.ask("CreateTopics", topics=[topic], timeout_ms=10_000))) == {0}
    for partition in range(partitions):
        wait_until(
            lambda partition=partition: offset_at(wire, name, -1, partition) == (0, 0), message="it has a leader"
        )
    return name


def batch_of(
    *values: bytes | None,
    timestamps: Sequence[int] | int | None = None,
    producer: tuple[int, int, int] | None = None,
    transactional: bool = False,
    compression: int = 0,
) -> bytearray:
    """A record batch; ``producer`` is id, epoch and first sequence."""
    producer_id, epoch, sequence = producer or (-1, -1, -1)
    builder = MemoryRecordsBuilder(
        2, compression, 1 << 30, transactional=transactional, producer_id=producer_id, producer_epoch=epoch,
        base_sequence=sequence,
    )  # fmt: skip
    for index, value in enumerate(values):
        given = timestamps[index] if isinstance(timestamps, Sequence) else timestamps
        builder.append(now_ms() if given is None else given, None, value)
    builder.close()
    return bytearray(builder.buffer())


def produce_fields(
    topic: str, batch: bytes | None, partition: int = 0, acks: int = -1, transaction: str | None = None
) -> dict[str, Any]:
    data = [{"index": partition, "records": batch}]
    topics = [{"name": topic, "partition_data": data}]
    return {"transactional_id": transaction, "acks": acks, "timeout_ms": 10_000, "topic_data": topics}


def produce(wire: Wire, topic: str, batch: bytes | None, partition: int = 0, **more: Any) -> tuple[int, int]:
    """The error code and the base offset."""
    answer = settled(wire, "Produce", **produce_fields(topic, batch, partition, **more))
    (one,) = answer.responses[0].partition_responses
    return one.error_code, one.base_offset


def fetch_fields(
    topic: str,
    offset: int,
    partition: int = 0,
    *,
    max_wait_ms: int = 0,
    min_bytes: int = 1,
    max_bytes: int = 1 << 20,
    partition_max_bytes: int = 1 << 20,
    read_committed: bool = False,
) -> dict[str, Any]:
    part = {"partition": partition, "fetch_offset": offset, "partition_max_bytes": partition_max_bytes}
    part.update(current_leader_epoch=-1, last_fetched_epoch=-1, log_start_offset=-1)
    return {
        "replica_id": -1, "max_wait_ms": max_wait_ms, "min_bytes": min_bytes, "max_bytes": max_bytes,
        "isolation_level": int(read_committed), "session_id": 0, "session_epoch": -1,
        "topics": [{"topic": topic, "partitions": [part]}], "forgotten_topics_data": [], "rack_id": "",
    }  # fmt: skip


def fetch(wire: Wire, topic: str, offset: int, partition: int = 0, **more: Any) -> Any:
    """The answer for the one partition."""
    return settled(wire, "Fetch", **fetch_fields(topic, offset, partition, **more)).responses[0].partitions[0]


def offset_at(
    wire: Wire,
    topic: str,
    timestamp: int,
    partition: int = 0,
    *,
    version: int | None = None,
    read_committed: bool = False,
) -> tuple[int, int]:
    """The error code and the offset: latest is -1, earliest -2, that of the highest time -3."""
    part = {"partition_index": partition, "current_leader_epoch": -1, "timestamp": timestamp}
    topics = [{"name": topic, "partitions": [part]}]
    fields = {"replica_id": -1, "isolation_level": int(read_committed), "topics": topics}
    (one,) = wire.ask("ListOffsets", version, **fields).topics[0].partitions
    return one.error_code, one.offset


# -- groups -----------------------------------------------------------------------------------------------------------


def subscription(note: bytes = b"") -> bytes:
    """To no topic. Kafka looks into it: rubbish ends in an exception on its timer's thread, and the join never ends."""
    return struct.pack(">hii", 0, 0, len(note)) + note


class GroupMember:
    """A member of a group, step by step."""

    def __init__(
        self, wire: Wire, group: str, *, session_ms: int = 10_000, rebalance_ms: int = 10_000,
        protocols: dict[str, bytes] | None = None, instance: str | None = None,
    ) -> None:  # fmt: skip
        self.wire, self.group, self.instance = wire, group, instance
        self.session_ms, self.rebalance_ms = session_ms, rebalance_ms
        self.protocols = {"range": subscription()} if protocols is None else protocols
        self.type = "consumer"
        self.id, self.generation, self.leader, self.chosen = "", -1, "", ""

    def get_id(self) -> str:
        """The first step: the broker gives an id and wants to be asked again with it."""
        answer = settled(self.wire, "JoinGroup", **self._join_fields())
        assert answer.error_code == 79, answer
        self.id = answer.member_id
        return self.id

    def send_join(self, version: int | None = None) -> None:
        self.wire.send("JoinGroup", version, **self._join_fields())

    def joined(self) -> Any:
        answer = self.wire.receive()
        if answer.error_code == 0:
            self.id, self.generation = answer.member_id, answer.generation_id
            self.leader, self.chosen = answer.leader, answer.protocol_name
        return answer

    def join(self, version: int | None = None) -> Any:
        """With the id that it has, "" for none."""
        settled(self.wire, "Heartbeat", **self._fields())
        self.send_join(version)
        return self.joined()

    def enter(self) -> Any:
        """Both steps."""
        self.get_id()
        return self.join()

    def send_sync(self, assignments: dict[str, bytes] | None = None, **more: Any) -> None:
        given = [{"member_id": member, "assignment": one} for member, one in (assignments or {}).items()]
        names = {"protocol_type": self.type, "protocol_name": self.chosen, **more}
        self.wire.send("SyncGroup", **self._fields(), **names, assignments=given)

    def sync(self, assignments: dict[str, bytes] | None = None, **more: Any) -> Any:
        self.send_sync(assignments, **more)
        return self.wire.receive()

    def heartbeat(self, **more: Any) -> int:
        return self.wire.ask("Heartbeat", **{**self._fields(), **more}).error_code

    def leave(self) -> int:
        members = [{"member_id": self.id, "group_instance_id": self.instance, "reason": ""}]
        return max(codes(self.wire.ask("LeaveGroup", group_id=self.group, members=members)))

    def commit(self, topic: str, offset: int = 1, partition: int = 0, metadata: str = "", **more: Any) -> int:
        part = {"partition_index": partition, "committed_offset": offset, "committed_leader_epoch": -1}
        topics = [{"name": topic, "partitions": [{**part, "committed_metadata": metadata}]}]
        fields = {"group_id": self.group, "generation_id_or_member_epoch": self.generation, "member_id": self.id}
        (code,) = codes(
            settled(self.wire, "OffsetCommit", **{**fields, "group_instance_id": self.instance, **more}, topics=topics)
        )
        return code

    def committed(self, topic: str, partition: int = 0) -> int:
        topics = [{"name": topic, "partition_indexes": [partition]}]
        answer = settled(self.wire, "OffsetFetch", group_id=self.group, topics=topics, require_stable=False)
        assert codes(answer) == [0, 0]
        return answer.topics[0].partitions[0].committed_offset

    def state(self) -> str:
        answer = settled(self.wire, "DescribeGroups", groups=[self.group], include_authorized_operations=False)
        return answer.groups[0].group_state

    def _fields(self) -> dict[str, Any]:
        fields = {"group_id": self.group, "generation_id": self.generation, "member_id": self.id}
        return {**fields, "group_instance_id": self.instance}

    def _join_fields(self) -> dict[str, Any]:
        return {
            "group_id": self.group, "session_timeout_ms": self.session_ms, "rebalance_timeout_ms": self.rebalance_ms,
            "member_id": self.id, "group_instance_id": self.instance, "protocol_type": self.type,
            "protocols": [{"name": name, "metadata": data} for name, data in self.protocols.items()], "reason": None,
        }  # fmt: skip


def gather(*members: GroupMember) -> list[GroupMember]:
    """All join one generation; the first becomes the leader, and has not shared out yet."""
    leader, *others = members
    leader.enter()
    for member in others:
        member.get_id()
    for member in others:
        member.send_join()
    if others:
        wait_until(lambda: leader.heartbeat() == 27, message="the group rebalances")
        leader.send_join()
    for member in members if others else ():
        assert member.joined().error_code == 0
    assert {member.leader for member in members} == {leader.id}
    return list(members)


def stable(*members: GroupMember) -> list[GroupMember]:
    """All have joined and have their assignments, which are their ids; the first is the leader."""
    ordered = gather(*members)
    for member in ordered:
        assert member.sync({one.id: one.id.encode() for one in members}).error_code == 0
    return ordered


def now_ms() -> int:
    return int(time.time() * 1000)
