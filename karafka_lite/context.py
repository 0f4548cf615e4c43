"""What a handler may ask and do besides reading its batch."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from datetime import datetime
from typing import Any, Literal, Protocol

from karafka_lite.addressing import none_sent, outgoing, outgoing_many
from karafka_lite.core.marks import Marks
from karafka_lite.core.options import SeekTarget, Timestamp
from karafka_lite.core.ownership import Ownership, Run, State
from karafka_lite.coroutines import drive
from karafka_lite.errors import ConfigurationError, cut
from karafka_lite.messages import Addressed, Batch, Message, next_offset_after, where
from karafka_lite.serializer import Serializer, to_json

log = logging.getLogger("karafka_lite")


class Shell(Protocol):
    """What a context asks of the runner, or of a recorder in tests."""

    def owns(self, ownership: Ownership) -> bool:
        """Whether marks still count, asked live."""

    def mark(self, ownership: Ownership, marks: Marks, offset: int) -> bool:
        """Store the next offset to read in ``marks``; False when not the owner. Raises ProduceError: a message was
        refused."""

    def request_commit(self, ownership: Ownership) -> bool:
        """Ask for a commit of everything stored; False when not the owner."""

    async def commit(self, ownership: Ownership, timeout_ms: int) -> bool:
        """Wait until everything stored is on the broker; False when ownership ended first.

        Raises CommitError: not in time; ProduceError: a message that was sent before was refused.
        """

    def redirect(self, ownership: Ownership, target: SeekTarget) -> bool:
        """Have the next batch start at ``target``; False when not the owner."""

    def pause(self, ownership: Ownership, ms: float) -> bool:
        """Hand over no batch for ``ms``; False when not the owner."""

    def send(self, run: Run, message: Addressed) -> Future[tuple[int, int]]:
        """Send a message; what ``run`` marks from now on waits for it. Raises ProduceError: an earlier one failed."""

    def send_many(self, run: Run, messages: Sequence[Addressed]) -> Future[list[tuple[int, int]]]:
        """``send`` for each of these, which are at least one; or for none, where one cannot be sent."""

    def hand_over(self) -> None:
        """Somebody waits for answers: what was sent leaves now."""

    def dead_letter(
        self, run: Run, message: Addressed, offset: int, attempts: int, reason: str
    ) -> Future[tuple[int, int]]:
        """As ``send``; the message at ``offset`` of ``run`` counts as marked once everything before it is."""


class Context:
    """The second argument of a handler and the only one of a hook; a new one for each call.

    Attributes:
        topic, partition, group_id: whose messages these are.
        attempt: 1 at the first try of this batch; back to 1 after a run that did not raise and with a new ownership.
    """

    __slots__ = (
        "_dead_letter", "_marks", "_ownership", "_run", "_serializer", "_shell", "attempt", "group_id", "partition",
        "topic"
    )  # fmt: skip

    def __init__(
        self,
        shell: Shell,
        run: Run,
        group_id: str,
        dead_letter: str | Literal[False] | None = None,
        serializer: Serializer = to_json,
    ) -> None:
        self.topic: str = run.ownership.tp[0]
        self.partition: int = run.ownership.tp[1]
        self.group_id: str = group_id
        self.attempt: int = run.attempt
        self._shell = shell
        self._run = run
        self._ownership = run.ownership
        self._marks = run.marks
        self._dead_letter: str | Literal[False] | None = dead_letter
        self._serializer: Serializer = serializer

    # -- offsets

    def mark_as_consumed(self, message: Message, *, sync: bool = False, timeout_ms: int = 30_000) -> bool:
        """Say that ``message``, and with it everything before it, is processed.

        ``message.next_offset`` is stored at once and committed with the next interval, hand-over or stop. A batch that
        fails later is repeated from the last mark on. An older message than the last mark is stored too: the last mark
        wins, later messages are delivered again. With ``order="key"`` "everything before it" is of this call's batch,
        and an older message changes nothing. With ``exactly_once`` what was sent before leaves with it.

        Args:
            sync: wait until the broker has acknowledged it, also when it had been marked before without ``sync``.
            timeout_ms: how long to wait with ``sync``, in milliseconds.

        Returns:
            True: stored (``sync``: on the broker). False: the partition is no longer ours and nothing was stored;
            somebody else reads on from the last commit, so stop working on this batch. With ``sync`` a False may hide a
            commit that arrived, with only its answer missing: the message may or may not come again.

        Raises:
            TypeError: not a Message; marking a payload is the classic mistake.
            ValueError: a message of another partition, or one that this ownership was never handed.
            CommitError: ``sync`` only: not acknowledged in time although the partition is ours. A timeout does not mean
                that it did not happen; the mark stays stored and will be committed again.
            ProduceError: a message that this run has sent was refused: nothing is stored, the run has failed.
            RuntimeError: ``sync`` in a handler with ``order="key"``: its commit would wait for the other parts.

        Example::

            for message in batch:
                save(message.payload)
                if not ctx.mark_as_consumed(message):
                    return
        """
        marks, ownership = self._marks, self._ownership
        if (
            not isinstance(message, Message)
            or message.tp != ownership.tp
            or not marks.lowest <= (at := message._record.offset) < marks.delivered
        ):
            at = self._of_this_part(message)
        if sync:
            self._check_sync()
        last_mark, offset = marks.stored, next_offset_after(at)
        if not self._shell.mark(ownership, marks, offset):
            return False
        if last_mark is not None and offset < last_mark and not self._run.is_part:
            text = "%s is older than the last mark (next offset %s); later messages will be delivered again"
            log.warning(text, message, last_mark)
        return drive(self._shell.commit(self._ownership, timeout_ms)) if sync else True

    def commit_offsets(self, *, sync: bool = False, timeout_ms: int = 30_000) -> bool:
        """Ask for a commit of everything that is stored, without waiting for the interval.

        Args:
            sync: wait until everything stored for this partition is on the broker.
            timeout_ms: how long to wait with ``sync``, in milliseconds.

        Returns:
            True: still the owner (``sync``: and everything stored is on the broker). False: no longer the owner.

        Raises:
            CommitError: ``sync`` only: not acknowledged in time although the partition is ours.
            ProduceError: ``sync`` only: a message that this run has sent was refused.
            RuntimeError: ``sync`` in a handler with ``order="key"``: see ``mark_as_consumed``.
        """
        if not sync:
            return self._shell.request_commit(self._ownership)
        self._check_sync()
        return self._shell.owns(self._ownership) and drive(self._shell.commit(self._ownership, timeout_ms))

    # -- flow

    _takes_any_message = False  # in a test of a plain function, where nothing was handed over

    def each(self, batch: Iterable[Message]) -> Iterator[Message]:
        """The messages of ``batch``, each marked when the loop asks for the next one.

        Ends early when it is time to wrap up (``stopping``) or the partition is gone (``revoked``). What was not handed
        out is not marked, in automatic mode either, and neither is the message in hand when the loop is left by
        ``break`` or ``return``: the next batch starts with it, after ``backoff_ms`` when this run marked nothing.

        **Work inside the loop.** ``list(ctx.each(batch))``, or a pool's ``map`` over it, marks before the work is done.

        Raises:
            TypeError, ValueError: at the start of the loop, with nothing marked: something else than messages of the
                batch that this call was handed, in rising order. ``sorted(batch, key=…)`` cannot be marked one by one.

        Example::

            for message in ctx.each(batch):
                save(message.payload)
        """
        run = self._run
        for message in self._checked(batch):
            run.in_hand = message.offset
            if self.stopping or self.revoked:
                return
            yield message
            if not self.mark_as_consumed(message):
                return
        run.in_hand = None

    def _checked(self, batch: Iterable[Message]) -> Iterable[Message]:
        """``batch``, if ``each`` may mark its messages one after the other."""
        handed = self._run.records
        if isinstance(batch, Batch) and batch.is_of(self._ownership.tp, handed):
            return batch
        messages = list(itertools.islice(batch, len(handed) + 1)) if handed else list(batch)
        offsets, before = {record.offset for record in handed}, -1
        for message in messages:
            if not isinstance(message, Message) or message.tp != self._ownership.tp:
                raise self._refusal("each", message)
            if message.offset not in offsets and not self._takes_any_message:
                raise ValueError(
                    f"each takes messages of the batch that was handed to this call, which {message} is not"
                )
            if message.offset <= before:
                raise ValueError(
                    f"each takes messages in rising order of their offsets: it would mark {message} after offset "
                    f"{before}. Loop over the batch, and mark at the end with ctx.mark_as_consumed(batch.last)"
                )
            before = message.offset
        return messages

    def seek(self, to: int | Literal["earliest", "latest"] | datetime) -> bool:
        """Have the next batch start elsewhere; the batch in hand goes on, and is not marked by itself.

        Marks made in this run still count, and so do those of the next batch, be they older or newer.

        Args:
            to: an offset, ``"earliest"``, ``"latest"``, or a datetime with its time zone (the first message that is not
                older, else the end). An offset that does not exist goes where ``auto_offset_reset`` says.

        Returns:
            False: the partition is no longer ours.

        Raises:
            TypeError, ValueError: nothing to seek to: a negative offset, another word, a datetime without a time zone.
        """
        return self._shell.redirect(self._ownership, _seek_target("seek", to))

    def pause(self, ms: float, *, offset: int | None = None) -> bool:
        """Have no batch of this partition for ``ms`` milliseconds; other partitions go on.

        With ``offset`` the next batch starts there, and this run is not marked by itself; without it only the time
        changes. A back-off that is longer than the pause stays. It ends with the ownership.

        Returns:
            False: the partition is no longer ours.

        Raises:
            TypeError, ValueError: ``ms`` or ``offset`` is negative, or no number.
        """
        if isinstance(ms, bool) or not isinstance(ms, int | float):
            raise TypeError(f"pause takes milliseconds, not {ms!r}; for example: ctx.pause(5000)")
        if not 0 <= ms < float("inf"):
            raise ValueError(f"pause takes milliseconds from 0, not {ms!r}")
        if offset is not None and not isinstance(_seek_target("pause", offset), int):
            raise TypeError(f"pause starts again at an offset, not at {offset!r}; call ctx.seek({offset!r}) instead")
        if not self._shell.pause(self._ownership, ms):
            return False
        return offset is None or self._shell.redirect(self._ownership, offset)

    def resume(self) -> bool:
        """End a ``pause`` early; may be called from another thread. False: the partition is no longer ours."""
        return self._shell.pause(self._ownership, 0)

    # -- messages that leave

    def produce(
        self,
        topic: str,
        value: Any,
        *,
        key: bytes | str | None = None,
        headers: Iterable[tuple[str, bytes]] | None = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
    ) -> Future[tuple[int, int]]:
        """Send a message. **It is acknowledged before the offset of what it was made from is committed.**

        Returns immediately, except while more than 32 MB are in flight or a new topic is being created. The run ends
        when every message it sent has been acknowledged. A message that is refused fails the run as an exception would,
        and marks made after it are void: the batch comes again, and with it what else it sends. Messages sent after the
        partition was lost are still delivered.

        With ``exactly_once`` it **leaves with the next mark** of this partition (a mark, a step of ``each``, the end of
        an automatic batch), in one transaction with it, and is dropped where its messages come again: in Kafka both are
        there once; what a handler does elsewhere may happen again. Who reads it has to read with
        ``isolation_level="read_committed"``, else what was undone is read, too; this group does. The future has no
        answer inside the run: ``result`` and ``exception`` raise RuntimeError. Once the partition is lost nothing is
        sent. It needs brokers from 2.5, and the rights ``Write`` and ``Describe`` on transactional ids that begin with
        the group's id.

        Args:
            value: ``bytes`` as they are; None is a tombstone; of anything else the App's ``serializer`` makes bytes
                (JSON in UTF-8, see ``to_json``).
            key: chooses the partition as Kafka does; without one, any.
            partition: this one, whatever the key.
            timestamp_ms: Unix time in milliseconds; None: now.

        Returns:
            A future of (partition, offset), once all in-sync replicas have it; else of a ProduceError.

        Raises:
            TypeError, ValueError: no message: no bytes of the value, a bad header, a partition that does not exist.
            ProduceError: an earlier message of this run was refused.
            RuntimeError: the handler has returned.

        Example::

            for message in batch:
                ctx.produce("orders.priced", price(message.payload), key=message.key)
        """
        return self._shell.send(
            self._run, outgoing(topic, value, key, headers, partition, timestamp_ms, self._serializer)
        )

    def produce_many(self, topic: str, messages: Iterable[Any]) -> Future[list[tuple[int, int]]]:
        """Send many messages: all, or none where one cannot be a message. What ``produce`` promises holds for each.

        Args:
            messages: values, and ``Outgoing`` for what has a key, headers, a partition or a timestamp, too.

        Returns:
            A future of all (partition, offset), in the order of ``messages``; else of the first ProduceError, when all
            have an answer: others may have arrived.

        Raises:
            TypeError, ValueError, ProduceError, RuntimeError: as ``produce``, with the index of the message. If one
                cannot be sent, none is.

        Example::

            ctx.produce_many("orders.priced", [Outgoing(price(message.payload), message.key) for message in batch])
        """
        many = outgoing_many(topic, messages, self._serializer)
        return self._shell.send_many(self._run, many) if many else none_sent()

    def dead_letter(self, message: Message, reason: str = "") -> Future[tuple[int, int]]:
        """Send ``message`` to the route's dead-letter topic, by hand: it counts as done.

        In automatic mode nothing more is needed. In manual mode it is marked as soon as everything before it is. With
        ``exactly_once`` it leaves with the mark that passes ``message``; in manual mode with something unmarked before
        it, at once and by itself, and after a crash perhaps twice. In a hook it is such a mark itself: what the hook
        has sent before leaves with it, also if the hook fails later.

        It keeps key, value and headers, and gets the headers ``source-topic``, ``source-partition``, ``source-offset``,
        ``source-timestamp`` (milliseconds), ``source-group``, ``attempts`` (this try included) and ``error``
        (``reason``, up to 2,000 characters).

        Returns, and fails the run, as ``produce`` does.

        Raises:
            ConfigurationError: the handler's topic has no ``dead_letter``.
            TypeError, ValueError: no message of this partition.

        Example::

            if "id" not in message.payload:
                ctx.dead_letter(message, "no id")
        """
        letter = self.as_dead_letters(message, reason, uncounted=1)[0]
        attempts = self._ownership.retries.tries_of(message.offset) + 1
        return self._shell.dead_letter(self._run, letter, message.offset, attempts, cut(reason))

    def as_dead_letters(self, message: Message, reason: str, *, uncounted: int = 0) -> list[Addressed]:
        """What is sent for ``message`` to the route's dead-letter topic; each is for where the one before is too large.

        The second is without ``reason``, the last without any header of ours. ``uncounted``: tries that go on.
        """
        if not self._dead_letter:
            raise ConfigurationError(
                f"topic {self.topic} has no topic for dead letters: add dead_letter= as in @app.topic({self.topic!r}, "
                f'dead_letter="{self.topic}.dead")'
            )
        foreign = not isinstance(message, Message) or message.tp != self._ownership.tp
        if foreign or not self._marks.was_handed(message.offset):
            raise self._refusal("dead_letter", message)
        source = {
            "source-topic": message.topic,
            "source-partition": str(message.partition),
            "source-offset": str(message.offset),
            "source-timestamp": str(message.timestamp_ms),
            "source-group": self.group_id,
            "attempts": str(self._ownership.retries.tries_of(message.offset) + uncounted),
            "error": cut(reason),
        }
        own = [(name, value or b"") for name, value in message.headers]  # kafka-python sends no header of null
        headers = [*own, *((name, text.encode(errors="replace")) for name, text in source.items())]
        letter = Addressed(self._dead_letter, message.value, message.key, headers)
        return [letter, letter._replace(headers=headers[:-1]), letter._replace(headers=own)]

    # -- ownership

    @property
    def revoked(self) -> bool:
        """True as soon as the partition is no longer ours; live, and never False again for this context."""
        return not self._shell.owns(self._ownership)

    @property
    def stopping(self) -> bool:
        """True when it is time to wrap up: the app stops, or a rebalance wants the partition. Marks still count."""
        return self._ownership.state is State.DRAINING

    # -- the run

    @property
    def state(self) -> dict[Any, Any]:
        """A dict of your own for this partition: kept over batches, never shared with another partition.

        When a failed run is to be repeated it is emptied, but for what ``on_assigned`` had left in it: the unmarked
        messages come again, and a buffer would hold them twice. Dropped with the ownership.
        """
        return self._ownership.user_state

    @property
    def retrying(self) -> bool:
        """Whether this batch was tried before and failed."""
        return self.attempt > 1

    def _of_this_part(self, message: object) -> int:
        """The offset of a message of this part of a batch, which has others between its own. Raises what it is not."""
        if not isinstance(message, Message) or message.tp != self._ownership.tp or not self._run.is_part:
            raise self._refusal("mark_as_consumed", message)
        if not self._marks.was_handed(message.offset):
            raise self._refusal("mark_as_consumed", message)
        return message.offset

    def _check_sync(self) -> None:
        if self._run.is_part:
            raise RuntimeError(
                f'sync=True is not for a handler with order="key" ({self._run}): its commit would wait for the other '
                f"parts of the batch. Leave it out: what is done is committed with the interval"
            )

    def _refusal(self, verb: str, message: object) -> Exception:
        if not isinstance(message, Message):
            return TypeError(
                f"{verb} takes a Message, not {type(message).__name__}; "
                f"pass the message itself (batch.last, or the loop's variable), not its payload"
            )
        if message.tp != self._ownership.tp:
            return ValueError(
                f"{message} does not belong to {where(self.topic, self.partition)}, the partition of this context; "
                f"use the context that came with it"
            )
        if self._run.is_part and self._ownership.marks.was_handed(message.offset):
            return ValueError(
                f'{message} is not of the batch of this call ({self._run}): with order="key" each call gets a part of '
                f"the messages, and marks those of its own"
            )
        handed = f"messages up to {self._marks.delivered}" if self._ownership.handed else "none yet"
        return ValueError(
            f"{message} was never handed to this ownership of {where(self.topic, self.partition)}, which was handed "
            f"{handed}; marking it would skip unread ones"
        )

    def __repr__(self) -> str:
        return f"<Context {where(self.topic, self.partition)} group={self.group_id} attempt={self.attempt}>"


async def give_up(
    context: Context, batch: Batch, send: Callable[[Addressed], Awaitable[Future[tuple[int, int]]]]
) -> tuple[tuple[str, int, int], tuple[str, ...]]:
    """Send the culprit of a run, which is in ``batch``, to the dead letters: with as many headers of ours as fit there.

    ``send`` waits for the answer. Returns topic, partition and offset, and the names of the headers that were left out.
    Raises what the last try failed with.
    """
    (message,) = (message for message in batch if message.offset == context._run.culprit)
    complete, *shorter = context.as_dead_letters(message, context._run.reason)
    sent = await send(letter := complete)
    while shorter and getattr(sent.exception(0), "too_large", False):
        sent = await send(letter := shorter.pop(0))
    return (letter.topic, *sent.result(0)), letter.left_out(complete)


def _seek_target(what: str, to: object) -> SeekTarget:
    if isinstance(to, datetime):
        if to.utcoffset() is None:
            raise ValueError(f"{to!r} has no time zone; for example: datetime(2026, 1, 31, tzinfo=timezone.utc)")
        return Timestamp(int(to.timestamp() * 1000))
    if to == "earliest" or to == "latest":
        return to
    if isinstance(to, bool) or not isinstance(to, int | str):
        raise TypeError(f"{what} takes an offset, 'earliest', 'latest' or a datetime, not {to!r}")
    if isinstance(to, str) or to < 0:
        raise ValueError(f"{what} takes an offset from 0, 'earliest', 'latest' or a datetime, not {to!r}")
    return to
