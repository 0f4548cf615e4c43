"""What a connection of kafka-python receives: more at a time, and nothing that came right before its end is lost.

kafka-python reads 4,096 bytes at a time. Where an answer comes together with the end of the connection it drops the
answer: "wrong password" is said in one.

Private touch points in kafka-python 3.0 (pinned below 3.1), with tests in tests/kafka/test_cures.py:

    transport._sock_recv, transport._sock
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from functools import partial
from typing import Any

import kafka.errors

RECEIVE_BYTES = 256 << 10
NOTHING_YET = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
RECEIVE_MAX_BYTES = 8 << 20  # in one step of the IO thread, which sends heartbeats between two steps


def receive_more(transport: Any) -> None:
    """Have ``transport`` read as here."""
    transport._sock_recv = partial(received, transport, transport._sock_recv)


def received(transport: Any, stock: Callable[[], tuple[bytes, Any]]) -> tuple[bytes, Any]:
    """What has come, up to about RECEIVE_MAX_BYTES, and an error; where nothing has come, the stock method says why.

    The rest is not forgotten: the socket stays readable. (A TLS record is never read in part, so nothing of it waits
    in the TLS layer, where no selector would see it.)
    """
    pieces, size = [], 0
    try:
        while size < RECEIVE_MAX_BYTES and (piece := transport._sock.recv(RECEIVE_BYTES)):
            pieces.append(piece)
            size += len(piece)
        return (b"".join(pieces), None) if pieces else stock()
    except OSError as error:  # nothing more has come; or the connection is broken, which the next call says
        if pieces or isinstance(error, NOTHING_YET):
            return b"".join(pieces), None
        return b"", kafka.errors.KafkaConnectionError(error)
    except Exception as error:  # noqa: BLE001 - no memory, say: what was received is lost, so the connection has to end
        return b"", kafka.errors.KafkaConnectionError(repr(error))
