"""What the user typed: routes, hooks and settings, checked when they are typed.

A mistake is a ConfigurationError at its line: what, why, what to type instead; never a value that may be secret.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import json
import re
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict, TypeVar, get_args, get_type_hints

from karafka_lite.backoff import Backoff
from karafka_lite.errors import ConfigurationError
from karafka_lite.messages import Batch, Deserializer, Loads, as_deserializer
from karafka_lite.partition import Hook, Policy, Run

Handler = Callable[[Batch, Any], object]
HookFunction = Callable[[Any], object]
Servers = str | Sequence[str]  # as in kafka-python: "a:9092,b:9092" or a list
HandlerT = TypeVar("HandlerT", bound=Handler)
HookT = TypeVar("HookT", bound=HookFunction)


class Router:
    """The routes of one app; ``group_id``, a non-empty str, is the group of every topic that names no other."""

    def __init__(self, group_id: str) -> None:
        _refuse(*_group_id_mistakes(group_id))
        self._group_id = group_id
        self._routes: list[Route] = []

    @property
    def groups(self) -> dict[str, dict[str, Route]]:
        """Group id -> topic -> Route, both in the order of registration; a new dict at each access."""
        groups: dict[str, dict[str, Route]] = {}
        for route in self._routes:
            groups.setdefault(route.group_id, {}).update(dict.fromkeys(route.topics, route))
        return groups

    def topic(
        self,
        *topics: str,
        manual_offsets: bool = False,
        group_id: str | None = None,
        max_messages: int = 500,
        batch_timeout_ms: int = 0,
        deserializer: Deserializer | Loads | None = json,
        backoff_ms: int = 1000,
        backoff_max_ms: int = 30_000,
    ) -> Callable[[HandlerT], HandlerT]:
        """Register a handler for ``topics``; the function itself is returned unchanged.

            @app.topic("user_events", batch_timeout_ms=1000)
            def store(batch, ctx):
                save(batch.payloads)

        Args:
            topics: one or more names. A topic may stand in several groups, once in each.
            manual_offsets: commit only what the handler marks, instead of each batch that it finished.
            group_id: consumer group of these topics; None: the app's own.
            max_messages: the most messages in one batch.
            batch_timeout_ms: how long to wait for ``max_messages``, in milliseconds; 0 hands over what is there.
            deserializer: ``bytes -> payload``, or a module with ``loads``; None leaves the payload as bytes.
            backoff_ms: milliseconds from a first failure to the next try; it doubles with each failure.
            backoff_max_ms: the longest of these waits, in milliseconds.

        Raises:
            ConfigurationError: a topic name or an option that cannot work, a topic that its group already has, or a
                handler that cannot be called with ``(batch, ctx)`` or would not run (``async def``, generator).
        """
        group = self._group_id if group_id is None else group_id
        decode = as_deserializer(deserializer)
        _refuse(
            *_topic_mistakes(topics),
            *_group_id_mistakes(group),
            *_int_mistakes("max_messages", max_messages),
            *_int_mistakes("batch_timeout_ms", batch_timeout_ms, least=0),
            *_int_mistakes("backoff_ms", backoff_ms),
        )
        _refuse(*_int_mistakes("backoff_max_ms", backoff_max_ms, least=backoff_ms, why=" (backoff_ms, the first wait)"))
        if decode is not None and not callable(decode):
            _refuse(f"deserializer cannot be {_shown(deserializer)}: type json, a function of bytes, or None for bytes")
        backoff = Backoff(backoff_ms, backoff_max_ms)

        def register(handler: HandlerT) -> HandlerT:
            _refuse(*_function_mistakes("@app.topic", handler, ("batch", "ctx")))
            _refuse(*_taken_mistakes(self.groups.get(group, {}), topics, handler))
            # One dict for all routes of a handler: a hook reaches each of them, also those registered after the hook.
            first = self._route_of(handler)
            hooks, every_ms = (first.hooks, first.every_ms) if first else ({kind: [] for kind in Hook}, [])
            self._routes.append(
                Route(
                    topics,
                    handler,
                    group,
                    manual_offsets,
                    max_messages,
                    batch_timeout_ms,
                    decode,
                    backoff,
                    hooks,
                    every_ms,
                )
            )
            return handler

        return register

    def on_shutdown(self, handler: Handler) -> Callable[[HookT], HookT]:
        """Call a function ``(ctx)`` when the app stops, after the partition's last batch; marks count.

        Once per partition and ownership, only for partitions that were handed a batch, never beside a batch of it; the
        final commit and the leaving of the group follow. Raises ConfigurationError for an unknown ``handler``.
        """
        return self.hook(Hook.ON_SHUTDOWN, handler)

    def before_revoke(self, handler: Handler) -> Callable[[HookT], HookT]:
        """Call a function ``(ctx)`` before a rebalance takes a partition away in good order; marks count.

        After the running batch, before the commit and the hand-over, inside ``drain_timeout_ms`` (left out past it).
        Raises ConfigurationError for an unknown ``handler``.
        """
        return self.hook(Hook.BEFORE_REVOKE, handler)

    def on_revoked(self, handler: Handler) -> Callable[[HookT], HookT]:
        """Call a function ``(ctx)`` when a partition is gone, handed over or lost: for clean-up; marks return False.

        Waits for a handler that still runs. Raises ConfigurationError for an unknown ``handler``.
        """
        return self.hook(Hook.ON_REVOKED, handler)

    def every(self, handler: Handler, *, ms: int) -> Callable[[HookT], HookT]:
        """Call a function ``(ctx)`` again and again, ``ms`` milliseconds behind its last end; marks count.

        For each partition of ours that was handed a batch, never beside a batch of it, also while no message comes or
        the partition waits; no more when it is to be given away. An exception is logged. With ``ctx.state`` it makes a
        buffer that is written by size or by time.

        Raises:
            ConfigurationError: an unknown ``handler``, or ``ms`` is no number from 1.

        Example::

            @app.every(store, ms=1000)
            def flush(ctx): ...
        """
        return self.hook(Hook.EVERY, handler, ms)

    def hook(self, kind: Hook, handler: Handler, ms: int = 0) -> Callable[[HookT], HookT]:
        """Register a function of ``(ctx)`` for all routes of ``handler``; it is returned unchanged, so hooks stack.

        Raises:
            ConfigurationError: ``handler`` has no topic (yet), or the function is not a plain one of ``(ctx)``.
        """
        decorator = f"@app.{kind.value}"
        route = self._route_of(handler)
        if route is None:
            registered = ", ".join(dict.fromkeys(route.name for route in self._routes)) or "none"
            raise ConfigurationError(
                f"{decorator}: {_name(handler)} is not the handler of a topic (handlers so far: {registered}); "
                f"type {decorator}(handler), below the handler and its @app.topic"
            )
        if kind is Hook.EVERY:
            _refuse(*_int_mistakes("ms", ms))
        hooks, every_ms = route.hooks, route.every_ms

        def register(function: HookT) -> HookT:
            _refuse(*_function_mistakes(decorator, function, ("ctx",)))
            hooks[kind].append(function)
            every_ms.extend([ms] if kind is Hook.EVERY else [])
            return function

        return register

    def _route_of(self, handler: Handler) -> Route | None:
        return next((route for route in self._routes if route.handler == handler), None)


@dataclass(eq=False)
class Route:
    """A handler with the topics and options of one ``@app.topic``; equal only to itself.

    Attributes:
        deserialize: ``bytes -> payload``; None where payloads stay bytes.
        hooks: for each kind its functions in the order of registration, shared by all routes of the handler.
        every_ms: for each function of ``every`` how often, shared likewise.
    """

    topics: tuple[str, ...]
    handler: Handler
    group_id: str
    manual_offsets: bool
    max_messages: int
    batch_timeout_ms: int
    deserialize: Deserializer | None
    backoff: Backoff
    hooks: dict[Hook, list[HookFunction]]
    every_ms: list[int]

    @property
    def name(self) -> str:
        """How texts name the handler: its qualified name without the module; of a partial, its function's."""
        return _name(self.handler)

    @property
    def policy(self) -> Policy:
        """What the rules about offsets need of this route; ``hooks`` are the kinds that have a function."""
        kinds = frozenset(kind for kind, functions in self.hooks.items() if functions)
        every_ms = tuple(self.every_ms)
        return Policy(self.manual_offsets, self.max_messages, self.batch_timeout_ms, self.backoff, kinds, every_ms)

    def functions(self, run: Run) -> list[HookFunction]:
        """Those that a run of a hook calls."""
        functions = self.hooks[run.hook] if run.hook else []
        return functions[run.number : run.number + 1] if run.hook is Hook.EVERY else functions


