"""How a listener of a broker wants to be talked to: asked of itself, where it has hung up on us.

A broker closes the connection of a client that speaks plain text to TLS, TLS to plain text, or does not authenticate.
So does a load balancer without a broker. The listener's answer to two requests that need no rights tells these apart.
"""

from __future__ import annotations

import socket
import ssl
import struct
from typing import NamedTuple

ASK_S = 1.0  # for one question
MOST_BYTES = 64 << 10
SASL_HANDSHAKE = 17
NO_SASL, UNKNOWN_MECHANISM = 34, 33  # error codes: the listener does not authenticate, or not in this way


class Listener(NamedTuple):
    """``mechanisms`` of SASL; empty: it does not authenticate; None: it did not say. ``error``: how TLS failed."""

    tls: bool
    mechanisms: tuple[str, ...] | None = None
    error: ssl.SSLError | None = None


def ask(host: str, port: int, ours: ssl.SSLContext | None) -> Listener | None:
    """What listens there, tried with our TLS context first if there is one; None: nobody knows. Blocks for 4 s at most.

    A proxy is not gone through.
    """
    for context in (ours, None) if ours else (None, _trusting()):
        try:
            return Listener(context is not None, _mechanisms(host, port, context))
        except ssl.SSLError as error:
            if is_alert(error):
                return Listener(True, error=error)
        except (OSError, ValueError, struct.error):
            continue
    return None


def is_alert(error: ssl.SSLError) -> bool:
    """The other side has said so, in TLS."""
    return "ALERT" in (error.reason or "")


def _trusting() -> ssl.SSLContext:
    """Only to see whether it is TLS: nothing of ours is sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _mechanisms(host: str, port: int, context: ssl.SSLContext | None) -> tuple[str, ...] | None:
    with socket.create_connection((host, port), timeout=ASK_S) as plain:
        stream = context.wrap_socket(plain, server_hostname=host) if context else plain
        with stream:
            # SaslHandshake, version 0: correlation id 1, no client id, and a mechanism that nobody has.
            request = struct.pack(">hhihh1s", SASL_HANDSHAKE, 0, 1, -1, 1, b"?")
            stream.sendall(struct.pack(">i", len(request)) + request)
            (size,) = struct.unpack(">i", _read(stream, 4))
            if not 6 <= size <= MOST_BYTES:
                raise ValueError("this is no answer of a Kafka broker")
            answer = _read(stream, size)
    correlation, code = struct.unpack_from(">ih", answer)
    if correlation != 1 or code not in (NO_SASL, UNKNOWN_MECHANISM):
        raise ValueError("this is no answer to our question")
    if code == NO_SASL:
        return ()
    (count,), at, names = struct.unpack_from(">i", answer, 6), 10, []
    for _ in range(count):
        (length,) = struct.unpack_from(">h", answer, at)
        names.append(answer[at + 2 : at + 2 + length].decode())
        at += 2 + length
    return tuple(sorted(names))


def _read(stream: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        if not (piece := stream.recv(size - len(data))):
            raise ConnectionError("the listener has hung up")
        data += piece
    return data
