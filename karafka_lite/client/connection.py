"""How a client of kafka-python is made, and where its log records go.

kafka-python logs an ERROR for each ordinary disconnect and 25 lines a second for a missing topic, much of it on its own
threads. Writing a line may block (stderr is a pipe that is full), and those threads must not: heartbeats and
acknowledgements would stop with them. So nothing is logged there: what kafka-python logs becomes an event, which the
app that the client belongs to queues. Only where no app runs is it logged directly.

Private touch points in kafka-python 3.0 (pinned below 3.1), with tests in tests/kafka/test_cures.py:

    client._net._io_thread, client._net._poll_owner    which client logs on the current thread
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import kafka.errors
from kafka import KafkaConsumer
from kafka.net.compat import KafkaNetClient

from karafka_lite.client.causes import WITHOUT_KAFKA
from karafka_lite.client.network import Network, check_files
from karafka_lite.client.transports import Selector
from karafka_lite.core.watch import AFTER_S
from karafka_lite.errors import AccessError, BrokerUnavailableError, ConfigurationError
from karafka_lite.events import ClientLogged, Event, Stalled, Unreachable

log = logging.getLogger("karafka_lite")
kafka_log = logging.getLogger("karafka_lite.kafka")

RECONNECT_MAX_MS = (
    1000  # as in Java; kafka-python's 30 s outlast bootstrap_timeout_ms: 10 s of outage would end a start
)
REPEAT_S = 30.0  # how often it is said that a broker cannot be reached, and why
BOOTSTRAP_MS = KafkaConsumer.DEFAULT_CONFIG["bootstrap_timeout_ms"]
OPTIMIZED = (
    "kafka-python does not work under python -O (or PYTHONOPTIMIZE): it would understand no answer of a broker; start "
    "without it"
)

Emit = Callable[[Event], None]


class Connection:
    """One client of kafka-python, from ``open`` to ``close``.

    ``owner`` is its name in messages. What it logs goes to ``emit``, which must not block, as events of ``group_id``;
    without ``emit`` it is logged.
    """

    def __init__(self, owner: str, emit: Emit | None = None, group_id: str = "") -> None:
        self.thread: Any = None  # where it logs, beside its network thread
        self._owner = owner
        self._emit = emit
        self._group_id = group_id
        self._client: Any = None
        self._said: dict[str, float] = {}  # when a failure was reported last

    def open(self, kind: Callable[..., Any], bootstrap_servers: Sequence[str], settings: Mapping[str, Any]) -> Any:
        """A ``kind``, say a KafkaConsumer, that has reached a broker; waits for up to ``bootstrap_timeout_ms``.

        Raises:
            BrokerUnavailableError: no broker answered.
            AccessError: one did, and refuses us.
            ConfigurationError: kafka-python refuses a setting, or a file of ``ssl_*`` cannot be read.
        """
        if sys.flags.optimize:
            raise ConfigurationError(OPTIMIZED)
        check_files(settings)
        _redirect_kafka_log()
        _KAFKA_LOG.connections.append(self)
        bootstrap_ms = settings.get("bootstrap_timeout_ms", BOOTSTRAP_MS)
        try:
            opened = kind(bootstrap_servers=list(bootstrap_servers), kafka_client=self._new_client, **settings)
            if self._client is not None and not self._client._manager.bootstrapped:  # with api_version nobody asks
                self._client._manager.bootstrap(bootstrap_ms)
            return opened
        except BaseException as error:
            self.close()
            if self._client is not None:  # a constructor that raises leaves its thread and its sockets open
                self._client.close()
            if isinstance(error, kafka.errors.KafkaConnectionError | kafka.errors.KafkaTimeoutError):
                causes = self._client._manager.causes.values() if self._client is not None else ()
                raise BrokerUnavailableError(
                    f"no broker could be reached at {','.join(bootstrap_servers)} within {bootstrap_ms} ms "
                    f"({'; '.join(cause.text for cause in causes) or error}); is Kafka running there? "
                    f"Another address: --broker HOST:PORT, or KARAFKA_LITE_BOOTSTRAP_SERVERS=HOST:PORT. "
                    f"Without Kafka: {WITHOUT_KAFKA}"
                ) from error
            if isinstance(error, AccessError):
                raise
            if isinstance(error, kafka.errors.KafkaError | AssertionError | OSError | TypeError | ValueError):
                raise ConfigurationError(f"kafka-python refuses the settings of {self._owner}: {error}") from error
            raise

    def close(self) -> None:
        """Take no log records any more."""
        if self in _KAFKA_LOG.connections:
            _KAFKA_LOG.connections.remove(self)

    def debug(self, logger: str, level: int, message: str) -> None:
        """Log at DEBUG; without ``emit`` at once, so never on a thread of kafka-python then."""
        if not kafka_log.isEnabledFor(logging.DEBUG):
            return
        if self._emit is None:
            kafka_log.debug("%s: %s", logger, message)
        else:
            self._emit(ClientLogged(self._group_id, logger, level, message))

    def took(self, record: logging.LogRecord) -> None:
        """kafka-python has logged something."""
        self.debug(record.name, record.levelno, _text(record))

    def failed(self, reason: str, trouble: str) -> None:
        """A connection was not made; each ``trouble`` is said from time to time. Called on kafka-python's thread."""
        if self._is_due(trouble):
            if self._emit is None:
                log.warning("a broker cannot be reached, retrying: %s", reason)
            else:
                self._emit(Unreachable(self._group_id, reason))

    def waits(self, for_: str, since: float, cause: str) -> None:
        """``for_`` has not come since then, because of ``cause``. To be called again and again; said now and then."""
        seconds = time.monotonic() - since
        if seconds >= AFTER_S and self._is_due(for_):
            if self._emit is None:
                log.warning("has been waiting for %s for %.0f s (%s)", for_, seconds, cause)
            else:
                self._emit(Stalled(self._group_id, f"for {for_}", seconds, cause))

    def _is_due(self, trouble: str) -> bool:
        """Whether it was not said for a while; it counts as said now."""
        now = time.monotonic()
        if now - self._said.get(trouble, float("-inf")) <= REPEAT_S:
            return False
        self._said = {said: at for said, at in self._said.items() if now - at <= REPEAT_S}
        self._said[trouble] = now
        return True

    def logs_on(self, thread_id: int | None) -> bool:
        """Whether the client uses this thread now."""
        net = self._client and self._client._net
        threads = (self.thread, net and net._io_thread, net and net._poll_owner)
        return any(thread and thread.ident == thread_id for thread in threads)

    @property
    def has_events(self) -> bool:
        """Whether an app takes the events."""
        return self._emit is not None

    def _new_client(self, **settings: Any) -> Any:
        net = Selector(**settings)
        self._client = KafkaNetClient(net, Network(net, self.failed, **settings))
        return self._client


