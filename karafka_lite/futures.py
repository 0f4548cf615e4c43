"""Futures that cost nothing until somebody looks: most answers nobody looks at."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError  # not Python's own before 3.11
from typing import Any, TypeVar

__all__ = "FutureTimeoutError", "LazyFuture", "looking", "resolve"

R = TypeVar("R")

# Between who looks for an answer, and the answer. Garbage is collected also under it, and a ``__del__`` may look.
looking = threading.RLock()
LAZY = frozenset(vars(Future()))


class LazyFuture(Future[R]):
    """A future whose state is made when somebody looks. It cannot be cancelled: what it is about is on its way."""

    def answer(self) -> R | BaseException | None:
        """The result, or why there is none; None: that is open."""
        raise NotImplementedError

    def watch(self) -> None:
        """Have ``look`` called once there is an answer. Under ``looking``, while there is none."""
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        if name not in LAZY:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        with looking:
            if name not in self.__dict__:
                made: Future[R] = Future()
                made.set_running_or_notify_cancel()
                answer = self.answer()
                if answer is None:
                    self.watch()
                else:
                    resolve(made, answer)
                self.__dict__.update(vars(made))  # at once: another thread finds all of it, or comes here
        return self.__dict__[name]

    def look(self, *_: object) -> None:
        """There is an answer."""
        answer = self.answer()
        assert answer is not None
        resolve(self, answer)


def resolve(future: Future[R], answer: R | BaseException) -> None:
    """Pass ``answer`` on, whatever callbacks do: threads of ours call them."""
    try:
        if isinstance(answer, BaseException):
            future.set_exception(answer)
        else:
            future.set_result(answer)
    except BaseException:  # of a callback; an Exception is caught and logged so by ``future`` itself
        logging.getLogger("concurrent.futures").exception("exception calling callback for %r", future)
