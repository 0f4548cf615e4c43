"""The arguments of an App other than its routes, checked when the App is created.

A mistake is a ConfigurationError at that line. It says what is wrong, why, and what is right, but never shows a value
that may be secret.
"""

from __future__ import annotations

import difflib
import json
import re
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict, get_args, get_origin, get_type_hints

from karafka_lite.errors import ConfigurationError
from karafka_lite.functions import is_lazy, name_of, signature_without
from karafka_lite.serializer import Serializer, to_json

PARTITIONS = 3  # of a topic of a broker for development: several, as in production
MAX_POLL_INTERVAL_MS = 300_000  # kafka-python's default
Servers = str | Sequence[str]  # as in kafka-python: "a:9092,b:9092" or a list


class Settings(TypedDict, total=False):
    """Settings passed through to kafka-python's KafkaConsumer (3.0.12). Each int, bool and Literal is checked."""

    # the member
    client_id: str
    client_rack: str
    group_instance_id: str | None  # a static member: one of its own for each process
    session_timeout_ms: int
    heartbeat_interval_ms: int
    max_poll_interval_ms: int
    # what is read, from where without a commit, and how much at a time
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
    max_decompressed_bytes: int  # not passed through: how much a compressed batch may hold
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
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER", "GSSAPI", "AWS_MSK_IAM"] | None
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


UNSUPPORTED: dict[str, str] = {
    "enable_auto_commit": "it commits messages that were only delivered; use @app.topic(..., manual_offsets=True)",
    "key_deserializer": "message.key is bytes; call message.key.decode() in the handler",
    "value_deserializer": "payloads are decoded when the handler reads them; use @app.topic(..., deserializer=...)",
    "partition_assignment_strategy": "kafka-python's cooperative assignor can claim partitions it has lost; remove it",
    "default_offset_commit_callback": "it would never be called; use commit_offsets(sync=True) to wait for a commit",
    "consumer_timeout_ms": "it ends an iterator that is not used here; use @app.topic(..., batch_timeout_ms=...)",
    "ssl_ciphers": "kafka-python ignores it; use ssl_context=..., an ssl.SSLContext with set_ciphers()",
    "kafka_client": "karafka-lite relies on kafka-python's own client; remove it",
    "selector": "karafka-lite relies on kafka-python's own IO loop; remove it",
}
"""Settings of KafkaConsumer that are not supported -> the reason and what to use instead."""


ARGUMENTS: dict[str, type] = {
    "bootstrap_servers": str,
    **dict.fromkeys(("concurrency", "auto_commit_interval_ms", "drain_timeout_ms"), int),
}
"""Arguments of App that a file of settings may have as well, as numbers or text."""


TOPIC_OPTIONS = {
    *("manual_offsets", "concurrency", "max_messages", "batch_timeout_ms", "deserializer"),
    *("backoff_ms", "backoff_max_ms", "max_retries", "dead_letter", "no_retry", "order", "exactly_once"),
}
"""Options of ``@app.topic``, which are sometimes passed to App by mistake."""


