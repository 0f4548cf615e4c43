"""Of a stack, what is the user's: lines of the package are of no use to a reader of logs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from support.observer import wait_until

from karafka_lite.observers import frames


def raised_by(source: str) -> BaseException:
    """What a user's module of this text raises; it is called orders.py."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - which one it is, is the test's question
        exec(compile(source, "orders.py", "exec"), {})
    return caught.value


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("from karafka_lite import App\nApp('')\n", "orders.py:2"),
        ("from karafka_lite.cli.options import port\n\nport('kafka')\n", "orders.py:3"),  # in a folder of the package
        ("from karafka_lite import Batch\ndef f(): Batch([])\n\nf()\n", "orders.py:2"),  # the line nearest to us
    ],
)
def test_what_we_raise_is_found_where_the_user_called_us(source: str, line: str) -> None:
    assert frames.line_that_called_us(raised_by(source)) == line


@pytest.mark.parametrize("source", ["{}['id']", "import json\njson.loads('{')"])
def test_an_error_of_the_users_own_is_none_of_ours(source: str) -> None:
    assert frames.line_that_called_us(raised_by(source)) is None


def test_an_error_that_was_never_raised_has_no_line() -> None:
    assert frames.line_that_called_us(ValueError()) is None


@pytest.fixture
def blocked() -> Iterator[Callable[[str], threading.Thread]]:
    """A thread that runs ``source``, of orders.py, until the end of the test; ``release`` is an Event there."""
    release, threads = threading.Event(), []

    def block(source: str) -> threading.Thread:
        inside = threading.Event()
        names = {"release": release, "inside": inside}
        thread = threading.Thread(target=exec, args=(compile(source, "orders.py", "exec"), names), daemon=True)
        thread.start()
        threads.append(thread)
        assert inside.wait(5)
        return thread

    yield block
    release.set()
    for thread in threads:
        thread.join()


HANDLER = "def handle():\n    inside.set()\n    release.wait()\n\nhandle()\n"


def test_the_stack_of_a_run_begins_with_the_users_function(blocked: Callable[[str], threading.Thread]) -> None:
    thread = blocked(HANDLER)
    run = SimpleNamespace(ownership=object())
    inside: Any = {thread.ident: run}

    def stack() -> str:
        ((found, text),) = frames.stacks(inside, [run.ownership])
        assert found is run
        return text if "release.wait" in text or "line 3" in text else ""

    text = wait_until(stack, message="the thread waits in its handler")
    assert text.splitlines()[0] == '  File "orders.py", line 5, in <module>'
    assert '  File "orders.py", line 3, in handle' in text.splitlines()


def test_runs_of_other_ownerships_are_left_out(blocked: Callable[[str], threading.Thread]) -> None:
    inside: Any = {blocked(HANDLER).ident: SimpleNamespace(ownership=object())}
    assert frames.stacks(inside, [object()]) == []  # type: ignore[list-item]


def test_a_run_whose_thread_has_ended_has_no_stack() -> None:
    run = SimpleNamespace(ownership=object())
    inside: Any = {-1: run}
    assert frames.stacks(inside, [run.ownership]) == [(run, "")]
