"""What a member waits for, and when it is time to say so."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from karafka_lite.messages import TopicPartition, where

AFTER_S, AGAIN_S = 5.0, 30.0
NEVER_SAID = float("-inf")
NAMED = 10  # partitions in a line


class Health(NamedTuple):
    """What a client knows: whether it has joined; since when it fails to fetch partitions, and why; the last error.

    ``silent``: since when heartbeats have no answer; None where they have.
    """

    joined: bool = True
    unfetched: Mapping[TopicPartition, tuple[float, str]] = {}
    cause: str = ""
    silent: float | None = None


class Wait(NamedTuple):
    """A member has been waiting ``for_`` something, for ``seconds``, because of ``cause`` as far as it is known."""

    for_: str
    seconds: float
    cause: str


class Watch:
    """One clock for all that keeps a member from working. Whatever the reason, it is said, and said again."""

    def __init__(self) -> None:
        self._since: float | None = None  # it has not joined, or does not know where to begin
        self._say_at = NEVER_SAID

    @property
    def has_said(self) -> bool:
        """It was said that the member waits, which lasts."""
        return self._say_at != NEVER_SAID

    def look(self, health: Health, unstarted: Mapping[TopicPartition, str], now: float) -> Wait | None:
        """What the member waits for, where it is time to say so; ``unstarted``: whose starting offset is not known, and
        why."""
        since, cause = now if self._since is None else self._since, health.cause
        if not health.joined:
            self._since, waits_for = since, "to join the group"
        elif unstarted:
            self._since, waits_for = since, f"for the starting offsets of {_names(unstarted)}"
            cause = next(iter(unstarted.values())) or cause
        else:
            self._since = None
            lasting = {tp: seen for tp, seen in health.unfetched.items() if now - seen[0] >= AFTER_S}
            if health.silent is not None:
                since, waits_for = health.silent, "for its heartbeats to be answered"
            elif lasting:
                (since, cause), waits_for = min(lasting.values()), f"for messages of {_names(lasting)}"
            else:
                self._say_at = NEVER_SAID
                return None
        if now - since < AFTER_S or now < self._say_at:
            return None
        self._say_at = now + AGAIN_S
        return Wait(waits_for, now - since, cause or "nothing is known to be wrong")


def _names(tps: Collection[TopicPartition]) -> str:
    names = [where(*tp) for tp in sorted(tps)[:NAMED]]
    return ", ".join(names) + f" and {len(tps) - NAMED} more" * (len(tps) > NAMED)
