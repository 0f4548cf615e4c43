"""The network between members and brokers, for a driver to spoil: one TCP proxy before each node.

A ``ProxiedKafka`` advertises its proxies on a listener of its own: a member that starts at one of them never gets round
them, while the driver and its witnesses use the brokers' own doors.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from contextlib import suppress

from support.kafka_server import JavaKafka, free_ports
from typing_extensions import Self

HOST = "127.0.0.1"
CHUNK = 1 << 16
DELAY_S = 0.5
BYTES_PER_S = 1024
FAULTS = {
    "cut": "every connection is reset, once",
    "refuse": "every connection is reset, and so is each new one",
    "half-open": "connections stay and carry nothing, also not later; new ones are accepted and carry nothing",
    "delay": f"what is sent comes {DELAY_S * 1000:g} ms later",
    "slow": f"{BYTES_PER_S} bytes a second",
    "amid an answer": "an answer comes half, then the connection is reset",
}


class ProxiedKafka(JavaKafka):
    """Brokers with proxies before them. ``proxied_servers`` is for the members."""

    def __init__(self, nodes: int = 1) -> None:
        # librdkafka's producer asks for the topics that it knows, again and again: one that is deleted would come back.
        super().__init__(nodes, {"auto.create.topics.enable": False})
        ports = free_ports(2 * nodes)
        self._doors = {node: (ports.pop(), ports.pop()) for node in self.nodes}
        self.network = Network({node: (proxy, broker) for node, (proxy, broker) in self._doors.items()})

    def __enter__(self) -> Self:
        self.network.start()
        try:
            return super().__enter__()
        except BaseException:
            self.network.stop()
            raise

    def __exit__(self, *exc_info: object) -> None:
        self.network.stop()
        super().__exit__(*exc_info)

    @property
    def proxied_servers(self) -> str:
        return ",".join(f"{HOST}:{proxy}" for proxy, _ in self._doors.values())

    def _properties(self, node: int) -> dict[str, object]:
        properties = super()._properties(node)
        proxy, broker = self._doors[node]
        more = {
            "listeners": f"PROXIED://{HOST}:{broker}",
            "advertised.listeners": f"PROXIED://{HOST}:{proxy}",
            "listener.security.protocol.map": "PROXIED:PLAINTEXT",
        }
        return properties | {name: f"{properties[name]},{value}" for name, value in more.items()}


class Network:
    """``ports``: of each node, where its proxy listens, and where the node does."""

    def __init__(self, ports: Mapping[int, tuple[int, int]]) -> None:
        self._proxies = {node: Proxy(*pair) for node, pair in ports.items()}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="chaos-network")

    def start(self) -> None:
        self._thread.start()
        for proxy in self._proxies.values():
            asyncio.run_coroutine_threadsafe(proxy.listen(), self._loop).result(10)

    def stop(self) -> None:
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def spoil(self, node: int, fault: str) -> None:
        """One of FAULTS; it lasts until ``heal``."""
        self._loop.call_soon_threadsafe(self._proxies[node].spoil, fault)

    def heal(self, node: int) -> None:
        self._loop.call_soon_threadsafe(self._proxies[node].heal)

    async def _close(self) -> None:
        for proxy in self._proxies.values():
            proxy.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}  # type: ignore[arg-type]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


class Link:
    """A connection of a client, and ours to the node."""

    def __init__(self, client: asyncio.StreamWriter, node: asyncio.StreamWriter | None = None) -> None:
        self.client, self.node = client, node
        self.dead = False  # it will carry nothing any more

    def reset(self) -> None:
        for end in (self.client, self.node):
            if end:
                end.transport.abort()


class Proxy:
    """Before one node. Everything here runs in the loop of the Network."""

    def __init__(self, port: int, target: int) -> None:
        self._port, self._target = port, target
        self._fault = ""
        self._links: set[Link] = set()

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, HOST, self._port)

    def close(self) -> None:
        self._server.close()
        self._reset()

    def spoil(self, fault: str) -> None:
        self._fault = fault
        if fault in ("cut", "refuse"):
            self._reset()
        elif fault == "half-open":
            for link in self._links:
                link.dead = True

    def heal(self) -> None:
        self._fault = ""

    def _reset(self) -> None:
        for link in list(self._links):
            link.reset()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = Link(writer)
        self._links.add(link)
        try:
            if self._fault == "refuse":
                return
            link.dead = self._fault == "half-open"
            with suppress(OSError):  # the node is down, or one end has gone
                answers, link.node = await asyncio.open_connection(HOST, self._target)
                await asyncio.gather(
                    self._carry(link, reader, link.node, answers=False),
                    self._carry(link, answers, writer, answers=True),
                )
        finally:
            link.reset()
            self._links.discard(link)

    async def _carry(
        self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool
    ) -> None:
        while data := await reader.read(CHUNK):
            if self._fault == "delay":
                await asyncio.sleep(DELAY_S)
            elif self._fault == "slow":
                data = await self._trickle(data, writer)
            elif self._fault == "amid an answer" and answers:
                writer.write(data[: len(data) // 2])
                await writer.drain()
                break
            if not link.dead:
                writer.write(data)
                await writer.drain()
        link.reset()

    async def _trickle(self, data: bytes, writer: asyncio.StreamWriter) -> bytes:
        """What of it is left when the fault has ended."""
        while data and self._fault == "slow":
            writer.write(data[: BYTES_PER_S // 10])
            await writer.drain()
            await asyncio.sleep(0.1)
            data = data[BYTES_PER_S // 10 :]
        return data
