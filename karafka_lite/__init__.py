"""Kafka consumers as plain functions, with offsets that are right.

A message is committed because it was processed, never because it was delivered.
"""

import warnings

with warnings.catch_warnings():  # kafka-python 3.0 reads a file of its own in a way that Python 3.11 deprecates
    warnings.simplefilter("ignore", DeprecationWarning)
    from karafka_lite.app import App

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
from karafka_lite.messages import Batch, Message
from karafka_lite.routing import Router
from karafka_lite.serializer import to_json
from karafka_lite.version import __version__

__all__ = [  # noqa: RUF022 - grouped: what one writes, what one receives, what is raised
    "App",
    "Router",
    "Batch",
    "Context",
    "Message",
    "Drained",
    "TopicTotals",
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
