"""A handler under test as a plain function: a context that records what it is asked."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Literal, TypedDict, overload

from typing_extensions import Unpack

from karafka_lite.async_context import AsyncContext
from karafka_lite.client.outgoing import check_many, check_outgoing
from karafka_lite.context import Context
from karafka_lite.core import options
from karafka_lite.core.marks import Marks
from karafka_lite.core.options import SeekTarget
from karafka_lite.core.ownership import Ownership, Run, State
from karafka_lite.messages import Addressed, Message, PlainRecord
from karafka_lite.serializer import Serializer, to_json
from karafka_lite.testing.cluster import together


class RecordingContext(Context):
    """A context of no app, as ``context`` makes it. Any message of its partition may be marked.

    Attributes:
        marks: what was marked, as next offsets, in order.
        produced: what was sent, dead letters included, as ``Message``.
        sought, paused_ms: where ``seek`` and ``pause`` wanted to go on, and for how long; None without.
    """

    __slots__ = ("marks", "paused_ms", "produced", "sought")

    _takes_any_message = True
    marks: list[int]
    produced: list[Message]
    sought: SeekTarget | None
    paused_ms: float | None


class AsyncRecordingContext(AsyncContext):
    """A ``RecordingContext`` for an ``async def`` handler: ``asyncio.run(store(batch, ctx))``."""

    __slots__ = ("marks", "paused_ms", "produced", "sought")

    _takes_any_message = True
    marks: list[int]
    produced: list[Message]
    sought: SeekTarget | None
    paused_ms: float | None


class Options(TypedDict, total=False):
    """What ``context`` takes beside a partition; there it is explained."""

    revoked: bool
    stopping: bool
    attempt: int
    group_id: str
    dead_letter: str | None
    state: Mapping[Any, Any] | None
    serializer: Serializer


@overload
def context(
    topic: str, partition: int = 0, *, asynchronous: Literal[False] = False, **more: Unpack[Options]
) -> RecordingContext: ...
@overload
def context(
    topic: str, partition: int = 0, *, asynchronous: Literal[True], **more: Unpack[Options]
) -> AsyncRecordingContext: ...
def context(
    topic: str,
    partition: int = 0,
    *,
    asynchronous: bool = False,
    revoked: bool = False,
    stopping: bool = False,
    attempt: int = 1,
    group_id: str = "test",
    dead_letter: str | None = None,
    state: Mapping[Any, Any] | None = None,
    serializer: Serializer = to_json,
) -> RecordingContext | AsyncRecordingContext:
    """A context for testing a handler as a plain function; ``asynchronous`` for an ``async def`` one.

    Example::

        ctx = context("user_events", revoked=True)
        store(Batch([Message("user_events", 0, 5, value=b"{}")]), ctx)
        assert ctx.marks == []
    """
    ownership = Ownership((topic, partition), options.Options(manual_offsets=True))
    ownership.marks.lowest, ownership.marks.delivered = 0, sys.maxsize  # as if everything had been handed over
    ownership.user_state.update(state or {})
    ownership.marks.closed = revoked
    ownership.state = State.REVOKED if revoked else State.DRAINING if stopping else State.ASSIGNED
    run = ownership.run = Run(ownership, attempt, 0.0)
    recorder = _Recorder()
    kind = AsyncRecordingContext if asynchronous else RecordingContext
    made = kind(recorder, run, group_id, dead_letter, serializer)
    made.marks, made.produced, made.sought, made.paused_ms = [], [], None, None
    recorder.context = made
    return made


class _Recorder:
    """The shell of a RecordingContext."""

    context: RecordingContext | AsyncRecordingContext

    def owns(self, ownership: Ownership) -> bool:
        return not ownership.over

    def mark(self, ownership: Ownership, marks: Marks, offset: int) -> bool:
        ours = marks.mark(offset)
        if ours:
            self.context.marks.append(offset)
        return ours

    def request_commit(self, ownership: Ownership) -> bool:
        return not ownership.over

    async def commit(self, ownership: Ownership, timeout_ms: int) -> bool:
        return not ownership.over

    def redirect(self, ownership: Ownership, target: SeekTarget) -> bool:
        self.context.sought = target
        return not ownership.over

    def pause(self, ownership: Ownership, ms: float) -> bool:
        self.context.paused_ms = ms
        return not ownership.over

    def hand_over(self) -> None: ...

    def dead_letter(
        self, run: Run, message: Addressed, offset: int, attempts: int, reason: str
    ) -> Future[tuple[int, int]]:
        return self.send(run, message)

    def send_many(self, run: Run, messages: Sequence[Addressed]) -> Future[list[tuple[int, int]]]:
        check_many(messages)
        return together([self.send(run, message) for message in messages])

    def send(self, run: Run, message: Addressed) -> Future[tuple[int, int]]:
        check_outgoing(message)
        sent = self.context.produced
        partition, offset = message.partition or 0, sum(one.topic == message.topic for one in sent)
        record = PlainRecord(
            offset, message.timestamp_ms or -1, message.key, message.value, list(message.headers or ())
        )
        sent.append(Message.of_record((message.topic, partition), record, json.loads))
        future: Future[tuple[int, int]] = Future()
        future.set_result((partition, offset))
        return future
