"""Brokers for development and tests. In production, use Apache Kafka.

Each is imported when it is first used, so that the one does not load what the other needs.
"""

from __future__ import annotations

import importlib
import typing

import karafka_lite.client  # noqa: F401 - before anything else imports kafka-python

if typing.TYPE_CHECKING:
    from karafka_lite.broker.docker import DockerBroker
    from karafka_lite.broker.embedded import EmbeddedBroker

__all__ = ["DockerBroker", "EmbeddedBroker"]

_MODULES = {"DockerBroker": "docker", "EmbeddedBroker": "embedded"}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_MODULES[name]}")
    globals()[name] = broker = getattr(module, name)
    return broker


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
