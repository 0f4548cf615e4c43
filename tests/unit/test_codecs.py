"""What a compressed batch holds, and how much of it may be held."""

from __future__ import annotations

import bz2
import gzip
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import kafka.codec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from karafka_lite.client.codecs import UnreadableError, decompress

NUMBERS = {"gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
INSTALLED = [name for name in NUMBERS if getattr(kafka.codec, f"has_{name}")()]
MIB = 1 << 20
ENOUGH = 64 * MIB
packages: Any = kafka.codec


def encode(codec: str, data: bytes) -> bytes:
    return bytes(getattr(kafka.codec, f"{codec}_encode")(data))


@pytest.mark.parametrize("codec", INSTALLED)
@given(data=st.binary(max_size=300) | st.integers(0, 200_000).map(lambda size: bytes(range(256)) * (size // 256)))
def test_what_was_compressed_comes_back_up_to_the_bound(codec: str, data: bytes) -> None:
    packed = encode(codec, data)
    assert decompress(NUMBERS[codec], memoryview(packed), len(data)) == data
    assert decompress(NUMBERS[codec], packed, len(data), b"before") == b"before" + data
    if data:
        with pytest.raises(UnreadableError, match=f"of {len(packed)} bytes of {codec} that holds more than"):
            decompress(NUMBERS[codec], packed, len(data) - 1)


OTHERWISE: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip of several members": ("gzip", lambda data: gzip.compress(data[:9]) + gzip.compress(data[9:])),
    "snappy as one block": ("snappy", lambda data: bytes(packages.snappy.compress(data))),
    "lz4 of linked blocks": ("lz4", lambda data: bytes(packages.lz4.compress(data, block_linked=True))),
    "lz4 without its size": ("lz4", lambda data: bytes(packages.lz4.compress(data, store_size=False))),
    "zstd of several frames": ("zstd", lambda data: encode("zstd", data[:9]) + encode("zstd", data[9:])),
    "zstd without its size": (
        "zstd",
        lambda data: bytes(packages.zstd.ZstdCompressor(write_content_size=False).compress(data)),
    ),
}


@pytest.mark.parametrize("how", OTHERWISE)
def test_other_clients_compress_in_other_ways(how: str) -> None:
    codec, packer = OTHERWISE[how]
    if codec not in INSTALLED:
        pytest.skip(f"the package for {codec} is not installed")
    for data in (b"x" * 20, bytes(range(256)) * 1000):
        assert decompress(NUMBERS[codec], packer(data), len(data)) == data
        with pytest.raises(UnreadableError, match="holds more than"):
            decompress(NUMBERS[codec], packer(data), len(data) - 1)


@contextmanager
def peak_below(most: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


BOMBS: dict[str, Callable[[], bytes]] = {
    "gzip": lambda: gzip.compress(bytes(16 * MIB)) * 16,
    "snappy": lambda: b"\x80\x80\x80\x80\x08" + b"\xfe\x01\x00" * 10,  # a block that says that it holds 2 GiB
    "lz4": lambda: encode("lz4", bytes(256 * MIB)),
    "zstd": lambda: encode("zstd", bytes(16 * MIB)) * 16,
}


@pytest.mark.parametrize("codec", INSTALLED)
def test_a_bomb_is_refused_before_it_goes_off(codec: str) -> None:
    bomb = BOMBS[codec]()
    with peak_below(2 * len(bomb) + 6 * MIB), pytest.raises(UnreadableError, match=r"max_decompressed_bytes=2097152$"):
        decompress(NUMBERS[codec], bomb, 2 * MIB)


@pytest.mark.parametrize("codec", INSTALLED)
def test_what_is_kept_of_a_large_batch_is_little_more_than_what_it_holds(codec: str) -> None:
    packed = encode(codec, bytes(16 * MIB))
    with peak_below(len(packed) + 24 * MIB):
        assert len(decompress(NUMBERS[codec], memoryview(packed), ENOUGH)) == 16 * MIB


@pytest.mark.parametrize("codec", INSTALLED)
@pytest.mark.parametrize("damage", ["cut", "other", "empty"])
def test_what_is_damaged_is_refused(codec: str, damage: str) -> None:
    packed = encode(codec, bytes(range(256)) * 10)
    bad = {"cut": packed[: len(packed) // 2], "other": bz2.compress(b"no codec of Kafka"), "empty": b""}[damage]
    try:
        stock: Any = getattr(kafka.codec, f"{codec}_decode")(bad)
    except Exception:  # noqa: BLE001 - whatever a codec raises
        stock = None
    if stock is not None:  # nothing is compressed to nothing by some
        assert decompress(NUMBERS[codec], bad, ENOUGH) == stock
        return
    with pytest.raises(UnreadableError, match=f"^a batch that {codec} cannot decompress"):
        decompress(NUMBERS[codec], bad, ENOUGH)


@pytest.mark.parametrize("size", [-1, 1 << 30, 5])
def test_a_block_of_snappy_that_is_not_there_is_refused(size: int) -> None:
    if "snappy" not in INSTALLED:
        pytest.skip("python-snappy is not installed")
    packed = bytearray(encode("snappy", b"x" * 100))
    packed[16:20] = size.to_bytes(4, "big", signed=True)
    with pytest.raises(UnreadableError, match="snappy cannot decompress"):
        decompress(NUMBERS["snappy"], bytes(packed), ENOUGH)


def test_a_codec_that_is_not_known_or_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnreadableError, match=r"^a batch in codec 7, which is not known$"):
        decompress(7, b"", ENOUGH)
    for name, package in [("snappy", "python-snappy"), ("lz4", "lz4"), ("zstd", "zstandard")]:
        monkeypatch.setattr(kafka.codec, name, None)
        with pytest.raises(UnreadableError, match=f"^a batch in {name}, for which no package is installed$") as caught:
            decompress(NUMBERS[name], b"", ENOUGH)
        assert caught.value.cure == f"pip install {package}"
