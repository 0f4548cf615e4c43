"""Kafka consumers as plain functions, with offsets that are right.

A message is committed because it was processed, never because it was delivered.
"""

import typing

from karafka_lite.version import __version__

if typing.TYPE_CHECKING:
    from karafka_lite.app import App
    from karafka_lite.async_context import AsyncContext
    from karafka_lite.context import Context
    from karafka_lite.draining import Drained, DrainError, TopicTotals
    from karafka_lite.errors import (
        AccessError,
        BrokerUnavailableError,
        ClusterError,
        CommitError,
        ConfigurationError,
        DeserializationError,
        FetchError,
        KarafkaLiteError,
        ProduceError,
    )
    from karafka_lite.messages import Batch, Message, Outgoing
    from karafka_lite.observers.health import Health
    from karafka_lite.observers.stats import PartitionStats, Stats
    from karafka_lite.routing import Router
    from karafka_lite.serializer import to_json

__all__ = [  # noqa: RUF022 - grouped: what one writes, what one receives, what is raised
    "App",
    "Router",
    "Batch",
    "Context",
    "AsyncContext",
    "Message",
    "Outgoing",
    "Drained",
    "TopicTotals",
    "Health",
    "Stats",
    "PartitionStats",
    "to_json",
    "AccessError",
    "BrokerUnavailableError",
    "ClusterError",
    "CommitError",
    "ConfigurationError",
    "DeserializationError",
    "DrainError",
    "FetchError",
    "KarafkaLiteError",
    "ProduceError",
    "__version__",
]

_MODULES = {  # of what is not an error
    "App": "app",
    "AsyncContext": "async_context",
    "Batch": "messages",
    "Context": "context",
    "Health": "observers.health",
    "Message": "messages",
    "Outgoing": "messages",
    "PartitionStats": "observers.stats",
    "Router": "routing",
    "Stats": "observers.stats",
    "to_json": "serializer",
    **dict.fromkeys(["Drained", "DrainError", "TopicTotals"], "draining"),
}


if not typing.TYPE_CHECKING:  # else the checkers would take any name for one of ours

    def __getattr__(name: str) -> object:
        """Import what is first used: the command line's help needs none of it."""
        import importlib

        if name in ("errors", "events"):
            return importlib.import_module(f"{__name__}.{name}")
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = importlib.import_module(f"{__name__}.{_MODULES.get(name, 'errors')}")
        globals()[name] = thing = getattr(module, name)
        return thing


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
