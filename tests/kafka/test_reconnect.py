"""Whoever waits for a broker that is down knocks again soon, however long it has waited."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from karafka_lite.client.consumer import Client
from karafka_lite.client.producer import Producer
from karafka_lite.errors import BrokerUnavailableError


@contextmanager
def slammed_door() -> Iterator[tuple[str, list[int]]]:
    """An address that closes each connection at once, and one number for each of them."""
    knocks: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as door:

        def slam() -> None:
            while True:
                visitor, _ = door.accept()
                visitor.close()
                if closing.is_set():
                    return
                knocks.append(len(knocks))

        closing = threading.Event()
        porter = threading.Thread(target=slam, name="porter")
        porter.start()
        try:
            yield f"127.0.0.1:{door.getsockname()[1]}", knocks
        finally:
            closing.set()
            socket.create_connection(door.getsockname()).close()
            porter.join()


@pytest.mark.parametrize("kind", ["member", "producer"])
def test_the_next_try_is_never_more_than_about_a_second_away(kind: str) -> None:
    settings = {"bootstrap_timeout_ms": 10_000}
    rebalance: Any = None
    with slammed_door() as (address, knocks):
        member = Client("g", [address], settings, rebalance, emit=lambda event: None)
        client = Producer([address], settings) if kind == "producer" else member
        with pytest.raises(BrokerUnavailableError):
            client.connect()
    assert len(knocks) >= 11, "kafka-python's own waits grow to 30 s: 8 tries in 10 s"
