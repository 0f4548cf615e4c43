"""An App's arguments and settings: what is accepted, and what every refusal says."""

from __future__ import annotations

import functools
import json
import pickle
import re
from typing import Any, get_type_hints

import pytest
from kafka import KafkaConsumer
from support.refusal import refusal

from karafka_lite import App, to_json
from karafka_lite.routing import Router
from karafka_lite.settings import TOPIC_OPTIONS, UNSUPPORTED, Config, Settings, resolve_bootstrap_servers

SECRET = "hunter2"
INT32_MAX = 2**31 - 1
DEFAULTS = KafkaConsumer.DEFAULT_CONFIG
TYPES = get_type_hints(Settings)
OURS = {"max_decompressed_bytes"}
INTS = sorted(name for name, kind in TYPES.items() if kind in (int, int | None))
ZERO_ALLOWED = {
    *("fetch_min_bytes", "fetch_max_wait_ms", "retry_backoff_ms", "reconnect_backoff_ms", "reconnect_backoff_max_ms"),
}


def settings(**values: Any) -> Config:
    return Config.validated("group", settings=values)


# -- Config: the app's own arguments


def test_a_config_has_the_documented_defaults() -> None:
    assert Config.validated("group") == Config("group", ["localhost:9092"], 1, 5000, 60_000, {})


def test_a_config_keeps_what_was_given_and_adds_nothing() -> None:
    given = {"client_id": "me", "auto_offset_reset": "latest"}
    config = Config.validated(
        "group",
        bootstrap_servers=["a:1", "b"],
        concurrency=1,
        auto_commit_interval_ms=1,
        drain_timeout_ms=1,
        settings=given,
    )
    assert config == Config("group", ["a:1", "b"], 1, 1, 1, given)
    given.clear()
    assert config.settings == {"client_id": "me", "auto_offset_reset": "latest"}


def test_a_config_can_be_made_again_from_its_own_fields() -> None:
    config = Config.validated("group", bootstrap_servers="a:1,b:2", settings={"client_id": "me"})
    assert Config.validated(**vars(config)) == config


def test_options_of_a_topic_that_are_passed_to_the_app_are_all_recognised() -> None:
    assert frozenset(Router.topic.__kwdefaults__ or ()) - {"group_id"} == TOPIC_OPTIONS


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Config.validated("group").concurrency = 9  # type: ignore[misc]


@pytest.mark.parametrize("name", ["concurrency", "auto_commit_interval_ms", "drain_timeout_ms"])
@pytest.mark.parametrize("value", [0, -1, True, 1.0, "5", None, INT32_MAX + 1])
def test_an_argument_that_is_no_positive_int_is_refused(name: str, value: Any) -> None:
    text = refusal(lambda: Config.validated("group", **{name: value}))
    bound = f"≤ {INT32_MAX}" if value == INT32_MAX + 1 else "≥ 1"
    given = "a str" if value == "5" else value
    assert text.splitlines()[0] == f"{name} must be an integer {bound}, got {given}"


# -- settings that pass through


def test_the_settings_are_those_of_the_installed_client() -> None:
    of_app = {"group_id", "bootstrap_servers", "auto_commit_interval_ms"}
    assert set(TYPES) - OURS == set(DEFAULTS) - of_app - set(UNSUPPORTED)
    assert not OURS & set(DEFAULTS)
    assert set(UNSUPPORTED) <= set(DEFAULTS)


def test_the_clients_own_defaults_are_accepted() -> None:
    given = {name: DEFAULTS[name] for name in set(TYPES) - OURS}
    assert settings(**given).settings == given


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("enable_auto_commit", "manual_offsets=True"),
        ("key_deserializer", "message.key.decode()"),
        ("value_deserializer", "deserializer="),
        ("partition_assignment_strategy", "can claim partitions it has lost; remove it"),
        ("default_offset_commit_callback", "commit_offsets(sync=True)"),
        ("consumer_timeout_ms", "batch_timeout_ms="),
        ("kafka_client", "remove it"),
        ("ssl_ciphers", "use ssl_context=..., an ssl.SSLContext with set_ciphers()"),
        ("selector", "remove it"),
    ],
)
def test_a_setting_that_is_not_supported_is_refused_with_its_reason_and_never_its_value(name: str, hint: str) -> None:
    text = refusal(lambda: settings(**{name: SECRET}))
    assert text.startswith(f"{name} is not supported: ")
    assert hint in text
    assert SECRET not in text


