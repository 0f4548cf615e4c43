"""A leader that was out of step is elected, and the end of the log is gone: what had been committed is past the end."""

from __future__ import annotations

import logging

import pytest
from confluent_kafka.admin import AdminClient
from support.harness import make_app, running
from support.observer import BreakableKafka, wait_until


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(300)
def test_after_an_unclean_election_the_loss_is_said_and_what_comes_next_is_processed(
    cluster: BreakableKafka, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "karafka_lite")
    topic, group = (
        cluster.topic(replicas=2, unclean_leader_election_enable="true", min_insync_replicas=1),
        cluster.group(),
    )
    leader, follower = nodes(cluster, topic)
    app, seen = make_app(cluster, group, auto_commit_interval_ms=100), list[tuple[int, str]]()

    @app.topic(topic)
    def store(batch, ctx):
        seen.extend((message.offset, message.value.decode()) for message in batch)

    def committed(offset: int) -> bool:
        return cluster.committed(group, topic) == offset

    def shortened() -> bool:
        cluster.forget_clients()  # librdkafka was seen to stay with what the old leader had said
        return cluster.end_offset(topic) == 100

    with running(app):
        cluster.produce(topic, [f"both {number}" for number in range(100)])
        wait_until(lambda: committed(100), 30, "what both have is committed")
        cluster.kill(follower)
        cluster.produce(topic, [f"one {number}" for number in range(50)])
        wait_until(lambda: committed(150), 60, "what one has is committed")

        cluster.kill(leader)
        cluster.restart(follower)
        wait_until(shortened, 60, "the follower leads, without the end")
        wait_until(lambda: [r for r in caplog.records if r.levelno == logging.ERROR], 60, "the loss is said")

        cluster.produce(topic, [f"new {number}" for number in range(30)])
        wait_until(lambda: committed(130), 60, "what is new is committed")
    assert [value for _, value in seen if value.startswith("both")] == [f"both {number}" for number in range(100)]
    assert [place for place in seen if place[1].startswith("new")] == [(100 + n, f"new {n}") for n in range(30)]


def nodes(kafka: BreakableKafka, topic: str) -> list[int]:
    """The leader, and the other one."""
    (partition,) = (
        AdminClient({"bootstrap.servers": kafka.bootstrap_servers}).list_topics(topic).topics[topic].partitions.values()
    )
    return sorted(partition.replicas, key=lambda node: node != partition.leader)
