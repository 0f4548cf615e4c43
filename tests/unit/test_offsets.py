"""What goes with a commit, and how the answer to one is read; the questions themselves are in tests/kafka."""

from __future__ import annotations

import uuid
from types import SimpleNamespace
from typing import Any

import kafka.errors
import pytest
from kafka import OffsetAndMetadata
from kafka import TopicPartition as KafkaTP

from karafka_lite.client.offsets import Question, RefusedError, _read_commit, decode, encode, strays_of, topic_id_of
from karafka_lite.core.starts import Note, Stray

ID = uuid.UUID("7f1c8f0a-52b1-4c57-9c1c-2f2d8a5d9e10")


def cluster(known: uuid.UUID | None) -> Any:
    return SimpleNamespace(topic_id=lambda topic: known)


def test_a_topic_id_looks_as_kafkas_tools_print_it() -> None:
    assert topic_id_of(cluster(ID), "t") == "fxyPClKxTFecHC8til2eEA"


@pytest.mark.parametrize("unknown", [None, uuid.UUID(int=0)], ids=["an old broker", "no such topic"])
def test_a_topic_id_that_is_not_known_is_none(unknown: uuid.UUID | None) -> None:
    assert topic_id_of(cluster(unknown), "t") == ""


@pytest.mark.parametrize(
    "note", [Note(topic_id_of(cluster(ID), "t"), 12), Note("", 0), Note("-" * 22, None), Note("_" * 22, 999_999_999)]
)
def test_a_note_survives_its_way_through_a_commit(note: Note) -> None:
    assert decode(encode(note)) == note
    assert len(encode(note)) < 50


@pytest.mark.parametrize("foreign", [None, "", "NO_METADATA", "karafka-lite:", "karafka-lite:short:1", "é" * 4096])
def test_what_another_client_has_written_is_no_note(foreign: str | None) -> None:
    assert decode(foreign) == Note()


def answer(**codes: int) -> Any:
    """Partition 0 of topics, and their error codes."""
    return SimpleNamespace(topics=[(topic, [(0, code)]) for topic, code in codes.items()])


def read(response: Any) -> tuple[dict[str, tuple[str, str | None]], list[int]]:
    """What was refused, and which errors kafka-python was told of."""
    told: list[int] = []

    def stock(offsets: Any, send_time: float, one: Any) -> None:
        ((_, ((_, code),)),) = one.topics
        told.append(code)
        raise kafka.errors.for_code(code)()

    try:
        _read_commit(stock, {}, 0.0, response)
    except RefusedError as refused:
        refusals = refused.refusals
        return {tp[0]: (type(one.error).__name__, one.lasting) for tp, one in refusals.items()}, told
    return {}, told


def test_what_is_refused_of_a_commit_is_known_by_partition() -> None:
    refused, told = read(answer(fine=0, gone=3, remade=100, topic=29, group=30))
    assert refused == {
        "gone": ("UnknownTopicOrPartitionError", "gone"),
        "remade": ("UnknownTopicIdError", "gone"),
        "topic": ("TopicAuthorizationFailedError", "denied"),
        "group": ("GroupAuthorizationFailedError", "denied"),
    }
    assert told == []


@pytest.mark.parametrize("code", [14, 15, 16, 22, 25, 27])
def test_kafka_python_hears_of_what_concerns_the_group_also_behind_an_error_of_a_partition(code: int) -> None:
    refused, told = read(answer(gone=3, late=code))
    assert (refused["gone"][1], refused["late"][1]) == ("gone", None)
    assert told == [code]


def test_a_commit_that_was_accepted_raises_nothing() -> None:
    assert read(answer(fine=0, good=0)) == ({}, [])


def test_a_question_knows_who_has_not_answered() -> None:
    question = Question(1)
    question.leaders["t", 1] = 3
    assert question.cause(("t", 0)) == "no answer from the group's coordinator"
    assert question.cause(("t", 1)) == "no answer from its leader, broker 3"


TP = KafkaTP("t", 0)


def test_what_a_fetch_has_found_missing_is_known_by_partition() -> None:
    cut = kafka.errors.LogTruncationError({TP: OffsetAndMetadata(7, "", 3), KafkaTP("t", 1): None})
    assert strays_of(kafka.errors.OffsetOutOfRangeError({TP: 9}), {}) == {TP: Stray(9)}
    assert strays_of(cut, {("t", 0): 9, ("t", 1): 5}) == {TP: Stray(9, 7), KafkaTP("t", 1): Stray(5)}


@pytest.mark.parametrize("error", [kafka.errors.OffsetOutOfRangeError(), kafka.errors.KafkaTimeoutError(), OSError()])
def test_other_errors_have_found_nothing_missing(error: Exception) -> None:
    assert strays_of(error, {}) == {}
