"""``--config FILE``: settings by kafka-python's names, with their types."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.refusal import refusal

from karafka_lite.cli.config import load, of_no_app

SECURE = """\
# the cluster
bootstrap_servers = kafka-1:9093,kafka-2:9093
security_protocol=SASL_SSL

sasl_mechanism = PLAIN
sasl_plain_username = me
sasl_plain_password = a=b # c
ssl_check_hostname = False
request_timeout_ms = 20000
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "client.properties"


def test_each_value_has_the_type_of_its_setting(file: Path) -> None:
    file.write_text(SECURE)
    assert load(str(file)) == {
        "bootstrap_servers": "kafka-1:9093,kafka-2:9093",
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "PLAIN",
        "sasl_plain_username": "me",
        "sasl_plain_password": "a=b # c",
        "ssl_check_hostname": False,
        "request_timeout_ms": 20_000,
    }


def test_without_an_app_they_are_checked_as_those_of_an_app(file: Path) -> None:
    file.write_text(SECURE)
    servers, settings = of_no_app(str(file))
    assert servers == "kafka-1:9093,kafka-2:9093"
    assert "bootstrap_servers" not in settings
    file.write_text("sasl_plain_password = secret")
    text = refusal(lambda: of_no_app(str(file)))
    assert "security_protocol" in text
    assert "secret" not in text
    assert of_no_app(None) == ("localhost:9092", {})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a line", ":1: a line must be name = value, or begin with #"),
        ("\n= 3", ":2: a line must be name = value, or begin with #"),
        ("client_id = a\nclient_id = b", ":2: client_id is given a second time"),
        ("security.protocol = SSL", ":1: unknown setting 'security.protocol'; did you mean security_protocol"),
        ("sasl_pasword = s3cret", ":1: unknown setting 'sasl_pasword'; did you mean "),
        ("ssl_context = x", ":1: ssl_context cannot be given as text; give it in code"),
        ("enable_auto_commit = true", ":1: enable_auto_commit is not supported: "),
    ],
)
def test_a_mistake_is_named_with_its_line_and_without_the_value(file: Path, content: str, says: str) -> None:
    file.write_text(content)
    text = refusal(lambda: load(str(file)))
    assert text.startswith(f"{file}{says}")
    assert "s3cret" not in text


def test_a_file_that_cannot_be_read_is_named(file: Path) -> None:
    assert refusal(lambda: load(str(file))) == f"--config {file} cannot be read: No such file or directory"
    file.write_bytes(b"\xff")
    assert refusal(lambda: load(str(file))) == f"--config {file} cannot be read: it is not a text in UTF-8"