class Settings(TypedDict, total=False):
    """What passes through to kafka-python's KafkaConsumer (3.0.12). Each int, bool and Literal is checked."""

    # the member
    client_id: str
    client_rack: str
    session_timeout_ms: int
    heartbeat_interval_ms: int
    max_poll_interval_ms: int
    # what is read, from where when there is no commit, and how much at once
    auto_offset_reset: Literal["earliest", "latest", "none"]
    isolation_level: Literal["read_uncommitted", "read_committed"]
    allow_auto_create_topics: bool
    exclude_internal_topics: bool
    check_crcs: bool
    fetch_min_bytes: int
    fetch_max_bytes: int
    fetch_max_wait_ms: int
    max_partition_fetch_bytes: int
    max_poll_records: int
    enable_incremental_fetch_sessions: bool
    # connections
    api_version: tuple[int, ...] | None
    bootstrap_timeout_ms: int
    request_timeout_ms: int
    retry_backoff_ms: int
    reconnect_backoff_ms: int
    reconnect_backoff_max_ms: int
    connections_max_idle_ms: int
    metadata_max_age_ms: int
    max_in_flight_requests_per_connection: int
    receive_message_max_bytes: int
    receive_buffer_bytes: int | None
    send_buffer_bytes: int | None
    socket_options: Sequence[tuple[int, int, int]]
    client_dns_lookup: Literal["use_all_dns_ips", "resolve_canonical_bootstrap_servers_only"]
    proxy_url: str | None
    socks5_proxy: str | None  # deprecated by kafka-python: proxy_url
    # security
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
    ssl_context: ssl.SSLContext | None
    ssl_check_hostname: bool
    ssl_cafile: str | None
    ssl_certfile: str | None
    ssl_keyfile: str | None
    ssl_password: str | None
    ssl_crlfile: str | None
    ssl_ciphers: str | None
    sasl_mechanism: str | None
    sasl_plain_username: str | None
    sasl_plain_password: str | None
    sasl_kerberos_name: Any
    sasl_kerberos_service_name: str
    sasl_kerberos_domain_name: str | None
    sasl_oauth_token_provider: Any
    # the client's own metrics
    metrics_enabled: bool
    metric_reporters: Sequence[type]
    metrics_num_samples: int
    metrics_sample_window_ms: int
    metric_group_prefix: str


