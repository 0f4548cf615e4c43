"""What happens while an app runs, as values: for log lines, totals, metrics, and functions of ``@app.observe``.

Events are emitted after the runner has released its lock and are delivered on a thread of their own, in their order.
Seconds are floats; offsets are *next* offsets (the next one to read) unless a field says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from karafka_lite.errors import CRITICAL
from karafka_lite.messages import TopicPartition, where

__all__ = ["Assigned", "Call", "CallEnded", "ClientFailed", "ClientLogged", "CommitFailed", "Committed", "Crashed"]
__all__ += ["DeadLettered", "Event", "Idle", "Joined", "Left", "Lost", "Moved", "PollFailed", "ProcessHookFailed"]
__all__ += [
    "LoopBlocked",
    "Resumed",
    "Revoked",
    "Stalled",
    "Stopping",
    "Stuck",
    "TakesLong",
    "TopicsCreated",
    "Uncommitted",
    "Unmarked",
    "Unreachable",
]
__all__ += ["Unreadable", "Waiting"]


@dataclass(frozen=True, eq=False, repr=False)
class Event:
    """The base of all events."""

    # Here once and not in each class: to generate them would be a tenth of the time of a start.

    group_id: str

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other) if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash((type(self), *vars(self).values()))


@dataclass(frozen=True, eq=False, repr=False)
class Waiting(Event):
    """Topics do not exist, or may not be seen; the member waits for them.

    Emitted every second while it waits; logged every 30 s.
    """

    topics: tuple[str, ...]


Reason = Literal["committed", "earliest", "latest", "new", "deleted", "truncated", "recreated"]
"""Why a partition begins where it does.

