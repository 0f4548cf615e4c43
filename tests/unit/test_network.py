"""Connections to hosts that do not answer: each has its share of the time, and leaves nothing open."""

from __future__ import annotations

import gc
import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from karafka_lite.broker import EmbeddedBroker
from karafka_lite.client import network
from karafka_lite.client.admin import Admin
from karafka_lite.client.consumer import Client
from karafka_lite.client.producer import Producer
from karafka_lite.errors import BrokerUnavailableError

HERE: Any = None  # no rebalance


@pytest.fixture
def silent() -> Iterator[str]:
    """A host that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def filtered() -> Iterator[str]:
    """A host that does not even take connections: as behind a firewall that drops packets."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        waiting = []
        for _ in range(3):  # more than wait for an ``accept``
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(server.getsockname())
            waiting.append(sock)
        yield f"127.0.0.1:{server.getsockname()[1]}"
        for sock in waiting:
            sock.close()


@pytest.fixture
def refusing() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


CLIENTS: dict[str, Callable[[list[str], dict[str, Any]], Any]] = {
    "member": lambda servers, settings: Client("g", servers, settings, HERE, emit=lambda event: None),
    "admin": Admin,
    "producer": Producer,
}


@pytest.mark.parametrize(
    ("kind", "first"),
    [("member", "silent"), ("admin", "silent"), ("producer", "silent"), ("admin", "filtered"), ("admin", "refusing")],
)
def test_a_first_host_that_does_not_answer_leaves_time_for_the_next(
    kind: str, first: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "HOST_S", 0.2)
    monkeypatch.setattr(random, "shuffle", lambda hosts: None)
    monkeypatch.setattr(random, "choice", lambda hosts: hosts[0])  # how kafka-python chooses
    with EmbeddedBroker() as broker:
        servers = [request.getfixturevalue(first), broker.bootstrap_servers]
        client = CLIENTS[kind](servers, {"bootstrap_timeout_ms": 2000})
        began = time.monotonic()
        client.connect()
        client.close()
    assert time.monotonic() - began < 1.5


def test_each_host_is_named_with_its_reason(silent: str, refusing: str) -> None:
    with pytest.raises(BrokerUnavailableError) as raised:
        Admin([silent, refusing], {"bootstrap_timeout_ms": 2000}).connect()
    assert f"{silent} cannot be reached (no answer in time)" in str(raised.value)
    assert f"{refusing} cannot be reached (111 ECONNREFUSED)" in str(raised.value)


def test_a_name_that_does_not_exist_is_named() -> None:
    with pytest.raises(BrokerUnavailableError, match=r"broker\.invalid:9092 cannot be reached \(its name cannot be"):
        Admin(["broker.invalid:9092"], {"bootstrap_timeout_ms": 300}).connect()


@pytest.mark.parametrize("host", ["refusing", "silent", "filtered"])
@pytest.mark.parametrize("settings", [{}, {"security_protocol": "SSL"}], ids=["plain", "TLS"])
def test_connections_that_fail_leave_no_file_open(
    host: str, settings: dict[str, Any], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even until the next collection, which may be far away: at 10 groups Linux's limit of 1,024 was near."""
    monkeypatch.setattr(network, "HOST_S", 0.1)
    address = request.getfixturevalue(host)
    gc.collect()
    gc.disable()
    try:
        before = len(os.listdir("/dev/fd"))
        for _ in range(2):
            with pytest.raises(BrokerUnavailableError):
                Admin([address, address], {"bootstrap_timeout_ms": 250, **settings}).connect()
        assert len(os.listdir("/dev/fd")) <= before
    finally:
        gc.enable()
