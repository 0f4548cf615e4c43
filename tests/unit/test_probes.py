"""The answers for probes, and the file whose time moves."""

from __future__ import annotations

import argparse
import os
import socket
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.observer import wait_until

from karafka_lite import ConfigurationError, Health
from karafka_lite.cli import probes
from karafka_lite.cli.options import Parser
from karafka_lite.cli.probes import Sources, answer, watched
from karafka_lite.observers.metrics import MISSING

GOOD = Health(live=True, ready=True)
WAITS = Health(live=True, ready=False, reasons=("group shop: has not joined",))
HANGS = Health(live=False, ready=False, reasons=("it hangs",))


def sources(health: Health, metrics: Callable[[], str] = lambda: "a 1\n") -> Sources:
    return Sources(lambda: health, metrics)


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def given(*argv: str) -> argparse.Namespace:
    parser = Parser(prog="karafka-lite run")
    probes.add_to(parser)
    parser.set_defaults(parser=parser)
    namespace: argparse.Namespace = parser.parse_args(argv)
    return namespace


def get(port: int, path: str, method: str = "GET") -> tuple[int, str, str | None]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as found:
            return found.status, found.read().decode(), found.headers["Content-Type"]
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.read().decode(), refused.headers["Content-Type"]


@pytest.mark.parametrize(
    ("health", "path", "status", "text"),
    [
        (GOOD, "/live", 200, "live\n"),
        (GOOD, "/ready", 200, "ready\n"),
        (WAITS, "/live", 200, "live\ngroup shop: has not joined\n"),
        (WAITS, "/ready", 503, "not ready\ngroup shop: has not joined\n"),
        (HANGS, "/live", 503, "not live\nit hangs\n"),
        (HANGS, "/ready", 503, "not ready\nit hangs\n"),
        (HANGS, "/metrics", 200, "a 1\n"),
        (GOOD, "/", 404, "not found; there are /live, /ready, /metrics\n"),
    ],
)
def test_each_path_says_how_the_app_is_and_why(health: Health, path: str, status: int, text: str) -> None:
    assert answer(path, sources(health)) == (status, text)


def test_without_the_library_metrics_name_the_command_and_the_others_answer() -> None:
    def missing() -> str:
        raise ConfigurationError(MISSING)

    assert answer("/metrics", sources(GOOD, missing)) == (501, f"{MISSING}\n")
    assert "pip install 'karafka-lite[metrics]'" in MISSING
    assert answer("/live", sources(GOOD, missing))[0] == 200


def test_it_answers_on_its_port_inside_the_block_and_is_silent(port: int, capsys: pytest.CaptureFixture[str]) -> None:
    with watched(given("--health-port", str(port)), sources(WAITS)):
        assert get(port, "/live?from=kubelet") == (
            200,
            "live\ngroup shop: has not joined\n",
            "text/plain; charset=utf-8",
        )
        assert get(port, "/ready")[0] == 503
        assert get(port, "/live", "HEAD")[:2] == (200, "")
        assert get(port, "/metrics")[2] == "text/plain; version=0.0.4; charset=utf-8"
        with socket.create_connection(("127.0.0.1", port)) as one_that_says_nothing:
            assert get(port, "/live")[0] == 200
            one_that_says_nothing.sendall(b"GET /live HT")
    with pytest.raises(urllib.error.URLError):
        get(port, "/live")
    assert capsys.readouterr().err == ""


def test_without_the_library_that_is_said_at_the_start(
    port: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with watched(given("--health-port", str(port)), sources(GOOD)):
        assert get(port, "/live")[0] == 200
    assert f"{MISSING}; /live and /ready work without it" in capsys.readouterr().err


def test_the_files_time_moves_while_it_is_live_and_only_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "EVERY_S", 0.01)
    health, looked = [GOOD], [0]

    def look() -> Health:
        looked[0] += 1
        return health[-1]

    def looks(count: int) -> None:
        until = looked[0] + count
        wait_until(lambda: looked[0] >= until, 10, "it looks")

    file = tmp_path / "alive"
    with watched(given("--health-file", str(file)), Sources(look, str)):
        for now, moves in ((GOOD, True), (WAITS, True), (HANGS, False), (GOOD, True)):
            health.append(now)
            looks(3)  # so that none that was under way touches it any more
            os.utime(file, (0, 0))
            looks(3)
            assert (file.stat().st_mtime > 0) is moves, now
        assert given().health_file is None
    assert file.exists(), "its age says that it has ended"


def test_a_file_that_is_taken_away_meanwhile_comes_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "EVERY_S", 0.01)
    folder = tmp_path / "run"
    folder.mkdir()
    file = folder / "alive"
    with watched(given("--health-file", str(file)), sources(GOOD)):
        file.unlink()
        folder.rename(tmp_path / "elsewhere")
        folder.mkdir()
        wait_until(file.exists, 10, "the file is there again")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--health-file", "/nowhere/alive"], "--health-file /nowhere/alive: No such file or directory"),
        (["--health-port", "PORT"], "--health-port PORT: cannot listen on 127.0.0.1:PORT: Address already in use"),
    ],
    ids=["file", "port"],
)
def test_what_cannot_work_is_a_mistake_at_the_start(port: int, argv: list[str], words: str) -> None:
    with socket.create_server(("127.0.0.1", port)):
        arguments = given(*[word.replace("PORT", str(port)) for word in argv])
        with pytest.raises(ConfigurationError) as refused, watched(arguments, sources(GOOD)):
            pass
    assert str(refused.value) == words.replace("PORT", str(port))


def test_a_host_without_a_port_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    arguments: Any = given("--health-host", "0.0.0.0")
    with pytest.raises(SystemExit), watched(arguments, sources(GOOD)):
        pass
    assert "--health-host requires --health-port" in capsys.readouterr().err
