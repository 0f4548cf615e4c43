"""The traps of kafka-python's transactional producer: with the cure, and without."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from kafka import KafkaProducer, OffsetAndMetadata
from kafka import TopicPartition as KafkaTP
from kafka import errors as kafka_errors
from kafka.structs import ConsumerGroupMetadata
from support.observer import BreakableKafka, Observer, wait_until

from karafka_lite.client import transactions
from karafka_lite.client.offsets import Stamped
from karafka_lite.client.transactions import Transactions, Writer
from karafka_lite.core.answers import Commit, Committed, Refused, Undecided
from karafka_lite.core.options import Options
from karafka_lite.core.ownership import Ownership
from karafka_lite.core.sends import Held, Mark
from karafka_lite.messages import Addressed

STALE = 7


class Client:
    """In the place of a consumer: any offsets, of a member of nothing, or of one that does not exist."""

    def __init__(self, group: str) -> None:
        self.group = group

    def stamped(self, commits: Any, generation: int) -> Stamped:
        offsets = {KafkaTP(*one.ownership.tp): OffsetAndMetadata(one.offset, "", -1) for one in commits}
        stale = (STALE, "nobody") if generation == STALE else (-1, "")
        return Stamped(ConsumerGroupMetadata(self.group, *stale), offsets, {})


def sent(topic: str, *values: str, partition: int | None = None) -> Held:
    return Held(Mark(None, 0, 0, []), [Addressed(topic, value.encode(), partition=partition) for value in values])


def commit(topic: str, partition: int, offset: int, *sends: Held) -> Commit:
    return Commit(Ownership((topic, partition), Options()), offset, 1, sends)


@contextmanager
def made(kafka: Observer, group: str = "", **settings: Any) -> Iterator[tuple[Transactions, Client]]:
    group = group or kafka.group()
    of_group = Transactions(group, kafka.bootstrap_servers.split(","), settings, lambda event: None)
    try:
        yield of_group, Client(group)
    finally:
        of_group.close()


def values(kafka: Observer, topic: str) -> list[str]:
    return [(record.value() or b"").decode() for record in kafka.records(topic)]


def test_a_transaction_says_where_its_messages_are(kafka: Observer) -> None:
    topic, out = kafka.topic(), kafka.topic(2)
    with made(kafka) as (of_group, client):
        for number in range(3):
            one, two = sent(out, f"{number}a", f"{number}b", partition=0), sent(out, f"{number}c", partition=1)
            ended = of_group.commit(client, [commit(topic, 0, number + 1, one, two)], 0)
            assert isinstance(ended, Committed)
            # The answer is there before the end is in all partitions.
            wait_until(lambda n=number: len(kafka.records(out)) == 3 * (n + 1))
            places = [record.offset() for record in kafka.records(out) if str(number) in str(record.value())]
            told = {held: list(receipts) for held, receipts in ended.receipts.items()}
            assert told == {one: [(0, places[0]), (0, places[1])], two: [(1, places[2])]}
            wait_until(lambda n=number: kafka.committed(client.group, topic) == n + 1)


def test_offsets_without_a_message_are_committed_in_a_transaction_too(kafka: Observer) -> None:
    topic = kafka.topic()
    with made(kafka) as (of_group, client):
        ended = of_group.commit(client, [commit(topic, 0, 3)], 0)
        assert ended == Committed({}, {})
        wait_until(lambda: kafka.committed(client.group, topic) == 3)


def test_offsets_of_a_transaction_that_was_aborted_are_not_committed_with_the_next_one(kafka: Observer) -> None:
    topic, out = kafka.topic(2), kafka.topic()
    with made(kafka) as (of_group, client):
        failed = of_group.commit(client, [commit(topic, 0, 77, sent(out, "never"))], STALE)
        assert isinstance(failed, Committed)
        assert (topic, 0) in failed.refusals
        ended = of_group.commit(client, [commit(topic, 1, 5, sent(out, "of the other"))], 0)
        assert isinstance(ended, Committed)
        assert not ended.refusals
        wait_until(lambda: [kafka.committed(client.group, topic, number) for number in (0, 1)] == [None, 5])
    wait_until(lambda: values(kafka, out) == ["of the other"])


def test_without_the_cure_they_are_as_kafka_python_remembers_them(kafka: Observer) -> None:
    topic, out, group = kafka.topic(2), kafka.topic(), kafka.group()
    producer = KafkaProducer(bootstrap_servers=kafka.bootstrap_servers, transactional_id=kafka.name("id"))
    try:
        producer.init_transactions()
        producer.begin_transaction()
        producer.send(out, b"never")
        with pytest.raises(kafka_errors.KafkaError):
            producer.send_offsets_to_transaction(
                {KafkaTP(topic, 0): OffsetAndMetadata(77, "", -1)}, ConsumerGroupMetadata(group, STALE, "nobody")
            )
        producer.abort_transaction()
        producer.begin_transaction()
        producer.send_offsets_to_transaction({KafkaTP(topic, 1): OffsetAndMetadata(5, "", -1)}, group)
        producer.commit_transaction()
    finally:
        producer.close()
    wait_until(lambda: [kafka.committed(group, topic, number) for number in (0, 1)] == [77, 5])


LATE = [
    f"{number} late " + "x" * 100 for number in range(12)
]  # with SMALL_BATCHES more batches than may be on their way
SMALL_BATCHES = {"batch_size": 400}
SHORT_MS = 300  # how long a transaction may be open; the brokers look every 500 ms


def test_messages_of_a_transaction_that_is_dead_do_not_leave_with_the_next_one(
    kafka: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic, out = kafka.topic(2), kafka.topic()
    monkeypatch.setitem(transactions.OWN, "transaction_timeout_ms", SHORT_MS)
    with made(kafka, **SMALL_BATCHES) as (of_group, client):
        of_group.check()
        writer: Any = of_group._writer
        put = writer._put

        def dead_amid_it(ready: Any) -> Any:
            places = put(ready[:1])
            writer.hand_over()
            wait_until(lambda: kafka.end_offset(out) == 2, message="the brokers have aborted it")
            return places + put(ready[1:])

        monkeypatch.setattr(writer, "_put", dead_amid_it)
        failed = of_group.commit(client, [commit(topic, 0, 77, sent(out, "in time", *LATE))], 0)
        assert isinstance(failed, Committed)
        assert failed.refusals
        ended = of_group.commit(client, [commit(topic, 1, 5, sent(out, "the only one of the next"))], 0)
        assert isinstance(ended, Committed)
        assert not ended.refusals
    wait_until(lambda: values(kafka, out) == ["the only one of the next"])
    wait_until(lambda: [kafka.committed(client.group, topic, number) for number in (0, 1)] == [None, 5])


@pytest.mark.apache_only("the embedded broker refuses a new epoch to whose transaction has timed out")
def test_without_the_cure_they_leave_with_the_next_one_of_the_same_producer(kafka: Observer) -> None:
    out = kafka.topic()
    producer: Any = KafkaProducer(
        bootstrap_servers=kafka.bootstrap_servers,
        transactional_id=kafka.name("id"),
        transaction_timeout_ms=SHORT_MS,
        **SMALL_BATCHES,
    )
    try:
        producer.init_transactions()
        producer.begin_transaction()
        producer.send(out, b"in time").get(10)
        wait_until(lambda: kafka.end_offset(out) == 2, message="the brokers have aborted it")
        with standing_still(producer, out):
            futures = [producer.send(out, text.encode()) for text in LATE]
        with pytest.raises(kafka_errors.KafkaError):
            futures[0].get(10)
        wait_until(lambda: producer._transaction_manager._current_state.name == "READY")
        producer.begin_transaction()
        producer.send(out, b"the only one of the next")
        producer.commit_transaction()
    finally:
        producer.close()
    wait_until(lambda: values(kafka, out)[-1:] == ["the only one of the next"])
    late = values(kafka, out)[:-1]
    assert late
    assert late == LATE[-len(late) :]


@contextmanager
def standing_still(producer: Any, topic: str) -> Iterator[None]:
    """Nothing leaves for partition 0 of ``topic`` meanwhile."""
    muted = producer._accumulator.muted
    muted.add(KafkaTP(topic, 0))
    try:
        yield
    finally:
        muted.discard(KafkaTP(topic, 0))
        producer._sender.wakeup()


def test_a_message_that_was_refused_is_named_and_what_is_sent_beside_it_is_not_written(kafka: Observer) -> None:
    topic, out, small = kafka.topic(2), kafka.topic(), kafka.topic(max_message_bytes=1000)
    with made(kafka) as (of_group, client):
        good = [sent(small, *(f"{n}.{m}" for m in range(20))) for n in range(3)]
        bad = sent(small, "x" * 3000)
        sends = [good[0], good[1], bad, good[2]]
        ended = of_group.commit(client, [commit(topic, 0, 5, sent(out, "beside")), commit(topic, 1, 5, *sends)], 0)
        assert isinstance(ended, Refused)
        assert (ended.held, ended.error.too_large) == (bad, True)
        again = of_group.commit(client, [commit(topic, 0, 5, sent(out, "beside"))], 0)
        assert isinstance(again, Committed)
    wait_until(lambda: (values(kafka, small), values(kafka, out)) == ([], ["beside"]))
    assert kafka.committed(client.group, topic, 1) is None


def test_one_that_expires_has_no_receipt_and_so_nothing_is_committed(
    kafka: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic, out = kafka.topic(), kafka.topic(2)
    with made(kafka) as (of_group, client):
        of_group.check()
        writer: Any = of_group._writer
        put = writer._put

        def expiring(ready: Any) -> Any:
            places = put(ready)
            writer._accumulator.hand_over()
            lost = places[1][0]
            assert writer._producer._accumulator._batches[lost.topic_partition].popleft() is lost
            writer._producer._accumulator._incomplete.remove(lost)
            writer.answered(lost, -1, lambda _: kafka_errors.KafkaTimeoutError("expired"))
            return places

        monkeypatch.setattr(writer, "_put", expiring)
        sends = [sent(out, "kept", partition=0), sent(out, "expired", partition=1)]
        failed = of_group.commit(client, [commit(topic, 0, 5, *sends)], 0)
        assert isinstance(failed, Committed)
        assert "expired" in str(failed.refusals[topic, 0].error)
        assert (kafka.committed(client.group, topic), values(kafka, out)) == (None, [])
        assert isinstance(of_group.commit(client, [commit(topic, 0, 5, *sends)], 0), Committed)
    wait_until(lambda: sorted(values(kafka, out)) == ["expired", "kept"])


def test_without_the_cure_the_transaction_is_committed_without_the_message_that_has_expired(kafka: Observer) -> None:
    out = kafka.topic()
    producer: Any = KafkaProducer(bootstrap_servers=kafka.bootstrap_servers, transactional_id=kafka.name("id"))
    try:
        producer.init_transactions()
        producer.begin_transaction()
        producer.send(out, b"kept").get(10)
        with standing_still(producer, out):
            expired = producer.send(out, b"expired")
            (batch,) = producer._accumulator._batches[KafkaTP(out, 0)]
            batch.created -= producer.config["delivery_timeout_ms"] / 1000
            producer._sender.wakeup()
            with pytest.raises(kafka_errors.KafkaTimeoutError, match="Expiring 1 record"):
                expired.get(10)
        producer.commit_transaction()
    finally:
        producer.close()
    wait_until(lambda: values(kafka, out) == ["kept"])


@pytest.mark.parametrize("when", ["no answer", "an error"])
def test_an_end_without_a_good_answer_is_undecided_and_the_next_producer_has_the_brokers_decide(
    kafka: Observer, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    topic, out = kafka.topic(), kafka.topic()
    monkeypatch.setattr(transactions, "END_S", 0.2)
    with made(kafka) as (of_group, client):
        of_group.check()
        manager: Any = of_group._writer and of_group._writer._manager
        begin_commit = manager.begin_commit

        class Lost:
            def wait(self, timeout_ms: float) -> bool:
                if when == "an error":
                    raise kafka_errors.ProducerFencedError
                return False

        def begin() -> Any:
            if when == "an error":
                end = begin_commit()
                of_group._writer._producer._sender.wakeup()  # type: ignore[union-attr]
                end.wait(5000)  # it is committed
            return Lost()

        monkeypatch.setattr(manager, "begin_commit", begin)
        assert isinstance(of_group.commit(client, [commit(topic, 0, 5, sent(out, "one"))], 0), Undecided)
        expected = (5, ["one"]) if when == "an error" else (None, [])
        wait_until(lambda: (kafka.committed(client.group, topic), values(kafka, out)) == expected)
        of_group.commit(client, [commit(topic, 0, 6, sent(out, "two"))], 0)
        wait_until(lambda: values(kafka, out) == [*expected[1], "two"], message="nothing is open before it")


def test_what_is_left_open_is_ended_by_the_next_producer_so_that_readers_do_not_stand_still(
    kafka: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic, out = kafka.topic(), kafka.topic()
    with made(kafka) as (of_group, client):
        of_group.check()
        writer: Any = of_group._writer

        def dies() -> Any:
            raise RuntimeError("amid a transaction")

        monkeypatch.setattr(writer._manager, "begin_commit", dies)
        failed = of_group.commit(client, [commit(topic, 0, 5, sent(out, "never"))], 0)
        assert isinstance(failed, Committed)
        assert failed.refusals
        kafka.produce(out, ["after it"])
        wait_until(lambda: values(kafka, out) == ["after it"], timeout=3)


@pytest.mark.long
def test_of_a_coordinator_that_is_killed_amid_a_commit_there_is_an_answer_in_time(
    cluster: BreakableKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic, out = cluster.topic(replicas=3), cluster.topic(replicas=3)
    monkeypatch.setattr(transactions, "END_S", 3.0)
    with made(cluster) as (of_group, client):
        of_group.check()
        writer: Any = of_group._writer
        begin_commit = writer._manager.begin_commit

        def killed() -> Any:
            cluster.kill(int(str(writer._manager._transaction_coordinator).rpartition("-")[2]))
            return begin_commit()

        monkeypatch.setattr(writer._manager, "begin_commit", killed)
        began = time.monotonic()
        ended = of_group.commit(client, [commit(topic, 0, 5, sent(out, "one"))], 0)
        assert time.monotonic() - began < 15
        if isinstance(ended, Undecided):
            wait_until(lambda: again(of_group, client, topic, out), timeout=30)
    wait_until(lambda: values(cluster, out)[-1:] == ["two" if isinstance(ended, Undecided) else "one"])


def again(of_group: Transactions, client: Client, topic: str, out: str) -> bool:
    ended = of_group.commit(client, [commit(topic, 0, 6, sent(out, "two"))], 0)
    return isinstance(ended, Committed) and not ended.refusals


def test_a_start_without_an_answer_to_its_check_goes_on(kafka: Observer, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_answer(writer: Writer) -> None:
        raise kafka_errors.KafkaTimeoutError("no transactional state in time")

    topic, out = kafka.topic(), kafka.topic()
    with made(kafka) as (of_group, client):
        with monkeypatch.context() as patch:
            patch.setattr(Writer, "connect", no_answer)
            of_group.check()
        assert isinstance(of_group.commit(client, [commit(topic, 0, 1, sent(out, "one"))], 0), Committed)
    wait_until(lambda: values(kafka, out) == ["one"])