@dataclass(frozen=True)
class Config:
    """The validated arguments of one App. ``settings`` are the user's own, and not in the repr: they hold passwords."""

    group_id: str
    bootstrap_servers: list[str]
    concurrency: int
    auto_commit_interval_ms: int
    drain_timeout_ms: int
    settings: dict[str, Any] = field(repr=False)
    serializer: Serializer = to_json

    @property
    def instance_id(self) -> str | None:
        """The ``group_instance_id``; None: no static member."""
        return self.settings.get("group_instance_id")

    @property
    def of_group(self) -> dict[str, Any]:
        """What the rules of a group need to know."""
        return {
            "commit_interval_ms": self.auto_commit_interval_ms,
            "drain_timeout_ms": self.drain_timeout_ms,
            "max_poll_interval_ms": self.settings.get("max_poll_interval_ms", MAX_POLL_INTERVAL_MS),
        }

    @classmethod
    def validated(
        cls,
        group_id: str,
        *,
        bootstrap_servers: Servers = "localhost:9092",
        concurrency: int = 1,
        auto_commit_interval_ms: int = 5000,
        drain_timeout_ms: int = 60_000,
        settings: Mapping[str, Any] | None = None,
        serializer: Serializer = to_json,
    ) -> Config:
        """Validate the arguments of an App (times in milliseconds).

        Raises:
            ConfigurationError: an argument is invalid; the message lists all mistakes of the call.
        """
        given = dict(settings or {})
        refuse(
            *group_id_mistakes(group_id),
            *_server_mistakes("bootstrap_servers", bootstrap_servers),
            *int_mistakes("concurrency", concurrency),
            *int_mistakes("auto_commit_interval_ms", auto_commit_interval_ms),
            *int_mistakes("drain_timeout_ms", drain_timeout_ms),
            *_serializer_mistakes(serializer),
            *(mistake for name, value in given.items() for mistake in _setting_mistakes(name, value)),
            *_order_mistakes({**given, "drain_timeout_ms": drain_timeout_ms}),
            *_instance_mistakes(given.get("group_instance_id")),
            *_security_mistakes({name: value for name, value in given.items() if value is not None}),
        )
        times = auto_commit_interval_ms, drain_timeout_ms
        return cls(group_id, _servers(bootstrap_servers), concurrency, *times, given, serializer)


def resolve_bootstrap_servers(option: str | None, environ: Mapping[str, str], argument: Servers) -> list[str]:
    """The brokers: ``--broker`` unless None, else ``KARAFKA_LITE_BOOTSTRAP_SERVERS`` unless empty, else the argument.

    Raises:
        ConfigurationError: the chosen one is not ``host[:port]``; the message says where it came from.
    """
    source, value = "bootstrap_servers", argument
    if variable := environ.get("KARAFKA_LITE_BOOTSTRAP_SERVERS", "").strip():
        source, value = "the environment variable KARAFKA_LITE_BOOTSTRAP_SERVERS", variable
    if option is not None:
        source, value = "--broker", option
    refuse(*_server_mistakes(source, value))
    return _servers(value)


def setting_of(name: str, value: Any) -> Any:
    """A setting, or an argument of an App, as a file can have it.

    Raises:
        ConfigurationError: there is none of that name, or a file cannot have it, or ``value`` is not of its type.
    """
    kinds = _kinds(name)
    if name not in ARGUMENTS and (mistakes := list(_setting_mistakes(name, value))):
        refuse(*mistakes)
    if isinstance(value, list) and (name == "bootstrap_servers" or _TYPES.get(name) == tuple[int, ...] | None):
        return value if name in ARGUMENTS else tuple(value)
    if not kinds & {int, bool, str} and not _choices(_TYPES.get(name)):
        refuse(f"{name} cannot be given in a file; give it in code")
    if kinds == {str} and not isinstance(value, str):
        refuse(f"{name} must be a string, got {safe_repr(value)}")
    return value


def text_as(name: str, text: str) -> Any:
    """A setting given as text, as in the environment: a number, true or false where it has to be one."""
    kinds = _kinds(name)
    if int in kinds and re.fullmatch("[0-9]{1,18}", text):
        return int(text)
    return {"true": True, "false": False}.get(text.lower(), text) if bool in kinds else text


def _kinds(name: str) -> set[Any]:
    kind = ARGUMENTS.get(name) or _TYPES.get(name)
    return set() if _choices(kind) else {*(get_args(kind) or (kind,))} - {type(None)}


# Each check below yields its mistakes as text, so that one exception can report all of them.

