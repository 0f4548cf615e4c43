"""How messages become the bytes of a record batch: format 2, which Kafka has had since 0.11.

One loop for the whole batch. It writes what kafka-python's builder writes, byte for byte, at a quarter of the price:
that one encodes each length one byte at a time, and estimates the size of each record before.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from kafka.codec import gzip_encode, lz4_encode, snappy_encode, zstd_encode
from kafka.record.util import calc_crc32c

Unencoded = tuple[int, "bytes | None", "bytes | None", "Sequence[tuple[str, bytes]] | None"]
"""Timestamp in milliseconds, key, value, headers."""

HEADER = struct.Struct(">qiibIhiqqqhii")
LENGTH_FROM, CRC_AT, CRC_FROM = 12, 17, 21  # the length counts what follows it, the checksum what follows that
MAGIC, TRANSACTIONAL = 2, 0x10
COMPRESS = {1: gzip_encode, 2: snappy_encode, 3: lz4_encode, 4: zstd_encode}
RECORD_BYTES = 21  # what a record takes beside key, value and headers, where its lengths and deltas are large
HEADER_BYTES = 10  # what a header takes beside its name and its value


class State(NamedTuple):
    """What an idempotent producer puts into a batch; -1: it is not idempotent."""

    producer_id: int = -1
    epoch: int = -1
    sequence: int = -1
    transactional: bool = False


def varint(number: int) -> bytes:
    """``number`` with its sign in the lowest bit, 7 bits a byte, the lowest first."""
    rest = number << 1 if number >= 0 else (-number << 1) - 1
    encoded = bytearray()
    while rest > 127:
        encoded.append(rest & 127 | 128)
        rest >>= 7
    encoded.append(rest)
    return bytes(encoded)


SMALL = 4096
VARINTS = tuple(map(varint, range(SMALL)))  # nearly all lengths and deltas
NULL, NO_HEADERS = varint(-1), varint(0)


def size_of(key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]] | None) -> int:
    """How many bytes a record takes; it may be some less."""
    size = RECORD_BYTES + (len(value) if value else 0) + (len(key) if key else 0)
    if headers:
        size += sum(HEADER_BYTES + len(name.encode(errors="surrogateescape")) + len(value) for name, value in headers)
    return size


def encode(messages: Sequence[Unencoded], codec: int, state: State) -> bytearray:
    """A record batch; ``codec``: 0 for none, else a key of ``COMPRESS``, which is left out where it does not help."""
    records = _records(messages)
    if codec:
        compressed = COMPRESS[codec](records)
        if len(compressed) < len(records):
            records = compressed
        else:
            codec = 0
    first, highest = messages[0][0], max(message[0] for message in messages)
    attributes = codec | (TRANSACTIONAL if state.transactional else 0)
    length, last = HEADER.size - LENGTH_FROM + len(records), len(messages) - 1
    batch = bytearray(
        HEADER.pack(
            *(0, length, 0, MAGIC, 0, attributes, last, first, highest),
            *(state.producer_id, state.epoch, state.sequence, len(messages)),
        )
    )
    batch += records
    struct.pack_into(">I", batch, CRC_AT, calc_crc32c(memoryview(batch)[CRC_FROM:]))
    return batch


def _records(messages: Sequence[Unencoded]) -> bytes:
    parts: list[bytes] = []
    put, join, small, varints = parts.append, b"".join, SMALL, VARINTS
    first = messages[0][0]
    for index, (timestamp, key, value, headers) in enumerate(messages):
        delta = timestamp - first
        record = join(
            (
                b"\0",  # attributes, which have no meaning
                varints[delta] if 0 <= delta < small else varint(delta),
                varints[index] if index < small else varint(index),
                NULL if key is None else (varints[n] if (n := len(key)) < small else varint(n)) + key,
                NULL if value is None else varints[n] if (n := len(value)) < small else varint(n),
                value or b"",
                _headers(headers) if headers else NO_HEADERS,
            )
        )
        put(varints[n] if (n := len(record)) < small else varint(n))
        put(record)
    return join(parts)


def _headers(headers: Sequence[tuple[str, bytes]]) -> bytes:
    parts = [varint(len(headers))]
    for name, value in headers:
        raw = name.encode(errors="surrogateescape")
        parts += (varint(len(raw)), raw, varint(len(value)), value)
    return b"".join(parts)
