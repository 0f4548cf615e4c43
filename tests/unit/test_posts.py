"""Sends of coroutines: none blocks, their order is kept, and what cannot wait without end is refused."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import pytest
from support.observer import wait_until

from karafka_lite import ProduceError
from karafka_lite.messages import Addressed
from karafka_lite.posts import MOST_BYTES, Posts
from karafka_lite.runner import System


class SlowOutbox:
    """Takes the values in ``soon`` at once; others wait until ``open``."""

    answer_timeout_s = 1.0

    def __init__(self) -> None:
        self.soon, self.sent, self.open = True, list[Any](), threading.Event()
        self.handed_over = 0

    def send_soon(self, message: Addressed, told: Any = None) -> Future[tuple[int, int]] | None:
        return self._sent(message, told) if self.soon else None

    def send(self, message: Addressed, told: Any = None) -> Future[tuple[int, int]]:
        assert self.open.wait(20)
        if message.partition is not None:
            raise ValueError("no such partition")
        return self._sent(message, told)

    def send_many(self, messages: Sequence[Addressed], told: Any = None) -> Future[list[tuple[int, int]]]:
        future: Future[list[tuple[int, int]]] = Future()
        future.set_result([self.send(message, told).result() for message in messages])
        return future

    def _sent(self, message: Addressed, told: Any) -> Future[tuple[int, int]]:
        self.sent.append(message.value)
        future: Future[tuple[int, int]] = Future()
        future.set_result((0, len(self.sent) - 1))
        told(1, None)
        return future

    def hand_over(self) -> None:
        self.handed_over += 1

    def check(self) -> None: ...
    def close(self) -> None: ...


@pytest.fixture
def outbox() -> SlowOutbox:
    return SlowOutbox()


@pytest.fixture
def posts(outbox: SlowOutbox) -> Iterator[Posts]:
    posts = Posts(System(), "store", 2, outbox)
    yield posts
    outbox.open.set()
    posts.stop()


def told(*_: object) -> None: ...


def message(value: bytes, **more: Any) -> Addressed:
    return Addressed("t", value, **more)


def test_what_can_leave_at_once_leaves_at_once_and_what_comes_after_one_that_waits_waits_for_its_turn(
    outbox: SlowOutbox, posts: Posts
) -> None:
    one, other = posts.of("run"), posts.of("another run")  # type: ignore[arg-type]
    assert one.send(message(b"1"), told).result(0) == (0, 0)
    outbox.soon = False
    waits = one.send(message(b"2"), told)
    outbox.soon = True
    many = one.send_many([message(b"3"), message(b"4")], told)
    after = one.send(message(b"5"), told)
    assert other.send(message(b"another"), told).done(), "one call does not wait for another"
    assert not waits.done()
    assert not after.done()
    outbox.open.set()
    assert (waits.result(20), many.result(20), after.result(20)) == ((0, 2), [(0, 3), (0, 4)], (0, 5))
    assert outbox.sent == [b"1", b"another", b"2", b"3", b"4", b"5"]
    wait_until(lambda: outbox.handed_over, message="somebody may wait for the answers")
    assert one.send(message(b"6"), told).done(), "nothing waits any more"


def test_what_cannot_be_a_message_is_refused_at_the_call_or_fails_the_run_later(
    outbox: SlowOutbox, posts: Posts
) -> None:
    line, failures = posts.of("run"), list[Any]()  # type: ignore[arg-type]
    outbox.soon = False
    with pytest.raises(TypeError):
        line.send(message("text"), told)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"messages\[1\]|message 1|index 1"):
        line.send_many([message(b"1"), Addressed("no topic", b"2")], told)
    later = line.send(message(b"1", partition=9), lambda count, failure: failures.append((count, failure)))
    outbox.open.set()
    with pytest.raises(ProduceError, match="no such partition"):
        later.result(20)
    ((count, failure),) = failures
    assert (count, type(failure)) == (1, ProduceError)
    assert not outbox.sent


def test_what_a_stuck_call_sends_after_the_stop_makes_no_thread_again(outbox: SlowOutbox, posts: Posts) -> None:
    posts.stop()
    outbox.soon = False
    outbox.open.set()
    assert posts.of("run").send(message(b"1"), told).done()  # type: ignore[arg-type]
    assert not posts._workers.threads


def test_one_call_has_at_most_32_mb_waiting_and_the_sentence_says_what_to_await(
    outbox: SlowOutbox, posts: Posts
) -> None:
    line, megabyte, outbox.soon = posts.of("run"), bytes(1 << 20), False  # type: ignore[arg-type]
    sent = [line.send(message(megabyte), told) for _ in range(MOST_BYTES // (1 << 20) - 1)]
    with pytest.raises(ProduceError, match="await what"):
        line.send(message(megabyte), told)
    posts.of("another run").send(message(bytes(MOST_BYTES + 1)), told)  # type: ignore[arg-type]
    outbox.open.set()
    assert sent[-1].result(20)
    wait_until(lambda: not posts._waiting, message="nothing waits any more")
    assert line.send(message(megabyte), told).result(20)
