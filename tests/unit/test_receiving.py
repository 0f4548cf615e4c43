"""What a connection receives: larger pieces than kafka-python asks for, and else the same, with TLS and without."""

from __future__ import annotations

import logging
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kafka.errors import KafkaConnectionError
from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport

from karafka_lite.client.receiving import RECEIVE_BYTES, receive_more
from karafka_lite.client.receiving import received as receive

# Of nobody: made for this test, with `openssl req -x509`, for localhost and a hundred years.
CERTIFICATE = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg+E/TnltFeNfHUZVb
JNIuCY5p8sf2Jh+R+sbLkCn2d1uhRANCAARpnxYmaipIDVSHHhCMrq0ioWRpJM+r
ipMqNvJ5gsM9zOP2Z2t8tBuZJyFyJZCNbdHWKcxyvUlUZ0cjM6D4Q8Eo
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBljCCATugAwIBAgIUZc0PVVsHZMEkg17qIjFuQKUR8kswCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMzIyMjYzNloYDzIxMjYxMDMw
MjIyNjM2WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAARpnxYmaipIDVSHHhCMrq0ioWRpJM+ripMqNvJ5gsM9zOP2Z2t8tBuZ
JyFyJZCNbdHWKcxyvUlUZ0cjM6D4Q8Eoo2kwZzAdBgNVHQ4EFgQUYe9vBLSEY3xv
LtfRPD+sRCVDl9YwHwYDVR0jBBgwFoAUYe9vBLSEY3xvLtfRPD+sRCVDl9YwDwYD
VR0TAQH/BAUwAwEB/zAUBgNVHREEDTALgglsb2NhbGhvc3QwCgYIKoZIzj0EAwID
SQAwRgIhAPII7fkMulyRenovWfepxugeVcLmIjAWLFd2TKOMUbsbAiEA2oMisXjz
9cvuZ2N0aUtAoHsjtJG4ImOop09TKrsvbJA=
-----END CERTIFICATE-----
"""
MUCH = bytes(range(256)) * 12_000  # 3 MB
SOME = 64 << 10  # has room in the buffers of a socket
PATIENCE_S = 10


class Counted:
    """A socket that counts how often it was read from."""

    def __init__(self, sock: Any) -> None:
        self.sock = sock
        self.reads = 0

    def recv(self, size: int) -> bytes:
        self.reads += 1
        data: bytes = self.sock.recv(size)
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)


Ends = tuple[Any, socket.socket]  # our transport, and the broker's socket


@pytest.fixture(params=["plain", "TLS"])
def connect(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[bool], Ends]]:
    """Makes a connection; with True it receives as ours do, with False as kafka-python's."""
    made: list[socket.socket] = []

    def connect(ours: bool) -> Ends:
        mine, brokers = socket.socketpair()
        made.extend((mine, brokers))
        transport: Any = KafkaTCPTransport(None, mine)
        if request.param == "TLS":
            transport, brokers = with_tls(mine, brokers, tmp_path)
            made.extend((transport._sock, brokers))
        mine = transport._sock
        mine.setblocking(False)
        if ours:
            receive_more(transport)
        transport._sock = Counted(mine)
        return transport, brokers

    yield connect
    for sock in made:
        sock.close()


def with_tls(mine: socket.socket, brokers: socket.socket, folder: Path) -> Ends:
    file = folder / "certificate.pem"
    file.write_text(CERTIFICATE)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(file)
    shaken: list[ssl.SSLSocket] = []
    thread = threading.Thread(target=lambda: shaken.append(server.wrap_socket(brokers, server_side=True)))
    thread.start()
    transport = KafkaSSLTransport(None, mine, host="localhost", ssl_cafile=str(file))
    transport._sock.do_handshake()
    thread.join(PATIENCE_S)
    return transport, shaken[0]


def received(transport: Any, count: int) -> bytes:
    """What comes in, up to ``count`` bytes, with a read each time when the selector says that there is something."""
    data = b""
    while len(data) < count:
        readable, _, _ = select.select([transport._sock.sock], [], [], PATIENCE_S)
        assert readable, f"{len(data)} of {count} bytes: what is left waits where no selector sees it"
        more, error = transport._sock_recv()
        assert error is None
        data += more
    return data


