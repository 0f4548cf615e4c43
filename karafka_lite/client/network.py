"""kafka-python's connections to the brokers, made so that each host has its share of the time, and each failure a name.

kafka-python gives all of ``bootstrap_timeout_ms`` to one host, drawn at random, asks again and again with a wrong
password, waits for ever for the end of a TLS handshake, and leaves the sockets of failed connections to the collector.

Private touch points in kafka-python 3.0 (pinned below 3.1), with tests in tests/kafka/test_security.py:

    KafkaConnectionManager._do_bootstrap, _build_transport, get_connection, _conns, _bootstrap_wakeup
    KafkaSSLTransport._build_ssl_context, and the _sock of a transport
"""

from __future__ import annotations

import random
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import kafka.errors
from kafka.net.inet import KafkaNetSocket
from kafka.net.manager import KafkaConnectionManager
from kafka.net.transport import KafkaSSLTransport

from karafka_lite.client import listeners
from karafka_lite.client.causes import FILES, NOT_REACHED, WITHOUT_KAFKA, Cause, NotReachedError, explain
from karafka_lite.client.transports import TlsTransport, Transport
from karafka_lite.client.trouble import Trouble
from karafka_lite.errors import AccessError, ConfigurationError

HOST_S = 3.0  # the share of one host in the first round; twice as much in each further one
HANDSHAKE_S = 10.0  # for TLS, where nobody gives a bound

Failed = Callable[[str, str], None]
"""Told of each connection that was not made, with what is the same as long as it is the same trouble.

On kafka-python's thread.
"""


