"""``karafka-lite run --create-topics``, ``--strict`` and ``--group``: what is there before the App runs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient
from support.command import process, write_app
from support.observer import Observer


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return process("-m", "karafka_lite", "run", *options, "--until-end", cwd=folder)


def test_missing_topics_are_refused_or_created_and_another_group_can_be_named(kafka: Observer, tmp_path: Path) -> None:
    there, missing, group, other = kafka.topic(2), kafka.name("topic"), kafka.group(), kafka.group()
    kafka.produce(there, range(3), partition=0)
    app = write_app(tmp_path, kafka, group, there, missing)
    refused = run(tmp_path, app, "--strict")
    assert refused.returncode == 1
    assert f"karafka-lite: missing topics: {missing} (or no Describe permission); create them" in refused.stderr
    assert "Traceback" not in refused.stderr

    options = ["--create-topics", "--partitions", "5", "--replication-factor", "1", "--strict", "--group", other]
    for said in (1, 0):
        done = run(tmp_path, app, *options)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count(f"created topics: {missing}\n") == said
    known = AdminClient({"bootstrap.servers": kafka.bootstrap_servers}).list_topics(timeout=30).topics
    assert [len(known[topic].partitions) for topic in (there, missing)] == [2, 5]
    assert (kafka.committed(other, there), kafka.committed(group, there)) == (3, None)


@pytest.mark.apache_only("a cluster of one node keeps no second copy; the embedded broker keeps none")
def test_a_topic_that_cannot_be_created_is_exit_1_with_the_brokers_reason(kafka: Observer, tmp_path: Path) -> None:
    missing = kafka.name("topic")
    app = write_app(tmp_path, kafka, kafka.group(), missing)
    done = run(tmp_path, app, "--create-topics", "--replication-factor", "9")
    assert done.returncode == 1
    assert f"cannot be created: {missing} (InvalidReplicationFactorError" in done.stderr
    assert "Traceback" not in done.stderr
