"""A Kafka broker in memory, for development and tests: one node, on loopback. Production is Apache Kafka.

    with EmbeddedBroker({"orders": 3}) as broker:
        KafkaConsumer("orders", bootstrap_servers=broker.bootstrap_servers)

The parts, each in its file: wire (frames, connections, faults), log (one partition), topics (metadata, produce, fetch),
groups (members and offsets), transactions. All of them run on one event loop in one thread; what is public here may be
called from any other thread.
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

T = TypeVar("T")

HOST = "127.0.0.1"
TICK_S = 0.05  # how late a session may expire


class EmbeddedBroker:
    """One node of Kafka in a thread of this process; nothing is kept when it stops.

    Args:
        topics: names, or ``{name: partitions}``.
        port: on 127.0.0.1; 0 takes a free one.
        partitions: of a topic that is created without a number, ``num.partitions`` of Kafka.
        auto_create_topics: whether a client's question for a missing topic creates it, where the client wants that.
        max_message_bytes: largest batch of messages, Kafka's default.
        retention_bytes: per partition; past it the oldest messages are dropped (and a warning is logged once).
        initial_rebalance_delay_ms, min_session_timeout_ms: ``group.…`` of Kafka; the first is 3000 there.
        request_timeout_ms: how long half a request is waited for.
        max_request_bytes: a longer one is refused before it is read.

    Raises:
        ConfigurationError: the port is taken, or a topic cannot be made.
    """

    def __init__(
        self,
        topics: Mapping[str, int] | Iterable[str] = (),
        *,
        port: int = 0,
        partitions: int = 1,
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
        """Returns when it serves."""
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
        """End; what it held is gone."""
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
        """``host:port``, from the start on."""
        return f"{HOST}:{self._port}"

    def create_topic(self, name: str, partitions: int = 1) -> None:
        """Raises ConfigurationError: the name is none, is taken, or collides with another."""
        try:
            self._call(lambda: self._topics.create(name, partitions))
        except BrokerResponseError as refused:
            raise ConfigurationError(refused.args[0]) from None

    # -- faults, for tests

    def fail(self, api: str, fault: type[BrokerResponseError] | int | float | str, times: int = 1) -> None:
        """Spoil the next ``times`` requests named ``api`` ("Produce", "OffsetCommit" … as in Kafka's protocol).

        ``fault``: an error code or a class of ``kafka.errors`` is the answer, and nothing is done; ``"drop"`` cuts the
        connection instead of doing it, ``"lose"`` cuts it afterwards, so that the answer is lost; a float is seconds
        by which it is done later. Raises ValueError.
        """
        what = fault.errno if isinstance(fault, type) else fault
        self._call(lambda: self._server.fail(api, what, times))

    def down(self) -> None:
        """Cut all connections and refuse new ones, as when the broker has crashed. Topics and groups are kept."""
        self._up = False
        self._call(self._server.close)

    def up(self) -> None:
        """Be back, on the same port; members have a whole session to come back."""
        try:
            self._port = asyncio.run_coroutine_threadsafe(self._server.listen(HOST, self._port), self._loop).result()
        except (OSError, OverflowError) as error:
            in_use = getattr(error, "errno", None) == errno.EADDRINUSE
            taken = "is taken, by another broker perhaps" if in_use else f"cannot be used: {error}"
            raise ConfigurationError(f"port {self._port} of {HOST} {taken}; use another one") from None
        self._topics.address = (HOST, self._port)
        self._call(self._groups.come_back)
        self._up = True

    def kick(self, group: str, member: str) -> None:
        """Evict the member with this id, as when its session has expired. Raises KeyError."""
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
        """Do it in the broker's thread."""
        if self._thread is None:
            raise RuntimeError("the broker does not run: start() it, or use it as a context manager")

        async def do() -> T:
            return action()

        return asyncio.run_coroutine_threadsafe(do(), self._loop).result()
