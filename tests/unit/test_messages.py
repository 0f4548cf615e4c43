"""The promises of "Batch and Message", without Kafka."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from karafka_lite import Batch, DeserializationError, KarafkaLiteError, Message
from karafka_lite.messages import as_deserializer, next_offset_after, where


class Fetched(NamedTuple):
    """A record as the client delivers it."""

    offset: int
    value: bytes | None = b"{}"
    key: bytes | None = None
    timestamp: int = 7
    headers: tuple[tuple[str, bytes], ...] = ()


def message(offset: int, value: bytes | None = b"{}", **fields: Any) -> Message:
    return Message("user_events", 2, offset, value=value, **fields)


def fetched(*records: Fetched, end_offset: int | None = None, deserialize: Any = json.loads) -> Batch:
    return Batch.of_records(("user_events", 2), records, end_offset, deserialize)


# -- Message ----------------------------------------------------------------------------------------------------------


def test_users_can_make_a_message_in_their_tests() -> None:
    made = Message("topic", 0, 5, value=b"{}")
    assert (made.topic, made.partition, made.offset, made.value, made.payload) == ("topic", 0, 5, b"{}", {})
    assert (made.key, made.headers, made.timestamp_ms, made.tombstone, made.next_offset) == (None, [], -1, False, 6)


def test_a_message_has_what_it_was_given() -> None:
    made = message(3, b"1", key=b"k", headers=iter([("a", b"1"), ("a", b"2")]), timestamp_ms=99)
    assert (made.key, made.headers, made.timestamp_ms) == (b"k", [("a", b"1"), ("a", b"2")], 99)


@pytest.mark.parametrize("wrong", [5.0, "5", None], ids=repr)
def test_a_place_that_is_no_integer_is_refused_because_no_commit_of_it_could_be_sent(wrong: Any) -> None:
    with pytest.raises(TypeError, match=f"offset must be an integer, got {wrong!r}"):
        Message("user_events", 0, wrong)
    with pytest.raises(TypeError, match="partition must be an integer"):
        Message("user_events", wrong, 0)


def test_next_offset_is_the_one_after_the_message() -> None:
    assert (message(0).next_offset, message(41).next_offset, next_offset_after(41)) == (1, 42, 42)


def test_a_payload_is_decoded_at_the_first_access_and_cached() -> None:
    calls: list[bytes] = []

    def decode(value: bytes) -> dict[str, bytes]:
        calls.append(value)
        return {"decoded": value}

    made = message(0, b"x", deserializer=decode)
    assert calls == []
    assert made.payload is made.payload
    assert calls == [b"x"]


@pytest.mark.parametrize("decoded", [None, False, 0, "", []])
def test_a_payload_that_is_falsy_is_cached_too(decoded: object) -> None:
    calls: list[bytes] = []
    made = message(0, b"x", deserializer=lambda value: calls.append(value) or decoded)  # type: ignore[func-returns-value]
    assert [made.payload, made.payload] == [decoded, decoded]
    assert calls == [b"x"]


def test_the_payload_of_a_tombstone_is_none_and_not_decoded() -> None:
    made = message(0, None, deserializer=lambda value: 1 / 0)
    assert (made.tombstone, made.value, made.payload) == (True, None, None)


def test_an_empty_value_is_no_tombstone_and_is_decoded() -> None:
    assert message(0, b"").tombstone is False
    assert message(0, b"", deserializer=bytes.decode).payload == ""
    with pytest.raises(DeserializationError):
        _ = message(0, b"").payload


def test_a_failed_decoding_raises_at_each_access_and_says_where() -> None:
    calls: list[bytes] = []

    def decode(value: bytes) -> object:
        calls.append(value)
        raise LookupError("no schema 7")

    made = message(41, b"\x00bad", deserializer=decode)
    for _ in range(2):
        with pytest.raises(
            DeserializationError, match=r"user_events-2@41: .*decode.*LookupError: no schema 7"
        ) as caught:
            _ = made.payload
        assert isinstance(caught.value.__cause__, LookupError)
        assert isinstance(caught.value, KarafkaLiteError)
    assert calls == [b"\x00bad"] * 2
    assert made.value == b"\x00bad"


def test_a_failed_decoding_can_be_healed_by_the_deserializer() -> None:
    answers = iter([ValueError("registry is down"), {"id": 1}])

    def decode(value: bytes) -> object:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    made = message(0, deserializer=decode)
    with pytest.raises(DeserializationError):
        _ = made.payload
    assert made.payload == {"id": 1}


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_what_is_no_exception_of_decoding_passes_through(stop: type[BaseException]) -> None:
    def decode(value: bytes) -> object:
        raise stop

    with pytest.raises(stop):
        _ = message(0, deserializer=decode).payload


def test_a_deserializer_is_a_function_a_module_or_none() -> None:
    assert message(0, b"[1]", deserializer=json).payload == [1]
    assert message(0, b"[1]", deserializer=json.loads).payload == [1]
    assert message(0, pickle.dumps({1: 2}), deserializer=pickle).payload == {1: 2}
    assert message(0, b"abc", deserializer=bytes.decode).payload == "abc"
    assert message(0, b"\xff", deserializer=None).payload == b"\xff"
    assert as_deserializer(SimpleNamespace(loads=json.loads)) is json.loads
    assert as_deserializer(None) is None


# -- copies, and what is equal


def to_number(value: bytes) -> int:
    return int(value)


DECODED: list[bytes] = []


def noted(value: bytes) -> dict[str, bytes]:
    DECODED.append(value)
    return {"decoded": value}


COPIES = pytest.mark.parametrize(
    "copied",
    [lambda one: pickle.loads(pickle.dumps(one)), copy.deepcopy, copy.copy],
    ids=["pickle", "deepcopy", "copy"],
)


@COPIES
@pytest.mark.parametrize(
    "deserializer", [json, json.loads, to_number, pickle, None], ids=["json", "loads", "function", "pickle", "none"]
)
@pytest.mark.parametrize("decoded", [False, True], ids=["not decoded", "decoded"])
def test_a_copy_has_all_that_the_message_has(copied: Any, deserializer: Any, decoded: bool) -> None:
    value = pickle.dumps(7) if deserializer is pickle else b"7"
    made = message(3, value, key=b"k", headers=[("h", b"1")], timestamp_ms=9, deserializer=deserializer)
    if decoded:
        assert made.payload in (7, b"7")
    other = copied(made)
    assert other is not made
    assert other == made
    assert (other.topic, other.partition, other.offset, other.timestamp_ms) == ("user_events", 2, 3, 9)
    assert (other.key, other.value, other.headers, other.next_offset) == (b"k", value, [("h", b"1")], 4)
    assert other.payload == made.payload == (b"7" if deserializer is None else 7)


@COPIES
def test_a_copy_of_what_is_not_decoded_is_not_decoded_either(copied: Any) -> None:
    DECODED.clear()
    other = copied(message(0, b"x", deserializer=noted))
    assert DECODED == []
    assert other.payload == {"decoded": b"x"}


@COPIES
def test_a_deserializer_that_cannot_be_pickled_has_done_its_work(copied: Any) -> None:
    made = message(0, b"7", deserializer=lambda value: int(value) + 1)
    assert copied(made).payload == 8
    assert copied(copied(made)).payload == 8


@COPIES
def test_a_copy_of_a_tombstone_is_a_tombstone(copied: Any) -> None:
    other = copied(message(0, None, deserializer=lambda value: 1 / 0))
    assert (other.tombstone, other.value, other.payload) == (True, None, None)


@COPIES
def test_a_copy_of_what_cannot_be_decoded_cannot_either(copied: Any) -> None:
    other = copied(message(0, b"{"))
    with pytest.raises(DeserializationError):
        _ = other.payload
    assert other.value == b"{"


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy])
def test_a_poison_message_is_copied_with_any_deserializer(copied: Any) -> None:
    other = copied(message(0, b"x", deserializer=lambda value: int(value)))
    with pytest.raises(DeserializationError):
        _ = other.payload


@pytest.mark.parametrize("decoded", [False, True], ids=["not decoded", "decoded"])
def test_messages_of_a_fetched_batch_can_be_pickled(decoded: bool) -> None:
    batch = fetched(Fetched(0, b"1"), Fetched(1, None), deserialize=json.loads)
    if decoded:
        assert batch.payloads == (1, None)
    assert [one.payload for one in pickle.loads(pickle.dumps(list(batch)))] == [1, None]


def test_a_deep_copy_shares_nothing_that_can_be_changed() -> None:
    made = message(0, b'{"rows": []}', headers=[("h", b"1")])
    other = copy.deepcopy(made)
    assert made.payload == {"rows": []}
    third = copy.deepcopy(made)
    made.payload["rows"].append(1)
    made.headers.append(("i", b"2"))
    assert (other.payload, other.headers, third.payload) == ({"rows": []}, [("h", b"1")], {"rows": []})


def test_messages_are_equal_when_all_that_kafka_knows_of_them_is() -> None:
    made = message(3, b"1", key=b"k", headers=[("h", b"1")], timestamp_ms=9)
    again = message(3, b"1", key=b"k", headers=[("h", b"1")], timestamp_ms=9, deserializer=None)
    assert made == again
    assert hash(made) == hash(again)
    assert len({made, again}) == 1
    got = fetched(Fetched(3, b"1", b"k", 9, (["h", b"1"],))).first  # type: ignore[arg-type]
    assert made == got


@pytest.mark.parametrize(
    "other",
    [
        message(4, b"1", key=b"k", headers=[("h", b"1")], timestamp_ms=9),
        message(3, b"2", key=b"k", headers=[("h", b"1")], timestamp_ms=9),
        message(3, None, key=b"k", headers=[("h", b"1")], timestamp_ms=9),
        message(3, b"1", key=None, headers=[("h", b"1")], timestamp_ms=9),
        message(3, b"1", key=b"k", headers=[("h", b"2")], timestamp_ms=9),
        message(3, b"1", key=b"k", headers=[("h", b"1")], timestamp_ms=8),
        Message("other", 2, 3, value=b"1", key=b"k", headers=[("h", b"1")], timestamp_ms=9),
        Message("user_events", 1, 3, value=b"1", key=b"k", headers=[("h", b"1")], timestamp_ms=9),
        ("user_events", 2, 3),
        None,
    ],
    ids=str,
)
def test_what_differs_in_anything_is_not_equal(other: object) -> None:
    assert message(3, b"1", key=b"k", headers=[("h", b"1")], timestamp_ms=9) != other


def test_the_texts_of_a_message_say_where_it_is() -> None:
    assert str(message(5)) == "user_events-2@5"
    assert repr(message(5, b"1", key=b"k")) == "<Message user_events-2@5 key=b'k' value=b'1'>"
    assert repr(message(5, None)) == "<Message user_events-2@5 key=None value=None>"
    assert len(repr(message(5, b"x" * 10_000))) < 120
    assert "(10000 bytes)" in repr(message(5, b"x" * 10_000))
    assert (where("t", 0), where("t", 0, 0)) == ("t-0", "t-0@0")


# -- Batch ------------------------------------------------------------------------------------------------------------


def both_kinds() -> list[Batch]:
    """The batch that a user makes in a test, and the one that a handler receives."""
    made = Batch([message(3, b"1"), message(4, None), message(7, b"[2]")], end_offset=10)
    return [made, fetched(Fetched(3, b"1"), Fetched(4, None), Fetched(7, b"[2]"), end_offset=10)]


EITHER = pytest.mark.parametrize("batch", both_kinds(), ids=["made", "fetched"])


@EITHER
def test_a_batch_tells_its_partition_ends_and_contents(batch: Batch) -> None:
    assert (batch.topic, batch.partition) == ("user_events", 2)
    assert (batch.first.offset, batch.last.offset) == (batch.first_offset, batch.last_offset) == (3, 7)
    assert batch.values == (b"1", None, b"[2]")
    assert batch.payloads == (1, None, [2])
    assert repr(batch) == "<Batch user_events-2@3..7 of 3>"


@EITHER
def test_a_batch_is_a_sequence(batch: Batch) -> None:
    assert isinstance(batch, Sequence)
    assert len(batch) == 3
    assert [one.offset for one in batch] == [3, 4, 7]
    assert [one.offset for one in reversed(batch)] == [7, 4, 3]
    assert [one.offset for one in batch[1:]] == [4, 7]
    assert [one.offset for one in batch[::-2]] == [7, 3]
    assert (batch[-1].offset, batch[-3].offset) == (7, 3)
    assert batch[1] in batch
    assert (batch.index(batch[1]), batch.count(batch[1])) == (1, 1)
    first, *_, last = batch
    assert (first, last) == (batch.first, batch.last)
    for beyond in (3, -4):
        with pytest.raises(IndexError):
            batch[beyond]


@EITHER
def test_a_batch_cannot_be_changed(batch: Batch) -> None:
    with pytest.raises(TypeError):
        batch[0] = message(0)  # type: ignore[index]
    with pytest.raises(TypeError):
        del batch[0]  # type: ignore[attr-defined]
    assert not hasattr(batch, "append")
    assert batch.values is batch.values
    assert batch.payloads is batch.payloads
    assert isinstance(batch.values, tuple)
    assert isinstance(batch[:], list)
    assert len(batch) == len(batch.values) == len(batch.payloads) == 3


def test_the_last_header_of_a_name_counts() -> None:
    made = message(3, b"1", headers=[("a", b"1"), ("b", b""), ("a", b"2")])
    assert (made.header("a"), made.header("b"), made.header("c"), made.header("c", b"3")) == (b"2", b"", None, b"3")


@EITHER
def test_a_message_of_a_batch_is_the_same_object_at_each_access(batch: Batch) -> None:
    assert batch[0] is batch.first is next(iter(batch)) is batch[-3] is batch[:1][0]
    assert batch[2].payload is batch.payloads[2]


def test_a_batch_does_not_change_with_the_list_it_was_made_of() -> None:
    given = [message(1), message(2)]
    batch = Batch(given)
    given.append(message(3))
    given.clear()
    assert [one.offset for one in batch] == [1, 2]


def test_lag_is_what_lies_between_the_batch_and_the_end() -> None:
    assert [batch.lag for batch in both_kinds()] == [2, 2]
    assert fetched(Fetched(9), end_offset=10).lag == 0
    assert Batch([message(9)]).lag == 0, "unknown"
    assert fetched(Fetched(9), end_offset=5).lag == 0, "never negative, also when the end is older than the batch"


def test_a_fetched_record_becomes_a_message_with_all_its_fields() -> None:
    batch = fetched(Fetched(3, b"1", b"k", 1234, [("a", b"1")]))
    got = batch.first
    assert isinstance(got, Message)
    assert (got.topic, got.partition, got.offset) == ("user_events", 2, 3)
    assert (got.key, got.value, got.timestamp_ms, got.headers) == (b"k", b"1", 1234, [("a", b"1")])
    assert (got.payload, got.next_offset, got.tombstone) == (1, 4, False)


def test_payloads_raise_at_the_first_that_cannot_be_decoded() -> None:
    batch = fetched(Fetched(0, b"1"), Fetched(1, b"{"), Fetched(2, b"["))
    with pytest.raises(DeserializationError, match="user_events-2@1:"):
        _ = batch.payloads
    assert batch.values == (b"1", b"{", b"[")
    assert batch[0].payload == 1


def test_payloads_are_decoded_once_whoever_asks_first() -> None:
    for first in (lambda batch: batch.payloads, lambda batch: batch[1].payload, lambda batch: [*batch]):
        decoded: list[bytes] = []
        batch = fetched(Fetched(0, b"1"), Fetched(1, b"2"), Fetched(2, None), deserialize=decoded.append)
        first(batch)
        assert batch.payloads == (*(message.payload for message in batch),) == (None, None, None)
        assert sorted(decoded) == [b"1", b"2"]


def test_payloads_build_no_messages() -> None:
    batch = fetched(Fetched(0, b"1"), Fetched(1, b"2"))
    assert batch.payloads == (1, 2)
    assert batch._messages is None
    assert not batch._some


def test_without_a_deserializer_payloads_are_the_values() -> None:
    batch = fetched(Fetched(0, b"1"), Fetched(1, None), deserialize=None)
    assert batch.payloads == (b"1", None)


def test_a_batch_has_at_least_one_message() -> None:
    with pytest.raises(ValueError, match="at least one message"):
        Batch([])


@pytest.mark.parametrize("foreign", [Message("user_events", 3, 2), Message("other", 2, 2)])
def test_a_batch_is_of_one_partition(foreign: Message) -> None:
    with pytest.raises(ValueError, match=f"user_events-2@1 and {foreign} are not"):
        Batch([message(1), foreign])


@pytest.mark.parametrize("offset", [0, 1])
def test_a_batch_is_in_offset_order(offset: int) -> None:
    with pytest.raises(ValueError, match=f"user_events-2@{offset} comes after user_events-2@1"):
        Batch([message(1), message(offset)])


@given(st.lists(st.integers(0, 10**6), min_size=1, unique=True).map(sorted), st.slices(20))
def test_a_fetched_batch_is_what_a_list_of_its_messages_would_be(offsets: list[int], part: slice) -> None:
    batch = fetched(*map(Fetched, offsets))
    assert [one.offset for one in batch[part]] == offsets[part]
    assert [one.offset for one in batch] == offsets
    assert batch.last.next_offset == offsets[-1] + 1


def test_a_message_is_the_same_object_however_it_is_reached() -> None:
    batch = fetched(*(Fetched(offset, b"{}") for offset in range(3)))
    last, middle = batch.last, batch[-2]
    assert [*batch] == [batch[0], middle, last]
    assert [id(message) for message in batch] == [id(batch[0]), id(middle), id(last)]
    for index in (3, -4):
        with pytest.raises(IndexError):
            fetched(Fetched(0, b""), Fetched(1, b""), Fetched(2, b""))[index]


def test_a_message_cannot_be_changed() -> None:
    message = fetched(Fetched(0, b"{}")).first
    with pytest.raises(AttributeError):
        message.offset = 7  # type: ignore[misc]
    message.headers.append(("name", b"value"))
    assert message.headers == []