OWNED: dict[str, str] = {
    "enable_auto_commit": "it commits what is only delivered; to mark type @app.topic(..., manual_offsets=True)",
    "key_deserializer": "message.key is bytes; type message.key.decode() in the handler",
    "value_deserializer": "payloads are decoded inside the handler; type @app.topic(..., deserializer=...)",
    "group_instance_id": "static membership is half done in kafka-python; to tell processes apart type client_id=...",
    "partition_assignment_strategy": "kafka-python's cooperative assignor claims partitions that it lost; leave it out",
    "default_offset_commit_callback": "nothing would call it; to know what is committed type commit_offsets(sync=True)",
    "consumer_timeout_ms": "it ends an iterator that is not used here; type @app.topic(..., batch_timeout_ms=...)",
    "kafka_client": "the runner relies on kafka-python's own client; leave it out",
    "selector": "the runner relies on kafka-python's own IO loop; leave it out",
}
"""Settings of KafkaConsumer that the framework keeps for itself -> the reason and what to type instead."""


@dataclass(frozen=True)
class Config:
    """The checked arguments of one App. ``settings`` is only what the user gave, and not in the repr: passwords."""

    group_id: str
    bootstrap_servers: list[str]
    concurrency: int
    auto_commit_interval_ms: int
    drain_timeout_ms: int
    settings: dict[str, Any] = field(repr=False)

    @classmethod
    def validated(
        cls,
        group_id: str,
        *,
        bootstrap_servers: Servers = "localhost:9092",
        concurrency: int = 5,
        auto_commit_interval_ms: int = 5000,
        drain_timeout_ms: int = 60_000,
        settings: Mapping[str, Any] | None = None,
    ) -> Config:
        """The Config of an App's arguments (times in milliseconds).

        Raises:
            ConfigurationError: something cannot work; all mistakes of the call stand in one message.
        """
        given = dict(settings or {})
        _refuse(
            *_group_id_mistakes(group_id),
            *_server_mistakes("bootstrap_servers", bootstrap_servers),
            *_int_mistakes("concurrency", concurrency),
            *_int_mistakes("auto_commit_interval_ms", auto_commit_interval_ms),
            *_int_mistakes("drain_timeout_ms", drain_timeout_ms),
            *(mistake for name, value in given.items() for mistake in _setting_mistakes(name, value)),
            *_order_mistakes({**given, "drain_timeout_ms": drain_timeout_ms}),
        )
        return cls(group_id, _servers(bootstrap_servers), concurrency, auto_commit_interval_ms, drain_timeout_ms, given)


