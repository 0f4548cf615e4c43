"""Kafka's wire protocol: frames in, responses out. It knows nothing of topics and groups.

As in Kafka, a connection answers its requests one at a time and in order: while a fetch or a join waits, the requests
after it wait too. All of this runs on the broker's event loop.
"""

from __future__ import annotations

import asyncio
import difflib
import inspect
import logging
import struct
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from kafka import errors
from kafka.protocol import admin, consumer, metadata, producer
from typing_extensions import override

log = logging.getLogger("karafka_lite.broker")

READ_AHEAD = 1 << 20  # bytes of further requests to read while one is being answered
_PREFIX = struct.Struct(">hhi")  # api key, version, correlation id: the start of every request
_SIZE = struct.Struct(">i")


@dataclass
class Call:
    """One decoded request. ``error``: respond with this code instead of executing it; see ``EmbeddedBroker.fail``."""

    request: Any
    version: int
    client_id: str
    error: int = 0

    def attempt(self, action: Callable[..., Any], *arguments: Any) -> tuple[Answer, Any]:
        """Execute one part of the request: returns the fields of an error, and the result (None after an error).

        ``action`` raises Kafka's own errors.
        """
        try:
            if self.error:
                raise errors.for_code(self.error)
            return {"error_code": 0}, action(*arguments)
        except errors.BrokerResponseError as refused:
            text = refused.args[0] if refused.args else refused.description
            return {"error_code": refused.errno, "error_message": text}, None


Answer = dict[str, Any]  # the fields of a response; those that are missing have their defaults
Handler = Callable[[Call], "Awaitable[Answer | None] | Answer | None"]  # None: the client expects no response
Fault = int | float | str


class Api:
    """One type of request: its messages, its versions from Kafka 4's lowest up to ``top``, and its handler."""

    def __init__(self, name: str, top: int, handler: Handler) -> None:
        self.name = name
        self.request = _message(f"{name}Request")
        self.response = _message(f"{name}Response")
        self.key: int = self.request.API_KEY
        self.lowest: int = self.request.valid_versions[0]
        self.top = top
        self.handler = handler
        self.waits = inspect.iscoroutinefunction(handler)


def _message(name: str) -> Any:
    return next(getattr(module, name) for module in (producer, consumer, metadata, admin) if hasattr(module, name))


class Server:
    """Listens on loopback and passes requests to their handlers, given as ``{name: (highest version, handler)}``."""

    def __init__(
        self, handlers: Mapping[str, tuple[int, Handler]], *, max_request_bytes: int, request_timeout_s: float
    ) -> None:
        own = {"ApiVersions": (4, self._api_versions)}
        self.apis = {api.key: api for name, given in {**handlers, **own}.items() for api in [Api(name, *given)]}
        self.max_request_bytes = max_request_bytes
        self.request_timeout_s = request_timeout_s
        self.connections: set[Connection] = set()
        self.faults: defaultdict[str, deque[Fault]] = defaultdict(deque)
        self._listening: asyncio.Server | None = None

    async def listen(self, host: str, port: int) -> int:
        """Accept connections; returns the port. Raises OSError if it is in use."""
        loop = asyncio.get_running_loop()
        self._listening = await loop.create_server(lambda: Connection(self), host, port)
        return int(self._listening.sockets[0].getsockname()[1])

    def close(self) -> None:
        """Stop listening and close every connection."""
        if self._listening is not None:
            self._listening.close()
            self._listening = None
        for connection in list(self.connections):
            connection.cut()

    def fail(self, name: str, fault: Fault, times: int) -> None:
        """See ``EmbeddedBroker.fail``."""
        names = [api.name for api in self.apis.values()]
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1) or sorted(names)
            raise ValueError(f"unknown request {name!r}; did you mean {', '.join(near)}?")
        if isinstance(fault, str) and fault not in ("drop", "lose"):
            raise ValueError(f'fault must be an error code, "drop", "lose" or seconds as a float, got {fault!r}')
        self.faults[name].extend([fault] * times)

    def _api_versions(self, call: Call) -> Answer:
        known = [{"api_key": a.key, "min_version": a.lowest, "max_version": a.top} for a in self.apis.values()]
        return {"error_code": call.error, "api_keys": known}


