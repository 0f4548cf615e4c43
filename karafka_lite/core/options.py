"""What a route asks of the partitions of its topics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, NamedTuple

from karafka_lite.core.backoff import Backoff


class Hook(Enum):
    """The kinds of hooks of a handler, by the moment at which they run."""

    ON_ASSIGNED = "on_assigned"
    ON_SHUTDOWN = "on_shutdown"
    BEFORE_REVOKE = "before_revoke"
    ON_REVOKED = "on_revoked"
    EVERY = "every"


@dataclass(frozen=True, eq=False)
class RegisteredHook:
    """A user's function and when it is called; ``every_ms`` counts for ``EVERY`` only."""

    kind: Hook
    function: Callable[[Any], object]
    every_ms: int = 0


class Timestamp(NamedTuple):
    """A seek target: the first message that is not older than ``ms``, Unix time in milliseconds."""

    ms: int


# Where a batch may be asked to begin. Only the cluster knows the offsets of all but the first.
SeekTarget = int | Literal["earliest", "latest"] | Timestamp


class Options(NamedTuple):
    """What a route asks of its partitions.

    ``hooks``: in the order of their registration. ``budget``: how often a message may be tried before it is given up;
    None: as often as it takes. ``parts``: into how many a batch is dealt by key, at the most; 0: it is not
    dealt, and keeps the order of the partition. ``exactly_once``:
    what it sends is committed together with its offsets.
    """

    manual_offsets: bool = False
    max_messages: int = 500
    batch_timeout_ms: int = 0
    backoff: Backoff = Backoff()
    hooks: tuple[RegisteredHook, ...] = ()
    budget: int | None = None
    parts: int = 0
    exactly_once: bool = False

    def hooks_of(self, kind: Hook) -> tuple[RegisteredHook, ...]:
        """The hooks of one kind, in the order of their registration."""
        return tuple(hook for hook in self.hooks if hook.kind is kind)
