"""Our batches are those of kafka-python, byte for byte."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka.record.memory_records import MemoryRecordsBuilder

from karafka_lite.client.encoding import COMPRESS, State, encode, size_of, varint

blobs = st.none() | st.binary(max_size=40) | st.integers(100, 9000).map(lambda size: b"x" * size)
names = st.text(max_size=8).filter(lambda name: name.isprintable())
messages = st.tuples(
    st.integers(0, 1 << 42), blobs, blobs, st.none() | st.lists(st.tuples(names, st.binary(max_size=9)), max_size=4)
)
states = st.just(State()) | st.builds(
    State, st.integers(0, 1 << 40), st.integers(0, 1000), st.integers(0, 1 << 30), st.booleans()
)


def stock(batch: list[Any], codec: int, state: State) -> bytes:
    builder = MemoryRecordsBuilder(2, codec, 1 << 30)
    if state.producer_id >= 0:
        builder.set_producer_state(*state[:3], state.transactional)
    for timestamp, key, value, headers in batch:
        assert builder.append(timestamp, key, value, headers or [])
    builder.close()
    return bytes(builder.buffer())


@given(st.lists(messages, min_size=1, max_size=6), states)
def test_any_batch_is_as_kafka_python_writes_it(batch: list[Any], state: State) -> None:
    assert encode(batch, 0, state) == stock(batch, 0, state)


@pytest.mark.parametrize("codec", [0, *COMPRESS])
def test_so_are_large_ones_in_every_codec(codec: int) -> None:
    batch = [(1_700_000_000_000 + (-1) ** n * n * 7, b"%d" % n, b"value" * 9, [("h", b"1")]) for n in range(5000)]
    state = State(7, 1, 42)
    ours, theirs = bytes(encode(batch, codec, state)), stock(batch, codec, state)
    if codec == 1:  # it begins with the time, which the checksum covers
        for one in (ours, theirs):
            assert one[61:63] == b"\x1f\x8b"
        ours, theirs = (one[:17] + one[21:65] + one[69:] for one in (ours, theirs))
    assert ours == theirs


def test_what_does_not_get_smaller_is_not_compressed() -> None:
    assert encode([(0, None, b"x", None)], 1, State()) == stock([(0, None, b"x", None)], 0, State())


def test_a_header_name_that_is_not_utf_8_leaves_as_the_bytes_that_it_was() -> None:
    name = b"h\xe9\xff".decode(errors="surrogateescape")
    assert b"\x06h\xe9\xff\x02" in encode([(0, None, b"", [(name, b"1")])], 0, State())


@given(st.integers(-(1 << 63), (1 << 63) - 1))
@settings(max_examples=50)
def test_a_varint_is_as_protobuf_has_it(number: int) -> None:
    zigzag, rest = (number << 1) ^ (number >> 63), 0
    for shift, byte in enumerate(varint(number)):
        rest |= (byte & 127) << 7 * shift
    assert rest == zigzag & ((1 << 64) - 1)


@given(messages)
def test_a_size_is_enough(message: Any) -> None:
    timestamp, key, value, headers = message
    assert len(encode([message], 0, State())) - 61 <= size_of(key, value, headers)
    assert timestamp >= 0
