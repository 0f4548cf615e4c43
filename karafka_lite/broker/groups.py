"""The group coordinator of the embedded broker: the states and errors of Apache Kafka's classic groups, and offsets.

    EMPTY       no members            -> PREPARING   a member joins
    PREPARING   waits for all joins   -> COMPLETING  all have joined, or the rebalance timeout is over
    COMPLETING  waits for the leader  -> STABLE      the leader has sent the assignments
    STABLE                            -> PREPARING   a member joins, leaves, changes or misses its heartbeats

``now`` is the event loop's time. https://cwiki.apache.org/confluence/display/KAFKA/Kafka+Client-side+Assignment+Proposal
"""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from kafka import errors

from karafka_lite.broker.topics import NODE, Topics, by_partition
from karafka_lite.broker.wire import Answer, Call, Handler
from karafka_lite.messages import TopicPartition

MAX_SESSION_MS = 1_800_000
MAX_METADATA = 4096

Offset = tuple[int, str]  # the next offset to read, and the text that was committed with it


class State(Enum):
    """See the drawing above; the values are Kafka's names."""

    EMPTY = "Empty"
    PREPARING = "PreparingRebalance"
    COMPLETING = "CompletingRebalance"
    STABLE = "Stable"


@dataclass
class Member:
    """One member of a group. ``join`` and ``sync``: the responses that it waits for."""

    id: str
    instance: str | None = None
    client_id: str = ""
    session_s: float = 0.0
    rebalance_s: float = 0.0
    protocols: dict[str, bytes] = field(default_factory=dict)
    last_seen: float = 0.0
    assignment: bytes = b""
    join: asyncio.Future[Answer] | None = None
    sync: asyncio.Future[int] | None = None

    @property
    def joining(self) -> bool:
        return self.join is not None and not self.join.done()

    @property
    def syncing(self) -> bool:
        return self.sync is not None and not self.sync.done()


@dataclass
class Group:
    """One consumer group."""

    id: str
    state: State = State.EMPTY
    generation: int = 0
    members: dict[str, Member] = field(default_factory=dict)
    expected: dict[str, float] = field(default_factory=dict)  # member ids given out -> when they expire
    leader: str = ""
    protocol_type: str = ""
    protocol: str = ""
    deadline: float = 0.0  # of the joins, later of the assignment
    hold_until: float | None = None  # the first rebalance waits until then, and not for the ids given out
    offsets: dict[TopicPartition, Offset] = field(default_factory=dict)

    def common_protocols(self) -> set[str]:
        return set.intersection(*(set(member.protocols) for member in self.members.values()))

    def rebalance(self, now: float, initial_delay_s: float = 0.0) -> None:
        """Ask all members to join again."""
        if self.state is not State.PREPARING:
            for member in self.members.values():
                if member.syncing:
                    _resolve(member.sync, errors.RebalanceInProgressError.errno)
            self.hold_until = now + initial_delay_s if self.state is State.EMPTY else None
            self.deadline = now + max((member.rebalance_s for member in self.members.values()), default=0.0)
            self.state = State.PREPARING
        self.advance(now)

    def drop(self, member: Member, code: int, now: float) -> None:
        """Remove a member; the others get its partitions."""
        del self.members[member.id]
        _resolve(member.join, _not_joined(code, member.id))
        _resolve(member.sync, code)
        self.rebalance(now)

    def advance(self, now: float) -> None:
        """Do what is due: drop silent members, and end a rebalance when all have joined or its time is over."""
        self.expected = {member: until for member, until in self.expected.items() if until > now}
        for member in list(self.members.values()):
            silent = not member.joining and not member.syncing and now > member.last_seen + member.session_s
            unsynced = self.state is not State.PREPARING and not member.sync and now >= self.deadline
            if (silent or unsynced) and member.id in self.members:
                self.drop(member, errors.UnknownMemberIdError.errno, now)
        if self.state is State.PREPARING and now >= (self.hold_until or now):
            late = [member for member in self.members.values() if not member.joining]
            if now >= self.deadline or not (late or (self.expected and self.hold_until is None)):
                for member in late:
                    del self.members[member.id]
                self._complete_join(now)

    def _complete_join(self, now: float) -> None:
        self.generation += 1
        if not self.members:
            self.state, self.leader, self.protocol = State.EMPTY, "", ""
            return
        if self.leader not in self.members:
            self.leader = next(iter(self.members))
        common = self.common_protocols()
        votes = Counter(next(name for name in member.protocols if name in common) for member in self.members.values())
        self.protocol = votes.most_common(1)[0][0]
        self.state = State.COMPLETING
        self.deadline = now + max(member.rebalance_s for member in self.members.values())
        for member in self.members.values():
            member.last_seen, member.sync = now, None
            _resolve(member.join, self.joined(member))

    def assign(self, assignments: dict[str, bytes], now: float) -> None:
        """Give the members what the leader has assigned to them."""
        self.state = State.STABLE
        for member in self.members.values():
            member.assignment, member.last_seen = assignments.get(member.id, b""), now
            _resolve(member.sync, 0)

    def joined(self, member: Member) -> Answer:
        """The response to a successful join; the leader's lists the other members."""
        members = [
            {"member_id": other.id, "group_instance_id": other.instance, "metadata": other.protocols[self.protocol]}
            for other in (self.members.values() if member.id == self.leader else ())
        ]
        answer = {"error_code": 0, "generation_id": self.generation, "leader": self.leader, "member_id": member.id}
        return {**answer, "protocol_type": self.protocol_type, "protocol_name": self.protocol, "members": members}

    def replace(self, old: Member, new: Member) -> Answer:
        """A static member is back: nobody has to join again. As by Apache Kafka, a leader is not told that it leads."""
        leader, new.assignment = self.leader, old.assignment
        del self.members[old.id]
        self.members[new.id] = new
        self.leader = new.id if leader == old.id else leader
        return {**self.joined(new), "leader": leader, "members": []}

    def member(self, request: Any, generation: int, now: float) -> Member:
        """The member that sent a request, validated; the request counts as a heartbeat."""
        member = self.members.get(request.member_id)
        instance = getattr(request, "group_instance_id", None)
        if instance and any(m.instance == instance and m is not member for m in self.members.values()):
            raise errors.FencedInstanceIdError()
        if member is None:
            raise errors.UnknownMemberIdError()
        if generation != self.generation:
            raise errors.IllegalGenerationError()
        member.last_seen = now
        return member

    def check_commit(self, request: Any, generation: int, now: float) -> None:
        """Only members may commit, except to an empty group."""
        if generation >= 0 or self.state is not State.EMPTY:
            self.member(request, generation, now)


