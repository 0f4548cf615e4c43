"""A batch of messages on its way, and the answers to them.

A batch is *open* while messages are added, then *handed over* to kafka-python, which asks its ``records`` for bytes
when it makes a request, outside all locks; then *answered*, once, for all of its messages. One that is too large for
its topic is *split*: its halves are answered in its place.

    Batch    in kafka-python's terms a ProducerBatch
    Sent     the future of one message: it costs nothing until somebody looks at it
    Many     the future of many
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, Protocol, TypeVar

import kafka.errors
from kafka.producer.producer_batch import ProducerBatch

from karafka_lite.client.encoding import State, Unencoded, encode, size_of
from karafka_lite.core.sends import Told
from karafka_lite.errors import ProduceError
from karafka_lite.futures import FutureTimeoutError, LazyFuture, looking, resolve

Receipt = tuple[int, int]
"""Partition and offset of a message that was sent; the offset is -1 where the broker knows only that it has it."""
Errors = Callable[[int], Exception]
"""What is wrong with the message at that index of a batch that was refused."""
R = TypeVar("R")

LOOK_AGAIN_S = 0.2  # how often who waits for an answer sees whether there will be one


class Records:
    """What kafka-python asks of a MemoryRecordsBuilder. Encoded once, when the producer's state is known."""

    def __init__(self, codec: int) -> None:
        self.messages: list[Unencoded] = []
        self.size = 0  # bytes, or some more
        self._forgotten = 0  # how many messages there were
        self._codec = codec
        self._state = State()
        self._encoded: Any = None
        self.wanted = False  # it is drained, and ``buffer`` is not called yet

    @property
    def count(self) -> int:
        """How many messages; asked for also when these are forgotten."""
        return self._forgotten or len(self.messages)

    @property
    def producer_id(self) -> int:
        return self._state.producer_id

    @property
    def producer_epoch(self) -> int:
        return self._state.epoch

    @property
    def base_sequence(self) -> int:
        return self._state.sequence

    def set_producer_state(self, producer_id: int, epoch: int, sequence: int, is_transactional: bool) -> None:
        self._state = State(producer_id, epoch, sequence, is_transactional)

    def next_offset(self) -> int:
        return self.count

    def is_full(self) -> bool:
        return True  # it was handed over

    def close(self) -> None: ...

    def size_in_bytes(self) -> int:
        return self.size if self._encoded is None else len(self._encoded)

    def buffer(self) -> Any:
        if self._encoded is None:
            self._encoded = encode(self.messages, self._codec, self._state)
        encoded, self.wanted = self._encoded, False
        if self._forgotten:
            self.forget()
        return encoded

    def forget(self) -> None:
        """A future that is kept does not keep a batch's messages.

        Those that expire in the turn that they are drained in are sent all the same, and forgotten then: a request with
        no bytes for a partition would be refused as a whole.
        """
        self._forgotten = self.count
        if not self.wanted:
            self.messages, self._encoded = [], b""


class DeadError(kafka.errors.IllegalStateError):  # type: ignore[misc]
    """This producer will not send anything any more."""

    def __init__(self) -> None:
        super().__init__("the producer is closed, or has died of an earlier message")


class Owner(Protocol):
    """Who counts what is unanswered."""

    lock: Any

    def answered(self, batch: Batch, base_offset: int, errors: Errors | None) -> None:
        """kafka-python has an answer; without ``errors`` it is a good one. Not called under ``lock``."""

    def split(self, batch: Batch, halves: Sequence[Batch]) -> None:
        """``halves`` are answered in the place of ``batch``. Called under ``lock``."""

    def hand_over(self) -> None:
        """Somebody waits for an answer."""

    def check(self) -> None:
        """Somebody waits for long: have fail what never gets one."""


