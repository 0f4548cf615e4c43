"""What the group answers: values that say what to do, or how something ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from karafka_lite.core.ownership import Ownership, Run


class Commit(NamedTuple):
    """One offset on its way to the broker."""

    ownership: Ownership
    offset: int
    version: int


class Slow(NamedTuple):
    """A run that takes long, and gets in the way of ``what``, which has a limit."""

    run: Run
    what: Literal["stop", "rebalance", "poll"]
    limit_ms: float


class Outcome(NamedTuple):
    """How a run ended, after ``seconds``.

    ``messages``: how many are done. ``retry_offset``: where the next try begins, in ``retry_s`` seconds; None without
    one. ``given_up``: offset of the message that was given up, and how often it was tried; None without one.
    """

    seconds: float
    messages: int = 0
    retry_offset: int | None = None
    retry_s: float = 0.0
    given_up: tuple[int, int] | None = None


@dataclass
class PollPlan:
    """What the poller does before its next poll."""

    seeks: dict[Ownership, int] = field(default_factory=dict)
    pause: list[Ownership] = field(default_factory=list)
    resume: list[Ownership] = field(default_factory=list)
    rejoin: bool = False  # the member found out by itself that it was lost: the client has to join again
    losses: int = 0  # how often it had been lost when the plan was made

    @property
    def is_empty(self) -> bool:
        """There is nothing to do."""
        return not (self.seeks or self.pause or self.resume or self.rejoin)
