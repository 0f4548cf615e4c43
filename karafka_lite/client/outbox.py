"""The producer of an app: whoever sends need not know that there was another one before."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

from karafka_lite.client.batches import DeadError, R, Receipt
from karafka_lite.client.connection import Emit
from karafka_lite.client.outgoing import check_many, check_outgoing
from karafka_lite.client.producer import Producer
from karafka_lite.errors import KarafkaLiteError, ProduceError

if TYPE_CHECKING:
    from karafka_lite.core.sends import Told
    from karafka_lite.messages import Addressed


class Outbox:
    """One producer: created on first use, replaced after a fatal error; by default an idempotent one."""

    def __init__(
        self,
        bootstrap_servers: Sequence[str],
        settings: Mapping[str, Any],
        emit: Emit | None = None,
        *,
        idempotent: bool = True,
    ) -> None:
        self._new = partial(Producer, bootstrap_servers, settings, emit, idempotent=idempotent)
        self._making = threading.Lock()
        self._tries = 0  # to make one
        self._error: KarafkaLiteError | None = None  # of the last
        self._producer: Producer | None = None
        self._closed = False
        self.answer_timeout_s = self._new().answer_timeout_s

    def send(self, message: Addressed, told: Told | None = None) -> Future[Receipt]:
        """As ``Producer.send``. No broker within ``bootstrap_timeout_ms`` is a ProduceError in the future, too."""
        producer = self._producer
        if producer is not None and (sent := producer.send_soon(message, told)) is not None:
            return sent
        check_outgoing(message)  # at the call, also while no broker can be reached
        return self._by_living(lambda producer: producer.send_checked(message, told), [message], told)

    def send_soon(self, message: Addressed, told: Told | None = None) -> Future[Receipt] | None:
        """``send`` where nothing has to be waited for, as for most messages; None: it has to be looked at."""
        producer = self._producer
        return None if producer is None else producer.send_soon(message, told)

    def send_many(self, messages: Sequence[Addressed], told: Told | None = None) -> Future[list[Receipt]]:
        """As ``Producer.send_many``, and as ``send`` where no broker can be reached."""
        check_many(messages)
        return self._by_living(lambda producer: producer.send_many(messages, told), messages, told)

    def _by_living(
        self, send: Callable[[Producer], Future[R]], messages: Sequence[Addressed], told: Told | None
    ) -> Future[R]:
        producer, replaced = self._producer, False
        while True:
            try:
                producer = producer or self._living()
                return send(producer)
            except DeadError as dead:
                if replaced and producer is not None:  # the new one has died, too: of a right that is missing
                    failure = producer.failure_of(messages[0], dead)
                    break
                producer, replaced = None, True
            except KarafkaLiteError as error:
                failure = ProduceError(f"topic {messages[0].topic} did not take a message ({error})")
                break
        future: Future[R] = Future()
        future.set_exception(failure)
        if told is not None:
            told(len(messages), failure)
        return future

    def hand_over(self) -> None:
        """As ``Producer.hand_over``."""
        if (producer := self._producer) is not None:
            producer.hand_over()

    def check(self) -> None:
        """As ``Producer.check``; to be called every 100 ms by a thread that waits for answers."""
        if (producer := self._producer) is not None:
            producer.check()

    def flush(self, timeout_s: float) -> int:
        """Wait up to ``timeout_s`` until every message has its answer; returns how many have none."""
        producer = self._producer
        return 0 if producer is None or producer.flush(timeout_s) else producer.count_unanswered()

    def close(self) -> None:
        """Have fail what is unanswered, which may have arrived, and what waits for a broker."""
        self._closed = True
        if (producer := self._producer) is not None:
            producer.close(0)

    def _living(self) -> Producer:
        producer, tries = self._producer, self._tries
        if self._closed:
            raise ProduceError("the app has stopped")
        if producer is not None and not producer.dead:
            return producer
        with self._making:
            if self._tries == tries:  # else another thread has tried meanwhile: that counts for all who waited
                self._make()
            if self._error is not None or self._producer is None:
                raise self._error or ProduceError("the app has stopped")
            return self._producer

    def _make(self) -> None:
        dead, self._producer = self._producer, None
        if dead is not None:
            dead.close(0)
        producer, self._error = self._new(), None
        try:
            producer.connect()
            self._producer = producer
        except KarafkaLiteError as error:
            self._error = error
        self._tries += 1
        if self._closed:  # meanwhile
            producer.close(0)
