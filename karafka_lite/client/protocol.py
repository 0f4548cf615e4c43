"""What the runner needs of a client: Kafka's, TestClient's in memory, and the simulation's are three of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from karafka_lite.messages import Addressed, Record, TopicPartition

if TYPE_CHECKING:
    from concurrent.futures import Future

    from karafka_lite.core.answers import Commit, Ended, PollPlan
    from karafka_lite.core.marks import Refusal
    from karafka_lite.core.options import SeekTarget
    from karafka_lite.core.sends import Told
    from karafka_lite.core.starts import Place


class Fetched(NamedTuple):
    """Records of one partition from one poll, some ``size_bytes``; ``end_offset``: where the partition ended then."""

    tp: TopicPartition
    records: Sequence[Record]
    end_offset: int | None
    size_bytes: int


class Rebalance(Protocol):
    """What a client calls at a rebalance, naming itself. None of these may block or raise.

    ``begun``: a client of this member has worked. What is refused from then on may be granted again, so it is retried.
    """

    begun: bool

    def on_assigned(self, client: Client, tps: Collection[TopicPartition]) -> None: ...

    def on_revoke(self, client: Client, tps: Collection[TopicPartition]) -> Callable[[], float | None]:
        """Returns a question: seconds to wait before it is asked again, or None when ``tps`` may be given away."""

    def on_lost(self, client: Client) -> None: ...
    def crash(self, thread: str, bug: Exception) -> None:
        """One of these has raised in ``thread``, which is a bug: the app has to stop."""


class Client(Protocol):
    """A member of a group, from ``connect`` to ``close``: one connection, which is not used again.

    ``commit`` is the committer's. ``lost``, ``generation``, ``positions``, ``ends``, ``wake``, ``wake_rebalance`` do
    not block: they are called under the group's lock. All else is the poller's; ``poll`` and ``close`` call the
    ``Rebalance``.
    """

    @property
    def reset(self) -> str:
        """``auto_offset_reset``: where a partition without a commit begins."""

    def connect(self) -> None:
        """Reach a broker, for up to ``bootstrap_timeout_ms``. Raises BrokerUnavailableError, ConfigurationError."""

    def ensure_topics(self, topics: Collection[str]) -> Collection[str]:
        """Create those of ``topics`` that do not exist; returns them. Raises ClusterError, BrokerUnavailableError."""

    def missing_topics(self, topics: Collection[str]) -> set[str]:
        """Those of ``topics`` that do not exist, or that we may not see. Raises PollError."""

    def subscribe(self, topics: Collection[str]) -> None:
        """Join the group for ``topics`` with the next poll."""

    def places(self, tps: Collection[TopicPartition]) -> Mapping[TopicPartition, Place]:
        """What the cluster says of ``tps``, without those of which it says nothing within a second: ask again."""

    def offset_of(self, tp: TopicPartition, target: SeekTarget) -> int | None:
        """Where ``target`` is; None while the cluster cannot say it."""

    def apply(self, plan: PollPlan) -> None:
        """Carry out what the group wants before the next poll. A partition that is not assigned is left alone."""

    def poll(self) -> Sequence[Fetched]:
        """Wait for records, or for ``wake``. Rebalances happen in here.

        Raises FetchError, StrayedError, PollError (the next poll may work), ConfigurationError.
        """

    def positions(self) -> Mapping[TopicPartition, int]:
        """Where fetching goes on: past what ``poll`` has returned, and past offsets without a message."""

    def ends(self) -> Mapping[TopicPartition, int]:
        """Where partitions ended at their last fetch, also where it has brought nothing."""

    def commit(self, commits: Collection[Commit], generation: int) -> Mapping[TopicPartition, Refusal]:
        """Commit if the group is still in ``generation``; one attempt. Returns what the broker does not have now."""

    def stamped(self, commits: Collection[Commit], generation: int) -> Any:
        """What ``Transactions`` of the same kind need to know of ``commits``. Raises errors of Kafka's."""

    def generation(self) -> int:
        """Of the group, as the client knows it: what is owned now is owned in it."""

    def lost(self, now: float) -> bool:
        """Whether the membership is known to be gone. It may turn back to False: remember it."""

    def wake(self) -> None:
        """Have ``poll`` return, if it waits for records: something else is to be done."""

    def wake_rebalance(self) -> None:
        """Have a rebalance that waits for us ask again."""

    def close(self) -> Exception | None:
        """Leave the group at once. Returns why the broker could not be informed."""


class Transactions(Protocol):
    """Where offsets of one group are committed together with messages; the committer's. ``check``: the poller's."""

    def check(self) -> None:
        """Reach a broker. Raises AccessError: a right is missing; ConfigurationError."""

    def commit(self, client: Client, commits: Collection[Commit], generation: int) -> Ended:
        """Send what is in ``commits`` and commit it, in one transaction, if the group is still in ``generation``."""

    def close(self) -> None:
        """Nothing of it is left."""


class Outbox(Protocol):
    """Where messages leave at once."""

    @property
    def answer_timeout_s(self) -> float:
        """After so long there is an answer to every message, or there will be none."""

    def send(self, message: Addressed, told: Told | None = None) -> Future[tuple[int, int]]:
        """The future holds (partition, offset), or a ProduceError. TypeError, ValueError: this cannot be a message.

        ``told`` is called once the futures have their answers; one call may be for many messages.
        """

    def send_soon(self, message: Addressed, told: Told | None = None) -> Future[tuple[int, int]] | None:
        """``send`` where nothing has to be waited for; None, and nothing is sent, where it may have to."""

    def send_many(self, messages: Sequence[Addressed], told: Told | None = None) -> Future[list[tuple[int, int]]]:
        """``send`` for each, in this order; for none where one cannot be a message. Fails with the first failure."""

    def hand_over(self) -> None:
        """Somebody waits for answers: what was sent leaves now."""

    def check(self) -> None:
        """Have the futures fail whose messages no living thread will send any more; never blocks."""

    def close(self) -> None:
        """What is unanswered fails."""
