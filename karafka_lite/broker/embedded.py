"""A Kafka broker in memory, for development and tests: one node, on loopback. In production, use Apache Kafka.

    with EmbeddedBroker({"orders": 3}) as broker:
        KafkaConsumer("orders", bootstrap_servers=broker.bootstrap_servers)

Its parts are files: wire (frames, connections, faults), log (one partition), topics (metadata, produce, fetch), groups
(members and offsets), transactions. They all run on one event loop in one thread; the public methods here may be called
from any other thread.
"""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from kafka.errors import BrokerResponseError
from typing_extensions import Self

from karafka_lite.broker.groups import Groups
from karafka_lite.broker.topics import Topics
from karafka_lite.broker.transactions import Transactions
from karafka_lite.broker.wire import Server
from karafka_lite.errors import ConfigurationError
from karafka_lite.settings import PARTITIONS

T = TypeVar("T")

HOST = "127.0.0.1"
TICK_S = 0.05  # the precision of session timeouts


class EmbeddedBroker:
    """One Kafka node in a thread of this process. Its data is discarded when it stops.

    Args:
        topics: names, or ``{name: partitions}``.
        port: port on 127.0.0.1; 0 chooses a free one.
        partitions: of a topic that is created without a number of them; Kafka's ``num.partitions``, whose default is 1.
            With several, development shows what production does: no order across partitions.
        auto_create_topics: create a missing topic when a client asks for its metadata and permits that.
        max_message_bytes: size limit of a batch of messages; the default is Kafka's.
        retention_bytes: size limit of a partition; above it the oldest messages are dropped (logged once as a warning).
        initial_rebalance_delay_ms: Kafka's ``group.initial.rebalance.delay.ms``, whose default is 3000.
        min_session_timeout_ms: Kafka's ``group.min.session.timeout.ms``.
        request_timeout_ms: how long to wait for the rest of a request.
        max_request_bytes: size limit of a request; a longer one is refused before it is read.

    Raises:
        ConfigurationError: the port is in use, or a topic cannot be created.
    """

    def __init__(
        self,
        topics: Mapping[str, int] | Iterable[str] = (),
        *,
        port: int = 0,
        partitions: int = PARTITIONS,
        auto_create_topics: bool = True,
        max_message_bytes: int = 1_048_588,
        retention_bytes: int = 64 << 20,
        initial_rebalance_delay_ms: int = 0,
        min_session_timeout_ms: int = 6000,
        request_timeout_ms: int = 30_000,
        max_request_bytes: int = 100 << 20,
    ) -> None:
        self._wanted = dict(topics) if isinstance(topics, Mapping) else dict.fromkeys(topics, partitions)
        self._port = port
        self._topics = Topics(
            partitions=partitions, auto_create=auto_create_topics, max_message_bytes=max_message_bytes,
            retention_bytes=retention_bytes,
        )  # fmt: skip
        self._groups = Groups(
            self._topics, initial_rebalance_delay_ms=initial_rebalance_delay_ms,
            min_session_timeout_ms=min_session_timeout_ms,
        )  # fmt: skip
        self._topics.deleted = self._groups.forget_topic
        self._transactions = Transactions(self._topics, self._groups)
        handlers = {**self._topics.handlers(), **self._groups.handlers(), **self._transactions.handlers()}
        self._server = Server(
            handlers, max_request_bytes=max_request_bytes, request_timeout_s=request_timeout_ms / 1000
        )
        self._up = False
        self._loop: asyncio.AbstractEventLoop
        self._thread: threading.Thread | None = None

    # -- life

    def start(self) -> None:
        """Returns when the broker accepts connections."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="karafka-lite-broker", daemon=True)
        self._thread.start()
        try:
            self.up()
            for name, partitions in self._wanted.items():
                self.create_topic(name, partitions)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the broker and discard its data. Does nothing if it is not running."""
        if self._thread is not None:
            self.down()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._thread = None

    def wait(self) -> None:
        """Block until another thread calls ``stop``."""
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    @property
    def bootstrap_servers(self) -> str:
        """``host:port``; known after ``start``."""
        return f"{HOST}:{self._port}"

    def create_topic(self, name: str, partitions: int | None = None) -> None:
        """``partitions``: None, as many as a topic has by default.

        Raises ConfigurationError: the name is invalid, or the topic exists, or collides with another one.
        """
        try:
            self._call(lambda: self._topics.create(name, self._topics.partitions if partitions is None else partitions))
        except BrokerResponseError as refused:
            raise ConfigurationError(refused.args[0]) from None

    # -- faults, for tests

    def fail(self, api: str, fault: type[BrokerResponseError] | int | float | str, times: int = 1) -> None:
        """Make the next ``times`` requests of the type ``api`` ("Produce", "OffsetCommit" …) fail.

        Args:
            fault: an error code or a class of ``kafka.errors``: respond with it, without executing the request;
                ``"drop"``: close the connection instead of executing it; ``"lose"``: execute it, then close the
                connection without a response; a float: execute it so many seconds later.

        Raises:
            ValueError: ``api`` or ``fault`` is unknown.
        """
        code = fault.errno if isinstance(fault, type) else fault
        self._call(lambda: self._server.fail(api, code, times))

    def down(self) -> None:
        """Close all connections and refuse new ones, like a crashed broker. Topics and groups are kept."""
        self._up = False
        self._call(self._server.close)

    def up(self) -> None:
        """Accept connections again, on the same port. Members have a whole session timeout to come back."""
        try:
            self._port = asyncio.run_coroutine_threadsafe(self._server.listen(HOST, self._port), self._loop).result()
        except (OSError, OverflowError) as error:
            in_use = getattr(error, "errno", None) == errno.EADDRINUSE
            reason = "is already in use, perhaps by another broker" if in_use else f"cannot be used: {error}"
            raise ConfigurationError(
                f"port {self._port} on {HOST} {reason}; use another one, for example {self._port % 65_535 + 1}"
            ) from None
        self._topics.address = (HOST, self._port)
        self._call(self._groups.resume)
        self._up = True

    def kick(self, group: str, member: str) -> None:
        """Evict the member with this id, as if its session had expired. Raises KeyError if there is none."""
        self._call(lambda: self._groups.kick(group, member))

    # -- the broker's thread

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        ticking = self._loop.create_task(self._tick())
        self._loop.run_forever()
        ticking.cancel()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            if self._up:
                self._groups.advance()
                self._transactions.advance()

    def _call(self, action: Callable[[], T]) -> T:
        """Call ``action`` in the broker's thread."""
        if self._thread is None:
            raise RuntimeError("the broker is not running; call start(), or use it as a context manager")

        async def do() -> T:
            return action()

        return asyncio.run_coroutine_threadsafe(do(), self._loop).result()
