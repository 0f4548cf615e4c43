"""Kafka consumers as plain functions, with offsets that are right.

A message is committed because it was processed, never because it was delivered.
"""

from karafka_lite.app import App
from karafka_lite.context import Context
from karafka_lite.errors import (
    BrokerUnavailableError,
    CommitError,
    ConfigurationError,
    DeserializationError,
    FetchError,
    KarafkaLiteError,
    ProduceError,
)
from karafka_lite.messages import Batch, Message
from karafka_lite.version import __version__

__all__ = [  # noqa: RUF022 - grouped: what one writes, what one receives, what is raised
    "App",
    "Batch",
    "Context",
    "Message",
    "BrokerUnavailableError",
    "CommitError",
    "ConfigurationError",
    "DeserializationError",
    "FetchError",
    "KarafkaLiteError",
    "ProduceError",
    "__version__",
]