def resolve_bootstrap_servers(option: str | None, environ: Mapping[str, str], argument: Servers) -> list[str]:
    """The brokers: ``--broker`` unless None, else ``KARAFKA_LITE_BOOTSTRAP_SERVERS`` unless empty, else the argument.

    Raises:
        ConfigurationError: the one that counts is not ``host[:port]``; the message says where it came from.
    """
    source, value = "bootstrap_servers", argument
    if variable := environ.get("KARAFKA_LITE_BOOTSTRAP_SERVERS", "").strip():
        source, value = "the environment variable KARAFKA_LITE_BOOTSTRAP_SERVERS", variable
    if option is not None:
        source, value = "--broker", option
    _refuse(*_server_mistakes(source, value))
    return _servers(value)


def check_topic(topic: str) -> None:
    """Raises ConfigurationError where Kafka cannot have a topic of this name."""
    _refuse(*_topic_mistakes((topic,)))


# Each check below yields its mistakes as text, so that one exception can tell all of them.

_INT32_MAX = 2**31 - 1  # most of the numbers travel in 32 bits; a bigger one would fail much later, on the IO thread
_TYPES = get_type_hints(Settings)
_ZERO_ALLOWED = re.compile("fetch_min_bytes|fetch_max_wait_ms|.*backoff.*")
_BELOW = (  # with kafka-python's defaults
    ("drain_timeout_ms", 60_000, "max_poll_interval_ms", 300_000, "then the broker gives away what still drains"),
    ("heartbeat_interval_ms", 3000, "session_timeout_ms", 45_000, "a third is usual, so that one may be missed"),
    ("fetch_max_wait_ms", 500, "request_timeout_ms", 30_000, "a waiting fetch is not an unanswered one"),
    ("request_timeout_ms", 30_000, "connections_max_idle_ms", 540_000, "a connection that waits is not idle"),
)
_SERVER = re.compile(r"(?:[^\s:/\[\]]+|\[[0-9A-Fa-f:.]+(?:%\w+)?\])(?::(?P<port>[0-9]{1,5}))?")


def _refuse(*mistakes: str) -> None:
    if mistakes:
        raise ConfigurationError("\n".join(mistakes))


def _group_id_mistakes(group_id: object) -> Iterator[str]:
    if not isinstance(group_id, str) or not group_id.strip():
        yield 'group_id must be a non-empty str: type for example "event-store"'


def _servers(value: Servers) -> list[str]:
    return [part.strip() for item in ([value] if isinstance(value, str) else value) for part in item.split(",")]


def _server_mistakes(source: str, value: object) -> Iterator[str]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)) or not items or not all(isinstance(item, str) for item in items):
        yield f'{source} must be a str or a non-empty list of str: type for example "localhost:9092"'
    elif any("@" in item for item in items):  # not shown: it holds a password
        yield f"{source} cannot hold a user or a password: type host:port, and sasl_plain_username=... in App"
    else:
        for server in _servers(items):
            match = _SERVER.fullmatch(server)
            if not match or not 1 <= int(match["port"] or 9092) <= 65535:
                yield f"{source}: {server!r} is no address; type localhost:9092 or [::1]:9092 (port 1 to 65535, no SSL://)"


def _setting_mistakes(name: str, value: object) -> Iterator[str]:
    kind = _TYPES.get(name)
    if name in OWNED:
        yield f"{name} belongs to karafka-lite: {OWNED[name]}"
    elif kind is None:
        yield _unknown(name)
    elif kind is int or (kind == int | None and value is not None):
        yield from _int_mistakes(name, value, least=0 if _ZERO_ALLOWED.fullmatch(name) else 1)
    elif kind is bool and not isinstance(value, bool):  # "false" of an environment variable is true for Python
        yield f"{name} must be a bool, not {_shown(value)}: type {name}=True or {name}=False"
    elif (choices := get_args(kind)) and isinstance(choices[0], str) and value not in choices:
        # kafka-python takes an unknown security_protocol ("sasl_ssl") for PLAINTEXT, without a word.
        shown = repr(value) if isinstance(value, str) else _shown(value)
        yield f"{name} cannot be {shown}: type {name}={' or '.join(map(repr, choices))}"


