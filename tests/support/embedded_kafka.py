"""The embedded broker in the place of Apache Kafka: what a test does to the one, it does to the other."""

from __future__ import annotations

import threading

from typing_extensions import Self

from karafka_lite.broker.embedded import EmbeddedBroker
from support.kafka_server import free_ports


class EmbeddedKafka:
    """A broker in a thread of this process, with the faults of ``observer.Server``."""

    def __init__(self) -> None:
        (port,) = free_ports(1)  # not one that the kernel gives to a client while the broker is down
        # Kafka's own default, 6000, would be too slow for tests; kafka_server.QUICK has the same.
        self._broker = EmbeddedBroker(port=port, partitions=1, min_session_timeout_ms=1000)
        self._up = False
        self._thaw: threading.Event | None = None

    def __enter__(self) -> Self:
        self._broker.start()
        self._up = True
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.resume()
        self._broker.stop()

    @property
    def bootstrap_servers(self) -> str:
        return self._broker.bootstrap_servers

    @property
    def thread(self) -> threading.Thread:
        assert self._broker._thread
        return self._broker._thread

    def kill(self, node: int = 1) -> None:
        self.resume()
        self._broker.down()
        self._up = False

    def stop(self, node: int = 1) -> None:
        self.kill()

    def pause(self, node: int = 1) -> None:
        """Its loop stands still, as at SIGSTOP: the kernel still takes connections and bytes, and nobody answers."""
        frozen, self._thaw = threading.Event(), threading.Event()

        def freeze(thaw: threading.Event = self._thaw) -> None:
            frozen.set()
            thaw.wait()

        self._broker._loop.call_soon_threadsafe(freeze)
        assert frozen.wait(10), "the broker's loop does not turn"

    def resume(self, node: int = 1) -> None:
        if self._thaw:
            self._thaw.set()
            self._thaw = None

    def restart(self, node: int = 1) -> None:
        if self._up:
            self.stop()
        self._broker.up()
        self._up = True

    def wait_until_ready(self) -> None:
        """It is, as soon as ``resume`` or ``restart`` returns."""
