"""Which cluster a command connects to, and whose offsets it is about."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.command import Write

from karafka_lite.cli import cluster
from karafka_lite.cli.options import Parser, add_cluster, add_groups

MINE = """\
from karafka_lite import App
print("hello")
app = App("mine", bootstrap_servers="a:1", client_id="mine", auto_offset_reset="latest")
@app.topic("orders", "clicks")
def work(batch, ctx): ...
@app.topic("orders", group_id="other")
def also(batch, ctx): ...
"""


@pytest.fixture(autouse=True)
def mine(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("mine.py", MINE)
    write("kafka.toml", "bootstrap_servers = 'b:2'\nclient_id = 'its'\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.delitem(sys.modules, "mine", raising=False)


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser()
    add_groups(parser)
    add_cluster(parser)
    parser.set_defaults(parser=parser)
    return parser.parse_args(argv)


@pytest.mark.parametrize(
    ("argv", "servers", "client_id"),
    [
        ([], "localhost:9092", None),
        (["--app", "mine:app"], "a:1", "mine"),
        (["--config", "kafka.toml"], "b:2", "its"),
        (["--app", "mine:app", "--config", "kafka.toml"], "b:2", "its"),
        (["--app", "mine:app", "--config", "kafka.toml", "--broker", "c:3"], "c:3", "its"),
    ],
)
def test_the_command_line_wins_over_the_file_and_the_file_over_the_app(
    argv: list[str], servers: str, client_id: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    found = cluster.cluster_of(arguments(argv))
    assert (found.servers, found.settings.get("client_id")) == ([servers], client_id)
    assert capsys.readouterr().out == "", "what a module prints is not what a command answers"


def test_the_environment_wins_over_the_app_and_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KARAFKA_LITE_BOOTSTRAP_SERVERS", "d:4")
    for argv in ([], ["--app", "mine:app"], ["--config", "kafka.toml"]):
        assert cluster.cluster_of(arguments(argv)).servers == ["d:4"]


@pytest.mark.parametrize(
    ("argv", "groups", "reset"),
    [
        (["mine:app"], {"mine": ["orders", "clicks"], "other": ["orders"]}, "latest"),
        (["--group", "other"], {"other": ()}, "earliest"),
        (["--group", "other", "--app", "mine:app"], {"other": ["orders"]}, "latest"),
        (["--group", "third", "--app", "mine:app"], {"third": []}, "latest"),
    ],
)
def test_groups_are_those_of_an_app_or_one_by_its_name(argv: list[str], groups: object, reset: str) -> None:
    target = cluster.target_of(arguments(argv))
    assert (target.groups, target.reset) == (groups, reset)