class Groups:
    """All groups. Refused requests raise Kafka's own errors."""

    def __init__(self, topics: Topics, *, initial_rebalance_delay_ms: int, min_session_timeout_ms: int) -> None:
        self.groups: dict[str, Group] = {}
        self.unstable: Callable[[str], Iterable[TopicPartition]]  # those with offsets in an open transaction, by group
        self._topics = topics
        self._initial_delay_s = initial_rebalance_delay_ms / 1000
        self._min_session_ms = min_session_timeout_ms

    def handlers(self) -> dict[str, tuple[int, Handler]]:
        return {
            "FindCoordinator": (3, self._find_coordinator),
            "JoinGroup": (9, self._join),
            "SyncGroup": (5, self._sync),
            "Heartbeat": (4, self._heartbeat),
            "LeaveGroup": (5, self._leave),
            "OffsetCommit": (8, self._commit),
            "OffsetFetch": (7, self._offsets),
            "ListGroups": (4, self._list),
            "DescribeGroups": (5, self._describe),
            "DeleteGroups": (2, self._delete),
        }

    def advance(self) -> None:
        for group in self.groups.values():
            group.advance(_now())

    def resume(self) -> None:
        """Restart all timeouts: while the coordinator was down, members could not send heartbeats or joins."""
        now = _now()
        for group in self.groups.values():
            group.deadline = now + max((member.rebalance_s for member in group.members.values()), default=0.0)
            for member in group.members.values():
                member.last_seen = now

    def kick(self, group_id: str, member_id: str) -> None:
        """Evict a member, as if its session had expired. Raises KeyError."""
        group = self.groups[group_id]
        group.drop(group.members[member_id], errors.UnknownMemberIdError.errno, _now())

    def get(self, group_id: str, *, make: bool = True) -> Group:
        """The group; if there is none a new one, which is kept if ``make``."""
        if not group_id:
            raise errors.InvalidGroupIdError()
        group = self.groups.get(group_id) or Group(group_id)
        return self.groups.setdefault(group_id, group) if make else group

    def forget_topic(self, name: str) -> None:
        for group in self.groups.values():
            group.offsets = {tp: offset for tp, offset in group.offsets.items() if tp[0] != name}

    def check_offset(self, topic: str, part: Any) -> tuple[TopicPartition, Offset]:
        """Validate the offset to commit for one partition."""
        self._topics.log(topic, part.partition_index)
        if len(text := part.committed_metadata or "") > MAX_METADATA:
            raise errors.OffsetMetadataTooLargeError()
        return (topic, part.partition_index), (part.committed_offset, text)

    # -- membership

    def _find_coordinator(self, call: Call) -> Answer:
        host, port = self._topics.address
        return {"error_code": call.error, "node_id": NODE, "host": host, "port": port}

    async def _join(self, call: Call) -> Answer:
        refusal, joined = call.attempt(self._begin_join, call)
        if isinstance(joined, asyncio.Future):
            return await asyncio.shield(joined)  # as in Kafka, a client that disconnects has joined nevertheless
        return joined or _not_joined(refusal["error_code"], call.request.member_id)

    def _begin_join(self, call: Call) -> Answer | asyncio.Future[Answer]:
        """The response, or a future of it."""
        r, now = call.request, _now()
        if not self._min_session_ms <= r.session_timeout_ms <= MAX_SESSION_MS:
            raise errors.InvalidSessionTimeoutError()
        group, instance = self.get(r.group_id, make=not r.member_id), r.group_instance_id if call.version >= 5 else None
        old: Member | None = None  # whose place a static member takes
        protocols = {protocol.name: bytes(protocol.metadata) for protocol in r.protocols}
        fits = not group.members or (
            r.protocol_type == group.protocol_type and group.common_protocols() & set(protocols)
        )
        if not protocols or not r.protocol_type or not fits:
            raise errors.InconsistentGroupProtocolError()
        member = group.members.get(r.member_id)
        if not r.member_id:
            member_id = f"{instance or call.client_id or 'member'}-{uuid.uuid4()}"
            if instance is None and call.version >= 4:
                group.expected[member_id] = now + r.session_timeout_ms / 1000
                return _not_joined(errors.MemberIdRequiredError.errno, member_id)
            member = Member(member_id)
            old = next((other for other in group.members.values() if instance and other.instance == instance), None)
        elif member is None:
            if group.expected.pop(r.member_id, None) is None:
                raise errors.UnknownMemberIdError()
            member = Member(r.member_id)
        elif instance and member.instance != instance:
            raise errors.FencedInstanceIdError()
        elif member.protocols == protocols and (
            group.state is State.COMPLETING or (group.state is State.STABLE and group.leader != member.id)
        ):
            member.last_seen = now
            return group.joined(member)  # nothing has changed: the last response was lost, or it only asks
        rebalance_ms = r.rebalance_timeout_ms if call.version >= 1 else r.session_timeout_ms
        member.instance, member.client_id, member.protocols, member.last_seen = instance, call.client_id, protocols, now
        member.session_s, member.rebalance_s = r.session_timeout_ms / 1000, rebalance_ms / 1000
        if old is not None:
            if group.state is State.STABLE and old.protocols == protocols:
                return group.replace(old, member)
            group.drop(old, errors.FencedInstanceIdError.errno, now)
        _resolve(member.join, _not_joined(errors.RebalanceInProgressError.errno, member.id))
        joined = member.join = asyncio.get_running_loop().create_future()
        group.members[member.id], group.protocol_type = member, r.protocol_type
        group.rebalance(now, self._initial_delay_s)
        return joined

    async def _sync(self, call: Call) -> Answer:
        r = call.request

        def begin() -> tuple[Group, Member]:
            group = self.get(r.group_id, make=False)
            member = group.member(r, r.generation_id, _now())
            if call.version >= 5 and (r.protocol_type, r.protocol_name) != (group.protocol_type, group.protocol):
                raise errors.InconsistentGroupProtocolError()
            if group.state is State.PREPARING:
                raise errors.RebalanceInProgressError()
            return group, member

        answer, found = call.attempt(begin)
        if found is None:
            return {**answer, "assignment": b""}
        group, member = found
        _resolve(member.sync, errors.RebalanceInProgressError.errno)
        waiting = member.sync = asyncio.get_running_loop().create_future()
        if group.state is State.STABLE:
            _resolve(waiting, 0)
        elif member.id == group.leader:
            group.assign({one.member_id: bytes(one.assignment) for one in r.assignments}, _now())
        answer["error_code"] = await asyncio.shield(waiting)
        if answer["error_code"]:
            return {**answer, "assignment": b""}
        names = {"protocol_type": group.protocol_type, "protocol_name": group.protocol}
        return {**answer, **names, "assignment": member.assignment}

    def _heartbeat(self, call: Call) -> Answer:
        def beat() -> None:
            group = self.get(call.request.group_id, make=False)
            group.member(call.request, call.request.generation_id, _now())
            if group.state is State.PREPARING:
                raise errors.RebalanceInProgressError()

        return call.attempt(beat)[0]

    def _leave(self, call: Call) -> Answer:
        r = call.request

        def leave(one: Any) -> None:
            group = self.get(r.group_id, make=False)
            instance = getattr(one, "group_instance_id", None)
            found = [
                m for m in group.members.values() if m.id == one.member_id or (instance and m.instance == instance)
            ]
            if found:
                group.drop(found[0], errors.UnknownMemberIdError.errno, _now())
            elif group.expected.pop(one.member_id, None) is None:
                raise errors.UnknownMemberIdError()
            group.advance(_now())

        if call.version < 3:
            return call.attempt(leave, r)[0]
        ids = [{"member_id": one.member_id, "group_instance_id": one.group_instance_id} for one in r.members]
        codes = [call.attempt(leave, one)[0] for one in r.members]
        return {"error_code": call.error, "members": [{**one, **code} for one, code in zip(ids, codes, strict=True)]}

    # -- offsets

    def _commit(self, call: Call) -> Answer:
        r = call.request
        generation = r.generation_id_or_member_epoch if call.version >= 1 else -1

        def commit(topic: str, part: Any) -> None:
            if r.group_id not in self.groups and generation >= 0:
                raise errors.IllegalGenerationError()
            group = self.get(r.group_id)
            group.check_commit(r, generation, _now())
            if group.state is State.COMPLETING:
                raise errors.RebalanceInProgressError()
            group.offsets.update([self.check_offset(topic, part)])

        return {"topics": by_partition(r.topics, lambda topic, part: call.attempt(commit, topic, part)[0])}

    def _offsets(self, call: Call) -> Answer:
        r = call.request
        known = self.groups[r.group_id].offsets if r.group_id in self.groups else {}
        unstable = set(self.unstable(r.group_id)) if r.require_stable else set()
        wanted: dict[str, list[Answer]] = defaultdict(list)
        for name, index in known if r.topics is None else [(t.name, p) for t in r.topics for p in t.partition_indexes]:
            offset, text = known.get((name, index), (-1, ""))
            code = errors.UnstableOffsetCommitError.errno if (name, index) in unstable else call.error
            answer = {"partition_index": index, "committed_offset": offset, "metadata": text, "error_code": code}
            wanted[name].append({**answer, "committed_leader_epoch": -1})
        return {"error_code": call.error, "topics": [{"name": name, "partitions": wanted[name]} for name in wanted]}

    # -- administration

    def _list(self, call: Call) -> Answer:
        wanted = set(call.request.states_filter) or {state.value for state in State}
        groups = [
            {"group_id": group.id, "protocol_type": group.protocol_type, "group_state": group.state.value}
            for group in self.groups.values()
            if group.state.value in wanted
        ]
        return {"error_code": call.error, "groups": groups}

    def _describe(self, call: Call) -> Answer:
        def describe(group_id: str) -> Answer:
            if group_id not in self.groups:
                return {"group_state": "Dead", "members": []}
            group = self.groups[group_id]
            members = [
                {
                    "member_id": member.id,
                    "group_instance_id": member.instance,
                    "client_id": member.client_id,
                    "client_host": "/127.0.0.1",
                    "member_metadata": member.protocols.get(group.protocol, b""),
                    "member_assignment": member.assignment,
                }
                for member in group.members.values()
            ]
            names = {"protocol_type": group.protocol_type, "protocol_data": group.protocol}
            return {"group_state": group.state.value, **names, "members": members}

        groups = []
        for group_id in call.request.groups:
            answer, found = call.attempt(describe, group_id)
            groups.append({"group_id": group_id, **answer, **(found or {"group_state": "", "members": []})})
        return {"groups": groups}

    def _delete(self, call: Call) -> Answer:
        def delete(group_id: str) -> None:
            if group_id not in self.groups:
                raise errors.GroupIdNotFoundError()
            if self.groups[group_id].members:
                raise errors.NonEmptyGroupError()
            del self.groups[group_id]

        return {"results": [{"group_id": name, **call.attempt(delete, name)[0]} for name in call.request.groups_names]}


def _not_joined(code: int, member_id: str) -> Answer:
    return {"error_code": code, "generation_id": -1, "protocol_name": "", "leader": "", "member_id": member_id}


def _resolve(future: asyncio.Future[Any] | None, answer: Any) -> None:
    if future is not None and not future.done():
        future.set_result(answer)


def _now() -> float:
    return asyncio.get_running_loop().time()