_INT32_MAX = 2**31 - 1  # most numbers are sent as 32 bits; a bigger one would fail much later, on the IO thread
_TYPES = get_type_hints(Settings)
_PROTOCOLS = get_args(_TYPES["security_protocol"])
_ZERO_ALLOWED = re.compile("fetch_min_bytes|fetch_max_wait_ms|.*backoff.*")
_EVICTED = "the broker reassigns partitions whose handlers are still finishing"
_ORDERED = (  # (smaller, its default, larger, its default, what happens otherwise), with kafka-python's defaults
    ("drain_timeout_ms", 60_000, "max_poll_interval_ms", 300_000, _EVICTED),
    ("heartbeat_interval_ms", 3000, "session_timeout_ms", 45_000, "one late heartbeat ends the session"),
    ("fetch_max_wait_ms", 500, "request_timeout_ms", 30_000, "a fetch that waits for messages times out"),
    ("request_timeout_ms", 30_000, "connections_max_idle_ms", 540_000, "a connection is closed while a request waits"),
)
_SERVER = re.compile(r"(?:[^\s:/\[\]]+|\[[0-9A-Fa-f:.]+(?:%\w+)?\])(?::(?P<port>[0-9]{1,5}))?")


def refuse(*mistakes: str) -> None:
    """Raise a ConfigurationError with all ``mistakes``, if there are any."""
    if mistakes:
        raise ConfigurationError("\n".join(mistakes))


def group_id_mistakes(group_id: object) -> Iterator[str]:
    if not isinstance(group_id, str) or not group_id.strip():
        yield 'group_id must be a non-empty string, for example "event-store"'


def _servers(value: Servers) -> list[str]:
    return [part.strip() for item in ([value] if isinstance(value, str) else value) for part in item.split(",")]


def _server_mistakes(source: str, value: object) -> Iterator[str]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)) or not items or not all(isinstance(item, str) for item in items):
        yield f'{source} must be a string or a non-empty list of strings, for example "localhost:9092"'
    elif any("@" in item for item in items):  # the value is not shown: it contains a password
        yield f"{source} must not contain a user or password; use host:port, and sasl_plain_username=... of App"
    else:
        for server in _servers(items):
            match = _SERVER.fullmatch(server)
            if not match or not 1 <= int(match["port"] or 9092) <= 65535:
                yield (
                    f"{source}: {server!r} is not an address; use host:port, for example localhost:9092 or [::1]:9092 "
                    f"(port 1 to 65535, no SSL://)"
                )


def _setting_mistakes(name: str, value: object) -> Iterator[str]:
    kind = _TYPES.get(name)
    if name in UNSUPPORTED:
        yield f"{name} is not supported: {UNSUPPORTED[name]}"
    elif kind is None:
        yield _unknown(name)
    elif kind is int or (kind == int | None and value is not None):
        yield from int_mistakes(name, value, least=0 if _ZERO_ALLOWED.fullmatch(name) else 1)
    elif kind is bool:
        yield from bool_mistakes(name, value)
    elif (choices := _choices(kind)) and value not in choices and not (value is None and type(None) in get_args(kind)):
        # kafka-python silently takes an unknown security_protocol ("sasl_ssl") for PLAINTEXT.
        given = repr(value) if isinstance(value, str) else safe_repr(value)
        yield f"{name} must be {' or '.join(map(repr, choices))}, got {given}"


def _choices(kind: object) -> tuple[str, ...]:
    return next((get_args(part) for part in (kind, *get_args(kind)) if get_origin(part) is Literal), ())


def _unknown(name: str) -> str:
    if name in TOPIC_OPTIONS:
        return f"{name} is an option of a topic, not of the App; use @app.topic(..., {name}=...)"
    arguments = ["group_id", "bootstrap_servers", "concurrency", "auto_commit_interval_ms", "drain_timeout_ms"]
    arguments.append("serializer")
    near = difflib.get_close_matches(name, [*arguments, *_TYPES, *UNSUPPORTED])
    if not near:
        return f"unknown setting {name!r}; see kafka-python's KafkaConsumer for valid names"
    if near[0] in UNSUPPORTED:
        return f"unknown setting {name!r}; {near[0]} is not supported: {UNSUPPORTED[near[0]]}"
    return f"unknown setting {name!r}; did you mean {' or '.join(near)}?"


