"""The embedded broker is never kinder than Kafka: each of these questions is put to both, with the same expectation."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from kafka.record import MemoryRecords
from raw import (
    APIS,
    GroupMember,
    Wire,
    batch_of,
    codes,
    encoded,
    fetch,
    fetch_fields,
    gather,
    make_topic,
    now_ms,
    offset_at,
    produce,
    produce_fields,
    settled,
    stable,
    subscription,
    unique,
)
from support.observer import wait_until

Dial = Callable[[], Wire]

HOUR_MS = 3_600_000
NONE, OUT_OF_RANGE, CORRUPT, UNKNOWN_TOPIC, TOO_LARGE, METADATA_TOO_LARGE = 0, 1, 2, 3, 10, 12
INVALID_TOPIC, INVALID_ACKS, ILLEGAL_GENERATION, INCONSISTENT_PROTOCOL, INVALID_GROUP_ID = 17, 21, 22, 23, 24
UNKNOWN_MEMBER, INVALID_SESSION, REBALANCE, INVALID_TIMESTAMP, UNSUPPORTED_VERSION, EXISTS = 25, 26, 27, 32, 35, 36
INVALID_PARTITIONS, INVALID_REPLICATION, INVALID_CONFIG, INVALID_REQUEST = 37, 38, 40, 42
OUT_OF_ORDER, OLD_EPOCH, INVALID_TXN_STATE, UNMAPPED_PRODUCER, INVALID_TXN_TIMEOUT = 45, 47, 48, 49, 50
NOT_AUTHORIZED_TXN, NOT_ATTEMPTED, NON_EMPTY_GROUP, NO_GROUP, ID_REQUIRED = 53, 55, 68, 69, 79
UNKNOWN_SESSION, WRONG_SESSION_EPOCH = 70, 71
FENCED_INSTANCE, INVALID_RECORD, UNSTABLE_OFFSET, FENCED = 82, 87, 88, 90


# -- connections ------------------------------------------------------------------------------------------------------


def test_an_unknown_request_ends_the_connection(wire: Wire) -> None:
    wire.socket.sendall(struct.pack(">ihhih", 10, 9999, 0, 1, -1))
    assert wire.is_cut()


def test_an_unknown_version_ends_the_connection(wire: Wire) -> None:
    wire.socket.sendall(struct.pack(">ihhih", 10, 3, 999, 1, -1))
    assert wire.is_cut()


def test_unknown_versions_of_api_versions_are_answered_in_version_0(wire: Wire) -> None:
    wire._asked.append(("ApiVersions", 0, 1))
    wire.socket.sendall(struct.pack(">ihhihb", 11, 18, 999, 1, -1, 0))
    answer = wire.receive()
    assert answer.error_code == UNSUPPORTED_VERSION
    assert 18 in [api.api_key for api in answer.api_keys]


def test_no_version_is_offered_that_kafka_does_not_know(wire: Wire) -> None:
    offered = {api.api_key: (api.min_version, api.max_version) for api in wire.ask("ApiVersions", 0).api_keys}
    for api in APIS.values():
        lowest, top = offered[api.key]
        assert lowest <= api.lowest <= api.top <= top, api.name


def test_pipelined_requests_are_answered_in_order_also_after_one_that_waits(wire: Wire) -> None:
    topic = make_topic(wire)
    wire.send("Fetch", **fetch_fields(topic, 0, max_wait_ms=300))
    for _ in range(20):
        wire.send("ApiVersions", 0)
    assert codes(wire.receive()) == [NONE, NONE]
    assert [wire.receive().error_code for _ in range(20)] == [NONE] * 20


# -- joining ----------------------------------------------------------------------------------------------------------


def test_who_joins_gets_an_id_first_and_becomes_a_member_with_it(wire: Wire) -> None:
    member = GroupMember(wire, unique("group"))
    assert member.get_id().startswith("raw-")
    assert member.state() in ("Empty", "Dead")
    answer = member.join()
    assert (answer.error_code, answer.member_id, answer.leader) == (NONE, member.id, member.id)
    assert (answer.generation_id, answer.protocol_type, answer.protocol_name) == (1, "consumer", "range")
    assert [(one.member_id, bytes(one.metadata)) for one in answer.members] == [(member.id, subscription())]


def test_before_version_4_one_step_is_enough(wire: Wire) -> None:
    assert GroupMember(wire, unique("group")).join(version=3).error_code == NONE


def test_an_id_that_was_not_given_out_is_refused_and_creates_no_group(wire: Wire) -> None:
    member = GroupMember(wire, unique("group"))
    member.id = "made-up"
    assert member.join().error_code == UNKNOWN_MEMBER
    assert member.state() == "Dead"
    assert GroupMember(wire, member.group).enter().error_code == NONE
    assert member.join().error_code == UNKNOWN_MEMBER


@pytest.mark.parametrize("session_ms", [999, 0, -1, 1_800_001])
def test_a_session_out_of_bounds_is_refused(wire: Wire, session_ms: int) -> None:
    assert GroupMember(wire, unique("group"), session_ms=session_ms).join().error_code == INVALID_SESSION


@pytest.mark.parametrize(
    "change", [{"protocols": {}}, {"protocols": {"other": subscription()}}, {"type": "connect"}, {"type": ""}]
)
def test_who_shares_no_protocol_with_the_members_is_refused(dial: Dial, change: dict[str, Any]) -> None:
    first, second = (GroupMember(dial(), group) for group in [unique("group")] * 2)
    stable(first)
    vars(second).update(change)
    assert second.join().error_code == INCONSISTENT_PROTOCOL
    assert first.heartbeat() == NONE


@pytest.mark.parametrize("change", [{"protocols": {}}, {"type": ""}])
def test_the_first_member_needs_a_protocol_too(wire: Wire, change: dict[str, Any]) -> None:
    member = GroupMember(wire, unique("group"))
    vars(member).update(change)
    assert member.join().error_code == INCONSISTENT_PROTOCOL


def test_the_protocol_that_most_members_like_best_is_chosen_of_those_that_all_know(dial: Dial) -> None:
    group = unique("group")
    liked = ["ab", "ba", "cba"]
    members = [GroupMember(dial(), group, protocols={name: subscription() for name in names}) for names in liked]
    assert {member.chosen for member in gather(*members)} == {"b"}


def test_a_group_without_a_name_is_refused(wire: Wire) -> None:
    member = GroupMember(wire, "")
    assert member.join().error_code == INVALID_GROUP_ID
    member.id, member.generation = "somebody", 1
    assert member.sync().error_code == INVALID_GROUP_ID
    assert member.heartbeat() == INVALID_GROUP_ID
    assert member.leave() == INVALID_GROUP_ID


def test_a_follower_that_joins_again_unchanged_gets_its_generation_without_a_rebalance(dial: Dial) -> None:
    leader, follower = stable(*(GroupMember(dial(), group) for group in [unique("group")] * 2))
    answer = follower.join()
    assert (answer.error_code, answer.generation_id, answer.leader, answer.members) == (NONE, 2, leader.id, [])
    assert follower.state() == "Stable"
    assert follower.sync().assignment == follower.id.encode()
    assert leader.heartbeat() == follower.heartbeat() == NONE


def test_a_follower_that_joins_with_other_metadata_makes_the_group_rebalance(dial: Dial) -> None:
    leader, follower = stable(*(GroupMember(dial(), group) for group in [unique("group")] * 2))
    follower.protocols = {"range": subscription(b"other")}
    follower.send_join()
    wait_until(lambda: leader.heartbeat() == REBALANCE, message="the group rebalances")
    answer = leader.join()
    assert {bytes(one.metadata) for one in answer.members} == {subscription(), subscription(b"other")}
    assert (follower.joined().generation_id, answer.generation_id) == (3, 3)


def test_a_leader_that_joins_again_makes_the_group_rebalance_and_stays_the_leader(dial: Dial) -> None:
    leader, follower = stable(*(GroupMember(dial(), group) for group in [unique("group")] * 2))
    leader.send_join()
    wait_until(lambda: follower.heartbeat() == REBALANCE, message="the group rebalances")
    assert follower.join().leader == leader.id
    answer = leader.joined()
    assert (answer.leader, answer.generation_id, len(answer.members)) == (leader.id, 3, 2)


def test_everybody_may_join_again_unchanged_before_the_leader_has_shared_out(dial: Dial) -> None:
    leader, follower = gather(*(GroupMember(dial(), group) for group in [unique("group")] * 2))
    assert len(leader.join().members) == 2
    assert follower.join().members == []
    assert (leader.generation, follower.generation) == (2, 2)


def test_an_id_that_was_given_out_holds_up_the_others_until_it_is_used(dial: Dial) -> None:
    first, second = (GroupMember(dial(), group) for group in [unique("group")] * 2)
    stable(first)
    second.get_id()
    assert first.heartbeat() == NONE, "an id alone makes nobody rebalance"
    first.send_join()
    asking = GroupMember(dial(), first.group)
    wait_until(lambda: asking.state() == "PreparingRebalance", message="the join waits")
    assert not first.wire.answered()
    second.send_join()
    assert first.joined().generation_id == second.joined().generation_id == 2


def test_an_id_that_was_given_out_delays_no_rebalance_once_it_was_given_back(dial: Dial) -> None:
    first, second = (GroupMember(dial(), group) for group in [unique("group")] * 2)
    stable(first)
    second.get_id()
    first.send_join()
    wait_until(lambda: second.state() == "PreparingRebalance", message="the join waits")
    assert second.leave() == NONE
    assert first.joined().generation_id == 2
    assert second.join().error_code == UNKNOWN_MEMBER


def test_the_first_member_does_not_wait_for_others(dial: Dial) -> None:
    first, second = (GroupMember(dial(), group) for group in [unique("group")] * 2)
    second.get_id()
    assert [one.member_id for one in first.enter().members] == [first.id]


def test_an_id_that_was_given_out_expires_with_its_session(dial: Dial) -> None:
    first, second = (GroupMember(dial(), group) for group in [unique("group")] * 2)
    stable(first)
    second.session_ms = 1000
    second.get_id()
    first.send_join()
    assert first.joined().generation_id == 2
    assert second.join().error_code == UNKNOWN_MEMBER


# -- members ----------------------------------------------------------------------------------------------------------


def test_heartbeats_and_their_errors_in_every_state(dial: Dial) -> None:
    group = unique("group")
    stranger, first, second = (GroupMember(dial(), group) for _ in range(3))
    settled(stranger.wire, "DescribeGroups", groups=[group], include_authorized_operations=False)
    stranger.id = "stranger"
    assert stranger.heartbeat() == UNKNOWN_MEMBER, "of an unknown group"
    first.get_id()
    assert first.heartbeat() == UNKNOWN_MEMBER, "an id is no membership yet"
    first.join()
    assert first.heartbeat() == NONE, "while the assignment is awaited"
    assert stranger.heartbeat() == UNKNOWN_MEMBER
    assert stranger.heartbeat(generation_id=1) == UNKNOWN_MEMBER
    first.sync({first.id: b""})
    assert first.heartbeat() == NONE
    assert first.heartbeat(generation_id=0) == ILLEGAL_GENERATION
    assert first.heartbeat(generation_id=2) == ILLEGAL_GENERATION
    second.get_id()
    second.send_join()
    wait_until(lambda: first.heartbeat() == REBALANCE, message="the group rebalances")
    assert first.heartbeat(generation_id=0) == ILLEGAL_GENERATION
    assert first.heartbeat(group_instance_id="made up") in (UNKNOWN_MEMBER, REBALANCE)
    first.send_join()
    assert first.joined().error_code == second.joined().error_code == NONE
    assert first.leave() == second.leave() == NONE
    assert first.heartbeat() == UNKNOWN_MEMBER, "of an empty group"


def test_assignments_and_their_errors_in_every_state(dial: Dial) -> None:
    group = unique("group")
    first, second = (GroupMember(dial(), group) for _ in range(2))
    first.id = "stranger"
    settled(first.wire, "DescribeGroups", groups=[group], include_authorized_operations=False)
    assert first.sync().error_code == UNKNOWN_MEMBER, "of an unknown group"
    first.id = ""
    leader, follower = gather(first, second)
    leader.generation = 1
    assert leader.sync().error_code == ILLEGAL_GENERATION
    leader.generation = 2
    assert leader.sync(protocol_name="other").error_code == INCONSISTENT_PROTOCOL
    assert leader.sync(protocol_type="connect").error_code == INCONSISTENT_PROTOCOL
    assert leader.sync(protocol_type=None, protocol_name=None).error_code == INCONSISTENT_PROTOCOL
    follower.send_sync({follower.id: b"what followers say does not count"})
    answer = leader.sync({leader.id: b"a", follower.id: b"b"})
    assert (answer.error_code, answer.assignment, answer.protocol_name) == (NONE, b"a", "range")
    assert follower.wire.receive().assignment == b"b"
    assert follower.sync().assignment == b"b", "as often as it asks"
    assert leader.sync({leader.id: b"other"}).assignment == b"a"
    leader.send_join()
    wait_until(lambda: follower.heartbeat() == REBALANCE, message="the group rebalances")
    assert follower.sync().error_code == REBALANCE
    assert follower.sync(protocol_name="other").error_code == INCONSISTENT_PROTOCOL
    follower.join()
    follower.generation = 2
    assert follower.sync().error_code == ILLEGAL_GENERATION


def test_a_member_that_waits_for_its_assignment_learns_that_another_one_joins(dial: Dial) -> None:
    _leader, follower = gather(*(GroupMember(dial(), group) for group in [unique("group")] * 2))
    newcomer = GroupMember(dial(), follower.group)
    follower.send_sync()
    newcomer.get_id()
    newcomer.send_join()
    assert follower.wire.receive().error_code == REBALANCE


def test_who_leaves_is_gone_and_the_others_rebalance(dial: Dial) -> None:
    leader, follower = stable(*(GroupMember(dial(), group) for group in [unique("group")] * 2))
    stranger = GroupMember(leader.wire, leader.group)
    stranger.id = "stranger"
    assert stranger.leave() == UNKNOWN_MEMBER
    assert leader.leave() == NONE
    assert leader.leave() == leader.heartbeat() == leader.join().error_code == UNKNOWN_MEMBER
    assert follower.heartbeat() == REBALANCE
    answer = follower.join()
    assert (answer.leader, answer.generation_id) == (follower.id, 3)
    assert follower.leave() == NONE
    assert follower.state() == "Empty"
    stranger.group = unique("group")
    assert stranger.leave() == UNKNOWN_MEMBER, "of an unknown group"
    old = leader.wire.ask("LeaveGroup", 2, group_id=leader.group, member_id=leader.id)
    assert codes(old) == [UNKNOWN_MEMBER]


def test_the_generation_counts_on_when_the_group_was_empty(wire: Wire) -> None:
    member = GroupMember(wire, unique("group"))
    member.enter()
    member.leave()
    assert GroupMember(wire, member.group).enter().generation_id == 3


def test_a_member_that_is_silent_for_its_session_is_out_and_one_that_is_not_stays(dial: Dial) -> None:
    group = unique("group")
    silent, alive = (GroupMember(dial(), group, session_ms=1000) for _ in range(2))
    stable(silent, alive)
    wait_until(lambda: alive.heartbeat() == REBALANCE, message="the silent one is missed")
    assert [one.member_id for one in alive.join().members] == [alive.id]
    assert silent.heartbeat() == UNKNOWN_MEMBER


def test_who_does_not_join_again_within_the_rebalance_timeout_is_out_although_it_sends_heartbeats(dial: Dial) -> None:
    group = unique("group")
    late, keen = (GroupMember(dial(), group, rebalance_ms=1000) for _ in range(2))
    stable(late)
    keen.get_id()
    keen.send_join()
    wait_until(lambda: late.heartbeat() == UNKNOWN_MEMBER, message="the late one is out")
    assert [one.member_id for one in keen.joined().members] == [keen.id]


@pytest.mark.parametrize("late", ["the leader", "a follower"])
def test_who_does_not_fetch_its_assignment_within_the_rebalance_timeout_is_out(dial: Dial, late: str) -> None:
    group = unique("group")
    leader, follower = gather(*(GroupMember(dial(), group, rebalance_ms=1000) for _ in range(2)))
    if late == "the leader":
        follower.send_sync()
        wait_until(lambda: leader.heartbeat() == UNKNOWN_MEMBER, message="the late one is out")
        assert follower.wire.receive().error_code == REBALANCE
    else:
        assert leader.sync({leader.id: b""}).error_code == NONE

        def out() -> bool:
            leader.heartbeat()
            return follower.heartbeat() == UNKNOWN_MEMBER

        wait_until(out, message="the late one is out")
        assert leader.heartbeat() == REBALANCE


# -- offsets ----------------------------------------------------------------------------------------------------------


def test_commits_of_a_member_and_their_errors_in_every_state(dial: Dial) -> None:
    group = unique("group")
    member, other = (GroupMember(dial(), group) for _ in range(2))
    topic = make_topic(member.wire)
    member.enter()
    assert member.commit(topic, 1) == REBALANCE, "while the assignment is awaited"
    member.sync({member.id: b""})
    assert member.commit(topic, 2) == NONE
    assert member.commit(topic, 3, generation_id_or_member_epoch=0) == ILLEGAL_GENERATION
    assert member.commit(topic, 3, generation_id_or_member_epoch=-1) == ILLEGAL_GENERATION
    assert member.commit(topic, 3, member_id="stranger") == UNKNOWN_MEMBER
    assert member.commit(topic, 3, member_id="") == UNKNOWN_MEMBER
    assert member.commit(topic, 3, member_id="", generation_id_or_member_epoch=-1) == UNKNOWN_MEMBER
    other.get_id()
    other.send_join()
    wait_until(lambda: member.heartbeat() == REBALANCE, message="the group rebalances")
    assert member.commit(topic, 4) == NONE, "a member may commit before it joins again"
    member.send_join()
    assert member.joined().error_code == other.joined().error_code == NONE
    assert member.commit(topic, 5, generation_id_or_member_epoch=1) == ILLEGAL_GENERATION
    assert member.commit(topic, 5) == REBALANCE
    assert member.committed(topic) == 4
    assert member.leave() == other.leave() == NONE
    assert member.commit(topic, 6) == UNKNOWN_MEMBER
    assert member.commit(topic, 6, member_id="", generation_id_or_member_epoch=1) == UNKNOWN_MEMBER
    assert member.commit(topic, 7, member_id="", generation_id_or_member_epoch=-1) == NONE, "an empty group"
    assert member.commit(topic, 8, generation_id_or_member_epoch=-1) == NONE
    assert member.committed(topic) == 8


def test_who_is_no_member_may_commit_to_a_group_that_does_not_exist_and_only_without_a_generation(wire: Wire) -> None:
    topic = make_topic(wire)
    nobody = GroupMember(wire, unique("group"))
    assert nobody.committed(topic) == -1
    assert nobody.commit(topic, generation_id_or_member_epoch=0) == ILLEGAL_GENERATION
    assert nobody.state() == "Dead"
    assert nobody.commit(topic, 5) == NONE
    assert (nobody.committed(topic), nobody.state()) == (5, "Empty")


def test_commits_for_missing_partitions_or_with_too_much_metadata_are_refused(wire: Wire) -> None:
    topic = make_topic(wire)
    nobody = GroupMember(wire, unique("group"))
    assert nobody.commit(unique("topic")) == UNKNOWN_TOPIC
    assert nobody.commit(topic, partition=1) == UNKNOWN_TOPIC
    assert nobody.commit(topic, partition=-1) == UNKNOWN_TOPIC
    assert nobody.commit(topic, metadata="x" * 4097) == METADATA_TOO_LARGE
    assert nobody.committed(topic) == -1
    assert nobody.commit(topic, metadata="x" * 4096) == NONE
    topics = [{"name": topic, "partition_indexes": [0, 7]}]
    answer = wire.ask("OffsetFetch", group_id=nobody.group, topics=topics, require_stable=False)
    assert [(one.committed_offset, one.error_code) for one in answer.topics[0].partitions] == [(1, 0), (-1, 0)]
    everything = wire.ask("OffsetFetch", group_id=nobody.group, topics=None, require_stable=False)
    assert [(one.name, len(one.partitions)) for one in everything.topics] == [(topic, 1)]


def test_commits_are_forgotten_with_their_topic_and_their_group(wire: Wire) -> None:
    topic, other = make_topic(wire), make_topic(wire)
    nobody = GroupMember(wire, unique("group"))
    assert nobody.commit(topic, 5) == nobody.commit(other, 6) == NONE
    assert codes(wire.ask("DeleteTopics", topic_names=[topic], timeout_ms=10_000)) == [NONE]
    wait_until(lambda: nobody.committed(topic) == -1, message="the commit has gone")
    assert nobody.committed(other) == 6
    assert codes(wire.ask("DeleteGroups", groups_names=[nobody.group])) == [NONE]
    assert (nobody.committed(other), nobody.state()) == (-1, "Dead")


def test_only_empty_groups_can_be_deleted(wire: Wire) -> None:
    member = GroupMember(wire, unique("group"))
    stable(member)
    assert codes(wire.ask("DeleteGroups", groups_names=[member.group])) == [NON_EMPTY_GROUP]
    member.leave()
    answer = wire.ask("DeleteGroups", groups_names=[member.group, unique("group")])
    assert {one.group_id == member.group: one.error_code for one in answer.results} == {True: NONE, False: NO_GROUP}
    assert codes(wire.ask("DeleteGroups", groups_names=[member.group])) == [NO_GROUP]


def test_groups_are_described_and_listed_by_state(wire: Wire) -> None:
    member = GroupMember(wire, unique("group"))
    member.enter()
    assert member.state() == "CompletingRebalance"
    member.sync({member.id: b"mine"})
    (group,) = wire.ask("DescribeGroups", groups=[member.group], include_authorized_operations=False).groups
    assert (group.group_state, group.protocol_type, group.protocol_data) == ("Stable", "consumer", "range")
    (described,) = group.members
    assert (described.member_id, described.client_id, described.client_host) == (member.id, "raw", "/127.0.0.1")
    assert (bytes(described.member_metadata), bytes(described.member_assignment)) == (subscription(), b"mine")

    def listed(*states: str) -> list[tuple[str, str]]:
        groups = wire.ask("ListGroups", states_filter=list(states)).groups
        return [(one.group_state, one.protocol_type) for one in groups if one.group_id == member.group]

    assert listed() == listed("Stable") == [("Stable", "consumer")]
    assert listed("Empty") == []
    member.leave()
    assert listed("Empty") == [("Empty", "consumer")]


# -- producing --------------------------------------------------------------------------------------------------------


def test_what_is_no_batch_is_refused(wire: Wire) -> None:
    topic = make_topic(wire, 2)
    good = batch_of(b"value")
    broken, old, moved, cut = bytearray(good), bytearray(good), bytearray(good), good[:-3]
    broken[-2] ^= 1
    old[16] = 1  # the format's number
    struct.pack_into(">q", moved, 0, 5)  # the base offset
    assert produce(wire, topic, broken)[0] == CORRUPT
    assert produce(wire, topic, good + good)[0] == INVALID_RECORD, "two batches"
    assert produce(wire, topic, b"")[0] == INVALID_RECORD
    assert produce(wire, topic, old)[0] == INVALID_RECORD
    assert produce(wire, topic, moved)[0] == INVALID_RECORD
    assert produce(wire, topic, cut)[0] == INVALID_RECORD
    assert produce(wire, unique("topic"), good)[0] == UNKNOWN_TOPIC
    assert produce(wire, topic, good, partition=2)[0] == UNKNOWN_TOPIC
    assert produce(wire, topic, good, acks=2)[0] == INVALID_ACKS
    assert offset_at(wire, topic, -1) == (NONE, 0), "nothing was appended"
    assert produce(wire, topic, good) == (NONE, 0)
    assert produce(wire, topic, good, acks=1) == (NONE, 1)


def test_one_refused_partition_does_not_keep_the_others_from_being_written(wire: Wire) -> None:
    topic = make_topic(wire, 2)
    fields = produce_fields(topic, batch_of(b"value"))
    fields["topic_data"][0]["partition_data"].append({"index": 1, "records": batch_of(b"two") + batch_of(b"batches")})
    first, second = wire.ask("Produce", **fields).responses[0].partition_responses
    assert (first.error_code, first.base_offset) == (NONE, 0)
    assert (second.error_code, second.base_offset) == (INVALID_RECORD, -1)


def test_a_batch_may_be_as_large_as_the_topic_allows_and_not_larger(wire: Wire) -> None:
    exact = batch_of(b"x" * 1000)
    topic = make_topic(wire, max_message_bytes=len(exact))
    assert produce(wire, topic, batch_of(b"x" * 1001))[0] == TOO_LARGE
    assert produce(wire, topic, exact) == (NONE, 0)


def test_with_acks_0_nothing_is_answered_and_the_message_is_there(wire: Wire) -> None:
    topic = make_topic(wire)
    wire.socket.sendall(encoded("Produce", **produce_fields(topic, batch_of(b"value"), acks=0)))
    wait_until(lambda: offset_at(wire, topic, -1) == (NONE, 1), message="it is there")


def test_times_may_be_an_hour_ahead_and_not_more(wire: Wire) -> None:
    topic = make_topic(wire)
    assert produce(wire, topic, batch_of(b"", timestamps=now_ms() + HOUR_MS + 60_000))[0] == INVALID_TIMESTAMP
    assert produce(wire, topic, batch_of(b"", timestamps=now_ms() + HOUR_MS - 60_000)) == (NONE, 0)
    assert produce(wire, topic, batch_of(b"", timestamps=1)) == (NONE, 1)


def test_a_topic_may_stamp_its_messages_itself(wire: Wire) -> None:
    topic = make_topic(wire, message_timestamp_type="LogAppendTime")
    before = now_ms() - 5
    answer = wire.ask("Produce", **produce_fields(topic, batch_of(b"", b"", timestamps=[1, now_ms() + 9 * HOUR_MS])))
    (one,) = answer.responses[0].partition_responses
    assert (one.error_code, one.base_offset) == (NONE, 0)
    assert before <= one.log_append_time_ms <= now_ms() + 5
    records = list(MemoryRecords(fetch(wire, topic, 0).records).next_batch())
    assert {(record.timestamp, record.timestamp_type) for record in records} == {(one.log_append_time_ms, 1)}


def test_an_idempotent_producer_writes_once_and_in_order(wire: Wire) -> None:
    topic, other = make_topic(wire), make_topic(wire)
    pid = settled(
        wire, "InitProducerId", transactional_id=None, transaction_timeout_ms=0, producer_id=-1, producer_epoch=-1
    ).producer_id

    def send(sequence: int, count: int = 1, epoch: int = 0, topic: str = topic) -> tuple[int, int]:
        return produce(wire, topic, batch_of(*[b"v"] * count, producer=(pid, epoch, sequence)))

    assert [send(0, 2), send(2), send(3)] == [(NONE, 0), (NONE, 2), (NONE, 3)]
    assert [send(0, 2), send(2), send(3)] == [(NONE, 0), (NONE, 2), (NONE, 3)], "sent again: written once"
    assert send(5)[0] == OUT_OF_ORDER
    assert send(3, 2)[0] == OUT_OF_ORDER
    assert [send(sequence) for sequence in range(4, 9)] == [(NONE, offset) for offset in range(4, 9)]
    assert send(4) == (NONE, 4), "the fifth last"
    assert send(3)[0] == OUT_OF_ORDER, "more than five batches are not remembered"
    assert send(9, epoch=1)[0] == OUT_OF_ORDER, "a new epoch begins with 0"
    assert send(0, epoch=1) == (NONE, 9)
    assert send(9)[0] == OLD_EPOCH
    assert send(7, topic=other) == (NONE, 0), "a producer of which nothing is known any more may begin anywhere"
    assert send((1 << 31) - 2, 3, epoch=2)[0] == OUT_OF_ORDER
    assert offset_at(wire, topic, -1) == (NONE, 10)


def test_sequences_wrap_around(wire: Wire) -> None:
    topic = make_topic(wire)
    top = (1 << 31) - 1
    producer = settled(
        wire, "InitProducerId", transactional_id=None, transaction_timeout_ms=0, producer_id=-1, producer_epoch=-1
    ).producer_id
    batches = [batch_of(b"", b"", producer=(producer, 0, sequence)) for sequence in (top - 1, 0)]
    assert [produce(wire, topic, batch) for batch in batches * 2] == [(NONE, 0), (NONE, 2), (NONE, 0), (NONE, 2)]
    across = [batch_of(b"", b"", b"", producer=(producer, 0, sequence)) for sequence in (2, top)]
    assert produce(wire, topic, across[1])[0] == OUT_OF_ORDER
    assert produce(wire, topic, across[0]) == (NONE, 4)


# -- fetching ---------------------------------------------------------------------------------------------------------


def values(part: Any) -> list[bytes]:
    records = MemoryRecords(bytes(part.records or b""))
    found = []
    while records.has_next():
        batch = records.next_batch()
        found += [] if batch.is_control_batch else [record.value for record in batch]
    return found


def test_offsets_that_are_not_there_are_out_of_range_on_both_ends(wire: Wire) -> None:
    topic = make_topic(wire)
    for index in range(3):
        produce(wire, topic, batch_of(b"%d" % index))
    assert codes(delete_records(wire, topic, 1)) == [NONE]
    assert [fetch(wire, topic, offset).error_code for offset in (0, 1, 3, 4, -1)] == [1, 0, 0, 1, 1]
    part = fetch(wire, topic, 1)
    assert (part.high_watermark, part.last_stable_offset, part.log_start_offset) == (3, 3, 1)
    assert values(part) == [b"1", b"2"]
    assert fetch(wire, topic, 0, partition=1).error_code == UNKNOWN_TOPIC
    assert fetch(wire, unique("topic"), 0).error_code == UNKNOWN_TOPIC


def test_a_fetch_waits_for_enough_bytes_and_a_message_wakes_it(dial: Dial) -> None:
    wire, producer = dial(), dial()
    topic = make_topic(wire)
    one = batch_of(b"value")
    wire.send("Fetch", **fetch_fields(topic, 0, max_wait_ms=10_000, min_bytes=len(one) + 1))
    produce(producer, topic, one)
    assert not wire.answered(), "one message is not enough"
    produce(producer, topic, one)
    before = now_ms()
    assert values(wire.receive().responses[0].partitions[0]) == [b"value"] * 2
    assert now_ms() - before < 5000


def test_a_fetch_that_has_waited_long_enough_is_answered_with_what_there_is(wire: Wire) -> None:
    topic = make_topic(wire)
    produce(wire, topic, batch_of(b"value"))
    before = now_ms()
    assert values(fetch(wire, topic, 0, max_wait_ms=300, min_bytes=1000)) == [b"value"]
    assert now_ms() - before >= 290


def test_an_error_of_one_partition_does_not_wait(wire: Wire) -> None:
    topic = make_topic(wire)
    fields = fetch_fields(topic, 0, max_wait_ms=10_000)
    parts = fields["topics"][0]["partitions"]
    parts.append({**parts[0], "fetch_offset": 99})
    fields["topics"].append({"topic": unique("topic"), "partitions": parts[:1]})
    before = now_ms()
    assert UNKNOWN_TOPIC in codes(wire.ask("Fetch", **fields))
    assert now_ms() - before < 5000


def test_a_batch_that_is_larger_than_the_limits_is_fetched_all_the_same_if_it_is_the_first(wire: Wire) -> None:
    topic = make_topic(wire, 2)
    for partition in (0, 1):
        produce(wire, topic, batch_of(b"x" * 1000), partition)
        produce(wire, topic, batch_of(b"y" * 1000), partition)
    assert values(fetch(wire, topic, 0, max_bytes=10, partition_max_bytes=10)) == [b"x" * 1000]
    assert values(fetch(wire, topic, 0, partition_max_bytes=1500)) == [b"x" * 1000]
    assert len(values(fetch(wire, topic, 0, partition_max_bytes=3000))) == 2
    fields = fetch_fields(topic, 0, partition_max_bytes=10)
    parts = fields["topics"][0]["partitions"]
    parts.append({**parts[0], "partition": 1})
    first, second = wire.ask("Fetch", **fields).responses[0].partitions
    assert sorted([len(values(first)), len(values(second))]) == [0, 1], "only of the first partition"


class Session:
    """A fetch session of two partitions (KIP-227)."""

    def __init__(self, wire: Wire) -> None:
        self.wire, self.topic, self.id, self.epoch = wire, make_topic(wire, 2), 0, 0
        for _ in range(2):  # who asks first may be told that a leader is still loading
            self.id = self.epoch = 0
            self.first = self.ask({0: 0, 1: 0})

    def ask(self, offsets: dict[int, int] | None = None, forget: Sequence[int] = (), **limits: Any) -> Any:
        """The answer to a request for these offsets, and for what was asked for before."""
        fields = fetch_fields(self.topic, 0, **limits)
        (topic,) = fields["topics"]
        (part,) = topic["partitions"]
        topic["partitions"] = [{**part, "partition": one, "fetch_offset": at} for one, at in (offsets or {}).items()]
        fields.update(session_id=self.id, session_epoch=self.epoch, topics=[topic] if offsets else [])
        fields["forgotten_topics_data"] = [{"topic": self.topic, "partitions": list(forget)}] if forget else []
        answer = self.wire.ask("Fetch", **fields)
        self.id, self.epoch = answer.session_id, self.epoch + 1
        return answer

    def news(self, *arguments: Any, **limits: Any) -> dict[int, list[bytes | None]]:
        answer = self.ask(*arguments, **limits)
        assert answer.error_code == 0
        return {part.partition_index: values(part) for topic in answer.responses for part in topic.partitions}


def test_a_fetch_session_says_only_what_is_new_and_is_told_only_what_has_changed(wire: Wire) -> None:
    session = Session(wire)
    assert session.id != 0
    assert [part.partition_index for part in session.first.responses[0].partitions] == [0, 1]
    assert session.news() == {}
    produce(wire, session.topic, batch_of(b"a"), 1)
    assert session.news() == {1: [b"a"]}
    assert session.news() == {1: [b"a"]}, "the consumer has not moved on"
    assert session.news({1: 1}) == {}
    produce(wire, session.topic, batch_of(b"b"), 0)
    produce(wire, session.topic, batch_of(b"b"), 1)
    assert session.news({}, [0]) == {1: [b"b"]}
    assert session.news({0: 0}) == {0: [b"b"], 1: [b"b"]}


def test_in_a_fetch_session_what_was_read_waits_for_the_others(wire: Wire) -> None:
    session = Session(wire)
    for partition in (0, 1):
        for value in (b"x", b"y"):
            produce(wire, session.topic, batch_of(value * 1000), partition)
    read = []
    offsets = {0: 0, 1: 0}
    for _ in range(4):
        found = session.news(dict(offsets), partition_max_bytes=10, max_bytes=10)
        ((partition, _),) = [(partition, records) for partition, records in found.items() if records]
        read.append(partition)
        offsets[partition] += 1
    assert read in ([0, 1, 0, 1], [1, 0, 1, 0])


def test_a_fetch_session_without_a_partition_ends(wire: Wire) -> None:
    session = Session(wire)
    answer = session.ask({}, [0, 1])
    assert (answer.error_code, answer.session_id, answer.responses) == (0, 0, [])


def test_a_fetch_session_that_is_not_known_or_has_gone_on_is_refused(wire: Wire) -> None:
    session = Session(wire)
    known = session.id
    session.epoch += 1
    assert session.ask().error_code == WRONG_SESSION_EPOCH
    session.id, session.epoch = known, 1
    assert session.ask().error_code == 0
    session.id, session.epoch = known ^ 1 << 20, 1
    assert session.ask().error_code == UNKNOWN_SESSION
    session.id, session.epoch = known, -1
    assert session.ask({0: 0}).session_id == 0, "the consumer ends it"
    session.id, session.epoch = known, 2
    assert session.ask().error_code == UNKNOWN_SESSION


def test_a_fetch_from_the_middle_of_a_batch_gets_the_whole_batch(wire: Wire) -> None:
    topic = make_topic(wire)
    produce(wire, topic, batch_of(b"0", b"1", b"2"))
    produce(wire, topic, batch_of(b"3"))
    assert values(fetch(wire, topic, 1)) == [b"0", b"1", b"2", b"3"]
    assert values(fetch(wire, topic, 3)) == [b"3"]


@pytest.mark.parametrize("compression", [0, 1], ids=["plain", "gzip"])
def test_offsets_by_time(wire: Wire, compression: int) -> None:
    topic = make_topic(wire)
    assert [offset_at(wire, topic, when) for when in (-1, -2, -3, 0)] == [(NONE, 0), (NONE, 0), (NONE, -1), (NONE, -1)]
    base = now_ms() - 10_000
    produce(
        wire, topic, batch_of(b"a" * 99, b"b", b"c", timestamps=[base, base + 20, base + 10], compression=compression)
    )
    produce(wire, topic, batch_of(b"d", b"e", timestamps=[base + 5, base + 30], compression=compression))
    produce(wire, topic, batch_of(b"f", timestamps=base + 30, compression=compression))
    expected = {base - 1: 0, base: 0, base + 1: 1, base + 20: 1, base + 21: 4, base + 30: 4, base + 31: -1}
    assert {when: offset_at(wire, topic, when) for when in expected} == {
        when: (NONE, offset) for when, offset in expected.items()
    }
    assert [offset_at(wire, topic, when) for when in (-1, -2, -3)] == [(NONE, 6), (NONE, 0), (NONE, 4)]
    assert offset_at(wire, topic, -3, version=6)[0] == UNSUPPORTED_VERSION
    assert offset_at(wire, topic, -4)[0] == UNSUPPORTED_VERSION
    assert codes(delete_records(wire, topic, 2)) == [NONE]
    assert [offset_at(wire, topic, when) for when in (-2, 0, base + 1)] == [(NONE, 2), (NONE, 2), (NONE, 2)]
    assert offset_at(wire, topic, -1, partition=1)[0] == UNKNOWN_TOPIC


# -- administration ---------------------------------------------------------------------------------------------------


def create(wire: Wire, name: str, partitions: int = 1, replicas: int = 1, dry: bool = False, **configs: str) -> int:
    given = [{"name": key.replace("_", "."), "value": value} for key, value in configs.items()]
    topic = {"name": name, "num_partitions": partitions, "replication_factor": replicas, "assignments": []}
    answer = wire.ask("CreateTopics", topics=[{**topic, "configs": given}], timeout_ms=10_000, validate_only=dry)
    return answer.topics[0].error_code


def delete_records(wire: Wire, topic: str, offset: int, partition: int = 0) -> Any:
    topics = [{"name": topic, "partitions": [{"partition_index": partition, "offset": offset}]}]
    return wire.ask("DeleteRecords", topics=topics, timeout_ms=10_000)


def partitions_of(wire: Wire, topic: str) -> int:
    answer = wire.ask("Metadata", topics=[{"name": topic}], allow_auto_topic_creation=False)
    return len(answer.topics[0].partitions)


def test_topics_that_cannot_be_created(wire: Wire) -> None:
    topic = make_topic(wire, name=unique("topic").replace("-", "."))
    assert create(wire, topic) == EXISTS
    assert create(wire, topic.replace(".", "_")) == INVALID_TOPIC, "'.' and '_' count as one"
    for name in ("", ".", "..", "a b", "ä", "x" * 250, "a/b", "a\n"):
        assert create(wire, name) == INVALID_TOPIC, name
    assert create(wire, unique("topic"), partitions=0) == INVALID_PARTITIONS
    assert create(wire, unique("topic"), partitions=-2) == INVALID_PARTITIONS
    assert create(wire, unique("topic"), replicas=3) == INVALID_REPLICATION
    assert create(wire, unique("topic"), replicas=0) == INVALID_REPLICATION
    assert create(wire, unique("topic"), no_such_config="1") == INVALID_CONFIG
    assert create(wire, unique("topic"), retention_bytes="many") == INVALID_CONFIG
    assert create(wire, unique("topic"), max_message_bytes="-5") == INVALID_CONFIG
    assert create(wire, unique("topic"), message_timestamp_type="Never") == INVALID_CONFIG
    tried = unique("topic")
    assert create(wire, tried, dry=True) == NONE
    assert partitions_of(wire, tried) == 0
    assert create(wire, tried, partitions=-1, replicas=-1) == NONE


def test_one_topic_twice_in_a_request_is_refused(wire: Wire) -> None:
    topic = {"name": unique("topic"), "num_partitions": 1, "replication_factor": 1, "assignments": [], "configs": []}
    answer = wire.ask("CreateTopics", topics=[topic, topic], timeout_ms=10_000)
    assert {one.error_code for one in answer.topics} == {INVALID_REQUEST}
    assert partitions_of(wire, topic["name"]) == 0


def test_partitions_can_be_added_and_not_taken_away(wire: Wire) -> None:
    topic = make_topic(wire, 2)

    def extend(count: int, name: str = topic, dry: bool = False) -> int:
        topics = [{"name": name, "count": count, "assignments": None}]
        return codes(wire.ask("CreatePartitions", topics=topics, timeout_ms=10_000, validate_only=dry))[0]

    assert extend(2) == extend(1) == extend(0) == INVALID_PARTITIONS
    assert extend(3, unique("topic")) == UNKNOWN_TOPIC
    assert extend(3, dry=True) == NONE
    assert partitions_of(wire, topic) == 2
    assert extend(4) == NONE
    wait_until(lambda: partitions_of(wire, topic) == 4, message="the new partitions are there")
    wait_until(lambda: produce(wire, topic, batch_of(b""), 3) == (NONE, 0), message="they can be written")


def test_a_topic_that_is_deleted_is_gone_also_for_a_fetch_that_waits_for_it(dial: Dial) -> None:
    wire, waiting = dial(), dial()
    topic = make_topic(wire)
    waiting.send("Fetch", **fetch_fields(topic, 0, max_wait_ms=10_000))
    answer = wire.ask("DeleteTopics", topic_names=[topic, unique("topic")], timeout_ms=10_000)
    assert {one.name == topic: one.error_code for one in answer.responses} == {True: NONE, False: UNKNOWN_TOPIC}
    before = now_ms()
    assert set(codes(waiting.receive())) & {UNKNOWN_TOPIC, 6}
    assert now_ms() - before < 5000
    wait_until(lambda: fetch(wire, topic, 0).error_code == UNKNOWN_TOPIC, message="it is gone")
    assert partitions_of(wire, topic) == 0
    assert make_topic(wire, name=topic)
    assert offset_at(wire, topic, -1) == (NONE, 0)


def test_records_can_be_deleted_up_to_an_offset(wire: Wire) -> None:
    topic = make_topic(wire)
    for _ in range(3):
        produce(wire, topic, batch_of(b"", b""))

    def delete(offset: int, partition: int = 0, name: str = topic) -> tuple[int, int]:
        (one,) = delete_records(wire, name, offset, partition).topics[0].partitions
        return one.error_code, one.low_watermark

    assert delete(7) == delete(-2) == (OUT_OF_RANGE, -1)
    assert delete(1, partition=1) == delete(1, name=unique("topic")) == (UNKNOWN_TOPIC, -1)
    assert delete(3) == (NONE, 3)
    assert delete(1) == (NONE, 3), "never back"
    assert offset_at(wire, topic, -2) == (NONE, 3)
    assert delete(-1) == (NONE, 6)
    assert offset_at(wire, topic, -2) == offset_at(wire, topic, -1) == (NONE, 6)
    assert produce(wire, topic, batch_of(b"")) == (NONE, 6)


def test_asking_for_a_topic_creates_it_only_where_the_client_wants_that(wire: Wire) -> None:
    def ask(name: str, create: bool) -> tuple[int, int]:
        (topic,) = wire.ask("Metadata", topics=[{"name": name}], allow_auto_topic_creation=create).topics
        return topic.error_code, len(topic.partitions)

    topic = unique("topic").replace("-", ".")
    assert ask(topic, False) == (UNKNOWN_TOPIC, 0)
    assert ask(topic, False) == (UNKNOWN_TOPIC, 0)
    assert ask("a b", False) == ask("a b", True) == (INVALID_TOPIC, 0)
    assert ask(topic, True) in [(UNKNOWN_TOPIC, 0), (5, 0), (5, 1)], "not there at once"
    wait_until(lambda: ask(topic, False) == (NONE, 1), message="it was created")
    twin = topic.replace(".", "_")
    assert ask(twin, False) == (UNKNOWN_TOPIC, 0)
    assert ask(twin, True)[0] in (UNKNOWN_TOPIC, INVALID_TOPIC)
    assert ask(twin, False) == (UNKNOWN_TOPIC, 0), "'.' and '_' count as one"
    names = [one.name for one in wire.ask("Metadata", topics=None).topics]
    assert topic in names
    assert wire.ask("Metadata", topics=[]).topics == []


# -- transactions -----------------------------------------------------------------------------------------------------


class Transactions:
    """One transactional producer, step by step; each step returns its error code."""

    def __init__(self, wire: Wire, name: str | None = None, timeout_ms: int = 60_000) -> None:
        self.wire, self.name, self.timeout_ms = wire, name or unique("transactions"), timeout_ms
        self.sequences: dict[tuple[str, int], int] = {}
        self.pid = self.epoch = -1

    def init(self, pid: int = -1, epoch: int = -1, version: int | None = None) -> int:
        fields = {"transactional_id": self.name, "transaction_timeout_ms": self.timeout_ms}
        answer = settled(self.wire, "InitProducerId", version, **fields, producer_id=pid, producer_epoch=epoch)
        if not answer.error_code:
            self.pid, self.epoch, self.sequences = answer.producer_id, answer.producer_epoch, {}
        return answer.error_code

    def add(self, *places: tuple[str, int], version: int | None = None) -> list[int]:
        fields = {
            "v3_and_below_transactional_id": self.name,
            "v3_and_below_producer_id": self.pid,
            "v3_and_below_producer_epoch": self.epoch,
            "v3_and_below_topics": [{"name": topic, "partitions": [partition]} for topic, partition in places],
        }
        return codes(settled(self.wire, "AddPartitionsToTxn", version, **fields))

    def send(self, topic: str, partition: int = 0, *values: bytes) -> int:
        values = values or (b"value",)
        sequence = self.sequences.get((topic, partition), 0)
        batch = batch_of(*values, producer=(self.pid, self.epoch, sequence), transactional=True)
        code, _ = produce(self.wire, topic, batch, partition, transaction=self.name)
        if not code:
            self.sequences[topic, partition] = sequence + len(values)
        return code

    def add_group(self, group: str) -> int:
        return codes(settled(self.wire, "AddOffsetsToTxn", **self._ids(), group_id=group))[0]

    def commit_offset(self, group: str, topic: str, offset: int, **more: Any) -> int:
        part = {"partition_index": 0, "committed_offset": offset, "committed_metadata": ""}
        topics = [{"name": topic, "partitions": [part]}]
        member = {"generation_id": -1, "member_id": "", "group_instance_id": None, **more}
        return codes(settled(self.wire, "TxnOffsetCommit", **self._ids(), group_id=group, **member, topics=topics))[0]

    def end(self, commit: bool, version: int | None = None) -> int:
        return settled(self.wire, "EndTxn", version, **self._ids(), committed=commit).error_code

    def _ids(self) -> dict[str, Any]:
        return {"transactional_id": self.name, "producer_id": self.pid, "producer_epoch": self.epoch}


def test_open_and_aborted_messages_are_not_read_with_read_committed(wire: Wire) -> None:
    topic = make_topic(wire)
    first, second = Transactions(wire), Transactions(wire)
    assert first.init() == second.init() == NONE
    assert first.add((topic, 0)) == second.add((topic, 0)) == [NONE]
    assert first.send(topic) == second.send(topic) == NONE
    assert produce(wire, topic, batch_of(b"plain")) == (NONE, 2)
    part = fetch(wire, topic, 0, read_committed=True)
    assert (part.high_watermark, part.last_stable_offset, values(part)) == (3, 0, [])
    assert len(values(fetch(wire, topic, 0))) == 3
    assert offset_at(wire, topic, -1, read_committed=True) == (NONE, 0)
    assert offset_at(wire, topic, -1) == (NONE, 3)
    assert first.end(commit=False) == NONE
    wait_until(lambda: offset_at(wire, topic, -1, read_committed=True) == (NONE, 1), message="the abort is written")
    part = fetch(wire, topic, 0, read_committed=True)
    assert [(one.producer_id, one.first_offset) for one in part.aborted_transactions] == [(first.pid, 0)]
    assert (part.last_stable_offset, len(values(part))) == (1, 1), "the client leaves out what was aborted"
    assert second.end(commit=True) == NONE
    wait_until(lambda: offset_at(wire, topic, -1, read_committed=True) == (NONE, 5), message="the commit is written")
    part = fetch(wire, topic, 0, read_committed=True)
    assert [one.producer_id for one in part.aborted_transactions] == [first.pid]
    assert len(values(part)) == 3
    assert fetch(wire, topic, 4, read_committed=True).aborted_transactions == []
    assert not fetch(wire, topic, 0).aborted_transactions


def test_markers_count_when_offsets_are_asked_for_by_time(wire: Wire) -> None:
    topic = make_topic(wire)
    transactions = Transactions(wire)
    transactions.init()
    transactions.add((topic, 0))
    before = now_ms()
    batch = batch_of(
        b"", timestamps=before - 10_000, producer=(transactions.pid, transactions.epoch, 0), transactional=True
    )
    assert produce(wire, topic, batch, transaction=transactions.name) == (NONE, 0)
    assert transactions.end(commit=True) == NONE
    wait_until(lambda: offset_at(wire, topic, -1, read_committed=True) == (NONE, 2), message="the commit is written")
    assert [offset_at(wire, topic, when) for when in (-3, before - 5000, before - 20_000)] == [
        (NONE, 1),
        (NONE, 1),
        (NONE, 0),
    ]


def test_records_of_an_open_transaction_can_be_deleted(wire: Wire) -> None:
    topic = make_topic(wire)
    transactions = Transactions(wire)
    transactions.init()
    transactions.add((topic, 0))
    transactions.send(topic)
    assert produce(wire, topic, batch_of(b"plain")) == (NONE, 1)
    assert codes(delete_records(wire, topic, 2)) == [NONE]
    assert offset_at(wire, topic, -1, read_committed=True) == (NONE, 2)
    assert transactions.end(commit=False) == NONE
    wait_until(lambda: offset_at(wire, topic, -1, read_committed=True) == (NONE, 3), message="the abort is written")


def test_a_transactional_batch_needs_its_partition_in_a_transaction(wire: Wire) -> None:
    topic = make_topic(wire, 2)
    transactions = Transactions(wire)
    transactions.init()
    assert transactions.send(topic) == INVALID_TXN_STATE, "nothing is open"
    assert transactions.add((topic, 0)) == [NONE]
    assert transactions.send(topic, 1) == INVALID_TXN_STATE, "another partition"
    assert transactions.send(topic, 0) == NONE
    batch = batch_of(b"", producer=(transactions.pid, transactions.epoch, 1), transactional=True)
    assert produce(wire, topic, batch)[0] == NOT_AUTHORIZED_TXN, "the request does not say which"
    assert transactions.end(commit=True) == NONE
    wait_until(lambda: offset_at(wire, topic, -1, read_committed=True) == (NONE, 2), message="the commit is written")
    assert transactions.send(topic, 0) == INVALID_TXN_STATE, "it has ended"


def test_the_same_id_again_fences_its_former_producer_and_aborts_its_transaction(wire: Wire) -> None:
    topic = make_topic(wire)
    old = Transactions(wire)
    assert old.init() == NONE
    assert (old.add((topic, 0)), old.send(topic)) == ([NONE], NONE)
    new = Transactions(wire, old.name)
    assert new.init() == NONE
    assert new.pid == old.pid
    assert new.epoch > old.epoch
    assert offset_at(wire, topic, -1, read_committed=True) == (NONE, 2), "the message and the marker"
    assert old.send(topic) == OLD_EPOCH
    assert old.add((topic, 0)) == [FENCED]
    assert old.add((topic, 0), version=1) == [OLD_EPOCH]
    assert old.add_group(unique("group")) == FENCED
    assert old.end(commit=True) == FENCED
    assert old.end(commit=True, version=1) == OLD_EPOCH
    assert Transactions(wire, old.name).init(old.pid, old.epoch) == FENCED
    assert Transactions(wire, old.name).init(old.pid, old.epoch, version=3) == OLD_EPOCH
    assert (new.add((topic, 0)), new.send(topic), new.end(commit=True)) == ([NONE], NONE, NONE)


def test_questions_that_the_transaction_coordinator_refuses(wire: Wire) -> None:
    topic = make_topic(wire)
    one = Transactions(wire)
    assert Transactions(wire, one.name, timeout_ms=0).init() == INVALID_TXN_TIMEOUT
    assert Transactions(wire, one.name, timeout_ms=900_001).init() == INVALID_TXN_TIMEOUT
    nameless = Transactions(wire)
    nameless.name = ""
    assert nameless.init() == INVALID_REQUEST
    one.pid, one.epoch = 4711, 0
    assert one.add((topic, 0)) == [UNMAPPED_PRODUCER]
    assert one.end(commit=True) == one.add_group(unique("group")) == UNMAPPED_PRODUCER
    assert one.init() == NONE
    assert one.end(commit=True) == INVALID_TXN_STATE, "nothing is open"
    assert one.end(commit=False) == INVALID_TXN_STATE
    assert sorted(one.add((topic, 0), (topic, 1))) == [UNKNOWN_TOPIC, NOT_ATTEMPTED]
    assert one.end(commit=True) == INVALID_TXN_STATE, "nothing was added"
    assert one.add((topic, 0)) == one.add((topic, 0)) == [NONE]
    assert one.end(commit=True) == one.end(commit=True) == NONE, "again, because the answer was lost"
    assert one.end(commit=False) == INVALID_TXN_STATE, "it was committed"
    epoch = one.epoch
    assert one.init(one.pid, one.epoch) == NONE
    assert one.epoch > epoch
    assert one.end(commit=True) == INVALID_TXN_STATE, "nothing is open"
    pid, one.pid = one.pid, 4711
    assert one.add((topic, 0)) == [UNMAPPED_PRODUCER]
    assert Transactions(wire, one.name).init(4711, one.epoch) in (FENCED, UNMAPPED_PRODUCER)
    one.pid, one.epoch = pid, one.epoch + 1
    assert one.add((topic, 0)) == [FENCED]


def test_offsets_of_a_transaction_are_committed_with_it_or_not_at_all(dial: Dial) -> None:
    wire = dial()
    topic = make_topic(wire)
    transactions, group = Transactions(wire), GroupMember(wire, unique("group"))
    transactions.init()
    assert group.commit(topic, 1) == NONE
    assert transactions.commit_offset(group.group, topic, 2) == INVALID_TXN_STATE, "the group was not added"
    assert transactions.add_group(group.group) == NONE
    assert transactions.commit_offset(group.group, topic, 3) == NONE
    assert transactions.commit_offset(group.group, unique("topic"), 3) == UNKNOWN_TOPIC
    topics = [{"name": topic, "partition_indexes": [0]}]
    unstable = wire.ask("OffsetFetch", group_id=group.group, topics=topics, require_stable=True)
    assert codes(unstable) == [NONE, UNSTABLE_OFFSET]
    assert group.committed(topic) == 1
    assert transactions.end(commit=False) == NONE
    wait_until(
        lambda: codes(wire.ask("OffsetFetch", group_id=group.group, topics=topics, require_stable=True)) == [0, 0]
    )
    assert group.committed(topic) == 1
    assert (transactions.add_group(group.group), transactions.commit_offset(group.group, topic, 5)) == (NONE, NONE)
    assert transactions.end(commit=True) == NONE
    wait_until(lambda: group.committed(topic) == 5, message="the commit is done")


def test_offsets_of_a_transaction_need_a_membership_if_they_claim_one(dial: Dial) -> None:
    wire = dial()
    topic = make_topic(wire)
    transactions, member = Transactions(wire), GroupMember(dial(), unique("group"))
    member.enter()
    transactions.init()
    assert transactions.add_group(member.group) == NONE

    def commit(generation: int, member_id: str) -> int:
        return transactions.commit_offset(member.group, topic, 1, generation_id=generation, member_id=member_id)

    assert commit(1, member.id) == NONE, "also while the assignment is awaited"
    member.sync({member.id: b""})
    assert commit(1, member.id) == NONE
    assert commit(0, member.id) == commit(2, member.id) == commit(-1, member.id) == ILLEGAL_GENERATION
    assert commit(1, "stranger") == commit(1, "") == UNKNOWN_MEMBER
    assert commit(-1, "") == NONE, "it claims none"
    assert transactions.end(commit=False) == NONE


def test_a_transaction_that_is_open_for_too_long_is_aborted_and_its_producer_is_fenced(wire: Wire) -> None:
    topic = make_topic(wire)
    transactions = Transactions(wire, timeout_ms=200)
    transactions.init()
    assert (transactions.add((topic, 0)), transactions.send(topic)) == ([NONE], NONE)
    wait_until(lambda: offset_at(wire, topic, -1, read_committed=True) == (NONE, 2), 30, "it is aborted")
    assert fetch(wire, topic, 0, read_committed=True).aborted_transactions[0].producer_id == transactions.pid
    assert transactions.end(commit=True) == FENCED
    assert transactions.send(topic) == OLD_EPOCH
    assert transactions.init() == NONE


def test_a_transaction_outlives_a_partition_that_took_part_in_it(wire: Wire) -> None:
    topic, other = make_topic(wire, 2), make_topic(wire)
    transactions = Transactions(wire, timeout_ms=30_000)
    transactions.init()
    assert transactions.add((topic, 1), (other, 0)) == [NONE, NONE]
    assert transactions.send(topic, 1) == transactions.send(other) == NONE
    assert codes(wire.ask("DeleteTopics", topic_names=[topic], timeout_ms=10_000)) == [NONE]
    wait_until(lambda: partitions_of(wire, topic) == 0, message="the topic is gone")
    make_topic(wire, 1, name=topic)
    assert transactions.end(commit=True) == NONE
    wait_until(lambda: offset_at(wire, other, -1, read_committed=True) == (NONE, 2), message="the commit is written")
