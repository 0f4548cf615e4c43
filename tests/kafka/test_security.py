"""A real Kafka with a CA of its own, passwords and ACLs: what it refuses, and what is said about it.

Each refusal is one line within 5 s that names the broker, the cause and the setting; at the start the app ends with 1,
because 3 means "try again later", and a wrong password that is tried again and again locks accounts.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from support.secure_kafka import PASSWORD, USER, Certificates, SecureKafka

from karafka_lite import App
from karafka_lite.client.admin import Admin
from karafka_lite.client.producer import Producer
from karafka_lite.errors import AccessError

WRONG = "wrong-staple-93c"
SOON_S = 5.0
Settings = dict[str, Any]


def sasl(mechanism: str = "PLAIN", user: str = USER, password: str = PASSWORD, tls: bool = False) -> Settings:
    protocol = "SASL_SSL" if tls else "SASL_PLAINTEXT"
    user_and_password = {"sasl_plain_username": user, "sasl_plain_password": password}
    return {"security_protocol": protocol, "sasl_mechanism": mechanism, **user_and_password}


def tls(files: Certificates, ca: str = "ca", client: str = "") -> Settings:
    own = {"ssl_certfile": files.cert(client), "ssl_keyfile": files.key(client)} if client else {}
    return {"security_protocol": "SSL", "ssl_cafile": files.cert(ca), **own}


class Row(NamedTuple):
    """Who comes to which listener, and what the line says beside the address."""

    listener: str
    settings: Callable[[Certificates], Settings]
    says: tuple[str, ...]


SCRAM = "SCRAM-SHA-256"
REFUSED_AT_THE_START = {
    "wrong password": Row(
        "SASL",
        lambda files: sasl(password=WRONG),
        ("refuses the credentials (PLAIN: ", "check sasl_plain_username and sasl_plain_password"),
    ),
    "wrong password for SCRAM": Row(
        "SASL",
        lambda files: sasl(SCRAM, password=WRONG),
        ("refuses the credentials (SCRAM-SHA-256: ", "sasl_plain_password"),
    ),
    "wrong password over TLS": Row(
        "SASL_TLS",
        lambda files: {**tls(files), **sasl(SCRAM, password=WRONG, tls=True)},
        ("refuses the credentials", "sasl_plain_password"),
    ),
    "unknown user": Row(
        "SASL",
        lambda files: sasl(SCRAM, user="nobody"),
        ("refuses the credentials", "sasl_plain_username"),
    ),
    "mechanism that is not offered": Row(
        "SASL",
        lambda files: sasl("SCRAM-SHA-512"),
        ("does not offer sasl_mechanism='SCRAM-SHA-512'; it offers PLAIN, SCRAM-SHA-256",),
    ),
    "no client certificate": Row("MUTUAL", tls, ("asks for a client certificate", "set ssl_certfile and ssl_keyfile")),
    "client certificate of another CA": Row(
        "MUTUAL",
        lambda files: tls(files, client="foreign_client"),
        ("refuses our client certificate", "check ssl_certfile and ssl_keyfile"),
    ),
    "expired client certificate": Row(
        "MUTUAL",
        lambda files: tls(files, client="expired_client"),
        ("refuses our client certificate", "check ssl_certfile and ssl_keyfile"),
    ),
    "wrong CA": Row(
        "TLS",
        lambda files: tls(files, ca="other_ca"),
        ("is not from a CA in ssl_cafile='", "other_ca.pem'", "use ssl_cafile="),
    ),
    "no CA": Row(
        "TLS",
        lambda files: {"security_protocol": "SSL"},
        ("is not from a CA in this machine's CAs", "use ssl_cafile="),
    ),
    "expired server certificate": Row("EXPIRED", tls, ("the certificate of", "has expired")),
    "certificate of another host": Row("ELSEWHERE", tls, ("is for another host", "ssl_check_hostname=False")),
    "plain text to TLS": Row(
        "TLS",
        lambda files: {},
        ("speaks TLS, not plain text; use security_protocol='SSL' instead of 'PLAINTEXT'",),
    ),
    "TLS to plain text": Row(
        "LOST", tls, ("speaks plain text, not TLS; use security_protocol='PLAINTEXT' instead of 'SSL'",)
    ),
    "no SASL to a port with SASL": Row(
        "SASL",
        lambda files: {},
        ("asks for authentication (PLAIN, SCRAM-SHA-256); use security_protocol='SASL_PLAINTEXT'", "sasl_mechanism"),
    ),
    "no SASL to a port with SASL and TLS": Row(
        "SASL_TLS", tls, ("asks for authentication (SCRAM-SHA-256); use security_protocol='SASL_SSL'",)
    ),
    "SASL to a port without": Row(
        "LOST",
        lambda files: sasl(),
        ("does not authenticate; use security_protocol='PLAINTEXT', without sasl_*",),
    ),
    "SASL in plain text to TLS": Row(
        "SASL_TLS",
        lambda files: sasl(),
        ("speaks TLS, not plain text; use security_protocol='SASL_SSL'",),
    ),
}


def told(log: pytest.LogCaptureFixture) -> list[str]:
    """The lines that a user would see of us at the default level, but for INFO."""
    ours = [record for record in log.records if record.name.startswith("karafka_lite")]
    return [record.getMessage() for record in ours if record.levelno >= logging.WARNING]


def idle_app(secure_kafka: SecureKafka, listener: str, settings: Settings, group: str = "group") -> App:
    app = App(group, bootstrap_servers=secure_kafka.address(listener), **settings)
    app.topic("orders")(lambda batch, ctx: None)
    return app


@pytest.mark.parametrize("row", REFUSED_AT_THE_START.values(), ids=REFUSED_AT_THE_START)
def test_what_is_refused_at_the_start_is_one_line_and_exit_1(
    secure_kafka: SecureKafka, row: Row, caplog: pytest.LogCaptureFixture
) -> None:
    app = idle_app(secure_kafka, row.listener, row.settings(secure_kafka.certificates))
    began = time.monotonic()
    assert app.run() == 1
    assert time.monotonic() - began < SOON_S
    (line,) = told(caplog)
    for words in (secure_kafka.address(row.listener), *row.says):
        assert words in line
    assert "\n" not in line


@pytest.mark.parametrize("client", [Admin, Producer])
def test_every_kind_of_client_says_it(secure_kafka: SecureKafka, client: Callable[..., Any]) -> None:
    with pytest.raises(AccessError, match="refuses the credentials"):
        client([secure_kafka.address("SASL")], sasl(password=WRONG)).connect()
