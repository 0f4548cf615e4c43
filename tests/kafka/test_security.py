"""A real Kafka with a CA of its own, passwords and ACLs: what it refuses, and what is said about it.

Each refusal is one line within 5 s that names the broker, the cause and the setting; at the start the app ends with 1,
because 3 means "try again later", and a wrong password that is tried again and again locks accounts.
"""

from __future__ import annotations

import base64
import json
import logging
import random
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from support.command import Ended, command, process
from support.harness import QUICK, running
from support.observer import Observer, wait_until
from support.secure_kafka import NEVER_EXISTS, PASSWORD, USER, Certificates, SecureKafka

from karafka_lite import App
from karafka_lite.client.admin import Admin
from karafka_lite.client.consumer import Client
from karafka_lite.client.producer import Producer
from karafka_lite.errors import AccessError, BrokerUnavailableError, ClusterError

WRONG = "wrong-staple-93c"
KEY_PASSWORD = "locked-battery-58e"
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
    lines = told(caplog)
    assert len(lines) == 1, lines
    for words in (secure_kafka.address(row.listener), *row.says):
        assert words in lines[0]
    assert "\n" not in lines[0]


@pytest.mark.parametrize("client", [Admin, Producer])
def test_every_kind_of_client_says_it(secure_kafka: SecureKafka, client: Callable[..., Any]) -> None:
    with pytest.raises(AccessError, match="refuses the credentials"):
        client([secure_kafka.address("SASL")], sasl(password=WRONG)).connect()


# -- rights ------------------------------------------------------------------------------------------------------------


class Plot:
    """Topics and a group of one test, and an app of USER that consumes them."""

    def __init__(self, secure_kafka: SecureKafka) -> None:
        self.kafka, self.as_root = secure_kafka, Observer(secure_kafka.bootstrap_servers)
        self.topic, self.other, self.dead = (self.as_root.topic(partitions=1) for _ in range(3))
        self.group = self.as_root.group()
        self.values: list[tuple[str, object]] = []

    def app(self, *topics: str, dead_letter: str | None = None, exactly_once: bool = False, **settings: Any) -> App:
        given = {**QUICK, "auto_commit_interval_ms": 200, **sasl(SCRAM), **settings}
        app = App(self.group, bootstrap_servers=self.kafka.address("SASL"), **given)
        options: Any = {"dead_letter": dead_letter, "max_retries": 0} if dead_letter else {}

        @app.topic(*topics or (self.topic,), backoff_ms=100, exactly_once=exactly_once, **options)
        def work(batch: Any, ctx: Any) -> None:
            if dead_letter:
                raise ValueError("bad")
            self.values += [(batch.topic, value) for value in batch.values]

        return app

    def allow(self, kind: str, name: str, *operations: str) -> Callable[[], None]:
        return self.kafka.allow(kind, name, *operations)


@pytest.fixture
def plot(secure_kafka: SecureKafka) -> Iterator[Plot]:
    plot = Plot(secure_kafka)
    yield plot
    plot.as_root.forget_clients()


def wait_for_line(log: pytest.LogCaptureFixture, *words: str) -> str:
    def line() -> str | None:
        return next((line for line in told(log) if all(word in line for word in words)), None)

    return str(wait_until(line, 2 * SOON_S, f"a line with {words}"))


DENIED: dict[str, tuple[Callable[[Plot], object], tuple[str, ...]]] = {
    "topic that may not be seen": (
        lambda plot: plot.allow("GROUP", plot.group, "READ"),
        ("topic {topic} may not be read", "kafka-acls.sh", "--consumer --group {group} --topic {topic}"),
    ),
    "topic that may only be seen": (
        lambda plot: (plot.allow("GROUP", plot.group, "READ"), plot.allow("TOPIC", plot.topic, "DESCRIBE")),
        ("topic {topic} may not be read", "kafka-acls.sh"),
    ),
    "group": (
        lambda plot: plot.allow("TOPIC", plot.topic, "READ"),
        ("group {group} may not be joined", "kafka-acls.sh", "--operation Read --group {group}"),
    ),
}


