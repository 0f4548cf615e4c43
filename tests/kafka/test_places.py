"""Questions about offsets: each partition is answered by itself, and nobody waits for the slowest leader."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import pytest
from confluent_kafka import Producer
from kafka.future import Future
from support.member import Member, commits
from support.observer import Observer, wait_until

from karafka_lite.client import offsets
from karafka_lite.core.options import Timestamp
from karafka_lite.core.starts import Note, Place

AWAY = 99  # a broker that is listed, and never answers


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offsets, "WAIT_MS", 200)
    monkeypatch.setattr(offsets, "REQUEST_MS", 700)


def altered(member: Member, name: str, alter: Callable[[Any], None]) -> None:
    """``alter`` each answer to requests of that name."""
    manager = member.consumer._manager
    send = manager.send

    def sending(request: Any, **options: Any) -> Any:
        sent = send(request, **options)
        if type(request).__name__ != name:
            return sent
        answer = Future()

        def answered(response: Any) -> None:
            alter(response)
            answer.success(response)

        sent.add_callback(answered)
        sent.add_errback(answer.failure)
        return answer

    manager.send = sending


def places_of(member: Member, tps: list[tuple[str, int]]) -> dict[tuple[str, int], Any]:
    """Or why a place is not known; what the coordinator answers late comes with a later question."""

    def answers() -> dict[tuple[str, int], Any] | None:
        found = dict(member.client._offsets.places(tps))
        return None if "no answer from the group's coordinator" in found.values() else found

    return wait_until(answers, message="the coordinator answers")


def lead_by(member: Member, broker: int, *partitions: int) -> None:
    """From now on ``broker`` leads these partitions; it takes requests, and does not answer."""
    cluster, manager = member.consumer._cluster, member.consumer._manager
    leader, send = cluster.leader_for_partition, manager.send
    cluster.leader_for_partition = lambda tp: broker if tp.partition in partitions else leader(tp)
    manager.send = lambda request, node_id=None, **options: (
        Future() if node_id == broker else send(request, node_id=node_id, **options)
    )


def test_a_place_has_the_ends_of_the_log_the_commit_and_the_topic(kafka: Observer) -> None:
    topic = kafka.topic(2)
    kafka.produce(topic, range(9), 0)
    kafka.truncate(topic, 0, 4)
    with Member(kafka, topic, auto_offset_reset="latest") as member:
        member.until_assigned()
        (first, second) = places_of(member, [(topic, 0), (topic, 1)]).values()
        assert isinstance(first, Place)
        assert isinstance(second, Place)
        assert len(first.topic_id) == 22
        assert first == Place(4, 9, 9, None, Note(), first.topic_id, 2)
        assert second == Place(0, 0, 0, None, Note(), first.topic_id, 2)
        note = Note(first.topic_id, 2)
        assert member.client.commit(commits({(topic, 0): 7}, note), member.generation) == {}
        assert places_of(member, [(topic, 0)]) == {(topic, 0): first._replace(committed=7, note=note, siblings=(note,))}
        (second,) = places_of(member, [(topic, 1)]).values()
        assert second[-1] == (note,), "what is committed for the others tells whether it is a new one"


def test_a_leader_that_does_not_answer_holds_up_its_own_partitions_only(kafka: Observer, hurried: None) -> None:
    topic = kafka.topic(3)
    with Member(kafka, topic) as member:
        member.until_assigned()
        tps = [(topic, partition) for partition in range(3)]
        lead_by(member, AWAY, 1)
        answers = places_of(member, tps)
        assert [isinstance(answers[tp], Place) for tp in tps] == [True, False, True]
        assert answers[tps[1]] == f"no answer from its leader, broker {AWAY}"
        late = wait_until(lambda: f"{places_of(member, [tps[1]])[tps[1]]}", message="an end")
        assert "broker 99" in late
        lead_by(member, member.consumer._cluster.leader_for_partition(offsets.KafkaTP(*tps[0])), 1)
        del member.consumer._manager.send
        wait_until(lambda: isinstance(places_of(member, [tps[1]])[tps[1]], Place), message="it answers again")


@pytest.mark.parametrize("code", [3, 6, 43, 74, 78])
def test_an_error_of_one_partition_is_not_known_yet_and_the_others_are(kafka: Observer, code: int) -> None:
    topic = kafka.topic(2)
    with Member(kafka, topic) as member:
        member.until_assigned()

        def refuse(response: Any) -> None:
            for one in response.topics[0].partitions:
                one.error_code = code if one.partition_index == 1 else one.error_code

        altered(member, "ListOffsetsRequest", refuse)
        answers = places_of(member, [(topic, 0), (topic, 1)])
        assert isinstance(answers[topic, 0], Place)
        assert "Error" in str(answers[topic, 1])
        assert member.client.offset_of((topic, 1), "latest") is None
        assert member.client.offset_of((topic, 0), "latest") == 0
        del member.consumer._manager.send
        assert isinstance(places_of(member, [(topic, 1)])[topic, 1], Place)


@pytest.mark.parametrize("code", [3, 88])
def test_a_commit_that_cannot_be_asked_for_now_is_not_taken_for_none(kafka: Observer, code: int) -> None:
    topic = kafka.topic(2)
    with Member(kafka, topic) as member:
        member.until_assigned()
        assert member.commit({(topic, 0): 0, (topic, 1): 0}) is None

        def refuse(response: Any) -> None:
            for one in response.topics[0].partitions:
                if one.partition_index == 1:
                    one.error_code, one.committed_offset = code, -1

        altered(member, "OffsetFetchRequest", refuse)
        answers = places_of(member, [(topic, 0), (topic, 1)])
        assert isinstance(answers[topic, 1], str)
        del member.consumer._manager.send
        answers = places_of(member, [(topic, 0), (topic, 1)])
        assert [place.committed for place in answers.values()] == [0, 0]  # type: ignore[union-attr]


def test_a_commit_that_is_refused_for_one_partition_counts_for_the_others(kafka: Observer) -> None:
    topic, gone = kafka.topic(), kafka.name("gone")
    with Member(kafka, topic) as member:
        member.until_assigned()
        refusals = member.client.commit(commits({(gone, 0): 1, (topic, 0): 0, (topic, 7): 1}), member.generation)
        assert {tp: refusal.lasting for tp, refusal in refusals.items()} == {(gone, 0): "gone", (topic, 7): "gone"}
        assert kafka.committed(member.group, topic) == 0


def test_what_was_marked_in_a_topic_of_another_id_is_not_sent(kafka: Observer) -> None:
    topic = kafka.topic()
    with Member(kafka, topic) as member:
        member.until_assigned()
        member.poll()
        refusals = member.client.commit(commits({(topic, 0): 3}, Note("x" * 22, 1)), member.generation)
        assert refusals[topic, 0].lasting == "gone"
        assert kafka.committed(member.group, topic) is None


def test_every_target_is_somewhere(kafka: Observer) -> None:
    topic = kafka.topic()
    kafka.produce(topic, range(6), timestamps=[1_700_000_000_000 + ms for ms in range(6)])
    kafka.truncate(topic, 0, 2)
    targets: list[tuple[Any, int]] = [
        ("earliest", 2),
        ("latest", 6),
        (Timestamp(0), 2),
        (Timestamp(1_700_000_000_003), 3),
        (Timestamp(1_700_000_000_006), 6),
        (Timestamp(-1), 2),
        (Timestamp(-62_135_596_800_000), 2),  # the year 1
        (Timestamp(1 << 63), 6),
        (Timestamp(int(datetime.now(timezone.utc).timestamp() * 1000) + 10_000_000), 6),
    ]
    with Member(kafka, topic) as member:
        member.until_assigned()
        assert [member.client.offset_of((topic, 0), target) for target, _ in targets] == [at for _, at in targets]


def test_with_read_committed_the_latest_offset_is_before_an_open_transaction_and_the_end_past_it(
    kafka: Observer,
) -> None:
    topic = kafka.topic()
    kafka.produce(topic, range(3))
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": kafka.name("sender")})
    producer.init_transactions()
    producer.begin_transaction()
    producer.produce(topic, b"open")
    producer.flush()
    with Member(kafka, topic, isolation_level="read_committed", auto_offset_reset="latest") as member:
        member.until_assigned()
        (place,) = places_of(member, [(topic, 0)]).values()
    producer.abort_transaction()
    assert isinstance(place, Place)
    assert place[:3] == (0, 4, 3)
