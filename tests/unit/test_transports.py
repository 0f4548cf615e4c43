"""Bytes come in larger pieces than kafka-python asks for, and leave at once; else all is the same, also with TLS."""

from __future__ import annotations

import logging
import select
import selectors
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from kafka.errors import KafkaConnectionError, KafkaProtocolError
from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport

from karafka_lite.client.transports import RECEIVE_BYTES, Selector, TlsTransport, Transport

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
        transport: Any = (Transport if ours else KafkaTCPTransport)(None, mine)
        if request.param == "TLS":
            transport, brokers = with_tls(TlsTransport if ours else KafkaSSLTransport, mine, brokers, tmp_path)
            made.extend((transport._sock, brokers))
        mine = transport._sock
        mine.setblocking(False)
        transport._sock = Counted(mine)
        return transport, brokers

    yield connect
    for sock in made:
        sock.close()


def with_tls(kind: Any, mine: socket.socket, brokers: socket.socket, folder: Path) -> Ends:
    file = folder / "certificate.pem"
    file.write_text(CERTIFICATE)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(file)
    shaken: list[ssl.SSLSocket] = []
    thread = threading.Thread(target=lambda: shaken.append(server.wrap_socket(brokers, server_side=True)))
    thread.start()
    transport = kind(None, mine, host="localhost", ssl_cafile=str(file))
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


def test_one_call_takes_all_that_is_there(connect: Callable[[bool], Ends]) -> None:
    transport, brokers = connect(True)
    brokers.sendall(MUCH[:SOME])
    assert len(received(transport, 1)) == SOME


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
    monkeypatch.setattr("karafka_lite.client.transports.RECEIVE_MAX_BYTES", 20 << 10)
    monkeypatch.setattr("karafka_lite.client.transports.RECEIVE_BYTES", 16 << 10)  # the largest record of TLS
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


def reading(sock: Any, kind: Any = Transport) -> Any:
    """A transport that reads from ``sock``."""
    transport = kind.__new__(kind)
    transport._sock = sock
    return transport


@pytest.mark.parametrize("error", [BlockingIOError(), ConnectionResetError(), ssl.SSLWantReadError()], ids=repr)
def test_an_error_of_the_socket_waits_for_the_next_call(error: Exception) -> None:
    transport = reading(Endless(3, error))
    assert transport._sock_recv() == (bytes(3 * RECEIVE_BYTES), None)
    data, failure = transport._sock_recv()
    assert data == b""
    assert (failure is None) is not isinstance(error, ConnectionError)


def test_what_the_other_side_says_in_tls_is_the_reason() -> None:
    """A second read would only find the end."""
    alert = ssl.SSLError(1, "[SSL: SSLV3_ALERT_BAD_CERTIFICATE] sslv3 alert bad certificate (_ssl.c:2580)")
    _, failure = reading(Endless(0, alert), TlsTransport)._sock_recv()
    assert failure.args == (alert,)


@pytest.mark.parametrize("pieces", [0, 3])
def test_what_is_no_error_of_the_socket_ends_the_connection(pieces: int) -> None:
    """What was received before it is gone: going on would read the middle of an answer as its beginning."""
    data, failure = reading(Endless(pieces, MemoryError()))._sock_recv()
    assert data == b""
    assert isinstance(failure, KafkaConnectionError)
    assert "MemoryError" in str(failure)


# -- on an event loop -------------------------------------------------------------------------------------------------


class Connection:
    """What kafka-python puts on top of a transport."""

    _sensors = None

    def __init__(self) -> None:
        self.received = b""
        self.lost: list[Any] = []
        self.refuses = False

    def data_received(self, data: bytes) -> None:
        if self.refuses:
            raise KafkaProtocolError("not to be understood")
        self.received += data

    def connection_lost(self, error: Any) -> None:
        self.lost.append(error)


