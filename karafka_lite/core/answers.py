"""What the group answers: values that say what to do, or how something ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from karafka_lite.core.marks import Refusal
from karafka_lite.core.ownership import Ownership, Run, State
from karafka_lite.core.sends import Held, Receipt
from karafka_lite.errors import ProduceError
from karafka_lite.messages import TopicPartition


class Commit(NamedTuple):
    """One offset on its way to the broker; ``sends``: with ``exactly_once``, in one transaction with these messages."""

    ownership: Ownership
    offset: int
    version: int
    sends: Sequence[Held] = ()


class Committed(NamedTuple):
    """A transaction is committed, but for ``refusals``, which were no part of it; with all of them it has failed.

    ``receipts``: where its messages are.
    """

    receipts: Mapping[Held, Sequence[Receipt]]
    refusals: Mapping[TopicPartition, Refusal]


class Refused(NamedTuple):
    """A transaction is not committed, because one of the messages of ``held`` was refused."""

    held: Held
    error: ProduceError


class Undecided(NamedTuple):
    """Nobody here knows whether a transaction is committed: the brokers say where to begin."""

    error: Exception


Ended = Committed | Refused | Undecided
"""How a transaction has ended."""


class Slow(NamedTuple):
    """A run that takes long, and gets in the way of ``what``, which has a limit."""

    run: Run
    what: Literal["stop", "rebalance", "poll"]
    limit_ms: float


SLOW_POLL, SLOW_DRAIN = 0.8, 0.5  # parts of max_poll_interval_ms and drain_timeout_ms after which a call takes long


def slow_of(run: Run, now: float, drain_s: float, max_poll_s: float) -> Slow | None:
    """Whether ``run`` is slow by now; said once."""
    ownership, slow = run.ownership, None
    if run.reported:
        return None
    if ownership.state is State.DRAINING and ownership.deadline - now < SLOW_DRAIN * drain_s:
        slow = Slow(run, "stop" if ownership.stopping_app else "rebalance", drain_s * 1000)
    elif ownership.state is State.ASSIGNED and now - run.began > SLOW_POLL * max_poll_s:
        slow = Slow(run, "poll", max_poll_s * 1000)
    run.reported = slow is not None
    return slow


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
