"""What is fetched, and at what cost: no partition waits for idle ones, and idle ones cost next to nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from kafka.consumer.fetcher import FetchMetadata
from kafka.errors import TopicAuthorizationFailedError
from support.member import PATIENCE_S, Member, plan, polling
from support.observer import BreakableKafka, Observer, wait_until

from karafka_lite.errors import FetchError

PATIENCE_MS = int(PATIENCE_S * 1000)
A_WHILE_S = 0.5  # for what must not happen


# -- a busy partition beside idle ones --------------------------------------------------------------------------------


class Fetches:
    """How long the fetches of a member of two partitions wait for news, in ms: those that ask for both, those that
    leave out one of which something is ``left`` to read, and those that leave it out for another reason."""

    def __init__(self, kafka: Observer, member: Member, topic: str) -> None:
        member.until_assigned()
        self.kafka, self.member, self.topic, self.busy = kafka, member, topic, 0
        self.fetcher = member.consumer._fetcher
        self.create = self.fetcher._create_fetch_requests
        self.fetcher._create_fetch_requests = self.watched
        self.both, self.left, self.paused = set[int](), set[int](), set[int]()
        self.lefts: list[int] = []  # of how many partitions something was left when one was sent

    def watched(self) -> Any:
        asked_for, left = len(self.fetcher._fetchable_partitions()), bool(self.fetcher._next_partition_records)
        waits = self.both if asked_for == 2 else self.left if left else self.paused
        partitions_left = left + len(self.fetcher._completed_fetches)
        requests = self.create()
        if requests and partitions_left:
            self.lefts.append(partitions_left)
        waits.update(request.max_wait_ms for request, _ in requests.values())
        return requests

    def read_ten(self) -> None:
        """Ten more, three at a time: when there may be a fetch, some of them are left. The partitions take turns."""
        self.busy = 1 - self.busy
        self.kafka.produce(self.topic, range(10), self.busy)
        assert len(self.member.read(10)) == 10


def test_while_something_is_left_to_read_there_is_no_fetch_for_what_is_at_its_end(kafka: Observer) -> None:
    topic = kafka.topic(2)
    with Member(kafka, topic, max_poll_records=3, fetch_max_wait_ms=400) as member:
        fetches = Fetches(kafka, member, topic)
        for _ in range(2):
            fetches.read_ten()
        fetches.left.clear()  # before the first answers it is not known where the end is
        for _ in range(6):
            fetches.read_ten()
        assert (fetches.both, fetches.left) == ({400}, set())


def test_without_the_cure_there_is_one_that_waits_for_news(kafka: Observer) -> None:
    topic = kafka.topic(2)
    with Member(kafka, topic, max_poll_records=3, fetch_max_wait_ms=400) as member:
        del member.consumer._fetcher._create_fetch_requests
        member.client._fetching._asks_again = member.client._fetching._stock_clear  # only polls ask, amid what is left
        fetches = Fetches(kafka, member, topic)
        member.until(lambda: fetches.left, fetches.read_ten)
        assert fetches.left == {400}


@pytest.mark.parametrize(
    ("most", "rested_s", "least", "longest"),
    [(400, 0.0, 20, 100), (10, 60.0, 10, 10), (400, 1.6, 200, 300)],
)
def test_a_fetch_beside_a_paused_partition_waits_a_part_of_the_time_without_a_pause_or_a_resume(
    kafka: Observer, most: int, rested_s: float, least: int, longest: int
) -> None:
    topic = kafka.topic(2)
    with Member(kafka, topic, fetch_max_wait_ms=most) as member:
        fetches = Fetches(kafka, member, topic)
        member.client.apply(plan(pause=[(topic, 0)]))
        member.client._fetching._moved_at -= rested_s
        for _ in range(2):  # the second is a repetition
            fetches.paused.clear()
            member.until(lambda: fetches.paused)
            assert least <= min(fetches.paused) <= max(fetches.paused) <= longest


def test_a_poll_that_waits_ends_when_it_is_woken(kafka: Observer) -> None:
    with Member(kafka, kafka.topic(2), fetch_max_wait_ms=PATIENCE_MS // 2) as member:
        member.until_assigned()
        fetching = member.client._fetching
        member.until(lambda: member.consumer._fetcher._nodes_with_pending_fetch_requests)
        fetching.poll(0)
        waker = threading.Timer(0.1, member.client.wake)
        waker.start()
        began = time.monotonic()
        assert fetching.poll(PATIENCE_MS) == {}
        assert 0.05 < time.monotonic() - began < PATIENCE_S / 6


def test_who_is_woken_before_it_waits_does_not_wait(kafka: Observer) -> None:
    topic = kafka.topic(2)
    with Member(kafka, topic) as member:
        member.until_assigned()
        member.client.wake()
        began = time.monotonic()
        assert member.client._fetching.poll(PATIENCE_MS) == {}
        assert time.monotonic() - began < PATIENCE_S / 2


def test_a_partition_that_is_paused_for_long_does_not_keep_waiting_what_is_left_of_others(kafka: Observer) -> None:
    topic = kafka.topic(3)
    for partition in (0, 1):
        for _ in range(20):
            kafka.produce(topic, ["x" * 1000] * 3, partition)
    with Member(kafka, topic, max_poll_records=2, max_partition_fetch_bytes=9000) as member:
        member.until_assigned()
        member.client.apply(plan(pause=[(topic, 2)]))
        member.client._fetching._moved_at -= 3600
        fetches = Fetches(kafka, member, topic)
        assert len(member.read(120)) == 120
        assert fetches.left <= {20}, "where something is left of others, a fetch does not wait for news"


def test_a_fetch_for_what_is_not_at_its_end_is_sent_while_something_is_left(kafka: Observer) -> None:
    topic = kafka.topic(3)
    for partition in range(3):
        for _ in range(5):
            kafka.produce(topic, ["x" * 100] * 100, partition)
    with Member(kafka, topic, max_poll_records=1, max_partition_fetch_bytes=30_000) as member:
        fetches = Fetches(kafka, member, topic)
        fetching = member.client._fetching
        fetching._asks_again = fetching._stock_clear  # only polls ask
        read = [member.read(1)[0]]
        while 2 not in fetches.lefts and len(read) < 1500:  # until then: one is in hand, and another one follows it
            read += member.read(1)
            wait_until(lambda: not fetching._asking, PATIENCE_S, "what a poll asks for is sent")
        assert 2 in fetches.lefts
        assert fetches.left == {20}
        assert len(member.read(1500 - len(read))) == 1500 - len(read)


# -- partitions to which nothing comes --------------------------------------------------------------------------------


class Walks:
    """Counts what walks over all partitions, and keeps the requests that are sent."""

    def __init__(self, member: Member) -> None:
        fetching, fetcher = member.client._fetching, member.consumer._fetcher
        self.polls = self.creations = 0
        self.requests: list[Any] = []
        self._validate, self._stock, self._create = (
            fetcher.maybe_validate_positions, fetching._stock_create, fetching._create
        )  # fmt: skip
        fetcher.maybe_validate_positions, fetching._stock_create = self.validate, self.stock
        fetcher._create_fetch_requests = self.create

    def validate(self) -> None:
        self.polls += 1
        self._validate()

    def stock(self) -> Any:
        self.creations += 1
        return self._stock()

    def create(self) -> Any:
        requests = self._create()
        self.requests += [request for request, _ in requests.values()]
        return requests


@contextmanager
def at_rest(kafka: Observer, topic: str, **settings: Any) -> Iterator[tuple[Member, Walks]]:
    """A member that has read three messages of each partition, and then nothing has come for a few fetches."""
    for partition in range(3):
        kafka.produce(topic, range(3), partition)
    with Member(kafka, topic, **{"fetch_max_wait_ms": 50, **settings}) as member:
        assert len(member.read(9)) == 9
        walks = Walks(member)
        rest(member, walks)
        yield member, walks


def rest(member: Member, walks: Walks) -> None:
    """Until a few fetches in a row are repeated."""
    begun: tuple[int, int, int] = (-1, -1, 0)

    def repeats() -> bool:
        nonlocal begun
        if begun[:2] != (walks.polls, walks.creations):
            begun = (walks.polls, walks.creations, len(walks.requests))
        return len(walks.requests) > begun[2] + 3

    member.until(repeats)


def test_polls_and_fetches_of_partitions_to_which_nothing_comes_do_not_walk_over_them(kafka: Observer) -> None:
    with at_rest(kafka, kafka.topic(3)) as (member, walks):
        walks.polls = walks.creations = 0
        walks.requests.clear()
        member.until(lambda: len(walks.requests) >= 5)
        assert (walks.polls, walks.creations) == (0, 0)
        in_session = [request for request in walks.requests if request.session_epoch > 0]
        assert all(not request.topics and not request.forgotten_topics_data for request in in_session)


def test_a_broker_is_asked_again_before_anybody_polls(kafka: Observer) -> None:
    with at_rest(kafka, kafka.topic(3)) as (_, walks):
        walks.requests.clear()
        wait_until(lambda: len(walks.requests) >= 3, PATIENCE_S, "three more requests")


def test_a_broker_is_asked_once_for_each_answer_so_that_the_handler_goes_first(kafka: Observer) -> None:
    topic = kafka.topic(1)
    with Member(kafka, topic, fetch_max_wait_ms=PATIENCE_MS // 2) as member:
        member.until_assigned()
        fetching, asked, in_time = member.client._fetching, list[bool](), 0
        in_flight = member.consumer._fetcher._nodes_with_pending_fetch_requests
        stock, fetching._ask = fetching._ask, lambda: asked.append(fetching._waits) or stock()
        member.until(lambda: in_flight)
        for _ in range(50):
            asked.clear()
            sends = threading.Timer(0.1, lambda: kafka.produce(topic, ["news"], 0))
            sends.start()
            assert fetching.poll(PATIENCE_MS)
            fetching.poll(0)  # as the poller does, while the handler begins
            wait_until(lambda: asked and not fetching._asking and in_flight, PATIENCE_S, "it is asked again")
            sends.join()
            assert len(asked) <= 2  # where the poll that had waited is slow, there is nothing to ask for at first
            in_time += asked == [False]
            if in_time == 5:
                break
        assert in_time


@pytest.mark.apache_only("the embedded broker has no fetch sessions")
def test_an_answer_without_news_does_not_end_a_poll(kafka: Observer) -> None:
    with at_rest(kafka, kafka.topic(3)) as (member, walks):
        member.client._fetching.poll(0)
        walks.requests.clear()
        began = time.monotonic()
        assert member.client._fetching.poll(300) == {}
        assert (time.monotonic() - began >= 0.3, len(walks.requests) >= 3) == (True, True)


def test_why_a_request_cannot_be_sent_is_raised_by_a_poll(kafka: Observer) -> None:
    topic = kafka.topic(3)
    with at_rest(kafka, topic) as (member, _):

        async def refuse() -> None:
            raise TopicAuthorizationFailedError({topic})

        member.consumer._fetcher._send_fetches_async = refuse
        with pytest.raises(FetchError, match=topic):
            member.until(lambda: False)
        del member.consumer._fetcher._send_fetches_async
        kafka.produce(topic, ["next"], 0)
        assert member.read(1) == [(0, 3)]


@pytest.mark.apache_only("the embedded broker has no fetch sessions")
def test_a_session_goes_on_from_request_to_request(kafka: Observer) -> None:
    with at_rest(kafka, kafka.topic(3)) as (member, walks):
        walks.requests.clear()
        member.until(lambda: len(walks.requests) >= 5)
        epochs = [request.session_epoch for request in walks.requests]
        assert epochs == list(range(epochs[0], epochs[0] + len(epochs)))
        assert len({request.session_id for request in walks.requests} - {0}) == 1


def test_what_comes_after_a_rest_is_read(kafka: Observer) -> None:
    topic = kafka.topic(3)
    with at_rest(kafka, topic) as (member, walks):
        for _ in range(2):
            for partition in range(3):
                kafka.produce(topic, ["next"], partition)
            assert sorted(partition for partition, _ in member.read(3)) == [0, 1, 2]
            rest(member, walks)


def test_a_seek_after_a_rest_counts(kafka: Observer) -> None:
    topic = kafka.topic(3)
    with at_rest(kafka, topic) as (member, walks):
        member.client.apply(plan(seeks={(topic, 1): 1}))
        assert member.read(2) == [(1, 1), (1, 2)]
        rest(member, walks)
        member.client.apply(plan(seeks={(topic, 1): 3}))
        kafka.produce(topic, ["next"], 1)
        assert member.read(1) == [(1, 3)]


def test_a_pause_and_a_resume_after_a_rest_count(kafka: Observer) -> None:
    topic = kafka.topic(3)
    with at_rest(kafka, topic) as (member, walks):
        member.client.apply(plan(pause=[(topic, 0)]))
        rest(member, walks)
        kafka.produce(topic, ["held up"], 0)
        kafka.produce(topic, ["not held up"], 1)
        assert member.read(2, timeout=A_WHILE_S) == [(1, 3)]
        member.client.apply(plan(resume=[(topic, 0)]))
        assert member.read(1) == [(0, 3)]


def test_a_pause_of_all_partitions_after_a_rest_sends_no_fetch(kafka: Observer) -> None:
    topic = kafka.topic(3)
    with at_rest(kafka, topic) as (member, walks):
        everything = [(topic, partition) for partition in range(3)]
        member.client.apply(plan(pause=everything))
        member.read(1, timeout=A_WHILE_S)  # the fetch that is under way ends
        walks.requests.clear()
        member.read(1, timeout=A_WHILE_S)
        assert walks.requests == []
        member.client.apply(plan(resume=everything))
        rest(member, walks)


def test_a_session_that_the_broker_has_forgotten_is_begun_anew(kafka: Observer) -> None:
    topic = kafka.topic(3)
    with at_rest(kafka, topic) as (member, walks):
        (session,) = member.consumer._fetcher._session_handlers.values()
        session.next_metadata = FetchMetadata(12345, 7)
        rest(member, walks)
        for partition in range(3):
            kafka.produce(topic, ["next"], partition)
        assert sorted(member.read(3)) == [(0, 3), (1, 3), (2, 3)]


def test_a_session_that_ends_after_a_change_names_all_partitions_again(kafka: Observer) -> None:
    """The last request that was made anew names only the partition that had changed."""
    topic = kafka.topic(3)
    with at_rest(kafka, topic) as (member, walks):
        kafka.produce(topic, ["next"], 0)
        assert member.read(1) == [(0, 3)]
        rest(member, walks)
        (session,) = member.consumer._fetcher._session_handlers.values()
        session.next_metadata = FetchMetadata(12345, 7)
        rest(member, walks)
        for partition in (1, 2):
            kafka.produce(topic, ["next"], partition)
        assert sorted(member.read(2)) == [(1, 3), (2, 3)]


@pytest.mark.parametrize(
    "change",
    [
        lambda cluster: cluster.update_partition_leader(next(iter(cluster._broker_partitions[1])), 1, 99),
        lambda cluster: setattr(cluster, "_partitions", dict(cluster._partitions)),
    ],
    ids=["a leader that an answer names", "metadata"],
)
def test_after_news_about_leaders_everything_is_looked_at(kafka: Observer, change: Callable[[Any], object]) -> None:
    topic = kafka.topic(3)
    with at_rest(kafka, topic) as (member, walks):
        walks.polls = walks.creations = 0
        change(member.consumer._cluster)
        member.until(lambda: walks.creations)
        assert walks.polls


def test_a_rebalance_after_a_rest_counts(kafka: Observer) -> None:
    topic = kafka.topic(3)
    with at_rest(kafka, topic) as (member, _), Member(kafka, topic, group=member.group) as other:
        with polling(member, other):
            wait_until(lambda: sorted(map(len, (member.owns, other.owns))) == [1, 2], PATIENCE_S, "they share")
            for tp in member.owns + other.owns:
                kafka.produce(topic, ["next"], tp[1])
        read = member.read(9, timeout=A_WHILE_S) + other.read(9, timeout=A_WHILE_S)
        assert {(partition, 3) for partition in range(3)} <= set(read)


def test_a_broker_that_comes_back_after_a_rest_is_fetched_from(private_kafka: BreakableKafka) -> None:
    kafka = private_kafka
    topic = kafka.topic(3)
    with at_rest(kafka, topic) as (member, _):
        with polling(member):
            kafka.kill()
            kafka.restart()
            for partition in range(3):
                kafka.produce(topic, ["next"], partition)
            wait_until(lambda: {(partition, 3) for partition in range(3)} <= set(member._unread), PATIENCE_S, "all")


@pytest.mark.slow
def test_leaders_that_move_after_a_rest_are_fetched_from(cluster: BreakableKafka) -> None:
    kafka = cluster
    topic = kafka.topic(3, replicas=3)
    with at_rest(kafka, topic) as (member, _):
        with polling(member):
            kafka.stop(2)
            sender = threading.Thread(target=lambda: [kafka.produce(topic, ["next"], number) for number in range(3)])
            sender.start()
            wait_until(lambda: {(partition, 3) for partition in range(3)} <= set(member._unread), 60, "all")
            sender.join()
