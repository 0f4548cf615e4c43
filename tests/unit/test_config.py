"""``--config FILE``: settings in TOML, with their types, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.refusal import refusal

from karafka_lite.cli.config import load, of_no_app

SECURE = """\
# the cluster
bootstrap_servers = ["kafka-1:9093", "${SECOND}:9093"]
security_protocol="SASL_SSL"

sasl_mechanism = "PLAIN"
sasl_plain_username = "me"
sasl_plain_password = "${KAFKA_PASSWORD}-$${x}"
ssl_check_hostname = false
request_timeout_ms = "${TIMEOUT}"
api_version = [2, 8]
drain_timeout_ms = 20_000
"""
ENVIRONMENT = {"SECOND": "kafka-2", "KAFKA_PASSWORD": 'a"b\\c = ${TIMEOUT}', "TIMEOUT": "20000"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "kafka.toml"


def test_each_value_has_the_type_of_its_setting_and_what_the_environment_has(file: Path) -> None:
    file.write_text(SECURE)
    assert load(str(file), ENVIRONMENT) == {
        "bootstrap_servers": ["kafka-1:9093", "kafka-2:9093"],
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "PLAIN",
        "sasl_plain_username": "me",
        "sasl_plain_password": 'a"b\\c = ${TIMEOUT}-${x}',
        "ssl_check_hostname": False,
        "request_timeout_ms": 20_000,
        "api_version": (2, 8),
        "drain_timeout_ms": 20_000,
    }


def test_without_an_app_they_are_checked_as_those_of_an_app(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    file.write_text(SECURE)
    servers, settings = of_no_app(str(file))
    assert servers == ["kafka-1:9093", "kafka-2:9093"]
    assert not {"bootstrap_servers", "drain_timeout_ms"} & settings.keys()
    file.write_text("sasl_plain_password = 's3cret'")
    text = refusal(lambda: of_no_app(str(file)))
    assert "security_protocol" in text
    assert "s3cret" not in text
    assert of_no_app(None) == ("localhost:9092", {})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a line", " cannot be read: "),
        (
            "sasl_plain_password = s3cret",
            ' cannot be read: Invalid value (at line 1, column 23); it is TOML: name = "v',
        ),
        ("client_id = 'a'\nclient_id = 'b'", " cannot be read: Cannot overwrite a value (at "),
        ("\n'security.protocol' = 'SSL'", ":2: unknown setting 'security.protocol'; did you mean security_protocol"),
        ("[security]\nprotocol = 's3cret'", ":1: unknown setting 'security'"),
        ("sasl_pasword = 's3cret'", ":1: unknown setting 'sasl_pasword'; did you mean "),
        ("sasl_plain_password = ['s3cret']", ":1: sasl_plain_password must be a string, got a list"),
        ('client_id = """\ns3cret = """\nssl_cafile = 3', ":3: ssl_cafile must be a string, got 3"),
        ("ssl_context = 's3cret'", ":1: ssl_context cannot be given in a file; give it in code"),
        ("enable_auto_commit = true", ":1: enable_auto_commit is not supported: "),
        ("request_timeout_ms = 's3cret'", ":1: request_timeout_ms must be an integer ≥ 1, got a str"),
        ("client_id = 'a'\nsasl_plain_password = '${MISSING}'", ":2: sasl_plain_password: the environment has no var"),
        ("request_timeout_ms = '${SECRET}'", ":1: request_timeout_ms must be an integer ≥ 1, got a str"),
    ],
)
def test_a_mistake_is_named_with_its_line_and_without_the_value(file: Path, content: str, says: str) -> None:
    file.write_text(content)
    text = refusal(lambda: load(str(file), {"SECRET": "s3cret"}))
    assert text.startswith(f"{file}{says}")
    assert "s3cret" not in text


def test_a_file_that_cannot_be_read_is_named(file: Path) -> None:
    assert refusal(lambda: load(str(file))) == f"--config {file} cannot be read: No such file or directory"
    file.write_bytes(b"\xff")
    assert refusal(lambda: load(str(file))) == f"--config {file} cannot be read: it is not a text in UTF-8"