``"new"``: with ``auto_offset_reset="latest"``, the start of a partition that is younger than the group. The last three
are those of ``Moved``.
"""


@dataclass(frozen=True, eq=False, repr=False)
class Stalled(Event):
    """The member has been waiting for ``seconds``: ``for_`` offsets, for messages of partitions, to join.

    Or the app, whose ``group_id`` is "" here: for messages to be acknowledged, or for a topic to be created.
    ``cause``: what went wrong last, as far as it is known. After 5 s, and then every 30 s while it lasts.
    """

    for_: str
    seconds: float
    cause: str


@dataclass(frozen=True, eq=False, repr=False)
class Resumed(Event):
    """The member, which had been ``Stalled``, waits for nothing any more."""


@dataclass(frozen=True, eq=False, repr=False)
class Joined(Event):
    """A rebalance has ended: the member has joined, and got these partitions. ``Assigned`` says where they begin."""

    partitions: tuple[TopicPartition, ...]


@dataclass(frozen=True, eq=False, repr=False)
class Idle(Event):
    """The member has joined and got no partition: the group has more members than its topics have partitions."""


@dataclass(frozen=True, eq=False, repr=False)
class Assigned(Event):
    """Partitions are ours and their start is known: by partition the offset and why it begins there."""

    starts: Mapping[TopicPartition, tuple[int, Reason]]


@dataclass(frozen=True, eq=False, repr=False)
class Moved(Event):
    """A partition does not go on where it should, because its log does not have that offset (any more).

    Attributes:
        expected: where it should have gone on: the committed offset, or the position.
        offset: where it goes on.
        reason: ``"deleted"``, retention was faster; ``"truncated"``, the log ends before; ``"recreated"``, the topic
            was deleted and made anew.
        missing: how many offsets before ``expected`` (truncated), or from there on (deleted), the log does not have.
    """

    topic: str
    partition: int
    expected: int
    offset: int
    reason: Reason
    missing: int


@dataclass(frozen=True, eq=False, repr=False)
class Revoked(Event):
    """Partitions were handed over in good order, ``seconds`` after the rebalance asked for them.

    ``committed``: what this ownership knows to be committed; None without a commit.
    """

    committed: Mapping[TopicPartition, int | None]
    seconds: float


@dataclass(frozen=True, eq=False, repr=False)
class Lost(Event):
    """The broker gave these partitions away; nothing more is committed for them."""

    partitions: tuple[TopicPartition, ...]


@dataclass(frozen=True, eq=False, repr=False)
class Call(Event):
    """A call of user code.

    Attributes:
        function: its qualified name.
        hook: ``every``, ``on_shutdown``, …; None for a batch.
        first_offset, last_offset: offsets of the batch's first and last message; -1 for a hook.
        attempt: 1 for the first try.
    """

    topic: str
    partition: int
    function: str
    hook: str | None
    first_offset: int
    last_offset: int
    attempt: int

    @property
    def tp(self) -> TopicPartition:
        """The partition as ``(topic, partition)``."""
        return self.topic, self.partition

    def __str__(self) -> str:
        if self.hook:
            return f"{self.topic}-{self.partition} {self.hook}"
        return where(*self.tp, self.first_offset, self.last_offset)


@dataclass(frozen=True, eq=False, repr=False)
class CallEnded(Call):
    """A call has ended.

    Attributes:
        seconds: how long it took.
        messages: how many of the batch's messages are done: all, or after a failure those that it marked.
        error: what it raised, or why a message that it sent was refused; None where it succeeded.
        retry_offset: where the next try begins; None where there is none (success, a partition that ends, a hook but
            for ``on_assigned``).
        retry_s: seconds until then.
        reason: type and text of ``error`` in one line of at most 2,000 characters; "" without one.
        given_up: offset of the message that was given up, which a ``DeadLettered`` is about; None without one.
        culprit: offset of the message that failed, where it is known: the batch has one, or the loop is over ``each``.
        tries: how often a message is tried before it is given up; None: without end, for there is no ``dead_letter``.
        lag: how many offsets after this batch the partition has, as far as its last fetch knows; None for a hook.
        beside: ``order="key"``: another part of the batch has failed as well, and its event is the one that is logged.
    """

    seconds: float
    messages: int = 0
    error: BaseException | None = None
    retry_offset: int | None = None
    retry_s: float = 0.0
    reason: str = ""
    given_up: int | None = None
    culprit: int | None = None
    tries: int | None = None
    lag: int | None = None
    beside: bool = False

    @property
    def critical(self) -> bool:
        """The error stops the app: SystemExit, KeyboardInterrupt, MemoryError."""
        return isinstance(self.error, CRITICAL)


@dataclass(frozen=True, eq=False, repr=False)
class DeadLettered(Event):
    """A message was given up: its handler failed once too often, or passed it to ``ctx.dead_letter``.

    Attributes:
        topic, partition, offset: the message.
        function: the handler's name.
        attempts: how often it was tried.
        reason: the exception of the last try, or what the handler said.
        dead_letter: where it is now, as (topic, partition, offset of the dead letter); None with ``dead_letter=False``.
        left_out: headers that the dead letter lacks, because with them it would be too large for its topic.
        error: what the last try raised; None where the handler passed it to ``ctx.dead_letter``.
    """

    topic: str
    partition: int
    offset: int
    function: str
    attempts: int
    reason: str
    dead_letter: tuple[str, int, int] | None = None
    left_out: tuple[str, ...] = ()
    error: BaseException | None = None

    def __str__(self) -> str:
        return where(self.topic, self.partition, self.offset)


@dataclass(frozen=True, eq=False, repr=False)
class TakesLong(Call):
    """A call runs for ``seconds`` and gets in the way of ``what``: a ``stop``, a ``rebalance``, or (``poll``) it comes
    near ``max_poll_interval_ms``; ``limit_ms`` is the bound that counts."""

    seconds: float
    what: Literal["stop", "rebalance", "poll"]
    limit_ms: float


@dataclass(frozen=True, eq=False, repr=False)
class LoopBlocked(Event):
    """A coroutine does not await: for ``seconds`` the event loop has done nothing else; ``group_id`` is "".

    After 1 s, and then every 30 s while it lasts.

    Attributes:
        call: whose handler or hook it is, as topic-partition@offset; "" where it is other code on the loop.
        stack: where it is.
    """

    call: str
    seconds: float
    stack: str


@dataclass(frozen=True, eq=False, repr=False)
class Unmarked(Event):
    """``function``, a handler with ``manual_offsets=True``, has processed so many ``messages`` since its last mark.

    From 10,000 on; it is said again only after a mark, and then at twice as many.
    """

    function: str
    messages: int


@dataclass(frozen=True, eq=False, repr=False)
class Committed(Event):
    """The broker has acknowledged these offsets."""

    offsets: Mapping[TopicPartition, int]


@dataclass(frozen=True, eq=False, repr=False)
class CommitFailed(Event):
    """A commit was refused or not answered; the offsets stay pending and are tried again.

    Attributes:
        lasting: as long as nobody changes something, it cannot succeed, and nobody waits for it: the topic is
            ``"gone"``, or the commit is ``"denied"``. None: the next try may succeed.
    """

    offsets: Mapping[TopicPartition, int]
    error: BaseException
    lasting: Literal["gone", "denied"] | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Unreadable(Event):
    """What a partition holds next cannot be read; tried again in ``retry_s`` seconds."""

    topic: str
    partition: int
    error: Exception
    retry_s: float


@dataclass(frozen=True, eq=False, repr=False)
class PollFailed(Event):
    """A poll failed in a way that the next one may not."""

    error: Exception


@dataclass(frozen=True, eq=False, repr=False)
class ClientFailed(Event):
    """kafka-python's client has broken down (``error``); a new one joins."""

    error: BaseException