@pytest.mark.parametrize("value", ["", ".", "..", "a b", "a" * 250, 3])
def test_an_instance_id_that_kafka_cannot_have_is_refused(value: Any) -> None:
    assert refusal(lambda: settings(group_instance_id=value)).startswith("group_instance_id must be 1 to 249 letters")
    assert settings(group_instance_id="shop-1.a_b").instance_id == "shop-1.a_b"


def test_every_setting_that_is_not_supported_is_in_the_test_above() -> None:
    mark = test_a_setting_that_is_not_supported_is_refused_with_its_reason_and_never_its_value.pytestmark[0]
    assert {name for name, _ in mark.args[1]} == set(UNSUPPORTED)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("sesion_timeout_ms", "session_timeout_ms"),
        ("sasl_password", "sasl_plain_password"),
        ("auto.offset.reset", "auto_offset_reset"),
        ("concurency", "concurrency"),
        ("bootstrap_server", "bootstrap_servers"),
        ("auto_commit_intervall_ms", "auto_commit_interval_ms"),
        ("drain_timeout", "drain_timeout_ms"),
    ],
)
def test_an_unknown_setting_is_refused_with_the_nearest_names_and_never_its_value(name: str, nearest: str) -> None:
    text = refusal(lambda: settings(**{name: SECRET}))
    assert text.startswith(f"unknown setting {name!r}; did you mean ")
    assert nearest in text
    assert SECRET not in text


def test_an_unknown_setting_near_one_that_is_not_supported_says_so_at_once() -> None:
    text = refusal(lambda: settings(enable_autocommit=SECRET))
    reason = UNSUPPORTED["enable_auto_commit"]
    assert text == f"unknown setting 'enable_autocommit'; enable_auto_commit is not supported: {reason}"


def test_an_unknown_setting_far_from_all_points_to_the_clients_documentation() -> None:
    text = refusal(lambda: settings(xyzzy=SECRET))
    assert text == "unknown setting 'xyzzy'; see kafka-python's KafkaConsumer for valid names"


@pytest.mark.parametrize("name", ["manual_offsets", "max_messages", "batch_timeout_ms", "deserializer", "backoff_ms"])
def test_an_option_of_a_topic_given_to_the_app_says_where_it_belongs(name: str) -> None:
    text = refusal(lambda: settings(**{name: SECRET}))
    assert text == f"{name} is an option of a topic, not of the App; use @app.topic(..., {name}=...)"


def test_all_mistakes_of_one_call_are_reported_at_once() -> None:
    text = refusal(
        lambda: Config.validated(
            "",
            bootstrap_servers="a:0",
            concurrency=0,
            auto_commit_interval_ms=0,
            drain_timeout_ms=-1,
            settings={"fetch_size": SECRET, "selector": SECRET, "check_crcs": SECRET, "heartbeat_interval_ms": 90_000},
        )
    )
    starts = (
        *("group_id ", "bootstrap_servers: ", "concurrency ", "auto_commit_interval_ms ", "drain_timeout_ms "),
        *("unknown setting 'fetch_size'", "selector ", "check_crcs ", "heartbeat_interval_ms=90000 "),
    )
    for line, start in zip(text.splitlines(), starts, strict=True):
        assert line.startswith(start)
    assert SECRET not in text


def test_every_setting_that_counts_something_is_checked_as_an_int() -> None:
    assert {name for name in TYPES if name.endswith(("_ms", "_bytes", "_records"))} <= set(INTS)


@pytest.mark.parametrize("name", INTS)
@pytest.mark.parametrize("value", [-1, True, 5000.0, SECRET, INT32_MAX + 1, float("inf")])
def test_a_number_that_kafka_cannot_use_is_refused(name: str, value: Any) -> None:
    text = refusal(lambda: settings(**{name: value}))
    bound = f"≤ {INT32_MAX}" if value == INT32_MAX + 1 else f"≥ {0 if name in ZERO_ALLOWED else 1}"
    assert f"{name} must be an integer {bound}, got " in text
    assert SECRET not in text


