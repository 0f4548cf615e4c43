"""What the README promises is there, and what it shows runs."""

from __future__ import annotations

import configparser
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import karafka_lite
from karafka_lite import App
from karafka_lite.cli import main as cli
from karafka_lite.testing import TestClient

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
DEPLOY = ROOT / "examples" / "deploy"
MOST_LINES = 300
INSTALLS = 2  # its two commands: tests/kafka/test_examples.py runs the first one, whoever reads this the second
WIDEST = 100  # of a table


class Block(NamedTuple):
    """A fenced block of code."""

    language: str
    text: str
    line: int

    def __str__(self) -> str:
        return f"{self.language}, line {self.line}"


def blocks(*languages: str) -> list[Block]:
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    every = [Block(match[1], match[2], README[: match.start()].count("\n") + 1) for match in found]
    return [block for block in every if block.language in languages]


def test_every_block_of_code_is_of_a_kind_that_is_tested() -> None:
    fences = re.findall(r"^```(\w*)$", README, re.MULTILINE)[::2]
    assert {*fences} == {"python", "sh"}


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_runs(block: Block) -> None:
    """Its app is handed messages, its tests are run."""
    saved: list[object] = []
    names: dict[str, Any] = {name: getattr(karafka_lite, name) for name in karafka_lite.__all__}
    names |= {"app": App("readme"), "save": saved.append, "print": saved.append}
    exec(compile(block.text, f"README.md:{block.line}", "exec"), names)
    for test in [name for name in names if name.startswith("test_")]:
        names[test]()
    app = names["app"]
    topics = {topic for group in app.groups.values() for topic in group}
    assert topics
    with TestClient(app) as client:
        for topic in topics:
            client.send_many(topic, [{"id": n} for n in range(3)], key="k")
        assert client.run(raise_errors=True)
        client.advance(ms=10_000)
    assert all(client.committed(topic, 0) == 3 for topic in topics)
    assert saved or client.produced("orders.priced")


def test_the_shell_commands_exist() -> None:
    installs = [block for block in blocks("sh") if "pip install" in block.text]
    assert len(installs) == INSTALLS, "one installs and runs the quickstart, one installs and passes the tests"
    commands = [command for block in blocks("sh") if block not in installs for command in shell_commands(block.text)]
    indented = re.findall(r"^    (karafka-lite [^\[\n…]*)$", README, re.MULTILINE)
    assert len(commands) + len(indented) >= 4
    for command in [*commands, *indented]:
        cli._parser().parse_args(shlex.split(command.replace("TOPIC", "orders"))[1:])


def shell_commands(text: str) -> Iterator[str]:
    for line in text.splitlines():
        yield from (part.strip() for part in line.split("|") if part.strip().startswith("karafka-lite "))


def test_the_unit_of_systemd_waits_for_a_drain() -> None:
    unit = configparser.ConfigParser()
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string((DEPLOY / "event-store.service").read_text())
    command = shlex.split(unit["Service"]["ExecStart"])
    assert Path(command[0]).name == "karafka-lite"
    cli._parser().parse_args(command[1:])
    assert int(unit["Service"]["TimeoutStopSec"]) * 1000 > App("any").config.drain_timeout_ms + 5000


def test_the_deployment_of_kubernetes_waits_for_a_drain() -> None:
    text = (DEPLOY / "kubernetes.yaml").read_text()
    assert of_list(text, "command")[0] == "karafka-lite"
    cli._parser().parse_args(of_list(text, "command")[1:])
    (seconds,) = re.findall(r"terminationGracePeriodSeconds: (\d+)", text)
    assert int(seconds) * 1000 > App("any").config.drain_timeout_ms + 5000


def test_the_image_runs_the_command_of_the_deployment_without_a_shell() -> None:
    """A shell would get the signals of the stop, and pass none of them on."""
    (command,) = re.findall(r"^CMD (\[.*\])$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert json.loads(command) == of_list((DEPLOY / "kubernetes.yaml").read_text(), "command")


def of_list(text: str, name: str) -> list[str]:
    (items,) = re.findall(rf"{name}: \[(.*)\]", text)
    return [item.strip().strip('"') for item in items.split(",")]


def test_it_can_be_read_in_one_sitting() -> None:
    assert len(README.splitlines()) <= MOST_LINES
    wide = [line for line in README.splitlines() if line.startswith("|") and len(line) > WIDEST]
    assert wide == []