@pytest.mark.parametrize(("rights", "says"), DENIED.values(), ids=DENIED)
def test_a_right_that_is_missing_at_the_start_is_one_line_and_exit_1(
    plot: Plot, rights: Callable[[Plot], object], says: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    rights(plot)
    began = time.monotonic()
    assert plot.app().run() == 1
    assert time.monotonic() - began < SOON_S
    (line,) = told(caplog)
    for words in says:
        assert words.format(topic=plot.topic, group=plot.group) in line


def test_with_exactly_once_the_right_to_transactional_ids_is_checked_at_the_start_and_enough(
    plot: Plot, caplog: pytest.LogCaptureFixture
) -> None:
    plot.allow("GROUP", plot.group, "READ")
    for operation in ("READ", "WRITE"):
        plot.allow("TOPIC", plot.topic, operation)
    assert plot.app(exactly_once=True).run() == 1
    (line,) = told(caplog)
    assert f"transactional ids that begin with {plot.group} may not be used, which exactly_once needs" in line
    assert f"--transactional-id {plot.group} --resource-pattern-type prefixed" in line


def test_a_dead_letter_topic_that_may_not_be_seen_is_not_said_to_be_missing(
    plot: Plot, caplog: pytest.LogCaptureFixture
) -> None:
    plot.allow("GROUP", plot.group, "READ")
    plot.allow("TOPIC", plot.topic, "READ")
    assert plot.app(dead_letter=plot.dead).run() == 1
    (line,) = told(caplog)
    assert f"may not be seen or created: {plot.dead}" in line
    assert f"--producer --topic {plot.dead}" in line


def test_a_dead_letter_topic_that_may_not_be_written_to_is_said_and_waited_for(
    plot: Plot, caplog: pytest.LogCaptureFixture
) -> None:
    plot.allow("GROUP", plot.group, "READ")
    plot.allow("TOPIC", plot.topic, "READ")
    plot.allow("TOPIC", plot.dead, "DESCRIBE")
    plot.as_root.produce(plot.topic, [1])
    with running(plot.app(dead_letter=plot.dead)):
        wait_for_line(caplog, plot.dead, "may not be written to", "kafka-acls.sh", "--producer")
        plot.allow("TOPIC", plot.dead, "WRITE")
        wait_until(lambda: plot.as_root.end_offset(plot.dead) == 1, 3 * SOON_S, "the dead letter")


def test_a_topic_that_is_denied_while_running_is_said_and_only_it_waits(
    plot: Plot, caplog: pytest.LogCaptureFixture
) -> None:
    plot.allow("GROUP", plot.group, "READ")
    plot.allow("TOPIC", plot.other, "READ")
    take_back = plot.allow("TOPIC", plot.topic, "READ")
    with running(plot.app(plot.topic, plot.other)):
        for topic in (plot.topic, plot.other):
            plot.as_root.produce(topic, [1])
        wait_until(lambda: len(plot.values) == 2, message="both topics")
        take_back()
        wait_for_line(caplog, f"topic {plot.topic} may not be read", "kafka-acls.sh")
        plot.as_root.produce(plot.other, [2])
        wait_until(lambda: (plot.other, b"2") in plot.values, SOON_S, "the other topic goes on")
        plot.allow("TOPIC", plot.topic, "READ")
        plot.as_root.produce(plot.topic, [2])
        wait_until(lambda: (plot.topic, b"2") in plot.values, 2 * SOON_S, "it goes on when it is allowed")
    assert len([line for line in told(caplog) if f"{plot.topic} may not be read" in line]) == 1


def test_a_group_that_is_denied_while_running_is_said_and_retried(plot: Plot, caplog: pytest.LogCaptureFixture) -> None:
    plot.allow("TOPIC", plot.topic, "READ")
    take_back = plot.allow("GROUP", plot.group, "READ")
    with running(plot.app()):
        plot.as_root.produce(plot.topic, [1])
        wait_until(lambda: plot.values, message="the first message")
        take_back()
        plot.as_root.produce(plot.topic, [2])
        wait_for_line(caplog, f"group {plot.group}", "GroupAuthorizationFailed")
        plot.allow("GROUP", plot.group, "READ")
        plot.as_root.produce(plot.topic, [3])
        wait_until(lambda: (plot.topic, b"3") in plot.values, 2 * SOON_S, "it goes on when it is allowed")
        wait_until(lambda: plot.as_root.committed(plot.group, plot.topic) == 3, 2 * SOON_S, "the commit")


# -- later -------------------------------------------------------------------------------------------------------------


def test_a_password_that_is_changed_while_running_is_said_and_retried(
    plot: Plot, caplog: pytest.LogCaptureFixture
) -> None:
    plot.allow("TOPIC", plot.topic, "READ")
    plot.allow("GROUP", plot.group, "READ")
    with running(plot.app()):
        plot.as_root.produce(plot.topic, [1])
        wait_until(lambda: plot.values, message="the first message")
        plot.kafka.set_password("another")
        try:
            line = wait_for_line(caplog, "refuses the credentials")
            assert plot.kafka.address("SASL") in line
            assert "sasl_plain_password" in line
        finally:
            plot.kafka.set_password(PASSWORD)
        plot.as_root.produce(plot.topic, [2])
        wait_until(lambda: len(plot.values) >= 2, 2 * SOON_S, "it goes on when the password is good again")
    assert len(told(caplog)) <= 3


def test_an_address_that_the_brokers_tell_and_nobody_can_reach_is_named(
    plot: Plot, caplog: pytest.LogCaptureFixture
) -> None:
    app = App("group", bootstrap_servers=plot.kafka.address("LOST"))
    app.topic(plot.topic)(lambda batch, ctx: None)
    with running(app):
        line = wait_for_line(caplog, f"{NEVER_EXISTS}:9092")
    assert "broker 1 at" in line
    assert "its name cannot be resolved" in line
    assert "came from the brokers (advertised.listeners)" in line


def test_a_question_that_no_broker_can_be_asked_names_the_address_too(secure_kafka: SecureKafka) -> None:
    admin = Admin([secure_kafka.address("LOST")], {"bootstrap_timeout_ms": 1000})
    admin.connect()
    with pytest.raises(ClusterError, match=rf"broker 1 at {NEVER_EXISTS}:9092 cannot be reached .*advertised"):
        admin.partitions(["t"])
    admin.close()


def test_a_new_client_of_a_member_that_has_worked_waits_where_its_credentials_are_refused(
    secure_kafka: SecureKafka,
) -> None:
    member: Any = SimpleNamespace(begun=False)
    for begun, error in ((False, AccessError), (True, BrokerUnavailableError)):
        member.begun = begun
        client = Client("g", [secure_kafka.address("SASL")], sasl(password=WRONG), member, lambda event: None)
        with pytest.raises(error, match="refuses the credentials"):
            client.connect()


# -- one host of several -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Admin, Producer, App])
def test_a_first_host_that_is_silent_fails_no_start(
    secure_kafka: SecureKafka, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("karafka_lite.client.network.HOST_S", 0.2)
    monkeypatch.setattr(random, "shuffle", lambda hosts: None)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        servers = [f"127.0.0.1:{silent.getsockname()[1]}", secure_kafka.address("SASL")]
        settings = {**sasl(), "bootstrap_timeout_ms": 3000}
        if kind is App:
            app = App("group", bootstrap_servers=servers, **settings)
            app.topic("orders")(lambda batch, ctx: None)
            app.start()
            app.stop()
        else:
            client = kind(servers, settings)
            client.connect()
            client.close()


# -- the command line --------------------------------------------------------------------------------------------------


def test_produce_reaches_a_secured_cluster_by_an_app_and_by_a_file(
    plot: Plot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plot.allow("TOPIC", plot.topic, "WRITE")
    settings = {**tls(plot.kafka.certificates), **sasl(SCRAM, tls=True)}
    settings["bootstrap_servers"] = plot.kafka.address("SASL_TLS")
    monkeypatch.setenv("KAFKA_PASSWORD", settings["sasl_plain_password"])
    named = {**settings, "sasl_plain_password": "${KAFKA_PASSWORD}"}
    (tmp_path / "kafka.toml").write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in named.items()))
    (tmp_path / "secure.py").write_text(
        f"from karafka_lite import App\napp = App('g', **{settings!r})\n@app.topic('t')\ndef work(batch, ctx): ...\n"
    )
    (tmp_path / "lines").write_text("1\n2\n")
    for options in (["--app", "secure:app"], ["--config", "kafka.toml"]):
        done = process("-m", "karafka_lite", "produce", plot.topic, "lines", *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert plot.as_root.end_offset(plot.topic) == 4
    done = process(
        "-m", "karafka_lite", "produce", plot.topic, "lines", "--broker", settings["bootstrap_servers"], cwd=tmp_path
    )
    assert done.returncode == 1
    assert "speaks TLS, not plain text" in done.stderr


def test_what_operations_need_and_lack_is_said_in_one_line(
    plot: Plot, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"bootstrap_servers": plot.kafka.address("SASL"), **sasl(SCRAM)}
    config = tmp_path / "kafka.toml"
    config.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items()))
    plot.as_root.produce(plot.topic, [1], headers=[("source-topic", plot.dead.encode())])
    plot.as_root.commit(plot.group, plot.topic, 0)
    redrive_group = f"{plot.topic}.redrive"

    def run(*argv: str) -> Ended:
        return command(capsys, *argv, "--config", str(config))

    def lacks(words: str, *argv: str) -> None:
        ended = run(*argv)
        assert (ended.code, ended.out, ended.err.count("\n")) == (1, "", 1)
        assert words in ended.err

    read, lag = ["read", plot.topic, "--value"], ["lag", "--group", plot.group]
    reset = ["reset", "--group", plot.group, "--to", "latest", "--yes", "--topic", plot.topic]
    redrive = ["redrive", plot.topic]
    lacks(f"topic {plot.topic} does not exist (or no Describe permission)", *read)
    lacks("GroupAuthorizationFailedError", *lag)
    plot.allow("TOPIC", plot.topic, "DESCRIBE")
    plot.allow("GROUP", plot.group, "DESCRIBE")
    lacks(f"topics may not be read: {plot.topic} (TopicAuthorizationFailed); use kafka-acls.sh", *read)
    assert run(*lag).code == 0
    ended = run(*reset)
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert "a right is missing, see kafka-acls.sh" in ended.err
    assert plot.as_root.committed(plot.group, plot.topic) == 0
    plot.allow("TOPIC", plot.topic, "READ")
    plot.allow("GROUP", plot.group, "READ")
    plot.allow("GROUP", redrive_group, "READ")
    assert run(*read).out == "1\n"
    assert run(*reset).code == 0
    assert plot.as_root.committed(plot.group, plot.topic) == 1
    lacks(f"topics of dead letters do not exist: {plot.dead} (or no Describe permission)", *redrive)
    plot.allow("TOPIC", plot.dead, "DESCRIBE")
    ended = run(*redrive)
    assert ended.code == 1
    assert f"{plot.topic}-0@0 was not sent: topic {plot.dead} may not be written to" in ended.err
    assert plot.as_root.committed(redrive_group, plot.topic) is None
    plot.allow("TOPIC", plot.dead, "WRITE")
    assert run(*redrive).code == 0
    assert plot.as_root.committed(redrive_group, plot.topic) == 1