@pytest.mark.parametrize("name", INTS)
def test_zero_is_accepted_where_it_means_something(name: str) -> None:
    if name in ZERO_ALLOWED:
        assert settings(**{name: 0}).settings == {name: 0}
    else:
        assert f"{name} must be an integer ≥ 1, got 0" in refusal(lambda: settings(**{name: 0}))


@pytest.mark.parametrize("name", INTS)
def test_none_is_accepted_for_the_socket_buffers_only(name: str) -> None:
    if name in ("receive_buffer_bytes", "send_buffer_bytes"):
        assert settings(**{name: None}).settings == {name: None}
    else:
        assert re.search(rf"{name} must be an integer ≥ \d, got None", refusal(lambda: settings(**{name: None})))


@pytest.mark.parametrize("name", sorted(name for name, kind in TYPES.items() if kind is bool))
def test_a_switch_is_a_bool_because_the_word_false_is_true_in_python(name: str) -> None:
    assert refusal(lambda: settings(**{name: "false"})).splitlines()[0] == f"{name} must be True or False, got a str"
    given = {name: False, **({"security_protocol": "SSL"} if name.startswith("ssl_") else {})}
    assert settings(**given).settings == given


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("auto_offset_reset", ("earliest", "latest", "none")),
        ("isolation_level", ("read_uncommitted", "read_committed")),
        ("security_protocol", ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")),
        ("client_dns_lookup", ("use_all_dns_ips", "resolve_canonical_bootstrap_servers_only")),
    ],
)
def test_a_choice_is_one_of_those_that_the_client_knows(name: str, choices: tuple[str, ...]) -> None:
    for choice in choices:
        if "SASL" not in choice:  # which takes more
            assert settings(**{name: choice}).settings == {name: choice}
    allowed = " or ".join(map(repr, choices))
    assert refusal(lambda: settings(**{name: "sasl_ssl"})) == f"{name} must be {allowed}, got 'sasl_ssl'"
    assert refusal(lambda: settings(**{name: None})) == f"{name} must be {allowed}, got None"
    assert SECRET not in refusal(lambda: settings(**{name: [SECRET]}))


@pytest.mark.parametrize(
    ("low", "high", "otherwise"),
    [
        (
            *("drain_timeout_ms", "max_poll_interval_ms"),
            "the broker reassigns partitions whose handlers are still finishing",
        ),
        ("heartbeat_interval_ms", "session_timeout_ms", "one late heartbeat ends the session"),
        ("fetch_max_wait_ms", "request_timeout_ms", "a fetch that waits for messages times out"),
        ("request_timeout_ms", "connections_max_idle_ms", "a connection is closed while a request waits"),
    ],
)
def test_a_time_that_must_be_less_than_another_is_compared_with_it_or_with_the_clients_default(
    low: str, high: str, otherwise: str
) -> None:
    def config(**times: int) -> Config:
        drain = times.pop("drain_timeout_ms", 60_000)
        return Config.validated("group", drain_timeout_ms=drain, settings=times)

    low_default, high_default = DEFAULTS.get(low, 60_000), DEFAULTS[high]
    config(**{low: high_default - 1})
    config(**{high: low_default + 1, **({"fetch_max_wait_ms": 1} if low == "fetch_max_wait_ms" else {})})
    config(**{low: 1000, high: 1001})
    for times in ({low: high_default}, {high: low_default}, {low: 1001, high: 1001}):
        text = refusal(lambda times=times: config(**times))  # type: ignore[misc]
        lower, higher = times.get(low, low_default), times.get(high, high_default)
        assert f"{low}={lower} must be less than {high}={higher}; otherwise {otherwise}" in text


def test_a_time_of_a_wrong_type_is_refused_and_not_compared() -> None:
    text = refusal(lambda: settings(session_timeout_ms="6000", heartbeat_interval_ms="2000"))
    assert [line.split()[0] for line in text.splitlines()] == ["session_timeout_ms", "heartbeat_interval_ms"]


def test_secrets_are_in_no_refusal_and_not_in_the_repr() -> None:
    user = {"security_protocol": "SASL_SSL", "sasl_mechanism": "PLAIN", "sasl_plain_username": "me"}
    secrets = {"sasl_plain_password": SECRET, "ssl_password": SECRET, "proxy_url": f"socks5://me:{SECRET}@proxy"}
    given = {**user, **secrets}
    config = settings(**given)
    assert config.settings == given
    assert SECRET not in repr(config) + str(config)
    assert SECRET not in refusal(lambda: settings(**given, session_timeout_ms=SECRET, unknown=SECRET))
    assert SECRET not in refusal(lambda: settings(**secrets))


