"""``karafka-lite produce``: what is sent where, and what each mistake says."""

from __future__ import annotations

import importlib
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from support.command import ORDERS, Ended, Run, Write, refused

from karafka_lite.cli import main as cli
from karafka_lite.cli.feed import Feed
from karafka_lite.client import producer


@pytest.fixture
def produce(run: Run, capsys: pytest.CaptureFixture[str]) -> Run:
    def produce(*argv: str) -> Ended:
        try:
            code: object = cli.main(["produce", *argv])
        except SystemExit as end:
            code = end.code
        captured = capsys.readouterr()
        return Ended(code, captured.err, captured.out, None)

    return produce


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["t"], Feed("t", "-")),
        (["t", "-"], Feed("t", "-")),
        (["t", "f", "--key", "id"], Feed("t", "f", "id")),
        (["--text", "t", "f"], Feed("t", "f", None, True)),
    ],
)
def test_produce_sends_one_feed(produce: Run, fed: list[Any], argv: list[str], expected: Feed) -> None:
    assert produce(*argv).code == 0
    assert fed == [([expected], ["localhost:9092"], {})]


def test_the_brokers_of_produce_are_the_option_then_the_environment(
    produce: Run, fed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KARAFKA_LITE_BOOTSTRAP_SERVERS", "kafka-1:9092,kafka-2:9092")
    produce("t")
    produce("t", "--broker", "kafka-3:9092")
    assert [servers for _, servers, _ in fed] == [["kafka-1:9092", "kafka-2:9092"], ["kafka-3:9092"]]


def test_produce_reaches_the_cluster_of_an_app_or_of_a_file(produce: Run, fed: list[Any], write: Write) -> None:
    write("secure.py", ORDERS.replace('"event-store"', "'g', bootstrap_servers='a:1', client_id='mine'"))
    file = write("kafka.toml", "bootstrap_servers = 'b:2'\nclient_id = 'its'\n")
    importlib.invalidate_caches()  # a file that was written a moment ago
    produce("t", "--app", "secure:app")
    produce("t", "--config", str(file))
    produce("t", "--app", "secure:app", "--config", str(file), "--broker", "c:3")
    assert [(servers, settings) for _, servers, settings in fed] == [
        (["a:1"], {"client_id": "mine"}),
        (["b:2"], {"client_id": "its"}),
        (["c:3"], {"client_id": "its"}),
    ]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "required: TOPIC"),
        (["t", "f", "--key", "id", "--text"], "--key cannot be combined with --text"),
        (["t", "f", "g"], "unrecognized arguments: g"),
        (["t", "--keys", "id"], "unrecognized arguments: --keys id"),
    ],
)
def test_a_usage_error_of_produce_shows_its_usage(produce: Run, fed: list[Any], argv: list[str], words: str) -> None:
    example = "for example: karafka-lite produce my_topic my_file.jsonl"
    refused(produce(*argv), words, example, "karafka-lite produce --help")
    assert fed == []


@pytest.mark.parametrize("file", ["missing", ".", "secret", "nul\0"])
def test_a_file_that_cannot_be_read_is_one_message(produce: Run, tmp_path: Path, file: str) -> None:
    (tmp_path / "secret").touch(0o000)
    if file == "secret" and os.access("secret", os.R_OK):
        pytest.skip("root may read everything")
    ended = produce("t", file)
    refused(ended, f"karafka-lite: cannot read {file}: ", str(tmp_path), "pass a file, or - for standard input")
    assert ended.err.count("\n") == 1


def test_a_closed_standard_input_is_one_message(produce: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    refused(produce("t"), "karafka-lite: standard input is closed; pass the name of a file")


@pytest.mark.parametrize("option", ["--broker", "the environment"])
def test_brokers_that_are_none_are_refused_with_their_source(
    produce: Run, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setenv("KARAFKA_LITE_BOOTSTRAP_SERVERS", "http://x")
    words = "the environment variable KARAFKA_LITE_BOOTSTRAP_SERVERS" if option != "--broker" else "--broker"
    refused(
        produce("t", *(["--broker", "http://x"] if option == "--broker" else [])), words, "'http://x' is not an address"
    )


@pytest.mark.parametrize("listens", [False, True], ids=["nobody listens", "nobody answers"])
def test_without_a_broker_produce_exits_with_3_and_leaves_no_thread_or_socket(
    produce: Run, write: Write, monkeypatch: pytest.MonkeyPatch, listens: bool
) -> None:
    monkeypatch.setitem(producer.DEFAULTS, "bootstrap_timeout_ms", 500)
    write("f", "1\n")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if listens:
            silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        ended = produce("t", "f", "--broker", address)
    assert ended.code == 3
    (line,) = [line for line in ended.err.splitlines() if line.startswith("karafka-lite: ")]
    assert line.startswith(f"karafka-lite: no broker could be reached at {address} within 500 ms (")
    assert ("ECONNREFUSED" in line) == (not listens), "the reason of this time, where there is one"
    assert "--broker HOST:PORT, or KARAFKA_LITE_BOOTSTRAP_SERVERS=HOST:PORT" in line
    assert "Traceback" not in ended.err
