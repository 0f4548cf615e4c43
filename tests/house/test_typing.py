"""What mypy and pyright say about code of users: nothing about what is right, something about each mistake."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_lint import USAGE

ROOT = Path(__file__).parents[2]

# Each line of ``mistakes`` is one.
WRONG = """\
from karafka_lite import App, AsyncContext, Batch, Context, Message, Outgoing, Router
from karafka_lite.testing import TestClient

app = App("group")
router = Router()


class Order:
    total: int


class Invoice:
    number: int


def as_order(data: bytes) -> Order:
    return Order()


def of_text(data: str) -> Order:
    return Order()


@app.topic("fine")
def store(batch: Batch, ctx: Context) -> None: ...


def mistakes(batch: Batch, ctx: Context) -> None:
    App("group", auto_offset_rest="latest")
    App("group", auto_offset_reset="first")
    App("group", enable_auto_commit=False)
    app.topic("orders", manual_offsets="yes")
    app.topic("orders", max_message=1)
    app.topic("orders", dead_letter=True)
    app.topic("orders")(lambda batch: None)
    app.topic("orders")(wants_a_list)
    app.topic("orders")(wants_another_context)
    app.on_shutdown("store")
    app.on_shutdown(store)(store)
    app.on_shutdown(store)(of_another_context)
    app.every(store, ms="1s")
    ctx.mark_as_consumed(batch)
    ctx.mark_as_consumed(batch.last, True)
    ctx.pause("1s")
    ctx.seek("begin")
    ctx.produce("orders", 1, headers={"id": b"1"})
    ctx.dead_letter(batch.last.offset)
    app.produce("orders", 1, "key")
    app.produce("orders", 1, key=1)
    app.produce_many("orders", 1)
    ctx.produce_many("orders", [Outgoing(1, key=1)])
    app.stop(False)
    ctx.revoked = True
    ctx.state = {}
    batch[0] = 1
    batch.last.payload = 1
    Message("orders", "0", 5)
    Batch(["orders"])
    TestClient(app).run().offsets
    TestClient(app).advance(1000)
    app.topic("orders", deserializer=as_order)(of_invoices)
    app.topic("orders", deserializer=of_text)
    app.topic("orders", deserializer=as_order, no_retry="KeyError")
    app.topic("orders", order="keys")
    app.topic("orders", order=None)
    batch.last.header(1)
    app.topic("orders", deserializer=of_another_name)
    app.topic("orders", deserializer=of_message)(of_invoices)
    router.topic("orders", deserializer=as_order)(of_invoices)
    app.on_assigned(store)(store)
    app.on_assigned(store)(of_another_context)
    app.on_start(of_another_context)
    router.on_stop("close")
    app.include("orders")
    Router("group")
    App("group", serializer=as_text)
    App("group", serializer=of_nothing)
    router.run()
    app.topic("orders")(plain_of_async_context)
    app.topic("orders", deserializer=as_order)(async_of_invoices)
    app.topic("orders")(async_of_a_list)
    marked: bool = async_ctx.mark_as_consumed(batch.last, sync=True)
    committed: bool = async_ctx.commit_offsets(sync=True)
    async_ctx.produce("orders", 1).result(timeout=1)
    code: int = app.serve()


async_ctx: AsyncContext


def plain_of_async_context(batch: Batch, ctx: AsyncContext) -> None: ...
async def async_of_invoices(batch: Batch[Invoice], ctx: AsyncContext) -> None: ...
async def async_of_a_list(batch: list[Message], ctx: AsyncContext) -> None: ...
def wants_a_list(batch: list[Message], ctx: Context) -> None: ...
def wants_another_context(batch: Batch, ctx: int) -> None: ...
def of_invoices(batch: Batch[Invoice], ctx: Context) -> None: ...
def of_another_context(ctx: int) -> None: ...
def of_another_name(data: Message) -> Order: return Order()
def of_message(message: Message) -> Order: return Order()
def as_text(value: object) -> str: return ""
def of_nothing() -> bytes: return b""
"""


CHECKERS = {
    "mypy": ["mypy", "--strict"],
    "pyright": ["pyright", "--pythonpath", sys.executable],
}


def check(checker: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *CHECKERS[checker], *arguments]
    environment = {**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_what_is_right_is_accepted() -> None:
    """By mypy; ``test_lint`` has pyright read the same files together with the package."""
    done = check("mypy", *USAGE)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("checker", CHECKERS)
def test_each_mistake_is_reported_at_its_line_and_nothing_else(checker: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text(WRONG)
    lines = WRONG.splitlines()
    begin = lines.index("def mistakes(batch: Batch, ctx: Context) -> None:") + 1
    end = lines.index("", begin)
    done = check(checker, str(tmp_path / "wrong.py"))
    reported = {int(number) for number in re.findall(r"wrong\.py:(\d+)(?::\d+ -|:) error", done.stdout)}
    assert done.returncode == 1, done.stdout + done.stderr
    assert [lines[number - 1] for number in sorted(reported)] == lines[begin:end]
    assert end - begin >= 10
