"""What can be a message, and which partition its key chooses; nothing here needs a broker."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache

from karafka_lite.errors import cut, in_message
from karafka_lite.messages import TOPIC, Addressed

MAX_PARTITION, MAX_TIMESTAMP_MS = (1 << 31) - 1, (1 << 63) - 1
UNPACK_WORDS = [struct.Struct(f"<{count}I").unpack_from for count in range(64)]
BITS_32, MULTIPLIER, SEED = 0xFFFFFFFF, 0x5BD1E995, 0x9747B28C  # of murmur2


def check_outgoing(message: Addressed, partitions: int | None = None) -> None:
    """Whether this can be a message. kafka-python takes some things that break its sender thread or are sent wrong.

    ``partitions``: how many the topic has; None: that is not known.

    Raises:
        TypeError, ValueError: it cannot; the text names the argument.
    """
    topic, value, key, headers, partition, timestamp_ms = message
    if not isinstance(topic, str):
        raise TypeError(f"topic must be a string, got {type(topic).__name__}")
    _check_topic(topic)
    if type(value) is not bytes and value is not None:
        _check_bytes("value", value, "bytes")
    if type(key) is not bytes and key is not None:
        _check_bytes("key", key, "bytes, a string")
    if headers is not None:
        _check_headers(headers)
    if partition is not None:
        _check_number("partition", partition, MAX_PARTITION)
    if timestamp_ms is not None:
        _check_number("timestamp_ms", timestamp_ms, MAX_TIMESTAMP_MS, "; for the time now: int(time.time() * 1000)")
    if partitions is not None and partition is not None and partition >= partitions:
        raise ValueError(f"partition must be between 0 and {partitions - 1} in topic {topic}, got {partition}")


def check_many(messages: Sequence[Addressed], partitions: int | None = None) -> None:
    """``check_outgoing`` for each; the text says also which one it is."""
    for index, message in enumerate(messages):
        try:
            check_outgoing(message, partitions)
        except (TypeError, ValueError) as mistake:
            raise in_message(index, mistake) from None


@lru_cache(1024)
def _check_topic(topic: str) -> None:
    if not TOPIC.fullmatch(topic) or topic in (".", ".."):
        raise ValueError(f"topic must be 1 to 249 of a-z A-Z 0-9 . _ - (but not . or .. alone), got {cut(repr(topic))}")


def _check_bytes(name: str, data: object, what: str) -> None:
    if not isinstance(data, bytes):
        raise TypeError(f"{name} must be {what} or None, got {type(data).__name__}")


def _check_number(name: str, number: object, most: int, hint: str = "") -> None:
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{name} must be an integer, got {cut(repr(number))}{hint}")
    if not 0 <= number <= most:
        raise ValueError(f"{name} must be between 0 and {most}, got {cut(repr(number))}")


def _check_headers(headers: object) -> None:
    pairs = "headers must be a list of (str, bytes) pairs"
    if not isinstance(headers, list):
        hint = "; for a dict: list(headers.items())" if isinstance(headers, Mapping) else ""
        raise TypeError(f"{pairs}, got {type(headers).__name__}{hint}")
    for header in headers:
        if not (isinstance(header, tuple) and len(header) == 2):
            raise TypeError(f"{pairs}, got {cut(repr(header))} in it")
        name, value = header
        if not (isinstance(name, str) and isinstance(value, bytes)):
            raise TypeError(f"{pairs}, got {cut(repr(header))} in it")
        try:
            name.encode(errors="surrogateescape")
        except UnicodeEncodeError:
            raise ValueError(f"{pairs}; the name {cut(ascii(name))} cannot be encoded: it has surrogates") from None


def partition_of(key: bytes, partitions: int) -> int:
    """Where a message with this key goes, in a topic with so many partitions, unless its sender says otherwise."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions


def murmur2(key: bytes) -> int:
    """Austin Appleby's hash, as Kafka's clients have it; the words of four bytes are unpacked at once."""
    size = len(key)
    hashed = SEED ^ size
    unpack = UNPACK_WORDS[size >> 2] if size < 256 else struct.Struct(f"<{size >> 2}I").unpack_from
    for number in unpack(key):
        word = number * MULTIPLIER & BITS_32
        hashed = hashed * MULTIPLIER & BITS_32 ^ (word ^ word >> 24) * MULTIPLIER & BITS_32
    if size & 3:
        hashed = (hashed ^ int.from_bytes(key[size & ~3 :], "little")) * MULTIPLIER & BITS_32
    hashed = (hashed ^ hashed >> 13) * MULTIPLIER & BITS_32
    return hashed ^ hashed >> 15
