"""The exceptions of karafka-lite, as one tree.

    Exception
    └── KarafkaLiteError
        ├── ConfigurationError (also a ValueError)   a mistake in code or settings
        │   └── AccessError                          a broker refuses us: credentials, TLS, or a right
        ├── BrokerUnavailableError                   no broker was reached within ``bootstrap_timeout_ms``
        ├── CommitError                              a blocking mark or commit was not acknowledged in time
        ├── ProduceError                             a sent message was refused, or not acknowledged in time
        ├── ClusterError                             a query about topics or offsets failed
        ├── DeserializationError                     a payload could not be decoded
        └── FetchError                               fetched bytes could not be read (corrupt, missing codec)

Marking something that is not a Message raises Python's ``TypeError``; marking a message of another partition, or one
that this ownership has never received, a ``ValueError``. Both are mistakes in the handler.
"""

from __future__ import annotations

from enum import Enum

__all__ = [
    "AccessError",
    "BrokerUnavailableError",
    "ClusterError",
    "CommitError",
    "ConfigurationError",
    "DeserializationError",
    "FetchError",
    "KarafkaLiteError",
    "ProduceError",
]


class Exit(Enum):
    """The exit codes of ``karafka-lite run``."""

    CLEAN = 0
    ERROR = 1
    FORCED = 2
    NO_BROKER = 3


CRITICAL = (SystemExit, KeyboardInterrupt, MemoryError)  # raised by a handler, they stop the app


def describe(error: BaseException) -> str:
    """Type and text of an error in one line; only the type if its ``__str__`` raises."""
    name = type(error).__name__
    try:
        text = " ".join(line.strip() for line in str(error).splitlines())
    except BaseException:  # noqa: BLE001 - a user's __str__ may raise anything
        return name
    return f"{name}: {text}" if text else name


class KarafkaLiteError(Exception):
    """The base of all exceptions of this package."""


class ConfigurationError(KarafkaLiteError, ValueError):
    """An App, a route, a hook or a setting is invalid. The message says what is right."""


class AccessError(ConfigurationError):
    """A broker refuses us: credentials, TLS, or a right that is missing. At the start trying again cannot help."""


class BrokerUnavailableError(KarafkaLiteError):
    """No broker could be reached within ``bootstrap_timeout_ms``. ``karafka-lite run`` ends with exit code 3."""


class CommitError(KarafkaLiteError):
    """A blocking mark or commit was not acknowledged within ``timeout_ms``; the partition is still ours.

    A timeout does not mean that nothing was committed: the broker may have the offset, and only its answer is missing.
    The offset stays stored and is committed again at the next interval, at a rebalance or at the stop.
    """

    @classmethod
    def after(cls, timeout_ms: int, offset: str, waits_for: str) -> CommitError:
        """``offset`` was not acknowledged in time, because of ``waits_for``."""
        return cls(
            f"{offset} was not acknowledged within {timeout_ms} ms ({waits_for}); a timeout does not mean that it did "
            f"not happen. The offset stays stored and is committed again; the partition is still ours"
        )


class ProduceError(KarafkaLiteError):
    """A sent message was refused, or not acknowledged in time; in the second case it may have arrived.

    ``collateral``: another message was refused, and the producer that had both on their way had to be replaced.
    """

    collateral = False

    @classmethod
    def from_failure(cls, failure: BaseException) -> ProduceError:
        """A new error about an earlier ``failure``: one exception that is raised again and again collects frames."""
        error = cls(str(failure) if isinstance(failure, ProduceError) else describe(failure))
        error.collateral = getattr(failure, "collateral", False)
        error.__cause__ = failure
        return error


class ClientBrokenError(KarafkaLiteError):
    """kafka-python's client has broken down, and a new one is needed; the cause is chained. Never reaches user code."""


class PollError(KarafkaLiteError):
    """A poll failed in a way that the next one may not. Never reaches user code."""


class ClusterError(KarafkaLiteError):
    """A query about topics or offsets was refused, or not answered in time."""


class DeserializationError(KarafkaLiteError):
    """``Message.payload`` could not be decoded. The cause is chained; ``Message.value`` stays readable."""


class FetchError(KarafkaLiteError):
    """The messages of a partition at ``offset`` cannot be read. Reading is retried with a back-off.

    Attributes: ``topic``, ``partition``, ``offset`` (where reading stopped). The cause is chained.
    """

    def __init__(self, message: str, topic: str, partition: int, offset: int) -> None:
        super().__init__(message)
        self.topic = topic
        self.partition = partition
        self.offset = offset
