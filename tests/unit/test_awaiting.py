"""What blocks, awaited: the loop goes on, and a cancelled wait ends when what it waits for has ended."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from karafka_lite.awaiting import beside
from karafka_lite.runner import System


def waiting(function: Callable[[], Any], *more: Any) -> Any:
    return beside(System(), function, *more)


def test_the_loop_goes_on_while_a_function_blocks_and_gets_what_it_returns_or_raises() -> None:
    ticks = threading.Event()

    async def main() -> None:
        asyncio.get_running_loop().call_later(0, ticks.set)
        assert await waiting(lambda: ticks.wait(20), print) is True
        with pytest.raises(SystemExit):
            await waiting(lambda: (_ for _ in ()).throw(SystemExit), print)

    asyncio.run(main())


def test_a_cancelled_wait_asks_for_the_end_each_time_and_raises_after_it_and_what_was_done_is_undone() -> None:
    asked, said, begun = list[int](), list[str](), threading.Event()

    def work() -> None:
        begun.set()
        while len(asked) < 2:
            pass
        said.append("done")

    async def main() -> None:
        task = asyncio.ensure_future(waiting(work, lambda: asked.append(1), lambda: said.append("undone")))
        await asyncio.to_thread(begun.wait)
        for _ in range(2):
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert said == ["done", "undone"]
