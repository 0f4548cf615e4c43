"""How bytes come and go on kafka-python's connections: at once, and with few system calls for each request.

kafka-python writes in its next turn but one, reads 4,096 bytes at a time, and tells the operating system before each
read and each write what it waits for. Where an answer comes together with the end of the connection it drops the
answer: "wrong password" is said in one.

Here a request is written when it is made, and only what the socket does not take waits; a socket that is read stays
registered; reads are large.

Private touch points in kafka-python 3.0 (pinned below 3.1), with tests in tests/unit/test_transports.py:

    NetworkSelector._current, TaskState                        whose turn it is
    transport._sock_recv, _sock_send, _read_from_sock, _write_to_sock, _write_buffer, _writing, _sock
"""

from __future__ import annotations

import selectors
import ssl
import time
from collections.abc import Awaitable
from typing import Any

import kafka.errors
from kafka.net.selector import KernelEvent, NetworkSelector, TaskState
from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport

RECEIVE_BYTES = 256 << 10
NOTHING_YET = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
LITTLE_BYTES = 16 << 10  # a full record of TLS; after less than that there is mostly nothing more
RECEIVE_MAX_BYTES = 8 << 20  # in one step of the IO thread, which sends heartbeats between two steps


class Selector(NetworkSelector):  # type: ignore[misc]
    """An event loop in which a task may wait for a socket that stays registered for it."""

    _current: Any

    def wait_registered(self) -> Awaitable[None]:
        """Until there is something to read on the socket that was registered for the current task."""
        return KernelEvent("_wait_registered")  # type: ignore[no-any-return]

    def _wait_registered(self) -> None:
        self._current.state = TaskState.WAIT_IO


class Transport(KafkaTCPTransport):  # type: ignore[misc]
    """A connection without TLS. All of it is called on the event loop's thread."""

    _writing: bool
    _protocol: Any
    _sock: Any

    def write(self, data: Any) -> None:
        """Write at once what the socket takes, unless something waits already."""
        if self._writing or self._write_buffer or self._closed or not self._write or not data:
            super().write(data)
            return
        self._write_buffer.append(data)
        _, error = self._sock_send()
        self.last_write = time.monotonic()
        if error:
            self._net.call_soon(lambda: self.abort(error))  # not amid the call of who writes
        elif self._write_buffer:
            self._writing = True
            self._write_task = self._net.call_soon(self._write_to_sock)

    async def _read_from_sock(self) -> None:
        net, sock = self._net, self._sock
        net.register_event(sock, selectors.EVENT_READ, net._current)
        try:
            while self._read and not self._closed:
                await net.wait_registered()
                data, error = self._sock_recv()
                if error:
                    self.abort(error=error)
                    return
                self.last_read = time.monotonic()
                try:
                    self._protocol.data_received(data)
                except kafka.errors.KafkaProtocolError as unreadable:
                    self.abort(error=unreadable)
                    return
        finally:
            net.unregister_event(sock, selectors.EVENT_READ)

    def _sock_recv(self) -> tuple[bytes, Any]:
        """What has come, up to about RECEIVE_MAX_BYTES, and an error; where nothing has come, kafka-python says why.

        The rest is not forgotten: the socket stays readable. (A TLS record is never read in part, so nothing of it
        waits in the TLS layer, where no selector would see it.)
        """
        pieces, size = [], 0
        try:
            while size < RECEIVE_MAX_BYTES and (piece := self._sock.recv(RECEIVE_BYTES)):
                pieces.append(piece)
                size += len(piece)
                if len(piece) < LITTLE_BYTES:
                    break
            return (b"".join(pieces), None) if pieces else super()._sock_recv()
        except OSError as error:  # nothing more has come; or the connection is broken, which the next call says
            if pieces or isinstance(error, NOTHING_YET):
                return b"".join(pieces), None
            return b"", kafka.errors.KafkaConnectionError(error)
        except Exception as error:  # noqa: BLE001 - no memory, say: what was received is lost, so the connection has to end
            return b"", kafka.errors.KafkaConnectionError(repr(error))


class TlsTransport(Transport, KafkaSSLTransport):  # type: ignore[misc]
    """A connection with TLS."""