@dataclass(frozen=True, eq=False, repr=False)
class Unreachable(Event):
    """A broker cannot be reached; tried again. ``group_id`` is empty where no group asked."""

    reason: str


@dataclass(frozen=True, eq=False, repr=False)
class ClientLogged(Event):
    """kafka-python, or our client, has something for the debug log; emitted only if that is enabled.

    Attributes:
        logger: kafka-python's.
        level: the one that kafka-python chose: it logs an ERROR for each ordinary disconnect.
    """

    logger: str
    level: int
    message: str


@dataclass(frozen=True, eq=False, repr=False)
class TopicsCreated(Event):
    """Topics for dead letters that did not exist."""

    topics: tuple[str, ...]


@dataclass(frozen=True, eq=False, repr=False)
class Stopping(Event):
    """The member hands over nothing more and winds down; ``error`` is the reason, None for a plain stop."""

    error: BaseException | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Stuck(Call):
    """A call has not returned within ``drain_timeout_ms`` at the stop; ``stack`` is where the function is."""

    stack: str
    limit_ms: float


@dataclass(frozen=True, eq=False, repr=False)
class Uncommitted(Event):
    """Offsets that were stored and could not be committed before the end; their messages are delivered again."""

    offsets: Mapping[TopicPartition, int]


@dataclass(frozen=True, eq=False, repr=False)
class Left(Event):
    """The member has left its group.

    Attributes:
        unmarked: by partition, how many offsets of processed messages are past the last mark.
        error: why the broker could not be informed; it notices after ``session_timeout_ms``.
        instance_id: of a static member, whose place and partitions are kept for ``session_timeout_ms``.
    """

    unmarked: Mapping[TopicPartition, int]
    error: Exception | None = None
    instance_id: str | None = None


@dataclass(frozen=True, eq=False, repr=False)
class ProcessHookFailed(Event):
    """A function of ``on_start`` or ``on_stop`` has raised; ``group_id`` is "".

    Attributes:
        hook: after ``on_start`` the app does not start; after ``on_stop`` everything else goes on.
        function: its qualified name.
        reason: type and text of ``error`` in one line of at most 2,000 characters.
    """

    hook: Literal["on_start", "on_stop"]
    function: str
    error: BaseException
    reason: str


@dataclass(frozen=True, eq=False, repr=False)
class Crashed(Event):
    """A thread of ours has died of a bug; the app stops with exit code 1."""

    thread: str
    error: BaseException