class _KafkaLog(logging.Handler):
    """Gives each record of kafka-python to the connection that it is about."""

    def __init__(self) -> None:
        super().__init__()
        self.connections: list[Connection] = []  # changed and copied in one step each, from any thread
        self._stranger = Connection("a client of somebody else")

    def handle(self, record: logging.LogRecord) -> bool:
        # Not ``emit``, which is called under the handler's lock: a thread that writes to a full pipe would hold it.
        connections = list(self.connections)
        owner = next((each for each in connections if each.logs_on(record.thread)), None)
        # Where it cannot be known: any app may take the record, so that nothing blocks in a process with an app.
        (owner or next((each for each in connections if each.has_events), self._stranger)).took(record)
        return True


_KAFKA_LOG = _KafkaLog()


class _NoSecrets(logging.Filter):
    """Takes passwords and tokens out of what kafka-python logs at DEBUG, wherever the program sends it."""

    def filter(self, record: logging.LogRecord) -> bool:
        arguments = (record.args,) if isinstance(record.args, Mapping) else record.args or ()
        record.args = tuple(map(_without_secrets, arguments))
        return True


def _without_secrets(argument: object) -> object:
    kind = type(argument).__name__
    if kind in HOLD_SECRETS:
        return f"{kind}(not shown: it holds credentials)"
    if isinstance(argument, Mapping):  # all settings
        return {name: "..." if name in SECRETS else value for name, value in argument.items()}
    return f"{len(argument)} bytes" if isinstance(argument, bytes | bytearray) else argument


_NO_SECRETS = _NoSecrets()
HOLD_SECRETS = {f"Sasl{name}{kind}" for name in ("Authenticate", "Bytes") for kind in ("Request", "Response")}
SECRETS = {"sasl_plain_password", "ssl_password", "proxy_url", "socks5_proxy"}
# A filter sees what is logged on its own logger.
WITH_SECRETS = ("kafka.admin.client", "kafka.net.connection", "kafka.protocol.parser")


def _redirect_kafka_log() -> None:
    """Take what kafka-python logs, unless the program has given the logger ``kafka`` a level or a handler itself."""
    for name in WITH_SECRETS:
        logging.getLogger(name).addFilter(_NO_SECRETS)  # once
    logger = logging.getLogger("kafka")
    if logger.level == logging.NOTSET and all(isinstance(handler, logging.NullHandler) for handler in logger.handlers):
        logger.addHandler(_KAFKA_LOG)
        logger.setLevel(logging.WARNING)
        logger.propagate = False


def _text(record: logging.LogRecord) -> str:
    try:
        message = record.getMessage()
    except Exception:  # noqa: BLE001 - arguments that do not fit: it would be raised in kafka-python's loop
        message = str(record.msg)
    error = record.exc_info and record.exc_info[1]
    return f"{message} ({error!r})" if error else message