def _unknown(name: str) -> str:
    if name in (Router.topic.__kwdefaults__ or ()):
        return f"{name} is an option of a topic, not of the app: type @app.topic(..., {name}=...)"
    arguments = ("group_id", "bootstrap_servers", "concurrency", "auto_commit_interval_ms", "drain_timeout_ms")
    near = difflib.get_close_matches(name, [*arguments, *_TYPES, *OWNED]) or ["a name that KafkaConsumer documents"]
    owned = f"{near[0]} belongs to karafka-lite, {OWNED[near[0]]}" if near[0] in OWNED else None
    return f"{name} is not a setting: {owned or 'type ' + ' or '.join(near)}"


def _int_mistakes(name: str, value: object, least: int = 1, why: str = "") -> Iterator[str]:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= _INT32_MAX:
        unit = " of milliseconds" if name.endswith("_ms") else " of bytes" if name.endswith("_bytes") else ""
        yield f"{name} cannot be {_shown(value)}: type an int{unit} from {least}{why} to {_INT32_MAX}"


def _order_mistakes(given: Mapping[str, Any]) -> Iterator[str]:
    for low, low_default, high, high_default, why in _BELOW:
        less, more = given.get(low, low_default), given.get(high, high_default)
        if isinstance(less, int) and isinstance(more, int) and less >= more:  # what is not an int was told already
            yield f"{low}={less} must be below {high}={more}, {why}: type a smaller {low} or a larger {high}"


def _topic_mistakes(topics: tuple[object, ...]) -> Iterator[str]:
    if not topics:
        yield '@app.topic has no topic: type @app.topic("name")'
    for i, topic in enumerate(topics):
        if callable(topic):
            yield f'@app.topic needs parentheses and a topic: type @app.topic("name") above {_name(topic)}'
        elif not isinstance(topic, str):
            yield f'a topic is a str, not {_shown(topic)}: type @app.topic("first", "second")'
        elif not re.fullmatch(r"[a-zA-Z0-9._-]{1,249}", topic) or topic in (".", ".."):
            yield f"{topic!r} cannot be a topic of Kafka: type 1 to 249 of a-z A-Z 0-9 . _ - (but not just . or ..)"
        elif topic in topics[:i]:
            yield f"topic {topic!r} stands twice in one @app.topic: type it once"


def _taken_mistakes(taken: Mapping[str, Route], topics: Sequence[str], handler: Handler) -> Iterator[str]:
    for topic in topics:
        if other := taken.get(topic):
            here = f"topic {topic!r} is taken in group {other.group_id!r} by {other.name}"
            yield f'{here}: drop it from {_name(handler)}, or type @app.topic({topic!r}, group_id="another-group")'


def _function_mistakes(decorator: str, function: object, parameters: tuple[str, ...]) -> Iterator[str]:
    name, arguments = _name(function), ", ".join(parameters)
    plain = f"def {getattr(function, '__name__', 'function').replace('<lambda>', 'function')}({arguments}):"
    if not callable(function):
        yield f"{decorator} cannot register {_shown(function)}, which is not callable: type `{plain}` below it"
    elif _is_lazy(function):
        yield f"{decorator}: {name} is async or yields: a call runs nothing, a silent loss; write a plain `{plain}`"
    else:
        try:
            # The wrapper is what is called: functools.wraps must not let the inner signature stand for it.
            signature = inspect.signature(function, follow_wrapped=False)
        except (TypeError, ValueError):
            return  # a builtin that does not tell its signature
        try:
            signature.bind(*(None for _ in parameters))
        except TypeError as mistake:
            yield f"{decorator}: {name}{signature} is called with ({arguments}), {mistake}: type `{plain}`"


def _is_lazy(function: Callable[..., object]) -> bool:
    inner = _unwrapped(function)
    tests = (inspect.iscoroutinefunction, inspect.isasyncgenfunction, inspect.isgeneratorfunction)
    return any(test(code) for test in tests for code in (getattr(inner, "__func__", inner), type(inner).__call__))


def _unwrapped(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _name(function: object) -> str:
    return getattr(_unwrapped(function), "__qualname__", None) or repr(_unwrapped(function))


def _shown(value: object) -> str:
    """Numbers as they are; of everything else, which may hold a secret, only the type."""
    return repr(value) if value is None or isinstance(value, (int, float)) else f"a {type(value).__name__}"