# -- security


SASL = {
    "security_protocol": "SASL_SSL",
    "sasl_mechanism": "PLAIN",
    "sasl_plain_username": "u",
    "sasl_plain_password": "p",
}


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            {"ssl_cafile": "ca.pem", "ssl_check_hostname": False},
            "ssl_cafile, ssl_check_hostname: the connection would be in plain text, because security_protocol is "
            "'PLAINTEXT'; use 'SSL' or 'SASL_SSL'",
        ),
        (
            {**SASL, "security_protocol": "SASL_PLAINTEXT", "ssl_cafile": "ca.pem"},
            "ssl_cafile: the connection would be in plain text, because security_protocol is 'SASL_PLAINTEXT'; "
            "use 'SSL' or 'SASL_SSL'",
        ),
        (
            {**SASL, "security_protocol": "SSL"},
            "sasl_mechanism, sasl_plain_username, sasl_plain_password: the connection would be without credentials, "
            "because security_protocol is 'SSL'; use 'SASL_PLAINTEXT' or 'SASL_SSL'",
        ),
        ({"security_protocol": "SASL_SSL"}, "security_protocol='SASL_SSL' requires sasl_mechanism"),
        (
            {**SASL, "sasl_plain_password": None},
            "security_protocol='SASL_SSL' with sasl_mechanism='PLAIN' requires sasl_plain_password",
        ),
        (
            {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "OAUTHBEARER"},
            "security_protocol='SASL_PLAINTEXT' with sasl_mechanism='OAUTHBEARER' requires sasl_oauth_token_provider",
        ),
        (
            {**SASL, "sasl_mechanism": "scram-sha-512"},
            "sasl_mechanism must be 'PLAIN' or 'SCRAM-SHA-256' or 'SCRAM-SHA-512' or 'OAUTHBEARER' or 'GSSAPI' or "
            "'AWS_MSK_IAM', got 'scram-sha-512'",
        ),
        ({**SASL, "sasl_plain_password": b"p"}, "sasl_plain_password must be a string, got bytes"),
    ],
)
def test_settings_that_would_not_protect_are_refused(given: dict[str, Any], text: str) -> None:
    assert refusal(lambda: settings(**given)) == text


@pytest.mark.parametrize(
    "given",
    [
        SASL,
        {"security_protocol": "SSL"},
        {"security_protocol": "SSL", "ssl_cafile": "ca.pem", "ssl_certfile": "c", "ssl_keyfile": "k"},
        {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "GSSAPI", "sasl_kerberos_service_name": "k"},
        {"ssl_cafile": None, "sasl_mechanism": None, "ssl_check_hostname": True},
    ],
)
def test_settings_that_fit_are_accepted(given: dict[str, Any]) -> None:
    assert settings(**given).settings == given


# -- bootstrap servers


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("localhost", ["localhost"]),
        ("a:1, b:65535 ,c", ["a:1", "b:65535", "c"]),
        (["a:1", "b:2"], ["a:1", "b:2"]),
        (("kafka_1.internal-net:9092",), ["kafka_1.internal-net:9092"]),
        ("10.0.0.1:9092,[::1]:9092,[::1]", ["10.0.0.1:9092", "[::1]:9092", "[::1]"]),
        ("[fe80::1%eth0]:9092", ["[fe80::1%eth0]:9092"]),
    ],
)
def test_bootstrap_servers_are_a_str_with_commas_or_a_list(given: Any, expected: list[str]) -> None:
    assert Config.validated("group", bootstrap_servers=given).bootstrap_servers == expected