class Connection(asyncio.Protocol):
    """One client. The worst that its bytes can do is to end this connection."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._answering: asyncio.Task[None] | None = None
        self._writable = True
        self._request_timer: asyncio.TimerHandle | None = None  # runs while a request is incomplete

    def cut(self) -> None:
        """Abort the connection, as a crash would."""
        self._buffer.clear()
        self._transport.abort()

    # -- called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._server.connections.add(self)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._stop_timer()
        self._buffer.clear()
        if self._answering is not None:
            self._answering.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._continue()

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        self._continue()

    # -- requests

    def _continue(self) -> None:
        while self._answering is None and self._writable and (frame := self._next_frame()) is not None:
            self._answer(frame)
        busy = self._answering is not None or not self._writable
        if busy and len(self._buffer) > READ_AHEAD:
            self._transport.pause_reading()
        elif not self._transport.is_closing():
            self._transport.resume_reading()

    def _next_frame(self) -> bytes | None:
        """The next complete request; None while there is none. An invalid size is refused before anything is read."""
        if len(self._buffer) >= _SIZE.size:
            (size,) = _SIZE.unpack_from(self._buffer)
            if not _PREFIX.size <= size <= self._server.max_request_bytes:
                self._refuse(f"a request of {size} bytes")
                return None
            end = _SIZE.size + size
            if len(self._buffer) >= end:
                self._stop_timer()
                frame = bytes(self._buffer[_SIZE.size : end])
                del self._buffer[:end]
                return frame
        if self._buffer and self._request_timer is None:
            seconds = self._server.request_timeout_s
            self._request_timer = self._loop.call_later(
                seconds, self._refuse, f"an incomplete request after {seconds} s"
            )
        return None

    def _answer(self, frame: bytes) -> None:
        key, version, correlation_id = _PREFIX.unpack_from(frame)
        api = self._server.apis.get(key)
        if api is None:
            return self._refuse(f"the unknown request {key}")
        if not api.lowest <= version <= api.top:
            if api.name == "ApiVersions":  # the one request that a client may send without knowing the versions
                refusal = self._server._api_versions(Call(None, 0, "", errors.UnsupportedVersionError.errno))
                return self._send(api, refusal, 0, correlation_id)
            return self._refuse(f"{api.name} in version {version}; supported are {api.lowest} to {api.top}")
        try:
            request = api.request.decode(frame, version=version, header=True)
            call = Call(request, version, request.header.client_id or "")
        except Exception as error:  # noqa: BLE001 - whatever the bytes are, only this connection ends
            return self._refuse(f"{api.name} that cannot be read: {error!r}")
        faults = self._server.faults[api.name]
        fault = faults.popleft() if faults else None
        if api.waits or fault is not None:
            self._answering = self._loop.create_task(self._answer_later(api, call, correlation_id, fault))
            return None
        try:
            return self._send(api, cast("Answer", api.handler(call)), version, correlation_id)
        except Exception as error:  # noqa: BLE001 - likewise
            return self._refuse(f"{api.name} that cannot be answered: {error!r}")

    async def _answer_later(self, api: Api, call: Call, correlation_id: int, fault: Fault | None) -> None:
        try:
            if fault == "drop":
                return self.cut()
            if isinstance(fault, float):
                await asyncio.sleep(fault)
            elif isinstance(fault, int):
                call.error = fault
            answer = api.handler(call)
            if inspect.isawaitable(answer):
                answer = await answer
            if fault == "lose":
                return self.cut()
            self._send(api, answer, call.version, correlation_id)
        except Exception as error:  # noqa: BLE001 - likewise
            self._refuse(f"{api.name} that cannot be answered: {error!r}")
        self._answering = None
        self._continue()
        return None

    def _send(self, api: Api, answer: Answer | None, version: int, correlation_id: int) -> None:
        if answer is not None and not self._transport.is_closing():
            message = _filled(api.response, answer)
            message.API_VERSION = version
            message.with_header(correlation_id=correlation_id)
            self._transport.write(message.encode(header=True, framed=True))

    def _refuse(self, what: str) -> None:
        log.debug("closing the connection from %s: %s", self._transport.get_extra_info("peername"), what)
        self.cut()

    def _stop_timer(self) -> None:
        if self._request_timer is not None:
            self._request_timer.cancel()
            self._request_timer = None


def _filled(kind: Any, values: Answer) -> Any:
    """An object of Kafka's protocol; ``error_message`` is dropped where the protocol has no such field."""
    filled = {}
    for name, value in values.items():
        if (field := kind.fields.get(name)) is not None or name != "error_message":
            nested = isinstance(value, list) and field.is_struct_array()
            filled[name] = [_filled(field.data_class, item) for item in value] if nested else value
    return kind(**filled)