class Network(KafkaConnectionManager):  # type: ignore[misc]
    """The connections of one client.

    ``failed`` hears why one could not be made, ``causes`` knows the last by host, ``trouble`` what the answers say.
    """

    def __init__(self, net: Any, failed: Failed, **settings: Any) -> None:
        self._failed = failed
        self.causes: dict[Any, Cause] = {}  # by node
        self.trouble = Trouble()
        self._known: set[Any] = set()  # nodes that a connection was made to
        super().__init__(net, **settings)

    # -- the start

    async def _do_bootstrap(self, deadline: float | None) -> bool:
        """Ask one host after the other; each for its share of the time.

        Raises:
            AccessError: a host refuses our credentials, or none of them can ever be talked to like this.
        """
        round_s, last = HOST_S, float("inf") if deadline is None else deadline
        while True:
            hosts = [host for host in self.cluster.bootstrap_brokers() if not self._is_final(host.node_id)]
            if not hosts:
                raise AccessError("; ".join(cause.text for cause in self.causes.values()))
            random.shuffle(hosts)
            for number, host in enumerate(hosts):
                await self._bootstrap_wakeup(
                    max(0.0, min(self.connection_delay(host.node_id), last - time.monotonic()))
                )
                left = last - time.monotonic()
                if self.closed or left <= 0:
                    raise kafka.errors.KafkaTimeoutError("no bootstrap host has answered in time")
                # Also the only one: a connection that was cut off just now answers nothing, and a new one would.
                if await self._bootstrap_from(host, min(round_s, left / (len(hosts) - number))):
                    self.cluster.start_refresh_loop()
                    return True
            round_s *= 2

    async def _bootstrap_from(self, host: Any, share_s: float) -> bool:
        """Learn from ``host`` which brokers there are."""
        node, until = host.node_id, time.monotonic() + min(share_s, 3600.0)
        known = {"pop_on_close": False, "refresh_metadata_on_err": False, "reset_backoff_on_connect": False}
        try:
            connection = self.get_connection(node, timeout_ms=share_s * 1000, **known)
        except kafka.errors.NodeNotReadyError:  # its last attempt has ended only now, and it rests
            return False
        try:
            await self.wait_for(connection.init_future, (until - time.monotonic()) * 1000)
            asked = self.call_soon(self.cluster.refresh_metadata, node)
            await self.wait_for(asked, max(0.0, until - time.monotonic()) * 1000)
            if self.cluster.brokers():
                self.reset_backoff(node)
                return True
            raise kafka.errors.KafkaConnectionError("it names no brokers yet")
        except Exception as error:  # whatever it is, another host may be better
            cause = self.causes[node] = self._asked(host, error)
            if cause.refused:
                raise AccessError(cause.text) from error
            if not (cause.final and self._hopeless()):  # else it is raised
                hint = "" if cause.final else f"; without Kafka: {WITHOUT_KAFKA}"
                self._failed(cause.text + hint, self._trouble_with(host, cause))
            if not self.connection_delay(node):
                self.update_backoff(node)
            return False
        finally:
            self._conns.pop(node, connection).close()

    def _asked(self, host: Any, error: Exception) -> Cause:
        """Why ``host`` did not answer; where it has hung up, it is asked how it wants to be talked to.

        That blocks the thread, which has nothing else to do yet.
        """
        explained = partial(explain, error, self._name(host), self.config)
        cause = explained()
        offers = isinstance(error, kafka.errors.UnsupportedSaslMechanismError)
        if offers or not (cause.final or isinstance(error, NOT_REACHED) or self.config["proxy_url"]):
            ours = KafkaSSLTransport._build_ssl_context(self.config) if self.ssl_enabled else None
            cause = explained(listeners.ask(host.host, host.port, ours))
        return cause

    def _is_final(self, node: Any) -> bool:
        return node in self.causes and self.causes[node].final

    def _hopeless(self) -> bool:
        return all(self._is_final(host.node_id) for host in self.cluster.bootstrap_brokers())

    # -- one connection

    def get_connection(self, node_id: Any, *arguments: Any, **options: Any) -> Any:
        known, bootstraps = self._conns.get(node_id), self.cluster.is_bootstrap(node_id)
        if not bootstraps:  # kafka-python forgets the back-off of a broker that takes connections and hangs up
            options["reset_backoff_on_connect"] = False
        connection = super().get_connection(node_id, *arguments, **options)
        if connection is not known and not bootstraps:
            connection.init_future.add_callback(lambda _: self._connected(node_id))
            connection.init_future.add_errback(partial(self._not_connected, node_id))
        return connection

    def _connected(self, node_id: Any) -> None:
        self._known.add(node_id)
        self.reset_backoff(node_id)

    def _not_connected(self, node_id: Any, error: Exception) -> None:
        node = self.cluster.broker_metadata(node_id)
        if self.closed or node is None:
            return
        # Only after kafka-python's own turn: it does so itself where there was no connection at all.
        self._net.call_soon(lambda: None if self.connection_delay(node_id) else self.update_backoff(node_id))
        self.causes[node_id] = cause = explain(error, self._name(node), self.config)
        never = isinstance(error, NOT_REACHED) and node_id not in self._known
        text = cause.text + "; this address came from the brokers (advertised.listeners)" * never
        self.trouble.not_connected(text)
        self._failed(text, self._trouble_with(node, cause))

    def _trouble_with(self, node: Any, cause: Cause) -> str:
        """A broker that is gone refuses, hangs up and does not answer in turn: that is one trouble."""
        return cause.text if cause.final else self._name(node)

    def send(self, request: Any, *arguments: Any, **options: Any) -> Any:
        return self.trouble.watch(request, super().send(request, *arguments, **options))

    def _name(self, node: Any) -> str:
        number = str(node.node_id).rpartition("-")[2]
        of = "" if self.cluster.is_bootstrap(node.node_id) else f"broker {number} at "
        return f"{of}{node.host}:{node.port}"

    async def _build_transport(self, node: Any, timeout_at: float | None = None) -> Any:
        sock = await self._dial(node, timeout_at)
        try:
            return await self._on_top_of(sock, node, timeout_at)
        except OSError as error:
            sock.close()
            raise kafka.errors.KafkaConnectionError(f"the TLS handshake failed: {error}") from error
        except BaseException:
            sock.close()
            raise

    async def _on_top_of(self, sock: socket.socket, node: Any, timeout_at: float | None) -> Any:
        """The transport over ``sock``: plain, or TLS after its handshake."""
        if not self.ssl_enabled:
            return Transport(self._net, sock, host=node.host)
        own = {name: value for name, value in self.config.items() if name.startswith("ssl_")}
        transport: Any = TlsTransport(self._net, sock, host=node.host, **own)
        timeout_at = timeout_at or time.monotonic() + HANDSHAKE_S
        try:
            while True:
                try:
                    transport._sock.do_handshake()
                    return transport
                except ssl.SSLWantReadError:
                    await self._net.wait_read(transport._sock, timeout_at)
                except ssl.SSLWantWriteError:
                    await self._net.wait_write(transport._sock, timeout_at)
        except BaseException:
            transport._sock.close()
            raise

    async def _dial(self, node: Any, timeout_at: float | None) -> Any:
        """A socket that is connected; each address of the host has its share of the time."""
        try:
            sockets = KafkaNetSocket(self.config["proxy_url"])
            addresses = sockets.dns_lookup(node.host, node.port)
        except kafka.errors.KafkaConnectionError as error:
            raise NotReachedError(*error.args) from error
        why: Exception = NotReachedError("its name cannot be resolved")
        for number, (family, kind, protocol, _, address) in enumerate(addresses):
            now = time.monotonic()
            until = None if timeout_at is None else now + (timeout_at - now) / (len(addresses) - number)
            sock = sockets.socket(family, kind, protocol)
            try:
                sock.setblocking(False)
                for option in self.config["socket_options"]:
                    sock.setsockopt(*option)
                return await sockets.sock_connect(self._net, sock, address, timeout_at=until)
            except kafka.errors.KafkaTimeoutError:
                sock.close()
                why = NotReachedError("no answer in time")
            except (OSError, kafka.errors.KafkaConnectionError) as error:
                sock.close()
                why = NotReachedError(*error.args)
            except BaseException:
                sock.close()
                raise
        raise why


def check_files(settings: Mapping[str, Any]) -> None:
    """Raises ConfigurationError: a file of ``ssl_*`` cannot be read, or does not hold what it should."""
    for name in FILES:
        if file := settings.get(name):
            try:
                with open(file, "rb"):
                    pass
            except OSError as error:
                raise ConfigurationError(f"{name}={str(file)!r} cannot be read: {error.strerror}") from None
    if "SSL" not in settings.get("security_protocol", "PLAINTEXT"):
        return
    try:
        given = {**KafkaSSLTransport.DEFAULT_CONFIG, **settings}
        # Not None: OpenSSL would ask for it at the terminal.
        KafkaSSLTransport._build_ssl_context({**given, "ssl_password": given["ssl_password"] or ""})
    except (OSError, ValueError, TypeError) as error:
        names = ", ".join(f"{name}={str(settings[name])!r}" for name in FILES if settings.get(name))
        password = "" if settings.get("ssl_password") else "; an encrypted key needs ssl_password"
        raise ConfigurationError(f"no TLS connection can be made with {names} ({error}){password}") from None
