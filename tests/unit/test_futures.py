"""A future whose state is made when somebody looks is a future like any; those of both kinds of sends are."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from karafka_lite.errors import ProduceError
from karafka_lite.futures import LazyFuture, looking


class Answered(LazyFuture[int]):
    def __init__(self, answer: int | ProduceError | None = None) -> None:
        self.known, self.watched = answer, 0

    def answer(self) -> int | BaseException | None:
        return self.known

    def watch(self) -> None:
        self.watched += 1

    def comes(self, answer: int | ProduceError) -> None:
        self.known = answer
        if self.watched:
            self.look()


def test_nobody_watches_for_who_does_not_look_and_once_for_who_does() -> None:
    future = Answered()
    assert (vars(future).keys(), future.watched) == ({"known", "watched"}, 0)
    assert not future.done()
    assert not future.cancel(), "what it is about is on its way"
    assert future.watched == 1


@pytest.mark.parametrize("looks", [True, False], ids=["looked at before", "looked at after"])
def test_the_answer_is_the_same_whenever_somebody_looks(looks: bool) -> None:
    for answer, read in ((7, Answered.result), (ProduceError("no"), Answered.exception)):
        future, called = Answered(), list[object]()
        if looks:
            future.add_done_callback(called.append)
        future.comes(answer)  # type: ignore[arg-type]
        function: Callable[..., object] = read
        assert function(future, 0) is answer
        assert called == [future] * looks


def test_a_callback_that_ends_its_thread_does_not(caplog: pytest.LogCaptureFixture) -> None:
    future = Answered()
    future.add_done_callback(lambda _: sys.exit(1))
    future.comes(7)
    assert future.result(0) == 7
    assert "exception calling callback" in caplog.text


def test_who_looks_while_it_looks_does_not_wait_for_itself() -> None:
    with looking:  # as a ``__del__`` would
        assert not Answered().done()


def test_another_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="'Answered' object has no attribute 'resutl'"):
        Answered().resutl  # type: ignore[attr-defined] # noqa: B018 - a typo