@pytest.mark.parametrize("given", [None, 9092, [], (), [9092], [b"a:1"], {"a:1"}, ["a:1", None]])
def test_bootstrap_servers_of_another_type_are_refused(given: Any) -> None:
    text = refusal(lambda: Config.validated("group", bootstrap_servers=given))
    expected = 'bootstrap_servers must be a string or a non-empty list of strings, for example "localhost:9092"'
    assert text == expected


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ("", "''"),
        ("a:1,", "''"),
        ([" "], "''"),
        ("a:0", "'a:0'"),
        ("b:1,a:65536", "'a:65536'"),
        ("a:", "'a:'"),
        (":9092", "':9092'"),
        ("a:port", "'a:port'"),
        ("a:-1", "'a:-1'"),
        ("a:\u0661", "'a:\u0661'"),
        ("a b:1", "'a b:1'"),
        ("a:1:2", "'a:1:2'"),
        ("::1", "'::1'"),
        ("[::1", "'[::1'"),
        ("[localhost]:1", "'[localhost]:1'"),
        ("SSL://a:9093", "'SSL://a:9093'"),
        ("a/b", "'a/b'"),
    ],
)
def test_a_server_that_is_not_host_and_port_is_refused(given: Any, wrong: str) -> None:
    text = refusal(lambda: Config.validated("group", bootstrap_servers=given))
    assert text.startswith(f"bootstrap_servers: {wrong} is not an address")
    assert "for example localhost:9092 or [::1]:9092" in text
    assert "port 1 to 65535" in text


@pytest.mark.parametrize("given", [f"kafka://me:{SECRET}@a:1", f"me:{SECRET},x@a:1", ["b:2", f"me:{SECRET}@a:1"]])
def test_a_password_among_the_servers_is_refused_and_not_shown(given: Any) -> None:
    text = refusal(lambda: Config.validated("group", bootstrap_servers=given))
    assert "use host:port, and sasl_plain_username=... of App" in text
    assert SECRET not in text


VARIABLE = "KARAFKA_LITE_BOOTSTRAP_SERVERS"


@pytest.mark.parametrize(
    ("option", "environ", "expected"),
    [
        ("opt:1,opt:2", {VARIABLE: "env:1"}, ["opt:1", "opt:2"]),
        (None, {VARIABLE: "env:1, env:2"}, ["env:1", "env:2"]),
        (None, {VARIABLE: " "}, ["arg:1"]),
        (None, {"OTHER": "env:1"}, ["arg:1"]),
    ],
)
def test_the_option_wins_over_the_environment_which_wins_over_the_argument(
    option: str | None, environ: dict[str, str], expected: list[str]
) -> None:
    assert resolve_bootstrap_servers(option, environ, ["arg:1"]) == expected


@pytest.mark.parametrize(
    ("option", "environ", "source"),
    [
        ("bad:0", {VARIABLE: "env:1"}, "--broker: 'bad:0'"),
        ("", {VARIABLE: "env:1"}, "--broker: ''"),
        (None, {VARIABLE: "bad:0"}, f"the environment variable {VARIABLE}: 'bad:0'"),
        (None, {}, "bootstrap_servers: 'bad:0'"),
    ],
)
def test_a_bad_server_is_refused_with_the_place_that_it_came_from(
    option: str | None, environ: dict[str, str], source: str
) -> None:
    assert refusal(lambda: resolve_bootstrap_servers(option, environ, "bad:0")).startswith(
        f"{source} is not an address"
    )


def test_a_bad_server_that_is_overridden_is_not_checked() -> None:
    assert resolve_bootstrap_servers("opt:1", {VARIABLE: "bad:0"}, "bad:0") == ["opt:1"]


async def later(value: object) -> bytes:
    return b""


@pytest.mark.parametrize(
    ("serializer", "why"),
    [
        (None, "got None"),
        (json, "got a module"),
        (json.dumps, "json.dumps returns text: leave it out, the default is JSON in UTF-8"),
        (later, "later is an async or generator function"),
        (functools.partial(later), "later is an async or generator function"),
        (lambda: b"", "() must accept one positional argument, the value"),
        (lambda topic, value: b"", "(topic, value) must accept one positional argument, the value"),
    ],
)
def test_a_serializer_that_would_fail_at_each_value_is_refused(serializer: Any, why: str) -> None:
    text = refusal(lambda: App("group", serializer=serializer))
    assert text.startswith("serializer must be a function of a value that returns bytes")
    assert why in text


def test_the_serializer_outlives_what_the_command_line_says() -> None:
    app = App("group", serializer=pickle.dumps)
    app.override(concurrency=2)
    assert app.config.serializer is pickle.dumps
    assert App("group").config.serializer is to_json


def test_a_serializer_of_a_topic_is_an_unknown_name_of_the_app_that_is_near() -> None:
    options: Any = {"serialiser": to_json}
    assert "did you mean serializer or" in refusal(lambda: App("group", **options))