class Ours:
    """A transport of ours on a loop of its own, and the broker's end of its socket."""

    def __init__(self) -> None:
        self.net = Selector()
        mine, self.broker = socket.socketpair()
        mine.setblocking(False)
        mine.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOME)
        self.sock = mine
        self.transport: Any = Transport(self.net, mine)
        self.connection = Connection()
        self.transport.set_protocol(self.connection)

    def turn(self) -> None:
        self.net._poll_once(0)

    @property
    def registered(self) -> bool:
        return self.sock.fileno() in (key.fd for key in self.net._selector.get_map().values())

    def read(self, count: int) -> bytes:
        """What the broker reads, while the loop turns."""
        self.broker.setblocking(False)
        data = b""
        for _ in range(TURNS):
            self.turn()
            with suppress(BlockingIOError):
                data += self.broker.recv(SOME)
            if len(data) >= count:
                return data
        raise AssertionError(f"{len(data)} of {count} bytes")


TURNS = 10_000


@pytest.fixture
def ours() -> Iterator[Ours]:
    made = Ours()
    yield made
    made.net.close()
    made.broker.close()
    made.sock.close()


def test_what_is_written_leaves_at_once(ours: Ours) -> None:
    ours.transport.write(b"request")
    assert ours.broker.recv(100) == b"request", "no turn of the loop was needed"
    assert not ours.registered


def test_what_the_socket_does_not_take_leaves_in_order(ours: Ours, caplog: pytest.LogCaptureFixture) -> None:
    for piece in (MUCH, b"second", b"third"):
        ours.transport.write(piece)
    assert ours.read(len(MUCH) + 11) == MUCH + b"second" + b"third"
    ours.turn()
    assert not ours.registered
    ours.transport.write(b"fourth")
    assert ours.broker.recv(100) == b"fourth", "at once again"
    assert not caplog.records, "one task writes"


def test_a_write_that_fails_ends_the_connection_in_the_next_turn(ours: Ours, caplog: pytest.LogCaptureFixture) -> None:
    """Who writes is amid its own work: kafka-python's connection has yet to remember its request."""
    caplog.set_level(logging.CRITICAL + 1, "kafka")
    ours.broker.close()
    ours.transport.write(b"request")
    assert not ours.connection.lost
    ours.turn()
    assert isinstance(ours.connection.lost[0], KafkaConnectionError)


@pytest.mark.parametrize("data", [b"", b"after the end"])
def test_what_cannot_be_written_is_refused_as_by_kafka_python(ours: Ours, data: bytes) -> None:
    if data:
        ours.transport.close()
    with pytest.raises((RuntimeError, ValueError)):
        ours.transport.write(data)


def test_a_socket_stays_registered_from_one_read_to_the_next(ours: Ours) -> None:
    ours.transport.resume_reading()
    ours.turn()
    for number in range(3):
        assert ours.registered
        ours.broker.send(b"%d" % number)
        ours.turn()
    assert ours.connection.received == b"012"
    ours.turn()  # with nothing to read


def test_a_socket_that_is_read_can_be_written_to(ours: Ours) -> None:
    ours.transport.resume_reading()
    ours.turn()
    ours.transport.write(MUCH)
    ours.broker.send(b"answer")
    assert ours.read(len(MUCH)) == MUCH
    assert ours.connection.received == b"answer"
    ours.broker.send(b", another")
    ours.turn()
    assert ours.connection.received == b"answer, another"


@pytest.mark.parametrize("how", ["closed", "aborted", "not understood", "hung up"])
def test_after_its_end_nothing_is_registered(ours: Ours, how: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL + 1, "kafka")
    ours.transport.resume_reading()
    ours.turn()
    if how == "closed":
        ours.transport.close()
    elif how == "aborted":
        ours.transport.abort(KafkaConnectionError("why"))
    elif how == "hung up":
        ours.broker.close()
    else:
        ours.connection.refuses = True
        ours.broker.send(b"?")
    ours.turn()
    assert ours.connection.lost
    assert len(ours.net._selector.get_map()) == 1, "what wakes the loop"


def test_what_waits_leaves_before_a_close(ours: Ours) -> None:
    ours.transport.resume_reading()
    ours.turn()
    ours.transport.write(MUCH)
    ours.transport.close()
    ours.broker.send(b"too late")
    ours.turn()
    ours.turn()
    assert not ours.connection.lost
    assert [key.events for key in ours.net._selector.get_map().values() if key.fd == ours.sock.fileno()] == [
        selectors.EVENT_WRITE
    ], "what comes now would wake the loop at every turn"
    assert ours.read(len(MUCH)) == MUCH
    ours.turn()
    assert ours.connection.lost == [None]