class Batch(ProducerBatch):  # type: ignore[misc]
    """Messages of one partition that leave together."""

    def __init__(self, tp: Any, codec: int, owner: Owner) -> None:
        super().__init__(tp, Records(codec))
        self.codec, self.owner = codec, owner
        self.told: list[tuple[Told | None, int]] = []  # who is told of the messages from which index on
        self._answer: tuple[int, Sequence[ProduceError]] | None = None  # offset of the first message, or the failures
        self._halves: tuple[Batch, ...] = ()
        self._watchers: list[tuple[Sent | Many, int]] = []  # with an index

    def add(self, message: Unencoded, size: int, told: Told | None) -> int:
        """Only while it is open, under its producer's lock. Returns the index."""
        records = self.records
        index = len(records.messages)
        if not index or self.told[-1][0] is not told:
            self.told.append((told, index))
        records.messages.append(message)
        records.size += size
        return index

    @property
    def drained(self) -> float | None:
        """When kafka-python has taken it out of the queue, for a request of the same turn."""
        return self._drained

    @drained.setter
    def drained(self, at: float | None) -> None:
        self._drained = at
        if at is not None:
            self.records.wanted = True

    @property
    def tellings(self) -> Iterator[tuple[Told, int, int]]:
        """Who is told of the messages from which index on, up to before which."""
        ends = [begin for _, begin in self.told[1:]] + [self.records.count]
        return ((told, begin, end) for (told, begin), end in zip(self.told, ends, strict=True) if told is not None)

    def split(self) -> tuple[Batch, ...]:
        """Two batches with a half of the messages each, which are answered in the place of this one."""
        middle = (self.records.count + 1) // 2
        halves = [Batch(self.topic_partition, self.codec, self.owner) for _ in range(2)]
        with looking:
            each: list[Told | None] = [None] * self.records.count
            for told, begin, end in () if self._answer else self.tellings:
                each[begin:end] = [told] * (end - begin)
            for index, message in enumerate(self.records.messages):
                halves[index >= middle].add(message, size_of(*message[1:]), each[index])
            self._halves = tuple(halves)
            for watcher, index in self._watchers:
                if isinstance(watcher, Many) or index < middle:
                    halves[0]._watchers.append((watcher, index))
                if isinstance(watcher, Many) or index >= middle:
                    halves[1]._watchers.append((watcher, index - middle))
            self._watchers = []
        for half in halves:
            half.created, half.attempts = self.created, self.attempts
        self.records.forget()
        return self._halves

    # -- answers

    def answer(self, base: int, failures: Sequence[ProduceError]) -> bool:
        """The one answer to all messages; futures that somebody looks at are resolved. False: it had one."""
        with looking:
            if self._answer is not None or self._halves:
                return False
            self._answer = base, failures
            watchers, self._watchers = self._watchers, []
        for watcher, index in watchers:
            watcher.look(self, index)
        return True

    def answer_to(self, index: int) -> Receipt | ProduceError | None:
        """The answer to one message; None: there is none yet."""
        if self._answer is not None:
            base, failures = self._answer
            if failures:
                return failures[index]
            return self.topic_partition.partition, base + index if base >= 0 else -1
        for half in self._halves:
            if index < half.records.count:
                return half.answer_to(index)
            index -= half.records.count
        return None

    @property
    def is_answered(self) -> bool:
        """Whether there is an answer to all of its messages."""
        halves = self._halves
        return self._answer is not None or (bool(halves) and all(half.is_answered for half in halves))

    def watch(self, watcher: Sent | Many, index: int) -> None:
        """``watcher.look`` is called with the answer. Under ``looking``, while there is none."""
        for half in self._halves:
            if isinstance(watcher, Many) or 0 <= index < half.records.count:
                half.watch(watcher, index)
            index -= half.records.count
        if not self._halves and self._answer is None:
            self._watchers.append((watcher, index))

    def _complete_future(self, base_offset: int, timestamp_ms: Any, errors: Any) -> None:
        self.owner.answered(self, base_offset, errors)
        super()._complete_future(base_offset, timestamp_ms, errors)
        self.records.forget()  # not before: one that is overdue for us may still be sent


class Sent(LazyFuture[Receipt]):
    """The future of the message at ``index`` of ``batch``."""

    def __init__(self, batch: Batch, index: int) -> None:
        self._batch, self._index = batch, index  # the rest is made when somebody looks

    def answer(self) -> Receipt | ProduceError | None:
        return self._batch.answer_to(self._index)

    def watch(self) -> None:
        self._batch.watch(self, self._index)

    def result(self, timeout: float | None = None) -> Receipt:
        answer = self._batch.answer_to(self._index)
        if isinstance(answer, tuple):
            return answer
        return _awaited(super().result, timeout, None if answer else self._batch.owner)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        answer = self._batch.answer_to(self._index)
        if answer is not None:
            return None if isinstance(answer, tuple) else answer
        return _awaited(super().exception, timeout, self._batch.owner)


class Many(LazyFuture[list[Receipt]]):
    """The future of messages at ``places``, in batches. It fails with the first failure, when all have an answer."""

    def __init__(self, places: Sequence[tuple[Batch, int]]) -> None:
        self._places, self._resolved = places, False  # the rest is made when somebody looks

    def answer(self) -> list[Receipt] | ProduceError | None:
        if not all(batch.is_answered for batch in self._batches):
            return None
        answers = [batch.answer_to(index) for batch, index in self._places]
        failure = next((answer for answer in answers if isinstance(answer, ProduceError)), None)
        return failure or [answer for answer in answers if isinstance(answer, tuple)]

    def watch(self) -> None:
        for batch in self._batches:
            batch.watch(self, 0)

    def look(self, *_: object) -> None:
        """There is an answer to some."""
        with looking:
            answer = None if self._resolved else self.answer()
            self._resolved |= answer is not None
        if answer is not None:
            resolve(self, answer)

    def result(self, timeout: float | None = None) -> list[Receipt]:
        answer = self.answer()
        if isinstance(answer, list):
            return answer
        return _awaited(super().result, timeout, None if answer else self._owner)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        return _awaited(super().exception, timeout, self._owner)

    @cached_property
    def _batches(self) -> set[Batch]:
        return {batch for batch, _ in self._places}

    @property
    def _owner(self) -> Owner | None:
        return next((batch.owner for batch in self._batches if not batch.is_answered), None)


def _awaited(ask: Callable[[float | None], R], timeout_s: float | None, owner: Owner | None) -> R:
    """What ``ask`` returns once there is an answer. What is open leaves, and ``owner`` sees to it that there is one."""
    if owner is None or timeout_s == 0:
        return ask(timeout_s)
    owner.hand_over()
    deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
    while (left := deadline - time.monotonic()) > LOOK_AGAIN_S:
        try:
            return ask(LOOK_AGAIN_S)
        except FutureTimeoutError:
            owner.check()
    return ask(max(0.0, left))


def first_own(failures: Sequence[ProduceError]) -> ProduceError | None:
    """The first failure that is not another message's fault, else the first; None without one."""
    return next((each for each in failures if not each.collateral), failures[0] if failures else None)