def bool_mistakes(name: str, value: object) -> Iterator[str]:
    if not isinstance(value, bool):  # "false", from an environment variable, is true in Python
        yield f"{name} must be True or False, got {safe_repr(value)}"


def int_mistakes(name: str, value: object, least: int = 1, why: str = "") -> Iterator[str]:
    """``why``: where the lower bound comes from, appended to it."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        yield f"{name} must be an integer ≥ {least}{why}, got {safe_repr(value)}"
    elif value > _INT32_MAX:
        yield f"{name} must be an integer ≤ {_INT32_MAX}, got {value}"


def _order_mistakes(given: Mapping[str, Any]) -> Iterator[str]:
    for low, low_default, high, high_default, otherwise in _ORDERED:
        less, more = given.get(low, low_default), given.get(high, high_default)
        if isinstance(less, int) and isinstance(more, int) and less >= more:  # other types are reported already
            yield f"{low}={less} must be less than {high}={more}; otherwise {otherwise}"


def _serializer_mistakes(serializer: object) -> Iterator[str]:
    must, name = "serializer must be a function of a value that returns bytes", name_of(serializer)
    if not callable(serializer):
        yield f"{must}, got {safe_repr(serializer)}"
    elif serializer is json.dumps:
        yield f"{must}; json.dumps returns text: leave it out, the default is JSON in UTF-8"
    elif is_lazy(serializer):
        yield f"{must}; {name} is an async or generator function: it returns before it runs"
    elif (signature := signature_without(serializer, 1)) is not None:
        yield f"{must}; {name}{signature} must accept one positional argument, the value"


def _instance_mistakes(value: object) -> Iterator[str]:
    if value is not None and not (isinstance(value, str) and re.fullmatch(r"(?!\.\.?$)[A-Za-z0-9._-]{1,249}", value)):
        yield "group_instance_id must be 1 to 249 letters, digits, '.', '_' and '-', for example \"event-store-1\""


_HARMLESS = {"ssl_check_hostname": True, "sasl_kerberos_service_name": "kafka"}  # kafka-python's defaults
_NEEDED = {  # by mechanism
    **dict.fromkeys(["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"], ("sasl_plain_username", "sasl_plain_password")),
    "OAUTHBEARER": ("sasl_oauth_token_provider",),
}


def _security_mistakes(given: Mapping[str, Any]) -> Iterator[str]:
    """What would connect in plain text, without a word, or could never authenticate."""
    protocol, mechanism = given.get("security_protocol", "PLAINTEXT"), given.get("sasl_mechanism")
    if protocol not in _PROTOCOLS:  # reported already
        return
    for prefix, part, otherwise in (("ssl_", "SSL", "in plain text"), ("sasl_", "SASL", "without credentials")):
        names = [name for name in given if name.startswith(prefix) and given[name] != _HARMLESS.get(name)]
        if names and part not in protocol.split("_"):
            fitting = " or ".join(repr(other) for other in _PROTOCOLS if part in other.split("_"))
            yield (
                f"{', '.join(names)}: the connection would be {otherwise}, because security_protocol is {protocol!r}; "
                f"use {fitting}"
            )
    if "SASL" in protocol:
        needed = ("sasl_mechanism", *_NEEDED.get(mechanism if isinstance(mechanism, str) else "", ()))
        if missing := [name for name in needed if name not in given]:
            why = f"security_protocol={protocol!r}" + f" with sasl_mechanism={mechanism!r}" * (len(needed) > 1)
            yield f"{why} requires {' and '.join(missing)}"
    for name in ("sasl_plain_username", "sasl_plain_password", "ssl_password"):
        if name in given and not isinstance(given[name], str):
            yield f"{name} must be a string, got {type(given[name]).__name__}"


def safe_repr(value: object) -> str:
    """The repr of a number; of any other value, which may be secret, only the type."""
    if value is None or isinstance(value, (int, float)):
        return repr(value)
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"