# -- secrets -----------------------------------------------------------------------------------------------------------

LOGGED_BY_THE_USER = """\
import json
import logging
logging.basicConfig(level=logging.DEBUG)
logging.getLogger("kafka").setLevel(logging.DEBUG)
"""


@pytest.mark.parametrize("before", ["", LOGGED_BY_THE_USER], ids=["ours", "the user's own logging"])
@pytest.mark.parametrize("password", [PASSWORD, WRONG])
def test_no_secret_is_in_any_output_at_debug_level(plot: Plot, tmp_path: Path, before: str, password: str) -> None:
    plot.allow("GROUP", plot.group, "READ")
    plot.allow("TOPIC", plot.topic, "READ", "WRITE")
    plot.as_root.produce(plot.topic, [1])
    key = tmp_path / "client.key"
    openssl = ["openssl", "rsa", "-aes128", "-passout", f"pass:{KEY_PASSWORD}", "-out", str(key)]
    subprocess.run([*openssl, "-in", plot.kafka.certificates.key("client")], check=True, capture_output=True)
    secured = {**tls(plot.kafka.certificates), "ssl_certfile": plot.kafka.certificates.cert("client")}
    secured |= {
        "ssl_keyfile": str(key),
        "ssl_password": KEY_PASSWORD,
        "bootstrap_servers": plot.kafka.address("MUTUAL"),
    }
    (tmp_path / "mine.py").write_text(
        f"{before}"
        f"import sys\n"
        f"from karafka_lite import App\n"
        f"from karafka_lite.client.admin import Admin\n"
        f"secured = {secured!r}\n"
        f"admin = Admin([secured.pop('bootstrap_servers')], secured)\n"
        f"admin.connect(); admin.close()\n"
        f"settings = {sasl('PLAIN', password=password)!r}\n"
        f"app = App({plot.group!r}, bootstrap_servers={plot.kafka.address('SASL')!r}, **settings)\n"
        f"@app.topic({plot.topic!r})\n"
        f"def work(batch, ctx):\n"
        f"    ctx.produce({plot.topic!r}, batch.first.payload) if batch.first_offset == 0 else app.stop()\n"
        f"print(app, repr(app.config), vars(app))\n"
    )
    done = process("-m", "karafka_lite", "run", "mine:app", "--log-level", "debug", cwd=tmp_path)
    assert done.returncode == (0 if password == PASSWORD else 1), done.stderr
    assert "refuses the credentials" in done.stderr or "left" in done.stderr
    if before:
        assert "SaslAuthenticateRequest(not shown: it holds credentials)" in done.stderr, "the log is there"
    plain = f"\\0{USER}\\0{password}".encode()
    for secret in (password, KEY_PASSWORD, base64.b64encode(plain).decode(), password.encode().hex()):
        assert secret not in done.stdout + done.stderr
