"""How messages of user code leave: at once (``Sending``), or with the next mark of their partition (``Holding``).

Called on the thread of user code. What is decided, ``core/`` decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from karafka_lite.core.exact import ExactOwnership
from karafka_lite.core.group import Group
from karafka_lite.core.ownership import Ownership, Run
from karafka_lite.core.sends import OVER, Held, Receipt, Send, Told
from karafka_lite.errors import ProduceError
from karafka_lite.futures import LazyFuture, looking, resolve
from karafka_lite.messages import Addressed

if TYPE_CHECKING:
    from karafka_lite.client.protocol import Outbox
    from karafka_lite.posts import Posts

LOOK_AGAIN_S = 0.1  # how late a thread that waits sees that there will be no answer
ANSWER_SLACK_S = 5.0  # beyond delivery_timeout_ms: then nothing waits for an answer any longer
Sent = Future[tuple[int, int]]  # (partition, offset) of what was sent
R = TypeVar("R")


class Host(Protocol):
    """What is asked of the group's member."""

    group: Group
    lock: Any

    def locked(self) -> AbstractContextManager[float]: ...
    async def wait(self, ownership: Ownership, seconds: float, *, to_the_end: bool = False) -> None: ...
    async def rest(self, run: Run, deadline: float) -> None: ...
    def _now(self) -> float: ...
    def _dispatch(self) -> None: ...


class Sending:
    """Messages leave at once; what is marked after them waits for their answers."""

    def __init__(self, host: Host, outbox: Outbox, posts: Posts | None) -> None:
        self._host, self._outbox, self._posts = host, outbox, posts

    def send(self, run: Run, message: Addressed, *, after_failure: bool = False) -> Sent:
        """As ``context.Shell``."""
        told = self._sending(run, 1, after_failure)
        try:
            return (self._outbox if self._posts is None else self._posts.of(run)).send(message, told)
        except BaseException:  # it cannot be a message: nothing has left
            told(1, None)
            raise

    def send_many(self, run: Run, messages: Sequence[Addressed]) -> Future[list[tuple[int, int]]]:
        """As ``context.Shell``."""
        told = self._sending(run, len(messages))
        try:
            return (self._outbox if self._posts is None else self._posts.of(run)).send_many(messages, told)
        except BaseException:  # one of them cannot be a message: nothing has left
            told(len(messages), None)
            raise

    def _sending(self, run: Run, count: int, after_failure: bool = False) -> Told:
        """Marks of ``run`` wait for ``count`` more messages from now on. Returns who is told of their answers."""
        marks = run.marks
        with self._host.lock:
            if run.over or marks.failure is not None:
                self._check(run, after_failure)
            send = marks.sending(count)
            send.told = send.told or partial(self._answered, run, send)
            return send.told

    def _check(self, run: Run, after_failure: bool) -> None:
        if run.over:
            raise RuntimeError(f"cannot produce after the handler has returned ({run})")
        if run.marks.failure is not None and not after_failure:
            raise ProduceError.from_failure(run.marks.failure)

    def _answered(self, run: Run, send: Send, count: int, failure: BaseException | None) -> None:
        host = self._host
        with host.lock:  # on the producer's thread, which does not emit either
            host.group.answered(run, send, failure, host._now(), count)
            host._dispatch()

    def dead_letter(self, run: Run, message: Addressed, offset: int) -> Sent:
        """As ``send``; the message at ``offset`` of ``run`` counts as marked once everything before it is."""
        future = Sending.send(self, run, message)
        with self._host.lock:
            run.ownership.mark_alone(run, offset)
        return future

    async def last_letter(self, run: Run, letter: Addressed) -> Sent:
        """Send the dead letter of a run that has failed once too often. The future has its answer."""
        sent = Sending.send(self, run, letter, after_failure=True)
        await self.await_answers(run)
        return sent

    def function_ended(self, run: Run, *, failed: bool) -> None:
        """Of a call of hooks one function has returned; ``failed``: it raised."""

    async def ended(self, run: Run, *, failed: bool) -> BaseException | None:  # noqa: ARG002 - what was sent has left
        """User code has returned; ``failed``: it raised. As ``await_answers``."""
        return await self.await_answers(run)

    async def await_answers(self, run: Run) -> BaseException | None:
        """Wait until everything that was sent is acknowledged or has failed. Returns the first failure."""
        host, marks, outbox = self._host, run.marks, self._outbox
        deadline = host._now() + (limit_s := outbox.answer_timeout_s + ANSWER_SLACK_S)
        outbox.hand_over()
        while True:
            with host.lock:
                if not marks.in_flight:
                    return marks.failure
                if host._now() >= deadline:
                    marks.give_up_answers(ProduceError.unanswered(str(run), limit_s))
                    continue
                await host.wait(run.ownership, LOOK_AGAIN_S, to_the_end=True)
            outbox.check()


