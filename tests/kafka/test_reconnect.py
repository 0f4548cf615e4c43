"""Whoever waits for a broker that is down knocks again soon, however long it has waited."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from support.harness import running
from support.observer import wait_until

from karafka_lite import App
from karafka_lite.broker import EmbeddedBroker
from karafka_lite.client.consumer import Client
from karafka_lite.client.producer import Producer
from karafka_lite.errors import BrokerUnavailableError
from karafka_lite.events import Assigned, Event, Unreachable


@contextmanager
def slammed_door(port: int = 0) -> Iterator[tuple[str, list[int]]]:
    """An address that closes each connection at once, and one number for each of them."""
    knocks: list[int] = []
    with socket.create_server(("127.0.0.1", port)) as door:

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


def test_the_next_try_is_never_more_than_about_a_second_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a member, and side by side with it of a producer."""
    monkeypatch.setattr("karafka_lite.client.listeners.ask", lambda *_: None)  # it knocks by itself, at each try
    settings = {"bootstrap_timeout_ms": 10_000}
    rebalance: Any = None

    def tries(make: Callable[[str], Client | Producer]) -> int:
        with slammed_door() as (address, knocks):
            with pytest.raises(BrokerUnavailableError):
                make(address).connect()
            return len(knocks)

    with ThreadPoolExecutor(2) as pool:
        member = pool.submit(tries, lambda address: Client("g", [address], settings, rebalance, lambda event: None))
        producer = pool.submit(tries, lambda address: Producer([address], settings))
    assert min(member.result(), producer.result()) >= 11, "kafka-python's own waits grow to 30 s: 8 tries in 10 s"


def test_a_broker_that_hangs_up_at_once_is_asked_less_and_less_and_said_once() -> None:
    """kafka-python takes the connection for a success, and forgets its back-off: 10 to 16 a second."""
    events: list[Event] = []
    with EmbeddedBroker({"t": 1}) as broker:
        app = App("group", bootstrap_servers=broker.bootstrap_servers)
        app.observe(lambda event: events.append(event))
        app.topic("t")(lambda batch, ctx: None)
        with running(app):
            wait_until(lambda: any(isinstance(event, Assigned) for event in events), message="a member")
            broker.down()
            with slammed_door(int(broker.bootstrap_servers.partition(":")[2])) as (_, knocks):
                wait_until(lambda: len(knocks) >= 7, message="tries")
                began = time.monotonic()
                wait_until(lambda: len(knocks) >= 9, message="more tries")
                assert time.monotonic() - began > 0.5
            broker.up()
    assert len([event for event in events if isinstance(event, Unreachable)]) == 1


def test_at_the_start_a_connection_that_answers_nothing_is_given_up_and_made_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also with one host only: else a connection that has just been cut off costs the whole bootstrap_timeout_ms."""
    monkeypatch.setattr("karafka_lite.client.network.HOST_S", 0.5)
    events: list[Event] = []
    with EmbeddedBroker({"t": 1}) as broker:
        broker.fail("ApiVersions", 10.0)
        app = App("group", bootstrap_servers=broker.bootstrap_servers, bootstrap_timeout_ms=8000)
        app.observe(lambda event: events.append(event))
        app.topic("t")(lambda batch, ctx: None)
        with running(app):
            wait_until(lambda: any(isinstance(event, Assigned) for event in events), 5, message="a member")
