"""What an app sends beside its handlers: tied to no offset, from any thread, whether the app runs or not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple

from karafka_lite.messages import Addressed
from karafka_lite.observers.delivery import Delivery
from karafka_lite.observers.progress import Progress
from karafka_lite.observers.report import report_delivery

if TYPE_CHECKING:
    from karafka_lite.client.connection import Emit
    from karafka_lite.client.outbox import Outbox

log = logging.getLogger("karafka_lite")

LOOK_S = 1.0  # how late a message is given up that nobody will send any more


class _Open(NamedTuple):
    outbox: Outbox
    report: Delivery  # what is said about brokers is logged on a thread of its own, as for an app that runs
    watch: Any
    over: Any


class Sender:
    """An outbox from the first message on until ``close``; the next message opens another one.

    ``system``: has locks and threads, as the runner's. ``make`` makes an outbox that has connected to nothing yet.
    """

    def __init__(self, system: Any, make: Callable[[Emit], Outbox]) -> None:
        self._system = system
        self._lock = system.lock()
        self._make = make
        self._open: _Open | None = None

    @property
    def is_open(self) -> bool:
        """Whether something was sent since the last ``close``."""
        return self._open is not None

    def send(self, message: Addressed) -> Future[tuple[int, int]]:
        """As ``Outbox.send``."""
        return self._outbox().send(message)

    def send_many(self, messages: Sequence[Addressed]) -> Future[list[tuple[int, int]]]:
        """As ``Outbox.send_many``."""
        return self._outbox().send_many(messages)

    def close(self, timeout_s: float) -> None:
        """Wait up to ``timeout_s`` for the answers to what was sent; what has none then fails, and that is said."""
        with self._lock:
            opened, self._open = self._open, None
        if opened is None:
            return
        unanswered = opened.outbox.flush(timeout_s)
        opened.outbox.close()
        opened.over.set()
        opened.watch.join()
        opened.report.stop()
        if unanswered:
            log.warning(
                "app.produce: no answer from a broker within %.0f s at the stop to messages: %d; each may have arrived "
                "or not, and its future has failed",
                timeout_s,
                unanswered,
            )

    def _outbox(self) -> Outbox:
        with self._lock:
            return (self._open or self._begin()).outbox

    def _begin(self) -> _Open:
        report, over = report_delivery(Progress()), self._system.event()
        outbox = self._make(report.emit)

        def look() -> None:
            while not over.wait(LOOK_S):
                outbox.check()

        watch = self._system.thread("karafka-sender", look)
        report.start()
        watch.start()
        self._open = _Open(outbox, report, watch, over)
        return self._open