@pytest.mark.parametrize("ours", [True, False])
def test_everything_is_received(connect: Callable[[bool], Ends], ours: bool) -> None:
    transport, brokers = connect(ours)
    sender = threading.Thread(target=brokers.sendall, args=(MUCH,))
    sender.start()
    assert received(transport, len(MUCH)) == MUCH
    sender.join()
    assert transport._sock_recv() == (b"", None), "nothing more, and nothing wrong"


def test_it_takes_fewer_reads(connect: Callable[[bool], Ends]) -> None:
    reads = {}
    for ours in (True, False):
        transport, brokers = connect(ours)
        brokers.sendall(MUCH[:SOME])
        received(transport, SOME)
        reads[ours] = transport._sock.reads
    assert reads[True] <= reads[False] / 3


@pytest.mark.parametrize("ours", [True, False])
def test_what_came_before_the_end_is_received_and_then_the_end_is_said(
    connect: Callable[[bool], Ends], ours: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "kafka")
    transport, brokers = connect(ours)
    brokers.sendall(b"last words")
    assert received(transport, 10) == b"last words"
    brokers.close()
    data, error = transport._sock_recv()
    assert data == b""
    assert "disconnected" in str(error) or "EOF" in str(error)


def test_bytes_that_come_together_with_the_end_are_not_lost(connect: Callable[[bool], Ends]) -> None:
    transport, brokers = connect(True)
    brokers.sendall(b"last words")
    brokers.close()
    assert received(transport, 10) == b"last words"
    _, error = transport._sock_recv()
    assert error is not None


def test_one_call_takes_a_bounded_piece_and_the_next_ones_the_rest(
    connect: Callable[[bool], Ends], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heartbeats are sent between two calls: a large answer must not keep them waiting."""
    monkeypatch.setattr("karafka_lite.client.receiving.RECEIVE_MAX_BYTES", 20 << 10)
    monkeypatch.setattr("karafka_lite.client.receiving.RECEIVE_BYTES", 16 << 10)  # the largest record of TLS
    transport, brokers = connect(True)
    brokers.sendall(MUCH[:SOME])
    select.select([transport._sock.sock], [], [], PATIENCE_S)
    largest, data = 0, b""
    while len(data) < SOME:
        more = received(transport, 1)
        largest = max(largest, len(more))
        data += more
    assert data == MUCH[:SOME]
    assert largest <= 36 << 10


class Endless:
    """A socket that always has more, until it fails."""

    def __init__(self, pieces: int, error: Exception) -> None:
        self.pieces = pieces
        self.error = error

    def recv(self, size: int) -> bytes:
        if not self.pieces:
            raise self.error
        self.pieces -= 1
        return bytes(size)


def nothing() -> tuple[bytes, Any]:
    return b"", "what the stock method says"


@pytest.mark.parametrize("error", [BlockingIOError(), ConnectionResetError(), ssl.SSLWantReadError()], ids=repr)
def test_an_error_of_the_socket_waits_for_the_next_call(error: Exception) -> None:
    transport: Any = SimpleNamespace(_sock=Endless(3, error))
    assert receive(transport, nothing) == (bytes(3 * RECEIVE_BYTES), None)
    data, failure = receive(transport, nothing)
    assert data == b""
    assert (failure is None) is not isinstance(error, ConnectionError)


def test_what_the_other_side_says_in_tls_is_the_reason() -> None:
    """A second read would only find the end."""
    alert = ssl.SSLError(1, "[SSL: SSLV3_ALERT_BAD_CERTIFICATE] sslv3 alert bad certificate (_ssl.c:2580)")
    _, failure = receive(SimpleNamespace(_sock=Endless(0, alert)), nothing)
    assert failure.args == (alert,)


@pytest.mark.parametrize("pieces", [0, 3])
def test_what_is_no_error_of_the_socket_ends_the_connection(pieces: int) -> None:
    """What was received before it is gone: going on would read the middle of an answer as its beginning."""
    transport: Any = SimpleNamespace(_sock=Endless(pieces, MemoryError()))
    data, failure = receive(transport, lambda: (b"", None))
    assert data == b""
    assert isinstance(failure, KafkaConnectionError)
    assert "MemoryError" in str(failure)
