"""What a route asks of its partitions."""

from __future__ import annotations

from enum import Enum
from typing import Literal, NamedTuple

from karafka_lite.core.backoff import Backoff


class Hook(Enum):
    """What a user may hang on a handler, by the moment at which it runs."""

    ON_SHUTDOWN = "on_shutdown"
    BEFORE_REVOKE = "before_revoke"
    ON_REVOKED = "on_revoked"
    EVERY = "every"


class Time(NamedTuple):
    """The first message that is not older, as a place to begin at."""

    ms: int


Target = int | Literal["earliest", "latest"] | Time  # where a batch may begin; only the cluster knows the latter


class Policy(NamedTuple):
    """What a route asks of its partitions."""

    manual_offsets: bool = False
    max_messages: int = 500
    batch_timeout_ms: int = 0
    backoff: Backoff = Backoff()
    hooks: frozenset[Hook] = frozenset()
    every_ms: tuple[int, ...] = ()  # of each function that is called again and again
    budget: int | None = None  # tries, first of a batch and then of a message by itself; None: it never gives up
