"""Brokers and connections for the tests of the embedded broker."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # it loads kafka-python, which warns of its own deprecated call: pytest reads its filters first
    from raw import Wire
    from support.observer import Observer


@pytest.fixture
def servers(kafka: Observer) -> str:
    """Each test runs with the embedded broker, and with Apache Kafka, which shows that the test itself is true."""
    _wake_coordinators(kafka.bootstrap_servers)
    return kafka.bootstrap_servers


@functools.cache
def _wake_coordinators(servers: str) -> None:
    """Kafka creates the topics of its coordinators when it is asked for the first of them."""
    from raw import Wire, settled

    with closing(Wire(servers)) as wire:
        for kind in (0, 1):
            settled(wire, "FindCoordinator", key="any", key_type=kind)
        nobody = {"transactional_id": None, "transaction_timeout_ms": 0, "producer_id": -1, "producer_epoch": -1}
        settled(wire, "InitProducerId", **nobody)


@pytest.fixture
def dial(servers: str) -> Iterator[Callable[[], Wire]]:
    """Opens connections, which are closed at the end."""
    from raw import Wire

    with ExitStack() as stack:
        yield lambda: stack.enter_context(closing(Wire(servers)))


@pytest.fixture
def wire(dial: Callable[[], Wire]) -> Wire:
    return dial()