class Holding(Sending):
    """Messages wait for the next mark of their partition, and leave with its commit: ``exactly_once``."""

    def __init__(self, host: Host, outbox: Outbox, posts: Posts | None, drain_s: float) -> None:
        from karafka_lite.client import outgoing  # here: kafka-python takes 0.1 s to import

        super().__init__(host, outbox, posts)
        self._drain_s, self._checks = drain_s, outgoing

    def send(self, run: Run, message: Addressed, *, after_failure: bool = False) -> Sent:
        """As ``context.Shell``."""
        self._checks.check_outgoing(message)
        ownership = run.ownership
        with self._host.lock:  # as ``_hold``: a call less for each message
            if run.over or run.marks.failure is not None:
                self._check(run, after_failure)
            held = _over(ownership) if ownership.marks.closed else ownership.marks.hold()
            held.messages.append(message)
            return Waiting(run, held, len(held.messages) - 1)

    def send_many(self, run: Run, messages: Sequence[Addressed]) -> Future[list[tuple[int, int]]]:
        """As ``context.Shell``."""
        self._checks.check_many(messages)
        return Waiting[list[Receipt]](run, *self._hold(run, messages))

    def _hold(self, run: Run, messages: Sequence[Addressed]) -> tuple[Held, int, int]:
        ownership = run.ownership
        with self._host.lock:
            self._check(run, after_failure=False)
            if ownership.over:
                return _over(ownership), 0, 0
            held = ownership.marks.hold()
            begin = len(held.messages)
            held.messages += messages
            return held, begin, begin + len(messages)

    def dead_letter(self, run: Run, message: Addressed, offset: int) -> Sent:
        """It leaves with the mark that passes the message at ``offset``; at once, where that may take long."""
        with self._host.lock:
            self._check(run, after_failure=False)
            over = run.ownership.over
            held = _over(run.ownership) if over else _exact(run).hold_letter(run, message, offset)
        return super().dead_letter(run, message, offset) if held is None else Waiting[Receipt](run, held, 0)

    async def last_letter(self, run: Run, letter: Addressed) -> Sent:
        """It leaves with the mark that passes it, if that can be made now; else at once, and by itself.

        It never leaves where the partition is not ours any more: who owns it tries the message, too.
        """
        ownership = run.ownership
        with self._host.locked() as now:
            over = ownership.over
            held = _over(ownership) if over else _exact(run).hold_letter(run, letter, run.culprit or 0)
            self._host.group.claim(ownership, now)
        if held is None:
            return await super().last_letter(run, letter)
        await self._await_commit(run)
        with self._host.lock:
            answer = held.answer or ProduceError(f"{run}: its dead letter waits for a commit, and leaves later")
        answered: Sent = Future()
        resolve(answered, answer if isinstance(answer, ProduceError) else answer[0])
        return answered

    def function_ended(self, run: Run, *, failed: bool) -> None:
        """What one that has failed has sent never leaves, whatever others mark."""
        with self._host.lock:
            _exact(run).function_ended(failed=failed)

    async def ended(self, run: Run, *, failed: bool) -> BaseException | None:
        """As ``Sending``; and until what the marks of ``run`` have released is committed, for ``drain_timeout_ms``."""
        if run.is_part or run.ownership.marks.sends.held:
            with self._host.locked() as now:
                _exact(run).returned(run, failed=failed)
                self._host.group.claim(run.ownership, now)
            await self._await_commit(run)
        return await super().ended(run, failed=failed)

    async def _await_commit(self, run: Run) -> None:
        host, deadline = self._host, self._host._now() + self._drain_s
        while True:
            with host.locked() as now:  # which sees whether the partition is still ours
                if not run.ownership.marks.released or now >= deadline:
                    return
            await host.rest(run, deadline)


def _exact(run: Run) -> ExactOwnership:
    assert isinstance(run.ownership, ExactOwnership), "of a route with exactly_once"
    return run.ownership


def _over(ownership: Ownership) -> Held:
    """Messages that never leave."""
    return Held(ownership.marks.last, answer=ProduceError(OVER))


class Waiting(LazyFuture[R]):
    """Of what leaves with a mark of ``run``, and so has no answer as long as that waits for this one.

    It is about the messages of ``held`` from ``begin`` up to before ``end``; None: about that one.
    """

    def __init__(self, run: Run, held: Held, begin: int, end: int | None = None) -> None:
        self._run, self._held = run, held  # the rest is made when somebody looks
        self._begin, self._end = begin, end

    def answer(self) -> Any:
        answer = self._held.answer
        if answer is None or isinstance(answer, ProduceError):
            return answer
        return answer[self._begin] if self._end is None else list(answer[self._begin : self._end])

    def watch(self) -> None:
        self._held.watchers.append(self)

    def result(self, timeout: float | None = None) -> R:
        self.check_wait()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self.check_wait()
        return super().exception(timeout)

    def check_wait(self) -> None:
        """Raises RuntimeError: who waits would wait for ever."""
        if self._held.answer is None and not self._run.over:
            raise RuntimeError(
                f"{self._run}: with exactly_once a message leaves with the next mark, and has no answer before: mark "
                f"with ctx.mark_as_consumed(message, sync=True) first, or look at the future in a callback"
            )


def pass_on(held: Held) -> None:
    """Tell who looks at the futures of ``held``. Not to be called under the lock: they have callbacks of user code."""
    with looking:
        watchers, held.watchers = held.watchers, []
    for watcher in watchers:
        watcher.look()
