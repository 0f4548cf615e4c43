"""The exceptions of karafka-lite, as one tree.

    Exception
    └── KarafkaLiteError
        ├── ConfigurationError (also a ValueError)   a mistake in code or settings, found before the network
        ├── BrokerUnavailableError                   no broker answered within ``bootstrap_timeout_ms``
        ├── CommitError                              a blocking mark or commit was not acknowledged in time
        ├── ProduceError                             a message that no broker has acknowledged
        ├── ClusterError                             a question about topics or offsets that got no answer
        ├── DeserializationError                     a payload that the route's deserializer refused
        └── FetchError                               bytes that could not be read (corrupt, unknown codec)

A ``TypeError`` (marking something that is not a Message) and a ``ValueError`` (marking a message of another partition,
or one that was never handed over) are Python's own: they are mistakes in the handler.
"""

from __future__ import annotations

from enum import Enum


class Exit(Enum):
    """The exit codes of ``karafka-lite run``."""

    CLEAN = 0
    ERROR = 1
    FORCED = 2
    NO_BROKER = 3


CRITICAL = (SystemExit, KeyboardInterrupt, MemoryError)  # raised by a handler, they stop the app


def describe(error: BaseException) -> str:
    """Type and text in one line; a text that cannot be made is left out."""
    try:
        return f"{type(error).__name__}: {error}"
    except BaseException:  # of a foreign __str__
        return type(error).__name__


class KarafkaLiteError(Exception):
    """Everything that this package raises on its own account."""


class ConfigurationError(KarafkaLiteError, ValueError):
    """An App, a route, a hook or a setting that cannot work. The message says what to type instead."""


class BrokerUnavailableError(KarafkaLiteError):
    """No broker could be reached within ``bootstrap_timeout_ms``. ``karafka-lite run`` ends with exit code 3."""


class CommitError(KarafkaLiteError):
    """A blocking mark or commit was not acknowledged within ``timeout_ms``; the partition is still ours.

    A timeout does not mean that it did not happen: the broker may have the offset and only its answer is missing.
    The offset stays stored, and is committed again with the next interval, hand-over or stop.
    """

    @classmethod
    def after(cls, timeout_ms: int, offset: str, waits_for: str) -> CommitError:
        """``offset`` was not acknowledged in time, because of ``waits_for``."""
        return cls(
            f"{offset} was not acknowledged within {timeout_ms} ms ({waits_for}); a timeout does not mean that it did "
            f"not happen. The offset stays stored and is committed again; the partition is still ours"
        )


class ProduceError(KarafkaLiteError):
    """A message that was sent was refused, or not acknowledged in time; in the second case it may have arrived.

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


class PollError(KarafkaLiteError):
    """A poll failed in a way that the next one may not. Never reaches user code."""


class ClusterError(KarafkaLiteError):
    """The cluster was asked about topics or offsets, and refused or did not answer in time."""


class DeserializationError(KarafkaLiteError):
    """``Message.payload`` could not be decoded; the cause is chained, ``Message.value`` stays readable."""


class FetchError(KarafkaLiteError):
    """What a partition holds at ``offset`` cannot be read. The partition waits in back-off and is read again.

    Attributes: ``topic``, ``partition``, ``offset`` (where reading stopped); the cause is chained.
    """

    def __init__(self, message: str, topic: str, partition: int, offset: int) -> None:
        super().__init__(message)
        self.topic = topic
        self.partition = partition
        self.offset = offset
