"""The exceptions of karafka-lite, as one tree.

    Exception
    └── KarafkaLiteError
        ├── ConfigurationError (also a ValueError)   a mistake in code or settings
        │   └── AccessError                          a broker refuses us: credentials, TLS, or a right
        ├── BrokerUnavailableError                   no broker was reached within ``bootstrap_timeout_ms``
        ├── CommitError                              a blocking mark or commit was refused, or not acknowledged in time
        ├── ProduceError                             a sent message was refused, or not acknowledged in time
        ├── ClusterError                             a query about topics or offsets failed
        ├── DeserializationError                     a payload could not be decoded
        └── FetchError                               fetched bytes could not be read (corrupt, missing codec)

Marking something that is not a Message raises Python's ``TypeError``; marking a message of another partition, or one
that this ownership has never received, a ``ValueError``. Both are mistakes in the handler.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from typing import Any

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
MOST_CHARACTERS = 2000  # of a text that we did not write: it may quote a payload of 50 MB
CHAIN = 20  # how many causes of an error are looked at

# Control characters, the ends of lines that splitlines() does not know, what turns the direction of writing, and what
# no encoding can write.
_NOT_SHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def describe(error: BaseException) -> str:
    """Type and text of an error in one line of at most 2,000 characters; only the type if its ``__str__`` raises.

    It calls code of the user, which may take long: not for use under a lock, and once for each error.
    """
    name = type(error).__name__
    try:
        text = one_line(str(error))
    except BaseException:  # noqa: BLE001 - a user's __str__ may raise anything
        text = ""
    return cut(f"{one_line(name)}: {text}" if text else one_line(name))


def one_line(text: str) -> str:
    """``text`` without anything that could begin a line of its own, or tell a terminal what to do; cut."""
    text = " ".join(filter(None, map(str.strip, text[: MOST_CHARACTERS + 1].splitlines())))
    return _NOT_SHOWN.sub(lambda found: ascii(found[0])[1:-1], text)


def cut(text: str) -> str:
    """``text`` up to 2,000 characters."""
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…"


def is_collateral(error: BaseException | None) -> bool:
    """Whether ``error`` is, or was raised because of, the failure of a message that could not help it."""
    for _ in range(CHAIN):
        if error is None or isinstance(error, ProduceError):
            break
        error = error.__cause__ or error.__context__
    return isinstance(error, ProduceError) and error.collateral


class KarafkaLiteError(Exception):
    """The base of all exceptions of this package."""


class ConfigurationError(KarafkaLiteError, ValueError):
    """An App, a route, a hook or a setting is invalid. The message says what is right."""


class AccessError(ConfigurationError):
    """A broker refuses us: credentials, TLS, or a right that is missing. At the start trying again cannot help."""


class BrokerUnavailableError(KarafkaLiteError):
    """No broker could be reached within ``bootstrap_timeout_ms``. ``karafka-lite run`` ends with exit code 3."""


class CommitError(KarafkaLiteError):
    """A blocking mark or commit was refused, or not acknowledged within ``timeout_ms``; the partition is still ours.

    A timeout does not mean that nothing was committed: the broker may have the offset, and only its answer is missing.
    The offset stays stored and is committed again at the next interval, at a rebalance or at the stop.
    """

    @classmethod
    def refused(cls, offset: str, reason: str) -> CommitError:
        """``offset`` cannot be committed as long as nobody removes the ``reason``."""
        return cls(f"{offset} was refused ({reason}); it is tried again every 5 s, and the partition is still ours")

    @classmethod
    def after(cls, timeout_ms: int, offset: str, waits_for: str) -> CommitError:
        """``offset`` was not acknowledged in time, because of ``waits_for``."""
        return cls(
            f"{offset} was not acknowledged within {timeout_ms} ms ({waits_for}); a timeout does not mean that it did "
            f"not happen. The offset stays stored and is committed again; the partition is still ours"
        )


class ProduceError(KarafkaLiteError):
    """A sent message was refused, or not acknowledged in time; in the second case it may have arrived.

    ``collateral``: another message was refused, and the producer that had both on their way had to be replaced. A run
    that fails of it is not counted as a try, and repeated at once.
    """

    collateral = False
    too_large = False  # for its topic

    @classmethod
    def from_failure(cls, failure: BaseException) -> ProduceError:
        """A new error about an earlier ``failure``: one exception that is raised again and again collects frames."""
        error = cls(str(failure) if isinstance(failure, ProduceError) else describe(failure))
        error.collateral = getattr(failure, "collateral", False)
        error.__cause__ = failure
        return error

    @classmethod
    def unanswered(cls, run: str, limit_s: float) -> ProduceError:
        """A message that ``run`` has sent was not acknowledged in time."""
        return cls(f"{run}: a message was not acknowledged within {limit_s:.0f} s; it may have arrived")

    @classmethod
    def of_dead_letter(cls, refused: BaseException, reason: str) -> ProduceError:
        """The dead-letter topic did not take a message, at which the handler had failed for ``reason``."""
        error = cls(f"could not send to the dead-letter topic ({describe(refused)}); handler error was {reason}")
        error.__cause__ = refused
        error.collateral = is_collateral(refused)
        return error


class ClientBrokenError(KarafkaLiteError):
    """kafka-python's client has broken down, and a new one is needed; the cause is chained. Never reaches user code."""


class PollError(KarafkaLiteError):
    """A poll failed in a way that the next one may not. Never reaches user code."""


class StrayedError(KarafkaLiteError):
    """The logs do not have, or may not have, the positions of some partitions: ask for their places.

    ``strays``: by topic and partition. Never reaches user code.
    """

    def __init__(self, strays: Mapping[tuple[str, int], Any]) -> None:
        super().__init__(strays)
        self.strays = strays


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


def in_message(index: int, mistake: Exception) -> Exception:
    """The same mistake, with the index of the message that has it."""
    return (TypeError if isinstance(mistake, TypeError) else ValueError)(f"messages[{index}]: {mistake}")
