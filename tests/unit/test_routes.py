"""``karafka-lite routes``, in this process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support.command import Write, command, process, refused, rows

SHOP = """\
import functools
from karafka_lite import App

print("hello")
app = App("shop", bootstrap_servers="nowhere.invalid:1")

class Stock:
    def __call__(self, batch, ctx): ...

@app.topic("orders", "returns", manual_offsets=True, dead_letter="orders.dead")
def charge(batch, ctx): ...

def log(name, batch, ctx): ...

app.topic("clicks", group_id="stats")(functools.partial(log, "x"))
app.topic("stock", order="key")(Stock())
app.topic("printed", deserializer=None)(print)

@app.on_shutdown(charge)
@app.every(charge, ms=5)
def flush(ctx): ...
"""


@pytest.fixture(autouse=True)
def shop(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("shop.py", SHOP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.delitem(sys.modules, "shop", raising=False)


def test_routes_names_every_topic_with_its_function_and_hooks(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ended = command(capsys, "routes", "shop:app", "--json")
    assert (ended.code, ended.err) == (0, "hello\n"), "what the module prints is not what we answer"
    file = str(tmp_path / "shop.py")
    flush = {"function": "flush", "file": file, "line": 19}
    charge = {
        "mode": "manual",
        "order": "partition",
        "dead_letter": "orders.dead",
        "function": "charge",
        "file": file,
        "line": 10,
        "hooks": [{"kind": "every", **flush}, {"kind": "on_shutdown", **flush}],
    }
    automatic = {"mode": "automatic", "order": "partition", "dead_letter": None, "file": file, "hooks": []}
    *found, printed = sorted(rows(ended.out), key=lambda row: (row["topic"] == "printed", row["topic"]))
    assert found == [
        {"group_id": "stats", "topic": "clicks", **automatic, "function": "log", "line": 13},
        {"group_id": "shop", "topic": "orders", **charge},
        {"group_id": "shop", "topic": "returns", **charge},
        {
            "group_id": "shop",
            "topic": "stock",
            **automatic,
            "order": "key",
            "function": printed_name("stock", found),
            "line": 8,
        },
    ]
    assert (printed["function"], printed["file"], printed["line"]) == ("print", None, None)


def printed_name(topic: str, found: list[dict[str, object]]) -> object:
    """An object's repr, with its address."""
    (name,) = [row["function"] for row in found if row["topic"] == topic]
    assert "Stock" in str(name)
    return name


def test_the_table_has_places_that_an_editor_opens(tmp_path: Path) -> None:
    done = process("-m", "karafka_lite", "routes", "shop", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "hello\n")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0] == ["group_id", "topic", "mode", "function", "place", "hooks"]
    assert lines[1] == ["shop", "orders", "manual", "charge", "shop.py:10", "every=flush,", "on_shutdown=flush"]
    assert ["shop", "stock", "by", "key"] in [line[:4] for line in lines]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "required: module:app"),
        (["shop:ap"], "has no attribute 'ap'"),
        (["shop", "--group", "g"], "unrecognized arguments: --group g"),
    ],
)
def test_a_mistake_is_named(capsys: pytest.CaptureFixture[str], argv: list[str], words: str) -> None:
    refused(command(capsys, "routes", *argv), words)
