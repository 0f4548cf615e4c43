"""Messages of coroutines: a send that has to wait is done on a thread, and the coroutine goes on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from karafka_lite.core.ownership import Run
from karafka_lite.core.sends import Told
from karafka_lite.errors import ProduceError, describe
from karafka_lite.messages import Addressed
from karafka_lite.workers import Workers

if TYPE_CHECKING:
    from karafka_lite.client.protocol import Outbox

MOST_BYTES = 32 << 20  # that one call has waiting: as much as the producer has unanswered
MESSAGE_BYTES = 400  # what the objects around one message take


class Post(NamedTuple):
    """A send that waits for its turn."""

    send: Callable[[], Future[Any]]
    messages: int
    topic: str
    told: Told
    future: Future[Any]
    size: int


class Queue(deque[Post]):
    """The sends of one call that wait, ``size`` bytes in all."""

    size = 0


class Posts:
    """The sends of one handler's calls. Those of one call leave in their order, and no call waits for another.

    What ``outbox`` takes at once is sent at once: from the first message on that has to wait (for the producer, for a
    new topic, because 32 MB are in flight), and until there are no more, threads do it, at most one for each call.
    """

    def __init__(self, system: Any, name: str, concurrency: int, outbox: Outbox) -> None:
        from karafka_lite.client import outgoing  # here: kafka-python takes 0.1 s to import

        self.outbox, self.checks = outbox, outgoing
        self._lock, self._waiting = system.lock(), dict[Run, Queue]()
        self._workers = Workers(system, f"{name}-sends", concurrency, {})
        self._stopped = False

    def of(self, run: Run) -> Line:
        """Where ``run`` sends."""
        return Line(self, run)

    def stop(self) -> None:
        """End the threads. What a call that is stuck sends then, the outbox, which is closed, refuses at once."""
        with self._lock:
            self._stopped = True
        self._workers.stop()

    def at_once(self, run: Run, message: Addressed, told: Told) -> Future[Any] | None:
        """Send ``message`` if nothing has to be waited for; else None."""
        with self._lock:
            return None if run in self._waiting else self.outbox.send_soon(message, told)

    def put(self, run: Run, post: Post) -> Future[Any]:
        """Send it when it is its turn. Raises ProduceError: too much waits."""
        with self._lock:
            queue = self._waiting.get(run)
            if self._stopped and queue is None:
                self._send(post)
                return post.future
            if queue is None:
                queue = self._waiting[run] = Queue()
                self._workers.put(self, run)
            elif queue.size + post.size > MOST_BYTES:
                raise ProduceError(
                    f"more than {MOST_BYTES >> 20} MB that this call has sent wait for the brokers: await what "
                    "ctx.produce returns now and then, for example after each 1,000 messages"
                )
            queue.append(post)
            queue.size += post.size
        return post.future

    # -- on a thread

    async def run(self, run: Run, place: Any, inside: dict[Any, Run]) -> None:  # noqa: ARG002 - a Caller
        """Send what ``run`` has waiting."""
        while True:
            with self._lock:
                queue = self._waiting[run]
                if not queue:
                    del self._waiting[run]
                    break
                post = queue[0]
            self._send(post)
            with self._lock:
                queue.popleft()
                queue.size -= post.size
        self.outbox.hand_over()

    def crash(self, thread: str, bug: BaseException) -> None:  # noqa: ARG002 - a Caller
        """As ``Caller`` has it: what a send raises is caught where it is sent."""
        raise bug

    def _send(self, post: Post) -> None:
        try:
            sent = post.send()
        except Exception as error:  # noqa: BLE001 - of a message that cannot be one: the call has gone on without it
            failure = ProduceError(f"topic {post.topic} cannot take a message ({describe(error)})")
            post.future.set_exception(failure)
            post.told(post.messages, failure)
        else:
            sent.add_done_callback(lambda done: _pass_on(done, post.future))


class Line:
    """An ``Outbox`` for one call."""

    def __init__(self, posts: Posts, run: Run) -> None:
        self._posts, self._run = posts, run

    def send(self, message: Addressed, told: Told) -> Future[tuple[int, int]]:
        """As ``Outbox.send``, without a wait."""
        posts, outbox = self._posts, self._posts.outbox
        if (sent := posts.at_once(self._run, message, told)) is not None:
            return sent
        posts.checks.check_outgoing(message)
        post = Post(lambda: outbox.send(message, told), 1, message.topic, told, Future(), _size([message]))
        return posts.put(self._run, post)

    def send_many(self, messages: Sequence[Addressed], told: Told) -> Future[list[tuple[int, int]]]:
        """As ``Outbox.send_many``, without a wait."""
        posts, outbox = self._posts, self._posts.outbox
        posts.checks.check_many(messages)
        size = _size(messages)
        post = Post(lambda: outbox.send_many(messages, told), len(messages), messages[0].topic, told, Future(), size)
        return posts.put(self._run, post)


def _size(messages: Sequence[Addressed]) -> int:
    return sum(len(each.value or b"") + len(each.key or b"") + MESSAGE_BYTES for each in messages)


def _pass_on(done: Future[Any], future: Future[Any]) -> None:
    with suppress(Exception):  # it was cancelled by who waits, which changes nothing of the message
        if (error := done.exception()) is not None:
            future.set_exception(error)
        else:
            future.set_result(done.result())
