"""What a compressed batch holds, without ever holding more of it than is allowed.

32 KB of zstd can hold 3 GB. So content is decompressed in pieces until the bound is passed; where a codec cannot do
that (snappy), the size that each block declares is read first.

The packages are those that kafka-python has found, in ``kafka.codec``: the same are needed as without us.
"""

from __future__ import annotations

import gzip
import io
import struct
from collections.abc import Callable, Iterator
from typing import Any

import kafka.codec

PIECE_BYTES = 1 << 20
MAX_DECOMPRESSED_BYTES = 64 << 20  # as much as the queues of a group may hold
XERIAL_HEADER, XERIAL_BLOCKS_AT = b"\x82SNAPPY\0", 16  # of blocks with a length each, as Java writes them


class UnreadableError(Exception):
    """``what`` cannot be read, and the likely ``cure``."""

    def __init__(self, what: str, cure: str = "report it to those who wrote it") -> None:
        super().__init__(what)
        self.cure = cure


class _TooLargeError(Exception):
    """It holds more than is allowed."""


def decompress(codec: int, data: bytes | memoryview, most: int, before: bytes = b"") -> bytes:
    """``before``, and after it what ``data`` holds.

    Raises:
        UnreadableError: it holds more than ``most`` bytes, or is damaged, or the codec's package is not installed.
    """
    if codec not in _CODECS:
        raise UnreadableError(f"a batch in codec {codec}, which is not known", "use gzip, snappy, lz4 or zstd")
    name, package, pieces = _CODECS[codec]
    if getattr(kafka.codec, name, None) is None:
        raise UnreadableError(f"a batch in {name}, for which no package is installed", f"pip install {package}")
    content = io.BytesIO()  # it gives its bytes away without a copy
    content.write(before)
    try:
        for piece in pieces(data, most):
            content.write(piece)
            if content.tell() > len(before) + most:
                raise _TooLargeError
    except MemoryError:
        raise
    except _TooLargeError:
        raise UnreadableError(
            f"a batch of {len(data)} bytes of {name} that holds more than max_decompressed_bytes={most}",
            "raise that setting of App, if there is enough memory",
        ) from None
    except Exception as error:
        raise UnreadableError(f"a batch that {name} cannot decompress ({error!r})") from error
    return content.getvalue()


def _gzip(data: bytes | memoryview, _most: int) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        yield from iter(lambda: file.read(PIECE_BYTES), b"")


def _snappy(data: bytes | memoryview, most: int) -> Iterator[bytes]:
    """Blocks of 32 KiB from Java, and one block from others."""
    data = bytes(data)
    if not data.startswith(XERIAL_HEADER):
        yield _snappy_block(data, most)
        return
    at = XERIAL_BLOCKS_AT
    while at < len(data):
        (size,) = struct.unpack_from(">i", data, at)
        at += 4
        if not 0 <= size <= len(data) - at:
            raise ValueError(f"a block of {size} bytes, where {len(data) - at} are left")
        yield _snappy_block(data[at : at + size], most)
        at += size


def _snappy_block(data: bytes, most: int) -> bytes:
    """A block begins with the size of what it holds, 7 bits a byte, the lowest first."""
    size = 0
    for place, byte in enumerate(data[:5]):
        size |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            break
    if size > most:
        raise _TooLargeError
    block: bytes = kafka.codec.snappy.decompress(data)
    return block


def _lz4(data: bytes | memoryview, _most: int) -> Iterator[bytes]:
    decompressor = kafka.codec.lz4.LZ4FrameDecompressor()
    yield decompressor.decompress(data, PIECE_BYTES)
    while not decompressor.eof:
        piece = decompressor.decompress(b"", PIECE_BYTES)
        if not piece and decompressor.needs_input:
            raise EOFError("it is cut off")
        yield piece


def _zstd(data: bytes | memoryview, _most: int) -> Iterator[bytes]:
    with kafka.codec.zstd.ZstdDecompressor().stream_reader(data, read_across_frames=True) as reader:
        yield from iter(lambda: reader.read(PIECE_BYTES), b"")


_CODECS: dict[int, tuple[str, str, Callable[[Any, int], Iterator[bytes]]]] = {
    1: ("gzip", "a Python with zlib", _gzip),
    2: ("snappy", "python-snappy", _snappy),
    3: ("lz4", "lz4", _lz4),
    4: ("zstd", "zstandard", _zstd),
}
